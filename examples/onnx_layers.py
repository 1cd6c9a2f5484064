"""The layers of quantized ONNX graphs, by qkernels, for onnx_run.py.

One of codes is a function of the parameters that its result shall have. QLinear operators are the same layers between
DequantizeLinear and QuantizeLinear.
"""

import numpy as np
from onnx_values import Codes, bias_of, dequantize_linear, qparams, quantize_linear, real

import qkernels as qk


def need_codes(x, *others):
    if not all(isinstance(operand, Codes) for operand in (x, *others)):
        raise NotImplementedError("a layer of floats: its operands must come from DequantizeLinear")
    if x.params.axis is not None:
        raise NotImplementedError("an input with more than one scale")


def need_images(x):
    need_codes(x)
    if x.codes.ndim != 4:
        raise NotImplementedError(f"an input with {x.codes.ndim} axes: only images, which have 4, are run")


def packed(memory, pack, w, layout, **options):
    """Return weights, their last axis the outputs; a node keeps in `memory` those of constant ones."""
    if not memory:
        if w.params.block_size or w.params.axis not in (None, layout[-1], layout[-1] - w.codes.ndim):
            raise NotImplementedError("weights whose scales are not one, or one for each output")
        p = qparams(w.params.scale, w.params.zero_point, w.codes.dtype, axis=w.codes.ndim - 1)
        memory.append(pack(w.codes.transpose(layout), p, **options))
    return memory[0]


def window_of(*, auto_pad=b"NOTSET", pads=(0, 0, 0, 0), strides=1, dilations=1):
    same = {b"SAME_UPPER": "same_upper", b"SAME_LOWER": "same_lower"}
    return dict(strides=strides, padding=same.get(auto_pad, tuple(pads)), dilations=dilations)


def conv(x, w, bias=None, *, memory, group=1, kernel_shape=None, **window):
    """Convolve images (N, C, H, W) by weights (F, C / group, height, width), whose shape has the kernel's."""
    need_codes(x, w)
    need_images(x)
    weights = packed(memory, qk.pack_conv, w, (2, 3, 1, 0), groups=group)
    images, bias, where = x.codes.transpose(0, 2, 3, 1), bias_of(bias), window_of(**window)

    def finish(to):
        if to is None or not is_at_the_end(bias):
            return qk.qconv2d(images, x.params, weights, to, bias, **where).transpose(0, 3, 1, 2)
        sums = qk.qconv2d(images, x.params, weights, None, bias, **where)
        return requantized(sums, x, w, to).transpose(0, 3, 1, 2)

    return finish


def is_at_the_end(bias):
    """Tell whether a bias could bring sums beyond int32: graphs take them modulo 2**32, and layers refuse it."""
    return bias is not None and bias.dtype == np.int32 and np.abs(np.float64(bias)).max(initial=0) >= 2**30


def requantized(sums, x, w, to):
    return qk.requantize(sums, x.params.scale * w.params.scale / to.scale, to)


def gemm(a, b, bias=None, *, memory, transA=0, transB=0, alpha=1.0, beta=1.0):  # noqa: N803 (ONNX's names)
    if (transA, alpha, beta) != (0, 1, 1):
        raise NotImplementedError(f"transA={transA}, alpha={alpha}, beta={beta}")
    need_codes(a, b)
    weights = packed(memory, qk.pack, b, (1, 0) if transB else (0, 1))
    bias = bias_of(bias)
    if bias is not None and np.shape(bias) != weights.shape[1:]:
        raise NotImplementedError(f"a bias of shape {np.shape(bias)} for {weights.shape[1]} columns")

    def finish(to):
        if not is_at_the_end(bias):
            return qk.qlinear(a.codes, a.params, weights, to, bias)
        b_codes = b.codes.T if transB else b.codes
        zeros = dict(a_zero_point=a.params.zero_point, b_zero_point=b.params.zero_point)
        return requantized(qk.matmul(a.codes, b_codes, **zeros) + bias, a, b, to)

    return finish


def matmul(a, b, *, memory):
    need_codes(a, b)
    if b.codes.ndim == 2:
        return gemm(a, b, memory=memory)
    if min(a.codes.ndim, b.codes.ndim) < 2 or b.params.axis is not None:
        raise NotImplementedError(f"shapes {a.codes.shape} and {b.codes.shape}, with {b.params.scale.size} scales")
    batch = np.broadcast_shapes(a.codes.shape[:-2], b.codes.shape[:-2])
    lefts, rights = (np.broadcast_to(x.codes, batch + x.codes.shape[-2:]) for x in (a, b))

    def finish(to):
        y = np.empty((*lefts.shape[:-1], rights.shape[-1]), to.dtype)
        for i in np.ndindex(batch):
            y[i] = qk.qlinear(lefts[i], a.params, qk.pack(rights[i], b.params), to)
        return y

    return finish


def both(of_codes, of_reals):
    """Return a function of two operands, by one of codes if they are."""

    def run(a, b):
        if isinstance(a, Codes) and isinstance(b, Codes):
            return lambda to: of_codes(a.codes, a.params, b.codes, b.params, to)
        return of_reals(real(a), real(b))

    return run


add, multiply = both(qk.qadd, np.add), both(qk.qmultiply, np.multiply)


def global_average_pool(x, channels_last=0):
    need_images(x)
    to_last, back = [(0, 1, 2, 3)] * 2 if channels_last else [(0, 2, 3, 1), (0, 3, 1, 2)]
    return lambda to: qk.qglobal_average_pool(x.codes.transpose(to_last), x.params, to).transpose(back)


# ---- QLinear operators: those above between DequantizeLinear and QuantizeLinear ----


def qlinear(layer, operands, result, axis=1):
    """Return a function of codes, scales and zero points; `result` is where those of the result begin."""

    def run(*inputs, **attributes):
        triples = (inputs[3 * i : 3 * i + 3] for i in range(operands))
        reals = [dequantize_linear(*triple, axis=axis) for triple in triples]
        bias = inputs[3 * operands : result] + inputs[result + 2 :]
        return quantize_linear(layer(*reals, *bias, **attributes), *inputs[result : result + 2])

    return run


def qgemm(*inputs, transB=0, **attributes):  # noqa: N803
    return qlinear(gemm, 2, 7, axis=1 - transB)(*inputs, transB=transB, **attributes)


def matmul_integer(a, b, a_zero_point=0, b_zero_point=0):
    return qk.matmul(a, b, a_zero_point=a_zero_point, b_zero_point=b_zero_point)


def conv_integer(x, w, x_zero_point=None, w_zero_point=None, **attributes):
    of_x, of_w = (np.ones(np.shape(zero_point), np.float32) for zero_point in (x_zero_point, w_zero_point))
    reals = dequantize_linear(x, of_x, x_zero_point), dequantize_linear(w, of_w, w_zero_point, axis=0)
    return conv(*reals, **attributes)(None)
