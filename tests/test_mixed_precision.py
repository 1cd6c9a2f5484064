"""Sharing out bits among layers: the optimum, against all choices, and what proves it."""

import itertools
import math
import re

import numpy as np
import pytest

import qkernels as qk
from qkernels import mixed_precision


def least_error(errors, sizes, budget):
    """The least sum of errors within the budget, by trying all."""
    rows = np.arange(len(errors))
    every = np.array(list(itertools.product(range(errors.shape[1]), repeat=len(errors))))
    fits = sizes[rows, every].sum(axis=1) <= budget
    return errors[rows, every].sum(axis=1)[fits].min()


def instance(rng, layers, choices, kind):
    """Errors and sizes: unordered small integers with many ties, errors that fall with sizes, fractions as sizes."""
    errors, sizes = rng.random((layers, choices)), rng.integers(0, 20, (layers, choices))
    if kind == "ties":
        errors = np.floor(errors * 6) - 2
    elif kind == "falling":
        errors, sizes = -np.sort(-errors), np.sort(sizes)
    elif kind == "fractions":
        sizes = rng.random((layers, choices))
    return errors, sizes


@pytest.mark.parametrize("kind", ["unordered", "ties", "falling", "fractions"])
def test_the_allocation_is_that_of_trying_all(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    for _ in range(250):
        errors, sizes = instance(rng, *rng.integers(1, 5, 2), kind)
        least, most = sizes.min(axis=1).sum(), sizes.max(axis=1).sum()
        budget = least + (most - least) * rng.random() + 1e-9
        choice, error, size, bound = qk.allocate_bits(errors, sizes, budget)
        rows = np.arange(len(errors))
        assert error == math.fsum(errors[rows, choice]) and size == math.fsum(sizes[rows, choice]) <= budget
        assert error == pytest.approx(least_error(errors, sizes, budget), rel=1e-12, abs=1e-12)
        assert bound == error


def test_sizes_that_are_subnormal_numbers_count():
    sizes = np.array([[1.0, 2, 3], [1, 2, 3]]) * 2.0**-1074
    choice, error, size, _ = qk.allocate_bits([[3, 2, 0], [3, 2.5, 0.5]], sizes, 2.0**-1072)
    assert choice.tolist() == [2, 0] and error == 3 and size == 2.0**-1072


def layers_of(seed, count=1000):
    """Errors that fall with bits as those of layers do, and numbers of weights of a few shapes."""
    rng = np.random.default_rng(seed)
    bits = np.array([2, 3, 4, 8, 16])
    errors = rng.lognormal(0, 1.5, (count, 1)) * 4.0**-bits * rng.lognormal(0, 0.3, (count, 5))
    return errors, np.outer(rng.choice([384 * 384, 384 * 1536, 1152 * 384], count), bits)


def test_of_400_layers_none_that_was_changed_is_better_and_the_linear_program_is_near():
    for seed in range(2):
        errors, sizes = layers_of(seed, 400)
        budget = 4.25 * sizes[:, 0].sum() / 2
        found, curve = qk.allocate_bits(errors, sizes, budget), qk.pareto(errors, sizes)
        at = np.searchsorted(curve.size, budget)
        share = (budget - curve.size[at - 1]) / (curve.size[at] - curve.size[at - 1])
        linear = curve.error[at - 1] + share * (curve.error[at] - curve.error[at - 1])
        assert found.bound == found.error and linear * (1 - 1e-12) <= found.error
        assert found.error <= curve.error[at - 1] * (1 + 1e-12)
        rows = np.arange(400)
        change = errors - errors[rows, found.choice][:, None]
        more = sizes - sizes[rows, found.choice][:, None]
        assert not np.any((change < -1e-12 * found.error) & (found.size + more <= budget))


def test_points_of_the_curve_are_optimal_and_convex():
    errors, sizes = instance(np.random.default_rng(3), 5, 5, "unordered")
    curve = qk.pareto(errors, sizes)
    assert np.all(np.diff(curve.size) > 0) and np.all(np.diff(curve.error) < 0)
    slopes = np.diff(curve.error) / np.diff(curve.size)
    assert np.all(np.diff(slopes) >= -1e-12) and np.array_equal(curve.error, curve.bound)
    assert curve.size[0] == sizes.min(axis=1).sum() and curve.error[-1] == pytest.approx(errors.min(axis=1).sum())
    for choice, error, size in zip(curve.choice, curve.error, curve.size):
        assert (
            error
            == pytest.approx(errors[np.arange(5), choice].sum())
            == pytest.approx(least_error(errors, sizes, size))
        )


def test_a_limit_on_states_leaves_a_gap_that_is_told(monkeypatch):
    monkeypatch.setattr(mixed_precision, "MOST_STATES", 2)
    gaps = []
    for seed in range(8):
        errors, sizes = layers_of(seed, 30)
        budget = 3.7 * sizes[:, 0].sum() / 2
        limited = qk.allocate_bits(errors, sizes, budget)
        with monkeypatch.context() as unlimited:
            unlimited.setattr(mixed_precision, "MOST_STATES", 1 << 18)
            optimum = qk.allocate_bits(errors, sizes, budget)
        assert optimum.bound == optimum.error and limited.size <= budget
        assert limited.bound * (1 - 1e-12) <= optimum.error <= limited.error
        gaps.append(limited.error - limited.bound)
    assert max(gaps) > 0


def test_forms_that_a_layer_cannot_have_are_not_chosen():
    errors = [[math.inf, 4, 1], [5, math.inf, math.inf]]
    assert qk.allocate_bits(errors, [1, 2, 3], 3).choice.tolist() == [1, 0]
    assert qk.pareto(errors, [1, 2, 3]).choice.tolist() == [[1, 0], [2, 0]]


def test_edges():
    assert qk.allocate_bits(np.zeros((0, 3)), [1, 2, 3], 0)[1:] == (0, 0, 0)
    assert qk.allocate_bits([[1.0]], [7], math.inf).size == 7
    assert qk.allocate_bits([[3, 3, 3]], [2, 1, 2], 5).choice == 1  # nothing is gained by more
    assert qk.allocate_bits([[2, 1]] * 10, [0, 0.1], sum([0.1] * 10)).error == 10
    big, tiny = (
        qk.allocate_bits([[1e308, 1e307]] * 9, [1e307, 2e307], 1.01e308),
        qk.allocate_bits([[9, 1e-320]], [1, 2], 2),
    )
    assert big.choice.sum() == 1 and big.error == math.inf and tiny.error == 1e-320


@pytest.mark.parametrize(
    "errors, sizes, budget, message",
    [
        ([[1, np.nan]], [1, 2], 3, "errors must be above -infinity and not NaN, got nan"),
        ([[1, -np.inf]], [1, 2], 3, "errors must be above -infinity and not NaN, got -inf"),
        ([[1, 2], [np.inf, np.inf]], [1, 2], 3, "got none for layer 1"),
        ([1, 2], [1, 2], 3, "errors must have shape (layers, choices), at least one choice, got (2,)"),
        (np.zeros((2, 0)), [], 3, "at least one choice, got (2, 0)"),
        ([[1, 2]], [1, 2, 3], 3, "sizes must broadcast to the shape of errors (1, 2), got (3,)"),
        ([[1, 2]], [1, -2], 3, "sizes must be finite and not negative, got -2.0"),
        ([[1, 2]], [1, np.inf], 3, "sizes must be finite and not negative, got inf"),
        ([[1, 2]] * 3, [4, 2], 5.5, "budget must be at least 6.0, the sum of the smallest sizes, got 5.5"),
        ([[1, 2]], [1, 2], np.nan, "budget must be a number, got nan"),
    ],
)
def test_refusals(errors, sizes, budget, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        qk.allocate_bits(errors, sizes, budget)
