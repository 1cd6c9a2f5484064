"""Search for the scales of GGUF's blocks, and lay blocks out. Formulas: docs/numerics.md, section 15.

Arrays are (values, groups): the values that share a scale are a column, so that sums of them are sums of rows, in their
order. Weights have the shape of the values.
"""

import ml_dtypes
import numpy as np

from ._codebook import Codebook, decode, encode

NL = Codebook([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
FP4 = Codebook([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # doubled: halves are in scales
FLOAT8 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 2  # by their bits
TRIALS = np.linspace(-1, 1, 21, dtype=np.float32)  # by how much of a step a block reaches beyond its codes, or not
NEAR = np.array([(a, b) for a in (0, -1, 1) for b in (0, -1, 1)], np.float32)


def _sums(x):
    return np.add.reduce(x, axis=0)


def _over(a, b):
    """Return a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)), np.float32), where=b != 0)


def _half(x):
    return np.float16(x).astype(np.float32)


def _uniform(low, high):
    """Return a function that rounds numbers to the nearest integer from low to high."""
    return lambda v: np.clip(np.rint(v, out=v), low, high, out=v)


def _of_book(book):
    return lambda v: decode(encode(v, book), book)


def _loss(x, w, s, nearest, least=0):
    """Return the levels nearest to x at scales s, and the error: the weighted sum of squares."""
    level = nearest(_over(x + least, s))
    off = level * s
    off -= least
    off -= x
    off *= off
    off *= w
    return level, _sums(off)


def _best(x, w, scales, nearest):
    """Return which of the rows of scales has the least error, the first of those that have."""
    least, best = None, np.zeros(x.shape[1], np.intp)
    for i, s in enumerate(scales):
        error = _loss(x, w, s, nearest)[1]
        least = error if i == 0 else least
        best[error < least], least = i, np.minimum(error, least)
    return best


# ---- scales that floats hold ----


def _scales(x, w, nearest, ends):
    """Return the scale of each group: the optimum for the codes of that trial whose optimum is the best.

    A trial gives the value of the largest magnitude one of the levels `ends`.
    """
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], 0)[0]
    scale, most = np.zeros_like(peak), np.zeros_like(peak)
    for end in ends:
        level = nearest(_over(x, peak / np.float32(end)))
        weighted = w * level
        product, square = _sums(weighted * x), _sums(weighted * level)
        gain = _over(product * product, square)  # by so much less than with zeros is the error
        scale, most = np.where(gain > most, _over(product, square), scale), np.maximum(gain, most)
    return scale


def _affine(x, w, top):
    """Return the scale and the least value, not above 0, of each group, whose codes are 0 to `top`, as `_scales`."""
    lo, hi = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    count, total = _sums(w), _sums(w * x)
    scale, least, error = _over(hi - lo, np.float32(top)), lo, np.full(lo.shape, np.inf, np.float32)
    nearest = _uniform(0, top)
    for trial in TRIALS:
        level = nearest(_over(x - lo, (hi - lo) / (top + trial)))
        weighted = w * level
        first, second, product = _sums(weighted), _sums(weighted * level), _sums(weighted * x)
        whole = count * second - first * first
        s, m = _over(count * product - total * first, whole), _over(second * total - first * product, whole)
        s, m = np.where(m > 0, _over(product, second), s), np.minimum(m, 0)
        loss = s * (s * second + 2 * (m * first - product)) + m * (m * count - 2 * total)
        better = (loss < error) & (whole > 0) & (s > 0)
        scale, least, error = np.where(better, s, scale), np.where(better, m, least), np.where(better, loss, error)
    return scale, least


# ---- scales that are integers times one of the whole block ----


def _integers(x, w, d, of, nearest, limits):
    """Return integers `of` (2, groups), each moved by at most 1 to where the error is least, with levels and errors.

    d (2, groups) are the factors of scales and of what is subtracted; `limits` are the least and the largest integer.
    """
    best, level, least = None, None, None
    for move in NEAR if d[1].any() else NEAR[::3]:
        tried = np.clip(of + move[:, None], *limits)
        now, loss = _loss(x, w, d[0] * tried[0], nearest, d[1] * tried[1])
        if best is None:
            best, level, least = tried, now, loss
        better = loss < least
        best, level, least = np.where(better, tried, best), np.where(better, now, level), np.minimum(loss, least)
    return best, level, least


def _factors(x, w, of, level, groups):
    """Return the factors (2, blocks) of integers that fit best with these levels: of scales, and of what is subtracted.

    They solve the equations of least squares; the second is 0 if it has no integers, or would not be positive.
    """

    def total(a):
        return a.reshape(-1, groups).sum(axis=1, dtype=np.float64)

    one, other = level * of[0], np.broadcast_to(of[1], x.shape)
    a, b, c = total(_sums(w * one * one)), total(_sums(w * one * other)), total(_sums(w * other * other))
    e, f = total(_sums(w * one * x)), total(_sums(w * other * x))
    whole = a * c - b * b
    apart = whole > 0
    d = np.where(apart, e * c - b * f, e) / np.where(apart, whole, np.where(a > 0, a, 1))
    m = np.where(apart, b * e - a * f, 0) / np.where(apart, whole, 1)
    return np.array([np.where(m < 0, e / np.where(a > 0, a, 1), d), np.maximum(m, 0)], np.float32)


def _of_blocks(x, w, wished, ends, nearest, limits, groups):
    """Return factors (2, blocks) of blocks of so many groups, their integers (2, groups), and levels.

    `wished` (2, groups) are what integers times factors should be; the largest has the integer `ends`.
    """
    peaks = wished.reshape(2, -1, groups)
    d = _half(np.take_along_axis(peaks, np.abs(peaks).argmax(axis=2)[..., None], 2)[..., 0] / np.float32(ends))
    of = np.clip(np.rint(wished * _over(1, np.repeat(d, groups, axis=1))), *limits)
    of, level, loss = _integers(x, w, np.repeat(d, groups, axis=1), of, nearest, limits)
    for _ in range(2):
        tried = _half(_factors(x, w, of, level, groups))
        moved, now, less = _integers(x, w, np.repeat(tried, groups, axis=1), of, nearest, limits)
        better = less.reshape(-1, groups).sum(axis=1) < loss.reshape(-1, groups).sum(axis=1)
        d, each = np.where(better, tried, d), np.repeat(better, groups)
        of, level, loss = (np.where(each, *pair) for pair in ((moved, of), (now, level), (less, loss)))
    return d, of, level


# ---- kinds: the bytes of blocks, of columns of values ----


def _plane(codes, run, bits):
    """Return the lowest bits of codes (blocks, values), each byte of a run holding one of each of its parts."""
    parts = (codes & (1 << bits) - 1).reshape(len(codes), -1, 8 // bits, run)
    shifted = parts << (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]
    return np.bitwise_or.reduce(shifted, axis=2).reshape(len(codes), -1)


def _rows(level, blocks, dtype=np.uint8):
    """Return levels (values, groups) as (blocks, values)."""
    return level.T.astype(dtype).reshape(blocks, -1)


def _bytes(*parts):
    """Join arrays, floats as float16, of blocks to their bytes."""
    parts = [np.float16(part)[:, None] if part.dtype == np.float32 else part for part in parts]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def _q45_k(x, w, groups, bits):
    top = (1 << bits) - 1
    scale, least = _affine(x, w, top)
    wished, limits = np.array([scale, -least]), (0, 63)
    d, of, level = _of_blocks(x, w, wished, 63, _uniform(0, top), limits, groups)
    s, m = of.astype(np.uint8).reshape(2, -1, groups)
    scales = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    codes = _rows(level, len(s))
    return _bytes(*d, *scales, *([_plane(codes >> 4, 32, 1)] if bits == 5 else []), _plane(codes, 32, 4))


def _q6_k(x, w, groups):
    nearest = _uniform(-32, 31)
    scale = _scales(x, w, nearest, np.linspace(-33, -31, 11))
    wished = np.array([scale, np.zeros_like(scale)])
    d, of, level = _of_blocks(x, w, wished, -128, nearest, (-128, 127), groups)
    codes = _rows(level + 32, d.shape[1])
    scales = of[0].astype(np.int8).reshape(-1, groups)
    return _bytes(_plane(codes, 64, 4), _plane(codes >> 4, 32, 2), scales, d[0])


def _iq4_nl(x, w, groups):
    nearest = _of_book(NL)
    scale = _scales(x, w, nearest, [*range(-137, -112, 4), *range(105, 126, 4)])
    again = nearest(_over(x, scale))
    fitted = _over(_sums(w * again * x), _sums(w * again * again))
    tried = np.array([_half(scale), _half(fitted)])
    d = np.take_along_axis(tried, _best(x, w, tried, nearest)[None], 0)[0]
    return _bytes(d, _plane(_rows(encode(_over(x, d), NL), len(d)), 16, 4))


def _fp4(x, w, groups, first, moves, values):
    """Return bytes of scales, and codes: those of the bytes near `first` whose `values` have the least error."""
    tried = np.clip(first + np.array(moves)[:, None], 0, len(values) - 1)
    number = np.take_along_axis(tried, _best(x, w, values[tried], _of_book(FP4))[None], 0)[0]
    codes = encode(_over(x, values[number]), FP4)
    return number.astype(np.uint8).reshape(-1, groups), codes


def _mxfp4(x, w, groups):
    values = np.ldexp(np.float32(1), np.arange(255) - 128).astype(np.float32)
    largest = np.abs(x).max(axis=0)
    exponent = np.where(largest > 0, np.frexp(largest)[1], -124)  # 2**(exponent - 1) <= largest
    scales, codes = _fp4(x, w, groups, np.maximum(exponent + 124, 0), (0, 1), values)
    return _bytes(scales, _plane(_rows(codes, len(scales)), 16, 4))


def _nvfp4(x, w, groups):
    first = np.abs(x).max(axis=0) / np.float32(12)
    first = np.searchsorted((FLOAT8[1:] + FLOAT8[:-1]) / 2, first)
    scales, codes = _fp4(x, w, groups, first, (0, -1, 1, -2, 2, 3, 4, 5, 6), FLOAT8)
    return _bytes(scales, _plane(_rows(codes, len(scales)), 8, 4))


# Of each kind a function of (x, weights, groups), and a magnitude up to which its scales surely reach.
WRITERS = {
    "Q4_K": (lambda *a: _q45_k(*a, 4), 2.0**21),
    "Q5_K": (lambda *a: _q45_k(*a, 5), 2.0**21),
    "Q6_K": (_q6_k, 2.0**27),
    "IQ4_NL": (_iq4_nl, 2.0**22),
    "MXFP4": (_mxfp4, np.inf),
    "NVFP4": (_nvfp4, 448 * 6.0),
}
