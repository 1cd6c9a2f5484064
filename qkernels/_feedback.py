"""Give weights values that make up for one another's errors: the loop of `gptq` and `prune`. docs/numerics.md, 30."""

import math

import numpy as np

from ._bind import codebooks
from ._blas import cholesky
from ._checks import real

BLOCK, COLUMNS, LINE = 12, 32, 16  # rows and columns that C rounds together; floats of a cache line
SQUARE = 128  # rows and columns of a matrix that are turned together
NOISE = 2.0**-22  # variances below this share of the second moment are rounding errors of the sums
MOST_DAMPING = 1e4


def checked_damp(damp):
    """Return damping as a float."""
    damp = real(damp, "damp")
    if not 0 <= damp <= MOST_DAMPING:
        raise ValueError(f"damp must be from 0 to {MOST_DAMPING:g}, got {damp!r}")
    return damp


class Problem:
    """Hold the Hessian of inputs in the order in which they are rounded, in units of its mean, damped, and its factor.

    Of the symmetric matrix H of these inputs the factor is the upper triangular A with H = A A^T: with the errors e of
    a column, ``e^T H e`` is the sum over i of ``(A_ii (e_i + sum over j < i of A_ji / A_ii e_j))^2``.
    """

    def __init__(self, hessian, order, damp, center):
        matrix, self.mean, squares = hessian._matrix(center)
        diagonal = np.diagonal(matrix).copy()
        self.dead = diagonal <= NOISE * squares
        diagonal[self.dead] = 0
        live = diagonal[~self.dead]
        self.unit = math.ldexp(1.0, math.frexp(live.mean())[1]) if live.size else 1.0
        self.order = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(len(diagonal))
        self.matrix = self._in_order(matrix)
        mean = live.mean() / self.unit if live.size else 1.0
        self.damp, self.factor = self._factor(damp, mean)

    def _in_order(self, matrix):
        """Return the matrix, float32, in the order of rounding; dead inputs have nothing to do with others."""
        k = len(matrix)
        made = np.empty((k, k), np.float32)
        for i, row in enumerate(self.order):
            np.multiply(matrix[row][self.order], 1 / self.unit, out=made[i], casting="same_kind")
        dead = self.dead[self.order]
        made[dead] = 0
        made[:, dead] = 0
        return made

    def _factor(self, damp, mean):
        """Add damping to the matrix, more of it until it has a factor; return it, and the transposed, turned factor."""
        diagonal = np.diagonal(self.matrix).copy()
        while damp <= MOST_DAMPING:
            damped = diagonal + np.float32(damp * mean)
            np.fill_diagonal(self.matrix, np.where(self.dead[self.order], np.float32(1), damped))
            factor = cholesky(self.matrix[::-1, ::-1].copy().T)  # symmetric: LAPACK's order costs no other copy
            if factor is not None and np.diagonal(factor).min() > 0 and np.isfinite(np.diagonal(factor)).all():
                return damp, factor.T[::-1, ::-1]
            damp = max(10 * damp, 1e-6)
        raise ValueError("hessian has moments that no data have: its matrix is not positive, however damped")

    def feedback(self):
        """Return what errors of earlier inputs add to each one's weights, in the form that C takes."""
        return *self._laid_out(self.factor), np.ascontiguousarray(np.diagonal(self.factor)), False

    def refinement(self):
        """Return what errors of all others add to the weight at which the error is least."""
        return *self._laid_out(self.matrix), np.ascontiguousarray(np.diagonal(self.matrix)), True

    def corrections(self):
        """Return the same for sums of them that are kept from pass to pass."""
        return self.matrix, None, np.ascontiguousarray(np.diagonal(self.matrix)), True

    def start(self, errors, sums):
        """Turn distances of a first pass into these sums."""
        k = len(self.factor)
        above = _with_odd_lines(k)
        for first in range(0, k, SQUARE):  # squares are turned within the cache
            rows = slice(first, min(first + SQUARE, k))
            for other in range(first, k, SQUARE):
                columns = slice(other, min(other + SQUARE, k))
                above[rows, columns] = self.factor[columns, rows].T
            above[rows, :first], above[rows, k:], above[rows, rows] = 0, 0, np.triu(above[rows, rows], 1)
        rest = np.einsum("ij,ij->i", above, above, dtype=np.float64).astype(np.float32)
        codebooks.start_sums(above, np.ascontiguousarray(np.diagonal(self.factor)), rest, errors, sums)

    def _laid_out(self, rows):
        """Divide rows by their diagonal; what the rows of a block of 12 add to later ones of it stands apart."""
        k, feed = len(rows), _with_odd_lines(len(rows))
        near = np.zeros((k, BLOCK), np.float32)
        np.divide(rows, np.diagonal(rows)[:, None], out=feed[:, :k])
        for first in range(0, k, BLOCK):
            own = feed[first : first + BLOCK, first : min(first + BLOCK, k)]
            near[first : first + BLOCK, : own.shape[1]] = np.tril(own, -1)
            own[...] = np.triu(own, 1)
        return feed, near


def _with_odd_lines(k):
    """Return room for a matrix (k, k), whose rows take an odd number of cache lines, as in gemmf16.c."""
    return np.empty((k, (-(-k // LINE) | 1) * LINE), np.float32)


def times_power(values, exponent):
    """Return values times a power of two, within float32."""
    bound = np.finfo(np.float32).max
    return np.clip(np.ldexp(values, exponent), -bound, bound)


def padded(a, columns, value=0):
    """Return a (m, n) with more columns, contiguous."""
    made = np.full((len(a), columns), value, a.dtype)
    made[:, : a.shape[1]] = a
    return made


class Loop:
    """Hold weights in the order in which they are given new values, and their errors, 0 at first.

    mask (k, n): where weights become 0. grid: what C rounds them to; None: any value will do.
    """

    def __init__(self, w, problem, mask=None, grid=None):
        k, self.n = w.shape
        self.columns = -(-self.n // COLUMNS) * COLUMNS
        self.order = problem.order
        self.w, self.grid = padded(w[self.order], self.columns), grid
        self.mask = None if mask is None else padded(mask[self.order].view(np.uint8), self.columns)
        self.errors = np.zeros((self.columns // COLUMNS, k, COLUMNS), np.float32)
        self.unit = 0  # exponents of two of columns, or of all: what errors are told without
        self.sums = None  # or what is kept from pass to pass, laid out as errors are

    def run(self, feedback):
        """Give each weight its value; return the error, or by how much it grows if values are given anew."""
        loss = np.zeros(self.columns)
        codebooks.round_rows(self.w, feedback, self.mask, self.grid, self.errors, loss, self.sums)
        return np.sum(loss[: self.n] * 4.0**self.unit)

    def panels(self, values):
        """Return values (k, n), in the order of rounding, as errors are laid out."""
        return np.ascontiguousarray(padded(values, self.columns).reshape(len(values), -1, COLUMNS).swapaxes(0, 1))

    def mean_error(self, mean):
        """Return the mean of what outputs lose."""
        return np.einsum("k,pkc->pc", mean[self.order], self.errors).reshape(-1)[: self.n].astype(np.float32)

    def flat_errors(self):
        """Return the errors (k, n), in the order of rounding."""
        return self.errors.swapaxes(0, 1).reshape(len(self.w), -1)[:, : self.n]
