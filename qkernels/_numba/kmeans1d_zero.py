"""The loops of `Codebook.fit` with a level at 0, compiled by Numba: docs/numerics.md, section 15."""

import numpy as np

from .kmeans1d import PAIRS_BELOW, cost_of, estimate_penalty, inner, mean_and_cost, pair_prefix_sums, search
from .cache import compiled

HEAVY = 2.0**40  # weight at 0 in units of that of all points


@inner
def splits_beside_zero(v, w, W, S, count):
    """Where clusters begin: that of 0, the first point, then `count` others."""
    n = len(v)
    F, begin = np.empty(n + 1), np.empty(n + 1, np.int32)
    penalty = estimate_penalty(v[1:], W[1:], S[1:], 0.0, count)
    splits, penalty = search(v, w, W, None, S, None, 0.0, count + 1, penalty, F, None, begin)
    if cost_of(v, w, W, S, 0.0, splits) < PAIRS_BELOW * (count + 1) * np.sum(w * v * v):
        W_high, W_low, S_high, S_low = pair_prefix_sums(v, w, W, 0.0)
        splits, _ = search(v, w, W_high, W_low, S_high, S_low, 0.0, count + 1, penalty, F, np.empty(n + 1), begin)
    return splits


@compiled("Tuple((f8[::1], f8))(f8[::1], f8[::1], i8)")
def beside_zero(values, weights, count):
    """The best `count` centroids beside one at 0, ascending, and the cost. Values are positive, ascending and distinct, weights positive.

    Sums before a point leave the weight at 0 out, so that it costs them no precision: its own are negative.
    """
    if count == 0:
        return np.empty(0), np.sum(weights * values * values)
    if count >= len(values):
        return values.copy(), 0.0
    n = len(values) + 1
    v, w, W, S = np.zeros(n), np.empty(n), np.zeros(n + 1), np.zeros(n + 1)
    w[0] = HEAVY * np.sum(weights)
    v[1:], w[1:] = values, weights
    W[0] = -w[0]
    W[2:], S[2:] = np.cumsum(weights), np.cumsum(weights * values)
    splits = splits_beside_zero(v, w, W, S, count)
    centroids = np.empty(count)
    for c in range(count):
        centroids[c] = mean_and_cost(v, w, W, S, 0.0, splits[c + 1], splits[c + 2])[0]
    return centroids, cost_of(v, w, W, S, 0.0, splits)
