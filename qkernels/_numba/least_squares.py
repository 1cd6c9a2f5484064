"""Scales of least squares, exactly: the search behind ``choose_qparams(method="mse")``. docs/numerics.md, section 18.

Names of that section: y are the magnitudes of a line, in units that keep their squares in range; a *limit* is the largest code on
one side of zero; a code c of y ends at the *breakpoint* ``y / (c - 1/2)``: above that scale it is c - 1.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .cache import compiled
from ..config import get_num_threads
from .._mode import default_mode

NEGLIGIBLE = 2.0**-48     # of sum(x^2): what rounding a scale to float32 may cost
SLACK = 1e-12             # of sum(x^2): what rounding may do to the sums of a bound
MOST_BUCKETS = 1 << 16
MOST_SORTED = 1 << 22     # breakpoints
CHUNK = 1 << 18           # values that a thread takes at once
LONG = 1 << 14            # lines of 16-bit floats from which values are counted first
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6, 0.5)
SMALLEST_SCALE = np.finfo(np.float32).tiny


def refine(x, importance, block_size, code_range, zero_points, scale, zero_point):
    """Replace the parameters of each block of a row by those of least squares, where these are better.

    Parameters
    ----------
    x, importance : float array of shape (rows, n)
        Finite. Importance, not negative, may be None.
    block_size : int
    code_range, zero_points : (int, int)
        First and last code; first and last zero point to try.
    scale : float32 array of shape (rows, blocks), IN and OUT
    zero_point : int32 array of shape (rows, blocks), IN and OUT
    """
    counted = x.dtype.itemsize == 2 and block_size >= x.shape[1] >= LONG
    step = 1 if counted else max(1, CHUNK // x.shape[1])

    def some_rows(first):
        rows = slice(first, first + step)
        weights = None if importance is None else importance[rows].astype(np.float64, order="C")
        if counted:
            values, weights = _distinct(x[first], weights)
        else:
            values = x[rows].astype(np.float64, order="C")
        weights = np.empty((0, 0)) if weights is None else weights
        _refine_rows(values, weights, block_size, *code_range, *zero_points, scale[rows], zero_point[rows])

    parts = range(0, len(x), step)
    if get_num_threads() == 1 or len(parts) == 1:
        for first in parts:
            some_rows(first)
        return
    with ThreadPoolExecutor(get_num_threads()) as pool:
        list(pool.map(default_mode(some_rows), parts))


def _distinct(x, weights):
    """Each value of a line of 16-bit floats once, and the sum of its weights: float64 (1, m)."""
    x = np.ascontiguousarray(x, x.dtype.newbyteorder("="))
    counts = np.bincount(x.view(np.uint16), None if weights is None else weights[0])
    present = np.flatnonzero(counts)
    return present.astype(np.uint16).view(x.dtype).astype(np.float64)[None], counts[present].astype(np.float64)[None]


@compiled()
def _refine_rows(x, importance, block_size, qmin, qmax, first_zero, last_zero, scale, zero_point):
    n = x.shape[1]
    longest = min(n, block_size)
    y, w, side = np.empty(longest), np.empty(longest), np.empty(longest, np.int64)
    for row in range(x.shape[0]):
        for block in range(scale.shape[1]):
            size, largest, heaviest = 0, 0.0, 0.0
            for i in range(block * block_size, min(n, (block + 1) * block_size)):
                weight = importance[row, i] if importance.size else 1.0
                if x[row, i] != 0 and weight > 0:
                    y[size], w[size], side[size] = abs(x[row, i]), weight, x[row, i] < 0
                    largest, heaviest = max(largest, y[size]), max(heaviest, weight)
                    size += 1
            if size:
                unit = 2.0 ** math.floor(math.log2(largest))
                y[:size] /= unit
                w[:size] /= heaviest
                scale[row, block], zero_point[row, block] = _refine(
                    y[:size], w[:size], side[:size], unit, qmin, qmax, first_zero, last_zero, scale[row, block], zero_point[row, block])


@compiled()
def _refine(y, w, side, unit, qmin, qmax, first_zero, last_zero, start_scale, start_zero):
    """(scale, zero point) of one line: magnitudes, their importance, and 1 where the value is negative."""
    total, logs = np.sum(w * y * y), np.log(y)
    zero = start_zero
    if first_zero < last_zero and side.min() == side.max():   # of one sign: no other zero point leaves it as many codes
        zero = first_zero = last_zero = last_zero if side[0] else first_zero
    best = np.array([total, y.max(), zero])   # loss, scale, zero point; at first of codes that are all 0
    for shrink in SHRINKS:
        _try_scale(y, w, side, shrink * min(start_scale / unit, y.max()), qmin, qmax, zero, best)
    loosest = _limits(qmin, qmax, zero) if first_zero == last_zero else np.array([qmax - qmin, qmax - qmin])
    log_codes = np.log(np.maximum(np.arange(loosest.max() + 1), 1) - 0.5)
    highest = _highest_scale(y, w, side, logs, log_codes, loosest, total, best)
    for i in range(2 * (last_zero - first_zero) + 1):   # from where the search begins outward
        tried = zero + ((i + 1) // 2 if i % 2 else -(i // 2))
        if first_zero <= tried <= last_zero and best[0] > NEGLIGIBLE * total:
            _search(y, w, side, logs, log_codes, _limits(qmin, qmax, tried), tried, highest, total, best)
    return _nearest_float32(y, w, side, unit, qmin, qmax, start_scale, start_zero, best)


@compiled()
def _limits(qmin, qmax, zero):
    """Of positive values and of negative ones."""
    return np.array([qmax - zero, zero - qmin])


@compiled()
def _loss(y, w, side, scale, limits):
    """(loss, half of -d loss / d scale, sum of w c^2) with the nearest codes of a scale."""
    loss, slope, square = 0.0, 0.0, 0.0
    for i in range(len(y)):
        c = min(np.rint(y[i] / scale), limits[side[i]])
        r = y[i] - scale * c
        loss, slope, square = loss + w[i] * r * r, slope + w[i] * c * r, square + w[i] * c * c
    return loss, slope, square


@compiled()
def _try_scale(y, w, side, scale, qmin, qmax, zero, best):
    _keep_better(*_loss(y, w, side, scale, _limits(qmin, qmax, zero)), scale, zero, best)


@compiled()
def _keep_better(loss, slope, square, scale, zero, best):
    """The best scale for fixed codes, whose loss and derivatives are known at another."""
    if square > 0 and loss - slope * slope / square < best[0]:
        best[0], best[1], best[2] = loss - slope * slope / square, scale + slope / square, zero


@compiled()
def _highest_scale(y, w, side, logs, log_codes, limits, total, best):
    """A scale above which none is better than `best`, whatever the zero point."""
    low = 0.9 * best[1]
    log_low, step, bounds, _ = _bounds(y, w, side, logs, log_codes, limits, total, low, 2.000001 * y.max())
    k = len(bounds)
    while k > 0 and bounds[k - 1] >= best[0] + SLACK * total:
        k -= 1
    return math.exp(log_low + k * step)


@compiled()
def _lowest_scale(y, w, side, limits, highest, best):
    """A scale below which saturation alone costs more than `best`, or no code changes: Newton's method, from the left on a convex
    function, does not overshoot."""
    scale, step = 0.0, np.inf
    while step > 0.01 * scale and scale < highest:
        excess, slope = 0.0, 0.0
        for i in range(len(y)):
            limit = limits[side[i]]
            r = max(y[i] - limit * scale, 0.0)
            excess, slope = excess + w[i] * r * r, slope + 2 * w[i] * limit * r
        if excess <= best[0]:
            break
        step = (excess - best[0]) / slope if slope > 0 else np.inf
        scale += step
    return max(scale, 0.999 * y.min() / (limits.max() + 0.5))


@compiled()
def _search(y, w, side, logs, log_codes, limits, zero, highest, total, best):
    """Improve `best` by the scales of one zero point."""
    low = _lowest_scale(y, w, side, limits, highest, best)
    if low >= highest:
        return
    log_low, step, bounds, counts = _bounds(y, w, side, logs, log_codes, limits, total, low, highest)
    first = 0
    while first < len(bounds):
        last, size = first, 0
        while last < len(bounds) and bounds[last] < best[0] + SLACK * total and (size == 0 or size + counts[last] <= MOST_SORTED):
            size += counts[last]
            last += 1
        if last > first:
            _sweep(y, w, side, logs, log_codes, limits, zero, log_low, step, first, last, size, best)
        first = max(last, first + 1)


@compiled()
def _bounds(y, w, side, logs, log_codes, limits, total, low, high):
    """(log of low, width, lower bounds of the loss, numbers of breakpoints) of buckets of scales, even in their logarithm."""
    log_low = math.log(low)
    span = max(math.log(high) - log_low, 1e-9)
    typical = math.sqrt(total / np.sum(w)) / low   # code
    fine = typical * span * math.sqrt(12.0 * math.sqrt(len(y)))
    buckets = int(min(max(fine, 4.0), MOST_BUCKETS, 0.5 * len(y) * typical * span + 4))
    step = span / buckets
    gains, squares, counts = np.zeros(buckets), np.zeros(buckets), np.zeros(buckets, np.int64)
    gain, square = 0.0, 0.0   # sum of w y c, sum of w c^2
    for i in range(len(y)):
        start = (logs[i] - log_low) / step
        c = _code_at(y[i] / low, start, log_codes, step, 0, limits[side[i]])
        gain, square = gain + w[i] * y[i] * c, square + w[i] * c * c
        while c > 0:
            k = int(start - log_codes[c] / step)
            if k >= buckets:
                break
            gains[k] += w[i] * y[i]
            squares[k] += w[i] * (2 * c - 1)
            counts[k] += 1
            c -= 1
    bounds, ratio, s0 = np.empty(buckets), math.exp(step), low
    for k in range(buckets):
        s1 = s0 * ratio
        late = min(max((s1 * squares[k] - 2 * gains[k]) / (s1 - s0), 0.0), squares[k])
        bounds[k] = _least(total, 2 * gain - s0 * late, square - late, s0, s1)
        gain, square, s0 = gain - gains[k], square - squares[k], s1
    return log_low, step, bounds, counts


@compiled()
def _least(constant, linear, square, s0, s1):
    """Minimum of constant - linear s + square s^2 for s0 <= s <= s1."""
    s = s0 if linear <= 2 * square * s0 else s1 if linear >= 2 * square * s1 else linear / (2 * square)
    return constant - linear * s + square * s * s


@compiled()
def _code_at(quotient, start, log_codes, step, bucket, limit):
    """The largest code whose breakpoint is in `bucket` or a later one; quotient is y / the scale where it begins."""
    c = int(min(quotient + 1.5, limit))
    while c > 0 and start - log_codes[c] / step < bucket:
        c -= 1
    return c


@compiled()
def _sweep(y, w, side, logs, log_codes, limits, zero, log_low, step, first, last, size, best):
    """Improve `best` by all codes that scales in the buckets first, .., last - 1 give, one breakpoint after the other."""
    scale = math.exp(log_low + first * step)
    at, who, code, size = np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64), 0
    loss, slope, square = 0.0, 0.0, 0.0
    for i in range(len(y)):
        start = (logs[i] - log_low) / step
        c = _code_at(y[i] / scale, start, log_codes, step, first, limits[side[i]])
        r = y[i] - scale * c
        loss, slope, square = loss + w[i] * r * r, slope + w[i] * c * r, square + w[i] * c * c
        while c > 0 and start - log_codes[c] / step < last:
            at[size], who[size], code[size] = y[i] / (c - 0.5), i, c
            size += 1
            c -= 1
    _keep_better(loss, slope, square, scale, zero, best)
    for j in _order(at):
        i, c = who[j], code[j]
        r = y[i] - scale * c
        loss += w[i] * scale * (2 * r + scale)
        slope += w[i] * (scale * (c - 1) - r)
        square -= w[i] * (2 * c - 1)
        _keep_better(loss, slope, square, scale, zero, best)


@compiled()
def _order(values):
    """Indices that sort."""
    if len(values) > 64:
        return np.argsort(values)
    order = np.arange(len(values))
    for i in range(1, len(values)):
        j = i
        while j > 0 and values[order[j - 1]] > values[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    return order


@compiled()
def _nearest_float32(y, w, side, unit, qmin, qmax, start_scale, start_zero, best):
    """The better of the start and of the float32 scales around the best real one."""
    chosen, zero = start_scale, start_zero
    least = _loss(y, w, side, start_scale / unit, _limits(qmin, qmax, start_zero))[0]
    near = np.float32(best[1] * unit)
    for scale in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        scale = max(scale, SMALLEST_SCALE)
        loss = _loss(y, w, side, scale / unit, _limits(qmin, qmax, int(best[2])))[0]
        if loss < least:
            chosen, zero, least = scale, int(best[2]), loss
    return chosen, zero
