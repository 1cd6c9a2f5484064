"""Search for the scales of GGUF's blocks, and lay blocks out. Formulas: docs/numerics.md, section 15.

A kernel searches K kinds. Of the others arrays are (values, groups): the values that share a scale are a column, so
that sums of them are sums of rows, in their order. Weights have the shape of the values.
"""

import ml_dtypes
import numpy as np

from ._bind.codebooks import GGUF, search_k
from ._codebook import Codebook, decode, encode

NL = Codebook([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
FP4 = Codebook([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # doubled: halves are in scales
FLOAT8 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 2  # by their bits


def _sums(x):
    return np.add.reduce(x, axis=0)


def _over(a, b):
    """Return a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)), np.float32), where=b != 0)


def _half(x):
    return np.float16(x).astype(np.float32)


def _half_above(x):
    """Return float16 values, and of those that are subnormal and smaller than x the next ones: 0 holds nothing."""
    half = _half(x)
    short = (np.abs(half) < np.float32(2**-14)) & (np.abs(half) < np.abs(x))
    return np.where(short, half + np.copysign(np.float32(2**-24), x), half)


def _of_book(book):
    return lambda v: decode(encode(v, book), book)


def _loss(x, w, s, nearest):
    """Return the error of the levels nearest to x at scales s: the weighted sum of squares."""
    off = nearest(_over(x, s)) * s
    off -= x
    off *= off
    off *= w
    return _sums(off)


def _best(x, w, scales, nearest):
    """Return which of the rows of scales has the least error, the first of those that have."""
    least, best = None, np.zeros(x.shape[1], np.intp)
    for i, s in enumerate(scales):
        error = _loss(x, w, s, nearest)
        least = error if i == 0 else least
        best[error < least], least = i, np.minimum(error, least)
    return best


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


def _q45_k(x, w, kind):
    d, integers, codes = search_k(x, w, kind)
    s, m = integers.view(np.uint8).swapaxes(0, 1)
    scales = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    high = [_plane(codes >> 4, 32, 1)] if kind == "Q5_K" else []
    return _bytes(*d.T, *scales, *high, _plane(codes, 32, 4))


def _q6_k(x, w, kind):
    d, integers, codes = search_k(x, w, kind)
    return _bytes(_plane(codes, 64, 4), _plane(codes >> 4, 32, 2), integers[:, 0], d[:, 0])


def _iq4_nl(x, w, groups):
    nearest = _of_book(NL)
    scale = _scales(x, w, nearest, [*range(-137, -112, 4), *range(105, 126, 4)])
    again = nearest(_over(x, scale))
    fitted = _over(_sums(w * again * x), _sums(w * again * again))
    tried = np.array([_half(scale), _half(fitted), _half_above(scale)])
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


def _of_columns(write):
    """Return a function of blocks and weights, or None, for one of columns: the values that share a scale."""

    def of_blocks(x, w, kind):
        w = np.ones_like(x) if w is None else w
        group = GGUF[kind][3]
        return write(*(np.ascontiguousarray(a.reshape(-1, group).T) for a in (x, w)), x.shape[1] // group)

    return of_blocks


# Of each kind a function of (blocks, weights or None, kind), and a magnitude up to which its scales surely reach.
WRITERS = {
    "Q4_K": (_q45_k, 2.0**21),
    "Q5_K": (_q45_k, 2.0**21),
    "Q6_K": (_q6_k, 2.0**27),
    "IQ4_NL": (_of_columns(_iq4_nl), 2.0**22),
    "MXFP4": (_of_columns(_mxfp4), np.inf),
    "NVFP4": (_of_columns(_nvfp4), 448 * 6.0),
}
