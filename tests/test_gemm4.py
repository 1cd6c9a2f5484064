"""4-bit weights, numbers and codes of codebooks, against NumPy: `linear` bit for bit by the formula of docs/numerics.md,
section 12, on every instruction set, at 1, 2 and 3 threads."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import fused, unaligned
from numpy.testing import assert_array_equal

import qkernels as qk

DTYPES = ["int4", "uint4"]
RANGE = {"int4": (-8, 7), "uint4": (0, 15)}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def random_codes(rng, shape, dtype):
    """Codes, a third of which are at the ends of the range."""
    low, high = RANGE[dtype]
    codes = np.where(rng.random(shape) < 1 / 3, rng.choice([low, high], shape), rng.integers(low, high + 1, shape))
    return codes.astype(getattr(ml_dtypes, dtype))


def random_params(rng, k, n, dtype, block_size, asymmetric=True, half=False):
    """Per block; per column where block_size is "column", per tensor where it is None."""
    shape = {None: (), "column": (n,)}.get(block_size) if not isinstance(block_size, int) else (-(-k // block_size), n)
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float16 if half else np.float32)
    zero_point = rng.integers(*RANGE[dtype], shape, endpoint=True) if asymmetric else None
    if isinstance(block_size, int):
        return qk.QParams(scale, zero_point, dtype, axis=0, block_size=block_size)
    return qk.QParams(scale, zero_point, dtype, axis=1 if shape else None)


def blocks_of(params, k, n):
    """(begin, end, scale (n,), zero_point (n,)) of each block of rows."""
    size = params.block_size or max(k, 1)
    for i, begin in enumerate(range(0, k, size)):
        of_block = (params.scale[i], params.zero_point[i]) if params.block_size else (params.scale, params.zero_point)
        yield begin, min(begin + size, k), *(np.broadcast_to(v, (n,)) for v in of_block)


def linear_by_numpy(x, b, params, bias=None):
    """numerics 12, one operation after the other; before the activation."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    q, of_rows = qk.dynamic_quantize(rows, "int8", axis=0)
    y = np.zeros((len(rows), b.shape[1]), np.float32)
    for begin, end, scale, zero_point in blocks_of(params, *b.shape):
        sums = q[:, begin:end].astype(np.float64) @ (b[begin:end].astype(np.float64) - zero_point)
        y = fused(sums.astype(np.float32), np.broadcast_to(scale, y.shape), y)
    y = y * of_rows.scale[:, None]
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], b.shape[1])


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": lambda x: np.ascontiguousarray(x.T).T,
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :] if x.ndim > 1 else x,
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "unaligned": unaligned,
}
layouts = st.sampled_from(list(LAYOUTS.values()))
sizes = st.one_of(st.integers(0, 200), st.sampled_from([0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 128, 200]))
block_sizes = st.sampled_from([32, 64, 128, 8, 16, 256, 1, 5, 20, 33, "column", None])


@st.composite
def layers(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n, dtype = draw(sizes), draw(sizes), draw(st.sampled_from(DTYPES))
    rows = draw(
        st.one_of(st.integers(0, 40).map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 9)))
    )
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    params = random_params(rng, k, n, dtype, draw(block_sizes), draw(st.booleans()), draw(st.booleans()))
    bias = draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))
    return x, random_codes(rng, (k, n), dtype), params, bias


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


@every_dtype
@pytest.mark.parametrize("block_size", [32, 40, 128, 1024, "column"])
def test_worst_cases(dtype, block_size, isas):
    """Every factor at an end of its range, where a sum of 16 bits would be largest."""
    low, high = RANGE[dtype]
    k, n = 1000, 40
    for sign in (1, -1):
        x = np.full((5, k), 127.0 * sign, np.float32)
        for code, zero in [(low, low), (low, high), (high, low), (high, high), (high, 0), (low, 0)]:
            for own in (False, True):
                params = random_params(np.random.default_rng(0), k, n, dtype, block_size)
                zeros = np.full(params.scale.shape, zero)
                if own:
                    zeros.flat[::3] = low + high - zero
                params = qk.QParams(params.scale, zeros, dtype, axis=params.axis, block_size=params.block_size)
                b = np.full((k, n), code, getattr(ml_dtypes, dtype))
                want = linear_by_numpy(x, b, params)
                for isa in isas():
                    assert_array_equal(qk.linear(x, qk.pack(b, params)), want, err_msg=isa, strict=True)


@every_dtype
def test_long_blocks(dtype, isas):
    """65,536 rows are the most that AVX-512 sums two codes at once for."""
    rng = np.random.default_rng(0)
    for k in (65536, 65537, 70000):
        x = np.where(rng.random((2, k)) < 0.9, 127, -127).astype(np.float32)
        b = np.full((k, 3), RANGE[dtype][1], getattr(ml_dtypes, dtype))
        for zero_point in ([0, 0, 0], [0, 1, RANGE[dtype][0]]):
            params = qk.QParams(np.float32([0.1, 0.2, 0.3]), zero_point, dtype, axis=1)
            want = linear_by_numpy(x, b, params)
            for isa in isas():
                assert_array_equal(qk.linear(x, qk.pack(b, params)), want, err_msg=isa, strict=True)


def test_activations_and_layers_large_enough_for_threads(variants):
    rng = np.random.default_rng(0)
    for m, k, n in [(301, 401, 203), (1, 4096, 2048), (1003, 129, 33), (8, 1024, 1024)]:
        x, b = rng.normal(0, 1, (m, k)).astype(np.float32), random_codes(rng, (k, n), "int4")
        bias = rng.normal(0, 1, n).astype(np.float32)
        packed = qk.pack(b, random_params(rng, k, n, "int4", 32))
        for activation in [None, "gelu", "silu"]:
            first = None
            for variant in variants():
                y = qk.linear(x, packed, bias, activation=activation)
                first = y if first is None else first
                assert_array_equal(y, first, err_msg=variant, strict=True)
        plain = linear_by_numpy(x, b, packed.params, bias)
        assert_array_equal(qk.linear(x, packed, bias), plain, strict=True)
        # 8-bit products have the same activations: where their sums are 0, they give those of the bias.
        eight = qk.pack(np.zeros((1, m * n), np.int8), qk.QParams(1))
        assert_array_equal(
            qk.linear(np.zeros((1, 1), np.float32), eight, plain.ravel(), activation="silu")[0], first.ravel()
        )


@every_dtype
def test_near_the_float_product(dtype):
    """The error is that of half a step of x in each factor."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), rng.normal(0, 0.05, (384, 200)).astype(np.float32)
    params = qk.choose_qparams(w, dtype, axis=0, block_size=32)
    codes = qk.quantize(w, params)
    real = qk.dequantize(codes, params).astype(np.float64)
    y = qk.linear(x, qk.pack(codes, params))
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(y - x.astype(np.float64) @ real) <= step / 2 * np.abs(real).sum(0) * 1.001).all()
    assert np.corrcoef(y.ravel(), (x.astype(np.float64) @ w).ravel())[0, 1] > 0.99


def test_packed_under_one_instruction_set_and_used_under_another(isas):
    rng = np.random.default_rng(0)
    x, b = rng.normal(0, 1, (9, 131)).astype(np.float32), random_codes(rng, (131, 67), "uint4")
    params = random_params(rng, 131, 67, "uint4", 32)
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
        b, x = random_codes(rng, (k, n), dtype), rng.normal(0, 1, (4, k)).astype(np.float32)
        for block_size in (32, 20, "column", None):
            params = random_params(rng, k, n, dtype, block_size)
            for isa in isas():
                packed = qk.pack(LAYOUTS[layout](b), params)
                arrays = packed.to_arrays()
                assert all(type(value) is np.ndarray and value.dtype.isbuiltin == 1 for value in arrays.values())
                for same in (packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays)):
                    assert same.shape == (k, n) and same.params == params
                    assert_array_equal(same.unpack(), b, err_msg=isa, strict=True)
                    assert_array_equal(qk.linear(x, same), qk.linear(x, packed), err_msg=isa, strict=True)


@pytest.mark.parametrize(
    ("half", "asymmetric", "most"), [(False, False, 0.63), (True, False, 0.57), (False, True, 0.66), (True, True, 0.6)]
)
def test_bytes(half, asymmetric, most):
    rng = np.random.default_rng(0)
    for k, n in [(384, 1536), (1536, 384), (1024, 1024)]:
        packed = qk.pack(random_codes(rng, (k, n), "int4"), random_params(rng, k, n, "int4", 32, asymmetric, half))
        assert 0.5 * k * n <= packed.nbytes <= most * k * n


def test_narrow_range_is_kept():
    params = qk.QParams(0.1, dtype="int4", narrow_range=True)
    packed = qk.pack(np.ones((3, 4), ml_dtypes.int4), params)
    assert qk.PackedMatrix.from_arrays(packed.to_arrays()).params == params


def test_any_byte_of_a_4_bit_code_is_taken_by_its_low_half(isas):
    """ml_dtypes reads them so."""
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        for isa in isas():
            for b in (raw.view(dtype), raw.view(dtype).T):
                assert_array_equal(
                    qk.pack(b, qk.QParams(1, dtype=dtype)).unpack(), b.astype(np.int8).astype(dtype), err_msg=isa
                )


# ---- errors ----


def test_errors_name_what_was_wrong():
    b, params = np.zeros((64, 3), ml_dtypes.int4), qk.QParams(np.ones((2, 3)), dtype="int4", axis=0, block_size=32)
    for args, error, text in [
        ((np.zeros((64, 3), np.int32), params), TypeError, "b must be int8, uint8, int16, int4 or uint4, got int32"),
        ((b.astype(np.int8), params), TypeError, r"b must have dtype int4 \(as params\), got int8"),
        ((b[:, :2], params), ValueError, r"scale must have shape \(2, 2\)"),
        ((b[:32], params), ValueError, r"scale must have shape \(1, 3\)"),
        (
            (b, qk.QParams(np.ones((64, 1)), dtype="int4", axis=1, block_size=3)),
            ValueError,
            "per block of rows .*got axis=1, block_size=3",
        ),
        ((b, qk.QParams(np.ones(64), dtype="int4", axis=0)), ValueError, "got axis=0, block_size=None"),
        (
            (b.astype(np.int16), qk.QParams(np.ones((2, 3)), dtype="int16", axis=0, block_size=32)),
            ValueError,
            "got axis=0, block_size=32",
        ),
    ]:
        with pytest.raises(error, match=text):
            qk.pack(*args)
    packed = qk.pack(b, params)
    with pytest.raises(TypeError, match="b must hold 8-bit weights, got int4"):
        qk.matmul(np.zeros((2, 64), np.uint8), packed)
    with pytest.raises(TypeError, match="packed must hold 8-bit weights, got int4"):
        qk.qlinear(np.zeros((2, 64), np.uint8), qk.QParams(1, 0, "uint8"), packed, qk.QParams(1, 0, "uint8"))


def test_an_error_leaves_out_untouched():
    packed = qk.pack(np.ones((64, 3), ml_dtypes.int4), qk.QParams(np.ones((2, 3)), dtype="int4", axis=0, block_size=32))
    x, out = np.ones((20, 64), np.float32), np.full((20, 3), 7, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[19, 63] = bad
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


def test_refuses_blocks_whose_sums_could_overflow():
    """127 * 15 for each row: one more than fits."""
    k = (2**31 - 1) // (127 * 15)
    for rows, block_size in [(k, None), (k + 1, None), (k + 1, k)]:
        params = (
            qk.QParams(
                np.ones((-(-rows // block_size), 1)),
                0 * np.ones((-(-rows // block_size), 1), int),
                "uint4",
                axis=0,
                block_size=block_size,
            )
            if block_size
            else qk.QParams(1, 0, "uint4")
        )
        packed = qk.pack(np.full((rows, 1), 15, ml_dtypes.uint4), params)
        x = np.full((1, rows), 127, np.float32)
        if block_size is None and rows > k:
            with pytest.raises(ValueError, match=f"shared by {rows} rows, at most {k} are possible"):
                qk.linear(x, packed)
        else:
            assert_array_equal(
                qk.linear(x, packed), linear_by_numpy(x, np.full((rows, 1), 15, ml_dtypes.uint4), params)
            )


# ---- codes of codebooks ----

NF4 = np.float32(
    [
        -1,
        -0.6961928,
        -0.52507305,
        -0.3949175,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1,
    ]
)
KINDS = ["all", "column", 32, 64, 20, 3]


def random_weights(rng, k, n, kind, levels=16):
    """(codes, codebook, scales), a third of the codes being at the ends of the levels."""
    codes = np.where(
        rng.random((k, n)) < 1 / 3, rng.choice([0, levels - 1], (k, n)), rng.integers(0, levels, (k, n))
    ).astype(np.uint8)
    if kind == "column":
        return codes, qk.Codebook(np.sort(rng.normal(0, 0.1, (n, levels))), axis=1), None
    if kind == "all":
        return codes, qk.Codebook(rng.normal(0, 0.1, levels)), None
    return (
        codes,
        qk.Codebook(np.sort(rng.normal(0, 0.4, levels)), axis=0, block_size=kind),
        rng.uniform(0.01, 1, (-(-k // kind), n)),
    )


def int8_levels(codebook):
    """(channels, k) int8 values and float32 scales (channels,)."""
    levels = codebook.levels.reshape(-1, codebook.k)
    scale = np.float32(np.abs(levels).max(1).astype(np.float64) / 127)
    return np.rint(levels / scale[:, None].astype(np.float64)), scale


def codebook_linear_by_numpy(x, codes, codebook, scales, bias=None):
    """numerics 12, one operation after the other; before the activation."""
    rows = x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    q, of_rows = qk.dynamic_quantize(rows, "int8", axis=0)
    levels, level_scale = int8_levels(codebook)
    k, n = codes.shape
    weights = levels[np.arange(n), codes] if codebook.axis == 1 else levels[0][codes]
    row_scale = of_rows.scale[:, None] * (1 if codebook.axis == 1 else level_scale)
    y, size = np.zeros((len(rows), n), np.float32), codebook.block_size or max(k, 1)
    for i, begin in enumerate(range(0, k, size)):
        scale = level_scale if codebook.axis == 1 else 1 if scales is None else np.float32(scales)[i]
        sums = q[:, begin : begin + size].astype(np.float64) @ weights[begin : begin + size]
        y = fused(sums.astype(np.float32), np.broadcast_to(np.float32(scale), y.shape), y)
    y = y * row_scale
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], n)


@st.composite
def codebook_layers(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n = draw(sizes), draw(st.one_of(st.integers(1, 200), st.sampled_from([1, 15, 16, 17, 31, 32, 33, 64, 65])))
    rows = draw(
        st.one_of(st.integers(0, 40).map(lambda m: (m,)), st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 9)))
    )
    x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
    weights = random_weights(rng, k, n, draw(st.sampled_from(KINDS)), draw(st.sampled_from([16, 16, 8, 5, 1])))
    return x, weights, draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))


@settings(max_examples=120)
@given(codebook_layers(), layouts, layouts, st.sampled_from([None, "relu"]))
def test_codebook_linear(variants, layer, layout, layout_of_codes, activation):
    x, (codes, codebook, scales), bias = layer
    want = codebook_linear_by_numpy(x, codes, codebook, scales, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        packed = qk.pack(layout_of_codes(codes), codebook, scales=scales)
        out = np.full(want.shape, 77, np.float32)
        assert qk.linear(layout(x), packed, bias, activation=activation, out=out) is out
        assert_array_equal(out, want, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), codes, err_msg=variant, strict=True)


@pytest.mark.parametrize("kind", ["all", "column", 32, 40, 1024])
def test_codebook_worst_cases(kind, isas):
    """Levels and codes of x at the ends of their range, where pairs of products are largest."""
    k, n = 1000, 40
    levels = np.float32([-1, 1, 126 / 127, -126 / 127])
    if kind == "column":
        codebook, scales = qk.Codebook(np.tile(levels, (n, 1)), axis=1), None
    elif kind == "all":
        codebook, scales = qk.Codebook(levels), None
    else:
        codebook, scales = qk.Codebook(levels, axis=0, block_size=kind), np.full((-(-k // kind), n), 0.7)
    for x in (
        np.full((5, k), 127.0, np.float32),
        np.full((5, k), -127.0, np.float32),
        np.tile(np.float32([127, -127]), (5, k // 2)),
    ):
        for codes in [
            *(np.full((k, n), code, np.uint8) for code in range(4)),
            np.tile(np.uint8([[0], [1]]), (k // 2, n)),
        ]:
            want = codebook_linear_by_numpy(x, codes, codebook, scales)
            for isa in isas():
                assert_array_equal(
                    qk.linear(x, qk.pack(codes, codebook, scales=scales)), want, err_msg=isa, strict=True
                )


@pytest.mark.parametrize("kind", ["all", "column", 64])
def test_codebook_layers_large_enough_for_threads(kind, variants):
    rng = np.random.default_rng(0)
    for m, k, n in [(301, 401, 203), (1, 4096, 2048), (8, 1024, 1024)]:
        x, bias = rng.normal(0, 1, (m, k)).astype(np.float32), rng.normal(0, 1, n).astype(np.float32)
        codes, codebook, scales = random_weights(rng, k, n, kind)
        packed, want = (
            qk.pack(codes, codebook, scales=scales),
            codebook_linear_by_numpy(x, codes, codebook, scales, bias),
        )
        for variant in variants():
            assert_array_equal(qk.linear(x, packed, bias), want, err_msg=variant, strict=True)


@pytest.mark.parametrize("kind", ["all", "column", 32])
def test_codes_packed_under_one_instruction_set_and_used_under_another(kind, isas):
    rng = np.random.default_rng(0)
    x, (codes, codebook, scales) = rng.normal(0, 1, (9, 131)).astype(np.float32), random_weights(rng, 131, 67, kind)
    packed = {isa: qk.pack(codes, codebook, scales=scales) for isa in isas()}
    want = codebook_linear_by_numpy(x, codes, codebook, scales)
    for isa in isas():
        for origin, matrix in packed.items():
            assert_array_equal(qk.linear(x, matrix), want, err_msg=f"{origin}, {isa}", strict=True)


@pytest.mark.parametrize("axis_of", [lambda w: w, lambda w: np.ascontiguousarray(w.T).T])
def test_weights_that_encode_gave(axis_of):
    """From floats to the product: the error is that of the codes, of int8 levels and of half a step of x."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), axis_of(rng.normal(0, 0.05, (384, 200)).astype(np.float32))
    quantiles = np.quantile(w, np.linspace(0.02, 0.98, 16), axis=0).T
    for codebook in (
        qk.Codebook(NF4, axis=0, block_size=64),
        qk.Codebook(NF4 * np.abs(w).max()),
        qk.Codebook(quantiles, axis=1),
    ):
        result = qk.encode(w, codebook)
        codes, scales = result if codebook.block_size else (result, None)
        packed, real = qk.pack(codes, codebook, scales=scales), qk.decode(codes, codebook, scales).astype(np.float64)
        largest = np.abs(codebook.levels).max(-1) * (1 if scales is None else np.repeat(scales, 64, axis=0))
        of_levels = packed.level_error * (np.abs(x).astype(np.float64) @ np.broadcast_to(largest, w.shape))
        of_steps = np.abs(x).max(1, keepdims=True) / 254 * (np.abs(real).sum(0) * 1.01)
        y = qk.linear(x, packed)
        assert (np.abs(y - x.astype(np.float64) @ real) <= (of_levels + of_steps) * 1.001).all()
        assert np.corrcoef(y.ravel(), (x @ w).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_codes_are_given_back(layout, isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        x = rng.normal(0, 1, (4, k)).astype(np.float32)
        for kind in ("all", "column", 32, 20) if n else ("all", 32):
            codes, codebook, scales = random_weights(rng, k, n, kind)
            for isa in isas():
                packed = qk.pack(LAYOUTS[layout](codes), codebook, scales=scales)
                arrays = packed.to_arrays()
                assert all(type(value) is np.ndarray and value.dtype.isbuiltin == 1 for value in arrays.values())
                for same in (packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays)):
                    assert same.shape == (k, n) and same.params == codebook and same.nbytes == packed.nbytes
                    assert (same.scales is None) == (scales is None) and same.level_error == packed.level_error
                    assert scales is None or (same.scales == np.float32(scales)).all()
                    assert_array_equal(same.unpack(), codes, err_msg=isa, strict=True)
                    assert_array_equal(qk.linear(x, same), qk.linear(x, packed), err_msg=isa, strict=True)


def test_axes_from_the_end_are_those_from_the_front():
    codes, scales = np.zeros((64, 3), np.uint8), np.ones((2, 3))
    blocks = qk.pack(codes, qk.Codebook([1, 2], axis=-2, block_size=32), scales=scales)
    assert blocks.params == qk.Codebook([1, 2], axis=0, block_size=32)
    assert qk.pack(codes, qk.Codebook(np.ones((3, 2)), axis=-1)).params.axis == 1


def test_codebook_bytes():
    rng = np.random.default_rng(0)
    for kind, most in [("all", 0.505), ("column", 0.583), (32, 0.63), (64, 0.57)]:
        codes, codebook, scales = random_weights(rng, 1024, 1024, kind)
        assert 0.5 * codes.size <= qk.pack(codes, codebook, scales=scales).nbytes <= most * codes.size
    assert qk.pack(codes, codebook, scales=np.float16(scales)).nbytes <= 0.54 * codes.size


def test_level_error():
    """The largest distance to the int8 multiple that stands for a level, in units of the largest level."""
    for levels, want in [
        ([-127, 3, 50, 127], 0),
        ([127, 0.5], 0.5 / 127),
        ([127, 10.25], 0.25 / 127),
        ([0, 0], 0),
        ([-1], 0),
    ]:
        packed = qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook(levels))
        assert packed.level_error == pytest.approx(want, rel=1e-5, abs=1e-7)
    columns = qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook([[127, 10.25], [127, 1.125]], axis=1))
    assert columns.level_error == pytest.approx(0.25 / 127, rel=1e-5)
    assert qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook(NF4)).level_error <= 0.5 / 127 + 1e-7
    assert qk.pack(np.zeros((3, 2), np.int8), qk.QParams(1)).level_error == 0


def test_levels_that_are_all_zero_or_tiny_give_zero():
    x = np.ones((2, 40), np.float32)
    for levels in ([0, 0], [1e-45, 0]):
        assert (qk.linear(x, qk.pack(np.zeros((40, 3), np.uint8), qk.Codebook(levels))) == 0).all()


def test_codebook_errors_name_what_was_wrong():
    codes, codebook, scales = random_weights(np.random.default_rng(0), 64, 3, 32)
    sixteen = qk.Codebook(np.arange(16))
    for args, given_scales, error, text in [
        ((codes.astype(np.int8), codebook), scales, TypeError, "b must be uint8 codes for a Codebook, got int8"),
        ((codes[0], codebook), scales, ValueError, r"b must have shape \(K, N\), got \(3,\)"),
        ((codes, codebook), None, ValueError, "scales are needed for a codebook with block_size=32"),
        ((codes, codebook), scales.astype(int), TypeError, "scales must be floats.*int64"),
        (
            (codes, codebook),
            scales[:1],
            ValueError,
            r"scales must have shape \(2, 3\) for codes with shape \(64, 3\), got \(1, 3\)",
        ),
        ((codes, codebook), scales * np.inf, ValueError, "scales must be finite in float32, got inf"),
        ((codes, sixteen), scales, ValueError, "scales must be None for a codebook without block_size"),
        ((codes, qk.Codebook(np.arange(17))), None, ValueError, "at most 16 levels and no vectors, got .*17 levels"),
        ((codes, qk.Codebook(np.ones((16, 2)), vector=True)), None, ValueError, "no vectors"),
        ((codes, qk.Codebook(np.ones((64, 16)), axis=0)), None, ValueError, "got axis=0, block_size=None"),
        ((codes, qk.Codebook(np.arange(16), block_size=32)), scales, ValueError, "got axis=None, block_size=32"),
        ((codes, qk.Codebook(np.arange(16), axis=1, block_size=32)), scales, ValueError, "got axis=1, block_size=32"),
        ((codes, qk.Codebook(np.ones((4, 16)), axis=1)), None, ValueError, "levels for 3 columns, got 4"),
        ((np.full((4, 3), 16, np.uint8), sixteen), None, ValueError, "b must hold codes below 16, got 16"),
        (
            (np.full((4, 3), 5, np.uint8), qk.Codebook(np.arange(5))),
            None,
            ValueError,
            "b must hold codes below 5, got 5",
        ),
        ((codes, 5), None, TypeError, "params must be QParams or a Codebook, got int"),
        (
            (codes, qk.QParams(1, 0, "uint8")),
            scales,
            ValueError,
            "scales must be None for weights without a Codebook, got ndarray",
        ),
    ]:
        with pytest.raises(error, match=text):
            qk.pack(*args, scales=given_scales)
    packed = qk.pack(codes, codebook, scales=scales)
    with pytest.raises(TypeError, match="b must hold 8-bit weights, got codes of a Codebook"):
        qk.matmul(np.zeros((2, 64), np.uint8), packed)
    with pytest.raises(TypeError, match="packed must hold 8-bit weights, got codes of a Codebook"):
        qk.qlinear(np.zeros((2, 64), np.uint8), qk.QParams(1, 0, "uint8"), packed, qk.QParams(1, 0, "uint8"))
    arrays = packed.to_arrays()
    del arrays["shape"]
    with pytest.raises(ValueError, match="arrays must hold codes and shape, got no shape"):
        qk.PackedMatrix.from_arrays(arrays)


def test_refuses_levels_whose_sums_could_overflow(isas):
    """127 * 128 for each row: one more than fits."""
    k = (2**31 - 1) // (127 * 128)
    codebook, x = qk.Codebook([127, -127]), np.full((1, k + 1), 127, np.float32)
    for isa in isas():
        y = qk.linear(x[:, :k], qk.pack(np.zeros((k, 1), np.uint8), codebook))
        assert y == np.float32(127 * 127 * k), isa
        with pytest.raises(ValueError, match=f"shared by {k + 1} rows, at most {k} are possible"):
            qk.linear(x, qk.pack(np.zeros((k + 1, 1), np.uint8), codebook))
