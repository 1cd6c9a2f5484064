"""Share out bits among layers: `sensitivity`, `allocate_bits`, `pareto`. Formulas: docs/numerics.md, section 28."""

import math
from typing import NamedTuple

import numpy as np

from ._blas import product
from ._checks import boolean, finite_float32, float_array, is_a, real, real_array, shown
from ._codebook import Codebook, decode, encode
from ._hessian import checked_hessian
from ._mode import default_mode
from ._qparams import QParams
from ._quantize import fake_quantize

__all__ = ["Allocation", "allocate_bits", "pareto", "sensitivity"]

MOST_STATES = 1 << 18  # that are kept after each layer: hundreds of times what 1,000 layers of random sizes need


class Allocation(NamedTuple):
    """Hold what `allocate_bits` chooses, or `pareto` for each point of its curve.

    Attributes
    ----------
    choice : integer array (layers,)
        The index of the choice of each layer. Of `pareto`, (points, layers).
    error : float
        The sum of the errors of the choices.
    size : float
        The sum of their sizes.
    bound : float
        No allocation within the budget has an error below this: `error` itself, if it is proved to be the least.

    Examples
    --------
    >>> choice, error, size, bound = qk.allocate_bits([[9, 4, 1], [5, 3, 2]], [2, 3, 4], 6)
    >>> choice, error, size
    (array([2, 0]), 6.0, 6.0)
    """

    choice: np.ndarray
    error: float
    size: float
    bound: float


@default_mode
def sensitivity(w, hessian, candidates, *, center=False):
    """Tell what each of several forms of a layer's weights costs: the mean squared error of its outputs, summed.

    Parameters
    ----------
    w : array (k, n) of floats
        The layer is ``x @ w``.
    hessian : Hessian
        Of its inputs x.
    candidates : sequence
        Of `QParams` and `Codebook`, to which w is rounded as `quantize` and `encode` do, and of arrays (k, n) that
        stand in the place of w, such as a dequantized result of `gptq`.
    center : bool
        The layer's bias absorbs the mean of the error, as `gptq` sees to.

    Returns
    -------
    float64 array (candidates,)
        ``trace(e.T @ m @ e) / count`` with e the difference from w and m the moments of the Hessian; with `center`
        those about the mean of x. Computed in float64 by BLAS.

    Raises
    ------
    TypeError, ValueError
        For another type or shape, NaN and infinity, or a Hessian that has seen nothing.

    References
    ----------
    Frantar and Alistarh, *Optimal Brain Compression*, 2022; docs/numerics.md, section 28.

    Examples
    --------
    >>> seen = qk.Hessian(2).update(np.float32([[1, 2], [3, 4]]))
    >>> w = np.float32([[0.3, 1.2], [0.6, 0.9]])
    >>> qk.sensitivity(w, seen, [qk.QParams(0.5), qk.QParams(0.1)]).round(3)
    array([0.04, 0.  ])
    """
    w = finite_float32(float_array(w, "w"), "w")
    checked_hessian(hessian, w)
    if is_a(candidates, QParams, Codebook) or not is_a(candidates, list, tuple):
        raise TypeError(f"candidates must be a list or tuple of QParams, Codebook and arrays, got {shown(candidates)}")
    matrix, *_ = hessian._matrix(boolean(center, "center"))
    errors = np.zeros(len(candidates))
    for i, candidate in enumerate(candidates):
        e = w.astype(np.float64) - _rounded(w, candidate)
        errors[i] = max(np.sum(e * product(matrix, e)), 0.0)
    return errors


def _rounded(w, candidate):
    """Return the weights that a candidate stands for."""
    if is_a(candidate, QParams):
        return fake_quantize(w, candidate)
    if is_a(candidate, Codebook):
        codes = encode(w, candidate)
        return decode(codes, candidate) if candidate.block_size is None else decode(codes[0], candidate, codes[1])
    given = finite_float32(float_array(candidate, "candidates"), "candidates")
    if given.shape != w.shape:
        raise ValueError(f"candidates must have the shape of w {w.shape}, got {given.shape}")
    return given


@default_mode
def allocate_bits(errors, sizes, budget):
    """Choose one of several forms of each layer, so that all fit a budget and the sum of their errors is the least.

    Parameters
    ----------
    errors : array (layers, choices)
        Of each layer in each form, such as `sensitivity` gives. Infinity stands for a form that a layer cannot have.
    sizes : array that broadcasts to the shape of `errors`
        In any unit: (choices,) if all layers have equal sizes, ``np.outer(weights, bits)`` if a layer has so many
        weights and a form so many bits each. Finite and not negative. Sums of whole numbers are exact; other sums are
        compared with the budget to within their rounding, 2**-53 of the largest sum for each layer.
    budget : float
        The largest sum of sizes.

    Returns
    -------
    Allocation
        ``bound == error`` proves that none is better; in made-up cases, in which a search of hundreds of thousands
        of partial allocations does not end, ``error - bound`` tells what may be left. Errors are summed in float64.

    Raises
    ------
    TypeError, ValueError
        For another shape, NaN, or a budget that is too small (the message says which would do).

    References
    ----------
    Sinha and Zoltners, *The Multiple-Choice Knapsack Problem*, 1979; Pisinger, *A minimal algorithm for the
    multiple-choice knapsack problem*, 1995; docs/numerics.md, section 28.

    Examples
    --------
    >>> weights, bits = [1000, 4000, 2000], [2, 4, 8]
    >>> errors = [[8, 2, 0], [9, 3, 0], [20, 4, 0.5]]
    >>> qk.allocate_bits(errors, np.outer(weights, bits), 4 * sum(weights))
    Allocation(choice=array([1, 1, 1]), error=9.0, size=28000.0, bound=9.0)
    """
    errors, sizes = _checked(errors, sizes)
    budget = real(budget, "budget")
    if math.isnan(budget):
        raise ValueError("budget must be a number, got nan")
    whole, unit = _whole(sizes)
    curve = _Curve(_scaled(errors), whole)
    room = math.floor(min(max(budget / unit, -1.0), float(curve.sizes[-1])))
    if np.any(whole * unit != sizes):
        room = min(room + len(errors), int(curve.sizes[-1]))
    if (least := int(curve.sizes[0])) > room:
        raise ValueError(f"budget must be at least {least * unit!r}, the sum of the smallest sizes, got {budget!r}")
    choice, gap = _search(curve, room)
    rows = np.arange(len(errors))
    error = _sum(errors[rows, choice])
    bound = error - math.ldexp(gap, _exponent(errors)) if gap else error
    return Allocation(choice, error, _sum(sizes[rows, choice]), bound)


@default_mode
def pareto(errors, sizes):
    """Return the curve of error against size: allocations that are the best of their size, as far as they are convex.

    Each point makes the change of a single layer that lowers the error most for the size that it adds, from all layers
    at their smallest to all at their least error. Every point is an optimum of `allocate_bits`; between two of them
    that finds others, whose errors are above the straight line.

    Parameters
    ----------
    errors, sizes
        As for `allocate_bits`.

    Returns
    -------
    Allocation
        With an array for each field: `choice` (points, layers); `error`, `size` and `bound` (points,).

    Raises
    ------
    TypeError, ValueError
        For another shape, or NaN.

    References
    ----------
    Sinha and Zoltners, *The Multiple-Choice Knapsack Problem*, 1979; docs/numerics.md, section 28.

    Examples
    --------
    >>> curve = qk.pareto([[9, 4, 1], [5, 3, 2]], [2, 3, 4])
    >>> curve.size, curve.error
    (array([4., 5., 6., 7., 8.]), array([14.,  9.,  6.,  4.,  3.]))
    >>> curve.choice[2]
    array([2, 0])
    """
    errors, sizes = _checked(errors, sizes)
    curve = _Curve(_scaled(errors), _whole(sizes)[0])
    choice = np.repeat(curve.first[None], len(curve.layer) + 1, axis=0)
    for step, (layer, to) in enumerate(zip(curve.layer, curve.to, strict=True), 1):
        choice[step:, layer] = to
    rows = np.arange(len(errors))
    error, size = (a[rows, choice].sum(axis=1) for a in (errors, sizes))
    return Allocation(choice, error, size, error)


# ---- arguments ----


def _checked(errors, sizes):
    """Return both as float64 (layers, choices)."""
    errors = real_array(errors, "errors").astype(np.float64)
    if errors.ndim != 2 or errors.shape[1] < 1:
        raise ValueError(f"errors must have shape (layers, choices), at least one choice, got {errors.shape}")
    given = real_array(sizes, "sizes").astype(np.float64)
    try:
        sizes = np.broadcast_to(given, errors.shape)
    except ValueError:
        raise ValueError(f"sizes must broadcast to the shape of errors {errors.shape}, got {given.shape}") from None
    bad = ~(errors > -np.inf)
    if bad.any():
        raise ValueError(f"errors must be above -infinity and not NaN, got {errors[bad][0]}")
    if not np.isfinite(errors).any(axis=1).all():
        layer = int(np.argmin(np.isfinite(errors).any(axis=1)))
        raise ValueError(f"errors must be finite for at least one choice of a layer, got none for layer {layer}")
    bad = ~((sizes >= 0) & (sizes < np.inf))
    if bad.any():
        raise ValueError(f"sizes must be finite and not negative, got {sizes[bad][0]}")
    return errors, sizes


def _whole(sizes):
    """Return sizes as int64 multiples of a power of two, rounded, and that power: all sums are below 2**54."""
    exponent = max(_exponent(sizes) + len(sizes).bit_length() - 53, -1074)
    return np.rint(np.ldexp(sizes, -exponent)).astype(np.int64), math.ldexp(1.0, exponent)


def _exponent(values):
    """Return the exponent of the largest finite magnitude."""
    return math.frexp(np.abs(values[np.isfinite(values)]).max(initial=0))[1]


def _sum(values):
    """Return the sum, rounded once; infinite beyond the range of float64."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _scaled(errors):
    """Return errors of magnitudes up to 1, so that products with sizes stay within float64."""
    return np.ldexp(errors, -_exponent(errors))


# ---- the convex hulls, and their sum ----


class _Curve:
    """Hold the steps from each layer's smallest choice along its lower convex hull, the steepest of all layers first.

    Attributes: errors, each (layers, choices), their errors and sizes; first (layers,), the smallest choices; layer,
    to, slope (steps,), the layer that changes, its new choice, and the error that it loses for a unit of size; sizes
    (steps + 1,), the sum.
    """

    def __init__(self, errors, sizes):
        self.errors, self.each = errors, sizes
        rows = np.arange(len(errors))
        possible = np.where(np.isfinite(errors), sizes, np.iinfo(np.int64).max)
        smallest = possible == possible.min(axis=1, keepdims=True)
        self.first = at = np.where(smallest, errors, np.inf).argmin(axis=1)
        steps, before = [], np.full(len(errors), np.inf)
        for _ in range(errors.shape[1] - 1):
            more = sizes - sizes[rows, at][:, None]
            gain = errors[rows, at][:, None] - errors
            slopes = np.where((more > 0) & (gain > 0), gain / np.maximum(more, 1), -np.inf)
            best = slopes.max(axis=1)
            # of equal slopes the farthest, so that each step of a layer is less steep than the one before
            to = np.where(slopes == best[:, None], more, -1).argmax(axis=1)
            going = np.flatnonzero(best > 0)
            if not len(going):
                break
            before = np.minimum(before, best)
            steps.append((going, to[going], before[going], more[going, to[going]]))
            at = np.where(best > 0, to, at)
        columns = [np.concatenate(parts) for parts in zip(*steps, strict=True)] if steps else np.zeros((4, 0), np.int64)
        order = np.argsort(-np.asarray(columns[2], np.float64), kind="stable")
        self.layer, self.to, self.slope, added = (column[order] for column in columns)
        start = sizes[rows, self.first].sum()
        self.sizes = start + np.concatenate([[0], np.cumsum(added.astype(np.int64))])

    def choice(self, steps):
        """Return the choice of each layer after so many steps."""
        choice = self.first.copy()
        choice[self.layer[:steps]] = self.to[:steps]  # of several steps of a layer the last one holds
        return choice


# ---- the search ----


def _search(curve, room):
    """Return the best choice within `room`, and by how much a better one might still lower the error."""
    steps = int(np.searchsorted(curve.sizes, room, "right")) - 1
    choice = curve.choice(steps)
    if steps == len(curve.layer):
        return choice, 0.0
    rows = np.arange(len(choice))
    slope = curve.slope[steps]
    slack = room - int(curve.sizes[steps])
    added = curve.each - curve.each[rows, choice][:, None]
    cost = np.maximum(curve.errors - curve.errors[rows, choice][:, None] + slope * added, 0)
    states = _States(slope, slack)
    states.swap_one(cost, added)
    layers, costs_down, costs_up = _order(cost, added, states.best)
    for i, layer in enumerate(layers):
        others = np.flatnonzero((cost[layer] < states.best) & (np.arange(cost.shape[1]) != choice[layer]))
        if len(others):
            states.extend(layer, others, added[layer, others], cost[layer, others], costs_down[i], costs_up[i])
        if not len(states.added):
            break
    for layer, other in states.changes():
        choice[layer] = other
    return choice, max(states.best - states.dropped, 0.0)


def _order(cost, added, best):
    """Return the layers by what they cost at least for a unit of size, and the same of all that come later.

    Both for making the sum smaller and for making it larger.
    """
    with_size = np.where((added != 0) & (cost < best), cost / np.maximum(np.abs(added), 1), np.inf)
    down = np.where(added < 0, with_size, np.inf).min(axis=1)
    up = np.where(added > 0, with_size, np.inf).min(axis=1)
    layers = np.argsort(np.minimum(down, up), kind="stable")
    layers = layers[: np.count_nonzero(np.minimum(down, up) < np.inf)]
    later = [np.minimum.accumulate(np.append(a[layers], np.inf)[::-1])[::-1][1:] for a in (down, up)]
    return layers, *later


class _States:
    """Hold partial allocations: what each adds to the size of the linear program's choice, and costs beyond it.

    All layers that were not yet looked at keep their choice, so each that fits is an allocation, too: the best is kept.
    """

    def __init__(self, slope, slack):
        self.slope, self.slack = slope, slack
        self.added, self.cost = np.zeros(1, np.int64), np.zeros(1)
        self.best, self.path = slope * slack, None
        self.dropped = np.inf
        self.history = []  # of each layer: it, its choices, and the state and choice that each state came from

    def swap_one(self, cost, added):
        """Try the change of each single layer, so that the search begins with a good allocation."""
        totals = np.where(added <= self.slack, cost + self.slope * (self.slack - added), np.inf)
        at = int(totals.argmin())
        if totals.flat[at] < self.best:
            self.best, self.path = float(totals.flat[at]), divmod(at, cost.shape[1])

    def extend(self, layer, others, added, cost, down, up):
        """Let the layer change to each of the others, or not; `down` and `up` are least costs of a unit later on."""
        count = len(self.added)
        sums = np.add.outer(np.append(0, added), self.added).reshape(-1)
        costs = np.add.outer(np.append(0, cost), self.cost).reshape(-1)
        left = self.slack - sums
        totals = np.where(left >= 0, costs + self.slope * left, np.inf)
        at = int(totals[count:].argmin()) + count
        self.history.append((layer, np.append(-1, others), None, None))
        if totals[at] < self.best:
            self.best, self.path = float(totals[at]), (len(self.history) - 1, *divmod(at, count))
        bounds = costs + np.where(left >= 0, min(self.slope, up) * left, 0.0 if down == np.inf else -down * left)
        kept = bounds < self.best if down < np.inf else (bounds < self.best) & (left >= 0)
        kept = self._undominated(np.flatnonzero(kept), sums, costs)
        if len(kept) > MOST_STATES:
            by_bound = np.argpartition(bounds[kept], MOST_STATES)
            self.dropped = min(self.dropped, float(bounds[kept[by_bound[MOST_STATES:]]].min()))
            kept = kept[np.sort(by_bound[:MOST_STATES])]
        parts, parents = np.divmod(kept, count)
        narrow = parents.astype(np.int32), parts.astype(np.min_scalar_type(len(others)))
        self.history[-1] = (*self.history[-1][:2], *narrow)
        self.added, self.cost = sums[kept], costs[kept]

    def _undominated(self, kept, sums, costs):
        """Return those of the indices, by size, that no other of at most their size has at most the error of."""
        size, error = sums[kept], costs[kept] - self.slope * sums[kept]
        order = np.lexsort((error, size))
        kept, error = kept[order], error[order]
        lowest = np.minimum.accumulate(error)
        return kept[np.append(True, error[1:] < lowest[:-1])[: len(kept)]]

    def changes(self):
        """Yield (layer, choice) of the best allocation."""
        if self.path is None:
            return
        if len(self.path) == 2:
            yield self.path
            return
        at, part, state = self.path
        while True:
            layer, others, *_ = self.history[at]
            if part:
                yield layer, others[part]
            if not at:
                return
            at -= 1
            part, state = self.history[at][3][state], self.history[at][2][state]
