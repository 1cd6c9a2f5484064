"""Calls from code that Numba compiles: what is computed and raised is what it is outside, and where it runs."""

import gc
import os
import pickle
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from common import code_range, output, random_codes

numba = pytest.importorskip("numba")

from numba import njit  # noqa: E402
from numba.core.errors import TypingError  # noqa: E402
from numba.experimental import jitclass  # noqa: E402
from test_fpmode import FLUSH, UP, helper  # noqa: E402

import qkernels as qk  # noqa: E402
from qkernels import numba as qn  # noqa: E402
from qkernels._bind import jit  # noqa: E402
from qkernels.numba import PackedMatrixType  # noqa: E402

RNG = np.random.default_rng(15)
SHAPE = 6, 32
X = RNG.normal(size=SHAPE).astype(np.float32)
SUMS = RNG.integers(-(2**20), 2**20, SHAPE, np.int32)
ROW = RNG.uniform(0.5, 2, 32)


def same(got, want):
    """Whether results have the same types, shapes and bits."""
    if isinstance(want, tuple):
        return len(got) == len(want) and all(map(same, got, want))
    want = want if want.dtype.isbuiltin == 1 else want.view(np.uint8)
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def check(variants, compiled, call, *arguments):
    for variant in variants():
        assert same(compiled(*arguments), call(*arguments)), variant


@pytest.fixture
def handed(monkeypatch):
    """Note the names of functions that calls are handed to, which need the GIL: only what docs/embedding.md lists."""
    found = set()

    def noted(name, function):
        return lambda *args, **options: found.add(name) or function(*args, **options)

    for name, function in jit.public.items():
        monkeypatch.setitem(jit.public, name, noted(name, function))
    return found


# ---- values ----


def params_of(dtype, kind):
    low, high = (0, 0) if dtype.startswith("float") else code_range(dtype)
    shape, options = {
        "tensor": ((), {}),
        "axis": ((32,), dict(axis=-1)),
        "blocks": ((6, 5), dict(axis=1, block_size=7)),
    }[kind]
    zero = RNG.integers(low, high + 1, shape) if RNG.integers(2) else None
    return qk.QParams(RNG.uniform(0.02, 0.5, shape), zero, dtype, **options)


DTYPES = ["int8", "uint8", "int16", "uint16", "int4", "uint2", "float8_e4m3fn", "float4_e2m1fn"]


# Compiled once for the types that tests share: to compile takes most of their time.
QUANTIZE, ENCODE = njit(lambda x, params: qk.quantize(x, params)), njit(lambda x, book: qk.encode(x, book))
DECODE = njit(lambda codes, book, scales: qk.decode(codes, book, scales))
TO_FLOAT64 = njit(lambda q, params: qk.dequantize(q, params, dtype=np.float64))
MATMUL, LINEAR = njit(lambda a, b: qk.matmul(a, b)), njit(lambda x, w: qk.linear(x, w))
SHIFTED = njit(lambda a, b, az, bz: qk.matmul(a, b, a_zero_point=az, b_zero_point=bz))
BIASED = njit(lambda x, w, bias: qk.linear(x, w, bias))


@pytest.mark.parametrize("kind", ["tensor", "axis", "blocks"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_quantize(variants, handed, dtype, kind):
    params = params_of(dtype, kind)
    for x in X, X.astype(float), X.T.copy().T:
        check(variants, QUANTIZE, qk.quantize, x, params)
    q = qk.quantize(X, params)
    codes = q if q.dtype.isbuiltin == 1 else q.view(np.uint8)
    for variant in variants():
        assert same(TO_FLOAT64(codes, params), qk.dequantize(q, params, dtype=np.float64)), variant
    if not dtype.startswith("float"):
        check(variants, TO_FLOAT64, TO_FLOAT64.py_func, SUMS, params)
    assert not handed


@njit
def both(x, params, q, y):
    return qn.quantize(x, params, rounding="half_away", out=q), qn.dequantize(q, params, out=y)


@pytest.mark.parametrize("kind", ["tensor", "axis", "blocks"])
def test_results_go_to_out(handed, kind):
    params = params_of("int8", kind)

    q, y = np.empty(SHAPE, np.int8), np.empty(SHAPE, np.float32)
    found = both(X, params, q, y)
    assert found[0].ctypes.data == q.ctypes.data and same(q, qk.quantize(X, params, rounding="half_away"))
    assert found[1].ctypes.data == y.ctypes.data and same(y, qk.dequantize(q, params))
    assert not handed


def test_integer_scales_are_left_to_python(handed):
    scales = dict(block_scale=RNG.integers(1, 9, (2, 32)), axis=0, block_size=4)
    params = qk.QParams(ROW / 50, dtype="int4", **scales)
    assert same(QUANTIZE(X, params), qk.quantize(X, params))
    assert handed == {"quantize"}


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "gemmlowp", "tflite"])
def test_sums_are_requantized(variants, handed, rounding):
    source = f"lambda acc, m, params, bias: qk.requantize(acc, m, params, bias=bias, rounding={rounding!r})"
    call = eval(source, {"qk": qk})
    compiled = njit(call)
    bias = RNG.integers(-99, 99, 32, np.int32)
    for params in qk.QParams(1, 3, "uint8"), qk.QParams(1, dtype="int16", narrow_range=True):
        for m in 1e-4, 1, ROW * 1e-5, np.float32(ROW) * np.float32(1e-5), 1e39:
            check(variants, compiled, call, SUMS, m, params, bias)
            check(variants, compiled, call, SUMS[0], m, params, None)
    wide = RNG.integers(-(2**20), 2**20, (2, 600), np.int32)
    check(variants, compiled, call, wide, RNG.uniform(1e-5, 1e-3, 600), params, None)
    assert not handed
    check(variants, compiled, call, SUMS[:0], ROW, params, None)
    assert handed == {"requantize"}


@pytest.mark.parametrize("right", ["int8", "uint8", "int16", "packed int8", "packed uint8", "packed int16"])
@pytest.mark.parametrize("left", ["int8", "uint8", "int16"])
def test_products_are_exact(variants, handed, left, right):
    a, b = random_codes(RNG, (2, 3, 40), left), random_codes(RNG, (40, 17), right.split()[-1])
    if right.startswith("packed"):
        if (left == "int16") != (right == "packed int16"):
            return
        b = qk.pack(b, qk.QParams(1, dtype=b.dtype))
    zeros = np.int32(RNG.integers(0, 100, (2, 3))), np.int32(RNG.integers(0, 100, 17))
    for az, bz in (0, 0), (3, 0), (0, 5), (zeros[0][0], zeros[1]), (7, zeros[1]), (zeros[0][0], 9):
        for variant in variants():
            want = qk.matmul(a[0], b, a_zero_point=az, b_zero_point=bz)
            assert same(SHIFTED(a[0], b, az, bz), want), variant
    check(variants, MATMUL, qk.matmul, a, b)
    check(variants, MATMUL, qk.matmul, a[0, 0], b)
    check(variants, MATMUL, qk.matmul, a[:, :, ::-1][:, ::2], b)
    for az, bz in (np.uint8(3), 5), (0, np.uint64(5)):
        for variant in variants():
            assert same(SHIFTED(a, b, az, bz), qk.matmul(a, b, a_zero_point=az, b_zero_point=bz)), variant
    check(variants, MATMUL, qk.matmul, a[:, :0], b)
    if right.startswith("packed") or "int16" not in (left, right):
        assert handed == ({"matmul"} if left == "int16" else set())
        check(variants, SHIFTED, SHIFTED.py_func, a[0, :0], b, 3, 5)
    assert handed == {"matmul"}


def packed_weights():
    w = RNG.normal(size=(32, 20)).astype(np.float32)
    for dtype, options in ("int8", {}), ("uint8", dict(axis=1)), ("int4", dict(axis=0, block_size=8)), ("int16", {}):
        params = qk.choose_qparams(w, dtype, **options)
        yield qk.pack(qk.quantize(w, params), params)
    yield qk.pack(w.astype(np.float16), None)
    codes, scales = qk.encode(w, book := qk.Codebook(qk.NF4.levels, axis=0, block_size=16))
    yield qk.pack(codes, book, scales=scales)


@pytest.mark.parametrize("packed", list(packed_weights()), ids=lambda packed: str(packed.dtype))
def test_layers_are_those_of_linear(variants, handed, packed):
    bias, residual = ROW[:20].astype(np.float32), RNG.normal(size=(6, 20)).astype(np.float32)
    check(variants, LINEAR, qk.linear, X, packed)
    check(variants, LINEAR, qk.linear, X[0], packed)
    check(variants, LINEAR, qk.linear, X.astype(np.float64)[::2], packed)
    check(variants, BIASED, qk.linear, X, packed, bias)
    check(variants, full, full.py_func, X, packed, bias, residual)
    check(variants, bounded, bounded.py_func, X, packed, -1)
    for variant in variants():
        y = residual.copy()
        in_place(X, packed, y)
        assert same(y, qk.linear(X, packed, residual=residual)), variant
    assert njit(lambda p: p.shape)(packed) == packed.shape
    assert not handed
    check(variants, BIASED, qk.linear, X, packed, bias.astype(np.float64))
    assert handed == {"linear"}


@njit
def full(x, packed, bias, residual):
    return qk.linear(x, packed, bias, activation="gelu", residual=residual, clamp=(None, 1.5))


@njit
def bounded(x, packed, lo):
    return qk.linear(x, packed, activation=None, clamp=(lo, 0.75))


@njit
def in_place(x, packed, y):
    return qk.linear(x, packed, residual=y, out=y)


BOOKS = {
    "levels": qk.Codebook(RNG.normal(size=7)),
    "many levels": qk.Codebook(RNG.normal(size=256)),
    "axis": qk.Codebook(RNG.normal(size=(32, 5)), axis=-1),
    "blocks": qk.NF4,
    "blocks of an axis": qk.Codebook([-1, 0, 0.5, 1], axis=0, block_size=4),
}


@pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
def test_codebooks_encode_and_decode(variants, handed, book):
    for x in X, X[::-1, ::2].repeat(2, axis=1), X[:0], X.astype(np.float64):
        check(variants, ENCODE, qk.encode, x, book)
        assert handed == ({"encode"} if x.dtype == np.float64 and not book.block_size else set())
        found = qk.encode(x, book)
        codes, scales = found if isinstance(found, tuple) else (found, None)
        check(variants, DECODE, qk.decode, codes, book, scales)
    assert "decode" not in handed
    if book.block_size:
        check(variants, DECODE, qk.decode, codes, book, scales.astype(np.float64))
        assert handed == {"decode"}
    assert njit(lambda book: book)(book) == book


# ---- errors ----

PER_TENSOR, PER_AXIS, UNSIGNED = qk.QParams(0.5), qk.QParams(np.ones(3), axis=1), qk.QParams(1, dtype="uint8")
WEIGHTS = qk.pack(np.int8(np.arange(12).reshape(4, 3)), PER_TENSOR)
UNSAFE = qk.pack(np.full((70000, 1), 127, np.int8), PER_TENSOR)
Q, NAN, ROWS = np.int8([[1, 2, 3, 4]]), np.float32([[1, np.nan, 3, 4]]), np.float32([[1, 2, 3, 4]])
BLOCKS, CUBE = BOOKS["blocks of an axis"], np.ones((2, 2, 4), np.int8)
EMPTY = qk.pack(np.empty((4, 0), np.int8), PER_TENSOR)
WRONG = [
    (lambda x, p: qk.quantize(x, p), (ROWS, PER_AXIS)),
    (lambda x, p: qk.quantize(x, p), (np.array(3, np.float32), PER_AXIS)),
    (lambda x, p, q: qk.quantize(x, p, out=q), (ROWS, PER_TENSOR, np.empty((1, 5), np.int8))),
    (lambda x, p: qk.quantize(x[:, :2].copy(), p, out=x.view(np.int8)[:, :2].copy()[:0]), (ROWS, PER_TENSOR)),
    (lambda x, p: qk.quantize(x, p, out=x.view(np.int16)[0, :4].reshape(1, 4)), (ROWS, qk.QParams(1, dtype="int16"))),
    (lambda q, p: qk.dequantize(q, p), (Q, PER_AXIS)),
    (lambda q, p, y: qk.dequantize(q, p, out=y), (Q, PER_TENSOR, np.empty((4, 1), np.float32))),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.int32([1, 2]), -1.5, PER_TENSOR)),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.int32([1, 2]), np.float64([1, np.inf]), PER_TENSOR)),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.int32([1, 2]), np.ones(3), PER_TENSOR)),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.int32([1, 2, 3]), 0.5, qk.QParams(np.ones(3), axis=0))),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.int32([1, 2]), 0.5, qk.QParams(1, dtype="float8_e5m2"))),
    (lambda acc, p, b: qk.requantize(acc, 0.5, p, bias=b), (np.int32([1, 2]), PER_TENSOR, np.int32([1, 2, 3]))),
    (lambda a, b: qk.matmul(a, b), (Q[:, :3], WEIGHTS)),
    (lambda a, b: qk.matmul(a, b, a_zero_point=300), (Q, WEIGHTS)),
    (lambda a, b: qk.matmul(a, b, b_zero_point=-129), (Q, WEIGHTS)),
    (lambda a, b, z: qk.matmul(a, b, b_zero_point=z), (Q, WEIGHTS, np.int32([1, 2]))),
    (lambda a, b, c: qk.matmul(a, b, out=c), (Q, WEIGHTS, np.empty((1, 4), np.int32))),
    (lambda a, b, z: qk.matmul(a, b, a_zero_point=z), (Q, WEIGHTS, np.uint64(2**64 - 1))),
    (lambda a, b, z: qk.matmul(a, b, b_zero_point=z), (Q, Q.T, np.uint64(2**64 - 1))),
    (
        lambda a, b, z: qk.matmul(a, b, a_zero_point=z[0, :1].reshape(())),
        (Q.view(np.uint8), WEIGHTS, np.int8([[-1] + [0] * 7])),
    ),
    (
        lambda a, b, z, c: qk.matmul(a, b, a_zero_point=z, out=c),
        (CUBE, WEIGHTS, np.int32([1, 2, 3, 4]), np.ones((2, 2, 3), np.int32)),
    ),
    (
        lambda a, b, z, c: qk.matmul(a, b, a_zero_point=z, out=c),
        (CUBE, Q.T, np.int32([1, 2, 3, 4]), np.ones((2, 2, 1), np.int32)),
    ),
    (
        lambda a, b, z, c: qk.matmul(a, b, b_zero_point=z, out=c),
        (CUBE, Q.T, np.int32([1, 2]), np.ones((2, 2, 1), np.int32)),
    ),
    (lambda a, b: qk.matmul(a, b, b_zero_point=300), (Q, Q.T[:, :0])),
    (lambda a, b: qk.matmul(a, b, a_zero_point=300), (Q, Q.T[:, :0])),
    (lambda a, b: qk.matmul(a, b, a_zero_point=300), (Q[:0], WEIGHTS)),
    (lambda a, b, z: qk.matmul(a, b, a_zero_point=z), (Q, Q.T[:, :0], np.int32([]))),
    (lambda a, b, z: qk.matmul(a, b, a_zero_point=z), (Q[:0], WEIGHTS, np.int32([1]).repeat(2))),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.ones((33, 0), np.int32), np.nan, PER_TENSOR)),
    (lambda acc, m, p: qk.requantize(acc, m, p), (np.ones((0, 2), np.int32), np.float64([1, np.nan]), PER_TENSOR)),
    (lambda x, w: qk.linear(x, w), (NAN, EMPTY)),
    (lambda a, b: qk.matmul(a, b), (Q, UNSAFE)),
    (lambda a, b: qk.matmul(a, b), (Q.astype(np.int16), WEIGHTS)),
    (lambda x, w: qk.linear(x, w), (NAN, WEIGHTS)),
    (lambda x, w: qk.linear(x, w), (np.float64([[1e300, 0, 0, 0]]), WEIGHTS)),
    (lambda x, w, y: qk.linear(x, w, out=y), (NAN, WEIGHTS, np.full((1, 3), 7, np.float32))),
    (lambda x, w: qk.linear(x, w), (ROWS[:, :3], WEIGHTS)),
    (lambda x, w: qk.linear(x, w), (np.ones((1, 70000), np.float32), UNSAFE)),
    (lambda x, w: qk.linear(x, w, clamp=(2.0, 1.0)), (ROWS, WEIGHTS)),
    (lambda x, w: qk.linear(x, w, clamp=(np.nan, 1.0)), (ROWS, WEIGHTS)),
    (lambda x, w: qk.linear(x, w, clamp=(1.0 + 1e-12, 1.0)), (ROWS, WEIGHTS)),
    (lambda x, p: qk.quantize(x.reshape(2, 2).T, p, out=x.view(np.int8)[0, 9:13].reshape(2, 2)), (ROWS, PER_TENSOR)),
    (lambda q, p, y: qk.dequantize(y.view(np.int8)[::-4], p, out=y), (Q, PER_TENSOR, np.ones(4, np.float32))),
    (lambda acc, p: qk.requantize(acc[::2], 0.5, p, out=acc.view(np.int8)[:2]), (np.int32([1, 2, 3]), PER_TENSOR)),
    (lambda w, c: qk.matmul(c.view(np.int8)[:, ::3], w, out=c), (WEIGHTS, np.ones((2, 3), np.int32))),
    (lambda w, x: qk.linear(x[:, ::2], w, out=x[0, 5:].reshape(1, 3)), (WEIGHTS, np.ones((1, 8), np.float32))),
    (
        lambda w, x, y: qk.linear(x, w, residual=y[:, ::2], out=y[0, :3].reshape(1, 3)),
        (WEIGHTS, ROWS, np.ones((1, 6), np.float32)),
    ),
    (lambda c, y: qk.decode(y.view(np.uint8)[::4], c, out=y), (BOOKS["levels"], np.zeros(4, np.float32))),
    (lambda q, p, y: qk.dequantize(q, p, out=y[1:17].view(np.float32)), (Q[0], PER_TENSOR, np.zeros(24, np.uint8))),
    (lambda x, w, b: qk.linear(x, w, b), (ROWS, WEIGHTS, ROWS[0])),
    (lambda x, w, r: qk.linear(x, w, residual=r), (ROWS, WEIGHTS, ROWS)),
    (lambda x, c: qk.encode(x, c), (NAN, BLOCKS)),
    (lambda x, c: qk.encode(x, c), (ROWS[0], BOOKS["axis"])),
    (lambda x, c: qk.encode(x, c), (ROWS[0], qk.Codebook([0, 1], axis=2, block_size=2))),
    (lambda x, c: qk.decode(x, c), (np.uint8([7]), BOOKS["levels"])),
    (lambda x, c: qk.decode(x, c), (np.uint8([[1]]), BLOCKS)),
    (lambda x, c, s: qk.decode(x, c, s), (np.uint8([[1]]), BLOCKS, np.float32([[np.inf]]))),
    (lambda x, c, s: qk.decode(x, c, s), (np.uint8([[1]]), BLOCKS, np.float32([1]))),
]


def test_what_is_strided_may_be_near_out():
    both = np.arange(12, dtype=np.float32)
    assert same(IN_HALVES(both.reshape(2, 6), PER_TENSOR), qk.quantize(np.float32([0, 2]), PER_TENSOR))
    y = np.ones((2, 3), np.float32)
    njit(lambda x, w, y: qk.linear(x, w, residual=y[::1], out=y))(np.ones((2, 4), np.float32), WEIGHTS, y)
    assert same(y, qk.linear(np.ones((2, 4), np.float32), WEIGHTS, residual=np.ones((2, 3), np.float32)))


IN_HALVES = njit(lambda x, p: qk.quantize(x[0, :4:2], p, out=x[1].view(np.int8)[:2]))


@pytest.mark.parametrize("call, arguments", WRONG, ids=range(len(WRONG)))
def test_errors_are_those_of_outside(call, arguments):
    with pytest.raises((TypeError, ValueError)) as want:
        call(*arguments)
    before = arguments[-1].copy() if isinstance(arguments[-1], np.ndarray) else None
    with pytest.raises(want.type) as got:
        njit(call)(*arguments)
    assert str(got.value) == str(want.value)
    assert before is None or same(arguments[-1], before)


REFUSED = [  # by types, when a call is compiled
    (lambda x, p: qk.quantize(x, p), (np.int32([1]), PER_TENSOR), "x must be an array of float32 or float64, got"),
    (lambda x, p: qk.quantize(x, p), (1.5, PER_TENSOR), "x must be an array"),
    (lambda x, p: qk.quantize(x, p), (ROWS, WEIGHTS), "params must be a QParams, got PackedMatrixType"),
    (lambda x, p: qk.quantize(x, p, rounding="up"), (ROWS, PER_TENSOR), "rounding must be one of 'half_even'"),
    (lambda x, p: qk.quantize(x, p, out=x), (ROWS, PER_TENSOR), "out must be an array of int8"),
    (lambda x, p, q: qk.quantize(x, p, out=q[:, ::2]), (ROWS, PER_TENSOR, Q), "out must be C-contiguous"),
    (lambda q, p: qk.dequantize(q, p), (Q, UNSIGNED), "q must be an array of uint8 or int32"),
    (lambda a, b: qk.matmul(a, b), (Q, Q[None]), "a and b must have shapes"),
    (
        lambda a, b: qk.matmul(a, b, a_zero_point=1.5e-323),
        (Q, WEIGHTS),
        "a_zero_point must be an integer or an array of",
    ),
    (lambda a, b: qk.matmul(a, b, b_zero_point=False), (Q, WEIGHTS), "b_zero_point must be an integer or an array of"),
    (lambda a, b, z: qk.matmul(a, b, a_zero_point=z), (Q, WEIGHTS, np.array(0.0)), "a_zero_point must be an integer"),
    (lambda b: b, (qk.Codebook([[0, 1]], vector=True),), "codebook must not be one of vectors"),
    (lambda x, w, a: qk.linear(x, w, activation=a), (ROWS, WEIGHTS, "relu"), "written where it is used"),
    (lambda x, w, p: qk.linear(x, w, params=p), (ROWS, WEIGHTS, PER_TENSOR), "params is not taken in compiled code"),
    (lambda x, w: qk.linear(x, w, clamp=3), (ROWS, WEIGHTS), "clamp must be None or a pair"),
    (lambda x, b: qk.encode(x, b), (ROWS, qk.Codebook([[0, 1]], vector=True)), "codebook must not be one of vectors"),
]


@pytest.mark.parametrize("call, arguments, words", REFUSED, ids=range(len(REFUSED)))
def test_wrong_types_do_not_compile(call, arguments, words):
    with pytest.raises(TypingError, match=re.escape(words)):
        njit(call)(*arguments)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_zero_points_are_numbers_of_any_integer_type(dtype):
    memory = np.arange(5, 13).astype(dtype)
    for zero in memory[0], memory[:1].reshape(()):
        assert same(SHIFTED(Q, WEIGHTS, zero, zero), qk.matmul(Q, WEIGHTS, a_zero_point=5, b_zero_point=5))


@njit
def caught(x, params, other):
    failed = 0
    for _ in range(3):
        try:
            qk.quantize(x, params)
        except Exception:
            failed += 1
    return failed, qk.quantize(x, other)


def test_compiled_code_can_catch_errors():
    for _ in range(2):
        failed, q = caught(ROWS, PER_AXIS, PER_TENSOR)
        assert failed == 3 and same(q, qk.quantize(ROWS, PER_TENSOR))
    with pytest.raises(ValueError, match="axis 1"):
        caught(ROWS, PER_TENSOR, PER_AXIS)


# ---- objects ----


@njit
def layers(x, packed, params):
    for weights in packed:
        x = qk.dequantize(qk.quantize(qk.linear(x, weights, activation="relu"), params), params)
    return x


def test_objects_are_passed_in_tuples_and_held_by_jitclasses():
    w = qk.pack(random_codes(RNG, (32, 32), "int8"), PER_TENSOR)
    assert same(layers(X, (w, w), PER_TENSOR), layers.py_func(X, (w, w), PER_TENSOR))

    @jitclass([("weights", PackedMatrixType("int8"))])
    class Layer:
        def __init__(self, weights):
            self.weights = weights

        def apply(self, x):
            return qk.linear(x, self.weights)

    layer, want = Layer(w), qk.linear(X, w)
    before = sys.getrefcount(w)
    held = Layer(w)
    assert sys.getrefcount(w) == before + 1
    del held
    gc.collect()
    assert sys.getrefcount(w) == before
    del w
    gc.collect()
    assert same(njit(lambda layer, x: layer.apply(x))(layer, X), want)


@pytest.mark.parametrize("typ", [PackedMatrixType("int8"), qn.CodebookType(False, False)], ids=["weights", "codebook"])
def test_attributes_that_were_never_set_raise(typ):
    @jitclass([("held", typ)])
    class Empty:
        def __init__(self):
            pass

        def linear(self, x):
            return qk.linear(x, self.held)

        def encode(self, x):
            return qk.encode(x, self.held)

    empty = Empty()
    for use in lambda: empty.held, lambda: (empty.linear if "Packed" in typ.name else empty.encode)(X):
        with pytest.raises(AttributeError, match="never set"):
            use()


GLOBAL = qk.QParams(0.5)


def test_globals_are_used():
    assert same(njit(lambda x: qk.quantize(x, GLOBAL))(X), qk.quantize(X, GLOBAL))


def test_references_are_given_back():
    w = qk.pack(random_codes(RNG, (32, 32), "int8"), PER_TENSOR)
    book, params = qk.Codebook([0, 1]), qk.QParams(0.5)
    compiled = njit(lambda x, w, p, book: (qk.linear(x, w), qk.quantize(x, p), qk.encode(x, book), w, p))
    compiled(X, w, params, book)
    counts = [sys.getrefcount(value) for value in (w, params, book)]
    for _ in range(100):
        assert compiled(X, w, params, book)[3] is w
    assert [sys.getrefcount(value) for value in (w, params, book)] == counts


def test_a_global_is_not_cached(tmp_path):
    (tmp_path / "uses.py").write_text(
        "import numba, qkernels as qk, qkernels.numba\nP = qk.QParams(0.5)\n"
        "f = numba.njit(cache=True)(lambda x: qk.quantize(x, P))\n"
    )
    code = "import warnings; warnings.simplefilter('ignore'); import numpy as np, uses; print(uses.f(np.ones(2)))"
    assert output(code, cwd=tmp_path) == output(code, cwd=tmp_path) == "[2 2]"


def test_without_compilation_it_is_the_same_code():
    code = "import numpy as np, numba, qkernels as qk; from qkernels import numba as qn\n"
    code += "print(numba.njit(lambda x, p: qn.quantize(x, p))(np.ones(2), qk.QParams(0.5)), qn.quantize is qk.quantize)"
    assert output(code, NUMBA_DISABLE_JIT="1") == output(code) == "[2 2] True"


# ---- processes and threads ----

CACHED = """
import numba, numpy as np, qkernels as qk
import qkernels.numba

@numba.njit(cache=True, nogil=True)
def f(x, packed, params, book):
    y = qk.linear(x, packed)
    return qk.quantize(y, params), qk.encode(y, book), qk.matmul(qk.quantize(x, params), packed)
"""


def test_the_next_process_runs_what_this_one_compiled(tmp_path):
    (tmp_path / "cached.py").write_text(CACHED)
    code = """
    import numpy as np, qkernels as qk, cached
    packed, params = qk.pack(np.eye(4, dtype=np.int8), qk.QParams(0.5)), qk.QParams(0.25)
    got = cached.f(np.ones((2, 4), np.float32), packed, params, qk.Codebook([0, 0.5]))
    want = cached.f.py_func(np.ones((2, 4), np.float32), packed, params, qk.Codebook([0, 0.5]))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, want))
    try:
        cached.f(np.full((2, 4), np.nan, np.float32), packed, params, qk.Codebook([0, 0.5]))
    except ValueError as error:
        assert "NaN" in str(error)
    else:
        raise AssertionError
    print(sum(cached.f.stats.cache_hits.values()), sum(cached.f.stats.cache_misses.values()))
    """
    settings = dict(cwd=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert output(code, **settings) == "0 1"
    assert output(code, **settings) == output(code, **settings, QKERNELS_ISA="scalar") == "1 0"


def test_what_another_version_kept_is_not_found(monkeypatch):
    kept = pickle.dumps(PackedMatrixType("int8"))
    assert pickle.loads(kept) == PackedMatrixType("int8")
    monkeypatch.setattr(qn, "_ABI", qn._ABI + 1)
    assert pickle.loads(kept) != PackedMatrixType("int8")


LOOP = """
import os, numba, numpy as np, qkernels as qk
import qkernels.numba
numba.set_num_threads(2)
with qk.num_threads(1):   # packing starts threads of its own
    packed = qk.pack(np.ones((1024, 1024), np.int8), qk.QParams(0.5))
qk.set_num_threads(2)
x = np.ones((8, 64, 1024), np.float32)

@numba.njit(parallel=True)
def apart(x, packed):
    y = np.empty((x.shape[0], x.shape[1], packed.shape[1]), np.float32)
    for i in numba.prange(x.shape[0]):
        y[i] = qk.linear(x[i], packed)
    return y

@numba.njit
def together(x, packed):
    return qk.linear(x, packed)

def count():
    return len(os.listdir("/proc/self/task"))

apart(x[:0], packed)
numba.njit(parallel=True)(lambda n: np.ones(n).sum())(1000)   # which starts the threads of Numba
before = count()
for _ in range(20):
    y = apart(x, packed)
inside = count()
assert (together(x, packed) == y).all()
print(inside - before, count() - inside)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts the threads that Linux tells of")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_calls_in_prange_have_a_thread_each(layer):
    assert output(LOOP, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "0 1"


ONES = np.ones((2048, 2048), np.int8)


@pytest.mark.parametrize(
    "function, dtype, b",
    [("linear", np.float32, PER_TENSOR), ("matmul", np.int8, PER_TENSOR), ("matmul", np.uint8, None)],
    ids=["linear", "matmul", "matmul, not packed"],
)
def test_calls_do_not_hold_the_gil(handed, function, dtype, b):
    b = ONES if b is None else qk.pack(ONES, b)
    x, stop, counted = np.ones((64, 2048), dtype), threading.Event(), []
    call = MATMUL if function == "matmul" else LINEAR

    @njit(nogil=True)
    def work(x, b, times):
        for _ in range(times):
            call(x, b)

    work(x, b, 1)

    def count():
        while not stop.is_set():
            counted.append(1)
            stop.wait(0.001)

    other = threading.Thread(target=count)
    other.start()
    work(x, b, 100)
    seen = len(counted)
    stop.set()
    other.join()
    assert seen > 5 and not handed


def test_errors_in_prange_leave_the_process_well():
    """They are lost there, as Numba loses its own; rows before them are right, and the next error is raised."""
    code = """
    import numba, numpy as np, qkernels as qk
    import qkernels.numba

    @numba.njit(parallel=True)
    def f(x, packed):
        y = np.zeros(x.shape, np.float32)
        for i in numba.prange(len(x)):
            y[i] = qk.linear(x[i], packed)
        return y

    x, packed = np.ones((40, 4), np.float32), qk.pack(np.eye(4, dtype=np.int8), qk.QParams(1))
    x[7, 2] = np.nan
    try:
        assert np.array_equal(f(x, packed)[:7], qk.linear(x[:7], packed))
    except ValueError:
        pass
    assert np.array_equal(f(x[8:], packed), qk.linear(x[8:], packed))
    try:
        numba.njit(lambda x, packed: qk.linear(x, packed))(x, packed)
    except ValueError as error:
        print(error)
    """
    settings = dict(NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert output(code, **settings) == "x has 1 NaN or infinite values, the first at (7, 2)"


THIRDS = RNG.normal(size=(64, 32)) / 3
SMALL = qk.pack(random_codes(RNG, (32, 5), "int8"), qk.QParams(2.0**100))
IN_A_MODE = {
    "quantize": (lambda x, p: qk.quantize(x, p), (np.float32([1e-39, 3e-39, 0.3, 0.7]), qk.QParams(2.0**-126))),
    "linear": (lambda x, w: qk.linear(x, w), (THIRDS, SMALL)),
    "linear, subnormal": (lambda x, w: qk.linear(x, w), (THIRDS * 1e-39, SMALL)),
    "clamp": (lambda x, w, lo, hi: qk.linear(x, w, clamp=(lo, hi)), (THIRDS, SMALL, -1 / 7, 1 / 3)),
    "encode": (lambda x, book: qk.encode(x, book), (THIRDS, qk.NF4)),
    "requantize": (
        lambda acc, m, p: qk.requantize(acc, m, p),
        (RNG.integers(-(2**31), 2**31, (99999, 5)).astype(np.int32), ROW[:5] * 1e-5, qk.QParams(1, dtype="int16")),
    ),
}


@pytest.mark.parametrize("call, arguments", IN_A_MODE.values(), ids=IN_A_MODE)
def test_the_mode_of_the_caller_does_not_reach_results(call, arguments):
    want, call = call(*arguments), njit(call)
    call(*arguments)
    library = helper()
    before = library.get_mode()
    try:
        library.set_mode(before | FLUSH | UP)
        got = call(*arguments)
        kept = library.get_mode()
    finally:
        library.set_mode(before)
    assert same(got, want) and kept & (FLUSH | UP) == FLUSH | UP


def test_the_example_runs():
    import numba_streams

    assert len(Path(numba_streams.__file__).read_text().splitlines()) <= 150
    result = numba_streams.main(streams=60, quiet=True)
    assert result["float32"] > 0.9 and result["int8"] > result["float32"] - 0.05


def test_what_is_named_here_is_what_is_public():
    assert {name: getattr(qn, name) for name in qn.__all__} == {name: getattr(qk, name) for name in qn.__all__}
