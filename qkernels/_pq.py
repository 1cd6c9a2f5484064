"""Search among the codes of product quantization. Formulas: docs/numerics.md, section 19.

These are names beyond the operations of quantization: what a table of distances serves is a scan of all codes with a
running bound, and that must be fused, and find codes as its registers take them, to be fast.
"""

import numpy as np

from ._bind import codebooks
from ._checks import arrays_named, as_array, finite_float32, float_array, integer, is_a
from ._codebook import Codebook
from ._mode import default_mode
from ._quantize import pack_bits
from ._value import Sealed
from ._weights import dense_codes

MOST_CODES = 2**32 - 1


def distance_tables(queries, codebook):
    """Compute squared distances of the parts of each query from all levels: what `search` adds up.

    Parameters
    ----------
    queries : array of shape (queries, m * d)
        float32, float64, float16 or bfloat16, used as float32. Finite.
    codebook : Codebook
        One of vectors: levels (m, k, d), or (k, d) for all groups of d neighbours.

    Returns
    -------
    float32 array of shape (queries, m, k)
        Infinite if a square is beyond the range of float32, 0 if all are below it.

    Raises
    ------
    TypeError, ValueError
        For another dtype, a shape that the codebook does not fit, NaN and infinity, or a codebook of scalars.

    References
    ----------
    Jegou et al., *Product Quantization for Nearest Neighbor Search*, 2011; docs/numerics.md, section 19.

    Examples
    --------
    >>> qk.distance_tables(np.float32([[0, 0, 1, 1]]), qk.Codebook([[0, 1], [4, 1]], vector=True))
    array([[[ 1., 17.],
            [ 1.,  9.]]], dtype=float32)
    """
    return codebooks.distance_tables(_checked_queries(queries, codebook), codebook._levels)


def pack_codes(codes):
    """Pack codes of at most 16 levels, two a byte, in the order in which `search` reads them fastest.

    Parameters
    ----------
    codes : uint8 array of shape (n, m)
        As `encode` gives them for a codebook of vectors, each below 16.

    Returns
    -------
    PackedCodes

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, or a code that is too large.

    References
    ----------
    docs/numerics.md, section 19.

    Examples
    --------
    >>> book = qk.Codebook([[0, 0], [4, 4]], vector=True)
    >>> packed = qk.pack_codes(qk.encode(np.float32([[0, 0, 0, 1], [4, 4, 5, 4], [0, 1, 4, 4]]), book))
    >>> qk.search(np.float32([[1, 0, 4, 4]]), packed, book, 2)
    (array([[ 1., 25.]], dtype=float32), array([[2, 1]]))
    """
    return PackedCodes(codes)


class PackedCodes(Sealed):
    """Hold codes as `pack_codes` makes them: read-only, picklable, to be used from any thread.

    Attributes
    ----------
    shape : (int, int)
        (n, m)
    nbytes : int
        All that it holds: half a byte a code, for n rounded up to a multiple of 128 and m to one of 2. What it does not
        count is constant: Python's objects.

    Examples
    --------
    >>> packed = qk.pack_codes(np.uint8([[1, 2, 3], [4, 5, 15]]))
    >>> packed
    PackedCodes(shape=(2, 3))
    >>> qk.PackedCodes.from_arrays(packed.to_arrays()).unpack()
    array([[ 1,  2,  3],
           [ 4,  5, 15]], dtype=uint8)
    """

    __slots__ = ("_largest", "_packed", "shape")

    def __new__(cls, codes):
        codes = _checked_codes(codes)
        packed, largest = codebooks.pack_codes(codes)
        if packed is None:
            raise ValueError(f"codes must be below 16, got {largest}")
        self = super().__new__(cls)
        for name, value in ("_packed", packed), ("_largest", largest), ("shape", codes.shape):
            object.__setattr__(self, name, value)
        return self

    def __repr__(self):
        return f"PackedCodes(shape={self.shape})"

    @property
    def nbytes(self):
        return self._packed.nbytes

    def unpack(self):
        """Return the codes, one a byte."""
        return codebooks.unpack_codes(self._packed, *self.shape)

    @default_mode
    def to_arrays(self):
        """Return plain arrays that hold all of it, for safetensors, npz and the like.

        `from_arrays` reads them on any machine.

        Returns
        -------
        dict of str to array
            ``codes`` of one dimension, as `pack_bits` makes them, and ``shape`` (2,).
        """
        return {"codes": pack_bits(self.unpack(), 4), "shape": np.array(self.shape)}

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Pack for this machine the codes whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        return cls(dense_codes(arrays_named(arrays, ("codes", "shape"), ("signed",))))


def search(queries, codes, codebook, k):
    """Find the k vectors of codes nearest to each query, by asymmetric distances: queries are not coded.

    Parameters
    ----------
    queries : array of shape (queries, m * d)
        float32, float64, float16 or bfloat16, used as float32. Finite.
    codes : uint8 array of shape (n, m), or PackedCodes
        As `encode` gives them for an array (n, m * d), each below ``codebook.k``. n is below 2**32. What `pack_codes`
        makes of them takes half the memory, and a few queries less time.
    codebook : Codebook
        One of vectors: levels (m, k, d), or (k, d) for all groups of d neighbours.
    k : int
        From 1 to n.

    Returns
    -------
    distances : float32 array of shape (queries, k)
        Squared, ascending: ``sum(distance_tables(queries, codebook)[q, g, codes[i, g]] for g in range(m))``, added in
        this order.
    indices : int64 array of shape (queries, k)
        Rows of codes. Of equal distances the lower index comes first. The same bits at any number of threads.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shapes that do not match, a code that is too large, NaN and infinity, a codebook of scalars,
        or k out of range.

    References
    ----------
    Jegou et al., *Product Quantization for Nearest Neighbor Search*, 2011; docs/numerics.md, section 19.

    Examples
    --------
    >>> book = qk.Codebook([[0, 0], [4, 4]], vector=True)
    >>> codes = qk.encode(np.float32([[0, 0, 0, 1], [4, 4, 5, 4], [0, 1, 4, 4]]), book)
    >>> qk.search(np.float32([[1, 0, 4, 4]]), codes, book, 2)
    (array([[ 1., 25.]], dtype=float32), array([[2, 1]]))
    """
    queries, k = _checked_queries(queries, codebook), integer(k, "k")
    packed = is_a(codes, PackedCodes)
    codes = codes if packed else _checked_codes(codes)
    n, groups = codes.shape[0], queries.shape[1] // codebook.levels.shape[-1]
    if codes.shape[1] != groups:
        raise ValueError(
            f"codes must have shape (n, {groups}) to match queries with shape {queries.shape}, got {codes.shape}"
        )
    if n > MOST_CODES:
        raise ValueError(f"codes must have fewer than 2**32 rows, got {n}")
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of rows of codes, {n}, got {k}")
    if packed and codes._largest >= codebook.k:
        raise ValueError(f"codes must be below {codebook.k}, the number of levels, got {codes._largest}")
    return codebooks.search(queries, codes._packed if packed else codes, n, codebook._levels, k)


def _checked_codes(codes):
    """Return codes as an array."""
    codes = as_array(codes, "codes")
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have shape (n, m), got {codes.shape}")
    return codes


def _checked_queries(queries, codebook):
    """Return queries as contiguous float32."""
    if not is_a(codebook, Codebook):
        raise TypeError(f"codebook must be a Codebook, got {type(codebook).__name__}")
    if not codebook.vector:
        raise ValueError(f"codebook must be of vectors, got {codebook}")
    queries, shape = float_array(queries, "queries"), codebook.levels.shape
    whole = queries.ndim == 2 and (
        queries.shape[1] == shape[0] * shape[2] if len(shape) == 3 else queries.shape[1] % shape[1] == 0
    )
    if not whole or queries.shape[1] == 0:
        wanted = shape[0] * shape[2] if len(shape) == 3 else f"a multiple of {shape[1]}"
        raise ValueError(
            f"queries must have shape (queries, columns), columns {wanted} for codebook {codebook}, got {queries.shape}"
        )
    return finite_float32(queries, "queries")
