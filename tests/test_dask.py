"""Dask arrays: the bits of one process, however an array is cut, and when a worker is killed in mid-run."""

import contextlib
import os
import pickle
import signal
import threading
import time
import warnings

import ml_dtypes
import numpy as np
import pytest
from common import bits, refusals, refuse
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels import observers

array = pytest.importorskip("dask.array")
cloudpickle, distributed = pytest.importorskip("cloudpickle"), pytest.importorskip("distributed")
from qkernels import dask as on_dask  # noqa: E402

RNG = np.random.default_rng(30)
F32 = np.float32
X = RNG.normal(0, 1, (24_000, 5)).astype(F32)
POINTS = np.concatenate([RNG.normal(c, 0.3, (4000, 3)) for c in (-3, 0, 4)]).astype(F32)
OBSERVERS = {name: getattr(observers, name) for name in ("MinMax", "Percentile", "Entropy", "MSE")}


def state(observer):
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in observer.to_arrays().items()}


def same(got, want):
    """Two results of clustering, the first with labels of Dask."""
    assert_array_equal(bits(got.centroids), bits(want.centroids), strict=True)
    assert_array_equal(np.asarray(got.labels), np.asarray(want.labels), strict=True)
    assert got.inertia == want.inertia


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A tree of several blocks of rows; and Dask's own arithmetic, or that of its schedulers, may do as it likes."""
    monkeypatch.setattr(on_dask, "ROWS", 1 << 14)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("chunks", [(24_000, 5), (1000, 2), (777, 5)])
@pytest.mark.parametrize("axis", [None, 1])
def test_calibration_gives_the_bits_of_one_pass(name, chunks, axis):
    x = array.from_array(X, chunks=chunks)
    seen = on_dask.calibrate(x, OBSERVERS[name](axis=axis))
    assert state(seen) == state(OBSERVERS[name](axis=axis).update(X))
    assert on_dask.calibrate(x, seen) is seen and seen.count == 2 * X.size


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int16, np.uint8])
def test_clusters_on_a_line_are_those_of_one_process(dtype):
    x = np.clip(X * 20, 0 if dtype == np.uint8 else -200, 255).astype(dtype)
    for k in 1, 9, 300:
        same(on_dask.kmeans1d(array.from_array(x, chunks=(5000, 3)), k), qk.kmeans1d(x, k))


@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16])
def test_kmeans_of_one_block_has_the_bits_of_qkernels(dtype, monkeypatch):
    monkeypatch.setattr(on_dask, "ROWS", 1 << 26)
    x = POINTS.astype(dtype)
    for k in 3, 20:
        want = qk.kmeans(x, k, init=x[:: len(x) // k][:k], max_iter=20)
        same(on_dask.kmeans(array.from_array(x, chunks=(900, 2)), k, init=x[:: len(x) // k][:k], max_iter=20), want)


@pytest.mark.parametrize("scale", [1, 1e-12, 1e15])
def test_kmeans_does_not_depend_on_how_rows_are_cut(scale):
    x = POINTS * F32(scale)
    found = [on_dask.kmeans(array.from_array(x, chunks=c), 3, rng=1) for c in ((12_000, 3), (700, 1), (5000, 2))]
    for one in found[1:]:
        same(one, found[0])
    want = qk.kmeans(x, 3, rng=1)
    np.testing.assert_allclose(np.sort(found[0].centroids, axis=0), np.sort(want.centroids, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found[0].inertia, want.inertia, rtol=1e-5)
    labels = np.argmin(np.square(x[:, None].astype(float) - found[0].centroids.astype(float)).sum(axis=-1), axis=1)
    assert np.mean(labels == np.asarray(found[0].labels)) > 0.9999


def test_an_empty_cluster_gets_the_farthest_point():
    x = np.concatenate([POINTS, F32([[90, 90, 90]])])
    init = F32([[0, 0, 0], [1000, 1000, 1000], [0.1, 0, 0]])
    found = on_dask.kmeans(array.from_array(x, chunks=(500, 3)), 3, init=init)
    assert np.bincount(np.asarray(found.labels), minlength=3).min() > 0
    assert [90, 90, 90] in found.centroids.tolist()


@refusals(r"""
on.calibrate(x, observers.MovingAverage())  # TypeError: ^observer must not be a MovingAverage
on.calibrate(x, None)  # TypeError: ^observer must be one of qkernels.observers, got None
on.calibrate(X, observers.MinMax())  # TypeError: ^x must be a Dask array
on.calibrate(x[x[:, 0] > 0], observers.MinMax())  # ValueError: ^x must have a known shape
on.calibrate(x, observers.MinMax(axis=3))  # ValueError: ^axis 3 is out of range
on.calibrate(bad, observers.MSE())  # ValueError: ^x has 1 NaN or infinite values
on.calibrate(x, observers.MinMax(), progress=1)  # TypeError: ^progress must be True or False
on.kmeans1d(x, 3)  # TypeError: ^x must be an array of float16, bfloat16 or integers of 8 or 16 bits, got float32
on.kmeans1d(bad.astype(np.float16), 3)  # ValueError: ^x has 1 NaN or infinite values
on.kmeans1d(x[:0].astype(np.int8), 3)  # ValueError: ^x must have values to cluster
on.kmeans1d(x.astype(np.int8), 0)  # ValueError: ^k must be at least 1
on.kmeans(x[:, 0], 3)  # ValueError: ^x must have shape
on.kmeans(x, 10**6)  # ValueError: ^k must be at most the number of points
on.kmeans(bad, 3)  # ValueError: NaN or infinite values in a block of rows
on.kmeans(x, 3, init="best")  # ValueError: ^init must be 'k-means\+\+', 'random' or an array
on.kmeans(x, 3, init=X)  # ValueError: ^init must have shape \(3, 5\), got
on.kmeans(x, 3, init=X[:3] * np.nan)  # ValueError: ^init has 15 NaN or infinite values
on.kmeans(x, 3, init=X[:3] * 1j)  # TypeError: ^init must be a name or an array of real numbers, got complex64
on.kmeans(x, 3, init=[[10**400] * 5] * 3)  # TypeError: ^init must be a name or an array of real numbers, got object
on.kmeans(x, 3, init=[[1], [2, 3]])  # ValueError: ^init must be an array, got a list
on.kmeans(masked, 3)  # TypeError: ^x must be an array, got a MaskedArray: it is masked
on.kmeans1d(masked.astype(np.float16), 3)  # TypeError: ^x must be an array, got a MaskedArray: it is masked
on.calibrate(masked, observers.MinMax())  # TypeError: ^x must be an array, got a MaskedArray: it is masked
on.kmeans(x, 3, tol=-1)  # ValueError: ^tol must be at least 0
""")
def test_refusals(refusal):
    with_nan = X.copy()
    with_nan[12_345, 2] = np.nan
    names = {"x": array.from_array(X, chunks=(5000, 2)), "bad": array.from_array(with_nan, chunks=(5000, 5))}
    names["masked"] = array.ma.masked_greater(names["x"], 1)
    refuse(refusal, names | {"on": on_dask, "observers": observers, "X": X, "np": np})


def test_an_inertia_beyond_float64_is_infinite():
    x = array.from_array(X[:100].astype(float) * 1e200, chunks=(50, 5))
    assert on_dask.kmeans(x, 2, init=np.float64(X[:2]) * 1e200).inertia == np.inf


def test_progress_is_shown_by_dask(capsys):
    seen = on_dask.calibrate(array.from_array(X, chunks=(5000, 5)), observers.MinMax(), progress=True)
    assert seen.count == X.size and "Completed" in capsys.readouterr().out


CODES, RATE = np.arange(-9, 9, dtype=np.int8).reshape(3, 6), qk.QParams(0.5)
PICKLED = [
    qk.pack(CODES, RATE),
    qk.pack_conv(CODES.reshape(1, 1, 3, 6), RATE),
    qk.pack_codes(np.abs(CODES).astype("u1")),
]
PICKLED += [make().update(X[:9]) for make in OBSERVERS.values()]


@pytest.mark.parametrize("thing", PICKLED, ids=lambda thing: type(thing).__name__)
def test_cloudpickle_takes_what_has_arrays(thing):
    """Which Dask, joblib and Ray use; it pickles a class's own methods otherwise than pickle does."""
    assert state(pickle.loads(cloudpickle.dumps(thing))) == state(thing)


# ---- two worker processes, of which one is killed ----


def slow_blocks(x):
    """Return x, each of whose blocks takes a while; what does that goes to workers by value: they lack this module."""

    def slowly(block):
        time.sleep(0.02)
        return block

    return x.map_blocks(slowly, dtype=x.dtype)


def late(*_):
    raise TimeoutError("no worker came back")


class Killed:
    """Kills a worker once some tasks are done."""

    def __init__(self, client):
        self.client, self.pid = client, next(iter(client.run(os.getpid).values()))
        self.done = threading.Event()

    def __enter__(self):
        signal.signal(signal.SIGALRM, late)
        signal.alarm(300)
        self.thread = threading.Thread(target=self.kill)
        self.thread.start()

    def kill(self):
        for _ in range(200):
            time.sleep(0.05)
            if self.client.run_on_scheduler(
                lambda dask_scheduler: sum(task.state == "memory" for task in dask_scheduler.tasks.values())
            ):
                break
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            self.done.set()

    def __exit__(self, *_):
        signal.alarm(0)
        assert self.done.is_set()  # before the end
        self.thread.join()
        assert self.pid not in self.client.run(os.getpid).values()  # another took its place


@pytest.fixture(scope="module")
def client():
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0, silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


@pytest.mark.parametrize("what", ["Percentile", "kmeans1d", "kmeans"])
def test_a_worker_that_is_killed_in_mid_run_changes_no_bit(what, client):
    x = slow_blocks(array.from_array(X if what != "kmeans" else POINTS, chunks=(400, -1)))
    if what in OBSERVERS:
        with Killed(client):
            seen = on_dask.calibrate(x, OBSERVERS[what]())
        assert state(seen) == state(OBSERVERS[what]().update(X))
        return
    if what == "kmeans1d":
        with Killed(client):
            found = on_dask.kmeans1d(x.astype(np.float16), 16)
            found = found._replace(labels=found.labels.compute())
        same(found, qk.kmeans1d(X.astype(np.float16), 16))
        return
    with Killed(client):
        found = on_dask.kmeans(x, 3, init=POINTS[[0, 5000, 9000]], max_iter=3)
        found = found._replace(labels=found.labels.compute())
    import dask

    with dask.config.set(scheduler="synchronous"):
        alone = on_dask.kmeans(
            array.from_array(POINTS, chunks=(12_000, 3)), 3, init=POINTS[[0, 5000, 9000]], max_iter=3
        )
        same(found, alone._replace(labels=alone.labels.compute()))
