"""Hold packed weights in a module, whose state dicts have plain tensors."""

import math

import numpy as np
import torch

from .._checks import is_a
from .._codebook import Codebook
from .._conv import NAMES as CONV_NAMES
from .._conv import PackedConv
from .._weights import NEEDED, OPTIONAL, PackedMatrix
from ._handles import Handle, dequantized

NAMES = {PackedMatrix: set().union(*NEEDED.values(), *OPTIONAL.values()), PackedConv: CONV_NAMES}  # of `to_arrays`
MOST_INPUTS = (2**31 - 1) // 255**2  # of a filter: int32 holds the sums


class PackedWeight(torch.nn.Module):
    """Hold the weights of a layer: a PackedMatrix or a PackedConv, of one shape.

    A state dict has the tensors that `to_arrays` makes, on any machine. A dtype or a device that the model is moved to
    is not theirs: they stay as they are.

    Parameters
    ----------
    kind : type
        PackedMatrix or PackedConv.
    shape : tuple of int
        That of packed weights; and the groups of a convolution.

    Attributes
    ----------
    packed : PackedMatrix, PackedConv or None
        None until `hold` or load_state_dict brings it.
    number : Tensor
        What stands for it in operators.
    nbytes : int
    """

    def __init__(self, kind, shape):
        super().__init__()
        self.kind, self.shape, self.packed, self._handle = kind, shape, None, None

    @property
    def number(self):
        return self._filled()._handle.number

    def _filled(self):
        if self.packed is None:
            raise ValueError("weight is empty until load_state_dict fills it")
        return self

    def hold(self, packed):
        """Take packed weights."""
        if not is_a(packed, self.kind):
            raise TypeError(f"weight must be a {self.kind.__name__}, got {type(packed).__name__}")
        is_conv = is_a(packed, PackedConv)
        shape = (*packed.shape, packed.groups) if is_conv else packed.shape
        if shape != self.shape:
            raise ValueError(f"weight must have shape {self.shape}, got {shape}")
        if is_conv and math.prod(packed.shape[:3]) > MOST_INPUTS:
            raise ValueError(f"weight must have at most {MOST_INPUTS} inputs a filter, or int32 could overflow")
        self.packed, self._handle = packed, Handle(packed)

    @property
    def nbytes(self):
        return self._filled().packed.nbytes

    def dequantize(self):
        """Return what the weights stand for: a float32 tensor in the layout of torch.nn."""
        w = dequantized(self._filled().packed)
        return torch.from_numpy(w.T if w.ndim == 2 else w.transpose(3, 2, 0, 1)).contiguous()

    def extra_repr(self):
        if self.packed is None:
            return "empty"
        params = self.packed.params
        codes = f"{params.k} levels" if is_a(params, Codebook) else self.packed.dtype.name
        return f"{codes}, block_size={params.block_size}" if getattr(params, "block_size", None) else codes

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Refuse functions on tensors; and tell fused layers of torch.nn, which look for this method, to call ours."""
        raise TypeError(f"{function.__name__} cannot take packed weights; their method dequantize gives a tensor")

    def _apply(self, fn, recurse=True):
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name, array in self._filled().packed.to_arrays().items():
            destination[prefix + name] = torch.from_numpy(np.array(array))

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        arrays = {name: value for name, value in given.items() if name in NAMES[self.kind]}
        if strict:  # which torch says here even where load_state_dict is not
            unexpected.extend(prefix + name for name in given if name not in arrays)
        if not arrays:
            missing.append(prefix.removesuffix("."))
            return
        try:
            for name, value in arrays.items():
                if is_a(value, torch.Tensor) and value.nbytes > value.untyped_storage().nbytes():
                    raise ValueError(f"{name} must have memory for all of its shape {tuple(value.shape)}")
            self.hold(self.kind.from_arrays(arrays))
        except (TypeError, ValueError) as error:
            errors.append(f"{prefix.removesuffix('.')}: {error}")
