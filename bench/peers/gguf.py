"""gguf-py: NumPy, whose own AVX-512 code counts as AVX2's."""

from functools import partial

from gguf.quants import GGMLQuantizationType, dequantize, quantize

import peers

contender = partial(peers.contender, "gguf", held_to=peers.BY_ENVIRONMENT)


def write(x, kind):
    return contender(partial(quantize, x, GGMLQuantizationType[kind]))


def read(data, kind):
    return contender(partial(dequantize, data, GGMLQuantizationType[kind]))
