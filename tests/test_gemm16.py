"""Weights of 16 bits: float16, bfloat16 and int16 in `linear`, bit for bit by the formulas of docs/numerics.md, sections 16 and 17,
and int16 in `matmul`, exactly; on every instruction set, at 1, 2 and 3 threads."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import fused, read_only, unaligned
from numpy.testing import assert_array_equal

import qkernels as qk

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def linear_by_numpy(x, w, bias=None):
    """numerics 16, one multiply-add after the other; before the activation."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y, wide = np.zeros((len(rows), w.shape[1]), np.float32), w.astype(np.float32)
    for k in range(len(w)):
        y = fused(np.broadcast_to(rows[:, k, None], y.shape), np.broadcast_to(wide[k], y.shape), y)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], w.shape[1])


def every_finite(dtype):
    bits = np.arange(65536, dtype=np.uint16)
    return bits[bits & 0x7FFF < (0x7C00 if dtype == np.float16 else 0x7F80)].view(dtype)


@np.errstate(all="ignore")
def random_weights(rng, shape, dtype):
    """Normal ones, and a tenth of any finite bits that leave sums finite: subnormal numbers among them."""
    w, some = rng.normal(0, 1, shape), every_finite(dtype)
    some = some[np.abs(some.astype(np.float32)) < 2**15]
    return np.where(rng.random(shape) < 0.1, rng.choice(some, shape).astype(np.float64), w).astype(dtype)


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": lambda x: np.ascontiguousarray(x.T).T,
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :] if x.ndim > 1 else x,
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()) if x.dtype != HALVES[1] else x,
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
layouts = st.sampled_from(list(LAYOUTS.values()))
sizes = st.one_of(
    st.integers(0, 150), st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 128, 129, 160])
)
shapes_of_rows = st.one_of(
    st.integers(0, 40).map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 9))
)


@st.composite
def layers(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n, rows = draw(sizes), draw(sizes), draw(shapes_of_rows)
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    bias = draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))
    return x, random_weights(rng, (k, n), draw(st.sampled_from(HALVES))), bias


@settings(max_examples=100)
@given(layers(), layouts, layouts, st.sampled_from([None, "relu"]), st.booleans())
def test_linear(variants, layer, layout, layout_of_w, activation, with_out):
    x, w, bias = layer
    want = linear_by_numpy(x, w, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        packed = qk.pack(layout_of_w(w), None)
        out = np.full(want.shape, 77, np.float32) if with_out else None
        got = qk.linear(layout(x), packed, bias, activation=activation, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), w, err_msg=variant, strict=True)


@every_half
def test_each_finite_weight(dtype, isas):
    """All 65,536 bit patterns but NaN and infinity, subnormal numbers and zeros of both signs included, are widened exactly."""
    values = every_finite(dtype)
    for shape in [(1, -1), (8, -1)]:  # in rows of a panel and in all places of it
        w = values.reshape(shape)
        for rows in (1, 2, 13):
            x = np.zeros((rows, len(w)), np.float32)
            for k in range(len(w)):
                x[:, :], x[:, k] = 0, 1
                for isa in isas():
                    y = qk.linear(x, qk.pack(w, None))
                    assert_array_equal(y, np.broadcast_to(w[k].astype(np.float32), y.shape), err_msg=isa, strict=True)


@every_half
def test_activations_and_layers_large_enough_for_threads(dtype, variants):
    rng = np.random.default_rng(0)
    for m, k, n in [(101, 401, 203), (1, 512, 2048), (503, 65, 33), (8, 256, 1024)]:
        x, w = rng.normal(0, 1, (m, k)).astype(np.float32), random_weights(rng, (k, n), dtype)
        bias, packed = rng.normal(0, 1, n).astype(np.float32), qk.pack(w, None)
        plain = linear_by_numpy(x, w, bias)
        # 8-bit products have the same activations: where their sums are 0, they give those of the bias.
        eight = qk.pack(np.zeros((1, m * n), np.int8), qk.QParams(1))
        for activation in [None, "gelu", "silu"]:
            want = qk.linear(np.zeros((1, 1), np.float32), eight, plain.ravel(), activation=activation).reshape(m, n)
            for variant in variants():
                assert_array_equal(
                    qk.linear(x, packed, bias, activation=activation), want, err_msg=variant, strict=True
                )


@every_half
def test_near_the_exact_product(dtype):
    """Within the bound of numerics 16. x of another type is used as float32."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), random_weights(rng, (384, 200), dtype)
    packed, real = qk.pack(w, None), w.astype(np.float64)
    bound = 384 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(real)) * 1.001
    assert (np.abs(qk.linear(x, packed) - x.astype(np.float64) @ real) <= bound).all()
    for other in (np.float64, np.float16, ml_dtypes.bfloat16):
        assert_array_equal(
            qk.linear(x.astype(other), packed), qk.linear(x.astype(other).astype(np.float32), packed), strict=True
        )


def test_sums_beyond_float32_are_infinite(isas):
    """As in float32 arithmetic; nothing is refused."""
    packed = qk.pack(np.full((2, 33), 2.0**127, ml_dtypes.bfloat16), None)
    for isa in isas():
        y = qk.linear(np.float32([[2, 0], [1, -1], [1, 1], [-2, 0]]), packed)
        assert_array_equal(
            y, np.repeat(np.float32([[np.inf], [0], [np.inf], [-np.inf]]), 33, 1), err_msg=isa, strict=True
        )


def test_packed_under_one_instruction_set_and_used_under_another(isas):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (9, 131)).astype(np.float32)
    for dtype in HALVES:
        w = random_weights(rng, (131, 67), dtype)
        packed = {isa: qk.pack(w, None) for isa in isas()}
        want = linear_by_numpy(x, w)
        for isa in isas():
            for origin, matrix in packed.items():
                assert_array_equal(qk.linear(x, matrix), want, err_msg=f"{origin}, {isa}", strict=True)


# ---- PackedMatrix ----


@every_half
@every_layout
def test_packed_gives_back_what_it_was_made_of(dtype, layout, isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        w, x = random_weights(rng, (k, n), dtype), rng.normal(0, 1, (4, k)).astype(np.float32)
        for isa in isas():
            packed = qk.pack(LAYOUTS[layout](w), None)
            arrays = packed.to_arrays()
            assert all(type(value) is np.ndarray and value.dtype.isbuiltin == 1 for value in arrays.values())
            for same in (packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays)):
                assert same.shape == (k, n) and same.params is None and same.dtype == dtype
                assert repr(same) == f"PackedMatrix(shape=({k}, {n}), dtype='{dtype}')"
                assert_array_equal(same.unpack().view(np.uint16), w.view(np.uint16), err_msg=isa, strict=True)
                assert_array_equal(qk.linear(x, same), qk.linear(x, packed), err_msg=isa, strict=True)


@every_half
def test_bytes(dtype):
    for k, n in [(384, 1536), (1536, 384), (7, 32)]:
        assert qk.pack(np.zeros((k, n), dtype), None).nbytes == 2 * k * n


# ---- errors ----


@every_half
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_weights_that_are_not_finite(dtype, bad, isas):
    for k, n in [(1, 1), (70, 40), (33, 64)]:
        for place in [(0, 0), (k - 1, n - 1), (k // 2, n // 2)]:
            w = np.ones((k, n), dtype)
            w[place] = bad
            for b in (w, np.asfortranarray(w)):
                for _ in isas():
                    with pytest.raises(
                        ValueError, match=rf"b has 1 NaN or infinite values, the first at \({place[0]}, {place[1]}\)"
                    ):
                        qk.pack(b, None)


def test_errors_name_what_was_wrong():
    w = np.ones((4, 3), np.float16)
    for args, error, text in [
        ((w, qk.QParams(1)), TypeError, "params must be None for weights of float16, got QParams"),
        (
            (w.astype(ml_dtypes.bfloat16), qk.QParams(1)),
            TypeError,
            "params must be None for weights of bfloat16, got QParams",
        ),
        ((w.astype(np.float32), None), TypeError, "b must be float16 or bfloat16 where params is None, got float32"),
        ((w.astype(np.int8), None), TypeError, "b must be float16 or bfloat16 where params is None, got int8"),
        ((w[0], None), ValueError, r"b must have shape \(K, N\), got \(3,\)"),
        ((w[None], None), ValueError, r"b must have shape \(K, N\), got \(1, 4, 3\)"),
    ]:
        with pytest.raises(error, match=text):
            qk.pack(*args)
    for packed in (qk.pack(w, None), qk.pack(w.astype(ml_dtypes.bfloat16), None)):
        with pytest.raises(
            TypeError, match=f"b must hold 8-bit weights, got {packed.dtype}: such weights are for linear"
        ):
            qk.matmul(np.zeros((2, 4), np.uint8), packed)
        with pytest.raises(
            TypeError, match=f"packed must hold 8-bit weights, got {packed.dtype}: such weights are for linear"
        ):
            qk.qlinear(np.zeros((2, 4), np.uint8), qk.QParams(1, 0, "uint8"), packed, qk.QParams(1, 0, "uint8"))
    with pytest.raises(TypeError, match="weights must be float16 or uint16, got float32"):
        qk.PackedMatrix.from_arrays({"weights": w.astype(np.float32)})


@every_half
def test_an_error_leaves_out_untouched(dtype, isas):
    packed = qk.pack(np.ones((64, 3), dtype), None)
    x, out = np.ones((20, 64), np.float32), np.full((20, 3), 7, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[19, 63] = bad
        for _ in isas():
            with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(19, 63\)"):
                qk.linear(wrong, packed, out=out)
            with pytest.raises(ValueError, match="x has 1 NaN"):
                qk.linear(wrong, packed)
    for kwargs, error in [
        ({"x": x[:, :63]}, ValueError),
        ({"bias": np.ones(4)}, ValueError),
        ({"activation": "tanh"}, ValueError),
        ({"bias": np.ones(3, int)}, TypeError),
        ({"x": x.astype(int)}, TypeError),
    ]:
        with pytest.raises(error):
            qk.linear(**{"x": x, "packed": packed, "out": out, **kwargs})
    with pytest.raises(ValueError, match="out must not overlap x"):
        qk.linear(x[:, :64], packed, out=x.reshape(-1)[:60].reshape(20, 3))
    assert (out == 7).all()


# ---- int16 products ----

OTHERS = ["int16", "int8", "uint8"]
PAIRS = [("int16", other) for other in OTHERS] + [(other, "int16") for other in OTHERS[1:]]
LARGEST = {"int8": 128, "uint8": 255, "int16": 2**15}


def random_codes(rng, shape, dtype, largest):
    """Codes of at most that magnitude, a third of them at the ends of the range."""
    info = np.iinfo(dtype)
    low, high = max(info.min, -largest), min(info.max, largest)
    return np.where(
        rng.random(shape) < 1 / 3, rng.choice([low, high], shape), rng.integers(low, high + 1, shape)
    ).astype(dtype)


def exact(a, b, a_zero_point=0, b_zero_point=0):
    """In integers of any size where int64 would not do."""
    left = a.astype(np.int64) - np.asarray(a_zero_point, np.int64)[..., None]
    return left @ (b.astype(np.int64) - b_zero_point)


@st.composite
def products(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, k, n, (a_dtype, b_dtype) = draw(shapes_of_rows), draw(sizes), draw(sizes), draw(st.sampled_from(PAIRS))
    magnitudes = st.sampled_from([0, 1, 100, 2048, 5792, 11585, 16383, 32767, 32768])
    a = random_codes(rng, (*rows, k), a_dtype, draw(magnitudes))
    b = random_codes(rng, (k, n), b_dtype, draw(magnitudes))
    zeros = {}
    for name, codes, shape in ("a_zero_point", a, a.shape[:-1]), ("b_zero_point", b, (n,)):
        info = np.iinfo(codes.dtype)
        choice = draw(st.integers(0, 3))
        if choice:
            zeros[name] = rng.integers(info.min, info.max + 1, shape if choice > 1 else ())
    return a, b, zeros


@settings(max_examples=150)
@given(products(), layouts, layouts, st.booleans(), st.booleans())
def test_matmul(variants, product, layout, layout_of_b, packed, with_out):
    a, b, zeros = product
    want = exact(a, b, **zeros)
    for variant in variants():
        right = layout_of_b(b)
        if packed and b.dtype == np.int16:
            right = qk.pack(right, qk.QParams(1, dtype="int16"))
            assert_array_equal(right.unpack(), b, err_msg=variant, strict=True)
        out = np.full(want.shape, 77, np.int64) if with_out else None
        got = qk.matmul(layout(a), right, **zeros, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


@every_layout
def test_matmul_of_int16_in_each_layout(layout):
    rng = np.random.default_rng(5)
    a, b = random_codes(rng, (5, 7), "int16", 32768), random_codes(rng, (7, 9), "int16", 32768)
    assert_array_equal(qk.matmul(LAYOUTS[layout](a), LAYOUTS[layout](b)), exact(a, b))


@pytest.mark.parametrize("k", [1, 2, 3, 255, 256, 257, 510, 511, 512, 1023, 70_000])
def test_int16_worst_cases(k, isas):
    """Every code at an end of the range, where a sum of 32 bits would overflow first; object arrays have integers of any size."""
    ends = [-32768, -32767, 32767]
    for left in ends:
        for right in ends:
            a, b = np.full((3, k), left, np.int16), np.full((k, 17), right, np.int16)
            for zeros in ({}, {"a_zero_point": 32767, "b_zero_point": np.full(17, -32768)}):
                one = k * (left - zeros.get("a_zero_point", 0)) * (right - (-32768 if zeros else 0))
                want = np.full((3, 17), one, object).astype(np.int64)
                for isa in isas():
                    assert_array_equal(qk.matmul(a, b, **zeros), want, err_msg=isa, strict=True)


def test_magnitudes_at_the_bounds_of_the_proof(isas):
    """s pairs of sums of the largest magnitude, exactly as many as fit int32, and one more."""
    for steps in (1, 2, 7, 8, 9, 16, 100, 255):
        for largest_b in (1, 127, 128, 4096, 32768):
            largest_a = (2**31 - 1) // (2 * steps * largest_b)
            for size in (largest_a, largest_a + 1):
                if size <= 32768:
                    for k in (2 * steps, 2 * steps + 1, 4 * steps + 3):
                        a, b = np.full((13, k), -size, np.int16), np.full((k, 3), -largest_b, np.int16)
                        for isa in isas():
                            assert (qk.matmul(a, b) == k * size * largest_b).all(), isa


def test_each_block_of_rows_has_its_own_bound(variants):
    """Small rows beside large ones, more than a block holds."""
    rng = np.random.default_rng(0)
    a = random_codes(rng, (1200, 300), "int16", 32768)
    a[300:700] >>= 8
    b = random_codes(rng, (300, 70), "int16", 32768)
    want = exact(a, b)
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)


def test_int16_packed_gives_back_what_it_was_made_of(isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        for layout in LAYOUTS.values():
            b, a = random_codes(rng, (k, n), "int16", 32768), random_codes(rng, (4, k), "int16", 32768)
            params = qk.QParams(rng.uniform(0.1, 1, n), rng.integers(-9, 9, n), "int16", axis=1)
            for isa in isas():
                packed = qk.pack(layout(b), params)
                for same in (
                    packed,
                    pickle.loads(pickle.dumps(packed)),
                    qk.PackedMatrix.from_arrays(packed.to_arrays()),
                ):
                    assert same.shape == (k, n) and same.params == params and same.dtype == np.int16
                    assert_array_equal(same.unpack(), b, err_msg=isa, strict=True)
                    assert_array_equal(qk.matmul(a, same), exact(a, b), err_msg=isa, strict=True)
    assert (
        2 * 1024 * 1024
        <= qk.pack(np.zeros((1024, 1024), np.int16), qk.QParams(1, dtype="int16")).nbytes
        <= 2.02 * 1024 * 1024
    )


def test_int16_packed_under_one_instruction_set_and_used_under_another(isas):
    rng = np.random.default_rng(0)
    a, b = (random_codes(rng, shape, "int16", 32768) for shape in ((9, 131), (131, 67)))
    packed = {isa: qk.pack(b, qk.QParams(1, dtype="int16")) for isa in isas()}
    for isa in isas():
        for origin, matrix in packed.items():
            assert_array_equal(qk.matmul(a, matrix), exact(a, b), err_msg=f"{origin}, {isa}", strict=True)


A, B = np.ones((2, 4), np.int16), np.ones((4, 3), np.int16)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"a": A.astype(np.int32)}, TypeError, "a must be int16, int8 or uint8 where the other is int16, got int32"),
        ({"a": A.astype(np.uint16)}, TypeError, "a must be int16, int8 or uint8 .*got uint16"),
        ({"b": B.astype(np.float32)}, TypeError, "b must be int16, int8 or uint8 .*got float32"),
        ({"b": B[0]}, ValueError, r"b must have shape \(K, N\) where a or b is int16, got \(3,\)"),
        ({"b": B[:3]}, ValueError, r"a must have 3 columns to match b, got shape \(2, 4\)"),
        (
            {"b": qk.pack(B.astype(np.int8), qk.QParams(1))},
            TypeError,
            "b must be packed from int16 where a is int16, got a PackedMatrix of int8",
        ),
        (
            {"b": qk.pack(B.astype(np.float16), None)},
            TypeError,
            "b must be packed from int16 where a is int16, got a PackedMatrix of float16",
        ),
        ({"a_zero_point": 2**15}, ValueError, r"a_zero_point must be within \[-32768, 32767\] for int16, got 32768"),
        (
            {"a": A.astype(np.uint8), "a_zero_point": -1},
            ValueError,
            r"a_zero_point must be within \[0, 255\] for uint8",
        ),
        (
            {"b_zero_point": np.zeros(2, int)},
            ValueError,
            r"b_zero_point must be a scalar or have shape \(3,\), got \(2,\)",
        ),
        ({"b_zero_point": 1.0}, TypeError, "b_zero_point must be an integer"),
        ({"out": np.full((2, 3), 7, np.int32)}, TypeError, "out must have dtype int64, got int32"),
        ({"out": np.full((2, 2), 7, np.int64)}, ValueError, r"out must have shape \(2, 3\), got \(2, 2\)"),
    ],
)
def test_int16_errors(kwargs, error, text):
    out = kwargs.get("out", np.full((2, 3), 7, np.int64))
    with pytest.raises(error, match=text):
        qk.matmul(**{"a": A, "b": B, "out": out, **kwargs})
    assert (out == 7).all()


def test_int16_overlap_and_qlinear():
    memory = np.zeros(64, np.int16)
    a, out = memory[:8].reshape(2, 4), memory[4:28].view(np.int64).reshape(2, 3)
    with pytest.raises(ValueError, match="out must not overlap a"):
        qk.matmul(a, B, out=out)
    packed = qk.pack(B, qk.QParams(1, dtype="int16"))
    with pytest.raises(TypeError, match="packed must hold 8-bit weights, got int16: such weights are for linear"):
        qk.qlinear(np.zeros((2, 4), np.uint8), qk.QParams(1, 0, "uint8"), packed, qk.QParams(1, 0, "uint8"))


# ---- linear with int16 weights ----


def linear_of_codes(x, b, params, bias=None):
    """numerics 17; before the activation."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    q, of_rows = qk.dynamic_quantize(rows, "int16", axis=0)
    y = exact(q, b, 0, params.zero_point).astype(np.float32) * params.scale * of_rows.scale[:, None]
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], b.shape[1])


@st.composite
def layers_of_codes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n, rows = draw(sizes), draw(sizes), draw(shapes_of_rows)
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    b = random_codes(rng, (k, n), "int16", draw(st.sampled_from([1, 100, 2048, 32767, 32768])))
    shape = draw(st.sampled_from([(), (n,)]))
    zero_point = draw(st.sampled_from([None, rng.integers(-32768, 32768, shape)]))
    params = qk.QParams(rng.uniform(1e-5, 1e-4, shape), zero_point, "int16", axis=1 if shape else None)
    return x, b, params, draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))


@settings(max_examples=100)
@given(layers_of_codes(), layouts, layouts, st.sampled_from([None, "relu"]), st.booleans())
def test_linear_of_int16(variants, layer, layout, layout_of_b, activation, with_out):
    x, b, params, bias = layer
    want = linear_of_codes(x, b, params, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        out = np.full(want.shape, 77, np.float32) if with_out else None
        got = qk.linear(layout(x), qk.pack(layout_of_b(b), params), bias, activation=activation, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


def test_linear_of_int16_is_nearer_to_the_float_product_than_of_8_bits():
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), rng.normal(0, 0.05, (384, 200)).astype(np.float32)
    error = {}
    for dtype in ("int8", "int16"):
        params = qk.choose_qparams(w, dtype, axis=1)
        y = qk.linear(x, qk.pack(qk.quantize(w, params), params), activation="gelu")
        plain = qk.linear(x, qk.pack(qk.quantize(w, params), params))
        error[dtype] = np.abs(plain - x.astype(np.float64) @ w).max()
        assert np.abs(y - np.where(plain > 5, plain, y)).max() == 0  # gelu(x) = x there
    assert error["int16"] < error["int8"] / 100


def test_byte_swapped_int16(isas):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(2**15), 2**15, shape).astype(np.int16) for shape in ((3, 5), (5, 4)))
    want = a.astype(np.int64) @ b
    for isa in isas():
        for left, right in ((a, b.astype(">i2")), (a.astype(">i2"), b), (a.astype(">i2"), b.astype(">i2"))):
            assert_array_equal(qk.matmul(left, right), want, err_msg=isa)


def test_linear_of_int16_errors_leave_out_untouched(isas):
    packed = qk.pack(np.ones((64, 3), np.int16), qk.QParams(1, dtype="int16"))
    x, out = np.ones((20, 64), np.float32), np.full((20, 3), 7, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[19, 63] = bad
        for _ in isas():
            for kwargs in ({}, {"out": out}):
                with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(19, 63\)"):
                    qk.linear(wrong, packed, **kwargs)
    with pytest.raises(ValueError, match="x must have 64 columns"):
        qk.linear(x[:, :63], packed, out=out)
    assert (out == 7).all()
