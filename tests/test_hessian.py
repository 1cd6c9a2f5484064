"""Moments of a layer's inputs, and what they tell of rounded weights."""

import pickle

import numpy as np
import pytest
from common import refusals, refuse, strided_everywhere

import qkernels as qk
from qkernels import _hessian

RNG = np.random.default_rng(28)
X = RNG.normal(1, 2, (700, 12)).astype(np.float32)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(_hessian, "ROWS", 64)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.to_arrays().values(), b.to_arrays().values(), strict=True))


@pytest.mark.parametrize("scale", [1, 1e-30, 1e-42, 1e30, 3e37])
def test_moments_are_those_of_float64(scale):
    with np.errstate(under="ignore"):
        x = X * np.float32(scale)
    seen, exact = qk.Hessian(12).update(x), x.astype(np.float64)
    assert seen.count == 700 and seen.k == 12
    np.testing.assert_allclose(seen.sum, exact.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(seen.moments, exact.T @ exact, rtol=0, atol=1e-5 * np.max(exact**2) * 700)
    assert np.array_equal(seen.moments, seen.moments.T)


@pytest.mark.parametrize("scale", [1e-16, 1e-22, 1e-30])
def test_small_inputs_among_larger_ones(scale):
    x = X * np.where(np.arange(12) == 5, np.float32(scale), np.float32(1))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(np.diagonal(qk.Hessian(12).update(x).moments), (wide**2).sum(axis=0), rtol=1e-5)


def test_bits_do_not_depend_on_how_rows_are_divided():
    whole = qk.Hessian(12).update(X)
    for parts in ([0, 1, 64, 65, 700], [0, 300, 301, 600, 700], range(0, 701, 7)):
        divided = qk.Hessian(12)
        for begin, end in zip(parts, list(parts)[1:]):
            divided.update(X[begin:end])
            assert divided.moments.shape == (12, 12)  # what is asked for on the way changes nothing
        assert same(whole, divided)
    assert same(whole, qk.Hessian(12).update(X.reshape(7, 100, 12)))
    assert same(whole, qk.Hessian(12).update(strided_everywhere(X)).update(X[:0]))


def test_merging_adds_in_double():
    parts = [qk.Hessian(12).update(X[i : i + 128]) for i in range(0, 700, 128)]
    merged = qk.Hessian(12)
    for part in parts:
        before = pickle.loads(pickle.dumps(part))
        merged.merge(part)
        assert same(part, before)
    assert merged.count == 700
    np.testing.assert_allclose(merged.moments, qk.Hessian(12).update(X).moments, rtol=1e-14)
    assert np.array_equal(merged.moments, np.sum([part.moments for part in parts], axis=0))
    twice = qk.Hessian(12).update(X[:9])
    assert np.array_equal(twice.merge(twice).moments, 2 * qk.Hessian(12).update(X[:9]).moments)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(dtype):
    with np.errstate(under="ignore"):
        x = X.astype(dtype)
    assert same(qk.Hessian(12).update(x), qk.Hessian(12).update(x.astype(np.float32)))


def test_arrays_and_pickles_hold_all():
    seen = qk.Hessian(12).update(X)
    for other in (qk.Hessian.from_arrays(seen.to_arrays()), pickle.loads(pickle.dumps(seen))):
        assert same(seen, other) and other.count == 700
        assert other.update(X).count == 1400 and seen.count == 700
    assert same(qk.Hessian.from_arrays(qk.Hessian(3).to_arrays()), qk.Hessian(3))
    assert repr(seen) == "<Hessian(12): 700 rows>"


def test_nothing_of_a_refused_update_counts():
    seen = qk.Hessian(12).update(X)
    before = pickle.loads(pickle.dumps(seen))
    for bad in (np.nan, np.inf, -np.inf):
        x = X.copy()
        x[650, 3] = bad
        with pytest.raises(ValueError, match=r"x .*NaN|infin"):
            seen.update(x)
    assert same(seen, before)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("change", [lambda h, _: h.update(X[:100]), lambda h, other: h.merge(other)])
def test_what_was_interrupted_is_not_used(failure, change, monkeypatch):
    """After half of the sums: no read, update, merge or pickle of it, and the other one of a merge stays as it is."""

    def fail(*_):
        raise failure

    seen, other, whole = (qk.Hessian(12).update(X[:rows]) for rows in (70, 128, 700))
    with monkeypatch.context() as patch, pytest.raises(failure):
        patch.setattr(_hessian, "add_gram", fail)
        change(seen, other)
    before = whole.to_arrays()
    for use in (
        lambda: seen.count,
        lambda: seen.sum,
        lambda: seen.moments,
        lambda: seen.update(X),
        lambda: seen.merge(whole),
        lambda: whole.merge(seen),
        lambda: pickle.dumps(seen),
        lambda: qk.sensitivity(np.ones((12, 2)), seen, []),
    ):
        with pytest.raises(RuntimeError, match="this Hessian was interrupted while it summed rows: make a new one"):
            use()
    assert same(whole, qk.Hessian.from_arrays(before)) and repr(seen) == "<Hessian(12): 70 rows>"


def test_a_failure_before_the_sums_changes_nothing(monkeypatch):
    """Of what is asked for, which adds what waits to a copy; and of room for what waits."""

    def fail(*_):
        raise MemoryError

    seen, fresh = qk.Hessian(12).update(X[:70]), qk.Hessian(12)
    before = seen.to_arrays()
    with monkeypatch.context() as patch:
        patch.setattr(_hessian, "add_gram", fail)
        for use in (seen.to_arrays, lambda: fresh.merge(seen)):
            with pytest.raises(MemoryError):
                use()
        patch.setattr(np, "empty", fail)
        with pytest.raises(MemoryError):
            fresh.update(X[:70])
    assert fresh.count == 0 and same(seen, qk.Hessian.from_arrays(before)) and same(fresh.update(X[:70]), seen)


@refusals("""
Hessian(0)                                                 # ValueError: k must be at least 1, got 0
Hessian(2**40)                                             # ValueError: k must be at most 2\\*\\*20, got 1099511627776
Hessian(2.5)                                               # TypeError: k must be an integer, got 2.5
Hessian(3).update(np.ones((4, 2)))                         # ValueError: x must have k = 3 columns, got shape .4, 2.
Hessian(3).update(np.float32(1))                           # ValueError: x must have k = 3 columns, got shape ..
Hessian(1).update([1e200])                                 # ValueError: beyond the range of float32
Hessian(1).update(np.ones((2, 1), int))                    # TypeError: x must be float32.*, got int64
Hessian(3).merge(Hessian(2))                               # ValueError: other must have k 3, got 2
Hessian(3).merge(None)                                     # TypeError: other must be a Hessian, got None
Hessian.from_arrays({})                                    # ValueError: arrays must hold count, sum and moments
Hessian.from_arrays(dict(Hessian(2).to_arrays(), sum=np.zeros(3)))              # ValueError: got .3,. and .2, 2.
Hessian.from_arrays(dict(Hessian(2).to_arrays(), sum=np.full(2, np.nan)))       # ValueError: must be finite
Hessian.from_arrays(dict(Hessian(2).to_arrays(), moments=np.eye(2)[::-1] * [[1], [2]]))  # ValueError: be symmetric
Hessian.from_arrays(dict(Hessian(2).to_arrays(), moments=-np.eye(2)))           # ValueError: not negative
Hessian.from_arrays(dict(Hessian(1).to_arrays(), count=np.uint64(2**64 - 1)))   # ValueError: ^a Hessian sees at most
Hessian.from_arrays(dict(Hessian(1).to_arrays(), count=2**63 - 1)).update([1.0])  # ValueError: ^a Hessian sees at most
Hessian.from_arrays(dict(Hessian(1).to_arrays(), count=4, sum=[5.0], moments=[[4.0]]))  # ValueError: sum must be such
Hessian.from_arrays(dict(Hessian(1).to_arrays(), moments=[[9.0]]))       # ValueError: of no rows must be 0, got 9.0
sensitivity(np.ones((3, 2)), Hessian(3), [])               # ValueError: hessian has seen no rows
sensitivity(np.ones((3, 2)), Hessian(2).update([1.0, 2]), [])            # ValueError: w must have shape .k, n., k = 2
sensitivity(np.ones((2, 2)), Hessian(2).update([1.0, 2]), QParams(1))    # TypeError: candidates must be a list
sensitivity(np.ones((2, 2)), np.eye(2), [])                # TypeError: hessian must be a Hessian, got
sensitivity(np.ones((2, 2)), Hessian(2).update([1.0, 2]), [np.ones((2, 1))])  # ValueError: the shape of w .2, 2., got
""")
def test_refusals(refusal):
    refuse(refusal, vars(qk) | {"np": np})


# ---- sensitivity ----


@pytest.mark.parametrize("center", [False, True])
def test_sensitivity_is_the_mean_squared_error_of_outputs(center):
    w, seen = RNG.normal(size=(12, 5)).astype(np.float32), qk.Hessian(12).update(X)
    blocks = qk.Codebook(np.linspace(-1, 1, 4), axis=0, block_size=5)
    candidates = [qk.choose_qparams(w, "int4", axis=1), qk.Codebook.fit(w, 4), blocks, w + np.float32(0.01), w]
    found = qk.sensitivity(w, seen, candidates, center=center)
    codes, scales = qk.encode(w, blocks)
    rounded = [
        qk.fake_quantize(w, candidates[0]),
        qk.decode(qk.encode(w, candidates[1]), candidates[1]),
        qk.decode(codes, blocks, scales),
        *candidates[3:],
    ]
    for error, other in zip(found, rounded, strict=True):
        outputs = X.astype(float) @ (w.astype(float) - other)
        outputs -= outputs.mean(axis=0) * center
        assert error == pytest.approx((outputs**2).sum() / len(X), rel=1e-4)
