"""Clustering. Formulas: docs/numerics.md, section 14."""

import math
from typing import NamedTuple

import numpy as np

from . import _core
from ._checks import as_array, generator, integer, real, shown
from ._mode import default_mode, mode_of_caller


class KMeansResult(NamedTuple):
    """What `kmeans` and `kmeans1d` give.

    Attributes
    ----------
    centroids : float array of shape (k, d), or (k,) and ascending on a line
    labels : integer array
        The index of the nearest centroid of each point.
    inertia : float
        The weighted sum of squared distances.

    Examples
    --------
    >>> centroids, labels, inertia = qk.kmeans1d([1, 2, 9], 2)
    >>> inertia
    0.5
    """

    centroids: np.ndarray
    labels: np.ndarray
    inertia: float


def kmeans(x, k, *, weights=None, init="k-means++", n_init=1, max_iter=100, tol=1e-4, rng=None, callback=None):
    """Lloyd's k-means: k centroids that (locally) minimise the weighted sum of squared distances of points to the nearest one.

    Parameters
    ----------
    x : array of shape (n, d)
        The points, finite: float64 and 32- or 64-bit integers are clustered in float64; float32, float16, bfloat16 and 8- or
        16-bit integers in float32.
    k : int
        Number of clusters, 1 to n.
    weights : array of shape (n,), optional
        Of the points, at least 0 and not all 0; 1 each by default.
    init : "k-means++", "random" or array of shape (k, d)
        Where centroids start: at points drawn in proportion to their squared distance from those before (the best of
        ``2 + floor(ln k)`` draws each), at different points drawn in proportion to their weights, or at the rows given.
    n_init : int
        Starts, of which the one with the lowest inertia is returned; 1 where `init` is an array.
    max_iter : int
        The largest number of iterations of each start.
    tol : float
        A start ends when no label changes, or when the squared distances that all centroids moved sum to no more than tol
        times the mean variance of the d columns.
    rng : None, int or numpy.random.Generator
        What is random, by ``numpy.random.default_rng(rng)``. The same seed gives the same bits at any number of threads
        and on every instruction set.
    callback : function, optional
        Called as ``callback(iteration, inertia)`` in each iteration, counted from 1 in each start, with the inertia of the
        centroids that it began with. If it returns True, the start ends.

    Returns
    -------
    KMeansResult
        `centroids` (k, d) in the type that x is clustered in, `labels` (n,) int32, the nearest centroid of each point (ties to
        the lower index), and `inertia`, a float. A cluster that becomes empty gets the point with the largest weighted squared
        distance from its centroid. Where x has fewer than k different points, surplus centroids repeat others and have no points.

    Raises
    ------
    ValueError
        Where x or weights hold NaN or infinity, shapes do not match, weights are negative or all 0, k < 1 or k > n, or n_init,
        max_iter or tol are out of range.
    TypeError
        For other dtypes.
    KeyboardInterrupt
        On Ctrl-C, within about a tenth of a second for most sizes: only whole chunks of points are finished.

    References
    ----------
    Lloyd, *Least Squares Quantization in PCM*, 1982; Arthur and Vassilvitskii, *k-means++: The Advantages of Careful Seeding*,
    2007; Hamerly, *Making k-means Even Faster*, 2010; Newling and Fleuret, *Fast k-means with Accurate Bounds*, 2016.

    Examples
    --------
    >>> x = np.float32([[0, 0], [0, 1], [5, 5], [6, 5]])
    >>> centroids, labels, inertia = qk.kmeans(x, 2, init=x[[0, 3]])
    >>> centroids
    array([[0. , 0.5],
           [5.5, 5. ]], dtype=float32)
    >>> labels
    array([0, 0, 1, 1], dtype=int32)
    >>> inertia
    1.0
    """
    if callback is not None:
        if not callable(callback):
            raise TypeError(f"callback must be a function or None, got {shown(callback)}")
        callback = mode_of_caller(callback)
    return _kmeans(x, k, weights, init, n_init, max_iter, tol, rng, callback)


@default_mode
def _kmeans(x, k, weights, init, n_init, max_iter, tol, rng, callback):
    points, exponent = _points(x)
    n, d = points.shape
    k = integer(k, "k", 1)
    if k > n:
        raise ValueError(f"k must be at most the number of points, {n}, got {k}")
    weights, weight_exponent = _weights(weights, n)
    n_init, max_iter = integer(n_init, "n_init", 1), integer(max_iter, "max_iter", 1)
    tol = real(tol, "tol")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be at least 0 and finite, got {tol!r}")
    if not isinstance(init, str):
        init = _start(init, (k, d), points, exponent)
        if n_init > 1:
            raise ValueError(f"n_init must be 1 where init is an array, got {n_init}")
    elif init not in ("k-means++", "random"):
        raise ValueError(f"init must be 'k-means++', 'random' or an array of shape {k, d}, got {shown(init)}")
    rng = generator(rng)
    inertia_exponent = 2 * exponent + weight_exponent
    report = None if callback is None else lambda iteration, inertia: callback(iteration, _scaled(inertia, inertia_exponent))

    limit = tol * _variance(points, weights) if tol else 0.0
    state = _core.KMeans(points, weights, k, _chunk(points, k), 16 <= k <= min(MOST_COMPARED, n // 8))
    best = None
    for _ in range(n_init):
        if isinstance(init, np.ndarray):
            start = init
        else:
            start = _seeds(state, k, rng) if init == "k-means++" else _draw(points, weights, k, rng)
        centroids = _lloyd(state, start, max_iter, limit, report)
        inertia = _inertia(state)
        if best is None or inertia < best.inertia:
            best = KMeansResult(centroids, state.labels.copy() if n_init > 1 else state.labels, inertia)
    return KMeansResult(np.ldexp(best.centroids, exponent), best.labels, _scaled(best.inertia, inertia_exponent))


# ---- arguments ----

REALS = (*_core.FLOATS, *(np.dtype(f"{sign}{bytes}") for sign in "iu" for bytes in (1, 2, 4, 8)))
MOST_COMPARED = 2048   # centroids whose distances from one another are kept: 32 MB in float32


def _chunk(points, k):
    """Points whose sums are one term of the whole. Half a megabyte stays in the L2 cache from one use to the next; but 2 MB do better
    where each label then fills more tiles. The sums of all chunks take no more than a quarter of the memory of float32 points."""
    row = points[0].nbytes
    return max(1024, 8 * k, 2**19 // row, min(256 * k, 2**21 // row) if k >= 64 else 0)


def _points(x):
    """x as contiguous float32 or float64, scaled by 2**-exponent where its squares might over- or underflow."""
    x = as_array(x, "x")
    if x.dtype.newbyteorder("=") not in REALS:
        raise TypeError(f"x must be float16, bfloat16, float32, float64 or integers, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (n, d), d at least 1, got {x.shape}")
    wide = x.dtype.itemsize == 8 or x.dtype.kind in "iu" and x.dtype.itemsize > 2
    points = _core.contiguous_reals(x, np.float64 if wide else np.float32)
    if points.size == 0:
        return points, 0
    bounds = (points.min(), points.max()) if wide else _core.minmax(points)
    if bounds is None or not np.isfinite(bounds).all():
        _core.raise_not_finite(x)
    low, high = map(float, bounds)
    exponent = math.frexp(max(-low, high))[1]
    if -20 <= exponent <= 40 or exponent == 0 == max(-low, high):
        return points, 0
    return np.ldexp(points, -exponent), exponent


def _weights(weights, n):
    """Weights as contiguous float64, scaled by 2**-exponent to at most 1, or None."""
    if weights is None:
        return None, 0
    given = as_array(weights, "weights")
    if given.dtype.newbyteorder("=") not in REALS:
        raise TypeError(f"weights must be real numbers, got {given.dtype}")
    if given.shape != (n,):
        raise ValueError(f"weights must have shape {(n,)} to match x, got {given.shape}")
    weights = _core.contiguous_reals(given, np.float64)
    if not np.isfinite(weights).all():
        _core.raise_not_finite(given, "weights")
    if weights.min(initial=0) < 0:
        raise ValueError(f"weights must be at least 0, got {weights.min()} at {int(weights.argmin())}")
    if not weights.any():
        raise ValueError("weights must not all be 0")
    exponent = math.frexp(weights.max())[1]
    return np.ldexp(weights, -exponent), exponent


def _scaled(value, exponent):
    """value * 2**exponent, infinite where that is too large."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _start(init, shape, points, exponent):
    """init, scaled as the points are, whose squared distances to them do not overflow."""
    start = as_array(init, "init")
    if start.dtype.newbyteorder("=") not in REALS:
        raise TypeError(f"init must be a name or an array of real numbers, got {start.dtype}")
    if start.shape != shape:
        raise ValueError(f"init must have shape {shape}, got {start.shape}")
    if not np.isfinite(start).all():
        _core.raise_not_finite(start, "init")
    scaled = np.ldexp(start.astype(points.dtype), -exponent)
    reach = float(np.abs(scaled).max()) + float(np.abs(points).max())
    if not 4 * start.size * reach * reach <= float(np.finfo(points.dtype).max):
        far = np.abs(start.astype(np.float64)).max()
        raise ValueError(f"init must be so near to x that squared distances fit {points.dtype}, got a magnitude of {far}")
    return scaled


def _variance(points, weights):
    """The mean over columns of their variance, by one cluster."""
    one = _core.KMeans(points, weights, 1, _chunk(points, 1), False)
    one.place(points[:1])
    one.assign()
    one.place(_means(one)[0].astype(points.dtype))
    return _inertia(one) / (points.shape[1] * _total(weights, len(points)))


def _total(weights, n):
    return n if weights is None else math.fsum(weights)


# ---- iterations ----


def _lloyd(state, centroids, max_iter, limit, callback):
    """The final centroids; labels are in `state`."""
    state.forget()
    for iteration in range(1, max_iter + 1):
        state.place(centroids)
        changed = state.assign()
        if callback and callback(iteration, _inertia(state)) is True or changed == 0 and iteration > 1:
            return centroids
        last, centroids = centroids, _moved(state, centroids)
        if np.square(np.subtract(centroids, last, dtype=np.float64)).sum() <= limit:
            break
    state.place(centroids)
    state.assign()
    return centroids


def _means(state):
    """(means, weights) of the clusters, in float64; chunks are added in their order. The mean of an empty one is NaN."""
    sums = state.sums[0].copy()
    for more in state.sums[1:]:
        sums += more
    return sums[:, :-1] / sums[:, -1:], sums[:, -1]


def _inertia(state):
    return math.fsum(state.errors())


def _moved(state, centroids):
    """The centroids of the labels, in the type of the points."""
    means, weights = _means(state)
    empty = np.flatnonzero(weights == 0)
    if len(empty):
        means = _repaired(state, means, weights, empty, centroids)
    return means.astype(centroids.dtype)


def _repaired(state, means, weights, empty, centroids):
    """Empty clusters, by ascending index, take the points that add most to the inertia (ties to the lower index), each of which leaves
    its cluster. Where no such point is left, a centroid stays."""
    means[empty] = centroids[empty]
    errors = np.empty(len(state.x))
    state.errors(errors)
    farthest = np.argsort(-errors, kind="stable")[: len(empty)]
    sums = means * weights[:, None]
    for cluster, point in zip(empty, farthest):
        donor, weight = state.labels[point], 1.0 if state.weights is None else state.weights[point]
        if errors[point] == 0 or weights[donor] <= weight:
            continue
        x = state.x[point].astype(np.float64)
        weights[donor] -= weight
        sums[donor] -= weight * x
        means[donor], means[cluster] = sums[donor] / weights[donor], x
    return means


# ---- where to start ----


def _draw(points, weights, k, rng):
    """k different points; of positive weight as long as there are any."""
    if weights is None:
        return points[rng.choice(len(points), k, replace=False)]
    positive = np.flatnonzero(weights)
    first = rng.choice(positive, min(k, len(positive)), replace=False, p=weights[positive] / weights[positive].sum())
    rest = rng.choice(np.flatnonzero(weights == 0), k - len(first), replace=False) if len(first) < k else first[:0]
    return points[np.concatenate([first, rest])]


def _seeds(state, k, rng):
    """k-means++: each seed is the best of a few points, drawn in proportion to weight times squared distance from the seeds so far."""
    points, weights, chunk = state.x, state.weights, _chunk(state.x, k)
    trials = 2 + int(math.log(k))
    nearest = np.full(len(points), np.inf, points.dtype)
    seeds = np.empty((k, points.shape[1]), points.dtype)
    seeds[:1] = _draw(points, weights, 1, rng)
    potential = state.seed(seeds[:1], nearest, True)[:, 0]
    for i in range(1, k):
        ends = np.cumsum(potential)
        if ends[-1] == 0:   # every point is a seed already
            seeds[i:] = seeds[0]
            break
        drawn = [_draw_one(nearest, weights, chunk, ends, part * ends[-1]) for part in rng.random(trials)]
        left = state.seed(points[drawn], nearest, False)
        seeds[i] = points[drawn[np.argmin(left.sum(axis=0))]]
        potential = state.seed(seeds[i : i + 1], nearest, True)[:, 0]
    return seeds


def _draw_one(nearest, weights, chunk, ends, mark):
    """The point at which the running sum of weight * nearest passes `mark`; `ends` are the sums at the ends of chunks."""
    which = min(np.searchsorted(ends, mark, "right"), np.searchsorted(ends, ends[-1], "left"))
    part = slice(which * chunk, (which + 1) * chunk)
    terms = nearest[part].astype(np.float64)
    if weights is not None:
        terms *= weights[part]
    sums = np.cumsum(terms)
    mark -= ends[which - 1] if which else 0
    return int(part.start + min(np.searchsorted(sums, mark, "right"), np.searchsorted(sums, sums[-1], "left")))
