"""linear with each kind of weights against NumPy, bit for bit by the formulas of docs/numerics.md, sections 8, 12, 16
and 17; on every instruction set, at 1, 2 and 3 threads."""

import itertools
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from common import code_range, layouts, random_codes, refuse, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from products import (
    ACTIVATIONS,
    BLOCKS8,
    EIGHT,
    FOUR,
    FUNCTIONS,
    KINDS,
    NAMES,
    SOME,
    SOME_NAMES,
    matmul_by_numpy,
    random_x,
)

import qkernels as qk

every_kind = pytest.mark.parametrize(("kind", "dtype", "shared"), SOME, ids=SOME_NAMES)

# ---- laws of all kinds ----


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@settings(max_examples=150)
@given(st.data(), layouts, layouts, st.sampled_from([None, "relu"]), st.booleans())
def test_linear_is_the_formula(variants, kind, data, layout, layout_of_b, activation, with_out):
    x, weights, bias = data.draw(kind.layers())
    want = weights.linear(x, bias)
    if activation:
        want = np.maximum(want, np.float32(0))
    for variant in variants():
        packed = weights.pack(layout_of_b)
        out = np.full(want.shape, 77, np.float32) if with_out else None
        got = qk.linear(layout(x), packed, bias, activation=activation, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), weights.b, err_msg=variant, strict=True)


def activated(sums, activation):
    """Return what 8-bit products whose sums are 0 make of these as a bias."""
    zeros = qk.pack(np.zeros((1, sums.size), np.int8), qk.QParams(1))
    return qk.linear(np.zeros((1, 1), np.float32), zeros, sums.ravel(), activation=activation).reshape(sums.shape)


@every_kind
def test_equal_bits_at_any_thread_count(kind, dtype, shared, variants):
    """Shapes that threads share by rows, by columns, and by both; with each activation."""
    rng = np.random.default_rng(0)
    for m, k, n in [(301, 401, 203), (1, 4096, 2048), (1003, 129, 33), (8, 1024, 1024)]:
        x, weights, bias = random_x(rng, m, k), kind.make(rng, k, n, dtype, shared), random_x(rng, n)
        plain = weights.linear(x, bias)
        wants = {activation: activated(plain, activation) for activation in ACTIVATIONS}
        assert_array_equal(wants[None], plain, strict=True)
        for variant in variants():
            packed = weights.pack()
            for activation, want in wants.items():
                got = qk.linear(x, packed, bias, activation=activation)
                assert_array_equal(got, want, err_msg=f"{variant}, {activation}", strict=True)


@pytest.mark.parametrize("code", [127, -128])
def test_sums_of_columns_of_more_than_23_bits(code, isas):
    """Zero points are taken off by pairs of int16 where the sums of columns fit those (section 6); here some do not."""
    rng = np.random.default_rng(0)
    x, bias, weights = random_x(rng, 13, 34_000), random_x(rng, 67), EIGHT.make(rng, 34_000, 67, "int8", None, "none")
    weights.b[:, 40:] = code
    want = weights.linear(x, bias)
    for isa in isas():
        assert_array_equal(qk.linear(x, weights.pack(), bias), want, err_msg=isa, strict=True)


@every_kind
def test_packed_under_one_instruction_set_and_used_under_another(kind, dtype, shared, isas):
    rng = np.random.default_rng(0)
    x, weights, bias = random_x(rng, 37, 131), kind.make(rng, 131, 67, dtype, shared), random_x(rng, 67)
    packed = {isa: weights.pack() for isa in isas()}
    want = weights.linear(x, bias)
    lefts = [random_codes(rng, (37, 131), left) for left in kind.lefts]
    for isa in isas():
        for origin, matrix in packed.items():
            for activation in None, "gelu":
                y = qk.linear(x, matrix, bias, activation=activation)
                assert_array_equal(y, activated(want, activation), err_msg=f"{origin}, {isa}", strict=True)
            for a in lefts:
                sums = matmul_by_numpy(a, weights.b)
                assert_array_equal(qk.matmul(a, matrix), sums, err_msg=f"{origin}, {isa}", strict=True)


@every_kind
def test_an_error_leaves_out_untouched(kind, dtype, shared, isas):
    packed = kind.make(np.random.default_rng(0), 64, 3, dtype, shared).pack()
    x, out = np.ones((20, 64), np.float32), np.full((20, 3), 7, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[19, 63] = bad
        for _ in isas():
            for options in {}, {"out": out}:
                with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(19, 63\)"):
                    qk.linear(wrong, packed, **options)
    linear = partial(qk.linear, packed=packed, out=out)
    for refusal in refused(r"""
        linear(x[:, :63])  # ValueError: x must have 64 columns
        linear(x, bias=np.ones(4))  # ValueError: bias
        linear(x, activation="tanh")  # ValueError: activation
        linear(x, bias=np.ones(3, int))  # TypeError: bias
        linear(x.astype(int))  # TypeError: x must be
        linear(x, out=x.reshape(-1)[:60].reshape(20, 3))  # ValueError: out must not overlap x
    """):
        refuse(refusal, globals() | locals())
    assert (out == 7).all() and (x == 1).all()


# ---- a scale for each block of rows ----

BLOCKED = [(kind, dtype) for kind in (FOUR, BLOCKS8) for dtype in kind.dtypes]


@pytest.mark.parametrize(("kind", "dtype"), BLOCKED, ids=[dtype for _, dtype in BLOCKED])
@pytest.mark.parametrize("shared", [32, 40, 128, 255, 256, 1024, "column"])
def test_worst_cases_of_blocks(kind, dtype, shared, isas):
    """Every factor at an end of its range, where a sum of 16 bits would be largest."""
    kind = EIGHT if kind is BLOCKS8 and shared == "column" else kind  # no blocks, but one sum
    (low, high), k, n = code_range(dtype), 1000, 40
    for sign in (1, -1):
        x = np.full((70, k), 127.0 * sign, np.float32)
        ends = itertools.product((low, high), (low, high, 0))
        for code, zero in [*ends, (low, (low + high + 1) // 2)]:
            for own in (False, True):
                weights = kind.make(np.random.default_rng(0), k, n, dtype, shared)
                params, b = weights.params, np.full((k, n), code, weights.b.dtype)
                zeros = np.full(params.scale.shape, zero)
                if own:
                    zeros.flat[::3] = low + high - zero
                params = qk.QParams(params.scale, zeros, dtype, axis=params.axis, block_size=params.block_size)
                want = np.tile(kind.linear(x[:1], b, params), (70, 1))
                for isa in isas():
                    packed = qk.pack(b, params)
                    for m in (5, 70):  # panels of 4 bits become bytes for many rows
                        assert_array_equal(qk.linear(x[:m], packed), want[:m], err_msg=isa, strict=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
def test_blocks_are_near_the_float_product(dtype, symmetric):
    """The error is that of half a step of x in each factor."""
    rng = np.random.default_rng(0)
    x, w = random_x(rng, 50, 384), rng.normal(0.01, 0.05, (384, 200)).astype(np.float32)
    params = qk.choose_qparams(w, dtype, axis=0, block_size=32, symmetric=symmetric)
    codes = qk.quantize(w, params)
    real = qk.dequantize(codes, params).astype(np.float64)
    y = qk.linear(x, qk.pack(codes, params))
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(y - x.astype(np.float64) @ real) <= step / 2 * np.abs(real).sum(0) * 1.001).all()
    least = 0.99 if "4" in dtype else 0.9999
    assert np.corrcoef(y.ravel(), (x.astype(np.float64) @ w).ravel())[0, 1] > least


# ---- 8 bits ----


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
    want = EIGHT.linear(x.astype(np.float32), b, packed.params, bias=bias.astype(np.float32))
    for isa in isas():
        assert_array_equal(qk.linear(x, packed, bias), want, err_msg=isa, strict=True)
        same = x.tolist() if dtype is np.float64 else x[:, ::-1].copy()[:, ::-1]
        assert_array_equal(qk.linear(same, packed, bias[::-1].copy()[::-1]), want, err_msg=isa, strict=True)


def rows_about_ties(scale):
    """Return rows whose codes are at ties or so many units of the last place from them, some with ends that saturate,
    one of zeros, one of a constant."""
    rng = np.random.default_rng(0)
    ties = np.float32((np.arange(-100, 100) + 0.5) * np.float64(scale))
    units = np.repeat([0, 1, -1, 2, -2, 3, -3, 4, -4, 6, -6, 8, -8, 12, -12, 100], 3)[:, None].astype(np.int32)
    rows = (np.resize(ties, (len(units), 397)).view(np.int32) + units).view(np.float32)
    rows = rng.permuted(rows, axis=1)  # of 397, the last group of codes is not whole
    zero_points = rng.integers(101, 155, len(rows)) + np.where(np.arange(len(rows)) % 3, 0, 0.5)
    rows[:, 7], rows[:, -3] = -zero_points * scale, (255 - zero_points) * scale
    rows[5], rows[6] = 0, 3 * scale
    return rows


@pytest.mark.parametrize("scale", [1, 0.1, 2.0**-64, 2.0**-63 / 3, 1e20])
def test_codes_of_rows_are_those_of_quantize(scale, everywhere):
    x = rows_about_ties(np.float32(scale))
    identity = qk.pack(np.eye(x.shape[1], dtype=np.int8), qk.QParams(1.0))
    params = [qk.choose_qparams(row, "uint8") for row in x]
    want = np.stack([qk.dequantize(qk.quantize(row, p), p) for row, p in zip(x, params, strict=True)])
    assert_array_equal(everywhere(lambda: qk.linear(x, identity)), want, strict=True)


@pytest.mark.parametrize(
    ("activation", "absolute", "relative"), [("gelu", 3.6e-7, 0), ("gelu_tanh", 2.5e-7, 0), ("silu", 0, 2e-7)]
)
def test_activations_are_near_the_functions(activation, absolute, relative, everywhere):
    """Where the product is 0 the bias alone goes through the activation: it sweeps the floats. What the result may be
    off by, beside the half unit in the last place that rounding takes."""
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
    y = everywhere(lambda: activated(bias, activation))
    half_unit = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64) / 2
    assert (np.abs(y - want) <= absolute + relative * np.abs(want) + half_unit).all()


@pytest.mark.parametrize(("activation", "off_by"), [("gelu", 0), ("gelu_tanh", 0), ("silu", 1e-36)])
def test_activations_of_large_negative_values_vanish(activation, off_by):
    bias = np.float32([-13, -88, -88.4, -104, -1e10, -3.4e38])
    if activation == "silu":
        bias = bias[2:]
    assert np.abs(activated(bias, activation)).max() <= off_by


@settings(max_examples=60)
@given(EIGHT.layers(), layouts, st.sampled_from([None, "relu", "gelu", "gelu_tanh", "silu"]), st.data())
def test_residual_and_clamp(variants, layer, layout, activation, data):
    """activation(x @ w + bias + residual), clamped; the residual may be `out`."""
    x, weights, bias = layer
    sums = weights.linear(x, bias)
    residual = np.random.default_rng(0).normal(0, 3, sums.shape).astype(np.float32)
    clamp = data.draw(st.sampled_from([None, (0, 6), (-0.5, None), (None, 1), (2, 2), (None, None)]))
    in_place = data.draw(st.booleans())
    want = activated(sums + residual, activation)
    if clamp:
        want = np.clip(
            want, *(limit if bound is None else bound for bound, limit in zip(clamp, np.float32([-np.inf, np.inf])))
        )
    how = dict(activation=activation, clamp=clamp)
    for variant in variants():
        given = residual.copy() if in_place else layout(residual)
        got = qk.linear(x, weights.pack(), bias, residual=given, out=given if in_place else None, **how)
        assert (got is given) == in_place
        assert_array_equal(got, want, err_msg=variant, strict=True)


@every_kind
def test_an_input_has_to_be_finite_where_there_are_no_columns(kind, dtype, shared, isas):
    packed = kind.make(np.random.default_rng(0), 64, 0, dtype, shared).pack()
    x = np.ones((2, 64), np.float32)
    assert qk.linear(x, packed).shape == (2, 0)
    x[1, 5] = np.nan
    for _ in isas():
        for options in {}, {"out": np.empty((2, 0), np.float32)}:
            with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(1, 5\)"):
                qk.linear(x, packed, **options)


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


def test_linear_refuses_weights_that_can_overflow():
    longest = (2**31 - 1) // (255 * 128)
    x, out = np.ones((1, longest), np.float32), np.full((1, 1), 77, np.float32)
    longer = qk.pack(np.full((longest + 1, 1), -128, np.int8), qk.QParams(1))
    assert qk.linear(x, qk.pack(longer.unpack()[1:], qk.QParams(1)))[0, 0] == pytest.approx(-128 * longest)
    with pytest.raises(ValueError, match=f"int32 could overflow.*{128 * (longest + 1)}.*255"):
        qk.linear(np.ones((1, longest + 1), np.float32), longer, out=out)
    assert out == 77


# ---- codes of x, whose scale is known (numerics 25) ----


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("m, k, n", [(1, 384, 70), (37, 30, 33), (50, 64, 1), (100, 260, 96)])
def test_linear_of_codes_is_that_of_one_scale(m, k, n, dtype, everywhere):
    rng = np.random.default_rng(m)
    q, params = random_codes(rng, (m, k), dtype), qk.QParams(0.03, np.iinfo(dtype).min + 131, dtype)
    for b_dtype, zeros in ("int8", None), ("uint8", rng.integers(0, 256, n)):
        b, of_b = random_codes(rng, (k, n), b_dtype), qk.QParams(rng.uniform(0.01, 0.1, n), zeros, b_dtype, axis=1)
        packed, bias, residual = qk.pack(b, of_b), *rng.normal(0, 9, (2, m, n)).astype(np.float32)
        sums = matmul_by_numpy(q, b, a_zero_point=params.zero_point, b_zero_point=of_b.zero_point)
        want = np.float32(sums) * (params.scale * of_b.scale) + bias[0]
        layer = partial(qk.linear, params=params)
        assert_array_equal(everywhere(lambda: layer(q, packed, bias[0])), want, strict=True)  # noqa: B023
        assert_array_equal(layer(q[::2, ::-1][:, ::-1], packed, bias[0]), want[::2], strict=True)
        zero, nothing = np.zeros((m, 1), np.float32), qk.pack(np.zeros((1, n), np.int8), qk.QParams(1.0))
        for activation in ACTIVATIONS:
            how = dict(activation=activation, clamp=(-3, 5))
            got = everywhere(lambda: layer(q, packed, bias[0], residual=residual, **how))  # noqa: B023
            assert_array_equal(got, qk.linear(zero, nothing, residual=want + residual, **how), strict=True)


@pytest.mark.parametrize(("scale", "weight"), [(-126, -10), (-100, -40), (100, 20), (120, -120)])
def test_linear_of_codes_keeps_scales_whose_product_leaves_float32(scale, weight, everywhere):
    q, b = np.full((5, 40), 3, np.int8), np.ones((40, 33), np.int8)
    q[0] = 0
    packed = qk.pack(b, qk.QParams(np.full(33, 2.0**weight), axis=1))
    y = everywhere(lambda: qk.linear(q, packed, params=qk.QParams(2.0**scale)))
    assert (y[0] == 0).all() and (y[1:] == 120 * 2.0 ** (scale + weight)).all()


@pytest.mark.parametrize(
    "refusal",
    refused(r"""
layer(x=X)  # TypeError: x must have dtype int8 \(as params\), got float32
layer(params=qk.QParams([1, 1], axis=1))  # ValueError: params must be per tensor
layer(params=qk.QParams(1, dtype="int16"))  # TypeError: params must have dtype int8 or uint8, got int16
layer(packed=qk.pack(np.ones((2, 3), np.float16), None))  # TypeError: packed must
layer(x=Q[:, :1])  # ValueError: x must have 2 columns
layer(out=X)  # ValueError: out must have shape
"""),
)
def test_linear_of_codes_refuses(refusal):
    codes = np.ones((4, 2), np.int8)
    params = qk.QParams(1)
    layer = partial(qk.linear, x=codes, packed=qk.pack(np.ones((2, 3), np.int8), params), params=params)
    refuse(refusal, globals() | {"layer": layer, "X": np.ones((4, 2), np.float32), "Q": codes})
