"""Make the tables by which C looks values up in a codebook. Formulas: docs/numerics.md, sections 15 and 19."""

import numpy as np

from ._bind import codebooks


def thresholds_of(levels, dtype):
    """Return the code of each rank of levels (channels, k), and the largest floats that belong to the rank before.

    The code is the lowest of equal levels.
    """
    order = np.argsort(levels, axis=1, kind="stable").astype(np.uint8)
    ranked = np.take_along_axis(levels, order, axis=1).astype(np.float64)
    low, high = ranked[:, :-1], ranked[:, 1:]
    rises = np.where(low < high, np.arange(1, low.shape[1] + 1), 0)
    first = np.maximum.accumulate(rises, axis=1)  # rank of the first equal level
    order[:, 1:] = np.take_along_axis(order, first, axis=1)
    total = low + high
    rest = (low - (total - (total - low))) + (high - (total - low))  # total + rest is the sum itself
    middle = total / 2
    upward = order[:, :-1] > order[:, 1:]  # ties go to the lower code, which is that of the first of equal levels
    near = middle.astype(dtype)
    beyond = (near > middle) | ((near == middle) & ((rest < 0) | ((rest == 0) & upward)))
    return order, np.where(beyond, np.nextafter(near, dtype(-np.inf)), near) + dtype(0)


def tables_of(levels):
    """Return the tables of levels (channels, k), which are contiguous."""
    buckets = None
    if len(levels) == 1 and levels.shape[1] > 16:
        buckets = _buckets(thresholds_of(levels, np.float32)[1][0])
    return codebooks.Levels(levels, buckets)


def moves_of(levels):
    """Return what stochastic codes ask of levels (channels, k), in tables of 16 entries, or k if that is more.

    Of each code: its level; on each side, below first, 2**16 over the difference to the next level, 0 if there is none
    and NaN if it is no ordinary number, as float32 (channels, 2, entries); and the lowest code of that level, or the
    same.
    """
    channels, k = levels.shape
    ranks = np.arange(k)
    order = np.argsort(levels, axis=1, kind="stable")
    ranked = np.take_along_axis(levels, order, axis=1).astype(np.float64)
    rises = ranked[:, 1:] > ranked[:, :-1]
    first, after = np.zeros_like(order), np.full_like(order, k)  # ranks of the first equal level, of the next one
    first[:, 1:] = np.maximum.accumulate(np.where(rises, ranks[1:], 0), axis=1)
    after[:, :-1] = np.minimum.accumulate(np.where(rises, ranks[1:], k)[:, ::-1], axis=1)[:, ::-1]
    lower = np.take_along_axis(first, np.maximum(first - 1, 0), axis=1)
    beside = np.stack([np.where(first > 0, lower, ranks), np.where(after < k, after, ranks)], axis=1)
    difference = np.take_along_axis(ranked[:, None], beside, axis=2) - ranked[:, None]
    ordinary = (np.abs(difference) >= 2.0**-100) & (np.abs(difference) <= 2.0**127)
    factor = np.where(ordinary, 2.0**16 / np.where(ordinary, difference, 1), np.where(difference != 0, np.nan, 0))
    shape, at = (channels, 2, max(k, 16)), order[:, None].repeat(2, axis=1)
    level, per_distance, codes = (
        np.zeros(shape[::2], np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.uint8),
    )
    level[:, :k] = levels
    np.put_along_axis(per_distance, at, factor.astype(np.float32), axis=2)
    np.put_along_axis(codes, at, np.take_along_axis(at, beside, axis=2).astype(np.uint8), axis=2)
    return level, per_distance, codes


def exponents_of(levels):
    """Return the exponents of the powers of two by which the levels of each group are divided.

    Squares then do not overflow, and few underflow (numerics 19).
    """
    exponents = np.frexp(np.abs(levels).max(axis=(-2, -1)).reshape(-1))[1]
    return np.where((exponents >= -20) & (exponents <= 30), 0, exponents)


def vector_tables_of(levels):
    """Return the tables of levels (k, d) or (m, k, d)."""
    shared = levels.ndim == 2
    levels = levels[None] if shared else levels
    exponents = exponents_of(levels)
    shift = np.repeat(-exponents, levels.shape[-1] if len(levels) > 1 else 1) if exponents.any() else None
    scaled = np.ldexp(levels, -exponents[:, None, None])
    scaled = np.pad(scaled, ((0, 0), (0, 1), (0, 0)), constant_values=np.inf)
    return codebooks.VectorLevels(levels, np.ascontiguousarray(levels.transpose(0, 2, 1)), scaled, shared, shift)


MAX_BUCKETS = 2048  # for each sign; fewer than 1,000 serve most codebooks


def _buckets(thresholds):
    """Return (entries, least, last, shift) of buckets with at most one threshold each, else two, or None."""
    bits = thresholds.view(np.int32)
    magnitude, negative = (bits & 0x7FFFFFFF).astype(np.int64), bits < 0
    for most in 1, 2:
        following = [np.sort(magnitude[side])[most : most + 1] for side in (negative, ~negative)]
        following = int(np.concatenate(following).min(initial=2**31 - 1))
        for shift in range(24, 8, -1):
            least = max(following - (1 << shift), 0)  # so the first bucket ends before it has too many
            last = max(int(magnitude.max()) - least, 0) >> shift
            which = (np.maximum(magnitude - least, 0) >> shift) + negative * (last + 1)
            if last < MAX_BUCKETS and np.bincount(which).max() <= most:
                return _bucket_entries(bits, which, least, last, shift, most), least, last, shift
    return None


def _bucket_entries(bits, which, least, last, shift, most):
    wide = bits.astype(np.int64)
    ordered = np.where(wide < 0, ~wide, wide | 0x80000000)
    step = np.arange(last + 2, dtype=np.int64)
    begin = np.where(step == 0, 0, least + (step << shift))  # magnitudes; the last bucket has no end
    end = np.append(begin[1:-1], 0x80000000)
    first = np.concatenate([0x80000000 + begin[:-1], 0x80000000 - end])  # the lowest value of each bucket
    entries = np.zeros((most, first.size), np.uint64)
    entries[0] = np.searchsorted(ordered, first) << 32
    again = np.append(False, which[1:] == which[:-1]).astype(int)
    entries[again, which] |= (0xFFFFFFFF - ordered).astype(np.uint64)
    return entries
