"""The example loses next to nothing and computes on integers alone; LiteRT and onnxruntime have equal integers.

LiteRT's reference kernels do not round alike: convolutions round twice, which is our "gemmlowp", FULLY_CONNECTED once,
our "tflite", and ADD has a "tflite" of its own. onnxruntime rounds half to even throughout. Each sums the exponentials
of softmax in a way of its own, where a code may differ by one.
"""

from functools import partial
from types import SimpleNamespace

import digits
import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator, Padding
from graphs import ACTIVATIONS, convolution_options, litert_graph, onnxruntime_graph, options_of, tensor
from integers_only import run_in_integers
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

import qkernels as qk

HALF_EVEN = {name: getattr(qk, name) for name in ("qconv2d", "qadd", "max_pool2d", "qlinear", "qsoftmax")}
TFLITE = HALF_EVEN | {
    "qconv2d": partial(qk.qconv2d, rounding="gemmlowp"),
    "qadd": partial(qk.qadd, rounding="tflite"),
    "qlinear": partial(qk.qlinear, rounding="tflite"),
}


@pytest.fixture(scope="module")
def learnt():
    """(images, test images, labels, their labels), and weights."""
    data = digits.load()
    return data, digits.train(np.float32(data[0] / 16), data[2])


@pytest.fixture(params=digits.OBSERVERS, ids=lambda observer: observer.__name__)
def quantized(request, learnt):
    (images, *_), weights = learnt
    return digits.Quantized(weights, images[:256], request.param)


def run(net, functions, pixels):
    """Return logits and probabilities by these functions."""
    logits = []

    def softmax(q, *params):
        logits.append(q)
        return functions["qsoftmax"](q, *params)

    net.functions = SimpleNamespace(**functions | {"qsoftmax": softmax})
    probabilities = net(pixels)
    return *logits, probabilities


def test_half_a_point_is_lost_at_most(quantized, learnt):
    (_, images, _, labels), weights = learnt
    exact = digits.network(np.float32(images / 16), weights)[-1].argmax(1)
    found = quantized(images).argmax(1)
    assert np.mean(exact == labels) > 0.95
    assert np.mean(found == labels) > np.mean(exact == labels) - 0.005
    assert np.mean(found == exact) > 0.99


def test_it_prints_a_row_for_each_network(learnt, monkeypatch, capsys):
    monkeypatch.setattr(digits, "train", lambda *_: learnt[1])
    digits.main()
    rows = capsys.readouterr().out
    assert all(observer.__name__ in rows for observer in digits.OBSERVERS) and rows.count("±") == 5


# ---- integers only ----


def compute(net, functions, pixels):
    net.functions = functions
    return net(pixels)


def test_no_float_on_the_way(quantized, learnt, everywhere):
    """Activations, that is: from a byte an image on. Scales of 16 filters are float32."""
    (_, images, *_), _ = learnt
    got = everywhere(lambda: run_in_integers(partial(compute, quantized), images, least=len(images)))
    assert_array_equal(got, compute(quantized, qk, images), strict=True)


@pytest.mark.parametrize("spoil", ["result", "temporary", "float16 of few"])
def test_floats_on_the_way_are_found(spoil, learnt):
    """Whether a function gives them, or they are there for a moment only, in the network or within a function."""
    (images, *_), weights = learnt
    net = digits.Quantized(weights, images[:256], digits.OBSERVERS[0])

    def spoilt(functions, pixels):
        if spoil == "result":
            functions.dequantize(pixels, digits.PIXELS)
        q = compute(net, functions, pixels)
        if spoil == "temporary":
            q = np.rint(q * np.float32(1)).astype(np.int8).reshape(q.shape)
        return q[:, :1].astype(np.float16) if spoil == "float16 of few" else q

    with pytest.raises(AssertionError, match="dequantize gives float32" if spoil == "result" else "spoilt"):
        run_in_integers(spoilt, images, least=len(images))


# ---- the same network by others ----


def scales(params):
    return params.scale, int(np.ravel(params.zero_point)[0])


def in_litert(net, pixels):
    """Return logits and probabilities; the graph's nodes in the order of the network."""
    tensors, constants, nodes = [tensor(pixels.shape, np.int8, scales(digits.PIXELS))], {}, []

    def add(shape, params, dtype=np.int8, constant=None, axis=0):
        tensors.append(tensor(shape, dtype, params))
        tensors[-1].quantization.quantizedDimension = axis
        if constant is not None:
            constants[len(tensors) - 1] = constant
        return len(tensors) - 1

    def layer(i, x, x_params, params, operator, options, order, axis=0):
        packed, bias = net.layers[i]
        w = packed.unpack().transpose(order)
        weights = add(w.shape, scales(packed.params), constant=w, axis=axis)
        bias = add(bias.shape, (x_params.scale * packed.params.scale, 0), np.int32, bias)
        shape = (*pixels.shape[:3], 16) if w.ndim == 4 else (len(pixels), 10)
        nodes.append((operator, options, [x, weights, bias], y := add(shape, scales(params))))
        return y

    p, operators = net.params, BuiltinOperator
    relu = partial(convolution_options, same=True, relu=True)
    a = layer(0, 0, p[0], p[1], operators.CONV_2D, relu(False), (3, 0, 1, 2))
    b = layer(1, a, p[1], p[2], operators.DEPTHWISE_CONV_2D, relu(True), (2, 0, 1, 3), 3)
    c = layer(2, b, p[2], p[3], operators.CONV_2D, convolution_options(False, True), (3, 0, 1, 2))
    total = add(tensors[a].shape, scales(p[4]))
    nodes.append((operators.ADD, options_of("Add", fusedActivationFunction=ACTIVATIONS[1]), [a, c], total))
    pooled = add((len(pixels), 4, 4, 16), scales(p[4]))
    size = dict(strideW=2, strideH=2, filterWidth=2, filterHeight=2, padding=Padding.VALID)
    nodes.append((operators.MAX_POOL_2D, options_of("Pool2D", **size), [total], pooled))
    logits = layer(3, pooled, p[4], p[5], operators.FULLY_CONNECTED, options_of("FullyConnected"), (1, 0))
    y = litert_graph(pixels, list(tensors), constants, nodes)
    probabilities = add(tensors[logits].shape, scales(digits.PROBABILITIES))
    nodes.append((operators.SOFTMAX, options_of("Softmax", beta=1), [logits], probabilities))
    return y, litert_graph(pixels, tensors, constants, nodes)


def test_litert(quantized, learnt):
    (_, images, *_), _ = learnt
    logits, probabilities = run(quantized, TFLITE, images)
    want, of_softmax = in_litert(quantized, images)
    assert_array_equal(logits, want, strict=True)
    assert np.abs(probabilities.astype(int) - of_softmax).max() <= 1
    assert np.any(logits != run(quantized, HALF_EVEN, images)[0])  # this rounding is told from the other


class Graph:
    """Nodes and constants of ONNX."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def constant(self, value):
        self.constants[name := f"constant{len(self.constants)}"] = value
        return name

    def params(self, params):
        zero_point = np.broadcast_to(params.zero_point, params.scale.shape).astype(np.int8)
        return [self.constant(params.scale), self.constant(zero_point)]

    def node(self, operator, *inputs, domain="", **attributes):
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def flat(self, images):
        """In the order of NHWC, as the dense layer's weights are."""
        rows = self.node("Transpose", images, perm=[0, 2, 3, 1])
        return self.node("Reshape", rows, self.constant(np.array([0, -1])))

    def run(self, pixels, result, **how):
        inputs = [(helper.make_tensor_value_info("pixels", TensorProto.INT8, None), pixels.transpose(0, 3, 1, 2))]
        outs = [helper.make_tensor_value_info(result, TensorProto.INT8, None)]
        return onnxruntime_graph(self.nodes, self.constants, outs, inputs, **how)[0]


CONVOLUTIONS = {"pads": [1] * 4}, {"pads": [1] * 4, "group": 16}, {}
HALVED = {"kernel_shape": [2, 2], "strides": [2, 2]}


def qlinear_graph(net):
    """Return a graph of operators on codes, and the names of logits and probabilities. A code of -128 being 0, what is
    clamped to codes has been through ReLU."""
    g, p, microsoft, names = Graph(), net.params, {"domain": "com.microsoft"}, ["pixels"]
    assert all(p[i].zero_point == -128 for i in (1, 2, 4))
    for i, where in enumerate(CONVOLUTIONS):
        packed, bias = net.layers[i]
        w = [g.constant(packed.unpack().transpose(3, 2, 0, 1)), *g.params(packed.params)]
        given = [names[-1], *g.params(p[i]), *w, *g.params(p[i + 1]), g.constant(bias)]
        names.append(g.node("QLinearConv", *given, **where))
    _, a, _, c = names
    total = g.node("QLinearAdd", a, *g.params(p[1]), c, *g.params(p[3]), *g.params(p[4]), **microsoft)
    packed, bias = net.layers[3]
    w = [g.constant(packed.unpack()), *g.params(packed.params), g.constant(bias)]
    pooled = g.flat(g.node("MaxPool", total, **HALVED))
    logits = g.node("QGemm", pooled, *g.params(p[4]), *w, *g.params(p[5]), **microsoft)
    of_softmax = [logits, *g.params(p[5]), *g.params(digits.PROBABILITIES)]
    return g, logits, g.node("QLinearSoftmax", *of_softmax, axis=-1, opset=13, **microsoft)


def qdq_graph(net):
    """Return a graph of operators on floats, between QuantizeLinear and DequantizeLinear, and its logits."""
    g, p = Graph(), [digits.PIXELS, *net.params[1:]]

    def floats(q, params, **axis):
        return g.node("DequantizeLinear", q, *g.params(params), **axis)

    def through(y, params):
        return floats(g.node("QuantizeLinear", y, *g.params(params)), params)

    def weights(i, order, axis):
        packed, bias = net.layers[i]
        of_bias = qk.QParams(net.params[(0, 1, 2, 4)[i]].scale * packed.params.scale, axis=0)
        scale, zero = g.constant(of_bias.scale), g.constant(np.zeros(of_bias.scale.shape, np.int32))
        w = floats(g.constant(packed.unpack().transpose(order)), packed.params, axis=axis)
        return w, g.node("DequantizeLinear", g.constant(bias), scale, zero, axis=0)

    names = [floats("pixels", p[0])]
    for i, where in enumerate(CONVOLUTIONS):
        y = g.node("Conv", names[-1], *weights(i, (3, 2, 0, 1), 0), **where)
        names.append(through(g.node("Relu", y) if i < 2 else y, p[i + 1]))
    total = through(g.node("Add", names[1], names[3]), p[4])
    pooled = through(g.flat(through(g.node("MaxPool", total, **HALVED), p[4])), p[4])
    return g, g.node("QuantizeLinear", g.node("Gemm", pooled, *weights(3, (0, 1), 1)), *g.params(p[5]))


def test_onnxruntime(quantized, learnt):
    (_, images, *_), _ = learnt
    got, got_probabilities = run(quantized, HALF_EVEN, images)
    graph, logits, probabilities = qlinear_graph(quantized)
    assert_array_equal(got, graph.run(images, logits), strict=True)
    assert np.abs(got_probabilities.astype(int) - graph.run(images, probabilities)).max() <= 1
    graph, logits = qdq_graph(quantized)
    assert_array_equal(got, graph.run(images, logits, fused=True), strict=True)
