"""Check arguments. This is the bottom of the package: all modules may import it, and it imports only the extension."""

from collections.abc import Mapping

import numpy as np

from ._bind import elementwise
from ._bind.arrays import FLOATS, as_array, contiguous_as, copied, cuts, raise_not_finite
from ._bind.runtime import in_default_mode, shown, word

FLOAT32 = np.dtype(np.float32)
SMALLEST_SCALE = np.finfo(np.float32).tiny  # 2**-126: smaller numbers are subnormal
REALS = (*FLOATS, *(np.dtype(f"{sign}{size}") for sign in "iu" for size in (1, 2, 4, 8)))
MAX_NDIM = 64  # NumPy's arrays have no more axes


def is_a(value, *types):
    """Tell whether value is of one of the types, whatever class it says that it is of, as mocks do."""
    return issubclass(type(value), types)


# ---- arrays ----


def float_array(x, name="x", what="float32, float64, float16 or bfloat16"):
    """Return x as a plain array of one of the four float types."""
    x = as_array(x, name)
    if x.dtype is not FLOAT32 and x.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name} must be {what}, got {x.dtype}")
    return x


def reals(x, name, what="real numbers"):
    """Return x as a plain array of one of the four float types, or of integers."""
    given = as_array(x, name)
    if given.dtype.newbyteorder("=") not in REALS:
        raise TypeError(f"{name} must be {what}, got {given.dtype}")
    return given


def real_array(x, name, what="an array of floats"):
    """Return x as a plain array of floats, longdoubles too, which become doubles, or of integers."""
    given = as_array(x, name)
    if given.dtype.kind not in "fiu" and given.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name} must be {what}, got {given.dtype if given.ndim else shown(x)}")
    if given.dtype.kind == "f" and given.dtype.itemsize > 8:
        return _as_doubles(given)  # what float64 lacks is infinite, which callers refuse
    return given


@in_default_mode
def _as_doubles(x):
    return copied(x, np.float64)


def float32_of(x):
    """Return an array of floats as float32 in native byte order, infinite beyond its range: itself, or a copy."""
    return x if x.dtype is FLOAT32 else _rounded(x)


@in_default_mode
def _rounded(x):
    return x if x.dtype == FLOAT32 else copied(x, FLOAT32)


def contiguous_float32(x):
    """Return an array of floats as aligned C-contiguous float32: itself, or a copy."""
    return contiguous_as(float32_of(x), np.float32)


def finite_float32(x, name="x"):
    """Return x as contiguous float32; raise if one of its values is NaN or infinite, even if it only becomes so."""
    narrow = contiguous_float32(x)
    if elementwise.minmax(narrow) is None:
        raise_beyond_float32(x, name)
    return narrow


@in_default_mode
def raise_beyond_float32(x, name="x"):
    """Raise the ValueError for values that are not finite, at least not in float32."""
    if not np.isfinite(x).all():
        raise_not_finite(x, name)
    raise ValueError(f"{name} spans [{x.min()}, {x.max()}], beyond the range of float32")


def in_parts(function, x, dtype, *others):
    """Return function(x, *others), all of one shape, as a new C-contiguous array of `dtype`, made in parts."""
    made = np.empty(x.shape, dtype)
    for part in cuts(x.shape):
        made[part] = function(x[part], *[other[part] for other in others])
    return made


def doubles(x):
    """Return x as a new C-contiguous array of float64."""
    return copied(x, np.float64)


# ---- arrays by name ----


def arrays_named(arrays, needed, optional=(), *, only=False):
    """Return a dict of what a mapping, whose own methods may do anything, holds of the arrays with these names.

    Raise unless it has all that are needed, and if it may have only these, no others.
    """
    if not is_a(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of str to array, got {type(arrays).__name__}")
    try:
        given = {word(name): name for name in arrays}
        found = {name: arrays[given[name]] for name in (*needed, *optional) if name in given}
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"arrays must be a mapping of str to array, got {shown(error)}") from error
    refuse_missing(found, needed)
    if only:
        refuse_surplus(given, (*needed, *optional))
    return found


def refuse_surplus(arrays, names):
    """Raise if the dict has other names than these."""
    if surplus := [name for name in arrays if name not in names]:
        raise ValueError(f"arrays must hold no others than {', '.join(sorted(names))}, got {shown(surplus[0])}")


def refuse_missing(arrays, names):
    """Raise unless the dict has all of these names."""
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"arrays must hold {', '.join(names[:-1])} and {names[-1]}, got no {', '.join(missing)}")


def array_named(arrays, name, *dtypes):
    """Return arrays[name], of one of the dtypes; without them, integers."""
    array = as_array(arrays[name], name)
    if array.dtype.newbyteorder("=") not in dtypes if dtypes else array.dtype.kind not in "iu":
        *more, last = [str(np.dtype(dtype)) for dtype in dtypes] or ["of integers"]
        raise TypeError(f"{name} must be {', '.join(more)}{' or ' if more else ''}{last}, got {array.dtype}")
    return array


def number_named(arrays, name, least=None):
    """Return arrays[name], of shape (), as an int."""
    array = array_named(arrays, name)
    if array.ndim:
        raise ValueError(f"{name} must have shape (), got {array.shape}")
    return integer(array[()], name, least)


# ---- axes and weights ----


def checked_blocks(axis, block_size):
    """Return axis and block_size as integers that some array may have, or None."""
    axis, block_size = optional_int(axis, "axis"), optional_int(block_size, "block_size")
    if axis is not None and not -MAX_NDIM <= axis < MAX_NDIM:
        raise ValueError(f"axis must be within [{-MAX_NDIM}, {MAX_NDIM - 1}], got {axis}")
    if block_size is not None and not 1 <= block_size < 2**63:
        raise ValueError(f"block_size must be at least 1 and fit 64 bits, got {block_size}")
    return axis, block_size


def check_axis(axis, x):
    """Raise unless x has the axis; None is none of them."""
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is out of range for x with shape {x.shape}")


def spread_weights(weights, shape, name="weights", what="real numbers"):
    """Return weights, one for each value of an array x of this shape."""
    given = real_array(weights, name, what)
    try:
        return np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to the shape of x {shape}, got {given.shape}") from None


def check_weights(given, name="weights", *, zeros=False, negative="must not be negative, got {value} at {place}"):
    """Raise unless weights are finite and not negative, and, without `zeros`, not all 0."""
    if not np.isfinite(given).all():
        raise_not_finite(given, name)
    if given.size and given.min() < 0:
        place = tuple(map(int, np.unravel_index(given.argmin(), given.shape)))
        raise ValueError(f"{name} {negative.format(value=given[place], place=place)}")
    if not zeros and not given.any():
        raise ValueError(f"{name} must not all be 0")


# ---- numbers ----


def real(value, name):
    """Return value as a float."""
    if type(value) is float:
        return value
    given = real_array(value, name, "a float")
    if given.ndim:
        raise TypeError(f"{name} must be a float, got an array of shape {given.shape}")
    return _as_float(given)


_as_float = in_default_mode(float)


def integer(value, name, least=None, *, what="an integer"):
    """Return value as an int, of at least `least`."""
    if is_a(value, bool, np.bool_) or not is_a(value, int, np.integer):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    value = int.__index__(value) if is_a(value, int) else int(value)  # a subclass may compare as it likes
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must fit 64 bits, got {shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def stochastic_seed(rounding, seed, *others):
    """Return the seed if rounding is "stochastic", else, if it is one of the others, None; each must have its seed."""
    if type(rounding) is str:  # first what a short call has
        if rounding == "stochastic" and type(seed) is int and 0 <= seed < 2**64:
            return seed
        if rounding == others[0] and seed is None:
            return None
    rounding = word(rounding)
    if not is_a(rounding, str) or rounding not in (*others, "stochastic"):
        names = ", ".join(map(repr, (*others, "stochastic")))
        raise ValueError(f"rounding must be one of {names}, got {shown(rounding)}")
    if rounding == "stochastic":
        if seed is None:
            raise ValueError("seed must be given for rounding='stochastic', got None")
        return integer(seed, "seed", 0)
    if seed is not None:
        raise ValueError(f"seed must be None unless rounding is 'stochastic', got {shown(seed)}")
    return None


def within_64_bits(count, who="an observer", what="values"):
    """Return how many values or rows will have been seen, which 64 bits hold."""
    if count > 2**63 - 1:
        raise ValueError(f"{who} sees at most 2**63 - 1 {what}, got {count}")
    return count


def optional_int(value, name):
    """Return value as an int, or None."""
    return None if value is None else integer(value, name, what="an integer or None")


def boolean(value, name):
    """Return value as a bool."""
    if not is_a(value, bool, np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def generator(rng):
    """Return what numpy.random.default_rng makes of an `rng`."""
    try:
        made = np.random  # which takes milliseconds to import
        known = type(None), made.Generator, made.RandomState, made.BitGenerator, made.SeedSequence
        if not is_a(rng, int, *known):  # NumPy follows a sequence that holds itself for ever
            rng = as_array(rng, "rng")
        return np.random.default_rng(rng)
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        given = f"{shown(rng)}: {shown(error, str, 200)}"
        raise kind(f"rng must be None, an integer or a numpy.random.Generator, got {given}") from None
