"""Codebooks against their definition in exact arithmetic: the nearest level, of two as near the lower number."""

import itertools
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from common import ANY_AXES, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import qkernels as qk

SIZES = [1, 2, 3, 7, 15, 16, 17, 32, 64, 100, 255, 256]


def exact_codes(values, levels):
    """By fractions, among the two levels around each value."""
    order = np.argsort(levels, kind="stable")
    ordered = levels[order]
    codes = []
    for value in values.reshape(-1).tolist():
        at = int(np.searchsorted(ordered, value))
        near = [i for i in (at - 1, at) if 0 <= i < len(ordered)]
        codes.append(min((abs(Fraction(value) - Fraction(float(ordered[i]))), int(order[i])) for i in near)[1])
    return np.array(codes, np.uint8).reshape(values.shape)


def some_levels(kind, k, rng):
    """k different float32 numbers."""
    if kind == "uniform":
        return np.linspace(-1, 1, k, dtype=np.float32)
    if kind == "normal":
        return np.sort(rng.choice(rng.standard_normal(4 * k).astype(np.float32), k, replace=False))
    if kind == "logarithmic":  # with 0, as 8-bit float formats are
        return np.sort(np.append(0, rng.choice([-1, 1], k - 1) * 2.0 ** np.linspace(-30, 3, k - 1))).astype(np.float32)
    if kind == "far":  # neighbouring floats
        return (np.float32(1000).view(np.int32) + np.arange(k, dtype=np.int32)).view(np.float32)
    if kind == "crowded":  # more thresholds than buckets could tell apart
        return np.sort(np.concatenate([np.arange(k - k // 2), 1e5 + np.arange(k // 2) / 128])).astype(np.float32)
    if kind == "extreme":
        ends = np.float32([0, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38, -3.4028235e38, 1.5, -1])
        return np.concatenate([ends, np.float32(2) ** np.arange(-120, 120, dtype=np.float32)])[:k]
    return rng.permutation(k).astype(np.float32)


KINDS = ["uniform", "normal", "logarithmic", "far", "crowded", "extreme", "permuted"]


@np.errstate(all="ignore")
def around(levels, rng):
    """Levels, midpoints, their neighbours among floats, and others."""
    ordered = np.sort(levels).astype(np.float64)
    middle = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    near = np.concatenate([levels, middle])
    beside = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    spread = rng.uniform(-1.5, 1.5, 100) * np.abs(levels).max(initial=1e-3)
    values = np.concatenate([near, *beside, spread, [0.0, -0.0, 2.0**-149, 1e38, -1e38, 3.4028235e38]])
    return np.clip(values, -3.4028235e38, 3.4028235e38).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", SIZES)
def test_the_nearest_level(k, kind, isas):
    rng = np.random.default_rng(k)
    levels = some_levels(kind, k, rng)
    k = len(levels)
    codebook, x = qk.Codebook(levels), around(levels, rng)
    x = np.concatenate([x, rng.permutation(x)])
    expected = exact_codes(x, levels)
    for isa in isas():
        assert_array_equal(qk.encode(x, codebook), expected, err_msg=isa, strict=True)
        assert_array_equal(qk.decode(expected, codebook), levels[expected], err_msg=isa, strict=True)
        assert_array_equal(qk.encode(levels, codebook), np.arange(k), err_msg=isa)
    assert_array_equal(qk.encode(x.astype(np.float64), codebook), expected)


def test_float64_is_compared_as_it_is():
    levels = np.float32([0, 1, 1 + 2**-23])  # the last midpoint is no float32
    middle = 1 + 2.0**-24
    x = np.array([0.5, np.nextafter(0.5, 1), middle, np.nextafter(middle, 2), 1e300])
    assert_array_equal(qk.encode(x, qk.Codebook(levels)), [0, 1, 1, 2, 2])
    of_columns = qk.Codebook(np.stack([levels, levels]), axis=1)
    assert_array_equal(qk.encode(x[:4].reshape(2, 2), of_columns), [[0, 1], [1, 2]])
    assert_array_equal(qk.encode(x[:4], qk.Codebook(np.stack([levels] * 4), axis=0)), [0, 1, 1, 2])
    assert_array_equal(qk.encode(np.float64(0.75), qk.Codebook(levels)), 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_exact(dtype, isas):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # some CPUs report a signalling NaN that becomes a float32
        x = x[np.isfinite(x.astype(np.float32))]
    for codebook in qk.Codebook(np.linspace(-2, 2, 11)), qk.Codebook(np.linspace(-2, 2, 211), block_size=100):
        for _ in isas():
            got, expected = qk.encode(x, codebook), qk.encode(x.astype(np.float32), codebook)
            for a, b in zip(got, expected) if codebook.block_size else [(got, expected)]:
                assert_array_equal(a, b, strict=True)


def test_ties_and_equal_levels(isas):
    for _ in isas():
        assert_array_equal(qk.encode(np.float32([0.5, 1.5, 2.5]), qk.Codebook([0, 1, 2, 3])), [0, 1, 2])
        assert_array_equal(qk.encode(np.float32([0.5, 1.5, 2.5]), qk.Codebook([3, 2, 1, 0])), [2, 1, 0])
        equal = qk.Codebook([7, 5, 5, 5, 3])
        assert_array_equal(qk.encode(np.float32([5, 4.5, 5.5, 6, 4]), equal), [1, 1, 1, 0, 1])
        many = qk.Codebook(np.repeat(np.arange(64), 4))
        assert_array_equal(qk.encode(np.float32([5, 5.1, 4.9, 4.5]), many), [20, 20, 20, 16])


def nearest_codes(values, levels):
    """By whole numbers, among all levels: the lowest code of those that are nearest."""
    lowest = {int(Fraction(float(level)) * 2**1074): code for code, level in reversed(list(enumerate(levels)))}
    exact = [int(Fraction(float(v)) * 2**1074) for v in values.ravel()]
    return np.uint8([min((abs(v - level), code) for level, code in lowest.items())[1] for v in exact])


def hostile_levels(k, rng):
    """Few values, most of them several times: small integers, neighbouring floats, subnormal numbers and both ends."""
    near = np.float32(rng.choice([1.0, -3.5, 1e-40, 1e38, 2.0**-126]))
    ulps = (near.view(np.int32) + np.arange(-2, 3, dtype=np.int32)).view(np.float32)
    tiny, huge = [2.0**-149, -(2.0**-149), 3 * 2.0**-149, 2.0**-126], [3.4028235e38, -3.4028235e38, 3.4028233e38]
    ends = np.float32([0, -0.0, *tiny, *huge])
    kinds = [np.arange(-3, 4).astype(np.float32), ulps, ends, np.concatenate([ulps, ends])]
    return rng.choice(rng.choice(kinds[rng.integers(4)], rng.integers(1, 9)), k)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 17, 40, 256])
@np.errstate(under="ignore")  # of references
def test_of_levels_as_near_the_lowest_code_though_levels_repeat(k, isas):
    rng = np.random.default_rng(k)
    for _ in range(12 if k < 100 else 3):
        levels = hostile_levels(k, rng)
        x = around(np.unique(levels), rng)[: 150 if k < 100 else 60]
        middle = (levels[:-1].astype(np.float64) + levels[1:]) / 2
        x = np.concatenate([x, np.resize(middle, 20).astype(np.float32)]) if k > 1 else x
        expected, table = nearest_codes(x, levels), qk.Codebook(levels)
        other = rng.permutation(levels)
        beside = nearest_codes(x, other)
        for isa in isas():
            assert_array_equal(qk.encode(x, table), expected, err_msg=isa)
            channels = qk.Codebook(np.stack([levels, other]), axis=0)
            assert_array_equal(qk.encode(np.stack([x, x]), channels), [expected, beside], err_msg=isa)
            columns = qk.Codebook(channels.levels, axis=1)
            assert_array_equal(qk.encode(np.stack([x, x], axis=1), columns).T, [expected, beside])
        wide = np.concatenate([x, middle, x * (1 + 2.0**-40)])
        assert_array_equal(qk.encode(wide, table), nearest_codes(wide, levels))
        for dtype in np.float16, ml_dtypes.bfloat16:
            with np.errstate(over="ignore"):
                short = x.astype(dtype)
            short = short[np.isfinite(short.astype(np.float32))]
            assert_array_equal(qk.encode(short, table), nearest_codes(short, levels))


@pytest.mark.parametrize(
    "levels",
    [[0, 1, 0], [1, 0, 1, 0, -1, -0.0], np.repeat([-1.0, 0.5, 1], 7), np.tile([1, -1, 0.25], 30), qk.FP4.levels],
)
@pytest.mark.parametrize("axis, size", [(None, 16), (None, 3), (0, 4), (1, 32)])
def test_of_levels_as_near_the_lowest_code_in_blocks(levels, axis, size, isas):
    codebook = qk.Codebook(levels, axis=axis, block_size=size)
    x = np.random.default_rng(size).integers(-96, 97, (36, 40)).astype(np.float32)
    x[::2, ::3], x[:, 5] = 96, 0
    expected, scales, each = exact_blocks(x, codebook)
    values = x * (1 / np.maximum(each, np.float32(2.0**-126)))
    assert_array_equal(expected.ravel(), nearest_codes(values, codebook.levels))
    for _ in isas():
        codes, got = qk.encode(x, codebook)
        assert_array_equal(codes, expected)
        assert_array_equal(got, scales)


def test_fp4_codes_a_tie_of_0_as_0(isas):
    """The least level is 1/16 of 12; bitsandbytes gives 0, too."""
    x = np.float32([12, 1 / 32, -1 / 32, np.nextafter(np.float32(1 / 32), 1)])
    for _ in isas():
        assert_array_equal(qk.encode(x, qk.FP4)[0], [3, 0, 0, 1])


# ---- blocks and channels ----


def exact_blocks(x, codebook):
    """Codes, scales and the scale of each value, as docs/numerics.md has it."""
    axis, size = codebook.axis, codebook.block_size
    lines = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, -1)
    blocks = range(0, lines.shape[-1], size)
    parts = [np.abs(lines[..., start : start + size]).max(axis=-1, keepdims=True) for start in blocks]
    scales = np.concatenate(parts, axis=-1) if parts else np.empty((*lines.shape[:-1], 0), np.float32)
    each = np.repeat(scales, size, axis=-1)[..., : lines.shape[-1]]
    codes = qk.encode(lines * (1 / np.maximum(each, np.float32(2.0**-126))), qk.Codebook(codebook.levels))
    if axis is None:
        return codes.reshape(x.shape), scales.reshape(-1), each.reshape(x.shape)
    return tuple(np.moveaxis(a, -1, axis) for a in (codes, scales, each))


@settings(max_examples=100)
@given(data=st.data())
def test_blocks(data, isas):
    shape = tuple(data.draw(st.lists(st.integers(1, 20), max_size=2)))
    axis = data.draw(st.none() | st.integers(0, len(shape)))
    shape = (*shape[: axis or 0], data.draw(st.integers(0, 600)), *shape[axis or 0 :])
    size = data.draw(st.sampled_from([1, 3, 16, 32, 48, 64, 96, 128, 250, 1000]))
    uniform, cubic = np.linspace(-1, 1, 33), np.linspace(-1, 0.9, 255) ** 3
    levels = data.draw(st.sampled_from([qk.NF4.levels, qk.FP4.levels, uniform, cubic]))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)
    codebook = qk.Codebook(levels, axis=None if axis is None else axis - len(shape), block_size=size)
    codes, scales, each = exact_blocks(x, codebook)
    for isa in isas():
        got_codes, got_scales = qk.encode(x, codebook)
        assert_array_equal(got_codes, codes, err_msg=isa, strict=True)
        assert_array_equal(got_scales, scales, err_msg=isa, strict=True)
        assert_array_equal(qk.decode(codes, codebook, scales), codebook.levels[codes] * each, err_msg=isa, strict=True)


@pytest.mark.parametrize("k", [3, 16, 40])
def test_channels(k, isas):
    rng = np.random.default_rng(k)
    of_three_axes = ((3, 20, 4), 1), ((2, 3, 70), 1), ((130, 17, 3), 1), ((2, 2, 2), 0)
    for shape, axis in ((5, 300), 0), ((300, 5), 1), ((70, 37), -1), *of_three_axes:
        levels = rng.standard_normal((shape[axis], k)).astype(np.float32)
        x, codebook = rng.standard_normal(shape).astype(np.float32), qk.Codebook(levels, axis=axis)
        lines = [qk.encode(line, qk.Codebook(table)) for line, table in zip(np.moveaxis(x, axis, 0), levels)]
        codes = np.moveaxis(np.stack(lines), 0, axis)
        values = np.moveaxis(np.stack([table[line] for line, table in zip(lines, levels)]), 0, axis)
        for isa in isas():
            assert_array_equal(qk.encode(x, codebook), codes, err_msg=isa)
            assert_array_equal(qk.encode(x.astype(np.float64), codebook), codes, err_msg=isa)
            assert_array_equal(qk.decode(codes, codebook), values, err_msg=isa, strict=True)


def test_threads_change_nothing(everywhere):
    x = np.random.default_rng(0).standard_normal((96, 3001)).astype(np.float32)
    tables = np.linspace(-2, 2, 96 * 16).reshape(96, 16)
    codebooks = [
        qk.NF4,
        qk.Codebook(np.linspace(-3, 3, 256)),
        qk.Codebook(qk.NF4.levels, axis=1, block_size=64),
        qk.Codebook(qk.NF4.levels, axis=0, block_size=32),
        qk.Codebook(np.linspace(-1, 1, 40), block_size=50_000),
        qk.Codebook(tables, axis=0),
        qk.Codebook(np.linspace(-3, 3, 3001 * 2).reshape(3001, 2), axis=1),
    ]
    for codebook in codebooks:
        encoded = everywhere(lambda: qk.encode(x, codebook))
        codes, *scales = encoded if codebook.block_size else (encoded,)
        everywhere(lambda: qk.decode(codes, codebook, *scales))


def test_blocks_of_zeros_and_of_tiny_and_huge_values(isas):
    tiny, huge = np.float32(2.0**-149), np.float32(3.4028235e38)
    x = np.zeros((4, 64), np.float32)
    x[1, :2], x[2, :2], x[3, :2] = [tiny, -tiny], [huge, -huge], [2.0**-126, -(2.0**-127)]
    for _ in isas():
        codes, scales = qk.encode(x, qk.NF4)
        assert_array_equal(scales, [0, tiny, huge, np.float32(2.0**-126)])
        assert_array_equal(codes[0], 7)
        assert_array_equal(codes[1:, :2], [[7, 7], [15, 0], [15, 2]])
        y = qk.decode(codes, qk.NF4, scales)
        assert not y[:2].any()
        assert_array_equal(y[2, :2], x[2, :2])


@pytest.mark.parametrize("place", ANY_AXES)
def test_any_array(place):
    place = ANY_AXES[place]
    x = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    for codebook in qk.NF4, qk.Codebook([-1, 0, 1]), qk.Codebook(np.tile(np.float32([-1, 0, 2]), (12, 1)), axis=0):
        encoded = qk.encode(x, codebook)
        codes, *scales = encoded if codebook.block_size else (encoded,)
        y = qk.decode(codes, codebook, *scales)
        got = qk.encode(place(x), codebook)
        assert_array_equal(got[0] if codebook.block_size else got, codes)
        codes = place(codes)
        out = np.empty(x.shape, np.float32)
        assert qk.decode(codes, codebook, *[s.astype(">f4") for s in scales], out=out) is out
        assert_array_equal(out, y)
    assert qk.encode(np.float32(0.4), qk.Codebook([0, 1])).shape == ()
    assert qk.encode(np.empty((0, 3), np.float32), qk.Codebook([0, 1])).shape == (0, 3)
    assert [a.shape for a in qk.encode(np.empty((0, 3), np.float32), qk.NF4)] == [(0, 3), (0,)]
    blocks = qk.Codebook([1, 2], axis=1, block_size=4)
    assert qk.decode(np.empty((2, 0), np.uint8), blocks, np.empty((2, 0), np.float32)).shape == (2, 0)


# ---- the class ----


def test_codebook_is_a_value():
    books = [
        qk.Codebook([-1, 0, 2]),
        qk.Codebook([-1, 0, 3]),
        qk.Codebook([-1, 0, 2], block_size=2),
        qk.Codebook([[-1, 0, 2]], axis=0),
        qk.Codebook([-1, 0, 2], axis=0, block_size=2),
        qk.Codebook([[-1, 0, 2]], vector=True),
        qk.Codebook(np.zeros((2, 3, 4)), vector=True),
    ]
    for book, other in itertools.product(books, repeat=2):
        assert (book == other) == (book is other)
    for book in books:
        qk_encode_first = book.vector or book._levels  # tables are not part of the value
        copy = pickle.loads(pickle.dumps(book))
        assert copy == book and hash(copy) == hash(book) and repr(copy) == repr(book) and qk_encode_first
        assert not book.levels.flags.writeable and book.levels.dtype == np.float32
        with pytest.raises(ValueError):
            book.levels.setflags(write=True)
        for name in "levels", "axis", "k", "other":
            with pytest.raises(AttributeError):
                setattr(book, name, 1)
    assert [book.k for book in books] == [3, 3, 3, 3, 3, 1, 3]
    assert books[0] != [-1, 0, 2]
    assert repr(books[2]) == "Codebook([-1, 0, 2], block_size=2)"
    assert repr(qk.NF4) == "Codebook(<16 levels>, block_size=64)"
    given = np.float32([1, 2])
    book, slotted = qk.Codebook(given), type("Slotted", (qk.Codebook,), {"__slots__": ("more",)})(given)
    given[0] = 5
    assert book.levels[0] == slotted.levels[0] == 1
    assert book == slotted == qk.pack(np.uint8([[0], [1]]), slotted).params


X, CODES = np.float32([0.1, -2, 0.7]), np.uint8([0, 1, 1])
FLAT, BLOCKS, ROWS = qk.Codebook([-1, 1]), qk.Codebook([-1, 1], block_size=2), qk.Codebook([[-1, 1], [0, 2]], axis=0)
SCALES = np.float32([1, 2])


@refusals(r"""
qk.Codebook("no")  # TypeError: levels must be an array of floats, got 'no'
qk.Codebook([])  # ValueError: levels must number from 1 to 256, got shape \(0,\)
qk.Codebook(np.zeros(257))  # ValueError: levels must number from 1 to 256, got shape \(257,\)
qk.Codebook(np.zeros((0, 3)), axis=0)  # ValueError: levels must number
qk.Codebook([1, np.nan])  # ValueError: levels must be finite in float32, got nan
qk.Codebook([1, 1e39])  # ValueError: levels must be finite in float32, got 1e\+39
qk.Codebook(1.0)  # ValueError: levels must have shape \(k,\) .* got \(\)
qk.Codebook([1, 2], axis=0)  # ValueError: levels must have shape \(channels, k\) .* got \(2,\)
qk.Codebook([[1, 2]])  # ValueError: levels must have shape \(k,\) .* got \(1, 2\)
qk.Codebook([[1, 2]], axis=0, block_size=2)  # ValueError: levels must have shape \(k,\) .* got \(1, 2\)
qk.Codebook([1, 2], vector=True)  # ValueError: levels must have shape \(k, d\) or \(m, k, d\) .* got \(2,\)
qk.Codebook([[1, 2]], vector=True, axis=0)  # ValueError: vector=True takes the last axis and no blocks, got axis=0
qk.Codebook([1, 2], vector=1)  # TypeError: vector must be True or False, got 1
qk.Codebook([1, 2], block_size=0)  # ValueError: block_size must be at least 1 and fit 64 bits, got 0
qk.Codebook([1, 2], block_size=2.0)  # TypeError: block_size must be an integer or None, got 2.0
qk.Codebook([[1, 2]], axis=64)  # ValueError: axis must be within \[-64, 63\], got 64
qk.encode([1, 2], FLAT)  # TypeError: x must be float32, float64, float16 or bfloat16, got int64
qk.encode(X, [1, 2])  # TypeError: codebook must be a Codebook, got list
qk.encode(X, ROWS)  # ValueError: x must have 2 entries along axis 0, .* got shape \(3,\)
qk.encode(X, qk.Codebook([[1, 2]], axis=1))  # ValueError: codebook: axis 1 is out of range for x with shape \(3,\)
qk.encode(np.float32([[1, np.nan]]), FLAT)  # ValueError: x has 1 NaN or infinite values, the first at \(0, 1\)
qk.encode(np.float32([1, np.inf, np.nan]), BLOCKS)  # ValueError: x has 2 NaN or infinite values, the first at \(1,\)
qk.encode(np.float64([1, -np.inf]), FLAT)  # ValueError: x has 1 NaN or infinite values, the first at \(1,\)
qk.encode(np.float32([[1], [np.nan]]), ROWS)  # ValueError: x has 1 NaN or infinite values, the first at \(1, 0\)
qk.encode(np.float64([1, 1e39]), BLOCKS)  # ValueError: x spans \[1.0, 1e\+39\], beyond the range of float32
qk.decode([0, 1], FLAT)  # TypeError: codes must be uint8, got int64
qk.decode(np.uint8([0, 1, 2]), FLAT, out=out)  # ValueError: codes must be below 2, the number of levels, got 2
qk.decode(np.uint8([[0], [255]]), ROWS)  # ValueError: codes must be below 2, the number of levels, got 255
qk.decode(CODES, FLAT, SCALES, out=out)  # ValueError: scales must be None for a codebook without block_size
qk.decode(CODES, BLOCKS, out=out)  # ValueError: scales are needed for a codebook with block_size=2
qk.decode(CODES, BLOCKS, SCALES[:1], out=out)
    # ValueError: scales must have shape \(2,\) for codes with shape \(3,\), got \(1,\)
qk.decode(CODES, BLOCKS, [1, 2], out=out)  # TypeError: scales must be floats, those of encode, got int64
qk.decode(CODES, BLOCKS, np.array([1, 1e39]), out=out)  # ValueError: scales must be finite in float32, got 1e\+39
qk.decode(CODES[:2], FLAT, out=out)  # ValueError: out must have shape \(2,\), got \(3,\)
qk.decode(CODES, FLAT, out=out.astype(np.float64))  # TypeError: out must have dtype float32, got float64
qk.decode(out.view(np.uint8)[:3], FLAT, out=out)  # ValueError: out must not overlap codes
qk.decode(CODES, BLOCKS, out[:2], out=out)  # ValueError: out must not overlap scales
qk.to_gguf(X, "Q8_0")  # ValueError: the last axis of x must be a multiple of 32, got shape \(3,\)
qk.to_gguf(X, "Q4_1")  # ValueError: kind must be one of 'Q8_0', 'Q4_0', .*, got 'Q4_1'
qk.to_gguf(CODES, "Q4_0")  # TypeError: x must be float32, float64, float16 or bfloat16, got uint8
qk.to_gguf(np.full(32, np.inf, np.float32), "Q4_0")  # ValueError: x has 32 NaN or infinite values
qk.to_gguf(np.full(32, 1e7, np.float32), "Q8_0")
    # ValueError: x reaches 10000000.0 in magnitude, .* beyond the range of float16
qk.from_gguf(X, "Q8_0")  # TypeError: data must be uint8, got float32
qk.from_gguf(np.zeros(33, np.uint8), "Q8_0")  # ValueError: a multiple of 34 bytes for Q8_0, got shape \(33,\)
qk.from_gguf(np.zeros(34, np.uint8), "Q8_0", out=out)  # ValueError: out must have shape \(32,\), got \(3,\)
qk.Codebook.fit(X, 0)  # ValueError: k must be from 1 to 256, got 0
qk.Codebook.fit(X, 257)  # ValueError: k must be from 1 to 256, got 257
qk.Codebook.fit(X, 2.0)  # TypeError: k must be an integer, got 2.0
qk.Codebook.fit(X[:0], 2)  # ValueError: x must not be empty, got shape \(0,\)
qk.Codebook.fit(CODES, 2)  # TypeError: x must be float32
qk.Codebook.fit(np.float32([1, np.nan]), 2)  # ValueError: x has 1 NaN or infinite values
qk.Codebook.fit(X, 2, axis=1)  # ValueError: axis 1 is out of range
qk.Codebook.fit([1.0, 1e39], 2, block_size=2)  # ValueError: x spans \[1.0, 1e\+39\], beyond the range of float32
qk.Codebook.fit(X, 2, zero=1)  # TypeError: zero must be True or False, got 1
qk.Codebook.fit(X, 2, weights=[1, 2])  # ValueError: weights must broadcast to the shape of x \(3,\), got \(2,\)
qk.Codebook.fit(X, 2, weights=[1, 2, -1])  # ValueError: weights must not be negative, got -1
qk.Codebook.fit(X, 2, weights=0)  # ValueError: weights must not all be 0
qk.Codebook.fit(X, 2, weights=[1, 2, np.inf])  # ValueError: weights has 1 NaN or infinite values
qk.Codebook.fit(X, 2, weights="a")  # TypeError: weights must be real numbers
""")
def test_bad_calls(refusal):
    out = np.full(3, 42, np.float32)
    refuse(refusal, globals() | {"out": out})
    assert_array_equal(out, 42)


# ---- fit ----


def loss(x, weights, levels):
    nearest = np.abs(np.subtract.outer(x.astype(np.float64), levels.astype(np.float64))).min(axis=-1)
    return np.sum(weights * nearest**2)


def brute_force(x, weights, k, zero):
    """The least loss over all divisions of the sorted values into cells, one of which may have its level at 0."""
    order = np.argsort(x)
    x, weights, best = x[order].astype(np.float64), weights[order], np.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), k - 1):
        ends = [0, *cuts, len(x)]
        cells = [(x[a:b], weights[a:b]) for a, b in zip(ends, ends[1:])]
        own = [loss(v, w, np.array([np.average(v, weights=w)])) if w.sum() > 0 else 0.0 for v, w in cells]
        pinned = [np.sum(w * v**2) for v, w in cells]
        best = min([best, sum(own)] if not zero else [best, *(sum(own) - own[i] + pinned[i] for i in range(k))])
    return best


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.sampled_from([0, 0.5, -3, 100]))
def test_fit_is_the_optimum(seed, n, k, zero, centre):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) + centre).astype(np.float32)
    if seed % 3 == 0:
        x = np.round(2 * x) / 2
    weights = rng.uniform(0, 1, n) * (rng.uniform(size=n) > 0.2) if seed % 2 else np.ones(n)
    if not weights.any():
        weights[0] = 1
    codebook = qk.Codebook.fit(x, k, weights=weights, zero=zero)
    assert codebook.levels.shape == (k,) and np.all(np.diff(codebook.levels) >= 0)
    assert not zero or 0 in codebook.levels
    best, scale = brute_force(x, weights, k, zero), np.sum(weights * x.astype(np.float64) ** 2)
    assert loss(x, weights, codebook.levels) <= best * (1 + 1e-9) + 1e-13 * scale  # levels are rounded to float32


def test_fit_of_many_with_zero():
    """Against the optimum without it, whose level nearest to 0 is moved there, and between k - 1 and k levels."""
    rng = np.random.default_rng(0)
    for x in rng.standard_normal(20_000), rng.laplace(size=20_000) + 0.5, np.abs(rng.standard_normal(20_000)):
        x = x.astype(np.float32)
        for k in 4, 16, 100:
            free, pinned = qk.Codebook.fit(x, k).levels, qk.Codebook.fit(x, k, zero=True).levels
            moved = np.where(np.abs(free) == np.abs(free).min(), np.float32(0), free)
            assert np.count_nonzero(pinned == 0) == 1
            assert loss(x, 1, free) <= loss(x, 1, pinned) * (1 + 1e-9)
            assert loss(x, 1, pinned) <= loss(x, 1, moved)
            assert loss(x, 1, pinned) <= loss(x, 1, qk.Codebook.fit(x, k - 1).levels)


def test_fit_of_channels_and_blocks():
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((6, 130)).astype(np.float32), rng.uniform(size=(6, 1))
    for zero in False, True:
        for axis in 0, -1:
            codebook = qk.Codebook.fit(x, 5, axis=axis, weights=weights, zero=zero)
            lines, line_weights = np.moveaxis(x, axis, 0), np.moveaxis(np.broadcast_to(weights, x.shape), axis, 0)
            for i in range(6):
                alone = qk.Codebook.fit(lines[i], 5, weights=line_weights[i], zero=zero)
                assert_array_equal(codebook.levels[i], alone.levels)
            assert codebook.axis == axis and codebook.block_size is None
        for axis in None, 0, 1:
            codebook = qk.Codebook.fit(x, 5, axis=axis, block_size=4, zero=zero)
            one = qk.Codebook(np.float32([-1, 1]), axis=axis, block_size=4)
            scales = qk.decode(np.ones(x.shape, np.uint8), one, qk.encode(x, one)[1])
            assert_array_equal(codebook.levels, qk.Codebook.fit(x * (1 / scales), 5, zero=zero).levels)
            assert codebook == qk.Codebook(codebook.levels, axis=axis, block_size=4)
    few = qk.Codebook.fit(np.float32([3, 1, 1]), 4)
    assert_array_equal(few.levels, [1, 3, 3, 3])
    assert_array_equal(qk.Codebook.fit(np.float32([3, -1, 0]), 5, zero=True).levels, [-1, 0, 3, 3, 3])
    assert_array_equal(qk.Codebook.fit(x.astype(np.float64), 4).levels, qk.Codebook.fit(x, 4).levels)


@pytest.mark.parametrize("zero", [False, True])
def test_channels_whose_weights_are_all_0_are_fitted_without(zero):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((40, 3)).astype(np.float32), rng.uniform(size=(40, 3))
    weights[:, 1] = 0
    found = qk.Codebook.fit(x, 4, axis=1, weights=weights, zero=zero)
    assert_array_equal(found.levels[1], qk.Codebook.fit(x[:, 1], 4, zero=zero).levels)
    assert_array_equal(found.levels[2], qk.Codebook.fit(x[:, 2], 4, weights=weights[:, 2], zero=zero).levels)


def test_fit_beats_nf4_on_its_own_ground():
    x = np.random.default_rng(0).standard_normal(64 * 500).astype(np.float32)
    fitted = qk.Codebook.fit(x, 16, block_size=64, zero=True)

    def error(book):
        codes, scales = qk.encode(x, book)
        return np.mean((qk.decode(codes, book, scales) - x) ** 2)

    assert error(fitted) < 0.95 * error(qk.NF4)


def test_lists_are_arrays():
    assert_array_equal(qk.encode([-5.0, 0.4, 0.5, 1.1], qk.Codebook([-1, 0, 1])), [0, 1, 1, 2])
    codes, scales = qk.encode([1.0, 2.0, -4.0], qk.Codebook([-1, 0, 0.5, 1], axis=-1, block_size=2))
    assert_array_equal(codes, [2, 3, 0])
    assert_array_equal(scales, [2, 4])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_block_longer_than_the_data_is_one_block(axis):
    x = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    whole = x.size if axis is None else x.shape[axis]
    fits = [qk.Codebook.fit(x, 4, axis=axis, block_size=size) for size in (whole, 2**40, 2**63 - 1)]
    for longer in fits[1:]:
        assert_array_equal(longer.levels, fits[0].levels)
        for a, b in zip(qk.encode(x, longer), qk.encode(x, fits[0])):
            assert_array_equal(a, b)
