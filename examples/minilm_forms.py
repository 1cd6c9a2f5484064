"""The forms of a dense layer's weights, for minilm_budget.py: 16, 8, 4, 3 or 2 bits, rounded with feedback (`gptq`)."""

from functools import partial
from typing import NamedTuple

import ml_dtypes
import numpy as np

import qkernels as qk

BLOCK = 64  # weights of an output that share a scale, a float16


class Dense(NamedTuple):
    """A dense layer: what `linear` takes, and the weights that this stands for."""

    packed: qk.PackedMatrix
    bias: np.ndarray
    weight: np.ndarray


def bfloat16(weight, bias, seen):
    narrow = weight.astype(ml_dtypes.bfloat16)
    return Dense(qk.pack(narrow, None), bias, narrow.astype(np.float32))


def int8(weight, bias, seen):
    """Of a layer whose inputs are `seen`: 8 bits, a scale for each output."""
    codes, params, _, change, _ = qk.gptq(weight, seen, qk.choose_qparams(weight, "int8", axis=1))
    return Dense(qk.pack(codes, params), bias + change, qk.dequantize(codes, params))


def levels(weight, bias, seen, bits, block=BLOCK):
    """The best levels of this layer, for what varies most above all, times a scale for each block."""
    squares, means = np.diagonal(seen.moments) / seen.count, seen.sum / seen.count
    importance = np.maximum(squares - means**2, 1e-9 * squares.mean())[:, None]
    book = qk.Codebook.fit(weight, 2**bits, axis=0, block_size=block, weights=importance)
    scales = np.float16(qk.encode(weight, book)[1])
    codes, book, scales, change, _ = qk.gptq(weight, seen, (book, scales), refine=3, refit=True)
    return Dense(qk.pack(codes, book, scales=scales), bias + change, qk.decode(codes, book, scales))


FORMS = {16: bfloat16, 8: int8} | {bits: partial(levels, bits=bits) for bits in (4, 3, 2)}


def bits_of(form, k):
    """Return the bits of a weight, scales included, of a layer of k inputs."""
    return form + {16: 0, 8: 64 / k}.get(form, 16 / BLOCK)  # a column of int8 has a sum, too
