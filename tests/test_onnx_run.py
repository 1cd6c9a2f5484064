"""The example that runs ONNX graphs, on what onnxruntime makes of a small mobile network, and on layers of their own.

Node tests of ONNX are in conformance/test_onnx.py.
"""

import copy
import sys

import efficientnet_data as data
import numpy as np
import onnx
import onnx_run
import pytest
from efficientnet_float import fold
from onnx import helper, numpy_helper
from test_efficientnet import random_weights

onnxruntime = pytest.importorskip("onnxruntime")
from efficientnet import peers  # noqa: E402
from onnxruntime.quantization import QuantFormat  # noqa: E402

FORMATS = {"QDQ": QuantFormat.QDQ, "QOperator": QuantFormat.QOperator}


@pytest.fixture(scope="module")
def network():
    """Blocks, a head and images, as those of test_efficientnet.py."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((96, 10), np.float32) / 10, rng.standard_normal(10, np.float32)
    blocks = fold(random_weights(rng))
    return blocks, head, [peers.floats_of(data.resize(image[None], 64)) for image in rng.integers(0, 256, (8, 7, 7))]


@pytest.fixture(scope="module", params=FORMATS)
def quantized(request, network):
    blocks, head, images = network
    return peers.quantized(peers.model_of(blocks, head, 64), images[:4], quant_format=FORMATS[request.param])


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_logits_of_a_network_are_those_of_onnxruntime(quantized, network, isas):
    session, images = session_of(quantized), network[2]
    for isa in isas():
        graph = onnx_run.Graph(quantized)
        for image in images:
            (ours,), (theirs,) = graph.run({"pixels": image}), session.run(None, {"pixels": image})
            np.testing.assert_array_equal(ours, theirs, err_msg=isa, strict=True)


def test_all_codes_of_a_network_are_those_of_onnxruntime(quantized, network):
    if quantized.graph.node[0].op_type != "QuantizeLinear":
        pytest.skip("QDQ: fused layers have no codes to show")
    model = copy.deepcopy(quantized)
    names = [node.output[0] for node in model.graph.node[:-1]]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    inputs = {"pixels": network[2][0]}
    for ours, theirs in zip(onnx_run.Graph(model).run(inputs), session_of(model).run(None, inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_weights_are_packed_once(quantized, network, monkeypatch):
    graph, inputs = onnx_run.Graph(quantized), {"pixels": network[2][0]}
    first = graph.run(inputs)
    for name in "pack", "pack_conv":
        monkeypatch.setattr(onnx_run.layers.qk, name, None)
    np.testing.assert_array_equal(graph.run(inputs), first)


def test_the_command_compares(quantized, tmp_path, monkeypatch, capsys):
    onnx.save(quantized, tmp_path / "model.onnx")
    monkeypatch.setattr(sys, "argv", ["onnx_run.py", str(tmp_path / "model.onnx")])
    onnx_run.main()
    assert "nodes; results are those of onnxruntime" in capsys.readouterr().out


# ---- layers ----


def model_of(nodes, constants, shape):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [info("x", onnx.TensorProto.FLOAT, shape)],
        [info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def qdq(name, scale):
    """Nodes and constants that make x codes and reals again."""
    constants = {f"{name}_scale": np.float32(scale), f"{name}_zero": np.uint8(120)}
    nodes = [
        helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *constants], [f"{name}_r"]),
    ]
    return nodes, constants


RNG = np.random.default_rng(0)
W, BIAS = RNG.integers(-127, 128, (6, 8), np.int8), RNG.integers(-3000, 3000, 6, np.int32)
GEMM = {"w": W, "w_scale": np.full(6, 0.01, np.float32) * RNG.uniform(0.5, 1, 6).astype(np.float32), "bias": BIAS}


@pytest.mark.parametrize("layer", ["Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Reshape", "Transpose"])
def test_layers_between_codes(layer):
    nodes, constants = qdq("x", 0.05)
    more = ["x_r"] if layer in ("Add", "Mul") else []
    if layer in ("Gemm", "MatMul"):
        w = GEMM["w"] if layer == "Gemm" else GEMM["w"].T.copy()
        constants |= {"w": w, "w_scale": GEMM["w_scale"], "w_zero": np.zeros(6, np.int8), "bias": BIAS}
        constants["bias_scale"] = np.float32(0.05) * GEMM["w_scale"]
        axis = 0 if layer == "Gemm" else 1
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], axis=axis))
        more = ["w_r"]
        if layer == "Gemm":
            nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_r"], axis=0))
            more.append("bias_r")
    if layer == "Clip":
        constants |= {"low": np.float32(-1), "high": np.float32(2)}
        more = ["low", "high"]
    if layer == "Reshape":
        constants["shape"] = np.int64([0, 2, -1])
        more = ["shape"]
    nodes.append(helper.make_node(layer, ["x_r", *more], ["y"], **({"transB": 1} if layer == "Gemm" else {})))
    after, given = qdq("y", 0.1)
    model = model_of(nodes + after, constants | given, (5, 8))
    x = RNG.normal(scale=3, size=(5, 8)).astype(np.float32)
    (ours,), (theirs,) = onnx_run.Graph(model).run({"x": x}), session_of(model).run(None, {"x": x})
    np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("bias", [2**31 - 1, -(2**31), 2**30])
def test_a_bias_at_the_end_of_int32_is_added_modulo_2_32(bias):
    """onnxruntime gives one to a filter that is next to nothing."""
    nodes, constants = qdq("x", 0.05)
    constants |= {"w": RNG.integers(-127, 128, (2, 3, 3, 3), np.int8), "w_scale": np.float32([1e-10, 0.01])}
    constants |= {"w_zero": np.zeros(2, np.int8), "bias": np.int32([bias, 5])}
    constants["bias_scale"] = np.float32(0.05) * constants["w_scale"]
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], axis=0))
    nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_r"], axis=0))
    nodes.append(helper.make_node("Conv", ["x_r", "w_r", "bias_r"], ["y"], pads=[1, 1, 1, 1]))
    after, given = qdq("y", 0.002)
    model = model_of(nodes + after, constants | given, (1, 3, 6, 6))
    x = RNG.normal(scale=3, size=(1, 3, 6, 6)).astype(np.float32)
    (ours,), (theirs,) = onnx_run.Graph(model).run({"x": x}), session_of(model).run(None, {"x": x})
    np.testing.assert_array_equal(ours, theirs, strict=True)


def test_what_it_does_not_run_is_named():
    nodes, constants = qdq("x", 0.05)
    constants |= {"w": W.T.copy(), "w_scale": np.float32(0.1), "w_zero": np.int8(0)}
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"]))
    nodes.append(helper.make_node("MatMul", ["x_r", "w_r"], ["y"]))
    with pytest.raises(NotImplementedError, match="followed by QuantizeLinear"):
        onnx_run.Graph(model_of(nodes, constants, (5, 8))).run({"x": np.ones((5, 8), np.float32)})


FLOATS, SCALES = RNG.standard_normal((8, 8), np.float32), np.full(8, 0.1, np.float32)
UNSUPPORTED = [  # a node, how the shape of x begins, the shape of its weights, what is said
    ("Erf", {}, (5, 8), None, "there is no such operator"),
    ("Gemm", {}, (5, 8), "floats", "a layer of floats"),
    ("MatMul", {}, (5, 8), "floats", "a layer of floats"),
    ("Conv", {}, (1, 8, 9, 9), "floats", "a layer of floats"),
    ("Conv", {}, (1, 8, 9), (8, 8, 3), "an input with 3 axes"),
    ("Conv", {}, (1, 8, 9, 9, 9), (8, 8, 3, 3, 3), "an input with 5 axes"),
    ("Conv", {"channels_last": 1}, (1, 8, 9, 9), (8, 8, 3, 3), "channels_last"),
    ("Gemm", {"alpha": 2.0}, (5, 8), (8, 8), "alpha=2.0"),
    ("Gemm", {"axis": 0}, (5, 8), (8, 8), "weights whose scales are not one"),
    ("Gemm", {"axis": 1, "transB": 1}, (5, 8), (8, 8), "weights whose scales are not one"),
    ("MatMul", {"axis": 0}, (5, 8), (8, 8), "weights whose scales are not one"),
    ("MatMul", {"axis": 2}, (2, 5, 8), (2, 8, 8), "with 8 scales"),
    ("MatMul", {}, (5, 8), (8,), "shapes"),
    ("GlobalAveragePool", {}, (1, 8, 9), None, "an input with 3 axes"),
]


@pytest.mark.parametrize("op, attributes, of_x, of_w, words", UNSUPPORTED, ids=range(len(UNSUPPORTED)))
def test_a_node_that_is_not_run_is_named(op, attributes, of_x, of_w, words):
    (nodes, constants), attributes = qdq("x", 0.05), dict(attributes)
    if of_w is not None:
        floats = of_w == "floats"
        w = np.ones(8, np.int8) if floats else RNG.integers(-127, 128, of_w, np.int8)
        axis = attributes.pop("axis", None)
        scale, where = (SCALES, {"axis": axis}) if axis is not None else (SCALES[0], {})
        constants |= {"w": w, "w_scale": scale, "w_zero": np.zeros(scale.shape, np.int8), "w_f": FLOATS}
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], **where))
    more = [] if of_w is None else ["w_f"] if floats else ["w_r"]
    nodes.append(helper.make_node(op, ["x_r", *more], ["y"], "a node", **attributes))
    after, given = qdq("y", 0.1)
    with pytest.raises(NotImplementedError, match=f"{op} 'a node': .*{words}"):
        onnx_run.Graph(model_of(nodes + after, constants | given, of_x)).run({"x": np.ones(of_x, np.float32)})


def test_several_scales_of_an_input_are_refused():
    constants = {"a_s": SCALES, "a_z": np.zeros(8, np.int8), "b": W.T.copy(), "b_s": SCALES[0], "b_z": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "a_s", "a_z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "a_s", "a_z"], ["a_r"]),
        helper.make_node("DequantizeLinear", ["b", "b_s", "b_z"], ["b_r"]),
        helper.make_node("MatMul", ["a_r", "b_r"], ["y"], "rows"),
    ]
    with pytest.raises(NotImplementedError, match="MatMul 'rows': an input with more than one scale"):
        onnx_run.Graph(model_of(nodes, constants, (5, 8))).run({"x": np.ones((5, 8), np.float32)})


def layer_and(op, of_y, more=()):
    """Return a model of a convolution and what follows it, up to codes with parameters of_y, and an x."""
    nodes, constants = qdq("x", 0.05)
    constants |= {"w": RNG.integers(-127, 128, (4, 3, 3, 3), np.int8), "w_scale": RNG.uniform(0.01, 0.02, 4)}
    constants |= {"w_scale": np.float32(constants["w_scale"]), "w_zero": np.zeros(4, np.int8)}
    constants |= {f"more_{i}": value for i, value in enumerate(more)} | dict(zip(("y_scale", "y_zero"), of_y))
    constants |= {"bias": np.int32([300, -300, 5, 0]), "bias_scale": np.float32(0.05) * constants["w_scale"]}
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], axis=0))
    nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_r"], axis=0))
    nodes.append(helper.make_node("Conv", ["x_r", "w_r", "bias_r"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
    nodes.append(helper.make_node(op, ["c", *(f"more_{i}" for i in range(len(more)))], ["r"]))
    nodes.append(helper.make_node("QuantizeLinear", ["r", "y_scale", "y_zero"], ["q"]))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "y_scale", "y_zero"], ["z"]))
    return model_of(nodes, constants, (2, 3, 6, 6)), RNG.normal(scale=3, size=(2, 3, 6, 6)).astype(np.float32)


BOUNDS = {"Relu": (), "Clip": (np.float32(0), np.float32(6))}


@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)])
def test_an_activation_between_a_layer_and_codes_is_that_of_onnxruntime(op, zero):
    """These codes begin at 0, and end at 6, so that it leaves the activation out."""
    model, x = layer_and(op, (np.float32(6 / 255), zero), BOUNDS[op])
    (ours,), (theirs,) = onnx_run.Graph(model).run({"x": x}), session_of(model).run(None, {"x": x})
    np.testing.assert_array_equal(ours, theirs, strict=True)
    assert (ours == 0).any() and (ours > 5.9).any()


@pytest.mark.parametrize("op, more", [("Relu", ()), ("Clip", (np.float32(-1), np.float32(2))), ("Clip", ())])
def test_an_activation_clamps_codes(op, more):
    """What onnxruntime computes in floats here, from whose roundings ours is a code apart at most."""
    model, x = layer_and(op, (np.float32(0.05), np.uint8(100)), more)
    (ours,), (theirs,) = onnx_run.Graph(model).run({"x": x}), session_of(model).run(None, {"x": x})
    low, high = (0, np.inf) if op == "Relu" else more or (-np.inf, np.inf)
    assert low <= ours.min() and ours.max() <= high
    assert np.abs(ours - theirs).max() < 0.051 and np.mean(ours != theirs) < 0.01
    assert ours.min() == low if more or op == "Relu" else ours.min() < 0


@pytest.mark.parametrize("last", [0, 1])
def test_a_pool_may_have_channels_last(last):
    node = helper.make_node(
        "QLinearGlobalAveragePool", ["x", "s", "z", "t", "u"], ["y"], domain="com.microsoft", channels_last=last
    )
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "t": np.float32(0.05), "u": np.uint8(100)}
    x = RNG.integers(0, 256, (2, 5, 6, 7), np.uint8)
    ours, theirs = both_results(node, constants, {"x": x}, np.uint8)
    np.testing.assert_array_equal(ours, theirs, strict=True)
    assert ours.shape == ((2, 1, 1, 7) if last else (2, 5, 1, 1))


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_product_of_codes_may_have_a_scale_for_each_column(transposed):
    names = ["a", "a_s", "a_z", "b", "b_s", "b_z", "c", "y_s", "y_z"]
    node = helper.make_node("QGemm", names, ["y"], domain="com.microsoft", transB=transposed)
    constants = {"a_s": np.float32(0.1), "a_z": np.uint8(3), "b": W if transposed else W.T.copy(), "c": BIAS}
    constants |= {"b_s": GEMM["w_scale"], "b_z": np.zeros(6, np.int8), "y_s": np.float32(9), "y_z": np.uint8(128)}
    inputs = {"a": RNG.integers(0, 256, (5, 8), np.uint8)}
    np.testing.assert_array_equal(*both_results(node, constants, inputs, np.uint8), strict=True)


TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6}


def both_results(node, constants, inputs, of_result, opset=21):
    """Return what the graph of a node is by us and by onnxruntime."""
    info = helper.make_tensor_value_info
    named = {name: np.asarray(value) for name, value in inputs.items()}
    graph = helper.make_graph(
        [node],
        "graph",
        [info(name, TYPES[value.dtype], value.shape) for name, value in named.items()],
        [info("y", TYPES[np.dtype(of_result)], None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx_run.Graph(model).run(named)[0], session_of(model).run(None, named)[0]


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_int32_becomes_float32_along_an_axis(axis):
    q = RNG.integers(-(2**31), 2**31, (3, 4, 4), np.int32)
    scale = np.float32(0.3) if axis is None else RNG.uniform(0.1, 1, q.shape[axis]).astype(np.float32)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **({} if axis is None else {"axis": axis}))
    np.testing.assert_array_equal(*both_results(node, {"s": scale}, {"q": q}, np.float32), strict=True)


@pytest.mark.parametrize(
    "a, b", [((3, 4), (1, 4, 6)), ((5, 3, 4), (1, 4, 6)), ((2, 1, 3, 4), (5, 4, 6)), ((5, 3, 4), (4, 6))]
)
def test_batches_of_products_broadcast(a, b):
    constants = {"a_s": np.float32(0.1), "a_z": np.uint8(3), "b": RNG.integers(-128, 128, b, np.int8)}
    constants |= {"b_s": np.float32(0.2), "b_z": np.int8(2), "y_s": np.float32(9), "y_z": np.uint8(128)}
    node = helper.make_node("QLinearMatMul", ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"], ["y"])
    inputs = {"a": RNG.integers(0, 256, a, np.uint8)}
    np.testing.assert_array_equal(*both_results(node, constants, inputs, np.uint8), strict=True)


@pytest.mark.parametrize(
    "attributes", [{"saturate": 1}, {"output_dtype": 0}, {"precision": 1}, {"block_size": 0}], ids=str
)
def test_attributes_may_say_what_is_the_default(attributes):
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], **attributes)
    x = RNG.standard_normal((2, 3), np.float32)
    opset = 23 if "precision" in attributes else 21
    np.testing.assert_array_equal(*both_results(node, {"s": np.float32(0.02)}, {"x": x}, np.uint8, opset), strict=True)


def test_attributes_that_no_function_takes_are_named():
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], "first", saturate=0)
    with pytest.raises(NotImplementedError, match="QuantizeLinear 'first': .*'saturate'"):
        both_results(node, {"s": np.float32(0.02)}, {"x": np.ones(3, np.float32)}, np.uint8)


@pytest.mark.parametrize("bias", [2**31 - 1, -(2**31), 2**30])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_bias_of_gemm_at_the_end_of_int32_is_added_modulo_2_32(bias, transposed):
    nodes, constants = qdq("x", 0.05)
    w = W if transposed else W.T.copy()
    scale = np.float32([1e-10, 0.01, 0.02, 0.01, 0.01, 0.03])
    constants |= {"w": w, "w_scale": scale, "w_zero": np.zeros(6, np.int8)}
    constants |= {"bias": np.int32([bias, 5, -3, 0, 7, 1]), "bias_scale": np.float32(0.05) * scale}
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], axis=1 - transposed))
    nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_r"], axis=0))
    nodes.append(helper.make_node("Gemm", ["x_r", "w_r", "bias_r"], ["y"], transB=transposed))
    after, given = qdq("y", 0.02)
    model = model_of(nodes + after, constants | given, (5, 8))
    x = RNG.normal(scale=3, size=(5, 8)).astype(np.float32)
    (ours,), (theirs,) = onnx_run.Graph(model).run({"x": x}), session_of(model).run(None, {"x": x})
    np.testing.assert_array_equal(ours, theirs, strict=True)
