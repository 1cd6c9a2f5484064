"""`cimport qkernels`: functions on pointers, without the GIL, on the library that the Python package runs on."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    paths = os.pathsep.join([str(Path(qk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
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
    settings = {"QKERNELS_ISA": isa, "QKERNELS_NUM_THREADS": "2"}
    paths = os.pathsep.join([str(Path(qk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | settings | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], cwd=built, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [isa, "2", "2"], done.stderr


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
