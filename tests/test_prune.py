"""Pruning: how many weights stay and where, what the others make up for, and that no weight alone could do better."""

import itertools

import numpy as np
import pytest
from common import fused, refusals, refuse
from test_gptq import error_of, layer, wide

import qkernels as qk
from qkernels import _feedback


def factors(k, n):
    """As `layer`, but of inputs whose moments are far from singular."""
    rng = np.random.default_rng(2)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((400, k), (k, n)))
    x += x[:, :1] + x[:, ::-1] / 2
    return x, qk.Hessian(k).update(x), w


PATTERNS = ["2:4", "1:4", "4:8", "3:5", "1:1", 0.5, 0.9, 0.0, 1.0]


def most_kept(pattern, weights):
    """Whether as many weights stay as the pattern lets."""
    if not isinstance(pattern, str):
        return np.count_nonzero(weights == 0) == round(pattern * weights.size)
    kept, group = map(int, pattern.split(":"))
    parts = [weights[i : i + group] for i in range(0, len(weights), group)]
    return all(np.all(np.count_nonzero(part, axis=0) == min(kept, len(part))) for part in parts)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (13, 1), (12, 32), (25, 31), (24, 129)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_many_stay_as_the_pattern_lets(pattern, shape):
    _, seen, w = layer(*shape)
    found = qk.prune(w, seen, pattern)
    assert most_kept(pattern, found.weights) and found.weights.dtype == found.bias.dtype == np.float32
    assert found.weights.shape == shape and found.bias.shape == shape[1:] and found.report["damp"] == 0.01
    assert qk.prune(np.zeros((shape[0], 0), np.float32), seen, pattern).weights.shape == (shape[0], 0)


def best(w, kept, h):
    """The values of the kept weights that are of least error: normal equations, column by column, in float64."""
    made = np.zeros(w.shape)
    for j, own in enumerate(kept.T):
        made[own, j] = np.linalg.solve(h[np.ix_(own, own)], (h @ w.astype(float))[own, j])
    return made


@pytest.mark.parametrize("pattern", ["2:4", 0.5, 0.7])
def test_errors_are_told_and_the_others_have_their_best_values(pattern):
    x, seen, w = factors(40, 33)
    found = qk.prune(w, seen, pattern, damp=1e-7, passes=300)
    errors, kept = found.report["errors"], found.weights != 0
    assert np.all(np.diff(errors) < 0)
    assert error_of(w, found.weights, x) == pytest.approx(errors.min(), rel=2e-3)
    alone = np.where(kept, w, 0)
    optimum = error_of(w, best(w, kept, np.cov(x.T.astype(float), bias=True)), x)
    assert optimum <= errors.min() < 1.02 * optimum < 0.5 * error_of(w, alone, x)


@pytest.mark.parametrize("pattern", ["2:4", 0.5])
def test_errors_are_below_those_of_choosing_once(pattern):
    """Of magnitudes, and of Wanda's criterion, even if the others then have their best values."""
    x, seen, w = layer(60, 40)
    found = qk.prune(w, seen, pattern, damp=1e-7)
    h = np.cov(x.T.astype(float), bias=True)
    for costs in (w**2, w**2 * np.diagonal(h)[:, None]):
        groups = costs.reshape(-1, 4 if pattern == "2:4" else costs.size, 40 if pattern == "2:4" else 1)
        kept = (groups > np.median(groups, axis=1, keepdims=True)).reshape(w.shape)
        assert most_kept(pattern, kept)
        assert error_of(w, found.weights, x) < error_of(w, best(w, kept, h), x)


def test_it_is_close_to_the_best_of_all():
    """Of all masks of 2:4 of a column, with the best values of each."""
    x, seen, w = layer(8, 6, rows=60, seed=3)
    h = np.cov(x.T.astype(float), bias=True)
    four = [np.isin(np.arange(4), pair) for pair in itertools.combinations(range(4), 2)]
    masks = [np.concatenate(pair) for pair in itertools.product(four, four)]
    least = [min(error_of(w[:, [j]], best(w[:, [j]], m[:, None], h), x) for m in masks) for j in range(6)]
    found = error_of(w, qk.prune(w, seen, "2:4", damp=1e-6, passes=50).weights, x)
    assert sum(least) * (1 - 1e-4) <= found <= 1.3 * sum(least)


def test_a_pass_gives_the_values_of_the_formula(isas):
    """Section 31, row by row; the weights that go first are known beforehand."""
    x, seen, w = layer(29, 37)
    w[::2] *= 1e-4
    problem = _feedback.Problem(seen, "natural", 0.01, True)
    f, e = problem.matrix / np.diagonal(problem.matrix)[:, None], np.zeros_like(w)
    costs = np.diagonal(problem.matrix)[:, None] * w**2
    for i, row in enumerate(f):
        before = np.zeros(37, np.float32)
        for j in range(i):
            before = fused(np.broadcast_to(row[j], 37), e[j], before)
        e[i] = np.where(costs[i] <= np.sort(costs, axis=None)[535], w[i], w[i] - (w[i] + before))
    for _ in isas():
        for threads in (1, 2, 3):
            with qk.num_threads(threads):
                assert np.array_equal(qk.prune(w, seen, 0.5, passes=1).weights, w - e)


def test_no_pass_makes_it_worse():
    """Although choosing anew would, in some of these cases, and then goes on with the weights that were out before."""
    for seed in range(40):
        x, seen, w = layer(12, 5, rows=30, seed=seed)
        found = qk.prune(w, seen, 0.5, damp=1e-3, passes=30)
        errors = found.report["errors"]
        assert np.all(np.diff(errors) < 0) and len(errors) > 2
        assert error_of(w, found.weights, x) == pytest.approx(errors[-1], rel=0.1)
        fewer = qk.prune(w, seen, 0.5, damp=1e-3, passes=5).report["errors"]
        assert np.array_equal(errors[: len(fewer)], fewer)


def test_dead_inputs_go_first():
    x, _, w = layer(30, 10)
    x[:, [3, 17, 18]] = 0, 5, 7
    found = qk.prune(w, qk.Hessian(30).update(x), 0.1)
    assert found.report["dead"].tolist() == [3, 17, 18]
    assert np.array_equal(np.flatnonzero(np.all(found.weights == 0, axis=1)), [3, 17, 18])
    lost = (x.astype(float) @ (w - found.weights.astype(float))).mean(axis=0)
    np.testing.assert_allclose(found.bias, lost, rtol=1e-3, atol=1e-3)
    assert np.abs(lost).max() > 1 and qk.prune(w, qk.Hessian(30).update(x), 0.1, center=False).bias is None


@pytest.mark.parametrize("scale", [1e-310, 1e-36, 1e-20, 1e20, 3e37])
def test_magnitudes_do_not_matter(scale):
    _, seen, w = layer(16, 8)
    with np.errstate(under="ignore"):
        scaled = w.astype(np.float64) * scale
    found, plain = qk.prune(scaled, seen, "2:4"), qk.prune(w, seen, "2:4")
    if scale < 1e-40:
        assert not found.weights.any() and not found.bias.any()  # as float32
    else:
        np.testing.assert_allclose(found.weights / np.float32(scale), plain.weights, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.report["errors"] / scale**2, plain.report["errors"], rtol=1e-3)
    assert np.isfinite(found.weights).all() and np.isfinite(found.bias).all()


# ---- what is out stays out ----


GRIDS = {
    "tensor": lambda w: qk.choose_qparams(w, "int8"),
    "column": lambda w: qk.choose_qparams(w, "uint4", axis=1, symmetric=False),
    "block": lambda w: qk.choose_qparams(w, "int4", axis=0, block_size=5),
    "levels": lambda w: qk.Codebook.fit(w, 6, zero=True),
    "levels of columns": lambda w: qk.Codebook.fit(w, 6, axis=1, zero=True),
    "levels of blocks": lambda w: qk.Codebook([1, 0.5, 0, -0.25, -1], axis=0, block_size=5),
}


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("pattern", ["2:4", 0.5])
def test_rounding_with_feedback_keeps_what_is_out(pattern, name, refit):
    x, seen, w = factors(40, 33)
    pruned = qk.prune(w, seen, pattern)
    grid = GRIDS[name](pruned.weights)
    found = qk.gptq(pruned.weights, seen, grid, damp=1e-7, refine=3, refit=refit)
    rounded, errors = wide(found), found.report["errors"]
    assert np.all(rounded[pruned.weights == 0] == 0)
    assert error_of(pruned.weights, rounded, x) == pytest.approx(errors[-1], rel=2e-3)
    plain = qk.sensitivity(pruned.weights, seen, [grid], center=True)[0]
    assert errors[-1] < plain


def test_columns_whose_levels_lack_0_are_rounded_as_ever():
    _, seen, w = layer(20, 2)
    w[::3] = 0
    with_zero, without = [-1, 0, 1, 2], [-1.5, -0.5, 0.5, 1.5]
    found = wide(qk.gptq(w, seen, qk.Codebook([with_zero, without], axis=1)))
    assert np.all(found[::3, 0] == 0)
    alone = wide(qk.gptq(w[:, 1:], seen, qk.Codebook([without], axis=1)))
    assert np.array_equal(found[:, 1:], alone) and len(np.unique(alone[::3])) > 1


@refusals("""
prune(np.ones((3, 2)), Hessian(3), 0.5)                 # ValueError: hessian has seen no rows
prune(np.ones((2, 2)), H, 0.5)                          # ValueError: w must have shape .k, n., k = 3
prune(np.full((3, 2), np.nan), H, 0.5)                  # ValueError: w .*NaN
prune(np.ones((3, 2)), None, 0.5)                       # TypeError: hessian must be a Hessian, got None
prune(np.ones((3, 2)), H, "2-4")                        # ValueError: pattern must be such as '2:4', of each 4 at most 2
prune(np.ones((3, 2)), H, "5:4")                        # ValueError: pattern must be such as '2:4', .* got '5:4'
prune(np.ones((3, 2)), H, "0:4")                        # ValueError: pattern must be such as '2:4', .* got '0:4'
prune(np.ones((3, 2)), H, "2:4\\n")                     # ValueError: pattern must be such as '2:4'
prune(np.ones((3, 2)), H, "2:9999999999")               # ValueError: pattern must be such as '2:4'
prune(np.ones((3, 2)), H, 1.5)                          # ValueError: pattern must be a share from 0 to 1, .* got 1.5
prune(np.ones((3, 2)), H, np.nan)                       # ValueError: pattern must be a share from 0 to 1, .* got nan
prune(np.ones((3, 2)), H, None)                         # TypeError: pattern must be a float
prune(np.ones((3, 2)), H, 0.5, damp=-1)                 # ValueError: damp must be from 0 to 10000, got -1.0
prune(np.ones((3, 2)), H, 0.5, passes=0)                # ValueError: passes must be at least 1, got 0
prune(np.ones((3, 2)), H, 0.5, center=2)                # TypeError: center must be
""")
def test_refusals(refusal):
    refuse(refusal, vars(qk) | {"np": np, "H": qk.Hessian(3).update([[1.0, 2, 3], [3, 1, 2]])})
