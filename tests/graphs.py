"""Graphs for LiteRT's reference kernels and for onnxruntime, built and run."""

import flatbuffers
import numpy as np
import onnxruntime
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import helper, numpy_helper

TYPES = {
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
}


ACTIVATIONS = schema.ActivationFunctionType.NONE, schema.ActivationFunctionType.RELU


def options_of(name, **values):
    """An operator's options, such as schema.AddOptionsT, with these values."""
    options = getattr(schema, f"{name}OptionsT")()
    for key, value in values.items():
        assert hasattr(options, key)
        setattr(options, key, value)
    return options


def convolution_options(depthwise, same, stride=1, dilation=1, relu=False):
    values = dict(padding=schema.Padding.SAME if same else schema.Padding.VALID, strideH=stride, strideW=stride)
    values |= dict(dilationHFactor=dilation, dilationWFactor=dilation, fusedActivationFunction=ACTIVATIONS[relu])
    return options_of("DepthwiseConv2D", depthMultiplier=1, **values) if depthwise else options_of("Conv2D", **values)


def tensor(shape, dtype, params=None):
    """A tensor's description; `params` = (scale or one scale a row, zero point)."""
    t = schema.TensorT()
    t.name, t.shape, t.type, t.buffer = b"", list(shape), TYPES[np.dtype(dtype).name], 0
    if params is not None:
        t.quantization = schema.QuantizationParametersT()
        t.quantization.scale = np.atleast_1d(params[0]).astype(np.float32)
        t.quantization.zeroPoint = np.full(np.size(params[0]), params[1], np.int64)
        t.quantization.quantizedDimension = 0
    return t


def litert_graph(x, tensors, constants, nodes, reference=True):
    """The last of `tensors` as the reference kernels compute it, or as LiteRT does by default (by XNNPACK, where that
    has the operator), the first being x. `constants` are {number of a tensor: array}, each of `nodes` is (operator,
    options, numbers of its inputs, -1 being none, number of its output)."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    for i, constant in constants.items():
        data = schema.BufferT()
        data.data = np.frombuffer(np.ascontiguousarray(constant).tobytes(), np.uint8)
        tensors[i].buffer = len(model.buffers)
        model.buffers.append(data)
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [len(tensors) - 1], []
    for operator, options, inputs, result in nodes:
        node, code = schema.OperatorT(), schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = operator
        code.version = 2
        node.opcodeIndex, node.inputs, node.outputs = len(model.operatorCodes), inputs, [result]
        node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        node.builtinOptions = options
        model.operatorCodes.append(code)
        graph.operators.append(node)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=bytes(builder.Output()), num_threads=1, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def litert_run(x, operator, options, tensors, constants, reference=True):
    """The last of `tensors` by one operator. The first is x; `constants` are those between, or None for an input that
    is left out."""
    inputs = [0] + [-1 if constant is None else i for i, constant in enumerate(constants, 1)]
    given = {i: constant for i, constant in enumerate(constants, 1) if constant is not None}
    return litert_graph(x, tensors, given, [(operator, options, inputs, len(tensors) - 1)], reference)


def onnxruntime_graph(nodes, constants, infos, inputs=(), fused=False):
    """The outputs that `infos` describe; `inputs` are pairs of description and value. `fused`: let onnxruntime make
    one operator of several."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [info for info, _ in inputs],
            infos,
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # else int8 stays in floats on x86
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {info.name: value for info, value in inputs})


def onnxruntime_run(operator, inputs, out_dtypes, domain="", **attributes):
    """The outputs of one node; types that NumPy does not have leave the graph through a Cast."""
    outs, infos = [f"y{i}" for i in range(len(out_dtypes))], []
    nodes = [helper.make_node(operator, list(inputs), outs, domain=domain, **attributes)]
    for out, dtype in zip(outs, map(np.dtype, out_dtypes)):
        if dtype.isbuiltin != 1:
            dtype = np.dtype("float32" if "float" in dtype.name else "int8")
            nodes.append(
                helper.make_node("Cast", [out], [out := f"{out}_cast"], to=helper.np_dtype_to_tensor_dtype(dtype))
            )
        infos.append(helper.make_tensor_value_info(out, helper.np_dtype_to_tensor_dtype(dtype), None))
    return [y.astype(dtype) for y, dtype in zip(onnxruntime_graph(nodes, inputs, infos), out_dtypes)]
