"""Inputs, the same at every run. They begin at pages: no vector splits a cache line, and no store comes just before
the load of another array at the same offset within a page, which CPUs take for a conflict."""

import math

import numpy as np

ALIGNMENT = 4096


def aligned_empty(shape, dtype):
    """An uninitialised C-contiguous array that starts at a page."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    buffer[:] = 0  # every page is mapped before anything is timed
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def aligned(array):
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def random_codes(dtype, *shape, seed=0):
    """Codes over the whole range of the dtype: a peer that saturates shows it."""
    info = np.iinfo(dtype)
    return aligned(np.random.default_rng(seed).integers(info.min, info.max + 1, shape, dtype))


def random_floats(*shape, seed=1):
    return aligned(np.random.default_rng(seed).standard_normal(shape, np.float32))


def exact_product(a, b):
    """a @ b as int64, by float64: partial sums stay far below 2**53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
