# cython: language_level=3, cdivision=True, freethreading_compatible=True
from .c cimport qk_weights


cdef class Packed:
    cdef qk_weights c
    cdef readonly object _kept
    cdef readonly object dtype   # that of b, in native byte order
    cdef object memory           # of c

    cdef void *obtain(self) except? NULL
    cdef padded(self, values, dtype)


cpdef int need_eight_bits(Packed b, name) except -1
