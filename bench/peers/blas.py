"""NumPy and its OpenBLAS, which OPENBLAS_CORETYPE holds: what floats cost."""

from functools import partial

import numpy as np
from race import relative

import peers

contender = partial(peers.contender, held_to=peers.BY_ENVIRONMENT)


def sgemm(a, b, expected):
    """The same values as float32, which is not exact."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.float32)
    check = relative(expected, 1e-5)
    return contender("sgemm", lambda: np.matmul(left, right, out=out), lambda: out, check)


def dgemm(a, b):
    """The same codes as float64, which holds their sums."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    out = np.empty((len(a), b.shape[1]))
    return contender("dgemm", lambda: np.matmul(left, right, out=out), lambda: out)


def linear(x, w, bias):
    return contender("NumPy float32", lambda: x @ w + bias)


def searchsorted(bounds, x):
    return contender("searchsorted", lambda: np.searchsorted(bounds, x))
