"""Cluster points by k-means. Formulas: docs/numerics.md, section 14."""

import math
from typing import NamedTuple

import numpy as np

from ._bind import clusters, elementwise
from ._bind.arrays import contiguous_as, raise_not_finite
from ._bind.runtime import word
from ._checks import REALS, as_array, check_weights, doubles, generator, in_parts, integer, is_a, real, reals, shown
from ._mode import default_mode, mode_of_caller


class _Clusters(NamedTuple):
    centroids: np.ndarray
    labels: np.ndarray
    inertia: float


class KMeansResult(_Clusters):
    """Hold what `kmeans` and `kmeans1d` give: a tuple of three.

    Attributes
    ----------
    centroids : float array of shape (k, d), or (k,) and ascending on a line
    labels : array of ints
        The index of the nearest centroid of each point.
    inertia : float
        The weighted sum of squared distances.
    n_iter : int
        Iterations of the start that was best; 0 of `kmeans1d`, which does not iterate.
    converged : bool
        Whether these ended by themselves: not by `max_iter` or a callback. True of `kmeans1d`.

    Examples
    --------
    >>> centroids, labels, inertia = qk.kmeans1d([1, 2, 9], 2)
    >>> inertia
    0.5
    >>> x = np.float32([[0, 0], [0, 1], [5, 5], [6, 5]])
    >>> found = qk.kmeans(x, 2, init=x[:2], max_iter=1)
    >>> found.n_iter, found.converged
    (1, False)
    """

    n_iter, converged = 0, True

    def __new__(cls, centroids, labels, inertia, *, n_iter=0, converged=True):
        self = super().__new__(cls, centroids, labels, inertia)
        self.n_iter, self.converged = n_iter, converged
        return self

    def _replace(self, **changes):
        options = {name: changes.pop(name, getattr(self, name)) for name in ("n_iter", "converged")}
        return type(self)(*super()._replace(**changes), **options)

    @default_mode
    def predict(self, x):
        """Return the index of the nearest centroid of each point: int32 (n,), ties to the lower index.

        Parameters
        ----------
        x : array of real numbers of shape (n, d), or of any shape if the centroids are on a line
            Finite. For the labels of the points that were clustered, see `labels`.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, and NaN or infinity.

        Examples
        --------
        >>> qk.kmeans1d([1, 2, 9], 2).predict([[0.0, 7.0]])
        array([[0, 1]], dtype=int32)
        """
        x, centroids, shape = _like_centroids(x, self)
        n, k = len(x), len(centroids)
        if n == 0:
            return np.zeros(shape, np.int32)
        if centroids.dtype == np.float64 or math.frexp(np.abs(centroids).max())[1] > REACH[np.float32][1]:
            x = doubles(x)
        points, exponent, dtype = _points(x, centroids)
        start = checked_start(
            centroids, centroids.shape, dtype, exponent, points.dtype, _largest(points), name="centroids"
        )
        state = clusters.KMeans(points, None, k, _chunk(points, k), 16 <= k <= min(MOST_COMPARED, n // 8))
        state.place(start.astype(dtype, copy=False))
        state.assign()
        return state.labels.reshape(shape)

    @default_mode
    def distances(self, x):
        """Return the squared distances of points from the centroids: float64 (n, k), summed in the order of columns.

        Parameters
        ----------
        x : array
            As of `predict`.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, and NaN or infinity.

        Examples
        --------
        >>> qk.kmeans1d([1, 2, 9], 2).distances([2.5])
        array([[ 1.  , 42.25]])
        """
        x, centroids, shape = _like_centroids(x, self)
        points, found = doubles(x), np.zeros((len(x), len(centroids)))
        if not np.isfinite(points).all():
            raise_not_finite(x)
        for column, levels in zip(points.T, centroids.T.astype(np.float64), strict=True):
            found += np.square(column[:, None] - levels)
        return found.reshape(*shape, len(centroids))


def _like_centroids(x, found):
    """Return points (n, d), centroids (k, d), and the shape of results."""
    x, centroids = reals(x, "x", "float16, bfloat16, float32, float64 or integers"), found.centroids
    if np.ndim(found.inertia):
        raise ValueError(f"centroids must be those of one line, got those of lines, of shape {centroids.shape}")
    if centroids.ndim == 1:
        if not np.isfinite(x).all():
            raise_not_finite(x)  # where it is in x as given
        return x.reshape(-1, 1), centroids[:, None], x.shape
    if x.ndim != 2 or x.shape[1] != centroids.shape[1]:
        raise ValueError(f"x must have shape (n, {centroids.shape[1]}) to match the centroids, got {x.shape}")
    return x, centroids, x.shape[:1]


def kmeans(x, k, *, weights=None, init="k-means++", n_init=1, max_iter=100, tol=1e-4, rng=None, callback=None):
    """Find k centroids that (locally) minimise the weighted sum of squared distances of points to the nearest one.

    This is Lloyd's k-means.

    Parameters
    ----------
    x : array of shape (n, d)
        The points, finite: float64 and 32- or 64-bit integers are clustered in float64; float32, float16, bfloat16 and
        8- or 16-bit integers in float32.
    k : int
        Number of clusters, 1 to n.
    weights : array of shape (n,), optional
        Those of the points, at least 0 and not all 0; 1 each by default.
    init : "k-means++", "random" or array of shape (k, d)
        The start of centroids: at points drawn in proportion to their squared distance from those before (the
        best of ``2 + floor(ln k)`` draws each), at different points drawn in proportion to their weights, or at the
        rows given.
    n_init : int
        Starts, of which the one with the lowest inertia is returned; 1 if `init` is an array.
    max_iter : int
        The largest number of iterations of each start.
    tol : float
        A start ends when no label changes, or when the squared distances that all centroids moved sum to no more than
        tol times the mean variance of the d columns.
    rng : None, int or numpy.random.Generator
        What is random, by ``numpy.random.default_rng(rng)``. The same seed gives the same bits at any number of threads
        and on every instruction set.
    callback : function, optional
        Called as ``callback(iteration, inertia)`` in each iteration, counted from 1 in each start, with the inertia of
        the centroids that it began with. If it returns True, the start ends.

    Returns
    -------
    KMeansResult
        `centroids` (k, d) in the type that x is clustered in, `labels` (n,) int32, the nearest centroid of each point
        (ties to the lower index), and `inertia`, a float. A cluster that becomes empty gets the point with the largest
        weighted squared distance from its centroid. If x has fewer than k different points, surplus centroids repeat
        others and have no points.

    Raises
    ------
    ValueError
        If x or weights hold NaN or infinity, shapes do not match, weights are negative or all 0, k < 1 or k > n, or
        n_init, max_iter or tol are out of range. If float64 x (or init) holds magnitudes both beyond 1e135 and some
        1e420 times smaller, whose squared distances float64 cannot tell apart.
    TypeError
        For other dtypes.
    KeyboardInterrupt
        On Ctrl-C, within about a tenth of a second for most sizes: only whole chunks of points are finished.

    References
    ----------
    Lloyd, *Least Squares Quantization in PCM*, 1982; Arthur and Vassilvitskii, *k-means++: The Advantages of Careful
    Seeding*, 2007; Hamerly, *Making k-means Even Faster*, 2010; Newling and Fleuret, *Fast k-means with Accurate
    Bounds*, 2016.

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
    return _kmeans(x, k, weights, rng, _Settings(init, n_init, max_iter, tol, callback))


class _Settings(NamedTuple):
    """Hold what the caller says of starts and iterations."""

    init: object
    n_init: int
    max_iter: int
    tol: float
    callback: object


@default_mode
def _kmeans(x, k, weights, rng, settings):
    init, n_init, max_iter, tol, callback = settings
    init = word(init)
    points, exponent, dtype = _points(x, init)
    n, d = points.shape
    k = integer(k, "k", 1)
    if k > n:
        raise ValueError(f"k must be at most the number of points, {n}, got {k}")
    given_weights, weights = _weights(weights, n)
    n_init, max_iter = integer(n_init, "n_init", 1), integer(max_iter, "max_iter", 1)
    tol = real(tol, "tol")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be at least 0 and finite, got {tol!r}")
    if not is_a(init, str):
        init = checked_start(init, (k, d), dtype, exponent, points.dtype, _largest(points))
        if n_init > 1:
            raise ValueError(f"n_init must be 1 where init is an array, got {n_init}")
    elif init not in ("k-means++", "random"):
        raise ValueError(f"init must be 'k-means++', 'random' or an array of shape {k, d}, got {shown(init)}")
    rng = generator(rng)
    data = _Data(points, weights, given_weights, exponent, dtype)
    limit = tol * _variance(data) if tol else 0.0
    state = clusters.KMeans(points, weights, k, _chunk(points, k), 16 <= k <= min(MOST_COMPARED, n // 8))
    best = None
    for _ in range(n_init):
        if isinstance(init, np.ndarray):
            start = init
        else:
            start = _seeds(state, data, k, rng) if init == "k-means++" else _draw(points, weights, k, rng)
        centroids, *ended = _lloyd(state, data, start.astype(dtype, copy=False), max_iter, limit, callback)
        inertia = _inertia(state, data, centroids)
        if best is None or inertia < best[2]:
            best = centroids, state.labels.copy() if n_init > 1 else state.labels, inertia, ended
    centroids, labels, inertia, (n_iter, converged) = best
    return KMeansResult(np.ldexp(centroids, exponent), labels, inertia, n_iter=n_iter, converged=converged)


# ---- arguments ----

# exponents of the largest magnitude with which squares and sums do not overflow
REACH = {np.float32: (-20, 40), np.float64: (-450, 450)}
# those of the smallest magnitude, if the largest is scaled down to the end of its reach
LEAST = {np.float32: -100, np.float64: -960}
TINY = 2.0**-900  # an inertia or a mean below it may be of terms that have underflowed
LIGHT = 2.0**-100  # likewise, the weight of a cluster
LEAST_WEIGHT = 5e-324  # a cluster that is not empty has no less
MOST_COMPARED = 2048  # centroids whose distances from one another are kept: 32 MB in float32


def _chunk(points, k):
    """Return the number of points whose sums are one term of the whole.

    Half a megabyte stays in the L2 cache from one use to the next; but 2 MB do better if each label then fills more
    tiles. The sums of all chunks take no more than a quarter of the memory of float32 points.
    """
    row = points[0].nbytes
    return max(1024, 8 * k, 2**19 // row, min(256 * k, 2**21 // row) if k >= 64 else 0)


class _Data(NamedTuple):
    points: np.ndarray  # float32 or float64, divided by 2**exponent
    weights: np.ndarray | None  # at most 1
    given_weights: np.ndarray | None  # as they are, float64
    exponent: int
    dtype: type  # that of centroids


def _points(x, init):
    """Return (points, exponent, dtype of centroids): x as contiguous float32 or float64, divided by 2**exponent.

    The exponent is 0 unless squares might over- or underflow. float32 values that this would round are float64.
    """
    x = reals(x, "x", "float16, bfloat16, float32, float64 or integers")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (n, d), d at least 1, got {x.shape}")
    wide = x.dtype.itemsize == 8 or x.dtype.kind in "iu" and x.dtype.itemsize > 2
    dtype = np.float64 if wide else np.float32
    points = contiguous_as(x, dtype)
    if points.size == 0:
        return points, 0, dtype
    largest = _largest(points)
    if not math.isfinite(largest):
        raise_not_finite(x)
    exponent, (low, high) = math.frexp(largest)[1], REACH[dtype]
    if low <= exponent <= high or largest == 0:
        return points, 0, dtype
    if exponent > high:
        exponent -= high if wide else 0
        least = _least_magnitude(points, init)
        if least < math.ldexp(1.0, exponent + LEAST[dtype]):
            if not wide:
                return doubles(points), 0, dtype
            raise ValueError(
                f"x and init must not hold magnitudes both as large as {largest:.3g} and as small as {least:.3g}: "
                "squared distances would leave the range of float64"
            )
    return in_parts(lambda part: np.ldexp(part, -exponent), points, points.dtype), exponent, dtype


def _largest(points):
    """Return the largest magnitude, or one that is not finite."""
    bounds = elementwise.minmax(points) if points.dtype == np.float32 else (points.min(), points.max())
    return math.inf if bounds is None else float(np.abs(bounds).max())


def _least_magnitude(points, init):
    """Return the least magnitude of what is not 0 in points, and in an init that is an array of numbers."""
    arrays = [points]
    if not is_a(init, str) and as_array(init, "init").dtype.newbyteorder("=") in REALS:
        arrays.append(as_array(init, "init").astype(np.float64))
    magnitudes = (np.abs(a, where=a != 0, out=np.full(a.shape, np.inf, a.dtype)) for a in arrays)
    return min(float(a.min(initial=np.inf)) for a in magnitudes)


def _weights(weights, n):
    """Return weights as contiguous float64, as given and divided by a power of two to at most 1; or None twice."""
    if weights is None:
        return None, None
    given = reals(weights, "weights")
    if given.shape != (n,):
        raise ValueError(f"weights must have shape {(n,)} to match x, got {given.shape}")
    weights = contiguous_as(given, np.float64)
    check_weights(weights, negative="must be at least 0, got {value} at {place[0]}")
    return weights, np.ldexp(weights, -math.frexp(weights.max())[1])


def checked_start(init, shape, dtype, exponent, dtype_of_points, largest, *, name="init"):
    """Return init scaled as the points are, whose magnitude is `largest`; squared distances to them do not overflow."""
    start = reals(init, "init", "a name or an array of real numbers")
    if start.shape != shape:
        raise ValueError(f"init must have shape {shape}, got {start.shape}")
    if not np.isfinite(start).all():
        raise_not_finite(start, "init")
    scaled = np.ldexp(start.astype(dtype), -exponent)
    reach = float(np.abs(scaled).max()) + float(largest)
    if not 4 * start.size * reach * reach <= float(np.finfo(dtype_of_points).max):
        far = np.abs(start.astype(np.float64)).max()
        raise ValueError(
            f"{name} must be so near to x that squared distances fit {dtype_of_points}, got a magnitude of {far}"
        )
    return scaled


def _variance(data):
    """Return the mean over columns of their variance, by one cluster."""
    points = data.points
    one = clusters.KMeans(points, data.weights, 1, _chunk(points, 1), False)
    one.place(points[:1])
    one.assign()
    one.place(_means(one)[0].astype(points.dtype))
    total = len(points) if data.weights is None else math.fsum(data.weights)
    return math.fsum(one.errors()) / (points.shape[1] * total)


# ---- iterations ----


def _lloyd(state, data, centroids, max_iter, limit, callback):
    """Return the final centroids, the iterations, and whether they ended by themselves; labels are in `state`."""
    state.forget()
    converged = False
    for iteration in range(1, max_iter + 1):
        state.place(centroids)
        changed = state.assign()
        stays = changed == 0 and iteration > 1
        if callback and callback(iteration, _inertia(state, data, centroids)) is True or stays:
            return centroids, iteration, stays
        last, centroids = centroids, _moved(state, data, centroids)
        moved = np.square(np.subtract(centroids, last, dtype=np.float64)).sum()
        converged = bool(moved <= limit and (moved > 0 or limit > 0 or np.array_equal(centroids, last)))
        if converged:
            break
    state.place(centroids)
    state.assign()
    return centroids, iteration, converged


def _means(state):
    """Return (means, weights) of the clusters, in float64; chunks are added in order. An empty one's mean is NaN."""
    sums = state.sums[0].copy()
    for more in state.sums[1:]:
        sums += more
    return sums[:, :-1] / sums[:, -1:], sums[:, -1]


def _mean_of(data, members):
    """Return the mean of some points of positive weight, whatever these weigh (in units of the largest), or None."""
    weights = None if data.weights is None else data.given_weights[members]
    if len(members) == 0 or weights is not None and not weights.any():
        return None
    x = data.points[members].astype(np.float64)
    if weights is None:
        return x.sum(axis=0) / len(members)
    weights = np.ldexp(weights, -math.frexp(weights.max())[1])
    exponent = np.frexp(np.abs(x).max(axis=0))[1]
    return np.ldexp((np.ldexp(x, -exponent) * weights[:, None]).sum(axis=0) / weights.sum(), exponent)


def _inertia(state, data, centroids):
    """Return the inertia in the units of x and of the weights, infinite beyond float64."""
    inertia, exponent = math.fsum(state.errors()), 2 * data.exponent
    if data.weights is not None:
        exponent += math.frexp(data.given_weights.max())[1]
    if inertia < TINY and not _squares_are_exact(data):  # terms may have underflowed
        errors, exponents = _scaled_errors(data, state.labels, centroids)
        top = int(exponents.max())
        inertia, exponent = math.fsum(np.ldexp(errors, exponents - top)), top + 2 * data.exponent
    return ldexp_or_inf(inertia, exponent)


def ldexp_or_inf(value, exponent):
    """Return value * 2**exponent, infinite beyond float64."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _squares_are_exact(data):
    """Tell whether no difference is so small that its square, or that times a weight, leaves float64."""
    return data.dtype == np.float32 and data.weights is None


def _errors(state, data, centroids, count):
    """Return weight * squared distance of each point from its centroid, and None.

    If one of the `count` largest might have underflowed, return `_scaled_errors`.
    """
    errors = np.empty(len(state.x))
    state.errors(errors)
    if _squares_are_exact(data) or np.partition(errors, -count)[-count] >= TINY:
        return errors, None
    return _scaled_errors(data, state.labels, centroids)


def _scaled_errors(data, labels, centroids):
    """Return weight * squared distance of points from their centroids as mantissas, in [1/2, 1) or 0, and exponents."""
    errors, exponents = np.zeros(len(labels)), np.full(len(labels), -(10**6), np.int64)
    for first in range(0, len(labels), 1 << 16):
        part = slice(first, first + (1 << 16))
        away = np.abs(np.subtract(data.points[part], centroids[labels[part]], dtype=np.float64))
        if not away.any():
            continue
        exponent = np.frexp(away.max(axis=1))[1]
        error = np.square(np.ldexp(away, -exponent[:, None])).sum(axis=1)
        exponent = 2 * exponent
        if data.weights is not None:
            weight, more = np.frexp(data.given_weights[part])
            error, exponent = error * weight, exponent + more
        errors[part], more = np.frexp(error)
        exponents[part] = np.where(error > 0, exponent + more, exponents[part])
    return errors, exponents


def _moved(state, data, centroids):
    """Return the centroids of the labels, in the type and the units of the result."""
    means, weights = _means(state)
    if data.weights is not None:
        small = ((means != 0) & (np.abs(means) < TINY)).any(axis=1)  # products with weights may have underflowed
        for light in np.flatnonzero(small | (weights < LIGHT)):
            mean = _mean_of(data, np.flatnonzero(state.labels == light))
            if mean is not None:
                means[light], weights[light] = mean, max(weights[light], LEAST_WEIGHT)
    empty = np.flatnonzero(weights == 0)
    if len(empty):
        means = _repaired(state, data, means, weights, empty, centroids)
    if data.exponent == 0:
        return means.astype(data.dtype)
    return np.ldexp(np.ldexp(means, data.exponent).astype(data.dtype), -data.exponent)


def _repaired(state, data, means, weights, empty, centroids):
    """Give empty clusters, by ascending index, the points that add most to the inertia (ties to the lower index).

    Each of those leaves its cluster. If no such point is left, a centroid stays.
    """
    means[empty] = centroids[empty]
    errors, exponents = _errors(state, data, centroids, len(empty))
    farthest = np.argsort(-errors, kind="stable") if exponents is None else np.lexsort((-errors, -exponents))
    sums, left, again = means * weights[:, None], [], set()
    for cluster, point in zip(empty, farthest[: len(empty)], strict=True):
        donor, weight = state.labels[point], 1.0 if data.weights is None else data.weights[point]
        if errors[point] == 0:
            continue
        x = data.points[point].astype(np.float64)
        after = sums[donor] - weight * x
        enough = weights[donor] - weight > max(weights[donor] * 2.0**-20, LIGHT)
        if enough and np.all(np.abs(after) >= np.abs(sums[donor]) * 2.0**-20) and donor not in again:
            weights[donor] -= weight
            sums[donor] = after
            means[donor] = after / weights[donor]
        else:  # what is left would be mostly rounding
            again.add(donor)
            others = np.setdiff1d(np.flatnonzero(state.labels == donor), [*left, point], assume_unique=True)
            mean = _mean_of(data, others)
            if mean is None:
                continue
            means[donor] = mean
        means[cluster] = x
        left.append(point)
    return means


# ---- where to start ----


def _draw(points, weights, k, rng):
    """Draw k different points, of positive weight as long as there are any.

    A weight that vanishes in float64 beside the sum of all is none.
    """
    if weights is None:
        return points[rng.choice(len(points), k, replace=False)]
    shares = weights / weights[np.flatnonzero(weights)].sum()
    positive = np.flatnonzero(shares)
    first = rng.choice(positive, min(k, len(positive)), replace=False, p=shares[positive])
    rest = rng.choice(np.flatnonzero(shares == 0), k - len(first), replace=False) if len(first) < k else first[:0]
    return points[np.concatenate([first, rest])]


def _seeds(state, data, k, rng):
    """Draw seeds by k-means++.

    Each is the best of a few points, drawn in proportion to weight times squared distance from the seeds so far.
    """
    points, weights, chunk = state.x, state.weights, _chunk(state.x, k)
    trials = 2 + int(math.log(k))
    nearest = np.full(len(points), np.inf, points.dtype)
    seeds = np.empty((k, points.shape[1]), points.dtype)
    seeds[:1] = _draw(points, weights, 1, rng)
    potential = state.seed(seeds[:1], nearest, True)[:, 0]
    for i in range(1, k):
        ends = np.cumsum(potential)
        if ends[-1] == 0:
            return _farthest(state, data, seeds, i)
        drawn = [_draw_one(nearest, weights, chunk, ends, part * ends[-1]) for part in rng.random(trials)]
        left = state.seed(points[drawn], nearest, False)
        seeds[i] = points[drawn[np.argmin(left.sum(axis=0))]]
        potential = state.seed(seeds[i : i + 1], nearest, True)[:, 0]
    return seeds


def _farthest(state, data, seeds, first):
    """Fill seeds from `first` on if squared distances have underflowed, by the points that add most to the inertia.

    If every point is a seed already, they are all the first one.
    """
    seeds[first:] = seeds[0]
    for i in range(first, len(seeds)):
        state.forget()
        state.place(seeds)
        state.assign()
        errors, exponents = _errors(state, data, seeds, 1)
        point = np.argmax(errors if exponents is None else np.where(exponents == exponents.max(), errors, -1))
        if errors[point] == 0:
            break
        seeds[i] = state.x[point]
    return seeds


def _draw_one(nearest, weights, chunk, ends, mark):
    """Return the point at which the running sum of weight * nearest passes `mark`.

    `ends` are the sums at the ends of chunks.
    """
    which = min(np.searchsorted(ends, mark, "right"), np.searchsorted(ends, ends[-1], "left"))
    part = slice(which * chunk, (which + 1) * chunk)
    terms = nearest[part].astype(np.float64)
    if weights is not None:
        terms *= weights[part]
    sums = np.cumsum(terms)
    mark -= ends[which - 1] if which else 0
    return int(part.start + min(np.searchsorted(sums, mark, "right"), np.searchsorted(sums, sums[-1], "left")))
