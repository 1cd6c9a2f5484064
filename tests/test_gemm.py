"""The products against NumPy in wider types: matmul exactly, linear and qlinear bit for bit by the formulas of
docs/numerics.md, sections 6 to 8; on every instruction set, at 1, 2 and 3 threads."""

import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import read_only, unaligned
from numpy.testing import assert_array_equal

import qkernels as qk

PAIRS = [(a, b) for a in ("uint8", "int8") for b in ("uint8", "int8")]
every_pair = pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS)


def code_range(dtype):
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def random_codes(rng, shape, dtype):
    """Codes, a third of which are at the ends of the range, where a kernel that saturates would be wrong."""
    low, high = code_range(dtype)
    ends = rng.choice([low, high], shape)
    return np.where(rng.random(shape) < 1 / 3, ends, rng.integers(low, high + 1, shape)).astype(dtype)


def exact(a, b, a_zero_point=0, b_zero_point=0):
    """The sums as integers in float64, which holds them: K * 510**2 < 2**53."""
    a_zero_point = np.asarray(a_zero_point, np.float64)
    left = a.astype(np.float64) - (a_zero_point[..., None] if a_zero_point.ndim else a_zero_point)
    return left @ (b.astype(np.float64) - b_zero_point)


def wrapped(sums):
    """Modulo 2**32, as int32."""
    return sums.astype(np.int64).astype(np.int32)


# ---- layouts ----


def wider(x):
    """A view of columns of a wider array: unit stride, rows further apart."""
    padded = np.empty((*x.shape[:-1], x.shape[-1] + 7), x.dtype)
    padded[..., 3 : 3 + x.shape[-1]] = x
    return padded[..., 3 : 3 + x.shape[-1]]


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": np.asfortranarray,
    "wider": wider,
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :] if x.ndim > 1 else x,
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
}
layouts = st.sampled_from(list(LAYOUTS.values()))
sizes = st.one_of(st.integers(0, 200), st.sampled_from([0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 128, 200]))


@st.composite
def products(draw):
    """a, b and zero points: arguments of matmul."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    k, n = draw(sizes), draw(sizes)
    rows = draw(
        st.one_of(
            sizes.map(lambda m: (m,)),
            st.just(()),
            st.tuples(st.integers(0, 4), st.integers(0, 30)),
            st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 9)),
        )
    )
    a, b = random_codes(rng, (*rows, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    zero = {}
    if draw(st.booleans()):
        zero["a_zero_point"] = draw(
            st.sampled_from(
                [
                    random_codes(rng, (), a_dtype),
                    int(random_codes(rng, (), a_dtype)),
                    random_codes(rng, rows, a_dtype),
                    random_codes(rng, rows, a_dtype).astype(int),
                ]
            )
        )
    if draw(st.booleans()):
        zero["b_zero_point"] = draw(
            st.sampled_from(
                [
                    random_codes(rng, (), b_dtype),
                    int(random_codes(rng, (), b_dtype)),
                    random_codes(rng, n, b_dtype),
                    random_codes(rng, n, b_dtype).astype(int),
                ]
            )
        )
    return draw(layouts)(a), draw(layouts)(b), zero


# ---- matmul ----


@settings(max_examples=150)
@given(products(), st.booleans())
def test_matmul(variants, product, with_out):
    a, b, zero = product
    want = wrapped(exact(a, b, **zero))
    for variant in variants():
        packed = qk.pack(b, qk.QParams(1, dtype=b.dtype))
        for right in (b, packed):
            out = np.full(want.shape, 77, np.int32) if with_out else None
            got = qk.matmul(a, right, **zero, out=out)
            assert out is None or got is out
            assert_array_equal(got, want, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 63, 64, 65, 1031, 33_025, 65_793, 70_000])
def test_matmul_worst_cases(a_dtype, b_dtype, k, isas):
    """Every factor at an end of its range, with zero points at the ends too. Beyond int32 sums wrap, as ONNX MatMulInteger's."""
    for isa in isas():
        for left in code_range(a_dtype):
            for right in code_range(b_dtype):
                a, b = np.full((7, k), left, a_dtype), np.full((k, 17), right, b_dtype)
                for zero in [(0, 0), (left, right), (code_range(a_dtype)[0], code_range(b_dtype)[1])]:
                    want = wrapped(np.full((7, 17), k * (left - zero[0]) * (right - zero[1])))
                    got = qk.matmul(a, b, a_zero_point=zero[0], b_zero_point=zero[1])
                    assert_array_equal(got, want, err_msg=f"{isa}, {left}, {right}, {zero}", strict=True)


@every_pair
def test_longest_sums_that_fit_without_zero_points(a_dtype, b_dtype):
    """K of DESIGN section 2: one more and the extremes no longer fit int32."""
    k = {("int8", "int8"): 131_071, ("uint8", "int8"): 65_793, ("int8", "uint8"): 65_793, ("uint8", "uint8"): 33_025}[
        a_dtype, b_dtype
    ]
    largest = max(abs(l * r) for l in code_range(a_dtype) for r in code_range(b_dtype))
    assert k * largest <= 2**31 - 1 < (k + 1) * largest
    for left in code_range(a_dtype):
        for right in code_range(b_dtype):
            got = qk.matmul(np.full((1, k), left, a_dtype), np.full((k, 1), right, b_dtype))
            assert got.item() == k * left * right


@every_pair
@pytest.mark.parametrize("of_a", ["none", "one", "per row"])
@pytest.mark.parametrize("of_b", ["none", "one", "per column"])
def test_every_kind_of_zero_point(a_dtype, b_dtype, of_a, of_b, isas):
    """With rows that are read in place and rows that must be padded, few and many."""
    rng = np.random.default_rng(0)
    for m, k, n in [(7, 128, 35), (7, 129, 35), (500, 64, 70), (500, 67, 70)]:
        a, b, zero = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype), {}
        if of_a != "none":
            zero["a_zero_point"] = random_codes(rng, m if of_a == "per row" else (), a_dtype)
        if of_b != "none":
            zero["b_zero_point"] = random_codes(rng, n if of_b == "per column" else (), b_dtype)
        want = wrapped(exact(a, b, **zero))
        for isa in isas():
            assert_array_equal(qk.matmul(a, b, **zero), want, err_msg=isa, strict=True)


@every_pair
@pytest.mark.parametrize(("m", "k", "n"), [(301, 401, 203), (3, 2049, 1543), (2003, 129, 33), (1, 4096, 2048)])
def test_equal_bits_at_any_thread_count(a_dtype, b_dtype, m, k, n, variants):
    """Shapes that threads share by rows, by columns, and by both."""
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    zero = {"a_zero_point": random_codes(rng, m, a_dtype), "b_zero_point": random_codes(rng, n, b_dtype)}
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, **zero))
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)
        assert_array_equal(qk.matmul(a, b, **zero), with_zero_points, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize("m", [47, 48, 49, 300])
@pytest.mark.parametrize(("k", "n"), [(1, 16), (33, 40), (700, 17)])
def test_panels_that_many_rows_share(a_dtype, b_dtype, m, k, n, variants):
    """AVX2 widens a panel from 48 rows on: results that are stored at once, and ones that an epilogue gets."""
    rng = np.random.default_rng(m)
    a, b = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    b_zero_point = random_codes(rng, n, b_dtype)
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, 0, b_zero_point))
    for variant in variants():
        packed = qk.pack(b, qk.QParams(1, dtype=b_dtype))
        assert_array_equal(qk.matmul(a, packed), want, err_msg=variant, strict=True)
        assert_array_equal(
            qk.matmul(a, packed, b_zero_point=b_zero_point), with_zero_points, err_msg=variant, strict=True
        )


def test_lists_and_broadcast_rows():
    assert_array_equal(qk.matmul(np.broadcast_to(np.uint8([1, 2]), (3, 2)), np.int8([[3, 4], [5, 6]])), [[13, 16]] * 3)
    assert_array_equal(qk.matmul(np.uint8([1, 2]), np.int8([[3, 4], [5, 6]])), [13, 16])


# ---- many products ----


@st.composite
def batches(draw):
    """a and b whose leading axes broadcast, and zero points."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    small = st.integers(0, 40)
    m, k, n = draw(small), draw(small), draw(small)
    lead = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    keep = draw(st.tuples(*[st.tuples(st.booleans(), st.booleans())] * len(lead)))
    of_a, of_b = ([size if kept[i] else 1 for size, kept in zip(lead, keep)] for i in (0, 1))
    of_a = of_a[draw(st.integers(0, len(of_a))) :]
    a, b = random_codes(rng, (*of_a, m, k), a_dtype), random_codes(rng, (*of_b, k, n), b_dtype)
    zero = {}
    if draw(st.booleans()):
        zero["a_zero_point"] = random_codes(
            rng, draw(st.sampled_from([(), (1,), (m,), (*of_a, m), (*of_a, 1)])), a_dtype
        )
    if draw(st.booleans()):
        zero["b_zero_point"] = random_codes(
            rng, draw(st.sampled_from([(), (1,), (n,), (*of_b, n), (*of_b, 1)])), b_dtype
        )
    return a, b, zero


MATRIX_LAYOUTS = {
    **LAYOUTS,
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "moved": lambda x: np.moveaxis(np.moveaxis(x, 0, -2).copy(), -2, 0),
}


@settings(max_examples=150)
@given(
    batches(),
    st.sampled_from(list(MATRIX_LAYOUTS.values())),
    st.sampled_from(list(MATRIX_LAYOUTS.values())),
    st.booleans(),
)
def test_batched_matmul(variants, batch, a_layout, b_layout, with_out):
    a, b, zero = batch
    left, right = a.astype(np.float64), b.astype(np.float64)
    if "a_zero_point" in zero:
        left = left - np.broadcast_to(zero["a_zero_point"], a.shape[:-1])[..., None]
    if "b_zero_point" in zero:
        right = right - np.broadcast_to(zero["b_zero_point"], (*b.shape[:-2], b.shape[-1]))[..., None, :]
    want = wrapped(left @ right)
    for variant in variants():
        out = np.full(want.shape, 77, np.int32) if with_out else None
        got = qk.matmul(a_layout(a), b_layout(b), **zero, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize(
    ("heads", "m", "k", "n"), [(12, 100, 32, 128), (2, 300, 40, 500), (3, 200, 200, 33), (1, 400, 300, 200)]
)
def test_batches_large_enough_for_threads(a_dtype, b_dtype, heads, m, k, n, variants):
    """Shared by product, and, where there are fewer products than threads, within each."""
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, (heads, m, k), a_dtype), random_codes(rng, (heads, n, k), b_dtype).swapaxes(1, 2)
    want = wrapped(a.astype(np.float64) @ b.astype(np.float64))
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"a": (3, 5, 7)},
            ValueError,
            r"a and b must have leading axes that broadcast, got shapes \(3, 5, 7\) and \(2, 7, 4\)",
        ),
        (
            {"a": (2, 5, 6)},
            ValueError,
            r"a must have shape \(\.\.\., M, 7\) to match b with shape \(2, 7, 4\), got \(2, 5, 6\)",
        ),
        ({"a": (7,)}, ValueError, r"a must have shape \(\.\.\., M, 7\) .* got \(7,\)"),
        (
            {"a_zero_point": [1, 2]},
            ValueError,
            r"a_zero_point must be a scalar or broadcast to shape \(2, 5\), got \(2,\)",
        ),
        (
            {"b_zero_point": [[1], [2], [3]]},
            ValueError,
            r"b_zero_point must be a scalar or broadcast to shape \(2, 4\), got \(3, 1\)",
        ),
        ({"a_zero_point": [[256], [0]]}, ValueError, r"a_zero_point must be within \[0, 255\]"),
        ({"b_zero_point": 1.5}, TypeError, "b_zero_point must be an integer"),
        ({"out": (2, 5, 5)}, ValueError, r"out must have shape \(2, 5, 4\), got \(2, 5, 5\)"),
        ({"out": (5, 4)}, ValueError, r"out must have shape \(2, 5, 4\)"),
    ],
)
def test_bad_batches(change, error, message):
    arguments = {"a": np.ones(change.get("a", (2, 5, 7)), np.uint8), "b": np.ones((2, 7, 4), np.int8)}
    out = np.full(change.get("out", (2, 5, 4)), 77, np.int32)
    with pytest.raises(error, match=message):
        qk.matmul(**arguments, **{name: value for name, value in change.items() if name.endswith("point")}, out=out)
    assert (out == 77).all()


def test_countless_products_without_values():
    a, b = np.broadcast_to(np.zeros((0, 7), np.uint8), (2**40, 0, 7)), np.ones((7, 4), np.int8)[None]
    assert qk.matmul(a, b).shape == (2**40, 0, 4)


def test_out_must_not_overlap_a_batch():
    memory = np.zeros(2 * 5 * 4 * 4, np.uint8)
    out = memory.view(np.int32).reshape(2, 5, 4)
    a, b = np.ones((2, 5, 7), np.uint8), np.ones((2, 7, 4), np.int8)
    for name, given in [
        ("a", {"a": memory[:70].reshape(2, 5, 7), "b": b}),
        ("b", {"a": a, "b": memory[:56].view(np.int8).reshape(2, 7, 4)}),
        ("a_zero_point", {"a": a, "b": b, "a_zero_point": memory[:5]}),
    ]:
        with pytest.raises(ValueError, match=f"out must not overlap {name}"):
            qk.matmul(**given, out=out)


# ---- small weights: sums of 16 bits (numerics 6) ----


def extreme_rows(b, column):
    """uint8 rows that make the sum of a column's products as large, as small and as mixed as can be."""
    up = np.where(b[:, column] > 0, 255, 0)
    return np.array(
        [up, 255 - up, np.full(len(b), 255), np.full(len(b), 0), np.full(len(b), 128), np.full(len(b), 127)], np.uint8
    )


@pytest.mark.parametrize("total", [127, 128, 129, 130, 255, 256, 257, 258, 381, 508, 512])
@pytest.mark.parametrize("signs", ["++++", "----", "+-+-", "++--", "+---"])
@pytest.mark.parametrize("rows", [(0, 1, 4, 5), (2, 3, 6, 7), (0, 1, 6, 7)])
def test_four_codes_at_below_and_above_what_16_bits_hold(total, signs, rows, isas):
    """Two steps alone, in which one column's magnitudes sum up to `total`; elsewhere the weights are small. Even and uneven parts."""
    for parts in (
        [total // 4 + (i < total % 4) for i in range(4)],
        np.diff([0, *np.clip(np.cumsum([127] * 4), 0, total)]),
    ):
        b = np.ones((8, 64), np.int8)
        for column in (3, 12):
            b[:, column] = 0
            b[list(rows), column] = [
                np.clip(int(part) * (1 if sign == "+" else -1), -128, 127) for part, sign in zip(parts, signs)
            ]
        a = np.concatenate([extreme_rows(b, 3), extreme_rows(b, 12)])
        for isa in isas():
            packed = qk.pack(b, qk.QParams(1))
            assert_array_equal(qk.matmul(a, packed), wrapped(exact(a, b)), err_msg=isa, strict=True)
            assert_array_equal(packed.unpack(), b, err_msg=isa, strict=True)


@st.composite
def small_weights(draw):
    """a and b, whose codes are normally distributed, a few at the ends of their range."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    k, n = (
        draw(st.one_of(st.integers(8, 300), st.sampled_from([1023, 1024, 1025, 1028, 2051]))),
        draw(st.integers(8, 70)),
    )
    b = np.clip(rng.normal(0, draw(st.sampled_from([1, 10, 25, 35, 45, 60])), (k, n)).round(), -128, 127)
    b = np.where(
        rng.random((k, n)) < draw(st.sampled_from([0, 0.001, 0.02, 0.1])), rng.choice([-128, 127], (k, n)), b
    ).astype(np.int8)
    a = np.concatenate(
        [extreme_rows(b, draw(st.integers(0, n - 1))), random_codes(rng, (draw(st.integers(0, 12)), k), "uint8")]
    )
    flip = np.uint8(128)
    a = a if a_dtype == "uint8" else (a ^ flip).view(np.int8)
    return a[: draw(st.integers(1, len(a)))], b if b_dtype == "int8" else b.view(np.uint8) ^ flip, rng


@settings(max_examples=150)
@given(small_weights(), layouts, layouts)
def test_small_weights(variants, example, a_layout, b_layout):
    a, b, rng = example
    zero = {"a_zero_point": random_codes(rng, len(a), a.dtype), "b_zero_point": random_codes(rng, b.shape[1], b.dtype)}
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, **zero))
    for variant in variants():
        packed = qk.pack(b_layout(b), qk.QParams(1, dtype=b.dtype))
        assert_array_equal(qk.matmul(a_layout(a), packed), want, err_msg=variant, strict=True)
        assert_array_equal(qk.matmul(a_layout(a), packed, **zero), with_zero_points, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), b, err_msg=variant, strict=True)


@pytest.mark.parametrize(
    ("code", "small"), [(1, True), (-64, True), (64, True), (65, False), (-65, False), (127, False), (-128, False)]
)
def test_weights_that_break_the_bound_keep_to_products_of_16_bits(code, small, isas):
    """Panels of small weights are larger, since they hold an order of k."""
    for isa in isas():
        packed = qk.pack(np.full((256, 64), code, np.int8), qk.QParams(1))
        plain = packed.nbytes == 256 * 64 + 8 * 64
        assert plain == (isa != "avx2" or not small), isa


# ---- PackedMatrix ----


@every_pair
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_gives_back_what_it_was_made_of(a_dtype, b_dtype, layout, isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        b = random_codes(rng, (k, n), b_dtype)
        params = qk.QParams(rng.uniform(0.1, 1, n).astype(np.float32), random_codes(rng, n, b_dtype), b_dtype, axis=1)
        a = random_codes(rng, (4, k), a_dtype)
        for isa in isas():
            packed = qk.pack(LAYOUTS[layout](b), params)
            arrays = packed.to_arrays()
            assert all(type(value) is np.ndarray for value in arrays.values())
            for same in (packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays)):
                assert isinstance(same, qk.PackedMatrix) and same.shape == (k, n) and same.params == params
                assert_array_equal(same.unpack(), b, err_msg=isa, strict=True)
                assert_array_equal(qk.matmul(a, same), qk.matmul(a, b), err_msg=isa, strict=True)


def test_packed_keeps_nothing_of_its_source():
    b = np.ones((64, 64), np.int8)
    packed = qk.pack(b.T, qk.QParams(1))
    b[:] = 5
    packed.unpack()[:] = 6
    packed.to_arrays()["codes"][:] = 7
    assert_array_equal(packed.unpack(), np.ones((64, 64)))


def test_packed_takes_a_quarter_of_float32():
    for k, n in [(384, 384), (384, 1536), (1536, 384), (1000, 1001)]:
        packed = qk.pack(np.ones((k, n), np.int8), qk.QParams(np.ones(n), np.zeros(n, int), axis=1))
        assert k * n <= packed.nbytes <= 1.1 * k * n


@pytest.mark.parametrize("attribute", ["params", "shape", "nbytes"])
def test_packed_is_read_only(attribute):
    packed = qk.pack(np.ones((2, 3), np.int8), qk.QParams(1))
    with pytest.raises(AttributeError):
        setattr(packed, attribute, None)


def test_params_per_column_by_a_negative_axis():
    b = np.int8([[1, 2], [3, 4]])
    params = qk.QParams([0.5, 2.0], axis=-1)
    x = np.float32([[1, 2], [-3, 4]])
    want = qk.linear(x, qk.pack(b, qk.QParams([0.5, 2.0], axis=1)))
    assert_array_equal(qk.linear(x, qk.pack(b, params)), want)


@every_pair
def test_packed_under_one_instruction_set_and_used_under_another(a_dtype, b_dtype, isas):
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, (37, 131), a_dtype), random_codes(rng, (131, 67), b_dtype)
    x, bias = rng.normal(0, 1, (37, 131)).astype(np.float32), rng.normal(0, 1, 67).astype(np.float32)
    params = qk.QParams(0.1, 3, b_dtype)
    packed = {isa: qk.pack(b, params) for isa in isas()}
    want = wrapped(exact(a, b))
    y = qk.linear(x, qk.pack(b, params), bias, activation="gelu")
    for isa in isas():
        for origin, matrix in packed.items():
            assert_array_equal(qk.matmul(a, matrix), want, err_msg=f"{origin}, {isa}", strict=True)
            assert_array_equal(
                qk.linear(x, matrix, bias, activation="gelu"), y, err_msg=f"{origin}, {isa}", strict=True
            )


def test_one_matrix_in_many_python_threads():
    rng = np.random.default_rng(0)
    b = random_codes(rng, (257, 301), "int8")
    packed = qk.pack(b, qk.QParams(0.01))
    lefts = [random_codes(rng, (m, 257), "uint8") for m in (1, 63, 200, 7, 150, 33, 90, 11)]
    together = Barrier(len(lefts))

    def work(a):
        together.wait(timeout=60)
        return [qk.matmul(a, packed) for _ in range(20)]

    with ThreadPoolExecutor(len(lefts)) as pool:
        for a, results in zip(lefts, pool.map(work, lefts)):
            want = wrapped(exact(a, b))
            for result in results:
                assert_array_equal(result, want, strict=True)


# ---- linear ----


@st.composite
def layers(draw):
    """x, weights, params of the weights and bias."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n, b_dtype = draw(sizes), draw(sizes), draw(st.sampled_from(["int8", "uint8"]))
    rows = draw(st.one_of(sizes.map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 20))))
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    few = draw(st.sampled_from([(), (n,)]))
    scale = rng.uniform(0.001, 0.1, few).astype(np.float32)
    zero_point = draw(st.sampled_from([np.zeros(few, int), random_codes(rng, few, b_dtype)]))
    params = qk.QParams(scale, zero_point, b_dtype, axis=1 if few else None)
    bias = draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))
    return x, random_codes(rng, (k, n), b_dtype), params, bias


def linear_by_numpy(x, b, params, bias=None):
    """numerics 8 in float32, one operation after the other; before the activation."""
    q, of_rows = qk.dynamic_quantize(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), "uint8", axis=0)
    sums = exact(q, b, of_rows.zero_point, params.zero_point).astype(np.float32)
    y = sums * (of_rows.scale[:, None] * params.scale)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], b.shape[1])


@settings(max_examples=100)
@given(layers(), layouts, st.sampled_from([None, "relu"]), st.booleans())
def test_linear(variants, layer, layout, activation, with_out):
    x, b, params, bias = layer
    want = linear_by_numpy(x, b, params, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        out = np.full(want.shape, 77, np.float32) if with_out else None
        got = qk.linear(layout(x), qk.pack(b, params), bias, activation=activation, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


def test_linear_is_near_the_float_product():
    """The error of each row is that of half a step of x in each factor, and of the weights."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), rng.normal(0, 0.05, (384, 200)).astype(np.float32)
    params = qk.choose_qparams(w, axis=1)
    y = qk.linear(x, qk.pack(qk.quantize(w, params), params))
    step = (np.ptp(x, axis=1, keepdims=True)) / 255
    exact_weights = qk.dequantize(qk.quantize(w, params), params).astype(np.float64)
    bound = step / 2 * np.abs(exact_weights).sum(0)
    assert (np.abs(y - x.astype(np.float64) @ exact_weights) <= bound * 1.001).all()
    want = x.astype(np.float64) @ w
    assert np.corrcoef(y.ravel(), want.ravel())[0, 1] > 0.9998


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_linear_takes_every_float(dtype, isas):
    rng = np.random.default_rng(0)
    x, b = rng.normal(0, 1, (9, 37)).astype(dtype), random_codes(rng, (37, 11), "int8")
    bias = rng.normal(0, 1, 11).astype(dtype)
    packed = qk.pack(b, qk.QParams(0.1))
    want = linear_by_numpy(x.astype(np.float32), b, packed.params, bias.astype(np.float32))
    for isa in isas():
        assert_array_equal(qk.linear(x, packed, bias), want, err_msg=isa, strict=True)
        assert_array_equal(
            qk.linear(
                x.tolist() if dtype is np.float64 else x[:, ::-1].copy()[:, ::-1], packed, bias[::-1].copy()[::-1]
            ),
            want,
            err_msg=isa,
            strict=True,
        )


def gelu(x):
    return x / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * np.minimum(x, 1e100) ** 3)))


@np.errstate(all="ignore")
def silu(x):
    return x / (1 + np.exp(-np.maximum(x, -700)))


FUNCTIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


@pytest.mark.parametrize(
    ("activation", "absolute", "relative"), [("gelu", 3.6e-7, 0), ("gelu_tanh", 2.5e-7, 0), ("silu", 0, 2e-7)]
)
def test_activations_are_near_the_functions(activation, absolute, relative, isas):
    """Where the product is 0 the bias alone goes through the activation: it sweeps the floats. What the result may be off by,
    beside the half unit in the last place that rounding takes."""
    rng = np.random.default_rng(0)
    bias = np.concatenate(
        [
            np.linspace(-12, 12, 20_001),
            np.geomspace(1e-30, 1e38, 1001),
            -np.geomspace(1e-30, 87, 1001),
            rng.normal(0, 2, 5000),
            [0.0, 88.4, 3.4e38],
        ]
    ).astype(np.float32)
    want = FUNCTIONS[activation](bias.astype(np.float64))
    packed = qk.pack(np.zeros((1, bias.size), np.int8), qk.QParams(1))
    results = [qk.linear(np.zeros((1, 1), np.float32), packed, bias, activation=activation)[0] for _ in isas()]
    half_unit = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64) / 2
    assert (np.abs(results[0] - want) <= absolute + relative * np.abs(want) + half_unit).all()
    for result in results:
        assert_array_equal(result, results[0], strict=True)


@pytest.mark.parametrize(("activation", "off_by"), [("gelu", 0), ("gelu_tanh", 0), ("silu", 1e-36)])
def test_activations_of_large_negative_values_vanish(activation, off_by):
    bias = np.float32([-13, -88, -88.4, -104, -1e10, -3.4e38])
    if activation == "silu":
        bias = bias[2:]
    packed = qk.pack(np.zeros((1, bias.size), np.int8), qk.QParams(1))
    assert np.abs(qk.linear(np.zeros((1, 1), np.float32), packed, bias, activation=activation)).max() <= off_by


@settings(max_examples=60)
@given(layers(), layouts, st.sampled_from([None, "relu", "gelu", "gelu_tanh", "silu"]), st.data())
def test_residual_and_clamp(variants, layer, layout, activation, data):
    """activation(x @ w + bias + residual), clamped; the residual may be `out`."""
    x, b, params, bias = layer
    sums = linear_by_numpy(x, b, params, bias)
    residual = np.random.default_rng(0).normal(0, 3, sums.shape).astype(np.float32)
    clamp = data.draw(st.sampled_from([None, (0, 6), (-0.5, None), (None, 1), (2, 2), (None, None)]))
    in_place = data.draw(st.booleans())
    want = sums + residual
    if activation:  # of the same sums without a product
        zeros = qk.pack(np.zeros((1, want.size), np.int8), qk.QParams(1))
        want = qk.linear(np.zeros((1, 1), np.float32), zeros, want.reshape(-1), activation=activation).reshape(
            want.shape
        )
    if clamp:
        want = np.clip(
            want, *np.float32([-np.inf if clamp[0] is None else clamp[0], np.inf if clamp[1] is None else clamp[1]])
        )
    for variant in variants():
        given = residual.copy() if in_place else layout(residual)
        got = qk.linear(
            x,
            qk.pack(b, params),
            bias,
            activation=activation,
            residual=given,
            clamp=clamp,
            out=given if in_place else None,
        )
        assert (got is given) == in_place
        assert_array_equal(got, want, err_msg=variant, strict=True)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_linear_has_equal_bits_at_any_thread_count(activation, variants):
    rng = np.random.default_rng(0)
    for m, k, n in [(301, 401, 203), (1, 4096, 2048), (2003, 129, 33)]:
        x = rng.normal(0, 1, (m, k)).astype(np.float32)
        params = qk.QParams(rng.uniform(0.001, 0.01, n).astype(np.float32), np.zeros(n, int), axis=1)
        b, bias = random_codes(rng, (k, n), "int8"), rng.normal(0, 1, n).astype(np.float32)
        first = None
        for variant in variants():
            y = qk.linear(x, qk.pack(b, params), bias, activation=activation)
            first = y if first is None else first
            assert_array_equal(y, first, err_msg=variant, strict=True)


# ---- qlinear ----


@st.composite
def integer_layers(draw):
    """q, its params, weights, theirs, params of the result, bias, rounding, activation."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n = draw(sizes), draw(sizes)
    (a_dtype, b_dtype), out_dtype = draw(st.sampled_from(PAIRS)), draw(st.sampled_from(["int8", "uint8"]))
    rows = draw(st.one_of(sizes.map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 20))))
    q, b = random_codes(rng, (*rows, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    few = draw(st.sampled_from([(), (n,)]))
    ties = draw(st.booleans())
    sa, sb = rng.uniform(0.01, 0.1), rng.uniform(0.01, 0.02, few)
    if ties:
        sa, sb = 2.0**-5, 2.0 ** rng.integers(-7, -5, few)
    so = 2.0**-3 * max(1, round(math.sqrt(k))) if ties else rng.uniform(0.1, 0.2) * (1 + k) ** 0.5
    params = qk.QParams(sa, random_codes(rng, (), a_dtype), a_dtype)
    weights = qk.QParams(sb, random_codes(rng, few, b_dtype), b_dtype, axis=1 if few else None)
    to = qk.QParams(so, random_codes(rng, (), out_dtype), out_dtype)
    int_bias = rng.integers(-20_000, 20_000, n).astype(np.int32)
    bias = draw(st.sampled_from([None, int_bias, (int_bias * 1e-3).astype(np.float32)]))
    return q, params, b, weights, to, bias


def qlinear_by_numpy(q, params, b, weights, to, bias, relu):
    """numerics 7 and 8 in float32, one operation after the other."""
    sums = exact(q, b, params.zero_point, weights.zero_point)
    if bias is not None and bias.dtype == np.int32:
        sums = sums + bias
    y = sums.astype(np.float32) * (params.scale * weights.scale / to.scale)
    if bias is not None and bias.dtype == np.float32:
        y = y + bias / to.scale
    lowest = to.zero_point if relu else to.qmin
    return np.clip(np.rint(y) + to.zero_point, lowest, to.qmax).astype(to.dtype)


@settings(max_examples=150)
@given(integer_layers(), layouts, st.booleans(), st.booleans())
def test_qlinear(variants, layer, layout, relu, with_out):
    q, params, b, weights, to, bias = layer
    want = qlinear_by_numpy(q, params, b, weights, to, bias, relu)
    for variant in variants():
        out = np.full(want.shape, 77, to.dtype) if with_out else None
        got = qk.qlinear(layout(q), params, qk.pack(b, weights), to, bias, activation="relu" if relu else None, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "gemmlowp", "tflite"])
@settings(max_examples=40)
@given(integer_layers())
def test_qlinear_is_matmul_then_requantize(rounding, isas, layer):
    q, params, b, weights, to, bias = layer
    bias = None if bias is None else bias.astype(np.int32)
    sums = wrapped(exact(q, b, params.zero_point, weights.zero_point))
    if rounding in ("gemmlowp", "tflite"):
        multiplier = np.float64(params.scale) * np.float64(weights.scale) / np.float64(to.scale)
    else:
        multiplier = params.scale * weights.scale / to.scale
    for isa in isas():
        want = qk.requantize(sums, multiplier, to, bias=bias, rounding=rounding)
        packed = qk.pack(b, weights)
        assert_array_equal(qk.qlinear(q, params, packed, to, bias, rounding=rounding), want, err_msg=isa, strict=True)
        got = qk.qlinear(q, params, packed, to, bias, rounding=rounding, activation="relu")
        assert_array_equal(got, np.maximum(want, to.dtype.type(to.zero_point)), err_msg=isa, strict=True)


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "gemmlowp", "tflite"])
@pytest.mark.parametrize("clamp", [(0, 6), (-1.5, None), (None, 2.25), (0.3, 0.3), (-3, -1)])
@settings(max_examples=15)
@given(integer_layers(), st.sampled_from([None, "relu", "gelu"]))
def test_qlinear_clamps_real_values(rounding, clamp, isas, layer, activation):
    q, params, b, weights, to, bias = layer
    if rounding in ("gemmlowp", "tflite"):
        bias, activation = None if bias is None else bias.astype(np.int32), None if activation == "gelu" else activation
    lo, hi = (np.float32(limit if bound is None else bound) for bound, limit in zip(clamp, (-np.inf, np.inf)))
    lo, hi = qk.quantize(np.array([lo, hi]), to, rounding="half_even" if rounding == "half_even" else "half_away")
    for isa in isas():
        packed = qk.pack(b, weights)
        want = np.clip(qk.qlinear(q, params, packed, to, bias, rounding=rounding, activation=activation), lo, hi)
        got = qk.qlinear(q, params, packed, to, bias, rounding=rounding, activation=activation, clamp=clamp)
        assert_array_equal(got, want, err_msg=isa, strict=True)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@settings(max_examples=40)
@given(integer_layers())
def test_qlinear_with_an_activation_of_real_values(activation, isas, layer):
    q, params, b, weights, to, bias = layer
    real = exact(q, b, params.zero_point, weights.zero_point)
    scale = np.float64(params.scale) * np.float64(weights.scale)
    if bias is not None:
        real = real + (bias if bias.dtype == np.int32 else bias / scale)
    real = real * scale
    want = FUNCTIONS[activation](real.reshape(-1)).reshape(real.shape) / to.scale + to.zero_point
    want = np.clip(want, to.qmin, to.qmax)
    results = [qk.qlinear(q, params, qk.pack(b, weights), to, bias, activation=activation) for _ in isas()]
    assert (np.abs(results[0] - want) <= 0.501).all()
    for result in results:
        assert_array_equal(result, results[0], strict=True)


# ---- sums that could overflow ----


@pytest.mark.parametrize(
    ("a_dtype", "zero_point", "largest"),
    [
        ("uint8", 0, 255),
        ("uint8", 128, 128),
        ("uint8", 255, 255),
        ("int8", 0, 128),
        ("int8", -128, 255),
        ("int8", 127, 255),
    ],
)
@pytest.mark.parametrize(("code", "b_zero_point"), [(-128, 0), (127, 0), (-128, 127), (127, -128)])
def test_weights_are_refused_exactly_where_a_sum_can_overflow(a_dtype, zero_point, largest, code, b_zero_point):
    """The largest sum is K * largest * |code - zero point|, in the second column alone."""
    size = abs(code - b_zero_point)
    longest = (2**31 - 1) // (largest * size)
    weights, to = qk.QParams([1.0, 1.0, 1.0], [b_zero_point] * 3, axis=1), qk.QParams(1e9)
    params = qk.QParams(1, zero_point, a_dtype)
    for k in (longest, longest + 1):
        b = np.full((k, 3), b_zero_point, np.int8)
        b[:, 1] = code
        packed = qk.pack(b, weights)
        q = np.full((2, k), code_range(a_dtype)[0 if zero_point - code_range(a_dtype)[0] == largest else 1], a_dtype)
        if k == longest:
            want = float((int(q[0, 0]) - zero_point) * (code - b_zero_point) * k) / 1e9
            assert_array_equal(qk.qlinear(q, params, packed, to), [[0, round(want), 0]] * 2)
        else:
            message = f"int32 could overflow.*{k * size}.*{largest}"
            with pytest.raises(ValueError, match=message):
                qk.qlinear(q, params, packed, to)
            assert qk.matmul(q, packed).shape == (2, 3)


@st.composite
def long_columns(draw):
    """Weights whose largest sum may or may not fit int32, zero points, and the dtype and zero point of q."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    low, high = code_range(b_dtype)
    a_zero_point, b_zero_point = draw(st.integers(*code_range(a_dtype))), rng.integers(low, high + 1, 2)
    largest = max(a_zero_point - code_range(a_dtype)[0], code_range(a_dtype)[1] - a_zero_point)
    b = rng.choice([low, high, draw(st.integers(low, high))], (70_000, 2)).astype(b_dtype)
    sums = np.cumsum(np.abs(b.astype(np.int64) - b_zero_point), axis=0).max(axis=1) * largest
    fit = int(np.searchsorted(sums, 2**31 - 1, side="right"))  # rows that fit
    return b[: max(1, fit + draw(st.integers(-1, 1)))], b_dtype, b_zero_point, a_dtype, a_zero_point, largest


@settings(max_examples=30)
@given(long_columns())
def test_weights_are_accepted_only_where_no_input_can_overflow(isas, example):
    """Of weights that are accepted, the row that makes the largest sum, and that which makes the smallest, are exact."""
    b, b_dtype, b_zero_point, a_dtype, a_zero_point, largest = example
    distances = b.astype(np.int64) - b_zero_point
    bound = int(np.abs(distances).sum(axis=0).max()) * largest
    low, high = code_range(a_dtype)
    up = np.where(distances[:, np.abs(distances).sum(axis=0).argmax()] > 0, high, low)
    q = np.array([up, low + high - up], a_dtype)
    for isa in isas():
        packed = qk.pack(b, qk.QParams([1.0, 1.0], b_zero_point, b_dtype, axis=1))
        for_linear = bound // largest * 255 > 2**31 - 1
        x = np.ones((1, len(b)), np.float32)
        if for_linear:
            with pytest.raises(ValueError, match="int32 could overflow"):
                qk.linear(x, packed)
        else:
            assert_array_equal(qk.linear(x, packed)[0], linear_by_numpy(x, b, packed.params)[0], err_msg=isa)
        params, to = qk.QParams(1, a_zero_point, a_dtype), qk.QParams(2.0**24)
        if bound > 2**31 - 1:
            with pytest.raises(ValueError, match=f"int32 could overflow.*{bound} exceeds"):
                qk.qlinear(q, params, packed, to)
        else:
            want = np.rint((q.astype(np.int64) - a_zero_point) @ distances / 2.0**24)
            assert_array_equal(qk.qlinear(q, params, packed, to), np.clip(want, -128, 127), err_msg=isa)


@settings(max_examples=60)
@given(st.data())
def test_heavy_weights_take_the_slow_path(isas, data):
    """Weights most of whose sums of four magnitudes exceed 256 are packed without an order of k; lighter ones with it. Both are exact."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    k, n, size = data.draw(st.integers(32, 160)), data.draw(st.integers(32, 80)), data.draw(st.integers(1, 127))
    b = (size * rng.choice([-1, 1], (k, n))).astype(np.int8)
    rows = np.concatenate([extreme_rows(b, 0), extreme_rows(b, n - 1)])
    for isa in isas():
        packed = qk.pack(b, qk.QParams(1))
        nr, kr = {"avx2": (16, 2), "avx512vnni": (32, 4), "scalar": (16, 4)}[isa]
        plain = packed.nbytes == -(-n // nr) * nr * (-(-k // kr) * kr + 8)
        assert plain == (isa != "avx2" or 4 * size > 256), isa
        assert_array_equal(qk.matmul(rows, packed), wrapped(exact(rows, b)), err_msg=isa, strict=True)


def test_linear_refuses_weights_that_can_overflow():
    longest = (2**31 - 1) // (255 * 128)
    x, out = np.ones((1, longest), np.float32), np.full((1, 1), 77, np.float32)
    assert qk.linear(x, qk.pack(np.full((longest, 1), -128, np.int8), qk.QParams(1)))[0, 0] == pytest.approx(
        -128 * longest
    )
    with pytest.raises(ValueError, match=f"int32 could overflow.*{128 * (longest + 1)}.*255"):
        qk.linear(
            np.ones((1, longest + 1), np.float32),
            qk.pack(np.full((longest + 1, 1), -128, np.int8), qk.QParams(1)),
            out=out,
        )
    assert out == 77


def test_an_int32_bias_counts_among_what_can_overflow():
    packed, params, to = qk.pack(np.int8([[127, 1]]), qk.QParams(1)), qk.QParams(1), qk.QParams(1e9)
    most = 2**31 - 1 - 127 * 128
    assert_array_equal(qk.qlinear(np.int8([[127]]), params, packed, to, np.int32([most, -most])), [[2, -2]])
    with pytest.raises(ValueError, match="int32 could overflow"):
        qk.qlinear(np.int8([[127]]), params, packed, to, np.int32([most + 1, 0]))


# ---- bad input ----

A, B = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(12, dtype=np.int8).reshape(3, 4)
X, PARAMS = A.astype(np.float32), qk.QParams(0.5)
PACKED = qk.pack(B, PARAMS)
CALLS = {
    "matmul": (qk.matmul, {"a": A, "b": B}, np.int32),
    "linear": (qk.linear, {"x": X, "packed": PACKED}, np.float32),
    "qlinear": (
        qk.qlinear,
        {"q": A, "params": qk.QParams(0.5, 3, "uint8"), "packed": PACKED, "out_params": PARAMS},
        np.int8,
    ),
}


def with_bad_value(value):
    x = X.copy()
    x[1, 2] = value
    return x


BAD = [
    ("matmul", {"a": A.astype(np.int32)}, TypeError, "a must be uint8, int8 or int16, got int32"),
    ("matmul", {"a": X}, TypeError, "a must be uint8, int8 or int16, got float32"),
    ("matmul", {"b": B.astype(np.int32)}, TypeError, "b must be uint8, int8 or int16, got int32"),
    ("matmul", {"b": B[0]}, ValueError, r"b must have shape \(\.\.\., K, N\), got \(4,\)"),
    ("matmul", {"b": B[None]}, ValueError, r"out must have shape \(1, 2, 4\), got \(2, 4\)"),
    ("matmul", {"a": A.T}, ValueError, r"a must have 3 columns to match b, got shape \(3, 2\)"),
    ("matmul", {"a": A.T, "b": PACKED}, ValueError, r"a must have 3 columns to match b, got shape \(3, 2\)"),
    ("matmul", {"a": np.uint8(3)}, ValueError, r"a must have 3 columns to match b, got shape \(\)"),
    ("matmul", {"a_zero_point": 256}, ValueError, r"a_zero_point must be within \[0, 255\] for uint8, got 256"),
    ("matmul", {"a_zero_point": -1}, ValueError, r"a_zero_point must be within \[0, 255\] for uint8, got -1"),
    ("matmul", {"b_zero_point": 128}, ValueError, r"b_zero_point must be within \[-128, 127\] for int8, got 128"),
    (
        "matmul",
        {"a_zero_point": [1, 2, 3]},
        ValueError,
        r"a_zero_point must be a scalar or have shape \(2,\), got \(3,\)",
    ),
    ("matmul", {"b_zero_point": [1, 2]}, ValueError, r"b_zero_point must be a scalar or have shape \(4,\), got \(2,\)"),
    ("matmul", {"b_zero_point": [[1, 2, 3, 4]]}, ValueError, r"b_zero_point must be .* shape \(4,\), got \(1, 4\)"),
    ("matmul", {"a_zero_point": 1.5}, TypeError, "a_zero_point must be an integer or an array of integers, got 1.5"),
    ("linear", {"x": A}, TypeError, "x must be float32, float64, float16 or bfloat16, got uint8"),
    ("linear", {"x": X.T}, ValueError, r"x must have 3 columns to match packed, got shape \(3, 2\)"),
    ("linear", {"x": with_bad_value(np.nan)}, ValueError, r"x has 1 NaN or infinite values, the first at \(1, 2\)"),
    ("linear", {"x": with_bad_value(-np.inf)}, ValueError, r"x has 1 NaN or infinite values, the first at \(1, 2\)"),
    ("linear", {"packed": B}, TypeError, "packed must be a PackedMatrix, got ndarray"),
    ("linear", {"bias": np.ones(3, np.float32)}, ValueError, r"bias must have shape \(4,\), got \(3,\)"),
    ("linear", {"bias": np.ones(4, np.int32)}, TypeError, "bias must be a float array, got int32"),
    (
        "linear",
        {"activation": "tanh"},
        ValueError,
        "activation must be one of None, 'relu', 'gelu', 'gelu_tanh', 'silu', got 'tanh'",
    ),
    (
        "linear",
        {"residual": np.ones((2, 3), np.float32)},
        ValueError,
        r"residual must have shape \(2, 4\) \(as the result\), got \(2, 3\)",
    ),
    ("linear", {"residual": np.ones(4, np.float32)}, ValueError, r"residual must have shape \(2, 4\)"),
    ("linear", {"residual": np.ones((2, 4))}, TypeError, "residual must be float32, got float64"),
    ("linear", {"clamp": 6}, TypeError, r"clamp must be None or a pair of floats \(lo, hi\), got 6"),
    ("linear", {"clamp": (0, "6")}, TypeError, "clamp must be None or a pair of floats"),
    ("linear", {"clamp": (0, 1, 2)}, TypeError, "clamp must be None or a pair of floats"),
    ("linear", {"clamp": (1, 0)}, ValueError, r"clamp must have lo <= hi, got \(1, 0\)"),
    ("linear", {"clamp": (np.nan, 0)}, ValueError, "clamp must have lo <= hi"),
    ("qlinear", {"clamp": (1, 0)}, ValueError, r"clamp must have lo <= hi, got \(1, 0\)"),
    (
        "qlinear",
        {"bias": np.float32([1, np.nan, np.inf, 0])},
        ValueError,
        r"bias has 2 NaN or infinite values, the first at \(1,\)",
    ),
    ("linear", {"activation": ["relu"]}, ValueError, r"activation must be one of .*, got \['relu'\]"),
    ("qlinear", {"q": A.astype(np.int8)}, TypeError, r"q must have dtype uint8 \(as params\), got int8"),
    ("qlinear", {"q": X}, TypeError, "q must have dtype uint8"),
    ("qlinear", {"q": A.T}, ValueError, r"q must have 3 columns to match packed, got shape \(3, 2\)"),
    ("qlinear", {"params": 0.5}, TypeError, "params must be QParams, got float"),
    ("qlinear", {"params": qk.QParams(1, dtype="uint4")}, TypeError, "params must have dtype int8 or uint8, got uint4"),
    (
        "qlinear",
        {"params": qk.QParams([1.0, 1.0], dtype="uint8", axis=0)},
        ValueError,
        "params must be per tensor, got axis 0",
    ),
    ("qlinear", {"packed": B}, TypeError, "packed must be a PackedMatrix, got ndarray"),
    ("qlinear", {"out_params": None}, TypeError, "out_params must be QParams, got NoneType"),
    (
        "qlinear",
        {"out_params": qk.QParams(1, dtype="int16")},
        TypeError,
        "out_params must have dtype int8 or uint8, got int16",
    ),
    ("qlinear", {"out_params": qk.QParams([1.0] * 4, axis=1)}, ValueError, "out_params must be per tensor, got axis 1"),
    ("qlinear", {"bias": np.ones(3, np.int32)}, ValueError, r"bias must have shape \(4,\), got \(3,\)"),
    ("qlinear", {"bias": np.full(4, 2**31)}, ValueError, "bias must fit int32, got .*2147483648"),
    ("qlinear", {"bias": np.ones(4, complex)}, TypeError, "bias must be int32 or a float array, got complex128"),
    (
        "qlinear",
        {"bias": np.ones(4, np.float32), "rounding": "tflite"},
        TypeError,
        "bias must be int32 with rounding 'tflite', got float32",
    ),
    ("qlinear", {"rounding": "up"}, ValueError, "rounding must be one of 'half_even', .*, got 'up'"),
    ("qlinear", {"activation": "tanh"}, ValueError, "activation must be one of .*, got 'tanh'"),
    (
        "qlinear",
        {"activation": "gelu", "rounding": "gemmlowp"},
        ValueError,
        "activation must be None or 'relu' with rounding 'gemmlowp', got 'gelu'",
    ),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD)
def test_bad_input(name, change, error, message):
    function, arguments, dtype = CALLS[name]
    arguments = {**arguments, **change}
    out = np.full(
        (2, 4), 77, arguments["out_params"].dtype if change.keys() == {"out_params"} and error is ValueError else dtype
    )
    with pytest.raises(error, match=message):
        function(**arguments, out=out)
    assert (out == 77).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((B.astype(np.int32), PARAMS), TypeError, "b must be int8, uint8, int16, int4 or uint4, got int32"),
        ((B.astype(np.uint8), PARAMS), TypeError, r"b must have dtype int8 \(as params\), got uint8"),
        ((B[0], PARAMS), ValueError, r"b must have shape \(K, N\), got \(4,\)"),
        ((B, 0.5), TypeError, "params must be QParams or a Codebook, got float"),
        (
            (B, qk.QParams([1.0] * 3, axis=0)),
            ValueError,
            r"params must be per tensor or per column \(axis=1\), .* got axis=0",
        ),
        ((B, qk.QParams([1.0] * 3, axis=1)), ValueError, r"scale must have shape \(4,\) to match axis 1 .*got \(3,\)"),
    ],
)
def test_pack_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        qk.pack(*arguments)


def test_from_arrays_refuses():
    arrays = PACKED.to_arrays()
    for change, error, message in [
        ({"codes": arrays["codes"].astype(np.float32)}, TypeError, "codes must be int8, uint8 or int16, got float32"),
        ({"qmin": np.int32(-5)}, ValueError, "qmin must be -128 or -127 for codes of int8, got -5"),
    ]:
        with pytest.raises(error, match=message):
            qk.PackedMatrix.from_arrays({**arrays, **change})
    del arrays["scale"]
    with pytest.raises(ValueError, match="scale"):
        qk.PackedMatrix.from_arrays(arrays)


def narrow(dtype):
    info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype))
    return qk.pack(
        np.full((4, 4), info.min + 1, info.dtype),
        qk.QParams(np.ones((2, 4)), dtype=dtype, axis=0, block_size=2, narrow_range=True),
    )


BLOCKS = qk.Codebook([1, 2, 3], axis=0, block_size=2)
STORED = {
    "codes": PACKED.to_arrays(),
    "blocks": narrow("int4").to_arrays(),
    "levels": qk.pack(np.zeros((4, 4), np.uint8), BLOCKS, scales=np.ones((2, 4))).to_arrays(),
    "weights": qk.pack(np.ones((4, 4), np.float16), None).to_arrays(),
}


@pytest.mark.parametrize("kind", STORED)
def test_from_arrays_needs_each_array(kind):
    for name in STORED[kind].keys() - {"shape", "levels", "weights"}:
        arrays = {key: value for key, value in STORED[kind].items() if key != name}
        with pytest.raises(ValueError, match=f"arrays must hold .*got no .*{name}"):
            qk.PackedMatrix.from_arrays(arrays)
    for arrays in {}, {"levels": np.ones(3)}, {"shape": np.array([4, 4])}:
        with pytest.raises(ValueError, match="arrays must hold .*got no .*codes"):
            qk.PackedMatrix.from_arrays(arrays)
    for arrays in None, 5, [1], "codes":
        with pytest.raises(TypeError, match="arrays must be a mapping"):
            qk.PackedMatrix.from_arrays(arrays)


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        (kind, name, value, error)
        for kind, names in [
            ("blocks", "codes shape signed block_size scale zero_point qmin"),
            ("levels", "codes shape levels block_size scales"),
            ("codes", "codes scale zero_point qmin"),
            ("weights", "weights"),
        ]
        for name in names.split()
        for value, error in [
            (None, TypeError),
            ("x", TypeError),
            (np.ones(3, complex), TypeError),
            (10**400, TypeError),
            ([[1], [2, 3]], (TypeError, ValueError)),
            (np.array([object()]), TypeError),
            (np.zeros((1, 2, 3), np.float32), (TypeError, ValueError)),
            (np.zeros((1, 2, 3), np.int64), (TypeError, ValueError)),
            (np.array(np.nan), (TypeError, ValueError)),
            (np.zeros((1, 2, 3), np.uint8), (TypeError, ValueError)),
        ]
    ]
    + [
        ("blocks", "shape", [4.9, 4], TypeError),
        ("blocks", "shape", [-4, -4], ValueError),
        ("blocks", "shape", [4, 5], ValueError),
        ("blocks", "shape", [4], ValueError),
        ("blocks", "shape", np.uint64([2**63, 4]), ValueError),
        ("levels", "shape", [4.0, 4.0], TypeError),
        ("levels", "shape", [2**62, 2**62], ValueError),
        ("blocks", "qmin", -7.9, TypeError),
        ("codes", "qmin", -127.9, TypeError),
        ("codes", "qmin", [-127], ValueError),
        ("codes", "qmin", True, TypeError),
        ("blocks", "qmin", -9, ValueError),
        ("blocks", "codes", np.full(8, 0x88, np.uint8), ValueError),
        ("blocks", "codes", np.full(8, 0x77, np.int8), TypeError),
        ("blocks", "signed", 1.0, TypeError),
        ("blocks", "signed", [True], ValueError),
        ("blocks", "block_size", 2.0, TypeError),
        ("blocks", "block_size", -1, ValueError),
        ("blocks", "block_size", 3.5, TypeError),
        ("blocks", "block_size", 0, ValueError),
        ("blocks", "zero_point", 0.0, TypeError),
        ("blocks", "zero_point", -8, ValueError),
        ("blocks", "zero_point", [0, 0], ValueError),
        ("blocks", "scale", [1.0, 2.0], ValueError),
        ("blocks", "scale", np.zeros((2, 4)), ValueError),
        ("levels", "block_size", 0, ValueError),
        ("levels", "codes", np.full(8, 0x33, np.uint8), ValueError),
        ("levels", "scales", np.full((2, 4), np.inf), ValueError),
        ("levels", "levels", np.ones(17), ValueError),
        ("weights", "weights", np.full((2, 2), np.nan, np.float16), ValueError),
    ],
)
def test_from_arrays_checks_each_array(kind, name, value, error):
    with pytest.raises(error, match=rf"\b({name}|levels|b|scales?|data|zero_point)\b"):
        qk.PackedMatrix.from_arrays({**STORED[kind], name: value})


def test_codes_below_a_narrow_range_are_refused():
    for dtype in "int8", "uint8", "int16", "int4", "uint4":
        info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype))
        b, params = np.full((3, 5), info.min, info.dtype), qk.QParams(1, 1, dtype, narrow_range=True)
        with pytest.raises(
            ValueError, match=f"b must hold codes from {info.min + 1} on, as params have a narrow range, got {info.min}"
        ):
            qk.pack(b, params)
        arrays = qk.pack(b, qk.QParams(1, 1, dtype)).to_arrays() | {"qmin": np.array(info.min + 1)}
        with pytest.raises(ValueError, match=f"got {info.min}"):
            qk.PackedMatrix.from_arrays(arrays)


every_call = pytest.mark.parametrize("name", CALLS)


@every_call
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda out: out.tolist(), TypeError, "out must be an array whose memory can be written, got a list"),
        (lambda out: out.astype(np.int64), TypeError, "out must have dtype .*, got int64"),
        (
            lambda out: out.astype(out.dtype.newbyteorder()) if out.itemsize > 1 else out.astype(np.uint16),
            TypeError,
            "out must have dtype",
        ),
        (lambda out: out.T, ValueError, r"out must have shape \(2, 4\), got \(4, 2\)"),
        (lambda out: out[0], ValueError, r"out must have shape \(2, 4\), got \(4,\)"),
        (read_only, ValueError, "out must be writeable, got a read-only array"),
        (np.asfortranarray, ValueError, "out must be C-contiguous"),
        (lambda out: np.repeat(out, 2, 1)[:, ::2], ValueError, "out must be C-contiguous"),
    ],
)
def test_bad_out(name, change, error, message):
    function, arguments, dtype = CALLS[name]
    out = change(np.full((2, 4), 77, dtype))
    with pytest.raises(error, match=message):
        function(**arguments, out=out)
    assert (np.array(out) == 77).all()


def overlapping(x, shape, dtype, offset):
    """A copy of x and an `out` that begins `offset` bytes after the copy's begin."""
    memory = np.full(4096, 77, np.uint8)
    copy = memory[64 : 64 + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return copy, memory[64 + offset : 64 + offset + size].view(dtype).reshape(shape)


@pytest.mark.parametrize(
    ("name", "argument", "x"),
    [
        ("matmul", "a", A),
        ("matmul", "b", B),
        ("matmul", "a_zero_point", np.ones(2, np.int32)),
        ("linear", "x", X),
        ("linear", "bias", np.ones(4, np.float32)),
        ("qlinear", "q", A),
        ("qlinear", "bias", np.ones(4, np.int32)),
        ("qlinear", "bias", np.ones(4, np.float32)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_out_must_not_overlap_input(name, argument, x, transposed):
    function, arguments, dtype = CALLS[name]
    arguments = dict(arguments)
    for offset in (0, 4):
        copy, out = overlapping(x.T if transposed else x, (2, 4), dtype, offset)
        before = out.tobytes()
        arguments[argument] = copy.T if transposed else copy
        with pytest.raises(ValueError, match=f"out must not overlap {argument}"):
            function(**arguments, out=out)
        assert out.tobytes() == before
    copy, out = overlapping(x, (2, 4), dtype, -(-x.nbytes // 4) * 4)
    arguments[argument] = copy
    assert function(**arguments, out=out) is out


def test_linear_leaves_out_alone_where_the_last_of_many_rows_is_not_finite(variants):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1500, 257)).astype(np.float32)
    x[-1, 100:103] = np.nan
    packed = qk.pack(random_codes(rng, (257, 67), "int8"), qk.QParams(0.1))
    for variant in variants():
        out = np.full((1500, 67), 77, np.float32)
        with pytest.raises(ValueError, match=r"x has 3 NaN or infinite values, the first at \(1499, 100\)"):
            qk.linear(x, packed, out=out)
        assert (out == 77).all(), variant


# ---- fork ----

FORK = """
import multiprocessing, os, signal, sys, threading
import numpy as np
import qkernels as qk

rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, (400, 300), np.uint8), rng.integers(-128, 128, (300, 400), np.int8)
want = a.astype(np.int32) @ b.astype(np.int32)
qk.set_num_threads(2)

def right(*_):
    return bool((qk.matmul(a, b) == want).all())

def forked():
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if right() and right() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

if sys.argv[1] == "fork":
    assert right()
    assert all(forked() and right() for _ in range(3))
elif sys.argv[1] == "pool":
    assert right()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(right, range(4)) == [True] * 4
    assert right()
else:
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert right()
    other = threading.Thread(target=work)
    other.start()
    answers = [forked() for _ in range(20)]
    stop.set()
    other.join()
    assert all(answers)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", ["fork", "pool", "fork while another thread multiplies"])
def test_threads_after_fork(how):
    """libgomp's threads do not live on in a child: a child that waited for them would wait for ever."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, how], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "done\n", result.stderr
