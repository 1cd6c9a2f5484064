"""Results are right where products of scales leave float32 (numerics 21): against float64, over all magnitudes."""

import ml_dtypes
import numpy as np
import pytest
from common import Raising, bits
from numpy.testing import assert_allclose, assert_array_equal
from products import gelu, silu

qk = Raising()


@pytest.fixture(autouse=True)
def references_may_underflow(errors_of_numpy_raise):
    with np.errstate(all="ignore"):
        yield


MOST = float(np.finfo(np.float32).max)
K, N = 40, 70
WEIGHTS = ["int8", "uint8", "int16", "int4", "uint4", "int4 blocks", "uint4 blocks", "levels", "levels of blocks"]
WEIGHTS += ["levels of columns", "float16", "bfloat16"]
EXPONENTS = [-126, -100, -70, -30, 0, 30, 70, 100, 119]
ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "gelu": lambda y: np.where(np.abs(y) < 40, gelu(np.ravel(np.clip(y, -40, 40))).reshape(y.shape), np.maximum(y, 0)),
    "silu": lambda y: np.where(y < -700, 0, silu(y)),
}


def weights(kind, exponent, rng, k=K, n=N):
    """Packed weights of magnitude 2**exponent and more, and their values in float64."""
    name, _, layout = kind.partition(" ")
    unit = np.float32(2.0**exponent)
    if name in ("float16", "bfloat16"):
        w = (rng.integers(-100, 101, (k, n)) * 2.0**exponent).astype(
            ml_dtypes.bfloat16 if name == "bfloat16" else np.float16
        )
        return qk.pack(w, None), w.astype(np.float64)
    if name == "levels":
        levels = np.float32([-127, -70, -8, 0, 1, 33, 100, 127])
        codes = rng.integers(0, 8, (k, n), dtype=np.uint8)
        if layout == "of columns":
            return qk.pack(codes, qk.Codebook(np.tile(levels * unit, (n, 1)), axis=1)), levels[codes] * float(unit)
        if layout == "":
            return qk.pack(codes, qk.Codebook(levels * unit)), levels[codes] * float(unit)
        scales = np.float32(rng.integers(1, 9, (-(-k // 16), n)) * float(unit))
        return (
            qk.pack(codes, qk.Codebook(levels, axis=0, block_size=16), scales=scales),
            levels[codes] * np.repeat(scales, 16, axis=0)[:k].astype(np.float64),
        )
    dtype = np.dtype(getattr(ml_dtypes, name) if "4" in name else name)
    info = ml_dtypes.iinfo(dtype)
    codes = rng.integers(max(info.min, -3000), min(info.max, 3000) + 1, (k, n)).astype(dtype)
    blocks = (-(-k // 16), n) if layout else (n,)
    scale = np.float32(rng.integers(1, 8, blocks) * float(unit))
    zero = rng.integers(0, 8, blocks) if name[0] == "u" else np.zeros(blocks, int)
    params = qk.QParams(scale, zero.astype(np.int32), dtype, axis=0 if layout else 1, block_size=16 if layout else None)
    wide, away = (np.repeat(a, 16, axis=0)[:k] if layout else a for a in (scale.astype(np.float64), zero))
    return qk.pack(codes, params), (codes.astype(np.int64) - away) * wide


def rows(kind, rng, exponents, k=K):
    """A row of each magnitude, whose values are multiples of what its codes stand for."""
    most = 127 if "int4" in kind or "levels" in kind else 32767 if kind == "int16" else 255
    codes = rng.integers(0, most + 1, (len(exponents), k))
    codes[:, :2] = 0, most
    return np.float32(np.ldexp(codes.astype(np.float64), np.array(exponents)[:, None]))


def check(y, exact, size, unit=2.0**-22):
    """y is `exact` but for `unit` of `size`, the sum of magnitudes that were added; beyond float32 it is infinite."""
    assert not np.isnan(y).any()
    off = unit * size + 2.0**-149
    sure = np.abs(exact) + off < MOST
    assert np.isfinite(y[sure]).all() and np.all(np.abs(y[sure] - exact[sure]) <= off[sure])
    beyond = np.abs(exact) - off > 2.0**128
    assert_array_equal(y[beyond], np.sign(exact[beyond]) * np.inf)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_linear_is_exact_to_a_few_roundings_at_all_magnitudes(kind, everywhere):
    rng = np.random.default_rng(0)
    for exponent in (-14, 0, 8) if kind == "float16" else EXPONENTS:
        exponent += 5 if exponent == 119 and kind.startswith(("int", "uint")) else 0
        packed, w = weights(kind, exponent, rng)
        x = rows(kind, rng, [-149, -140, -126, -110, -60, -20, 0, 20, 60, 100, 112])
        x[3] = 0
        exact = x.astype(np.float64) @ w
        size = np.abs(x.astype(np.float64)) @ np.abs(w)
        for bias, residual in (
            (None, None),
            (rng.standard_normal(N), None),
            (np.full(N, -2e38), None),
            (np.full(N, 2e38), -exact),
            (-exact[4].clip(-1e38, 1e38) / 2, np.full(exact.shape, 1e-40)),
        ):
            bias, residual = (None if a is None else np.float32(np.clip(a, -MOST, MOST)) for a in (bias, residual))
            added = sum(a.astype(np.float64) for a in (bias, residual) if a is not None) + np.zeros_like(exact)
            sizes = size + sum(np.abs(a.astype(np.float64)) for a in (bias, residual) if a is not None)
            y = everywhere(lambda: qk.linear(x, packed, bias, residual=residual))
            check(y, exact + added, sizes, (K + 4) * 2.0**-24 if "float" in kind or "blocks" in kind else 2.0**-22)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["int8", "int4 blocks", "int16", "bfloat16"])
def test_activations_and_clamps_see_the_right_value_or_its_limit(kind, activation, isas):
    rng = np.random.default_rng(1)
    for exponent in (-120, -80, 0, 90, 119):
        packed, w = weights(kind, exponent, rng)
        x = rows(kind, rng, [-149, -120, -20, 0, 100, 112]) * np.float32([[1], [-1]] * 3)
        exact = x.astype(np.float64) @ w
        expected = ACTIVATIONS[activation](exact)
        size = (np.abs(x.astype(np.float64)) @ np.abs(w)) * (1.2 if activation else 1) + 0.1 * (activation == "gelu")
        for _ in isas():
            y = qk.linear(x, packed, activation=activation)
            check(y, expected, size, (K + 8) * 2.0**-24)
            for lo, hi in ((-1.0, 2.0), (None, 3e38), (-1e-40, None)):
                bounds = -np.inf if lo is None else np.float32(lo), np.inf if hi is None else np.float32(hi)
                assert_array_equal(qk.linear(x, packed, activation=activation, clamp=(lo, hi)), np.clip(y, *bounds))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(kind, isas):
    rng = np.random.default_rng(2)
    packed, _ = weights(kind, 3, rng)
    x = rows(kind, rng, 2 * [0, -149, 1, 112, 2, -130, 3, 4, 105, 5, -3, -140, 7])
    residual = np.float32(rng.standard_normal((len(x), N)))
    for _ in isas():
        y = qk.linear(x, packed, residual=residual, activation="gelu")
        for i in range(len(x)):
            assert_array_equal(bits(y[i]), bits(qk.linear(x[i], packed, residual=residual[i], activation="gelu")))
        assert_array_equal(
            bits(y), bits(qk.linear(x, packed, residual=(own := residual.copy()), activation="gelu", out=own))
        )


@pytest.mark.parametrize("axis", [None, 1])
def test_tables_of_tiny_levels_keep_their_levels(axis, isas):
    rng = np.random.default_rng(9)
    codes, x = np.uint8(rng.integers(0, 8, (40, 5))), np.float32(rng.integers(-127, 128, (3, 40)) * 2.0**20)
    x[:, 0] = 127 * 2.0**20
    for exponent in (-148, -142, -136, -127, -120):
        levels = np.float32(np.array([-127, -100, -5, 0, 1, 20, 64, 127]) * 2.0**exponent)
        packed = qk.pack(codes, qk.Codebook(levels if axis is None else np.tile(levels, (5, 1)), axis=axis))
        w = levels.astype(np.float64)[codes]
        for _ in isas():
            check(qk.linear(x, packed), x.astype(np.float64) @ w, np.abs(x.astype(np.float64)) @ np.abs(w))


@pytest.mark.parametrize("kind", ["int8", "uint4 blocks", "int16", "bfloat16"])
def test_threads_that_share_columns_and_rows_agree(kind, everywhere):
    rng = np.random.default_rng(3)
    packed, w = weights(kind, 60, rng, 300, 500)
    for m in (1, 150):
        x = rows(kind, rng, rng.choice([-149, 0, 50, 90, 110], m), 300)
        y, x = everywhere(lambda: qk.linear(x, packed)), x.astype(np.float64)
        check(y, x @ w, np.abs(x) @ np.abs(w), 304 * 2.0**-24)


def test_infinite_and_huge_biases_stay_what_they_are(isas):
    rng = np.random.default_rng(4)
    bias = np.float32([np.inf, -np.inf, MOST, -MOST, 0])
    for kind in WEIGHTS:
        packed, w = weights(kind, 0, rng, K, 5)
        for _ in isas():
            for exponent in (0, 110):
                x = rows(kind, rng, [exponent])
                residual = np.float32([[1, 1, -MOST, MOST, 0]])
                with np.errstate(invalid="ignore"):
                    check(
                        qk.linear(x, packed, bias, residual=residual)[:, 2:],
                        (x.astype(np.float64) @ w + bias + residual)[:, 2:],
                        np.abs(x.astype(np.float64)) @ np.abs(w)[:, 2:] + 2 * MOST,
                    )
                assert_array_equal(qk.linear(x, packed, bias)[0, :2], [np.inf, -np.inf])


def test_the_cases_that_were_reported(isas):
    for _ in isas():
        assert_array_equal(
            qk.linear(np.full((1, 2), 3e38, np.float32), qk.pack(np.int8([[127, 0], [127, 0]]), qk.QParams(1000.0))),
            [[np.inf, 0]],
        )
        for dtype in ("int8", "uint8", "int16", "int4", "uint4"):
            for value, x, k in (1e36, 1e-30, 64), (1e-20, 1e-20, 4096), (1e30, 1e-40, 64):
                w = np.full((k, 1), value, np.float32)
                params = qk.choose_qparams(w, dtype, axis=1)
                y = qk.linear(np.full((1, k), x, np.float32), qk.pack(qk.quantize(w, params), params))
                assert_allclose(y, value * x * k, rtol=2e-7 if x > 1e-38 else 2e-5)  # 1e-40 has 17 bits
        w = np.full((4096, 1), 1e-20).astype(ml_dtypes.bfloat16)
        assert_allclose(
            qk.linear(np.full((1, 4096), 1e-20, np.float32), qk.pack(w, None)), 4096 * float(w[0, 0]) * 1e-20, rtol=2e-7
        )
        one, q = qk.pack(np.int8([[1]]), qk.QParams(1)), np.uint8([[100]])
        params, to = qk.QParams(1, 0, "uint8"), qk.QParams(2.0**-126)
        assert qk.qlinear(q, params, one, to, bias=np.float32([-5])) == 127


HOW = [(rounding, activation) for rounding in ("half_even", "half_away") for activation in ACTIVATIONS]
HOW += [(rounding, activation) for rounding in ("gemmlowp", "tflite") for activation in (None, "relu")]
# Exponents of the scales of q, of the weights and of the result.
OF_SCALES = [(-126, -126, -126), (-126, -20, -126), (-100, -70, -126), (100, -120, -10), (-60, -60, -110)]
OF_SCALES += [(100, 100, 120), (120, 120, 127), (60, 60, 120), (-70, 80, 14), (0, 0, -126), (90, 20, 115)]
OF_SCALES += [(127, 0, 120), (-80, -64, -126), (64, 63, 127)]


@pytest.mark.parametrize("rounding, activation", HOW)
def test_qlinear_gives_the_nearest_code_at_all_magnitudes(rounding, activation, everywhere):
    rng = np.random.default_rng(5)
    q, codes = np.uint8(rng.integers(0, 256, (5, 9))), np.int8(rng.integers(-127, 128, (9, 70)))
    acc = (q.astype(np.int64) - 100) @ codes
    for a, b, out in OF_SCALES:
        scales = np.float32(2.0**b * rng.choice([1, 1.5], 70)).clip(None, MOST)
        packed = qk.pack(codes, qk.QParams(scales, axis=1))
        size = np.abs(acc).max() * 2.0 ** (a + b)
        for bias in (
            None,
            np.float32(rng.choice([-1, 1], 70) * min(size, MOST)),
            np.float32(rng.choice([-MOST, MOST], 70)),
        ):
            if bias is not None and rounding in ("gemmlowp", "tflite"):
                continue
            real = acc * (2.0**a * scales.astype(np.float64)) + (0 if bias is None else bias.astype(np.float64))
            value = ACTIVATIONS[activation](real) / 2.0**out
            expected = np.clip(np.rint(value) + 3, 0, 255)
            size_of_terms = (np.abs(real) + (0 if bias is None else 2 * np.abs(bias.astype(np.float64)))) / 2.0**out
            margin = 0.3 if rounding == "gemmlowp" else 1e-5  # gemmlowp rounds twice
            clear = np.abs(value - np.floor(value) - 0.5) > margin * np.maximum(1, size_of_terms)
            params, to = qk.QParams(2.0**a, 100, "uint8"), qk.QParams(2.0**out, 3, "uint8")
            how = dict(activation=activation, rounding=rounding)
            got = everywhere(lambda: qk.qlinear(q, params, packed, to, bias, **how))
            assert_array_equal(got[clear], expected[clear])


def test_a_column_of_qlinear_has_the_same_codes_whatever_stands_beside_it(isas):
    rng = np.random.default_rng(6)
    q, codes = np.uint8(rng.integers(0, 256, (7, 9))), np.int8(rng.integers(-127, 128, (9, 70)))
    scale = np.float32(2.0 ** rng.integers(-126, 127, 70))
    bias = np.float32(rng.standard_normal(70) * 2.0 ** rng.integers(-120, 127, 70))
    a, out = qk.QParams(1.7, 90, "uint8"), qk.QParams(0.3, 100, "uint8")
    for _ in isas():
        for activation in (None, "relu", "gelu", "silu"):
            y = qk.qlinear(q, a, qk.pack(codes, qk.QParams(scale, axis=1)), out, bias, activation=activation)
            for j in range(70):
                alone = qk.pack(codes[:, j : j + 1], qk.QParams(scale[j : j + 1], axis=1))
                assert_array_equal(
                    y[:, j : j + 1], qk.qlinear(q, a, alone, out, bias[j : j + 1], activation=activation)
                )


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "gemmlowp", "tflite"])
def test_requantize_takes_every_positive_multiplier(rounding, variants):
    acc = np.int32([[0, 1, -1, 2**31 - 1, -(2**31)]])
    for multiplier in (5e-324, 1e-300, 1e-46, 1e-40, 1e-38, 1e30, 3e38, 1e39, 1e300, np.float32(MOST), 1.7e308):
        exact = np.clip(np.float64(acc) * min(float(multiplier), 1e290), -128, 127).round()
        for _ in variants():
            assert_array_equal(qk.requantize(acc, multiplier, qk.QParams(1), rounding=rounding), exact)


def test_dequantize_and_fake_quantize_round_once_at_all_magnitudes(isas):
    few = ("int16", np.array([-32768, -1, 0, 1, 32767])), ("int32", np.array([-(2**31), -5, 0, 7, 2**31 - 1]))
    for dtype, q in ("int8", np.arange(-128, 128)), ("uint8", np.arange(256)), *few:
        codes = q.astype(dtype)
        for exponent in (-126, -120, 0, 100, 120, 127):
            scale = np.float32(1.75 * 2.0**exponent)
            params = qk.QParams(scale, 0 if dtype != "uint8" else 3, "int8" if dtype == "int32" else dtype)
            exact = (q - (3 if dtype == "uint8" else 0)) * float(scale)
            for _ in isas():
                check(qk.dequantize(codes, params), exact, np.abs(exact), 2.0**-23)
                if dtype != "int32":
                    x = np.float32(exact[np.abs(exact) <= MOST])
                    assert_array_equal(qk.fake_quantize(x, params), x)
                    assert_array_equal(qk.quantize(x, params), codes[np.abs(exact) <= MOST])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int4", "uint4"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_parameters_of_extreme_ranges_keep_values_within_half_a_step(dtype, symmetric, isas):
    ranges = [(-3e38, 3e38), (-MOST, MOST), (0, MOST), (-MOST, 0), (-1e38, 3e38), (-1e-44, 1e-44)]
    for lo, hi in [*ranges, (0, 1e-38), (-(2.0**-126), 1e-30), (1e-45, 3e38)]:
        x = np.linspace(lo, hi, 50).astype(np.float32)
        for _ in isas():
            for q, params in (
                qk.dynamic_quantize(x, dtype, symmetric=symmetric),
                (None, qk.choose_qparams(x, dtype, symmetric=symmetric)),
            ):
                assert np.isfinite(params.scale) and params.scale >= 2.0**-126
                q = qk.quantize(x, params) if q is None else q
                exact = (q.astype(np.int64) - int(params.zero_point)) * float(params.scale)
                assert not symmetric or np.isfinite(qk.dequantize(q, params)).all()
                assert np.all(np.abs(exact - x) <= float(params.scale) * (0.5 + 2.0**-6))


def test_decode_and_gguf_round_once(isas):
    levels = np.float32([-1, -0.3, 0, 2.0**-20, 1])
    codes = np.uint8([[0, 1, 2, 3, 4] * 8])
    for scale in (2.0**-149, 2.0**-126, 1e-30, 1.0, 1e38, MOST):
        for _ in isas():
            exact = levels.astype(np.float64)[codes] * float(np.float32(scale))
            y = qk.decode(codes, qk.Codebook(levels, axis=1, block_size=40), np.full((1, 1), scale, np.float32))
            assert_array_equal(bits(y), bits(np.float32(exact)))


@pytest.mark.parametrize("n", [1, 5, 16, 384, 1000])
@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e-30, 1e-20, 1.0, 1e18, 1e20, 1e30, 1e38, 3e38])
def test_layer_norm_is_right_at_all_magnitudes(n, magnitude, everywhere):
    rng = np.random.default_rng(7)
    x = np.float32(rng.choice([-1, 1], (6, n)) * rng.integers(1, 9, (6, n)) / 8 * magnitude)
    x[1], x[2] = np.float32(magnitude), 0
    weight, bias = np.float32(rng.standard_normal(n)), np.float32(rng.standard_normal(n))
    for residual in (None, np.float32(-0.75 * x), np.float32(x * rng.choice([0, 1], x.shape))):
        s = x.astype(np.float64) + (0 if residual is None else residual)
        for eps in (1e-12, 1e-60, 1e30):
            centred = s - s.mean(1, keepdims=True)
            expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + eps) * weight + bias

            def norm(place=None):
                given = [None if a is None else a.copy() for a in (x, residual)]
                out = None if place is None else given[place]
                return qk.layer_norm(given[0], weight, bias, eps=eps, residual=given[1], out=out)

            y = everywhere(norm)
            for place in (0, 1) if residual is not None else (0,):
                assert_array_equal(bits(everywhere(lambda: norm(place))), bits(y))
            constant = np.ptp(s, axis=1) == 0
            assert_allclose(y[~constant], expected[~constant], rtol=1e-4, atol=1e-5)
            assert not np.isnan(y).any()


def test_layer_norm_with_huge_weights_and_biases(isas):
    x = np.float32([[1, 2, 3, 4], [1e30, -1e30, 0, 0]])
    weight, bias = np.float32([MOST, -MOST, 1e30, 1]), np.float32([MOST, -MOST / 2, -1e30, 1])
    s = x - x.astype(np.float64).mean(1, keepdims=True)
    expected = s / np.sqrt((s**2).mean(1, keepdims=True)) * weight + bias
    for _ in isas():
        y = qk.layer_norm(x, weight, bias, eps=0)
        check(y, expected, np.abs(expected) + np.abs(bias), 1e-5)
    assert np.isinf(expected.astype(np.float64) > MOST).sum() == 0 and np.isfinite(y).sum() >= 6


def test_attention_scales_with_its_operands(everywhere):
    rng = np.random.default_rng(8)
    q, k = (np.float32(rng.integers(-127, 128, (20, 16))) for _ in range(2))
    v = np.float32(rng.integers(-127, 128, (20, 16)))
    expected = qk.attention(q, k, v, 2, scale=2.0**-12)
    exponents = [(0, 0, of_v) for of_v in (-149, -110, -80, 120)]
    exponents += [(-149, 100, 0), (-149, -149, -149), (100, -120, 0), (110, 110, 119), (-120, 120, -100)]
    for of_q, of_k, of_v in exponents:
        scaled = [np.float32(np.ldexp(a.astype(np.float64), e)) for a, e in ((q, of_q), (k, of_k), (v, of_v))]
        y = everywhere(lambda: qk.attention(*scaled, 2, scale=2.0 ** (-12 - of_q - of_k)))
        assert_allclose(y, np.ldexp(expected.astype(np.float64), of_v), rtol=2e-7, atol=2.0**-149)


def test_attention_to_one_value_gives_that_value(isas):
    for value in (2.0**-149, 1e-40, 2.0**-126, 1e-30, 1.0, 3e38, MOST):
        v = np.full((9, 8), value, np.float32)
        for _ in isas():
            assert_allclose(qk.attention(np.float32(np.eye(9, 8)), np.float32(np.eye(9, 8)), v, 1), v, rtol=2e-7)


def test_silu_goes_to_zero_where_it_should(isas):
    x = np.concatenate([-np.linspace(80, 110, 997), [-200, -1e5, -MOST, -np.inf, np.inf, 89, MOST, 0, -5]]).astype(
        np.float32
    )
    packed = qk.pack(np.zeros((1, len(x)), np.int8), qk.QParams(1))
    exact = ACTIVATIONS["silu"](x.astype(np.float64))
    for _ in isas():
        y = qk.linear(np.zeros((3, 1), np.float32), packed, x, activation="silu")[1]
        assert_array_equal(y == 0, np.abs(exact) < 2.0**-150)
        assert_allclose(y, exact, rtol=5e-7, atol=2.0**-149)
