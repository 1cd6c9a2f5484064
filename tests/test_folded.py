"""4-bit weights with integer scales, which fold to int8."""

import itertools
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import qkernels as qk

SHAPES = [
    (64, 32, 32),
    (384, 100, 32),
    (96, 33, 48),
    (130, 17, 32),
    (1024, 40, 128),
    (7, 3, 4),
    (300, 70, 260),
    (64, 1, 32),
]
ROWS = [1, 2, 3, 5, 7, 12, 13, 23, 24, 25, 61]
MIDDLE = {"int4": 0, "uint4": 8}


def random_params(k, n, block_size, dtype, seed=0):
    """Integer scales and shifts of all sizes with which each code folds to int8."""
    rng = np.random.default_rng(seed)
    shape = -(-k // block_size), n
    scale, shift = rng.integers(1, 17, shape), rng.integers(-8, 8, shape)
    shift[(scale * -8 + 3 * shift < -128) | (scale * 7 + 3 * shift > 127)] = 0
    columns = rng.uniform(0.001, 0.002, n).astype(np.float32)
    return qk.QParams(columns, dtype=dtype, axis=0, block_size=block_size, block_scale=scale, block_shift=shift)


def random_codes(k, n, dtype, seed=1):
    codes = np.random.default_rng(seed).integers(0, 16, (k, n)) - (8 - MIDDLE[dtype])
    return codes.astype(qk.QParams(1, dtype=dtype).dtype)


def folded(codes, params):
    """The int8 of the formula, in int64."""
    rows = np.arange(len(codes)) // params.block_size
    scale, shift = params.block_scale.astype(int)[rows], params.block_shift.astype(int)[rows]
    return scale * (codes.astype(int) - MIDDLE[params.dtype.name]) + 3 * shift


@pytest.mark.parametrize("dtype", MIDDLE)
@pytest.mark.parametrize("k, n, block_size", SHAPES)
def test_linear_is_that_of_int8(variants, k, n, block_size, dtype):
    """Bit for bit, whatever the number of rows."""
    params, codes = random_params(k, n, block_size, dtype), random_codes(k, n, dtype)
    int8 = folded(codes, params).astype(np.int8)
    rng = np.random.default_rng(2)
    x, bias = rng.normal(size=(max(ROWS), k)).astype(np.float32) + 0.3, rng.normal(size=n).astype(np.float32)
    for variant in variants():
        packed, of_int8 = qk.pack(codes, params), qk.pack(int8, qk.QParams(params.scale, axis=1))
        for m in ROWS:
            expected = qk.linear(x[:m], of_int8, bias, activation="relu")
            assert_array_equal(qk.linear(x[:m], packed, bias, activation="relu"), expected, err_msg=f"{variant}, {m}")


@pytest.mark.parametrize(
    "x", [np.full((3, 64), 1e38), np.full((30, 64), 1e-39), np.zeros((2, 64)), np.full((1, 64), -3e38)]
)
def test_wide_rows_are_those_of_int8(isas, x):
    params, codes = random_params(64, 33, 32, "uint4"), random_codes(64, 33, "uint4")
    int8 = folded(codes, params).astype(np.int8)
    with np.errstate(under="ignore"):
        x = x.astype(np.float32)
    for _ in isas():
        expected = qk.linear(x, qk.pack(int8, qk.QParams(params.scale, axis=1)))
        assert_array_equal(qk.linear(x, qk.pack(codes, params)), expected)


@pytest.mark.parametrize("k, block_size", [(9001, 32), (4500, 4), (4400, 256), (1030, 264), (131_072 + 2100, 32)])
def test_long_columns(isas, k, block_size):
    """More rows than kernels sum up at a time, and codes of x, all but one 255, times the largest weights."""
    blocks, n = -(-k // block_size), 67 if k < 100_000 else 3
    rng = np.random.default_rng(5)
    shift = rng.integers(-8, 8, (blocks, n))
    scale = np.minimum((128 + 3 * shift) // 8, (127 - 3 * shift) // 7).clip(1, 16)
    most = rng.random((k, n)) < np.resize([0.01, 0.5, 0.99], n)
    codes = np.where(most, 15, 0).astype(qk.QParams(1, dtype="uint4").dtype)
    if k > 100_000:
        codes[:] = 8  # so that sums of magnitudes are within int32
        scale, shift = np.ones_like(scale), shift // 8
    params = qk.QParams(np.ones(n), dtype="uint4", axis=0, block_size=block_size, block_scale=scale, block_shift=shift)
    int8 = folded(codes, params).astype(np.int8)
    x = np.ones((3, k), np.float32)
    x[:, 0] = 0
    for _ in isas():
        packed, of_int8 = qk.pack(codes, params), qk.pack(int8, qk.QParams(params.scale, axis=1))
        for m in (1, 2, 3):
            assert_array_equal(qk.linear(x[:m], packed), qk.linear(x[:m], of_int8))


def test_extreme_codes_and_inputs(isas):
    """All sums of a chunk at their largest magnitudes: 255 and every code 0 or 15, all scales."""
    for code, block_size, shift in itertools.product((0, 15), (32, 64, 256), (0, 7)):
        codes = np.full((512, 32), code).astype(qk.QParams(1, dtype="uint4").dtype)
        scale = np.broadcast_to(np.arange(32) % (17 if not shift else 15) + (not shift), (512 // block_size, 32))
        scale = np.clip(scale, 1, 16)
        params = qk.QParams(
            np.ones(32),
            dtype="uint4",
            axis=0,
            block_size=block_size,
            block_scale=scale,
            block_shift=np.where((scale == 16) & (shift < 0), 0, shift) * np.ones_like(scale),
        )
        x = np.ones((26, 512), np.float32)
        x[:, 0] = 0  # so that the others are 255
        for _ in isas():
            for m in (1, 2, 6, 26):
                int8 = qk.pack(folded(codes, params).astype(np.int8), qk.QParams(params.scale, axis=1))
                assert_array_equal(qk.linear(x[:m], qk.pack(codes, params)), qk.linear(x[:m], int8))


@pytest.mark.parametrize("dtype", MIDDLE)
@pytest.mark.parametrize("k, n, block_size", SHAPES)
def test_packed_come_back(isas, k, n, block_size, dtype):
    params, codes = random_params(k, n, block_size, dtype), random_codes(k, n, dtype)
    for _ in isas():
        for given in (codes, np.asfortranarray(codes), codes[::-1][::-1]):
            packed = qk.pack(given, params)
            assert_array_equal(packed.unpack(), codes)
            assert packed.params == params
        again = pickle.loads(pickle.dumps(packed))
        assert again.params == params
        assert_array_equal(again.unpack(), codes)


def test_nbytes_are_what_is_held():
    """Half a byte a code, one for each block and column; of columns a scale and a sum of weights, of three bytes."""
    codes, params = random_codes(1044, 256, "uint4"), random_params(1044, 256, 36, "uint4")
    for scale, size in (params.scale, 4), (np.float16(params.scale), 2):
        blocks = dict(axis=0, block_size=36, block_scale=params.block_scale, block_shift=params.block_shift)
        of = qk.QParams(scale, dtype="uint4", **blocks)
        packed = qk.pack(codes, of)
        assert packed.nbytes == 1044 * 256 // 2 + 29 * 256 + (size + 3) * 256
        assert packed.params == of


def test_files(tmp_path):
    params, codes = random_params(96, 33, 48, "int4"), random_codes(96, 33, "int4")
    packed = qk.pack(codes, params)
    qk.io.save(tmp_path / "w", {"packed": packed, "params": params})
    found = qk.io.load(tmp_path / "w")
    assert found["params"] == params == found["packed"].params
    assert_array_equal(found["packed"].unpack(), codes)
    assert packed.to_arrays()["integer_scales"].nbytes == 2 * 33  # a byte each


def test_integer_scales_of_snapshots_whose_shifts_counted_2_are_refused():
    params, codes = random_params(96, 33, 48, "int4"), random_codes(96, 33, "int4")
    for value in params, qk.pack(codes, params):
        arrays = value.to_arrays()
        arrays["blocks"] = arrays.pop("integer_scales")
        with pytest.raises(ValueError, match="arrays must hold no others than .* got 'blocks'"):
            type(value).from_arrays(arrays)


@pytest.mark.parametrize("dtype", MIDDLE)
def test_values_are_multiples_of_the_scale(dtype):
    params, codes = random_params(130, 17, 32, dtype), random_codes(130, 17, dtype)
    values = folded(codes, params).astype(np.float32) * params.scale
    assert_array_equal(qk.dequantize(codes, params), values)
    assert_array_equal(qk.quantize(values, params), codes)
    assert_array_equal(qk.fake_quantize(values, params), values)
    halves = qk.dequantize(codes, params, dtype=np.float16)
    assert_array_equal(halves, values.astype(np.float16))
    out = np.empty_like(codes)
    assert qk.quantize(np.asfortranarray(values.astype(np.float64)), params, out=out) is out
    assert_array_equal(out, codes)


def test_quantize_takes_the_nearest():
    params = random_params(64, 9, 32, "uint4")
    x = np.random.default_rng(3).normal(0, 0.1, (64, 9)).astype(np.float32)
    codes = qk.quantize(x, params)
    distance = np.abs(qk.dequantize(codes, params) - x)
    for code in range(16):
        other = qk.dequantize(np.full_like(codes, code), params)
        assert np.all(distance <= np.abs(other - x) * (1 + 1e-5) + 1e-9)
    x[0] = np.nan, np.inf, -np.inf, *[0] * 6
    edges = qk.quantize(x, params)[0].astype(int)
    assert edges[1] == 15
    assert edges[2] == 0
    assert edges[0] == qk.quantize(np.zeros_like(x), params)[0, 0]


# ---- the search ----


def relative_rms(w, params):
    error = w - qk.fake_quantize(w, params)
    return np.sqrt(np.sum(error.astype(float) ** 2) / np.sum(w.astype(float) ** 2))


def least_loss(y, unit):
    """The least loss of a block with the scale `unit`, by brute force."""
    found = np.inf
    for scale, shift in itertools.product(range(1, 17), range(-8, 8)):
        if scale * -8 + 3 * shift < -128 or scale * 7 + 3 * shift > 127:
            continue
        levels = unit * (scale * np.arange(-8, 8) + 3 * shift)
        found = min(found, np.sum(np.min(np.abs(y[:, None] - levels), axis=1) ** 2))
    return found


def test_blocks_have_the_best_scales_and_shifts(isas):
    w = np.random.default_rng(4).normal(size=(96, 3)).astype(np.float32)
    results = []
    for _ in isas():
        params = qk.choose_qparams(w, "uint4", axis=0, block_size=24, method="mse", scale_bits=4)
        results.append(params)
        error = (w - qk.fake_quantize(w, params)).astype(float) ** 2
        for block, column in itertools.product(range(4), range(3)):
            rows = slice(24 * block, 24 * block + 24)
            best = least_loss(w[rows, column].astype(float), float(params.scale[column]))
            assert error[rows, column].sum() == pytest.approx(best, rel=1e-5)
    assert all(params == results[0] for params in results)


def test_error_for_the_bits():
    """Relative error of normal weights: ggml's Q4_K has 0.0714 with 4.50 bits, IQ4_XS 0.0768 with 4.25."""
    w = np.random.default_rng(5).normal(size=(768, 32)).astype(np.float32)

    def error(dtype, block_size, bits, **options):
        params = qk.choose_qparams(w, dtype, axis=0, block_size=block_size, method="mse", scale_bits=4, **options)
        arrays = params.to_arrays()
        assert 4 + (8 * arrays["integer_scales"].nbytes + 8 * arrays["scale"].nbytes) / w.size <= bits
        return relative_rms(w, params)

    assert error("uint4", 24, 4.375) <= 0.0705
    assert error("uint4", 36, 4.25) <= 0.0755
    assert error("int4", 32, 4.275, symmetric=False) <= 0.075


@pytest.mark.parametrize("dtype", MIDDLE)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("factor", [1e-310, 1e-38, 1, 1e37])
def test_minmax_clips_nothing(dtype, symmetric, factor):
    with np.errstate(under="ignore"):
        w = np.random.default_rng(6).normal(size=(100, 5)) * factor
    w[:32, 0] = np.abs(w[:32, 0])
    w[32:64, 1] = 0
    params = qk.choose_qparams(w, dtype, axis=0, block_size=32, symmetric=symmetric, scale_bits=4)
    assert symmetric <= (not params.block_shift.any())
    step = params.scale * params.block_scale[np.arange(100) // 32]
    assert np.all(np.abs(w - qk.fake_quantize(w, params)) <= step * 0.5001 + 1e-45)


def test_importance_is_a_weight():
    w = np.random.default_rng(7).normal(size=(64, 8)).astype(np.float32)
    importance = np.where(np.arange(64) % 4 == 0, 100.0, 1.0)[:, None]
    options = dict(axis=0, block_size=32, method="mse", scale_bits=4)
    plain, weighted = (qk.choose_qparams(w, "uint4", **options, importance=i) for i in (None, importance))
    losses = [np.sum(importance * (w - qk.fake_quantize(w, p)) ** 2) for p in (plain, weighted)]
    assert losses[1] < losses[0]
    assert qk.choose_qparams(w, "uint4", **options, importance=3 * importance) == weighted


def test_empty():
    for shape in ((0, 3), (8, 0)):
        params = qk.choose_qparams(
            np.zeros(shape, np.float32), "uint4", axis=0, block_size=4, method="mse", scale_bits=4
        )
        packed = qk.pack(qk.quantize(np.zeros(shape, np.float32), params), params)
        assert packed.params == params
        assert_array_equal(qk.linear(np.ones((2, shape[0]), np.float32), packed), np.zeros((2, shape[1])))


# ---- rounding with feedback ----


@pytest.mark.parametrize("refit", [False, True])
def test_gptq_takes_integer_scales(refit):
    rng = np.random.default_rng(8)
    x = (rng.normal(size=(400, 64)) @ rng.normal(size=(64, 64))).astype(np.float32)
    w = rng.normal(size=(64, 16)).astype(np.float32)
    params, seen = (
        qk.choose_qparams(w, "uint4", axis=0, block_size=32, method="mse", scale_bits=4),
        qk.Hessian(64).update(x),
    )
    found = qk.gptq(w, seen, params, refit=refit)
    assert_array_equal(found.params.block_scale, params.block_scale)
    errors = qk.sensitivity(w, seen, [params, qk.dequantize(found.codes, found.params)], center=True)
    assert errors[1] < 0.6 * errors[0]
    unrelated = qk.Hessian(64).update(np.repeat(np.eye(64, dtype=np.float32), 2, axis=0))
    plain = qk.gptq(w, unrelated, params, center=False, refine=0)
    assert np.mean(plain.codes == qk.quantize(w, params)) > 0.999


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(dtype="int8"), ValueError, "int4 or uint4"),
        (dict(axis=1), ValueError, "axis=1"),
        (dict(block_size=6), ValueError, "block_size=6"),
        (dict(block_scale=np.zeros((2, 3), int)), ValueError, r"block_scale must be within \[1, 16\], got 0"),
        (dict(block_scale=np.full((2, 3), 17)), ValueError, "got 17"),
        (dict(block_scale=np.ones((2, 4), int)), ValueError, r"scale must have shape \(4,\) .* block_scale"),
        (dict(block_scale=np.ones((2, 3))), TypeError, "block_scale must be an array of integers"),
        (dict(block_shift=np.full((2, 3), 8)), ValueError, r"block_shift must be within \[-8, 7\], got 8"),
        (dict(block_shift=np.ones((1, 3), int)), ValueError, "block_shift must have shape"),
        (dict(block_shift=np.full((2, 3), -1), block_scale=np.full((2, 3), 16)), ValueError, r"\[-128, 127\]"),
        (dict(zero_point=3), ValueError, "zero_point"),
        (dict(scale=np.ones((2, 3))), ValueError, "scale"),
        (dict(scale=np.float32([1, 0, 1])), ValueError, "scale"),
        (dict(block_scale=None), TypeError, "block_scale"),
    ],
)
def test_bad_params(change, error, match):
    given = dict(scale=np.ones(3), dtype="uint4", axis=0, block_size=8, block_scale=np.ones((2, 3), int))
    given |= dict(block_shift=np.zeros((2, 3), int)) | change
    with pytest.raises(error, match=match):
        qk.QParams(**given)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(scale_bits=3), ValueError, "scale_bits must be 4, got 3"),
        (dict(scale_bits="4"), TypeError, "scale_bits"),
        (dict(dtype="int8"), ValueError, "int8"),
        (dict(axis=1), ValueError, "axis=1"),
        (dict(block_size=None), ValueError, "block_size=None"),
        (dict(block_size=10), ValueError, "block_size=10"),
        (dict(x=np.ones(8, np.float32)), ValueError, "shape"),
        (dict(x=np.full((8, 2), np.nan)), ValueError, "NaN"),
        (dict(x=np.full((8, 2), 1e300)), ValueError, "float32"),
        (dict(method="entropy"), TypeError, "scale_bits"),
        (dict(importance=-np.ones((8, 2)), method="mse"), ValueError, "importance"),
    ],
)
def test_bad_choices(change, error, match):
    given = dict(x=np.ones((8, 2), np.float32), dtype="uint4", axis=0, block_size=4, scale_bits=4) | change
    with pytest.raises(error, match=match):
        qk.choose_qparams(**given)


def test_where_they_do_not_serve():
    params, codes = random_params(64, 8, 32, "int4"), random_codes(64, 8, "int4")
    packed = qk.pack(codes, params)
    x = np.ones((64, 8), np.float32)
    with pytest.raises(TypeError, match="integer scales"):
        qk.fake_quantize_grad(x, x, params)
    with pytest.raises(TypeError, match="integer scales"):
        qk.quantize(x, params, rounding="stochastic", seed=1)
    with pytest.raises(TypeError, match="integer scales"):
        qk.qlinear(np.ones((2, 64), np.uint8), qk.QParams(1, dtype="uint8"), packed, qk.QParams(1, dtype="uint8"))
    with pytest.raises(TypeError, match="integer scales"):
        qk.matmul(np.ones((2, 64), np.uint8), packed)
    with pytest.raises(TypeError, match="q must have dtype int4"):
        qk.dequantize(np.ones((64, 8), np.int32), params)
    with pytest.raises(ValueError, match="shape"):
        qk.pack(codes[:32], params)
    with pytest.raises(ValueError, match="NaN"):
        qk.linear(np.full((1, 64), np.nan, np.float32), packed)
    out = np.full((64, 8), 7, np.float32)
    with pytest.raises(ValueError, match="shape"):
        qk.dequantize(codes[:3], params, out=out)
    assert np.all(out == 7)


def test_what_is_not_finite_is_told_by_its_place_in_x():
    x = np.ones((2048, 600), np.float32)
    x[9, 599] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN .*the first at \(9, 599\)"):
        qk.choose_qparams(x, "uint4", axis=0, block_size=32, scale_bits=4)


def test_out_must_not_overlap():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    params = qk.choose_qparams(x, "uint4", axis=0, block_size=32, scale_bits=4)
    want, given = qk.fake_quantize(x, params), x.copy()
    assert qk.fake_quantize(given, params, out=given) is given
    assert_array_equal(given, want)
    codes = x.view(np.uint8).reshape(-1)[: x.size].reshape(x.shape).view(params.dtype)
    for call in (
        lambda: qk.quantize(x, params, out=codes),
        lambda: qk.dequantize(codes, params, out=x),
        lambda: qk.fake_quantize(x.T, params, out=x),
    ):
        before = x.copy()
        with pytest.raises(ValueError, match="out must not overlap"):
            call()
        assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("narrow_range", [False, True])
def test_a_narrow_range_is_covered(dtype, narrow_range):
    x = np.float32(np.random.default_rng(0).normal(size=(512, 40)))
    options = dict(axis=0, block_size=32, scale_bits=4, method="minmax", symmetric=False, narrow_range=narrow_range)
    params = qk.choose_qparams(x, dtype, **options)
    step = (params.scale * np.repeat(params.block_scale, 32, axis=0)).max(axis=0)
    assert (np.abs(qk.fake_quantize(x, params) - x) <= 0.5001 * step + params.scale).all()


@pytest.mark.parametrize("k", [1, 3, 993, 994])
def test_a_single_block_that_is_not_whole(k, everywhere):
    """Its rows are fewer than its size, and no multiple of 4."""
    rng = np.random.default_rng(k)
    w, x = (np.float32(rng.normal(size=shape)) for shape in ((k, 3), (12, k)))
    params = qk.choose_qparams(w, "uint4", axis=0, block_size=996, scale_bits=4)
    codes = qk.quantize(w, params)
    got = everywhere(lambda: qk.linear(x, qk.pack(codes, params)))
    want = x.astype(np.float64) @ qk.dequantize(codes, params)
    assert_allclose(got, want, atol=0.02 * np.abs(want).max() + 1e-6)


@pytest.mark.parametrize("zero_point", [8.0, [8, 8, 8, 8, 8], np.full((1, 4), 8), 7, [8, 8, 8, 9]])
def test_zero_points_are_those_of_integer_scales(zero_point):
    def make(zero_point):
        return qk.QParams(np.ones(4), zero_point, "uint4", axis=0, block_size=32, block_scale=np.ones((2, 4), np.uint8))

    assert make(8) == make(np.full(4, 8)) == make(None)
    with pytest.raises((TypeError, ValueError), match="zero_point must be"):
        make(zero_point)
