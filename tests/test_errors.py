"""What hostile arguments do to each public function: the call works, or a TypeError, ValueError or MemoryError names the argument, and
`out` stays as it was. The functions and their arguments are read from the package, so that a new one is covered once it has a valid call
in CALLS."""

import contextlib
import inspect
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

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


HOSTILE = {
    "None": None, "True": True, "numpy.True_": np.True_, "a string": "abc", "an empty string": "", "bytes": b"abc", "0": 0, "-1": -1,
    "2**31": 2**31, "2**63": 2**63, "2**64": 2**64, "10**400": 10**400, "-10**400": -(10**400), "10**5000": 10**5000, "1.5": 1.5, "nan": np.nan,
    "inf": np.inf, "-inf": -np.inf, "1e308": 1e308, "1e-320": 1e-320, "1j": 1j, "a subclass of float64": Float(-3),
    "a subclass of int": Int(-3), "a fraction": Fraction(1, 3), "a decimal": Decimal("0.1"), "float32": np.float32(-1.5),
    "int8": np.int8(-1), "uint64": np.uint64(2**64 - 1), "longdouble": np.longdouble("1e4000"), "datetime64": np.datetime64("2020-01-01"),
    "object": object(), "an empty list": [], "a ragged list": [[1], [1, 2]], "a list of strings": ["a", "b"], "a list of None": [None, None],
    "a list of huge integers": [10**400, 1], "a pair of nan": (np.nan, np.nan), "a pair of huge integers": (-(10**400), 10**400), "a dict": {"a": 1},
    "a set": {1, 2}, "a range": range(-3, 3), "a memoryview": memoryview(b"abc"), "a 0-d array": np.array(-2), "a 0-d array of floats": np.array(np.nan),
    "no values": np.zeros(0), "no rows": np.zeros((0, 4), np.float32), "four axes": np.zeros((1, 1, 1, 1), np.float32),
    "complex": np.zeros((2, 4), complex), "objects": np.full((2, 4), None), "strings": np.full((2, 4), "a"), "bools": np.ones((2, 4), bool),
    "datetimes": np.zeros((2, 4), "M8[s]"), "records": np.zeros((2, 4), [("a", "f4"), ("b", "i4")]), "longdoubles": np.zeros((2, 4), np.longdouble),
    "NaN": np.full((2, 4), np.nan, np.float32), "infinities": np.full((2, 4), np.inf), "int64": np.full((2, 4), -(2**63)),
    "uint64s": np.full((2, 4), 2**64 - 1, np.uint64), "int4": np.full((2, 4), -8, ml_dtypes.int4), "float8": np.full((2, 4), np.nan, ml_dtypes.float8_e5m2),
    "big-endian": np.full((2, 4), -3, ">f8"), "masked": np.ma.masked, "a masked array": np.ma.array(np.ones((2, 4), np.float32), mask=True),
    "a lying array": np.full((2, 4), -1, np.float32).view(LyingArray), "raises": Raises(), "raises by DLPack": RaisesByDLPack(),
    "another device": OnAnotherDevice(),
}

# ---- valid calls ----

X, ROW = np.float32([[0.5, -1, 0.25, 2], [1, 0, 3, -2]]), np.float32([1, 2, 3])
Q, U, W = np.int8([[5, -1, 0, 2], [1, 0, 3, -2]]), np.uint8([[5, 1, 0, 2], [1, 0, 3, 2]]), np.int8(np.arange(-6, 6).reshape(4, 3))
PARAMS, UNSIGNED = qk.QParams(0.5), qk.QParams(0.25, 3, "uint8")
BOOK, BLOCKS, VECTORS = qk.Codebook([-1, 0, 1, 2]), qk.Codebook([-1, 0, 1, 2], axis=0, block_size=2), qk.Codebook([[0, 0], [4, 4]], vector=True)
WEIGHTS = np.uint8(W % 4)
PACKED = {
    "int8": qk.pack(W, PARAMS), "uint8": qk.pack(W.view(np.uint8), qk.QParams(0.5, 3, "uint8")),
    "columns": qk.pack(W, qk.QParams([0.5, 1, 2], axis=1)), "int16": qk.pack(W.astype(np.int16), qk.QParams(0.5, dtype="int16")),
    "int4": qk.pack(W.astype(ml_dtypes.int4), qk.QParams(0.5, dtype="int4")), "float16": qk.pack(W.astype(np.float16), None),
    "codebook": qk.pack(WEIGHTS, BOOK), "blocks": qk.pack(WEIGHTS, BLOCKS, scales=np.ones((2, 3), np.float32)),
}


def out(shape, dtype=np.float32):
    return np.full(shape, 77, dtype)


GGUF = np.zeros((2, 34), np.uint8)
CALLS = {  # name of the function: its valid calls. An `out` is a function that makes it.
    "Codebook": [{"levels": [-1, 0, 1], "axis": None, "block_size": 2, "vector": False}, {"levels": X, "axis": 0}, {"levels": X, "vector": True}],
    "Codebook.fit": [{"x": X, "k": 2, "axis": 0, "weights": np.abs(X) + 1, "zero": True}, {"x": X, "k": 2, "axis": 1, "block_size": 2},
                     {"x": X, "k": 2, "weights": [1, 2], "vector": 2, "rng": 0}],
    "PackedMatrix": [{"b": W, "params": PARAMS, "scales": None}],
    "PackedMatrix.from_arrays": [{"arrays": packed.to_arrays()} for packed in PACKED.values()],
    "QParams": [{"scale": [0.5, 1], "zero_point": [1, 2], "dtype": "uint8", "axis": 0, "block_size": None, "narrow_range": False},
                {"scale": 0.5, "zero_point": 0, "dtype": "float8_e4m3fn"}, {"scale": [[0.5, 1]], "axis": 1, "block_size": 4}],
    "attention": [{"q": X, "k": X, "v": X, "heads": 2, "starts": [0, 1, 2], "scale": 0.5, "out": lambda: out((2, 4))}],
    "choose_qparams": [{"x": X, "dtype": "int8", "axis": 0, "block_size": 2, "symmetric": True, "narrow_range": True, "method": "mse",
                        "importance": np.abs(X) + 1}, {"x": X, "dtype": "float8_e4m3fn"}],
    "decode": [{"codes": U % 4, "codebook": BLOCKS, "scales": np.ones((1, 4), np.float32), "out": lambda: out((2, 4))},
               {"codes": U % 2, "codebook": VECTORS, "out": lambda: out((2, 8))}],
    "dequantize": [{"q": Q, "params": PARAMS, "dtype": "float16", "out": lambda: out((2, 4), np.float16)},
                   {"q": X.astype(ml_dtypes.float8_e5m2), "params": qk.QParams(2, dtype="float8_e5m2"), "dtype": np.float32, "out": lambda: out((2, 4))}],
    "distance_tables": [{"queries": X, "codebook": VECTORS}],
    "dynamic_quantize": [{"x": X, "dtype": "uint8", "axis": 0, "symmetric": False}, {"x": X, "dtype": "float8_e4m3fn", "axis": 1}],
    "encode": [{"x": X, "codebook": BLOCKS}, {"x": X, "codebook": VECTORS}, {"x": X.astype(float), "codebook": BOOK}],
    "fake_quantize": [{"x": X, "params": PARAMS, "out": lambda: out((2, 4))},
                      {"x": X, "params": qk.QParams(2, dtype="float8_e5m2"), "out": lambda: out((2, 4))}],
    "from_gguf": [{"data": GGUF, "kind": "Q8_0", "out": lambda: out((2, 32))}],
    "get_include": [{}],
    "get_num_threads": [{}],
    "kmeans": [{"x": X, "k": 2, "weights": [1, 2], "init": "random", "n_init": 2, "max_iter": 3, "tol": 1e-3, "rng": 0, "callback": None},
               {"x": X, "k": 2, "init": X, "n_init": 1}],
    "kmeans1d": [{"x": X, "k": 2, "weights": np.abs(X) + 1, "axis": 1}],
    "layer_norm": [{"x": X, "weight": X[0], "bias": X[0], "eps": 1e-5, "residual": X, "out": lambda: out((2, 4))}],
    "linear": [{"x": X, "packed": packed, "bias": ROW, "activation": "relu", "residual": np.zeros((2, 3), np.float32), "clamp": (-1, 1),
                "out": lambda: out((2, 3))} for packed in PACKED.values()],
    "matmul": [{"a": Q, "b": W, "a_zero_point": 1, "b_zero_point": [1, 2, 3], "out": lambda: out((2, 3), np.int32)},
               {"a": Q.astype(np.int16), "b": W, "a_zero_point": [1, 2], "b_zero_point": 1, "out": lambda: out((2, 3), np.int64)},
               {"a": Q[None], "b": W[None], "a_zero_point": [[1, 2]], "b_zero_point": 3, "out": lambda: out((1, 2, 3), np.int32)}],
    "num_threads": [{"n": 1}],
    "pack": [{"b": W, "params": PARAMS, "scales": None}, {"b": W.astype(np.float16), "params": None},
             {"b": WEIGHTS, "params": BLOCKS, "scales": np.ones((2, 3), np.float32)}],
    "pack_bits": [{"codes": U, "bits": 4}],
    "qlinear": [{"q": U, "params": UNSIGNED, "packed": PACKED["columns"], "out_params": PARAMS, "bias": [1, 2, 3], "activation": "relu",
                 "clamp": (0, 6), "rounding": rounding, "out": lambda: out((2, 3), np.int8)} for rounding in ("half_even", "tflite")],
    "quantize": [{"x": X, "params": PARAMS, "rounding": "half_even", "out": lambda: out((2, 4), np.int8)},
                 {"x": X, "params": qk.QParams(2, dtype="float8_e5m2"), "rounding": "half_even", "out": lambda: out((2, 4), ml_dtypes.float8_e5m2)}],
    "quantize_multiplier": [{"m": [0.5, 0.25]}],
    "requantize": [{"acc": np.int32([[1, 2, 3]]), "multiplier": [0.5, 1, 2], "params": PARAMS, "bias": [1, 2, 3], "rounding": rounding,
                    "out": lambda: out((1, 3), np.int8)} for rounding in ("half_even", "gemmlowp")],
    "search": [{"queries": X, "codes": U[:, :2] % 2, "codebook": VECTORS, "k": 1}],
    "set_num_threads": [{"n": 1}],
    "show_config": [{}],
    "to_gguf": [{"x": np.ones((2, 32), np.float32), "kind": "Q8_0"}],
    "unpack_bits": [{"data": np.uint8([33, 15]), "bits": 4, "shape": (3,), "dtype": "int8"}],
}
# What is no error but would take for ever.
ENDLESS = {("kmeans", "n_init", "2**31"), ("kmeans", "n_init", "2**63"), ("kmeans", "n_init", "uint64")}
# Where a value that is valid as this argument does not fit another, which is then named. (`out` must fit all others.)
MISFITS = {("Codebook.fit", "vector"): "weights", ("Codebook.fit", "x"): "k", ("kmeans", "x"): "k", ("kmeans1d", "x"): "weights",
           ("pack", "params"): "scales", ("QParams", "block_size"): "scale"}
NOT_CALLED = {"FP4", "NF4", "KMeansResult"}  # objects, and a tuple of results that nobody passes in


def public_functions():
    """Name and function of all that a user calls: the public names and the class methods of public classes."""
    for name in qk.__all__:
        value = getattr(qk, name)
        if name in NOT_CALLED:
            continue
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{method}", getattr(value, method)) for method, f in vars(value).items()
                        if isinstance(f, classmethod) and not method.startswith("_"))


FUNCTIONS = dict(public_functions())


def call(name, arguments):
    result = FUNCTIONS[name](**arguments)
    if name == "num_threads":
        with result:
            pass
    return result


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


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name in sorted(CALLS) for argument in sorted(set().union(*CALLS[name]))])
def test_a_hostile_argument_is_named_by_a_type_or_value_error(name, argument):
    for arguments in CALLS[name]:
        if argument not in arguments:
            continue
        for label, value in HOSTILE.items():
            if (name, argument, label) in ENDLESS:
                continue
            given = {key: value() if key == "out" else value for key, value in arguments.items()} | {argument: value}
            before = {key: np.array(a) for key, a in given.items() if key == "out" and argument != "out"}
            with contextlib.suppress(*ERRORS), warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    call(name, given)
                except ERRORS as error:
                    names = {argument, MISFITS.get((name, argument), argument)} | ({"out must have"} if "out" in given else set())
                    assert re.search(rf"\b({'|'.join(names)})\b", str(error)), f"{label}: {error}"
                    for key, old in before.items():
                        assert old.tobytes() == given[key].tobytes(), f"{label}: out has changed"
                    raise
                except Exception as error:
                    raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
