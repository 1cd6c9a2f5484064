"""OpenVINO: graphs of one product, and MiniLM quantized by NNCF. Its oneDNN is held by ONEDNN_MAX_CPU_ISA."""

from functools import cache

import numpy as np
import openvino
from openvino import opset13 as op

import peers

CORE = openvino.Core()


def compiled(model, precision="f32"):
    options = {"INFERENCE_NUM_THREADS": peers.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    return CORE.compile_model(model, "CPU", options)


def contender(name, model, *arrays):
    """Inputs are bound once; the request does not keep them."""
    request = model.create_infer_request()
    for i, array in enumerate(arrays):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
    read = request.get_output_tensor
    return peers.contender(name, request.infer, lambda keep=arrays: read().data.copy(), held_to=peers.BY_ENVIRONMENT)


def named(name, precision):
    return name if precision == "f32" else f"{name}, {precision}"


def weights_of(b, b_scale):
    """Codes and their scales, as NNCF leaves them."""
    codes = op.convert(op.constant(np.ascontiguousarray(b.T)), "f32")
    return op.multiply(codes, op.constant(b_scale.reshape(-1, 1)))


def linear_of(x, b, b_scale, bias):
    return op.add(op.matmul(x, weights_of(b, b_scale), False, True), op.constant(bias.reshape(1, -1)))


def dynamic_linear(x, b, b_scale, bias):
    """Compressed weights: x is quantized at run time, in groups of 32 unless told otherwise."""
    given = op.parameter(x.shape, np.float32)
    model = openvino.Model([linear_of(given, b, b_scale, bias)], [given], "dynamic")
    return contender("OpenVINO dynamic", compiled(model), x)


def static_linear(x, b, b_scale, bias, precision="f32"):
    """The bounds of x are known beforehand, one pair for all of it, as from NNCF's calibration."""
    given, bounds = op.parameter(x.shape, np.float32), [np.float32(x.min()), np.float32(x.max())]
    y = linear_of(op.fake_quantize(given, *bounds, *bounds, 256), b, b_scale, bias)
    model = compiled(openvino.Model([y], [given], "static"), precision)
    return contender(named("OpenVINO static", precision), model, x)


def qlinear(q, scale, zero_point, b, b_scale, y_scale, y_zero):
    """Its graph quantizes floats; the passes of its compiler leave codes."""
    given = op.parameter(q.shape, np.uint8)
    x = op.multiply(op.subtract(op.convert(given, "f32"), np.float32(zero_point)), np.float32(scale))
    y = op.matmul(x, weights_of(b, b_scale), False, True)
    bounds = np.float32(-y_zero * y_scale), np.float32((255 - y_zero) * y_scale)
    codes = op.convert(op.fake_quantize(y, *bounds, np.float32(0), np.float32(255), 256), "u8")
    return contender("OpenVINO", compiled(openvino.Model([codes], [given], "qlinear")), q)


@cache
def minilm_model(precision):
    """NNCF's static int8 for transformers is kept beside the float32 model: it takes a minute."""
    import nncf
    from minilm import example

    path = example.CACHE / f"minilm-nncf-{nncf.__version__}.xml"
    if not path.exists():
        openvino.save_model(quantized_minilm(nncf, example), path)
    return compiled(CORE.read_model(path), precision)


def quantized_minilm(nncf, example):
    """Calibrate on 100 docstrings."""
    import torch
    from minilm.padded import load, pad

    _, tokenizer, _ = example.load_model()
    texts = tokenizer.encode_batch([rest for _, rest in example.docstrings()[:100]])
    data = nncf.Dataset([pad([np.array(text.ids)]) for text in texts], lambda batch: dict(enumerate(batch)))
    tokens, inputs = torch.ones(2, 16, dtype=torch.int64), [([-1, -1], np.int64)] * 2
    model = openvino.convert_model(load(), example_input=(tokens, tokens), input=inputs)
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))


def minilm(ids, mask, precision="f32"):
    return contender(named("OpenVINO", precision), minilm_model(precision), ids, mask)
