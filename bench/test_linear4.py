"""Float in and out with 4-bit weights in blocks, numbers or codes of a codebook, and with 8-bit weights in blocks:
qkernels.linear. Shapes are M x N x K."""

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, random_codes, random_floats
from dense import named, race_product
from limits import moving
from race import Contender, our_own, relative

import qkernels as qk

SHAPES = [(1024, 1024, 1024), (8, 4096, 4096), (1, 4096, 4096), (1, 11008, 4096), (128, 384, 1536)]


def quantized_weights(k, n, block_size):
    """(codes 0..15 with zero points 8, scales (blocks, n)) of random normal weights."""
    blocks = random_floats(k, n, seed=2).reshape(k // block_size, block_size, n)
    scale = np.abs(blocks).max(axis=1) / np.float32(7)
    return (np.rint(blocks / scale[:, None]) + 8).astype(np.uint8).reshape(k, n), aligned(scale)


def near_product(x, codes, scale, block_size):
    real = (codes.reshape(-1, block_size, codes.shape[1]) - 8.0) * scale[:, None]
    return relative(x.astype(np.float64) @ real.reshape(codes.shape), 0.03)


def smaller_blocks(x, k, n, block_size=32):
    codes, scale = quantized_weights(k, n, block_size)
    found = peers.onnxruntime.matmul_nbits(x, codes, scale, block_size)
    found.name, found.check = f"onnxruntime, block {block_size}", near_product(x, codes, scale, block_size)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("block_size", [32, 128])
def test_linear4(race, isa, block_size, shape):
    """onnxruntime quantizes x to int8 per block, we per row. It cannot be held to AVX2, so there our own 8-bit weights,
    one scale a column, are what counts."""
    m, n, k = shape
    x, (codes, scale) = random_floats(m, k, seed=1), quantized_weights(k, n, block_size)
    params = qk.QParams(scale, np.full_like(scale, 8, np.int32), "uint4", axis=0, block_size=block_size)
    packed, out = qk.pack(codes.astype(params.dtype), params), aligned_empty((m, n), "float32")
    close = near_product(x, codes, scale, block_size)
    others = [peers.onnxruntime.matmul_nbits(x, codes, scale, block_size)]
    if block_size > 32:  # the blocks that its own tools make by default
        others.append(smaller_blocks(x, k, n))
    if isa == "avx2":
        eight, out_8 = qk.pack(random_codes("int8", k, n), qk.QParams(1.0)), aligned_empty((m, n), "float32")
        others.append(Contender("8-bit", lambda: qk.linear(x, eight, out=out_8), lambda: out_8, lambda _: ""))
    ours, case = our_own(lambda: qk.linear(x, packed, out=out), out, close), f"linear 4-bit, block {block_size}"
    race_product(race, isa, f"{case}, {named(shape)}", shape, ours, others, close, [x], packed.nbytes, out)


FOLDED = [*SHAPES, (128, 1536, 384), (64, 1024, 1024), (1, 2048, 2048)]


@pytest.mark.parametrize("shape", FOLDED, ids=named)
def test_linear_integer_scales(race, isa, shape):
    """Against our own 8-bit weights, whose products these are, 4-bit ones with float scales, and onnxruntime's."""
    m, n, k = shape
    x, (codes, scale) = random_floats(m, k, seed=1), quantized_weights(k, n, 32)
    column = scale.max(axis=0) / np.float32(15)
    block_scale = np.clip(np.rint(scale / column), 1, 16).astype(np.uint8)
    folded = qk.QParams(column, dtype="uint4", axis=0, block_size=32, block_scale=block_scale)
    blocks = qk.QParams(scale, np.full_like(scale, 8, np.int32), "uint4", axis=0, block_size=32)
    packed, of_floats = (qk.pack(codes.astype(p.dtype), p) for p in (folded, blocks))
    out, out_8, out_4 = (aligned_empty((m, n), "float32") for _ in range(3))
    eight = qk.pack(random_codes("int8", k, n), qk.QParams(np.ones(n), axis=1))
    exact = qk.dequantize(codes.astype(folded.dtype), folded)
    close = relative(x.astype(np.float64) @ exact, 0.03)
    others = [
        Contender("8-bit", lambda: qk.linear(x, eight, out=out_8), lambda: out_8, lambda _: ""),
        Contender("float scales", lambda: qk.linear(x, of_floats, out=out_4), lambda: out_4, lambda _: ""),
        smaller_blocks(x, k, n),
    ]
    ours, case = our_own(lambda: qk.linear(x, packed, out=out), out, close), "linear 4-bit, integer scales"
    race_product(race, isa, f"{case}, {named(shape)}", shape, ours, others, close, [x], packed.nbytes, out)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("block_size", [32, 64, None], ids=["32", "64", "column"])
def test_linear_codebook(race, block_size, shape):
    """Against our own uniform 4-bit weights of the same blocks: no other library has codebooks on CPUs."""
    m, n, k = shape
    x = random_floats(m, k, seed=1)
    codes, scale = quantized_weights(k, n, block_size or k)
    levels = np.sort(random_floats(1 if block_size else n, 16, seed=3), axis=1)
    if block_size:
        codebook, scales = qk.Codebook(levels[0], axis=0, block_size=block_size), scale
        of_uniform = qk.QParams(scale, dtype="uint4", axis=0, block_size=block_size)
    else:
        codebook, scales, of_uniform = qk.Codebook(levels, axis=1), None, qk.QParams(scale[0], dtype="uint4", axis=1)
    packed, uniform = qk.pack(codes, codebook, scales=scales), qk.pack(codes.astype(of_uniform.dtype), of_uniform)
    out, out_uniform = aligned_empty((m, n), "float32"), aligned_empty((m, n), "float32")
    close = relative(x.astype(np.float64) @ qk.decode(codes, codebook, scales), 0.03)
    ours = our_own(lambda: qk.linear(x, packed, out=out), out, close)
    others = [Contender("uniform", lambda: qk.linear(x, uniform, out=out_uniform), lambda: out_uniform, lambda _: "")]
    case = f"linear codebook, {f'block {block_size}' if block_size else 'each column'}, {named(shape)}"
    race(case, ours, others, close, m * n * k, "GMAC/s", [moving(x.nbytes + packed.nbytes, out.nbytes)])


EIGHT = [(1024, 1024, 1024), (128, 1536, 384), (128, 384, 1536), (8, 4096, 4096), (16, 1024, 1024), (1, 4096, 4096)]


@pytest.mark.parametrize("shape", EIGHT, ids=named)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_linear8_blocks(race, isa, block_size, shape):
    """Against our own 8-bit weights with one scale a column."""
    m, n, k = shape
    x, w = random_floats(m, k, seed=1), random_floats(k, n, seed=2)
    packed = []
    for params in qk.choose_qparams(w, axis=0, block_size=block_size), qk.choose_qparams(w, axis=1):
        packed.append(qk.pack(qk.quantize(w, params), params))
    out, out_8 = aligned_empty((m, n), "float32"), aligned_empty((m, n), "float32")
    close = relative(x.astype(np.float64) @ w, 0.03)
    column = Contender("one scale a column", lambda: qk.linear(x, packed[1], out=out_8), lambda: out_8, close)
    ours, case = our_own(lambda: qk.linear(x, packed[0], out=out), out, close), f"linear 8-bit, block {block_size}"
    race_product(race, isa, f"{case}, {named(shape)}", shape, ours, [column], close, [x], packed[0].nbytes, out)
