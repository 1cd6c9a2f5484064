# cython: language_level=3, cdivision=True, freethreading_compatible=True
cimport numpy as cnp

from .c cimport qk_epilogue, qk_image, qk_weights
from .elementwise cimport Params


cdef class Layer:
    cdef Params of, to
    cdef tuple options           # the caller's, by which the same call is known; None: it must not be kept
    cdef cnp.ndarray bias        # a copy
    cdef qk_epilogue epilogue    # but for what differs from call to call
    cdef tuple columns           # the arrays that it points to
    cdef qk_image image          # of a convolution, but for its codes; of at least as many
    cdef size_t filters, groups

    cdef Py_ssize_t nbytes(self)


cdef class Packed:
    cdef qk_weights c
    cdef readonly object _kept
    cdef readonly object dtype   # that of b, in native byte order
    cdef object memory           # of c
    cdef Layer last              # the call before

    cdef void *obtain(self) except? NULL
    cdef padded(self, values, dtype)


cdef Layer last_layer(Packed b, params, out_params, bias, tuple options)
cdef int keep_layer(Packed b, Layer layer) except -1
cpdef int need_eight_bits(Packed b, name) except -1
