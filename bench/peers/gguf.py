"""gguf-py: NumPy, whose own AVX-512 code counts as AVX2's."""

from functools import partial

from gguf.quants import GGMLQuantizationType, dequantize, quantize

import peers

HELD_TO = ["avx2", "avxvnni", "avx512"]


def write(x, kind):
    call = partial(quantize, x, GGMLQuantizationType[kind])
    return peers.contender("gguf", call, call, held_to=HELD_TO)


def read(data, kind):
    call = partial(dequantize, data, GGMLQuantizationType[kind])
    return peers.contender("gguf", call, call, held_to=HELD_TO)
