"""Elementwise operations against the formulas of docs/numerics.md in exact arithmetic: NumPy's IEEE quotient, then
float64, which holds every integer and half here. Each is run by every instruction set, at every place that an array can
have."""

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from common import ANY_AXES, FLOAT_CODES, FLOATS, INT_CODES, bits, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import qkernels as qk

BFLOAT16 = FLOATS[3]
ROUNDINGS = ["half_even", "half_away"]

# Scales at which kernels change their method, and the ends of the range.
SCALES = [s for e in (-64.0, 0.0, 64.0) for s in np.nextafter(np.float32(2**e), np.float32([0, 2**e, 1e38]))]
SCALES += [*np.float32([2.0**-126, 2.0**127]), np.nextafter(np.float32(2.0**-126), np.float32(1))]
SCALES += [np.finfo(np.float32).max]


def assert_same_bits(got, want, message=""):
    assert got.dtype == want.dtype
    assert_array_equal(bits(got), bits(want), err_msg=message, strict=True)


# ---- exact answers ----


def per_element(values, params, shape):
    """The scale or zero point of each element."""
    if params.axis is None:
        return np.broadcast_to(values, shape)
    axis = params.axis % len(shape)
    if params.block_size is not None:
        return np.repeat(values, params.block_size, axis=axis)[tuple(slice(n) for n in shape)]
    return np.broadcast_to(np.reshape(values, [-1 if i == axis else 1 for i in range(len(shape))]), shape)


def exact_codes(x, params, rounding="half_even"):
    scale, zero_point = (per_element(v, params, x.shape) for v in (params.scale, params.zero_point))
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        v = (wide / scale.astype(wide.dtype)).astype(np.float64)
    v = np.clip(np.where(np.isnan(v), 0, v), -(2.0**20), 2.0**20)
    whole = np.trunc(v)
    away = whole + np.copysign(np.abs(v - whole) >= 0.5, v)
    code = (np.rint(v) if rounding == "half_even" else away) + zero_point
    return np.clip(code, params.qmin, params.qmax).astype(np.int32).astype(params.dtype)


def exact_reals(q, params, dtype):
    scale, zero_point = (per_element(v, params, q.shape) for v in (params.scale, params.zero_point))
    difference = (q.astype(np.int64) - zero_point).astype(np.int32)
    with np.errstate(all="ignore"):
        if dtype == np.float64:
            return difference.astype(np.float64) * scale.astype(np.float64)
        return (difference.astype(np.float32) * scale).astype(dtype)


# ---- values, parameters and places that are drawn ----


@st.composite
def cases(draw, dtypes=INT_CODES, floats=FLOATS, scales=True):
    """(x, params): values at ties, beside them, extreme and any; scales of all sizes, alone or per axis or block."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ndim = draw(st.integers(0, 3))
    shape = [draw(st.integers(0, 9)) for _ in range(ndim)]
    if ndim:
        shape[draw(st.integers(0, ndim - 1))] = draw(st.integers(0, 200))
    dtype, of = draw(st.sampled_from(dtypes)), draw(st.sampled_from(floats))
    axis = draw(st.none() | st.integers(-ndim, ndim - 1)) if ndim else None
    few, block = [], None
    if axis is not None:
        block = draw(st.none() | st.integers(1, 250))
        blocks = [-(-n // block) if block and i == axis % ndim else n for i, n in enumerate(shape)]
        few = blocks if block else [shape[axis]]
    near = rng.choice(SCALES, few) if draw(st.booleans()) else np.float32(1)
    scale = near * 2.0 ** rng.uniform(*draw(st.sampled_from([(0, 0), (-2, 2), (-126, 127)])), few)
    scale = np.clip(scale, 2.0**-126, np.finfo(np.float32).max)
    if dtype in FLOAT_CODES:
        params = qk.QParams(scale, dtype=dtype, axis=axis, block_size=block)
        return values(rng, params, tuple(shape), of), params
    narrow = draw(st.booleans())
    range_of = qk.QParams(1, 1 if narrow else None, dtype, narrow_range=narrow)
    zero_point = rng.integers(range_of.qmin, range_of.qmax + 1, few)
    params = qk.QParams(scale, zero_point, dtype, axis=axis, block_size=block, narrow_range=narrow)
    return values(rng, params, tuple(shape), of), params


def values(rng, params, shape, of):
    halves = rng.integers(int(2 * params.qmin) - 3, int(2 * params.qmax) + 4, shape)
    steps = halves / 2 - per_element(params.zero_point, params, shape)
    with np.errstate(all="ignore"):
        x = np.asarray((steps * per_element(params.scale, params, shape).astype(np.float64)).astype(of))
        raw = rng.integers(0, 256, (*shape, of.itemsize), np.uint8).view(of)[..., 0]
        extreme = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-126), 3.4028235e38, -3.4028235e38, 1e300]
        extreme = rng.choice(extreme, shape).astype(of)
        kind = rng.choice(6, shape, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
        one = np.asarray(1, of)
        beside = [np.nextafter(x, s * np.asarray(np.inf, of)).astype(of) for s in (one, -one)]
        each = [x, *beside, raw, extreme, rng.normal(0, 1, shape).astype(of)]
        return np.select([kind == i for i in range(6)], each)


places = st.sampled_from(list(ANY_AXES.values()))


# ---- the formulas ----


@settings(max_examples=400)
@given(case=cases(), rounding=st.sampled_from(ROUNDINGS), place=places)
def test_quantize(case, rounding, place, isas):
    x, params = case
    want = exact_codes(x, params, rounding)
    for isa in isas():
        assert_same_bits(qk.quantize(place(x), params, rounding=rounding), want, isa)
        out = np.empty(x.shape, params.dtype)
        assert qk.quantize(place(x), params, rounding=rounding, out=out) is out
        assert_same_bits(out, want, isa)


@settings(max_examples=300)
@given(case=cases(), to=st.sampled_from(FLOATS), sums=st.booleans(), seed=st.integers(0, 2**32), place=places)
def test_dequantize(case, to, sums, seed, place, isas):
    x, params = case
    rng = np.random.default_rng(seed)
    limits = (-(2**31), 2**31) if sums else (params.qmin, params.qmax + 1)
    q = rng.integers(*limits, x.shape, np.int64).astype(np.int32 if sums else params.dtype)
    want = exact_reals(q, params, to)
    for isa in isas():
        assert_same_bits(qk.dequantize(place(q), params, dtype=to), want, isa)
        out = np.empty(q.shape, to)
        assert qk.dequantize(place(q), params, dtype=to, out=out) is out
        assert_same_bits(out, want, isa)


@settings(max_examples=300)
@given(case=cases(INT_CODES + FLOAT_CODES), place=places)
def test_fake_quantize_is_quantize_then_dequantize(case, place, isas):
    x, params = case
    with np.errstate(invalid="ignore"):
        x[np.isnan(x)] = 0  # float codes keep NaN where they have one
    want = qk.dequantize(qk.quantize(x, params), params, dtype=x.dtype)
    for isa in isas():
        assert_same_bits(qk.fake_quantize(place(x), params), want, isa)
        inplace = x.copy()
        assert qk.fake_quantize(inplace, params, out=inplace) is inplace
        assert_same_bits(inplace, want, isa)


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("dtype", INT_CODES)
def test_nan_is_the_zero_point_and_infinities_saturate(dtype, of, isas):
    params = qk.QParams([0.5, 2.0**100], [1, 1], dtype, axis=0)
    x = np.array([[np.nan, np.inf, -np.inf, -np.nan] * 40] * 2, of)
    for isa in isas():
        q = qk.quantize(x, params)
        assert_same_bits(q, np.array([[1, params.qmax, params.qmin, 1] * 40] * 2).astype(params.dtype), isa)
        assert_same_bits(qk.fake_quantize(x, params), qk.dequantize(q, params, dtype=of), isa)


def test_rounding_examples(isas):
    """Ties, and the floats below one half and above, where adding 1/2 and truncating would go wrong."""
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.49999997, 0.50000006, 126.5, 127.5, -128.5])
    half_even = np.int8([0, 2, 2, 0, -2, -2, 0, 0, 1, 126, 127, -128])
    half_away = np.int8([1, 2, 3, -1, -2, -3, 0, 0, 1, 127, 127, -128])
    below_half, beyond_odd = (np.float64([v, -v]) for v in (0.49999999999999994, 2.5000000000000004))
    for isa in isas():
        for n in 1, 3, 40:  # alone, and within vectors
            for rounding, want in zip(ROUNDINGS, (half_even, half_away)):
                got = qk.quantize(np.tile(x, n), qk.QParams(1), rounding=rounding)
                assert_array_equal(got, np.tile(want, n), err_msg=isa)
        for rounding in ROUNDINGS:
            assert_array_equal(qk.quantize(below_half, qk.QParams(1), rounding=rounding), [0, 0], err_msg=isa)
            assert_array_equal(qk.quantize(beyond_odd, qk.QParams(1), rounding=rounding), [3, -3], err_msg=isa)


def test_division_by_the_rationals(isas):
    """The quotient is the rational one, rounded once: if no float is between it and a tie, no code is a neighbour's."""
    rng = np.random.default_rng(0)
    for isa in isas():
        for scale in rng.uniform(0.5, 2, 20).astype(np.float32):
            near = (np.arange(-127, 127) + 0.5) * float(scale)
            x = np.concatenate([np.nextafter(np.float32(near), np.float32(s * np.inf)) for s in (1, -1)])
            for value, code in zip(x, qk.quantize(x, qk.QParams(scale))):
                exact = Fraction(float(value)) / Fraction(float(scale))
                distance = abs(exact - int(code))
                assert distance <= Fraction(1, 2) + abs(exact) / 2**24, (isa, value, scale)


def test_quotients_near_ties(isas):
    """Six million: random scales, each tie of 8 or 16 bits, and the floats within 2 units of it."""
    rng = np.random.default_rng(0)
    for dtype, scales in ("int8", 2000), ("uint16", 8):
        params = qk.QParams(1, dtype=dtype)
        ties = np.arange(params.qmin, params.qmax) + 0.5
        scale = np.ldexp(rng.uniform(1, 2, scales), rng.integers(-64, 64, scales)).astype(np.float32)
        x = (ties * scale[:, None].astype(np.float64)).astype(np.float32)
        x = (x[..., None].view(np.int32) + np.arange(-2, 3, dtype=np.int32)).view(np.float32).reshape(scales, -1)
        params = qk.QParams(scale, dtype=dtype, axis=0)
        want = exact_codes(x, params)
        for isa in isas():
            assert_same_bits(qk.quantize(x, params), want, isa)
            by_column = qk.QParams(scale, dtype=dtype, axis=1)
            assert_same_bits(qk.quantize(np.ascontiguousarray(x.T), by_column), np.ascontiguousarray(want.T), isa)


@pytest.mark.parametrize("shape", [(67, 17000), (259, 4100), (2060, 512), (11000, 100)])
def test_rows_far_apart(shape, isas):
    """Columns of large arrays, of which rows far apart are seen together, beside the same rows in smaller arrays."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=shape).astype(np.float32)
    x[rng.integers(0, shape[0], 50), rng.integers(0, shape[1], 50)] = np.float32(
        [np.nan, np.inf, -1e30, 1e9, -0.0] * 10
    )
    scale, zero = rng.uniform(0.001, 0.1, (2, shape[1])).astype(np.float32), rng.integers(-9, 9, (2, shape[1]))
    for dtype, rounding in ("int8", "half_even"), ("int16", "half_even"), ("int8", "half_away"):
        whole = qk.QParams(scale[0], zero[0], dtype, axis=1)
        blocks = qk.QParams(scale, zero, dtype, axis=0, block_size=(shape[0] + 1) // 2)
        for isa, params in itertools.product(isas(), (whole, blocks)):
            q, y = qk.quantize(x, params, rounding=rounding), qk.fake_quantize(x, params)
            back = qk.dequantize(q, params)
            for start in range(0, shape[0], 23):
                rows = slice(start, min(start + 23, (shape[0] + 1) // 2 if start <= shape[0] // 2 else shape[0]))
                part = (
                    whole
                    if params is whole
                    else qk.QParams(*[p[2 * start // (shape[0] + 1)] for p in (scale, zero)], dtype, axis=1)
                )
                assert_same_bits(q[rows], qk.quantize(x[rows], part, rounding=rounding), isa)
                assert_same_bits(y[rows], qk.fake_quantize(x[rows], part), isa)
                assert_same_bits(back[rows], qk.dequantize(q[rows], part), isa)


@pytest.mark.parametrize("shape", [(6_400_003,), (8, 800_001), (16000, 400), (500, 13, 1025)], ids=str)
def test_results_beyond_the_caches(shape, variants):
    """More than 24 MB are stored past the caches, wherever their lines begin: bits of smaller arrays, and not a byte
    beside them."""
    rng, few = np.random.default_rng(6), shape[-2] if len(shape) > 1 else 1
    scale, zero = rng.uniform(0.01, 0.1, few).astype(np.float32), rng.integers(0, 255, few)
    where = {} if few == 1 else {"axis": len(shape) - 2}
    params = qk.QParams(scale[0], zero[0], "uint8") if few == 1 else qk.QParams(scale, zero, "uint8", **where)
    x = rng.normal(size=shape).astype(np.float32)
    x.flat[::3970] = np.nan
    half = shape[-1] // 2
    values = np.concatenate([qk.fake_quantize(x[..., part], params) for part in (slice(half), slice(half, None))], -1)
    codes = qk.quantize(x, params)
    for variant, start in zip(variants(), itertools.cycle([1, 4, 15])):
        around = np.full(x.size + 32, 7, np.float32)
        out = around[start : start + x.size].reshape(shape)
        for call, of in (qk.fake_quantize, x), (qk.dequantize, codes):
            out[...] = 3
            call(of, params, out=out)
            assert_same_bits(out, values, variant)
            assert np.all(around[:start] == 7) and np.all(around[start + x.size :] == 7), variant


# ---- all values of 16 bits ----

ALL_16_BITS = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize("of", FLOATS[2:])
def test_every_half_and_bfloat16(of, isas):
    """Conversions to float32 are exact: each value of 16 bits gets the code of the same float32."""
    x = ALL_16_BITS.view(of)
    for scale in 2.0**-126, 2.0**-24, 0.013, 1, 3000, 2.0**120:
        for dtype in "int8", "uint16", "int2":
            params = qk.QParams(scale, 1, dtype)
            want = exact_codes(x, params)
            for isa in isas():
                assert_same_bits(qk.quantize(x, params), want, isa)


@pytest.mark.parametrize("to", FLOATS[2:])
def test_rounding_to_half_and_bfloat16(to, isas):
    """Each midpoint between values of 8 or 11 bits, and the floats beside it, from below the least one to infinity."""
    kept = 8 if to == BFLOAT16 else 11
    dropped = 24 - kept
    halves = np.arange(2 ** (kept - 1), 2**kept, dtype=np.int32)[:, None] << dropped | 1 << dropped - 1
    q = (halves + np.int32([-1, 0, 1])).reshape(-1)
    for exponent in range(-126, 105) if to == BFLOAT16 else range(-60, -5):
        scale = np.float32(2.0**exponent)
        with np.errstate(over="ignore", under="ignore"):
            want = (q * scale.astype(np.float64)).astype(np.float32).astype(to)
        for isa in isas():
            assert_same_bits(qk.dequantize(q, qk.QParams(scale), dtype=to), want, isa)


# ---- codes that are floats ----


def float_codes(dtype):
    """Every finite code of one sign and both, ascending, and the midpoints between them."""
    codes = np.arange(1 << {"8": 8, "6": 6, "4": 4}[dtype[5]], dtype=np.uint8).view(getattr(ml_dtypes, dtype))
    reals = np.unique(codes.astype(np.float64)[np.isfinite(codes.astype(np.float64))])
    return reals, (reals[1:] + reals[:-1]) / 2


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_float_codes_are_the_nearest(dtype, of):
    """Midpoints go to the even mantissa, which every second code has; the floats beside them to the nearer code."""
    reals, midpoints = float_codes(dtype)
    params = qk.QParams(1, dtype=dtype)
    even = reals.astype(params.dtype).view(np.uint8) % 2 == 0
    exact = midpoints.astype(of).astype(np.float64) == midpoints
    above, below = (np.nextafter(midpoints.astype(of), np.asarray(s * np.inf, of)) for s in (1, -1))
    got = [qk.quantize(x, params).astype(np.float64) for x in (midpoints.astype(of), above, below)]
    assert_array_equal(got[0][exact], np.where(even[1:], reals[1:], reals[:-1])[exact])
    assert_array_equal(got[1], reals[1:])
    assert_array_equal(got[2], reals[:-1])
    assert exact.sum() > 6


@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_float_codes_at_the_ends(dtype):
    params = qk.QParams(0.5, dtype=dtype)
    largest = params.qmax
    q = qk.quantize(np.float32([np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, np.nan]), params).astype(np.float64)
    assert_array_equal(q[:4], [largest, -largest, largest, -largest])
    assert_array_equal(np.signbit(q[4:6]), [False, True])
    assert np.isnan(q[6]) == ("8_" in dtype)


@pytest.mark.parametrize("dtype", FLOAT_CODES)
@settings(max_examples=50)
@given(data=st.data(), to=st.sampled_from(FLOATS), place=places)
def test_float_codes_scale_and_return(dtype, data, to, place):
    """Codes times their scale quantize to themselves, whatever the layout, and dequantize to the product."""
    x, like = data.draw(cases([dtype], FLOATS[:1]))
    scale = np.clip(like.scale, 2.0**-100, 2.0**100)
    params = qk.QParams(scale, dtype=dtype, axis=like.axis, block_size=like.block_size)
    reals = float_codes(dtype)[0]
    q = np.resize(reals, x.shape).astype(params.dtype)
    scale = per_element(params.scale, params, x.shape)
    with np.errstate(all="ignore"):
        want = q.astype(np.float64) * scale if to == np.float64 else (q.astype(np.float32) * scale).astype(to)
    assert_same_bits(np.asarray(qk.dequantize(place(q), params, dtype=to)), np.asarray(want, to))
    wide = q.astype(np.float32) * scale
    assert_same_bits(qk.quantize(place(np.asarray(wide)), params), q)


# ---- dynamic ----


@settings(max_examples=200)
@given(case=cases(INT_CODES + FLOAT_CODES), axis=st.integers(0, 2), symmetric=st.none() | st.booleans(), place=places)
def test_dynamic_quantize_is_choose_then_quantize(case, axis, symmetric, place, isas):
    x, params = case
    with np.errstate(invalid="ignore"):
        x[~(np.abs(x.astype(np.float64)) <= 3e38)] = 1
    axis = axis if axis < x.ndim else None
    symmetric = None if params.dtype.name in FLOAT_CODES else symmetric
    want = qk.choose_qparams(x, params.dtype, axis=axis, symmetric=symmetric)
    for isa in isas():
        q, got = qk.dynamic_quantize(place(x), params.dtype, axis=axis, symmetric=symmetric)
        assert got == want, isa
        assert_same_bits(q, qk.quantize(x, want), isa)


# ---- dense storage ----


@given(st.data(), st.sampled_from([1, 2, 3, 4, 5, 6, 8]), st.lists(st.integers(0, 9), max_size=3))
def test_pack_bits(data, bits_, shape):
    """The bytes are the digits of one large number whose base is 2**bits, lowest first; `unpack_bits` reads them."""
    signed = data.draw(st.booleans())
    names = [f"{'' if signed else 'u'}int{n}" for n in (8, 4, 2) if n >= bits_]
    dtype = np.dtype(getattr(ml_dtypes, data.draw(st.sampled_from(names)), None) or f"{'' if signed else 'u'}int8")
    low = -(1 << bits_ - 1) if signed else 0
    codes = np.random.default_rng(len(shape)).integers(low, low + (1 << bits_), shape).astype(dtype)
    packed = qk.pack_bits(codes, bits_)
    digits = [int(c) % (1 << bits_) for c in codes.reshape(-1)]
    assert packed.dtype == np.uint8 and packed.shape == (-(-len(digits) * bits_ // 8),)
    assert int.from_bytes(packed.tobytes(), "little") == sum(d << bits_ * i for i, d in enumerate(digits))
    assert_array_equal(qk.unpack_bits(packed, bits_, shape, dtype=dtype), codes, strict=True)
    assert_array_equal(qk.unpack_bits(packed, bits_, shape).reshape(-1), digits)


def test_pack_bits_of_many(variants):
    for _ in variants():
        for bits_, n in itertools.product((1, 2, 3, 4, 5, 6, 8), (70_001, 300_003)):
            codes = np.random.default_rng(n).integers(0, 1 << bits_, n, np.uint8)
            packed = qk.pack_bits(codes, bits_)
            digits = np.unpackbits(packed, bitorder="little")[: n * bits_].reshape(n, bits_)
            assert_array_equal(np.packbits(digits, axis=1, bitorder="little")[:, 0], codes)
            assert_array_equal(qk.unpack_bits(packed, bits_, n), codes)


# ---- places, sizes, threads ----


def test_lists_and_scalars():
    params = qk.QParams(0.5)
    assert_array_equal(qk.quantize([[1.0, 2.0], [0.25, -3.0]], params), np.int8([[2, 4], [0, -6]]), strict=True)
    for dtype in INT_CODES[:2] + FLOAT_CODES:
        params = qk.QParams(0.5, dtype=dtype)
        q = qk.quantize(np.float32(3), params)
        assert q.shape == () and q.dtype == params.dtype and float(q) == 6
        assert qk.dequantize(q, params) == qk.fake_quantize(np.float32(3), params) == 3


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (3, 5, 0), (3, 0, 5), (0, 5, 3)])
def test_empty_arrays(shape):
    """Nothing is read or written, whichever axis has the scales."""
    ready = np.full(64, 99, np.int8)
    empty = ready[:0].reshape(shape)
    for axis in [None, *range(len(shape))]:
        few = () if axis is None else shape[axis]
        params = qk.QParams(np.ones(few), axis=axis)
        x = np.zeros(64, np.float32)[:0].reshape(shape)
        assert qk.quantize(x, params, out=empty).shape == shape
        assert qk.dequantize(empty, params).shape == qk.fake_quantize(x, params).shape == shape
    assert (ready == 99).all()


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_blocks_longer_than_the_axis(dtype):
    x = np.float32([[1, 2, 3]])
    for block in 3, 4, 10**6, 2**40, 2**63 - 1:
        params = qk.QParams([[0.5]], dtype=dtype, axis=1, block_size=block)
        assert_array_equal(qk.quantize(x, params).astype(np.float32), [[2, 4, 6]])


BIG = {  # shape of the array, shape of the scales, and where they are
    "tensor": ((700_001,), (), {}),
    "axis": ((7, 90_001), (7,), {"axis": 0}),
    "last_axis": ((701, 1001), (1001,), {"axis": 1}),
    "block": ((701, 1001), (701, 32), {"axis": 1, "block_size": 32}),
    "block_of_rows": ((701, 1001), (22, 1001), {"axis": 0, "block_size": 32}),
}


@pytest.mark.parametrize("layout", BIG)
def test_any_number_of_threads_gives_the_same_bits(layout, isas):
    """Arrays so large that 3 threads share them."""
    rng = np.random.default_rng(0)
    shape, few, where = BIG[layout]
    params = qk.QParams(rng.uniform(0.01, 0.02, few), rng.integers(0, 256, few), "uint8", **where)
    x = rng.normal(0, 2, shape).astype(np.float32)
    codes, reals = exact_codes(x, params), exact_reals(exact_codes(x, params), params, np.float32)
    with np.errstate(under="ignore"):
        others = [x.astype(of) for of in FLOATS[1:]]
    codes_of_others = [exact_codes(other, params) for other in others]
    chosen = qk.choose_qparams(x, "uint8", axis=0)
    dynamic = exact_codes(x, chosen)
    for isa in isas():
        for threads in 1, 2, 3:
            with qk.num_threads(threads):
                assert_same_bits(qk.quantize(x, params), codes, isa)
                assert_same_bits(qk.dequantize(codes, params), reals, isa)
                assert_same_bits(qk.fake_quantize(x, params), reals, isa)
                for other, want in zip(others, codes_of_others):
                    assert_same_bits(qk.quantize(other, params), want, isa)
                    back = qk.dequantize(codes, params, dtype=other.dtype)
                    assert_same_bits(back, exact_reals(codes, params, other.dtype), isa)
                q, got = qk.dynamic_quantize(x, axis=0)
                assert got == chosen
                assert_same_bits(q, dynamic, isa)


WIDTHS = [  # shape of the array, axis, block_size: each way in which parameters reach the loops
    ((5, 1100), 1, None),  # more columns than a table holds
    ((3, 4200), 0, None),  # runs longer than what is converted at a time
    ((2, 40_000), 0, None),  # and longer than an item
    ((70, 1), 0, None),
    ((70, 1), 1, None),
    ((1000, 5), 0, None),  # narrow runs
    ((1000, 5), 1, None),  # narrow rows
    ((300, 7, 4), 1, None),  # both
    ((2, 600, 3), 1, None),
    ((3, 2080), 1, 32),
    ((3, 2080), 1, 33),
    ((3, 2080), 1, 96),
    ((3, 2080), 1, 128),
    ((9, 40), 1, 32),  # rows of a block and a part of one
    ((70, 3), 0, 32),  # narrow blocks
    ((70, 40), 0, 32),
    ((2, 70, 33), 1, 16),
]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int4"])
@pytest.mark.parametrize(("shape", "axis", "block_size"), WIDTHS)
def test_every_width(shape, axis, block_size, dtype, everywhere):
    """NaN and infinity among the values; some scales too small for a reciprocal."""
    rng = np.random.default_rng(0)
    few = [-(-n // block_size) if i == axis else n for i, n in enumerate(shape)] if block_size else shape[axis]
    code_range = qk.QParams(1, dtype=dtype)
    zero_point = rng.integers(code_range.qmin, code_range.qmax + 1, few)
    for least in 2.0**-8, 2.0**-100:
        scale = rng.uniform(0.01, 0.04, few)
        scale.flat[0] = least
        params = qk.QParams(scale, zero_point, dtype, axis=axis, block_size=block_size)
        for of in FLOATS:
            x = values(rng, params, shape, np.dtype(of))
            want = exact_codes(x, params)
            assert_same_bits(everywhere(lambda: qk.quantize(x, params)), want)
            away = everywhere(lambda: qk.quantize(x, params, rounding="half_away"))
            assert_same_bits(away, exact_codes(x, params, "half_away"))
            reals = exact_reals(want, params, of)
            assert_same_bits(everywhere(lambda: qk.dequantize(want, params, dtype=of)), reals)
            assert_same_bits(everywhere(lambda: qk.fake_quantize(x, params)), reals)
            back = x.copy()
            assert_same_bits(qk.fake_quantize(back, params, out=back), reals)


# ---- what is refused ----

X, Q = np.float32([1, 2, 3]), np.int8([1, 2, 3])
PARAMS = qk.QParams(0.5)


@refusals(r"""
qk.quantize(memory, PARAMS, out=memory.view(np.int8)[:64])  # ValueError: out must not overlap x
qk.quantize(memory[::2], PARAMS, out=memory.view(np.int8)[:32])  # ValueError: out must not overlap x
qk.quantize(memory, qk.QParams(1, dtype="float8_e5m2"), out=memory.view(ml_dtypes.float8_e5m2)[:64])
    # ValueError: out must not overlap x
qk.dequantize(memory.view(np.int8)[:16], PARAMS, out=memory[:16])  # ValueError: out must not overlap q
qk.fake_quantize(memory[:32], PARAMS, out=memory[1:33])  # ValueError: out must not overlap x
qk.fake_quantize(memory[:32][::-1], PARAMS, out=memory[:32])  # ValueError: out must not overlap x
qk.requantize(memory.view(np.int32), 0.5, PARAMS, out=memory.view(np.int8)[:64])  # ValueError: out must not overlap acc
""")
def test_out_may_not_overlap(refusal):
    memory = np.arange(64, dtype=np.float32)
    refuse(refusal, globals() | {"memory": memory})
    assert_array_equal(memory, np.arange(64))


BY_ROW = qk.QParams([1, 1], axis=0)
FLOAT_BY_ROW = qk.QParams([1, 1], dtype="float8_e5m2", axis=0)


@refusals(r"""
qk.quantize(Q, PARAMS, out=out)  # TypeError: x must be float32, float64, float16 or bfloat16, got int8
qk.quantize(X, 0.5, out=out)  # TypeError: params must be QParams, got float
qk.quantize(X, PARAMS, rounding="up", out=out)  # ValueError: rounding must be one of 'half_even', .*, got 'up'
qk.quantize(X, PARAMS, rounding="tflite", out=out)
    # ValueError: rounding must be one of 'half_even', 'half_away', 'stochastic', got 'tflite'
qk.quantize(X, PARAMS, rounding=np.zeros(2), out=out)  # ValueError: rounding must be .* got array
qk.quantize(X, PARAMS, rounding=None, out=out)  # ValueError: rounding must be .* got None
qk.quantize(X, qk.QParams(1, dtype="float8_e5m2"), rounding="half_away")
    # ValueError: rounding must be 'half_even' for codes of dtype float8_e5m2, got 'half_away'
qk.quantize(X, BY_ROW, out=out)
    # ValueError: scale must have shape \(3,\) to match axis 0 of x with shape \(3,\), got \(2,\)
qk.quantize(X, FLOAT_BY_ROW)  # ValueError: scale must have shape \(3,\) to match axis 0
qk.quantize(X, qk.QParams([1, 1], axis=1), out=out)  # ValueError: axis 1 is out of range for x with shape \(3,\)
qk.quantize(X, qk.QParams([1, 1, 1], axis=0, block_size=2), out=out)
    # ValueError: scale must have shape \(2,\) to match blocks of 2 along axis 0 of x with shape \(3,\), got \(3,\)
qk.dequantize(Q.view(np.uint8), PARAMS)  # TypeError: q must have dtype int8 \(as params\) or int32, got uint8
qk.dequantize(Q, qk.QParams(1, dtype="float8_e5m2"))  # TypeError: q must have dtype float8_e5m2
qk.dequantize(Q, PARAMS, dtype=np.int32)  # TypeError: dtype must be float32, float64, float16 or bfloat16, got int32
qk.dequantize(Q, PARAMS, dtype=None)  # TypeError: dtype must be float32, .* got None
qk.dequantize(Q, PARAMS, dtype="real")  # TypeError: dtype must be float32, .* got 'real'
qk.dequantize(X.astype("float8_e5m2"), qk.QParams(1, dtype="float8_e5m2"), dtype=None)
    # TypeError: dtype must be float32, .* got None
qk.fake_quantize(Q, PARAMS)  # TypeError: x must be float32, float64, float16 or bfloat16, got int8
qk.fake_quantize(Q, qk.QParams(1, dtype="float8_e5m2"))  # TypeError: x must be float32, .* got int8
qk.fake_quantize(X, "int8")  # TypeError: params must be QParams, got str
qk.dynamic_quantize(Q)  # TypeError: x must be float32, float64, float16 or bfloat16, got int8
qk.dynamic_quantize(X, "int32")  # TypeError: dtype must be one of .*int8, .* got 'int32'
qk.dynamic_quantize(X, axis=1)  # ValueError: axis 1 is out of range for x with shape \(3,\)
qk.dynamic_quantize(X, axis=0.0)  # TypeError: axis must be an integer or None, got 0.0
qk.dynamic_quantize(X, axis=False)  # TypeError: axis must be an integer or None, got False
qk.pack_bits(X, 4)  # TypeError: codes must be int8, uint8, int4, uint4, int2 or uint2, got float32
qk.pack_bits(Q, 7)  # ValueError: bits must be 1, 2, 3, 4, 5, 6 or 8, got 7
qk.pack_bits(Q, 4.0)  # TypeError: bits must be an integer, got 4.0
qk.pack_bits(np.int8([0, 7, 8]), 4)  # ValueError: codes must be within \[-8, 7\] for 4 bits, got 8
qk.pack_bits(np.uint8([0, 3, 4]), 2)  # ValueError: codes must be within \[0, 3\] for 2 bits, got 4
qk.unpack_bits(Q, 4, 3)  # TypeError: data must be uint8, got int8
qk.unpack_bits(np.uint8([1]), 4, 3)  # ValueError: data must have shape \(2,\) for 3 codes of 4 bits, got \(1,\)
qk.unpack_bits(np.uint8([1]), 4, (-1, -2))  # ValueError: shape must be at least 0, got -1
qk.unpack_bits(np.uint8([1]), 4, None)  # TypeError: shape must be an integer or a tuple of integers, got None
qk.unpack_bits(np.uint8([1]), 4, (2.0,))  # TypeError: shape must be an integer or a tuple of integers, got 2.0
qk.unpack_bits(np.uint8([]), 4, (2**32, 2**32))
    # ValueError: shape must have at most 64 axes and fewer than 2\*\*63 values, got \(4294967296, 4294967296\)
qk.unpack_bits(np.uint8([1]), 4, 2, dtype="int16")  # TypeError: dtype must be int8, uint8, .* got int16
qk.unpack_bits(np.uint8([1]), 4, 2, dtype="int2")  # ValueError: dtype int2 cannot hold codes of 4 bits
""")
def test_refusals(refusal):
    out = np.full(3, 99, np.int8)
    refuse(refusal, globals() | {"out": out})
    assert (out == 99).all()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("of", FLOATS)
def test_dynamic_quantize_says_where_values_are_not_finite(of, axis):
    x = np.ones((5, 40), of)
    x[3, 37], x[4, 1], x[4, 2] = np.inf, np.nan, -np.inf
    with pytest.raises(ValueError, match=r"x has 3 NaN or infinite values, the first at \(3, 37\)"):
        qk.dynamic_quantize(x, axis=axis)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4_e2m1fn"])
@pytest.mark.parametrize("shape, axis", [((9 * 2**19,), None), ((3, 3 * 2**19), 0), ((3 * 2**18, 7), 1)])
def test_many_values_in_small_floats_are_those_of_few(dtype, shape, axis):
    """Long passes of NumPy's are cut, so that signals are noticed between the parts."""
    x = np.resize(np.random.default_rng(0).normal(size=9973).astype(np.float32), shape)
    p = qk.QParams(0.5 if axis is None else np.linspace(0.1, 1, shape[axis]), None, dtype, axis=axis)
    q = qk.quantize(x, p)
    y = qk.dequantize(q, p)
    for at in np.ndindex(*(3 if n > 7 else 1 for n in shape)):
        part = tuple(slice(i * n // 3, (i + 1) * n // 3) if n > 7 else slice(None) for i, n in zip(at, shape))
        few = p if axis is None else qk.QParams(np.ascontiguousarray(p.scale[part[axis]]), None, dtype, axis=axis)
        np.testing.assert_array_equal(q[part].view(np.uint8), qk.quantize(x[part], few).view(np.uint8))
        np.testing.assert_array_equal(y[part], qk.dequantize(np.ascontiguousarray(q[part]), few))
