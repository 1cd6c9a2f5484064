"""The other libraries. Each function binds its inputs once and returns a Contender; race.py checks and times it."""

import faiss
import numkong
import numpy as np
import onnxruntime
import torch
from onnx import helper, numpy_helper
from race import Contender, relative
from sklearn.cluster import KMeans

OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]

# set by settle
threads = 1
not_held = set()


def settle(isa, best_isa, number_of_threads):
    """Threads and instruction set, once and before any peer is used. conftest.py has set the environment already."""
    global threads
    threads = number_of_threads
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    if isa == best_isa:
        return
    if isa == "avx2":
        hold_numkong_to_avx2()
        not_held.add("onnxruntime")  # it chooses by CPUID and has no switch
    else:
        not_held.update(["onnxruntime", "torch", "torch float32", "numkong", "sgemm", "faiss", "scikit-learn"])


def contender(name, call, read, check=None):
    return Contender(name, call, read, check, held=name not in not_held)


# ---- onnxruntime ----


def ort_graph(name, nodes, inputs, constants, outputs):
    """Contender for a graph: inputs and outputs bound once, constants as initializers (so that it packs them once).

    inputs and constants: name -> array; outputs: name -> (shape, dtype).
    """
    type_of = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info(key, type_of(x.dtype), x.shape) for key, x in inputs.items()],
        [helper.make_tensor_value_info(key, type_of(np.dtype(dtype)), shape) for key, (shape, dtype) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for key, x in inputs.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    values = [onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype)) for shape, dtype in outputs.values()]
    for key, value in zip(outputs, values):
        binding.bind_ortvalue_output(key, value)
    run = session.run_with_iobinding
    return contender("onnxruntime", lambda: run(binding), values[0].numpy)


def ort_node(operator, inputs, constants, output, more_outputs=None, **attributes):
    """Contender for one node; its operands are the inputs, then the constants, in order."""
    outputs = {"y": output, **(more_outputs or {})}
    node = helper.make_node(operator, [*inputs, *constants], list(outputs), **attributes)
    return ort_graph(operator, [node], inputs, constants, outputs)


def ort_matmul_integer(a, b):
    return ort_node("MatMulInteger", {"a": a}, {"b": b}, ((len(a), b.shape[1]), "int32"))


def ort_qlinear_matmul(a, a_scale, a_zero, b, b_scale, y_scale, y_zero):
    constants = {"a_scale": np.float32(a_scale), "a_zero": a.dtype.type(a_zero), "b": b, "b_scale": np.float32(b_scale),
                 "b_zero": np.zeros_like(b_scale, b.dtype), "y_scale": np.float32(y_scale), "y_zero": a.dtype.type(y_zero)}  # fmt: skip
    return ort_node("QLinearMatMul", {"a": a}, constants, ((len(a), b.shape[1]), a.dtype))


def ort_dynamic_linear(x, b, b_scale, bias):
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
    return ort_graph("dynamic_linear", nodes, {"x": x}, constants, {"y": ((len(x), b.shape[1]), "float32")})


def ort_matmul_nbits(x, b, scale, block_size):
    """4-bit weights b (K, N), 0..15 with zero points 8, in blocks of K; accuracy_level 4: x is quantized to int8 by blocks."""
    k, n = b.shape
    blocks = b.T.reshape(n, k // block_size, block_size)
    constants = {"b": np.ascontiguousarray(blocks[..., ::2] | blocks[..., 1::2] << 4), "scale": np.ascontiguousarray(scale.T).ravel()}
    return ort_node("MatMulNBits", {"x": x}, constants, ((len(x), n), "float32"), domain="com.microsoft", K=k, N=n, bits=4,
                    block_size=block_size, accuracy_level=4)  # fmt: skip


def ort_quantize(x, scale, zero_point, **attributes):
    constants = {"scale": np.float32(scale), "zero_point": zero_point}
    return ort_node("QuantizeLinear", {"x": x}, constants, (x.shape, zero_point.dtype), **attributes)


def ort_dequantize(q, scale, zero_point, **attributes):
    constants = {"scale": np.float32(scale), "zero_point": zero_point}
    return ort_node("DequantizeLinear", {"q": q}, constants, (q.shape, "float32"), **attributes)


def ort_fake_quantize(x, scale, zero_point, **attributes):
    """QuantizeLinear and DequantizeLinear: ONNX has no fused operator."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **attributes),
    ]
    constants = {"scale": np.float32(scale), "zero_point": zero_point}
    return ort_graph("fake_quantize", nodes, {"x": x}, constants, {"y": (x.shape, "float32")})


def ort_dynamic_quantize(x):
    return ort_node("DynamicQuantizeLinear", {"x": x}, {}, (x.shape, "uint8"), {"scale": ((), "float32"), "zero": ((), "uint8")})


# ---- torch ----

TORCH_CODES = {"uint8": torch.quint8, "int8": torch.qint8}


def torch_contender(call, to_numpy=torch.Tensor.numpy, name="torch"):
    """Results are new tensors, and the last must be gone before the next: it may then take its place in the cache."""
    return contender(name, call, lambda: to_numpy(call()))


def read_codes(tensor):
    return tensor.int_repr().numpy()


def torch_int_mm(a, b):
    """b column-major, as the weights of a Linear are."""
    left, right = torch.from_numpy(a), torch.from_numpy(np.ascontiguousarray(b.T)).t()
    out = torch.empty((len(a), b.shape[1]), dtype=torch.int32)
    return torch_contender(lambda: torch._int_mm(left, right, out=out))


def torch_float_linear(x, w, bias):
    tensors = [torch.from_numpy(t) for t in (x, np.ascontiguousarray(w.T), bias)]
    return torch_contender(lambda: torch.nn.functional.linear(*tensors), name="torch float32")


def torch_quantize(x, scale, zero_point, axis=None):
    tensor, dtype = torch.from_numpy(x), TORCH_CODES[zero_point.dtype.name]
    if axis is None:
        scale, zero_point = float(scale), int(zero_point)
        return torch_contender(lambda: torch.quantize_per_tensor(tensor, scale, zero_point, dtype), read_codes)
    scales, zeros = torch.from_numpy(scale.astype(np.float64)), torch.from_numpy(zero_point.astype(np.int64))
    return torch_contender(lambda: torch.quantize_per_channel(tensor, scales, zeros, axis, dtype), read_codes)


def torch_dequantize(q, scale, zero_point, axis=None):
    if axis is None:
        codes = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), float(scale), int(zero_point))
    else:
        scales, zeros = torch.from_numpy(scale.astype(np.float64)), torch.from_numpy(zero_point.astype(np.int64))
        codes = torch._make_per_channel_quantized_tensor(torch.from_numpy(q), scales, zeros, axis)
    return torch_contender(codes.dequantize)


def torch_fake_quantize(x, scale, zero_point, axis=None):
    tensor, info = torch.from_numpy(x), np.iinfo(zero_point.dtype)
    if axis is None:
        scale, zero_point = float(scale), int(zero_point)
        return torch_contender(lambda: torch.fake_quantize_per_tensor_affine(tensor, scale, zero_point, info.min, info.max))
    scales, zeros = torch.from_numpy(scale), torch.from_numpy(zero_point.astype(np.int32))
    return torch_contender(lambda: torch.fake_quantize_per_channel_affine(tensor, scales, zeros, axis, info.min, info.max))


# ---- numkong ----


def numkong_dots(a, b):
    """Both operands int8: it has no product of uint8 by int8."""
    packed = numkong.dots_pack(np.ascontiguousarray(b.T))
    out = numkong.dots_packed(a, packed)
    return contender("numkong", lambda: numkong.dots_packed(a, packed, out=out), lambda: np.asarray(out))


def hold_numkong_to_avx2():
    for name in [name for name, on in numkong.get_capabilities().items() if on]:
        if name not in ("serial", "haswell"):
            numkong.disable_capability(name)


# ---- OpenBLAS ----


def sgemm(a, b, expected):
    """The same values as float32, which is not exact: what float costs."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    out = np.empty((len(a), b.shape[1]), np.float32)
    return contender("sgemm", lambda: np.matmul(left, right, out=out), lambda: out, relative(expected, 1e-5))


# ---- clustering, from `start` ----


def faiss_kmeans(x, start, iterations):
    def cluster():
        trained = faiss.Kmeans(x.shape[1], len(start), niter=iterations, min_points_per_centroid=1, max_points_per_centroid=len(x))
        trained.train(x, init_centroids=start)
        return trained.centroids

    return contender("faiss", cluster, cluster)


def sklearn_kmeans(x, start, iterations):
    def cluster():
        return KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x).cluster_centers_

    return contender("scikit-learn", cluster, cluster)
