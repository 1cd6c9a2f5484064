"""Products: qkernels.matmul, qlinear and linear over packed weights. Shapes are M x N x K."""

import numpy as np
import peers
import pytest
from arrays import aligned_empty, exact_product, random_codes, random_floats
from limits import moving, multiplying
from race import Contender, exactly, relative

import qkernels as qk

CUBES = [(n, n, n) for n in (64, 128, 256, 512, 1024)]
TRANSFORMER = [(128, 384, 384), (128, 1536, 384), (128, 384, 1536), (1, 1536, 384)]
SHORT = {"uint8": "u8", "int8": "s8"}


def named(shape):
    return "x".join(map(str, shape))


def product_limits(isa, shape, a, c):
    """None where no peak is known: a stream alone would say too little."""
    m, n, k = shape
    peak = multiplying(isa, m * n * k, peers.threads)
    return peak and [*peak, moving(a.nbytes + n * k, c.nbytes)]


@pytest.mark.parametrize("shape", CUBES + TRANSFORMER, ids=named)
@pytest.mark.parametrize("a_dtype", ["uint8", "int8"])
def test_matmul(race, isa, a_dtype, shape):
    m, n, k = shape
    a, b = random_codes(a_dtype, m, k, seed=0), random_codes("int8", k, n, seed=1)
    expected = exact_product(a, b)
    packed, out = qk.pack(b, qk.QParams(1.0)), aligned_empty((m, n), "int32")
    others = [peers.ort_matmul_integer(a, b), peers.torch_int_mm(a, b), peers.sgemm(a, b, expected)]
    if a_dtype == "int8":
        others.append(peers.numkong_dots(a, b))
    race(
        f"matmul {SHORT[a_dtype]}s8 {named(shape)}", work=m * n * k, unit="GMAC/s",
        ours=Contender("qkernels", lambda: qk.matmul(a, packed, out=out), lambda: out),
        peers=others, check=exactly(expected), limits=product_limits(isa, shape, a, out),
    )  # fmt: skip


@pytest.mark.parametrize("shape", CUBES[-1:] + TRANSFORMER, ids=named)
def test_qlinear(race, isa, shape):
    """torch's quantized linear is left out: what its engines pack and saturate depends on the CPU."""
    m, n, k = shape
    q, b = random_codes("uint8", m, k, seed=0), random_codes("int8", k, n, seed=1)
    b_scale = np.random.default_rng(2).uniform(0.001, 0.01, n).astype(np.float32)
    params, out_params = qk.QParams(0.02, 120, "uint8"), qk.QParams(np.float32(0.7), 131, "uint8")
    packed, out = qk.pack(b, qk.QParams(b_scale, axis=1)), aligned_empty((m, n), "uint8")
    multiplier = np.float32(0.02) * b_scale / np.float32(0.7)
    sums = exact_product(q.astype(np.int64) - 120, b)
    expected = np.clip(np.rint(sums.astype(np.float32) * multiplier) + 131, 0, 255).astype(np.uint8)
    race(
        f"qlinear {named(shape)}", work=m * n * k, unit="GMAC/s",
        ours=Contender("qkernels", lambda: qk.qlinear(q, params, packed, out_params, out=out), lambda: out),
        peers=[peers.ort_qlinear_matmul(q, 0.02, 120, b, b_scale, 0.7, 131)],
        check=exactly(expected), limits=product_limits(isa, shape, q, out),
    )  # fmt: skip


@pytest.mark.parametrize("shape", CUBES[-1:] + TRANSFORMER, ids=named)
def test_linear(race, isa, shape):
    """Float in and out. Of the peers, onnxruntime quantizes x per tensor, the others multiply floats."""
    m, n, k = shape
    x, w = random_floats(m, k, seed=1), random_floats(k, n, seed=2)
    bias, b_scale = random_floats(n, seed=3), np.abs(w).max(axis=0) / np.float32(127)
    b = np.rint(w / b_scale).astype(np.int8)
    packed, out = qk.pack(b, qk.QParams(b_scale, axis=1)), aligned_empty((m, n), "float32")
    close = relative(x.astype(np.float64) @ (b * b_scale.astype(np.float64)) + bias, 0.03)
    ours = Contender("qkernels", lambda: qk.linear(x, packed, bias, out=out), lambda: out, close)
    others = [peers.ort_dynamic_linear(x, b, b_scale, bias), peers.torch_float_linear(x, w, bias)]
    race(
        f"linear {named(shape)}", work=m * n * k, unit="GMAC/s", ours=ours, peers=others, check=close,
        limits=product_limits(isa, shape, x, out),
    )  # fmt: skip
