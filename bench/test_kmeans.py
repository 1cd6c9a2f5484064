"""Lloyd's k-means: qkernels.kmeans. Normal data, from the same start, as many iterations for all. Shapes are n, d, k.

Where a point is as near to two centroids but for roundings, libraries differ by a label, and over many iterations data without
structure magnify that: such results are marked ~.
"""

import numpy as np
import peers
import pytest
from arrays import random_floats
from limits import multiply_adds
from race import CLOSE, EXACT, WRONG, Contender

import qkernels as qk

SHAPES = [(1_000_000, 4, 256), (1_000_000, 8, 256), (200_000, 32, 256), (100_000, 64, 16)]
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


def floor(isa, macs):
    """A multiply-add for each point, centroid and feature."""
    peak = {"avx512vnni": "peak_fma_512", "avx2": "peak_fma_256"}.get(isa)
    if peak is None:
        return []
    call, done = multiply_adds(peak, 20_000_000)
    return [Contender("peak", call, scale=macs / done / peers.threads)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_kmeans(race, isa, shape):
    n, d, k = shape
    x = random_floats(n, d)
    start = x[np.random.default_rng(0).choice(n, k, replace=False)]

    def ours():
        return qk.kmeans(x, k, init=start, max_iter=ITERATIONS, tol=0)

    others = [peer(x, start, ITERATIONS) for peer in (peers.faiss_kmeans, peers.sklearn_kmeans)]
    macs = n * d * k * ITERATIONS
    race(
        f"kmeans {n} x {d}, {k} clusters", work=macs, unit="GMAC/s", ours=Contender("qkernels", ours, lambda: ours().centroids),
        peers=others, check=same_inertia(x, ours().centroids), limits=floor(isa, macs),
    )  # fmt: skip
