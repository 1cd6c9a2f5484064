"""Find ranges of values from their counts on a fixed grid. Formulas: docs/numerics.md, section 24."""

from typing import NamedTuple

import numpy as np

from ._bind import elementwise, histograms
from ._bind.arrays import contiguous_as, cuts
from ._checks import FLOAT32, raise_beyond_float32, real

FINE, COARSE = 10, 7  # bits of the mantissa that tell bins apart: of a tensor, of the lines of an axis
LARGEST = np.finfo(FLOAT32).max
MOST = 1 << 30  # values that are counted at a time
LINES = 64  # that are looked at at a time
SIGN = 256  # the block from which on values are negative


# ---- counting ----


def new_histogram(x, axis):
    """Return an empty histogram for arrays that look like x."""
    return histograms.Histogram(1, FINE) if axis is None else histograms.Histogram(x.shape[axis], COARSE)


def count(histogram, x, axis):
    """Count the values of x, a line for each index of `axis`, or one of all; or raise and count nothing."""
    if not x.size:
        return
    axis = None if axis is None else axis % x.ndim
    if axis is None and x.dtype == FLOAT32 and x.size <= MOST and x.flags.c_contiguous:
        if not histogram.count(contiguous_as(x, FLOAT32).reshape(1, -1), 0):
            raise_beyond_float32(x)
        return
    fresh = histograms.Histogram(histogram.lines, histogram.bits)
    for part in cuts(x.shape):
        cut_lines = axis is not None and part is not ... and len(part) == axis + 1
        rows = x[part].reshape(1, -1) if axis is None else np.moveaxis(x[part], axis, 0)
        rows = contiguous_as(rows.reshape(len(rows), -1), FLOAT32)
        if not fresh.count(rows, part[axis].start if cut_lines else 0):
            raise_beyond_float32(x)
    histogram.merge(fresh)


# ---- bins ----


class Bins(NamedTuple):
    """Hold the bins of lines, ascending; counts (lines, bins) may be 0."""

    bits: int  # 2**bits of them for each sign and power of two
    begin: np.ndarray  # float64: the values of a bin lie in [begin, end), or, below 0, in (begin, end]
    end: np.ndarray
    counts: np.ndarray  # int64
    lo: np.ndarray  # float32 (lines,): the extremes, 0 where there are no values
    hi: np.ndarray


def bins_by_part(histogram):
    """Yield slices of lines, so few that Ctrl-C need not wait for long, and their bins."""
    for begin in range(0, histogram.lines, LINES):
        end = min(begin + LINES, histogram.lines)
        yield slice(begin, end), bins_of(histogram, begin, end)


def bins_of(histogram, begin, end):
    """Return the bins of the blocks that have counts in these lines."""
    bits, (blocks, counts, ranks) = histogram.bits, histogram.read(begin, end)
    size = 2**bits
    keys = (blocks.astype(np.int64)[:, None] % SIGN * size + np.arange(size)).reshape(-1)
    negative = np.repeat(blocks >= SIGN, size)
    near, far = (_float64(keys + i << 23 - bits) for i in (0, 1))
    far[keys == 0] = 0  # what is so small counts as 0
    begin, end = np.where(negative, -far, near), np.where(negative, -near, far)
    order = np.argsort(np.where(negative, -1 - keys, keys), kind="stable")
    lo, hi = (_float64(r ^ (r >> 31 & 2**31 - 1)) for r in np.where(ranks[0] > ranks[1], 0, ranks))
    counts = counts.reshape(len(counts), -1)[:, order]
    return Bins(bits, begin[order], end[order], counts, FLOAT32.type(lo), FLOAT32.type(hi))


def _float64(bits):
    """Return the floats of these bits; what is beyond them is 2**128."""
    floats = bits.astype(np.uint32).view(FLOAT32).astype(np.float64)
    return np.where(np.isinf(floats), 2.0**128, floats)


def fold(bins, bits):
    """Return the bins of fewer bits, and no zeros."""
    counts = np.where((bins.begin == 0) & (bins.end == 0), 0, bins.counts)
    shape = -1, 2 ** max(0, bins.bits - bits)
    begin, end = bins.begin.reshape(shape)[:, 0], bins.end.reshape(shape)[:, -1]
    return Bins(bits, begin, end, counts.reshape(len(counts), *shape).sum(axis=-1), bins.lo, bins.hi)


def _lines(bins):
    """Yield (begin, end, counts) of the bins of each line that have values."""
    for counts in bins.counts:
        present = np.flatnonzero(counts)
        yield bins.begin[present], bins.end[present], counts[present]


def _outer(begin, end):
    """Return the float32 of the largest magnitude in each bin, as float64."""
    far = np.where(begin < 0, begin, end).astype(np.float64)
    inward = np.nextafter(np.minimum(np.abs(far), LARGEST).astype(FLOAT32), FLOAT32.type(0)).astype(np.float64)
    largest = np.where(np.abs(far) > LARGEST, LARGEST, inward)
    return np.where(far == 0, 0.0, np.copysign(largest, far))


# ---- ranges ----


def percentile_within(value):
    """Return the percentile as a number within (0, 100]."""
    value = real(value, "percentile")
    if not 0 < value <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, got {value!r}")
    return value


def percentile_ranges(bins, value, symmetric):
    """Return (lo, hi) of each line, float32: the least that leaves out no more than 100 - value percent."""
    from fractions import Fraction  # takes milliseconds

    out, found = 1 - Fraction(repr(value)) / 100, np.array([bins.lo, bins.hi])
    for line, (begin, end, counts) in enumerate(_lines(bins)):
        most = int(out * int(counts.sum()) / (1 if symmetric else 2))
        if not most:
            continue
        outer = _outer(begin, end)
        if symmetric:
            order = np.argsort(np.abs(outer), kind="stable")
            hi = abs(outer[order][_last_kept(counts[order], most)])
            lo = -hi
        else:
            hi, lo = outer[_last_kept(counts, most)], outer[::-1][_last_kept(counts[::-1], most)]
        found[:, line] = max(lo, bins.lo[line]), min(hi, bins.hi[line])
    return found


def _last_kept(counts, most):
    """Return the first index beyond which there are no more than `most` values."""
    beyond = int(counts.sum()) - np.cumsum(counts)
    return int(np.argmax(beyond <= most))


def entropy_ranges(bins, cells, symmetric):
    """Return (lo, hi) of each line, float32: of the ranges that are tried the one of the least relative entropy."""
    bins, found = fold(bins, COARSE), np.zeros((2, len(bins.counts)), FLOAT32)
    for line, parts in enumerate(_lines(bins)):
        if not len(parts[0]):
            continue
        lo, hi = (float(a[line]) for a in (bins.lo, bins.hi))
        limits = _limits(*parts, max(-lo, hi))
        if not symmetric:
            lo, hi = min(lo, 0), max(hi, 0)
            ranges = np.stack([np.maximum(-limits, lo), np.minimum(limits, hi)])
        else:
            ranges = np.stack([-limits, limits])
        parts = [np.ascontiguousarray(part, np.float64) for part in parts]
        found[:, line] = ranges[:, np.argmin(histograms.divergences(*parts, cells, *ranges))]
    return np.maximum(found[0], bins.lo), np.minimum(found[1], bins.hi)


def _limits(begin, end, counts, largest):
    """Return the largest magnitudes to try, descending: no more than half of the values lie beyond."""
    outer = np.abs(_outer(begin, end))
    order = np.argsort(outer, kind="stable")
    least = outer[order][_last_kept(counts[order], int(counts.sum()) // 2)]
    limits = np.unique(np.minimum(outer, largest))
    return limits[limits >= min(least, largest)][::-1]


def refine(bins, codes, zero_points, scale, zero_point):
    """Turn the scale and zero_point of lines, of minmax, into those of least squares of the middles of bins."""
    for line, (begin, end, counts) in enumerate(_lines(bins)):
        at = slice(line, line + 1)
        values = np.clip((begin + end) / 2, *(float(a[line]) for a in (bins.lo, bins.hi)))[None]
        if values.size:
            weights = counts.astype(np.float64)[None]
            elementwise.refine(values, weights, values.size, codes, zero_points, scale[at], zero_point[at])
