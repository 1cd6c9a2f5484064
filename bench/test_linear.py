"""Products and what becomes of their sums: qkernels.qlinear and linear, 8-bit weights. Shapes are M x N x K."""

import numpy as np
import peers
import pytest
from arrays import aligned_empty, exact_product, random_codes, random_floats
from dense import LAYERS, MANY_ROWS, named, race_product
from race import Contender, exactly, our_own, relative, within

import qkernels as qk

BIG = [(1024, 1024, 1024), *MANY_ROWS, *LAYERS[:3], (1, 1536, 384)]
EPILOGUE = (128, 1536, 384)


def openvinos():
    return peers.held_and_free("openvino")


def codes_and_scales(shape):
    m, n, k = shape
    b_scale = np.random.default_rng(2).uniform(0.001, 0.01, n).astype(np.float32)
    return random_codes("uint8", m, k, seed=0), random_codes("int8", k, n, seed=1), b_scale


@pytest.mark.parametrize("shape", BIG, ids=named)
def test_qlinear(race, isa, shape):
    m, n, k = shape
    q, b, b_scale = codes_and_scales(shape)
    params, out_params = qk.QParams(0.02, 120, "uint8"), qk.QParams(np.float32(0.7), 131, "uint8")
    packed, out = qk.pack(b, qk.QParams(b_scale, axis=1)), aligned_empty((m, n), "uint8")
    multiplier = np.float32(0.02) * b_scale / np.float32(0.7)
    sums = exact_product(q.astype(np.int64) - 120, b)
    expected = np.clip(np.rint(sums.astype(np.float32) * multiplier) + 131, 0, 255).astype(np.uint8)
    ours = our_own(lambda: qk.qlinear(q, params, packed, out_params, out=out), out, exactly(expected))
    others = [peers.onnxruntime.qlinear_matmul(q, 0.02, 120, b, b_scale, 0.7, 131)]
    others += [peers.torch.qlinear(engine, q, 0.02, 120, b, b_scale, 0.7, 131) for engine in ("fbgemm", "onednn")]
    others += [library.qlinear(q, 0.02, 120, b, b_scale, 0.7, 131) for library in (peers.zentorch, *openvinos())]
    check = within(expected, step=1)
    race_product(race, isa, f"qlinear {named(shape)}", shape, ours, others, check, [q], b.nbytes, out)


@pytest.mark.parametrize("shape", BIG, ids=named)
def test_linear(race, isa, shape):
    """Float in and out. onnxruntime, torch's engines and OpenVINO's static graph quantize x per tensor, zentorch by
    rows as ours, OpenVINO's dynamic one by groups of 32; the other peers multiply floats."""
    m, n, k = shape
    x, w = random_floats(m, k, seed=1), random_floats(k, n, seed=2)
    bias, b_scale = random_floats(n, seed=3), np.abs(w).max(axis=0) / np.float32(127)
    b = np.rint(w / b_scale).astype(np.int8)
    packed, out = qk.pack(b, qk.QParams(b_scale, axis=1)), aligned_empty((m, n), "float32")
    close = relative(x.astype(np.float64) @ (b * b_scale.astype(np.float64)) + bias, 0.03)
    ours, others = our_own(lambda: qk.linear(x, packed, bias, out=out), out, close), []
    others += [peers.onnxruntime.dynamic_linear(x, b, b_scale, bias)]
    others += [peers.torch.dynamic_linear(engine, x, b, b_scale, bias, BIG) for engine in ("fbgemm", "onednn")]
    others += [peers.torch.float_linear(x, w, bias)]
    others += [peers.zentorch.dynamic_linear(x, b, b_scale, bias, prepacked) for prepacked in (False, True)]
    for openvino in openvinos():
        others += [openvino.static_linear(x, b, b_scale, bias, precision) for precision in ("f32", "bf16")]
        others += [openvino.dynamic_linear(x, b, b_scale, bias)]
    race_product(race, isa, f"linear {named(shape)}", shape, ours, others, close, [x], b.nbytes, out)


@pytest.mark.parametrize("shape", [(1, 64, 32), (1, 256, 256)], ids=named)
def test_linear_small(race, shape):
    """The cost of a call, beside float32: x @ w + bias."""
    m, n, k = shape
    x, w, bias = random_floats(m, k, seed=1), random_floats(k, n, seed=2), random_floats(n, seed=3)
    params, out = qk.choose_qparams(w, "int8", axis=1), aligned_empty((m, n), "float32")
    packed, close = qk.pack(qk.quantize(w, params), params), relative(x @ w + bias, 0.03)
    ours = our_own(lambda: qk.linear(x, packed, bias, out=out), out, close)
    others = [peers.blas.linear(x, w, bias), peers.torch.float_linear(x, w, bias)]
    race(f"linear small {named(shape)}", ours, others, close, m * n * k, "GMAC/s")


ROUNDINGS = "half_even", "half_away", "gemmlowp", "tflite"
QLINEAR = {f"int8, {rounding}": (None, rounding) for rounding in ROUNDINGS}
QLINEAR |= {f"int8 with relu, {rounding}": ("relu", rounding) for rounding in ROUNDINGS}
LINEAR = {"float32": None, "float32 with relu": "relu", "float32 with gelu": "gelu", "float32 with silu": "silu"}


@pytest.mark.parametrize("epilogue", [*QLINEAR, *LINEAR])
def test_epilogue(race, isa, epilogue):
    """What becomes of the sums costs so much beside leaving them as they are; float32 includes quantizing x."""
    m, n, k = EPILOGUE
    q, b, b_scale = codes_and_scales(EPILOGUE)
    packed, sums = qk.pack(b, qk.QParams(b_scale, axis=1)), aligned_empty((m, n), "int32")
    plain = Contender("int32", lambda: qk.matmul(q, packed, out=sums), lambda: sums, exactly(exact_product(q, b)))
    scaled = 0.02 * b_scale.astype(np.float64)
    if epilogue in QLINEAR:
        activation, rounding = QLINEAR[epilogue]
        params, out_params = qk.QParams(0.02, 120, "uint8"), qk.QParams(0.7, 3, "int8")
        bias, out = np.arange(n, dtype=np.int32), aligned_empty((m, n), "int8")
        options = dict(activation=activation, rounding=rounding, out=out)
        real = (exact_product(q.astype(np.int64) - 120, b) + bias) * scaled
        lowest = 3 if activation else -128
        check = within(np.clip(np.rint(real / 0.7) + 3, lowest, 127), step=1, most=0.02)
        ours, inputs = our_own(lambda: qk.qlinear(q, params, packed, out_params, bias, **options), out, check), [q]
    else:
        x, bias, out = random_floats(m, k), random_floats(n, seed=3), aligned_empty((m, n), "float32")
        options = dict(activation=LINEAR[epilogue], out=out)
        real = x.astype(np.float64) @ (b * b_scale.astype(np.float64)) + bias
        check = relative(np.maximum(real, 0), 0.03) if LINEAR[epilogue] else relative(real, 0.03)
        ours, inputs = our_own(lambda: qk.linear(x, packed, bias, **options), out, check), [x]
    race_product(race, isa, f"epilogue {epilogue}", EPILOGUE, ours, [plain], check, inputs, b.nbytes, out)
