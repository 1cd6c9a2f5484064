"""Cluster on a line: the global optimum. Formulas: docs/numerics.md, section 13."""

from functools import cache
from typing import NamedTuple

import numpy as np

from ._bind import clusters, runtime
from ._bind.arrays import contiguous_as, raise_not_finite
from ._checks import check_weights, doubles, in_parts, integer, optional_int, reals
from ._kmeans import KMeansResult
from ._mode import default_mode

CHUNK = 1 << 15  # points of a line at a time, whose doubles fit the L2 cache
BLOCK = 1 << 16  # points of several lines
MIN_HISTOGRAM = 1 << 14  # points from which a histogram of 65,536 codes is cheaper than sorting
MOST_COUNTED = 2.0**900  # weight up to which the sum of all is a double


@default_mode
def kmeans1d(x, k, *, weights=None, axis=None):
    """Find the k centroids that minimise the weighted sum of squared distances: the global optimum, or one of several.

    Parameters
    ----------
    x : array of float16, bfloat16, float32, float64 or integers
        Finite, any shape but empty, of any magnitudes. 64-bit integers are clustered exactly.
    k : int
        At least 1.
    weights : array, optional
        Real, finite, not negative, not all 0: of the shape of x, or with `axis` also of shape ``(x.shape[axis],)``, the
        same for each line. A point of weight 0 gets a label, and counts for nothing else. Rounded to double.
    axis : int, optional
        Cluster each line along this axis by itself. None: all values of x together.

    Returns
    -------
    KMeansResult
        centroids : float64, ascending. Without `axis` there are ``min(k, number of distinct values)`` of them (values
        of positive weight). With it the shape is ``x.shape`` without `axis`, then k; lines with fewer repeat their
        last.
        labels : the shape of x; uint8 for ``k <= 256``, else int32. The nearest centroid, the lower index of two; if
        rounding a centroid makes two as near, the cluster of the optimum.
        inertia : float, or float64 array of the shape of x without `axis`. The optimum rounded to float64: infinite or
        0 if that is beyond its range.

    Raises
    ------
    TypeError
        If x or weights have another dtype, or k or axis is no integer.
    ValueError
        If x or weights hold NaN or infinity (how many, and where the first is), x is empty, k is below 1, a weight is
        negative, all weights of a line are 0, or a shape or axis does not fit.

    References
    ----------
    Aggarwal, Schieber and Tokuyama 1994, Finding a minimum-weight k-link path in graphs with the concave Monge property
    and applications; Grønlund et al. 2017, Fast exact k-means, k-medians and Bregman divergence clustering in 1D.

    Examples
    --------
    >>> qk.kmeans1d(np.float32([1, 2, 8, 9, 10]), 2)
    KMeansResult(centroids=array([1.5, 9. ]), labels=array([0, 0, 1, 1, 1], dtype=uint8), inertia=2.5)
    >>> qk.kmeans1d([[0, 1, 5], [7, 7, 7]], 2, axis=1).centroids
    array([[0.5, 5. ],
           [7. , 7. ]])
    """
    x = reals(x, "x", "float16, bfloat16, float32, float64 or integers")
    k, axis = integer(k, "k", 1), checked_axis(axis, x.ndim)
    if axis is None:
        k = min(k, 2**31)  # more than there are values
    elif k >= 2**31:  # each line gets so many centroids
        raise ValueError(f"k must be below 2**31, got {k}")
    length = x.size if axis is None else x.shape[axis]
    if length == 0:
        along = "" if axis is None else f" with axis {axis}"
        raise ValueError(f"x must have values to cluster, got shape {x.shape}{along}")
    if length >= 2**31 - 1:
        raise ValueError(f"x may have at most {2**31 - 2} values to cluster together, got {length}")
    lines = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, -1)
    shape, lines = lines.shape, lines.reshape(-1, length)
    given_weights = None if weights is None else reals(weights, "weights")
    weights = None if weights is None else weights_of_lines(given_weights, x, axis, lines.shape)
    labels = np.empty(lines.shape, np.uint8 if k <= 256 else np.int32)
    k = min(k, length) if axis is None else k
    centroids = np.empty((len(lines), k))
    counts, inertia = np.zeros(len(lines), np.int32), np.empty(len(lines))
    counted = x.dtype.itemsize <= 2 and length >= MIN_HISTOGRAM and (weights is None or weights.max() < MOST_COUNTED)
    exact = beyond_doubles(x)

    def cluster(block, stop):
        found = Found(centroids[block], counts[block], inertia[block], labels[block])
        line_weights = None if weights is None else weights[block]
        if counted:
            cluster_by_histogram(lines[block], line_weights, k, found, stop)
        else:
            cluster_by_sorting(lines[block], line_weights, k, exact, found, stop)

    size = max(1, BLOCK // length)
    try:
        for_each(cluster, [slice(first, first + size) for first in range(0, len(lines), size)])
    except Refused:
        explain(x, given_weights, weights)
    if axis is None:
        return KMeansResult(centroids[0, : counts[0]], labels.reshape(x.shape), float(inertia[0]))
    labels = contiguous_as(np.moveaxis(labels.reshape(shape), -1, axis), labels.dtype)
    return KMeansResult(centroids.reshape(*shape[:-1], k), labels, inertia.reshape(shape[:-1]))


def checked_axis(axis, ndim):
    axis = optional_int(axis, "axis")
    if axis is not None and not -ndim <= axis < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for x with {ndim} axes, got {axis}")
    return None if axis is None else axis % ndim


def weights_of_lines(weights, x, axis, shape):
    """Return one weight for each value of the lines, which have this shape."""
    if weights.shape == x.shape:
        return (weights if axis is None else np.moveaxis(weights, axis, -1)).reshape(shape)
    if axis is not None and weights.shape == (x.shape[axis],):
        return np.broadcast_to(weights, shape)
    either = "" if axis is None or x.ndim == 1 else f" or {(x.shape[axis],)}"
    raise ValueError(f"weights must have shape {x.shape}{either}, got {weights.shape}")


class Found(NamedTuple):
    """Hold arrays for the clusters of some lines, to be filled."""

    centroids: np.ndarray
    counts: np.ndarray
    inertia: np.ndarray
    labels: np.ndarray

    def with_limits(self, limits):
        """Return what `cluster_lines` fills."""
        return self.centroids, limits, self.counts, self.inertia, None


class Refused(Exception):
    """Say that some line has values or weights that cannot be clustered."""


def explain(x, weights, weights_of_lines):
    """Raise the ValueError that says which values those are."""
    if not np.isfinite(x).all():
        raise_not_finite(x)
    check_weights(weights, zeros=True)
    line = np.argmin(weights_of_lines.max(axis=-1))
    which = f", as those of line {line} are" if len(weights_of_lines) > 1 else ""
    raise ValueError(f"weights must not all be 0{which}")


def for_each(function, blocks):
    """Call function with each block and what stops it, on as many threads as there may be.

    Which thread has which block makes no difference.
    """
    threads, stop = min(runtime.get_num_threads(), len(blocks)), clusters.Stop()
    if threads < 2:
        for block in blocks:
            function(block, stop)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads)
    try:
        for done in [pool.submit(default_mode(function), block, stop) for block in blocks]:
            done.result()
    finally:  # after a signal or an error, too: no thread goes on
        stop.now()
        pool.shutdown(cancel_futures=True)


# ---- lines of doubles, or of 64-bit integers ----


def beyond_doubles(x):
    """Tell whether there are integers that doubles do not hold."""
    return x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size > 0 and max(-int(x.min()), int(x.max())) > 2**53


def keys(x):
    """Return a new array of uint64 in the order of 64-bit integers."""
    offset = np.uint64(0 if x.dtype.kind == "u" else 2**63)
    return in_parts(lambda part: part.astype(x.dtype.newbyteorder("=")).view(np.uint64) ^ offset, x, np.uint64)


def cluster_by_sorting(lines, weights, k, exact, found, stop):
    """Cluster lines of doubles; or of 64-bit integers, if `exact`."""
    read = keys if exact else doubles
    weights = None if weights is None else doubles(weights)
    limits = np.empty(found.centroids.shape, np.uint64 if exact else np.float64)
    clusters.cluster_lines(read(lines), weights, k, found.with_limits(limits), stop, signed=lines.dtype.kind == "i")
    if not found.counts.all():
        raise Refused
    for first in range(0, lines.shape[1], CHUNK):
        part = np.s_[:, first : first + CHUNK]
        clusters.label_lines(read(lines[part]), limits, found.counts, found.labels[part])


# ---- long lines of 8 and 16 bits ----


@cache
def values_of_codes(dtype):
    """Return the value of every code, and the codes of finite ones by ascending value."""
    bits = 8 * dtype.itemsize
    values = np.arange(2**bits, dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    finite = np.flatnonzero(np.isfinite(values))
    codes = finite[np.argsort(values[finite], kind="stable")]
    return values, codes


def codes_of(values):
    """Return the codes of values of 8 or 16 bits, which are in native byte order, as uint16."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint16)


def cluster_by_histogram(lines, weights, k, found, stop):
    """Cluster one line by the weights of its codes."""
    dtype = lines.dtype.newbyteorder("=")
    bins, line = np.zeros(2 ** (8 * dtype.itemsize)), lines[0]
    parts = [np.s_[first : first + CHUNK] for first in range(0, len(line), CHUNK)]
    for part in parts:
        codes = codes_of(line[part].astype(dtype))
        if not clusters.count_codes(codes, None if weights is None else doubles(weights[0, part]), bins):
            raise Refused
        if dtype.kind not in "iu" and not np.isfinite(line[part]).all():
            raise Refused
    table = cluster_codes(dtype, bins, k, found, stop)
    for part in parts:
        clusters.look_up(codes_of(line[part].astype(dtype)), table, found.labels[0, part])


def cluster_codes(dtype, bins, k, found, stop):
    """Cluster the values of codes by their weights, those of finite ones; return the label of each code."""
    values, codes = values_of_codes(dtype)
    limits = np.empty(found.centroids.shape)
    points, weights = doubles(values[None, codes]), doubles(bins[None, codes])
    clusters.cluster_lines(points, weights, k, found.with_limits(limits), stop)
    if not found.counts.all():
        raise Refused
    table = np.empty((1, len(values)), found.labels.dtype)
    clusters.label_lines(values[None], limits, found.counts, table)
    return table[0]
