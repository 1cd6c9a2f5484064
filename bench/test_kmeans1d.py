"""Clustering on a line: qkernels.kmeans1d. Normal data.

kmeans1d takes n k log n and ckwrap n k: if a call would take seconds, they cluster fewer points into fewer clusters,
and their time is multiplied by what is missing of n k. That favours them. flash1dkmeans is a heuristic: up to a tenth
worse than the optimum.
"""

import ml_dtypes
import numpy as np
import peers
import pytest
from race import CLOSE, EXACT, WRONG, our_own

import qkernels as qk

CASES = [(100, 4), (1000, 16), (10_000, 16), (100_000, 16), (100_000, 256), (1_000_000, 16), (1_000_000, 256)]
MOST = 1_600_000  # n k of a peer's call


def normal(*shape):
    return np.random.default_rng(4).standard_normal(shape)


def optimal(x, k, weights=None):
    """A check of centroids: exact to 1e-9 of the optimum's inertia, close within a fifth."""
    best = qk.kmeans1d(x, k, weights=weights).inertia

    def check(centroids):
        centroids = np.sort(centroids)
        nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)]
        excess = np.sum((1 if weights is None else weights) * (x - nearest) ** 2) / best - 1
        return EXACT if excess <= 1e-9 else CLOSE if excess <= 0.2 else WRONG

    return check


def smaller(x, k, peer, name):
    """The peer on a part of the task, its time scaled up."""
    n = len(x)
    fewer_k = min(k, 16) if name == "kmeans1d" else k
    part = x[: MOST // fewer_k]
    contender = peer(part, fewer_k)
    contender.scale, contender.check = n * k / (len(part) * fewer_k), optimal(part, fewer_k)
    return contender


@pytest.mark.parametrize("n,k", CASES)
def test_kmeans1d(race, isa, n, k):
    x = normal(n)
    others = [smaller(x, k, getattr(peers, name).cluster, name) for name in ("kmeans1d", "ckwrap")]
    others.append(peers.flash1dkmeans.cluster(x, k))
    ours = our_own(lambda: qk.kmeans1d(x, k).centroids)
    race(f"kmeans1d {n} points, {k} clusters", ours, others, optimal(x, k), 1000 * n, "Mpoint/s")


def test_bfloat16(race, isa):
    x = normal(10_000_000).astype(ml_dtypes.bfloat16)
    ours, check = our_own(lambda: qk.kmeans1d(x, 16).centroids), optimal(x.astype(np.float64), 16)
    race("kmeans1d 10000000 bfloat16, 16 clusters", ours, [], check, 1000 * x.size, "Mpoint/s")


def test_weighted_lines(race, isa):
    """Ours clusters 64 lines in one call, peers one line, taken 64 times."""
    x, weights = normal(64, 4096).astype(np.float32), np.random.default_rng(5).random((64, 4096), np.float32)
    line, its_weights = x[0].astype(np.float64), weights[0].astype(np.float64)
    others = [peers.ckwrap.cluster(line, 16, its_weights), peers.flash1dkmeans.cluster(x[0], 16, weights[0])]
    for peer in others:
        peer.scale = len(x)
    ours = our_own(lambda: qk.kmeans1d(x, 16, weights=weights, axis=1).centroids[0])
    check = optimal(line, 16, its_weights)
    race("kmeans1d 64 weighted lines of 4096, 16 clusters", ours, others, check, 1000 * x.size, "Mpoint/s")
