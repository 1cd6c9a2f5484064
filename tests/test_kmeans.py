"""kmeans against Lloyd's algorithm in float64 NumPy and against scikit-learn's laws, equal bits everywhere."""

import _thread
import itertools
import math
import pickle
import signal
import threading
import time
from fractions import Fraction
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from common import LAYOUTS, refusals, refuse

import qkernels as qk
from qkernels import kmeans
from qkernels._bind import clusters

RNG = np.random.default_rng(0)


def blobs(n, d, k, spread=0.1, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 3, (k, d))[rng.integers(0, k, n)] + rng.normal(0, spread, (n, d))).astype(dtype)


def squared_distances(x, centroids):
    return np.square(x.astype(np.float64)[:, None] - centroids.astype(np.float64)).sum(axis=-1)


def lloyd(x, centroids, iterations, weights=None):
    """Lloyd's algorithm at its plainest. Empty clusters stay."""
    weights = np.ones(len(x)) if weights is None else weights
    for _ in range(iterations):
        labels = squared_distances(x, centroids).argmin(axis=1)
        total = np.bincount(labels, weights, len(centroids))
        sums = [np.bincount(labels, weights * column, len(centroids)) for column in x.T.astype(np.float64)]
        means = np.stack(sums, axis=1) / np.where(total > 0, total, 1)[:, None]
        centroids = np.where(total[:, None] > 0, means, centroids).astype(centroids.dtype)
    return centroids


def same(results):
    for result in results[1:]:
        np.testing.assert_array_equal(result.centroids, results[0].centroids)
        np.testing.assert_array_equal(result.labels, results[0].labels)
        assert result.inertia == results[0].inertia
    return results[0]


def check_consistent(x, result, weights=None):
    """Labels are the nearest centroids, and the inertia is that of both."""
    distances = squared_distances(np.asarray(x), result.centroids)
    chosen = distances[np.arange(len(distances)), result.labels]
    assert np.all(chosen <= distances.min(axis=1) * (1 + 1e-4) + 1e-30)
    assert result.inertia == pytest.approx(
        np.sum(chosen if weights is None else weights * chosen), rel=1e-12, abs=1e-30
    )


# ---- the algorithm ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "n, d, k",
    [(1, 1, 1), (40, 2, 1), (100, 1, 7), (500, 3, 20), (333, 5, 33), (700, 17, 16), (300, 70, 10), (150, 2, 150)],
)
def test_kmeans_is_lloyds_algorithm(variants, n, d, k, dtype):
    x = blobs(n, d, k, spread=2, dtype=dtype)
    start = x[RNG.choice(n, k, replace=False)]
    result = same([kmeans(x, k, init=start, max_iter=6, tol=0) for _ in variants()])
    check_consistent(x, result)
    np.testing.assert_allclose(result.centroids, lloyd(x, start, 6), atol=1e-5)
    assert result.centroids.dtype == dtype and result.labels.dtype == np.int32 and type(result.inertia) is float


@pytest.mark.parametrize("d, k", [(1, 40), (2, 40), (3, 40), (4, 40), (5, 40), (8, 40), (9, 40), (16, 40), (33, 16)])
def test_bounds_lose_no_label(variants, d, k):
    """Many iterations on points without structure keep bounds and candidates at work: labels are a plain search's."""
    x = RNG.standard_normal((2500, d), np.float32)
    result = same([kmeans(x, k, init=x[:k], max_iter=15, tol=0) for _ in variants()])
    state = clusters.KMeans(x, None, k, 1024, False)
    with np.errstate(under="ignore"):  # which kmeans itself sees to
        state.place(result.centroids)
    state.assign()
    np.testing.assert_array_equal(result.labels, state.labels)


def test_chunks_are_merged_in_order(variants):
    x, results = RNG.standard_normal((40000, 4), np.float32), []
    for name in variants():
        if not name.startswith("scalar"):  # which takes a function call for each multiply-add
            results.append(kmeans(x, 64, init=x[:64], max_iter=8, tol=0))
    if results:
        check_consistent(x, same(results))


def test_threads_share_seeds_and_bits(isas):
    x, results = blobs(20000, 6, 30, spread=1), []
    for threads in 1, 2, 3:
        with qk.num_threads(threads):
            results.append(kmeans(x, 30, rng=5, n_init=2, max_iter=10))
    check_consistent(x, same(results))


def test_ties_go_to_the_lower_index(variants):
    x = np.float32([[0, 0], [1, 0], [2, 0], [3, 0]])
    start = np.float32([[2, 0], [0, 0], [2, 0], [0, 0]])
    for _ in variants():
        result = kmeans(x, 4, init=start, max_iter=1, callback=lambda *_: True)
        assert result.labels.tolist() == [1, 0, 0, 0]  # 1 is as near to 0 as to 2


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.float64]
)
def test_other_types_are_clustered_as_floats(dtype):
    x = (RNG.standard_normal((200, 3)) * 20).astype(dtype)
    real = x.astype(np.float64 if np.dtype(dtype).itemsize >= 8 or dtype == np.int32 else np.float32)
    got, expected = (kmeans(points, 5, init=real[:5]) for points in (x, real))
    assert got.centroids.dtype == real.dtype
    same([got, expected])


def test_strided_swapped_and_read_only_points():
    x = RNG.standard_normal((300, 4), np.float32)
    expected = kmeans(x, 8, init=x[:8])
    for layout in LAYOUTS.values():
        same([expected, kmeans(layout(x), 8, init=x[:8])])


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-10, 1e10, 1e19, 1e30, 1e38])
def test_any_magnitude(scale):
    x = np.float32([[0, 0], [0, 1], [2, 2], [3, 2]]) * np.float32(scale)
    result = kmeans(x, 2, init=x[[0, 3]])
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert result.inertia == pytest.approx(float(x[1, 1]) ** 2, rel=1e-5)


def test_far_from_zero():
    x = blobs(2000, 3, 5, spread=0.5, dtype=np.float64)
    for offset in 1e6, -1e9:
        near, far = kmeans(x, 5, init=x[:5]), kmeans(x + offset, 5, init=x[:5] + offset)
        np.testing.assert_array_equal(near.labels, far.labels)
        assert far.inertia == pytest.approx(near.inertia, rel=1e-6)


# ---- weights ----


def test_integer_weights_are_repetitions(variants):
    x, weights = blobs(200, 3, 6, spread=1), RNG.integers(0, 4, 200)
    repeated, results = kmeans(np.repeat(x, weights, axis=0), 6, init=x[:6], tol=0), []
    for _ in variants():
        results.append(kmeans(x, 6, weights=weights, init=x[:6], tol=0))
    result = same(results)
    np.testing.assert_allclose(result.centroids, repeated.centroids, rtol=1e-6)
    np.testing.assert_array_equal(np.repeat(result.labels, weights), repeated.labels)
    assert result.inertia == pytest.approx(repeated.inertia, rel=1e-6)
    check_consistent(x, result, weights)


def test_scale_of_weights_scales_the_inertia():
    x, weights = blobs(300, 2, 4), RNG.random(300)
    one, many = (kmeans(x, 4, weights=w, init=x[:4]) for w in (weights, weights * 1e200))
    np.testing.assert_array_equal(one.labels, many.labels)
    assert many.inertia == pytest.approx(one.inertia * 1e200, rel=1e-9)


# ---- where to start ----


def test_kmeans_plus_plus_finds_separate_clusters():
    x = blobs(3000, 4, 20, spread=0.01, seed=3)
    for seed in range(5):
        assert kmeans(x, 20, rng=seed).inertia < 2 * 3000 * 4 * 0.01**2


def test_the_best_of_several_starts_is_kept():
    x = blobs(400, 2, 12, spread=0.5)
    rng = np.random.default_rng(1)
    single = [kmeans(x, 12, init="random", rng=rng).inertia for _ in range(6)]
    best = kmeans(x, 12, init="random", rng=1, n_init=6)
    assert best.inertia == min(single)
    check_consistent(x, best)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_seeds_are_points_of_positive_weight(init):
    x, weights = blobs(50, 2, 5), np.zeros(50)
    weights[[3, 7, 11, 20]] = 1, 2, 3, 4
    result = kmeans(x, 4, weights=weights, init=init, rng=0)
    assert result.inertia == pytest.approx(0, abs=1e-9)


def test_a_generator_goes_on():
    x, rng = blobs(300, 2, 9, spread=1), np.random.default_rng(2)
    first, second = kmeans(x, 9, rng=rng, max_iter=1), kmeans(x, 9, rng=rng, max_iter=1)
    same([first, kmeans(x, 9, rng=2, max_iter=1)])
    assert not np.array_equal(first.centroids, second.centroids)


# ---- empty clusters, few points ----


def test_an_empty_cluster_takes_the_farthest_point(variants):
    x = np.float32([[0], [1], [2], [50], [100]])
    for _ in variants():
        result = kmeans(x, 3, init=np.float32([[1], [1000], [2000]]), max_iter=1, tol=0)
        assert sorted(result.centroids.ravel().tolist()) == [1.0, 50.0, 100.0]


def test_fewer_different_points_than_clusters():
    x = np.repeat(np.float32([[0, 0], [3, 4]]), 50, axis=0)
    for init in "k-means++", "random", x[:7]:
        result = kmeans(x, 7, init=init, rng=0)
        assert result.centroids.shape == (7, 2) and result.inertia == 0
        assert set(map(tuple, result.centroids.tolist())) == {(0.0, 0.0), (3.0, 4.0)}
        check_consistent(x, result)


def test_constant_points():
    result = kmeans(np.full((1000, 3), 7.5, np.float32), 20, rng=0)
    assert result.inertia == 0 and np.all(result.labels == 0) and np.all(result.centroids == 7.5)


def test_each_point_its_own_cluster():
    x = RNG.standard_normal((64, 3), np.float32)
    result = kmeans(x, 64, rng=0)
    assert result.inertia == 0 and sorted(result.labels) == list(range(64))


# ---- when to stop ----


def test_the_callback_sees_a_falling_inertia_and_may_stop():
    x, seen = RNG.standard_normal((2000, 4), np.float32), []
    kmeans(x, 20, init=x[:20], max_iter=9, tol=0, callback=lambda *args: seen.append(args))
    assert [iteration for iteration, _ in seen] == list(range(1, 10))
    assert all(after <= before * (1 + 1e-9) for (_, before), (_, after) in itertools.pairwise(seen))
    result = kmeans(x, 20, init=x[:20], tol=0, callback=lambda iteration, _: iteration == 3)
    assert result.inertia == seen[2][1]
    check_consistent(x, result)


def test_it_ends_where_no_label_changes_and_by_tol():
    x, seen = blobs(500, 2, 4, spread=0.01), []
    kmeans(x, 4, rng=0, tol=0, max_iter=1000, callback=lambda *args: seen.append(args))
    assert len(seen) < 50
    counts = []
    points = RNG.standard_normal((3000, 3), np.float32)
    for tol in 1e-1, 1e-3, 1e-6:
        counts.append(0)

        def count(*_):
            counts[-1] += 1

        kmeans(points, 30, init=points[:30], tol=tol, max_iter=300, callback=count)
    assert counts[0] <= counts[1] <= counts[2] and counts[0] < counts[2]


def test_an_error_in_the_callback_comes_through():
    x = RNG.standard_normal((100, 2))
    with pytest.raises(ZeroDivisionError):
        kmeans(x, 4, rng=0, callback=lambda *_: 1 // 0)


@pytest.fixture
def interruptible():
    """Processes in the background of a shell are started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_soon_and_leaves_nothing_behind(interruptible):
    x = RNG.standard_normal((100_000, 16), np.float32)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        kmeans(x, 512, init=x[:512], tol=0, max_iter=10**6)
    timer.join()
    assert time.perf_counter() - start < 10  # 0.4 on an idle machine
    check_consistent(x[:100], kmeans(x[:100], 5, rng=0))


def test_threads_that_call_it_at_once_agree():
    x, results = blobs(3000, 3, 10, spread=1), [None] * 4

    def work(i):
        results[i] = kmeans(x, 10, rng=3)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(results)


def test_an_init_as_far_as_squares_allow():
    x = RNG.standard_normal((2000, 2)).astype(np.float32)
    init = x[:20] * np.float32(2**57)
    result = kmeans(x, 20, init=init, max_iter=5)
    assert np.isfinite(result.centroids).all()
    assert result.inertia < 1e-2 * np.square(init.astype(np.float64)).sum()


# ---- magnitudes far apart ----


def exact(values):
    return [[Fraction(float(v)) for v in row] for row in values]


def check_exactly(x, weights, result, settled):
    """By fractions: labels are the nearest centroids up to the rounding of distances, the inertia is that of both, and
    where no label changed any more each centroid is the mean of its points."""
    centroids, labels, inertia = result
    assert np.isfinite(centroids).all() and inertia >= 0
    epsilon = Fraction(float(np.finfo(centroids.dtype).eps))
    points, means, total = exact(x), exact(centroids), Fraction(0)
    weights = [Fraction(float(w)) for w in (np.ones(len(x)) if weights is None else weights)]
    for point, label, weight in zip(points, labels, weights):
        distances = [sum((a - b) ** 2 for a, b in zip(point, mean)) for mean in means]
        assert distances[label] <= min(distances) * (1 + (len(point) + 2) * epsilon)
        total += weight * distances[label]
    bound, least = Fraction(2) ** 1023, Fraction(float(np.finfo(centroids.dtype).smallest_subnormal))
    infinite = math.isinf(inertia) and total > bound
    assert infinite or abs(Fraction(inertia) - total) <= total / 10**9 + Fraction(5e-324) * len(x)
    for j, mean in enumerate(means) if settled else ():
        members = [i for i in range(len(x)) if labels[i] == j]
        weight = sum(weights[i] for i in members)
        for f in range(len(mean)) if weight else ():
            largest = max(abs(points[i][f]) for i in members)
            exactly = sum(weights[i] * points[i][f] for i in members) / weight
            assert abs(exactly - mean[f]) <= largest * 8 * epsilon + 8 * least


@np.errstate(all="ignore")
def hostile_points(rng, dtype):
    n, d = int(rng.integers(2, 24)), int(rng.integers(1, 5))
    reach = {np.float32: (-44, 38), np.float64: (-320, 300)}[dtype]
    low = rng.integers(*reach)
    if rng.random() < 0.5:
        powers = rng.uniform(low, rng.integers(low, reach[1] + 1) + 0.5, (n, d))
    else:
        powers = rng.choice(rng.integers(*reach, 3), (n, d))
    x = (rng.normal(0, 1, (n, d)) * 10.0**powers).astype(dtype)
    if rng.random() < 0.5:  # several points far from the others, and far nearer to each other
        x = x[rng.integers(0, n, n)] + (10.0 ** float(rng.integers(*reach)) * rng.integers(-3, 4, (n, d))).astype(dtype)
    return np.clip(x, *(np.finfo(dtype).min / 4, np.finfo(dtype).max / 4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_the_nearest_centroids_of_points_of_any_magnitudes(seed, dtype):
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(100):
        x = hostile_points(rng, dtype)
        powers = (10.0 ** rng.uniform(*ends, len(x)) for ends in ((-300, 300), (-20, 0)))
        weights = [None, rng.random(len(x)), *powers][rng.integers(4)]
        k, init = int(rng.integers(1, len(x) + 1)), ["k-means++", "random"][rng.integers(2)]
        seen = []
        try:
            how = dict(tol=0, max_iter=200, callback=lambda *step: seen.append(step))
            result = kmeans(x, k, weights=weights, init=init, rng=0, **how)
        except ValueError as error:  # stated: float64 beyond a ratio of 1e400 or so
            assert "x and init must not hold magnitudes" in str(error)
            positive = np.abs(x[x != 0])
            assert dtype == np.float64 and float(np.log10(positive.max()) - np.log10(positive.min())) > 400
            refused += 1
            continue
        assert not any(math.isnan(inertia) for _, inertia in seen)
        check_exactly(x, weights, result, len(seen) < 200)
    assert refused < 60


def test_one_far_point_among_near_ones(variants):
    cases = {np.float32: [1e30, 3e38], np.float64: [1e30, 1e300, 1.7e308]}
    for dtype, far in [(dtype, far) for dtype, several in cases.items() for far in several]:
        x = np.array([[-far], [0], [1], [5]], dtype)
        results = [kmeans(x, 4, rng=0) for _ in variants()]
        assert same(results).inertia == 0 and sorted(results[0].labels) == [0, 1, 2, 3]
        starts = [kmeans(x, 4, init=x[::-1], max_iter=2) for _ in variants()]
        assert same(starts).labels.tolist() == [3, 2, 1, 0] and starts[0].inertia == 0


def test_ties_go_to_the_lower_index_where_squares_underflow(variants):
    for dtype, unit in (np.float32, 2.0**-140), (np.float64, 2.0**-1050):
        x = np.array([[1], [0], [3 * unit], [4 * unit], [5 * unit]], dtype)
        start = np.array([[1], [4 * unit], [2 * unit], [0], [2 * unit]], dtype)
        for _ in variants():
            result = kmeans(x, 5, init=start, callback=lambda *_: True)
            assert result.labels.tolist() == [0, 3, 1, 1, 1]  # 3 is as near to 4 as to 2


def test_weights_of_any_magnitude():
    x = np.float32([[0], [1], [10], [11], [20], [23]])
    mixed = [1e-300, 2e-300, 1, 2, 1e300, 2e300], [1, 3, 1e308, 1e308, 1e-320, 3e-320]
    for weights in *mixed, [5e-324] * 6, [1.7e308] * 6:
        result = kmeans(x, 3, weights=weights, init=np.float32([[0], [10], [20]]), tol=0)
        check_exactly(x, weights, result, True)
        assert result.labels.tolist() == [0, 0, 1, 1, 2, 2]
        for init in "k-means++", "random":
            check_exactly(x, weights, kmeans(x, 5, weights=weights, init=init, rng=1, tol=0), True)


def test_a_far_point_that_leaves_its_cluster_leaves_the_mean_of_the_others():
    x = np.float64([[1e30], [1], [2], [3]])
    result = kmeans(x, 2, init=np.float64([[2], [-1e31]]), max_iter=1, tol=0)
    assert result.centroids.ravel().tolist() == [2.0, 1e30] and result.inertia == 2.0


def test_magnitudes_beyond_float64_are_refused():
    message = r"x and init must not hold magnitudes both as large as 1e\+300 and as small as 1e-300"
    with pytest.raises(ValueError, match=message):
        kmeans(np.float64([[1e300], [1e-300], [1]]), 2, rng=0)


# ---- bad input ----


@refusals(r"""
cluster(x=np.zeros(4))  # ValueError: x must have shape \(n, d\), d at least 1, got \(4,\)
cluster(x=np.zeros((4, 0)))  # ValueError: d at least 1, got \(4, 0\)
cluster(x=np.zeros((4, 2), complex))
    # TypeError: x must be float16, bfloat16, float32, float64 or integers, got complex128
cluster(x=np.zeros((4, 2), np.longdouble))  # TypeError: x must be float16, bfloat16, .* got float128
cluster(x=np.zeros((0, 2)), init="random")  # ValueError: k must be at most the number of points, 0, got 2
cluster(x=np.float32([[0, np.nan], [1, 1], [np.inf, 0]]))
    # ValueError: x has 2 NaN or infinite values, the first at \(0, 1\)
cluster(k=0)  # ValueError: k must be at least 1, got 0
cluster(k=5)  # ValueError: k must be at most the number of points, 4, got 5
cluster(k=2.0)  # TypeError: k must be an integer, got 2.0
cluster(k=True)  # TypeError: k must be an integer, got True
cluster(weights=[1, 2, 3])  # ValueError: weights must have shape \(4,\) to match x, got \(3,\)
cluster(weights=[1, -2, 3, 4])  # ValueError: weights must be at least 0, got -2.0 at 1
cluster(weights=[0, 0, 0, 0])  # ValueError: weights must not all be 0
cluster(weights=[1, np.inf, 3, 4])  # ValueError: weights has 1 NaN or infinite values, the first at \(1,\)
cluster(weights="abcd")  # TypeError: weights must be real numbers, got <U4
cluster(init=np.zeros((3, 2)))  # ValueError: init must have shape \(2, 2\), got \(3, 2\)
cluster(init=[[0, 0], [0, np.nan]])  # ValueError: init has 1 NaN or infinite values, the first at \(1, 1\)
cluster(init=[[0, 0], [0, 1e20]])  # ValueError: init must be so near to x .* float32, got a magnitude of 1e\+20
cluster(x=np.full((4, 2), 1e-40, np.float32), init=[[0, 0], [0, 1]])
    # ValueError: init must be so near to x .* got a magnitude of 1.0
cluster(x=np.zeros((4, 2)), init=[[0, 0], [0, -1e200]])
    # ValueError: init must be so near to x .* float64, got a magnitude of 1e\+200
cluster(init="kmeans")  # ValueError: init must be 'k-means\+\+', 'random' or an array of shape \(2, 2\), got 'kmeans'
cluster(n_init=2)  # ValueError: n_init must be 1 where init is an array, got 2
cluster(n_init=0)  # ValueError: n_init must be at least 1, got 0
cluster(max_iter=0)  # ValueError: max_iter must be at least 1, got 0
cluster(tol=-1)  # ValueError: tol must be at least 0 and finite, got -1
cluster(tol="1")  # TypeError: tol must be a float, got '1'
cluster(tol=None)  # TypeError: tol must be a float, got None
cluster(tol=np.nan)  # ValueError: tol must be at least 0 and finite, got nan
""")
def test_kmeans_refuses(refusal):
    x, init = np.float32([[0, 0], [0, 1], [5, 5], [6, 5]]), np.float32([[0, 0], [5, 5]])
    refuse(refusal, globals() | {"cluster": partial(kmeans, x=x, k=2, init=init)})


# ---- how it ended ----


def test_results_tell_how_iterations_ended():
    x = RNG.normal(size=(500, 3)).astype(np.float32)
    seen = []
    found = qk.kmeans(x, 7, rng=1, tol=0, callback=lambda iteration, inertia: seen.append(iteration))
    assert found.converged and found.n_iter == seen[-1] == len(seen) > 2
    cut = qk.kmeans(x, 7, rng=1, tol=0, max_iter=2)
    assert (cut.n_iter, cut.converged) == (2, False)
    stopped = qk.kmeans(x, 7, rng=1, tol=0, callback=lambda iteration, inertia: iteration == 3)
    assert (stopped.n_iter, stopped.converged) == (3, False)
    near = qk.kmeans(x, 7, rng=1, tol=1.0)
    assert near.converged and near.n_iter < found.n_iter
    best = qk.kmeans(x, 7, rng=1, n_init=3)
    assert best.n_iter >= 1 and best.converged
    line = qk.kmeans1d(x[:, 0], 3)
    assert (line.n_iter, line.converged) == (0, True)


def test_results_are_tuples_of_three_that_are_pickled_whole():
    found = qk.kmeans(np.arange(12.0).reshape(6, 2), 2, rng=0, max_iter=1)
    centroids, labels, inertia = found
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is qk.KMeansResult and (again.n_iter, again.converged) == (found.n_iter, found.converged)
    assert np.array_equal(again.centroids, centroids) and again.inertia == inertia and len(found) == 3


@pytest.mark.parametrize("k", [1, 5, 300, 600])
def test_predictions_are_the_labels_of_nearest_centroids(everywhere, k):
    x, others = blobs(5000, 6, 40), blobs(700, 6, 40, seed=1)
    found = qk.kmeans(x, k, rng=0, max_iter=5)
    assert np.array_equal(found.predict(x), found.labels)
    labels, exact = everywhere(lambda: (found.predict(others), found.distances(others)))
    np.testing.assert_allclose(exact, squared_distances(others, found.centroids), rtol=1e-12)
    chosen = np.take_along_axis(exact, labels[:, None].astype(int), axis=1)[:, 0]
    assert np.all(chosen <= exact.min(axis=1) * (1 + 1e-5) + 1e-6)
    assert found.predict(others[:0]).shape == (0,) and found.distances(others[:0]).shape == (0, k)


def test_predictions_on_a_line_have_the_shape_of_x():
    x = RNG.normal(size=(20, 30))
    found = qk.kmeans1d(x, 9)
    assert np.array_equal(found.predict(x), found.labels) and found.distances(x).shape == (20, 30, 9)
    assert np.array_equal(found.distances(x).argmin(axis=-1), found.labels)


def test_predictions_at_any_magnitude_and_dtype():
    far = np.float32([[1e30], [0], [2], [3]])
    found = qk.kmeans(far, 2, init=far[:2])
    assert found.predict(far[1:]).tolist() == [1, 1, 1]
    assert found.predict(np.zeros((0, 1))).shape == (0,) and qk.kmeans1d([1, 2, 9], 2).predict([]).shape == (0,)
    near = np.float64([[1e9 + 1], [1e9 + 0.1]])  # alike in float32
    assert qk.kmeans(near, 2, init=near).predict(np.float32([[1e9]])).tolist() == [1]


def test_a_result_with_another_field_ends_as_it_did():
    found = qk.kmeans(np.arange(8.0).reshape(4, 2), 2, init=[[0, 1], [0, 2]], max_iter=1)._replace(inertia=3.0)
    assert type(found) is qk.KMeansResult and (found.inertia, found.n_iter, found.converged) == (3.0, 1, False)


@refusals(r"""
found.predict(np.zeros((3, 4)))
    # ValueError: x must have shape \(n, 2\) to match the centroids, got \(3, 4\)
found.predict(np.full((3, 2), np.nan))  # ValueError: x has 6 NaN or infinite values
found.distances([[np.inf, 1.0]])  # ValueError: x has 1 NaN or infinite values
found.distances([["a", "b"]])  # TypeError: x must be float16
qk.kmeans1d([1.0, 2.0], 2).distances([[0.0, np.inf]])
    # ValueError: x has 1 NaN or infinite values, the first at \(0, 1\)
qk.kmeans1d(np.eye(3), 2, axis=0).predict([1.0])  # ValueError: centroids must be those of one line
""")
def test_predictions_that_are_refused(refusal):
    refuse(refusal, {"qk": qk, "np": np, "found": qk.kmeans(np.arange(8.0).reshape(4, 2), 2, rng=0)})
