"""Convolutions of codes, batch 1: qkernels.qconv2d and pools. Shapes are those of ResNet-50, MobileNet-V2 and
EfficientNet-Lite0: side of the image, channels, filters, kernel, stride."""

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, random_codes
from dense import product_limits
from limits import moving
from race import EXACT, our_own

import qkernels as qk

RESNET = [(224, 3, 64, 7, 2), (56, 64, 64, 1, 1), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1), (56, 64, 64, 3, 1)]
RESNET += [(56, 256, 512, 1, 2), (28, 128, 128, 3, 1), (56, 128, 128, 3, 2), (14, 256, 256, 3, 1)]
RESNET += [(14, 256, 1024, 1, 1), (7, 512, 512, 3, 1), (7, 512, 2048, 1, 1)]
MOBILENET = [(224, 3, 32, 3, 2), (112, 16, 96, 1, 1), (28, 32, 192, 1, 1), (28, 192, 32, 1, 1), (14, 64, 384, 1, 1)]
MOBILENET += [(14, 384, 64, 1, 1), (14, 576, 96, 1, 1), (7, 160, 960, 1, 1), (7, 960, 320, 1, 1), (7, 320, 1280, 1, 1)]
MOBILENET += [(112, 32, 16, 1, 1), (56, 24, 144, 1, 1), (56, 144, 24, 1, 1)]
DEPTHWISE = [(112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 3, 2), (28, 192, 3, 1), (28, 192, 3, 2)]
DEPTHWISE += [(14, 384, 3, 1), (14, 576, 3, 1), (14, 576, 3, 2), (7, 960, 3, 1)]
DEPTHWISE += [(56, 144, 5, 2), (28, 240, 5, 1), (14, 480, 5, 1), (14, 672, 5, 2), (7, 1152, 5, 1)]
X_ZERO, Y_ZERO, X_SCALE = 3, 120, 0.1


def near(want):
    """Say how far a peer is off: some round otherwise, and torch's depthwise sums saturate."""

    def check(got):
        off = np.abs(got.astype(int) - want)
        return EXACT if not off.any() else f"{(off > 0).mean():.2%} off by up to {off.max()}"

    return check


def race_convolution(race, isa, side, channels, filters, kernel, stride, groups=1):
    q = random_codes("uint8", 1, side, side, channels)
    w = aligned(np.random.default_rng(1).integers(-127, 128, (kernel, kernel, channels // groups, filters), np.int8))
    bias = np.random.default_rng(2).integers(-1000, 1000, filters).astype(np.int32)
    padding = kernel // 2
    w_scale = np.random.default_rng(3).uniform(0.005, 0.01, filters).astype(np.float32)
    scales, zeros = (X_SCALE, w_scale, float(5.0 * w[..., 0].size ** 0.5 / 9)), (X_ZERO, Y_ZERO)
    params, to = qk.QParams(X_SCALE, X_ZERO, "uint8"), qk.QParams(scales[2], Y_ZERO, "uint8")
    packed = qk.pack_conv(w, qk.QParams(w_scale, axis=3), groups=groups)
    length = (side + 2 * padding - kernel) // stride + 1
    out, where = aligned_empty((1, length, length, filters), "uint8"), dict(strides=stride, padding=padding)
    sums = qk.qconv2d(q, params, packed, None, bias, **where)
    check = near(qk.requantize(sums, np.float32(X_SCALE) * w_scale / np.float32(scales[2]), to).astype(int))
    ours = our_own(lambda: qk.qconv2d(q, params, packed, to, bias, **where, out=out), out, check)
    attributes = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, group=groups)
    node = q, w, bias, scales, zeros
    others = [peers.onnxruntime.qlinear_conv(*node, attributes, out.shape, last) for last in (True, False)]
    others += [peers.torch.qconv2d(engine, *node, (stride, padding, groups)) for engine in ("onednn", "fbgemm")]
    others += [peers.litert.qconv2d(*node, (stride, padding, groups))]
    others = [other for other in others if other]
    for other in others:
        other.check = check
    macs, moved = out.size * w[..., 0].size, q.nbytes + packed.nbytes + out.nbytes
    limits = product_limits(isa, macs, q.nbytes + packed.nbytes, out.nbytes)
    case = f"{'depthwise' if groups > 1 else 'conv'} {kernel}x{kernel}/{stride}, {side}x{side}, {channels} to {filters}"
    race(case, ours, others, check, macs, "GMAC/s", limits, moved)


@pytest.mark.parametrize("shape", RESNET + MOBILENET, ids=str)
def test_qconv2d(race, isa, shape):
    race_convolution(race, isa, *shape)


@pytest.mark.parametrize("shape", DEPTHWISE, ids=str)
def test_depthwise(race, isa, shape):
    side, channels, kernel, stride = shape
    race_convolution(race, isa, side, channels, channels, kernel, stride, channels)


@pytest.mark.parametrize(("side", "channels"), [(112, 64), (56, 128)])
def test_max_pool2d(race, side, channels):
    q = random_codes("uint8", 1, side, side, channels)
    want = qk.max_pool2d(q, 3, strides=2, padding=1)
    out = aligned_empty(want.shape, "uint8")
    ours = our_own(lambda: qk.max_pool2d(q, 3, strides=2, padding=1, out=out), out)
    others = [peers.onnxruntime.max_pool(q, 3, 2, [1] * 4, want.shape)]
    case = f"max_pool2d 3x3/2, {side}x{side}x{channels}"
    race(case, ours, others, near(want.astype(int)), q.size, "Gcodes/s", [moving(q.nbytes, out.nbytes)])


@pytest.mark.parametrize(("side", "channels"), [(7, 1280), (7, 2048), (14, 512)])
def test_qglobal_average_pool(race, side, channels):
    q = random_codes("uint8", 1, side, side, channels)
    params, to = qk.QParams(0.1, X_ZERO, "uint8"), qk.QParams(0.05, Y_ZERO, "uint8")
    want = qk.qglobal_average_pool(q, params, to)
    out = aligned_empty(want.shape, "uint8")
    ours = our_own(lambda: qk.qglobal_average_pool(q, params, to, out=out), out)
    others = [peers.onnxruntime.global_average_pool(q, (0.1, 0.05), (X_ZERO, Y_ZERO))]
    case = f"qglobal_average_pool {side}x{side}x{channels}"
    race(case, ours, others, near(want.astype(int)), q.size, "Gcodes/s", [moving(q.nbytes, out.nbytes)])
