"""Weights of 16 bits: qkernels.linear with float16 and bfloat16, qkernels.matmul of int16. Shapes are M x N x K."""

import ml_dtypes
import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, exact_product, random_floats
from dense import named
from limits import FLOAT_PEAK_OF_ISA, INT16_PEAK_OF_ISA, moving, multiplying
from race import exactly, our_own, relative

import qkernels as qk

SHAPES = [(64, 64, 64), (1024, 1024, 1024), (128, 1536, 384), (128, 384, 1536), (1, 384, 384)]
SHAPES += [(8, 4096, 4096), (1, 4096, 4096), (1, 11008, 4096)]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=named)


@every_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear16(race, isa, dtype, shape):
    """torch rounds x and y to 16 bits too; with AVX512_BF16 it multiplies bfloat16, which is faster."""
    m, n, k = shape
    x, w = random_floats(m, k, seed=1), random_floats(k, n, seed=2).astype(DTYPES[dtype])
    packed, out = qk.pack(w, None), aligned_empty((m, n), "float32")
    expected = x.astype(np.float64) @ w.astype(np.float64)
    peak = multiplying(isa, m * n * k, peers.threads, FLOAT_PEAK_OF_ISA)
    ours = our_own(lambda: qk.linear(x, packed, out=out), out, relative(expected, 1e-5))
    others = [peers.torch.half_linear(x, w, dtype), peers.blas.sgemm(x, w, expected)]
    limits = peak and [*peak, moving(x.nbytes + packed.nbytes, out.nbytes)]
    race(f"linear {dtype} {named(shape)}", ours, others, relative(expected, 0.02), m * n * k, "GMAC/s", limits)


@every_shape
@pytest.mark.parametrize("bits", [12, 16])
def test_matmul16(race, isa, bits, shape):
    """Codes of 12 bits (one plane) and of 16 (two). float64 holds these sums exactly; float32 does not."""
    m, n, k = shape
    rng = np.random.default_rng(0)
    a, b = (aligned(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), s, np.int16)) for s in ((m, k), (k, n)))
    packed, out = qk.pack(b, qk.QParams(1.0, dtype="int16")), aligned_empty((m, n), "int64")
    expected = exact_product(a, b)
    peak = multiplying(isa, m * n * k, peers.threads, INT16_PEAK_OF_ISA)
    ours = our_own(lambda: qk.matmul(a, packed, out=out), out)
    others = [peers.blas.dgemm(a, b), peers.blas.sgemm(a, b, expected)]
    limits = peak and [*peak, moving(a.nbytes + packed.nbytes, out.nbytes)]
    race(f"matmul int16, {bits} bits, {named(shape)}", ours, others, exactly(expected), m * n * k, "GMAC/s", limits)
