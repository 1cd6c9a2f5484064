"""The network as an ONNX graph, by onnxruntime in float32 and quantized by its own static tool; and by torch."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from . import example

OPSETS = [helper.make_opsetid("", 17)]


class Graph:
    """Collects the nodes and constants of an ONNX graph; its methods are the functions that the network calls."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def node(self, operator, inputs, output, constants=(), **attributes):
        names = [f"{output}.{i}" for i in range(len(constants))]
        self.constants += [numpy_helper.from_array(value, name) for name, value in zip(names, constants)]
        self.nodes.append(helper.make_node(operator, [*inputs, *names], [output], name=output, **attributes))
        return output

    def convolve(self, x, layer):
        weights = np.ascontiguousarray(layer.w.transpose(3, 2, 0, 1)), layer.bias
        size, stride = layer.w.shape[0], layer.stride
        total = size - stride if size > stride else 0  # images are of even sizes, or strides of 1
        pads = [total // 2, total // 2, total - total // 2, total - total // 2]
        options = dict(strides=[stride] * 2, pads=pads, group=layer.groups)
        output = layer.name + ("" if not layer.relu6 else ".sum")
        y = self.node("Conv", [x], output, weights, **options)
        return self.node("Clip", [y], layer.name, (np.float32(0), np.float32(6))) if layer.relu6 else y

    def add(self, x, y, block):
        return self.node("Add", [x, y], example.name_of_sum(block))

    def pool(self, x):
        return self.node("Flatten", [self.node("GlobalAveragePool", [x], "pooled")], "features")


def model_of(blocks, head, size):
    """Return the ONNX model of the network for images (1, 3, size, size)."""
    graph = Graph()
    graph.node("Gemm", [example.run(blocks, "pixels", graph)], "logits", head)
    info = helper.make_tensor_value_info
    taken = [info("pixels", onnx.TensorProto.FLOAT, (1, 3, size, size))]
    given = [info("logits", onnx.TensorProto.FLOAT, (1, len(head[1])))]
    made = helper.make_graph(graph.nodes, "efficientnet_lite0", taken, given, graph.constants)
    return helper.make_model(made, opset_imports=OPSETS, ir_version=8)


class Reader(CalibrationDataReader):
    def __init__(self, images):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"pixels": image}


def quantized(model, images, method=CalibrationMethod.MinMax):
    """Return the model as onnxruntime quantizes it: QDQ, weights of each filter apart, activations uint8."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        options = dict(per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        quantize_static(
            source, target, Reader(images), quant_format=QuantFormat.QDQ, calibrate_method=method, **options
        )
        return onnx.load(target)


def session_of(model, optimized=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def floats_of(pixels):
    """Return codes (N, H, W, 3) as ONNX graphs take them."""
    return np.ascontiguousarray(((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))
