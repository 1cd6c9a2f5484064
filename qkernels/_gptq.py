"""Round weights so that errors make up for one another: `gptq`. Formulas: docs/numerics.md, section 30."""

import math
from typing import NamedTuple

import numpy as np

from ._bind import codebooks
from ._bind.runtime import word
from ._checks import boolean, finite_float32, float_array, integer, is_a, real, real_array, shown
from ._codebook import Codebook, checked_scales, encode
from ._codebook_tables import thresholds_of
from ._hessian import checked_hessian
from ._mode import default_mode
from ._qparams import FLOAT_CODES, QParams

ORDERS = ("activation", "natural")
BLOCK, COLUMNS, LINE = 12, 32, 16  # rows and columns that C rounds together; floats of a cache line
NOISE = 2.0**-22  # variances below this share of the second moment are rounding errors of the sums
MOST_DAMPING = 1e4


class GPTQResult(NamedTuple):
    """Hold what `gptq` gives.

    Attributes
    ----------
    codes : array (k, n)
        In the dtype of the parameters; uint8 of a codebook.
    params : QParams or Codebook
        The grid: what `pack` takes with the codes.
    scales : float32 array or None
        Those of a codebook's blocks.
    bias : float32 array (n,) or None
        To be added to the layer's own bias: the mean of what rounding takes from its outputs.
    report : dict
        `damp`: what was added to the diagonal of the Hessian, as a share of its mean. `dead`: the inputs that do not
        vary, so that their weights were rounded by themselves. `errors`: the mean squared error of outputs, summed
        over outputs, with the damping: after the first pass, and after each pass that refines.

    Examples
    --------
    >>> seen = qk.Hessian(2).update(np.float32([[1, 1], [2, 2.5]]))
    >>> codes, params, scales, bias, report = qk.gptq(np.float32([[0.4], [0.4]]), seen, qk.QParams(1))
    >>> codes.T, bias.round(3)
    (array([[1, 0]], dtype=int8), array([-0.2], dtype=float32))
    """

    codes: np.ndarray
    params: object
    scales: np.ndarray | None
    bias: np.ndarray | None
    report: dict


@default_mode
def gptq(w, hessian, grid, *, order="activation", damp=0.01, center=True, refine=2):
    """Round the weights of a layer to a grid one input after another, each taking over what the ones before lost.

    Minimises the squared error of the layer's outputs instead of that of its weights: where inputs go together, the
    error of one weight is made good by the next ones.

    Parameters
    ----------
    w : array (k, n) of floats
        The layer is ``x @ w``.
    hessian : Hessian
        Of its inputs x.
    grid : QParams or Codebook, or a tuple (Codebook, scales)
        What `pack` takes: integer codes of at most 16 bits per tensor, per column (``axis=1``) or per block of k
        (``axis=0, block_size=...``); levels for all values, for each column, or for blocks of k, whose scales are those
        of `encode` unless they are given.
    order : {"activation", "natural"}
        Inputs that vary most first, or as they stand.
    damp : float
        What is added to the diagonal of the Hessian, as a share of its mean. It is made larger, tenfold each time,
        until the factorisation holds: see `report`.
    center : bool
        Minimise the error about its mean, which `bias` takes over.
    refine : int
        Passes afterwards, at most: each gives every code its best value while all others stay, and one that gains
        nothing is the last.

    Returns
    -------
    GPTQResult
        ``(codes, params, scales, bias, report)``. Codes have the same bits on every instruction set and at any number
        of threads, given the factor of the Hessian, which is LAPACK's.

    Raises
    ------
    TypeError, ValueError
        For another type or shape, NaN and infinity, a Hessian that has seen nothing, or moments that no data have.

    References
    ----------
    Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*, 2023; Frantar
    and Alistarh, *Optimal Brain Compression*, 2022; Chee et al., *QuIP*, 2023, for the form without an inverse;
    docs/numerics.md, section 30.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 16)).cumsum(axis=1).astype(np.float32)
    >>> w = rng.normal(size=(16, 4)).astype(np.float32)
    >>> params, seen = qk.choose_qparams(w, "int4", axis=1), qk.Hessian(16).update(x)
    >>> found = qk.gptq(w, seen, params)
    >>> wide = qk.dequantize(found.codes, params)
    >>> rounded, compensated = qk.sensitivity(w, seen, [params, wide], center=True)
    >>> bool(compensated < rounded / 2)
    True
    """
    w = finite_float32(float_array(w, "w"), "w")
    checked_hessian(hessian, w)
    grid = _Grid(grid, w)
    order, damp, refine = word(order), real(damp, "damp"), integer(refine, "refine", 0)
    if not is_a(order, str) or order not in ORDERS:
        raise ValueError(f"order must be {' or '.join(map(repr, ORDERS))}, got {shown(order)}")
    if not 0 <= damp <= MOST_DAMPING:
        raise ValueError(f"damp must be from 0 to {MOST_DAMPING:g}, got {damp!r}")
    center = boolean(center, "center")
    problem = _Problem(hessian, order, damp, center)
    rounding = _Rounding(w, problem, grid)
    errors = [rounding.run(problem.feedback())]
    again = problem.refinement() if refine else None
    for _ in range(refine):
        gained = -rounding.run(again)
        errors.append(errors[-1] - gained)
        if not gained > 0:
            break
    bias = rounding.mean_error(problem.mean) if center else None
    report = {"damp": problem.damp, "dead": np.flatnonzero(problem.dead), "errors": np.array(errors) * problem.unit}
    return GPTQResult(grid.codes(rounding.codes_in_order()), grid.params, grid.scales, bias, report)


# ---- the Hessian ----


class _Problem:
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
        from scipy.linalg.lapack import spotrf

        diagonal = np.diagonal(self.matrix).copy()
        while damp <= MOST_DAMPING:
            damped = diagonal + np.float32(damp * mean)
            np.fill_diagonal(self.matrix, np.where(self.dead[self.order], np.float32(1), damped))
            turned = self.matrix[::-1, ::-1].copy().T  # symmetric: LAPACK's order costs no other copy
            factor, info = spotrf(turned, lower=1, clean=1, overwrite_a=1)
            if info == 0 and np.diagonal(factor).min() > 0 and np.isfinite(np.diagonal(factor)).all():
                return damp, factor.T[::-1, ::-1]
            damp = max(10 * damp, 1e-6)
        raise ValueError("hessian has moments that no data have: its matrix is not positive, however damped")

    def feedback(self):
        """Return what errors of earlier inputs add to each one's weights, in the form that C takes."""
        return self._laid_out(self.factor, False)

    def refinement(self):
        """Return what errors of all others add to the weight at which the error is least."""
        return self._laid_out(self.matrix, True)

    def _laid_out(self, rows, both):
        """Divide rows by their diagonal; what the rows of a block of 12 add to later ones of it stands apart."""
        k, diagonal = len(rows), np.diagonal(rows)
        feed = np.empty((k, (-(-k // LINE) | 1) * LINE), np.float32)  # an odd number of lines, as in gemmf16.c
        near = np.zeros((k, BLOCK), np.float32)
        np.divide(rows, diagonal[:, None], out=feed[:, :k])
        for first in range(0, k, BLOCK):
            own = feed[first : first + BLOCK, first : min(first + BLOCK, k)]
            near[first : first + BLOCK, : own.shape[1]] = np.tril(own, -1)
            own[...] = np.triu(own, 1)
        return feed, near, np.ascontiguousarray(diagonal if both else diagonal**2), both


# ---- what is rounded ----


def _padded(a, columns, value=0):
    """Return a (m, n) with more columns, contiguous."""
    made = np.full((len(a), columns), value, a.dtype)
    made[:, : a.shape[1]] = a
    return made


class _Rounding:
    """Hold weights in the order of rounding, their codes and errors."""

    def __init__(self, w, problem, grid):
        k, self.n = w.shape
        columns = -(-self.n // COLUMNS) * COLUMNS
        self.order = problem.order
        self.w = _padded(w[self.order], columns)
        self.group = np.ascontiguousarray(grid.group[self.order], np.int32)
        self.grid = grid.laid_out(columns)
        self.codes = np.empty((k, columns), np.int16)
        self.errors = np.empty((columns // COLUMNS, k, COLUMNS), np.float32)

    def run(self, feedback):
        """Give each weight its code; return the error, or by how much it grows if codes are given anew."""
        loss = np.zeros(self.w.shape[1])
        codebooks.round_rows(self.w, feedback, self.group, self.grid, self.codes, self.errors, loss)
        return loss[: self.n].sum()

    def codes_in_order(self):
        codes = np.empty((len(self.w), self.n), np.int16)
        codes[self.order] = self.codes[:, : self.n]
        return codes

    def mean_error(self, mean):
        """Return the mean of what rounding takes from outputs."""
        return np.einsum("k,pkc->pc", mean[self.order], self.errors).reshape(-1)[: self.n].astype(np.float32)


class _Grid:
    """Hold a grid for weights w (k, n): params and scales for the result, and the group of scales of each row."""

    def __init__(self, grid, w):
        scales = None
        if is_a(grid, tuple) and len(grid) == 2:
            grid, scales = grid
        if is_a(grid, Codebook):
            self.params, self.scales = grid, _book_scales(grid, scales, w)
            self.scale = np.ones((1, w.shape[1]), np.float32) if self.scales is None else self.scales
        elif is_a(grid, QParams) and scales is None:
            self.params, self.scales = grid, None
            self.scale, self.zero = (_spread(a, grid, w) for a in (grid.scale, grid.zero_point))
        else:
            raise TypeError(f"grid must be QParams, a Codebook or a tuple (Codebook, scales), got {shown(grid)}")
        size = self.params.block_size
        self.group = np.zeros(len(w), np.int64) if size is None else np.arange(len(w)) // size

    def laid_out(self, columns):
        """Return what C takes."""
        scale = _padded(self.scale, columns, 1)
        if is_a(self.params, QParams):
            return scale, _padded(self.zero, columns), self.params.qmin, self.params.qmax
        levels = self.params.levels.reshape(-1, self.params.k)
        self.ranks, thresholds = thresholds_of(levels, np.float32)
        n = self.scale.shape[1]
        levels, thresholds = (
            _padded(np.broadcast_to(a.T, (a.shape[1], n)), columns)
            for a in (np.take_along_axis(levels, self.ranks.astype(np.intp), axis=1), thresholds)
        )
        return scale, levels, thresholds

    def codes(self, codes):
        """Return codes as `pack` takes them."""
        if is_a(self.params, QParams):
            return codes.astype(np.int32).astype(self.params.dtype)
        ranks = np.broadcast_to(self.ranks, (codes.shape[1], self.params.k))
        return ranks[np.arange(codes.shape[1]), codes]


def _book_scales(book, scales, w):
    """Return the scales of the blocks of a codebook, (blocks, n), or None."""
    axis = book.axis
    if book.vector or axis not in (None, *((0, -2) if book.block_size is not None else (1, -1))):
        raise ValueError(f"grid must have levels for all values, of columns or of blocks along axis 0, got {book!r}")
    if book.block_size is None:
        if axis is not None and len(book.levels) != w.shape[1]:
            raise ValueError(f"grid must have levels for {w.shape[1]} columns, got {len(book.levels)}")
        if scales is not None:
            raise ValueError("scales are for a codebook with a block size")
        return None
    if axis is None:
        raise ValueError(f"grid must have blocks along axis 0, got {book!r}")
    if scales is None:
        return encode(w, book)[1]
    return checked_scales(real_array(scales, "scales"), book, w.shape, 0)


def _spread(values, params, w):
    """Return scales or zero points as (1, n) or (blocks, n)."""
    axis, size = params.axis, params.block_size
    if params.dtype in FLOAT_CODES or params.dtype == np.uint16:
        raise ValueError(f"grid must have integer codes, int16 or at most 8 bits, got dtype {params.dtype.name}")
    if axis not in (None, *((0, -2) if size is not None else (1, -1))):
        raise ValueError(f"grid must be per tensor, per column or per block of axis 0, got {params!r}")
    k, n = w.shape
    shape = (-(-k // size), n) if size is not None else (n,)
    if axis is not None and values.shape != shape:
        raise ValueError(f"scale of grid must have shape {shape} to match w {w.shape}, got {values.shape}")
    return np.broadcast_to(values.reshape(-1, n) if axis is not None else values, (shape[0] if size else 1, n))
