"""LiteRT, which asks the CPU: models of one operator, by XNNPACK where it has the operator."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

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


def qconv2d(q, w, bias, scales, zeros, where):
    """As torch.qconv2d, codes less 128; of paddings those that SAME and VALID name: None for others."""
    stride, padding, groups = where
    height = (q.shape[1] + 2 * padding - w.shape[0]) // stride + 1
    same = padding > 0
    if same and (stride > 1 or padding != w.shape[0] // 2):
        return None
    depthwise = groups > 1
    options = (schema.DepthwiseConv2DOptionsT if depthwise else schema.Conv2DOptionsT)()
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH = options.strideW = stride
    options.dilationHFactor = options.dilationWFactor = 1
    if depthwise:
        options.depthMultiplier = 1
    weights = w.transpose(2, 0, 1, 3) if depthwise else w.transpose(3, 0, 1, 2)
    shape = (len(q), height, height, w.shape[3])
    tensors = [
        tensor(q.shape, "int8", scales[0], zeros[0] - 128),
        tensor(weights.shape, "int8", scales[1], 0, 3 if depthwise else 0, 1),
        tensor((len(bias),), "int32", np.float32(scales[0]) * scales[1], 0, 0, 2),
        tensor(shape, "int8", scales[2], zeros[1] - 128),
    ]
    name, buffers = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [buffer_of(weights), buffer_of(bias)]
    interpreter = run_by(name, 3, tensors, [(q ^ 128).view(np.int8)], options, buffers)
    return peers.contender("LiteRT XNNPACK", interpreter.invoke, lambda: interpreter.get_tensor(3).view(np.uint8) ^ 128)
