"""Compute layers of packed weights, as operators of PyTorch. Formulas: docs/numerics.md, section 26.

An operator is given the number of its weights (_handles.py), and what meta kernels need to know of their shape.
"""

import numpy as np
import torch
from torch.autograd import forward_ad

from .._bind.tensors import array_of
from .._conv import qconv2d
from .._products import linear
from .._qparams import QParams
from .._quantize import dynamic_quantize
from ._handles import dequantized, find

FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16
FLOAT32 = np.finfo(np.float32)

library = torch.library.Library("qkernels", "FRAGMENT")
FUNCTIONS = {}  # by the operator's name: the torch.autograd.Function that has its gradients


def define(name, arguments):
    """Define an operator that has gradients, and `name`_plain, which has none: what the first becomes, in graphs too.

    torch.library.register_autograd would cost each call 4 us, even where no gradient is wanted.
    """
    for full in name, f"{name}_plain":
        library.define(f"{full}({arguments}) -> Tensor")
    library.impl(f"{name}_plain", torch.library.fallthrough_kernel, "Autograd")


def differentiate(name, gradients, keep):
    """Give an operator gradients, by functions as torch.library.register_autograd takes them."""
    plain = getattr(torch.ops.qkernels, f"{name}_plain").default

    class Function(torch.autograd.Function):
        forward, setup_context, backward = map(staticmethod, (plain, keep, gradients))

    FUNCTIONS[name] = Function

    def call(*args):
        if wants_gradients(*args):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError("operators of qkernels have gradients by torch.autograd, not by torch.func")
            return Function.apply(*args)
        return plain(*args)

    library.impl(name, call, "CompositeImplicitAutograd")


WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation"
define("linear", "Tensor x, Tensor weight, Tensor? bias, str? activation, int out_features")
define("conv2d", f"Tensor x, Tensor weight, Tensor? bias, int out_channels, {WINDOW}")
library.define("linear_grad(Tensor grad, Tensor weight, int in_features) -> Tensor")
library.define(f"conv2d_grad(Tensor grad, Tensor weight, SymInt[] shape, {WINDOW}) -> Tensor")


def wants_gradients(*args):
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)


def implement(name):
    """Register the kernel of `name`_plain; graphs that were made for inference may be asked for gradients after all."""

    def register(kernel):
        def run(*args):
            return FUNCTIONS[name].apply(*args) if wants_gradients(*args) else kernel(*args)

        library.impl(f"{name}_plain", run, "CPU")

    return register


def refuse_tangents():
    if forward_ad._current_level >= 0:  # autograd would take them for zeros
        raise RuntimeError("operators of qkernels have no gradients in forward mode")


def refuse_meta(x, **others):
    """Raise, in a meta kernel, if x has memory and another tensor has not: the result would never be computed."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device.type == "meta" and x.device.type != "meta":
            raise TypeError(
                f"{name} must have memory where the input has, got a tensor on meta: of a model made there, "
                "load_state_dict fills tensors with assign=True"
            )


def floats_of(x, name="x"):
    """Return float32 memory of a tensor on the CPU."""
    refuse_tangents()
    if x.dtype is not torch.float32:
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
        x = x.float()
    return array_of(x.detach() if x.requires_grad else x)


# ---- dense ----


@torch.library.impl("qkernels::linear_plain", "cpu", lib=library)
def _(x, weight, bias, activation, out_features):
    held = find(weight)
    y = held.plain.below(x, held.packed, bias, activation)
    if y is not None:
        return y
    if wants_gradients(x, bias):
        return FUNCTIONS["linear"].apply(x, weight, bias, activation, out_features)
    bias = None if bias is None else floats_of(bias, "bias")
    y = torch.from_numpy(linear(floats_of(x), held.packed, bias, activation=activation))
    return y if x.dtype is torch.float32 else y.to(x.dtype)


@torch.library.register_fake("qkernels::linear_plain", lib=library)
def _(x, weight, bias, activation, out_features):
    refuse_meta(x, bias=bias)
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.impl("qkernels::linear_grad", "cpu", lib=library)
def _(grad, weight, in_features):
    return (grad.float() @ torch.from_numpy(dequantized(find(weight).packed).T)).to(grad.dtype)


@torch.library.register_fake("qkernels::linear_grad", lib=library)
def _(grad, weight, in_features):
    return grad.new_empty((*grad.shape[:-1], in_features))


def _keep_of_linear(ctx, inputs, output):
    x, weight, bias, ctx.activation, ctx.out_features = inputs
    again = (x, bias) if ctx.activation else ()  # to have what the activation was given
    ctx.save_for_backward(weight, *again)
    ctx.in_features, ctx.of_bias = x.shape[-1], None if bias is None else bias.dtype


def _gradients_of_linear(ctx, grad):
    weight, *again = ctx.saved_tensors
    if again:
        sums = torch.ops.qkernels.linear(again[0], weight, again[1], None, ctx.out_features)
        grad = DERIVATIVES[ctx.activation](grad, sums)
    of_x, of_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    grad_x = torch.ops.qkernels.linear_grad(grad, weight, ctx.in_features) if of_x else None
    grad_bias = grad[None].flatten(0, -2).sum(0, dtype=ctx.of_bias) if of_bias else None
    return grad_x, None, grad_bias, None, None


DERIVATIVES = {
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
    "silu": torch.ops.aten.silu_backward,
}

differentiate("linear", _gradients_of_linear, _keep_of_linear)


# ---- convolution ----


def conv2d(x, packed, bias, window):
    """Return the layer of images (N, C, H, W) in the dtype of x, with channels last; bias is a tensor."""
    images = floats_of(x)
    y = _empty(x, packed.shape[3], torch.float32, *window)
    if bias is not None:
        refuse_tangents()
        if bias.shape != packed.shape[3:]:
            raise ValueError(f"bias must have shape {packed.shape[3:]}, got {tuple(bias.shape)}")
    if not len(images):
        _sums(np.empty((0, *images.shape[2:], images.shape[1]), np.uint8), QParams(1, dtype="uint8"), packed, window)
        return y.to(x.dtype)
    last = images.transpose(0, 2, 3, 1)
    lies_last = last.flags.c_contiguous
    codes, params = dynamic_quantize((last if lies_last else images).reshape(len(images), -1), axis=0)
    codes = codes.reshape(last.shape) if lies_last else codes.reshape(images.shape).transpose(0, 2, 3, 1)
    of_filters = np.float64(packed.params.scale)
    for i, out in enumerate(y.permute(0, 2, 3, 1)):
        scale, zero_point = params.scale[i], params.zero_point[i]
        (sums,) = _sums(codes[i : i + 1], QParams(scale, zero_point, "uint8"), packed, window)
        _scale(out, sums, np.broadcast_to(scale * of_filters, packed.shape[3]), bias)
    return y.to(x.dtype)


def _sums(codes, params, packed, window):
    _, strides, padding, dilations = map(tuple, window)
    options = dict(strides=strides, padding=padding, dilations=dilations)
    return torch.from_numpy(qconv2d(codes, params, packed, None, **options))


def _scale(out, sums, scales, bias):
    """Write sums times scales, plus bias, to `out`: in float32, unless that does not hold the scales."""
    wide = np.any((scales < FLOAT32.tiny) | (scales > FLOAT32.max))
    scales = torch.tensor(scales if wide else scales.astype(np.float32))
    y = sums.double() if wide else out.copy_(sums)
    y.mul_(scales)
    if bias is not None:
        y.add_(bias)
    if wide:
        out.copy_(y)


def _empty(x, channels, dtype, kernel_size, stride, padding, dilation):
    """Return the memory of the result of images, with channels last."""
    top, left, bottom, right = padding
    sides = x.shape[2] + top + bottom, x.shape[3] + left + right
    windows = zip(sides, kernel_size, stride, dilation, strict=True)
    shape = (max((n - d * (k - 1) - 1) // s + 1, 0) for n, k, s, d in windows)  # 0 where convolution will refuse
    options = dict(dtype=dtype, device=x.device, memory_format=torch.channels_last)
    return torch.empty((x.shape[0], channels, *shape), **options)


def _batch_of(x):
    """Return images (N, C, H, W), of which one may lack its first axis."""
    if x.dim() not in (3, 4):
        raise ValueError(f"x must have shape (N, C, H, W) or (C, H, W), got {tuple(x.shape)}")
    return x if x.dim() == 4 else x[None]


@implement("conv2d")
def _(x, weight, bias, out_channels, *window):
    y = conv2d(_batch_of(x), find(weight).packed, bias, window)
    return y if x.dim() == 4 else y[0]


@torch.library.register_fake("qkernels::conv2d_plain", lib=library)
def _(x, weight, bias, out_channels, *window):
    refuse_meta(x, bias=bias)
    y = _empty(_batch_of(x), out_channels, x.dtype, *window)
    return y if x.dim() == 4 else y[0]


@torch.library.impl("qkernels::conv2d_grad", "cpu", lib=library)
def _(grad, weight, shape, kernel_size, stride, padding, dilation):
    packed, (top, left, bottom, right) = find(weight).packed, padding
    w = torch.from_numpy(dequantized(packed).transpose(3, 2, 0, 1))
    padded = shape[0], shape[1], shape[2] + top + bottom, shape[3] + left + right
    found = torch.nn.grad.conv2d_input(padded, w, grad.float(), stride, 0, dilation, packed.groups)
    found = found[:, :, top : top + shape[2], left : left + shape[3]]
    return found.to(grad.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("qkernels::conv2d_grad", lib=library)
def _(grad, weight, shape, *window):
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


def _keep_of_conv2d(ctx, inputs, output):
    x, weight, bias, _, *ctx.window = inputs
    ctx.save_for_backward(weight)
    ctx.shape, ctx.of_bias = x.shape, None if bias is None else bias.dtype


def _gradients_of_conv2d(ctx, grad):
    of_x, of_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    grad, shape, grad_x = _batch_of(grad), (1, *ctx.shape)[-4:], None
    if of_x:
        grad_x = torch.ops.qkernels.conv2d_grad(grad, *ctx.saved_tensors, shape, *ctx.window).reshape(ctx.shape)
    grad_bias = grad.sum((0, 2, 3), dtype=ctx.of_bias) if of_bias else None
    return grad_x, None, grad_bias, None, None, None, None, None


differentiate("conv2d", _gradients_of_conv2d, _keep_of_conv2d)


# ---- second gradients ----


def refuse_second(ctx, *grads):
    raise RuntimeError("attention and packed layers have no second gradients")


for name in "linear_grad", "conv2d_grad":
    torch.library.register_autograd(f"qkernels::{name}", refuse_second, lib=library)
