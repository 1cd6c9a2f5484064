"""No kernel touches a byte beyond its arrays: arrays of every tail length, which end at a page that cannot be touched,
or begin just after one. A touch kills the process, so each sweep runs in one of its own: ``python test_memory.py
ISA``."""

import ctypes
import itertools
import math
import mmap
import os
import signal
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from common import python
from numpy.lib.stride_tricks import as_strided

import qkernels as qk
from qkernels import observers
from qkernels._bind import histograms, runtime

LENGTHS = range(131)
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
CODES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]
ROUNDINGS = ["half_even", "half_away", "gemmlowp", "tflite"]


class Guarded:
    """Memory between two pages that cannot be touched."""

    PAGES = 40

    def __init__(self):
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, (self.PAGES + 2) * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for at in address, address + (self.PAGES + 1) * page:
            assert mprotect(at, page, 0) == 0, os.strerror(ctypes.get_errno())
        self.bytes = np.frombuffer(self.memory, np.uint8)[page:-page]

    def empty(self, shape, dtype, at_end):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        part = self.bytes[self.bytes.size - size :] if at_end else self.bytes[:size]
        return part.view(dtype).reshape(shape)

    def copy(self, array, at_end):
        placed = self.empty(array.shape, array.dtype, at_end)
        placed[...] = array
        return placed


class Places:
    """Guarded memory for each argument of a call, at one end of it."""

    memories = [Guarded() for _ in range(5)]

    def __init__(self, at_end):
        self.at_end, self.free = at_end, iter(self.memories)

    def __call__(self, array):
        return next(self.free).copy(array, self.at_end)

    def empty(self, shape, dtype):
        return next(self.free).empty(shape, dtype, self.at_end)


def same(got, want):
    assert got.shape == want.shape and got.tobytes() == want.tobytes()


def layouts(n, dtype):
    """(shape, params) of each way in which n neighbours can share scales."""
    one = int("float" not in dtype)
    yield (n,), qk.QParams(0.1, one, dtype)
    yield (2, n), qk.QParams(np.linspace(0.1, 0.2, n), np.full(n, one, np.int32), dtype, axis=1)
    yield (2, n), qk.QParams([0.1, 0.2], [0, one], dtype, axis=0)
    yield (2, n), qk.QParams(np.full((2, -(-n // 32)), 0.1), dtype=dtype, axis=1, block_size=32)
    yield (3, n), qk.QParams(np.full((2, n), 0.1), dtype=dtype, axis=0, block_size=2)


def arrays_of(result):
    return [part for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, np.ndarray)]


def check(at_end, function, *given, out=True, **options):
    """Return what the call gives; it gives the same if its arrays, and `out`, end or begin at a guard."""
    want, place = function(*given, **options), Places(at_end)

    def placed(value):
        return place(value) if isinstance(value, np.ndarray) else value

    options = {name: placed(value) for name, value in options.items()}
    if out:
        options["out"] = place.empty(want.shape, want.dtype)
    got = function(*map(placed, given), **options)
    for one, other in zip(arrays_of(got), arrays_of(want), strict=True):
        same(one, other)
    return want


def pack(at_end, b, params, scales=None):
    """Return b packed, from rows and from columns."""
    for turned in True, False:
        place = Places(at_end)
        source = place(np.ascontiguousarray(b.T)).T if turned else place(b)
        packed = qk.pack(source, params, scales=None if scales is None else place(scales))
        same(packed.unpack(), b)
    return packed


def sweep_elementwise(n, rng, at_end):
    for dtype in CODES:
        for shape, params in layouts(n, dtype):
            x = rng.normal(0, 5, shape)
            for of in FLOATS:
                for rounding in ROUNDINGS[:2]:
                    check(at_end, qk.quantize, x.astype(of), params, rounding=rounding)
                check(at_end, qk.fake_quantize, x.astype(of), params)
                if dtype in ("int8", "uint16"):
                    check(at_end, qk.quantize, x.astype(of), params, rounding="stochastic", seed=n)
                    check(at_end, qk.fake_quantize, x.astype(of), params, rounding="stochastic", seed=n)
                    check(at_end, qk.fake_quantize_grad, x.astype(of), x.astype(of), params, out=False)
            codes = qk.quantize(x, params)
            for q, of in itertools.product((codes, codes.astype(np.int32)), FLOATS):
                check(at_end, qk.dequantize, q, params, dtype=of)


def sweep_float_codes(n, rng, at_end):
    for dtype in "float8_e4m3fn", "float4_e2m1fn":
        for shape, params in layouts(n, dtype):
            for of in FLOATS:
                x = rng.normal(0, 5, shape).astype(of)
                codes = check(at_end, qk.quantize, x, params)
                check(at_end, qk.fake_quantize, x, params)
                check(at_end, qk.dequantize, codes, params, dtype=of)
                check(at_end, qk.choose_qparams, x, dtype, axis=len(shape) - 1, method="mx", out=False)
                check(at_end, qk.choose_qparams, x, dtype, axis=0, block_size=2, method="mx", out=False)


def sweep_dynamic_and_requantize(n, rng, at_end):
    x = rng.normal(0, 5, (3, n)).astype(np.float32)
    for dtype, axis in itertools.product(CODES, (None, 0)):
        check(at_end, qk.dynamic_quantize, x, dtype, axis=axis, out=False)
    acc, bias = rng.integers(-9999, 9999, (3, n), np.int32), rng.integers(-999, 999, n, np.int32)
    for dtype, rounding in itertools.product(CODES, ROUNDINGS):
        check(at_end, qk.requantize, acc, np.full(n, 0.01), qk.QParams(1, 1, dtype), bias=bias, rounding=rounding)
    for bits in 1, 2, 3, 4, 5, 6, 8:
        codes = rng.integers(0, 1 << bits, n, np.uint8)
        dense = check(at_end, qk.pack_bits, codes, bits, out=False)
        same(check(at_end, qk.unpack_bits, dense, bits, n, out=False), codes)


def sweep_codebooks(n, rng, at_end):
    x = rng.normal(0, 1, (3, n)).astype(np.float32)
    for k in 5, 16, 200:
        levels = np.linspace(-1, 1, k)
        where = {}, {"block_size": 16}, {"axis": 1, "block_size": 64}, {"axis": 0, "block_size": 2}
        books = [qk.Codebook(levels, **options) for options in where]
        books += [qk.Codebook(np.tile(levels, (x.shape[axis], 1)), axis=axis) for axis in (0, 1) if x.shape[axis]]
        for book in books:
            encoded = check(at_end, qk.encode, x, book, out=False)
            codes, *scales = encoded if book.block_size else (encoded,)
            check(at_end, qk.decode, codes, book, *scales)
    seen = qk.Hessian(3).update(rng.normal(0, 1, (9, 3)))
    for grid in (qk.QParams(0.3, 1), qk.Codebook(levels)):
        check(at_end, qk.gptq, x, seen, grid, out=False)
    check(at_end, qk.prune, x, seen, 0.5, out=False)
    blocks = rng.normal(0, 1, (n % 9, 32)).astype(np.float32)
    for kind in "Q8_0", "Q4_0":
        data = check(at_end, qk.to_gguf, blocks, kind, out=False)
        check(at_end, qk.from_gguf, data, kind)
        check(at_end, qk.from_gguf, data, kind, codes=True, out=False)
    for kind, (_, _, size, _) in qk.gguf.KINDS.items():
        check(at_end, qk.from_gguf, rng.integers(0, 60, (n % 9, 2 * size), np.uint8), kind)


def sweep_vectors(n, rng, at_end):
    m, d, k = n % 11 + 1, n % 5 + 1, 1 + n * 7 % 256
    book = qk.Codebook(rng.normal(0, 1, (m, k, d)), vector=True)
    codes = check(at_end, qk.encode, rng.normal(0, 1, (n, m * d)).astype(np.float32), book, out=False)
    check(at_end, qk.decode, codes, book)
    queries = rng.normal(0, 1, (n % 20, m * d)).astype(np.float32)
    check(at_end, qk.distance_tables, queries, book, out=False)
    if n:
        check(at_end, qk.search, queries, codes, book, 1 + n // 2, out=False)


def sweep_filtered_search(n, rng, at_end):
    """As many vectors as the filter of search takes, in tiles of 128, and a last one of n."""
    m, n = n % 8 + 1, 17152 + n
    book = qk.Codebook(rng.normal(0, 1, (16, 2)), vector=True)
    queries = rng.normal(0, 1, (2, 2 * m)).astype(np.float32)
    codes = rng.integers(0, 16, (n, m), np.uint8)
    check(at_end, qk.search, queries, codes, book, 3, out=False)
    same(check(at_end, qk.pack_codes, codes, out=False).unpack(), codes)


def strided_rows(memory, a):
    """a with a gap between its rows, but none after the last."""
    rows = as_strided(memory, a.shape, ((a.shape[1] + 8) * a.itemsize, a.itemsize))
    rows[...] = a
    return rows


def sweep_matmul(rng, at_end, a, b, packed):
    m, k = a.shape
    want = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    for right in b, packed:
        same(check(at_end, qk.matmul, a, right), want)

    def of_columns(a, b, **options):
        return qk.matmul(a, b.swapaxes(1, 2), **options)

    pair = a[None].repeat(2, 0), np.ascontiguousarray(b.T)[None].repeat(2, 0)
    zeros = np.zeros((2, m), np.uint8).view(a.dtype)
    same(check(at_end, of_columns, *pair, a_zero_point=zeros), want[None].repeat(2, 0))

    def of_small(a, b, **options):
        return qk.matmul(a, qk.pack(b, qk.QParams(1)), **options)

    small = np.ascontiguousarray(b.view(np.int8)) >> 3
    same(check(at_end, of_small, a, small), (a.astype(np.int64) @ small.astype(np.int64)).astype(np.int32))

    def of_strided_rows(memory, **options):
        return qk.matmul(strided_rows(memory, a) if a.size else a, packed, **options)

    zero, memory = rng.integers(0, 100, m, np.int32), np.zeros(max(m * (k + 8) - 8, 0), a.dtype)
    got = check(at_end, of_strided_rows, memory, a_zero_point=zero)
    same(got, want - np.multiply.outer(zero, b.sum(axis=0, dtype=np.int32)))


def sweep_products(m, k, n, rng, at_end):
    for a_dtype, b_dtype in itertools.product(("uint8", "int8"), repeat=2):
        a, b = (
            rng.integers(*((0, 256) if d == "uint8" else (-128, 128)), s, d)
            for d, s in ((a_dtype, (m, k)), (b_dtype, (k, n)))
        )
        packed = pack(at_end, b, qk.QParams(np.full(n, 0.02), dtype=b_dtype, axis=1))
        sweep_matmul(rng, at_end, a, b, packed)
        params, out_params = qk.QParams(0.01, 3, a_dtype), qk.QParams(1, 5, a_dtype)
        bias = rng.integers(-99, 99, n, np.int32)
        for rounding, activation in [*zip(ROUNDINGS, [None, "gelu", "relu", None]), ("half_even", None)]:
            how = dict(rounding=rounding, activation=activation)
            check(at_end, qk.qlinear, a, params, packed, out_params, bias, **how)
        x, residual = (rng.normal(0, 1, (m, columns)).astype(np.float32) for columns in (k, n))
        for activation in None, "relu", "gelu", "gelu_tanh", "silu":
            for added in None, residual:
                how = dict(activation=activation, residual=added)
                check(at_end, qk.linear, x, packed, bias.astype(np.float32), **how)


def floats(rng, *shapes):
    return (rng.normal(0, 1, shape).astype(np.float32) for shape in shapes)


def sweep_4_bits(m, k, n, rng, at_end):
    x, bias = floats(rng, (m, k), n)
    for dtype, block_size, scale in itertools.product(("int4", "uint4", "int2", "uint2"), (32, 5), (0.1, 0.125)):
        most = 7 if dtype.endswith("4") else 2
        b = rng.integers(0, most, (k, n)).astype(getattr(ml_dtypes, dtype))
        shape = -(-k // block_size), n
        for zeros in None, rng.integers(0, most, shape):
            params = qk.QParams(np.full(shape, scale), zeros, dtype, axis=0, block_size=block_size)
            residual = np.outer(x.sum(axis=1), bias).astype(np.float32)
            check(at_end, qk.linear, x, pack(at_end, b, params), bias, residual=residual)


def sweep_blocks(m, k, n, rng, at_end):
    x, bias = floats(rng, (m, k), n)
    for dtype, block_size, scale in (("int8", 32, 0.1), ("uint8", 5, 0.125), ("int8", 300, 0.1)):
        b, shape = rng.integers(0, 127, (k, n)).astype(dtype), (-(-k // block_size), n)
        for zeros in np.full(shape, 0 if dtype == "int8" else 128), rng.integers(0, 127, shape):
            params = qk.QParams(np.full(shape, scale), zeros, dtype, axis=0, block_size=block_size)
            check(at_end, qk.linear, x, pack(at_end, b, params), bias)


def sweep_codes(m, k, n, rng, at_end):
    x = rng.normal(0, 1, (m, k)).astype(np.float32)
    for levels in 16, 8, 4:
        codes = rng.integers(0, levels, (k, n), np.uint8)
        books = [qk.Codebook(np.arange(levels), axis=0, block_size=32), qk.Codebook(np.arange(levels))]
        for codebook in [*books, qk.Codebook(rng.normal(0, 1, (n, levels)), axis=1)] if n else books:
            scales = None if codebook.block_size is None else np.ones((-(-k // 32), n), np.float32)
            check(at_end, qk.linear, x, pack(at_end, codes, codebook, scales))


def sweep_floats(m, k, n, rng, at_end):
    x, bias = floats(rng, (m, k), n)
    for dtype in FLOATS[2:]:
        check(at_end, qk.linear, x, pack(at_end, rng.normal(0, 1, (k, n)).astype(dtype), None), bias)


def sweep_int16(m, k, n, rng, at_end):
    a, b = rng.integers(-32768, 32768, (m, k), np.int16), rng.integers(-99, 99, (k, n), np.int16)
    for factor in 1, 330:  # one plane, and two
        ones = np.ones(m, np.int32)
        got = check(at_end, qk.matmul, a, b * np.int16(factor), a_zero_point=ones, b_zero_point=3)
        same(got, (a.astype(np.int64) - 1) @ (b.astype(np.int64) * factor - 3))
    packed = qk.pack(b, qk.QParams(np.ones(n), dtype="int16", axis=1))
    check(at_end, qk.linear, a.astype(np.float32), packed, *floats(rng, n))


def sweep_layers(n, rng, at_end):
    x, residual, weight, bias = floats(rng, (3, n), (3, n), n, n)
    check(at_end, qk.layer_norm, x, weight, bias, residual=residual)
    check(at_end, qk.rotate, x)
    one, columns = qk.QParams(0.1, 3, "uint8"), qk.QParams(np.full(n, 0.1), axis=-1)
    codes, values = rng.integers(0, 256, (3, n), np.uint8), dict(params=one, out_params=columns)
    check(at_end, qk.layer_norm, codes, weight, bias, residual=codes, residual_params=one, **values)
    for tokens, size in (n, 5), (3, n):
        q, k, v = floats(rng, *[(tokens, 2 * size)] * 3)
        check(at_end, qk.attention, q, k, v, 2, starts=np.int64([0, tokens // 3, tokens]))
        q, k, v = rng.integers(0, 256, (3, tokens, 2 * size), np.uint8)
        check(at_end, qk.attention, q, k, v, 2, params=one, out_params=one)


def sweep_observers(n, rng, at_end):
    x = rng.normal(0, 5, (3, n))
    x[rng.random(x.shape) < n % 2 / 2] = 0
    few = x[:, : n % 37 + 1]  # columns, each of which has a large histogram
    for of, axis, observer in itertools.product(FLOATS, (None, 0, 1), (observers.MinMax, observers.Percentile)):

        def counts(x, axis=axis, observer=observer):
            return tuple(observer(axis=axis).update(x).to_arrays().values())

        check(at_end, counts, (few if axis == 1 and observer is observers.Percentile else x).astype(of), out=False)
    begin = np.cumsum(rng.uniform(1, 2, n + 1))
    given = begin[:-1].copy(), begin[1:].copy(), rng.uniform(1, 9, n), begin[:n] - 1, begin[:n] + 9
    check(at_end, lambda *arrays: histograms.divergences(*arrays[:3], 16, *arrays[3:]), *given, out=False)


def sweep_integer_layers(n, rng, at_end):
    weight, bias = floats(rng, n, n)
    for dtype, params in ("int8", qk.QParams(0.05, 3)), ("uint8", qk.QParams(0.05, 99, "uint8")):
        q, other = (rng.integers(0, 256, (3, n), np.uint8).view(dtype) for _ in range(2))
        check(at_end, qk.take_table, q, np.arange(256, dtype=np.uint8))
        for rounding in "half_even", "tflite":
            for b in other, other[:1], np.ascontiguousarray(other[:, :1]):
                check(at_end, qk.qadd, q, params, b, params, params, rounding=rounding)
                check(at_end, qk.qmultiply, b, params, q, params, params, rounding=rounding)
        check(
            at_end,
            lambda *parts, out=None: qk.qconcatenate([(x, params) for x in parts], params, axis=1, out=out),
            q,
            q,
        )
        check(at_end, qk.qsoftmax, q, params, params)
        check(at_end, qk.qlayer_norm, q, params, weight, bias, params)
        check(at_end, qk.qrms_norm, q, params, weight, params)


def sweep_convolutions(n, rng, at_end):
    """Of n channels or filters; guards are beside images, weights, biases and results."""
    q = rng.integers(0, 256, (1, 1 + n % 7, 1 + n % 5, n), np.uint8)
    params, to = qk.QParams(0.1, 3, "uint8"), qk.QParams(20, 5)
    of_all = rng.integers(-128, 128, (3, 3, n % 19, 1 + n % 37), np.int8)
    for kernel, groups in ((3, 3, 1, n), n), ((5, 2, 1, n), n), ((3, 2, n, 5), 1), ((1, 1, n, n), 1), (of_all.shape, 1):
        w = of_all if kernel == of_all.shape else rng.integers(-128, 128, kernel, np.int8)
        image = np.ascontiguousarray(q[..., : w.shape[2]]) if groups == 1 else q
        bias = rng.integers(-99, 99, kernel[3], np.int32)
        for zero_point in 0, 1:
            packed = qk.pack_conv(Places(at_end)(w), qk.QParams(0.2, zero_point), groups=groups)
            same(packed.unpack(), w)
            for strides, dilations in (1, 1), (2, 1), (1, 2):
                where = dict(padding=(5, 4, 4, 5), strides=strides, dilations=dilations)
                check(at_end, qk.qconv2d, image, params, packed, to, bias, **where)
                check(at_end, qk.qconv2d, image, params, packed, None, bias, **where)
    check(at_end, qk.max_pool2d, q, 2, padding=1)
    check(at_end, qk.qaverage_pool2d, q, params, to, 2, padding=1)
    check(at_end, qk.qglobal_average_pool, q, params, to)


def sweep_kmeans(n, rng, at_end):
    for d, dtype in itertools.product((1, 3, 4, 6, 8, 17), (np.float32, np.float64)):
        x, weights, k = rng.normal(0, 1, (n, d)).astype(dtype), rng.random(n) + 0.1, min(n, 21)
        check(at_end, qk.kmeans, x, k, weights=weights, init=x[:k], max_iter=3, tol=0, out=False)


def sweep(isa):
    runtime.set_isa(isa)
    rng = np.random.default_rng(0)
    for n, at_end in itertools.product(LENGTHS, (True, False)):
        sweep_elementwise(n, rng, at_end)
        sweep_float_codes(n, rng, at_end)
        sweep_dynamic_and_requantize(n, rng, at_end)
        sweep_codebooks(n, rng, at_end)
        sweep_vectors(n, rng, at_end)
        if n:
            sweep_filtered_search(n, rng, at_end)
            sweep_layers(n, rng, at_end)
            sweep_observers(n, rng, at_end)
            sweep_integer_layers(n, rng, at_end)
            sweep_convolutions(n, rng, at_end)
            sweep_kmeans(n, rng, at_end)
        for m, k, columns in (n, 5, 3), (3, n, 5), (2, 4, n), (n % 7, n, n % 33):
            sweep_products(m, k, columns, rng, at_end)
            sweep_4_bits(m, k, columns, rng, at_end)
            sweep_blocks(m, k, columns, rng, at_end)
            sweep_codes(m, k, columns, rng, at_end)
            sweep_floats(m, k, columns, rng, at_end)
            sweep_int16(m, k, columns, rng, at_end)


def stray(what, at_end):
    """One call whose arrays claim one element more than they have."""
    place = Places(at_end)
    x, out = place.empty((64,), np.float32), place.empty((64,), np.int8)
    start = {True: 0, False: -1}[at_end]
    longer = as_strided(x, (65,), (4,)) if what == "read" else np.zeros(65, np.float32)
    if start and what == "read":
        longer = np.ndarray((65,), np.float32, buffer=(ctypes.c_float * 65).from_address(x.ctypes.data - 4))
    target = as_strided(out, (65,), (1,)) if what == "write" else np.empty(65, np.int8)
    if start and what == "write":
        target = np.ndarray((65,), np.int8, buffer=(ctypes.c_int8 * 65).from_address(out.ctypes.data - 1))
    qk.quantize(longer, qk.QParams(1), out=target)


linux = pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")


@linux
@pytest.mark.parametrize("at_end", ["end", "start"])
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_stray_touch_is_seen(what, at_end):
    assert python(__file__, what, at_end).returncode == -signal.SIGSEGV


@linux
@pytest.mark.parametrize("isa", runtime.available_isas())
def test_no_stray_touch(isa):
    done = python(__file__, isa)
    assert done.returncode == 0, done.stderr[-5000:] or f"killed by signal {-done.returncode}"


def test_codes_that_a_thread_changes_while_they_are_read_are_refused_or_decoded():
    """Whatever comes of it comes from the tables: the process lives, and indices are of rows."""
    rng, stop = np.random.default_rng(0), threading.Event()
    book = qk.Codebook(rng.normal(0, 1, (6, 200, 4)), vector=True)
    table = qk.Codebook(np.linspace(-1, 1, 40))
    codes, queries = np.zeros((20000, 6), np.uint8), rng.normal(0, 1, (17, 24)).astype(np.float32)
    few = qk.Codebook(book.levels[:, :12], vector=True)

    def change():
        while not stop.is_set():
            ctypes.memset(codes.ctypes.data, 0, codes.nbytes)
            time.sleep(0.0003)
            ctypes.memset(codes.ctypes.data, 255, codes.nbytes)
            time.sleep(0.0003)

    thread = threading.Thread(target=change)
    thread.start()
    done, end = 0, time.monotonic() + 2
    try:
        while time.monotonic() < end:
            try:
                assert np.all(qk.search(queries[: 1 + done % 17], codes, book, 5)[1] < len(codes))
                assert np.all(qk.search(queries[: 1 + done % 17], codes, few, 5)[1] < len(codes))
                assert np.all(qk.search(queries[:3], qk.pack_codes(codes[:200]), few, 5)[1] < len(codes))
                qk.decode(codes, book)
                qk.decode(codes, table)
                qk.qsoftmax(codes.reshape(1, -1), qk.QParams(0.1, 0, "uint8"), qk.QParams(1e-6))
                done += 1
            except ValueError as error:
                assert "codes must be below" in str(error)
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] in ("read", "write"):
        stray(sys.argv[1], sys.argv[2] == "end")
    else:
        sweep(sys.argv[1])
