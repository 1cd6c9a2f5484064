"""LiteRT, which asks the CPU: models of one operator, by XNNPACK where it has the operator."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from race import MISSING, Contender

import peers

TYPES = {"int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8, "int32": schema.TensorType.INT32}


def tensor(shape, dtype, scale, zero, axis=0, buffer=0):
    t = schema.TensorT()
    t.name, t.shape, t.type, t.buffer = b"", list(shape), TYPES[np.dtype(dtype).name], buffer
    t.quantization = schema.QuantizationParametersT()
    t.quantization.scale = np.atleast_1d(scale).astype(np.float32)
    t.quantization.zeroPoint = np.full(np.size(scale), zero, np.int64)
    t.quantization.quantizedDimension = axis
    return t


def run_by(operator, version, tensors, inputs, options=None, buffers=()):
    """Return the interpreter of one operator, which reads the first tensors and writes the last, and has its inputs."""
    model, graph, node, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), *buffers]
    last = len(tensors) - 1
    graph.tensors, graph.operators = tensors, [node]
    graph.inputs, graph.outputs = list(range(len(inputs))), [last]
    node.opcodeIndex, node.inputs, node.outputs = 0, list(range(last)), [last]
    if options is not None:
        node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        node.builtinOptions = options
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=peers.threads)
    interpreter.allocate_tensors()
    for x, detail in zip(inputs, interpreter.get_input_details()):
        interpreter.set_tensor(detail["index"], x)
    return interpreter


def node_of(operator, inputs, output, options=None):
    """Contender for one operator. inputs: arrays with (scale, zero point); output: its own (shape, dtype, both)."""
    tensors = [tensor(x.shape, x.dtype, *params) for x, params in inputs]
    tensors.append(tensor(*output[:2], *output[2]))
    interpreter = run_by(operator, 2, tensors, [x for x, _ in inputs], options)
    index = interpreter.get_output_details()[0]["index"]
    return peers.contender("LiteRT", interpreter.invoke, lambda: interpreter.get_tensor(index))


def unary(operator, q, params, to):
    return node_of(operator, [(q, params)], (q.shape, q.dtype, to))


def softmax(q, params, to):
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return node_of("SOFTMAX", [(q, params)], (q.shape, q.dtype, to), options)


def pair(operator, a, a_params, b, b_params, to):
    options = getattr(schema, f"{operator.capitalize()}OptionsT")()
    return node_of(operator, [(a, a_params), (b, b_params)], (a.shape, a.dtype, to), options)


def buffer_of(array):
    data = schema.BufferT()
    data.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return data


def same_by_flipping(side, kernel, stride, padding):
    """Tell if an image that is turned round has the padding of SAME, which puts an odd pixel at the end.

    None: it has another one.
    """
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    if padding == 0 or 2 * padding == total:
        return False
    return True if total - total // 2 == padding else None


def windows_of(options, kernel, stride, padding):
    options.padding = schema.Padding.SAME if padding else schema.Padding.VALID
    options.strideH = options.strideW = stride
    if hasattr(options, "filterHeight"):
        options.filterHeight = options.filterWidth = kernel
    else:
        options.dilationHFactor = options.dilationWFactor = 1
    return options


def on_image(operator, q, constants, output, options, flipped, version, buffers=()):
    """Contender for an operator of codes less 128; output is (shape, scale, zero point)."""
    turned = np.ascontiguousarray(q[:, ::-1, ::-1] if flipped else q) ^ 128
    shape, scale, zero_point = output
    tensors = [tensor(q.shape, "int8", *constants[0]), *constants[1:], tensor(shape, "int8", scale, zero_point - 128)]
    interpreter = run_by(operator, version, tensors, [turned.view(np.int8)], options, buffers)
    index, step = len(tensors) - 1, -1 if flipped else 1
    read = lambda: interpreter.get_tensor(index).view(np.uint8)[:, ::step, ::step] ^ 128  # noqa: E731
    found = peers.contender("LiteRT XNNPACK", interpreter.invoke, read)
    # Nothing keeps its products off AMX.
    found.held &= not (operator == "CONV_2D" and peers.has_amx() and peers.isa != "amx")
    return found


def qconv2d(q, w, bias, scales, zeros, where):
    """As torch.qconv2d."""
    stride, padding, groups = where
    flipped = same_by_flipping(q.shape[1], len(w), stride, padding)
    if flipped is None:
        return Contender("LiteRT XNNPACK", None, note=MISSING)
    depthwise = groups > 1
    options = (schema.DepthwiseConv2DOptionsT if depthwise else schema.Conv2DOptionsT)()
    windows_of(options, len(w), stride, padding)
    if depthwise:
        options.depthMultiplier = 1
    weights = (w[::-1, ::-1] if flipped else w).transpose((2, 0, 1, 3) if depthwise else (3, 0, 1, 2))
    height = (q.shape[1] + 2 * padding - len(w)) // stride + 1
    constants = [
        (scales[0], zeros[0] - 128),
        tensor(weights.shape, "int8", scales[1], 0, 3 if depthwise else 0, 1),
        tensor((len(bias),), "int32", np.float32(scales[0]) * scales[1], 0, 0, 2),
    ]
    name, buffers = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [buffer_of(weights), buffer_of(bias)]
    output = (len(q), height, height, w.shape[3]), scales[2], zeros[1]
    return on_image(name, q, constants, output, options, flipped, 3, buffers)


def pool(operator, q, kernel, stride, padding, params):
    flipped = same_by_flipping(q.shape[1], kernel, stride, padding)
    if flipped is None:
        return Contender("LiteRT XNNPACK", None, note=MISSING)
    height = (q.shape[1] + 2 * padding - kernel) // stride + 1
    options = windows_of(schema.Pool2DOptionsT(), kernel, stride, padding)
    output = (len(q), height, height, q.shape[3]), *params
    return on_image(operator, q, [(params[0], params[1] - 128)], output, options, flipped, 2)


def max_pool(q, kernel, stride, padding):
    return pool("MAX_POOL_2D", q, kernel, stride, padding, (1.0, 0))


def average_pool(q, kernel, stride, padding, params):
    return pool("AVERAGE_POOL_2D", q, kernel, stride, padding, params)


def global_average_pool(q, params):
    return pool("AVERAGE_POOL_2D", q, q.shape[1], 1, 0, params)
