"""torch, held by ATEN_CPU_CAPABILITY and, for oneDNN, ONEDNN_MAX_CPU_ISA. Its fbgemm has no switch."""

import subprocess
import sys
from functools import cache

import numpy as np
import torch
from race import CRASHED, Contender

import peers

torch.set_num_threads(peers.threads)

CODES = {"uint8": torch.quint8, "int8": torch.qint8}


def contender(call, to_numpy=torch.Tensor.numpy, name="torch"):
    """Results are new tensors, and the last must be gone before the next: it may then take its place in the cache."""
    held_to = [] if name == "torch fbgemm" else peers.BY_ENVIRONMENT
    return peers.contender(name, call, lambda: to_numpy(call()), held_to=held_to)


def read_codes(tensor):
    return tensor.int_repr().numpy()


def int_mm(a, b):
    """b column-major, as the weights of a Linear are."""
    left, right = torch.from_numpy(a), torch.from_numpy(np.ascontiguousarray(b.T)).t()
    out = torch.empty((len(a), b.shape[1]), dtype=torch.int32)
    return contender(lambda: torch._int_mm(left, right, out=out))


def float_linear(x, w, bias):
    tensors = [torch.from_numpy(t) for t in (x, np.ascontiguousarray(w.T), bias)]
    return contender(lambda: torch.nn.functional.linear(*tensors), name="torch float32")


def packed_by(engine, b, b_scale, bias=None):
    """Weights as torch.ao.nn.quantized.Linear keeps them for an engine, one scale a column."""
    torch.backends.quantized.engine = engine
    scales, zeros = torch.from_numpy(b_scale.astype(np.float64)), torch.zeros(len(b_scale), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(torch.from_numpy(np.ascontiguousarray(b.T)), scales, zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, None if bias is None else torch.from_numpy(bias))


def qlinear(engine, q, scale, zero_point, b, b_scale, y_scale, y_zero):
    codes = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), scale, zero_point)
    packed = packed_by(engine, b, b_scale)
    return contender(lambda: torch.ops.quantized.linear(codes, packed, y_scale, y_zero), read_codes, f"torch {engine}")


def dynamic_linear(engine, x, b, b_scale, bias, shapes):
    """`shapes` are all that will be asked for: another process tries them first, since onednn has crashed."""
    if (len(x), b.shape[1], len(b)) not in survivors(engine, tuple(shapes)):
        return Contender(f"torch {engine}", None, note=CRASHED)
    tensor, packed = torch.from_numpy(x), packed_by(engine, b, b_scale, bias)
    return contender(lambda: torch.ops.quantized.linear_dynamic(tensor, packed), name=f"torch {engine}")


@cache
def survivors(engine, shapes):
    """The shapes at which torch.ops.quantized.linear_dynamic returns."""
    script = """
import sys
import torch
torch.backends.quantized.engine = sys.argv[1]
for m, n, k in eval(sys.argv[2]):
    weight = torch._make_per_channel_quantized_tensor(
        torch.ones(n, k, dtype=torch.int8), torch.ones(n, dtype=torch.double), torch.zeros(n, dtype=torch.long), 0)
    torch.ops.quantized.linear_dynamic(torch.ones(m, k), torch.ops.quantized.linear_prepack(weight, torch.zeros(n)))
    print(m, n, k, flush=True)
"""
    found = set()
    left = list(shapes)
    while left:
        command = [sys.executable, "-W", "ignore", "-c", script, engine, repr(left)]
        run = subprocess.run(command, capture_output=True, text=True)
        found |= {tuple(map(int, line.split())) for line in run.stdout.splitlines()}
        if run.returncode == 0:
            break
        left = left[1 + len(run.stdout.splitlines()) :]
    return found


def half_linear(x, w, dtype):
    """x and y have 16 bits too."""
    tensors = [torch.from_numpy(t).to(getattr(torch, dtype)) for t in (x, np.ascontiguousarray(w.T.astype(np.float32)))]
    return contender(lambda: torch.nn.functional.linear(*tensors), lambda y: y.float().numpy())


def quantize(x, scale, zero_point, axis=None):
    tensor, dtype = torch.from_numpy(x), CODES[zero_point.dtype.name]
    if axis is None:
        scale, zero_point = float(scale), int(zero_point)
        return contender(lambda: torch.quantize_per_tensor(tensor, scale, zero_point, dtype), read_codes)
    scales, zeros = torch.from_numpy(scale.astype(np.float64)), torch.from_numpy(zero_point.astype(np.int64))
    return contender(lambda: torch.quantize_per_channel(tensor, scales, zeros, axis, dtype), read_codes)


def dequantize(q, scale, zero_point, axis=None):
    if axis is None:
        codes = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), float(scale), int(zero_point))
    else:
        scales, zeros = torch.from_numpy(scale.astype(np.float64)), torch.from_numpy(zero_point.astype(np.int64))
        codes = torch._make_per_channel_quantized_tensor(torch.from_numpy(q), scales, zeros, axis)
    return contender(codes.dequantize)


def fake_quantize(x, scale, zero_point, axis=None):
    tensor, info = torch.from_numpy(x), np.iinfo(zero_point.dtype)
    if axis is None:
        scale, zero_point = float(scale), int(zero_point)
        return contender(lambda: torch.fake_quantize_per_tensor_affine(tensor, scale, zero_point, info.min, info.max))
    scales, zeros = torch.from_numpy(scale), torch.from_numpy(zero_point.astype(np.int32))
    return contender(lambda: torch.fake_quantize_per_channel_affine(tensor, scales, zeros, axis, info.min, info.max))


def fake_quantize_and_back(grad, x, scale, zero_point, axis=None, learned=False):
    """Forward and backward: gradients of x, and of scale and zero point if they are `learned`."""
    tensor, given, info = torch.from_numpy(x).requires_grad_(), torch.from_numpy(grad), np.iinfo(zero_point.dtype)
    scales = torch.from_numpy(np.array(scale, np.float32, ndmin=1))
    zeros = torch.from_numpy(np.array(zero_point, np.float32, ndmin=1))
    where, ends, wanted = () if axis is None else (axis,), (info.min, info.max), (tensor,)
    if learned:
        kind = "tensor" if axis is None else "channel"
        function, factor = getattr(torch, f"_fake_quantize_learnable_per_{kind}_affine"), (1.0,)
        wanted = tensor, scales.requires_grad_(), zeros.requires_grad_()
    elif axis is None:
        function, scales, zeros, factor = torch.fake_quantize_per_tensor_affine, float(scale), int(zero_point), ()
    else:
        function, zeros, factor = torch.fake_quantize_per_channel_affine, zeros.int(), ()

    def call():
        y = function(tensor, scales, zeros, *where, *ends, *factor)
        return torch.autograd.grad(y, wanted, given)[0]

    return contender(call, name="torch, learned" if learned else "torch")


def histogram_observer(x):
    """Of torch.ao: 2,048 bins, which widen with the data; each call has a new one."""
    from torch.ao.quantization import HistogramObserver

    tensor = torch.from_numpy(x)

    def observe():
        observer = HistogramObserver()
        observer(tensor)
        return observer

    return contender(observe, lambda observer: observer.histogram.numpy(), "torch HistogramObserver")


def layer_of_floats(name, x, *arguments):
    """A float layer of torch.nn.functional, or of torch."""
    function = getattr(torch.nn.functional, name, None) or getattr(torch, name)
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (x, *arguments)]
    return contender(lambda: function(*tensors), name="torch float32")


def qconv2d(engine, q, w, bias, scales, zeros, where):
    """As onnxruntime.qlinear_conv, NHWC in memory; `where` is stride, padding and groups. fbgemm's depthwise sums
    saturate with 8-bit weights."""
    torch.backends.quantized.engine = engine
    of_w = torch.from_numpy(scales[1].astype(np.float64)), torch.zeros(len(scales[1]), dtype=torch.long)
    codes = torch.from_numpy(w.transpose(3, 2, 0, 1).copy())
    weight = torch._make_per_channel_quantized_tensor(codes, *of_w, 0).contiguous(memory_format=torch.channels_last)
    stride, padding, groups = where
    packed = torch.ops.quantized.conv2d_prepack(
        weight, torch.from_numpy(np.float32(bias * scales[0] * scales[1])), [stride] * 2, [padding] * 2, [1, 1], groups
    )
    x = image_of(q, scales[0], zeros[0])
    return contender(
        lambda: torch.ops.quantized.conv2d(x, packed, scales[2], zeros[1]),
        lambda y: y.int_repr().permute(0, 2, 3, 1).numpy(),
        f"torch {engine}",
    )


def image_of(q, scale, zero_point):
    """NHWC in memory."""
    codes = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q).permute(0, 3, 1, 2), scale, zero_point)
    return codes.contiguous(memory_format=torch.channels_last)


def conv2d(x, w, where):
    """Floats (N, C, H, W), NHWC in memory, by oneDNN."""
    stride, padding, groups = where
    tensors = [torch.from_numpy(a).contiguous(memory_format=torch.channels_last) for a in (x, w)]
    call = lambda: torch.nn.functional.conv2d(*tensors, None, stride, padding, 1, groups)  # noqa: E731
    return contender(call, lambda y: y.permute(0, 2, 3, 1).numpy(), "torch float32")


def pool_of(call):
    return contender(call, lambda y: y.int_repr().permute(0, 2, 3, 1).numpy())


def max_pool(q, kernel, stride, padding):
    x = image_of(q, 1.0, 0)
    return pool_of(lambda: torch.nn.functional.max_pool2d(x, kernel, stride, padding))


def average_pool(q, kernel, stride, padding, params):
    x = image_of(q, *params)
    return pool_of(lambda: torch.nn.functional.avg_pool2d(x, kernel, stride, padding, count_include_pad=False))


def global_average_pool(q, params):
    x = image_of(q, *params)
    return pool_of(lambda: torch.nn.functional.adaptive_avg_pool2d(x, 1))


def product(a, b):
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    out = torch.empty((len(a), b.shape[1]))
    return contender(lambda: torch.matmul(left, right, out=out), name="torch float32")


def gptq(w, moments, scale, block, damp=0.01):
    """The published algorithm (Frantar et al. 2023) on weights (outputs, inputs): a factor of the inverse in three
    steps, blocks of 128 inputs, the most active first; codes -8 .. 7 and one scale for `block` inputs.

    scale is (blocks, outputs); the result w' (inputs, outputs).
    """
    w, h, scale = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (w.T, moments, scale.T))

    def call():
        order = torch.argsort(torch.diagonal(h), descending=True, stable=True)
        weights, rounded = w[:, order], torch.empty_like(w)
        damped = h[order][:, order] + damp * torch.diagonal(h).mean() * torch.eye(len(h))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor = torch.linalg.cholesky(inverse, upper=True)
        for first in range(0, len(h), 128):
            last = min(first + 128, len(h))
            errors = torch.empty(len(w), last - first)
            for i in range(first, last):
                step = scale[:, order[i] // block]
                rounded[:, i] = torch.clamp(torch.round(weights[:, i] / step), -8, 7) * step
                errors[:, i - first] = (weights[:, i] - rounded[:, i]) / factor[i, i]
                weights[:, i:last] -= torch.outer(errors[:, i - first], factor[i, i:last])
            weights[:, last:] -= errors @ factor[first:last, last:]
        result = torch.empty_like(rounded)
        result[:, order] = rounded
        return result.T

    return contender(call)
