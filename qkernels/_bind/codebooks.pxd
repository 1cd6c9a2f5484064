# cython: language_level=3, cdivision=True, freethreading_compatible=True
from .c cimport qk_book, qk_codebook


cdef class Levels:
    cdef qk_codebook c
    cdef qk_book *book
    cdef object buckets
