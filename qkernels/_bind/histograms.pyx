# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind histograms of floats: counts of lines on a grid that never moves, and what a range loses of a distribution."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals

from .arrays cimport data_of, floats, reals
from .c cimport (
    qk_bins, QK_BLOCKS, qk_divergences, qk_histogram, qk_histogram_block, qk_histogram_count, qk_histogram_free,
    qk_histogram_least, qk_histogram_merge, qk_histogram_most, qk_histogram_new,
)

cnp.import_array()


cdef class Histogram:
    """Hold the counts of lines of values in 2**bits bins for each sign and power of two, and their extremes.

    `total` changes with them: no signal handler, which may raise, runs in between.
    """

    cdef qk_histogram *c
    cdef readonly Py_ssize_t lines
    cdef readonly int64_t total
    cdef readonly int bits

    def __cinit__(self, Py_ssize_t lines, int bits):
        self.lines, self.bits = lines, bits
        self.c = qk_histogram_new(<size_t>lines, bits)
        if not self.c:
            raise MemoryError(f"no memory for the histograms of {lines} lines")

    def __dealloc__(self):
        qk_histogram_free(self.c)

    def count(self, cnp.ndarray x, size_t first):
        """Count contiguous float32 x (rows, n), of the lines from `first` on; return whether all values are finite.

        If not, or if it raises, a single row has not been counted.
        """
        cdef int status
        with nogil:
            status = qk_histogram_count(self.c, floats(x), first, <size_t>cnp.PyArray_DIM(x, 0),
                                        <size_t>cnp.PyArray_DIM(x, 1))
        if status < 0:
            raise MemoryError("no memory for the counts of x")
        if status == 1:
            self.total += <int64_t>cnp.PyArray_SIZE(x)
        return status == 1

    def merge(self, Histogram other):
        """Add the counts of another of the same lines and bins."""
        cdef int done
        with nogil:
            done = qk_histogram_merge(self.c, other.c)
        if not done:
            raise MemoryError(f"no memory for the histograms of {self.lines} lines")
        self.total += other.total

    def read(self, Py_ssize_t begin, Py_ssize_t end):
        """Return (blocks, counts, ranks): blocks with counts (b,), int64 (lines, b, bins), int32 (2, lines)."""
        cdef Py_ssize_t line, block, i
        cdef uint64_t *found
        cdef Py_ssize_t size = 1 << self.bits
        present = [b for b in range(QK_BLOCKS) if self._has(b, begin, end)]
        counts = np.zeros((end - begin, len(present), size), np.int64)
        for line in range(begin, end):
            PyErr_CheckSignals()
            for i, block in enumerate(present):
                found = qk_histogram_block(self.c, <size_t>line, <size_t>block, 0)
                if found:
                    memcpy(data_of(counts[line - begin, i]), found, <size_t>size * sizeof(uint64_t))
        ranks = np.empty((2, end - begin), np.int32)
        memcpy(data_of(ranks[0]), qk_histogram_least(self.c) + begin, <size_t>(end - begin) * sizeof(int32_t))
        memcpy(data_of(ranks[1]), qk_histogram_most(self.c) + begin, <size_t>(end - begin) * sizeof(int32_t))
        return np.array(present, np.uint16), counts, ranks

    def _has(self, size_t block, Py_ssize_t begin, Py_ssize_t end):
        cdef size_t line, i
        cdef uint64_t *found
        PyErr_CheckSignals()
        for line in range(<size_t>begin, <size_t>end):
            found = qk_histogram_block(self.c, line, block, 0)
            if found:
                for i in range(<size_t>1 << self.bits):
                    if found[i]:
                        return True
        return False

    def write(self, blocks, cnp.ndarray counts, cnp.ndarray ranks):
        """Fill an empty histogram with what `read` has given."""
        cdef Py_ssize_t line, i
        cdef uint64_t *to
        cdef Py_ssize_t size = 1 << self.bits
        for line in range(self.lines):
            PyErr_CheckSignals()
            for i, block in enumerate(blocks):
                to = qk_histogram_block(self.c, <size_t>line, <size_t>block, 1)
                if not to:
                    raise MemoryError(f"no memory for the histograms of {self.lines} lines")
                memcpy(to, data_of(counts[line, i]), <size_t>size * sizeof(uint64_t))
        memcpy(qk_histogram_least(self.c), data_of(ranks[0]), <size_t>self.lines * sizeof(int32_t))
        memcpy(qk_histogram_most(self.c), data_of(ranks[1]), <size_t>self.lines * sizeof(int32_t))
        self.total = counts.sum()


def divergences(cnp.ndarray begin, cnp.ndarray end, cnp.ndarray count, size_t cells, cnp.ndarray lo, cnp.ndarray hi):
    """Return what each of the ranges lo .. hi, of so many cells, loses of the distribution of these bins.

    All arrays are contiguous float64; bins are in ascending order and not empty.
    """
    cdef qk_bins bins
    cdef cnp.ndarray found = np.empty_like(lo)
    cdef int done
    bins.n, bins.begin, bins.end, bins.count = <size_t>cnp.PyArray_SIZE(begin), reals(begin), reals(end), reals(count)
    with nogil:
        done = qk_divergences(&bins, cells, <size_t>cnp.PyArray_SIZE(lo), reals(lo), reals(hi), reals(found))
    if not done:
        raise MemoryError(f"no memory for the divergences of {bins.n} bins")
    return found
