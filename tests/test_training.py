"""What training with quantization needs: gradients of fake_quantize and stochastic rounding (docs/numerics.md, sections
26 and 27), and the law that a layer trained so is the one that runs on integers."""

import numpy as np
import pytest
from common import FLOATS, INT_CODES, philox, random_bits, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_quantize import assert_same_bits, cases, per_element, places

import qkernels as qk

F32 = np.float32
EDGES = ["rounded", "clipped"]
LAYOUTS = [dict(), dict(axis=0), dict(axis=1), dict(axis=-1), dict(axis=1, block_size=7), dict(axis=-1, block_size=40)]


def params_for(rng, shape, dtype="int8", axis=None, block_size=None):
    """Return parameters for normal numbers, some of which they clip."""
    few = [] if axis is None else [shape[axis]]
    if block_size is not None:
        few = list(shape)
        few[axis] = -(-few[axis] // block_size)
    one = qk.QParams(1, dtype=dtype)
    scale = rng.uniform(2, 5, few) / (float(one.qmax) - float(one.qmin))
    zero_point = rng.integers(one.qmin, one.qmax + 1, few)
    return qk.QParams(scale, zero_point, dtype, axis=axis, block_size=block_size)


# ---- gradients ----


def terms_of(grad, x, params, edge):
    """Return, by the formulas in float64: the gradient of x, the terms of those of scale and zero point."""
    wide = x.astype(np.float64 if x.dtype == np.float64 else F32)
    scale, zero_point = (per_element(v, params, x.shape) for v in (params.scale, params.zero_point))
    with np.errstate(all="ignore"):
        v = (wide / scale.astype(wide.dtype)).astype(np.float64)
        lo, hi = (np.float64(q) - zero_point for q in (params.qmin, params.qmax))
        r = np.rint(v)
        inside = (lo <= r) & (r <= hi) if edge == "rounded" else (lo < v) & (v < hi)
        wide_grad, number = grad.astype(np.float64), ~np.isnan(v)
        of_scale = np.where(number, wide_grad * np.where(inside, r - v, np.clip(r, lo, hi)), 0)
    of_zero = np.where(number & ~inside, -wide_grad * scale, 0)
    return np.where(inside, grad, np.zeros((), grad.dtype)), of_scale, of_zero


def sums_of(terms, params, shape):
    """Return the sum of the terms of each parameter, in float64."""
    count = params.scale.size
    which = per_element(np.arange(count).reshape(params.scale.shape), params, shape)
    return np.bincount(which.ravel(), terms.ravel(), count).reshape(params.scale.shape)


def assert_gradients(got, grad, x, params, edge):
    """Terms of float32 are off by one rounding each, sums of them by 16, the result by one."""
    grad_x, of_scale, of_zero = terms_of(grad, x, params, edge)
    assert_same_bits(got[0], grad_x.astype(x.dtype))
    for sums, terms in zip(got[1:], (of_scale, of_zero)):
        assert sums.dtype == np.float32 and sums.shape == params.scale.shape
        want, size = (sums_of(t, params, x.shape) for t in (terms, np.abs(terms)))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            near = np.abs(sums - want) <= 2.0**-24 * (17 * size + np.abs(want)) + 2.0**-149
            assert np.all(near | (np.abs(want) > 3.4e38) & (np.abs(sums) > 3.4e38))


@pytest.mark.parametrize("of", [np.float32, np.float64, np.float16])
def test_gradients_of_other_byte_orders(of):
    grad, x, params = of([1, 2, 3]), of([0.3, 70, -0.2]), qk.QParams(0.5)
    want, other = qk.fake_quantize_grad(grad, x, params), np.dtype(of).newbyteorder()
    for a in (grad, grad.astype(other)):
        for b in (x, x.astype(other)):
            for made, right in zip(qk.fake_quantize_grad(a, b, params), want, strict=True):
                assert_same_bits(np.asarray(made), np.asarray(right))


def gradients_of_equal_bits(isas, grad, x, params, edge, what=""):
    """Gradients, which have the same bits on every instruction set."""
    want = None
    for isa in isas():
        got = qk.fake_quantize_grad(grad, x, params, edge=edge)
        want = want or got
        for a, b in zip(got, want):
            assert_same_bits(np.asarray(a), np.asarray(b), (isa, what))
    return want


@settings(max_examples=200)
@given(case=cases(), edge=st.sampled_from(EDGES), seed=st.integers(0, 2**32))
def test_gradients_are_those_of_the_formulas(case, edge, seed, isas):
    x, params = case
    with np.errstate(under="ignore"):
        grad = np.asarray(np.random.default_rng(seed).normal(size=x.shape)).astype(x.dtype)
    assert_gradients(gradients_of_equal_bits(isas, grad, x, params, edge), grad, x, params, edge)


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("where", LAYOUTS, ids=str)
def test_gradients_have_equal_bits_everywhere(where, of, variants):
    """Shapes of many pieces, and pieces that do not divide."""
    rng = np.random.default_rng(1)
    for shape in ((300, 13, 37), (3, 5, 9001), (1, 2, 5)) if of == F32 else ((150, 13, 37),):
        with np.errstate(under="ignore"):
            x, grad = (rng.normal(size=shape).astype(of) for _ in range(2))
        params = params_for(rng, shape, **where)
        want = qk.fake_quantize_grad(grad, x, params)
        assert_gradients(want, grad, x, params, "rounded")
        for variant in variants():
            for a, b in zip(qk.fake_quantize_grad(grad, x, params), want):
                assert_same_bits(np.asarray(a), np.asarray(b), variant)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_values_without_a_quotient_change_no_others(axis, edge, isas):
    """NaN, infinities and what overflows when it is divided, of x and of grad, one in thirty."""
    rng, shape = np.random.default_rng(4), (70, 330)
    x, grad = (rng.normal(size=shape).astype(F32) for _ in range(2))
    params = qk.QParams(*(np.full([] if axis is None else [shape[axis]], v) for v in (0.0123, 7)), "uint8", axis=axis)
    odd = rng.random(shape) < 1 / 30
    x[odd] = rng.choice(F32([np.nan, np.inf, -np.inf, 3.4e38, -3e38, 1e7, -1e9]), odd.sum())
    assert_gradients(gradients_of_equal_bits(isas, grad, x, params, edge), grad, x, params, edge)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("end", ["qmin", "qmax"])
@pytest.mark.parametrize("where", LAYOUTS, ids=str)
def test_small_values_have_equal_bits_everywhere(where, end, edge, isas):
    """Quotients whose remainder is not exact, or that are subnormal, beside others: large gradients show them."""
    rng, shape = np.random.default_rng(6), (35, 3, 53)
    one = qk.QParams(1, dtype="uint8")
    for of in FLOATS:
        for size, unit in ((s, u) for s in 10.0 ** np.arange(-45, -29, 3) for u in (1e-19, 1e-3, 1e15)):
            params = params_for(rng, shape, "uint8", **where)
            params = qk.QParams(
                unit * params.scale, np.full_like(params.zero_point, getattr(one, end)), "uint8", **where
            )
            few = rng.random(shape) < 0.1
            with np.errstate(under="ignore", over="ignore"):
                x = np.where(few, rng.normal(0, unit, shape), rng.normal(0, size, shape)).astype(of)
                grad = rng.normal(0, 1e30 if of != np.float16 else 1, shape).astype(of)
            found = gradients_of_equal_bits(isas, grad, x, params, edge, (size, unit))
            assert_same_bits(found[0], terms_of(grad, x, params, edge)[0].astype(of))


def test_quotients_that_underflow_are_on_one_side(isas):
    """The one of the smallest float32 is rounded away from 0, so it is within the bounds, whatever the reciprocal."""
    x, one = F32([-1.3, -1.4e-45]), np.ones(2, F32)
    for isa in isas():
        assert_array_equal(qk.fake_quantize_grad(one, x, qk.QParams(1.545, 255, "uint8"), edge="clipped")[0], one, isa)


@pytest.mark.parametrize("where", [{}, {"axis": 0}], ids=str)
def test_gradients_beyond_the_caches(where, variants):
    """More than 24 MB are stored past the caches."""
    rng, shape = np.random.default_rng(3), (3, 800_009)
    x, grad = (rng.normal(size=shape).astype(F32) for _ in range(2))
    params = params_for(rng, shape, **where)
    want = terms_of(grad, x, params, "rounded")[0]
    first = qk.fake_quantize_grad(grad, x, params)
    for variant in variants():
        got = qk.fake_quantize_grad(grad, x, params)
        assert_same_bits(got[0], want, variant)
        for a, b in zip(got[1:], first[1:]):
            assert_same_bits(np.asarray(a), np.asarray(b), variant)


def in_order(terms):
    """Add a run's terms, float32, in the order that numerics 26 states."""
    total = 0.0
    for first in range(0, len(terms), 4096):
        piece, lanes = terms[first : first + 4096], np.zeros(16)
        whole = len(piece) // 16 * 16
        rows = piece[:whole].reshape(-1, 16)
        groups = [rows[i : i + 16] for i in range(0, len(rows), 16)] + [np.pad(piece[whole:], (0, 16))[None, :16]]
        for group in groups:
            lanes += np.add.accumulate(np.vstack([np.zeros(16, F32), group]), dtype=F32)[-1]
        for half in (8, 4, 2, 1):
            lanes = lanes[:half] + lanes[half:]
        total += lanes[0]
    return F32(total)


@pytest.mark.parametrize("n", [1, 15, 16, 257, 300, 4096, 10000])
def test_the_order_of_sums_is_the_one_stated(n):
    rng = np.random.default_rng(n)
    x, grad, params = *(rng.normal(size=n).astype(F32) for _ in range(2)), qk.QParams(0.25, 1, "int4")
    v = x / F32(0.25)
    inside = (np.rint(v) >= -9) & (np.rint(v) <= 6)
    terms = grad * (np.clip(np.rint(v), -9, 6) - np.where(inside, v, 0)).astype(F32)
    _, of_scale, of_zero = qk.fake_quantize_grad(grad, x, params)
    assert of_scale == in_order(terms)
    assert of_zero == F32(-0.25 * np.float64(in_order(np.where(inside, 0, grad).astype(F32))))


def test_columns_are_summed_in_the_order_stated():
    rng = np.random.default_rng(2)
    x, grad = (rng.normal(size=(300, 5)).astype(F32) for _ in range(2))
    terms, total = grad * (np.clip(np.rint(x), -2, 1) - np.where(np.abs(np.rint(x) + 0.5) < 2, x, 0)), 0
    for first in range(0, 300, 128):
        piece = 0
        for i in range(first, min(first + 128, 300), 16):
            rows = terms[i : min(i + 16, first + 128)]
            piece = piece + np.add.accumulate(np.vstack([0 * rows[:1], rows]), dtype=F32)[-1].astype(float)
        total = total + piece
    got = qk.fake_quantize_grad(grad, x, qk.QParams(np.ones(5), dtype="int2", axis=1))
    assert_same_bits(got[1], total.astype(F32))


def test_edges(isas):
    """Ties go to the even code, so -128.5 is inside and 127.5 is not; LSQ's edge is the end itself."""
    x = F32([-128.51, -128.5, -128, -127.9, 127, 127.499, 127.5, np.inf, -np.inf, np.nan, 126.9])
    one = np.ones_like(x)
    for isa in isas():
        inside = qk.fake_quantize_grad(one, x, qk.QParams(1))[0]
        assert_array_equal(inside, [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1], isa)
        inside, of_scale, of_zero = qk.fake_quantize_grad(one, x, qk.QParams(1), edge="clipped")
        assert_array_equal(inside, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], isa)
        assert of_scale == F32(-128 * 4 + 127 * 4 + (-128 + F32(127.9)) + (127 - F32(126.9))) and of_zero == -8


def test_sums_leave_no_range(isas):
    """Terms overflow and their sum does not; terms underflow and their sum does not; NaN stays."""
    x, params = np.full(4096, 9, F32), qk.QParams([1, 1, 1, 2.0**-100], dtype="int8", axis=0)
    many = np.stack([np.tile(F32([3e38, -3e38]), 2048), np.full(4096, 1e-42, F32), np.zeros(4096, F32), x])
    data_of = np.stack([x * 100, np.full(4096, 0.3, F32), x, x])
    for isa in isas():
        for grad, data in (many, data_of), (np.ascontiguousarray(many.T), np.ascontiguousarray(data_of.T)):
            by = params if data.shape[0] == 4 else qk.QParams(params.scale, dtype="int8", axis=1)
            got = qk.fake_quantize_grad(grad, data, by)
            assert_array_equal(got[1][[0, 2]], 0, isa)
            assert_allclose(got[1][1], -4096 * float(F32(1e-42)) * float(F32(0.3)), rtol=2e-6)
            assert got[1][3] == F32(4096 * 9 * 127) and got[2][3] == F32(-4096 * 9 * 2.0**-100)
        grad = np.ones(99, F32)
        grad[50] = np.nan
        assert np.isnan(qk.fake_quantize_grad(grad, np.full(99, 1.25, F32), qk.QParams(1))[1]), isa


def test_descent_on_a_scale_finds_it():
    """With the gradients a scale and a zero point that begin far off are learned."""
    rng = np.random.default_rng(3)
    x = rng.normal(1, 1, 20000).astype(F32)

    def loss(params):
        return float(np.mean((qk.fake_quantize(x, params) - x) ** 2))

    scale, least = 1.0, qk.choose_qparams(x, "uint4", method="mse")
    for _ in range(300):
        params = qk.QParams(scale, least.zero_point, "uint4")
        grad = 2 * (qk.fake_quantize(x, params) - x) / x.size
        scale -= 0.2 * float(qk.fake_quantize_grad(grad, x, params)[1])
    assert loss(qk.QParams(scale, least.zero_point, "uint4")) <= 1.02 * loss(least)


# ---- torch ----


@pytest.mark.parametrize("where", [dict(), dict(axis=0), dict(axis=1)], ids=str)
def test_gradients_are_those_of_torch(where):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    x, grad = (rng.normal(size=(60, 50)).astype(F32) for _ in range(2))
    params = params_for(rng, x.shape, **where)
    tensor = torch.from_numpy(x).requires_grad_()
    ends = int(params.qmin), int(params.qmax)
    of_x, of_scale, of_zero = qk.fake_quantize_grad(grad, x, params)
    if not where:
        torch.fake_quantize_per_tensor_affine(tensor, float(params.scale), int(params.zero_point), *ends).backward(
            torch.from_numpy(grad)
        )
        assert_array_equal(of_x, tensor.grad.numpy())
        return
    axis = where["axis"]
    scale, zero_point = torch.from_numpy(params.scale.copy()), torch.from_numpy(params.zero_point.astype(F32))
    y = torch.fake_quantize_per_channel_affine(tensor, scale, zero_point.int(), axis, *ends)
    y.backward(torch.from_numpy(grad))
    assert_array_equal(of_x, tensor.grad.numpy())
    tensor.grad = None
    learned = scale.requires_grad_(), zero_point.requires_grad_()
    y = torch._fake_quantize_learnable_per_channel_affine(tensor, *learned, axis, *ends, 1.0)
    y.backward(torch.from_numpy(grad))
    assert_array_equal(of_x, tensor.grad.numpy())
    for got, want in ((of_scale, scale.grad), (of_zero, zero_point.grad)):
        assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6 * np.abs(want.numpy()).max())


# ---- stochastic rounding ----


def test_the_generator_is_the_published_one():
    """A known answer of Random123, for a counter and a key of zeros."""
    assert [f"{w:08x}" for w in philox(np.uint64([0]), 0)[0]] == ["5f6fb709", "0d893f64", "4f121f81", "4f730a48"]


def exact_stochastic(x, params, seed):
    wide = x.astype(np.float64 if x.dtype == np.float64 else F32)
    scale, zero_point = (per_element(v, params, x.shape) for v in (params.scale, params.zero_point))
    scale = scale.astype(wide.dtype)
    with np.errstate(all="ignore"):
        v = (wide / scale).astype(np.float64)
        v = np.clip(np.where(np.isnan(v), 0, v), np.float64(params.qmin) - zero_point, params.qmax - zero_point)
        r = np.rint(v)
        k = np.where(wide == r.astype(wide.dtype) * scale, 0, np.rint(65536 * (v - r)).astype(np.int64))
    u = random_bits(x.size, seed).reshape(x.shape)
    return (r + zero_point + ((k + u) >> 16)).astype(np.int32).astype(params.dtype)


@settings(max_examples=200)
@given(case=cases(), seed=st.integers(0, 2**64 - 1), place=places)
def test_stochastic_codes_are_those_of_the_formulas(case, seed, place, isas):
    x, params = case
    want = exact_stochastic(x, params, seed)
    by_chance = dict(rounding="stochastic", seed=seed)
    for isa in isas():
        assert_same_bits(qk.quantize(place(x), params, **by_chance), want, isa)
        back = qk.fake_quantize(place(x), params, **by_chance)
        assert_same_bits(back, qk.dequantize(want, params, dtype=x.dtype), isa)
        inplace = x.copy()
        assert qk.fake_quantize(inplace, params, **by_chance, out=inplace) is inplace
        assert_same_bits(inplace, back, isa)


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("where", LAYOUTS, ids=str)
def test_stochastic_codes_have_equal_bits_everywhere(where, of, variants):
    rng = np.random.default_rng(5)
    shape = (150, 13, 37)
    with np.errstate(under="ignore"):
        x, by_chance = rng.normal(size=shape).astype(of), dict(rounding="stochastic", seed=2**63 + 5)
    params = params_for(rng, shape, **where)
    want = exact_stochastic(x, params, 2**63 + 5)
    for variant in variants():
        assert_same_bits(qk.quantize(x, params, **by_chance), want, variant)
        assert_same_bits(qk.fake_quantize(x, params, **by_chance), qk.dequantize(want, params, dtype=of), variant)


@pytest.mark.parametrize("dtype", INT_CODES)
@pytest.mark.parametrize("of", FLOATS)
def test_values_of_codes_are_kept(dtype, of, isas):
    """Whatever the random number, and the last bit of the quotient."""
    rng = np.random.default_rng(6)
    params = qk.QParams(rng.uniform(0.5, 1, 400).astype(of).astype(F32), dtype=dtype, axis=0)
    codes = rng.integers(max(params.qmin, -256), min(params.qmax, 256) + 1, (400, 300)).astype(params.dtype)
    x = qk.dequantize(codes, params, dtype=of if of.itemsize > 2 else F32)
    for isa in isas():
        assert_same_bits(qk.quantize(x, params, rounding="stochastic", seed=1), codes, isa)
    ends = np.array([np.inf, -np.inf, np.nan, 3e4, -3e4], of)
    got = qk.quantize(ends, qk.QParams(0.25, dtype=dtype), rounding="stochastic", seed=2)
    assert_array_equal(
        got.astype(int),
        np.array([params.qmax, params.qmin, 0, *qk.quantize(ends, qk.QParams(0.25, dtype=dtype))[3:].astype(int)]),
    )


def test_stochastic_rounding_is_unbiased():
    """Means and neighbours' correlations within 5 standard deviations, for fixed seeds."""
    n = 2**18
    for seed, v in enumerate([0.5, 0.3, -0.3, 5.03, -7.9, 100.001, 0.0001, -63.99]):
        q = qk.quantize(np.full(n, v, F32), qk.QParams(1), rounding="stochastic", seed=seed).astype(float)
        part = v - np.floor(v)
        assert set(np.unique(q)) <= {np.floor(v), np.floor(v) + 1}
        assert abs(q.mean() - F32(v)) <= 5 * np.sqrt(part * (1 - part) / n) + 2.0**-17
    half = np.full(n, 0.5, F32)
    one, other = (qk.quantize(half, qk.QParams(1), rounding="stochastic", seed=s) - 0.5 for s in (1, 2))
    lags = (1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 96, 256, 992, 1024)
    for a, b in [(one, other)] + [(one[lag:], one[:-lag]) for lag in lags]:
        assert abs(4 * np.mean(a * b)) <= 5 / np.sqrt(n)


SMALL = np.where(np.arange(64) % 4 < 2, 1, 1e-39)

BOOKS = {
    "plain": (qk.Codebook([1, -1, 0.5, -0.25, 0.5, 2]), lambda x: x),
    "channels": (qk.Codebook(np.linspace(-3, 3, 37 * 7).reshape(7, 37).T, axis=1), lambda x: x[:, :37]),
    "blocks": (qk.NF4, lambda x: x),
    "blocks of an axis": (qk.Codebook(np.linspace(-1, 1, 9), axis=0, block_size=20), lambda x: x),
    "many": (qk.Codebook(np.random.default_rng(8).normal(size=200)), lambda x: x),
    "distances of all magnitudes": (
        qk.Codebook([3e38, 0, 2e-39, 1e-39, 1]),
        lambda x: np.abs(x) * SMALL.astype(x.dtype),
    ),
}


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("name", BOOKS)
def test_stochastic_codes_of_a_codebook(name, of, variants):
    """One of the two levels beside a value, by the number of its index, as nearness says."""
    book, part = BOOKS[name]
    with np.errstate(under="ignore"):
        x = np.ascontiguousarray(part(np.random.default_rng(9).normal(size=(150, 64)).astype(of)))
    nearest = qk.encode(x, book)
    codes, scales = nearest if book.block_size else (nearest, None)
    values = x.astype(F32 if of.itemsize < 8 or book.block_size else float)
    if scales is not None:
        factor = 1 / np.maximum(scales, F32(2.0**-126))
        each = np.repeat(factor, book.block_size, axis=0) if book.axis == 0 else np.repeat(factor, book.block_size)
        values = values * (each[: len(x)] if book.axis == 0 else each[: x.size].reshape(x.shape))
    values, u = values.astype(float), random_bits(x.size, 11).reshape(x.shape)
    levels = np.broadcast_to(book.levels.astype(float), (x.shape[1] if book.axis == 1 else 1, book.k))
    want = codes.copy()
    for i, j in np.ndindex(x.shape):
        of_value = levels[j if book.axis == 1 else 0]
        rest = values[i, j] - of_value[codes[i, j]]
        beyond = of_value[(of_value - of_value[codes[i, j]]) * rest > 0]
        if beyond.size:
            other = beyond.max() if rest < 0 else beyond.min()
            if u[i, j] + 0.5 < 65536 * (rest / (other - of_value[codes[i, j]])):
                want[i, j] = np.flatnonzero(of_value == other)[0]
    assert 0.05 < np.mean(want != codes) < 0.4
    for variant in variants():
        got = qk.encode(x, book, rounding="stochastic", seed=11)
        assert_same_bits(got[0] if book.block_size else got, want, variant)


def test_stochastic_codes_of_a_codebook_are_unbiased():
    book, n = qk.Codebook([-1, 0.1, 0.5, 3]), 2**16
    for seed, v in enumerate([-0.7, 0.1, 0.2, 1.1, -5, 7]):
        y = qk.decode(qk.encode(np.full(n, v, F32), book, rounding="stochastic", seed=seed), book)
        assert abs(y.mean(dtype=float) - np.clip(v, -1, 3)) <= 5 * 1.25 / np.sqrt(n)


# ---- the fake product is the real one ----


def test_a_layer_trained_by_fake_quantize_is_the_one_that_runs_on_integers():
    """With scales that are powers of two nothing is rounded on the way, and ties are the same; with others the codes
    are the same but where the product is next to a tie."""
    rng = np.random.default_rng(7)
    x, w = rng.normal(size=(200, 96)).astype(F32), rng.normal(size=(96, 80)).astype(F32)
    for dtype in ("int8", "uint8"):
        for exact in True, False:
            scales = 2.0 ** -rng.integers(5, 8, 80) if exact else rng.uniform(0.01, 0.03, 80)
            of_x, of_w = (
                qk.QParams(2.0**-5 if exact else 0.03, 3 if dtype == "uint8" else 0, dtype),
                qk.QParams(scales, axis=1),
            )
            of_y = qk.QParams(0.25 if exact else 0.21, 100 if dtype == "uint8" else -5, dtype)
            fake = qk.fake_quantize(x, of_x).astype(float) @ qk.fake_quantize(w, of_w).astype(float)
            packed = qk.pack(qk.quantize(w, of_w), of_w)
            real = qk.qlinear(qk.quantize(x, of_x), of_x, packed, of_y)
            differ = qk.quantize(fake, of_y) != real
            if exact:
                assert not differ.any()
            steps = np.abs(fake / float(of_y.scale))
            assert np.all(np.abs(steps[differ] % 1 - 0.5) <= 2.0**-21 * (1 + steps[differ]))
            assert differ.mean() < 1e-3


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_linear_is_the_product_with_fake_quantized_weights(dtype):
    """linear quantizes x by rows; weights of its layer are those of fake_quantize."""
    rng = np.random.default_rng(8)
    x, w = rng.normal(size=(60, 128)).astype(F32), rng.normal(size=(128, 50)).astype(F32)
    of_w = (
        qk.choose_qparams(w, dtype, axis=1) if dtype == "int8" else qk.choose_qparams(w, dtype, axis=0, block_size=32)
    )
    q, of_x = qk.dynamic_quantize(x, "uint8" if dtype == "int8" else "int8", axis=0)
    rows, weights = qk.dequantize(q, of_x).astype(float), qk.fake_quantize(w, of_w).astype(float)
    got = qk.linear(x, qk.pack(qk.quantize(w, of_w), of_w))
    assert_allclose(got, rows @ weights, rtol=0, atol=2.0**-21 * np.max(np.abs(rows) @ np.abs(weights)))


# ---- errors ----

X, PARAMS = np.ones((2, 3), F32), qk.QParams(0.5)


@refusals(r"""
qk.fake_quantize_grad(X, X, PARAMS, edge="hard")  # ValueError: edge must be 'rounded' or 'clipped', got 'hard'
qk.fake_quantize_grad(X, X, PARAMS, edge=None)  # ValueError: edge must be 'rounded' or 'clipped', got None
qk.fake_quantize_grad(X[0], X, PARAMS)  # ValueError: grad must have the shape of x, \(2, 3\), got \(3,\)
qk.fake_quantize_grad(X.astype(float), X, PARAMS)  # TypeError: grad must have the dtype of x, float32, got float64
qk.fake_quantize_grad(X, X.astype(int), PARAMS)  # TypeError: x must be float32, float64, float16 or bfloat16, got int64
qk.fake_quantize_grad(X, X, "int8")  # TypeError: params must be QParams, got str
qk.fake_quantize_grad(X, X, qk.QParams(1, dtype="float8_e5m2"))  # TypeError: params must have an integer dtype, got flo
qk.fake_quantize_grad(X, X, qk.QParams([1, 2], axis=1))
    # ValueError: scale must have shape \(3,\) to match axis 1 of x with shape \(2, 3\), got \(2,\)
qk.quantize(X, PARAMS, rounding="stochastic")  # ValueError: seed must be given for rounding='stochastic', got None
qk.quantize(X, PARAMS, seed=1)  # ValueError: seed must be None unless rounding is 'stochastic', got 1
qk.quantize(X, PARAMS, rounding="stochastic", seed=-1)  # ValueError: seed must be at least 0, got -1
qk.quantize(X, PARAMS, rounding="stochastic", seed=2**64)  # ValueError: seed must fit 64 bits, got 18446744073709551616
qk.quantize(X, PARAMS, rounding="stochastic", seed=1.0)  # TypeError: seed must be an integer, got 1.0
qk.fake_quantize(X, PARAMS, rounding="half_away")
    # ValueError: rounding must be one of 'half_even', 'stochastic', got 'half_away'
qk.encode(X, qk.NF4, rounding="half_even")  # ValueError: rounding must be one of 'nearest', 'stochastic', got 'half_e
qk.encode(X, qk.Codebook([[0], [1]], vector=True), rounding="stochastic", seed=1)
    # ValueError: rounding must be 'nearest' for a codebook of vectors, got 'stochastic'
qk.quantize(X, qk.QParams(1, dtype="float8_e5m2"), rounding="stochastic", seed=1)
    # ValueError: rounding must be 'half_even' for codes of dtype float8_e5m2, got 'stochastic'
""")
def test_refusals(refusal):
    refuse(refusal, globals())
