# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind codebooks of scalars and of vectors, dense bits and the blocks of GGUF."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

import numpy as np

cimport numpy as cnp

from .arrays cimport contiguous, FLOAT32, lay_out, out_array, refuse_overlap, result_array
from .c cimport (
    qk_codebook, qk_decode, qk_encode, qk_enter_scope, qk_from_gguf, qk_gguf_type, qk_largest_code, QK_MAX_LEVELS,
    qk_pack_bits, qk_pq_book, qk_pq_checks, qk_pq_codes, qk_pq_decode, qk_pq_distance_tables, qk_pq_encode,
    qk_pq_search, QK_Q4_0, QK_Q8_0, qk_scope, qk_to_gguf, qk_unpack_bits,
)

cnp.import_array()

MAX_LEVELS = QK_MAX_LEVELS   # a codebook has no more


cdef int split_shape(cnp.ndarray a, axis, size_t *outer, size_t *length, size_t *inner) except -1:
    """Split a contiguous array's shape as (outer, length, inner) around the axis; None: all of it is the axis."""
    if axis is None:
        outer[0], length[0], inner[0] = 1, <size_t>cnp.PyArray_SIZE(a), 1
    else:
        lay_out(a, axis, outer, length, inner)
    return 0


cdef class Levels:
    """Hold the tables of a scalar Codebook (_codebook_tables.py) for C; arrays have a row for each channel."""

    cdef qk_codebook c
    cdef object arrays

    def __cinit__(self, cnp.ndarray level, cnp.ndarray node, cnp.ndarray order, bint in_order, buckets):
        self.arrays = level, node, order, buckets
        self.c.channels = <size_t>cnp.PyArray_DIM(level, 0)
        self.c.first.depth = int(cnp.PyArray_DIM(level, 1)).bit_length() - 1
        self.c.first.in_order = in_order
        self.c.first.level = <const float *>cnp.PyArray_DATA(level)
        self.c.first.node = <const float *>cnp.PyArray_DATA(node)
        self.c.first.order = <const uint8_t *>cnp.PyArray_DATA(order)
        if buckets is not None:
            entries, self.c.first.least, self.c.first.last, self.c.first.shift = buckets
            self.c.first.bucket = <const uint64_t *>cnp.PyArray_DATA(entries[0])
            if len(entries) > 1:
                self.c.first.second = <const uint64_t *>cnp.PyArray_DATA(entries[1])


def encode(cnp.ndarray x, Levels levels not None, axis, size_t block, cnp.ndarray scales):
    """Return codes of a contiguous float32 array, or None if a value is not finite.

    scales, contiguous, is filled; None: no blocks.
    """
    cdef size_t outer, length, inner
    split_shape(x, axis, &outer, &length, &inner)
    q = np.empty((<object>x).shape, np.uint8)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(q)
    cdef float *scale = NULL
    if scales is not None:
        scale = <float *>cnp.PyArray_DATA(scales)
    cdef int finite
    with nogil:
        finite = qk_encode(source, target, &levels.c, outer, length, inner, block, scale)
    return q if finite else None


def decode(cnp.ndarray codes, int k, Levels levels not None, axis, size_t block, cnp.ndarray scales, given_scales, out):
    """Return levels of uint8 codes below k times their scales (contiguous float32, or None), as float32."""
    cdef cnp.ndarray a = contiguous(codes)
    cdef size_t outer, length, inner
    split_shape(a, axis, &outer, &length, &inner)
    cdef cnp.ndarray y = result_array(out, a, FLOAT32)
    if out is not None:
        refuse_overlap(y, codes, "codes")
        if given_scales is not None:
            refuse_overlap(y, given_scales, "scales")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef const float *scale = NULL
    if scales is not None:
        scale = <const float *>cnp.PyArray_DATA(scales)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a)
    cdef int most = 0
    with nogil:
        if k < 256:
            most = qk_largest_code(source, n)
        if most < k:
            qk_decode(source, target, &levels.c, outer, length, inner, block, scale)
    if most >= k:
        raise ValueError(f"codes must be below {k}, the number of levels, got {most}")
    return y if out is None else out


# ---- codebooks of vectors ----


cdef class VectorLevels:
    """Hold the tables of a Codebook of vectors (_codebook_tables.py) as C reads them.

    Levels are (1 or m, k, d), columns (1 or m, d, k), scaled (1 or m, k + 1, d). Values
    are multiplied by 2**shift before they are compared with these; None: by 1.
    """

    cdef qk_pq_book c
    cdef object arrays
    cdef readonly object shift

    def __cinit__(self, cnp.ndarray levels, cnp.ndarray columns, cnp.ndarray scaled, bint shared, shift):
        self.arrays = levels, columns, scaled
        self.shift = shift
        self.c.shared = shared
        self.c.k, self.c.d = <size_t>cnp.PyArray_DIM(levels, 1), <size_t>cnp.PyArray_DIM(levels, 2)
        self.c.levels = <const float *>cnp.PyArray_DATA(levels)
        self.c.columns = <const float *>cnp.PyArray_DATA(columns)
        self.c.scaled = <const float *>cnp.PyArray_DATA(scaled)

    cdef qk_pq_book over(self, size_t groups):
        cdef qk_pq_book book = self.c
        book.m = groups
        return book


cdef int refuse_codes(const uint8_t *codes, size_t n, size_t k) except -1:
    cdef int most = 0
    if k < QK_MAX_LEVELS:
        with nogil:
            most = qk_largest_code(codes, n)
    if <size_t>most >= k and n:
        raise ValueError(f"codes must be below {k}, the number of levels, got {most}")
    return 0


def encode_vectors(cnp.ndarray x, cnp.ndarray given, VectorLevels levels not None, size_t groups):
    """Return codes (..., groups) of finite contiguous x (..., groups * d), in the scale of the levels and as given."""
    q = np.empty((*(<object>x).shape[:-1], groups), np.uint8)
    cdef qk_pq_book book = levels.over(groups)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef const float *unscaled = <const float *>cnp.PyArray_DATA(given)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(q)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(x) // (groups * book.d) if groups else 0
    cdef int done
    with nogil:
        done = qk_pq_encode(source, unscaled, target, n, &book)
    if not done:
        raise MemoryError(f"no memory for levels of {book.d} values")
    return q


def decode_vectors(cnp.ndarray codes, VectorLevels levels not None, out):
    """Return levels (..., groups * d), as float32, of uint8 codes (..., groups)."""
    cdef cnp.ndarray a = contiguous(codes), y
    cdef size_t groups = <size_t>cnp.PyArray_DIM(a, cnp.PyArray_NDIM(a) - 1)
    cdef qk_pq_book book = levels.over(groups)
    shape = (*(<object>a).shape[:-1], int(groups) * int(book.d))   # may exceed Py_ssize_t
    y = out_array(out, shape, FLOAT32)
    if out is not None:
        refuse_overlap(y, codes, "codes")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a) // groups if groups else 0
    refuse_codes(source, n * groups, book.k)
    with nogil:
        qk_pq_decode(source, target, n, &book)
    return y if out is None else out


def distance_tables(cnp.ndarray queries, VectorLevels levels not None):
    """Return (queries, groups, k) of finite contiguous float32 queries (queries, groups * d)."""
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0)
    cdef qk_pq_book book = levels.over(<size_t>cnp.PyArray_DIM(queries, 1) // levels.c.d)
    tables = np.empty((count, book.m, book.k), np.float32)
    cdef const float *source = <const float *>cnp.PyArray_DATA(queries)
    cdef float *target = <float *>cnp.PyArray_DATA(tables)
    with nogil:
        qk_pq_distance_tables(source, count, &book, target)
    return tables


def search(cnp.ndarray queries, codes, VectorLevels levels not None, Py_ssize_t k, bint dense):
    """Return (distances, indices), both (queries, k).

    Queries are finite contiguous float32 (queries, groups * d), codes uint8 (n, groups), or dense, (n, groups / 2).
    """
    cdef cnp.ndarray a = contiguous(codes)
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0), columns = <size_t>cnp.PyArray_DIM(a, 1)
    cdef qk_pq_book book = levels.over(2 * columns if dense else columns)
    cdef qk_pq_codes stored
    stored.codes, stored.n = <const uint8_t *>cnp.PyArray_DATA(a), <size_t>cnp.PyArray_DIM(a, 0)
    stored.dense = dense
    distances, indices = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    cdef const float *source = <const float *>cnp.PyArray_DATA(queries)
    cdef float *sums = <float *>cnp.PyArray_DATA(distances)
    cdef int64_t *where = <int64_t *>cnp.PyArray_DATA(indices)
    cdef int done
    if not qk_pq_checks(&stored, &book, <size_t>k):
        refuse_codes(stored.codes, stored.n * book.m, book.k)
    with nogil:
        done = qk_pq_search(source, count, &stored, &book, <size_t>k, sums, where)
    if done == 2:
        raise ValueError(f"codes must be below {book.k}, the number of levels, got {largest_of(a, dense)}")
    if not done:
        raise MemoryError(f"no memory for {count} queries")
    return distances, indices


def largest_of(codes, dense):
    return int(max((codes & 15).max(), (codes >> 4).max()) if dense else codes.max())


# ---- dense bits and GGUF's blocks ----


def pack_bits(cnp.ndarray codes, int bits):
    """Pack contiguous codes, one a byte, that fit `bits` bits."""
    cdef size_t n = <size_t>cnp.PyArray_SIZE(codes)
    data = np.empty((n * bits + 7) // 8, np.uint8)
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(codes)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(data)
    with nogil:
        qk_pack_bits(source, n, bits, target)
    return data


def unpack_bits(data, int bits, Py_ssize_t n):
    codes = np.empty(n, np.uint8)
    cdef cnp.ndarray a = contiguous(data)
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(codes)
    with nogil:
        qk_unpack_bits(source, <size_t>n, bits, target)
    return codes


def to_gguf(cnp.ndarray x, Py_ssize_t size):
    """Return contiguous float32 x in blocks of `size` bytes, and None, or the largest magnitude.

    It is None if float16 holds all scales.
    """
    cdef qk_scope _mode = qk_enter_scope()
    shape = (<object>x).shape
    data = np.empty(shape[:-1] + (shape[-1] // 32 * size,), np.uint8)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(data)
    cdef size_t blocks = <size_t>cnp.PyArray_SIZE(x) // 32
    cdef qk_gguf_type type = QK_Q8_0 if size == 34 else QK_Q4_0
    cdef int32_t most
    with nogil:
        most = qk_to_gguf(source, target, blocks, type)
    largest = np.int32(most).view(np.float32)
    cdef bint held = <float>largest / (127 if type == QK_Q8_0 else 8) < 65520   # false of NaN
    return data, None if held else largest


def from_gguf(cnp.ndarray data, Py_ssize_t size, out):
    cdef cnp.ndarray a = contiguous(data), y
    shape = (<object>a).shape[:-1] + ((<object>a).shape[-1] // size * 32,)
    y = out_array(out, shape, FLOAT32)
    if out is not None:
        refuse_overlap(y, data, "data")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t blocks = <size_t>(cnp.PyArray_SIZE(a) // size)
    cdef qk_gguf_type type = QK_Q8_0 if size == 34 else QK_Q4_0
    with nogil:
        qk_from_gguf(source, target, blocks, type)
    return y if out is None else out
