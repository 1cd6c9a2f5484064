"""qlinear against NumPy, bit for bit by the formulas of docs/numerics.md, sections 7 and 8; on every instruction set,
at 1, 2 and 3 threads; and the weights that it refuses, since their sums could overflow."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from common import answer, code_range, layouts, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from products import EIGHT, FUNCTIONS, PAIRS, exact, shapes_of_rows, sizes, wrapped

import qkernels as qk


@st.composite
def integer_layers(draw):
    """q, its params, weights, theirs, params of the result, bias, rounding, activation."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, n, rows = draw(sizes), draw(sizes), draw(shapes_of_rows)
    (a_dtype, b_dtype), out_dtype = draw(st.sampled_from(PAIRS)), draw(st.sampled_from(["int8", "uint8"]))
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


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_a_single_column_is_that_of_wide_weights(activation, everywhere):
    """linear and qlinear with one output, of more rows than are computed as tiles, against two equal columns."""
    rng = np.random.default_rng(7)
    b, x = rng.integers(-128, 128, (65, 1)).astype(np.int8), rng.normal(0, 1, (100, 65)).astype(np.float32)
    params, to = qk.QParams(0.02, 3), qk.QParams(0.1, -5)
    weights, q = qk.QParams(0.01), qk.quantize(x, params)
    one, two = (qk.pack(np.repeat(b, n, axis=1), weights) for n in (1, 2))
    call = dict(activation=activation)
    wide = qk.qlinear(q, params, two, to, np.float32([0.3, 0.3]), **call)[:, :1]
    assert_array_equal(everywhere(lambda: qk.qlinear(q, params, one, to, np.float32([0.3]), **call)), wide)
    wide = qk.linear(x, two, np.float32([0.3, 0.3]), **call)[:, :1]
    assert_array_equal(everywhere(lambda: qk.linear(x, qk.pack(b, weights), np.float32([0.3]), **call)), wide)


@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 33, 48, 63])
def test_few_columns_of_any_number_of_rows(n, everywhere):
    """Sums of the last columns may become codes in registers, four rows at a time."""
    rng = np.random.default_rng(n)
    for dtype, clamp in (("uint8", None), ("int8", (-3, 2))):
        b, weights = rng.integers(-128, 128, (37, n)).astype(np.int8), qk.QParams(rng.uniform(0.01, 0.02, n), axis=1)
        params, to = qk.QParams(0.05, 9, dtype), qk.QParams(0.6, 4, dtype)
        bias = rng.integers(-9000, 9000, n).astype(np.int32)
        for m in (*range(1, 14), 29, 300):
            q = rng.integers(0, 256, (m, 37), np.uint8).view(dtype)
            sums = (q.astype(int) - 9) @ b.astype(int) + bias
            real = sums.astype(np.float32) * (params.scale * weights.scale / to.scale)
            bounds = to.qmin, to.qmax
            if clamp:
                bounds = qk.quantize(np.float32(clamp), to).astype(int)
            want = np.clip(np.rint(real) + 4, *bounds).astype(dtype)
            got = everywhere(lambda: qk.qlinear(q, params, qk.pack(b, weights), to, bias, clamp=clamp))  # noqa: B023
            assert_array_equal(got, want, err_msg=f"{m} rows", strict=True)


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
def test_qlinear_with_an_activation_of_real_values(activation, everywhere, layer):
    q, params, b, weights, to, bias = layer
    real = exact(q, b, params.zero_point, weights.zero_point)
    scale = np.float64(params.scale) * np.float64(weights.scale)
    if bias is not None:
        real = real + (bias if bias.dtype == np.int32 else bias / scale)
    real = real * scale
    want = FUNCTIONS[activation](real.reshape(-1)).reshape(real.shape) / to.scale + to.zero_point
    want = np.clip(want, to.qmin, to.qmax)
    got = everywhere(lambda: qk.qlinear(q, params, qk.pack(b, weights), to, bias, activation=activation))
    assert (np.abs(got - want) <= 0.501).all()


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
    """Of weights that are accepted, the row that makes the largest sum, and that which makes the smallest, are
    exact."""
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
            assert_array_equal(qk.linear(x, packed)[0], EIGHT.linear(x, b, packed.params)[0], err_msg=isa)
        params, to = qk.QParams(1, a_zero_point, a_dtype), qk.QParams(2.0**24)
        if bound > 2**31 - 1:
            with pytest.raises(ValueError, match=f"int32 could overflow.*{bound} exceeds"):
                qk.qlinear(q, params, packed, to)
        else:
            want = np.rint((q.astype(np.int64) - a_zero_point) @ distances / 2.0**24)
            assert_array_equal(qk.qlinear(q, params, packed, to), np.clip(want, -128, 127), err_msg=isa)


def test_an_int32_bias_counts_among_what_can_overflow():
    packed, params, to = qk.pack(np.int8([[127, 1]]), qk.QParams(1)), qk.QParams(1), qk.QParams(1e9)
    most = 2**31 - 1 - 127 * 128
    assert_array_equal(qk.qlinear(np.int8([[127]]), params, packed, to, np.int32([most, -most])), [[2, -2]])
    with pytest.raises(ValueError, match="int32 could overflow"):
        qk.qlinear(np.int8([[127]]), params, packed, to, np.int32([most + 1, 0]))


# ---- what a call keeps with the weights for the next ----

PARAMS, TO = qk.QParams(0.05, 3, "uint8"), qk.QParams(0.9, 120, "uint8")
OPTIONS = [
    {},
    {"activation": "relu"},
    {"activation": "gelu"},
    {"clamp": (0, 6)},
    {"clamp": (0.0, 3.0)},
    {"clamp": [0, 3]},
    {"clamp": (np.float32(0), None)},
    {"rounding": "half_away"},
    {"rounding": "tflite", "clamp": (True, 6)},
]


def calls_of_a_layer(rng, q, n):
    """Return positional and keyword arguments, those of the weights left out: (q, params), (to, bias), options."""
    bias = rng.integers(-2000, 2000, n).astype(np.int32)
    small = qk.QParams(1e-4, 0, "int8")
    calls = [((q, PARAMS), (TO, bias), options) for options in OPTIONS]
    of_codes = [(q, qk.QParams(0.05, 3, "uint8")), (q, qk.QParams(0.05, 9, "uint8")), (q[:, ::-1], PARAMS)]
    of_codes += [(q.view(np.int8), qk.QParams(0.05, -9, "int8")), (q[:1], PARAMS), (q[..., :-1], PARAMS), (q, small)]
    calls += [(codes, (TO, bias), {}) for codes in of_codes]
    biases = [None, bias.copy(), -bias, bias.astype(np.int64), bias * np.float32(1e-3), bias[:-1], list(bias)]
    calls += [((q, PARAMS), (TO, b), {}) for b in biases]
    return calls + [((q, PARAMS), (to, bias), {}) for to in (small, qk.QParams(0.9, 120, "uint8"), 7)]


@pytest.mark.parametrize("zero_point", [0, 5])
def test_a_call_does_not_depend_on_the_one_before(isas, zero_point):
    """Each after each other one, with the same weights: as with weights that are packed for it, errors included."""
    rng = np.random.default_rng(0)
    q, b = random_codes(rng, (3, 19), "uint8"), random_codes(rng, (19, 37), "int8")
    weights = qk.QParams(rng.uniform(0.01, 0.02, 37), np.full(37, zero_point), axis=1)
    calls = calls_of_a_layer(rng, q, 37)
    for name in isas():
        wants = [answer(lambda: qk.qlinear(*x, qk.pack(b, weights), *to, **how)) for x, to, how in calls]
        packed = qk.pack(b, weights)
        for first, _ in enumerate(calls):
            for second, want in enumerate(wants):
                for number in first, second, second:
                    x, to, how = calls[number]
                    got = answer(lambda: qk.qlinear(*x, packed, *to, **how))
                assert np.array_equal(got, want), (name, calls[first], calls[second])


def test_a_bias_and_a_clamp_may_change_in_place():
    rng = np.random.default_rng(0)
    q, b, bias, clamp = (
        random_codes(rng, (3, 19), "uint8"),
        random_codes(rng, (19, 37), "int8"),
        np.int32([0] * 37),
        [0, 9],
    )
    for made in bias, bias.astype(np.float32):
        packed = qk.pack(b, qk.QParams(0.01))
        for i in range(37):
            made[i], clamp[1] = 1000 + i, i
            for how in {}, {"clamp": clamp}:
                got, want = (qk.qlinear(q, PARAMS, p, TO, made, **how) for p in (packed, qk.pack(b, qk.QParams(0.01))))
                assert_array_equal(got, want)


def test_threads_share_weights_and_what_they_keep():
    rng = np.random.default_rng(0)
    q, b = random_codes(rng, (2, 19), "uint8"), random_codes(rng, (19, 37), "int8")
    packed = qk.pack(b, qk.QParams(0.01))
    biases = [np.full(37, i * 500, np.int32) for i in range(4)]
    wants = [qk.qlinear(q, PARAMS, qk.pack(b, qk.QParams(0.01)), TO, bias) for bias in biases]

    def work(number):
        return all(
            np.array_equal(qk.qlinear(q, PARAMS, packed, TO, biases[i % 4]), wants[i % 4])
            for i in range(number, 2000, 1 + number)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_nbytes_counts_what_is_kept():
    packed = qk.pack(np.ones((64, 96), np.int8), qk.QParams(0.01))
    before, bias = packed.nbytes, np.ones(96, np.int32)
    qk.qlinear(np.ones((1, 64), np.uint8), PARAMS, packed, TO, bias)
    assert packed.nbytes == before + 3 * bias.nbytes
    qk.qlinear(np.ones((1, 64), np.uint8), PARAMS, packed, TO)
    assert packed.nbytes == before + 2 * bias.nbytes
