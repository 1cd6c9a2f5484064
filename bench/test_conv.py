"""Convolutions of codes, batch 1: qkernels.qconv2d and pools. Shapes are those of ResNet-50, MobileNet-V2 and
EfficientNet-Lite0: side of the image, channels, filters, kernel, stride."""

from functools import partial

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, random_codes
from dense import product_limits
from limits import moving
from race import CLOSE, EXACT, WRONG, Contender, our_own

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
NORMAL = [(56, 64, 64, 3, 1), (56, 256, 64, 1, 1), (28, 128, 128, 3, 1), (14, 256, 1024, 1, 1), (14, 576, 96, 1, 1)]
THREADED = [(224, 3, 64, 7, 2), (56, 64, 64, 3, 1), (56, 256, 512, 1, 2), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1)]
THREADED += [(7, 512, 512, 3, 1), (112, 256, 256, 3, 1)]
POOLS = [(112, 64, 3, 2), (56, 128, 2, 2), (28, 256, 3, 1)]  # side, channels, kernel, stride
X_ZERO, Y_ZERO, X_SCALE = 3, 120, 0.1


def near(want, most=1e-3):
    """Off by one in few places is right: peers round otherwise. torch's depthwise sums saturate, which is wrong."""

    def check(got):
        off = np.abs(got.astype(int) - want)
        if not off.any():
            return EXACT
        close = off.max() == 1 and (off > 0).mean() <= most
        return CLOSE if close else f"{WRONG}: {(off > 0).mean():.1%} off by up to {off.max()}"

    return check


def layer_of(side, channels, filters, kernel, stride, groups=1, normal=False):
    """Return an image, and what `peers` and ours want of a convolution of it: (w, bias, scales, zeros), and where."""
    q, of_weights = random_codes("uint8", 1, side, side, channels), (kernel, kernel, channels // groups, filters)
    w = aligned(np.random.default_rng(1).integers(-127, 128, of_weights, np.int8))
    if normal:
        w = aligned(np.clip(np.random.default_rng(1).normal(0, 32, of_weights), -127, 127).astype(np.int8))
    bias = np.random.default_rng(2).integers(-1000, 1000, filters).astype(np.int32)
    w_scale = np.random.default_rng(3).uniform(0.005, 0.01, filters).astype(np.float32)
    scales = X_SCALE, w_scale, float(5.0 * w[..., 0].size ** 0.5 / 9)
    return q, (w, bias, scales, (X_ZERO, Y_ZERO)), dict(strides=stride, padding=kernel // 2)


def our_convolution(q, node, where, groups):
    """Return our contender, the check of all, the array that ours writes and the packed weights."""
    w, bias, scales, zeros = node
    params, to = qk.QParams(scales[0], zeros[0], "uint8"), qk.QParams(scales[2], zeros[1], "uint8")
    packed = qk.pack_conv(w, qk.QParams(scales[1], axis=3), groups=groups)
    sums = qk.qconv2d(q, params, packed, None, bias, **where)
    check = near(qk.requantize(sums, np.float32(scales[0]) * scales[1] / np.float32(scales[2]), to).astype(int))
    out = aligned_empty(sums.shape, "uint8")
    return our_own(lambda: qk.qconv2d(q, params, packed, to, bias, **where, out=out), out, check), check, out, packed


def as_qlinear(q, node, out):
    """Return a contender that is our own product of as many multiply-accumulates, with all of its rows in memory."""
    w, bias, scales, _ = node
    matrix = w.reshape(-1, w.shape[3])
    rows, params = random_codes("uint8", out[..., 0].size, len(matrix)), qk.QParams(scales[0], X_ZERO, "uint8")
    packed, to = qk.pack(matrix, qk.QParams(scales[1], axis=1)), qk.QParams(scales[2], Y_ZERO, "uint8")
    y = aligned_empty((len(rows), w.shape[3]), "uint8")
    return Contender("qlinear", lambda: qk.qlinear(rows, params, packed, to, bias, out=y), lambda: out, held=False)


def race_convolution(race, isa, side, channels, filters, kernel, stride, groups=1, normal=False):
    q, node, where = layer_of(side, channels, filters, kernel, stride, groups, normal)
    ours, check, out, packed = our_convolution(q, node, where, groups)
    padding = where["padding"]
    attributes = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, group=groups)
    others = [peers.onnxruntime.qlinear_conv(q, *node, attributes, out.shape, last) for last in (True, False)]
    others += [peers.torch.qconv2d(engine, q, *node, (stride, padding, groups)) for engine in ("onednn", "fbgemm")]
    others += [peers.litert.qconv2d(q, *node, (stride, padding, groups))]
    for other in others:
        other.check = check
    of_floats = q.transpose(0, 3, 1, 2).astype(np.float32), node[0].transpose(3, 2, 0, 1).astype(np.float32)
    others += [peers.torch.conv2d(*of_floats, (stride, padding, groups))]
    others[-1].check = lambda y: EXACT if y.shape == out.shape else WRONG  # of floats, whose sums are not ours
    others += [] if groups > 1 else [as_qlinear(q, node, out)]
    macs, moved = out.size * node[0][..., 0].size, q.nbytes + packed.nbytes + out.nbytes
    limits = product_limits(isa, macs, q.nbytes + packed.nbytes, out.nbytes)
    case = f"{'depthwise' if groups > 1 else 'conv'} {kernel}x{kernel}/{stride}, {side}x{side}, {channels} to {filters}"
    case += ", normal weights" * normal
    race(case, ours, others, check, macs, "GMAC/s", limits, moved)


@pytest.mark.parametrize("shape", RESNET + MOBILENET, ids=str)
def test_qconv2d(race, isa, shape):
    race_convolution(race, isa, *shape)


@pytest.mark.parametrize("shape", NORMAL, ids=str)
def test_normal_weights(race, isa, shape):
    """As networks have them, where AVX2 has a faster exact instruction: the peak of others is 1.6 of float32's."""
    race_convolution(race, isa, *shape, normal=True)


@pytest.mark.parametrize("shape", DEPTHWISE, ids=str)
def test_depthwise(race, isa, shape):
    side, channels, kernel, stride = shape
    race_convolution(race, isa, side, channels, channels, kernel, stride, channels)


@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_threads(race, shape):
    """All threads and one. A run of its own: QKERNELS_NUM_THREADS=2 pytest bench/test_conv.py -k threads."""
    if peers.threads == 1:
        pytest.skip("one thread")
    side, channels, filters, kernel, stride = shape
    q, node, where = layer_of(*shape)
    ours, check, out, packed = our_convolution(q, node, where, 1)
    ours.call = on_threads(peers.threads, call := ours.call)
    one = Contender("one thread", on_threads(1, call), lambda: out, check)
    case = f"conv threads {kernel}x{kernel}/{stride}, {side}x{side}, {channels} to {filters}"
    race(case, ours, [one], check, out.size * node[0][..., 0].size, "GMAC/s")


def on_threads(count, call):
    def on():
        qk.set_num_threads(count)
        call()

    return on


# ---- pools ----


def race_pool(race, name, q, call, others, kernel=""):
    want = call()
    out = aligned_empty(want.shape, "uint8")
    ours = our_own(lambda: call(out=out), out)
    case = f"{name}{kernel}, {q.shape[1]}x{q.shape[2]}, {q.shape[3]}"
    check = near(want.astype(int), most=0.25)  # means are often ties
    race(case, ours, others, check, q.size, "Gcodes/s", [moving(q.nbytes, out.nbytes)])


@pytest.mark.parametrize(("side", "channels", "kernel", "stride"), POOLS)
def test_max_pool2d(race, side, channels, kernel, stride):
    q, padding = random_codes("uint8", 1, side, side, channels), kernel // 2 * (kernel % 2)
    window = kernel, stride, padding
    others = [getattr(peers, of).max_pool(q, *window) for of in ("onnxruntime", "torch", "litert")]
    others += [peers.onnxruntime.max_pool(q, *window, channels_last=True)]
    call = partial(qk.max_pool2d, q, kernel, strides=stride, padding=padding)
    race_pool(race, "max_pool2d", q, call, others, f" {kernel}x{kernel}/{stride}")


@pytest.mark.parametrize(("side", "channels", "kernel", "stride"), POOLS)
def test_qaverage_pool2d(race, side, channels, kernel, stride):
    """The result has the scale of the codes: LiteRT knows no other."""
    q, padding, params = random_codes("uint8", 1, side, side, channels), kernel // 2 * (kernel % 2), (0.1, X_ZERO)
    window = kernel, stride, padding
    others = [getattr(peers, of).average_pool(q, *window, params) for of in ("torch", "litert")]
    others += [peers.onnxruntime.average_pool(q, *window, params, last) for last in (False, True)]
    of = qk.QParams(*params, "uint8")
    call = partial(qk.qaverage_pool2d, q, of, of, kernel, strides=stride, padding=padding)
    race_pool(race, "qaverage_pool2d", q, call, others, f" {kernel}x{kernel}/{stride}")


@pytest.mark.parametrize(("side", "channels"), [(7, 1280), (7, 2048), (14, 512)])
def test_qglobal_average_pool(race, side, channels):
    q, params = random_codes("uint8", 1, side, side, channels), (0.1, X_ZERO)
    others = [getattr(peers, of).global_average_pool(q, params) for of in ("onnxruntime", "torch", "litert")]
    of = qk.QParams(*params, "uint8")
    race_pool(race, "qglobal_average_pool", q, partial(qk.qglobal_average_pool, q, of, of), others)
