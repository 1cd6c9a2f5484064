"""LiteRT: graphs of one operator, by XNNPACK unless the reference kernels are asked for. It asks the CPU."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import peers

TYPES = {"int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8}


def tensor_of(shape, dtype, scale, zero_point):
    t = schema.TensorT()
    t.name, t.shape, t.type, t.buffer = b"", list(shape), TYPES[np.dtype(dtype).name], 0
    t.quantization = schema.QuantizationParametersT()
    t.quantization.scale, t.quantization.zeroPoint = np.float32([scale]), np.int64([zero_point])
    return t


def node_of(operator, inputs, output, options=None):
    """Contender for one operator. inputs: arrays with (scale, zero point); output: its own (shape, dtype, both)."""
    model, graph, node, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [code], [graph]
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 2
    graph.tensors = [tensor_of(x.shape, x.dtype, *params) for x, params in inputs]
    graph.tensors.append(tensor_of(*output[:2], *output[2]))
    graph.inputs, graph.outputs, graph.operators = list(range(len(inputs))), [len(inputs)], [node]
    node.opcodeIndex, node.inputs, node.outputs = 0, graph.inputs, graph.outputs
    if options is not None:
        node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        node.builtinOptions = options
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(
        model_content=bytes(builder.Output()),
        num_threads=peers.threads,
        experimental_op_resolver_type=OpResolverType.AUTO,
    )
    interpreter.allocate_tensors()
    for (x, _), detail in zip(inputs, interpreter.get_input_details()):
        interpreter.set_tensor(detail["index"], x)
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
