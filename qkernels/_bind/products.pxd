# cython: language_level=3, cdivision=True, freethreading_compatible=True
cimport numpy as cnp

from .elementwise cimport Params
from .weights cimport Layer, Packed


cdef int check_status(int status, object x) except -1
cdef int codes_type(cnp.ndarray a, object name, object also=*) except -1
cdef Layer new_layer(cnp.ndarray q, Params of, Params to, Packed b, biases, how, tuple options)
