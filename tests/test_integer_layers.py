"""Layers on codes: their laws against exact arithmetic, the bounds of docs/numerics.md, and equal bits everywhere."""

from fractions import Fraction
from functools import partial

import ml_dtypes
import mpmath
import numpy as np
import pytest
from common import ANY_AXES, code_range, fused, random_codes, refusals, refuse
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import qkernels as qk

F32 = np.float32
DTYPES = ["int8", "uint8"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def random_params(rng, dtype, low=-7, high=2):
    scale = 2.0 ** rng.uniform(low, high)
    return qk.QParams(F32(scale), int(rng.integers(*code_range(dtype))), dtype)


def saturated(v, params):
    return np.clip(np.rint(v) + int(params.zero_point), params.qmin, params.qmax).astype(params.dtype)


# ---- tables ----

mpmath.mp.dps = 160


def _exp(x):
    """exp, but beyond 300 that of 300: 10**-130 of a step is as far from none, and what saturates does so."""
    return mpmath.exp(min(max(x, -300), 300))


def _erfc(x):
    return mpmath.erfc(min(max(x, -17), 17))


def _relu6(x):
    return min(max(x, 0), 6)


EXACT = {
    "sigmoid": lambda x: 1 / (1 + _exp(-x)),
    "tanh": lambda x: (1 - _exp(-2 * x)) / (1 + _exp(-2 * x)),
    "exp": _exp,
    "gelu": lambda x: x * _erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / (1 + _exp(-mpmath.sqrt(8 / mpmath.pi) * (x + x**3 * 44715 / 10**6))),
    "silu": lambda x: x / (1 + _exp(-x)),
    "hard_swish": lambda x: x * _relu6(x + 3) / 6,
    "hard_sigmoid": lambda x: _relu6(x + 3) / 6,
    "leaky_relu": lambda x: x if x > 0 else x / 100,
    "elu": lambda x: x if x > 0 else _exp(x) - 1,
    "softplus": lambda x: max(x, 0) + mpmath.log(1 + _exp(-abs(x))),
}
SCALES = [(0.1, 1 / 256), (0.0371, 0.0213), (0.5, 1), (0.25, 0.5), (3, 1), (1e-30, 1e-31), (1e30, 1e29), (40, 40)]


def nearest(value, params):
    """The code nearest to a number of mpmath, ties to even."""
    v = value / mpmath.mpf(float(params.scale))
    code = int(mpmath.nint(v)) if abs(v) < 1000 else (1000 if v > 0 else -1000)
    return min(max(code + int(params.zero_point), params.qmin), params.qmax)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_a_named_table_has_the_nearest_code_of_each_input(name, scales):
    """Of 160 digits, of which doubles, as the library has them far from ties, know 16."""
    params = qk.QParams(scales[0], 3), qk.QParams(scales[0], 130, "uint8")
    for of, to in zip(params, (qk.QParams(scales[1], 5, "uint8"), qk.QParams(scales[1], -7))):
        table = qk.make_table(name, of, to)
        least = code_range(of.dtype)[0]
        x = [(least + i - int(of.zero_point)) * mpmath.mpf(float(of.scale)) for i in range(256)]
        assert table.dtype == to.dtype
        assert table.tolist() == [nearest(EXACT[name](v), to) for v in x]


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "gelu", "gelu_tanh", "silu", "softplus", "elu"])
def test_a_named_table_is_right_beside_ties(name):
    """Scales of the result for which one input is as near a tie as a float32 can bring it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        of, i = qk.QParams(F32(rng.uniform(0.01, 0.1))), int(rng.integers(150, 256))
        x = (i - 128) * mpmath.mpf(float(of.scale))
        scale = F32(float(EXACT[name](x) / (int(rng.integers(0, 100)) + 0.5)))
        for near in (scale, np.nextafter(scale, F32(0)), np.nextafter(scale, F32(9))):
            to = qk.QParams(near, -20)
            assert qk.make_table(name, of, to)[i] == nearest(EXACT[name](x), to)


def test_exact_ties_of_rational_functions_go_to_the_even_code():
    for name in ("leaky_relu", "hard_swish", "hard_sigmoid"):
        ties = 0
        for numerator in range(1, 40):
            of, to = qk.QParams(0.25), qk.QParams(numerator / 64, 1)
            table = qk.make_table(name, of, to)
            for i, code in enumerate(table.tolist()):
                x, unit = Fraction(i - 128, 4), Fraction(numerator, 64)
                six = min(max(x + 3, 0), 6)
                y = {"leaky_relu": x if x > 0 else x / 100, "hard_swish": x * six / 6, "hard_sigmoid": six / 6}[name]
                ties += (2 * y / unit) % 2 == 1
                assert code == min(max(round(y / unit) + 1, -128), 127)
        assert ties > 5


def test_a_large_gelu_is_just_below_its_tie():
    """x erfc(-x / sqrt 2) / 2 is less than x, by less than doubles tell: 21.5 rounds to 21, and not to the even 22."""
    table = qk.make_table("gelu", qk.QParams(0.5), qk.QParams(1))
    assert table[128 + 43] == 21 and table[128 + 41] == 20
    assert qk.make_table("softplus", qk.QParams(0.5), qk.QParams(1))[128 + 81] == 41  # just above 40.5


def test_a_table_of_any_function_is_what_the_function_and_rounding_give():
    of, to = qk.QParams(0.03, 7, "uint8"), qk.QParams(0.01, -3)
    x = (np.arange(256) - 7) * float(F32(0.03))
    seen = []

    def function(values):
        seen.append(values.copy())
        values[:] = np.sin(values)
        return values

    table = qk.make_table(function, of, to)
    assert_array_equal(seen, [x])
    want = [min(max(round(Fraction(float(v)) / Fraction(float(F32(0.01)))) - 3, -128), 127) for v in np.sin(x)]
    assert table.tolist() == want


def test_nan_gives_the_zero_point_and_infinity_saturates():
    special = np.resize([np.nan, np.inf, -np.inf], 256)
    assert_array_equal(qk.make_table(lambda x: special, qk.QParams(1), qk.QParams(1, 5))[:3], [5, 127, -128])
    integers = qk.make_table(lambda x: x.astype(np.int64), qk.QParams(1), qk.QParams(1, 1))
    assert_array_equal(integers[:3], [-127, -126, -125])


@every_dtype
@pytest.mark.parametrize("table_dtype", DTYPES)
def test_take_table_looks_codes_up(dtype, table_dtype, everywhere):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, 256, np.uint8).view(table_dtype)
    least = code_range(dtype)[0]
    every = np.arange(least, least + 256).astype(dtype)
    assert_array_equal(everywhere(lambda: qk.take_table(every, table)), table, strict=True)
    for shape in (), (1,), (63,), (64,), (65,), (3, 131), (300_000,), (0,), (2, 0):
        q = random_codes(rng, shape, dtype)
        want = table[q.astype(int) - least]
        assert_array_equal(everywhere(lambda: qk.take_table(q, table)), want)


# ---- sums and products ----


def exact_sum(a, pa, b, pb, to):
    """docs/numerics.md 23, in the order that it names, which exchanges the operands where a is one number a row."""
    last = [(m, n) for m, n in zip(((1,) * b.ndim + a.shape)[::-1], ((1,) * a.ndim + b.shape)[::-1]) if m * n > 1]
    if last and last[0][0] == 1:
        a, pa, b, pb = b, pb, a, pa
    a, b = np.broadcast_arrays(a.astype(F32), b.astype(F32))
    ra, rb, zy = F32(pa.scale / to.scale), F32(pb.scale / to.scale), F32(to.zero_point)

    def fma(x, y, z):
        return fused(*np.broadcast_arrays(np.float32(x), np.float32(y), np.float32(z)))

    offset = zy - fma(ra, pa.zero_point, rb * F32(pb.zero_point))
    v = np.rint(fma(a, ra, fma(b, rb, offset)))
    return np.clip(v, to.qmin, to.qmax).astype(to.dtype)


def exact_product(a, pa, b, pb, to):
    product = ((a.astype(int) - pa.zero_point) * (b.astype(int) - pb.zero_point)).astype(F32)
    v = product * F32(F32(pa.scale * pb.scale) / to.scale) + F32(to.zero_point)
    return np.clip(np.rint(v), to.qmin, to.qmax).astype(to.dtype)


OPERATIONS = {qk.qadd: exact_sum, qk.qmultiply: exact_product}
SHAPES = [((700,), (700,)), ((5, 131), (131,)), ((131,), (5, 131)), ((5, 1), (5, 131)), ((5, 131), (5, 1))]
SHAPES += [
    ((), (70,)),
    ((70,), ()),
    ((3, 1, 1), (1, 40, 1)),
    ((3, 1, 65), (3, 5, 65)),
    ((1, 5, 1), (3, 5, 65)),
    ((), ()),
]
SHAPES += [((0, 3), (1, 3)), ((2, 1, 1), (0, 4)), ((1, 1), (1,)), ((2, 3, 5, 7), (3, 1, 7))]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@every_dtype
def test_pairs_have_the_bits_of_their_formula(operation, shapes, dtype, everywhere):
    rng = np.random.default_rng(0)
    for to_dtype in DTYPES:
        for _ in range(3):
            pa, pb, to = (random_params(rng, t) for t in (dtype, dtype, to_dtype))
            a, b = (random_codes(rng, shape, dtype) for shape in shapes)
            got = everywhere(lambda: operation(a, pa, b, pb, to))
            assert_array_equal(got, OPERATIONS[operation](a, pa, b, pb, to), strict=True)
            relu = everywhere(lambda: operation(a, pa, b, pb, to, activation="relu"))
            assert_array_equal(relu, np.maximum(got, np.array(to.zero_point, to.dtype)))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_long_pairs_use_threads_with_equal_bits(operation, everywhere):
    rng = np.random.default_rng(0)
    pa, pb, to = (random_params(rng, "int8") for _ in range(3))
    a, b = (random_codes(rng, (700, 1030), "int8") for _ in range(2))
    for right in (b, b[0], b[:, :1]):
        got = everywhere(lambda right=right: operation(a, pa, right, pb, to))
        assert_array_equal(got, OPERATIONS[operation](a, pa, right, pb, to))


@pytest.mark.parametrize("scales", [(1e30, 1, 1e-3), (1, 1e38, 2e-38), (2e-38, 2e-38, 1), (3e38, 3e38, 2e-38)], ids=str)
def test_scales_that_leave_float32_saturate_as_they_should(scales, everywhere):
    pa, pb, to = qk.QParams(scales[0], 1), qk.QParams(scales[1], -2), qk.QParams(scales[2], 3)
    a, b = np.meshgrid(np.arange(-128, 128, dtype=np.int8), np.arange(-128, 128, dtype=np.int8))
    real_a, real_b = (a.astype(float) - 1) * float(pa.scale), (b.astype(float) + 2) * float(pb.scale)
    for operation, real in ((qk.qadd, real_a + real_b), (qk.qmultiply, real_a * real_b)):
        got = everywhere(lambda: operation(a, pa, b, pb, to))
        assert_array_equal(got, saturated(real / float(to.scale), to), err_msg=operation.__name__)
        everywhere(lambda: operation(a, pa, b, pb, to, rounding="tflite"))


@given(st.sampled_from(sorted(ANY_AXES)), st.sampled_from(sorted(ANY_AXES)), st.sampled_from(["half_even", "tflite"]))
def test_pairs_of_any_layout(first, second, rounding):
    rng = np.random.default_rng(0)
    a, b, p = random_codes(rng, (3, 4, 67), "int8"), random_codes(rng, (4, 67), "int8"), qk.QParams(0.3, 2)
    for operation in OPERATIONS:
        want = operation(a, p, b, p, p, rounding=rounding)
        out = np.zeros_like(want)
        got = operation(ANY_AXES[first](a), p, ANY_AXES[second](b), p, p, rounding=rounding, out=out)
        assert got is out
        assert_array_equal(out, want)


# ---- concatenation ----


@every_dtype
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concatenation_requantizes_each_part(dtype, axis, everywhere):
    rng = np.random.default_rng(0)
    to = random_params(rng, dtype)
    shapes = [[3, 4, 70] for _ in range(3)]
    for shape, length in zip(shapes, (1, 0, 77)):
        shape[axis] = length
    of = [random_params(rng, t) for t in ("int8", "uint8", dtype)]
    parts = [(random_codes(rng, shape, p.dtype), p) for shape, p in zip(shapes, of)]
    want = np.concatenate([qk.quantize(qk.dequantize(q, p), to) for q, p in parts], axis)
    assert_array_equal(everywhere(lambda: qk.qconcatenate(parts, to, axis=axis)), want, strict=True)
    strided = [(q[..., ::-1].copy()[..., ::-1], p) for q, p in parts]
    out = np.zeros_like(want)
    assert qk.qconcatenate(strided, to, axis=axis, out=out) is out
    assert_array_equal(out, want)


# ---- softmax and norms: within 0.5 + 2**-10 steps ----


def assert_within(codes, v, params):
    """The codes of real values v, in steps of the result; those out of range are at its nearest end."""
    low, high = params.qmin - int(params.zero_point), params.qmax - int(params.zero_point)
    error = np.abs(codes.astype(float) - int(params.zero_point) - np.clip(v, low, high))
    assert error.max(initial=0) <= 0.5 + 2.0**-10


@np.errstate(all="ignore")
def exact_softmax(q, params, to):
    x = (q.astype(float) - q.astype(float).max(-1, keepdims=True)) * float(params.scale)
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True) / float(to.scale)


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 95, 96, 97, 256, 1000, 4096, 4097, 10_000])
def test_softmax_is_within_its_bound(dtype, n, everywhere):
    rng = np.random.default_rng(n)
    for scale in (1e-3, 0.02, 0.1, 1, 30, 1e38):
        params = qk.QParams(scale, 3, dtype)
        for to in (
            qk.QParams(1 / 256, -128),
            qk.QParams(1 / 255, 0, "uint8"),
            qk.QParams(2.0**-20),
            qk.QParams(1e-9, 9),
        ):
            q = random_codes(rng, (5, n), dtype)
            q[1], q[2, 1:], q[3] = q[1, 0], q[2, 0], np.sort(q[3])
            got = everywhere(lambda: qk.qsoftmax(q, params, to))
            assert got.dtype == to.dtype
            assert_within(got, exact_softmax(q, params, to), to)


@pytest.mark.parametrize("operation", ["softmax", "layer", "rms"])
def test_a_million_random_rows_are_within_the_bound(operation):
    """Each batch has its own scales and zero points, and its own spread of codes."""
    rng, rows, n = np.random.default_rng(0), 20_000, 24
    weight = rng.normal(1, 1, n).astype(F32)
    bias = rng.normal(0, 1, n).astype(F32)
    for _ in range(50):
        dtype = str(rng.choice(DTYPES))
        params, to = random_params(rng, dtype, -9, 1), random_params(rng, str(rng.choice(DTYPES)), -9, -4)
        low, high = code_range(dtype)
        middle, spread = rng.integers(low, high + 1, (rows, 1)), 2.0 ** rng.uniform(-1, 8, (rows, 1))
        q = np.clip(np.rint(rng.normal(middle, spread, (rows, n))), low, high).astype(dtype)
        if operation == "softmax":
            assert_within(qk.qsoftmax(q, params, to), exact_softmax(q, params, to), to)
        elif operation == "layer":
            v = exact_layer_norm(q, params, weight, bias, to, 1e-5)
            assert_within(qk.qlayer_norm(q, params, weight, bias, to, eps=1e-5), v, to)
        else:
            v = exact_rms_norm(q, params, weight, to, 1e-5)
            assert_within(qk.qrms_norm(q, params, weight, to, eps=1e-5), v, to)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_softmax_along_another_axis(axis):
    q, p, to = random_codes(np.random.default_rng(0), (5, 6, 7), "int8"), qk.QParams(0.1), qk.QParams(1 / 256, -128)
    want = np.moveaxis(qk.qsoftmax(np.moveaxis(q, axis, -1).copy(), p, to), -1, axis)
    out = np.zeros_like(want, order="C")
    assert qk.qsoftmax(q, p, to, axis=axis, out=out) is out
    for got in (out, qk.qsoftmax(q, p, to, axis=axis)):
        assert_array_equal(got, want)
        assert got.flags.c_contiguous


@np.errstate(all="ignore")
def exact_layer_norm(q, params, weight, bias, to, eps):
    d, n = q.astype(np.int64) * q.shape[-1] - q.sum(-1, keepdims=True, dtype=np.int64), q.shape[-1]
    wide = q.astype(np.int64)
    spread = n * (wide * wide).sum(-1, keepdims=True) - wide.sum(-1, keepdims=True) ** 2
    root = np.sqrt(spread + n * n * (eps / float(params.scale) ** 2))
    normal = np.where(root > 0, d / np.where(root > 0, root, 1), 0)
    return (normal * weight.astype(float) + bias.astype(float)) / float(to.scale)


@np.errstate(all="ignore")
def exact_rms_norm(q, params, weight, to, eps):
    d = q.astype(np.int64) - int(params.zero_point)
    root = np.sqrt((d * d).sum(-1, keepdims=True) / q.shape[-1] + eps / float(params.scale) ** 2)
    return np.where(root > 0, d / np.where(root > 0, root, 1), 0) * weight.astype(float) / float(to.scale)


@every_dtype
@np.errstate(all="ignore")
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 131, 768, 4096, 70_000])
def test_norms_are_within_their_bounds(dtype, n, everywhere):
    rng = np.random.default_rng(n)
    few = [(1, 0.02), (1e-3, 1), (1e20, 0.05), (1e-36, 0.1)]
    for factor, unit in few if n < 5000 else few[:1]:
        weight, bias = (rng.normal(0, factor, n).astype(F32) for _ in range(2))
        for params in (qk.QParams(0.05, 3, dtype), qk.QParams(1e-30, 0, dtype)):
            to = qk.QParams(unit * factor, 4, "uint8") if factor < 1e10 else qk.QParams(1e19, -5)
            q = random_codes(rng, (4, n), dtype)
            q[1], q[2], q[2, -1] = q[1, 0], 127, 126
            q[3] = int(params.zero_point)
            for eps in (0, 1e-5):
                got = everywhere(lambda: qk.qlayer_norm(q, params, weight, bias, to, eps=eps))
                assert got.dtype == to.dtype
                assert_within(got, exact_layer_norm(q, params, weight, bias, to, eps), to)
                got = everywhere(lambda: qk.qrms_norm(q, params, weight, to, eps=eps))
                assert_within(got, exact_rms_norm(q, params, weight, to, eps), to)


def test_a_row_of_equal_codes_gives_the_bias():
    bias = np.float32([0.5, -1, 3])
    got = qk.qlayer_norm(np.full((2, 3), 9, np.int8), qk.QParams(1), np.ones(3, F32), bias, qk.QParams(0.5, 1), eps=0)
    assert_array_equal(got, [[2, -1, 7]] * 2)
    zeros = qk.qrms_norm(np.full((2, 3), 9, np.int8), qk.QParams(1, 9), np.ones(3, F32), qk.QParams(0.5, 1), eps=0)
    assert_array_equal(zeros, np.ones((2, 3)))


def test_rows_of_norms_use_threads_with_equal_bits(everywhere):
    q, p = random_codes(np.random.default_rng(0), (3000, 320), "int8"), qk.QParams(0.1, 3)
    ones = np.ones(320, F32)
    everywhere(lambda: qk.qlayer_norm(q, p, ones, ones, qk.QParams(0.02)))
    everywhere(lambda: qk.qrms_norm(q, p, ones, qk.QParams(0.02)))
    everywhere(lambda: qk.qsoftmax(q, p, qk.QParams(1 / 256, -128)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 3, 4), (7,)])
@pytest.mark.parametrize("layout", sorted(ANY_AXES))
def test_rows_of_any_shape_and_layout(shape, layout):
    q, p = random_codes(np.random.default_rng(0), shape, "uint8"), qk.QParams(0.1, 3, "uint8")
    row = np.linspace(-1, 1, shape[-1], dtype=F32)
    calls = {
        qk.qsoftmax: lambda q, **out: qk.qsoftmax(q, p, p, **out),
        qk.qlayer_norm: lambda q, **out: qk.qlayer_norm(q, p, row, row[::-1], p, **out),
        qk.qrms_norm: lambda q, **out: qk.qrms_norm(q, p, row, p, **out),
        qk.take_table: lambda q, **out: qk.take_table(q, np.arange(256, dtype=np.uint8)[::-1], **out),
    }
    for call in calls.values():
        want, out = call(q), np.zeros(shape, np.uint8)
        assert want.shape == shape
        assert_array_equal(call(ANY_AXES[layout](q)), want)
        assert call(ANY_AXES[layout](q), out=out) is out
        assert_array_equal(out, want)


# ---- before quantization ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_folding_a_batchnorm_changes_nothing_but_rounding(dtype, axis):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 4, 5)).astype(dtype)
    n = w.shape[axis]
    bias, gamma, beta, mean = (rng.normal(size=n).astype(dtype) for _ in range(4))
    var = rng.uniform(0.1, 2, n).astype(dtype)
    along = [-1 if i == axis % 3 else 1 for i in range(3)]
    x = rng.normal(size=w.shape)
    for before in (bias, None):
        got, added = qk.fold_batchnorm(w, before, gamma, beta, mean, var, eps=1e-3, axis=axis)
        assert got.dtype == added.dtype == dtype and got.shape == w.shape and added.shape == (n,)
        others = tuple(i for i in range(3) if i != axis % 3)
        plain = (x * w.astype(float)).sum(others) + (0 if before is None else before.astype(float))
        want = (plain - mean) / np.sqrt(var.astype(float) + 1e-3) * gamma + beta
        unit = np.finfo(dtype).eps * (np.abs(x * got.astype(float)).sum(others) + np.abs(added))
        assert np.all(np.abs((x * got.astype(float)).sum(others) + added - want) <= unit + 1e-12)
        factor = gamma.astype(float) / np.sqrt(var.astype(float) + 1e-3)
        assert_array_equal(got, (w.astype(float) * factor.reshape(along)).astype(dtype))


def test_a_bias_in_units_of_the_product():
    x, w = qk.QParams(F32(0.1)), qk.QParams(np.float32([0.3, 0.7, 1e-3]), axis=1)
    bias = np.float32([1.5, -2.25, 1e-5])
    want = [round(Fraction(float(b)) / Fraction(float(F32(0.1))) / Fraction(float(s))) for b, s in zip(bias, w.scale)]
    assert qk.quantize_bias(bias, x, w).tolist() == want
    assert qk.quantize_bias(np.float64([2.5, 3.5, -0.5]), qk.QParams(1), qk.QParams(1)).tolist() == [2, 4, 0]
    ends = np.float64([2**31 - 1, -(2**31)])
    assert qk.quantize_bias(ends, qk.QParams(1), qk.QParams(1)).tolist() == ends.tolist()
    assert qk.quantize_bias(np.zeros(0, F32), x, qk.QParams(1)).shape == (0,)


# ---- bad input ----

Q, ROW = np.zeros((3, 4), np.int8), np.ones(4, F32)
P, U8 = qk.QParams(1), qk.QParams(1, dtype="uint8")
LAYERS = {
    "add": (qk.qadd, dict(a=Q, a_params=P, b=Q, b_params=P, out_params=P)),
    "multiply": (qk.qmultiply, dict(a=Q, a_params=P, b=Q, b_params=P, out_params=P)),
    "join": (qk.qconcatenate, dict(parts=[(Q[:1], P), (Q[:2], P)], out_params=P, axis=0)),
    "soft": (qk.qsoftmax, dict(q=Q, params=P, out_params=P)),
    "layer": (qk.qlayer_norm, dict(q=Q, params=P, weight=ROW, bias=ROW, out_params=P)),
    "rms": (qk.qrms_norm, dict(q=Q, params=P, weight=ROW, out_params=P)),
    "take": (qk.take_table, dict(q=Q, table=np.zeros(256, np.int8))),
}


@refusals(r"""
add(a=Q.astype(np.uint8))  # TypeError: a must have dtype int8 \(as a_params\), got uint8
add(b=Q.astype(np.float32))  # TypeError: b must have dtype int8 \(as b_params\), got float32
add(b_params=U8)  # TypeError: b_params must have dtype int8 \(as a_params\), got uint8
add(b=np.zeros((5, 4), np.int8))  # ValueError: b with shape \(5, 4\) must broadcast with a, which has shape \(3, 4\)
add(a_params=qk.QParams([1.0], axis=0))  # ValueError: a_params must be per tensor, got axis 0
add(out_params=qk.QParams(1, dtype="int16"))  # TypeError: out_params must have dtype int8 or uint8, got int16
add(out_params=1.0)  # TypeError: out_params must be QParams, got float
add(activation="gelu")  # ValueError: activation must be None or 'relu' .*make_table\), got 'gelu'
multiply(rounding="half_away")  # ValueError: rounding must be 'half_even' or 'tflite', got 'half_away'
multiply(rounding=None)  # ValueError: rounding must be .*, got None
join(parts=[])  # ValueError: parts must have at least one \(q, params\), got none
join(parts=[Q])  # TypeError: parts must be a sequence of \(q, params\)
join(parts=[(Q, U8)])  # TypeError: parts\[0\]\[0\] must have dtype uint8 \(as its params\), got int8
join(parts=[(Q, P), (Q, 1)])  # TypeError: parts\[1\]\[1\] must be QParams, got int
join(parts=[(np.int8(1), P)])  # ValueError: parts\[0\]\[0\] must have at least one axis
join(parts=[(Q, P), (Q[:, :3], P)])  # ValueError: parts must have one shape but for axis 0, got \(3, 4\), \(3, 3\)
join(axis=2)  # ValueError: axis 2 is out of range for parts with shape \(1, 4\)
join(axis=0.5)  # TypeError: axis must be an integer
soft(q=Q.astype(np.float32))  # TypeError: q must have dtype int8 \(as params\), got float32
soft(axis=-3)  # ValueError: axis -3 is out of range for q with shape \(3, 4\)
soft(params=qk.QParams(1, dtype="float8_e5m2"))  # TypeError: params must have dtype int8 or uint8, got float8_e5m2
layer(weight=ROW[:3])  # ValueError: weight must have shape \(4,\) to match the last axis of q, got \(3,\)
layer(bias=ROW.astype(float))  # TypeError: bias must be float32, got float64
layer(bias=None)  # TypeError: bias must be a float32 array, got None
layer(weight=ROW * np.inf)  # ValueError: weight has 4 NaN or infinite values, the first at \(0,\)
layer(eps=-1.0)  # ValueError: eps must be at least 0, got -1.0
rms(eps=float("nan"))  # ValueError: eps must be at least 0, got nan
rms(q=np.int8(1))  # ValueError: q must have at least one axis
take(table=np.zeros(255, np.int8))  # ValueError: table must have shape \(256,\), got \(255,\)
take(table=np.zeros(256))  # TypeError: table must be int8 or uint8, got float64
take(q=np.zeros(3, np.int16))  # TypeError: q must be int8 or uint8, got int16
""")
def test_bad_input(refusal):
    out = np.full((3, 4), 77, np.int8)
    refuse(refusal, globals() | {name: partial(f, **options, out=out) for name, (f, options) in LAYERS.items()})
    assert (out == 77).all()


@pytest.mark.parametrize("name", LAYERS)
def test_out_must_not_overlap(name):
    function, options = LAYERS[name]
    memory = np.zeros(24, np.int8)
    first = next(iter(options))
    given = [(memory[:12].reshape(3, 4), P)] if first == "parts" else memory[:12].reshape(3, 4)
    with pytest.raises(ValueError, match=f"out must not overlap {first}"):
        function(**options | {first: given}, out=memory[1:13].reshape(3, 4))
    assert not memory.any()


ONE = np.ones(2)
FOLD = dict(w=np.ones((3, 2)), bias=None, gamma=ONE, beta=ONE, mean=ONE, var=ONE)


@refusals(r"""
table("relu7")  # ValueError: function must be callable or one of sigmoid, .*, got 'relu7'
table(3)  # ValueError: function must be callable or one of .*, got 3
table(lambda x: x[:3])  # ValueError: function must give 256 real numbers, got float64 of shape \(3,\)
table(lambda x: x * 1j)  # ValueError: function must give 256 real numbers, got complex128
fold(var=-ONE)  # ValueError: var must not be negative, got -1.0 at \(0,\)
fold(var=0 * ONE, eps=0)  # ValueError: var \+ eps must be positive, got 0
fold(gamma=np.ones(3))  # ValueError: gamma must have shape \(2,\) to match the axis of w, got \(3,\)
fold(mean=np.nan * ONE)  # ValueError: mean has 2 NaN or infinite values, the first at \(0,\)
fold(w=np.float32([[1, np.nan]]))  # ValueError: w has 1 NaN or infinite values, the first at \(0, 1\)
fold(w=np.full((3, 2), 6e4, np.float16), gamma=9 * ONE)  # ValueError: w and bias must stay finite values of float16
fold(w=np.ones((3, 2), int))  # TypeError: w must be float32, .*, got int64
fold(axis=2)  # ValueError: axis 2 is out of range for w with shape \(3, 2\)
fold(eps=-1)  # ValueError: eps must be at least 0 and finite, got -1.0
bias([2.0**31], P, P)  # ValueError: bias must fit int32 in units of the scales, got 2147483648.0, .*, at \(0,\)
bias([0, -np.inf], P, P)  # ValueError: bias must fit int32
bias([np.nan], P, P)  # ValueError: bias must fit int32 in units of the scales, got nan
bias(np.float32([1e-3]), qk.QParams(1e-7), qk.QParams(1e-7))  # ValueError: bias must fit int32
bias([[1.0]], P, P)  # ValueError: bias must have shape \(outputs,\)
bias([1.0], P, qk.QParams([1, 1], axis=0))  # ValueError: bias must have shape .* w_params with scales \(2,\)
bias([1.0], qk.QParams([1], axis=0), P)  # ValueError: x_params must be per tensor
bias([1], P, P)  # TypeError: bias must be float32
""")
def test_bad_input_before_quantization(refusal):
    names = {"table": partial(qk.make_table, params=P, out_params=P), "fold": lambda **o: qk.fold_batchnorm(**FOLD | o)}
    refuse(refusal, globals() | names | {"bias": qk.quantize_bias})


@pytest.mark.parametrize("name", ["add", "multiply"])
def test_as_many_axes_broadcast_as_an_array_has(name):
    function, options = LAYERS[name]
    a, b = np.arange(-6, 6, dtype=np.int8).reshape(3, 1, 4), np.int8([[1, -2, 3, 0], [5, 2, -7, 9]])
    got = function(**options | {"a": a.reshape((1,) * 61 + a.shape), "b": b})
    assert_array_equal(got[(0,) * 61], function(**options | {"a": a, "b": b}), strict=True)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.longdouble, np.int8])
def test_a_function_may_give_any_real_numbers(dtype):
    codes = np.arange(-128, 128)
    assert_array_equal(qk.make_table(lambda x: np.round(x).astype(dtype), qk.QParams(1), qk.QParams(1)), codes)


def test_errors_of_a_function_come_through():
    with pytest.raises(ZeroDivisionError):
        qk.make_table(lambda x: 1 // 0, P, P)
