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

    def __init__(self, head):
        self.nodes, self.constants, self.head = [], [], head

    def node(self, operator, inputs, output, constants=(), **attributes):
        names = [f"{output}.{i}" for i in range(len(constants))]
        self.constants += [numpy_helper.from_array(value, name) for name, value in zip(names, constants)]
        self.nodes.append(helper.make_node(operator, [*inputs, *names], [output], name=output, **attributes))
        return output

    def enter(self, x):
        return x

    def convolve(self, x, layer):
        size, stride = layer.w.shape[0], layer.stride
        before = (size - stride) // 2  # as in the example
        after = size - stride - before
        weights = np.ascontiguousarray(layer.w.transpose(3, 2, 0, 1)), layer.bias
        options = dict(strides=[stride] * 2, pads=[before, before, after, after], group=layer.groups)
        y = self.node("Conv", [x], layer.name + ".sum" * layer.relu6, weights, **options)
        return self.node("Clip", [y], layer.name, (np.float32(0), np.float32(6))) if layer.relu6 else y

    def add(self, x, y, block):
        return self.node("Add", [x, y], example.sum_of(block))

    def pool(self, x):
        return self.node("Flatten", [self.node("GlobalAveragePool", [x], "pooled")], "features")

    def dense(self, x):
        return x if self.head is None else self.node("Gemm", [x], "logits", self.head)


def model_of(blocks, head, size):
    """Return the ONNX model of the network for one image (1, 3, size, size); without a head it gives the features."""
    graph = Graph(head)
    output = example.run(blocks, "pixels", graph)
    width = blocks[-1][0].w.shape[3] if head is None else len(head[1])
    info = helper.make_tensor_value_info
    taken = [info("pixels", onnx.TensorProto.FLOAT, (1, 3, size, size))]
    given = [info(output, onnx.TensorProto.FLOAT, (1, width))]
    made = helper.make_graph(graph.nodes, "efficientnet_lite0", taken, given, graph.constants)
    return helper.make_model(made, opset_imports=OPSETS, ir_version=8)


class Reader(CalibrationDataReader):
    def __init__(self, images):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"pixels": image}


def quantized(model, images, method=CalibrationMethod.MinMax, quant_format=QuantFormat.QDQ):
    """Return the model as onnxruntime quantizes it: weights of each filter apart, activations uint8."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        options = dict(per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        quantize_static(source, target, Reader(images), quant_format=quant_format, calibrate_method=method, **options)
        return onnx.load(target)


class Session:
    """onnxruntime on one thread, with all of its optimizations: convolutions of codes become NHWC."""

    def __init__(self, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        taken, given = made.get_inputs()[0], made.get_outputs()[0]
        empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self.input, self.output = (empty(value.shape, np.float32) for value in (taken, given))
        self.binding, self.session, self.shape = made.io_binding(), made, taken.shape
        self.binding.bind_ortvalue_input(taken.name, self.input)
        self.binding.bind_ortvalue_output(given.name, self.output)

    def load(self, pixels):
        """Take one image (1, H, W, 3), as floats (which is not timed)."""
        self.input.update_inplace(floats_of(pixels))

    def call(self):
        self.session.run_with_iobinding(self.binding)

    def __call__(self, pixels):
        self.load(pixels)
        self.call()
        return self.output.numpy().copy()


class Torch:
    """The functions that the network calls by torch, in float32, channels last, on one thread."""

    def __init__(self, blocks, head):
        import torch  # takes seconds

        torch.set_num_threads(1)
        self.torch, self.blocks, self.functions = torch, blocks, torch.nn.functional
        last = dict(memory_format=torch.channels_last)
        self.weights = {
            layer.name: (
                torch.from_numpy(layer.w.transpose(3, 2, 0, 1).copy()).to(**last),
                torch.from_numpy(layer.bias),
            )
            for block in blocks
            for layer in block
        }
        self.head = torch.from_numpy(head[0].T.copy()), torch.from_numpy(head[1])

    def enter(self, x):
        return x

    def convolve(self, x, layer):
        size, stride = layer.w.shape[0], layer.stride
        before = (size - stride) // 2
        if size > stride + 2 * before:
            x, before = self.functions.pad(x, (before, before + 1) * 2), 0
        y = self.functions.conv2d(x, *self.weights[layer.name], stride, before, 1, layer.groups)
        return self.functions.relu6(y, inplace=True) if layer.relu6 else y

    def add(self, x, y, block):
        return x + y

    def pool(self, x):
        return x.mean((2, 3))

    def dense(self, x):
        return self.functions.linear(x, *self.head)

    def load(self, pixels):
        self.input = self.torch.from_numpy(floats_of(pixels)).to(memory_format=self.torch.channels_last)

    def call(self):
        with self.torch.inference_mode():
            return example.run(self.blocks, self.input, self)

    def __call__(self, pixels):
        self.load(pixels)
        return self.call().numpy()


def floats_of(pixels):
    """Return codes (N, H, W, 3) as ONNX graphs take them."""
    return np.ascontiguousarray(((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))
