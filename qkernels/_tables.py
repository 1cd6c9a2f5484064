"""Find the nearest codes of functions, by exact arithmetic near ties. Formulas: docs/numerics.md, section 23."""

import math
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache

import numpy as np

from ._bind import elementwise, integer_layers
from ._bind.arrays import FLOATS
from ._bind.runtime import word
from ._checks import as_array, is_a, shown
from ._mode import default_mode, mode_of_caller


def table_of(function, params, out_params):
    """Return what `make_table` does."""
    named = _function_of(function)
    integer_layers.check_params(params, "params")
    integer_layers.check_params(out_params, "out_params")
    if named is None:
        return _nearest_codes(_values_of(mode_of_caller(function)(_inputs(params))), None, out_params)
    return _named_table(named, params, out_params)


@default_mode
def _named_table(named, params, to):
    least, scale = np.iinfo(params.dtype).min - int(params.zero_point), Fraction(float(params.scale))
    values = named(_inputs(params), _Doubles)
    return _nearest_codes(values, lambda i: named((least + i) * scale, _Fractions), to)


@default_mode
def _inputs(params):
    """Return the real value of each code, ascending: exact in float64."""
    least = np.iinfo(params.dtype).min
    return (np.arange(least, least + 256) - int(params.zero_point)) * float(params.scale)


class _Doubles:
    """Give the named functions what they need, on float64 arrays."""

    exp, expm1, log1p, tanh = np.exp, np.expm1, np.log1p, np.tanh

    @staticmethod
    def erfc(x):
        return np.array([math.erfc(v) for v in x])

    @staticmethod
    def clip(x, lo, hi):
        return np.clip(x, lo, hi)


class _Fractions:
    """Give them the same on rational numbers: with errors below 10**-100 of the value's size (numerics 23)."""

    context = Context(prec=300, Emin=-999999, Emax=999999, traps=[])

    @classmethod
    def decimal(cls, x):
        return cls.context.divide(Decimal(x.numerator), Decimal(x.denominator))

    @classmethod
    def exp(cls, x):
        return Fraction(cls.context.exp(cls.decimal(cls.clip(x, -250, 250))))

    @classmethod
    def expm1(cls, x):
        return cls.exp(x) - 1

    @classmethod
    def tanh(cls, x):
        return 1 - 2 / (1 + cls.exp(2 * x))

    @classmethod
    def log1p(cls, x):
        return Fraction(cls.context.ln(cls.decimal(1 + x)))

    @classmethod
    def erfc(cls, x):
        """Return 1 - erf: ``2 / sqrt(pi) exp(-x**2) x`` times the sum of ``(2 x**2)**n / (2 n + 1)!!``."""
        c, x = cls.context, cls.decimal(cls.clip(x, -16, 16))
        square, term, total, n = c.multiply(x, x), x, x, 0
        while abs(term) > abs(total) * Decimal("1e-290"):
            n += 1
            term = c.divide(c.multiply(term, 2 * square), Decimal(2 * n + 1))
            total = c.add(total, term)
        factor = c.divide(c.multiply(2, c.exp(-square)), c.sqrt(cls.pi()))
        return 1 - Fraction(c.multiply(factor, total))

    @classmethod
    @cache
    def pi(cls):
        """Return pi, by Machin's formula."""

        def arctan_of_inverse(n):
            return sum((-1) ** k * Fraction(1, (2 * k + 1) * n ** (2 * k + 1)) for k in range(450 // len(str(n))))

        return cls.decimal(16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239))

    @staticmethod
    def clip(x, lo, hi):
        return min(max(x, Fraction(lo)), Fraction(hi))


def _sqrt(x):
    """Return the root of a number as a fraction."""
    return Fraction(_Fractions.context.sqrt(_Fractions.decimal(x)))


def _of(x, exact):
    """Return a constant as x is: a float, or a fraction."""
    return exact if isinstance(x, Fraction) else float(exact)


def _sigmoid(x, of):
    return 1 / (1 + of.exp(-x))


def _gelu_tanh(x, of):
    return x / (1 + of.exp(-2 * _of(x, _root_2_over_pi()) * (x + _of(x, Fraction(44715, 10**6)) * x * x * x)))


@cache
def _root_2_over_pi():
    return _sqrt(2 / Fraction(_Fractions.pi()))


@cache
def _root_2():
    return _sqrt(Fraction(2))


def _negative_part(x, of):
    return of.clip(x, -math.inf, 0) if of is _Doubles else min(x, Fraction(0))


# Each of x and of the functions that it needs.
FUNCTIONS = {
    "sigmoid": _sigmoid,
    "tanh": lambda x, of: of.tanh(x),
    "exp": lambda x, of: of.exp(x),
    "gelu": lambda x, of: x * of.erfc(-x / _of(x, _root_2())) / 2,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x, of: x / (1 + of.exp(-x)),
    "hard_swish": lambda x, of: x * of.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x, of: of.clip(x + 3, 0, 6) / 6,
    "leaky_relu": lambda x, of: x - _of(x, Fraction(99, 100)) * _negative_part(x, of),
    "elu": lambda x, of: x - _negative_part(x, of) + of.expm1(_negative_part(x, of)),
    "softplus": lambda x, of: x - _negative_part(x, of) + of.log1p(of.exp(-abs(x))),
}


def _function_of(function):
    """Return the entry of FUNCTIONS that has this name, or None of a callable."""
    name = word(function)
    if is_a(name, str):
        if name in FUNCTIONS:
            return FUNCTIONS[name]
    elif callable(function):
        return None
    raise ValueError(f"function must be callable or one of {', '.join(FUNCTIONS)}, got {shown(function)}")


def _values_of(result):
    y = as_array(result, "function")
    if y.shape != (256,) or y.dtype.kind not in "fiu" and y.dtype.newbyteorder("=") not in FLOATS:
        raise ValueError(f"function must give 256 real numbers, got {y.dtype} of shape {y.shape}")
    return y


@default_mode
def _nearest_codes(values, exact, params):
    """Return the codes nearest to values, of which exact(i), or else the double itself, decides those near ties."""
    y = np.ascontiguousarray(values, np.float64)
    codes = elementwise.quantize(y, params, "half_even", None)
    scale, zero_point = Fraction(float(params.scale)), int(params.zero_point)
    v = y / float(params.scale)
    unclear = (np.abs(v - np.floor(v) - 0.5) < 2.0**-20) & (np.abs(v) < 1024)
    if exact:
        unclear |= ~np.isfinite(y)  # 0 times infinity
    for i in np.flatnonzero(unclear).tolist():
        value = exact(i) if exact else Fraction(float(y[i]))
        codes[i] = min(max(round(value / scale) + zero_point, params.qmin), params.qmax)
    return codes
