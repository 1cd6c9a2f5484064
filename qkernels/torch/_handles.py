"""Stand for packed weights in graphs of PyTorch: by a number, of which operators find them."""

import secrets
import weakref

import numpy as np
import torch

from .._bind.tensors import PlainLinear
from .._codebook import Codebook, decode
from .._quantize import dequantize
from .._value import Frozen

_held = weakref.WeakValueDictionary()


class Handle(Frozen):
    """Hold packed weights, and the tensor that stands for them: graphs may copy it, and need not know what it means.

    The number is random, so that it names no other weights in another process. Its tensor keeps the weights, so that
    they are there when gradients are asked for, though the layer may be gone.
    """

    __slots__ = "number", "packed"

    def __init__(self, packed):
        number = secrets.randbits(63)
        with torch.inference_mode(False):  # else autograd could not keep it
            self.packed, self.number = packed, torch.tensor(number, device="cpu")
        self.number.held = _held[number] = _Held(packed)

    def __reduce__(self):
        return Handle, (self.packed,)


class _Held:
    """Hold packed weights, and what calls a dense layer of them."""

    __slots__ = "__weakref__", "packed", "plain"

    def __init__(self, packed):
        self.packed, self.plain = packed, PlainLinear()


def find(number):
    """Return what holds the packed weights that a number stands for: its tensor, unless that is a copy."""
    held = getattr(number, "held", None) or _held.get(number.item())
    if held is None:
        raise ValueError(
            "weight must stand for packed weights that a module of this process holds, got the number of none: "
            "weights are saved by state_dict, not with a graph"
        )
    return held


def dequantized(packed):
    """Return the float32 weights that packed ones stand for."""
    params, codes = packed.params, packed.unpack()
    if params is None:
        return codes.astype(np.float32)
    return decode(codes, params, packed.scales) if isinstance(params, Codebook) else dequantize(codes, params)
