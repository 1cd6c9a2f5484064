"""Lloyd's k-means: qkernels.kmeans. Normal data, from the same start, as many iterations for all. Shapes are n, d, k.

If a point is as near to two centroids but for roundings, libraries differ by a label, and over many iterations data
without structure magnify that: such results are marked ~.
"""

import numpy as np
import peers
import pytest
from arrays import random_floats
from limits import FLOAT_PEAK_OF_ISA, multiplying
from race import CLOSE, EXACT, WRONG, our_own

import qkernels as qk

SHAPES = [(1_000_000, 4, 256), (1_000_000, 8, 256), (200_000, 32, 256), (100_000, 64, 16), (100_000, 128, 1024)]
ITERATIONS = 25  # as faiss has it


def inertia(x, centroids):
    """Of all points, by a search that stays exact: in float64, a chunk at a time."""
    norms = np.square(centroids, dtype=np.float64).sum(axis=1)
    total = 0.0
    for part in np.array_split(x.astype(np.float64), 1 + x.size // 2**20):
        total += np.sum(np.square(part)) + np.sum((norms - 2 * part @ centroids.T.astype(np.float64)).min(axis=1))
    return total


def same_inertia(x, centroids):
    expected = inertia(x, centroids)

    def check(result):
        off = abs(inertia(x, result) / expected - 1)
        return EXACT if off <= 1e-6 else CLOSE if off <= 1e-4 else WRONG

    return check


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_kmeans(race, isa, shape):
    n, d, k = shape
    x = random_floats(n, d)
    start = x[np.random.default_rng(0).choice(n, k, replace=False)]

    ours = our_own(lambda: qk.kmeans(x, k, init=start, max_iter=ITERATIONS, tol=0).centroids)
    others = [peer(x, start, ITERATIONS) for peer in (peers.faiss.kmeans, peers.sklearn.kmeans)]
    macs = n * d * k * ITERATIONS  # a multiply-add for each point, centroid and feature
    peak = multiplying(isa, macs, peers.threads, FLOAT_PEAK_OF_ISA)
    race(f"kmeans {n} x {d}, {k} clusters", ours, others, same_inertia(x, ours.read()), macs, "GMAC/s", peak)
