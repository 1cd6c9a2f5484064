"""QParams as a value, and the laws of parameters that are chosen from data (docs/numerics.md, sections 1 and 2)."""

import _thread
import copy
import pickle
import signal
import threading
import time
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from common import FLOAT_CODES, FLOATS, INT_CODES, refusals, refuse
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import qkernels as qk

TINY, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
E5M2 = ml_dtypes.float8_e5m2

# ---- QParams ----


RANGES = [(-128, 127), (0, 255), (-32768, 32767), (0, 65535), (-8, 7), (0, 15), (-2, 1), (0, 3)]
RANGES += [(-448, 448), (-57344, 57344), (-7.5, 7.5), (-28, 28), (-6, 6)]


@pytest.mark.parametrize(("dtype", "qmin", "qmax"), [(t, *ends) for t, ends in zip(INT_CODES + FLOAT_CODES, RANGES)])
def test_range_of_codes(dtype, qmin, qmax):
    params = qk.QParams(0.5, dtype=dtype)
    assert (params.qmin, params.qmax) == (qmin, qmax)
    assert params.dtype == qk.QParams(0.5, dtype=params.dtype).dtype
    if dtype in INT_CODES:
        narrow = qk.QParams(0.5, qmin + 1, dtype, narrow_range=True)
        assert (narrow.qmin, narrow.qmax) == (qmin + 1, qmax)


def test_fields():
    one = qk.QParams(0.1)
    assert (one.scale, one.zero_point, one.dtype, one.axis, one.block_size) == (np.float32(0.1), 0, np.int8, None, None)
    assert one.scale.dtype == np.float32 and one.zero_point.dtype == np.int32
    rows = qk.QParams([0.1, 2], [3, 4], "uint4", axis=-1)
    assert_array_equal(rows.scale, np.float32([0.1, 2]), strict=True)
    assert_array_equal(rows.zero_point, np.int32([3, 4]), strict=True)
    assert (rows.dtype, rows.axis, rows.block_size) == (ml_dtypes.uint4, -1, None)
    blocks = qk.QParams(np.ones((2, 3), ml_dtypes.bfloat16), dtype=np.int16, axis=np.int64(0), block_size=np.int8(5))
    assert (blocks.scale.shape, blocks.zero_point.shape, blocks.axis, blocks.block_size) == ((2, 3), (2, 3), 0, 5)
    assert type(blocks.axis) is type(blocks.block_size) is int


def test_scales_at_the_ends_are_kept():
    for scale in TINY, LARGEST, np.float32(TINY), np.longdouble(TINY):
        assert qk.QParams(scale).scale == np.float32(scale)


def test_frozen():
    scale, zero_point = np.float32([1, 2]), np.int32([3, 4])
    params = qk.QParams(scale, zero_point, axis=0)
    for name in "scale", "zero_point", "dtype", "axis", "block_size", "qmin", "qmax", "other":
        with pytest.raises(AttributeError):
            setattr(params, name, 1)
    for array in params.scale, params.zero_point:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
    scale[:], zero_point[:] = 7, 8  # what it was made from is not what it holds
    assert_array_equal(params.scale, [1, 2])
    assert_array_equal(params.zero_point, [3, 4])


DIFFERENT = [
    qk.QParams(0.5),
    qk.QParams(0.25),
    qk.QParams(0.5, 1),
    qk.QParams(0.5, dtype="uint8"),
    qk.QParams(0.5, dtype="int16"),
    qk.QParams(0.5, dtype="float8_e4m3fn"),
    qk.QParams(0.5, dtype="float8_e5m2"),
    qk.QParams(0.5, narrow_range=True),
    qk.QParams([0.5], axis=0),
    qk.QParams([0.5], axis=1),
    qk.QParams([0.5], axis=-1),
    qk.QParams([0.5, 0.5], axis=0),
    qk.QParams([0.5], axis=0, block_size=2),
    qk.QParams([0.5], axis=0, block_size=3),
    qk.QParams([[0.5]], axis=0, block_size=3),
    qk.QParams([0.5, 0.25], [1, 2], "uint4", axis=0, narrow_range=True),
    qk.QParams([], axis=0),
]


def test_equality_and_hash():
    for i, a in enumerate(DIFFERENT):
        for j, b in enumerate(DIFFERENT):
            assert (a == b) == (i == j) and (a != b) == (i != j)
    assert len(set(DIFFERENT + [copy.deepcopy(a) for a in DIFFERENT])) == len(DIFFERENT)
    assert qk.QParams(0.5) != 0.5
    assert qk.QParams(np.float16(0.5), np.uint8(3), np.uint8) == qk.QParams(0.5, 3, "uint8")


@pytest.mark.parametrize("params", DIFFERENT, ids=repr)
def test_pickle_and_copy(params):
    pickled = (pickle.loads(pickle.dumps(params, p)) for p in range(2, 6))
    for again in copy.copy(params), copy.deepcopy(params), *pickled:
        assert again == params and hash(again) == hash(params) and type(again) is qk.QParams
        assert (again.qmin, again.qmax) == (params.qmin, params.qmax)


def test_one_value_in_an_array_is_a_scalar_where_no_axis_says_otherwise():
    assert qk.QParams([0.5], [3], "uint8") == qk.QParams(0.5, 3, "uint8") == qk.QParams(0.5, [3], "uint8")
    assert qk.QParams([0.5]).scale.shape == ()
    along = qk.QParams([0.5], axis=0)
    assert along.scale.shape == along.zero_point.shape == (1,)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        qk.quantize(np.zeros(3, np.float32), along)


@pytest.mark.parametrize("zero_point", [7, [7], np.uint8(7), np.array([7], ml_dtypes.uint4)])
@pytest.mark.parametrize("where", [{"axis": 1}, {"axis": 0, "block_size": 4}])
def test_one_zero_point_beside_many_scales_stands_for_all(zero_point, where):
    shape = (3,) if "block_size" not in where else (2, 3)
    params = qk.QParams(np.full(shape, 0.5), zero_point, "uint4", **where)
    assert params == qk.QParams(np.full(shape, 0.5), np.full(shape, 7), "uint4", **where)
    assert qk.QParams(np.ones(0), 7, "uint4", axis=0).zero_point.shape == (0,)


@pytest.mark.parametrize("dtype", FLOAT_CODES)
def test_codes_that_are_floats_may_have_a_zero_point_of_their_own_type(dtype):
    zero = np.zeros(2, dtype)
    assert qk.QParams([1, 2], zero, dtype, axis=0) == qk.QParams([1, 2], dtype=dtype, axis=0)
    assert qk.QParams(1, -zero[:1], dtype) == qk.QParams(1, 0, dtype)


def test_repr():
    assert repr(qk.QParams(0.1, 3, "uint8")) == "QParams(scale=0.1, zero_point=3, dtype='uint8')"
    assert (
        repr(qk.QParams(0.5, dtype="int4", narrow_range=True)) == "QParams(scale=0.5, dtype='int4', narrow_range=True)"
    )
    assert repr(qk.QParams(np.ones((2, 3)), axis=1, block_size=4)) == (
        "QParams(scale=<float32 array of shape (2, 3)>, dtype='int8', axis=1, block_size=4)"
    )
    assert repr(qk.QParams([1, 1], [0, 1], axis=0)) == (
        "QParams(scale=<float32 array of shape (2,)>, zero_point=<int32 array of shape (2,)>, dtype='int8', axis=0)"
    )


@refusals(r"""
qk.QParams(scale=0)  # ValueError: scale must be positive, finite and at least 2\*\*-126 in float32, got 0
qk.QParams(scale=-0.5)  # ValueError: scale must be positive.* got -0.5
qk.QParams(scale=1e-39)  # ValueError: scale must be positive.* got 1e-39
qk.QParams(scale=np.nextafter(TINY, 0) / 2)  # ValueError: scale must be positive.* got 5.87
qk.QParams(scale=1e39)  # ValueError: scale must be positive.* got 1e\+39
qk.QParams(scale=np.inf)  # ValueError: scale must be positive.* got inf
qk.QParams(scale=np.nan)  # ValueError: scale must be positive.* got nan
qk.QParams(scale=[1, 2, -3, 0], axis=0)  # ValueError: scale must be positive.* got -3
qk.QParams(scale="1")  # TypeError: scale must be a float or an array of floats, got '1'
qk.QParams(scale=None)  # TypeError: scale must be a float or an array of floats, got None
qk.QParams(scale=True)  # TypeError: scale must be a float or an array of floats, got True
qk.QParams(scale=1j)  # TypeError: scale must be a float or an array of floats, got 1j
qk.QParams(scale=[1, 2])  # ValueError: scale must be a scalar unless axis is given, got shape \(2,\)
qk.QParams(scale=1, axis=0)  # ValueError: scale must have shape \(n,\) when axis is 0, got shape \(\)
qk.QParams(scale=[[1]], axis=0)  # ValueError: scale must have shape \(n,\) when axis is 0, got shape \(1, 1\)
qk.QParams(scale=1, axis=1, block_size=2)
    # ValueError: scale must have the shape of the blocks when axis is 1, got shape \(\)
qk.QParams(scale=1, block_size=2)  # ValueError: block_size needs an axis, got block_size=2 and axis=None
qk.QParams(scale=[1], axis=0, block_size=0)  # ValueError: block_size must be at least 1 and fit 64 bits, got 0
qk.QParams(scale=[1], axis=0, block_size=-4)  # ValueError: block_size must be at least 1 and fit 64 bits, got -4
qk.QParams(scale=[1], axis=0, block_size=2**63)  # ValueError: block_size must be .* got 9223372036854775808
qk.QParams(scale=[1], axis=0, block_size=2.0)  # TypeError: block_size must be an integer or None, got 2.0
qk.QParams(scale=[1], axis="0")  # TypeError: axis must be an integer or None, got '0'
qk.QParams(scale=[1], axis=True)  # TypeError: axis must be an integer or None, got True
qk.QParams(scale=[1], axis=2**40)  # ValueError: axis must be within \[-64, 63\], got 1099511627776
qk.QParams(scale=1, zero_point=128)  # ValueError: zero_point must be within \[-128, 127\] for int8, got 128
qk.QParams(scale=1, zero_point=-1, dtype="uint8")  # ValueError: zero_point must be within \[0, 255\] for uint8, got -1
qk.QParams(scale=1, zero_point=np.uint64(2**63))  # ValueError: zero_point must be within .* got 9223372036854775808
qk.QParams(scale=1, zero_point=-128, narrow_range=True)
    # ValueError: zero_point must be within \[-127, 127\] for int8, got -128
qk.QParams(scale=1, zero_point=8, dtype="int4")  # ValueError: zero_point must be within \[-8, 7\] for int4, got 8
qk.QParams(scale=1, zero_point=1, dtype="float8_e5m2")
    # ValueError: zero_point must be within \[0, 0\] for float8_e5m2, got 1
qk.QParams(scale=1, zero_point=0.0)  # TypeError: zero_point must be an integer or an array of integers, got 0.0
qk.QParams(scale=1, zero_point=[0, 0])
    # ValueError: zero_point must be a scalar or have the shape of scale \(\), got \(2,\)
qk.QParams(scale=[1, 2], zero_point=[[0]], axis=0)
    # ValueError: zero_point must be a scalar or have .* \(2,\), got \(1, 1\)
qk.QParams(scale=[[1]])  # ValueError: scale must be a scalar unless axis is given, got shape \(1, 1\)
qk.QParams(scale=1, zero_point=np.array([0], E5M2), dtype="float8_e4m3fn")
    # TypeError: zero_point must be an integer .* got array
qk.QParams(scale=1, zero_point=np.array([1], E5M2), dtype="float8_e5m2")
    # ValueError: zero_point must be within \[0, 0\] .* got 1
qk.QParams(scale=1, zero_point=np.array([np.nan], E5M2), dtype="float8_e5m2")
    # ValueError: zero_point must be within \[0, 0\] .* got nan
qk.QParams(scale=1, dtype="float4_e2m1fn", narrow_range=True)
    # ValueError: narrow_range is for integer codes, got dtype float4_e2m1fn
qk.QParams(scale=1, dtype="int32")  # TypeError: dtype must be one of .*int8, uint8, int16, .* got 'int32'
qk.QParams(scale=1, dtype="nonsense")  # TypeError: dtype must be one of .* got 'nonsense'
qk.QParams(scale=1, dtype=None)  # TypeError: dtype must be one of .* got None
qk.QParams(scale=1, dtype=np.float32)  # TypeError: dtype must be one of .* got <class 'numpy.float32'>
""")
def test_refusals(refusal):
    refuse(refusal, globals())


def test_scale_and_zero_point_are_positional_and_the_rest_are_not():
    assert qk.QParams(0.5, 1, "uint8") == qk.QParams(scale=0.5, zero_point=1, dtype="uint8")
    with pytest.raises(TypeError):
        qk.QParams([0.5], None, "uint8", 0)


# ---- choose_qparams: laws ----


@st.composite
def data(draw, dtypes=INT_CODES):
    """(x, dtype, symmetric): values on either or both sides of zero, of any magnitude that has a scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    of = draw(st.sampled_from(FLOATS))
    shape = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(lambda s: np.prod(s) < 5000))
    lowest, highest = {2: (-14, 14), 4: (-120, 126), 8: (-120, 126)}[of.itemsize]
    if of == FLOATS[3]:
        lowest, highest = -120, 126
    magnitude = 2.0 ** draw(st.integers(lowest, highest))
    with np.errstate(under="ignore"):
        x = (rng.normal(draw(st.sampled_from([0, 0, -3, 3, 30])), 1, shape).clip(-4, 4) / 4 * magnitude).astype(of)
    return x, draw(st.sampled_from(dtypes)), draw(st.booleans())


@settings(max_examples=300)
@given(data())
def test_zero_is_exact_and_nothing_saturates(drawn):
    """Every value is within half a step, and a hair for the rounding of scale, of its reconstruction; 0 is 0."""
    x, dtype, symmetric = drawn
    params = qk.choose_qparams(x, dtype, symmetric=symmetric)
    assert qk.fake_quantize(np.zeros(1, x.dtype), params)[0] == 0
    wide, scale = x.astype(np.float64), float(params.scale)
    assert TINY <= scale < np.inf
    back = qk.dequantize(qk.quantize(wide, params), params, dtype=np.float64)
    hair = scale * (params.qmax - params.qmin) * 2.0**-22
    assert np.all(np.abs(back - wide) <= scale / 2 + hair)


@settings(max_examples=300)
@given(data())
def test_the_scale_is_the_smallest_that_does(drawn):
    """With a scale a thousandth smaller the values, or 0, no longer fit the codes."""
    x, dtype, symmetric = drawn
    assume(np.any(x != 0))
    params = qk.choose_qparams(x, dtype, symmetric=symmetric)
    assume(params.scale > TINY)
    codes = np.append(x.astype(np.float64), 0) / (float(params.scale) * 0.999)
    if symmetric:
        assert (codes + params.zero_point).max() > params.qmax or (codes + params.zero_point).min() < params.qmin
    else:
        assert codes.max() - codes.min() > params.qmax - params.qmin


@settings(max_examples=80)
@given(data(INT_CODES + FLOAT_CODES), st.data())
def test_lines_and_blocks_are_tensors_of_their_own(drawn, more):
    x, dtype, symmetric = drawn
    symmetric = symmetric or dtype in FLOAT_CODES
    axis = more.draw(st.integers(-x.ndim, x.ndim - 1))
    lines = np.moveaxis(x, axis, 0)
    params = qk.choose_qparams(x, dtype, axis=axis, symmetric=symmetric)
    of_lines = [qk.choose_qparams(line, dtype, symmetric=symmetric) for line in lines]
    assert params == qk.QParams(
        [p.scale for p in of_lines],
        np.array([p.zero_point for p in of_lines], int),
        dtype,
        axis=axis,
        narrow_range=symmetric and dtype in INT_CODES,
    )
    block = more.draw(st.integers(1, 50))
    params = qk.choose_qparams(x, dtype, axis=axis, block_size=block, symmetric=symmetric)
    blocks = np.moveaxis(params.scale, axis, 0), np.moveaxis(params.zero_point, axis, 0)
    assert len(blocks[0]) == -(-len(lines) // block) and (params.axis, params.block_size) == (axis, block)
    for i, (scale, zero_point) in enumerate(zip(*blocks)):
        part = lines[i * block : (i + 1) * block]
        for where in np.ndindex(part.shape[1:]):
            alone = qk.choose_qparams(part[(slice(None), *where)], dtype, symmetric=symmetric)
            assert (alone.scale, alone.zero_point) == (scale[where], zero_point[where])
    assert qk.quantize(x, params).shape == x.shape


def test_scales_of_any_layout():
    """Fortran-ordered scales and zero points stand for the elements that they are indexed by."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 20, (6, 8)).astype(np.float32)
    scale, zero_point = rng.uniform(0.5, 1.5, (6, 2)), rng.integers(-50, 50, (6, 2))
    want = qk.quantize(x, qk.QParams(scale, zero_point, axis=1, block_size=4))
    for layout in np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a[::-1].copy()[::-1]:
        for wide in (scale, zero_point), (scale.astype(np.float32), zero_point.astype(np.int32)):
            params = qk.QParams(*map(layout, wide), axis=1, block_size=4)
            assert_array_equal(params.scale, scale.astype(np.float32))
            assert_array_equal(qk.quantize(x, params), want, strict=True)


def test_schemes():
    x = np.float32([-1, 2])
    for dtype in INT_CODES:
        signed = dtype.startswith("i")
        params = qk.choose_qparams(x, dtype)
        assert params == qk.choose_qparams(x, dtype, symmetric=signed)
        assert params == qk.choose_qparams(x, dtype, symmetric=signed, narrow_range=signed)
        assert (params.zero_point == 0) == signed
        wide = qk.choose_qparams(x, dtype, symmetric=True, narrow_range=False)
        assert wide.zero_point == (0 if signed else (params.qmax + 1) // 2)
        assert wide.qmin == qk.QParams(1, dtype=dtype).qmin
    assert qk.choose_qparams(np.float32([-1, 2.54])).scale == np.float32(2.54) / np.float32(127)
    assert qk.choose_qparams(np.float32([-3, 2]), "int8", narrow_range=False).scale == np.float32(3) / np.float32(128)
    for dtype, largest in zip(FLOAT_CODES, (448, 57344, 7.5, 28, 6)):
        params = qk.choose_qparams(np.float32([-3, 2]), dtype)
        assert params == qk.QParams(np.float32(3) / np.float32(largest), dtype=dtype)


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("dtype", INT_CODES + FLOAT_CODES)
def test_nothing_and_zeros_have_scale_1(dtype, of):
    for shape in (0,), (3, 0), (0, 3), (5,), ():
        x = np.zeros(shape, of)
        assert qk.choose_qparams(x, dtype).scale == 1
        assert qk.choose_qparams(-x, dtype).scale == 1
        for axis in range(x.ndim):
            assert_array_equal(qk.choose_qparams(x, dtype, axis=axis).scale, np.ones(shape[axis]))
            blocks = tuple(-(-n // 2) if i == axis else n for i, n in enumerate(shape))
            assert_array_equal(qk.choose_qparams(x, dtype, axis=axis, block_size=2).scale, np.ones(blocks))


@pytest.mark.parametrize("dtype", INT_CODES + FLOAT_CODES)
def test_constants_and_the_smallest_and_largest_values(dtype):
    for value in 3.0, -3.0, 2.0**-149, -(2.0**-149), TINY, LARGEST, -LARGEST:
        x = np.full(7, value, np.float32)
        params = qk.choose_qparams(x, dtype)
        assert params.scale >= TINY
        back = qk.dequantize(qk.quantize(x, params), params, dtype=np.float64)
        assert np.all(np.abs(back - value) <= max(abs(value) * 2.0**-16, TINY / 2)), (value, params)
    both = np.float32([-LARGEST, LARGEST])
    for symmetric in (True,) if dtype in FLOAT_CODES else (True, False):
        params = qk.choose_qparams(both, dtype, symmetric=symmetric)
        back = qk.dequantize(qk.quantize(both, params), params, dtype=np.float64)
        assert np.all(np.abs(back - both) <= 0.51 * float(params.scale)), params


def test_bounds_of_float64_are_not_cut_off():
    """A bound between two float32 values counts as the outer one."""
    x = np.array([1 + 2.0**-40])
    assert qk.choose_qparams(x).scale == np.nextafter(np.float32(1), np.float32(2)) / np.float32(127)
    assert qk.choose_qparams(-x).scale == np.nextafter(np.float32(1), np.float32(2)) / np.float32(127)
    assert qk.choose_qparams(np.array([1e-300])).scale == TINY


@pytest.mark.parametrize("where", [{}, {"axis": 0}, {"axis": 1}, {"axis": 1, "block_size": 16}])
def test_float64_beyond_float32(where):
    x = np.ones((3, 40))
    x[1, 2], x[2, 1] = -1e300, 2e39
    with pytest.raises(ValueError, match=r"x spans \[-1e\+300, 2e\+39\], beyond the range of float32"):
        qk.choose_qparams(x, "uint8", **where)


@pytest.mark.parametrize("where", [{}, {"axis": 0}, {"axis": -1}, {"axis": 1, "block_size": 16}])
@pytest.mark.parametrize("of", FLOATS)
def test_values_that_are_not_finite_are_counted_and_found(of, where):
    for bad in np.nan, -np.nan, np.inf, -np.inf:
        x = np.ones((3, 40), of)
        x[1, 37] = x[2, 0] = bad
        with pytest.raises(ValueError, match=r"x has 2 NaN or infinite values, the first at \(1, 37\)"):
            qk.choose_qparams(x, **where)
        with pytest.raises(ValueError, match=r"x has 2 NaN or infinite values, the first at \(0, 2\)"):
            qk.choose_qparams(x.T)
    with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \(\)"):
        qk.choose_qparams(np.asarray(np.nan, of))


X = np.ones((3, 4), np.float32)


@refusals(r"""
choose(x=np.int8([1]))  # TypeError: x must be float32, float64, float16 or bfloat16, got int8
choose(x=[1, 2])  # TypeError: x must be float32, float64, float16 or bfloat16, got int64
choose(dtype="int32")  # TypeError: dtype must be one of .* got 'int32'
choose(axis=2)  # ValueError: axis 2 is out of range for x with shape \(3, 4\)
choose(axis=-3)  # ValueError: axis -3 is out of range for x with shape \(3, 4\)
choose(axis=0.0)  # TypeError: axis must be an integer or None, got 0.0
choose(block_size=4)  # ValueError: block_size needs an axis, got block_size=4 and axis=None
choose(axis=0, block_size=0)  # ValueError: block_size must be at least 1 and fit 64 bits, got 0
choose(symmetric="False")  # TypeError: symmetric must be True or False, got 'False'
choose(narrow_range=1)  # TypeError: narrow_range must be True or False, got 1
choose(method=["mse"])  # ValueError: method must be 'minmax' or .* or 'nvfp4', got \['mse'\]
choose(method="median")  # ValueError: method must be 'minmax' or .* or 'mx' or 'nvfp4', got 'median'
choose(grid=3)  # TypeError: method 'minmax' takes no option 'grid'
choose(method="mse", grid=3)  # TypeError: method 'mse' takes no option 'grid'
choose(method="mse", dtype="float8_e5m2")  # ValueError: method 'mse' is for integer codes, got dtype float8_e5m2
choose(importance=X)  # TypeError: method 'minmax' takes no option 'importance'
choose(method="mse", importance=np.ones(3))
    # ValueError: importance must broadcast to the shape of x \(3, 4\), got \(3,\)
choose(method="mse", importance=-X)  # ValueError: importance must not be negative, got -1.0
choose(method="mse", importance=X * np.nan)
    # ValueError: importance has 12 NaN or infinite values, the first at \(0, 0\)
choose(method="mse", importance="high")  # TypeError: importance must be an array of floats, got 'high'
choose(dtype="float8_e5m2", symmetric=False)
    # ValueError: codes of dtype float8_e5m2 are symmetric, got symmetric=False
choose(dtype="float8_e5m2", narrow_range=True)  # ValueError: narrow_range is for integer codes, got dtype float8_e5m2
""")
def test_choose_refusals(refusal):
    refuse(refusal, globals() | {"choose": partial(qk.choose_qparams, x=X)})


# ---- choose_qparams: least squares ----


@np.errstate(all="ignore")
def squared_error(x, params, importance=1.0):
    wide = x.astype(np.float64)
    return np.sum(importance * (wide - qk.dequantize(qk.quantize(wide, params), params, dtype=np.float64)) ** 2)


@np.errstate(all="ignore")
def least_squared_error(x, params, zero_points, importance=1.0):
    """Over all real scales and these zero points, by every breakpoint in order, in extended precision."""
    y, w = np.abs(x.astype(np.longdouble))[:, None], np.broadcast_to(importance, x.shape).astype(np.longdouble)[:, None]
    gains = [np.longdouble(0)]
    for zero in zero_points:
        codes = np.arange(1, params.qmax - params.qmin + 1)
        reached = codes <= np.where(x > 0, params.qmax - zero, zero - params.qmin)[:, None]
        order = np.argsort(-(y / (codes - 0.5))[reached], kind="stable")
        steps = (np.broadcast_to(step, reached.shape)[reached][order] for step in (w * y, w * (2 * codes - 1)))
        a, b = map(np.cumsum, steps)
        gains.append(np.max(a**2 / np.where(b > 0, b, np.inf), initial=np.longdouble(0)))
    return np.sum(w * y * y) - max(gains)


def check_least_squares(x, dtype, symmetric, importance=None):
    params = qk.choose_qparams(x, dtype, symmetric=symmetric, method="mse", importance=importance)
    importance = np.ones(1) if importance is None else importance
    assert params.qmin == qk.choose_qparams(x, dtype, symmetric=symmetric).qmin
    zero_points = [params.zero_point] if symmetric else range(params.qmin, params.qmax + 1)
    least, power = least_squared_error(x, params, zero_points, importance), np.sum(importance * np.float64(x) ** 2)
    assert squared_error(x, params, importance) <= least * (1 + 1e-9) + 4e-15 * power


@settings(max_examples=150)
@given(st.data())
def test_mse_is_the_optimum_of_all_scales_and_zero_points(draw):
    rng = np.random.default_rng(draw.draw(st.integers(0, 2**32)))
    symmetric = draw.draw(st.booleans())
    dtype = draw.draw(st.sampled_from(["int2", "int4", "uint4", "int8" if symmetric else "uint8"]))
    n = draw.draw(st.integers(1, 30))
    xs = [rng.normal(0, 1, n), rng.normal(3, 1, n), rng.laplace(0, 1, n), rng.uniform(-1, 0, n)]
    xs += [rng.integers(-9, 10, n) * 0.25, rng.standard_t(1, n)]
    x = draw.draw(st.sampled_from(xs)).astype(np.float32)
    importance = draw.draw(st.sampled_from([None, rng.uniform(0, 2, n), rng.integers(0, 2, n)]))
    check_least_squares(x, dtype, symmetric, importance)


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "one of each sign", "outlier"])
@pytest.mark.parametrize(("dtype", "symmetric"), [("int8", True), ("uint8", False), ("int4", True), ("uint4", False)])
def test_mse_of_long_lines(kind, dtype, symmetric):
    rng = np.random.default_rng(1)
    x = {
        "normal": rng.normal(0, 1, 2000),
        "laplace": rng.laplace(0.5, 1, 2000),
        "uniform": rng.uniform(0, 1, 2000),
        "one of each sign": np.r_[-np.ones(1000), np.full(1000, 0.7)],
        "outlier": np.r_[rng.normal(0, 1, 1999), 1000],
    }[kind]
    x = x.astype(np.float32)
    if dtype == "uint8":
        x = x[::4]
    check_least_squares(x, dtype, symmetric)


def test_mse_of_16_bit_codes():
    check_least_squares(np.random.default_rng(2).normal(0, 1, 30).astype(np.float32), "int16", True)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_no_other_float32_scale_is_better(dtype):
    x = np.random.default_rng(3).normal(0, 1, 300).astype(np.float32)
    params = qk.choose_qparams(x, dtype, method="mse")
    least = squared_error(x, params) * (1 - 1e-6)
    near = (params.scale.view(np.int32) + np.arange(-300, 301, dtype=np.int32)).view(np.float32)
    for scale in np.r_[near, params.scale * np.geomspace(0.5, 2, 2000, dtype=np.float32)]:
        assert squared_error(x, qk.QParams(scale, dtype=dtype, narrow_range=True)) >= least


@pytest.mark.parametrize(
    "shape", [{}, {"axis": 0}, {"axis": 1}, {"axis": -2, "block_size": 3}, {"axis": 1, "block_size": 64}]
)
@pytest.mark.parametrize(("dtype", "symmetric"), [("int4", True), ("uint4", False)])
def test_mse_of_lines_and_blocks(shape, dtype, symmetric):
    """Each is as it is alone, at any thread count and layout."""
    rng = np.random.default_rng(4)
    x, importance = rng.normal(0.3, 1, (7, 5)).astype(np.float32), rng.uniform(0, 1, (7, 5))
    parts = {
        None: [np.s_[:, :]],
        0: [np.s_[i, :] for i in range(7)],
        1: [np.s_[:, j] for j in range(5)],
        -2: [np.s_[i : i + 3, j] for i in (0, 3, 6) for j in range(5)],
    }[shape.get("axis")]
    if shape.get("block_size") == 64:
        parts = [np.s_[i, :] for i in range(7)]
    options = dict(symmetric=symmetric, method="mse")
    alone = [qk.choose_qparams(x[part].copy(), dtype, importance=importance[part], **options) for part in parts]
    for threads in 1, 2, 3:
        with qk.num_threads(threads):
            for given in x, np.asfortranarray(x), x.astype(">f4"), x.astype(np.float64), np.repeat(x, 2, 1)[:, ::2]:
                params = qk.choose_qparams(given, dtype, importance=importance, **shape, **options)
                assert_array_equal(np.ravel(params.scale), [p.scale for p in alone])
                assert_array_equal(np.ravel(params.zero_point), [p.zero_point for p in alone])


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
def test_mse_of_whole_range_in_blocks_takes_the_better_middle(dtype):
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(0, 1, (64, 9)), rng.uniform(0, 1, (8, 9)), rng.uniform(-1, 0, (8, 9))])
    x = np.concatenate([x, np.zeros((8, 9))]).astype(np.float32)
    importance, middle = rng.uniform(0, 1, x.shape), qk.choose_qparams(x, dtype, symmetric=True).zero_point
    options = dict(axis=0, block_size=8, symmetric=True, narrow_range=False, method="mse", importance=importance)
    params = qk.choose_qparams(x, dtype, **options)
    assert params.qmin == ml_dtypes.iinfo(dtype).min and set(np.unique(params.zero_point)) == {middle - 1, middle}
    for row, column in np.ndindex(params.scale.shape):
        block = np.s_[8 * row : 8 * row + 8, column]
        one = qk.QParams(params.scale[row, column], params.zero_point[row, column], dtype)
        least = least_squared_error(x[block], one, [middle - 1, middle], importance[block])
        assert squared_error(x[block], one, importance[block]) <= least * (1 + 1e-9) + 1e-14
    assert qk.choose_qparams(x, dtype, **options | dict(axis=1, block_size=None)).zero_point.max() == middle


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4", "int2", "uint2"])
def test_least_squares_at_the_end_of_float32_give_no_infinity(dtype, symmetric):
    x = (np.random.default_rng(9).uniform(-1, 1, (8, 300)) * 3.4e38).astype(np.float32)
    options = dict(axis=0, block_size=8, symmetric=symmetric, narrow_range=False, method="mse")
    assert np.isfinite(qk.fake_quantize(x, qk.choose_qparams(x, dtype, **options))).all()


def test_error_of_4_bits_by_the_whole_range():
    """Below Q4_0's, the same grid with the sign of the largest value: 0.0859."""
    w = np.random.default_rng(8).normal(size=(1024, 256)).astype(np.float32)
    params = qk.choose_qparams(w, "int4", axis=0, block_size=32, method="mse", narrow_range=False)
    error = np.linalg.norm(qk.fake_quantize(w, params) - w) / np.linalg.norm(w)
    theirs = qk.from_gguf(qk.to_gguf(w.T, "Q4_0"), "Q4_0").T
    assert error < 0.0812 < 0.0855 < np.linalg.norm(theirs - w) / np.linalg.norm(w)


@pytest.mark.parametrize("of", FLOATS[2:])
def test_mse_counts_values_of_16_bits(of):
    rng = np.random.default_rng(5)
    with np.errstate(under="ignore"):
        x, importance = rng.normal(0, 1, (2, 20000)).astype(of), rng.uniform(0, 1, 20000)
    for options in {}, {"importance": importance}:
        counted, plain = (
            qk.choose_qparams(a, "int4", axis=0, method="mse", **options) for a in (x, x.astype(np.float32))
        )
        assert_array_equal(counted.scale, plain.scale)


def test_mse_in_any_unit():
    """A power of two only moves the scale, down to the smallest that there is; importance has no unit."""
    x = np.random.default_rng(6).normal(0, 1, 50)
    scale = qk.choose_qparams(x, "int4", method="mse").scale
    for exponent in -300, -130, -124, -100, 100, 124:
        params = qk.choose_qparams(np.ldexp(x, exponent), "int4", method="mse")
        assert params.scale == max(np.ldexp(np.float64(scale), exponent), TINY)
    for unit in 1e-300, 1e300:
        assert qk.choose_qparams(x, "int4", method="mse", importance=unit).scale == scale


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int2"])
@pytest.mark.parametrize("spread", [1, 8, 300])
@np.errstate(under="ignore")  # of references
def test_mse_is_the_optimum_of_importance_of_any_magnitudes(dtype, spread):
    rng = np.random.default_rng(spread)
    for symmetric in True, False:
        for _ in range(8):
            n = int(rng.integers(2, 40))
            x = (rng.normal(0.5, 1, n) * 10.0 ** rng.choice(rng.integers(-12, 13, 2), n)).astype(np.float32)
            importance = 10.0 ** rng.uniform(-spread, spread, n)
            heaviest = int(np.max(2 * np.frexp(x.astype(np.float64))[1] + np.frexp(importance)[1]))
            params = qk.choose_qparams(x, dtype, symmetric=symmetric, method="mse", importance=importance)
            with np.errstate(under="ignore"):
                importance = np.ldexp(importance, -heaviest)  # only ratios count
            zero_points = [params.zero_point] if symmetric else range(params.qmin, params.qmax + 1)
            with np.errstate(under="ignore"):
                power = np.sum(importance * x.astype(np.float64) ** 2)
            least = least_squared_error(x, params, zero_points, importance)
            assert squared_error(x, params, importance) <= least * (1 + 1e-9) + 4e-15 * power


@pytest.mark.parametrize(
    ("dtype", "symmetric"), [("int8", True), ("uint8", False), ("int8", False), ("int4", True), ("uint4", False)]
)
@np.errstate(under="ignore")  # of references
def test_mse_of_extreme_values(dtype, symmetric):
    """Down to where all codes are 0: the best scale that there is."""
    small = [1e-310], [1e-310, -1e-300], [5e-324], [1e-38, 1e-300, -3e-38], [2.0**-127] * 3, [2.0**-126, 2.0**-120]
    for x in *small, [3e38, -3e38, 1e-310, 1], [1e-45, 1.0], [-1e38, 1e-38, 2e-38]:
        x = np.float64(x)
        constant = (np.full(x.size, value) for value in (5e-324, 1.7e308, 0))
        varied = np.linspace(1, 2, x.size), np.longdouble("1e300") * np.arange(1, x.size + 1)
        for importance in None, *varied, *constant:
            params = qk.choose_qparams(x, dtype, symmetric=symmetric, method="mse", importance=importance)
            start = qk.choose_qparams(x, dtype, symmetric=symmetric)
            counts = np.abs(x).max() > 2.0**-127 and (importance is None or importance.any())
            assert params.scale >= TINY and (counts or params == start)
            if importance is None:
                assert squared_error(x, params) <= squared_error(x, start)
    tiny = np.float64([1.4, -0.6, 2.5, 0.2]) * TINY  # the best of all scales is below the smallest that there is
    params = qk.choose_qparams(tiny, dtype, symmetric=symmetric, method="mse")
    codes = qk.quantize(tiny, params).astype(np.int32) - params.zero_point
    wanted = min(np.sum((tiny / TINY - s * np.rint(tiny / TINY / s)) ** 2) for s in np.linspace(1, 3, 20001))
    assert np.sum((tiny / TINY - codes * float(params.scale) / TINY) ** 2) <= wanted * (1 + 1e-6)


@np.errstate(under="ignore")  # of references
def test_mse_of_importance_beyond_float64_is_refused():
    x, importance = np.random.default_rng(7).normal(0, 1, 40), np.arange(1.0, 41)
    choose = partial(qk.choose_qparams, x, "uint4", method="mse")
    huge = np.longdouble("1e300") * importance
    assert choose(importance=huge) == choose(importance=importance)
    with pytest.raises(ValueError, match="importance has 40 NaN or infinite values"):
        choose(importance=np.longdouble("1e4000") * importance)


def test_ctrl_c_stops_mse_soon():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    x = np.random.default_rng(8).normal(0, 1, (3, 1_500_000)).astype(np.float32)
    try:
        for threads in 1, 2:
            with qk.num_threads(threads):
                timer = threading.Timer(0.15, _thread.interrupt_main)
                timer.start()
                start = time.perf_counter()
                with pytest.raises(KeyboardInterrupt):
                    for _ in range(100):
                        qk.choose_qparams(x, "uint8", axis=0, method="mse")
                timer.join()
                assert time.perf_counter() - start < 5  # 0.2 on an idle machine
    finally:
        signal.signal(signal.SIGINT, before)
    assert qk.choose_qparams(x[:, :100], "uint8", axis=0, method="mse").scale.shape == (3,)


def test_mse_where_nothing_counts():
    for x in np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32):
        for options in {}, {"axis": 0}, {"axis": 1, "block_size": 2}:
            for dtype in "int8", "uint4":
                assert qk.choose_qparams(x, dtype, method="mse", **options) == qk.choose_qparams(x, dtype, **options)
    ignored = qk.choose_qparams(X, "int8", method="mse", importance=0)
    assert ignored == qk.choose_qparams(X, "int8")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_mse_refuses_what_minmax_refuses(bad):
    with pytest.raises(ValueError, match="x has 1 NaN or infinite|x spans"):
        qk.choose_qparams(np.array([1, bad]), method="mse")


@pytest.mark.parametrize("part", [1, 5, 16])
@pytest.mark.parametrize("shape, axis", [((7, 50), 1), ((50, 7), 0), ((3, 40, 5), -2), ((100,), 0)])
def test_ranges_of_blocks_are_those_of_their_parts(monkeypatch, shape, axis, part):
    """Long passes of NumPy's are cut, so that signals are noticed between the parts."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for block_size in None, 1, 3, 7, 1000:
        whole = qk.choose_qparams(x, "uint8", axis=axis, block_size=block_size)
        with monkeypatch.context() as patch:
            patch.setattr("qkernels._choose.PART", part)
            assert qk.choose_qparams(x, "uint8", axis=axis, block_size=block_size) == whole
    whole = qk.choose_qparams(x.astype(np.float16), "uint8")
    monkeypatch.setattr("qkernels._choose.PART", part)
    assert qk.choose_qparams(x.astype(np.float16), "uint8") == whole
