"""bitsandbytes on the CPU, which has no switch. 4-bit codes stand two a byte, the first in the high half."""

from functools import partial

import numpy as np
import torch
from bitsandbytes import functional

import peers


def encode(x, book):
    tensor = torch.from_numpy(x)
    if book.k == 16:
        call = partial(functional.quantize_4bit, tensor, blocksize=book.block_size, quant_type="nf4")
        return peers.contender("bitsandbytes", call, lambda: halves(call()[0].numpy()))
    levels = torch.from_numpy(book.levels.copy())
    call = partial(functional.quantize_blockwise, tensor, code=levels, blocksize=book.block_size)
    return peers.contender("bitsandbytes", call, lambda: call()[0].numpy())


def halves(data):
    return np.stack([data >> 4, data & 15], axis=-1).reshape(-1)


def decode(codes, scales, book):
    """Results are new arrays: its CPU code takes no other."""
    levels, largest = (torch.from_numpy(a) for a in (book.levels.copy(), scales))
    how = dict(blocksize=book.block_size, dtype=torch.float32, quant_type="nf4")
    state = functional.QuantState(absmax=largest, shape=torch.Size([1, codes.size]), code=levels, **how)
    of_16 = book.k == 16
    tensor = torch.from_numpy((codes[::2] << 4 | codes[1::2])[:, None] if of_16 else codes)
    run = functional.dequantize_4bit if of_16 else functional.dequantize_blockwise
    return peers.contender("bitsandbytes", lambda: run(tensor, state), lambda: run(tensor, state).numpy().reshape(-1))
