"""onnxruntime: graphs of one node or a few. It asks the CPU and can be held to no instruction set."""

import contextlib
import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import peers

OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


def graph_of(name, nodes, inputs, constants, outputs):
    """Contender for a graph: inputs and outputs bound once, constants as initializers (so that it packs them once).

    inputs and constants: name -> array; outputs: name -> (shape, dtype).
    """
    type_of = helper.np_dtype_to_tensor_dtype
    info = helper.make_tensor_value_info
    taken = [info(key, type_of(x.dtype), x.shape) for key, x in inputs.items()]
    given = [info(key, type_of(np.dtype(dtype)), shape) for key, (shape, dtype) in outputs.items()]
    kept = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, taken, given, kept)
    session = session_of(helper.make_model(graph, opset_imports=OPSETS, ir_version=10))
    binding = session.io_binding()
    for key, x in inputs.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    values = [empty(shape, np.dtype(dtype)) for shape, dtype in outputs.values()]
    for key, value in zip(outputs, values):
        binding.bind_ortvalue_output(key, value)
    run = session.run_with_iobinding
    return peers.contender("onnxruntime", lambda: run(binding), values[0].numpy)


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = peers.threads, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node_of(operator, inputs, constants, output, more_outputs=None, **attributes):
    """Contender for one node; its operands are the inputs, then the constants, in order."""
    outputs = {"y": output, **(more_outputs or {})}
    node = helper.make_node(operator, [*inputs, *constants], list(outputs), **attributes)
    return graph_of(operator, [node], inputs, constants, outputs)


def matmul_integer(a, b):
    return node_of("MatMulInteger", {"a": a}, {"b": b}, ((len(a), b.shape[1]), "int32"))


def matmul_integer_of_inputs(a, b):
    """Neither operand is known beforehand."""
    return node_of("MatMulInteger", {"a": a, "b": b}, {}, ((*a.shape[:-1], b.shape[-1]), "int32"))


def qlinear_matmul(a, a_scale, a_zero, b, b_scale, y_scale, y_zero):
    of_a = {"a_scale": np.float32(a_scale), "a_zero": a.dtype.type(a_zero)}
    of_b = {"b": b, "b_scale": np.float32(b_scale), "b_zero": np.zeros_like(b_scale, b.dtype)}
    constants = of_a | of_b | {"y_scale": np.float32(y_scale), "y_zero": a.dtype.type(y_zero)}
    return node_of("QLinearMatMul", {"a": a}, constants, ((len(a), b.shape[1]), a.dtype))


def dynamic_linear(x, b, b_scale, bias):
    """The graph that its quantization tool makes of a float product; its optimizer fuses it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"]),
        helper.make_node("MatMulInteger", ["q", "b", "x_zero", "b_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["float_sums"], to=1),
        helper.make_node("Mul", ["x_scale", "b_scale"], ["scale"]),
        helper.make_node("Mul", ["float_sums", "scale"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    constants = {"b": b, "b_zero": np.zeros_like(b_scale, b.dtype), "b_scale": b_scale, "bias": bias}
    return graph_of("dynamic_linear", nodes, {"x": x}, constants, {"y": ((len(x), b.shape[1]), "float32")})


def matmul_nbits(x, b, scale, block_size):
    """4-bit weights b (K, N), 0..15 with zero points 8, in blocks of K. x is quantized to int8 by blocks, too."""
    k, n = b.shape
    blocks = b.T.reshape(n, k // block_size, block_size)
    packed = np.ascontiguousarray(blocks[..., ::2] | blocks[..., 1::2] << 4)
    constants = {"b": packed, "scale": np.ascontiguousarray(scale.T).ravel()}
    options = dict(K=k, N=n, bits=4, block_size=block_size, accuracy_level=4)
    return node_of("MatMulNBits", {"x": x}, constants, ((len(x), n), "float32"), domain="com.microsoft", **options)


def params(scale, zero_point):
    return {"scale": np.float32(scale), "zero_point": zero_point}


def quantize(x, scale, zero_point, **attributes):
    return node_of("QuantizeLinear", {"x": x}, params(scale, zero_point), (x.shape, zero_point.dtype), **attributes)


def dequantize(q, scale, zero_point, **attributes):
    return node_of("DequantizeLinear", {"q": q}, params(scale, zero_point), (q.shape, "float32"), **attributes)


def fake_quantize(x, scale, zero_point, **attributes):
    """QuantizeLinear and DequantizeLinear: ONNX has no fused operator."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **attributes),
    ]
    return graph_of("fake_quantize", nodes, {"x": x}, params(scale, zero_point), {"y": (x.shape, "float32")})


def dynamic_quantize(x):
    more = {"scale": ((), "float32"), "zero": ((), "uint8")}
    return node_of("DynamicQuantizeLinear", {"x": x}, {}, (x.shape, "uint8"), more)


@cache
def minilm_session():
    """Its own quantization of weights, by columns, and at run time of what they multiply."""
    import torch
    from minilm.padded import load
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file, tokens, axes = io.BytesIO(), torch.ones(2, 16, dtype=torch.int64), {0: "sentences", 1: "tokens"}
    names = dict(input_names=["ids", "mask"], dynamic_axes={"ids": axes, "mask": axes})
    torch.onnx.export(load(), (tokens, tokens), file, dynamo=False, opset_version=17, **names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options = dict(per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        quantize_dynamic(onnx.load_from_string(file.getvalue()), path, **options)
        return session_of(onnx.load(path))


def minilm(ids, mask):
    run, inputs = minilm_session().run, {"ids": ids, "mask": mask}
    return peers.contender("onnxruntime", lambda: run(None, inputs), lambda: run(None, inputs)[0])


def collector(x, method):
    """Its calibrator's collector of one tensor, without the inference that feeds it."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    def collect():
        bins = 2048 if method == "percentile" else 128
        histograms = HistogramCollector(method, False, bins, 128, 99.99, "same")
        with contextlib.redirect_stdout(io.StringIO()):
            histograms.collect({"x": [x]})
        return histograms.histogram_dict["x"][0]

    return peers.contender(f"onnxruntime {method}", collect, lambda: np.asarray(collect()))


def calibrator(x, method, part=1_000_000):
    """Its calibrator, as it is called: parts go through a graph of one operator, of whose two tensors each gets a
    range. The time is that of one tensor."""
    from onnxruntime.quantization import calibrate

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self):
            self.parts = iter(np.split(x, range(part, len(x), part)))

        def get_next(self):
            found = next(self.parts, None)
            return None if found is None else {"x": found}

    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=OPSETS[:1], ir_version=10)

    def calibrated():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = Path(folder, "model.onnx")
            onnx.save(model, path)
            chosen = getattr(calibrate.CalibrationMethod, method.capitalize())
            made = calibrate.create_calibrator(path, ["Relu"], Path(folder, "more.onnx"), chosen)
            made.collect_data(Reader())
            made.compute_data()
            return made.collector.histogram_dict["x"][0]

    found = peers.contender(f"onnxruntime calibrator, {method}", calibrated, lambda: np.asarray(calibrated()))
    found.scale = 0.5
    return found


def qlinear(operator, operands, to, **attributes):
    """One of com.microsoft's layers on codes: operands and the result have a (scale, zero point)."""
    dtype = operands[0][0].dtype
    inputs, names, constants = {}, [], {}
    for i, (q, (scale, zero_point)) in enumerate([*operands, (None, to)]):
        if q is not None:
            inputs[f"q{i}"] = q
            names.append(f"q{i}")
        constants |= {f"scale{i}": np.float32(scale), f"zero{i}": dtype.type(zero_point)}
        names += [f"scale{i}", f"zero{i}"]
    node = helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes)
    return graph_of(operator, [node], inputs, constants, {"y": (operands[0][0].shape, dtype)})


def qlinear_conv(q, w, bias, scales, zeros, attributes, shape, channels_last):
    """Scales and zero points are those of q, w (height, width, C / groups, F) and the result, `shape` (N, H, W, F). Its
    NHWC form is what its optimizer makes of a chain of convolutions."""
    x_scale, w_scale, y_scale = scales
    constants = {"x_scale": np.float32(x_scale), "x_zero": np.uint8(zeros[0]), "w": w.transpose(3, 2, 0, 1).copy()}
    constants |= {"w_scale": w_scale, "w_zero": np.zeros(len(w_scale), np.int8), "y_scale": np.float32(y_scale)}
    constants |= {"y_zero": np.uint8(zeros[1]), "bias": bias}
    if channels_last:
        where = attributes | {"domain": "com.microsoft", "channels_last": 1}
        found = node_of("QLinearConv", {"x": q}, constants, (shape, "uint8"), **where)
        found.name = "onnxruntime NHWC"
        return found
    n, height, width, filters = shape
    x, of = np.ascontiguousarray(q.transpose(0, 3, 1, 2)), ((n, filters, height, width), "uint8")
    found = node_of("QLinearConv", {"x": x}, constants, of, **attributes)
    found.name, read = "onnxruntime NCHW", found.read
    found.read = lambda: read().transpose(0, 2, 3, 1)
    return found


def pool_of(operator, q, window, constants, nhwc, **attributes):
    """`window` is the side of a kernel, stride and padding. In its NCHW form the image is turned beforehand."""
    kernel, stride, padding = window
    n, height, width, channels = q.shape
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    where = attributes | dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)
    if nhwc:
        found = node_of(operator, {"x": q}, constants, ((n, height, width, channels), q.dtype), **where)
        found.name = "onnxruntime NHWC"
        return found
    x = np.ascontiguousarray(q.transpose(0, 3, 1, 2))
    found = node_of(operator, {"x": x}, constants, ((n, channels, height, width), q.dtype), **where)
    found.name, read = "onnxruntime NCHW", found.read
    found.read = lambda: read().transpose(0, 2, 3, 1)
    return found


def max_pool(q, kernel, stride, padding, channels_last=False):
    name, domain = ("NhwcMaxPool", "com.microsoft") if channels_last else ("MaxPool", "")
    return pool_of(name, q, (kernel, stride, padding), {}, channels_last, domain=domain)


def same_params(params):
    """Of the codes and of the result."""
    scale, zero_point = np.float32(params[0]), np.uint8(params[1])
    return {"x_scale": scale, "x_zero": zero_point, "y_scale": scale, "y_zero": zero_point}


def average_pool(q, kernel, stride, padding, params, channels_last):
    window, where = (kernel, stride, padding), {"domain": "com.microsoft"}
    if channels_last:
        where["channels_last"] = 1
    return pool_of("QLinearAveragePool", q, window, same_params(params), channels_last, **where)


def global_average_pool(q, params):
    of = (q.shape[0], 1, 1, q.shape[3]), "uint8"
    where = dict(domain="com.microsoft", channels_last=1)
    return node_of("QLinearGlobalAveragePool", {"x": q}, same_params(params), of, **where)
