"""kmeans1d against all clusterings in exact arithmetic, the textbook's dynamic program, and two other libraries."""

import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import accumulate, combinations
from operator import mul

import ml_dtypes
import numpy as np
import pytest
from common import LAYOUTS, Raising, output, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

qk = Raising()

NAN, INF = float("nan"), float("inf")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(t) for t in (np.float16, BFLOAT16, np.float32, np.float64)]
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.fixture(autouse=True)
def references_may_underflow(errors_of_numpy_raise):
    with np.errstate(under="ignore"):
        yield


# ---- exact answers ----


def runs_cost(x, weights):
    """cost(first, last) of a cluster of points first .. last-1, exactly."""
    x, weights = [Fraction(v) for v in x], [Fraction(w) for w in weights]

    def cost(first, last):
        w = weights[first:last]
        total, moment = sum(w), sum(a * b for a, b in zip(w, x[first:last]))
        return sum(a * b * b for a, b in zip(w, x[first:last])) - moment * moment / total if total else Fraction(0)

    return cost


def smallest_inertia(x, k, weights=None):
    """Of all clusterings: brute force."""
    x = np.asarray(x, np.float64)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(x, kind="stable")
    order = order[weights[order] > 0]
    n, k = len(order), min(k, len(order))
    cost_of = runs_cost(x[order], weights[order])
    cost = {(i, j): cost_of(i, j) for i in range(n) for j in range(i + 1, n + 1)}
    cuts = combinations(range(1, n), k - 1)
    return float(min(sum(cost[run] for run in zip((0, *inner), (*inner, n))) for inner in cuts))


def inertia_by_rows(x, k, weights=None):
    """Of 1 .. k clusters: O(k n^2), each cluster's sums about its own middle, in the widest float."""
    order = np.argsort(x, kind="stable")
    x = np.asarray(x)[order].astype(np.longdouble)
    w = np.ones(len(x), np.longdouble) if weights is None else np.asarray(weights)[order].astype(np.longdouble)
    n = len(x)
    cost = np.full((n + 1, n + 1), np.inf, np.longdouble)
    for i in range(n):  # of points i .. j-1, for all j
        d = x[i:] - x[i]
        total, moment, second = np.cumsum(w[i:]), np.cumsum(w[i:] * d), np.cumsum(w[i:] * d * d)
        cost[i, i + 1 :] = np.maximum(second - moment * moment / total, 0)
    best, results = cost[0], []
    for _ in range(k):
        results.append(float(best[n]))
        best = np.min(best[:, None] + cost, axis=0)
    return results


def inertia_of(x, result, weights=None):
    d = np.asarray(x, np.float64) - result.centroids[result.labels]
    return float(np.sum(d * d if weights is None else weights * d * d))


def check(x, k, result, weights=None):
    """The laws of any result."""
    x = np.asarray(x)
    wide = x.astype(np.float64)
    kept = wide if weights is None else wide[np.asarray(weights) > 0]
    assert result.centroids.dtype == np.float64
    assert len(result.centroids) == min(k, len(np.unique(kept)))
    assert np.all(np.diff(result.centroids) > 0)
    assert result.labels.shape == x.shape
    assert result.labels.dtype == (np.uint8 if k <= 256 else np.int32)
    assert isinstance(result.inertia, float)
    distance = np.abs(wide[..., None] - result.centroids)
    chosen = np.take_along_axis(distance, result.labels[..., None].astype(np.intp), -1)[..., 0]
    assert_array_equal(chosen, distance.min(axis=-1))
    if weights is None or np.all(np.asarray(weights) > 0):
        assert len(np.unique(result.labels)) == len(result.centroids)
    assert_allclose(result.inertia, inertia_of(x, result, weights), rtol=1e-6, atol=1e-20)


# ---- the optimum ----

values = st.one_of(st.integers(-6, 6).map(float), st.floats(-1e3, 1e3), st.floats(-1, 1).map(lambda v: 1e6 + v))


points = st.lists(st.tuples(values, st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 7.25])), min_size=1, max_size=12)


@given(points, st.integers(1, 13), st.booleans())
@settings(max_examples=120)
def test_optimal_of_all_clusterings(points, k, weighted):
    x, weights = map(np.array, zip(*points))
    if not weighted:
        weights = None
    elif not weights.any():
        weights[0] = 1.0
    result = qk.kmeans1d(x, k, weights=weights)
    check(x, k, result, weights)
    assert_allclose(result.inertia, smallest_inertia(x, k, weights), rtol=1e-9, atol=1e-30)


def datasets(n):
    rng = np.random.default_rng(5)
    tight = rng.integers(0, 9, n) + 1e-7 * rng.standard_normal(n)
    return {
        "normal": rng.standard_normal(n),
        "laplace": rng.laplace(size=n),
        "uniform": rng.random(n),
        "constant": np.full(n, 0.1),
        "clustered": rng.integers(0, 9, n) + 0.01 * rng.standard_normal(n),
        "tight clusters": tight,
        "cauchy": rng.standard_cauchy(n),
        "log-normal": np.exp(3 * rng.standard_normal(n)),
        "integers": rng.integers(-40, 40, n),
        "equal steps": np.arange(n),
        "pairs": np.arange(n) // 2 * 10 + np.arange(n) % 2,
        "far": 1e9 + rng.standard_normal(n),
        "two ends": np.concatenate([rng.random(n // 2) * 1e-6, 1 + rng.random(n - n // 2) * 1e-9]),
    }


@pytest.mark.parametrize("name", datasets(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_optimal_for_every_k(name, weighted):
    """More than 64 points a cluster, so that all stages of the search occur, down to one point each."""
    x = datasets(150)[name]
    weights = np.random.default_rng(6).exponential(size=150) if weighted else None
    expected = inertia_by_rows(x, 150, weights)
    scale = max(1e-30, 1e-18 * expected[0])  # what the reference is sure of
    for k in range(1, 151):
        inertia = qk.kmeans1d(x, k, weights=weights).inertia
        assert_allclose(inertia, expected[k - 1], rtol=1e-9, atol=scale, err_msg=f"k = {k}")


@pytest.mark.parametrize("name", datasets(4))
def test_optimal_at_600_points(name):
    x = datasets(600)[name]
    expected = inertia_by_rows(x, 8)
    for k in (2, 3, 8):
        result = qk.kmeans1d(x, k)
        check(x, k, result)
        assert_allclose(result.inertia, expected[k - 1], rtol=1e-9, atol=max(1e-30, 1e-18 * expected[0]))


def test_two_solutions_are_joined():
    """Pairs of neighbours: each pair that is split saves 1/2, so one penalty has all numbers of clusters."""
    x = np.array([0, 1, 10, 11, 20, 21, 30, 31])
    for k in range(4, 9):
        result = qk.kmeans1d(x, k)
        assert (result.inertia, len(result.centroids)) == ((8 - k) / 2, k)


@pytest.mark.parametrize("n,k", [(600, 150), (600, 401), (599, 237), (1000, 30), (999, 7)])
def test_joined_where_steps_are_equal(n, k):
    """n points at equal steps: cluster sizes that differ by at most 1 are optimal; numbers between two divisors tie."""
    size, larger = divmod(n, k)
    cost = sum(s * (s * s - 1) / 12 for s in [size + 1] * larger + [size] * (k - larger))
    assert_allclose(qk.kmeans1d(np.arange(n), k).inertia, cost, rtol=1e-12)


# ---- hostile lines: any magnitudes, any weights ----


def exact_optimum(points, k):
    """The least cost, a Fraction, of sorted distinct points (value, weight)."""
    n, k = len(points), min(k, len(points))
    x, w = [Fraction(v) for v, _ in points], [Fraction(w) for _, w in points]
    sums = [[Fraction(0), *accumulate(terms)] for terms in (w, map(mul, w, x), (a * b * b for a, b in zip(w, x)))]

    @cache
    def cost(i, j):
        weight, moment, square = (s[j] - s[i] for s in sums)
        return square - moment * moment / weight

    best = [None] + [cost(0, j) for j in range(1, n + 1)]
    for m in range(2, k + 1):
        best = [None] * m + [min(best[i] + cost(i, j) for i in range(m - 1, j)) for j in range(m, n + 1)]
    return best[n]


def exact_cost(x, weights, labels):
    """The cost of a labelling about the exact means of its clusters."""
    total = Fraction(0)
    for label in set(labels):
        points = [(Fraction(v), Fraction(w)) for v, w, own in zip(x, weights, labels) if own == label]
        weight, moment = sum(w for _, w in points), sum(v * w for v, w in points)
        if weight:
            total += sum(v * v * w for v, w in points) - moment * moment / weight
    return total


def hostile_values(rng, n):
    sign = rng.choice([-1.0, 1], n)
    masked = rng.standard_normal(n)
    masked[0] = np.finfo(rng.choice([np.float32, np.float64])).min * sign[0]
    with np.errstate(under="ignore"):
        return [
            sign * 10.0 ** rng.uniform(-300, 300, n),
            sign * 10.0 ** rng.uniform(-20, 20, n),
            rng.integers(-5, 6, n) * 5e-324,
            masked,
            1 + rng.integers(0, 8, n) * 2.0**-52,
            np.ldexp(sign, rng.integers(-1070, 1023, n)),
            rng.integers(0, 6, n).astype(float),
            rng.integers(-(2**63), 2**63 - 1, n),
            rng.choice([-(2**63), 2**62, 2**63 - 40], n) + rng.integers(0, 30, n),
            np.ldexp(rng.integers(-9, 9, n).astype(float), rng.choice([-1074, -500, 0, 500, 1010], n)),
        ][rng.integers(10)]


def hostile_weights(rng, n):
    weights = [
        None,
        10.0 ** rng.uniform(-300, 306, n),
        rng.random(n),
        10.0 ** rng.uniform(-20, 20, n),
        rng.integers(0, 4, n).astype(float),
        rng.choice([0, 5e-324, 1e-18, 1, 1e18, 1e306], n),
    ][rng.integers(6)]
    return weights if weights is None or weights.any() else None


def as_float(exact):
    """Rounded; infinite beyond the range of doubles."""
    try:
        return float(exact)
    except OverflowError:
        return INF


@pytest.mark.parametrize("seed", range(6))
def test_optimal_for_hostile_values_and_weights(seed):
    """As dynamic programming in fractions finds it."""
    rng = np.random.default_rng(seed)
    equal, cases = 0, 400
    for _ in range(cases):
        n, k = int(rng.integers(1, 10)), int(rng.integers(1, 7))
        x, weights = hostile_values(rng, n), hostile_weights(rng, n)
        result = qk.kmeans1d(x, k, weights=weights)
        each, numbers, labels = [1] * n if weights is None else weights.tolist(), x.tolist(), result.labels.tolist()
        merged = Counter()
        for v, w in zip(numbers, each):
            if w:
                merged[v] += Fraction(w)
        best, case = exact_optimum(sorted(merged.items()), k), f"{numbers}, {k}, {each}"
        cost = exact_cost(numbers, each, labels)
        assert cost <= best * (1 + Fraction(1, 10**13)), case
        equal += cost == best
        assert len(result.centroids) == min(k, len(merged)), case
        assert_allclose(result.inertia, as_float(best), rtol=1e-15, atol=5e-324, err_msg=case)
        distances = [[abs(Fraction(v) - Fraction(c)) for c in result.centroids.tolist()] for v in numbers]
        assert all(d[label] == min(d) for d, label in zip(distances, labels)), case
        mirrored = qk.kmeans1d(-x if x.dtype.kind == "f" else ~x, k, weights=weights)
        assert_allclose(mirrored.inertia, result.inertia, rtol=2e-15, err_msg=case)
    assert equal >= 0.98 * cases  # the others by less than their points' rounding


@pytest.mark.parametrize(
    "x,k,weights,inertia",
    [
        ([0, 1, 2, 3, 4, 5.5], 3, [1] + [1e-18] * 5, 2.625e-18),
        ([-(2.0**63), 0, 1, 2, 5, 9, 20], 4, None, 10),
        (np.int64([-(2**63), 0, 1, 2, 5, 9, 20]), 4, None, 10),
        (np.int64([-(2**63), 2**63 - 1, 2**63 - 2, 7]), 3, None, 0.5),
        (np.uint64([0, 2**64 - 1, 2**64 - 2, 7]), 3, None, 0.5),
        ([1e-250, 2e-250, 2e92], 3, None, 0),
        ([1e160, 0, 1, 5], 2, [0, 1, 1, 1], 0.5),
        ([0, 1, 2], 1, [1e306] * 3, 2e306),
        ([1e300, -1e300], 1, None, INF),
        ([1e-300, -1e-300], 1, None, 0),
    ],
    ids=str,
)
def test_hostile_examples(x, k, weights, inertia):
    result = qk.kmeans1d(x, k, weights=weights)
    assert_allclose(result.inertia, inertia, rtol=1e-15)
    assert len(result.centroids) == k


@pytest.mark.parametrize("mask", [np.finfo(np.float32).min, np.finfo(np.float64).min, 1e30])
@pytest.mark.parametrize("n,k", [(60, 8), (5000, 17), (100_000, 256)])
def test_a_far_value_is_a_cluster_by_itself(mask, n, k):
    x = np.random.default_rng(15).standard_normal(n)
    for sign in (1, -1):
        far, near = qk.kmeans1d(np.append(sign * mask, sign * x), k + 1), qk.kmeans1d(sign * x, k)
        assert_allclose(far.inertia, near.inertia, rtol=1e-12)
        assert_allclose(np.setdiff1d(far.centroids, [sign * mask]), near.centroids, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-18, 1e-100, 1e-300])
def test_light_points_beside_heavy_ones(ratio):
    """Heavy ones take a cluster each; light ones are clustered as if by themselves in what is left between them."""
    x = np.random.default_rng(16).random(400)
    light = qk.kmeans1d(x, 6)
    both = qk.kmeans1d(np.append(x, [-50, 60]), 8, weights=np.append(np.full(400, ratio), [1, 1]))
    assert_allclose(both.centroids[1:-1], light.centroids, rtol=1e-12)
    assert_allclose(both.inertia, light.inertia * ratio, rtol=1e-12)


def test_a_histogram_of_huge_weights():
    x = np.tile(np.arange(5, dtype=np.int8), 8000)
    for weight in (1e300, 1e306):
        result = qk.kmeans1d(x, 3, weights=np.full(x.size, weight))
        assert_array_equal(np.unique(result.labels, return_counts=True)[1].max(), 16000)
        assert len(result.centroids) == 3


def test_levels_beside_zero_at_hostile_weights_and_dead_channels():
    def levels(x, k, weights=None, axis=None):
        return qk.Codebook.fit(np.float32(x), k, zero=True, weights=weights, axis=axis).levels

    assert_array_equal(levels([5, 3, 1, 1, 0], 5, [5e-324, 1e-18, 1e306, 1, 1]), [0, 1, 3, 5, 5])
    assert_array_equal(levels([-4, -3, 1, 2], 3, [1e-300, 1e-300, 1e300, 1e300]), [0, 1, 2])
    assert_array_equal(levels([-3e38, 1, 2, 5], 4), np.float32([-3e38, 0, 1.5, 5]))
    assert_array_equal(levels([[0, 0, 0], [-1, 1, 3]], 4, axis=0), [[0, 0, 0, 0], [-1, 0, 1, 3]])


# ---- other systems ----


@pytest.mark.parametrize(
    "name", ["normal", "laplace", "uniform", "constant", "clustered", "integers", "equal steps", "far"]
)
@pytest.mark.parametrize("n,k", [(1000, 16), (3000, 40)])
def test_as_other_libraries(name, n, k):
    """Both sum squares about 0 or the median: far data are taken less their offset for them, which is exact."""
    kmeans1d, ckwrap = pytest.importorskip("kmeans1d"), pytest.importorskip("ckwrap")
    x = datasets(n)[name].astype(np.float64)
    k = min(k, len(np.unique(x)))
    near = x - np.rint(np.median(x))
    other = kmeans1d.cluster(near, k)
    expected = np.sum((near - np.take(other.centroids, other.clusters)) ** 2)
    result = qk.kmeans1d(x, k)
    assert_allclose(result.inertia, expected, rtol=1e-9)
    assert_allclose(result.inertia, np.sum(ckwrap.ckmeans(near, k).withinss), rtol=1e-9)
    weights = np.random.default_rng(7).random(n)
    expected = np.sum(ckwrap.ckmeans(near, k, weights).withinss)
    assert_allclose(qk.kmeans1d(x, k, weights=weights).inertia, expected, rtol=1e-9)


# ---- laws ----


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_dtypes(dtype):
    """As the same values in float64; long arrays of 8 and 16 bits go another way."""
    rng = np.random.default_rng(8)
    for n in (1, 300, 20_000):
        with np.errstate(under="ignore"):
            x = (rng.standard_normal(n) if dtype in FLOATS else rng.integers(0, 100, n)).astype(dtype)
        weights = rng.integers(0, 3, n)
        weights[0] = 1
        for w in (None, weights):
            result, wide = qk.kmeans1d(x, 7, weights=w), qk.kmeans1d(x.astype(np.float64), 7, weights=w)
            assert_allclose(result.centroids, wide.centroids, rtol=1e-12, atol=1e-15)
            assert_array_equal(result.labels, wide.labels)
            assert_allclose(result.inertia, wide.inertia, rtol=1e-11, atol=1e-20)


def test_16_bits_of_every_value():
    for dtype in (np.dtype(np.int16), np.dtype(np.float16), BFLOAT16):
        x = np.arange(2**16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):
            x = x[np.abs(x.astype(np.float64)) < 1e10]
        check(x[::41], 300, qk.kmeans1d(x[::41], 300))
        result = qk.kmeans1d(np.tile(x, 2), 300)
        assert_allclose(result.inertia, 2 * qk.kmeans1d(x.astype(np.float64), 300).inertia, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_64_bit_integers_far_from_zero(dtype):
    near = np.random.default_rng(9).integers(0, 1000, 500)
    for base in (np.iinfo(dtype).max - 1000, np.iinfo(dtype).min):
        x = near.astype(dtype) + dtype(base)
        result, expected = qk.kmeans1d(x, 5), qk.kmeans1d(near, 5)
        assert result.inertia == expected.inertia
        assert_array_equal(result.labels, expected.labels)
        assert_array_equal(result.centroids, expected.centroids + float(base))


def test_counts_are_weights():
    rng = np.random.default_rng(10)
    x, counts = rng.standard_normal(200), rng.integers(1, 5, 200)
    result, repeated = qk.kmeans1d(x, 6, weights=counts), qk.kmeans1d(np.repeat(x, counts), 6)
    assert_allclose(result.centroids, repeated.centroids, rtol=1e-13)
    assert_allclose(result.inertia, repeated.inertia, rtol=1e-12)
    assert_array_equal(np.repeat(result.labels, counts), repeated.labels)


def test_weights_of_zero_count_for_nothing_but_labels():
    result = qk.kmeans1d([0, 1, 4.5, 5, 5.5, 10, 11], 2, weights=[1, 1, 0, 0, 0, 1, 1])
    assert_array_equal(result.centroids, [0.5, 10.5])
    assert_array_equal(result.labels, [0, 0, 0, 0, 0, 1, 1])  # 5.5 is at a tie: the lower index
    assert result.inertia == 1.0
    assert_array_equal(qk.kmeans1d([3, 7, 8], 3, weights=[0, 1, 0]).centroids, [7])


@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1e-3, 1e150, 1e307])
def test_scales(scale):
    x = np.array([1.0, 2, 4, 8, 9])
    result = qk.kmeans1d(x * scale, 2)
    assert_allclose(result.centroids, np.array([7 / 3, 8.5]) * scale, rtol=1e-12)
    assert_array_equal(result.labels, [0, 0, 0, 1, 1])
    for weight in (1e-300, 1e-5, 1e290):
        assert_allclose(qk.kmeans1d(x, 2, weights=np.full(5, weight)).inertia, (14 / 3 + 0.5) * weight, rtol=1e-12)


def test_fewer_values_than_k():
    for x in ([3.0], [3.0, 3.0], [-0.0, 0.0]):
        result = qk.kmeans1d(x, 5)
        assert_array_equal(result.centroids, [x[0]])
        assert result.inertia == 0
    result = qk.kmeans1d([[5, 1], [5, 9]], 10**6)
    assert_array_equal(result.centroids, [1, 5, 9])
    assert_array_equal(result.labels, np.int32([[1, 0], [1, 2]]), strict=True)
    assert qk.kmeans1d(np.float32(7), 1).labels.shape == ()


@pytest.mark.parametrize("k,dtype", [(256, np.uint8), (257, np.int32)])
@pytest.mark.parametrize("x", [np.arange(5000.0), np.arange(20000, dtype=np.uint16)], ids=["float64", "uint16"])
def test_label_dtype(x, k, dtype):
    labels = qk.kmeans1d(x, k).labels
    assert labels.dtype == dtype
    assert labels.min() == 0 and labels.max() == k - 1


# ---- lines ----


@pytest.mark.parametrize("shape", [(7, 50), (3, 4, 40), (1, 300), (2, 40_000)], ids=str)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_each_line_by_itself(shape, dtype):
    rng = np.random.default_rng(11)
    x, weights = rng.standard_normal(shape).astype(dtype), rng.random(shape)
    for axis in range(-len(shape), len(shape)):
        n = shape[axis]
        lines = np.moveaxis(x, axis, -1).reshape(-1, n)
        of_one = tuple(0 if i != axis % len(shape) else slice(None) for i in range(len(shape)))
        for w in None, weights, weights[of_one]:
            result = qk.kmeans1d(x, 3, weights=w, axis=axis)
            others = tuple(np.delete(shape, axis))
            assert (result.centroids.shape, result.labels.shape, result.inertia.shape) == ((*others, 3), shape, others)
            labels = np.moveaxis(result.labels, axis, -1).reshape(-1, n)
            if w is not None:
                w = np.broadcast_to(w, lines.shape) if w.ndim == 1 else np.moveaxis(w, axis, -1).reshape(-1, n)
            for i, (line, centroids) in enumerate(zip(lines[:20], result.centroids.reshape(-1, 3))):
                alone = qk.kmeans1d(line, 3, weights=None if w is None else w[i])
                assert_array_equal(centroids, np.resize(alone.centroids, 3) if len(alone.centroids) == 3 else centroids)
                assert_array_equal(labels[i], alone.labels)
                assert result.inertia.ravel()[i] == alone.inertia


def test_lines_with_fewer_values_repeat_their_last():
    result = qk.kmeans1d([[1, 1, 2], [4, 4, 4], [1, 2, 3]], 3, axis=1)
    assert_array_equal(result.centroids, [[1, 2, 2], [4, 4, 4], [1, 2, 3]])
    assert_array_equal(result.labels, [[0, 0, 1], [0, 0, 0], [0, 1, 2]])
    assert_array_equal(qk.kmeans1d([[1, 2]], 4, axis=1).centroids, [[1, 2, 2, 2]])
    empty = qk.kmeans1d(np.empty((0, 5)), 2, axis=1)
    assert (empty.centroids.shape, empty.labels.shape, empty.inertia.shape) == ((0, 2), (0, 5), (0,))


def test_threads_and_strides_make_no_difference():
    x = np.random.default_rng(12).standard_normal((90, 1000)).astype(np.float32)
    with qk.num_threads(1):
        expected = qk.kmeans1d(x, 9, axis=1)
    for threads in (1, 2, 3):
        with qk.num_threads(threads):
            for layout in LAYOUTS.values():
                for got, want in zip(qk.kmeans1d(layout(x), 9, axis=1), expected):
                    assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("shape,k,weighted", [((1, 3000), 5, True), ((40, 500), 3, False), ((1, 1), 2, False)])
def test_every_instruction_set_gives_equal_bits(everywhere, shape, k, weighted):
    rng = np.random.default_rng(14)
    x, weights = rng.standard_cauchy(shape), rng.random(shape) if weighted else None
    everywhere(lambda: qk.kmeans1d(x, k, weights=weights, axis=1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory as Linux gives it")
def test_memory_is_at_most_ten_times_the_input():
    code = """
import numpy as np, qkernels as qk, resource
x = np.random.default_rng(0).standard_normal(2_000_000, np.float32)
qk.kmeans1d(x[:50000], 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
qk.kmeans1d(x, 16)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / x.nbytes)
"""
    assert float(output(code)) <= 10


@pytest.mark.parametrize("k", [3, 2**40, 2**63 - 1])
def test_more_clusters_than_points(k):
    result = qk.kmeans1d(np.float32([4, 1, 4, 2]), k)
    assert_array_equal(result.centroids, [1, 2, 4])
    assert_array_equal(result.labels, [2, 0, 2, 1])
    assert result.inertia == 0


# ---- bad input ----


@refusals(r"""
kmeans1d([1.0, NAN, INF], 1)  # ValueError: x has 2 NaN or infinite values, the first at \(1,\)
kmeans1d([[1.0, 2.0], [3.0, -INF]], 1)  # ValueError: x has 1 NaN or infinite values, the first at \(1, 1\)
kmeans1d([[1.0, 2.0], [3.0, -NAN]], 1, axis=0)  # ValueError: x has 1 NaN or infinite values, the first at \(1, 1\)
kmeans1d(np.full(20_000, INF, np.float16), 1)  # ValueError: x has 20000 NaN or infinite values, the first at \(0,\)
kmeans1d([], 1)  # ValueError: x must have values to cluster, got shape \(0,\)
kmeans1d(np.empty((3, 0)), 1, axis=1)  # ValueError: x must have values to cluster, got shape \(3, 0\) with axis 1
kmeans1d([1.0], 0)  # ValueError: k must be at least 1, got 0
kmeans1d([1.0], -3)  # ValueError: k must be at least 1, got -3
kmeans1d([1.0], 2.0)  # TypeError: k must be an integer, got 2.0
kmeans1d([1.0], True)  # TypeError: k must be an integer, got True
kmeans1d([1j], 1)  # TypeError: x must be float16, bfloat16, float32, float64 or integers, got complex128
kmeans1d(["a"], 1)  # TypeError: x must be
kmeans1d([True], 1)  # TypeError: x must be .* got bool
kmeans1d([None], 1)  # TypeError: x must be .* got object
kmeans1d([1.0], 1, axis=1)  # ValueError: axis must be from -1 to 0 for x with 1 axes, got 1
kmeans1d([1.0], 1, axis=0.0)  # TypeError: axis must be an integer or None, got 0.0
kmeans1d(1.0, 1, axis=0)  # ValueError: axis must be from .* got 0
kmeans1d([1.0, 2.0], 1, weights=[1, -2])  # ValueError: weights must not be negative, got -2 at \(1,\)
kmeans1d([1.0, 2.0], 1, weights=[1, NAN])  # ValueError: weights has 1 NaN or infinite values, the first at \(1,\)
kmeans1d([1.0, 2.0], 1, weights=[INF, 1])  # ValueError: weights has 1 NaN or infinite values, the first at \(0,\)
kmeans1d([1.0, 2.0], 1, weights=[0, 0])  # ValueError: weights must not all be 0$
kmeans1d([[1, 2], [3, 4]], 1, weights=[[1, 0], [0, 0]], axis=1)
    # ValueError: weights must not all be 0, as those of line 1 are
kmeans1d([1.0, 2.0], 1, weights=[1])  # ValueError: weights must have shape \(2,\), got \(1,\)
kmeans1d([1.0, 2.0], 1, weights=1.0)  # ValueError: weights must have shape \(2,\), got \(\)
kmeans1d(np.ones((2, 3)), 1, weights=np.ones(2), axis=1)
    # ValueError: weights must have shape \(2, 3\) or \(3,\), got \(2,\)
kmeans1d(np.ones(20_000, np.int8), 1, weights=np.full(20_000, -1))
    # ValueError: weights must not be negative, got -1 at \(0,\)
kmeans1d(np.ones(20_000, np.int8), 1, weights=np.zeros(20_000))  # ValueError: weights must not all be 0$
kmeans1d(np.ones(20_000, BFLOAT16), 1, weights=np.full(20_000, NAN))
    # ValueError: weights has 20000 NaN or infinite values
kmeans1d([1.0], 1, weights=["a"])  # TypeError: weights must be real numbers, got
""")
def test_bad_input(refusal):
    refuse(refusal, globals() | {"kmeans1d": qk.kmeans1d})
