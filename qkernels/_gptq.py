"""Round weights so that errors make up for one another: `gptq`. Formulas: docs/numerics.md, section 30."""

from typing import NamedTuple

import numpy as np

from ._bind.runtime import word
from ._blas import product
from ._checks import boolean, finite_float32, float_array, integer, is_a, real_array, shown
from ._codebook import Codebook, checked_scales, encode
from ._codebook_tables import thresholds_of
from ._feedback import Loop, Problem, checked_damp, padded, times_power
from ._hessian import checked_hessian
from ._mode import default_mode
from ._qparams import FLOAT_CODES, QParams

ORDERS = ("activation", "natural")
SAMPLE = 96  # columns that tell how levels should move
LARGEST = 96  # exponent of two that bounds, from above and below, the largest magnitude of a column in the loop


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
def gptq(w, hessian, grid, *, order="activation", damp=0.01, center=True, refine=2, refit=False):
    """Round the weights of a layer to a grid one input after another, each taking over what the ones before lost.

    Minimises the squared error of the layer's outputs instead of that of its weights: where inputs go together, the
    error of one weight is made good by the next ones. Weights that are 0 stay 0 if the grid has a 0 (of integer
    scales: in columns without shifts), so that what `prune` took out stays out.

    Parameters
    ----------
    w : array (k, n) of floats
        The layer is ``x @ w``.
    hessian : Hessian
        Of its inputs x.
    grid : QParams or Codebook, or a tuple (Codebook, scales)
        What `pack` takes: integer codes of at most 16 bits per tensor, per column (``axis=1``) or per block of k
        (``axis=0, block_size=...``), also with integer scales, of which `refit` fits those of columns; levels for all
        values, for each column, or for blocks of k, whose scales are those of `encode` unless they are given.
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
    refit : bool
        Fit the scales of `grid` to the codes before each of these passes, and levels that all weights share, too: the
        result's `params` and `scales` are others then. Scales that all fit float16 remain such.

    Returns
    -------
    GPTQResult
        ``(codes, params, scales, bias, report)``. Codes have the same bits on every instruction set and at any number
        of threads, given the factor of the Hessian, which is LAPACK's, and what is refitted, which is BLAS's.

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
    order, damp, refine = word(order), checked_damp(damp), integer(refine, "refine", 0)
    if not is_a(order, str) or order not in ORDERS:
        raise ValueError(f"order must be {' or '.join(map(repr, ORDERS))}, got {shown(order)}")
    center, refit = boolean(center, "center"), boolean(refit, "refit") and w.shape[1] > 0
    problem = Problem(hessian, order, damp, center)
    unit = grid.take_units(w, refit)
    rounding = _Rounding(np.ldexp(w, -unit), problem, grid)
    if refine and not refit:
        rounding.sums = np.empty_like(rounding.errors)
    errors = [rounding.run(problem.feedback())]
    if refine and not refit:
        problem.start(rounding.errors, rounding.sums)
    for _ in range(refine):
        kept = rounding.kept() if refit else None
        fitted = rounding.refit(problem) if refit else errors[-1]
        errors.append(fitted + rounding.run(problem.corrections()))
        if refit and errors[-1] > errors[-2]:  # as scales in float16 may bring about
            rounding.restore(kept)
            errors.pop()
            break
        if not errors[-1] < errors[-2]:
            break
    bias = times_power(rounding.mean_error(problem.mean), unit) if center else None
    report = {"damp": problem.damp, "dead": np.flatnonzero(problem.dead), "errors": np.array(errors) * problem.unit}
    return GPTQResult(grid.codes(rounding.codes_in_order()), grid.params, grid.scales, bias, report)


class _Rounding(Loop):
    """Hold the codes, too. Weights that are 0 stay 0 where the grid has it."""

    def __init__(self, w, problem, grid):
        zeros = (w == 0) & grid.has_zero()
        grid.keep_zero = bool(zeros.any())
        super().__init__(w, problem, zeros if grid.keep_zero else None)
        self.unit = grid.unit
        self.codes, self.chosen = np.empty(self.w.shape, np.int16), grid
        self.group = np.ascontiguousarray(grid.blocks[self.order], np.int32)
        self._lay_out()

    def run(self, feedback):
        """Give each weight its code. The grid has no shifts if weights are without them, and errors are the same."""
        kept, shifts = self.w, self.chosen.shifts()
        if shifts is not None:
            self.w = kept - padded(shifts, self.columns)[self.group]
        loss = super().run(feedback)
        self.w = kept
        return loss

    def _lay_out(self):
        self.grid = self.codes, self.group, *self.chosen.laid_out(self.columns)

    def refit(self, problem):
        """Fit the grid to the codes; return the error."""
        place, grid = np.argsort(self.order), self.chosen
        h, w = np.stack([problem.matrix[row][place] for row in place]), self.w[place, : self.n]
        codes = self.codes_in_order()
        units = grid.units(codes)
        grid.fit_scales(h, units, w - units * grid.scale[grid.group])
        errors = w - units * grid.scale[grid.group]
        exponent = np.frexp(np.abs(errors).max(axis=0, initial=0))[1]  # in units of which float32 holds squares
        sums = product(h, np.ldexp(errors, -exponent))
        if is_a(grid.params, Codebook) and grid.params.levels.ndim == 1:
            sums -= self._move_levels(h, codes, w, sums, exponent)
            errors = w - grid.units(codes) * grid.scale[grid.group]
        self._lay_out()
        self.errors = self.panels(errors[self.order])
        errors = np.ldexp(errors, -exponent)
        loss = np.sum(np.sum(errors * sums, axis=0, dtype=np.float64) * 4.0 ** (exponent + self.unit))
        self.sums = self.panels(np.ldexp(sums - np.diagonal(h)[:, None] * errors, exponent)[self.order])
        return loss

    def _move_levels(self, h, codes, w, sums, exponent):
        """Fit levels that all weights share, as far as that gains over all columns; return what it takes from sums."""
        grid = self.chosen
        moves = grid.moves_of_levels(h, codes, w)
        moved = np.ldexp(moves.astype(np.float32)[codes] * grid.scale[grid.group], -exponent)
        by = product(h, moved)
        step = _best_step(moved, sums, by, 4.0**exponent)
        grid.move_levels(step * moves)
        by *= np.float32(step)
        return by

    def kept(self):
        """Return the result as it stands now, for `restore`."""
        grid = self.chosen
        return self.codes.copy(), self.errors.copy(), grid.params, grid.scales, grid.ranks

    def restore(self, kept):
        grid = self.chosen
        self.codes, self.errors, grid.params, grid.scales, grid.ranks = kept

    def codes_in_order(self):
        codes = np.empty((len(self.w), self.n), np.int16)
        codes[self.order] = self.codes[:, : self.n]
        return codes


class _Grid:
    """Hold a grid for weights w (k, n): params and scales for the result, and the group of scales of each row.

    `scale` is that of weights in the units of `take_units`.
    """

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
            self.integers = None
            if grid.block_scale is not None:
                self.integers = grid.block_scale.astype(np.float32), 3 * grid.block_shift.astype(np.float32)
        else:
            raise TypeError(f"grid must be QParams, a Codebook or a tuple (Codebook, scales), got {shown(grid)}")
        with np.errstate(over="ignore", under="ignore"):
            self.kept = np.float16 if np.array_equal(self.scale, np.float16(self.scale)) else np.float32
        self.unit, self.ends = 0, np.float32([np.finfo(self.kept).tiny, np.finfo(self.kept).max])
        size = self.params.block_size
        self.blocks = np.zeros(len(w), np.int64) if size is None else np.arange(len(w)) // size
        self.group = self.blocks if len(self.scale) > 1 else np.zeros(len(w), np.int64)
        self.keep_zero, self.ranks = False, None

    def take_units(self, w, refit):
        """Take weights in units of powers of two, of each column, or of all where they share what is fitted."""
        exponents = np.frexp(np.abs(w).max(axis=0, initial=0))[1]
        if refit and (self.params.axis is None or is_a(self.params, Codebook) and self.params.levels.ndim == 1):
            exponents[:] = exponents.max(initial=0)
        self.unit = exponents - np.clip(exponents, -LARGEST, LARGEST)
        scale = np.ldexp(self.scale, -self.unit)
        least = np.copysign(np.finfo(np.float32).tiny, scale)
        self.scale = np.where(self.unit, np.where(np.abs(scale) > np.abs(least), scale, least), self.scale)
        return self.unit

    def has_zero(self):
        """Tell of all columns, or of each, whether 0 is a point of the grid."""
        if not is_a(self.params, QParams):
            return (self.params.levels.reshape(-1, self.params.k) == 0).any(axis=1)
        return True if self.integers is None else (self.integers[1] == 0).all(axis=0)

    def laid_out(self, columns):
        """Return what C takes."""
        if is_a(self.params, QParams):
            scale, zero = self.scale, self.zero
            if self.integers is not None:
                scale = scale * self.integers[0]
                zero = np.broadcast_to(zero, scale.shape)
            return padded(scale, columns, 1), padded(zero, columns), self.params.qmin, self.params.qmax
        scale = padded(self.scale, columns, 1)
        levels = self.params.levels.reshape(-1, self.params.k)
        self.ranks, thresholds = thresholds_of(levels, np.float32)
        n = self.scale.shape[1]
        levels, thresholds = (
            padded(np.broadcast_to(a.T, (a.shape[1], n)), columns)
            for a in (np.take_along_axis(levels, self.ranks.astype(np.intp), axis=1), thresholds)
        )
        return scale, levels, thresholds

    def shifts(self):
        """Return what is added to the values of each block (blocks, n), or None."""
        if not is_a(self.params, QParams) or self.integers is None:
            return None
        return self.scale * self.integers[1]

    def units(self, codes):
        """Return what codes (k, n) stand for in units of scales: integers or levels."""
        if is_a(self.params, QParams):
            units = np.float32(codes - self.zero[self.group])
            if self.integers is not None:
                scale, shift = self.integers
                units = scale[self.blocks] * units + shift[self.blocks]
            return units
        levels = np.take_along_axis(self.params.levels.reshape(-1, self.params.k), self.ranks.astype(np.intp), axis=1)
        return levels[0 if len(levels) == 1 else np.arange(codes.shape[1]), codes]

    def fit_scales(self, h, units, errors):
        """Fit the scales of one group of rows after another, given the errors, which are changed."""
        if is_a(self.params, Codebook) and self.scales is None:
            return
        scale, shared = np.array(self.scale), self.params.axis is None
        for group, old in enumerate(scale):
            rows = slice(*np.searchsorted(self.group, [group, group + 1]))
            own = units[rows]
            gain, weight = ((own * by).sum(axis=0) for by in (product(h[rows], errors), product(h[rows, rows], own)))
            gain, weight = (np.full_like(a, a.sum()) if shared else a for a in (gain, weight))
            found = old + np.divide(gain, weight, out=np.zeros_like(gain), where=weight > 0)
            least, most = (np.ldexp(end, -self.unit) for end in self.ends)
            size = found if self.scales is None else np.abs(found)
            new = np.where((size >= least) & (size <= most), found, old)
            new = np.ldexp(np.ldexp(new, self.unit).astype(self.kept).astype(np.float32), -self.unit)
            errors[rows] -= own * (new - old)
            scale[group] = new
        self.scale, scale = scale, np.ldexp(scale, self.unit)
        if self.scales is not None:
            self.scales = scale
        else:
            p = self.params
            fitted = (scale[:, 0] if shared else scale).reshape(p.scale.shape)
            options = dict(axis=p.axis, block_size=p.block_size, narrow_range=p._narrow_range)
            options |= dict(block_scale=p.block_scale, block_shift=p.block_shift)
            self.params = QParams(fitted, p.zero_point, p.dtype, **options)

    def moves_of_levels(self, h, codes, w):
        """Return what takes levels that all weights share to those of least error, as some of the columns tell it."""
        book = self.params
        scale_unit = _exponent(self.scale)  # float32 holds the sums in these units
        level_unit = _exponent(w) - scale_unit
        scale, w = np.ldexp(self.scale, -scale_unit), np.ldexp(w, -scale_unit - level_unit)
        unknown, known, each = np.zeros((book.k, book.k)), np.zeros(book.k), np.arange(len(w))
        for column, weight in _sample(w):
            chosen = np.zeros((len(w), book.k), np.float32)
            chosen[each, codes[:, column]] = scale[self.group, column]
            products = h @ chosen
            unknown += weight * (chosen.T @ products)
            known += weight * (products.T @ w[:, column])
        levels = np.ldexp(book.levels[self.ranks[0]].astype(np.float64), -level_unit)
        free = levels != 0 if self.keep_zero else np.full(book.k, True)
        gain, moves = known - unknown @ levels, np.zeros(book.k)
        moves[free] = np.linalg.lstsq(unknown[np.ix_(free, free)], gain[free], rcond=None)[0]
        return np.ldexp(moves, level_unit)

    def move_levels(self, moves):
        """Add to levels, in the order of ranks; those that several ranks have stay those of the first of them."""
        book, order = self.params, self.ranks[0]
        levels = np.array(book.levels)
        levels[order[::-1]] = (book.levels[order].astype(np.float64) + moves)[::-1]
        self.params = Codebook(levels, axis=book.axis, block_size=book.block_size)

    def codes(self, codes):
        """Return codes as `pack` takes them."""
        if is_a(self.params, QParams):
            return codes.astype(np.int32).astype(self.params.dtype)
        ranks = np.broadcast_to(self.ranks, (codes.shape[1], self.params.k))
        return ranks[np.arange(codes.shape[1]), codes]


def _best_step(moved, sums, by, weights):
    """Return how much of a move gains most: its products with what errors and it itself make, over columns."""
    gain, size = (np.einsum("kn,kn,n->", moved, of, weights, dtype=np.float64) for of in (sums, by))
    return gain / size if size > 0 else 0.0


def _sample(w):
    """Return at most SAMPLE columns, those of large weights more often, and how much each counts."""
    n = w.shape[1]
    if n <= SAMPLE:
        return [(column, 1.0) for column in range(n)]
    size = np.einsum("kn,kn->n", w, w, dtype=np.float64)
    total = np.cumsum(size)
    found = np.searchsorted(total, total[-1] * (np.arange(SAMPLE) + 0.5) / SAMPLE)
    return [(column, total[-1] / (SAMPLE * size[column])) for column in found if size[column]]


def _exponent(x):
    """Return the exponent of the power of two that all magnitudes are below."""
    return int(np.frexp(np.abs(x).max(initial=0))[1])


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
    if params.block_scale is not None:
        params.check_shape(w.shape, "w")
        return values[None]
    if axis is not None and values.shape != shape:
        raise ValueError(f"scale of grid must have shape {shape} to match w {w.shape}, got {values.shape}")
    rows = shape[0] if size else 1
    return np.broadcast_to(values.reshape(rows, n) if axis is not None else values, (rows, n))
