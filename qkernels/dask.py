"""Calibrate and cluster Dask arrays: workers make partial results of blocks, which a tree of merges joins.

Results depend on the values and their order alone: not on how an array is cut into blocks, on how many workers there
are, nor on which of them die and have their work done again. Everything runs where `dask.compute` does: on the current
`distributed.Client`, if there is one. Needs Dask: ``pip install qkernels[dask]``.
"""

import math
from functools import partial

import numpy as np

from . import _kmeans, _kmeans1d
from ._bind import clusters
from ._bind.arrays import contiguous_as
from ._bind.runtime import word
from ._checks import as_array, boolean, generator, integer, is_a, real, shown
from ._kmeans import KMeansResult
from ._mode import default_mode
from .observers import MovingAverage, _Observer

__all__ = ["calibrate", "kmeans", "kmeans1d"]

FAN_IN = 8  # partial results that are joined at a time
ROWS = 1 << 26  # bytes of a row block of kmeans, about: it is the unit of its sums
SAMPLE = 1 << 16  # rows of which seeds are found


def calibrate(x, observer, *, progress=False):
    """Show all of a Dask array to an observer.

    Parameters
    ----------
    x : dask.array.Array of float32, float64, float16 or bfloat16
    observer : observer of `qkernels.observers`
        Not a `MovingAverage`, which depends on the order of its updates.
    progress : bool
        Show Dask's progress bar.

    Returns
    -------
    The observer itself, with the bits that ``observer.update(x.compute())`` would give it.

    Raises
    ------
    TypeError, ValueError
        As `update` of the observer does; it has seen nothing of x then.
    """
    x = _dask_array(x)
    if not is_a(observer, _Observer):
        raise TypeError(f"observer must be one of qkernels.observers, got {shown(observer)}")
    if is_a(observer, MovingAverage):
        raise TypeError("observer must not be a MovingAverage, which depends on the order of its updates")
    if observer.axis is not None and -x.ndim <= observer.axis < x.ndim:
        x = x.rechunk({observer.axis % x.ndim: -1})  # so that each block has all lines
    return observer.merge(_computed(_tree(_merged, _partial(_observed, x, observer.empty())), progress))


def _observed(block, observer):
    return observer.empty().update(block)


def _merged(parts):
    """Return a new observer, as what a task is given must stay as it is."""
    found = parts[0].empty()
    for part in parts:
        found.merge(part)
    return found


# ---- clustering on a line ----


def kmeans1d(x, k, *, progress=False):
    """Find the k centroids of least inertia of a Dask array of 8 or 16 bits a value, by counting its values.

    Parameters
    ----------
    x : dask.array.Array of float16, bfloat16, or integers of 8 or 16 bits
    k : int
    progress : bool
        Show Dask's progress bar.

    Returns
    -------
    KMeansResult
        As `qkernels.kmeans1d` gives it for all values together; `labels` is a Dask array like x.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, NaN or infinity, k < 1, and an array without values.
    """
    x, k = _dask_array(x), integer(k, "k", 1)
    if x.dtype.itemsize > 2 or x.dtype.newbyteorder("=") not in _kmeans.REALS:
        raise TypeError(f"x must be an array of float16, bfloat16 or integers of 8 or 16 bits, got {x.dtype}")
    if x.size == 0:
        raise ValueError(f"x must have values to cluster, got shape {x.shape}")
    bins = _computed(_tree(sum, _partial(_counted, x)), progress)
    centroids, inertia, table = _clusters_of_codes(x.dtype.newbyteorder("="), bins, k)
    labels = x.map_blocks(_looked_up, table, dtype=table.dtype, meta=np.empty((0,) * x.ndim, table.dtype))
    return KMeansResult(centroids, labels, inertia)


def _plain(block):
    block = as_array(block, "x")
    return contiguous_as(block, block.dtype.newbyteorder("="))


@default_mode
def _counted(block):
    """Return how many values have each code."""
    block = _plain(block)
    bins = np.zeros(2 ** (8 * block.dtype.itemsize))
    clusters.count_codes(_kmeans1d.codes_of(block.reshape(-1)), None, bins)
    return bins


@default_mode
def _clusters_of_codes(dtype, bins, k):
    """Return centroids, inertia and the label of each code."""
    values, codes = _kmeans1d.values_of_codes(dtype)
    if bad := int(bins.sum() - bins[codes].sum()):
        raise ValueError(f"x has {bad} NaN or infinite values")
    labels = np.empty((1, 1), np.uint8 if k <= 256 else np.int32)
    k = min(k, len(codes))
    found = _kmeans1d.Found(np.empty((1, k)), np.zeros(1, np.int32), np.empty(1), labels)
    table = _kmeans1d.cluster_codes(dtype, bins, k, found, clusters.Stop())
    return found.centroids[0, : found.counts[0]], float(found.inertia[0]), table


@default_mode
def _looked_up(block, table):
    block = _plain(block)
    labels = np.empty(block.size, table.dtype)
    clusters.look_up(_kmeans1d.codes_of(block.reshape(-1)), table, labels)
    return labels.reshape(block.shape)


# ---- k-means ----


def kmeans(x, k, *, init="k-means++", max_iter=100, tol=1e-4, rng=None, progress=False):
    """Find k centroids that (locally) minimise the sum of squared distances of points to the nearest one.

    This is Lloyd's k-means, as `qkernels.kmeans` has it: sums of blocks of rows, of a size that depends on d and k
    alone, are added in a fixed tree. Each iteration reads x once: `persist` it first if it fits the workers' memory.

    Parameters
    ----------
    x : dask.array.Array of shape (n, d)
    k, init, max_iter, tol, rng
        As for `qkernels.kmeans`. "k-means++" clusters a sample of rows to find where to start.
    progress : bool
        Show Dask's progress bar in each iteration.

    Returns
    -------
    KMeansResult
        `labels` is a Dask array. If x is no longer than one block and `init` an array, the bits are those of
        ``qkernels.kmeans(x.compute(), k, init=init)``.

    Raises
    ------
    TypeError, ValueError
        As for `qkernels.kmeans`, and if magnitudes lie so far apart that float32 points would have to be float64.
    """
    x, k, max_iter = _dask_array(x), integer(k, "k", 1), integer(max_iter, "max_iter", 1)
    tol, rng, progress = real(tol, "tol"), generator(rng), boolean(progress, "progress")
    if x.dtype.newbyteorder("=") not in _kmeans.REALS:
        raise TypeError(f"x must be an array of real numbers, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (n, d), d at least 1, got {x.shape}")
    if k > x.shape[0]:
        raise ValueError(f"k must be at most the number of points, {x.shape[0]}, got {k}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be at least 0 and finite, got {tol!r}")
    return _Points(x, k, progress).cluster(init, max_iter, tol, rng)


class _Points:
    """Hold rows in blocks, and what each iteration asks of them."""

    def __init__(self, x, k, progress):
        self.k, self.progress = k, progress
        wide = x.dtype.itemsize == 8 or x.dtype.kind in "iu" and x.dtype.itemsize > 2
        self.dtype = np.dtype(np.float64 if wide else np.float32)
        row = np.empty((1, x.shape[1]), self.dtype)
        self.chunk = _kmeans._chunk(row, k)
        self.rows = self.chunk * max(1, ROWS // (row.nbytes * self.chunk))
        self.x = x.rechunk({0: self.rows, 1: -1})
        self.exponent = 0
        least, self.largest = self._sum_of(_magnitudes, _extremes)
        exponent, (low, high) = math.frexp(self.largest)[1], _kmeans.REACH[self.dtype.type]
        if self.largest and not low <= exponent <= high:
            if exponent > high and least < math.ldexp(1.0, exponent + _kmeans.LEAST[self.dtype.type]):
                raise ValueError(
                    f"x must not hold magnitudes both as large as {self.largest:.3g} and as small as {least:.3g}"
                )
            self.exponent = exponent

    def _sum_of(self, function, join, *arguments):
        call = [self.dtype, self.exponent, self.chunk, *arguments]
        return _computed(_tree(join, _partial(function, self.x, *call)), self.progress)

    @default_mode
    def cluster(self, init, max_iter, tol, rng):
        centroids = self._start(init, rng)
        limit = tol * self._variance() if tol else 0.0
        for iteration in range(1, max_iter + 1):
            last, centroids = centroids, self._moved(centroids)
            moved = np.square(np.subtract(centroids, last, dtype=np.float64)).sum()
            converged = bool(moved <= limit and (moved > 0 or limit > 0 or np.array_equal(centroids, last)))
            ended = {"n_iter": iteration, "converged": converged}
            if converged:
                break
        inertia = _kmeans.ldexp_or_inf(self._sum_of(_inertia, math.fsum, centroids), 2 * self.exponent)
        arguments = self.dtype, self.exponent, self.chunk, centroids
        labels = self.x.map_blocks(_labels, *arguments, drop_axis=1, dtype=np.int32, meta=np.empty(0, np.int32))
        return KMeansResult(np.ldexp(centroids, self.exponent), labels, inertia, **ended)

    def _start(self, init, rng):
        init = word(init)
        if not is_a(init, str):
            shape, largest = (self.k, self.x.shape[1]), math.ldexp(self.largest, -self.exponent)
            return _kmeans.checked_start(init, shape, self.dtype, self.exponent, self.dtype, largest)
        if init not in ("k-means++", "random"):
            raise ValueError(f"init must be 'k-means++', 'random' or an array, got {shown(init)}")
        n = self.x.shape[0]
        size = self.k if init == "random" else min(n, max(SAMPLE, 16 * self.k))
        some = self.x[np.sort(rng.choice(n, size, replace=False))]
        points = np.ldexp(_computed(some, self.progress).astype(self.dtype), -self.exponent)
        return points if init == "random" else _kmeans.kmeans(points, self.k, rng=rng).centroids

    def _variance(self):
        sums = self._sum_of(_sums, sum, np.zeros((1, self.x.shape[1]), self.dtype))
        mean = (sums[:, :-1] / sums[:, -1:]).astype(self.dtype)
        return self._sum_of(_inertia, math.fsum, mean) / math.prod(self.x.shape)

    def _moved(self, centroids):
        sums = self._sum_of(_sums, sum, centroids)
        empty = np.flatnonzero(sums[:, -1] == 0)
        if len(empty):
            sums[empty, :-1], sums[empty, -1] = centroids[empty], 1  # those stay for which no point is left
            found = self._sum_of(_farthest, partial(_most, len(empty)), centroids, len(empty))
            for cluster, (error, label, point) in zip(empty, found, strict=False):
                if error > 0 and sums[label, -1] > 1:
                    sums[label] -= [*point, 1]
                    sums[cluster] = [*point, 1]
        return (sums[:, :-1] / sums[:, -1:]).astype(self.dtype)


@default_mode
def _magnitudes(block, dtype, exponent, chunk):
    """Return the least magnitude that is not 0 and the largest one."""
    points = np.abs(as_array(block, "x").astype(dtype))
    if not np.isfinite(points).all():
        raise ValueError(f"x has {np.count_nonzero(~np.isfinite(points))} NaN or infinite values in a block of rows")
    return float(points.min(where=points != 0, initial=np.inf)), float(points.max(initial=0))


def _extremes(parts):
    return min(part[0] for part in parts), max(part[1] for part in parts)


def _assigned(block, dtype, exponent, chunk, centroids):
    """Return the block's points with their labels and sums."""
    points = np.ldexp(np.ascontiguousarray(block, dtype), -exponent)
    state = clusters.KMeans(points, None, len(centroids), chunk, False)
    state.place(centroids)
    state.assign()
    return state


@default_mode
def _sums(*arguments):
    """Return the sums of the points of each label, and how many they are; chunks are added in order."""
    sums = _assigned(*arguments).sums
    return sum(sums[1:], start=sums[0].copy())


@default_mode
def _inertia(*arguments):
    return math.fsum(_assigned(*arguments).errors())


@default_mode
def _labels(*arguments):
    return _assigned(*arguments).labels


@default_mode
def _farthest(block, dtype, exponent, chunk, centroids, count):
    """Return (error, label, point) of those points that add most to the inertia, the most first."""
    state = _assigned(block, dtype, exponent, chunk, centroids)
    errors = np.empty(len(state.x))
    state.errors(errors)
    most = np.argsort(-errors, kind="stable")[:count]
    return [(errors[i], state.labels[i], state.x[i].astype(np.float64)) for i in most]


def _most(count, parts):
    """Return the same of several blocks, the earlier of equal ones first."""
    return sorted((row for part in parts for row in part), key=lambda row: -row[0])[:count]


# ---- Dask ----


def _dask_array(x):
    """Return x, which must be a Dask array of known shape."""
    import dask.array

    if not is_a(x, dask.array.Array):
        raise TypeError(f"x must be a Dask array, got {shown(x)}")
    if any(math.isnan(n) for n in x.shape):
        raise ValueError(f"x must have a known shape, got {x.shape}: compute_chunk_sizes finds it")
    return x


def _partial(function, x, *arguments):
    """Return a delayed function(block, *arguments) for each block of x, in their order."""
    from dask import delayed

    call = delayed(function, pure=False)
    return [call(block, *arguments) for block in x.to_delayed().reshape(-1)]


def _tree(join, parts):
    """Join lists of neighbours until one is left: always the same ones, whoever does it."""
    from dask import delayed

    while len(parts) > 1:
        parts = [delayed(join, pure=False)(parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def _computed(value, progress):
    """Compute, with a bar if asked for."""
    import dask
    from dask.diagnostics import ProgressBar

    if not boolean(progress, "progress"):
        return dask.compute(value)[0]
    try:
        from distributed import get_client
        from distributed import progress as bar

        future = get_client().compute(value)
        bar(future)
        return future.result()
    except (ImportError, ValueError):  # no distributed, or no client
        with ProgressBar():
            return dask.compute(value)[0]
