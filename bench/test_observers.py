"""Calibration: qkernels.observers beside NumPy's histogram, torch's observer and onnxruntime's collectors. Normal data.

Each makes the histogram from which its range is chosen, of bins of its own: what is checked is that all values are in
it. The sum of ours is that of 64-bit counts.
"""

import numpy as np
import peers
import pytest
from race import EXACT, WRONG, Contender, our_own

from qkernels import observers


def normal(n):
    return np.resize(np.random.default_rng(6).standard_normal(10**6).astype(np.float32), n)


def all_of(n):
    return lambda counts: EXACT if abs(float(np.sum(counts, dtype=np.float64)) - n) <= 1e-6 * n else WRONG


@pytest.mark.parametrize("n", [100_000, 10_000_000, 100_000_000])
def test_histogram(race, isa, n):
    x = normal(n)
    seen = observers.Percentile()

    def counted():
        return observers.Percentile().update(x).to_arrays()["counts"]

    others = [
        Contender("numpy.histogram", lambda: np.histogram(x, 2048), lambda: np.histogram(x, 2048)[0]),
        peers.torch.histogram_observer(x),
    ]
    others += [peers.onnxruntime.collector(x, method) for method in ("percentile", "entropy")]
    ours = Contender("qkernels", lambda: seen.update(x), counted)
    race(f"observers.Percentile.update {n} float32", ours, others, all_of(n), 1000 * n, "Mvalue/s")


def test_parts(race, isa):
    """Updates of 100,000 values."""
    x = normal(10_000_000)
    seen = observers.Percentile()
    parts = np.split(x, 100)

    def update():
        for part in parts:
            seen.update(part)

    whole = our_own(lambda: observers.Percentile().update(x).to_arrays()["counts"])
    ours = Contender("qkernels", update, whole.read)
    race("observers.Percentile.update 100 x 100000 float32", ours, [], all_of(x.size), 1000 * x.size, "Mvalue/s")


@pytest.mark.parametrize("name", ["Percentile", "Entropy"])
@pytest.mark.parametrize("n", [10_000_000, 100_000_000])
def test_calibration(race, isa, n, name):
    """A range from data that come a million at a time: in onnxruntime, which has 2.5 GB then, as users call it."""
    x, found = normal(n), []

    def calibrated():
        seen = getattr(observers, name)()
        for part in np.split(x, range(1_000_000, n, 1_000_000)):
            seen.update(part)
        found[:] = [seen, seen.qparams("uint8")]

    ours = Contender("qkernels", calibrated, lambda: found[0].to_arrays()["counts"])
    others = [peers.onnxruntime.calibrator(x, name.lower())]
    race(f"observers.{name}, {n} float32 to qparams", ours, others, all_of(n), 1000 * n, "Mvalue/s")


@pytest.mark.parametrize("axis", [0, 1])
def test_lines(race, isa, axis):
    x = normal(1 << 20).reshape((256, 4096) if axis == 0 else (4096, 256))
    ours = our_own(lambda: observers.Percentile(axis=axis).update(x).to_arrays()["counts"])
    race(f"observers.Percentile.update 256 lines of axis {axis}", ours, [], all_of(x.size), 1000 * x.size, "Mvalue/s")


@pytest.mark.parametrize("name", ["Percentile", "Entropy", "MSE"])
def test_qparams(race, isa, name):
    x = normal(1_000_000)
    seen = getattr(observers, name)().update(x)
    ours = our_own(lambda: np.array([seen.qparams("int8").scale]))
    race(f"observers.{name}.qparams int8", ours, [], lambda scale: EXACT if scale > 0 else WRONG, 1000, "k/s")
