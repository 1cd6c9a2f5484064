"""Checks of arguments that the modules share."""

import math

import numpy as np

from . import _core
from ._core import as_array, shown, word
from ._mode import default_mode

FLOAT32 = np.dtype(np.float32)
MAX_NDIM = 64  # of NumPy's arrays


def float_array(x, name="x", what="float32, float64, float16 or bfloat16"):
    """x as a plain array of one of the four float types."""
    x = as_array(x, name)
    if x.dtype is not FLOAT32 and x.dtype.newbyteorder("=") not in _core.FLOATS:
        raise TypeError(f"{name} must be {what}, got {x.dtype}")
    return x


def float32_of(x):
    """An array of floats as float32 in native byte order, infinite beyond its range: itself, or a copy."""
    return x if x.dtype is FLOAT32 else _rounded(x)


@default_mode
def _rounded(x):
    return x.astype(np.float32, copy=False)


def real_array(x, name, what="an array of floats"):
    """x as a plain array of floats or integers."""
    given = as_array(x, name)
    if given.dtype.kind not in "fiu" and given.dtype.newbyteorder("=") not in _core.FLOATS:
        raise TypeError(f"{name} must be {what}, got {given.dtype if given.ndim else shown(x)}")
    if given.dtype.kind == "f" and given.dtype.itemsize > 8:
        return _as_doubles(given)  # what float64 lacks is infinite, which callers refuse
    return given


PART = 1 << 22  # values, of which NumPy takes some tens of milliseconds


def cuts(shape, most=PART):
    """Indices that cut an array of `shape` along its longest axis into parts of some `most` values, between which Python sees signals."""
    size = math.prod(shape)
    if size <= most:
        yield ...
        return
    axis = shape.index(max(shape))
    step = max(1, most * shape[axis] // size)
    for first in range(0, shape[axis], step):
        yield (slice(None),) * axis + (slice(first, first + step),)


def in_parts(function, x, dtype):
    """function(x) as a new C-contiguous array of `dtype` and the shape of x, made in parts, so that a signal need not wait for all."""
    made = np.empty(x.shape, dtype)
    for part in cuts(x.shape):
        made[part] = function(x[part])
    return made


def doubles(x):
    """x as a new C-contiguous array of float64."""
    return in_parts(lambda part: part, x, np.float64)


@default_mode
def _as_doubles(x):
    return x.astype(np.float64)


def real(value, name):
    """value as a float."""
    if type(value) is float:
        return value
    given = real_array(value, name, "a float")
    if given.ndim:
        raise TypeError(f"{name} must be a float, got an array of shape {given.shape}")
    return _as_float(given)


_as_float = default_mode(float)


def integer(value, name, least=None, *, what="an integer"):
    """value as an int, of at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    value = int.__index__(value) if isinstance(value, int) else int(value)  # a subclass may compare as it likes
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must fit 64 bits, got {shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def optional_int(value, name):
    """value as an int, or None."""
    return None if value is None else integer(value, name, what="an integer or None")


def boolean(value, name):
    """value as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def generator(rng):
    """What numpy.random.default_rng makes of an `rng`."""
    try:
        return np.random.default_rng(
            np.asarray(rng) if isinstance(rng, list) else rng
        )  # NumPy follows a list that holds itself for ever
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"rng must be None, an integer or a numpy.random.Generator, got {shown(rng)}: {error}") from None
