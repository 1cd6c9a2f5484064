"""Look at the inputs of a layer: `Hessian`. Formulas: docs/numerics.md, section 29."""

from contextlib import contextmanager

import numpy as np

from ._blas import add_gram, mirror
from ._checks import (
    array_named,
    arrays_named,
    finite_float32,
    float_array,
    integer,
    number_named,
    shown,
    within_64_bits,
)
from ._mode import default_mode
from ._value import Lockable, restored

ROWS = 4096  # that a product sums; fewer wait
LEAST, MOST = 2.0**-100, 2.0**127  # float32 sums of squares, of an input and of all, that may stand in float32
SLACK = 1 + 2.0**-10  # more than rounding of sums in float32
PART = 2**22  # entries of a matrix that are looked at together
FIRST = 64  # rows in which nearly all inputs show that they are not small


class Hessian(Lockable):
    """Sum up the inputs of a layer, and their products with one another, in constant memory.

    What `gptq` and `sensitivity` ask of data: of rows x of inputs, their number, ``sum(x)`` and ``sum(outer(x, x))``,
    half the Hessian of a linear layer's squared error.

    Parameters
    ----------
    k : int
        How many inputs the layer has.

    References
    ----------
    Frantar and Alistarh, *Optimal Brain Compression*, 2022; docs/numerics.md, section 29.

    Examples
    --------
    >>> seen = qk.Hessian(2).update(np.float32([[1, 2], [3, 4]])).update(np.float32([5, 6]))
    >>> seen.count, seen.sum, seen.moments
    (3, array([ 9., 12.]), array([[35., 44.],
           [44., 56.]]))
    """

    @default_mode
    def __init__(self, k):
        k = integer(k, "k", 1)
        if k > 1 << 20:
            raise ValueError(f"k must be at most 2**20, got {k}")
        super().__init__()
        self._count, self._sum = 0, np.zeros(k)
        self._moments = np.zeros((k, k))  # as add_gram fills it
        self._waiting, self._buffer = 0, None
        self._broken = False  # while sums are not all of the same rows, and after what fails in between

    @property
    def k(self):
        """How many inputs the layer has."""
        return len(self._sum)

    @property
    def count(self):
        """How many rows have been seen."""
        with self._whole():
            return self._count

    @property
    def sum(self):
        """The sum of the rows, float64 (k,)."""
        return self._totals()[1]

    @property
    def moments(self):
        """The sum of the products of each two inputs, float64 (k, k)."""
        return self._totals()[2]

    @default_mode
    def update(self, x):
        """Look at more rows.

        Parameters
        ----------
        x : array (..., k) of float32, float64, float16 or bfloat16
            Finite, within the range of float32, to which float64 is rounded. An empty array changes nothing.

        Returns
        -------
        The object itself. Its bits do not depend on how rows are divided among updates.

        Raises
        ------
        TypeError, ValueError
            If x is no float array, does not have k columns, or holds NaN or infinity. Nothing of x has been taken into
            account then.
        RuntimeError
            If Ctrl-C, or a lack of memory, ended an earlier update or merge while it summed rows: sums do not belong
            together then, and all that would use the object raises this.
        """
        x = float_array(x)
        if x.ndim < 1 or x.shape[-1] != self.k:
            raise ValueError(f"x must have k = {self.k} columns, got shape {x.shape}")
        rows = finite_float32(x).reshape(-1, self.k)
        with self._whole():
            count = _counted(self._count + len(rows))
            if self._buffer is None and len(rows) % ROWS:
                self._buffer = np.empty((ROWS, self.k), np.float32)
            self._broken = True
            while len(rows):
                if not self._waiting and len(rows) >= ROWS:
                    _add(self._sum, self._moments, rows[:ROWS])
                    rows = rows[ROWS:]
                    continue
                taken = min(ROWS - self._waiting, len(rows))
                self._buffer[self._waiting : self._waiting + taken] = rows[:taken]
                self._waiting, rows = self._waiting + taken, rows[taken:]
                if self._waiting == ROWS:
                    _add(self._sum, self._moments, self._buffer)
                    self._waiting = 0
            self._count, self._broken = count, False
        return self

    @default_mode
    def merge(self, other):
        """Add what another one has seen.

        Parameters
        ----------
        other : Hessian
            Of the same k. It stays as it is.

        Returns
        -------
        The object itself: the sums of both, in float64.

        Raises
        ------
        TypeError, ValueError
            If `other` is no Hessian, or of another k.
        RuntimeError
            As for `update`, of either.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a Hessian, got {shown(other)}")
        if other.k != self.k:
            raise ValueError(f"other must have k {self.k}, got {other.k}")
        count, sums, moments = other._totals()
        with self._whole():
            count = _counted(self._count + count)
            self._broken = True
            if self._waiting:
                _add(self._sum, self._moments, self._buffer[: self._waiting])
                self._waiting = 0
            self._sum += sums
            self._moments += moments
            self._count, self._broken = count, False
        return self

    def to_arrays(self):
        """Return plain arrays that hold all of its state, for safetensors, npz and the like, as a dict by name."""
        count, sums, moments = self._totals()
        return {"count": np.array(count, np.int64), "sum": sums, "moments": moments}

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Return the Hessian whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        names = ("count", "sum", "moments")
        arrays = arrays_named(arrays, names)
        sums, moments = (array_named(arrays, name, np.dtype(np.float64)) for name in names[1:])
        if sums.ndim != 1 or moments.shape != (len(sums),) * 2 or not len(sums):
            raise ValueError(f"sum and moments must have shapes (k,) and (k, k), got {sums.shape} and {moments.shape}")
        if not (np.isfinite(sums).all() and np.isfinite(moments).all()):
            raise ValueError("sum and moments must be finite")
        if np.any(moments != moments.T) or np.any(np.diagonal(moments) < 0):
            raise ValueError("moments must be symmetric, and those of an input with itself not negative")
        count = _counted(number_named(arrays, "count", 0))
        if np.any(np.abs(sums) > SLACK * np.sqrt(float(count)) * np.sqrt(np.diagonal(moments))):
            raise ValueError(f"sum must be such as {count} rows of these moments have, at most sqrt(count * moments)")
        if not count and moments.any():
            raise ValueError(f"moments of no rows must be 0, got {moments.max()}")
        made = cls(len(sums))
        made._count, made._sum[:], made._moments[:] = count, sums, moments
        return made

    def __reduce__(self):
        return restored, (type(self), self.to_arrays())

    def __repr__(self):
        return f"<Hessian({self.k}): {self._count} rows>"

    def _matrix(self, center):
        """Return the mean product of each two inputs, or their covariance; the mean of each, and of its square."""
        count, sums, moments = self._totals()
        mean, squares = sums / count, np.diagonal(moments) / count
        for part in _parts(self.k):
            moments[part] /= count
            if center:
                moments[part] -= np.multiply.outer(mean[part], mean)
        return moments, mean, squares

    @contextmanager
    def _whole(self):
        """Lock the object, or raise if its sums do not belong together."""
        with self._locked():
            if self._broken:
                raise RuntimeError("this Hessian was interrupted while it summed rows: make a new one")
            yield

    @default_mode
    def _totals(self):
        """Return count, sum and moments of all rows, those that wait too, as they are between two updates."""
        with self._whole():
            count, sums, moments = self._count, self._sum.copy(), np.empty((self.k, self.k))
            for part in _parts(self.k):
                moments[part] = self._moments[part]
            if self._waiting:
                _add(sums, moments, self._buffer[: self._waiting])
        return count, sums, mirror(moments)


def _parts(k):
    """Yield rows of a matrix (k, k), some at a time: signals are heard in between."""
    step = -(-PART // k)
    for first in range(0, k, step):
        yield slice(first, first + step)


def _counted(rows):
    return within_64_bits(rows, "a Hessian", "rows")


def _add(sums, moments, rows):
    """Add the sum of rows, and of their products: of float32, but where squares would leave it."""
    flat = rows.reshape(-1)
    if not flat @ flat < MOST or _has_small(rows):
        rows = rows.astype(np.float64)
    sums += np.ones(len(rows), rows.dtype) @ rows
    add_gram(moments, rows)


def _has_small(rows):
    """Tell whether there is an input that is not 0, and whose sum of squares loses bits in float32."""
    first = rows[:FIRST]
    suspected = rows[:, np.einsum("ij,ij->j", first, first) < LEAST]
    return bool((suspected.any(axis=0) & (np.einsum("ij,ij->j", suspected, suspected) < LEAST)).any())


def checked_hessian(hessian, w):
    """Raise unless this is a Hessian of the inputs of weights w, which are a matrix, and has seen some."""
    if type(hessian) is not Hessian:
        raise TypeError(f"hessian must be a Hessian, got {shown(hessian)}")
    if w.ndim != 2 or len(w) != hessian.k:
        raise ValueError(f"w must have shape (k, n), k = {hessian.k} being that of the hessian, got {w.shape}")
    if not hessian.count:
        raise ValueError("hessian has seen no rows: update it with some first")
