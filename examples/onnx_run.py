"""Run a quantized ONNX graph on qkernels, node by node: what the author of an inference engine would do first.

    python examples/onnx_run.py model.onnx    # on random inputs, beside onnxruntime

A graph may have QLinear operators, or those of floats between DequantizeLinear and QuantizeLinear (QDQ): either becomes
one function of integers, as in onnxruntime, and gives its bits.
"""

import sys
import time

import numpy as np
import onnx
import onnx_layers as layers
import onnx_values as values
from onnx import helper, numpy_helper
from onnx_layers import qlinear
from onnx_values import whole_shape

import qkernels as qk

LAYERS = {  # those with weights, which a node packs once
    "Conv": layers.conv,
    "ConvInteger": layers.conv_integer,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "QGemm": layers.qgemm,
    "QLinearConv": qlinear(layers.conv, 2, 6, axis=0),
    "QLinearMatMul": qlinear(layers.matmul, 2, 6),
}
OPERATORS = LAYERS | {
    "Add": layers.add,
    "Clip": values.clip,
    "DequantizeLinear": values.dequantize_linear,
    "DynamicQuantizeLinear": values.dynamic_quantize_linear,
    "Flatten": whole_shape(lambda x, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1)),
    "GlobalAveragePool": layers.global_average_pool,
    "MatMulInteger": layers.matmul_integer,
    "Mul": layers.multiply,
    "QLinearAdd": qlinear(layers.add, 2, 6),
    "QLinearGlobalAveragePool": qlinear(layers.global_average_pool, 1, 3),
    "QLinearMul": qlinear(layers.multiply, 2, 6),
    "QuantizeLinear": values.quantize_linear,
    "Relu": values.relu,
    "Reshape": whole_shape(lambda x, shape: x.reshape([n or x.shape[i] for i, n in enumerate(shape)])),
    "Transpose": whole_shape(lambda x, perm=None: x.transpose(perm)),
}


DEFAULTS = dict(  # as computed
    allowzero=[0], channels_last=[0], output_dtype=[0], precision=[0, onnx.TensorProto.FLOAT], saturate=[1]
)


def attributes_of(node):
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value for name, value in found.items() if value not in DEFAULTS.get(name, ())}


class Graph:
    """Run a model: `run` takes inputs by name, and returns the outputs."""

    def __init__(self, model):
        tensors = model.graph.initializer
        self.constants = {"": None} | {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
        self.outputs, self.nodes = [output.name for output in model.graph.output], []
        for node in model.graph.node:
            if node.op_type not in OPERATORS:
                raise NotImplementedError(f"{node.op_type} {node.name!r}: there is no such operator here")
            attributes = attributes_of(node)
            if all(name in self.constants for name in node.input):
                self.compute(node, attributes, self.constants)
                continue
            if node.op_type in LAYERS and all(name in self.constants for name in node.input[1:]):
                attributes["memory"] = []  # which stays
            self.nodes.append((node, attributes))

    def compute(self, node, attributes, known):
        if node.op_type in LAYERS:
            attributes = {"memory": []} | attributes
        try:
            found = OPERATORS[node.op_type](*(known[name] for name in node.input), **attributes)
        except (NotImplementedError, TypeError) as error:  # its text names an attribute that a function does not take
            raise NotImplementedError(f"{node.op_type} {node.name!r}: {error}") from error
        known.update(zip(node.output, found if type(found) is tuple else (found,), strict=True))

    def run(self, inputs):
        known = self.constants | inputs
        for node, attributes in self.nodes:
            self.compute(node, attributes, known)
        return [values.real(known[name]) for name in self.outputs]


def random_inputs(model, rng):
    """Return inputs of the shapes that a model declares; what it leaves open is 1."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in constants
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def compare(model, runs=10):
    """Return whether results are onnxruntime's, and the milliseconds of either, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph, rng, equal, times = Graph(model), np.random.default_rng(0), True, []
    for _ in range(runs):
        inputs = random_inputs(model, rng)
        begin = time.perf_counter()
        ours = graph.run(inputs)
        middle = time.perf_counter()
        theirs = session.run(None, inputs)
        times.append((middle - begin, time.perf_counter() - middle))
        equal = equal and all(map(np.array_equal, ours, theirs))
    return equal, *np.min(times, axis=0) * 1e3


def main():
    model = onnx.load(sys.argv[1])
    qk.set_num_threads(1)
    equal, ours, theirs = compare(model)
    print(f"{len(model.graph.node)} nodes; results {'are' if equal else 'ARE NOT'} those of onnxruntime")
    print(f"qkernels {ours:.2f} ms, onnxruntime {theirs:.2f} ms")


if __name__ == "__main__":
    main()
