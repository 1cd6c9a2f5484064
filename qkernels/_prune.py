"""Take weights out, and let the others make up for them: `prune`. Formulas: docs/numerics.md, section 31."""

import re
from typing import NamedTuple

import numpy as np

from ._bind.runtime import word
from ._blas import product
from ._checks import boolean, finite_float32, float_array, integer, is_a, real, shown
from ._feedback import Loop, Problem, checked_damp, times_power
from ._hessian import checked_hessian
from ._mode import default_mode

PART = 2**18  # weights of which the least are found at a time, in groups


class PruneResult(NamedTuple):
    """Hold what `prune` gives.

    Attributes
    ----------
    weights : float32 array (k, n)
        Those that were taken out are 0, the others have new values.
    bias : float32 array (n,) or None
        To be added to the layer's own bias: the mean of what pruning takes from its outputs.
    report : dict
        `damp`: what was added to the diagonal of the Hessian, as a share of its mean. `dead`: the inputs that do not
        vary, whose weights go first. `errors`: the mean squared error of outputs, summed over outputs, with the
        damping, after each pass that made it smaller.

    Examples
    --------
    >>> seen = qk.Hessian(2).update(np.float32([[1, 1], [2, 2.5]]))
    >>> weights, bias, report = qk.prune(np.float32([[0.4], [0.5]]), seen, 0.5)
    >>> weights.round(2).T, bias.round(2)
    (array([[0.  , 0.76]], dtype=float32), array([0.14], dtype=float32))
    """

    weights: np.ndarray
    bias: np.ndarray | None
    report: dict


@default_mode
def prune(w, hessian, pattern, *, damp=0.01, center=True, passes=8):
    """Set weights of a layer to 0, and give the others the values that make up for them.

    Minimises the squared error of the layer's outputs: each pass takes out the weights that cost least while all others
    are as they are, and then gives each of the others its best value, one input after another.

    Parameters
    ----------
    w : array (k, n) of floats
        The layer is ``x @ w``.
    hessian : Hessian
        Of its inputs x.
    pattern : str or float
        Which weights go: ``"2:4"``, of each four inputs that follow one another at most two weights of an output stay,
        and so for other numbers; or the share of all weights, from 0 to 1, that becomes 0, wherever they are.
    damp : float
        What is added to the diagonal of the Hessian, as a share of its mean, as of `gptq`.
    center : bool
        Minimise the error about its mean, which `bias` takes over.
    passes : int
        At most. If other weights to take out make the error larger, it stays with those of the pass before; once a pass
        gains nothing then, it is the last.

    Returns
    -------
    PruneResult
        ``(weights, bias, report)``. `gptq` and `quantize` keep what is 0 if their grid has a 0; `gptq` with the same
        Hessian makes up for its own errors alone. Which weights go follows products by BLAS.

    Raises
    ------
    TypeError, ValueError
        For another type or shape, NaN and infinity, a Hessian that has seen nothing, or moments that no data have.

    References
    ----------
    Frantar and Alistarh, *SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot*, 2023, chooses once;
    Blumensath and Davies, *Iterative Hard Thresholding for Compressed Sensing*, 2009; docs/numerics.md, section 31.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 16)).cumsum(axis=1).astype(np.float32)
    >>> w = rng.normal(size=(16, 4)).astype(np.float32)
    >>> seen, smallest = qk.Hessian(16).update(x), np.where(np.abs(w) < np.median(np.abs(w)), 0, w)
    >>> weights, bias, _ = qk.prune(w, seen, 0.5)
    >>> int(np.count_nonzero(weights))
    32
    >>> taken, compensated = qk.sensitivity(w, seen, [smallest, weights], center=True)
    >>> bool(compensated < taken / 3)
    True
    """
    w = finite_float32(float_array(w, "w"), "w")
    checked_hessian(hessian, w)
    least = _pattern(pattern, w.shape)
    damp, passes = checked_damp(damp), integer(passes, "passes", 1)
    center = boolean(center, "center")
    exponent = int(np.frexp(np.abs(w).max(initial=0))[1])
    problem = Problem(hessian, "natural", damp, center)
    pruning = _Pruning(np.ldexp(w, -exponent), problem, least)
    errors = pruning.run_all(passes)
    unit = problem.unit * 4.0**exponent
    report = {"damp": problem.damp, "dead": np.flatnonzero(problem.dead), "errors": np.array(errors) * unit}
    bias = times_power(pruning.mean_error(problem.mean), exponent) if center else None
    return PruneResult(times_power(pruning.weights(), exponent), bias, report)


def _pattern(pattern, shape):
    """Return a function that tells of costs of this shape which are the least, that is, which weights go."""
    given = word(pattern)
    if is_a(given, str):
        found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", given)
        kept, group = map(int, found.groups()) if found else (0, 0)
        if not 0 < kept <= group:
            raise ValueError(f"pattern must be such as '2:4', of each 4 at most 2 stay, got {shown(pattern)}")
        return lambda costs: _least_of_groups(costs, kept, group)
    share = real(given, "pattern")
    if not 0 <= share <= 1:
        raise ValueError(f"pattern must be a share from 0 to 1, or such as '2:4', got {share!r}")
    count = round(share * shape[0] * shape[1])
    return lambda costs: _least(costs.reshape(1, -1, 1), count).reshape(costs.shape)


class _Pruning(Loop):
    """Hold which weights are out, too."""

    def __init__(self, w, problem, least):
        super().__init__(w, problem, np.zeros(w.shape, bool))
        self.matrix, self.again, self.least = problem.matrix, problem.refinement(), least
        self.weight = np.where(problem.dead, np.float32(0), np.diagonal(problem.matrix))[:, None]

    def run_all(self, passes):
        """Make the passes; return the error after each that made it smaller, whose weights stay."""
        totals, choosing = [], True
        for _ in range(passes):
            before = self.errors.copy(), self.mask.copy()
            if choosing:
                self.mask[:, : self.n] = self.least(self._costs())
            total = self.run(self.again) + sum(totals[-1:])
            if not totals or total < totals[-1]:
                totals.append(total)
                continue
            self.errors, self.mask = before
            if not choosing:
                break
            choosing = False
        return totals

    def _costs(self):
        """Return what it costs that a weight is 0 and not what is best for it, with all others as they are."""
        errors = self.flat_errors()
        best = self.w[:, : self.n] - errors + product(self.matrix, errors) / np.diagonal(self.matrix)[:, None]
        return self.weight * best**2

    def weights(self):
        return self.w[:, : self.n] - self.flat_errors()


# ---- the least of many ----


def _least_of_groups(costs, kept, group):
    """Tell which costs (k, n) go so that at most so many of a column stay in each group of rows."""
    k, n = costs.shape
    whole, mask = k // group * group, np.zeros(costs.shape, bool)
    step = max(1, PART // k)
    for first in range(0, n, step):
        own, found = costs[:, first : first + step], mask[:, first : first + step]
        width = own.shape[1]
        found[:whole] = _least(own[:whole].reshape(-1, group, width), group - kept).reshape(whole, width)
        found[whole:] = _least(own[None, whole:], max(0, k - whole - kept))[0]
    return mask


def _least(costs, count):
    """Tell which `count` of costs (groups, members, columns) are the least of each group and column."""
    mask = np.zeros(costs.shape, bool)
    if count and costs.size:
        np.put_along_axis(mask, np.argpartition(costs, count - 1, axis=1)[:, :count], True, axis=1)
    return mask
