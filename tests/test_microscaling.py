"""Codes that are floats, and the scales of microscaling: elements against the casts of ml_dtypes, scales against frexp
(docs/numerics.md, sections 2 to 4), whatever the instruction set, layout and type."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from common import ANY_AXES, FLOAT_CODES, FLOATS, refusals, refuse
from numpy.testing import assert_array_equal

import qkernels as qk

TINY, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
EXPONENTS = {"float8_e4m3fn": 8, "float8_e5m2": 15, "float6_e2m3fn": 2, "float6_e3m2fn": 4, "float4_e2m1fn": 2}
EXPONENTS |= {"int8": 6}


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert_array_equal(got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}"))


def scale_of_each(params, shape):
    if params.axis is None:
        return np.full(shape, params.scale)
    if params.block_size is None:
        return np.broadcast_to(params.scale.reshape([-1 if i == params.axis else 1 for i in range(len(shape))]), shape)
    return np.repeat(params.scale, params.block_size, params.axis)[tuple(map(slice, shape))]


@np.errstate(all="ignore")
def cast(x, params):
    """What ml_dtypes makes of the clipped quotient, which is float64 of float64: then twice, the first time to odd."""
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    v = np.clip(wide / scale_of_each(params, x.shape), params.qmin, params.qmax)
    near = v.astype(np.float32)
    if wide.dtype == np.float64:
        toward_zero = np.where(np.abs(near) > np.abs(v), np.nextafter(near, np.float32(0)), near)
        near = np.where(near != v, (toward_zero.view(np.int32) | 1).view(np.float32), near)
    return np.where(np.isnan(near) & ("8_" not in params.dtype.name), np.float32(0), near).astype(params.dtype)


def hostile(rng, shape, of, params):
    """Ties and their neighbours, every size, what is not finite, zeros of both signs."""
    codes = np.unique(np.abs(np.arange(256, dtype=np.uint8).view(params.dtype).astype(np.float32)))
    codes = codes[np.isfinite(codes)]
    ties = np.append((codes[1:] + codes[:-1]) / 2, codes)
    with np.errstate(all="ignore"):
        x = rng.choice(ties, shape) * rng.choice([-1, 1], shape) * scale_of_each(params, shape).astype(np.float64)
        x = x.astype(of)
        away = np.nextafter(x, (np.inf * rng.choice([-1, 1], shape)).astype(of))
        raw = rng.integers(0, 256, (*shape, of.itemsize), np.uint8).view(of)[..., 0]
        special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3e38], shape).astype(of)
        return np.select([rng.random(shape) < p for p in (0.3, 0.4, 0.4)], [x, away, raw], special)


def params_over(rng, shape, dtype):
    yield qk.QParams(np.float32(rng.uniform(0.01, 9)), dtype=dtype)
    yield qk.QParams(2.0**-3, dtype=dtype)
    for scale in TINY, 2.0**-70, 2.0**100:
        yield qk.QParams(scale, dtype=dtype)
    for axis, n in enumerate(shape):
        yield qk.QParams(2.0 ** rng.uniform(-60, 60, n), dtype=dtype, axis=axis)
        for size in 16, 32, 20:
            blocks = [-(-m // size) if i == axis else m for i, m in enumerate(shape)]
            widest = 126 if size == 20 else 6
            yield qk.QParams(2.0 ** rng.uniform(-widest, widest, blocks), dtype=dtype, axis=axis, block_size=size)


@pytest.mark.parametrize("of", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_elements_are_casts(dtype, of, isas):
    rng = np.random.default_rng(len(dtype))
    cases = []
    for shape in (70, 96), (3, 37, 5), (5000,):
        for params in params_over(rng, shape, dtype):
            x = hostile(rng, shape, of, params)
            q = cast(x, params)
            wide = q.astype(np.float64 if of == np.float64 else np.float32)
            with np.errstate(all="ignore"):
                cases.append((x, params, q, (wide * scale_of_each(params, shape)).astype(of)))
    for isa in isas():
        for x, params, q, real in cases:
            for place in ANY_AXES.values() if isa == "scalar" else [lambda x: x]:
                same(qk.quantize(place(x), params), q)
            fake = x.copy()
            assert qk.fake_quantize(fake, params, out=fake) is fake
            for got in qk.dequantize(q, params, dtype=of), fake:
                assert got.dtype == of
                assert_array_equal(got.astype(np.float64), real.astype(np.float64))  # NaN as NaN
                assert_array_equal(np.signbit(got), np.signbit(real))


@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_floats_of_every_leading_bits(dtype, isas):
    """All signs, exponents and the first bits of the mantissa, with what follows at its ends and in its middle."""
    tails = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | tails).view(np.float32)
    params = qk.QParams(1, dtype=dtype)
    want = cast(x, params)
    for _ in isas():
        same(qk.quantize(x, params), want)


@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_every_code_stands_for_its_value(dtype, isas):
    q = np.arange(256, dtype=np.uint8)
    bits = {"8": 8, "6": 6, "4": 4}[dtype[5]]
    values = (q & ((1 << bits) - 1)).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    for _ in isas():
        got = qk.dequantize(q.view(getattr(ml_dtypes, dtype)), qk.QParams(1, dtype=dtype))
        assert_array_equal(got, values)  # what stands above a code in its byte is not read
        finite = np.isfinite(values)
        assert_array_equal(np.signbit(got[finite]), np.signbit(values[finite]))


# ---- scales ----


def blocks_of(x, size):
    """Blocks along the last axis, filled up with zeros."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // size) * size), x.dtype)
    padded[..., : x.shape[-1]] = x
    return padded.reshape(*x.shape[:-1], -1, size)


@np.errstate(all="ignore")
def scale_by_frexp(x, dtype, rounding, size):
    """2**e, from Python's own exact numbers."""
    most = np.abs(blocks_of(x, size).astype(np.float64)).max(-1)
    small = ml_dtypes.iinfo(np.int8) if dtype == "int8" else ml_dtypes.finfo(dtype)
    if rounding == "rceil":
        narrow = most.astype(np.float32)
        narrow = np.where(narrow < most, np.nextafter(narrow, np.float32(np.inf)), narrow)
        mantissa, exponent = np.frexp((narrow / np.float32(small.max)).astype(np.float64))
        e = np.where(mantissa == 0.5, exponent - 1, exponent)
    else:
        mantissa, exponent = np.frexp(most)
        if rounding == "even":
            bits = 7 if dtype == "int8" else small.nmant + 1
            exponent = exponent + (np.rint(mantissa * 2**bits) == 2**bits)
        e = exponent - 1 - EXPONENTS[dtype]
    return 2.0 ** np.clip(np.where(most == 0, -126, e), -126, 127)


@np.errstate(all="ignore")
def spread(rng, shape, of):
    """Blocks of all sizes, also of zeros, whose largest values are next to where exponents change."""
    x = rng.normal(0, 1, shape)
    top = rng.choice([1, 2, 1.5, 1.75, 1.875, 1.9375, 1.984375, 7 / 6, 7.5 / 4, 127 / 64], shape[:-1])
    top *= 2.0 ** rng.integers(-9, 9, shape[:-1])
    x = (x / np.abs(x).max(-1, keepdims=True) * top[..., None]).astype(of)
    beside = np.nextafter(x, (rng.choice([-1, 1], shape) * np.inf).astype(of))
    x = np.where(rng.random(shape) < 0.4, beside, x)
    x[..., 0, :] = 0
    return x


@pytest.mark.parametrize("of", FLOATS, ids=str)
@pytest.mark.parametrize("rounding", ["floor", "even", "rceil"])
def test_scales_of_microscaling(rounding, of, variants):
    rng = np.random.default_rng(3)
    for dtype in EXPONENTS:
        x = spread(rng, (5, 40, 32), of).reshape(5, -1)[:, :-3]
        want = scale_by_frexp(x, dtype, rounding, 32)
        for _ in variants() if dtype == "int8" else [0]:
            params = qk.choose_qparams(x, dtype, axis=1, method="mx", scale_rounding=rounding)
            assert_array_equal(params.scale, want)
            assert (params.block_size, params.axis, params.dtype) == (32, 1, np.dtype(getattr(ml_dtypes, dtype, dtype)))
            for place in ANY_AXES.values():
                down = qk.choose_qparams(place(x.T), dtype, axis=-2, method="mx", scale_rounding=rounding)
                assert_array_equal(down.scale, want.T)
    if rounding == "floor":
        assert qk.choose_qparams(x, dtype, axis=1, method="mx") == params


@pytest.mark.parametrize("of", FLOATS, ids=str)
def test_blocks_of_any_size(of, isas):
    rng = np.random.default_rng(4)
    with np.errstate(under="ignore"):
        x = (rng.normal(0, 1, (3, 2500, 3)) * 2.0 ** rng.integers(-5, 5, (3, 2500, 3))).astype(of)
    for _ in isas():
        for axis, size in (1, 1), (1, 7), (1, 16), (1, 1500), (1, 9000), (2, 2), (2, 32), (0, 2):
            lines = np.moveaxis(x, axis, -1)
            want = np.moveaxis(scale_by_frexp(lines, "float8_e4m3fn", "floor", size), -1, axis)
            got = qk.choose_qparams(x, "float8_e4m3fn", axis=axis, block_size=size, method="mx").scale
            assert_array_equal(got, want)


def test_extreme_blocks():
    choose = partial(qk.choose_qparams, dtype="float4_e2m1fn", axis=0, method="mx")
    for value, scale in (0, TINY), (1e-45, TINY), (TINY, TINY), (2.0**-124, TINY), (LARGEST, 2.0**125), (-6, 1):
        assert choose(np.float32([value] * 3)).scale == scale, value
    assert choose(np.float32([LARGEST]), scale_rounding="rceil").scale == 2.0**126
    for rounding in "floor", "even", "rceil":
        most = choose(np.float32([LARGEST]), dtype="int8", scale_rounding=rounding)
        assert most.scale == (2.0**121 if rounding == "floor" else 2.0**122)
    assert choose(np.float64([LARGEST * (1 + 2.0**-30)]).clip(None, LARGEST)).scale == 2.0**125
    for shape in (0, 3), (3, 0), (40, 0):
        params = choose(np.zeros(shape, np.float32))
        assert params.scale.shape == (-(-shape[0] // 32), shape[1])
    x = np.float32([130, -130, 127.4, 63])  # in units of 2**0
    assert qk.choose_qparams(x, axis=0, method="mx").scale == 2
    assert_array_equal(qk.quantize(-x[2:], qk.choose_qparams(x[2:], axis=0, method="mx")), np.int8([-127, -63]))
    wide = qk.choose_qparams(np.float32([127.9]), axis=0, method="mx", narrow_range=False)
    assert_array_equal(qk.quantize(np.float32([-127.9]), wide), np.int8([-128]))


def test_two_levels_of_scales(variants):
    """NVFP4: the scale of a block is a float8_e4m3fn number times that of the tensor, by the formulas of torchao."""
    rng = np.random.default_rng(5)
    x = (rng.normal(0, 1, (40, 333)) * 2.0 ** rng.uniform(-9, 3, (40, 1))).astype(np.float32)
    x[3, 16:48] = 0
    for given in None, np.float32(0.01), np.float32(0.7):
        g = np.abs(x).max() / np.float32(6 * 448) if given is None else given
        most = np.abs(blocks_of(x, 16)).max(-1)
        s = np.minimum(most / np.float32(6) / g, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        want = np.maximum(s, np.float32(2.0**-9)) * g
        for _ in variants():
            params = qk.choose_qparams(x, "float4_e2m1fn", axis=1, method="nvfp4", tensor_scale=given)
            assert_array_equal(params.scale, want)
            again = (params.scale / g).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            assert_array_equal(again, np.maximum(s, np.float32(2.0**-9)))
            same(qk.quantize(x, params), cast(x, params))
        down = qk.choose_qparams(x.T, "float4_e2m1fn", axis=0, method="nvfp4", tensor_scale=given)
        assert_array_equal(down.scale, want.T)
    for value, scale in (0, 2.0**-9), (1e-45, TINY), (LARGEST, None):
        params = qk.choose_qparams(np.float32([value]), "float4_e2m1fn", axis=0, method="nvfp4")
        assert params.scale == (np.float32(LARGEST) / np.float32(2688) * 448 if scale is None else scale), value


X = np.ones((3, 4), np.float32)
BAD = np.float32([[1, 2], [np.inf, np.nan]])


@refusals(r"""
choose(dtype="int4", method="mx")  # ValueError: method 'mx' is for dtype float8_e4m3fn, .*, int8, got int4
choose(dtype="uint8", method="mx")  # ValueError: method 'mx' is for dtype .* got uint8
choose(dtype="float8_e5m2", method="nvfp4")
    # ValueError: method 'nvfp4' is for dtype float4_e2m1fn, got float8_e5m2
choose(axis=None)  # ValueError: method 'mx' needs an axis and symmetric codes, got axis=None, symmetric=True
choose(dtype="int8", symmetric=False)  # ValueError: method 'mx' needs .* got axis=1, symmetric=False
choose(scale_rounding="up")  # ValueError: scale_rounding must be 'floor', 'even' or 'rceil', got 'up'
choose(tensor_scale=1)  # TypeError: method 'mx' takes no option 'tensor_scale'
choose(method="nvfp4", scale_rounding="even")  # TypeError: method 'nvfp4' takes no option 'scale_rounding'
choose(method="nvfp4", tensor_scale="1")  # TypeError: tensor_scale must be a float, got '1'
choose(method="nvfp4", tensor_scale=0)  # ValueError: tensor_scale must be .* got 0
choose(method="nvfp4", tensor_scale=X)  # TypeError: tensor_scale must be a float, got an array of shape \(3, 4\)
choose(BAD)  # ValueError: x has 2 NaN or infinite values, the first at \(1, 0\)
choose(BAD, method="nvfp4")  # ValueError: x has 2 NaN or infinite values, the first at \(1, 0\)
choose(np.float64([[1e39]]))  # ValueError: x spans \[1e\+39, 1e\+39\], beyond the range of float32
choose(np.float64([[np.nan, 1]]))  # ValueError: x has 1 NaN or infinite values, the first at \(0, 0\)
choose(np.float64([[3.4028235e38, LARGEST * (1 + 2.0**-40)]]))  # ValueError: x spans .* beyond the range of float32
qk.quantize(X, FLOAT4, rounding="half_away")
    # ValueError: rounding must be 'half_even' for codes of dtype float4_e2m1fn, got 'half_away'
qk.quantize(X, FLOAT4, rounding="stochastic", seed=1)  # ValueError: rounding must be .* got 'stochastic'
""")
def test_refusals(refusal):
    def choose(x=X, **options):
        return qk.choose_qparams(x, **{"dtype": "float4_e2m1fn", "axis": 1, "method": "mx"} | options)

    refuse(refusal, globals() | {"choose": choose, "FLOAT4": qk.QParams(1, dtype="float4_e2m1fn")})


# ---- products ----


@pytest.mark.parametrize(("dtype", "method"), [("float4_e2m1fn", "mx"), ("float4_e2m1fn", "nvfp4"), ("int8", "mx")])
def test_products_of_real_weights(dtype, method, isas):
    """Beside what the weights stand for, the error is that of half a step of x."""
    rng = np.random.default_rng(6)
    w, x = rng.normal(0, 0.1, (200, 37)).astype(np.float32), rng.normal(0, 1, (21, 200)).astype(np.float32)
    params = qk.choose_qparams(w, dtype, axis=0, method=method)
    q = qk.quantize(w, params)
    real = qk.dequantize(q, params, dtype=np.float64)
    for _ in isas():
        packed = qk.pack(q, params)
        assert packed.params == params and packed.level_error == 0
        same(packed.unpack(), q)
        of_steps = np.abs(x).max(1, keepdims=True) / 254 * np.abs(real).sum(0)
        assert (np.abs(qk.linear(x, packed) - x.astype(np.float64) @ real) <= of_steps * 1.001).all()
        for m in 1, 4:
            assert_array_equal(qk.linear(x[:m], packed), qk.linear(x, packed)[:m])


def test_packed_float_codes_are_few_bytes():
    w = np.random.default_rng(7).normal(0, 0.1, (1024, 256)).astype(np.float32)
    for method, bits in ("mx", 4.51), ("nvfp4", 6.01):
        params = qk.choose_qparams(w, "float4_e2m1fn", axis=0, method=method)
        packed = qk.pack(qk.quantize(w, params), params)
        assert packed.nbytes * 8 <= bits * w.size
        arrays = packed.to_arrays()
        assert qk.PackedMatrix.from_arrays(arrays).params == params
        with pytest.raises(ValueError, match=r"floats must have shape \(\), got \(1,\)"):
            qk.PackedMatrix.from_arrays(arrays | {"floats": np.array([True])})


def test_stray_bits_above_float_codes_are_not_read():
    q = np.arange(256, dtype=np.uint8).reshape(64, 4).view(ml_dtypes.float4_e2m1fn)
    params = qk.QParams(0.5, dtype="float4_e2m1fn")
    same(qk.pack(q, params).unpack(), (q.view(np.uint8) & 15).view(q.dtype))


@pytest.mark.parametrize("method", ["nvfp4", "mx"])
def test_scales_of_one_byte_change_no_bit(method, isas):
    """A column more, whose scales are no such multiples, makes all scales floats: the others' results stay."""
    rng = np.random.default_rng(7)
    w, x = rng.normal(0, 0.1, (320, 70)).astype(np.float32), rng.normal(0, 1, (70, 320)).astype(np.float32)
    w *= np.exp2(rng.uniform(-4, 4, (1, 70))).astype(np.float32)
    params = qk.choose_qparams(w, "float4_e2m1fn", axis=0, method=method)
    q, rows = qk.quantize(w, params), params.block_size
    odd = rng.uniform(0.01, 0.02, (len(params.scale), 1)).astype(np.float32)
    wide = qk.QParams(np.hstack([params.scale, odd]), dtype=q.dtype, axis=0, block_size=rows)
    for _ in isas():
        packed, floats = qk.pack(q, params), qk.pack(np.hstack([q, q[:, :1]]), wide)
        assert packed.params == params and floats.params == wide
        assert packed.nbytes == 320 * 96 * (0.5 + 1 / rows) and floats.nbytes == 320 * 96 * (0.5 + 4 / rows)
        for m in 1, 3, 7, 70:
            assert_array_equal(qk.linear(x[:m], packed), qk.linear(x[:m], floats)[:, :70])


def test_scales_that_are_bytes_come_back(isas):
    """Of 4 bits and 31 octaves below the largest: all of them, or none is one; of any size, and also of int4 codes."""
    rng = np.random.default_rng(8)
    bytes_of = np.ldexp(rng.integers(8, 16, (64, 40)), rng.integers(0, 30, (64, 40))).astype(np.float32)
    bytes_of[0, :8], bytes_of[-1, -1] = np.ldexp(np.arange(8, 16), 30), 8
    for g in 1.0, 1 / 3, 0.1, 2.0**-20, 2.0**-33, 2.0**-70, 2.0**-98 / 3:
        scales = (bytes_of * np.float32(g)).astype(np.float32)
        few = scales.max() < 2.0**30 and scales.min() >= 2.0**-100
        for dtype in "int4", "float4_e2m1fn":
            params = qk.QParams(scales, dtype=dtype, axis=0, block_size=16)
            codes = rng.integers(0, 8, (1024, 40)).astype(params.dtype)
            for _ in isas() if g == 0.1 else [0]:
                packed = qk.pack(codes, params)
                assert packed.params == params
                assert packed.nbytes == 1024 * 64 * (0.5 + (1 if few else 4) / 16)
    for scales in np.full((64, 40), 0.3), bytes_of / 2**10:
        assert qk.pack(codes, qk.QParams(scales, dtype=codes.dtype, axis=0, block_size=16)).nbytes == 1024 * 64 * 9 / 16
