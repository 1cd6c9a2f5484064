"""The values of quantized ONNX graphs, for onnx_run.py: reals, codes, and layers that wait for their parameters.

A real value that comes from DequantizeLinear stays what it is there, codes and parameters. A layer of codes waits for
the parameters of its result, which QuantizeLinear has: then it is one function of integers.
"""

from collections import namedtuple

import numpy as np
from onnx import TensorProto, helper

import qkernels as qk

Codes = namedtuple("Codes", "codes params dtype")  # what stands for real numbers of a dtype
Sums = namedtuple("Sums", "codes scale")  # likewise a bias, int32; the scale broadcasts


def real(x):
    if isinstance(x, Codes):
        return qk.dequantize(x.codes, x.params, dtype=x.dtype)
    if callable(x):
        raise NotImplementedError("a layer of codes must be followed by QuantizeLinear")
    return x.codes.astype(x.scale.dtype) * x.scale if isinstance(x, Sums) else x


def bias_of(bias):
    return bias.codes if isinstance(bias, Sums) else bias


def qparams(scale, zero_point, dtype, axis=1, block_size=0):
    """Return parameters as a graph has them; an axis counts for nothing beside a single scale."""
    axis = axis if np.size(scale) > 1 else None
    return qk.QParams(scale, zero_point, dtype, axis=axis, block_size=block_size or None)


def quantize_linear(x, scale, zero_point=None, *, output_dtype=TensorProto.UINT8, **where):
    dtype = helper.tensor_dtype_to_np_dtype(output_dtype) if zero_point is None else zero_point.dtype
    params = qparams(scale, zero_point, dtype, **where)
    return x(params) if callable(x) else qk.quantize(real(x), params)


def dequantize_linear(q, scale, zero_point=None, *, axis=1, block_size=0):
    if q.dtype != np.int32:
        return Codes(q, qparams(scale, zero_point, q.dtype, axis, block_size), scale.dtype)
    if block_size:
        scale = np.repeat(scale, block_size, axis).take(range(q.shape[axis]), axis)
    elif scale.size > 1:
        scale = np.expand_dims(scale, [i for i in range(q.ndim) if i != axis % q.ndim])
    return Sums(q, scale)


def dynamic_quantize_linear(x):
    q, params = qk.dynamic_quantize(real(x))
    return q, params.scale, np.asarray(params.zero_point, np.uint8)


def clip(x, low=None, high=None):
    """Clip a value; of a layer of codes, its codes by those of the bounds, as rounding keeps order."""
    if callable(x):
        return lambda to: clip(x(to), *(b if b is None else qk.quantize(real(b), to) for b in (low, high)))
    x = x if low is None else np.maximum(real(x), real(low))
    return x if high is None else np.minimum(real(x), real(high))


def relu(x):
    return clip(x, np.zeros((), np.float32 if callable(x) else real(x).dtype))


def whole_shape(function):
    """Return a function that gives values another shape, be they codes or reals."""

    def run(x, *given, **attributes):
        if isinstance(x, Codes) and x.params.axis is None:
            return x._replace(codes=function(x.codes, *given, **attributes))
        return function(real(x), *given, **attributes)

    return run
