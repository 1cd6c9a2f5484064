# cython: language_level=3, cdivision=True, freethreading_compatible=True
from libc.stdint cimport int64_t

cimport numpy as cnp

from .c cimport qk_block_params, qk_gemm4_weights, qk_gemm8_weights, qk_gemm16_weights, qk_gemmf16_weights
from .elementwise cimport Params


cdef class Packed:
    cdef qk_gemm8_weights c
    cdef qk_gemm4_weights gemm4
    cdef qk_gemmf16_weights gemmf16
    cdef qk_gemm16_weights gemm16
    cdef bint is_gemm4, is_gemmf16, is_gemm16
    cdef readonly object _kept
    cdef readonly object dtype       # that of b, in native byte order
    cdef object panels, colsum, scale, zero_point, levels   # zero_point: None if all are 0
    cdef int64_t bound               # max over columns of sum |b - zero_point|
    cdef Py_ssize_t k, n, n_pad, panel_bytes
    cdef float least_scale, most_scale

    cdef cnp.ndarray keep_columns(self, Params params)
    cdef int keep(self, Params params) except -1
    cdef int pack_blocks(self, cnp.ndarray b, Params params) except -1
    cdef int pack_levels(self, cnp.ndarray b, cnp.ndarray levels, cnp.ndarray level_scale, scales) except -1
    cdef int fill_gemm4(self, cnp.ndarray b, const qk_block_params *p) except -1
    cdef int pack_gemmf16(self, cnp.ndarray b) except -1
    cdef int pack_gemm16(self, cnp.ndarray b, params) except -1
    cdef void *panels_of(self, size_t size, size_t n_pad) except NULL
    cdef padded(self, values, dtype)


cpdef int need_eight_bits(Packed b, name) except -1
