"""LiteRT with XNNPACK, which asks the CPU: models of one operator, int8 codes."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import peers


def tensor(shape, dtype, scale, zero, axis=0, buffer=0):
    t = schema.TensorT()
    types = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32}
    t.name, t.shape, t.type, t.buffer = b"", list(shape), types[dtype], buffer
    t.quantization = schema.QuantizationParametersT()
    t.quantization.scale = np.atleast_1d(scale).astype(np.float32)
    t.quantization.zeroPoint = np.full(np.size(scale), zero, np.int64)
    t.quantization.quantizedDimension = axis
    return t


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
    model, graph, node, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 3
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), buffer_of(weights), buffer_of(bias)]
    shape = (len(q), height, height, w.shape[3])
    graph.tensors = [
        tensor(q.shape, "int8", scales[0], zeros[0] - 128),
        tensor(weights.shape, "int8", scales[1], 0, 3 if depthwise else 0, 1),
        tensor((len(bias),), "int32", np.float32(scales[0]) * scales[1], 0, 0, 2),
        tensor(shape, "int8", scales[2], zeros[1] - 128),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [node]
    node.inputs, node.outputs, node.opcodeIndex = [0, 1, 2], [3], 0
    kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    node.builtinOptionsType, node.builtinOptions = getattr(schema.BuiltinOptions, kind), options
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=peers.threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, (q ^ 128).view(np.int8))
    return peers.contender("LiteRT XNNPACK", interpreter.invoke, lambda: interpreter.get_tensor(3).view(np.uint8) ^ 128)
