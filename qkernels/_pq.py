"""Search among the codes of product quantization. Formulas: docs/numerics.md, section 19.

These are two names beyond the operations of quantization: what a table of distances serves is a scan of all codes with
a running bound, and that must be fused to be fast.
"""

import numpy as np

from ._bind import codebooks
from ._checks import as_array, finite_float32, float_array, integer, is_a
from ._codebook import Codebook

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


def search(queries, codes, codebook, k, *, bits=8):
    """Find the k vectors of codes nearest to each query, by asymmetric distances: queries are not coded.

    Parameters
    ----------
    queries : array of shape (queries, m * d)
        float32, float64, float16 or bfloat16, used as float32. Finite.
    codes : uint8 array of shape (n, m)
        As `encode` gives them for an array (n, m * d), each below ``codebook.k``. n is below 2**32. With ``bits=4``
        (n, m / 2), two codes a byte, the first in the lower half: ``pack_bits(codes, 4).reshape(n, -1)`` of even m.
    codebook : Codebook
        One of vectors: levels (m, k, d), or (k, d) for all groups of d neighbours.
    k : int
        From 1 to n.
    bits : int
        8 or 4, that a code is stored in. Codes of 4 bits take half the memory, and a few queries less time.

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
    queries, codes, k = _checked_queries(queries, codebook), as_array(codes, "codes"), integer(k, "k")
    bits = integer(bits, "bits")
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    groups = queries.shape[1] // codebook.levels.shape[-1]
    if bits == 4 and (groups % 2 or codebook.k > 16):
        raise ValueError(f"bits=4 takes an even number of groups of at most 16 levels, got {groups} of {codebook.k}")
    columns = groups * bits // 8
    if codes.ndim != 2 or codes.shape[1] != columns:
        raise ValueError(
            f"codes must have shape (n, {columns}) to match queries with shape {queries.shape}, got {codes.shape}"
        )
    if len(codes) > MOST_CODES:
        raise ValueError(f"codes must have fewer than 2**32 rows, got {len(codes)}")
    if not 1 <= k <= len(codes):
        raise ValueError(f"k must be from 1 to the number of rows of codes, {len(codes)}, got {k}")
    return codebooks.search(queries, codes, codebook._levels, k, bits == 4)


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
