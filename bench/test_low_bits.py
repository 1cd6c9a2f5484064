"""Weights of 2 and 3 bits, ternary ones among them: qkernels.linear. No other library has them on CPUs with products of
integers, so our own 4-bit weights in the same blocks and our 8-bit ones are what counts. Shapes are M x N x K."""

import numpy as np
import pytest
from arrays import aligned_empty, random_codes, random_floats
from dense import COLD_BYTES, in_turn, named, race_product
from race import Contender, our_own, relative

import qkernels as qk

BLOCK = 32
SHAPES = [(1, 2048, 2048), (1, 4096, 4096), (1, 11008, 4096), (8, 4096, 4096), (64, 1024, 1024), (1024, 1024, 1024)]
KINDS = {"2-bit": 4, "3-bit codebook": 8, "2-bit codebook": 4, "4-bit codebook": 16}


def few_levels(kind, k, n):
    """Return packed weights of a kind, and the floats that they stand for."""
    if kind == "ternary":
        codes, params = random_codes("int8", k, n, seed=2) % 3 - 1, qk.QParams(0.5, dtype="int2")
        return qk.pack(codes.astype(params.dtype), params), codes * np.float32(0.5)
    codes = random_codes("uint8", k, n, seed=2) % KINDS[kind]
    scale = np.abs(random_floats(k // BLOCK, n, seed=3)).astype(np.float16).astype(np.float32) + np.float32(0.5)
    if kind == "2-bit":
        params = qk.QParams(scale, np.full(scale.shape, 2), "uint2", axis=0, block_size=BLOCK)
        return qk.pack(codes.astype(params.dtype), params), (codes - 2.0) * np.repeat(scale, BLOCK, axis=0)
    codebook = qk.Codebook(np.sort(random_floats(KINDS[kind], seed=4)), axis=0, block_size=BLOCK)
    return qk.pack(codes, codebook, scales=scale), qk.decode(codes, codebook, scale)


def four_bits(k, n):
    scale = np.abs(random_floats(k // BLOCK, n, seed=3)).astype(np.float16).astype(np.float32) + np.float32(0.5)
    params = qk.QParams(scale, np.full(scale.shape, 8), "uint4", axis=0, block_size=BLOCK)
    return qk.pack((random_codes("uint8", k, n, seed=2) % 16).astype(params.dtype), params)


def own(name, x, packed):
    out = aligned_empty((len(x), packed.shape[1]), "float32")
    return Contender(name, lambda: qk.linear(x, packed, out=out), lambda: out, lambda _: "")


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("kind", ["ternary", *KINDS])
def test_linear_low_bits(race, isa, kind, shape):
    m, n, k = shape
    x, out = random_floats(m, k, seed=1), aligned_empty((m, n), "float32")
    packed, real = few_levels(kind, k, n)
    close = relative(x.astype(np.float64) @ real, 0.03)
    eight = qk.pack(random_codes("int8", k, n), qk.QParams(1.0))
    others = [own("4-bit", x, four_bits(k, n)), own("8-bit", x, eight)]
    ours = our_own(lambda: qk.linear(x, packed, out=out), out, close)
    race_product(race, isa, f"linear {kind}, {named(shape)}", shape, ours, others, close, [x], packed.nbytes, out)


@pytest.mark.parametrize("kind", ["ternary", *KINDS])
def test_cold_low_bits(race, isa, kind):
    """Weights that come from memory: many matrices take turns."""
    m, n, k = shape = 1, 4096, 4096
    x, out = random_floats(m, k, seed=1), aligned_empty((m, n), "float32")
    packed, real = few_levels(kind, k, n)
    close, arrays = relative(x.astype(np.float64) @ real, 0.03), packed.to_arrays()
    copies = [packed, *(qk.PackedMatrix.from_arrays(arrays) for _ in range(COLD_BYTES // packed.nbytes - 1))]
    calls = [our_own(lambda p=p: qk.linear(x, p, out=out), out, close).call for p in copies]
    ours, case = our_own(in_turn(calls), out, close), f"linear {kind}, cold weights, {named(shape)}"
    race_product(race, isa, case, shape, ours, [], close, [x], packed.nbytes, out, True)
