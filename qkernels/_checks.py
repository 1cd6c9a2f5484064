"""Checks of arguments that the modules share."""

import numpy as np

from . import _core
from ._mode import default_mode

MAX_NDIM = 64  # of NumPy's arrays


def float_array(x):
    """x as an array of one of the four float types."""
    x = array_of(x)
    if x.dtype.newbyteorder("=") not in _core.FLOATS:
        raise TypeError(f"x must be float32, float64, float16 or bfloat16, got {x.dtype}")
    return x


def array_of(x):
    """numpy.asarray of numbers, which may have to be converted."""
    return x if type(x) is np.ndarray else _as_array(x)


_as_array = default_mode(np.asarray)


def float32_of(x):
    """An array of floats as float32 in native byte order, infinite beyond its range: itself, or a copy."""
    return x if x.dtype is _core.FLOAT32 else _rounded(x)


@default_mode
def _rounded(x):
    return x.astype(np.float32, copy=False)


def integer(value, name, least=None, *, what="an integer"):
    """value as an int, of at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def optional_int(value, name):
    """value as an int, or None."""
    return None if value is None else integer(value, name, what="an integer or None")


def boolean(value, name):
    """value as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
