"""Codebooks: values stored as the number of the nearest of a few levels. Formulas: docs/numerics.md, section 15."""

import numpy as np

from . import _core
from .qparams import MAX_NDIM, optional_int

MAX_LEVELS = 256


class Codebook:
    """A table of at most 256 levels: validated once, frozen, used many times.

    Parameters
    ----------
    levels : array of floats
        Kept as float32, finite, in any order (code i stands for level i):

        - (k,): one codebook for all values.
        - (channels, k), with `axis`: one for each index of that axis.
        - (k, d), with ``vector=True``: each code stands for d neighbours along the last axis. (m, k, d): product quantization,
          a codebook for each of m groups of d neighbours, which make up the last axis.
    axis : int, optional
    block_size : int, optional
        Levels (k,) only. Each block of so many values is divided by its largest magnitude first, its scale. Blocks are
        neighbours in C order or, with `axis`, along that axis, where the last block of a line may be short.
    vector : bool

    Attributes
    ----------
    levels : read-only float32 array
    axis, block_size : int or None
    vector : bool
    k : int
        Number of levels.

    Raises
    ------
    TypeError, ValueError
        For what is not as above; the message names the argument and its value.

    References
    ----------
    Dettmers et al., *QLoRA: Efficient Finetuning of Quantized LLMs*, 2023, for levels of normalised blocks; Jegou et al.,
    *Product Quantization for Nearest Neighbor Search*, 2011.

    Examples
    --------
    >>> qk.Codebook([-1, 0, 2])
    Codebook([-1, 0, 2])
    >>> qk.Codebook(np.linspace(-1, 1, 16), block_size=64)
    Codebook(<16 levels>, block_size=64)
    """

    __slots__ = ("levels", "axis", "block_size", "vector", "k")

    def __new__(cls, levels, *, axis=None, block_size=None, vector=False):
        axis, block_size = optional_int(axis, "axis"), optional_int(block_size, "block_size")
        if not isinstance(vector, (bool, np.bool_)):
            raise TypeError(f"vector must be True or False, got {vector!r}")
        levels = _checked_levels(levels, axis, block_size, bool(vector))
        _check_layout(levels, axis, block_size, bool(vector))
        self = super().__new__(cls)
        values = (_core.frozen(levels), axis, block_size, bool(vector), levels.shape[-2 if vector else -1])
        for name, value in zip(cls.__slots__, values):
            object.__setattr__(self, name, value)
        return self

    def __setattr__(self, name, value):
        raise AttributeError(f"a Codebook is frozen: {name} cannot be set")

    __delattr__ = lambda self, name: self.__setattr__(name, None)

    def __repr__(self):
        shape = " x ".join(map(str, self.levels.shape))
        parts = [f"[{', '.join(f'{v:.6g}' for v in self.levels)}]" if self.levels.ndim == 1 and self.k <= 8 else f"<{shape} levels>"]
        parts += [f"{name}={getattr(self, name)}" for name in ("axis", "block_size") if getattr(self, name) is not None]
        return f"Codebook({', '.join(parts + ['vector=True'] * self.vector)})"

    def __eq__(self, other):
        if not isinstance(other, Codebook):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return _rebuild, (self.levels, self.axis, self.block_size, self.vector)

    def _key(self):
        return self.levels.shape, self.levels.tobytes(), self.axis, self.block_size, self.vector


def _rebuild(levels, axis, block_size, vector):
    return Codebook(levels, axis=axis, block_size=block_size, vector=vector)


# ---- checks of Codebook ----


def _checked_levels(levels, axis, block_size, vector):
    given = np.asarray(levels)
    if given.dtype.kind not in "fiu" and given.dtype not in _core.FLOATS:
        raise TypeError(f"levels must be an array of floats, got {levels!r}")
    dims, expected = ((2, 3), "(k, d) or (m, k, d)") if vector else ((1,), "(k,)") if axis is None or block_size is not None else (
        (2,), "(channels, k)")
    if given.ndim not in dims:
        raise ValueError(f"levels must have shape {expected} for axis={axis}, block_size={block_size}, vector={vector}, "
                         f"got {given.shape}")
    k = given.shape[-2 if vector else -1]
    if not 1 <= k <= MAX_LEVELS or given.size == 0:
        raise ValueError(f"levels must number from 1 to {MAX_LEVELS}, got shape {given.shape}")
    with np.errstate(over="ignore", under="ignore"):
        kept = np.array(given, np.float32, order="C")
    bad = ~np.isfinite(kept)
    if bad.any():
        raise ValueError(f"levels must be finite in float32, got {given[bad].flat[0]}")
    return kept + np.float32(0)  # of zeros one is kept


def _check_layout(levels, axis, block_size, vector):
    if vector and (axis is not None or block_size is not None):
        raise ValueError(f"vector=True takes the last axis and no blocks, got axis={axis}, block_size={block_size}")
    if axis is not None and not -MAX_NDIM <= axis < MAX_NDIM:
        raise ValueError(f"axis must be within [{-MAX_NDIM}, {MAX_NDIM - 1}], got {axis}")
    if block_size is not None and not 1 <= block_size < 2**63:
        raise ValueError(f"block_size must be at least 1 and fit 64 bits, got {block_size}")
