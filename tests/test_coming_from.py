"""What docs/coming_from.md says of other libraries: layouts, and where parameters and codes are equal or differ."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import qkernels as qk


def run_node(op, feeds, weights, result, **attributes):
    """Return what onnxruntime makes of a node of its own domain."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    node = helper.make_node(op, [*feeds, *weights], ["y"], domain="com.microsoft", **attributes)
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, x.shape) for name, x in feeds.items()]
    made = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, result)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "graph", given, made, constants)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("k", [128, 40, 70])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_of_matmulnbits(zeros, k):
    rng, n, block, blocks = np.random.default_rng(0), 16, 32, -(-k // 32)
    b = rng.integers(0, 256, (n, blocks, block // 2), np.uint8)
    scales = rng.uniform(0.01, 0.02, (n, blocks)).astype(np.float32)
    z = rng.integers(0, 256, (n, -(-blocks // 2)), np.uint8)
    weights = {"b": b, "scales": scales.ravel()} | ({"zeros": z.ravel()} if zeros else {})
    got = run_node(
        "MatMulNBits", {"x": np.eye(k, dtype=np.float32)}, weights, (k, n), K=k, N=n, bits=4, block_size=block
    )

    codes = qk.unpack_bits(b.ravel(), 4, (n, blocks * block), dtype="uint4")[:, :k].T
    zero_point = qk.unpack_bits(z.ravel(), 4, (n, 2 * z.shape[1]))[:, :blocks].T if zeros else 8
    params = qk.QParams(scales.T, zero_point, "uint4", axis=0, block_size=block)
    assert_array_equal(qk.dequantize(codes, params), got)
    assert qk.pack(codes, params).shape == (k, n)


@pytest.mark.parametrize("depthwise", [False, True])
def test_weights_of_tflite_convolutions(depthwise):
    rng, (c, f) = np.random.default_rng(0), (4, 4 if depthwise else 6)
    x = rng.integers(-128, 128, (1, 5, 5, c), np.int8)
    w = rng.integers(-127, 128, (1, 3, 3, c) if depthwise else (f, 3, 3, c), np.int8)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(int), (3, 3), (0, 1))  # (3, 3, c, kh, kw)
    want = np.einsum("hwcij,zijc->hwc" if depthwise else "hwcij,fijc->hwf", windows, w.astype(int))

    turned = w.transpose(1, 2, 0, 3) if depthwise else w.transpose(1, 2, 3, 0)
    packed = qk.pack_conv(turned, qk.QParams(1), groups=c if depthwise else 1)
    assert_array_equal(qk.qconv2d(x, qk.QParams(1), packed, None)[0], want)


def test_parameters_and_codes_of_torch():
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torch.ao.quantization")
    x = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    for dtype, name in (torch.quint8, "uint8"), (torch.qint8, "int8"):
        seen = quantization.MinMaxObserver(dtype=dtype)
        seen(torch.from_numpy(x))
        scale, zero_point = seen.calculate_qparams()
        params = qk.choose_qparams(x, name, symmetric=False)
        assert (params.scale, params.zero_point) == (scale.numpy(), zero_point.numpy())

    params = qk.QParams(0.0071)  # whose reciprocal is rounded, by which torch multiplies
    ties = ((np.arange(-100, 100) + np.float32(0.5)) * params.scale).astype(np.float32)
    for values, least, most in (x, 0, 5e-5), (ties, 0.1, 0.4):
        near = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), float(params.scale), 0, -128, 127)
        off = np.rint(near.numpy() / params.scale) - qk.quantize(values, params)
        assert np.abs(off).max() <= 1 and least <= np.mean(off != 0) < most
