"""8-bit weights with a scale for each block of rows, against NumPy: `linear` bit for bit by the formula of docs/numerics.md,
section 12, on every instruction set, at 1, 2 and 3 threads; and GGUF's blocks on their way into a product."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from test_gemm4 import LAYOUTS, linear_by_numpy

import qkernels as qk

RANGE = {"int8": (-128, 127), "uint8": (0, 255)}
every_dtype = pytest.mark.parametrize("dtype", list(RANGE))


def random_codes(rng, shape, dtype):
    """Codes, a third of which are at the ends of the range."""
    low, high = RANGE[dtype]
    return np.where(
        rng.random(shape) < 1 / 3, rng.choice([low, high], shape), rng.integers(low, high + 1, shape)
    ).astype(dtype)


def random_params(rng, k, n, dtype, block_size, zeros="none", half=False):
    """Zero points: none (of uint8: 128, the middle), one for all blocks, or one for each."""
    low, high = RANGE[dtype]
    shape = -(-k // block_size), n
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float16 if half else np.float32)
    zero_point = {"none": np.full(shape, 0 if low else 128), "one": np.full(shape, rng.integers(low, high + 1)),
                  "own": rng.integers(low, high + 1, shape)}[zeros]  # fmt: skip
    return qk.QParams(scale, zero_point, dtype, axis=0, block_size=block_size)


def random_x(rng, *shape):
    return rng.normal(0, 1, shape).astype(np.float32)


@st.composite
def layers(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = st.one_of(st.integers(0, 200), st.sampled_from([0, 1, 31, 32, 33, 64, 128, 200]))
    k, n, dtype = draw(sizes), draw(sizes), draw(st.sampled_from(list(RANGE)))
    rows = draw(
        st.one_of(st.integers(0, 40).map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 9)))
    )
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    block_size = draw(st.sampled_from([32, 64, 128, 8, 16, 256, 1, 5, 20, 33]))
    params = random_params(
        rng, k, n, dtype, block_size, draw(st.sampled_from(["none", "one", "own"])), draw(st.booleans())
    )
    bias = draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))
    return x, random_codes(rng, (k, n), dtype), params, bias


layouts = st.sampled_from(list(LAYOUTS.values()))


@settings(max_examples=150)
@given(layers(), layouts, layouts, st.sampled_from([None, "relu"]), st.booleans())
def test_linear(variants, layer, layout, layout_of_b, activation, with_out):
    x, b, params, bias = layer
    want = linear_by_numpy(x, b, params, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        packed = qk.pack(layout_of_b(b), params)
        out = np.full(want.shape, 77, np.float32) if with_out else None
        got = qk.linear(layout(x), packed, bias, activation=activation, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), b, err_msg=variant, strict=True)


@pytest.mark.parametrize("zeros", ["none", "own"])
@pytest.mark.parametrize("rows", range(1, 14))
def test_every_height_of_a_tile(rows, zeros, isas):
    rng = np.random.default_rng(0)
    for k, n, block_size in [(96, 64, 32), (70, 33, 32), (600, 40, 300)]:
        b, x = random_codes(rng, (k, n), "int8"), random_x(rng, rows, k)
        params = random_params(rng, k, n, "int8", block_size, zeros)
        want = linear_by_numpy(x, b, params)
        for isa in isas():
            assert_array_equal(qk.linear(x, qk.pack(b, params)), want, err_msg=isa, strict=True)


@every_dtype
@pytest.mark.parametrize("block_size", [32, 40, 255, 256, 1024])
def test_worst_cases(dtype, block_size, isas):
    """Every factor at an end of its range; sums of columns are int16 up to 255 rows."""
    (low, high), k, n = RANGE[dtype], 1000, 40
    for sign in (1, -1):
        x = np.full((5, k), 127.0 * sign, np.float32)
        for code, zero in [
            (low, low),
            (low, high),
            (high, low),
            (high, high),
            (high, 0),
            (low, 128 if low == 0 else 0),
        ]:
            params = random_params(np.random.default_rng(0), k, n, dtype, block_size)
            params = qk.QParams(params.scale, np.full(params.scale.shape, zero), dtype, axis=0, block_size=block_size)
            b = np.full((k, n), code, dtype)
            want = linear_by_numpy(x, b, params)
            for isa in isas():
                assert_array_equal(qk.linear(x, qk.pack(b, params)), want, err_msg=isa, strict=True)


@every_dtype
def test_longest_blocks(dtype, isas):
    """65,536 rows share a scale at most: two int16 hold the sum of their codes of x."""
    (low, high), k = RANGE[dtype], 65536
    for sign, zero_point in [(1, low), (-1, low), (1, high), (-1, high)]:
        x, b = np.full((2, k + 1), 127.0 * sign, np.float32), np.full((k + 1, 2), high + low - zero_point, dtype)
        params = qk.QParams([[0.1, 0.2]], [[zero_point, low]], dtype, axis=0, block_size=k + 1)
        want = linear_by_numpy(x[:, :k], b[:k], params)
        for isa in isas():
            assert_array_equal(qk.linear(x[:, :k], qk.pack(b[:k], params)), want, err_msg=isa, strict=True)
            with pytest.raises(ValueError, match="shared by 65537 rows, at most 65536 are possible"):
                qk.linear(x, qk.pack(b, params))


def test_activations_and_layers_large_enough_for_threads(variants):
    rng = np.random.default_rng(0)
    for m, k, n in [(301, 401, 203), (1, 2048, 2048), (1003, 129, 33), (8, 1024, 1024)]:
        x, b, bias = random_x(rng, m, k), random_codes(rng, (k, n), "int8"), random_x(rng, n)
        packed = qk.pack(b, random_params(rng, k, n, "int8", 32))
        for activation in [None, "gelu", "silu"]:
            first = None
            for variant in variants():
                y = qk.linear(x, packed, bias, activation=activation)
                first = y if first is None else first
                assert_array_equal(y, first, err_msg=variant, strict=True)
        assert_array_equal(qk.linear(x, packed, bias), linear_by_numpy(x, b, packed.params, bias), strict=True)


def test_scales_far_from_one_give_the_exact_product(isas):
    """Where float32 would overflow or vanish on the way (numerics 21)."""
    rng = np.random.default_rng(0)
    for zeros in ("none", "own"):
        b, params = random_codes(rng, (70, 40), "int8"), random_params(rng, 70, 40, "int8", 32, zeros)
        for of_x, of_w in [(1e-30, 1e37), (1e30, 1e-35), (1e-20, 1e22), (3e37, 1e-35)]:
            x = random_x(rng, 14, 70) * np.float32(of_x)
            far = qk.QParams(params.scale * np.float32(of_w), params.zero_point, axis=0, block_size=32)
            q, of_rows = qk.dynamic_quantize(x, "int8", axis=0)
            want = qk.dequantize(q, of_rows, dtype=np.float64) @ qk.dequantize(b, far, dtype=np.float64)
            first = None
            for isa in isas():
                y = qk.linear(x, qk.pack(b, far))
                first = y if first is None else first
                np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=isa)
                assert_array_equal(y, first, err_msg=isa)


@every_dtype
@pytest.mark.parametrize("symmetric", [True, False])
def test_near_the_float_product(dtype, symmetric):
    """The error is that of half a step of x in each factor."""
    rng = np.random.default_rng(0)
    x, w = random_x(rng, 50, 384), rng.normal(0.01, 0.05, (384, 200)).astype(np.float32)
    params = qk.choose_qparams(w, dtype, axis=0, block_size=32, symmetric=symmetric)
    codes = qk.quantize(w, params)
    real = qk.dequantize(codes, params).astype(np.float64)
    y = qk.linear(x, qk.pack(codes, params))
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(y - x.astype(np.float64) @ real) <= step / 2 * np.abs(real).sum(0) * 1.001).all()
    assert np.corrcoef(y.ravel(), (x.astype(np.float64) @ w).ravel())[0, 1] > 0.9999


def test_rows_of_zeros_give_the_bias_itself(isas):
    rng = np.random.default_rng(0)
    bias, b = random_x(rng, 40), random_codes(rng, (100, 40), "uint8")
    for isa in isas():
        for zeros in ("none", "own"):
            packed = qk.pack(b, random_params(rng, 100, 40, "uint8", 32, zeros))
            assert_array_equal(
                qk.linear(np.zeros((13, 100), np.float32), packed, bias), np.tile(bias, (13, 1)), err_msg=isa
            )


def test_packed_under_one_instruction_set_and_used_under_another(isas):
    rng = np.random.default_rng(0)
    x, b, params = (
        random_x(rng, 9, 131),
        random_codes(rng, (131, 67), "uint8"),
        random_params(rng, 131, 67, "uint8", 32, "own"),
    )
    packed = {isa: qk.pack(b, params) for isa in isas()}
    want = linear_by_numpy(x, b, params)
    for isa in isas():
        for origin, matrix in packed.items():
            assert_array_equal(qk.linear(x, matrix), want, err_msg=f"{origin}, {isa}", strict=True)


# ---- PackedMatrix ----


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_gives_back_what_it_was_made_of(dtype, layout, isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        b, x = random_codes(rng, (k, n), dtype), random_x(rng, 4, k)
        for block_size, zeros in [(32, "none"), (20, "own"), (300, "one")]:
            params = random_params(rng, k, n, dtype, block_size, zeros, half=zeros == "own")
            for isa in isas():
                packed = qk.pack(LAYOUTS[layout](b), params)
                arrays = packed.to_arrays()
                assert all(type(value) is np.ndarray and value.dtype.isbuiltin == 1 for value in arrays.values())
                for same in (packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays)):
                    assert same.shape == (k, n) and same.dtype == dtype and same.params == params
                    assert_array_equal(same.unpack(), b, err_msg=isa, strict=True)
                    assert_array_equal(qk.linear(x, same), qk.linear(x, packed), err_msg=isa, strict=True)


def test_axes_from_the_end_and_narrow_ranges_are_kept():
    params = qk.QParams(np.ones((2, 3)), axis=-2, block_size=32, narrow_range=True)
    packed = qk.pack(np.ones((64, 3), np.int8), params)
    assert packed.params == qk.QParams(np.ones((2, 3)), axis=0, block_size=32, narrow_range=True)
    assert qk.PackedMatrix.from_arrays(packed.to_arrays()).params == packed.params
    assert repr(packed) == f"PackedMatrix(shape=(64, 3), params={packed.params})" and "block_size=32" in repr(packed)


@pytest.mark.parametrize(("block_size", "half", "zeros", "most"),
                         [(32, False, "none", 9.5), (32, True, "none", 9), (32, True, "own", 9.25), (128, False, "none", 8.4), (1024, False, "none", 8.07)])  # fmt: skip
def test_bytes(block_size, half, zeros, most):
    """Bits of a weight: 8, a scale, a sum of the column, of more than 255 rows in 4 bytes, and a zero point."""
    rng = np.random.default_rng(0)
    for k, n in [(1024, 1536), (1024, 1024)]:
        packed = qk.pack(random_codes(rng, (k, n), "int8"), random_params(rng, k, n, "int8", block_size, zeros, half))
        assert 8 * k * n < 8 * packed.nbytes <= most * k * n


# ---- errors ----


def test_products_with_one_integer_sum_refuse_them():
    b, params = np.zeros((64, 3), np.uint8), qk.QParams(np.ones((2, 3)), dtype="uint8", axis=0, block_size=32)
    packed, x = qk.pack(b, params), np.zeros((2, 64), np.uint8)
    what = "weights with one scale a column, got uint8 with a scale for each block of rows: such weights are for linear"
    with pytest.raises(TypeError, match=what):
        qk.matmul(x, packed)
    for rounding in ("half_even", "tflite"):
        with pytest.raises(TypeError, match=what):
            qk.qlinear(x, qk.QParams(1, 0, "uint8"), packed, qk.QParams(1, 0, "uint8"), rounding=rounding)


def test_errors_name_what_was_wrong():
    b, params = np.zeros((64, 3), np.int8), qk.QParams(np.ones((2, 3)), axis=0, block_size=32)
    for args, error, text in [
        ((b.astype(np.uint8), params), TypeError, r"b must have dtype int8 \(as params\), got uint8"),
        ((b[:, :2], params), ValueError, r"scale must have shape \(2, 2\)"),
        ((b[:32], params), ValueError, r"scale must have shape \(1, 3\)"),
        (
            (b, qk.QParams(np.ones((64, 1)), axis=1, block_size=3)),
            ValueError,
            "per block of rows .*got axis=1, block_size=3",
        ),
        ((b, qk.QParams(np.ones(64), axis=0)), ValueError, "got axis=0, block_size=None"),
    ]:
        with pytest.raises(error, match=text):
            qk.pack(*args)
    arrays = qk.pack(b, params).to_arrays()
    with pytest.raises(ValueError, match="block_size must be at least 0, got -1"):
        qk.PackedMatrix.from_arrays(arrays | {"block_size": np.array(-1)})


def test_an_error_leaves_out_untouched():
    packed = qk.pack(np.ones((64, 3), np.int8), qk.QParams(np.ones((2, 3)), axis=0, block_size=32))
    x, out = np.ones((20, 64), np.float32), np.full((20, 3), 7, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[19, 63] = bad
        with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(19, 63\)"):
            qk.linear(wrong, packed, out=out)
    assert (out == 7).all()


# ---- GGUF's blocks ----

BYTES = {"Q8_0": 34, "Q4_0": 18}
every_kind = pytest.mark.parametrize("kind", list(BYTES))


def hostile_blocks(kind, *shape):
    """Blocks of any bytes, also with scales that are 0, subnormal in float16, and negative."""
    data = np.random.default_rng(1).integers(0, 256, (*shape[:-1], shape[-1] * BYTES[kind]), np.uint8)
    blocks = data.reshape(-1, BYTES[kind])
    blocks[:, 1] &= 0xBF  # no infinite or NaN scales
    for i, d in enumerate((0x0000, 0x8000, 0x0001, 0x8001, 0x83FF)):
        blocks[i::11, :2] = d & 255, d >> 8
    blocks[::3, 2:4] = 0x80  # the lowest code of Q8_0, whose negative int8 does not have
    return data


@every_kind
def test_gguf_codes_are_its_values(kind):
    for shape in [(7, 5), (24, 11), (5,), (2, 3, 4), (1, 1), (0, 2), (3, 0)]:
        data = hostile_blocks(kind, *shape)
        values = qk.from_gguf(data, kind)
        codes, params = qk.from_gguf(data, kind, codes=True)
        turned = values.swapaxes(-1, -2) if values.ndim > 1 else values
        assert codes.shape == turned.shape and codes.dtype == params.dtype == ("int8" if kind == "Q8_0" else "uint4")
        got = qk.dequantize(codes, params)
        assert_array_equal(got.view(np.int32), (turned + np.float32(0)).view(np.int32))  # -0.0 + 0 is 0
        assert (params.scale == np.float16(params.scale)).all()


@every_kind
def test_gguf_goes_straight_into_a_product(kind, isas):
    data = hostile_blocks(kind, 70, 6)
    values = qk.from_gguf(data, kind).T
    x = random_x(np.random.default_rng(2), 13, 192)
    q, of_rows = qk.dynamic_quantize(x, "int8", axis=0)
    want = qk.dequantize(q, of_rows).astype(np.float64) @ values.astype(np.float64)
    for isa in isas():
        codes, params = qk.from_gguf(data, kind, codes=True)
        packed = qk.pack(codes, params)
        assert packed.params == params
        assert_array_equal(qk.dequantize(packed.unpack(), packed.params), values, err_msg=isa)
        y = qk.linear(x, packed)
        assert_array_equal(y, linear_by_numpy(x, codes, params), err_msg=isa, strict=True)
        size = np.abs(x).max(1, keepdims=True) * np.abs(values.astype(np.float64)).sum(0)
        assert (np.abs(y - want) <= 1e-6 * size).all(), isa


@every_kind
def test_gguf_codes_of_real_weights(kind):
    """Written by to_gguf; Q8_0 then has no zero points, and the float16 scales are kept as they are."""
    w = random_x(np.random.default_rng(0), 96, 256)
    w[3] = 0
    data = qk.to_gguf(w, kind)
    codes, params = qk.from_gguf(data, kind, codes=True)
    assert_array_equal(qk.dequantize(codes, params), qk.from_gguf(data, kind).T)
    if kind == "Q8_0":
        assert not params.zero_point.any() and qk.pack(codes, params).nbytes == 9 * w.size // 8
    else:
        assert set(params.zero_point.ravel()) == {7, 8} and qk.pack(codes, params).nbytes == 4.75 * w.size // 8


@every_kind
def test_gguf_codes_refuse_scales_that_no_params_have(kind):
    data = hostile_blocks(kind, 4, 3)
    for high in (0x7C, 0xFC, 0x7E):
        data.reshape(4, 3, -1)[2, 1, :2] = 0, high
        with pytest.raises(
            ValueError, match=r"data has 1 blocks whose scale is NaN or infinite, the first at \(2, 1\)"
        ):
            qk.from_gguf(data, kind, codes=True)
    with pytest.raises(ValueError, match="out must be None with codes, got ndarray"):
        qk.from_gguf(data, kind, codes=True, out=np.empty((4, 96), np.float32))
    with pytest.raises(TypeError, match="codes must be True or False, got 1"):
        qk.from_gguf(data, kind, codes=1)
