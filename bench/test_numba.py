"""Calls from code that Numba compiles: what one costs over the function in C that it calls.

Each contender makes CALLS calls in a compiled loop: ours as a user writes it, the other as C would, on pointers, by the
function that `cimport qkernels` gives. The difference over CALLS is the overhead of a call.
"""

import ctypes

import numpy as np
import pytest
from race import Contender, our_own

import qkernels as qk

CALLS = 1000
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "n": ctypes.c_size_t}
F32, I8, U8 = 0, 4, 5


def in_c(name, signature):
    """Return the function of the C interface by that name, which compiled code can call."""
    numba = pytest.importorskip("numba")
    address = numba.extending.get_cython_function_address("qkernels", name)
    return ctypes.CFUNCTYPE(ctypes.c_int, *map(TYPES.get, signature))(address)


def quantize(n):
    numba, function = pytest.importorskip("numba"), in_c("quantize", "pipinnnpp")
    from qkernels import numba as qn

    x, q, params = np.linspace(-9, 9, n, dtype=np.float32), np.empty(n, np.int8), qk.QParams(0.5)
    scale, zero = np.float32([0.5]), np.int32([0])

    @numba.njit
    def ours(x, params, q):
        for _ in range(CALLS):
            qn.quantize(x, params, out=q)

    @numba.njit
    def c(x, q, scale, zero):
        for _ in range(CALLS):
            function(x.ctypes.data, F32, q.ctypes.data, I8, 1, 1, x.size, scale.ctypes.data, zero.ctypes.data)

    check = q.copy()
    qk.quantize(x, params, out=check)
    return lambda: ours(x, params, q), lambda: c(x, q, scale, zero), q, check


@pytest.mark.parametrize("n", [1, 64, 4096])
def test_quantize(race, isa, n):
    ours, c, q, want = quantize(n)
    others = [Contender("C", c, lambda: q)]
    same = lambda got: "" if np.array_equal(got, want) else "wrong"  # noqa: E731
    race(f"{CALLS} calls in njit: quantize {n} floats", our_own(ours, q), others, same, CALLS * n, "G/s")


def matmul(m, k, n):
    """Multiply by b as it is: C packs it in each call, as ours does."""
    numba, pack, function = pytest.importorskip("numba"), in_c("pack", "pinnnnnppp"), in_c("matmul", "ppinppp")
    free = in_c("free_weights", "p")
    from qkernels import numba as qn

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-128, 128, (k, n), np.int8)
    out, handle = np.empty((m, n), np.int32), np.empty(1, np.uintp)
    scale, zero = np.ones(n, np.float32), np.zeros(n, np.int32)

    @numba.njit
    def ours(a, b, out):
        for _ in range(CALLS):
            qn.matmul(a, b, out=out)

    @numba.njit
    def c(a, b, out, handle, scale, zero):
        for _ in range(CALLS):
            pack(b.ctypes.data, I8, k, n, 0, 0, 0, scale.ctypes.data, zero.ctypes.data, handle.ctypes.data)
            function(handle[0], a.ctypes.data, U8, m, 0, 0, out.ctypes.data)
            free(handle[0])

    check = qk.matmul(a, b)
    return lambda: ours(a, b, out), lambda: c(a, b, out, handle, scale, zero), out, check


@pytest.mark.parametrize("m", [1, 64])
def test_matmul(race, isa, m):
    ours, c, out, want = matmul(m, 64, 64)
    others = [Contender("C", c, lambda: out)]
    same = lambda got: "" if np.array_equal(got, want) else "wrong"  # noqa: E731
    race(
        f"{CALLS} calls in njit: matmul {m} x 64 x 64", our_own(ours, out), others, same, CALLS * m * 64 * 64, "GMAC/s"
    )
