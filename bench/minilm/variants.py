"""The ways to quantize a dense layer. `quantize` makes a PackedMatrix of float32 weights (inputs, outputs)."""

from collections import namedtuple
from functools import partial

import numpy as np

import qkernels as qk

from . import example
from .model import squares

# Calibrated by "squares", quantize takes `importance` (inputs, 1), the mean square of each input on docstrings; by
# "hessian", it takes the bias and the Hessian of what the rounded layers before give, and returns the bias, too.
Variant = namedtuple("Variant", "name quantize calibrated", defaults=[None])


def blocks(weight, dtype="uint4", **options):
    """Pack 4-bit codes with a scale, a float16, and a zero point for each 32 weights of an output."""
    found = qk.choose_qparams(weight, dtype, axis=0, block_size=32, **options)
    params = qk.QParams(np.float16(found.scale), found.zero_point, dtype, axis=0, block_size=32)
    return qk.pack(qk.quantize(weight, params), params)


def kmeans(weight, levels=16, importance=None):
    """Pack codes of the best levels for the weights of each output."""
    codebook = qk.Codebook.fit(weight, levels, axis=1, weights=importance)
    return qk.pack(qk.encode(weight, codebook), codebook)


def kmeans_blocks(weight, importance):
    """Pack codes of 16 levels for all weights of a layer, each times the scale of its block."""
    levels, codes, scales = fit_scaled_levels(weight, 16, 32, importance)
    return qk.pack(codes, qk.Codebook(levels, axis=0, block_size=32), scales=scales)


def compensated(weight, bias, hessian, levels=16, block_size=32):
    """Pack such codes, each weight making good what the ones before it lost, the bias what their mean is."""
    fitted, _, scales = fit_scaled_levels(weight, levels, block_size, variances(hessian)[:, None])
    codebook = qk.Codebook(fitted, axis=0, block_size=block_size)
    codes, codebook, scales, change, _ = qk.gptq(weight, hessian, (codebook, np.float16(scales)), refine=3, refit=True)
    return qk.pack(codes, codebook, scales=scales), bias + change


def pruned(weight, bias, hessian, pattern, bits):
    """Take weights out, then round the others, each making good what the ones before it lost."""
    weight, change, _ = qk.prune(weight, hessian, pattern)
    wide = qk.choose_qparams(weight, "int8", axis=1)
    found = qk.gptq(weight, hessian, wide if bits == 8 else fit_grid(weight, hessian, bits), refine=3, refit=bits < 8)
    return qk.pack(found.codes, found.params, scales=found.scales), bias + change + found.bias


def fit_grid(weight, hessian, bits, block_size=64):
    """Return levels of a layer and the scales of blocks. If weights were taken out 0 is one, for them alone."""
    out = weight == 0
    weights = variances(hessian)[:, None] * ~out
    book = qk.Codebook.fit(weight, 2**bits, axis=0, block_size=block_size, weights=weights, zero=bool(out.any()))
    return book, np.float16(qk.encode(weight, book)[1])


def variances(hessian):
    found = squares(hessian)
    return np.maximum(found - np.square(hessian.sum / hessian.count), 1e-9 * found.mean())


def fit_scaled_levels(weight, k, block_size, importance, rounds=3):
    """Return k levels for all of a weight (inputs, outputs), codes, and float16 scales of the blocks of each output:
    of least squared error, weighed by the importance of inputs. In turn the best levels for given scales, the largest
    magnitudes at first, and the best scales for given codes."""
    blocks = weight.reshape(-1, block_size, weight.shape[1])
    importance = np.float32(importance).reshape(-1, block_size, 1)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    for _ in range(rounds):
        codebook = qk.Codebook.fit(blocks / scales, k, weights=importance * scales**2)
        codes = qk.encode(blocks / scales, codebook)
        decoded = qk.decode(codes, codebook)
        products, squares = (np.sum(importance * decoded * other, axis=1, keepdims=True) for other in (blocks, decoded))
        scales = np.float32(np.float16(products / squares))
    return codebook.levels, codes.reshape(weight.shape), scales[:, 0]


# "Weighted": of least squared error of the outputs, as far as inputs are uncorrelated.
VARIANTS = {
    "int8": Variant("int8", example.int8),
    "int4": Variant("int4, blocks of 32", partial(blocks, dtype="int4")),  # symmetric: the codes -7 to 7
    "uint4": Variant("uint4, blocks of 32", blocks),
    "uint4-mse": Variant("uint4, least squares", partial(blocks, method="mse")),
    "uint4-weighted": Variant("uint4, weighted squares", partial(blocks, method="mse"), "squares"),
    "nf4": Variant("NF4, blocks of 64", example.nf4),
    "kmeans": Variant("k-means, columns", kmeans),
    "kmeans-8": Variant(
        "k-means of 8, columns", partial(kmeans, levels=8)
    ),  # 3 bits of information, though packed in 4
    "kmeans-weighted": Variant("k-means, columns, weighted", kmeans, "squares"),
    "kmeans-blocks": Variant("k-means, blocks, weighted", kmeans_blocks, "squares"),
    "gptq": Variant("k-means, blocks, compensated", compensated, "hessian"),
    "gptq-64": Variant("k-means, blocks of 64, compensated", partial(compensated, block_size=64), "hessian"),
    "gptq-8": Variant("k-means of 8, blocks, compensated", partial(compensated, levels=8), "hessian"),
    "gptq-8-64": Variant(
        "k-means of 8, blocks of 64, compensated", partial(compensated, levels=8, block_size=64), "hessian"
    ),
    "gptq-4": Variant("k-means of 4, blocks, compensated", partial(compensated, levels=4), "hessian"),
    # 8 and 4 bits of what is left, 2 more for where it is: 5 and 3 bits of a weight, and scales; or 3 bits of half
    "prune-8": Variant("2:4 pruned, int8", partial(pruned, pattern="2:4", bits=8), "hessian"),
    "prune-4": Variant("2:4 pruned, k-means, blocks of 64", partial(pruned, pattern="2:4", bits=4), "hessian"),
    "prune-half": Variant("half pruned, k-means, blocks of 64", partial(pruned, pattern=0.5, bits=4), "hessian"),
}
SHOWN = "int8", "nf4", "uint4-weighted", "kmeans-blocks", "gptq-64"  # unless others are asked for
