"""requantize and quantize_multiplier against fractions: each rounding as its source defines it, on exact numbers.

The fixed-point definitions are those of gemmlowp's fixedpoint.h (SaturatingRoundingDoublingHighMul rounds ties up,
RoundingDivideByPOT away from zero) and of TensorFlow Lite's MultiplyByQuantizedMultiplier under TFLITE_SINGLE_ROUNDING
(ties up). What LiteRT's binaries answer is in conformance/test_litert.py.
"""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from common import ANY_AXES, INT_CODES, code_range, refusals, refuse
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import qkernels as qk

ROUNDINGS = ["half_even", "half_away", "gemmlowp", "tflite"]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)


def saturate(v, lo=INT32_MIN, hi=INT32_MAX):
    return min(max(v, lo), hi)


def wrap(v):
    return (v - INT32_MIN) % 2**32 + INT32_MIN


def half_up(v):
    return math.floor(v + Fraction(1, 2))


def half_away(v):
    return half_up(v) if v >= 0 else -half_up(-v)


def in_float(acc, multiplier):
    """The product that the float roundings round: each factor, and then the product, to float32."""
    return Fraction(float(np.float32(acc) * np.float32(multiplier)))


def gemmlowp(acc, multiplier):
    mantissa, shift = qk.quantize_multiplier(multiplier)
    high = half_up(Fraction(saturate(acc * 2 ** max(shift, 0)) * mantissa, 2**31))
    return half_away(Fraction(high, 2 ** max(-shift, 0)))


def tflite(acc, multiplier):
    mantissa, shift = qk.quantize_multiplier(multiplier)
    return half_up(Fraction(acc * mantissa, 2 ** (31 - shift)))


ROUND = {
    "half_even": lambda acc, multiplier: round(in_float(acc, multiplier)),
    "half_away": lambda acc, multiplier: half_away(in_float(acc, multiplier)),
    "gemmlowp": gemmlowp,
    "tflite": tflite,
}


def exact(acc, multiplier, params, bias, rounding):
    """The codes of acc (rows, n), as integers; multiplier and bias have n entries."""
    return [
        [
            saturate(ROUND[rounding](wrap(int(a) + int(b)), m) + int(params.zero_point), params.qmin, params.qmax)
            for a, b, m in zip(row, bias, multiplier)
        ]
        for row in acc
    ]


# ---- quantize_multiplier ----

multipliers = st.builds(
    math.ldexp,
    st.one_of(st.floats(0.5, 1, exclude_max=True), st.sampled_from([0.5, 0.75, 1 - 2**-53])),
    st.integers(-36, 36),
)


@given(multipliers)
@example(math.ldexp(2**31 - 0.5, -31))  # a tie: the mantissa would be 2**31
@example(math.ldexp(2**31 - 1.5, -31))
@example(math.ldexp(2**30 + 0.5, -30))
@example(math.nextafter(2.0**30, 0))
def test_mantissa_is_the_nearest(m):
    mantissa, shift = qk.quantize_multiplier(m)
    if m < math.nextafter(2.0**-32, 0) or m > 2**30 - 0.25:
        assert (mantissa, shift) == ((0, 0) if m < 1 else (INT32_MAX, 30))
    else:
        assert 2**30 <= mantissa <= INT32_MAX and -31 <= shift <= 30
        unit = Fraction(2) ** (shift - 31)
        error = Fraction(m) - mantissa * unit
        # Half a unit below the power of two where the mantissa was halved. Ties go up.
        assert -unit / 2 <= error < unit / 2


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (0.5, (2**30, 0)),
        (1.0, (2**30, 1)),
        (0.1, (1717986918, -3)),
        (3.0, (3 * 2**29, 2)),
        (0.0, (0, 0)),
        (1 - 2**-53, (2**30, 1)),
        (1 - 2**-31, (INT32_MAX, 0)),
        (2.0**-32, (2**30, -31)),
        (2.0**-33, (0, 0)),
        (math.nextafter(2.0**-32, 0), (2**30, -31)),
        (5e-324, (0, 0)),
        (2.0**29, (2**30, 30)),
        (2.0**30, (INT32_MAX, 30)),
        (1.7976931348623157e308, (INT32_MAX, 30)),
    ],
)
def test_quantize_multiplier_examples(m, expected):
    assert qk.quantize_multiplier(m) == expected


@pytest.mark.parametrize("m", [-1.0, -5e-324, math.nan, math.inf, -math.inf])
def test_quantize_multiplier_refuses(m):
    with pytest.raises(ValueError, match=f"m must be finite and not negative, got {m}"):
        qk.quantize_multiplier(m)


@pytest.mark.parametrize("m", [None, "0.1", 1j])
def test_quantize_multiplier_takes_numbers(m):
    with pytest.raises(TypeError, match=f"m must be a float or an array of floats, got {m!r}"):
        qk.quantize_multiplier(m)


# ---- requantize ----


@st.composite
def problems(draw):
    """acc (rows, n), multiplier, params, bias: sums at or beside midpoints between codes, and extremes."""
    n = draw(st.integers(1, 5))
    multiplier = draw(st.one_of(multipliers, st.lists(multipliers, min_size=n, max_size=n).map(np.float64)))
    dtype = draw(st.sampled_from(INT_CODES))
    qmin, qmax = code_range(dtype)
    zero_point = draw(st.integers(qmin, qmax))
    midpoints = st.builds(
        lambda code, m, step: saturate(round((code + 0.5) / m) + step),
        st.integers(qmin - zero_point - 1, qmax - zero_point),
        st.sampled_from(np.atleast_1d(multiplier).tolist()),
        st.integers(-2, 2),
    )
    extremes = st.sampled_from([INT32_MIN, INT32_MIN + 1, -1, 0, 1, INT32_MAX - 1, INT32_MAX])
    sums = st.one_of(midpoints, midpoints, extremes, st.integers(INT32_MIN, INT32_MAX))
    acc = draw(st.lists(st.lists(sums, min_size=n, max_size=n), min_size=4, max_size=20))
    bias = draw(st.none() | st.lists(sums, min_size=n, max_size=n).map(np.int32))
    if bias is not None:
        acc = [[wrap(a - int(b)) for a, b in zip(row, bias)] for row in acc]
    return np.array(acc, np.int32), multiplier, qk.QParams(1, zero_point, dtype), bias


@every_rounding
@given(problems())
def test_exact(rounding, isas, problem):
    acc, multiplier, params, bias = problem
    n = acc.shape[1]
    want = exact(acc, np.broadcast_to(multiplier, n).tolist(), params, [0] * n if bias is None else bias, rounding)
    for isa in isas():
        got = qk.requantize(acc, multiplier, params, bias=bias, rounding=rounding)
        assert got.dtype == params.dtype and got.shape == acc.shape
        assert_array_equal(got.astype(np.int64), want, err_msg=isa)


@every_rounding
@pytest.mark.parametrize(
    "multiplier", [2.0**-40, 2.0**-32, 2.0**-31, 0.5, 1 - 2**-24, 1.0, 1.5, 2.0**16, 2.0**30, 2.0**31]
)
@pytest.mark.parametrize("dtype", ["int8", "uint16"])
def test_extremes(rounding, multiplier, dtype, isas):
    """Every sum within 4 of -2**31, -2**30, 0, 2**30 and 2**31."""
    acc = np.array(
        [v for at in (INT32_MIN, -(2**30), 0, 2**30, INT32_MAX) for v in range(at - 4, at + 5) if wrap(v) == v],
        np.int32,
    )
    params = qk.QParams(1, 3, dtype)
    (want,) = exact([acc], [multiplier] * len(acc), params, [0] * len(acc), rounding)
    for isa in isas():
        got = qk.requantize(acc, multiplier, params, rounding=rounding)
        assert_array_equal(got.astype(np.int64), want, err_msg=isa)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        #            -7/2 -5/2 -3/2 -1/2  1/2  3/2  5/2  7/2
        ("half_even", [-4, -2, -2, 0, 0, 2, 2, 4]),
        ("half_away", [-4, -3, -2, -1, 1, 2, 3, 4]),
        ("gemmlowp", [-3, -2, -1, 0, 1, 2, 3, 4]),
        ("tflite", [-3, -2, -1, 0, 1, 2, 3, 4]),
    ],
)
def test_ties(rounding, expected, isas):
    acc = np.arange(-7, 8, 2, dtype=np.int32)
    for isa in isas():
        assert_array_equal(qk.requantize(acc, 0.5, qk.QParams(1), rounding=rounding), expected, err_msg=isa)


def test_gemmlowp_rounds_twice(isas):
    """A tie of the second rounding goes away from zero, also where it is the first rounding that made the tie."""
    for isa in isas():
        assert_array_equal(
            qk.requantize(np.int32([-6, 6]), 0.25, qk.QParams(1), rounding="gemmlowp"), [-2, 2], err_msg=isa
        )
        assert_array_equal(
            qk.requantize(np.int32([-6, 6]), 0.25, qk.QParams(1), rounding="tflite"), [-1, 2], err_msg=isa
        )
        # 5 * 0.7 / 8 = 0.4375: first 3.5 to 4, then 4 / 8 to 1.
        assert_array_equal(qk.requantize(np.int32([5]), 0.7 / 8, qk.QParams(1), rounding="gemmlowp"), [1], err_msg=isa)
        assert_array_equal(qk.requantize(np.int32([5]), 0.7 / 8, qk.QParams(1), rounding="tflite"), [0], err_msg=isa)


@every_rounding
def test_every_sum_times_one_is_itself(rounding, isas):
    acc = np.arange(-40_000, 40_000, dtype=np.int32)
    for isa in isas():
        got = qk.requantize(acc, 1.0, qk.QParams(1, dtype="int16"), rounding=rounding)
        assert_array_equal(got, np.clip(acc, -(2**15), 2**15 - 1), err_msg=isa)


@pytest.mark.parametrize("rounding", ["half_even", "half_away"])
@pytest.mark.parametrize(("multiplier", "expected"), [(1e-300, [5, 5, 5, 5, 5]), (1e300, [-128, -128, 5, 127, 127])])
def test_multipliers_beyond_float32(rounding, multiplier, expected, isas):
    acc = np.array([INT32_MIN, -1, 0, 1, INT32_MAX], np.int32)
    for isa in isas():
        assert_array_equal(qk.requantize(acc, multiplier, qk.QParams(1, 5), rounding=rounding), expected, err_msg=isa)


def test_only_dtype_zero_point_and_range_of_params_count():
    acc = np.arange(-300, 300, dtype=np.int32)
    narrow = qk.choose_qparams(np.float32([-1, 1]), "int8")
    assert_array_equal(qk.requantize(acc, 0.3, qk.QParams(7e-5, 2)), qk.requantize(acc, 0.3, qk.QParams(1, 2)))
    for rounding in ROUNDINGS:
        assert qk.requantize(acc, 1.0, narrow, rounding=rounding).min() == narrow.qmin == -127


@every_rounding
def test_equal_bits_at_any_thread_count(rounding, everywhere):
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**20), 2**20, (997, 503), dtype=np.int32)
    multiplier, bias = rng.uniform(1e-5, 3e-4, 503), rng.integers(-(2**18), 2**18, 503, dtype=np.int32)
    params = qk.QParams(1, -3)
    few = [0, 250, 500, 996]
    want = exact(acc[few], multiplier.tolist(), params, bias, rounding)
    got = everywhere(lambda: qk.requantize(acc, multiplier, params, bias=bias, rounding=rounding))
    assert_array_equal(got[few], want)


# ---- shapes and layouts ----


@every_rounding
@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint4"])
@pytest.mark.parametrize("shape", [(), (1,), (257,), (3, 5, 31), (0,), (0, 5), (5, 0), (2, 0, 3), (2, 3, 0)])
def test_shapes(rounding, dtype, shape, isas):
    rng = np.random.default_rng(0)
    acc = rng.integers(-100, 100, shape, dtype=np.int32)
    params = qk.QParams(1, 1, dtype)
    want = [exact([[a]], [0.3], params, [0], rounding)[0][0] for a in acc.reshape(-1)]
    for isa in isas():
        out = np.zeros(shape, params.dtype)
        got = qk.requantize(acc, 0.3, params, rounding=rounding)
        assert qk.requantize(acc, 0.3, params, rounding=rounding, out=out) is out
        for result in (got, out):
            assert result.shape == shape and result.dtype == params.dtype
            assert_array_equal(result.reshape(-1).astype(np.int64), want, err_msg=isa)


@pytest.mark.parametrize("layout", sorted(ANY_AXES.keys() - {"contiguous"}))
def test_layouts(layout, isas):
    rng = np.random.default_rng(0)
    acc = rng.integers(-2000, 2000, (7, 131), dtype=np.int32)
    multiplier, bias = rng.uniform(0.01, 0.2, 131), rng.integers(-99, 99, 131, dtype=np.int32)
    params = qk.QParams(1, 4)
    other = ANY_AXES[layout](acc)
    assert not (other.flags.c_contiguous and other.flags.aligned and other.flags.writeable and other.dtype.isnative)
    wide = np.repeat(np.stack([multiplier, bias]), 2, axis=1)[:, ::2]
    for rounding in ROUNDINGS:
        for isa in isas():
            want = qk.requantize(acc, multiplier, params, bias=bias, rounding=rounding)
            assert_array_equal(
                qk.requantize(other, multiplier, params, bias=bias, rounding=rounding), want, err_msg=isa
            )
            got = qk.requantize(acc, wide[0], params, bias=wide[1].astype(np.int32), rounding=rounding)
            assert_array_equal(got, want, err_msg=isa)


# ---- bad input ----

ACC = np.arange(12, dtype=np.int32).reshape(3, 4)
PARAMS = qk.QParams(1)


@refusals(r"""
requantize(acc=ACC.astype(np.int64))  # TypeError: acc must be int32, got int64
requantize(acc=ACC.astype(np.float32))  # TypeError: acc must be int32, got float32
requantize(acc=ACC.astype(np.uint32))  # TypeError: acc must be int32, got uint32
requantize(multiplier=0.0)  # ValueError: multiplier must be positive and finite, got 0.0
requantize(multiplier=[1, 1, -0.5, 1])  # ValueError: multiplier must be positive and finite, got -0.5
requantize(multiplier=np.nan)  # ValueError: multiplier must be positive and finite, got nan
requantize(multiplier=np.inf)  # ValueError: multiplier must be positive and finite, got inf
requantize(multiplier=[1.0] * 3)  # ValueError: multiplier must be a scalar or have shape \(4,\), got \(3,\)
requantize(multiplier=np.ones((3, 1)))  # ValueError: multiplier must .* shape \(4,\), got \(3, 1\)
requantize(multiplier="1")  # TypeError: multiplier must be a float or an array of floats, got '1'
requantize(multiplier=1j)  # TypeError: multiplier must be a float or an array of floats, got 1j
requantize(params=0.5)  # TypeError: params must be QParams, got float
requantize(params=qk.QParams([1.0] * 4, axis=1))  # ValueError: params must be per tensor, got axis 1
requantize(params=qk.QParams(1, dtype="float8_e5m2"))  # TypeError: integer dtype, got float8_e5m2
requantize(rounding="up")
    # ValueError: rounding must be one of 'half_even', 'half_away', 'gemmlowp', 'tflite', got 'up'
requantize(rounding=None)  # ValueError: rounding must be one of .*, got None
requantize(bias=np.ones(4, np.float32))  # TypeError: bias must be int32, got float32
requantize(bias=np.ones(3, np.int32))  # ValueError: bias must be .* shape \(4,\), got \(3,\)
requantize(bias=np.full(4, 2**31))  # ValueError: bias must fit int32, got .*2147483648
""")
def test_bad_input(refusal):
    out = np.full((3, 4), 77, np.int8)
    given = {"acc": ACC, "multiplier": 1.0, "params": PARAMS, "out": out}
    refuse(refusal, globals() | {"requantize": partial(qk.requantize, **given)})
    assert (out == 77).all()


@pytest.mark.parametrize("offset", [0, 15, 47])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_out_must_not_overlap_acc(offset, layout):
    memory = np.full(48, 77, np.int8)
    acc, out = memory.view(np.int32), memory[offset:][:1] if offset == 47 else memory[offset:][:12]
    acc, out = (acc[-1:], out) if offset == 47 else (acc.reshape(3, 4), out.reshape(3, 4))
    if layout == "transposed" and offset != 47:
        acc, out = acc.reshape(4, 3).T, out
    with pytest.raises(ValueError, match="out must not overlap acc"):
        qk.requantize(acc, 1.0, PARAMS, out=out)
    assert (memory == 77).all()


def test_out_must_not_overlap_bias():
    memory = np.full(16, 77, np.int8)
    with pytest.raises(ValueError, match="out must not overlap bias"):
        qk.requantize(ACC[:1], 1.0, PARAMS, bias=memory.view(np.int32), out=memory[:4].reshape(1, 4))
    assert (memory == 77).all()
