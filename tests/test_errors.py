"""What hostile arguments do to each public function: the call works, or a TypeError, ValueError or MemoryError names
the argument, and `out` stays as it was. The functions and their arguments are read from the package, so that a new one
is covered once it has a valid call in calls.py."""

import contextlib
import inspect
import itertools
import re
import warnings
from decimal import Decimal
from fractions import Fraction
from unittest.mock import MagicMock

import ml_dtypes
import numpy as np
import pytest
from calls import CALLS, FUNCTIONS, PACKED, call
from common import read_only, refusals, refuse

import qkernels as qk

ERRORS = (TypeError, ValueError, MemoryError)

# ---- hostile values ----


class Raises:
    """An object each of whose methods raises something else."""

    def __repr__(self):
        raise KeyError("repr")

    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError("array")

    def __len__(self):
        raise OverflowError("len")

    def __iter__(self):
        raise LookupError("iter")

    def __float__(self):
        raise ArithmeticError("float")

    def __index__(self):
        raise AttributeError("index")

    def __bool__(self):
        raise RuntimeError("bool")

    def __eq__(self, other):
        raise RuntimeError("eq")

    __hash__ = object.__hash__


class RaisesByName:
    """Asked for any attribute, even its class, it raises something else."""

    def __getattribute__(self, name):
        raise OSError(name)


class RaisesByDLPack:
    def __dlpack__(self, **options):
        raise BufferError("dlpack")

    def __dlpack_device__(self):
        return 1, 0


class OnAnotherDevice(RaisesByDLPack):
    def __dlpack_device__(self):
        return 2, 0


class LyingArray(np.ndarray):
    """Its Python attributes tell nothing of its memory."""

    shape = property(lambda self: (2**40, 2**40))
    dtype = property(lambda self: np.dtype("O"))
    ndim = property(lambda self: 99)
    size = property(lambda self: -1)


class Float(np.float64):
    pass


class Int(int):
    pass


class ContraryInt(int):
    """An integer each of whose methods that compare or convert it raises."""

    def __eq__(self, other):
        raise OSError("eq")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__

    def __hash__(self):
        raise OSError("hash")

    __int__ = __index__ = __float__ = __bool__ = __hash__


class ContraryString(str):
    """A string each of whose methods that compare or show it raises."""

    def __eq__(self, other):
        raise OSError("eq")

    __ne__ = __lt__ = __contains__ = __format__ = removeprefix = lower = __eq__

    def __hash__(self):
        raise OSError("hash")

    def __repr__(self):
        raise OSError("repr")

    __str__ = __iter__ = __len__ = __repr__


def shown(value):
    with contextlib.suppress(Exception):
        return repr(value).replace("\n", "")
    return f"a {type(value).__name__}"


def full(value, dtype=None):
    return np.full((2, 4), value, dtype)


NUMBERS = [0, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 10**5000, Int(-3), np.int8(-1), np.uint64(2**64 - 1)]
NUMBERS += [1.5, np.nan, np.inf, -np.inf, 1e308, 1e-320, 1j, Float(-3), Fraction(1, 3), Decimal("0.1")]
NUMBERS += [np.float32(-1.5), np.longdouble("1e4000"), np.datetime64("2020-01-01"), True, np.True_]
OTHERS = [None, "abc", "", ContraryString("abc"), b"abc", object(), memoryview(b"abc"), {"a": 1}, {1, 2}, range(-3, 3)]
OTHERS += [Raises(), RaisesByName(), RaisesByDLPack(), OnAnotherDevice(), np.ma.masked, ContraryInt(2)]
PUBLIC_TYPES = qk.QParams, qk.Codebook, qk.PackedMatrix
OTHERS += [*PUBLIC_TYPES, MagicMock(), *(MagicMock(spec=kind) for kind in (*PUBLIC_TYPES, np.ndarray, int, bool, str))]
LISTS = [[], [[1], [1, 2]], ["a", "b"], [None, None], [10**400, 1], (np.nan, np.nan), (-(10**400), 10**400)]
ARRAYS = [np.array(-2), np.array(np.nan), np.zeros(0), np.zeros((0, 4), np.float32), np.zeros((1, 1, 1, 1), np.float32)]
ARRAYS += [full(0, complex), full(None), full("a"), full(True), full(0, "M8[s]"), full(0, np.longdouble), full(np.inf)]
ARRAYS += [full(np.nan, np.float32), full(-(2**63)), full(2**64 - 1, np.uint64), full(-8, ml_dtypes.int4)]
ARRAYS += [full(np.nan, ml_dtypes.float8_e5m2), full(-3, ">f8"), np.zeros((2, 4), [("a", "f4"), ("b", "i4")])]
ARRAYS += [
    full(1.5).view(np.matrix),
    full(1e300),
    np.ma.array(full(1, np.float32), mask=True),
    full(-1, np.float32).view(LyingArray),
]
HOSTILE = [(shown(value), value) for value in NUMBERS + OTHERS + LISTS + ARRAYS]

# What is no error but would take for ever.
ENDLESS = [shown(value) for value in (2**31, 2**63, np.uint64(2**64 - 1))]  # as n_init of kmeans
# Where a value that is valid as this argument does not fit another, which alone is named. (`out` must fit all others.)
MISFITS = {
    ("Codebook.fit", "vector"): ["weights"],
    ("Codebook.fit", "x"): ["k"],
    ("attention", "params"): ["q", "k", "v"],
    ("kmeans", "x"): ["k"],
    ("kmeans1d", "x"): ["weights"],
    ("layer_norm", "params"): ["x"],
    ("layer_norm", "residual_params"): ["residual"],
    ("linear", "params"): ["x"],
    ("pack", "params"): ["scales"],
    ("QParams", "block_size"): ["scale"],
    ("from_arrays", "block_size"): ["scale", "scales", "params"],
}


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = qk.get_num_threads()
    yield
    qk.set_num_threads(before)


def test_the_table_has_each_public_function_and_each_of_its_arguments():
    assert CALLS.keys() == FUNCTIONS.keys()
    for name, function in FUNCTIONS.items():
        parameters = inspect.signature(function).parameters.values()
        named = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
        given = set().union(*CALLS[name])
        assert named <= given, (name, named - given)
        assert given == named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters), (name, given - named)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_calls_of_the_table_are_valid(name):
    for arguments in CALLS[name]:
        call(name, {key: value() if key == "out" else value for key, value in arguments.items()})


@refusals(r"""
qk.QParams.check_shape((2, 4), "x")  # TypeError: doesn't apply to a 'tuple' object
qk.QParams.check_shape(PACKED["int8"], (2, 4))  # TypeError: doesn't apply to a 'PackedMatrix' object
qk.PackedMatrix.unpack(qk.NF4)  # TypeError: doesn't apply to a 'Codebook' object
qk.PackedMatrix._columns(3)  # TypeError: doesn't apply to a 'int' object
""")
def test_methods_refuse_what_is_not_of_their_class(refusal):
    refuse(refusal, {"qk": qk, "PACKED": PACKED})


@pytest.mark.parametrize("i", range(len(CALLS["PackedMatrix.from_arrays"])))
def test_a_hostile_array_of_a_packed_matrix_is_named(i):
    arrays = CALLS["PackedMatrix.from_arrays"][i]["arrays"]
    for key in arrays:
        for label, value in HOSTILE:
            with contextlib.suppress(*ERRORS), warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    qk.PackedMatrix.from_arrays(arrays | {key: value})
                except ERRORS as error:
                    assert names(str(error), "from_arrays", key, arrays | {"b": 0, "params": 0}), (
                        f"{key}: {label}: {error}"
                    )
                    raise
                except Exception as error:
                    raise AssertionError(f"{key}: {label}: {type(error).__name__}: {error}") from error


def names(message, function, argument, given):
    """Whether a message begins with the argument, or with another that does not fit it, and names both."""
    if "out" in given and message.startswith("out must have"):
        return True
    first = re.match(r"(?:the last axis of )?(\w+)", message)[1]
    return (
        first == argument
        or first in given
        and (re.search(rf"\b{argument}\b", message) or first in MISFITS.get((function, argument), []))
    )


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in sorted(CALLS) for argument in sorted(set().union(*CALLS[name]))]
)
def test_a_hostile_argument_is_named_by_a_type_or_value_error(name, argument):
    for arguments in CALLS[name]:
        if argument not in arguments:
            continue
        for label, value in HOSTILE:
            if argument == "n_init" and label in ENDLESS or argument in ("callback", "function") and callable(value):
                continue
            given = {key: value() if key == "out" else value for key, value in arguments.items()} | {argument: value}
            before = {key: np.array(a) for key, a in given.items() if key == "out" and argument != "out"}
            with contextlib.suppress(*ERRORS), warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    call(name, given)
                except ERRORS as error:
                    assert names(str(error), name, argument, given), f"{label}: {error}"
                    for key, old in before.items():
                        assert old.tobytes() == given[key].tobytes(), f"{label}: out has changed"
                    raise
                except Exception as error:
                    raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(("name", "i"), [(n, i) for n in sorted(CALLS) for i, a in enumerate(CALLS[n]) if "out" in a])
@refusals(r"""
made(out.tolist())  # TypeError: ^out must be an array whose memory can be written, got a list
made(out.astype(np.uint32))  # TypeError: ^out must have dtype {out.dtype}, got uint32
made(out.astype(">i4"))  # TypeError: ^out must have dtype {out.dtype}, got >i4
made(out.astype(out.dtype.newbyteorder() if out.itemsize > 1 else np.uint16))
    # TypeError: ^out must have dtype {out.dtype}
made(out[None])  # ValueError: ^out must have shape {0}, got {1}
made(out[0])  # ValueError: ^out must have shape {0}, got {2}
made(out.T)  # ValueError: ^out must have shape {0}, got {3}
made(out.ravel())  # ValueError: ^out must have shape {0}, got {4}
made(read_only(out))  # ValueError: ^out must be writeable, got a read-only array
made(np.repeat(out, 2, -1)[..., ::2])
    # ValueError: ^out must be C-contiguous and aligned, got strides \(.*\) for shape {0}
made(np.asfortranarray(out) if len(out) > 1 else np.repeat(out, 2, -1)[..., ::2])
    # ValueError: ^out must be C-contiguous and aligned
""")
def test_an_out_that_is_refused_stays_as_it_is(name, i, refusal):
    given, kept = dict(CALLS[name][i]), []
    out = given.pop("out")()

    def made(bad):
        kept.extend((bad, np.array(bad)))
        call(name, given | {"out": bad})

    shapes = [re.escape(str(a.shape)) for a in (out, out[None], out[0], out.T, out.ravel())]
    names = {"made": made, "out": out, "np": np, "read_only": read_only}
    refuse((*refusal[:2], refusal[2].format(*shapes, out=out)), names)
    assert np.array(kept[0]).tobytes() == kept[1].tobytes()


class Contrary(int):
    """An integer whose comparisons raise."""

    def __lt__(self, other):
        raise OSError("lt")

    __le__ = __gt__ = __ge__ = __eq__ = __lt__
    __hash__ = int.__hash__


def test_a_subclass_of_int_is_taken_for_its_value():
    codes = np.uint8([1, 2, 3, 0])
    np.testing.assert_array_equal(qk.unpack_bits(qk.pack_bits(codes, Contrary(2)), Contrary(2), Contrary(4)), codes)
    assert len(qk.kmeans1d([1.0, 2, 7], Contrary(2)).centroids) == 2
    with pytest.raises(ValueError, match="k must be at least 1"):
        qk.kmeans1d([1.0, 2, 7], Contrary(0))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_subclass_of_str_is_taken_for_its_value(name):
    for arguments in CALLS[name]:
        given = {key: value() if key == "out" else value for key, value in arguments.items()}
        for key, value in given.items():
            if isinstance(value, str):
                call(name, given | {key: ContraryString(value)})


def test_a_mapping_is_read_by_names_that_need_not_compare():
    class Name(ContraryString):
        __hash__ = str.__hash__

    class Unreadable(dict):
        def __getitem__(self, name):
            raise OSError("no such file")

    arrays = qk.pack(np.int8([[1, -2]]), qk.QParams(0.5)).to_arrays()
    again = qk.PackedMatrix.from_arrays({Name(name): array for name, array in arrays.items()})
    np.testing.assert_array_equal(again.unpack(), [[1, -2]])
    with pytest.raises(TypeError, match="arrays must be a mapping of str to array, got .*no such file"):
        qk.PackedMatrix.from_arrays(Unreadable(arrays))


def test_a_shape_without_an_end_is_refused_before_memory_is():
    with pytest.raises(ValueError, match="shape must have at most 64 axes"):
        qk.unpack_bits(np.zeros(1, np.uint8), 4, itertools.repeat(1))
    with pytest.raises((TypeError, ValueError), match="shape"):
        qk.unpack_bits(np.zeros(1, np.uint8), 4, np.broadcast_to(np.float32(1), (2**60,)))


def test_a_bound_of_a_clamp_is_converted_without_a_warning():
    torch = pytest.importorskip("torch")
    packed, x = qk.pack(np.int8([[1], [2]]), qk.QParams(1.0)), np.float32([[3, 4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded = qk.linear(
            x, packed, clamp=(torch.tensor(-2.0, requires_grad=True), torch.tensor(1.5, requires_grad=True))
        )
        with pytest.raises(TypeError, match="clamp must be None or a pair of floats"):
            qk.linear(x, packed, clamp=(np.float32([1]), None))
    np.testing.assert_array_equal(bounded, [[1.5]])


def test_a_list_that_holds_itself_is_no_source_of_random_numbers():
    endless = []
    endless.append(endless)
    with pytest.raises((TypeError, ValueError), match="rng must be"):
        qk.kmeans(np.float32([[1], [2]]), 1, rng=endless)
    assert qk.kmeans(np.float32([[1], [2]]), 1, rng=[1, 2]).labels.tolist() == [0, 0]
