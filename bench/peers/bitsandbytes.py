"""bitsandbytes on the CPU, which has no switch. 4-bit codes stand two a byte, the first in the high half."""

import numpy as np
import torch
from bitsandbytes import functional

import peers


def encode(x, book):
    tensor = torch.from_numpy(x)
    if book.k == 16:

        def call():
            return functional.quantize_4bit(tensor, blocksize=book.block_size, quant_type="nf4")[0]

        return peers.contender("bitsandbytes", call, lambda: halves(call().numpy()))
    levels = torch.from_numpy(book.levels.copy())

    def call():
        return functional.quantize_blockwise(tensor, code=levels, blocksize=book.block_size)[0]

    return peers.contender("bitsandbytes", call, lambda: call().numpy())


def halves(data):
    return np.stack([data >> 4, data & 15], axis=-1).reshape(-1)


def decode(codes, scales, book):
    """Results are new arrays: its CPU code takes no other."""
    state = functional.QuantState(
        absmax=torch.from_numpy(scales),
        shape=torch.Size([1, codes.size]),
        code=torch.from_numpy(book.levels.copy()),
        blocksize=book.block_size,
        dtype=torch.float32,
        quant_type="nf4",
    )
    of_16 = book.k == 16
    tensor = torch.from_numpy((codes[::2] << 4 | codes[1::2])[:, None] if of_16 else codes)
    run = functional.dequantize_4bit if of_16 else functional.dequantize_blockwise
    return peers.contender("bitsandbytes", lambda: run(tensor, state), lambda: run(tensor, state).numpy().reshape(-1))
