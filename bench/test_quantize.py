"""Elementwise: quantize, dequantize, fake_quantize and dynamic_quantize of 262,144 floats (1 MB: beyond the L2 cache)
and of arrays beyond all caches; and choose_qparams.

numkong and OpenBLAS have none of these.
"""

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, random_codes, random_floats
from limits import moving
from race import exactly, our_own, within

import qkernels as qk

SHAPE = (256, 1024)
COUNT = 256 * 1024
FLOAT = 4
LARGE = [(4096, 4096), (16384, 1024), (1024, 16384), (2048, 2048)]
AXES = pytest.mark.parametrize("axis", [None, 0, 1], ids=["per tensor", "axis 0", "last axis"])


def layout(axis, shape=SHAPE):
    """Return scale and zero point, uint8, as arrays that every library takes; and how the case is called."""
    if axis is None:
        return np.float32(0.0231), np.uint8(117), ""
    random = np.random.default_rng(3)
    scale = random.uniform(0.01, 0.04, shape[axis]).astype(np.float32)
    return scale, random.integers(100, 150, shape[axis]).astype(np.uint8), " axis 0" if axis == 0 else " last axis"


def along(values, axis):
    """The shape that broadcasts over that of the array."""
    return values[:, None] if axis == 0 else values


def exact_codes(x, scale, zero_point, axis):
    codes = np.rint(x / along(scale, axis)) + along(zero_point, axis).astype(np.float32)
    return np.clip(codes, 0, 255).astype(np.uint8)


def exact_values(codes, scale, zero_point, axis):
    return (codes.astype(np.float32) - along(zero_point, axis)) * along(scale, axis)


def both(operation, x, scale, zero_point, axis):
    of_onnx, of_torch = getattr(peers.onnxruntime, operation), getattr(peers.torch, operation)
    where = {} if axis is None else {"axis": axis}
    return [of_onnx(x, scale, zero_point, **where), of_torch(x, scale, zero_point, axis)]


def compiled(operation, x, scale, zero_point, axis):
    return [getattr(library, operation)(x, scale, zero_point, axis) for library in (peers.torch_compile, peers.jax)]


@AXES
def test_quantize(race, axis):
    x, (scale, zero_point, name) = random_floats(*SHAPE), layout(axis)
    params, out = qk.QParams(scale, zero_point, "uint8", axis=axis), aligned_empty(SHAPE, "uint8")
    ours, others = our_own(lambda: qk.quantize(x, params, out=out), out), both("quantize", x, scale, zero_point, axis)
    check = within(exact_codes(x, scale, zero_point, axis), step=1)  # torch multiplies by the reciprocal
    race(f"quantize{name}", ours, others, check, COUNT * (FLOAT + 1), "GB/s", [moving(COUNT * FLOAT, COUNT)])


@AXES
def test_dequantize(race, axis):
    q, (scale, zero_point, name) = random_codes("uint8", *SHAPE), layout(axis)
    params, out = qk.QParams(scale, zero_point, "uint8", axis=axis), aligned_empty(SHAPE, "float32")
    ours = our_own(lambda: qk.dequantize(q, params, out=out), out)
    others = both("dequantize", q, scale, zero_point, axis)
    check = within(exact_values(q, scale, zero_point, axis), step=1e-6)
    race(f"dequantize{name}", ours, others, check, COUNT * (1 + FLOAT), "GB/s", [moving(COUNT, COUNT * FLOAT)])


@AXES
def test_fake_quantize(race, axis):
    x, (scale, zero_point, name) = random_floats(*SHAPE), layout(axis)
    params, out = qk.QParams(scale, zero_point, "uint8", axis=axis), aligned_empty(SHAPE, "float32")
    expected = exact_values(exact_codes(x, scale, zero_point, axis), scale, zero_point, axis)
    ours = our_own(lambda: qk.fake_quantize(x, params, out=out), out)
    others, check = both("fake_quantize", x, scale, zero_point, axis), within(expected, step=1.01 * np.max(scale))
    race(f"fake_quantize{name}", ours, others, check, COUNT * 2 * FLOAT, "GB/s", [moving(COUNT * FLOAT, COUNT * FLOAT)])


@pytest.mark.parametrize("shape", [SHAPE, LARGE[3]], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("axis", [None, 0], ids=["per tensor", "axis 0"])
def test_fake_quantize_and_back(race, axis, shape):
    """Forward and backward, as a step of training takes them; ours has the gradients of scales and zero points, too."""
    x, grad, (scale, zero_point, name) = random_floats(*shape), random_floats(*shape)[::-1].copy(), layout(axis, shape)
    params, y = qk.QParams(scale, zero_point, "uint8", axis=axis), aligned_empty(shape, "float32")

    def call():
        qk.fake_quantize(x, params, out=y)
        return qk.fake_quantize_grad(grad, x, params)[0]

    codes = np.rint(x / along(scale, axis)) + along(zero_point, axis).astype(np.float32)
    check = within(np.where((codes >= 0) & (codes <= 255), grad, 0), step=np.abs(grad).max(), most=1e-5)
    arguments = grad, x, scale, zero_point, axis
    others = [peers.torch.fake_quantize_and_back(*arguments, learned=learned) for learned in (False, True)]
    limits, case = [moving(3 * x.nbytes, 2 * x.nbytes)], f"fake_quantize and back{name}, {shape[0]}x{shape[1]}"
    race(case, our_own(call), others, check, 5 * x.nbytes, "GB/s", limits)


@AXES
@pytest.mark.parametrize("shape", [SHAPE, LARGE[0]], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("operation", ["quantize", "fake_quantize"])
def test_stochastic(race, operation, shape, axis):
    """No peer rounds by numbers of a counter: against our own rounding to the nearest."""
    x, (scale, zero_point, name) = random_floats(*shape), layout(axis, shape)
    params, function = qk.QParams(scale, zero_point, "uint8", axis=axis), getattr(qk, operation)
    dtype, codes = "uint8" if operation == "quantize" else "float32", exact_codes(x, scale, zero_point, axis)
    out, nearest = aligned_empty(shape, dtype), aligned_empty(shape, dtype)
    if operation == "quantize":
        check = within(codes, step=1, most=1)
    else:
        check = within(exact_values(codes, scale, zero_point, axis), step=1.01 * np.max(scale), most=1)
    ours = our_own(lambda: function(x, params, rounding="stochastic", seed=1, out=out), out, check)
    other = peers.contender("half_even", lambda: function(x, params, out=nearest), lambda: nearest)
    case = f"{operation}, stochastic{name}, {shape[0]}x{shape[1]}"
    race(case, ours, [other], check, x.nbytes + out.nbytes, "GB/s", [])


FORMATS = {"MXFP8": ("float8_e4m3fn", "mx"), "MXFP4": ("float4_e2m1fn", "mx"), "NVFP4": ("float4_e2m1fn", "nvfp4")}


@pytest.mark.parametrize("axis", [0, 1], ids=["axis 0", "last axis"])
@pytest.mark.parametrize("kind", FORMATS)
def test_microscaling(race, kind, axis):
    """Scales and codes, of 1,048,576 values. The peer casts by ml_dtypes, and is given the scales."""
    dtype, method = FORMATS[kind]
    x, shape = random_floats(1024, 1024), (1024, 1024)
    params = qk.choose_qparams(x, dtype, axis=axis, method=method)
    scales, out = np.repeat(params.scale, params.block_size, axis=axis), aligned_empty(shape, params.dtype)
    expected = np.clip(x / scales, params.qmin, params.qmax).astype(params.dtype)
    check = exactly(expected.view(np.uint8))

    def call():
        return qk.quantize(x, qk.choose_qparams(x, dtype, axis=axis, method=method), out=out).view(np.uint8)

    def cast():
        return np.clip(x / scales, params.qmin, params.qmax).astype(params.dtype).view(np.uint8)

    others = [peers.contender("ml_dtypes", cast, cast)]
    race(f"{kind} {'axis 0' if axis == 0 else 'last axis'}", our_own(call), others, check, x.size, "Gvalue/s", [])


@AXES
@pytest.mark.parametrize("shape", LARGE, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("operation", ["quantize", "dequantize", "fake_quantize"])
def test_large(race, operation, shape, axis):
    scale, zero_point, name = layout(axis, shape)
    x = random_codes("uint8", *shape) if operation == "dequantize" else random_floats(*shape)
    codes = x if operation == "dequantize" else exact_codes(x, scale, zero_point, axis)
    values, step = exact_values(codes, scale, zero_point, axis), 1.01 * np.max(scale)
    check = within(codes, 1) if operation == "quantize" else within(values, step)
    out = aligned_empty(shape, "uint8" if operation == "quantize" else "float32")
    params, function = qk.QParams(scale, zero_point, "uint8", axis=axis), getattr(qk, operation)
    ours, others = our_own(lambda: function(x, params, out=out), out), compiled(operation, x, scale, zero_point, axis)
    case = f"{operation}{name}, {shape[0]}x{shape[1]}"
    race(case, ours, others, check, x.nbytes + out.nbytes, "GB/s", [moving(x.nbytes, out.nbytes)])


def test_dynamic_quantize(race):
    """torch's observers are modules of many calls, left out."""
    x = random_floats(*SHAPE)
    lo, hi = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32(hi - lo) / np.float32(255)
    zero_point = np.uint8(np.rint(-lo / scale))
    ours, others = our_own(lambda: qk.dynamic_quantize(x)[0]), [peers.onnxruntime.dynamic_quantize(x)]
    check, limits = exactly(exact_codes(x, scale, zero_point, None)), [moving(COUNT * 2 * FLOAT, COUNT)]
    race("dynamic_quantize", ours, others, check, COUNT * (2 * FLOAT + 1), "GB/s", limits)


def test_quantize_small(race):
    """The cost of a call."""
    x, (scale, zero_point, _) = aligned(random_floats(64)), layout(None)
    params, out = qk.QParams(scale, zero_point, "uint8"), aligned_empty((64,), "uint8")
    ours, others = our_own(lambda: qk.quantize(x, params, out=out), out), both("quantize", x, scale, zero_point, None)
    check = within(exact_codes(x, scale, zero_point, None), step=1, most=0.05)
    race("quantize 64 floats", ours, others, check, 64 * (FLOAT + 1), "GB/s")


@pytest.mark.parametrize(("dtype", "block"), [("int8", None), ("int4", 32), ("uint4", 32)])
def test_least_squares(race, dtype, block):
    """Columns, or blocks of 32. No peer finds the optimum."""
    w = random_floats(384, 256)
    where = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
    ours = our_own(lambda: qk.choose_qparams(w, dtype, method="mse", **where), check=lambda params: "")
    case = f"choose_qparams mse {dtype}, {'columns' if block is None else f'blocks of {block}'}"
    race(case, ours, [], None, 1e3 * w.size, "M values/s")
