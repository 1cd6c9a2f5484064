"""List the cases of the self-test: random calls of public functions, and what NumPy finds in int64 and float64."""

import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from . import io, layouts, observers

qk = sys.modules[__package__]  # the public names, as users write them
CASES = {}  # functions of a generator of random numbers, that return a Case, by name
RARE = set()  # those that take long
COVERED = {}  # the case that calls each public name


class Case(NamedTuple):
    """Hold a call without arguments, and what is to be true of its result.

    `want` has the result itself, whose bits are compared, a Near, or a function of the result that returns False where
    it is wrong; or a list of these, of results that are tuples.
    """

    call: Any
    want: Any


class Near(NamedTuple):
    """Hold what a result should be near to, and how near."""

    value: Any
    error: Any


def case(*names, rare=False):
    """Enter a case for the public functions that it calls."""

    def enter(function):
        name = function.__name__.removeprefix("_")
        CASES[name] = function
        RARE.update([name] if rare else [])
        COVERED.update(dict.fromkeys(names, name))
        return function

    return enter


# ---- random arguments ----


def size(rng, most):
    """Return a size up to `most`, whose logarithm is uniform."""
    return int(np.exp(rng.uniform(0, np.log(most + 1))))


def area(rng, rows=1000, cols=1000):
    """Return a shape; one in four is large: most of the values that are compared are in these."""
    if rng.integers(4):
        return size(rng, rows), size(rng, cols)
    return tuple(map(int, rng.integers(500, 2000, 2)))


def codes(rng, shape, dtype="int8"):
    """Return random codes, some of them at the ends of the range."""
    low, high = _range(dtype)
    made = rng.integers(low, high + 1, shape, np.int64)
    ends = rng.random(shape) < 0.1
    made[ends] = rng.choice([low, high], np.count_nonzero(ends))
    return made.astype(qk.QParams(1, dtype=dtype).dtype)


def _range(dtype):
    params = qk.QParams(1, dtype=dtype)
    return params.qmin, params.qmax


def floats(rng, shape, dtype=np.float32):
    return (rng.normal(size=shape) * 10 ** rng.uniform(-3, 3)).astype(dtype)


def random_params(rng, shape, dtypes):
    """Return parameters of any kind for data of a shape, and their scales and zero points, spread to that shape."""
    dtype, axis, block = str(rng.choice(dtypes)), None, None
    kept = ()
    if shape and rng.integers(3):
        axis = int(rng.integers(len(shape)))
        kept = shape[axis : axis + 1]
        if rng.integers(2):
            block = size(rng, 64)
            kept = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    low, high = _range(dtype)
    scale = np.float32(10 ** rng.uniform(-3, 1, kept))
    zero = rng.integers(low, high + 1, kept).astype(np.int32)
    params = qk.QParams(scale, zero, dtype, axis=axis, block_size=block)
    if block is not None:
        scale, zero = (np.repeat(a, block, axis).take(range(shape[axis]), axis) for a in (scale, zero))
    elif axis is not None:
        scale, zero = (a.reshape(*kept, *[1] * (len(shape) - axis - 1)) for a in (scale, zero))
    return params, scale, zero


def power(rng, low=-6, high=0):
    """Return a power of two: products of such scales are exact in any order."""
    return float(2.0 ** rng.integers(low, high))


BYTES = "int8", "uint8"
INTEGERS = "int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"


def byte_params(rng, exact=False):
    dtype = str(rng.choice(BYTES))
    low, high = _range(dtype)
    scale = power(rng) if exact else 10 ** rng.uniform(-2, -0.5)
    return qk.QParams(scale, int(rng.integers(low, high + 1)), dtype)


# ---- references ----


def rounded(v, half_away=False):
    return np.copysign(np.floor(np.abs(v) + 0.5), v) if half_away else np.rint(v)


def saturated(v, params):
    """Return real or integer values as codes."""
    return np.clip(v, params.qmin, params.qmax).astype(params.dtype)


def quotient(x, scale):
    """Divide in the format of x: float64, or float32."""
    kind = np.float64 if x.dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        return (x.astype(kind) / scale.astype(kind)).astype(np.float64)


def product(a, b):
    """Multiply integers exactly: their sums stay below 2**53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def values(q, params):
    return (q.astype(np.float64) - params.zero_point) * np.float64(params.scale)


def nearest(real, params, slack=2.0**-10):
    """Return the codes that real values become, but for what lies next to ties."""
    v = np.clip(real / np.float64(params.scale) + params.zero_point, params.qmin, params.qmax)
    return Near(v, 0.5 + slack)


def fixed_point(acc, m, params):
    """Multiply by a mantissa and a shift and round once, as TFLite does."""
    fraction, shift = np.frexp(m)
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    right = 31 - shift.astype(np.int64)
    return saturated(((acc * mantissa + (np.int64(1) << right - 1)) >> right) + params.zero_point, params)


def windows(image, kernel, strides):
    """Return the windows (n, y, x, c, h, w) of a padded image."""
    every = np.lib.stride_tricks.sliding_window_view(image, kernel, axis=(1, 2))
    return every[:, :: strides[0], :: strides[1]]


def padded(q, pad, value):
    return np.pad(q, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=value)


# ---- codes of arrays ----


@case("quantize", "QParams")
def _quantize(rng):
    shape = area(rng)
    x = floats(rng, shape, rng.choice([np.float32, np.float64, np.float16]))
    params, scale, zero = random_params(rng, shape, INTEGERS)
    away = bool(rng.integers(2))
    want = saturated(np.clip(rounded(quotient(x, scale), away), -1e9, 1e9) + zero, params)
    return Case(lambda: qk.quantize(x, params, rounding="half_away" if away else "half_even"), want)


@case("dequantize", "fake_quantize")
def _dequantize(rng):
    shape = area(rng)
    params, scale, zero = random_params(rng, shape, INTEGERS)
    q = codes(rng, shape, params.dtype.name)
    want = (q.astype(np.int32) - zero).astype(np.float32) * scale
    return Case(lambda: (qk.dequantize(q, params), qk.fake_quantize(want, params)), [want, want])


@case("quantize_bias")
def _quantize_bias(rng):
    n, x_params = size(rng, 1000), byte_params(rng)
    w_params, bias = qk.QParams(10 ** rng.uniform(-3, -1, n), axis=0), floats(rng, n)
    units = bias.astype(np.float64) / (np.float64(x_params.scale) * w_params.scale.astype(np.float64))
    return Case(lambda: qk.quantize_bias(bias, x_params, w_params), Near(np.clip(units, -(2.0**31), 2.0**31 - 1), 0.51))


@case("fake_quantize_grad")
def _fake_quantize_grad(rng):
    shape = size(rng, 300), size(rng, 300)
    x, grad = floats(rng, shape), floats(rng, shape)
    params = qk.QParams(10 ** rng.uniform(-3, 1, shape[1]), dtype="int4", axis=1)
    v = quotient(x, params.scale)
    low, high = rounded(v) < params.qmin, rounded(v) > params.qmax
    slope = np.where(low, params.qmin, np.where(high, params.qmax, rounded(v) - v))
    sums = (grad.astype(np.float64) * slope).sum(axis=0)
    error = 1e-5 * (np.abs(grad.astype(np.float64) * slope).sum(axis=0) + 1e-30) + 1e-6 * np.abs(grad).sum(axis=0)
    want = [np.where(low | high, np.float32(0), grad), Near(sums, error), lambda of_zero: True]
    return Case(lambda: qk.fake_quantize_grad(grad, x, params), want)


@case("dynamic_quantize", "choose_qparams")
def _dynamic_quantize(rng):
    x = floats(rng, area(rng, 300, 3000))
    lo, hi = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    scale = (hi - lo) / np.float32(255)
    zero = np.rint(np.clip(-lo / scale, 0, 255)).astype(np.int32)
    q = np.clip(np.rint(x / scale[:, None]).astype(np.int64) + zero[:, None], 0, 255).astype(np.uint8)

    def call():
        (q, params), chosen = qk.dynamic_quantize(x, axis=0), qk.choose_qparams(x, "uint8", axis=0)
        return q, params.scale, params.zero_point, chosen.scale, chosen.zero_point

    return Case(call, [q, scale, zero, scale, zero])


@case("requantize", "quantize_multiplier")
def _requantize(rng):
    rows, n = area(rng)
    acc, params = rng.integers(-(2**24), 2**24, (rows, n), np.int32), random_params(rng, (), INTEGERS)[0]
    bias, m = rng.integers(-(2**20), 2**20, n, np.int32), 10 ** rng.uniform(-6, -1, n)
    sums = acc.astype(np.int64) + bias
    scaled = sums.astype(np.float32) * m.astype(np.float32)
    fraction, shift = np.frexp(m)
    parts = np.floor(fraction * 2.0**31 + 0.5).astype(np.int32), shift.astype(np.int32)

    def call():
        even = qk.requantize(acc, m, params, bias=bias)
        return even, qk.requantize(acc, m, params, bias=bias, rounding="tflite"), *qk.quantize_multiplier(m)

    return Case(call, [saturated(np.rint(scaled) + params.zero_point, params), fixed_point(sums, m, params), *parts])


@case("pack_bits", "unpack_bits")
def _pack_bits(rng):
    bits, n = int(rng.choice([1, 2, 3, 4, 5, 6, 8])), size(rng, 10**6)
    q = rng.integers(0, 1 << bits, n, np.uint8)
    dense = np.packbits(np.unpackbits(q[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")
    return Case(lambda: (qk.pack_bits(q, bits), qk.unpack_bits(dense, bits, (n,))), [dense, q])


@case("to_gguf", "from_gguf")
def _gguf(rng):
    blocks = size(rng, 20000)
    scale, q = np.float16(10 ** rng.uniform(-3, 1, blocks)), codes(rng, (blocks, 32))
    q = np.maximum(q, np.int8(-127))
    q[:, 0] = 127
    data = np.concatenate([scale.view(np.uint8).reshape(-1, 2), q.view(np.uint8)], axis=1)
    want = q.astype(np.float32) * scale.astype(np.float32)[:, None]
    return Case(lambda: (qk.from_gguf(data, "Q8_0"), qk.to_gguf(want, "Q8_0")), [want, data])


@case("layouts.from_gptq", "layouts.to_gptq", "layouts.from_awq", "layouts.to_awq")
def _layouts(rng):
    k, n, block = 32 * size(rng, 16), 32 * size(rng, 8), 32
    scale = np.float16(10 ** rng.uniform(-3, 0, (k // block, n))).astype(np.float32)
    zero = rng.integers(1, 16, scale.shape)
    q, params = codes(rng, (k, n), "uint4"), qk.QParams(scale, zero, "uint4", axis=0, block_size=block)

    def call():
        gptq = layouts.from_gptq(layouts.to_gptq(q, params))
        awq = layouts.from_awq(layouts.to_awq(q, params))
        return tuple(
            part for found in (gptq, awq) for part in (found[0].view(np.uint8), found[1].zero_point.reshape(zero.shape))
        )

    return Case(call, [q.view(np.uint8), zero.astype(np.int32)] * 2)


@case("layouts.from_bitsandbytes", "layouts.to_bitsandbytes", "NF4", "FP4", rare=True)
def _bitsandbytes(rng):
    k, n = 64 * size(rng, 8), size(rng, 64)
    book = qk.Codebook((qk.NF4, qk.FP4)[rng.integers(2)].levels, axis=0, block_size=64)
    q, scales = rng.integers(0, 16, (k, n), np.uint8), np.float32(10 ** rng.uniform(-3, 0, (k // 64, n)))

    def call():
        found = layouts.from_bitsandbytes(layouts.to_bitsandbytes(q, book, scales))
        return qk.decode(found[0], found[1], found[2])

    return Case(call, book.levels[q] * np.repeat(scales, 64, axis=0))


# ---- products ----


@case("matmul")
def _matmul(rng):
    m, k, n = size(rng, 300), size(rng, 600), size(rng, 600)
    a, b = codes(rng, (m, k), rng.choice(BYTES)), codes(rng, (k, n), rng.choice(BYTES))
    az = rng.integers(*_range(a.dtype.name), m, np.int32)
    bz = rng.integers(*_range(b.dtype.name), n, np.int32)
    want = product(a.astype(np.int64) - az[:, None], b.astype(np.int64) - bz).astype(np.int32)
    plain, b_params = product(a, b).astype(np.int32), qk.QParams(1, dtype=b.dtype)

    def call():
        return qk.matmul(a, b, a_zero_point=az, b_zero_point=bz), qk.matmul(a, qk.pack(b, b_params))

    return Case(call, [want, plain])


@case("pack", "PackedMatrix")
def _pack(rng):
    k, n = size(rng, 500), size(rng, 500)
    kind = str(rng.choice(["int8", "uint8", "int16", "int4", "uint4", "int2", "uint2"]))
    q, params = codes(rng, (k, n), kind), qk.QParams(10 ** rng.uniform(-3, 0, n), dtype=kind, axis=1)
    numbers = q.astype(np.int16)

    def call():
        packed = qk.pack(q, params)
        again = qk.PackedMatrix.from_arrays(packed.to_arrays())
        return packed.unpack().astype(np.int16), again.unpack().astype(np.int16), packed.params.scale

    return Case(call, [numbers, numbers, params.scale])


@case()
def _matmul16(rng):
    m, k, n = size(rng, 100), size(rng, 300), size(rng, 300)
    a, b = codes(rng, (m, k), "int16"), codes(rng, (k, n), "int16")
    return Case(lambda: qk.matmul(a, b), a.astype(np.int64) @ b.astype(np.int64))


@case("linear")
def _linear(rng):
    m, k, n = size(rng, 200), size(rng, 500), size(rng, 500)
    x, w, bias = floats(rng, (m, k)), floats(rng, (k, n)), floats(rng, n)
    kind = str(rng.choice(["int8", "uint4", "int4", "int2", "int16", "float16"]))
    where = dict(axis=0, block_size=32) if kind in ("uint4", "int4") and rng.integers(2) else dict(axis=1)
    params = None if kind == "float16" else qk.choose_qparams(w, kind, **where)
    q = w.astype(np.float16) if params is None else qk.quantize(w, params)
    real = q.astype(np.float64) if params is None else qk.dequantize(q, params, dtype=np.float64)
    exact = x.astype(np.float64) @ real + bias
    step = np.abs(x).max(axis=1, keepdims=True) / (np.inf if params is None else 32767 if kind == "int16" else 127)
    sums = np.abs(x).astype(np.float64) @ np.abs(real)
    error = 0.51 * step * np.abs(real).sum(axis=0) + 1e-5 * (sums + np.abs(bias)) + 1e-30
    return Case(lambda: qk.linear(x, qk.pack(q, params), bias), Near(exact, error))


@case("qlinear")
def _qlinear(rng):
    m, k, n = size(rng, 300), size(rng, 300), size(rng, 600)
    a_params, out = byte_params(rng, exact=True), byte_params(rng, exact=True)
    a, w, bias = codes(rng, (m, k), a_params.dtype.name), codes(rng, (k, n)), rng.integers(-999, 999, n, np.int32)
    scale = np.float32(2.0 ** rng.integers(-9, -4, n))
    packed_params, fixed = qk.QParams(scale, axis=1), bool(rng.integers(2))
    acc = product(a.astype(np.int64) - a_params.zero_point, w) + bias
    m_real = np.float64(a_params.scale) * scale.astype(np.float64) / np.float64(out.scale)
    even = saturated(np.rint(acc.astype(np.float32) * m_real) + out.zero_point, out)
    want = fixed_point(acc, m_real, out) if fixed else even
    how = "tflite" if fixed else "half_even"
    return Case(lambda: qk.qlinear(a, a_params, qk.pack(w, packed_params), out, bias, rounding=how), want)


@case("qconv2d", "pack_conv", "PackedConv")
def _qconv2d(rng):
    groups, each, filters = (size(rng, 32), 1, 1) if rng.integers(2) else (1, size(rng, 32), size(rng, 64))
    kernel, strides, pad = tuple(rng.integers(1, 4, 2)), tuple(map(int, rng.integers(1, 3, 2))), int(rng.integers(2))
    params = byte_params(rng)
    shape = 1 + size(rng, 2), *(3 + size(rng, 40) for _ in range(2)), groups * each
    q, w = codes(rng, shape, params.dtype.name), codes(rng, (*kernel, each, groups * filters))
    at = windows(padded(q.astype(np.int64) - params.zero_point, pad, 0), kernel, strides)
    at = at.reshape(*at.shape[:3], groups, each, *kernel).transpose(3, 0, 1, 2, 5, 6, 4)
    rows = at.reshape(groups, -1, np.prod(kernel) * each)
    taps = w.reshape(-1, groups, filters).transpose(1, 0, 2)
    sums = product(rows, taps).transpose(1, 0, 2).reshape(*at.shape[1:4], groups * filters).astype(np.int32)

    def call():
        packed = qk.pack_conv(w, qk.QParams(1), groups=groups)
        return qk.qconv2d(q, params, packed, None, strides=strides, padding=pad)

    return Case(call, sums)


@case("max_pool2d", "qaverage_pool2d", "qglobal_average_pool")
def _pools(rng):
    params, out = byte_params(rng), byte_params(rng)
    shape = size(rng, 3), *(3 + size(rng, 60) for _ in range(2)), size(rng, 64)
    q, strides = codes(rng, shape, params.dtype.name), tuple(map(int, rng.integers(1, 3, 2)))
    real, at = values(q, params), windows(q, (3, 2), strides)
    means = windows(real, (3, 2), strides).mean(axis=(-1, -2))

    def call():
        largest = qk.max_pool2d(q, (3, 2), strides=strides)
        average = qk.qaverage_pool2d(q, params, out, (3, 2), strides=strides)
        return largest, average, qk.qglobal_average_pool(q, params, out)

    whole = real.mean(axis=(1, 2), keepdims=True)
    return Case(call, [at.max(axis=(-1, -2)), nearest(means, out, 2e-4), nearest(whole, out, 2e-4)])


# ---- layers ----


@case("qadd", "qmultiply")
def _pairs(rng):
    a_params, b_params, out = qk.QParams(*_scale(rng)), qk.QParams(*_scale(rng)), byte_params(rng)
    shape = area(rng, 500)
    a, b = codes(rng, shape), codes(rng, shape[int(rng.integers(2)) :])
    x, y = values(a, a_params), values(b, b_params)

    def call():
        return qk.qadd(a, a_params, b, b_params, out), qk.qmultiply(a, a_params, b, b_params, out)

    return Case(call, [nearest(x + y, out), nearest(x * y, out)])


def _scale(rng):
    return 10 ** rng.uniform(-2, -0.5), int(rng.integers(-128, 128))


@case("qconcatenate")
def _concatenate(rng):
    n, out = size(rng, 1000), byte_params(rng)
    parts = [(codes(rng, (size(rng, 300), n), p.dtype.name), p) for p in (byte_params(rng) for _ in range(3))]
    real = np.concatenate([values(*part) for part in parts])
    return Case(lambda: qk.qconcatenate(parts, out, axis=0), nearest(real, out))


@case("make_table", "take_table")
def _tables(rng):
    params, out = byte_params(rng), byte_params(rng)
    q = codes(rng, size(rng, 10**6), params.dtype.name)
    table = rng.integers(0, 256, 256).astype(np.uint8)

    def call():
        return qk.take_table(q, table), qk.make_table("tanh", params, out)

    real = np.tanh(values(np.arange(params.qmin, params.qmax + 1), params))
    return Case(call, [table[q.astype(np.int64) - params.qmin], nearest(real, out, 1e-9)])


@case("qsoftmax", "qlayer_norm", "qrms_norm")
def _rows_of_codes(rng):
    params, out = byte_params(rng), qk.QParams(1 / 256, 0, "uint8")
    q = codes(rng, (size(rng, 300), n := 1 + size(rng, 1000)), params.dtype.name)
    x, w, bias, to = values(q, params), floats(rng, n), floats(rng, n), byte_params(rng)
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    soft, eps = powers / powers.sum(axis=1, keepdims=True), 1e-5
    apart = x - x.mean(axis=1, keepdims=True)
    norm = apart / np.sqrt((apart**2).mean(axis=1, keepdims=True) + eps) * w + bias
    rms = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * w

    def call():
        normed = qk.qlayer_norm(q, params, w, bias, to, eps=eps), qk.qrms_norm(q, params, w, to, eps=eps)
        return qk.qsoftmax(q, params, out), *normed

    return Case(call, [nearest(soft, out, 2e-3), nearest(norm, to, 2e-3), nearest(rms, to, 2e-3)])


@case("layer_norm")
def _layer_norm(rng):
    x = floats(rng, (size(rng, 300), n := 1 + size(rng, 1000)))
    w, bias, wide = floats(rng, n), floats(rng, n), x.astype(np.float64)
    apart = wide - wide.mean(axis=1, keepdims=True)
    spread = np.sqrt((apart**2).mean(axis=1, keepdims=True) + 1e-5)
    largest = (np.abs(x).max(axis=1, keepdims=True) + np.abs(apart)) / spread
    error = 2.0**-23 * (np.abs(w) * (n / 16 + 8) * largest + np.abs(bias))  # docs/numerics.md, 10, and room
    return Case(lambda: qk.layer_norm(x, w, bias, eps=1e-5), Near(apart / spread * w + bias, error))


@case("attention", rare=True)
def _attention(rng):
    tokens, heads, each = size(rng, 200), int(rng.integers(1, 5)), size(rng, 64)
    q, k, v = (rng.normal(size=(tokens, heads * each)).astype(np.float32) / 3 for _ in range(3))
    by_head = [a.astype(np.float64).reshape(tokens, heads, each).transpose(1, 0, 2) for a in (q, k, v)]
    scores = by_head[0] @ by_head[1].transpose(0, 2, 1) / np.sqrt(each)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = powers.sum(axis=-1, keepdims=True)
    largest = [np.abs(a).max(axis=(1, 2), keepdims=True) for a in by_head]
    moved = np.exp(2 * np.sqrt(each) * largest[0] * largest[1] * (1 / 127 + 1 / (4 * 127**2)))  # docs/numerics.md, 11
    error = largest[2] * (moved - 1 + 2 * 0.52 * tokens * moved / (255 * total) + 1 / 254) + 0 * by_head[2]
    want, error = ((a.transpose(1, 0, 2).reshape(tokens, -1)) for a in (powers / total @ by_head[2], error))
    return Case(lambda: qk.attention(q, k, v, heads), Near(want, error))


@case("rotate", rare=True)
def _rotate(rng):
    k, seed = size(rng, 100), int(rng.integers(1000))
    n = k & -k
    x, eye = floats(rng, (size(rng, 50), k)), np.eye(k, dtype=np.float32)
    at = np.arange(k) // n
    sizes = np.abs((at[:, None] == at) - (2 * n / k if n < k else 0)) / np.sqrt(n)  # of the matrix's entries
    matrix = qk.rotate(eye, seed).astype(np.float64)
    error = 2.0**-19 * np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True)) + 0 * x
    return Case(
        lambda: (qk.rotate(x, seed), qk.rotate(qk.rotate(x, seed), seed, inverse=True), np.abs(qk.rotate(eye, seed))),
        [Near(x @ matrix, error), Near(x, error), Near(sizes, 1e-6)],
    )


@case("fold_batchnorm", "smooth")
def _folded(rng):
    k, n = size(rng, 100), size(rng, 100)
    w, bias = floats(rng, (k, n)), floats(rng, n)
    gamma, beta, mean, var = floats(rng, n), floats(rng, n), floats(rng, n), np.abs(floats(rng, n)) + np.float32(0.1)
    factor = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + 1e-5)
    want_bias = (bias.astype(np.float64) - mean) * factor + beta
    largest = 1e-5 * (np.abs(bias) + np.abs(mean)) * np.abs(factor) + 1e-5 * np.abs(beta) + 1e-30
    want_w = w * factor
    absmax = np.abs(floats(rng, k)) + np.float32(0.1)

    def call():
        smoothed, scales = qk.smooth(w, absmax)
        return *qk.fold_batchnorm(w, bias, gamma, beta, mean, var, eps=1e-5), smoothed / np.asarray(scales)[:, None]

    near_w = Near(w.astype(np.float64), 1e-5 * np.abs(w) + 1e-30)
    return Case(call, [Near(want_w, 1e-5 * np.abs(want_w) + 1e-30), Near(want_bias, largest), near_w])


# ---- codebooks and clusters ----


@case("encode", "decode", "Codebook")
def _codebooks(rng):
    shape, k = (size(rng, 300), 1 + size(rng, 600)), int(rng.integers(2, 257))
    levels, x = np.unique(np.float32(rng.normal(size=k))), np.float32(rng.normal(size=shape))
    rng.shuffle(levels)
    order = np.argsort(levels)
    middles = (levels[order][1:].astype(np.float64) + levels[order][:-1]) / 2
    at = np.searchsorted(middles, x.astype(np.float64))
    tied = np.append(middles, np.inf)[at] == x
    lower = np.minimum(order, np.append(order[1:], 256))  # of two levels that are as near the lower code
    want = np.where(tied, lower[at], order[at]).astype(np.uint8)
    book = qk.Codebook(levels)
    return Case(lambda: (qk.encode(x, book), qk.decode(want, book)), [want, levels[want]])


@case("Codebook.fit", "kmeans1d", "KMeansResult")
def _line(rng):
    n, k = int(rng.integers(2, 60)), int(rng.integers(1, 6))
    x = np.sort(rng.integers(-99, 99, n)).astype(np.float64)
    total, square = np.cumsum([0, *x]), np.cumsum([0, *x**2])
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        count = np.arange(1, n + 1 - i)
        cost[i, i + 1 :] = square[i + 1 :] - square[i] - (total[i + 1 :] - total[i]) ** 2 / count
    best = cost[0]
    for _ in range(k - 1):
        best = np.minimum(best, (best[:, None] + cost).min(axis=0))

    def call():
        found, book = qk.kmeans1d(x, k), qk.Codebook.fit(x.astype(np.float32), k)
        own = ((x - found.centroids[found.labels]) ** 2).sum()
        return own, found.inertia, np.float32(((x - book.levels[qk.encode(x, book)]) ** 2).sum())

    near = Near(best[n], 1e-9 * square[n] + 1e-9)
    return Case(call, [near, near, Near(best[n], 1e-4 * square[n] + 1e-3)])


@case("kmeans", rare=True)
def _kmeans(rng):
    n, d, k, seed = 8 + size(rng, 3000), int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(99))
    x = rng.integers(-20, 20, (n, d)).astype(np.float32)

    def law(found):
        centroids, labels, inertia = found
        distances = ((x[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
        chosen = np.take_along_axis(distances, labels[:, None].astype(np.int64), axis=1)[:, 0]
        nearest = np.all(chosen <= distances.min(axis=1) * (1 + 1e-5) + 1e-5)
        of_one = ((x - x.mean(axis=0, dtype=np.float64)) ** 2).sum()  # what one centroid costs, at its best
        return bool(nearest and abs(inertia - chosen.sum()) <= 1e-5 * of_one and inertia <= of_one * (1 + 1e-5))

    return Case(lambda: tuple(qk.kmeans(x, k, rng=seed)), law)


@case("distance_tables", "search", "pack_codes", "PackedCodes")
def _search(rng):
    groups, d, n, k = int(rng.integers(1, 9)), int(rng.integers(1, 5)), 16 + size(rng, 5000), int(rng.integers(1, 9))
    levels = rng.integers(-9, 10, (groups, 16, d)).astype(np.float32)
    book, stored = qk.Codebook(levels, vector=True), rng.integers(0, 16, (n, groups), np.uint8)
    queries = rng.integers(-9, 10, (size(rng, 20), groups * d)).astype(np.float32)
    by_group = queries.reshape(-1, groups, 1, d)
    tables = ((by_group.astype(np.float64) - levels) ** 2).sum(axis=-1)
    sums = tables[:, np.arange(groups), stored.astype(np.int64)].sum(axis=-1)
    order = np.argsort(sums, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(sums, order, axis=1).astype(np.float32)

    def call():
        packed = qk.pack_codes(stored)
        return (
            qk.distance_tables(queries, book),
            *qk.search(queries, stored, book, k),
            *qk.search(queries, packed, book, k),
        )

    return Case(call, [tables.astype(np.float32), found, order, found, order])


# ---- calibration, rounding and bits for layers ----


OBSERVERS = "MinMax", "MovingAverage", "Percentile", "Entropy", "MSE"


@case(*(f"observers.{name}" for name in OBSERVERS), rare=True)
def _observers(rng):
    parts = [floats(rng, (size(rng, 50), 16)) for _ in range(3)]
    whole = np.concatenate(parts)
    kind = getattr(observers, str(rng.choice([name for name in OBSERVERS if name != "MovingAverage"])))

    def call():
        seen = [kind().update(part) for part in parts]
        merged, at_once = seen[2].merge(seen[0]).merge(seen[1]).qparams("uint8"), kind().update(whole).qparams("uint8")
        extremes, average = observers.MinMax(axis=1).update(whole).qparams("int8"), observers.MovingAverage(rate=0.5)
        for part in parts:
            average.update(part)
        same = merged == at_once
        return np.bool_(same), extremes.scale, average.qparams("int8").scale

    means = np.float64([parts[0].min(), parts[0].max()])
    for part in parts[1:]:
        means += 0.5 * (np.float64([part.min(), part.max()]) - means)
    want = np.abs(whole).max(axis=0) / np.float32(127)
    moving = np.abs([min(means[0], 0), max(means[1], 0)]).max() / 127
    return Case(call, [np.bool_(True), want, Near(moving, 1e-5 * moving)])


@case("Hessian", "gptq", "GPTQResult", "prune", "PruneResult", "sensitivity", rare=True)
def _rounded_layers(rng):
    k, n = 4 * size(rng, 12), size(rng, 24)
    x, w = rng.normal(size=(k + 40, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    params = qk.choose_qparams(w, "int4", axis=1)
    near = qk.dequantize(qk.quantize(w, params), params)

    def loss(other):
        return float(((x.astype(np.float64) @ (w - other.astype(np.float64))) ** 2).sum())

    def call():
        hessian = qk.Hessian(k).update(x[:30]).merge(qk.Hessian(k).update(x[30:]))
        found, pruned = qk.gptq(w, hessian, params, center=False), qk.prune(w, hessian, pattern="2:4", center=False)
        return found.codes.view(np.uint8), pruned.weights, np.float64(qk.sensitivity(w, hessian, [params])).reshape(())

    def codes_law(found):
        return (
            loss(qk.dequantize(found.view(params.dtype), params)) <= 2 * loss(near) + 1e-9
        )  # feedback is greedy: on few columns it may lose

    def pruned_law(kept):
        return bool(np.all((kept.reshape(k // 4, 4, n) != 0).sum(axis=1) <= 2))

    return Case(call, [codes_law, pruned_law, lambda error: bool(error >= 0)])


@case("allocate_bits", "pareto", "Allocation")
def _bits_for_layers(rng):
    layers, choices = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    errors, sizes = rng.integers(0, 50, (layers, choices)).astype(float), rng.integers(1, 20, (layers, choices))
    budget = int(rng.integers(sizes.min(axis=1).sum(), sizes.max(axis=1).sum() + 1))
    every = np.array(np.meshgrid(*[range(choices)] * layers, indexing="ij")).reshape(layers, -1)
    at = np.arange(layers)[:, None]
    total, cost = sizes[at, every].sum(axis=0), errors[at, every].sum(axis=0)
    best = cost[total <= budget].min()

    def law(front):
        best_of_size = [cost[total <= size].min() for size in front.size]
        return np.allclose(best_of_size, front.error)

    return Case(
        lambda: (np.float64(qk.allocate_bits(errors, sizes, budget).error), qk.pareto(errors, sizes)),
        [np.float64(best), law],
    )


@case("io.save", "io.load", rare=True)
def _files(rng):
    shape = size(rng, 200), size(rng, 200)
    q, x = codes(rng, shape), floats(rng, shape)
    packed = qk.pack(q, qk.QParams(10 ** rng.uniform(-3, 0, shape[1]), axis=1))

    def call():
        with tempfile.TemporaryDirectory() as folder:
            io.save(f"{folder}/x.safetensors", {"w": packed, "x": x})
            found = io.load(f"{folder}/x.safetensors")
        return found["w"].unpack(), found["x"]

    return Case(call, [q, x])
