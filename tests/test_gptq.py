"""Rounding with feedback: its formula bit for bit, the published form, and laws of what it is for."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from common import fused, refusals, refuse

import qkernels as qk
from qkernels import _blas, _feedback, _gptq


def layer(k, n, rows=400, seed=0, offset=1.0):
    """Inputs that go together, their Hessian, and weights."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, k)) @ rng.normal(size=(k, k)) * rng.uniform(0.2, 2, k) + offset).astype(np.float32)
    return x, qk.Hessian(k).update(x), rng.normal(size=(k, n)).astype(np.float32)


def grids(w, size=5):
    """A grid of each kind, for weights (k, n)."""
    n = w.shape[1]
    book = qk.Codebook(np.sort(np.random.default_rng(5).normal(size=7))[::-1], axis=0, block_size=size)
    columns = qk.Codebook(np.random.default_rng(6).normal(size=(n, 4)), axis=1)
    return {
        "tensor": qk.choose_qparams(w, "int8"),
        "column": qk.choose_qparams(w, "uint4", axis=1, symmetric=False),
        "block": qk.choose_qparams(w, "int4", axis=0, block_size=size),
        "int16": qk.choose_qparams(w, "int16", axis=1),
        "levels": qk.Codebook.fit(w, 6),
        "levels of columns": columns,
        "levels of blocks": book,
        "with scales": (book, qk.encode(w, book)[1] * np.float32(0.8)),
        "with scales of either sign": (book, qk.encode(w, book)[1] * np.float32([0.8, -0.9])[np.arange(n) % 2]),
    }


def wide(found):
    """The weights that a result stands for."""
    if isinstance(found.params, qk.Codebook):
        return qk.decode(found.codes, found.params, found.scales)
    return qk.dequantize(found.codes, found.params)


def error_of(w, rounded, x):
    """The mean squared error of outputs about its mean, summed."""
    outputs = x.astype(float) @ (w.astype(float) - rounded)
    return ((outputs - outputs.mean(axis=0)) ** 2).sum() / len(x)


# ---- the formula ----


def reference(w, problem, nearest, refine):
    """Section 30 row by row: nearest(i, t) gives the point of the grid for row i of w in order."""
    h, factor, weights = problem.matrix, problem.factor.T, w[problem.order]
    rounded, e = np.empty_like(w), np.zeros_like(weights)
    distances, g = np.empty_like(e), np.empty_like(e)
    diagonal = np.diagonal(factor)[:, None]
    for i in range(len(w)):
        before = np.zeros_like(e[0])
        for j in range(i):
            before = fused(np.broadcast_to(factor[j, i] / factor[i, i], e[j].shape), e[j], before)
        value = weights[i] + before
        rounded[problem.order[i]] = nearest(problem.order[i], value)
        e[i] = weights[i] - rounded[problem.order[i]]
        distances[i] = factor[i, i] * (value - rounded[problem.order[i]])
    for i in range(len(w)):
        later, others = np.zeros_like(e[0]), np.float32(np.sum(np.float64(factor[i, i + 1 :]) ** 2))
        for j in range(i + 1, len(w)):
            later = fused(np.broadcast_to(factor[i, j], e[j].shape), distances[j], later)
        g[i] = later + (diagonal[i] * (distances[i] - diagonal[i] * e[i]) - others * e[i])
    for _ in range(refine):
        for i in range(len(w)):
            rounded[problem.order[i]] = nearest(problem.order[i], weights[i] + g[i] / h[i, i])
            earlier, e[i] = e[i].copy(), weights[i] - rounded[problem.order[i]]
            for j in range(len(w)):
                if j != i:
                    g[j] = fused(np.broadcast_to(h[i, j], e[i].shape), e[i] - earlier, g[j])
    return rounded


def nearest_of(grid, w):
    """Round row i of w, as a part of all of it, as `quantize` and `encode` do."""
    grid, scales = grid if isinstance(grid, tuple) else (grid, None)
    if isinstance(grid, qk.QParams):

        def nearest(i, value):
            full = np.zeros_like(w)
            full[i] = value
            return qk.fake_quantize(full, grid)[i]
    else:
        scales = qk.encode(w, grid)[1] if grid.block_size and scales is None else scales

        def nearest(i, value):
            scale = scales[i // grid.block_size] if scales is not None else np.ones_like(value)
            plain = qk.Codebook(grid.levels, axis=0 if grid.levels.ndim > 1 else None)
            codes = qk.encode(value * (1 / scale), plain)
            return qk.decode(codes, plain) * scale

    return nearest


@pytest.mark.parametrize("name", grids(np.ones((2, 3), np.float32)))
def test_bits_are_those_of_the_formula(name, isas):
    x, seen, w = layer(29, 37)
    grid = grids(w)[name]
    problem = _feedback.Problem(seen, "activation", 0.01, True)
    expected = reference(w, problem, nearest_of(grid, w), 2)
    for _ in isas():
        for threads in (1, 2, 3):
            with qk.num_threads(threads):
                assert np.array_equal(wide(qk.gptq(w, seen, grid, refine=2)), expected)


def test_sums_that_are_kept_are_those_of_all_errors(isas):
    """Of some hundred rows, whose blocks of 128 tell one another, after passes in which many codes change."""
    x, seen, w = layer(300, 70)
    params = qk.choose_qparams(w, "int2", axis=0, block_size=32)
    for _ in isas():
        problem = _feedback.Problem(seen, "activation", 1e-3, True)
        rounding = _gptq._Rounding(w, problem, _gptq._Grid(params, w))
        rounding.sums = np.empty_like(rounding.errors)
        rounding.run(problem.feedback())
        problem.start(rounding.errors, rounding.sums)
        for again in range(3):
            h, errors = problem.matrix.astype(float), rounding.flat_errors().astype(float)
            sums = rounding.sums.swapaxes(0, 1).reshape(300, -1)[:, :70]
            exact = h @ errors - np.diagonal(h)[:, None] * errors
            assert np.abs(sums - exact).max() < 3e-5 * np.abs(exact).max()
            codes = rounding.codes.copy()
            rounding.run(problem.corrections())
            assert again or (rounding.codes != codes).mean() > 0.01


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("exponent", [-100, 60, 124])
def test_any_unit_of_weights(refit, exponent):
    x, seen, w = layer(40, 33)
    params = qk.choose_qparams(w, "int4", axis=0, block_size=16)
    units = qk.QParams(np.ldexp(params.scale, exponent), dtype="int4", axis=0, block_size=16, narrow_range=True)
    one, other = (
        qk.gptq(each, seen, grid, refit=refit) for each, grid in ((w, params), (np.ldexp(w, exponent), units))
    )
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(np.ldexp(one.params.scale, exponent), other.params.scale)
    np.testing.assert_allclose(other.report["errors"], one.report["errors"] * 4.0**exponent, rtol=1e-6)


@pytest.mark.parametrize("exponent", [0, 120])
@pytest.mark.parametrize("refit", [False, True])
def test_negative_scales_are_those_of_negative_levels(refit, exponent):
    x, seen, w = layer(40, 33)
    levels = np.float32([-1, -0.3, 0.1, 0.35, 1.2])
    book, mirrored = (qk.Codebook(each, axis=0, block_size=16) for each in (levels, -levels))
    scales = np.ldexp(qk.encode(w, book)[1], exponent)
    w = np.ldexp(w, exponent)
    one, other = qk.gptq(w, seen, (book, scales), refit=refit), qk.gptq(w, seen, (mirrored, -scales), refit=refit)
    assert np.array_equal(one.codes, other.codes) and np.array_equal(one.scales, -other.scales)
    assert np.array_equal(wide(one), wide(other)) and (one.scales > 0).all()


@pytest.mark.parametrize("options", [dict(axis=1), dict(axis=0, block_size=8, scale_bits=4)])
def test_the_largest_weights(options):
    _, seen, w = layer(16, 8)
    w *= np.float32(3e38) / np.abs(w).max()
    found = qk.gptq(w, seen, qk.choose_qparams(w, "int4", **options), refit=True)
    small = np.ldexp(w, -100)
    again = qk.gptq(small, seen, qk.choose_qparams(small, "int4", **options), refit=True)
    assert np.array_equal(found.codes, again.codes)
    assert np.array_equal(found.bias, np.ldexp(again.bias, 100)) and np.isfinite(found.bias).all()
    np.testing.assert_allclose(found.report["errors"], again.report["errors"] * 4.0**100, rtol=1e-6)


def test_passes_over_the_smallest_weights_lose_nothing():
    _, seen, w = layer(64, 9)
    book = qk.Codebook(qk.NF4.levels, axis=0, block_size=16)
    for exponent in (-95, -100, -108):
        errors = qk.gptq(np.ldexp(w, exponent), seen, book, refine=4).report["errors"]
        assert (np.diff(errors) <= 0).all() and errors[0] > 0


@pytest.mark.parametrize("refit", [False, True])
def test_columns_do_not_know_of_larger_ones(refit):
    _, seen, w = layer(16, 2)
    one, other = (
        qk.gptq(each, seen, qk.choose_qparams(each, "int8", axis=1), refit=refit)
        for each in (w * np.float32([1e37, 1e-33]), w * np.float32([1, 1e-33]))
    )
    assert np.array_equal(one.codes[:, 1], other.codes[:, 1]) and np.abs(one.codes).max() > 90
    assert one.params.scale[1] == other.params.scale[1]


def test_layers_without_outputs():
    _, seen, w = layer(16, 0)
    book = qk.Codebook([0, 1.0], axis=0, block_size=4)
    for grid in (qk.QParams(1, dtype="int4"), qk.QParams(np.ones(0, np.float32), axis=1), book):
        for refit in (False, True):
            assert qk.gptq(w, seen, grid, refit=refit).codes.shape == (16, 0)


def test_bits_do_not_depend_on_instruction_set_or_threads(isas):
    _, seen, w = layer(150, 300)
    found = []
    for _ in isas():
        for threads in (1, 3):
            with qk.num_threads(threads):
                result = qk.gptq(w, seen, qk.choose_qparams(w, "int4", axis=0, block_size=32))
                found.append((result.codes.tobytes(), result.bias.tobytes(), result.report["errors"].tobytes()))
    assert len(set(found)) == 1


@pytest.mark.parametrize("k", [1, 30, 511, 512, 513, 1100])
def test_the_factor_in_parts(k, monkeypatch):
    x = np.random.default_rng(k).normal(size=(2 * k, k)).astype(np.float32)
    monkeypatch.setattr(_blas, "PART", 2**16)  # products of large matrices take several parts
    monkeypatch.setattr(_blas, "SQUARE", 126)
    h = np.zeros((k, k), np.float32)
    _blas.add_gram(h, x)
    h = _blas.mirror(h)
    assert np.array_equal(h, h.T)
    np.testing.assert_allclose(h, x.T.astype(float) @ x, atol=2e-4 * k)
    np.testing.assert_allclose(_blas.product(x, h), x.astype(float) @ h, rtol=1e-4, atol=2e-4 * k * k)
    factor = _blas.cholesky(h.copy().T)
    assert np.array_equal(factor, np.tril(factor))
    np.testing.assert_allclose(factor.astype(float) @ factor.T, h, atol=2e-4 * k)
    h[k // 2, k // 2] = -1
    assert _blas.cholesky(h.T) is None


def published(w, h, params):
    """GPTQ as published: the factor of the inverse, and each error pushed on to all later rows; in float64."""
    u, w = np.linalg.cholesky(np.linalg.inv(h)).T, w.astype(float)
    for i in range(len(w)):
        rounded = qk.fake_quantize(w[i : i + 1], params)[0]
        error = (w[i] - rounded) / u[i, i]
        w[i:] -= np.outer(u[i, i:], error)
        w[i] = rounded
    return w


def test_it_is_the_published_method():
    x, seen, w = layer(60, 50)
    params = qk.choose_qparams(w, "int4")
    found = wide(qk.gptq(w, seen, params, order="natural", damp=0.01, center=False, refine=0))
    h = seen.moments / seen.count
    same = np.isclose(found, published(w, h + 0.01 * np.mean(np.diagonal(h)) * np.eye(60), params), atol=1e-6)
    assert same.mean() > 0.99


# ---- what it is for ----


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("name", grids(np.ones((2, 3), np.float32)))
def test_errors_are_told_and_smaller_than_those_of_plain_rounding(name, order):
    x, seen, w = layer(40, 33)
    grid = grids(w)[name]
    plain = grid
    if isinstance(grid, tuple):
        plain = nearest_of(grid, w)
        plain = np.stack([plain(i, w[i]) for i in range(40)])
    found = qk.gptq(w, seen, grid, order=order, damp=1e-7, refine=3)
    errors = found.report["errors"]
    assert 2 <= len(errors) <= 4 and np.all(np.diff(errors) <= 1e-5 * errors[0]) and found.report["damp"] == 1e-7
    assert error_of(w, wide(found), x) == pytest.approx(errors[-1], rel=2e-3)
    first = qk.gptq(w, seen, grid, order=order, damp=1e-7, refine=0)
    assert error_of(w, wide(first), x) == pytest.approx(errors[0], rel=2e-3)
    assert errors[-1] < 0.95 * qk.sensitivity(w, seen, [plain], center=True)[0]


@pytest.mark.parametrize("name", grids(np.ones((2, 3), np.float32)))
def test_refitting_is_told_and_gains_before_codes_are_given_anew(name):
    x, seen, w = layer(40, 33)
    found = qk.gptq(w, seen, grids(w)[name], damp=1e-7, refine=3, refit=True)
    assert error_of(w, wide(found), x) == pytest.approx(found.report["errors"][-1], rel=2e-3)
    grid = _gptq._Grid(grids(w)[name], w)
    rounding = _gptq._Rounding(w, problem := _feedback.Problem(seen, "natural", 1e-7, True), grid)
    before, params = rounding.run(problem.feedback()) * problem.unit, grid.params
    after = rounding.refit(problem) * problem.unit
    if name == "levels of columns":  # there is nothing to fit
        assert grid.params is params and after == pytest.approx(before, rel=1e-4)
    else:
        assert after < before and (grid.scales is not None or grid.params != params)


def test_refitted_scales_and_levels_are_those_of_least_squares():
    x, seen, w = layer(40, 33)
    problem, outputs = _feedback.Problem(seen, "natural", 0, True), x - x.mean(axis=0, dtype=float)
    params = qk.choose_qparams(w, "int4", axis=1)
    units = qk.quantize(w, params).astype(np.float32)
    grid = _gptq._Grid(params, w)
    grid.fit_scales(problem.matrix, units, w - units * grid.scale)
    made = outputs @ units
    expected = np.sum(made * (outputs @ w), axis=0) / np.sum(made**2, axis=0)
    np.testing.assert_allclose(grid.params.scale, expected, rtol=1e-4)
    book = qk.Codebook.fit(w, 3)
    codes, grid = qk.encode(w, book), _gptq._Grid(book, w)
    grid.laid_out(64)
    grid.move_levels(grid.moves_of_levels(problem.matrix, codes, w))
    made = np.stack([outputs @ (codes == i) for i in range(3)], axis=-1).reshape(-1, 3)
    expected = np.linalg.lstsq(made, (outputs @ w).reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(grid.params.levels, expected, rtol=1e-3)


@pytest.mark.parametrize("block_size", [None, 16])
@pytest.mark.parametrize("tails", ["normal", "sizes of columns", "few large columns", "values"])
def test_refitting_is_no_loss_where_some_columns_tell_of_all(tails, block_size):
    rng, n = np.random.default_rng(7), 700
    x, seen, w = layer(48, n)
    w *= {
        "normal": np.float32(1),
        "sizes of columns": np.exp(1.5 * rng.normal(size=n)).astype(np.float32),
        "few large columns": np.where(np.arange(n) % 7 == 3, np.float32(20), np.float32(1)),
        "values": rng.standard_t(3, size=w.shape).astype(np.float32),
    }[tails]
    book = qk.Codebook.fit(w, 8, **(dict(axis=0, block_size=block_size) if block_size else {}))
    plain, fitted = (qk.gptq(w, seen, book, refine=4, refit=refit).report["errors"] for refit in (False, True))
    assert fitted[0] == plain[0] and (np.diff(fitted) <= 0).all() and fitted[-1] < 1.02 * plain[-1]


def test_a_pass_that_loses_is_undone(monkeypatch):
    x, seen, w = layer(40, 33)
    book = qk.Codebook.fit(w, 5)
    first = qk.gptq(w, seen, book, refine=0)
    monkeypatch.setattr(_gptq, "_best_step", lambda *args: -50.0)
    found = qk.gptq(w, seen, book, refit=True)
    assert np.array_equal(found.codes, first.codes) and np.array_equal(found.params.levels, book.levels)
    assert np.array_equal(found.bias, first.bias) and np.array_equal(found.report["errors"], first.report["errors"])


def test_refitted_scales_keep_their_precision_and_codes_fit_them():
    x, seen, w = layer(40, 33)
    book = qk.Codebook(np.linspace(-1, 1, 7), axis=0, block_size=16)
    found = qk.gptq(w, seen, (book, np.float16(qk.encode(w, book)[1])), refit=True)
    assert found.scales.dtype == np.float32 and np.array_equal(found.scales, np.float16(found.scales))
    chosen = qk.choose_qparams(w, "uint4", axis=0, block_size=16, symmetric=False)
    params = qk.QParams(np.float16(chosen.scale), chosen.zero_point, "uint4", axis=0, block_size=16)
    fitted = qk.gptq(w, seen, params, refit=True)
    scale = fitted.params.scale
    assert np.array_equal(scale, np.float16(scale)) and not np.array_equal(scale, params.scale)
    assert np.array_equal(fitted.params.zero_point, params.zero_point)
    unrefined = [qk.gptq(w, seen, params, refine=0, refit=each) for each in (True, False)]
    assert unrefined[0].params == unrefined[1].params == params  # there is no pass to fit for


def test_no_single_code_could_be_better_after_refinement():
    x, seen, w = layer(6, 3, rows=50)
    params = qk.choose_qparams(w, "int2", axis=1)
    found = qk.gptq(w, seen, params, damp=0, refine=2**63)
    assert len(found.report["errors"]) < 50
    best = error_of(w, wide(found), x)
    for i, j, code in itertools.product(range(6), range(3), range(-1, 2)):
        codes = found.codes.copy()
        codes[i, j] = code
        assert error_of(w, qk.dequantize(codes, params), x) >= best * (1 - 1e-5)


def test_it_is_close_to_the_best_of_all():
    """Of 3^6 codes a column."""
    x, seen, w = layer(6, 8, rows=50, seed=3)
    params = qk.QParams(0.7, dtype="int2", narrow_range=True)
    every = np.array(list(itertools.product([-0.7, 0, 0.7], repeat=6))).T
    covariance = np.cov(x.T.astype(float), bias=True)
    best = [min(np.einsum("ki,kl,li->i", e, covariance, e)) for e in (w[:, [j]] - every for j in range(8))]
    found = error_of(w, wide(qk.gptq(w, seen, params, damp=1e-6, refine=10)), x)
    assert sum(best) * (1 - 1e-5) <= found <= 1.15 * sum(best) < qk.sensitivity(w, seen, [params], center=True)[0]


def test_the_bias_takes_the_mean_error_over():
    x, seen, w = layer(40, 17, offset=20.0)
    found = qk.gptq(w, seen, qk.choose_qparams(w, "int4", axis=1))
    lost = (x.astype(float) @ (w - wide(found).astype(float))).mean(axis=0)
    np.testing.assert_allclose(found.bias, lost, rtol=1e-4, atol=1e-4)
    assert found.bias.dtype == np.float32 and np.abs(lost).max() > 0.01
    assert qk.gptq(w, seen, qk.QParams(0.1), center=False).bias is None


@pytest.mark.parametrize("name", grids(np.ones((2, 3), np.float32)))
def test_inputs_that_have_nothing_in_common_are_rounded_plainly(name):
    w = np.random.default_rng(8).normal(size=(20, 9)).astype(np.float32)
    grid = grids(w)[name]
    seen = qk.Hessian(20).update(np.diag(np.arange(1, 21)).astype(np.float32))
    nearest = nearest_of(grid, w)
    expected = np.stack([nearest(i, w[i]) for i in range(20)])
    assert np.array_equal(wide(qk.gptq(w, seen, grid, center=False)), expected)


def test_dead_inputs_change_nothing():
    x, _, w = layer(30, 10)
    x[:, [3, 17]] = 0, 5
    params = qk.choose_qparams(w, "int4", axis=1)
    found = qk.gptq(w, qk.Hessian(30).update(x), params)
    assert found.report["dead"].tolist() == [3, 17]
    assert np.array_equal(found.codes[[3, 17]], qk.quantize(w, params)[[3, 17]])
    left = np.delete(np.arange(30), [3, 17])
    alone = qk.gptq(w[left], qk.Hessian(28).update(x[:, left]), params)
    assert np.array_equal(found.codes[left], alone.codes)
    nothing = qk.gptq(w, qk.Hessian(30).update(np.ones((5, 30), np.float32)), params)
    assert len(nothing.report["dead"]) == 30 and np.array_equal(nothing.codes, qk.quantize(w, params))


def test_damping_grows_until_there_is_a_factor():
    x, seen, w = layer(50, 8, rows=7)
    found = qk.gptq(w, seen, qk.QParams(0.5, dtype="int4"), damp=0, center=False)
    assert 0 < found.report["damp"] < 1e-2 and np.isfinite(found.report["errors"]).all()
    opposite = dict(seen.to_arrays(), sum=np.zeros(50), moments=2 * np.eye(50) - 1)  # which needs 48 times its diagonal
    assert qk.gptq(w, qk.Hessian.from_arrays(opposite), qk.QParams(0.5), center=False).report["damp"] > 40


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (13, 1), (12, 32), (25, 31), (24, 129)])
def test_any_shape(shape):
    _, seen, w = layer(*shape)
    found = qk.gptq(w, seen, qk.choose_qparams(w, "int4", axis=0, block_size=7))
    assert found.codes.shape == shape and found.codes.dtype == ml_dtypes.int4 and found.bias.shape == shape[1:]
    assert qk.pack(found.codes, found.params).shape == shape
    assert qk.gptq(np.zeros((shape[0], 0), np.float32), seen, qk.QParams(1)).codes.shape == (shape[0], 0)


def test_what_pack_takes(isas):
    x, seen, w = layer(64, 40)
    for grid in (qk.choose_qparams(w, "int8", axis=1), qk.Codebook(qk.NF4.levels, axis=0, block_size=32)):
        found = qk.gptq(w, seen, grid)
        y = qk.linear(x, qk.pack(found.codes, found.params, scales=found.scales), found.bias)
        assert np.linalg.norm(y - x @ w) < 0.05 * np.linalg.norm(x @ w)


@refusals("""
gptq(np.ones((3, 2)), Hessian(3), QParams(1))               # ValueError: hessian has seen no rows
gptq(np.ones((2, 2)), H, QParams(1))                        # ValueError: w must have shape .k, n., k = 3
gptq(np.full((3, 2), np.nan), H, QParams(1))                # ValueError: w .*NaN
gptq(np.ones((3, 2)), None, QParams(1))                     # TypeError: hessian must be a Hessian, got None
gptq(np.ones((3, 2)), H, 0.5)                               # TypeError: grid must be QParams, a Codebook or a tuple
gptq(np.ones((3, 2)), H, (QParams(1), [1]))                 # TypeError: grid must be QParams, a Codebook or a tuple
gptq(np.ones((3, 2)), H, QParams(1), order="best")          # ValueError: order must be 'activation' or 'natural', got
gptq(np.ones((3, 2)), H, QParams(1), damp=-1)               # ValueError: damp must be from 0 to 10000, got -1.0
gptq(np.ones((3, 2)), H, QParams(1), damp=np.nan)           # ValueError: damp must be from 0 to 10000, got nan
gptq(np.ones((3, 2)), H, QParams(1), refine=-1)             # ValueError: refine must be at least 0, got -1
gptq(np.ones((3, 2)), H, QParams(1), center=2)              # TypeError: center must be
gptq(np.ones((3, 2)), H, QParams(1), refit=2)               # TypeError: refit must be
gptq(np.ones((3, 2)), H, QParams([1, 1, 1], axis=1))        # ValueError: scale of grid must have shape .2,. to match
gptq(np.ones((3, 2)), H, QParams([1, 1, 1], axis=0))        # ValueError: grid must be per tensor, per column or per
gptq(np.ones((3, 2)), H, QParams(1, dtype="uint16"))        # ValueError: grid must have integer codes, int16 or at most
gptq(np.ones((3, 2)), H, QParams(1, dtype="float8_e5m2"))   # ValueError: grid must have integer codes, int16 or at most
gptq(np.ones((3, 2)), H, Codebook([[1, 2]], vector=True))   # ValueError: grid must have levels for all values
gptq(np.ones((3, 2)), H, Codebook([1, 2], block_size=2))    # ValueError: grid must have blocks along axis 0
gptq(np.ones((3, 2)), H, Codebook([[1, 2]], axis=1))        # ValueError: grid must have levels for 2 columns, got 1
gptq(np.ones((3, 2)), H, (Codebook([1, 2]), np.ones(2)))    # ValueError: scales are for a codebook with a block size
gptq(np.ones((3, 2)), INDEFINITE, QParams(1))               # ValueError: hessian has moments that no data have
""")
def test_refusals(refusal):
    h = qk.Hessian(3).update([[1.0, 2, 3], [3, 1, 2]])
    moments = np.ones((3, 3)) * 1e9 - np.eye(3) * (1e9 - 1)
    indefinite = qk.Hessian.from_arrays({"count": np.int64(1), "sum": np.zeros(3), "moments": moments})
    refuse(refusal, vars(qk) | {"np": np, "H": h, "INDEFINITE": indefinite})


def test_levels_are_refitted_in_any_unit_and_for_one_column():
    _, h, w = layer(16, 8)
    fitted = qk.gptq(w, h, blocks := qk.Codebook(qk.NF4.levels, axis=0, block_size=8), refit=True)
    plain = qk.gptq(w, h, qk.Codebook(np.float32([-1.5, -0.5, 0.4, 1.4])), refit=True)
    for exponent in (-100, -60, 63, 80, 99, 124):
        far = np.ldexp(w, exponent)
        again = qk.gptq(far, h, blocks, refit=True)
        np.testing.assert_array_equal(again.codes, fitted.codes)
        np.testing.assert_array_equal(again.params.levels, fitted.params.levels)
        again = qk.gptq(far, h, qk.Codebook(np.ldexp(np.float32([-1.5, -0.5, 0.4, 1.4]), exponent)), refit=True)
        np.testing.assert_array_equal(again.codes, plain.codes)
        np.testing.assert_array_equal(again.params.levels, np.ldexp(plain.params.levels, exponent))
    own = qk.Codebook(np.float32([[-1, 0, 0.5, 1]]), axis=1)  # levels for each column, of which there is one
    assert qk.gptq(w[:, :1], h, own, refit=True).codes.shape == (16, 1)
