# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind codebooks of scalars and of vectors, dense bits and the blocks of GGUF."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memset

import numpy as np

cimport cython
cimport numpy as cnp

from .arrays cimport (
    contiguous, data_of, FLOAT32, floats, lay_out, out_array, reals, refuse_overlap, result_array, uint8s,
)
from .c cimport (
    qk_book_free, qk_book_new, qk_book_tables, qk_decode, qk_encode, qk_enter_scope,
    QK_F32, QK_F64, qk_feedback, qk_from_gguf, qk_gguf_layouts, qk_gguf_type,
    QK_GGUF_TYPES, qk_largest_code, QK_MAX_LEVELS, qk_move_codes,
    qk_moved_codes, qk_pack_bits, qk_pq_book, qk_pq_checks, qk_pq_codes,
    qk_pq_decode, qk_pq_distance_tables, qk_pq_encode, qk_pq_pack, qk_pq_search, QK_PQ_TILE, qk_pq_unpack, QK_Q8_0,
    qk_round, qk_scope, qk_search_k, qk_start_sums, qk_to_gguf, qk_unpack_bits,
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


@cython.binding(False)  # which checks whose method is called
cdef class Levels:
    """Hold the tables of levels (channels, k), and their buckets (_codebook_tables.py), or None."""

    def __cinit__(self, cnp.ndarray levels, buckets):
        cdef size_t channels = <size_t>cnp.PyArray_DIM(levels, 0), k = <size_t>cnp.PyArray_DIM(levels, 1)
        if qk_book_new(floats(levels), channels, k, &self.book):
            raise MemoryError(f"no memory for tables of levels of shape {(<object>levels).shape}")
        self.c, self.buckets = qk_book_tables(self.book), buckets
        if buckets is not None:
            entries, self.c.first.least, self.c.first.last, self.c.first.shift = buckets
            self.c.first.bucket = <const uint64_t *>data_of(entries[0])
            if len(entries) > 1:
                self.c.first.second = <const uint64_t *>data_of(entries[1])

    def __dealloc__(self):
        qk_book_free(self.book)


def encode(cnp.ndarray x, Levels levels not None, axis, size_t block, cnp.ndarray scales):
    """Return codes of a contiguous float32 array, or None if a value is not finite.

    scales, contiguous, is filled; None: no blocks.
    """
    cdef size_t outer, length, inner
    split_shape(x, axis, &outer, &length, &inner)
    cdef cnp.ndarray q = np.empty((<object>x).shape, np.uint8)
    cdef int finite
    with nogil:
        finite = qk_encode(floats(x), uint8s(q), &levels.c, outer, length, inner, block, floats(scales))
    return q if finite else None


def move_codes(cnp.ndarray x, cnp.ndarray codes, tuple tables, axis, size_t block, cnp.ndarray scales, uint64_t seed):
    """Make stochastic codes of those of the nearest levels, in place.

    x is contiguous float32 or float64; the tables are those of `moves_of` (_codebook_tables.py); scales, of the blocks,
    may be None.
    """
    cdef qk_moved_codes m
    cdef size_t outer
    level, per_distance, after = tables
    m.x, m.codes, m.seed, m.block, m.scale = data_of(x), uint8s(codes), seed, block, floats(scales)
    m.dtype = QK_F64 if x.dtype.itemsize == 8 else QK_F32
    cdef cnp.ndarray factors = None if scales is None else np.empty_like(scales)
    m.factor, m.scales = floats(factors), 0 if scales is None else scales.size
    m.level, m.per_distance, m.next = floats(level), floats(per_distance), uint8s(after)
    m.channels, m.k = level.shape
    m.total = <size_t>cnp.PyArray_SIZE(x)
    split_shape(x, axis, &outer, &m.length, &m.inner)
    with nogil:
        qk_move_codes(&m)


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
    refuse_codes(a, k)
    with nogil:
        qk_decode(uint8s(a), floats(y), &levels.c, outer, length, inner, block, floats(scales))
    return y if out is None else out


cdef int refuse_codes(cnp.ndarray codes, size_t k) except -1:
    """Raise unless the contiguous codes are below k."""
    cdef int most = 0
    if k < QK_MAX_LEVELS:
        with nogil:
            most = qk_largest_code(uint8s(codes), <size_t>cnp.PyArray_SIZE(codes))
    if <size_t>most >= k and cnp.PyArray_SIZE(codes):
        raise ValueError(f"codes must be below {k}, the number of levels, got {most}")
    return 0


# ---- codebooks of vectors ----


@cython.binding(False)  # which checks whose method is called
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
        self.c.levels, self.c.columns, self.c.scaled = floats(levels), floats(columns), floats(scaled)

    cdef qk_pq_book over(self, size_t groups):
        cdef qk_pq_book book = self.c
        book.m = groups
        return book


def encode_vectors(cnp.ndarray x, cnp.ndarray given, VectorLevels levels not None, size_t groups):
    """Return codes (..., groups) of finite contiguous x (..., groups * d), in the scale of the levels and as given."""
    cdef cnp.ndarray q = np.empty((*(<object>x).shape[:-1], groups), np.uint8)
    cdef qk_pq_book book = levels.over(groups)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(x) // (groups * book.d) if groups else 0
    cdef int done
    with nogil:
        done = qk_pq_encode(floats(x), floats(given), uint8s(q), n, &book)
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
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a) // groups if groups else 0
    refuse_codes(a, book.k)
    with nogil:
        qk_pq_decode(uint8s(a), floats(y), n, &book)
    return y if out is None else out


def distance_tables(cnp.ndarray queries, VectorLevels levels not None):
    """Return (queries, groups, k) of finite contiguous float32 queries (queries, groups * d)."""
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0)
    cdef qk_pq_book book = levels.over(<size_t>cnp.PyArray_DIM(queries, 1) // levels.c.d)
    cdef cnp.ndarray tables = np.empty((count, book.m, book.k), np.float32)
    with nogil:
        qk_pq_distance_tables(floats(queries), count, &book, floats(tables))
    return tables


def pack_codes(codes):
    """Return codes (n, groups) as qk_pq_codes has packed ones, or None if one does not fit, and the largest."""
    cdef cnp.ndarray a = contiguous(codes), packed
    cdef size_t n = <size_t>cnp.PyArray_DIM(a, 0), groups = <size_t>cnp.PyArray_DIM(a, 1)
    cdef int most
    with nogil:
        most = qk_largest_code(uint8s(a), n * groups) if n * groups else 0
    if most > 15:
        return None, most
    packed = np.empty(((n + QK_PQ_TILE - 1) // QK_PQ_TILE, (groups + 1) // 2, QK_PQ_TILE), np.uint8)
    with nogil:
        qk_pq_pack(uint8s(a), n, groups, uint8s(packed))
    packed.flags.writeable = False
    return packed, most


def unpack_codes(cnp.ndarray packed not None, size_t n, size_t groups):
    cdef cnp.ndarray codes = np.empty((n, groups), np.uint8)
    with nogil:
        qk_pq_unpack(uint8s(packed), n, groups, uint8s(codes))
    return codes


def search(cnp.ndarray queries, codes, size_t n, VectorLevels levels not None, Py_ssize_t k):
    """Return (distances, indices), both (queries, k).

    Queries are finite contiguous float32 (queries, groups * d), codes uint8 (n, groups), or those of `pack_codes`, all
    below the number of levels.
    """
    cdef cnp.ndarray a = contiguous(codes)
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0)
    cdef qk_pq_book book = levels.over(<size_t>cnp.PyArray_DIM(queries, 1) // levels.c.d)
    cdef qk_pq_codes stored
    stored.codes, stored.n, stored.packed = uint8s(a), n, cnp.PyArray_NDIM(a) == 3
    cdef cnp.ndarray distances = np.empty((count, k), np.float32), indices = np.empty((count, k), np.int64)
    cdef int done
    if not qk_pq_checks(&stored, &book, <size_t>k):
        refuse_codes(a, book.k)
    with nogil:
        done = qk_pq_search(floats(queries), count, &stored, &book, <size_t>k, floats(distances),
                            <int64_t *>data_of(indices))
    if done == 2:
        raise ValueError(f"codes must be below {book.k}, the number of levels, got {int(a.max())}")
    if not done:
        raise MemoryError(f"no memory for {count} queries")
    return distances, indices


# ---- rounding with feedback ----


def round_rows(cnp.ndarray w, feedback, mask, grid, cnp.ndarray errors, cnp.ndarray loss, sums):
    """Fill codes and errors, which are read, too, if later rows count: all are laid out as `qk_feedback` says.

    feedback: feed (k, ld), near (k, 12) or None, weight (k) and whether later rows count. mask: (k, n), or None. grid:
    None, or (codes, group, scale, zero, qmin, qmax) or (codes, group, scale, levels, thresholds). sums: None, or as
    errors are.
    """
    cdef cnp.ndarray feed = feedback[0], weight = feedback[2]
    cdef qk_feedback p
    memset(&p, 0, sizeof(p))
    p.k, p.n = <size_t>cnp.PyArray_DIM(w, 0), <size_t>cnp.PyArray_DIM(w, 1)
    p.ld = <size_t>cnp.PyArray_DIM(feed, 1)
    p.w, p.feed, p.weight, p.loss = floats(w), floats(feed), floats(weight), reals(loss)
    p.near = NULL if feedback[1] is None else floats(feedback[1])
    p.both, p.errors = feedback[3], floats(errors)
    p.mask = NULL if mask is None else uint8s(mask)
    p.sums = NULL if sums is None else floats(sums)
    if grid is not None:
        set_grid(&p, grid)
    with nogil:
        qk_round(&p)


def start_sums(cnp.ndarray above, cnp.ndarray diagonal, cnp.ndarray rest, cnp.ndarray errors, cnp.ndarray sums):
    """Turn the distances of a first pass into sums: `qk_start_sums`. above is (k, ld)."""
    cdef qk_feedback p
    memset(&p, 0, sizeof(p))
    p.k, p.ld = <size_t>cnp.PyArray_DIM(above, 0), <size_t>cnp.PyArray_DIM(above, 1)
    p.n = <size_t>cnp.PyArray_SIZE(errors) // p.k
    p.feed, p.weight, p.errors, p.sums = floats(above), floats(diagonal), floats(errors), floats(sums)
    with nogil:
        qk_start_sums(&p, floats(rest))


cdef set_grid(qk_feedback *p, grid):
    cdef cnp.ndarray codes = grid[0], group = grid[1], scale = grid[2], first = grid[3], thresholds
    p.codes, p.group, p.scale = <int16_t *>data_of(codes), <const int32_t *>data_of(group), floats(scale)
    if len(grid) == 6:
        p.zero, p.qmin, p.qmax = <const int32_t *>data_of(first), grid[4], grid[5]
        p.levels, p.level, p.threshold = 0, NULL, NULL
    else:
        thresholds = grid[4]
        p.zero, p.levels = NULL, <size_t>cnp.PyArray_DIM(first, 0)
        p.level, p.threshold, p.qmin, p.qmax = floats(first), floats(thresholds), 0, 0


# ---- dense bits and GGUF's blocks ----


def pack_bits(cnp.ndarray codes, int bits):
    """Pack contiguous codes, one a byte, that fit `bits` bits."""
    cdef size_t n = <size_t>cnp.PyArray_SIZE(codes)
    cdef cnp.ndarray data = np.empty((n * bits + 7) // 8, np.uint8)
    with nogil:
        qk_pack_bits(uint8s(codes), n, bits, uint8s(data))
    return data


def unpack_bits(data, int bits, Py_ssize_t n):
    cdef cnp.ndarray codes = np.empty(n, np.uint8), a = contiguous(data)
    with nogil:
        qk_unpack_bits(uint8s(a), <size_t>n, bits, uint8s(codes))
    return codes


# Of each kind of blocks its number, and of a block the values, the bytes, and how many values have one scale.
GGUF = {
    qk_gguf_layouts[i].name.decode(): (i, qk_gguf_layouts[i].values, qk_gguf_layouts[i].bytes, qk_gguf_layouts[i].group)
    for i in range(QK_GGUF_TYPES)
}


def to_gguf(cnp.ndarray x, kind):
    """Return contiguous float32 x in blocks of Q8_0 or Q4_0, and None, or the largest magnitude.

    It is None if float16 holds all scales.
    """
    cdef qk_scope _mode = qk_enter_scope()
    shape = (<object>x).shape
    type, values, size, _ = GGUF[kind]
    cdef cnp.ndarray data = np.empty(shape[:-1] + (shape[-1] // values * size,), np.uint8)
    cdef size_t blocks = <size_t>(cnp.PyArray_SIZE(x) // <Py_ssize_t>values)
    cdef qk_gguf_type to = type
    cdef int32_t most
    with nogil:
        most = qk_to_gguf(floats(x), uint8s(data), blocks, to)
    largest = np.int32(most).view(np.float32)
    cdef bint held = <float>largest / (127 if to == QK_Q8_0 else 8) < 65520   # false of NaN
    return data, None if held else largest


def search_k(cnp.ndarray x, w, kind):
    """Return what the search finds for contiguous float32 x (blocks, 256) and weights, or None.

    These are factors (blocks, 2) of integers (blocks, 2, groups), and codes (blocks, 256), from 0 on.
    """
    type, values, _, group = GGUF[kind]
    cdef size_t blocks = <size_t>cnp.PyArray_DIM(x, 0)
    cdef cnp.ndarray factors = np.empty((blocks, 2), np.float32)
    cdef cnp.ndarray integers = np.empty((blocks, 2, values // group), np.int8)
    cdef cnp.ndarray codes = np.empty((blocks, values), np.uint8)
    cdef const float *weights = NULL if w is None else floats(w)
    cdef qk_gguf_type of = type
    with nogil:
        qk_search_k(floats(x), weights, blocks, of, floats(factors), <int8_t *>data_of(integers), uint8s(codes))
    return factors, integers, codes


def from_gguf(cnp.ndarray data, kind, out):
    """Return the values of blocks."""
    cdef cnp.ndarray a = contiguous(data), y
    type, values, size, _ = GGUF[kind]
    cdef size_t blocks = <size_t>(cnp.PyArray_SIZE(a) // <Py_ssize_t>size)
    cdef qk_gguf_type of = type
    shape = (<object>a).shape
    y = out_array(out, shape[:-1] + (shape[-1] // size * values,), FLOAT32)
    if out is not None:
        refuse_overlap(y, data, "data")
    with nogil:
        qk_from_gguf(uint8s(a), floats(y), NULL, NULL, blocks, of)
    return y if out is None else out


def codes_of_gguf(cnp.ndarray data, kind):
    """Return the codes of blocks, int8, and their scales, without what is added to their products."""
    type, values, size, group = GGUF[kind]
    cdef cnp.ndarray a = contiguous(data)
    cdef qk_gguf_type of = type
    lead, count = (<object>a).shape[:-1], (<object>a).shape[-1] // size
    cdef size_t blocks = <size_t>(cnp.PyArray_SIZE(a) // <Py_ssize_t>size)
    cdef cnp.ndarray q = np.empty(lead + (count * values,), np.int8)
    cdef cnp.ndarray scale = np.empty(lead + (count * values // group,), np.float32)
    with nogil:
        qk_from_gguf(uint8s(a), NULL, <int8_t *>data_of(q), floats(scale), blocks, of)
    return q, scale
