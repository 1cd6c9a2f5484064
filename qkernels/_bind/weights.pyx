# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind packed weights: which panels hold what, and how they come back."""

from libc.float cimport FLT_MAX
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t

import numpy as np

cimport numpy as cnp
from cpython.pyport cimport PY_SSIZE_T_MAX

from .arrays import holds_as_half, raise_not_finite

from .arrays cimport BF16_NUM, BRIEF, PyArray_TYPE
from .c cimport (
    qk_active, QK_BF16, QK_F16, qk_gemm16_bytes, qk_gemm16_init, qk_gemm16_pack, qk_gemm16_unpack, qk_gemm4_bytes,
    qk_gemm4_init, qk_gemm4_init_levels, qk_gemm4_pack, qk_gemm4_params, qk_gemm4_unpack, qk_gemm8_bytes,
    qk_gemm8_init, qk_gemm8_kernels, qk_gemm8_kernels_for, qk_gemm8_pack, qk_gemm8_unpack, qk_gemmf16_bytes,
    qk_gemmf16_init, qk_gemmf16_pack, qk_gemmf16_unpack, QK_I4, qk_kernels, QK_U4,
)
from .elementwise cimport params_of

cnp.import_array()


cdef class Packed:
    """Hold a PackedMatrix (_weights.py), which has checked the arguments, in the panels that an instruction set reads.

    b is (k, n), of any strides: int8 or uint8, which fill `c`, or `gemm4` if blocks of rows have scales of their own,
    int4 or uint4, which fill `gemm4`, float16 or bfloat16, which fill `gemmf16`, or int16, which fill `gemm16`. Without
    params it has no scales, and zero points are the caller's. If params are a Codebook, `levels` says what b, uint8,
    stands for: int8 levels (1 or n, 16), their float32 scales (1 or n), and the scales of blocks (blocks, n) or None.

    What the products read, it holds; what they do not is made of that when it is asked for. `_kept` is what is missing
    then: QParams per tensor, of others (qmin, qmax, axis, block_size), or the Codebook.
    """

    def __cinit__(self, cnp.ndarray b not None, params, levels=None):
        self.dtype = np.dtype(b.dtype.type)
        self.k, self.n = cnp.PyArray_DIM(b, 0), cnp.PyArray_DIM(b, 1)
        if PyArray_TYPE(b) in (cnp.NPY_FLOAT16, BF16_NUM):
            self.pack_gemmf16(b)
            return
        if PyArray_TYPE(b) == cnp.NPY_INT16:
            self.pack_gemm16(b, params)
            return
        if levels is not None:
            self._kept = params
            self.pack_levels(b, levels[0], levels[1], levels[2])
            return
        if params is not None and (params_of(params).storage in (QK_I4, QK_U4) or params.block_size is not None):
            self.pack_blocks(b, params_of(params))
            return
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        cdef int is_unsigned = PyArray_TYPE(b) == cnp.NPY_UINT8
        cdef const qk_kernels *kernels = qk_active()
        cdef const qk_gemm8_kernels *gemm8 = NULL
        if params is not None:  # packed once, used often
            gemm8 = qk_gemm8_kernels_for(kernels, data, row_stride, col_stride, <size_t>self.k, <size_t>self.n,
                                         is_unsigned)
        qk_gemm8_init(&self.c, kernels, gemm8, <size_t>self.k, <size_t>self.n, is_unsigned)
        self.c.panels = <int8_t *>self.panels_of(qk_gemm8_bytes(&self.c), self.c.n_pad)
        self.colsum = np.empty(self.n_pad, np.int32)
        self.c.colsum = <int32_t *>cnp.PyArray_DATA(self.colsum)
        cdef const int32_t *zero = NULL
        if params is not None:
            zero_point = self.keep_columns(params)
            zero = <const int32_t *>cnp.PyArray_DATA(zero_point)
        if self.panel_bytes <= BRIEF:
            self.bound = qk_gemm8_pack(&self.c, data, row_stride, col_stride, zero)
        else:
            with nogil:
                self.bound = qk_gemm8_pack(&self.c, data, row_stride, col_stride, zero)

    cdef cnp.ndarray keep_columns(self, Params params):
        """Keep scales and zero points of columns, padded to whole panels, and return the latter."""
        self.keep(params)
        self.scale = self.padded(params.scale, np.float32)
        zero_point = self.padded(params.zero_point, np.int32)
        if np.any(zero_point):
            self.zero_point = zero_point
        self.least_scale, self.most_scale = np.min(params.scale, initial=FLT_MAX), np.max(params.scale, initial=0)
        return zero_point

    cdef int keep(self, Params params) except -1:
        self._kept = params if params.axis is None else (params.qmin, params.qmax, params.axis, params.block_size)
        return 0

    cdef int pack_blocks(self, cnp.ndarray b, Params params) except -1:
        """Fill `gemm4`. Per tensor or per column, all rows are one block; equal zero points are kept once."""
        cdef qk_block_params p
        cdef cnp.ndarray zero_point = np.asarray(params.zero_point)
        cdef int32_t zero = zero_point.flat[0] if zero_point.size else 0
        cdef int bits = 4 if params.storage in (QK_I4, QK_U4) else 8
        if bits == 8:
            zero = 0 if params.qmin < 0 else 128
        cdef bint own_zeros = bool(np.any(zero_point != zero))
        cdef bint half_scales = holds_as_half(params.scale)
        cdef Py_ssize_t block = max(self.k if params.block_size is None else min(params.block_size, self.k), 1)
        if self.k:
            self.keep(params)
        else:   # there are no panels to hold them
            self._kept = params
        qk_gemm4_init(&self.gemm4, qk_active(), <size_t>self.k, <size_t>self.n, <size_t>block, bits,
                      params.qmin < 0, half_scales, own_zeros, zero)
        p.scale, p.zero_point = params.c.scale, params.c.zero_point
        p.col_stride = params.axis is not None
        p.row_stride = <size_t>self.n if params.block_size is not None else 0
        return self.fill_gemm4(b, &p)

    cdef int pack_levels(self, cnp.ndarray b, cnp.ndarray levels, cnp.ndarray level_scale, scales) except -1:
        """Fill `gemm4` with codes. Levels of each column stand in the panels."""
        cdef qk_block_params p
        cdef bint own = cnp.PyArray_DIM(levels, 0) != 1 or self._kept.axis == 1
        cdef cnp.ndarray of_blocks = level_scale if own else np.ones(1, np.float32) if scales is None else scales
        cdef Py_ssize_t block = max(self.k if scales is None else min(self._kept.block_size, self.k), 1)
        cdef float one_scale = 1 if own else level_scale[0]
        qk_gemm4_init_levels(&self.gemm4, qk_active(), <size_t>self.k, <size_t>self.n, <size_t>block,
                             not own and holds_as_half(of_blocks), <const int8_t *>cnp.PyArray_DATA(levels),
                             own, one_scale)
        p.scale, p.zero_point = <const float *>cnp.PyArray_DATA(of_blocks), NULL
        p.col_stride = own or scales is not None
        p.row_stride = 0 if scales is None else <size_t>self.n
        self.fill_gemm4(b, &p)
        if own:
            self.gemm4.levels = NULL
        else:
            self.levels = levels
        return 0

    cdef int fill_gemm4(self, cnp.ndarray b, const qk_block_params *p) except -1:
        self.is_gemm4 = True
        self.gemm4.panels = <uint8_t *>self.panels_of(qk_gemm4_bytes(&self.gemm4), self.gemm4.n_pad)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        with nogil:
            qk_gemm4_pack(&self.gemm4, data, row_stride, col_stride, p)
        return 0

    cdef int pack_gemmf16(self, cnp.ndarray b) except -1:
        """Fill `gemmf16` with weights that must be finite."""
        b = np.require(b, requirements="A")
        qk_gemmf16_init(&self.gemmf16, qk_active(), <size_t>self.k, <size_t>self.n,
                        QK_BF16 if PyArray_TYPE(b) == BF16_NUM else QK_F16)
        self.is_gemmf16 = True
        self.gemmf16.panels = <uint16_t *>self.panels_of(qk_gemmf16_bytes(&self.gemmf16), self.gemmf16.n_pad)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        cdef int finite
        with nogil:
            finite = qk_gemmf16_pack(&self.gemmf16, data, row_stride, col_stride)
        if not finite:
            raise_not_finite(b, "b")
        return 0

    cdef int pack_gemm16(self, cnp.ndarray b, params) except -1:
        """Fill `gemm16`."""
        b = np.require(b, requirements="A")
        qk_gemm16_init(&self.gemm16, qk_active(), <size_t>self.k, <size_t>self.n)
        self.is_gemm16 = True
        self.gemm16.panels = <int16_t *>self.panels_of(qk_gemm16_bytes(&self.gemm16), self.gemm16.n_pad)
        self.colsum = np.zeros(self.n_pad, np.int64)
        self.gemm16.colsum = <int64_t *>cnp.PyArray_DATA(self.colsum)
        if params is not None:
            self.keep_columns(params)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        with nogil:
            qk_gemm16_pack(&self.gemm16, data, row_stride, col_stride)
        return 0

    cdef void *panels_of(self, size_t size, size_t n_pad) except NULL:
        """Allocate `size` bytes for panels of n_pad columns, aligned to 64."""
        if max(size, n_pad) > <size_t>PY_SSIZE_T_MAX - 63:
            raise MemoryError(f"no memory for packed weights of shape {self.shape}")
        cdef cnp.npy_intp length = <cnp.npy_intp>size + 63
        cdef cnp.ndarray buffer = cnp.PyArray_EMPTY(1, &length, cnp.NPY_UINT8, 0)
        self.panels, self.panel_bytes, self.n_pad = buffer, <Py_ssize_t>size, <Py_ssize_t>n_pad
        return <char *>cnp.PyArray_DATA(buffer) + (-<Py_ssize_t>cnp.PyArray_DATA(buffer) & 63)

    cdef padded(self, values, dtype):
        """Return one entry a column, and zeros up to whole panels."""
        result = np.zeros(self.n_pad, dtype)
        result[: self.n] = values
        return result

    @property
    def shape(self):
        return self.k, self.n

    @property
    def nbytes(self):
        arrays = self.colsum, self.scale, self.zero_point, self.levels
        held = sum([array.nbytes for array in arrays if array is not None])
        if isinstance(self._kept, Params):
            held += (<Params>self._kept).nbytes()
        elif hasattr(self._kept, "levels"):
            held += self._kept.levels.nbytes
        return self.panel_bytes + held

    def _columns(self):
        """Return float32 scales and int32 zero points: (N,), or (blocks, N) if they stand in panels of blocks.

        Those are weights in blocks, all weights of 4 bits, and codes of a codebook.
        """
        if not self.is_gemm4:
            zeros = np.zeros(self.n, np.int32) if self.zero_point is None else self.zero_point[: self.n]
            return self.scale[: self.n], zeros
        shape = self.gemm4.blocks, self.n
        cdef cnp.ndarray scale = np.empty(shape, np.float32), zero_point = np.empty(shape, np.int32)
        if scale.size:
            qk_gemm4_params(&self.gemm4, <float *>cnp.PyArray_DATA(scale), <int32_t *>cnp.PyArray_DATA(zero_point))
        return scale, zero_point

    def unpack(self):
        """Return the weights as they were packed: (K, N), of dtype `dtype`."""
        codes = np.empty((self.k, self.n), self.dtype)
        cdef void *to = cnp.PyArray_DATA(codes)
        if codes.size == 0:   # there may be more rows or columns than a loop can count
            return codes
        with nogil:
            if self.is_gemmf16:
                qk_gemmf16_unpack(&self.gemmf16, to)
            elif self.is_gemm16:
                qk_gemm16_unpack(&self.gemm16, <int16_t *>to)
            elif self.is_gemm4:
                qk_gemm4_unpack(&self.gemm4, to)
            else:
                qk_gemm8_unpack(&self.c, to)
        return codes


cpdef int need_eight_bits(Packed b, name) except -1:
    """Raise unless the weights given as `name` are those of 8 bits, which have one integer product for all."""
    if b.is_gemm4 or b.is_gemmf16 or b.is_gemm16:
        needs, what = "8-bit weights", b.dtype.name
        if b.is_gemm4 and b.gemm4.bits == 8:
            needs, what = "weights with one scale a column", f"{what} with a scale for each block of rows"
        elif b.dtype == np.uint8:
            what = "codes of a Codebook"
        raise TypeError(f"{name} must hold {needs}, got {what}: such weights are for linear")
    return 0
