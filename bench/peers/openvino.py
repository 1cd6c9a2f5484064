"""OpenVINO: graphs of one product. Its oneDNN is held by ONEDNN_MAX_CPU_ISA."""

import numpy as np
import openvino
from openvino import opset13 as op

import peers

HELD_TO = ["avx512"]
CORE = openvino.Core()


def compiled(name, outputs, inputs, precision="f32"):
    """Contender for a graph; inputs, parameters and the arrays, which the request does not keep, are bound once."""
    options = {"INFERENCE_NUM_THREADS": peers.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    model = CORE.compile_model(openvino.Model(outputs, [node for node, _ in inputs], name), "CPU", options)
    request = model.create_infer_request()
    for i, (_, array) in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
    read = request.get_output_tensor
    return peers.contender(name, request.infer, lambda keep=inputs: read().data.copy(), held_to=HELD_TO)


def product(x, b, b_scale, bias):
    """x @ (b * b_scale) + bias, with weights as NNCF leaves them: codes and their scales."""
    codes = op.convert(op.constant(np.ascontiguousarray(b.T)), "f32")
    weights = op.multiply(codes, op.constant(b_scale.reshape(-1, 1)))
    return op.add(op.matmul(x, weights, False, True), op.constant(bias.reshape(1, -1)))


def dynamic_linear(x, b, b_scale, bias):
    """Compressed weights: x is quantized at run time, in groups of 32 unless told otherwise."""
    given = op.parameter(x.shape, np.float32)
    return compiled("OpenVINO dynamic", [product(given, b, b_scale, bias)], [(given, x)])


def static_linear(x, b, b_scale, bias, precision="f32"):
    """The bounds of x are known beforehand, one pair for all of it, as from NNCF's calibration."""
    given, bounds = op.parameter(x.shape, np.float32), [np.float32(x.min()), np.float32(x.max())]
    codes = op.fake_quantize(given, *bounds, *bounds, 256)
    name = "OpenVINO static" if precision == "f32" else f"OpenVINO static, {precision}"
    return compiled(name, [product(codes, b, b_scale, bias)], [(given, x)], precision)
