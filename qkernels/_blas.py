"""Multiply and factorise matrices by BLAS and LAPACK, in parts, between which Python hears signals."""

import numpy as np

PART = 2**31  # multiplications: some 50 ms
STEP = 512  # columns of a factor
SQUARE = 720  # columns of a part of X^T X: of 4,096 rows a PART


def product(a, b):
    """Return ``a @ b``."""
    made, step = np.empty((len(a), b.shape[1]), np.result_type(a, b)), max(1, PART // max(1, b.size))
    for first in range(0, len(a), step):
        np.matmul(a[first : first + step], b, out=made[first : first + step])
    return made


def add_gram(total, rows):
    """Add ``rows.T @ rows``, of a few thousand rows, to a matrix but for the squares above its diagonal."""
    for first in range(0, len(total), SQUARE):
        own = slice(first, first + SQUARE)
        for left in range(0, first + 1, SQUARE):
            other = slice(left, left + SQUARE)
            total[own, other] += rows[:, own].T @ rows[:, other]


def mirror(total):
    """Fill these squares of a symmetric matrix by those below, and return it."""
    for first in range(0, len(total), SQUARE):
        own = slice(first, first + SQUARE)
        for left in range(0, first, SQUARE // 6):  # parts that fit the L2 cache
            other = slice(left, left + SQUARE // 6)
            total[other, own] = total[own, other].T
    return total


def cholesky(a):
    """Overwrite a symmetric float32 matrix by its lower triangular factor and return it, or None if there is none.

    In Fortran's order it takes no copies.
    """
    from scipy.linalg.blas import strsm
    from scipy.linalg.lapack import spotrf

    for first in range(0, len(a), STEP):
        end = min(first + STEP, len(a))
        block, info = spotrf(a[first:end, first:end], lower=1, clean=1)
        if info:
            return None
        below = strsm(1, block, a[end:, first:end], side=1, lower=1, trans_a=1)
        a[first:end, first:end], a[end:, first:end], a[first:end, end:] = block, below, 0
        for left in range(end, len(a), STEP):
            a.T[left : left + STEP, left:] -= below[left - end : left - end + STEP] @ below[left - end :].T
    return a
