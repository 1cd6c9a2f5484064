# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind clustering: k-means of points, and the best clusters on a line."""

from libc.stdint cimport int32_t, uint16_t

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals

from .arrays cimport data_of, float_type, int32s, PyArray_TYPE, reals
from .c cimport (
    qk_cluster_lines, qk_count_codes, qk_distinct_points, qk_dtype, qk_kmeans, qk_kmeans_assign, qk_kmeans_counts,
    qk_kmeans_distances, qk_kmeans_errors, qk_kmeans_seed, qk_label_lines, qk_lines, QK_LINES_NO_MEMORY,
    qk_lines_status, QK_LINES_STOPPED, QK_LINES_TOO_WIDE, qk_look_up,
)

cnp.import_array()


cdef enum:
    FILLED_AT_ONCE = 1 << 21


@cython.binding(False)  # which checks whose method is called
cdef class KMeans:
    """Hold contiguous points x (n, d), float32 or float64, with their labels and bounds, for _kmeans.py.

    Every call leaves all of it as the next one needs it.
    """

    cdef qk_kmeans c
    cdef size_t chunks
    cdef readonly object x, weights, labels, sums
    cdef object centroids, distance, half, moved, passed, upper, lower, dtype

    def __init__(self, cnp.ndarray x, weights, Py_ssize_t k, Py_ssize_t chunk, bint with_distances):
        n, d = (<object>x).shape
        self.x, self.weights, self.dtype = x, weights, (<object>x).dtype
        self.c.type = <qk_dtype>float_type(x, "x")
        self.c.n, self.c.d, self.c.k, self.c.chunk = n, d, k, chunk
        self.c.x, self.c.weight = data_of(x), reals(weights)
        self.labels, self.half = np.empty(n, np.int32), np.empty(k, self.dtype)
        self.upper, self.lower = np.empty(n, self.dtype), np.empty(n, self.dtype)
        self.distance = np.empty((k, k), self.dtype) if with_distances else None
        self.chunks = (n + chunk - 1) // chunk
        self.c.stride = (d + 8) // 8 * 8
        memory = np.empty(int(self.chunks) * k * int(self.c.stride) + 8)   # may exceed Py_ssize_t
        start = -memory.ctypes.data % 64 // 8
        self.sums = memory[start : memory.size - 8 + start].reshape(self.chunks, k, self.c.stride)[..., : d + 1]
        self.c.labels, self.c.sums, self.c.half = int32s(self.labels), reals(self.sums), data_of(self.half)
        self.c.upper, self.c.lower = data_of(self.upper), data_of(self.lower)
        self.forget()

    def forget(self):
        """Forget all of the points: labels are 0, and any centroid may be nearer."""
        self.centroids = None
        for array, value in ((self.labels, 0), (self.upper, np.inf), (self.lower, 0)):
            for first in range(0, self.c.n, FILLED_AT_ONCE):   # new pages take long, and Cython sees no signals
                array[first : first + FILLED_AT_ONCE] = value
                PyErr_CheckSignals()
        self._use_distances(False)

    cdef _use_distances(self, bint use):
        self.c.distance = data_of(self.distance) if use else NULL
        if not use:
            self.half[:] = 0

    def place(self, centroids):
        """Move the centroids (k, d), which have the type of x."""
        table = np.concatenate([centroids, np.full((1, self.c.d), np.inf)], dtype=self.dtype)
        eps, moved = np.finfo(self.dtype).eps, np.zeros(self.c.k)
        if self.centroids is not None:
            moved = np.sqrt(np.square(np.subtract(table[:-1], self.centroids[:-1], dtype=np.float64)).sum(axis=1))
            moved *= 1 + (self.c.d + 16) * eps
        most = np.argmax(moved)
        passed = np.full(self.c.k, moved[most])
        passed[most] = np.delete(moved, most).max(initial=0)
        up = (np.nextafter(bound.astype(self.dtype), np.inf, dtype=self.dtype) for bound in (moved, passed))
        self.moved, self.passed = up
        self.c.moved, self.c.passed = data_of(self.moved), data_of(self.passed)
        self.centroids = table
        self.c.centroids = data_of(table)

    def assign(self):
        """Label points by the centroids as they are placed, add up `sums` of chunks, return how many labels changed."""
        cdef qk_kmeans_counts counts
        cdef int done = 1
        counts.changed = counts.by_label = 0
        if self.c.distance:
            with nogil:
                done = qk_kmeans_distances(&self.c)
        if done:
            with nogil:
                done = qk_kmeans_assign(&self.c, 0, self.chunks, &counts)
        if not done:
            raise MemoryError(f"no memory for chunks of {self.c.chunk} points")
        self._use_distances(self.distance is not None and (counts.by_label > 0 or not self.c.distance))
        return counts.changed

    def errors(self, cnp.ndarray each=None):
        """Return the sums over chunks of weight * squared distance to the label's centroid; `each` gets the terms."""
        cdef cnp.ndarray parts = np.empty(self.chunks)
        with nogil:
            qk_kmeans_errors(&self.c, reals(each), reals(parts))
        return parts

    def seed(self, cnp.ndarray seeds, cnp.ndarray nearest, bint update):
        """Return (chunks, seeds) sums of weight * min(nearest, squared distance); `update` stores a seed's minima."""
        cdef size_t count = cnp.PyArray_DIM(seeds, 0)
        cdef cnp.ndarray potential = np.empty((self.chunks, count))
        cdef int done
        with nogil:
            done = qk_kmeans_seed(&self.c, data_of(seeds), count, update, data_of(nearest), reals(potential))
        if not done:
            raise MemoryError(f"no memory for points of {self.c.d} values")
        return potential


# ---- clustering on a line ----


@cython.binding(False)  # which checks whose method is called
cdef class Stop:
    """Tell loops that run without the GIL to give up.

    The reason is a signal's exception, kept in `error`, or another thread that calls `now`.
    """

    cdef readonly object error
    cdef bint asked

    def now(self):
        self.asked = True


cdef int must_stop(void *context) noexcept with gil:
    stop = <Stop>context
    try:
        PyErr_CheckSignals()   # does nothing but in the main thread
    except BaseException as error:
        stop.error, stop.asked = error, True
    return stop.asked


cdef int raise_unless_done(qk_lines_status status, Stop stop, size_t n) except -1:
    if status == QK_LINES_STOPPED:   # by a signal, or by the thread that got one
        raise KeyboardInterrupt if stop.error is None else stop.error
    if status == QK_LINES_NO_MEMORY:
        raise MemoryError(f"no memory to cluster lines of {n} values")
    if status == QK_LINES_TOO_WIDE:
        raise ValueError("gaps and weights must be within 2**-200 .. 2**200 here, where long double is double")
    return 0


def distinct_points(cnp.ndarray values, cnp.ndarray weights):
    """Return the number n of different values, float64, whose weight is not 0.

    The first n of both arrays are then these, ascending, and the sums of their weights.
    """
    cdef qk_lines p
    cdef qk_lines_status status
    cdef int32_t count
    stop = Stop()
    p.lines, p.n, p.integers, p.pinned = 1, cnp.PyArray_DIM(values, 0), 0, 0
    p.values, p.weights, p.counts = data_of(values), reals(weights), &count
    p.stop, p.context = must_stop, <void *>stop
    with nogil:
        status = qk_distinct_points(&p)
    raise_unless_done(status, stop, p.n)
    return count


def cluster_lines(cnp.ndarray values, weights, Py_ssize_t k, found, Stop stop, bint signed=False, bint pinned=False):
    """Cluster each line best: see qk_lines. Values (lines, n) are float64, or uint64; they and weights are overwritten.

    `found` are the arrays to fill: centroids, limits, counts, inertia, and exponents or None.
    """
    centroids, limits, counts, inertia, exponents = found
    cdef qk_lines p
    cdef qk_lines_status status
    p.lines, p.n, p.k = cnp.PyArray_DIM(values, 0), cnp.PyArray_DIM(values, 1), k
    p.integers = 0 if PyArray_TYPE(values) == cnp.NPY_DOUBLE else 2 if signed else 1
    p.pinned, p.values, p.weights = pinned, data_of(values), reals(weights)
    p.centroids, p.limits, p.counts = reals(centroids), data_of(limits), int32s(counts)
    p.inertia, p.exponents = reals(inertia), int32s(exponents)
    p.stop, p.context = must_stop, <void *>stop
    with nogil:
        status = qk_cluster_lines(&p)
    raise_unless_done(status, stop, p.n)


def label_lines(cnp.ndarray values, cnp.ndarray limits, cnp.ndarray counts, cnp.ndarray labels):
    """Fill labels (lines, n), uint8 or int32: of how many `limits`, which have its type, each value is above."""
    cdef size_t lines = cnp.PyArray_DIM(values, 0), n = cnp.PyArray_DIM(values, 1), k = cnp.PyArray_DIM(limits, 1)
    cdef int integers = PyArray_TYPE(values) != cnp.NPY_DOUBLE, as_int32 = PyArray_TYPE(labels) == cnp.NPY_INT32
    with nogil:
        qk_label_lines(data_of(values), integers, lines, n, data_of(limits), k, int32s(counts), data_of(labels),
                       as_int32)


def count_codes(cnp.ndarray codes, cnp.ndarray weights, cnp.ndarray bins):
    """Add the weight of each code (uint16), or 1, to its bin; return False if a weight is negative or not finite."""
    cdef int valid
    with nogil:
        valid = qk_count_codes(<const uint16_t *>data_of(codes), reals(weights), <size_t>cnp.PyArray_SIZE(codes),
                               reals(bins))
    return bool(valid)


def look_up(cnp.ndarray codes, cnp.ndarray table, cnp.ndarray labels):
    """Look codes (uint16) up in a table, uint8 or int32."""
    cdef int as_int32 = PyArray_TYPE(labels) == cnp.NPY_INT32
    with nogil:
        qk_look_up(<const uint16_t *>data_of(codes), <size_t>cnp.PyArray_SIZE(codes), data_of(table), data_of(labels),
                   as_int32)
