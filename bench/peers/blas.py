"""NumPy and its OpenBLAS, which OPENBLAS_CORETYPE holds: what floats cost."""

import numpy as np
from race import relative

import peers

HELD_TO = ["avx2", "avxvnni", "avx512"]


def sgemm(a, b, expected):
    """The same values as float32, which is not exact."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.float32)
    check = relative(expected, 1e-5)
    return peers.contender("sgemm", lambda: np.matmul(left, right, out=out), lambda: out, check, HELD_TO)


def dgemm(a, b):
    """The same codes as float64, which holds their sums."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    out = np.empty((len(a), b.shape[1]))
    return peers.contender("dgemm", lambda: np.matmul(left, right, out=out), lambda: out, held_to=HELD_TO)


def linear(x, w, bias):
    return peers.contender("NumPy float32", lambda: x @ w + bias, lambda: x @ w + bias, held_to=HELD_TO)


def searchsorted(bounds, x):
    return peers.contender(
        "searchsorted", lambda: np.searchsorted(bounds, x), lambda: np.searchsorted(bounds, x), held_to=HELD_TO
    )
