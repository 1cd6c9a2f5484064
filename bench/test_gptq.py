"""Rounding with feedback: qkernels.gptq and what it takes, inputs of a random walk; and the rotation of rows."""

import numpy as np
import peers
import pytest
from arrays import aligned_empty, random_floats
from race import CLOSE, WRONG, our_own, relative
from scipy.linalg import hadamard

import qkernels as qk

BLOCK = 32


def layer(k, n):
    rng = np.random.default_rng(14)
    x = rng.standard_normal((2 * k, k), np.float32) + rng.standard_normal((2 * k, 1), np.float32)
    return x, qk.Hessian(k).update(x), rng.standard_normal((k, n), np.float32)


@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("k,n", [(384, 1536), (1536, 384), (2048, 2048), (4096, 4096)])
def test_gptq(race, isa, k, n, refine):
    x, seen, w = layer(k, n)
    params = qk.choose_qparams(w, "int4", axis=0, block_size=BLOCK, narrow_range=False)
    options = dict(center=False, refine=refine)

    def call():
        return qk.dequantize(qk.gptq(w, seen, params, **options).codes, params)

    best = qk.sensitivity(w, seen, [call()])[0]

    def check(rounded):
        return CLOSE if qk.sensitivity(w, seen, [rounded])[0] < 1.2 * best else WRONG

    others = [peers.torch.gptq(w, seen.moments / seen.count, params.scale, BLOCK)]
    race(f"gptq {k}x{n}, {refine} passes more", our_own(call, check=check), others, check, k * k * n / 2, "GMAC/s")


@pytest.mark.parametrize("k", [384, 1536, 4096])
def test_hessian(race, isa, k):
    x = np.random.default_rng(14).standard_normal((8192, k), np.float32)

    def update():
        return qk.Hessian(k).update(x).moments

    exact = qk.Hessian(k).update(x).moments
    others = [peers.contender("NumPy x.T @ x", lambda: x.T @ x)]

    def check(found):
        return CLOSE if np.allclose(found, exact, rtol=1e-3, atol=1e-4 * exact.max()) else WRONG

    race(f"Hessian 8192x{k}", our_own(update, check=check), others, check, 8192 * k * k / 2, "GMAC/s")


@pytest.mark.parametrize("m,k", [(1, 4096), (128, 384), (512, 1536), (512, 4096)])
def test_rotate(race, isa, m, k):
    """Beside the product by Sylvester's matrix of 2**a, the largest that divides k, which leaves out the rest of it."""
    x, out, size = random_floats(m, k), aligned_empty((m, k), "float32"), k & -k
    matrix = hadamard(size).astype(np.float32) / np.float32(size**0.5)
    parts, made = x.reshape(-1, size), aligned_empty((m * k // size, size), "float32")
    exact = parts @ matrix.astype(float)
    ours = our_own(lambda: qk.rotate(x, 1, out=out), out)
    ours.check = lambda y: relative(x, 1e-5)(qk.rotate(y, 1, inverse=True))
    others = [
        peers.contender("NumPy x @ hadamard(n)", lambda: np.matmul(parts, matrix, out=made)),
        peers.torch.product(parts, matrix),
    ]
    race(f"rotate {m}x{k}", ours, others, relative(exact, 1e-5), m * k, "Gvalues/s", moved=8 * m * k)
