"""LiteRT's answers on 9 million values of `tflite` and 3 million of `gemmlowp`: not one differs, on any instruction
set.

`tflite`: its reference FULLY_CONNECTED kernel, which multiplies sums by input_scale * filter_scale / output_scale in
double and rounds once. 31 bits of that multiplier give the same code but where the product comes within one part in
2**32 of a tie; ties themselves, which scales of few bits make, have a test of their own.
`gemmlowp`: its QUANTIZE kernel from int32, which rounds twice; ties and all.
"""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from graphs import ACTIVATIONS, convolution_options, litert_run, options_of, tensor
from numpy.testing import assert_array_equal

import qkernels as qk


def fully_connected(x, px, w, pw, py, bias=None, relu=False):
    """int8 codes x (m, k) times weights w (n, k); each p is (scale, zero point)."""
    options = options_of("FullyConnected", fusedActivationFunction=ACTIVATIONS[relu])
    tensors = [
        tensor(x.shape, x.dtype, px),
        tensor(w.shape, w.dtype, pw),
        tensor(w.shape[:1], np.int32, (np.float32(px[0]) * pw[0], 0)),
        tensor((len(x), len(w)), np.int8, py),
    ]
    return litert_run(x, schema.BuiltinOperator.FULLY_CONNECTED, options, tensors, [w, bias])


def qlinear(x, px, w, pw, py, bias=None, relu=False):
    scale, zero_point = pw
    packed = qk.pack(w.T, qk.QParams(scale, np.full(np.shape(scale), zero_point), axis=1 if np.ndim(scale) else None))
    return qk.qlinear(
        x, qk.QParams(*px), packed, qk.QParams(*py), bias, activation="relu" if relu else None, rounding="tflite"
    )


def multiplier(px, pw, py):
    """In double, from scales in float32."""
    return np.float64(px[0]) * np.float64(pw[0]) / np.float64(py[0])


def sums(x, px, w, pw):
    return (x.astype(np.int64) - px[1]) @ (w.astype(np.int64) - pw[1]).T


def random_codes(rng, shape, limit=128):
    """int8 codes of magnitude up to limit, a third of them at the ends."""
    ends = rng.choice([-limit, limit - 1], shape)
    return np.where(rng.random(shape) < 1 / 3, ends, rng.integers(-limit, limit, shape)).astype(np.int8)


def random_scale(rng, shape=()):
    return rng.uniform(0.01, 1, shape).astype(np.float32)


SHAPES = [(1027, 67, 33), (4099, 1, 5), (513, 129, 65), (7, 1031, 17), (1, 2, 1)]  # m, k, n


@pytest.mark.parametrize("limit", [128, 2], ids=["multiplier_below_1", "multiplier_above_1"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
def test_tflite(per_column, with_bias, relu, limit, isas):
    """1.4 million outputs in all, spread over all codes, a few of them saturated."""
    rng = np.random.default_rng(0)
    for m, k, n in SHAPES:
        x, w = random_codes(rng, (m, k), limit), random_codes(rng, (n, k), limit)
        px = random_scale(rng), rng.integers(-limit, limit)
        pw = random_scale(rng, n if per_column else ()), 0 if per_column else rng.integers(-limit, limit)
        acc = sums(x, px, w, pw)
        bias = rng.integers(-limit * limit, limit * limit, n).astype(np.int32) if with_bias else None
        py = (
            np.float32(px[0] * np.mean(pw[0]) * (acc.std() + limit * limit * with_bias + 1) / 50),
            rng.integers(-50, 50),
        )
        want = fully_connected(x, px, w, pw, py, bias, relu)
        for isa in isas():
            assert_array_equal(qlinear(x, px, w, pw, py, bias, relu), want, err_msg=isa, strict=True)
            if not relu:
                got = qk.requantize(
                    acc.astype(np.int32), multiplier(px, pw, py), qk.QParams(*py), bias=bias, rounding="tflite"
                )
                assert_array_equal(got, want, err_msg=isa, strict=True)


@pytest.mark.parametrize("per_column", [False, True])
def test_tflite_near_ties(per_column, isas):
    """3.9 million outputs each time: all pairs of codes, with scales for which one sum in each column comes as close to
    a tie as float32 scales allow. That tells a multiplier from float, or from a product of scales in float, from the
    one in double."""
    rng = np.random.default_rng(1)
    x = np.stack(np.divmod(np.arange(65536), 256), axis=1).astype(np.uint8).view(np.int8)
    for _ in range(30):
        w = np.array([[127, 1], [-128, 3]], np.int8)
        column_sum, code = rng.integers(9000, 16000, 2), rng.integers(40, 127, 2) + 0.5
        px, pw = random_scale(rng), random_scale(rng)
        py = np.float32(px * np.float64(pw) * column_sum[0] / code[0])
        if per_column:
            pw = (py * code / (px * column_sum.astype(np.float64))).astype(np.float32)
        px, pw, py = (px, 0), (pw, 0), (py, 0)
        want = fully_connected(x, px, w, pw, py)
        for isa in isas():
            assert_array_equal(qlinear(x, px, w, pw, py), want, err_msg=isa, strict=True)


def test_tflite_ties(isas):
    """Where the product is exactly halfway between codes, we round up, as ruy and TFLITE_SINGLE_ROUNDING do (numerics
    7); the reference kernel rounds away from zero: one lower where the product is negative, and nowhere else."""
    rng = np.random.default_rng(2)
    px, pw, py = (2.0**-5, -1), (2.0**-8, 0), (2.0**-1, 0)
    for k in (13, 14, 15):
        x, w = random_codes(rng, (1031, k)), random_codes(rng, (67, k))
        product = sums(x, px, w, pw) * multiplier(px, pw, py)
        tie_below_zero = (product < 0) & (product % 1 == 0.5)
        assert np.abs(product).max() < 127 and tie_below_zero.sum() > 5
        want = fully_connected(x, px, w, pw, py)
        for isa in isas():
            assert_array_equal(
                qlinear(x, px, w, pw, py) - tie_below_zero.astype(np.int8), want, err_msg=isa, strict=True
            )


def convolution(x, px, w, pw, py, bias, where, reference=True):
    """int8 images (N, H, W, C) and weights (height, width, C / groups, F), one scale a filter; `where` is stride,
    dilation, whether padding is SAME, and whether each channel is a group."""
    stride, dilation, same, depthwise = where
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    options = convolution_options(depthwise, same, stride, dilation)
    weights = np.ascontiguousarray(w.transpose((2, 0, 1, 3) if depthwise else (3, 0, 1, 2)))
    of_weights = tensor(weights.shape, w.dtype, pw)
    of_weights.quantization.quantizedDimension = 3 if depthwise else 0
    reach = (w.shape[0] - 1) * dilation + 1
    side = -(-x.shape[1] // stride) if same else (x.shape[1] - reach) // stride + 1
    tensors = [
        tensor(x.shape, x.dtype, px),
        of_weights,
        tensor(bias.shape, np.int32, (np.float32(px[0]) * pw[0], 0)),
        tensor((len(x), side, side, w.shape[3]), np.int8, py),
    ]
    return litert_run(x, getattr(schema.BuiltinOperator, name), options, tensors, [weights, bias], reference)


@pytest.mark.parametrize("kernels", ["reference", "XNNPACK"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(depthwise, kernels, isas):
    """1.5 million codes each. The reference kernels round twice, where FULLY_CONNECTED rounds once; XNNPACK multiplies
    by a float32 and rounds half to even, as ONNX does."""
    rng, seen, reference = np.random.default_rng(4), 0, kernels == "reference"
    for number in range(24):
        kernel, stride, dilation = int(rng.choice([1, 3, 5])), 1 + number % 2, 1 + number // 2 % 2
        stride = 1 if dilation > 1 else stride
        same = bool(number // 4 % 2)
        channels, filters = (int(n) for n in rng.integers(1, 70, 2))
        filters = channels if depthwise else filters
        side = 12 + int(np.sqrt(60_000 / filters)) * stride
        x = random_codes(rng, (1, side, side, channels))
        w = np.maximum(random_codes(rng, (kernel, kernel, 1 if depthwise else channels, filters)), -127)
        px, pw = (random_scale(rng), int(rng.integers(-100, 100))), (random_scale(rng, (filters,)), 0)
        size = 70 * np.sqrt(w[..., 0].size)
        py = (np.float32(px[0] * pw[0].mean() * size), int(rng.integers(-50, 50)))
        bias = rng.integers(-20_000, 20_000, filters).astype(np.int32)
        want = convolution(x, px, w, pw, py, bias, (stride, dilation, same, depthwise), reference)
        for isa in isas():
            packed = qk.pack_conv(w, qk.QParams(pw[0], axis=3), groups=channels if depthwise else 1)
            got = qk.qconv2d(
                x,
                qk.QParams(*px),
                packed,
                qk.QParams(*py),
                bias,
                strides=stride,
                dilations=dilation,
                padding="same_upper" if same else 0,
                rounding="gemmlowp" if reference else "half_even",
            )
            assert_array_equal(got, want, err_msg=f"{isa}, {w.shape}, {stride}, {dilation}, {same}", strict=True)
        seen += want.size
    assert seen > 1_400_000


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("powers_of_two", [False, True])
def test_gemmlowp(dtype, powers_of_two, isas):
    """3.1 million sums by multipliers from 2**-31 to 2**7; half of the sums near the code's range, half anywhere."""
    rng = np.random.default_rng(3)
    n, codes = 20_011, np.iinfo(dtype)
    for exponent in range(-31, 8):
        scale_in, scale_out = np.float32(2.0**exponent), np.float32(1)
        if not powers_of_two:
            scale_in, scale_out = scale_in * np.float32(rng.uniform(0.5, 1)), random_scale(rng)
        m = np.float64(scale_in) / np.float64(scale_out)
        largest = int(2**30 / max(2 * m, 1))  # the shifted sum must fit int32, LiteRT lets it wrap
        near = min(int(codes.max / m) + 1, largest)
        acc = np.where(rng.random(n) < 0.5, rng.integers(-near, near, n), rng.integers(-largest, largest, n))
        acc = acc.astype(np.int32)
        zero_point = rng.integers(-100, 100) if dtype == "int8" else 0
        tensors = [tensor((n,), np.int32, (scale_in, 0)), tensor((n,), dtype, (scale_out, zero_point))]
        want = litert_run(acc, schema.BuiltinOperator.QUANTIZE, options_of("Quantize"), tensors, [])
        params = qk.QParams(1, zero_point, dtype)
        for isa in isas():
            assert_array_equal(qk.requantize(acc, m, params, rounding="gemmlowp"), want, err_msg=isa, strict=True)


# ---- layers on codes (numerics 23) ----


def two(operator, a, pa, b, pb, py, relu):
    """ADD or MUL."""
    options = options_of(operator.capitalize(), fusedActivationFunction=ACTIVATIONS[relu])
    shape = np.broadcast_shapes(a.shape, b.shape)
    tensors = [tensor(a.shape, a.dtype, pa), tensor(b.shape, a.dtype, pb), tensor(shape, a.dtype, py)]
    number = getattr(schema.BuiltinOperator, operator)
    return litert_run(a, number, options, tensors, [b])


def any_codes(rng, shape, dtype):
    return rng.integers(0, 256, shape, np.uint8).view(dtype)


def any_params(rng, dtype, low=-6, high=1):
    scale = 2.0 ** rng.uniform(low, high) if rng.random() < 0.8 else 2.0 ** rng.integers(low, high)
    return np.float32(scale), int(any_codes(rng, (), dtype)[()])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("operator", ["ADD", "MUL"])
def test_pairs(operator, relu, dtype, isas):
    """A million pairs or more, scales of all sizes among each other and some of few bits, which make ties."""
    rng, function = np.random.default_rng(0), {"ADD": qk.qadd, "MUL": qk.qmultiply}[operator]
    every = np.divmod(np.arange(65536, dtype=np.uint16), 256)
    for i in range(24):
        a, b = (x.astype(np.uint8).view(dtype) for x in every)
        if i % 4 == 3:
            a, b = any_codes(rng, (2, 3, 40), dtype), any_codes(rng, ((40,), (2, 3, 1), (3, 40))[i % 3], dtype)
        pa, pb, py = (any_params(rng, dtype) for _ in range(3))
        want = two(operator, a, pa, b, pb, py, relu)
        params = [qk.QParams(*p, dtype) for p in (pa, pb, py)]
        for isa in isas():
            got = function(
                a, params[0], b, params[1], params[2], activation="relu" if relu else None, rounding="tflite"
            )
            assert_array_equal(got, want, err_msg=f"{isa} {i} {pa} {pb} {py}", strict=True)


def test_concatenation_of_uint8():
    """LiteRT takes other parameters for each part of uint8 only."""
    rng, x = np.random.default_rng(0), np.arange(256, dtype=np.uint8)
    for _ in range(200):
        parts, py = [any_params(rng, "uint8") for _ in range(2)], any_params(rng, "uint8")
        options = options_of("Concatenation", axis=0)
        tensors = [*(tensor(x.shape, x.dtype, p) for p in parts), tensor((512,), x.dtype, py)]
        want = litert_run(x, schema.BuiltinOperator.CONCATENATION, options, tensors, [x])
        of = [(x, qk.QParams(*p, "uint8")) for p in parts]
        got = qk.qconcatenate(of, qk.QParams(*py, "uint8"), axis=0, rounding="tflite")
        assert_array_equal(got, want, err_msg=f"{parts} {py}", strict=True)
