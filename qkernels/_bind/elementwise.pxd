# cython: language_level=3, cdivision=True, freethreading_compatible=True
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t

cimport numpy as cnp

from .c cimport qk_code_params, qk_dtype, qk_params


cdef class Params:
    cdef qk_params c
    cdef qk_dtype storage
    cdef readonly object scale, zero_point, dtype, axis, block_size, qmin, qmax
    cdef readonly bint codes_are_floats
    cdef readonly object block_scale, block_shift   # (blocks, n) of integer scales, or None
    cdef object reciprocal
    cdef int c_axis
    cdef float one_scale
    cdef int32_t one_zero_point

    cdef Py_ssize_t nbytes(self)
    cdef bint fits(self, cnp.ndarray x, int axis)
    cdef int lay_over(self, cnp.ndarray x, qk_params *p, name) except -1


cdef int rows_are_finite(const void *x, size_t rows, size_t cols, ptrdiff_t row_stride) except -1
cdef multipliers_of_scales(Params a, b_scale, Params of_result)


cdef inline Params params_of(params):
    if not isinstance(params, Params):
        raise TypeError(f"params must be QParams, got {type(params).__name__}")
    return <Params>params


cdef inline qk_code_params code_params(Params p):
    """Return those of a tensor, as layers on codes have them."""
    return qk_code_params(p.one_scale, p.one_zero_point, p.c.qmin, p.c.qmax)
