"""Calibrate: look at data part by part, in constant memory, and choose parameters for all of it.

Every observer has `update`, `merge` (but for `MovingAverage`), `qparams`, `to_arrays` and `from_arrays`, and can be
pickled. Formulas: docs/numerics.md, section 24.
"""

import numpy as np

from ._bind import histograms
from ._checks import (
    FLOAT32,
    array_named,
    arrays_named,
    check_axis,
    checked_blocks,
    float_array,
    number_named,
    real,
    shown,
    within_64_bits,
)
from ._choose import PERCENTILE, bounds_of, check_codes, choose_scheme, outward, params_of_counts, params_of_range
from ._histogram import COARSE, FINE, LARGEST, count, new_histogram, percentile_within
from ._mode import default_mode
from ._qparams import QParams, code_dtype
from ._value import Lockable, both_locked, restored

__all__ = ["Entropy", "MSE", "MinMax", "MovingAverage", "Percentile"]


class _Observer(Lockable):
    """Hold what all observers have in common.

    What has been seen is one object, which changes at once: Ctrl-C finds it before or after an update.
    """

    _settings: tuple[str, ...] = ()  # names of numbers besides the axis

    def __init__(self, axis):
        super().__init__()
        self._axis = checked_blocks(axis, None)[0]

    @property
    def axis(self):
        """The axis each of whose indices has parameters of its own, or None."""
        return self._axis

    @property
    def count(self):
        """How many values have been seen."""
        return self._held()[0]

    @default_mode
    def update(self, x):
        """Look at more values.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16
            Finite. With `axis`, of the same length along it each time. An empty array changes nothing.

        Returns
        -------
        The observer itself.

        Raises
        ------
        TypeError, ValueError
            If x is no float array, holds NaN or infinity, reaches beyond the range of float32, or does not have the
            axis or its length. Nothing of x has been taken into account then; if Ctrl-C interrupts, nothing or all.
        """
        x = float_array(x)
        check_axis(self._axis, x)
        if x.size:
            with self._locked():
                seen, lines = self._held()
                if seen and lines != (1 if self._axis is None else x.shape[self._axis]):
                    raise ValueError(f"x must have length {lines} along axis {self._axis}, got shape {x.shape}")
                within_64_bits(seen + x.size)
                self._add(x)
        return self

    @default_mode
    def merge(self, other):
        """Take over what another observer has seen: the state is that of one observer that has seen both, bit for bit.

        Parameters
        ----------
        other : observer
            Of the same class and settings. It stays as it is.

        Returns
        -------
        The observer itself.

        Raises
        ------
        TypeError, ValueError
            If the other is of another class, has other settings, or has seen arrays of another length along `axis`.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be an observers.{type(self).__name__}, got {shown(other)}")
        for name in ("axis", *self._settings):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"other must have {name} {getattr(self, name)}, got {getattr(other, name)}")
        with both_locked(self, other):
            (seen, lines), (more, others) = self._held(), other._held()
            if not more:
                return self
            if seen and lines != others:
                raise ValueError(f"other must have seen arrays of length {lines} along axis {self._axis}, got {others}")
            within_64_bits(seen + more)
            self._join(other)
        return self

    @default_mode
    def qparams(self, dtype="int8", *, symmetric=None, narrow_range=None):
        """Choose parameters for all that has been seen.

        Parameters
        ----------
        dtype, symmetric, narrow_range
            As for `qkernels.choose_qparams`.

        Returns
        -------
        QParams
            One scale, or one for each index of `axis`.

        Raises
        ------
        ValueError
            If nothing has been seen.
        """
        dtype = code_dtype(dtype)
        scheme = choose_scheme(dtype, symmetric, narrow_range)
        if not self.count:
            raise ValueError(f"observers.{type(self).__name__} has seen no values: update it with some first")
        with self._locked():
            return self._params(dtype, scheme)

    def empty(self):
        """Return an observer of the same settings that has seen nothing."""
        return type(self)(**{name: getattr(self, name) for name in ("axis", *self._settings)})

    def to_arrays(self):
        """Return plain arrays that hold all of its state, for safetensors, npz and the like, as a dict by name."""
        with self._locked():
            arrays = {"count": np.array(self.count, np.int64)} | self._state()
        if self._axis is not None:
            arrays["axis"] = np.array(self._axis, np.int64)
        return arrays | {name: np.array(getattr(self, name), np.float64) for name in self._settings}

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Return the observer whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        names = ("count", *cls._arrays, *cls._settings)
        arrays = arrays_named(arrays, names, ("axis",))
        settings = {name: real(array_named(arrays, name, np.float64), name) for name in cls._settings}
        made = cls(axis=number_named(arrays, "axis") if "axis" in arrays else None, **settings)
        made._restore(arrays, within_64_bits(number_named(arrays, "count", 0)))
        return made

    def __reduce__(self):
        return restored, (type(self), self.to_arrays())

    @default_mode
    def __repr__(self):
        names = [name for name in ("axis", *self._settings) if getattr(self, name) is not None]
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"<observers.{type(self).__name__}({options}): {self.count} values>"


# ---- ranges ----


class _Range(_Observer):
    """Hold the bounds of each line, and 0."""

    _arrays = ("lo", "hi")
    _dtype = FLOAT32

    def __init__(self, axis):
        super().__init__(axis)
        self._seen = 0, np.zeros((2, 0), self._dtype)  # count, and bounds

    def _held(self):
        """Return how many values have been seen, and of how many lines."""
        count, bounds = self._seen
        return count, bounds.shape[1]

    def _params(self, dtype, scheme):
        lo, hi = (outward(bound, end) for bound, end in zip(self._seen[1], (-np.inf, np.inf), strict=True))
        if self._axis is None:
            lo, hi = lo[0], hi[0]
        scale, zero_point = params_of_range(lo, hi, dtype, scheme)
        return QParams(scale, zero_point, dtype, axis=self._axis, narrow_range=scheme[1])

    def _add(self, x):
        self._take(x.size, np.array(bounds_of(x, self._axis, None), self._dtype).reshape(2, -1))

    def _take(self, more, bounds):
        """Take over the bounds, with 0, of so many more values, (2, lines)."""
        count, before = self._seen
        self._seen = count + more, self._joined(before, bounds) if count else bounds

    def _state(self):
        return dict(zip(self._arrays, self._seen[1].copy(), strict=True))

    def _restore(self, arrays, count):
        lo, hi = (array_named(arrays, name, self._dtype) for name in self._arrays)
        if lo.ndim != 1 or lo.shape != hi.shape or (count > 0) != (len(lo) > 0) or (self._axis is None and len(lo) > 1):
            raise ValueError(f"lo and hi must have one shape, (lines,), got {lo.shape}, {hi.shape} and count {count}")
        if not np.all((lo <= 0) & (hi >= 0) & (lo >= -LARGEST) & (hi <= LARGEST)):
            raise ValueError("lo must not be above 0 and hi not below, both finite in float32")
        self._seen = count, np.array([lo, hi], self._dtype)


class MinMax(_Range):
    """Keep the smallest and the largest value, and 0: nothing that has been seen saturates.

    Parameters
    ----------
    axis : int, optional
        One scale per index of that axis. None: one for all values.

    Examples
    --------
    >>> seen = qk.observers.MinMax().update(np.float32([-1, 0.5])).update(np.float32([3]))
    >>> seen.qparams("uint8")
    QParams(scale=0.015686275, zero_point=64, dtype='uint8')
    """

    def __init__(self, *, axis=None):
        super().__init__(axis)

    def _join(self, other):
        self._take(*other._seen)

    def _joined(self, one, other):
        return np.array([np.minimum(one[0], other[0]), np.maximum(one[1], other[1])])


class MovingAverage(_Range):
    """Keep averages of the smallest and the largest value of each update, later ones counting more.

    The first update gives the bounds; each later one moves them by `rate` of what its own bounds, and 0, differ from
    them. So the result depends on how data are divided and in which order they come: there is no `merge`.

    Parameters
    ----------
    axis : int, optional
        One scale per index of that axis. None: one for all values.
    rate : float
        Above 0, at most 1.

    Examples
    --------
    >>> seen = qk.observers.MovingAverage(rate=0.5).update(np.float32([1])).update(np.float32([2]))
    >>> seen.qparams("uint8").scale * 255
    np.float32(1.5)
    """

    _settings = ("rate",)
    _dtype = np.dtype(np.float64)

    @default_mode
    def __init__(self, *, axis=None, rate=0.01):
        super().__init__(axis)
        self._rate = real(rate, "rate")
        if not 0 < self._rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, got {self._rate!r}")

    @property
    def rate(self):
        """How much of a difference each update takes over."""
        return self._rate

    def _joined(self, before, bounds):
        return before + self._rate * (bounds - before)

    def merge(self, other):
        """Raise TypeError: an average that depends on the order of its updates cannot be merged."""
        raise TypeError("observers.MovingAverage depends on the order of its updates: it cannot be merged")


# ---- histograms ----


def _sums_to(count, counts, lines):
    """Tell whether no count of a line is negative, and all sum to its share of `count`."""
    return counts.min(initial=0) >= 0 and counts.sum(dtype=float) <= 2.0**63 and int(counts.sum()) * lines == count


class _Counted(_Observer):
    """Hold the histogram of each line."""

    _arrays = ("blocks", "counts", "ranks")
    _method = ""

    def __init__(self, axis):
        super().__init__(axis)
        self._histogram = None

    def _held(self):
        histogram = self._histogram
        return (0, 0) if histogram is None else (histogram.total, histogram.lines)

    def _add(self, x):
        histogram = new_histogram(x, self._axis) if self._histogram is None else self._histogram
        count(histogram, x, self._axis)
        self._histogram = histogram

    def _join(self, other):
        histogram, more = self._histogram, other._histogram
        if histogram is None:
            histogram = histograms.Histogram(more.lines, more.bits)
        histogram.merge(more)
        self._histogram = histogram

    def _params(self, dtype, scheme):
        check_codes(self._method, dtype)
        options = {name: getattr(self, name) for name in self._settings}
        return params_of_counts(self._histogram, self._method, dtype, scheme, self._axis, **options)

    def _state(self):
        bits = FINE if self._axis is None else COARSE
        histogram = self._histogram or histograms.Histogram(0, bits)
        return dict(zip(self._arrays, histogram.read(0, histogram.lines), strict=True))

    def _restore(self, arrays, count):
        bits = FINE if self._axis is None else COARSE
        blocks = array_named(arrays, "blocks", np.uint16)
        counts, ranks = array_named(arrays, "counts", np.int64), array_named(arrays, "ranks", np.int32)
        lines = len(counts) if counts.ndim else 0
        if blocks.ndim != 1 or counts.shape != (lines, len(blocks), 2**bits) or ranks.shape != (2, lines):
            raise ValueError(
                f"blocks, counts and ranks must have shapes (b,), (lines, b, {2**bits}) and (2, lines), "
                f"got {blocks.shape}, {counts.shape} and {ranks.shape}"
            )
        if np.any(ranks[0] > ranks[1]) or np.any(ranks > 0x7F7FFFFF) or np.any(ranks < -0x7F800000):
            raise ValueError("ranks must be those of finite numbers, the first not above the second")
        if np.any(blocks % 256 == 255) or np.any(blocks > 511) or np.any(blocks[1:] <= blocks[:-1]):
            raise ValueError("blocks must ascend, below 511 and without 255")
        if self._axis is None and lines > 1 or not all(_sums_to(count, line, lines) for line in counts):
            raise ValueError(f"counts must not be negative, and those of each line sum to count / {lines}, {count}")
        if lines:
            self._histogram = histograms.Histogram(lines, bits)
            self._histogram.write(blocks, np.ascontiguousarray(counts, np.int64), np.ascontiguousarray(ranks, np.int32))
        elif count:
            raise ValueError(f"counts must hold {count} values, got none")


class Percentile(_Counted):
    """Choose the smallest range that leaves out no more than a share of the values, so that outliers saturate.

    Symmetric parameters leave out the largest magnitudes, others as many values at either end. The ends of the range
    are those of bins, off by a relative 2**-10 at most (2**-7 with `axis`).

    Parameters
    ----------
    axis : int, optional
        One scale per index of that axis. None: one for all values.
    percentile : float
        How much of the values must not saturate: above 0, at most 100.

    Examples
    --------
    >>> x = np.float32(np.arange(1000))
    >>> x[7] = 1e30
    >>> qk.observers.Percentile(percentile=99.8).update(x).qparams("uint8").scale
    np.float32(3.9196076)
    """

    _settings, _method = ("percentile",), "percentile"

    @default_mode
    def __init__(self, *, axis=None, percentile=PERCENTILE):
        super().__init__(axis)
        self._percentile = percentile_within(percentile)

    @property
    def percentile(self):
        """How much of the values must not saturate."""
        return self._percentile


class Entropy(_Counted):
    """Choose the range whose codes tell the most of the distribution: the least relative entropy (KL divergence).

    Values that are 0, which every range holds exactly, do not count. For integer codes.

    Parameters
    ----------
    axis : int, optional
        One scale per index of that axis. None: one for all values.

    References
    ----------
    Migacz, *8-bit Inference with TensorRT*, 2017.

    Examples
    --------
    >>> x = np.float32(np.random.default_rng(0).normal(0, 1, 100_000))
    >>> x[0] = 1e30
    >>> 2 < qk.observers.Entropy().update(x).qparams("int8").scale * 127 < 6
    np.True_
    """

    _method = "entropy"

    def __init__(self, *, axis=None):
        super().__init__(axis)


class MSE(_Counted):
    """Choose the parameters of the least squared error of all that has been seen, as well as its histogram tells.

    With the middle of its bin for each value, the result is the optimum, as that of method "mse" of
    `qkernels.choose_qparams` is for the values themselves. For integer codes.

    Parameters
    ----------
    axis : int, optional
        One scale per index of that axis. None: one for all values.

    Examples
    --------
    >>> x = np.float32(np.random.default_rng(0).normal(0, 1, 100_000))
    >>> [round(float(params.scale), 3) for params in
    ...  (qk.observers.MSE().update(x).qparams("int4"), qk.choose_qparams(x, "int4", method="mse"))]
    [0.354, 0.354]
    """

    _method = "mse"

    def __init__(self, *, axis=None):
        super().__init__(axis)
