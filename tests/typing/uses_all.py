"""Each public function once, in each way that gives another type: read by mypy and pyright, and run, by
tests/test_typing.py."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import qkernels as qk

Array = NDArray[Any]
Float32 = NDArray[np.float32]

x: Float32 = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
params = qk.choose_qparams(x, "int8", axis=1)
one = qk.QParams(0.5, 3, "uint8")
least = qk.choose_qparams(
    x, np.int8, method="mse", importance=np.ones(32), symmetric=True, narrow_range=False, block_size=16, axis=1
)
assert_type(least, qk.QParams)
assert_type(qk.choose_qparams(x, method="percentile", percentile=99.9), qk.QParams)
assert_type(qk.choose_qparams(x, "uint8", axis=0, method="entropy"), qk.QParams)
assert_type(qk.choose_qparams(x, "float6_e2m3fn", axis=0, method="mx", scale_rounding="even"), qk.QParams)
assert_type(qk.choose_qparams(x, "float4_e2m1fn", axis=0, method="nvfp4", tensor_scale=0.5), qk.QParams)

whole = qk.choose_qparams(x.T, "uint4", axis=0, block_size=32, method="mse", scale_bits=4)
assert_type(whole.block_scale, NDArray[np.uint8] | None)
assert_type(qk.QParams(whole.scale, dtype="uint4", axis=0, block_size=32, block_scale=whole.block_scale), qk.QParams)

# calibration
seen = qk.observers.Percentile(axis=1, percentile=99.9).update(x)
assert_type(seen, qk.observers.Percentile)
assert_type(seen.merge(qk.observers.Percentile(axis=1, percentile=99.9)).qparams("uint8", symmetric=False), qk.QParams)
assert_type(qk.observers.Percentile.from_arrays(seen.to_arrays()), qk.observers.Percentile)
assert_type(seen.empty().count, int)
for observer in (
    qk.observers.MinMax(),
    qk.observers.MovingAverage(rate=0.1),
    qk.observers.Entropy(),
    qk.observers.MSE(),
):
    assert_type(observer.update(x).qparams(), qk.QParams)

# elementwise
q = qk.quantize(x, params, rounding="half_away")
assert_type(q, Array)
assert_type(qk.quantize(x, params, out=q), Array)
assert_type(qk.dequantize(q, params), Float32)
assert_type(qk.dequantize(q, params, dtype="float16"), NDArray[np.float16])
assert_type(qk.dequantize(q, params, dtype=np.float64), NDArray[np.float64])
assert_type(qk.dequantize(q, params, dtype=float), NDArray[np.float64])
assert_type(qk.dequantize(q, params, dtype="bfloat16"), Array)
assert_type(qk.dequantize(q, params, out=qk.fake_quantize(x, params)), Float32)
assert_type(qk.fake_quantize(x, params), Float32)
assert_type(qk.quantize(x, params, rounding="stochastic", seed=1, out=q), Array)
assert_type(qk.fake_quantize(x, params, rounding="stochastic", seed=1), Float32)
assert_type(qk.encode(x, qk.NF4, rounding="stochastic", seed=1), tuple[NDArray[np.uint8], Float32])
assert_type(qk.fake_quantize_grad(x, x, params, edge="clipped")[0], Float32)
codes, chosen = qk.dynamic_quantize(x, "uint8", axis=0)
assert_type(chosen, qk.QParams)
assert_type(qk.requantize(np.array([[1, 2]], np.int32), [0.5, 1], one, bias=[1, 2], rounding="tflite"), Array)
assert_type(qk.quantize_multiplier(0.5), tuple[int, int])
assert_type(qk.quantize_multiplier([0.5, 1]), tuple[NDArray[np.int32], NDArray[np.int32]])
dense = qk.pack_bits(np.array([1, 2, 3], np.uint8), 4)
assert_type(qk.unpack_bits(dense, 4, (3,)), NDArray[np.uint8])
assert_type(qk.unpack_bits(dense, 4, 3, dtype="int8"), NDArray[np.int8])
assert_type(qk.unpack_bits(dense, 4, 3, dtype="int4"), Array)

# products
packed = qk.pack(q.T, qk.QParams(0.5))
assert_type(packed, qk.PackedMatrix)
assert_type(packed.shape, tuple[int, int])
again = qk.PackedMatrix.from_arrays(packed.to_arrays())
assert_type(qk.QParams.from_arrays(one.to_arrays()), qk.QParams)
assert_type(qk.Codebook.from_arrays(qk.NF4.to_arrays()), qk.Codebook)
with tempfile.TemporaryDirectory() as folder:
    qk.io.save(Path(folder) / "x", {"layer": {"w": packed, "params": one}})
    assert_type(qk.io.load(f"{folder}/x"), dict[str, Any])
assert_type(
    qk.linear(
        x, again, np.ones(2, np.float32), activation="gelu", residual=np.zeros((2, 2), np.float32), clamp=(0, None)
    ),
    Float32,
)
assert_type(
    qk.qlinear(codes, one, packed, one, np.array([1, 2], np.int32), activation="relu", rounding="gemmlowp"), Array
)
sums: Array = qk.matmul(codes, packed, a_zero_point=3, b_zero_point=[1, 2])
bytes_, words = np.ones((2, 2), np.int8), np.ones((2, 2), np.int16)
assert_type(qk.matmul(bytes_, bytes_), NDArray[np.int32])
assert_type(qk.matmul(bytes_, words), NDArray[np.int64])
room: NDArray[np.int32] = np.empty((2, 2), np.int32)
assert_type(qk.matmul(bytes_, bytes_, out=room), NDArray[np.int32])

# convolution
image, filters = np.ones((1, 5, 5, 2), np.uint8), np.ones((3, 3, 1, 2), np.int8)
conv = qk.pack_conv(filters, qk.QParams(0.5), groups=2)
assert_type(conv.shape, tuple[int, int, int, int])
assert_type(qk.PackedConv.from_arrays(conv.to_arrays()), qk.PackedConv)
assert_type(qk.qconv2d(image, one, conv, None, padding="same_upper"), NDArray[np.int32])
assert_type(qk.qconv2d(image, one, conv, one, [1, 2], strides=2, padding=(1, 1, 0, 0), clamp=(0, 6)), Array)
assert_type(qk.max_pool2d(image, 2, strides=(1, 2)), Array)
assert_type(qk.qaverage_pool2d(image, one, one, (2, 2), count_include_pad=True), Array)
assert_type(qk.qglobal_average_pool(image, one, one), Array)
means: NDArray[np.uint8] = np.empty((1, 1, 1, 2), np.uint8)
assert_type(qk.qglobal_average_pool(image, one, one, out=means), NDArray[np.uint8])

# layers
assert_type(qk.layer_norm(x, x[0], x[1], eps=1e-5, residual=x), Float32)
assert_type(qk.attention(x, x, x, 4, starts=[0, 1, 2], scale=0.5, out=qk.fake_quantize(x, params)), Float32)

half = qk.QParams(0.5)
halves: NDArray[np.int8] = np.ones((2, 4), np.int8)
of_codes = qk.layer_norm(halves, x[0, :4], x[1, :4], residual=halves, params=half, residual_params=half, out_params=one)
assert_type(of_codes, Array)
assert_type(qk.attention(halves, halves, halves, 2, params=(half, half, half)), Float32)
assert_type(qk.attention(halves, halves, halves, 2, params=half, out_params=half), Array)

# layers on codes
lookup = qk.make_table("gelu", half, one)
assert_type(lookup, Array)
assert_type(qk.take_table(halves, qk.make_table(np.tanh, half, half)), Array)
assert_type(qk.take_table(halves, np.arange(256, dtype=np.uint8)), NDArray[np.uint8])
assert_type(qk.qadd(halves, half, halves[0], half, one, activation="relu"), Array)
assert_type(
    qk.qmultiply(halves, half, halves, half, half, rounding="tflite", out=np.empty_like(halves)), NDArray[np.int8]
)
assert_type(qk.qconcatenate([(halves, half), (codes[:, :4], one)], half, axis=1), Array)
assert_type(qk.qsoftmax(halves, half, one, axis=0), Array)
assert_type(qk.qlayer_norm(halves, half, x[0, :4], x[1, :4], one, eps=1e-5), Array)
assert_type(qk.qrms_norm(halves, half, x[0, :4], one), Array)
folded, added = qk.fold_batchnorm(x, None, x[0], x[0], x[0], np.abs(x[0]))
assert_type(qk.quantize_bias(added, half, params), NDArray[np.int32])
assert_type(qk.rotate(x, 3, inverse=True, out=x), Float32)
assert_type(qk.smooth(x, np.abs(x[:, 0]), 0.8)[1], Float32)

# codebooks
plain, blocks = qk.Codebook([-1, 0, 1]), qk.Codebook([-1, 0, 1], axis=1, block_size=16)
assert_type(qk.encode(x, plain), NDArray[np.uint8])
numbers, scales = qk.encode(x, blocks)
assert_type(scales, Float32)
assert_type(qk.decode(numbers, blocks, scales), Float32)
assert_type(qk.encode(x, qk.Codebook.fit(x, 4)), NDArray[np.uint8])
for table in qk.NF4, qk.FP4:
    assert_type(qk.decode(*qk.encode(x, table)[:1], table, qk.encode(x, table)[1]), Float32)
vectors = qk.Codebook.fit(np.eye(4, dtype=np.float32), 2, vector=2, rng=0)
assert_type(qk.distance_tables(np.ones((1, 4), np.float32), vectors), Float32)
packed_codes = qk.PackedCodes.from_arrays(qk.pack_codes(np.zeros((3, 2), np.uint8)).to_arrays())
assert_type(packed_codes, qk.PackedCodes)
assert_type(packed_codes.unpack(), NDArray[np.uint8])
distances, rows = qk.search(np.ones((1, 4), np.float32), packed_codes, vectors, 2)
assert_type(rows, NDArray[np.int64])
few = qk.QParams(np.ones(32), dtype="uint4", axis=1)
halves = np.zeros((32, 32), few.dtype)
assert_type(qk.layouts.from_gptq(qk.layouts.to_gptq(halves, few))[1], qk.QParams)
assert_type(qk.layouts.from_awq(qk.layouts.to_awq(halves, few)), tuple[Array, qk.QParams])
blocks = qk.Codebook(qk.NF4.levels, axis=0, block_size=32)
layer = qk.layouts.to_bitsandbytes(np.zeros((32, 2), np.uint8), blocks, np.ones((1, 2)), nested=True)
assert_type(qk.layouts.from_bitsandbytes(layer)[2], Float32)
assert_type(qk.from_gguf(qk.to_gguf(x, "Q8_0"), "Q8_0"), Float32)
assert_type(qk.from_gguf(qk.to_gguf(x, "Q4_0"), "Q4_0", codes=True), tuple[Array, qk.QParams])
assert_type(qk.from_gguf(qk.to_gguf(x, "IQ4_NL", importance=np.ones(32)), "IQ4_NL"), Float32)
assert_type(qk.pack(*qk.from_gguf(qk.to_gguf(x, "Q8_0"), "Q8_0", codes=True)), qk.PackedMatrix)

# clustering
found: qk.KMeansResult[float] = qk.kmeans(
    x, 2, init="random", rng=np.random.default_rng(0), callback=lambda i, inertia: inertia < 0
)
assert_type(found.inertia, float)
assert_type((found.n_iter, found.converged), tuple[int, bool])
assert_type(found.predict(x), NDArray[np.int32])
assert_type(found.distances(x), NDArray[np.float64])
assert_type(qk.kmeans1d(x, 3).inertia, float)
assert_type(qk.kmeans1d(x, 3, axis=1).inertia, NDArray[np.float64])

# mixed precision
allocation = qk.allocate_bits([[9, 4, 1], [5, 3, 2]], [2, 3, 4], 6)
assert_type(allocation, qk.Allocation[float])
inputs = qk.Hessian(2).update(x.T).merge(qk.Hessian.from_arrays(qk.Hessian(2).update(x.T).to_arrays()))
assert_type(inputs, qk.Hessian)
assert_type((inputs.k, inputs.count), tuple[int, int])
assert_type(inputs.sum, NDArray[np.float64])
assert_type(qk.gptq(x, inputs, one, order="natural", damp=0.1, center=False, refine=0), qk.GPTQResult[qk.QParams])
assert_type(qk.gptq(x, inputs, one, refine=1, refit=True).params, qk.QParams)
assert_type(qk.gptq(x, inputs, (qk.Codebook([-1, 1], axis=0, block_size=2), np.ones((1, 32)))).params, qk.Codebook)
assert_type(qk.prune(x, inputs, "2:4", damp=0.1, center=False, passes=3), qk.PruneResult)
assert_type(qk.prune(x, inputs, 0.5).weights, Float32)
assert_type(qk.sensitivity(x, inputs, [one, qk.FP4, inputs.moments @ x], center=True), NDArray[np.float64])
assert_type(qk.pareto([[9, 4, 1], [5, 3, 2]], np.ones((2, 3))).error, Array)

# housekeeping
with qk.num_threads(1):
    threads = qk.get_num_threads()
qk.set_num_threads(threads)
qk.show_config()
assert_type(qk.get_include(), str)
