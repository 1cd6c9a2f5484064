"""layer_norm and attention against float64, within the bounds of docs/numerics.md, and equal bits everywhere."""

from functools import partial

import numpy as np
import pytest
from common import fused, random_bits, random_codes, refusals, refuse

import qkernels as qk

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


# ---- layer_norm ----


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 100, 384, 1000])
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm_is_within_its_bound(n, with_residual, everywhere):
    x, weight, bias = floats(5, 7, n) + 3, floats(n), floats(n)
    residual = floats(5, 7, n) if with_residual else None
    y = everywhere(lambda: qk.layer_norm(x, weight, bias, eps=1e-3, residual=residual))
    s = x.astype(float) + (residual if with_residual else 0)
    deviation, sigma = s - s.mean(-1, keepdims=True), np.sqrt(s.var(-1, keepdims=True) + 1e-3)
    exact = deviation / sigma * weight + bias
    size = np.abs(s).max(-1, keepdims=True) + np.abs(deviation)
    assert np.all(
        np.abs(y - exact) <= 2.0**-24 * (np.abs(weight) * (n / 16 + 8) * size / sigma + np.abs(exact) + np.abs(bias))
    )


def test_layer_norm_of_many_rows_uses_threads_with_equal_bits(everywhere):
    x = floats(3000, 96)
    everywhere(lambda: qk.layer_norm(x, np.ones(96, np.float32), np.zeros(96, np.float32)))


def test_layer_norm_writes_to_out_which_may_be_an_input():
    x, residual, ones, zeros = floats(4, 40), floats(4, 40), np.ones(40, np.float32), np.zeros(40, np.float32)
    expected = qk.layer_norm(x, ones, zeros, residual=residual)
    for pick in (0, 1):
        inputs = [x.copy(), residual.copy()]
        assert qk.layer_norm(inputs[0], ones, zeros, residual=inputs[1], out=inputs[pick]) is inputs[pick]
        np.testing.assert_array_equal(inputs[pick], expected)


def test_layer_norm_takes_strides_and_empty_arrays():
    x, ones, zeros = floats(6, 20), np.ones(10, np.float32), np.zeros(10, np.float32)
    np.testing.assert_array_equal(
        qk.layer_norm(x[::2, ::2], ones, zeros), qk.layer_norm(x[::2, ::2].copy(), ones, zeros)
    )
    assert qk.layer_norm(np.empty((0, 10), np.float32), ones, zeros).shape == (0, 10)
    assert qk.layer_norm(np.empty((3, 0), np.float32), ones[:0], zeros[:0]).shape == (3, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_layer_norm_of_a_row_with_nan_is_nan(bad, everywhere):
    x = floats(3, 33)
    x[1, 32] = bad
    y = everywhere(lambda: qk.layer_norm(x, np.ones(33, np.float32), np.zeros(33, np.float32)))
    assert np.isnan(y).tolist() == [[False] * 33, [True] * 33, [False] * 33]


@refusals(r"""
norm(x=np.zeros((2, 4)))  # TypeError: x must be float32, got float64
norm(x=np.float32(1))  # ValueError: x must have at least one axis
norm(weight=np.ones(3, np.float32))  # ValueError: weight must have shape \(4,\) to match the last axis of x, got \(3,\)
norm(bias=np.ones(4))  # TypeError: bias must be float32, got float64
norm(eps=-1.0)  # ValueError: eps must be at least 0, got -1.0
norm(eps=float("nan"))  # ValueError: eps must be at least 0, got nan
norm(residual=np.zeros((3, 4), np.float32))  # ValueError: residual must have shape \(2, 4\) \(as x\), got \(3, 4\)
""")
def test_layer_norm_refuses(refusal):
    ones, out = np.ones((2, 4), np.float32), np.full((2, 4), 7, np.float32)
    refuse(refusal, globals() | {"norm": partial(qk.layer_norm, x=ones, weight=ones[0], bias=ones[0], out=out)})
    assert np.all(out == 7)


def test_layer_norm_refuses_partial_overlap():
    memory, ones = np.ones(44, np.float32), np.ones(4, np.float32)
    with pytest.raises(ValueError, match="out must be x itself or not overlap it"):
        qk.layer_norm(memory[:40].reshape(10, 4), ones, ones, out=memory[4:].reshape(10, 4))


# ---- attention ----


def exact_attention(q, k, v, heads, starts):
    """(result, bound on the error) by docs/numerics.md, section 11, in float64."""
    size = q.shape[1] // heads
    result, bound = np.zeros(q.shape), np.zeros(q.shape)
    for begin, end in zip(starts[:-1], starts[1:]):
        for column in range(0, q.shape[1] if end > begin else 0, size):
            block = slice(begin, end), slice(column, column + size)
            qb, kb, vb = (a[block].astype(float) for a in (q, k, v))
            scores = qb @ kb.T / np.sqrt(size)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            total = weights.sum(axis=1, keepdims=True)
            result[block] = weights / total @ vb
            delta = np.sqrt(size) * abs(qb).max() * abs(kb).max() * (1 / 127 + 1 / (4 * 127**2))
            spread = np.exp(2 * delta)
            bound[block] = abs(vb).max() * (spread - 1 + 1.04 * (end - begin) * spread / (255 * total) + 1 / 254) + 1e-6
    return result, bound


@pytest.mark.parametrize("heads, size", [(1, 1), (3, 5), (2, 16), (12, 32), (1, 64), (2, 33)])
@pytest.mark.parametrize("starts", [[0, 1], [0, 16], [0, 3, 3, 70], [0, 33, 34, 162], [0, 0]])
def test_attention_is_within_its_bound(heads, size, starts, everywhere):
    qkv = floats(starts[-1], 3 * heads * size)
    q, k, v = np.split(qkv, 3, axis=1)
    y = everywhere(lambda: qk.attention(q, k, v, heads, starts=starts))
    exact, bound = exact_attention(q, k, v, heads, starts)
    assert np.all(abs(y - exact) <= bound)
    if starts[-1] > 60 and size > 15:
        assert np.abs(y - exact).mean() < 0.01  # what is usual; the bound is the worst case


def test_attention_of_equal_scores_is_the_mean():
    v = floats(50, 8)
    y = qk.attention(np.zeros_like(v), floats(50, 8), v, 2)
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(axis=0), y.shape), atol=abs(v).max() / 254 + 1e-6)


def test_attention_of_sharp_scores_picks_one_token():
    q = 100 * np.eye(20, dtype=np.float32)
    v = floats(20, 20)
    np.testing.assert_allclose(qk.attention(q, q, v, 1), v, atol=abs(v).max() / 254 + 1e-6)


def test_attention_keeps_sequences_apart():
    q, k, v = floats(3, 40, 24)
    y = qk.attention(q, k, v, 3, starts=[0, 25, 40])
    np.testing.assert_array_equal(y[:25], qk.attention(q[:25], k[:25], v[:25], 3))
    np.testing.assert_array_equal(y[25:], qk.attention(q[25:], k[25:], v[25:], 3))


@pytest.mark.parametrize("magnitude", [0, 1e-45, 1e-38, 1e-20, 1e19, 3e38])
@np.errstate(under="ignore")  # of references
def test_attention_of_extreme_magnitudes_is_finite(magnitude, everywhere):
    with np.errstate(under="ignore"):
        x = np.clip(floats(30, 16), -1, 1) * np.float32(magnitude)
    y = everywhere(lambda: qk.attention(x, x, x, 2))
    assert np.all(np.isfinite(y)) and np.all(abs(y) <= abs(x).max() * 1.0001 + 1e-30)


def test_attention_takes_any_strides_and_out():
    q, k, v = floats(3, 10, 8)
    expected, out = qk.attention(q, k, v, 2), np.empty((10, 8), np.float32)
    assert qk.attention(np.asfortranarray(q), k[::-1][::-1], v, 2, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_attention_refuses_values_that_are_not_finite(name):
    arrays = {"q": floats(5, 4), "k": floats(5, 4), "v": floats(5, 4)}
    arrays[name][3, 2] = np.nan
    with pytest.raises(ValueError, match=rf"{name} has 1 NaN or infinite values, the first at \(3, 2\)"):
        qk.attention(**arrays, heads=2)


@refusals(r"""
attend(q=np.ones((6, 4)))  # TypeError: q must be float32, got float64
attend(v=np.ones(4, np.float32))  # ValueError: v must have shape \(tokens, width\), got \(4,\)
attend(k=np.ones((5, 4), np.float32))  # ValueError: k must have shape \(6, 4\) \(as q\), got \(5, 4\)
attend(heads=3)  # ValueError: heads must divide the 4 columns of q .* got 3
attend(heads=0)  # ValueError: heads must be at least 1, got 0
attend(heads=2**70)  # ValueError: heads must fit 64 bits, got 1180591620717411303424
attend(heads=2.0)  # TypeError: heads must be an integer, got 2.0
attend(scale=0.0)  # ValueError: scale must be positive and finite, got 0.0
attend(starts=[0, 4])  # ValueError: starts must begin with 0 and end with the 6 tokens of q, got 0 and 4
attend(starts=[0, 5, 3, 6])  # ValueError: starts must ascend by at most 65536, got 5 then 3 at 1
attend(starts=[0.0, 6.0])  # ValueError: starts must be a 1-D array of integers
""")
def test_attention_refuses(refusal):
    ones, out = np.ones((6, 4), np.float32), np.full((6, 4), 7, np.float32)
    refuse(refusal, globals() | {"attend": partial(qk.attention, q=ones, k=ones, v=ones, heads=2, out=out)})
    assert np.all(out == 7)


def test_attention_refuses_overlapping_out():
    x = floats(6, 4)
    with pytest.raises(ValueError, match="out must not overlap k"):
        qk.attention(x.copy(), x, x.copy(), 2, out=x)


# ---- gelu, which linear applies ----


@pytest.mark.parametrize(("activation", "bound"), [("gelu", 3.6e-7), ("gelu_tanh", 2.5e-7)])
def test_gelu_is_within_its_bound(activation, bound, everywhere):
    from scipy.special import erfc

    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    one = qk.pack(np.zeros((1, len(x)), np.int8), qk.QParams(1.0))
    y = everywhere(lambda: qk.linear(np.zeros((1, 1), np.float32), one, x, activation=activation))[0]
    wide = x.astype(float)
    if activation == "gelu":
        exact = wide / 2 * erfc(-wide / np.sqrt(2))
    else:
        exact = wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    assert np.all(abs(y - exact) <= bound + np.maximum(x, 0) * 2.0**-24)
    assert y[2000] == 0 and np.all(y[x < -6] == 0) and np.all(y[x > 6] == x[x > 6])


# ---- codes (numerics 25) ----


def columns(n, dtype):
    """Return QParams of the last axis."""
    low = np.iinfo(dtype).min
    return qk.QParams(RNG.uniform(0.01, 0.1, n), RNG.integers(low + 50, low + 200, n), dtype, axis=-1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("n", [1, 5, 33, 384, 1030, 4100])
def test_layer_norm_of_codes_is_that_of_the_values_quantized(n, dtype, everywhere):
    weight, bias, residual = floats(n), floats(n), floats(37, n)
    zero = np.iinfo(dtype).min + 120
    for params, of_residual, to in (
        (qk.QParams(0.07, zero, dtype), columns(n, "uint8"), columns(n, dtype)),
        (columns(n, dtype), qk.QParams(0.05, 3), qk.QParams(0.03, zero, dtype, narrow_range=True)),
    ):
        x, r = qk.quantize(3 * floats(37, n), params), qk.quantize(residual, of_residual)
        values, added = qk.dequantize(x, params), qk.dequantize(r, of_residual)
        norm = partial(qk.layer_norm, weight=weight, bias=bias, eps=1e-5)
        got = everywhere(
            lambda: norm(x, residual=r, params=params, residual_params=of_residual, out_params=to)  # noqa: B023
        )
        np.testing.assert_array_equal(got, qk.quantize(norm(values, residual=added), to), strict=True)
        got = norm(values, residual=r, residual_params=of_residual)
        np.testing.assert_array_equal(got, norm(values, residual=added), strict=True)
        got = norm(x.reshape(1, 37, n), params=params, out=np.empty((1, 37, n), np.float32))
        np.testing.assert_array_equal(got[0], norm(values), strict=True)


def test_layer_norm_of_nan_gives_zero_points():
    x = np.float32([[1, np.nan, 2], [1, 2, 3]])
    q = qk.layer_norm(x, x[1], x[1], out_params=qk.QParams(0.1, 7))
    assert np.all(q[0] == 7) and q[1, 0] < q[1, 1] < q[1, 2]


@refusals(r"""
norm(params=P)  # TypeError: x must have dtype int8 \(as params\), got float32
norm(x=Q)  # TypeError: x must be float32, got int8
norm(residual=Q)  # TypeError: residual must be float32, got int8
norm(residual=Q, residual_params=qk.QParams(1, 1, "uint8"))  # TypeError: residual must have dtype uint8
norm(residual_params=P)  # ValueError: residual_params must be None without a residual
norm(out_params=0.5)  # TypeError: out_params must be QParams, got float
norm(out_params=qk.QParams(1, 0, "int16"))  # TypeError: out_params must have dtype int8 or uint8, got int16
norm(out_params=qk.QParams([1, 1, 1], axis=0))  # ValueError: out_params must be per tensor or of the last axis
norm(out_params=qk.QParams([1, 1, 1], axis=-1))  # ValueError: params: scale must have shape \(4,\)
norm(out_params=P, out=np.ones((3, 4), np.float32))  # TypeError: out must .*int8
norm(out_params=P, x=Q, params=P, out=Q)  # ValueError: out must not overlap x
norm(x=ones, residual=Q, residual_params=P, out_params=P, out=Q)  # ValueError: out must not overlap residual
""")
def test_layer_norm_of_codes_refuses(refusal):
    ones, codes = np.ones((3, 4), np.float32), np.ones((3, 4), np.int8)
    names = {"norm": partial(qk.layer_norm, x=ones, weight=ones[0], bias=ones[0]), "Q": codes}
    refuse(refusal, globals() | names | {"P": qk.QParams(0.1), "ones": ones})
    assert np.all(codes == 1)


def attention_of_codes(q, k, v, heads, starts, params, scale):
    """The formulas of docs/numerics.md, section 25, one operation after the other; weights by the library's own."""
    wide = [x.astype(np.int64) - int(p.zero_point) for x, p in zip((q, k, v), params)]
    size, y = q.shape[1] // heads, np.empty(q.shape, np.float32)
    factor = float(params[0].scale) * float(params[1].scale) * scale * 1.4426950408889634
    for begin, end in zip(starts, starts[1:]):
        for at in range(0, q.shape[1] if end > begin else 0, size):
            cq, ck, cv = (x[begin:end, at : at + size] for x in wide)
            score = cq @ ck.T
            t = np.float32(score - score.max(axis=1, keepdims=True)) * np.float32(factor)
            w = weight_codes(t)
            total = w.sum(axis=1, keepdims=True)
            y[begin:end, at : at + size] = np.float32(w @ cv) * (params[2].scale / np.float32(total))
    return y


def weight_codes(t):
    """numerics 11, step 4."""
    t = np.maximum(np.float32(-20), t)
    whole = np.rint(t)
    p = np.float32(14.0687752)
    for c in (61.8658371, 176.781555, 254.981659):
        p = fused(p * np.ones_like(t), t - whole, np.full_like(t, c))
    return np.rint(np.ldexp(p, whole.astype(int))).astype(np.int64)


@pytest.mark.parametrize(
    "dtypes", [("int8",) * 3, ("uint8",) * 3, ("uint8", "int8", "uint8"), ("int8", "uint8", "int8")]
)
@pytest.mark.parametrize("heads, size, starts", [(1, 1, [0, 1]), (3, 5, [0, 3, 3, 70]), (2, 33, [0, 33, 162])])
def test_attention_of_codes_has_the_bits_of_its_formula(dtypes, heads, size, starts, everywhere):
    shape, zeros = (starts[-1], heads * size), ((0, 0, 0), (-7, 90, 11))
    for zero in zeros:
        q, k, v = (random_codes(RNG, shape, dtype) for dtype in dtypes)
        params = tuple(
            qk.QParams(scale, z + 128 * (dtype == "uint8"), dtype)
            for scale, z, dtype in zip((0.02, 0.03, 0.5), zero, dtypes)
        )
        attend = partial(qk.attention, q, k, v, heads, starts=starts, params=params, scale=0.25)
        y = everywhere(attend)
        np.testing.assert_array_equal(y, attention_of_codes(q, k, v, heads, starts, params, 0.25), strict=True)
        to = qk.QParams(0.3, 100, "uint8")
        np.testing.assert_array_equal(everywhere(lambda: attend(out_params=to)), qk.quantize(y, to), strict=True)


def test_attention_gives_codes_of_floats_and_takes_one_parameter_for_all():
    q, k, v = floats(3, 20, 12)
    to, p = qk.QParams(0.01, 3), qk.QParams(0.02)
    np.testing.assert_array_equal(qk.attention(q, k, v, 3, out_params=to), qk.quantize(qk.attention(q, k, v, 3), to))
    codes = [qk.quantize(x, p) for x in (q, k, v)]
    np.testing.assert_array_equal(
        qk.attention(*codes, 3, params=p), qk.attention(*(np.asfortranarray(x) for x in codes), 3, params=(p, p, p))
    )


@pytest.mark.parametrize("scale", [2.0**-126, 1e-30, 1e30, 3e38])
def test_attention_of_codes_of_any_scale_is_a_mean_of_v(scale, everywhere):
    codes, p = np.full((5, 8), 100, np.int8), qk.QParams(scale)
    y = everywhere(lambda: qk.attention(codes, codes, codes // 100, 2, params=p))
    np.testing.assert_array_max_ulp(y, np.full_like(y, scale), 1)


@refusals(r"""
attend(q=ones)  # TypeError: q must have dtype int8 \(as params\), got float32
attend(params=None)  # TypeError: q must be float32, got int8
attend(params=(P, P))  # ValueError: params must be QParams or three of them
attend(params=qk.QParams([1, 1], axis=1))  # ValueError: params must be per tensor
attend(params=qk.QParams(1, 0, "int16"))  # TypeError: params must have dtype int8 or uint8, got int16
attend(out_params=qk.QParams([1, 1], axis=1))  # ValueError: out_params must be per tensor
attend(out_params=P, out=Q)  # ValueError: out must not overlap q
attend(out_params=P, out=ones)  # TypeError: out must .*int8
""")
def test_attention_of_codes_refuses(refusal):
    codes, ones = np.ones((6, 4), np.int8), np.ones((6, 4), np.float32)
    names = {"P": qk.QParams(0.1), "Q": codes, "ones": ones}
    attend = partial(qk.attention, q=codes, k=codes, v=codes, heads=2, params=names["P"])
    refuse(refusal, globals() | names | {"attend": attend})
    assert np.all(codes == 1)


@pytest.mark.parametrize("shape", [(3, 20000), (20000, 2)])
def test_attention_of_more_codes_than_int32_adds_is_refused(shape):
    codes, p = np.zeros(shape, np.int8), qk.QParams(1)
    with pytest.raises(ValueError, match="at most 16384"):
        qk.attention(codes, codes, codes, 1, params=p)


# ---- rotate ----


def rotation(k, seed):
    """Return the matrix R of a rotation, x R, in float64, and the signs and the power of two that are in it."""
    from scipy.linalg import hadamard

    size = k & -k
    bits = random_bits(-(-k // 16), seed)[:, None] >> np.arange(16) & 1
    signs = 1 - 2 * bits.reshape(-1)[:k]
    reflection = np.eye(k // size) - (2 * size / k if size < k else 0)
    return signs[:, None] * np.kron(reflection, hadamard(size)) / size**0.5, signs, size


def rotated_in_order(x, seed, inverse):
    """Every operation of numerics 34 in float32, in its order."""
    k = x.shape[-1]
    _, signs, size = rotation(k, seed)
    factors, parts = signs * np.float32(1 / size**0.5), k // size
    y = (x if inverse else x * factors.astype(np.float32)).reshape(-1, k)
    for apart in 2 ** np.arange(size.bit_length() - 1):
        pairs = y.reshape(len(y), -1, 2, apart)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(y.shape)
    if parts > 1:
        y, total = y.reshape(len(y), parts, size), np.float32(0)
        for part in range(parts):
            total = total + y[:, part]
        y = (y - (total * (np.float32(2) / np.float32(parts)))[:, None]).reshape(-1, k)
    return (y * factors.astype(np.float32) if inverse else y).reshape(x.shape)


WIDTHS = [1, 2, 3, 4, 7, 8, 12, 16, 20, 31, 32, 48, 64, 96, 100, 128, 192, 256, 384, 500, 512, 1024, 1536, 2048]


@pytest.mark.parametrize("k", WIDTHS)
def test_rotation_is_its_matrix(k, everywhere):
    x, (matrix, _, _) = floats(3, 5, k), rotation(k, seed=2**40 + 7)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(k), atol=1e-13)
    for inverse in False, True:
        turned = everywhere(lambda inverse=inverse: qk.rotate(x, 2**40 + 7, inverse=inverse))
        exact = x.astype(float) @ (matrix.T if inverse else matrix)
        # each distance, the factors and the reflection round values whose norm is that of x, or little more
        bound = 2.0**-24 * (k.bit_length() + 6) * np.linalg.norm(x, axis=-1, keepdims=True)
        assert np.all(np.abs(turned - exact) <= bound)
        np.testing.assert_array_equal(turned, rotated_in_order(x, 2**40 + 7, inverse))


@pytest.mark.parametrize("k", [5, 64, 384, 1000, 16384])
def test_rotation_changes_no_product_and_turns_back(k):
    x, w = floats(20, k), floats(k, 30)
    x[:, 3] *= 100
    turned, weights = qk.rotate(x, 5), qk.rotate(w.T, 5).T
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=0)
    assert np.all(np.abs(turned @ weights - x @ w) <= 2e-6 * size)
    np.testing.assert_allclose(qk.rotate(turned, 5, inverse=True), x, atol=3e-6 * np.abs(x).max())
    assert not np.allclose(qk.rotate(x, 6), turned)
    assert k < 64 or np.abs(turned).max() < np.abs(x).max() / 2


def test_rotation_spreads_an_outlier_over_parts_of_a_width_that_is_three_times_a_power_of_two():
    x = np.zeros(384, np.float32)
    x[7] = 1
    turned = np.abs(qk.rotate(x)) * np.float32(128) ** np.float32(0.5)
    np.testing.assert_allclose(np.unique(turned.round(6)), [1 / 3, 2 / 3], atol=1e-6)


def test_rotation_of_any_magnitude():
    """A power of two changes no bits, but at the ends of float32; what is finite is not lost on the way."""
    x = floats(4, 96)
    turned = qk.rotate(x)
    for exponent in (-100, -70, -60, 0, 60, 70, 120):
        np.testing.assert_array_equal(qk.rotate(np.ldexp(x, exponent)), np.ldexp(turned, exponent))
    most = np.finfo(np.float32).max
    for row in np.float32([[most, most, 0, 0], [most, -most, 0, 0], [most, -most, most / 2, most / 4]]):
        exact = np.float64(row) @ rotation(4, 0)[0]
        exact[np.abs(exact) > most] *= np.inf
        np.testing.assert_allclose(qk.rotate(row), exact, rtol=1e-6)
    tiny = np.float32([1e-45, 0, 0, 3e-45] * 4)
    np.testing.assert_allclose(qk.rotate(tiny), np.float64(tiny) @ rotation(16, 0)[0], atol=1e-45)


def test_rotation_of_what_is_not_finite_gives_one_nan(everywhere):
    x = floats(6, 96)
    x[0, 5], x[1, 60:62], x[2, 80] = np.nan, (np.inf, -np.inf), -np.nan
    bits = everywhere(lambda: qk.rotate(x, 1).view(np.uint32))
    spread = np.isnan(bits.view(np.float32))
    assert spread[:3].any(axis=1).all() and not spread[3:].any()
    assert np.all(bits[spread] == 0x7FC00000)


def test_rotation_in_place_and_of_other_layouts(everywhere):
    x = floats(6, 8, 40)
    expected = qk.rotate(x, 1)
    for given in (x.astype(">f4"), np.asfortranarray(x), np.repeat(x, 2, axis=2)[..., ::2]):
        np.testing.assert_array_equal(qk.rotate(given, 1), expected)
    np.testing.assert_array_equal(everywhere(lambda: qk.rotate(x, 1)), expected)
    out = x.copy()
    assert qk.rotate(out, 1, out=out) is out
    np.testing.assert_array_equal(out, expected)
    for shape in ((0, 4), (4, 0), (0,)):
        assert qk.rotate(np.zeros(shape, np.float32)).shape == shape


@refusals(r"""
rotate(x=np.float32(1))  # ValueError: x must have at least one axis, got a scalar
rotate(x=ONES.astype(np.float64))  # TypeError: x must be float32, got float64
rotate(x=np.broadcast_to(ROW[:1], 2**20 + 1))
    # ValueError: the last axis of x must have at most 2\*\*20 values, got 1048577
rotate(seed=-1)  # ValueError: seed must be at least 0, got -1
rotate(seed=2**64)  # ValueError: seed must fit 64 bits
rotate(seed=1.0)  # TypeError: seed must be an integer, got 1.0
rotate(inverse=1)  # TypeError: inverse must be
rotate(out=ONES[:1])  # ValueError: out must have shape \(2, 3\), got \(1, 3\)
rotate(x=LINE[1:], out=LINE[:-1])  # ValueError: out must be x itself or not overlap it
""")
def test_rotation_refuses(refusal):
    ones = np.ones((2, 3), np.float32)
    names = {"rotate": partial(qk.rotate, ones), "ONES": ones, "ROW": ones[0], "LINE": np.ones(9, np.float32)}
    if "x=" in refusal[0]:
        names["rotate"] = qk.rotate
    refuse(refusal, globals() | names)
    assert np.all(ones == 1)


# ---- smooth ----


def test_smooth_shares_ranges_out_and_changes_no_product():
    w, x = floats(40, 30) * np.exp2(RNG.integers(-6, 6, (40, 1))), floats(50, 40) * np.exp2(RNG.integers(-6, 6, 40))
    w[3], x[:, 5] = 0, 0
    seen = np.abs(x).max(axis=0)
    for alpha in (0.0, 0.5, 1.0):
        smoothed, factors = qk.smooth(w, seen, alpha)
        assert smoothed.dtype == w.dtype and factors.dtype == np.float32 and factors[3] == factors[5] == 1
        np.testing.assert_allclose((x / factors) @ smoothed, x @ w, rtol=1e-4, atol=1e-3)
        live = np.delete(np.arange(40), [3, 5])
        np.testing.assert_allclose(
            factors[live], seen[live] ** alpha / np.abs(w).max(axis=1)[live] ** (1 - alpha), 1e-6
        )


@refusals(r"""
smooth(w=ROW)  # ValueError: w must have shape \(inputs, outputs\), got \(3,\)
smooth(w=[[1]])  # TypeError: w must be float32, .* got int64
smooth(w=np.full((2, 3), 6e4, np.float16), activation_absmax=[1e9, 1])  # ValueError: w must stay finite .* float16
smooth(w=ONES * np.inf)  # ValueError: w has 6 NaN or infinite values
smooth(activation_absmax=ROW)  # ValueError: activation_absmax must have shape \(2,\) to match the axis of w, got \(3,\)
smooth(activation_absmax=-ROW[:2])  # ValueError: activation_absmax must not be negative, got -1.0 at \(0,\)
smooth(activation_absmax=ROW[:2] * np.nan)  # ValueError: activation_absmax has 2 NaN or infinite values
smooth(alpha=1.5)  # ValueError: alpha must be between 0 and 1, got 1.5
smooth(alpha="1")  # TypeError: alpha must be a float
""")
def test_smooth_refuses(refusal):
    ones = np.ones((2, 3), np.float32)
    names = {"smooth": partial(qk.smooth, w=ones, activation_absmax=ones[:, 0]), "ONES": ones, "ROW": ones[0]}
    refuse(refusal, globals() | names)
