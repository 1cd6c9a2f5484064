"""`cimport qkernels`: functions on pointers, without the GIL, on the library that the Python package runs on."""

import ctypes
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from common import environment, output, run

import qkernels as qk
from qkernels._bind import runtime

ROOT = Path(__file__).parents[1]
HEADER = (ROOT / "csrc" / "include" / "qkernels.h").read_text("utf-8")
DECLARED = (ROOT / "qkernels" / "__init__.pxd").read_text("utf-8")
RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with examples/embed_cython, built."""
    pytest.importorskip("Cython")
    folder = tmp_path_factory.mktemp("embed") / "embed_cython"
    shutil.copytree(ROOT / "examples" / "embed_cython", folder, ignore=shutil.ignore_patterns("*.c", "*.so", "build"))
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder, env=environment())
    return folder


@pytest.fixture
def dense(built):
    spec = importlib.util.spec_from_file_location("dense", next(built.glob("dense.*.so")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rows, inputs, outputs", [(1, 1, 1), (3, 40, 17), (64, 256, 100)])
def test_the_example_computes_what_linear_does(dense, variants, rows, inputs, outputs):
    w, x = (RNG.standard_normal(shape, np.float32) for shape in ((outputs, inputs), (rows, inputs)))
    bias, y = RNG.standard_normal(outputs, np.float32), np.empty((rows, outputs), np.float32)
    codes, params = qk.dynamic_quantize(w, "int8", axis=0, symmetric=True)
    packed = qk.pack(codes.T, qk.QParams(params.scale, dtype="int8", axis=1))
    for variant in variants():
        dense.Dense(w)(x, bias, y)
        assert np.array_equal(y, qk.linear(x, packed, bias, activation="relu")), variant


def test_errors_come_as_exceptions(dense):
    layer = dense.Dense(np.ones((4, 8), np.float32))
    y, bias, x = np.empty((2, 4), np.float32), np.zeros(4, np.float32), np.full((2, 8), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN or infinite"):
        layer(x, bias, y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        dense.Dense(x)


def test_threads_and_instruction_set_are_those_of_python(dense, isas):
    for isa in isas():
        for threads in 1, 2:
            with qk.num_threads(threads):
                assert dense.settings() == (isa, threads)


@pytest.mark.parametrize("isa", runtime.available_isas())
def test_the_environment_is_seen(built, isa):
    code = "import dense, qkernels as qk; print(*dense.settings(), qk.get_num_threads())"
    assert output(code, cwd=built, QKERNELS_ISA=isa, QKERNELS_NUM_THREADS="2").split() == [isa, "2", "2"]


# ---- capsules ----


def address(name):
    """The address of a function and its declaration in C, as Numba and Cython look for them."""
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    capsule = ctypes.py_object(qk.__pyx_capi__[name])
    signature = ctypes.pythonapi.PyCapsule_GetName(capsule)
    return ctypes.pythonapi.PyCapsule_GetPointer(capsule, ctypes.c_char_p(signature)), signature.decode()


def pointers(*arrays):
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


F32, I8 = 0, 4


def test_ctypes_calls_quantize(variants):
    function, signature = address("quantize")
    assert signature.startswith("int (void const *, int, void *, int, size_t, size_t, size_t, float const *,")
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    arguments = [pointer, number, pointer, number, size, size, size, pointer, pointer]
    quantize = ctypes.PYFUNCTYPE(number, *arguments)(function)
    x, q = RNG.standard_normal((5, 7, 3), np.float32), np.empty((5, 7, 3), np.int8)
    scale, zero_point = RNG.uniform(0.01, 0.1, 7).astype(np.float32), np.arange(7, dtype=np.int32)
    params = qk.QParams(scale, zero_point, axis=1)
    for variant in variants():
        a, b, s, z = pointers(x, q, scale, zero_point)
        assert quantize(a, F32, b, I8, 5, 7, 3, s, z) == 0
        assert np.array_equal(q, qk.quantize(x, params)), variant
    assert quantize(a, F32, b, F32, 5, 7, 3, s, z) == quantize(a, 99, b, I8, 5, 7, 3, s, z) == -5


def test_ctypes_sets_the_threads_of_python():
    with qk.num_threads(1):
        ctypes.PYFUNCTYPE(None, ctypes.c_int)(address("set_num_threads")[0])(2)
        assert qk.get_num_threads() == 2
    assert ctypes.PYFUNCTYPE(ctypes.c_char_p)(address("get_isa")[0])().decode() == runtime.get_isa()


def test_numba_calls_what_it_finds():
    numba = pytest.importorskip("numba")
    found = numba.extending.get_cython_function_address("qkernels", "get_num_threads")
    count = ctypes.CFUNCTYPE(ctypes.c_int)(found)
    with qk.num_threads(2):
        assert numba.njit(lambda: count())() == 2


def test_all_that_is_declared_is_there():
    names = re.findall(r"^cdef [^(:]*?(\w+)\(", DECLARED, re.MULTILINE)
    assert len(names) >= 10 and sorted(names) == sorted(qk.__pyx_capi__)


def enumerators(text):
    """Names and values, comments left out."""
    values = {}
    for entry in re.sub(r"/\*.*?\*/|#.*", "", text).replace("\n", ",").split(","):
        name, _, value = entry.partition("=")
        if name.strip():
            values[name.strip()] = int(value) if value else max(values.values(), default=-1) + 1
    return values


@pytest.mark.parametrize("name", ["qk_dtype", "qk_activation", "qk_status"])
def test_constants_are_those_of_c(name):
    bodies = re.findall(r"typedef enum \{([^}]*)\} (\w+);", re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL))
    expected = enumerators({kind: body for body, kind in bodies}[name])
    ours = [enumerators(body) for body in re.findall(r"^cdef enum:.*\n((?:    .*\n)+)", DECLARED, re.MULTILINE)]
    assert {key.removeprefix("QK_"): value for key, value in expected.items()} in ours
