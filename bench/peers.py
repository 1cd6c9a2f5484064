"""The other libraries. Each function binds its inputs once and returns a Contender; race.py checks and times it."""

import subprocess
import sys
from functools import cache

import bitsandbytes.functional
import faiss
import gguf
import numkong
import numpy as np
import onnxruntime
import torch
from onnx import helper, numpy_helper
from race import CRASHED, Contender, relative
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
        not_held.update(["onnxruntime", "torch fbgemm", "bitsandbytes"])  # they choose by CPUID and have no switch
    else:
        not_held.update(
            [
                "onnxruntime",
                "torch",
                "torch float32",
                "torch fbgemm",
                "torch onednn",
                "numkong",
                "sgemm",
                "NumPy float32",
                "bitsandbytes",
                "gguf",
                "searchsorted",
                "faiss",
                "scikit-learn",
                "dgemm",
            ]
        )


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
    values = [
        onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype)) for shape, dtype in outputs.values()
    ]
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


def ort_matmul_integer_of_inputs(a, b):
    """Neither operand is known beforehand."""
    return ort_node("MatMulInteger", {"a": a, "b": b}, {}, ((*a.shape[:-1], b.shape[-1]), "int32"))


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
    constants = {
        "b": np.ascontiguousarray(blocks[..., ::2] | blocks[..., 1::2] << 4),
        "scale": np.ascontiguousarray(scale.T).ravel(),
    }
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
    return ort_node(
        "DynamicQuantizeLinear", {"x": x}, {}, (x.shape, "uint8"), {"scale": ((), "float32"), "zero": ((), "uint8")}
    )


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


def torch_packed(engine, b, b_scale, bias=None):
    """Weights as torch.ao.nn.quantized.Linear keeps them for an engine, one scale a column."""
    torch.backends.quantized.engine = engine
    scales, zeros = torch.from_numpy(b_scale.astype(np.float64)), torch.zeros(len(b_scale), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(torch.from_numpy(np.ascontiguousarray(b.T)), scales, zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, None if bias is None else torch.from_numpy(bias))


def torch_qlinear(engine, q, scale, zero_point, b, b_scale, y_scale, y_zero):
    codes, packed = (
        torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), scale, zero_point),
        torch_packed(engine, b, b_scale),
    )
    return torch_contender(
        lambda: torch.ops.quantized.linear(codes, packed, y_scale, y_zero), read_codes, f"torch {engine}"
    )


def torch_dynamic_linear(engine, x, b, b_scale, bias, shapes):
    """`shapes` are all that will be asked for: a process of its own tries them first, since onednn has been seen to crash."""
    if (len(x), b.shape[1], len(b)) not in survivors(engine, tuple(shapes)):
        return Contender(f"torch {engine}", None, note=CRASHED)
    tensor, packed = torch.from_numpy(x), torch_packed(engine, b, b_scale, bias)
    return torch_contender(lambda: torch.ops.quantized.linear_dynamic(tensor, packed), name=f"torch {engine}")


@cache
def survivors(engine, shapes):
    """The shapes at which torch.ops.quantized.linear_dynamic returns."""
    script = """
import sys
import torch
torch.backends.quantized.engine = sys.argv[1]
for m, n, k in eval(sys.argv[2]):
    weight = torch._make_per_channel_quantized_tensor(
        torch.ones(n, k, dtype=torch.int8), torch.ones(n, dtype=torch.double), torch.zeros(n, dtype=torch.long), 0)
    torch.ops.quantized.linear_dynamic(torch.ones(m, k), torch.ops.quantized.linear_prepack(weight, torch.zeros(n)))
    print(m, n, k, flush=True)
"""
    found = set()
    left = list(shapes)
    while left:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, engine, repr(left)], capture_output=True, text=True
        )
        found |= {tuple(map(int, line.split())) for line in run.stdout.splitlines()}
        if run.returncode == 0:
            break
        left = left[1 + len(run.stdout.splitlines()) :]
    return found


def torch_half_linear(x, w, dtype):
    """x and y have 16 bits too."""
    tensors = [torch.from_numpy(t).to(getattr(torch, dtype)) for t in (x, np.ascontiguousarray(w.T.astype(np.float32)))]
    return torch_contender(lambda: torch.nn.functional.linear(*tensors), lambda y: y.float().numpy())


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
        return torch_contender(
            lambda: torch.fake_quantize_per_tensor_affine(tensor, scale, zero_point, info.min, info.max)
        )
    scales, zeros = torch.from_numpy(scale), torch.from_numpy(zero_point.astype(np.int32))
    return torch_contender(
        lambda: torch.fake_quantize_per_channel_affine(tensor, scales, zeros, axis, info.min, info.max)
    )


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


# ---- bitsandbytes: 4-bit codes stand two a byte, the first in the high half; 8-bit ones alone ----


def dynamic_map():
    return bitsandbytes.functional.create_dynamic_map().numpy()


def bitsandbytes_encode(x, book):
    tensor, f = torch.from_numpy(x), bitsandbytes.functional
    if book.k == 16:
        return contender(
            "bitsandbytes",
            lambda: f.quantize_4bit(tensor, blocksize=book.block_size, quant_type="nf4"),
            lambda: halves(f.quantize_4bit(tensor, blocksize=book.block_size, quant_type="nf4")[0].numpy()),
        )
    levels = torch.from_numpy(book.levels.copy())
    return contender(
        "bitsandbytes",
        lambda: f.quantize_blockwise(tensor, code=levels, blocksize=book.block_size),
        lambda: f.quantize_blockwise(tensor, code=levels, blocksize=book.block_size)[0].numpy(),
    )


def halves(data):
    return np.stack([data >> 4, data & 15], axis=-1).reshape(-1)


def bitsandbytes_decode(codes, scales, book):
    """Results are new arrays: its CPU code takes no other."""
    f, levels = bitsandbytes.functional, torch.from_numpy(book.levels.copy())
    state = f.QuantState(
        absmax=torch.from_numpy(scales),
        shape=torch.Size([1, codes.size]),
        code=levels,
        blocksize=book.block_size,
        dtype=torch.float32,
        quant_type="nf4",
    )
    if book.k == 16:
        packed = torch.from_numpy((codes[::2] << 4 | codes[1::2])[:, None])
        return contender(
            "bitsandbytes",
            lambda: f.dequantize_4bit(packed, state),
            lambda: f.dequantize_4bit(packed, state).numpy().reshape(-1),
        )
    tensor = torch.from_numpy(codes)
    return contender(
        "bitsandbytes",
        lambda: f.dequantize_blockwise(tensor, state),
        lambda: f.dequantize_blockwise(tensor, state).numpy(),
    )


# ---- gguf-py: NumPy ----


def gguf_write(x, kind):
    return contender(
        "gguf",
        lambda: gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind]),
        lambda: gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind]),
    )


def gguf_read(data, kind):
    return contender(
        "gguf",
        lambda: gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]),
        lambda: gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]),
    )


# ---- OpenBLAS ----


def sgemm(a, b, expected):
    """The same values as float32, which is not exact: what float costs."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.float32)
    return contender("sgemm", lambda: np.matmul(left, right, out=out), lambda: out, relative(expected, 1e-5))


# ---- clustering on a line ----


def kmeans1d_cluster(x, k):
    import kmeans1d

    return contender("kmeans1d", lambda: kmeans1d.cluster(x, k), lambda: np.array(kmeans1d.cluster(x, k).centroids))


def ckwrap_ckmeans(x, k, weights=None):
    import ckwrap

    return contender("ckwrap", lambda: ckwrap.ckmeans(x, k, weights), lambda: ckwrap.ckmeans(x, k, weights).centers)


def flash_kmeans(x, k, weights=None):
    import flash1dkmeans

    run = flash1dkmeans.kmeans_1d
    return contender(
        "flash1dkmeans",
        lambda: run(x, k, sample_weights=weights),
        lambda: run(x, k, sample_weights=weights, random_state=0)[0],
    )


# ---- clustering, from `start` ----


def faiss_kmeans(x, start, iterations):
    def cluster():
        trained = faiss.Kmeans(
            x.shape[1], len(start), niter=iterations, min_points_per_centroid=1, max_points_per_centroid=len(x)
        )
        trained.train(x, init_centroids=start)
        return trained.centroids

    return contender("faiss", cluster, cluster)


def sklearn_kmeans(x, start, iterations):
    def cluster():
        return (
            KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
            .fit(x)
            .cluster_centers_
        )

    return contender("scikit-learn", cluster, cluster)


# ---- product quantization ----


def faiss_index(book):
    """With the levels of the book."""
    m, k, d = book.levels.shape
    index = faiss.IndexPQ(m * d, m, k.bit_length() - 1)
    faiss.copy_array_to_vector(book.levels.reshape(-1), index.pq.centroids)
    index.pq.sync_transposed_centroids()
    index.is_trained = True
    return index


def dense(codes, book):
    """As faiss keeps them: codes of 4 bits two to a byte."""
    return codes if book.k == 256 else codes[:, ::2] | codes[:, 1::2] << 4


def faiss_search(queries, codes, book, k):
    index = faiss_index(book)
    faiss.copy_array_to_vector(dense(codes, book).reshape(-1), index.codes)
    index.ntotal = len(codes)
    return contender("faiss", lambda: index.search(queries, k), lambda: index.search(queries, k)[1])


def faiss_encode(x, book):
    index = faiss_index(book)

    def read():
        found = index.pq.compute_codes(x)
        return found if book.k == 256 else np.stack([found & 15, found >> 4], axis=-1).reshape(len(x), -1)

    return contender("faiss", lambda: index.pq.compute_codes(x), read)


def faiss_decode(codes, book):
    index, stored = faiss_index(book), dense(codes, book)
    return contender("faiss", lambda: index.pq.decode(stored), lambda: index.pq.decode(stored))


def dgemm(a, b):
    """The same codes as float64, which holds their sums."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    out = np.empty((len(a), b.shape[1]))
    return contender("dgemm", lambda: np.matmul(left, right, out=out), lambda: out)
