"""Find the best levels for given values, for `Codebook.fit`. Formulas: docs/numerics.md, sections 13 and 15."""

from functools import cache

import numpy as np

from ._bind import clusters, codebooks
from ._bind.arrays import raise_not_finite
from ._checks import (
    SMALLEST_SCALE,
    check_axis,
    check_weights,
    doubles,
    float_array,
    generator,
    integer,
    spread_weights,
)
from ._kmeans import kmeans
from ._kmeans1d import kmeans1d


def fit_levels(x, k, axis, block_size, weights, zero):
    """Fit levels (k,), or (channels, k) with an axis and no blocks."""
    x, k = float_array(x), checked_k(k)
    if x.size == 0:
        raise ValueError(f"x must not be empty, got shape {x.shape}")
    check_axis(axis, x)
    if not np.isfinite(x).all():
        raise_not_finite(x)
    weights = checked_weights(weights, x.shape)
    fit = fit_with_zero if zero else fit_line
    if axis is None or block_size is not None:
        values, weights = normalized(x, weights, axis, block_size) if block_size is not None else (x, weights)
        return fit(values.reshape(-1), None if weights is None else weights.reshape(-1), k)
    channels = x.shape[axis]
    lines, line_weights = (None if a is None else np.moveaxis(a, axis, 0).reshape(channels, -1) for a in (x, weights))
    if weights is not None:  # a channel without any, of a dead output, has levels nevertheless
        line_weights = np.where(line_weights.any(axis=1, keepdims=True), line_weights, 1)
    if not zero:
        return kmeans1d(lines, k, weights=line_weights, axis=1).centroids
    return np.stack([fit(line, None if weights is None else line_weights[i], k) for i, line in enumerate(lines)])


def fit_vectors(x, k, d, weights, rng):
    """Fit levels (m, k, d) of product quantization."""
    x, k, d = float_array(x), checked_k(k), integer(d, "vector")
    if d < 1:
        raise ValueError(f"vector must be at least 1, got {d}")
    if x.ndim < 1 or x.size == 0 or x.shape[-1] % d:
        raise ValueError(f"x must not be empty, and its last axis a multiple of vector={d}, got shape {x.shape}")
    vectors = x.reshape(-1, x.shape[-1])
    if k > len(vectors):
        raise ValueError(f"k must be at most the number of vectors, {len(vectors)}, got {k}")
    if weights is not None:
        weights = checked_weights(weights, x.shape[:-1]).reshape(-1)
    rng = generator(rng)
    groups = range(0, x.shape[-1], d)
    return np.stack([kmeans(vectors[:, g : g + d], k, weights=weights, rng=rng).centroids for g in groups])


def checked_k(k):
    k = integer(k, "k")
    if not 1 <= k <= codebooks.MAX_LEVELS:
        raise ValueError(f"k must be from 1 to {codebooks.MAX_LEVELS}, got {k}")
    return k


def checked_weights(weights, shape):
    """Return weights of this shape, or None."""
    if weights is None:
        return None
    given = spread_weights(weights, shape)
    check_weights(given)
    return given


def normalized(x, weights, axis, block_size):
    """Return the values that `encode` compares with levels, and their weights, both in the same order."""
    narrow = x.astype(np.float32, copy=False)
    if not np.isfinite(narrow).all():
        raise ValueError(f"x spans [{x.min()}, {x.max()}], beyond the range of float32")
    lines, line_weights = (None if a is None else rows_along(a, axis) for a in (narrow, weights))
    block_size = min(block_size, lines.shape[1])
    largest = np.maximum.reduceat(np.abs(lines), np.arange(0, lines.shape[1], block_size), axis=1)
    factors = 1 / np.maximum(largest, SMALLEST_SCALE)
    return lines * np.repeat(factors, block_size, axis=1)[:, : lines.shape[1]], line_weights


def rows_along(a, axis):
    return a.reshape(1, -1) if axis is None else np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis])


def fit_line(values, weights, k):
    return repeated(kmeans1d(values, k, weights=weights).centroids, k)


def repeated(levels, k):
    """Return k levels, the last repeated."""
    return np.append(levels, np.repeat(levels[-1:], k - len(levels)))


# ---- with a level at 0 ----


def fit_with_zero(values, weights, k):
    """Find the best k levels one of which is 0.

    The others serve values of one sign each, so a of them are the best of the negative side beside 0, k - 1 - a of the
    positive; the cost of each side is convex in their number, and bisection finds a.
    """
    values = doubles(values)
    weights = np.ones_like(values) if weights is None else doubles(weights)
    if not np.isfinite(weights.sum()):  # equal values add their weights
        weights = weights * 2.0**-40
    count = clusters.distinct_points(values, weights)
    values, weights = values[:count], weights[:count]
    below, above = np.searchsorted(values, 0), np.searchsorted(values, 0, "right")
    negative = -values[:below][::-1], weights[:below][::-1]
    positive = values[above:], weights[above:]

    @cache
    def best(side, count):
        return beside_zero(*(negative, positive)[side], count)

    low, high = max(0, k - 1 - len(positive[0])), min(k - 1, len(negative[0]))
    if low > high:
        return repeated(np.concatenate([-best(0, len(negative[0]))[0][::-1], [0], best(1, len(positive[0]))[0]]), k)
    while low < high:
        a = (low + high) // 2
        fewer, more = (best(0, n)[1] + best(1, k - 1 - n)[1] for n in (a, a + 1))
        low, high = (low, a) if fewer <= more else (a + 1, high)
    return np.concatenate([-best(0, low)[0][::-1], [0], best(1, k - 1 - low)[0]])


def beside_zero(values, weights, count):
    """Return the best `count` centroids beside one at 0, ascending, and the cost.

    The cost is a Fraction, which no weight makes infinite or 0.
    """
    from fractions import Fraction

    line, line_weights = np.append(0.0, values), np.append(1.0, weights)
    centroids, limits = np.empty((2, 1, count + 1))
    (found, exponent), cost = np.empty((2, 1), np.int32), np.empty(1)
    to_fill = centroids, limits, found, cost, exponent
    clusters.cluster_lines(line[None], line_weights[None], count + 1, to_fill, clusters.Stop(), pinned=True)
    return centroids[0, 1 : found[0]], Fraction(cost[0]) * Fraction(2) ** int(exponent[0])
