"""Store values as the number of the nearest of a few levels. Formulas: docs/numerics.md, section 15."""

import math

import numpy as np

from ._bind import codebooks
from ._bind.arrays import FLOATS, PART, contiguous_as, cuts, frozen, raise_not_finite
from ._checks import (
    array_named,
    arrays_named,
    as_array,
    boolean,
    checked_blocks,
    contiguous_float32,
    finite_float32,
    float32_of,
    float_array,
    is_a,
    raise_beyond_float32,
    real_array,
    shown,
    stochastic_seed,
)
from ._codebook_fit import fit_levels, fit_vectors
from ._codebook_tables import moves_of, tables_of, thresholds_of, vector_tables_of
from ._mode import default_mode
from ._qparams import AXES, axes_named, axes_of
from ._value import Value

FLOAT32_RANGE = np.finfo(np.float32).min, np.finfo(np.float32).max


class Codebook(Value):
    """Hold a table of at most 256 levels: validated once, frozen, used many times.

    Parameters
    ----------
    levels : array of floats
        Kept as float32, finite, in any order (code i stands for level i):

        - (k,): one codebook for all values.
        - (channels, k), with `axis`: one for each index of that axis.
        - (k, d), with ``vector=True``: each code stands for d neighbours along the last axis. (m, k, d): product
          quantization, a codebook for each of m groups of d neighbours, which make up the last axis.
    axis : int, optional
    block_size : int, optional
        Levels (k,) only. Each block of so many values is divided by its largest magnitude first, its scale. Blocks are
        neighbours in C order or, with `axis`, along that axis; the last block of a line may be short.
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
    Dettmers et al., *QLoRA: Efficient Finetuning of Quantized LLMs*, 2023, for levels of normalised blocks; Jegou et
    al., *Product Quantization for Nearest Neighbor Search*, 2011.

    Examples
    --------
    >>> qk.Codebook([-1, 0, 2])
    Codebook([-1, 0, 2])
    >>> qk.Codebook(np.linspace(-1, 1, 16), block_size=64)
    Codebook(<16 levels>, block_size=64)
    """

    __slots__ = ("levels", "axis", "block_size", "vector", "k", "_tables", "_beside")

    @staticmethod
    @default_mode
    def __new__(cls, levels, *, axis=None, block_size=None, vector=False):
        axis, block_size = checked_blocks(axis, block_size)
        vector = boolean(vector, "vector")
        if vector and (axis is not None or block_size is not None):
            raise ValueError(f"vector=True takes the last axis and no blocks, got axis={axis}, block_size={block_size}")
        levels = _checked_levels(levels, axis, block_size, vector)
        self = super().__new__(cls)
        values = (frozen(levels), axis, block_size, vector, levels.shape[-2 if vector else -1])
        for name, value in zip(Codebook.__slots__[:-2], values, strict=True):
            object.__setattr__(self, name, value)
        return self

    @classmethod
    @default_mode
    def fit(cls, x, k, *, axis=None, block_size=None, weights=None, zero=False, vector=None, rng=None):
        """Fit the k levels that represent x best: the global optimum of ``sum(weights * (x - level)**2)``.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16
            Finite and not empty.
        k : int
            From 1 to 256. If x has fewer distinct values the last level is repeated.
        axis, block_size : int, optional
            As for `Codebook`: without them one optimum for all values; with `axis` one for each of its indices; with
            `block_size` one for the values of all blocks, normalised as `encode` does. (A block then counts the same
            whatever its scale. Weights that hold the squared scales give the optimum for x itself.)
        weights : array, optional
            Importance, such as the diagonal of a Hessian: not negative, broadcast to the shape of x. A channel whose
            weights are all 0 is fitted without.
        zero : bool
            One level is exactly 0, the others the best beside it.
        vector : int, optional
            Product quantization, by Lloyd's iterations: each code stands for so many neighbours along the last axis of
            x, which has that of m groups of them, each with k levels of its own. k is at most the number of vectors
            x[...]; weights are one each.
        rng : optional
            For product quantization, as for `kmeans`.

        Returns
        -------
        Codebook
            Its levels ascend, unless they are vectors.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, k below 1 or above 256, NaN and infinity, or weights that are negative or all 0.

        References
        ----------
        docs/numerics.md, sections 13 and 15; Lloyd, *Least squares quantization in PCM*, 1982.

        Examples
        --------
        >>> qk.Codebook.fit(np.float32([1, 2, 8, 9, 10]), 2)
        Codebook([1.5, 9])
        >>> qk.Codebook.fit(np.float32([[0, 1, 5], [7, 7, 8]]), 2, axis=0).levels
        array([[0.5, 5. ],
               [7. , 8. ]], dtype=float32)
        >>> qk.Codebook.fit(np.float32([[0, 1, 5, 5], [0, 3, 5, 5]]), 1, vector=2).levels
        array([[[0., 2.]],
               [[5., 5.]]], dtype=float32)
        """
        zero = boolean(zero, "zero")
        if vector is not None:
            if axis is not None or block_size is not None or zero:
                given = ", ".join(map(shown, (axis, block_size, zero)))
                raise ValueError(f"vector={shown(vector)} takes no axis, block_size or zero, got {given}")
            levels = fit_vectors(x, k, vector, weights, rng)
        else:
            axis, block_size = checked_blocks(axis, block_size)
            levels = fit_levels(x, k, axis, block_size, weights, zero)
        if not np.isfinite(float32_of(levels)).all():
            raise_beyond_float32(float_array(x))
        return cls(levels, axis=axis, block_size=block_size, vector=vector is not None)

    def __setattr__(self, name, value):
        raise AttributeError(f"a Codebook is frozen: {name} cannot be set")

    def __delattr__(self, name):
        raise AttributeError(f"a Codebook is frozen: {name} cannot be deleted")

    @default_mode
    def __repr__(self):
        if self.levels.ndim == 1 and self.k <= 8:
            parts = [f"[{', '.join(f'{v:.6g}' for v in self.levels)}]"]
        else:
            parts = [f"<{' x '.join(map(str, self.levels.shape))} levels>"]
        parts += [f"{name}={getattr(self, name)}" for name in ("axis", "block_size") if getattr(self, name) is not None]
        return f"Codebook({', '.join(parts + ['vector=True'] * self.vector)})"

    def __reduce__(self):
        return _rebuild, (self.levels, self.axis, self.block_size, self.vector)

    @default_mode
    def to_arrays(self):
        """Return plain arrays that hold all of it, for safetensors, npz and the like.

        Returns
        -------
        dict of str to array
            ``levels``, ``vector`` (), and, if it has them, ``axis`` () and ``block_size`` ().
        """
        return {"levels": np.array(self.levels), "vector": np.array(self.vector)} | axes_of(self)

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Return the codebook whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        arrays = arrays_named(arrays, ("levels", "vector"), AXES)
        vector = array_named(arrays, "vector", np.bool_)
        if vector.ndim:
            raise ValueError(f"vector must have shape (), got {vector.shape}")
        return cls(array_named(arrays, "levels", *FLOATS), vector=bool(vector), **axes_named(arrays))

    def _without_tables(self):
        """Return an equal one, which shares the levels, and makes tables of its own when it needs them."""
        other = object.__new__(Codebook)
        for name in Codebook.__slots__[:-2]:
            object.__setattr__(other, name, getattr(self, name))
        return other

    @property
    def _levels(self):
        """Return what C looks values up in, made on first use."""
        if not hasattr(self, "_tables"):
            object.__setattr__(self, "_tables", self._made_tables())
        return self._tables

    @default_mode
    def _made_tables(self):
        return vector_tables_of(self.levels) if self.vector else tables_of(self.levels.reshape(-1, self.k))

    @property
    def _moves(self):
        """Return what tells C which levels lie beside others, made on first use."""
        if not hasattr(self, "_beside"):
            object.__setattr__(self, "_beside", self._made_moves())
        return self._beside

    @default_mode
    def _made_moves(self):
        return moves_of(self.levels.reshape(-1, self.k))

    def _key(self):
        return self.levels.shape, self.levels.tobytes(), self.axis, self.block_size, self.vector


def _rebuild(levels, axis, block_size, vector):
    return Codebook(levels, axis=axis, block_size=block_size, vector=vector)


def encode(x, codebook, *, rounding="nearest", seed=None):
    """Find the number of the level nearest to each value; of two as near the lower number.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite. Vectors and blocks of float64 values are rounded to float32 first.
    codebook : Codebook
    rounding : {"nearest", "stochastic"}
        Or one of the two levels beside the value, by chance, so that the mean of many is the value. Not of vectors.
    seed : int, only and always for ``rounding="stochastic"``
        As in `quantize`.

    Returns
    -------
    codes : uint8 array of the shape of x, or with one code for d values along its last axis if levels are vectors
    scales : float32 array, only if the codebook has a block size
        The largest magnitude of each block: of the shape (blocks,) or, if the codebook has an axis, that of x with this
        axis shortened to ``ceil(n / block_size)``. Values are multiplied by the reciprocal of their scale, which is
        taken as 2**-126 if it is smaller.

    Raises
    ------
    TypeError, ValueError
        For another dtype, rounding or seed, a shape that the codebook does not fit, or NaN and infinity (how many, and
        where the first is).

    References
    ----------
    Dettmers et al. 2023; docs/numerics.md, sections 15, 19 and 27.

    Examples
    --------
    >>> qk.encode(np.float32([-5, 0.4, 0.5, 1.1]), qk.Codebook([-1, 0, 1]))
    array([0, 1, 1, 2], dtype=uint8)
    >>> qk.encode(np.float32([1, 2, -4, 8]), qk.Codebook([-1, 0, 0.5, 1], block_size=2))
    (array([2, 3, 0, 3], dtype=uint8), array([2., 8.], dtype=float32))
    >>> qk.encode(np.float32([0, 1, 9, 9]), qk.Codebook([[0, 0], [8, 8]], vector=True))
    array([0, 1], dtype=uint8)
    """
    x, seed = float_array(x), stochastic_seed(rounding, seed, "nearest")
    axis = _checked_axis(x, codebook, "x")
    if codebook.vector:
        if seed is not None:
            raise ValueError("rounding must be 'nearest' for a codebook of vectors, got 'stochastic'")
        return _encode_vectors(x, codebook)
    nearest = _encode_nearest(x, codebook, axis)
    if seed is not None and x.size:
        _move_codes(x, nearest, codebook, axis, seed)
    return nearest


def _encode_nearest(x, codebook, axis):
    if codebook.block_size is not None:
        return _encode_blocks(x, codebook, axis)
    if x.dtype.itemsize == 8:
        return _encode_float64(x, codebook, axis)
    codes = codebooks.encode(contiguous_float32(x), codebook._levels, axis, 1, None)
    if codes is None:
        raise_not_finite(x)
    return codes


def decode(codes, codebook, scales=None, *, out=None):
    """Look up the levels that codes stand for, times the scales of their blocks.

    Parameters
    ----------
    codes : uint8 array
        Each below ``codebook.k``.
    codebook : Codebook
    scales : array of floats
        Those of `encode`, if the codebook has a block size; used as float32, in which they must be finite.
    out : float32 array of the shape of the result, optional
        C-contiguous; may not overlap codes or scales.

    Returns
    -------
    float32 array of the shape of codes; if levels are vectors, with d values for each code along its last axis

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, a code that is too large, or a wrong `out`, which is then left untouched.

    References
    ----------
    Dettmers et al. 2023; docs/numerics.md, sections 15 and 19.

    Examples
    --------
    >>> qk.decode(np.uint8([2, 3, 0, 3]), qk.Codebook([-1, 0, 0.5, 1], block_size=2), np.float32([2, 8]))
    array([ 1.,  2., -8.,  8.], dtype=float32)
    """
    codes = as_array(codes, "codes")
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    axis = _checked_axis(codes, codebook, "codes")
    given_scales = None if scales is None else as_array(scales, "scales")
    scales = checked_scales(given_scales, codebook, codes.shape, axis)
    if codebook.vector:
        return codebooks.decode_vectors(codes, codebook._levels, out)
    return codebooks.decode(
        codes, codebook.k, codebook._levels, axis, codebook.block_size or 1, scales, given_scales, out
    )


def _move_codes(x, nearest, codebook, axis, seed):
    """Make codes stochastic, in place (numerics 27); in blocks they come with their scales."""
    codes, scales = nearest if codebook.block_size is not None else (nearest, None)
    x = contiguous_float32(x) if scales is not None or x.dtype.itemsize < 8 else contiguous_as(x, np.float64)
    codebooks.move_codes(x, codes, codebook._moves, axis, codebook.block_size or 1, scales, seed)


def _encode_blocks(x, codebook, axis):
    scales = np.empty(_scales_shape(x.shape, axis, codebook.block_size), np.float32)
    codes = codebooks.encode(contiguous_float32(x), codebook._levels, axis, codebook.block_size, scales)
    if codes is not None:
        return codes, scales
    raise_beyond_float32(x)


@default_mode
def _encode_float64(x, codebook, axis):
    """Compare in float64, in which x is exact."""
    if not np.isfinite(x).all():
        raise_not_finite(x)
    order, thresholds = thresholds_of(codebook.levels.reshape(-1, codebook.k), np.float64)
    codes = np.empty(x.shape, np.uint8)
    lines = np.moveaxis(x, axis, 0) if axis is not None else x[None]
    results = np.moveaxis(codes, axis, 0) if axis is not None else codes[None]
    for i, (numbers, bounds) in enumerate(zip(order, thresholds, strict=True)):
        for part in cuts(lines.shape[1:], PART // 8):
            at = (i, ...) if part is ... else (i, *part)
            results[at] = numbers[np.searchsorted(bounds, lines[at])]
    return codes


@default_mode
def _encode_vectors(x, codebook):
    """Encode in the scales of `vector_tables_of`, by powers of two."""
    given = vectors = finite_float32(x)
    shift = codebook._levels.shift
    if shift is not None:
        vectors = np.ascontiguousarray(np.clip(np.ldexp(given, shift), *FLOAT32_RANGE))
    return codebooks.encode_vectors(vectors, given, codebook._levels, x.shape[-1] // codebook.levels.shape[-1])


# ---- NF4 and FP4 ----


def __getattr__(name):
    if name in ("NF4", "FP4"):  # two threads may make it at once; both get what the first has stored
        return globals().setdefault(name, (_nf4 if name == "NF4" else _fp4)())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@default_mode
def _nf4():
    """Make NormalFloat of 4 bits (QLoRA, section 3): quantiles of the normal distribution and 0, over the largest.

    As many as fit evenly between 1/2 and its end are taken, 8 above and 7 below. The end is a mean of 1 - 1/32 and 1 -
    1/30 of seven digits, and probabilities are float32: as the tables in use have been made.
    """
    from scipy.special import ndtri

    end, half = np.float32(0.9677083), np.float32(0.5)

    def quantiles(n):
        step, i = (half - end) / np.float32(n), np.arange(n, dtype=np.float32)
        probability = np.where(i < (n + 1) // 2, end + step * i, half - step * (np.float32(n) - i))
        return ndtri(probability.astype(np.float64)).astype(np.float32)

    levels = np.sort(np.concatenate([-quantiles(7), np.float32([0]), quantiles(8)]))
    return Codebook(levels / levels[-1], block_size=64)


@default_mode
def _fp4():
    """Make the floats of a sign, two bits of exponent e and one of mantissa m, over the largest of them.

    They are (1 + m / 2) 2^(4 - e), and m / 16 for e = 0.
    """
    e, m = np.divmod(np.arange(8), 2)
    magnitude = np.where(e == 0, m / 16, (1 + m / 2) * 2.0 ** (4 - e))
    return Codebook(np.concatenate([magnitude, -magnitude]) / magnitude.max(), block_size=64)


# ---- checks ----


def _checked_axis(a, codebook, name):
    """Return the axis of the codebook as an index of the shape of `a`, which must fit it."""
    if not is_a(codebook, Codebook):
        raise TypeError(f"codebook must be a Codebook, got {type(codebook).__name__}")
    if codebook.vector:
        return _checked_groups(a, codebook, codebook.levels.shape[-1] if name == "x" else 1, name)
    axis, ndim = codebook.axis, a.ndim
    if axis is None:
        return None
    if not -ndim <= axis < ndim:
        raise ValueError(f"codebook: axis {axis} is out of range for {name} with shape {a.shape}")
    axis %= ndim
    if codebook.block_size is None and a.shape[axis] != len(codebook.levels):
        raise ValueError(
            f"{name} must have {len(codebook.levels)} entries along axis {axis}, one for each channel of codebook, "
            f"got shape {a.shape}"
        )
    return axis


def _checked_groups(a, codebook, width, name):
    """Return None, the axis of a codebook of vectors; the last axis of `a` must hold its groups of `width` values."""
    shape = codebook.levels.shape
    if a.ndim and (a.shape[-1] == shape[0] * width if len(shape) == 3 else a.shape[-1] % width == 0):
        return None
    wanted = shape[0] * width if len(shape) == 3 else f"a multiple of {width}"
    raise ValueError(f"the last axis of {name} must be {wanted} long for codebook {codebook}, got shape {a.shape}")


def _scales_shape(shape, axis, block_size):
    if axis is None:
        return (-(-math.prod(shape) // block_size),)
    return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])


def checked_scales(scales, codebook, shape, axis):
    """Return contiguous float32 scales, or None if the codebook has no blocks."""
    if codebook.block_size is None:
        if scales is not None:
            raise ValueError("scales must be None for a codebook without block_size")
        return None
    if scales is None:
        raise ValueError(f"scales are needed for a codebook with block_size={codebook.block_size}")
    given = float_array(scales, "scales", "floats, those of encode")
    expected = _scales_shape(shape, axis, codebook.block_size)
    if given.shape != expected:
        raise ValueError(f"scales must have shape {expected} for codes with shape {shape}, got {given.shape}")
    kept = contiguous_float32(given)
    bad = ~np.isfinite(kept)
    if bad.any():
        raise ValueError(f"scales must be finite in float32, got {given[bad].flat[0]}")
    return kept


def _checked_levels(levels, axis, block_size, vector):
    given = real_array(levels, "levels")
    dims, expected = (1,), "(k,)"
    if vector:
        dims, expected = (2, 3), "(k, d) or (m, k, d)"
    elif axis is not None and block_size is None:
        dims, expected = (2,), "(channels, k)"
    if given.ndim not in dims:
        raise ValueError(
            f"levels must have shape {expected} for axis={axis}, block_size={block_size}, vector={vector}, "
            f"got {given.shape}"
        )
    k = given.shape[-2 if vector else -1]
    if not 1 <= k <= codebooks.MAX_LEVELS or given.size == 0:
        raise ValueError(f"levels must number from 1 to {codebooks.MAX_LEVELS}, got shape {given.shape}")
    kept = np.array(given, np.float32, order="C")
    bad = ~np.isfinite(kept)
    if bad.any():
        raise ValueError(f"levels must be finite in float32, got {given[bad].flat[0]}")
    return kept + np.float32(0)  # -0.0 becomes 0.0
