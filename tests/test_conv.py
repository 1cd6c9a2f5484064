"""qconv2d and pools against NumPy, bit for bit by the formulas of docs/numerics.md, section 22; on every instruction
set, at 1, 2 and 3 threads; and what they refuse."""

import pickle
from functools import partial

import numpy as np
import pytest
from common import LAYOUTS, answer, code_range, random_codes, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from products import wrapped

import qkernels as qk

ROUNDINGS = ["half_even", "half_away", "gemmlowp", "tflite"]
PARAMS, TO = qk.QParams(0.05, 3, "uint8"), qk.QParams(0.9, 120, "uint8")


# ---- NumPy ----


def sides(padding, image, kernel, strides, dilations):
    """Return ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        found = []
        for n, k, s, d in zip(image, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            pair = total // 2, total - total // 2
            found.append(pair if padding == "same_upper" else pair[::-1])
        return found
    top, left, bottom, right = padding
    return (top, bottom), (left, right)


def windows(q, fill, kernel, strides, padding, dilations):
    """Return the windows, (N, H', W', height, width, C), int64, `fill` standing outside."""
    pads = sides(padding, q.shape[1:3], kernel, strides, dilations)
    padded = np.pad(q.astype(np.int64), ((0, 0), *pads, (0, 0)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    seen = seen[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    return seen.transpose(0, 1, 2, 4, 5, 3)


def sums_by_numpy(q, zero_point, w, w_zero_point, groups, **geometry):
    """Return the exact sums."""
    seen = windows(q, zero_point, w.shape[:2], **geometry) - zero_point
    weights = w.astype(np.int64) - np.asarray(w_zero_point, np.int64)
    depth, filters = w.shape[2], w.shape[3] // groups
    parts = [
        np.einsum(
            "nyxhwc,hwcf->nyxf",
            seen[..., g * depth : (g + 1) * depth],
            weights[..., g * filters : (g + 1) * filters],
            optimize=True,
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, axis=-1)


def codes_by_numpy(sums, params, weights, to, bias, relu):
    """numerics 7 and 8 in float32, one operation after the other."""
    if bias is not None and bias.dtype == np.int32:
        sums = sums + bias
    y = wrapped(sums).astype(np.float32) * (params.scale * weights.scale / to.scale)
    if bias is not None and bias.dtype == np.float32:
        y = y + bias / to.scale
    lowest = to.zero_point if relu else to.qmin
    return np.clip(np.rint(y) + to.zero_point, lowest, to.qmax).astype(to.dtype)


# ---- examples ----

small = st.integers(1, 3)


@st.composite
def geometries(draw):
    """Kernel, image and how one goes over the other, so that at least one window fits."""
    strides, dilations = (draw(small), draw(small)), (draw(small), draw(small))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (1, 4), (7, 2), (2, 3), (8, 8)]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if draw(st.booleans()):
        padding = draw(st.sampled_from(["same_upper", "same_lower"]))
        image = draw(st.integers(1, 15)), draw(st.integers(1, 40))
    else:
        padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
        image = [max(1, r - padding[i] - padding[i + 2]) + draw(st.integers(0, 12)) for i, r in enumerate(reach)]
    return kernel, tuple(image), dict(strides=strides, padding=padding, dilations=dilations)


@st.composite
def layers(draw):
    """q, its params, weights, theirs, groups, params of the result, bias, geometry."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel, image, geometry = draw(geometries())
    if draw(st.booleans()):
        channels = groups = filters = draw(st.sampled_from([2, 3, 8, 16, 24, 40, 64, 65, 100, 144]))
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        channels, filters = groups * draw(st.sampled_from([1, 3, 4, 7, 16, 33])), groups * draw(st.integers(1, 40))
    dtypes = draw(st.sampled_from([(a, b, c) for a in CODES for b in CODES for c in CODES]))
    q = random_codes(rng, (draw(st.integers(1, 2)), *image, channels), dtypes[0])
    w = random_codes(rng, (*kernel, channels // groups, filters), dtypes[1])
    few = draw(st.sampled_from([(), (filters,)]))
    zero_point = draw(st.sampled_from([0, None]))
    zero_points = random_codes(rng, few, dtypes[1]) if zero_point is None else 128 * (dtypes[1] == "uint8")
    params = qk.QParams(rng.uniform(0.01, 0.1), random_codes(rng, (), dtypes[0]), dtypes[0])
    weights = qk.QParams(rng.uniform(0.01, 0.02, few), zero_points, dtypes[1], axis=3 if few else None)
    to = qk.QParams(rng.uniform(0.1, 0.2) * w[..., 0].size ** 0.5, random_codes(rng, (), dtypes[2]), dtypes[2])
    int_bias = rng.integers(-20_000, 20_000, filters).astype(np.int32)
    bias = draw(st.sampled_from([None, int_bias, (int_bias * 1e-3).astype(np.float32)]))
    return q, params, w, weights, groups, to, bias, geometry


CODES = ["int8", "uint8"]
layouts = st.sampled_from([*LAYOUTS.values(), lambda x: x.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)])


@settings(max_examples=200)
@given(layers(), layouts, st.booleans(), st.booleans())
def test_qconv2d(variants, layer, layout, relu, with_out):
    q, params, w, weights, groups, to, bias, geometry = layer
    sums = sums_by_numpy(q, params.zero_point, w, weights.zero_point, groups, **geometry)
    want = codes_by_numpy(sums, params, weights, to, bias, relu)
    int_bias = bias if bias is not None and bias.dtype == np.int32 else None
    want_sums = wrapped(sums if int_bias is None else sums + int_bias)
    for variant in variants():
        packed = qk.pack_conv(layout(w), weights, groups=groups)
        out = np.full(want.shape, 77, to.dtype) if with_out else None
        how = dict(geometry, activation="relu" if relu else None)
        got = qk.qconv2d(layout(q), params, packed, to, bias, **how, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)
        got = qk.qconv2d(q, params, packed, None, int_bias, **geometry)
        assert_array_equal(got, want_sums, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), w, err_msg=variant, strict=True)


@pytest.mark.parametrize(("groups", "each"), [(1, 16), (2, 8), (4, 4), (3, 5), (2, 16)])
def test_groups_of_few_filters(groups, each, variants):
    """Rows of 16 codes, of which a group has all or a part."""
    rng = np.random.default_rng(groups)
    q, w = (random_codes(rng, shape, "int8") for shape in ((2, 13, 9, 8 * groups), (3, 1, 8, groups * each)))
    params, to = qk.QParams(0.02, 5, "int8"), qk.QParams(1.4, 74, "int8")
    weights = qk.QParams(np.float32(rng.uniform(0.001, 0.01, groups * each)), axis=3)
    how = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilations=(1, 1))
    want = codes_by_numpy(sums_by_numpy(q, 5, w, weights.zero_point, groups, **how), params, weights, to, None, False)
    for variant in variants():
        got = qk.qconv2d(q, params, qk.pack_conv(w, weights, groups=groups), to, **how)
        assert_array_equal(got, want, err_msg=variant, strict=True)


LONG_LINES = [
    ((30, 28, 16), (3, 3, 40), 1, 1),
    ((56, 57, 8), (3, 3, 70), 2, (1, 0, 2, 1)),
    ((9, 400, 4), (3, 3, 33), 1, 5),
]
LONG_LINES += [
    ((25, 33, 4), (5, 5, 17), 2, 2),
    ((21, 21, 4), (7, 7, 48), 1, "same_upper"),
    ((5, 30, 12), (1, 3, 20), 1, 0),
]
LONG_LINES += [((29, 30, 7), (4, 4, 20), 1, 1), ((22, 31, 6), (2, 2, 24), 1, 1), ((21, 33, 3), (4, 4, 32), 2, 1)]
LONG_LINES += [((40, 41, 8), (2, 3, 32), (2, 1), 0), ((23, 60, 8), (3, 4, 64), (1, 3), (0, 3))]


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("example", LONG_LINES, ids=str)
def test_windows_of_long_lines(variants, example, dtype):
    """Products may read them where they lie, with padding around."""
    image, kernel, strides, padding = example
    rng = np.random.default_rng(0)
    q, w = random_codes(rng, (1, *image), dtype), random_codes(rng, (*kernel[:2], image[2], kernel[2]), "int8")
    params, weights = qk.QParams(0.1, 7, dtype), qk.QParams(rng.uniform(0.01, 0.02, kernel[2]), axis=3)
    bias, to = rng.integers(-1000, 1000, kernel[2]).astype(np.int32), qk.QParams(w[..., 0].size ** 0.5, 3, "uint8")
    sums = qk.qconv2d(
        np.concatenate([q, q]), params, qk.pack_conv(w, weights), None, bias, strides=strides, padding=padding
    )
    four = padding if isinstance(padding, str) or np.size(padding) == 4 else tuple(np.broadcast_to(padding, 2)) * 2
    pair = tuple(np.broadcast_to(strides, 2))
    geometry = dict(strides=pair, padding=four, dilations=(1, 1))
    assert_array_equal(sums[0], sums_by_numpy(q, 7, w, 0, 1, **geometry)[0] + bias)
    want = codes_by_numpy(sums[:1], params, weights, to, None, False)
    for variant in variants():
        packed = qk.pack_conv(w, weights)
        for biased, result, expected in (bias, to, want), (bias, None, sums[:1]):
            got = qk.qconv2d(q, params, packed, result, biased, strides=strides, padding=padding)
            assert_array_equal(got, expected, err_msg=variant, strict=True)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("channels", [2, 15, 16, 31, 33, 63, 64, 65, 144])
def test_depthwise_kernels_that_move_by_two_columns(channels, dtype, everywhere):
    """Columns may go by in registers, one of them from each pixel to the next, with padding on either side."""
    rng = np.random.default_rng(channels)
    params, weights = qk.QParams(0.1, 7, dtype), qk.QParams(rng.uniform(0.01, 0.02, channels), axis=3)
    bias, to = rng.integers(-1000, 1000, channels).astype(np.int32), qk.QParams(0.5, 3, "uint8")
    for height, width in ((3, 3), (2, 3), (4, 3), (1, 3)):
        w = random_codes(rng, (height, width, 1, channels), "int8")
        for image, strides, padding in (
            ((5, 1), (2, 2), (1, 1, 1, 1)),
            ((4, 2), (2, 2), (1, 0, 1, 3)),
            ((7, 9), (2, 2), (0, 1, 2, 1)),
            ((6, 8), (3, 2), (3, 4, 3, 5)),
            ((9, 103), (4, 2), (1, 1, 1, 0)),
        ):
            q = random_codes(rng, (2, *image, channels), dtype)
            geometry = dict(strides=strides, padding=padding, dilations=(1, 1))
            sums = sums_by_numpy(q, 7, w, 0, channels, **geometry) + bias
            want = codes_by_numpy(sums, params, weights, to, None, False)
            packed = partial(qk.pack_conv, w, weights, groups=channels)
            got = everywhere(lambda: qk.qconv2d(q, params, packed(), to, bias, **geometry))  # noqa: B023
            assert_array_equal(got, want, err_msg=f"{w.shape} {image} {strides} {padding}", strict=True)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=30)
@given(layers(), st.sampled_from([None, "relu"]), st.sampled_from([None, (0, 6), (-1.5, None)]))
def test_qconv2d_is_sums_then_requantize(rounding, isas, layer, activation, clamp):
    q, params, w, weights, groups, to, bias, geometry = layer
    bias = None if bias is None else bias.astype(np.int32)
    multiplier = params.scale * weights.scale / to.scale
    if rounding in ("gemmlowp", "tflite"):
        multiplier = np.float64(params.scale) * np.float64(weights.scale) / np.float64(to.scale)
    lo, hi = (np.float32(limit if bound is None else bound) for bound, limit in zip(clamp or (None, None), (-1e9, 1e9)))
    ends = qk.quantize(np.array([lo, hi]), to, rounding="half_even" if rounding == "half_even" else "half_away")
    for isa in isas():
        packed = qk.pack_conv(w, weights, groups=groups)
        sums = qk.qconv2d(q, params, packed, None, **geometry)
        want = np.clip(qk.requantize(sums, multiplier, to, bias=bias, rounding=rounding), *ends)
        if activation:
            want = np.maximum(want, to.dtype.type(min(max(to.zero_point, ends[0]), ends[1])))
        how = dict(activation=activation, clamp=clamp, rounding=rounding)
        assert_array_equal(qk.qconv2d(q, params, packed, to, bias, **geometry, **how), want, err_msg=isa, strict=True)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@settings(max_examples=20)
@given(layers())
def test_a_convolution_of_one_window_is_qlinear(activation, everywhere, layer):
    """Whatever the activation, and with scales whose product leaves float32."""
    q, params, w, weights, groups, to, bias, geometry = layer
    q = np.ascontiguousarray(np.resize(q, (len(q), *w.shape[:2], groups * w.shape[2])))
    if groups > 1:
        return
    for factor in 1, 2.0**-118:
        one, of = qk.QParams(params.scale * factor, params.zero_point, params.dtype), to
        if factor != 1:
            of = qk.QParams(to.scale * factor, to.zero_point, to.dtype)
        axis = None if weights.axis is None else 1
        columns = qk.QParams(weights.scale, weights.zero_point, weights.dtype, axis=axis)
        matrix = w.reshape(-1, w.shape[3])

        def by_qlinear():
            return qk.qlinear(q.reshape(len(q), -1), one, qk.pack(matrix, columns), of, bias, activation=activation)

        got = everywhere(lambda: qk.qconv2d(q, one, qk.pack_conv(w, weights), of, bias, activation=activation))
        assert_array_equal(got[:, 0, 0], everywhere(by_qlinear))


def test_depthwise_scales_that_leave_float32(everywhere):
    """The channels are those of a grouped convolution with one more filter each."""
    rng = np.random.default_rng(3)
    q, w = random_codes(rng, (1, 6, 5, 70), "uint8"), random_codes(rng, (3, 3, 1, 70), "int8")
    params, to = qk.QParams(2.0**-100, 7, "uint8"), qk.QParams(2.0**-120, 3)
    weights = qk.QParams(2.0 ** rng.integers(-40, 0, 70), axis=3)
    twice = qk.QParams(np.repeat(weights.scale, 2), axis=3)
    bias = rng.normal(0, 2.0**-118, 70).astype(np.float32)
    for activation in None, "gelu":
        how = dict(padding=1, activation=activation)
        got = everywhere(lambda: qk.qconv2d(q, params, qk.pack_conv(w, weights, groups=70), to, bias, **how))
        doubled = qk.pack_conv(np.repeat(w, 2, axis=3), twice, groups=70)
        assert_array_equal(got, qk.qconv2d(q, params, doubled, to, np.repeat(bias, 2), **how)[..., ::2])
        assert len(np.unique(got)) > 3


@pytest.mark.parametrize("groups", [1, 2, 64])
@pytest.mark.parametrize("code", [-128, 127])
def test_weights_are_refused_exactly_if_a_sum_can_overflow(groups, code):
    """Each window sums height * width * 64 / groups products of 255 and the code."""
    longest = (2**31 - 1) // (255 * abs(code)) * groups // 64
    params, to = qk.QParams(1, 0, "uint8"), qk.QParams(1e9)
    for width in (longest, longest + 1):
        w = np.full((1, width, 64 // groups, 64), code, np.int8)
        q = np.full((1, 1, width, 64), 255, np.uint8)
        packed = qk.pack_conv(w, qk.QParams(1), groups=groups)
        total = width * 64 // groups * 255 * code
        sums = qk.qconv2d(q, params, packed, None)
        assert_array_equal(sums, np.full((1, 1, 1, 64), total, np.int64).astype(np.int32))
        if width == longest:
            assert_array_equal(qk.qconv2d(q, params, packed, to), np.full((1, 1, 1, 64), round(total / 1e9)))
        else:
            with pytest.raises(ValueError, match="int32 could overflow"):
                qk.qconv2d(q, params, packed, to)


# ---- packed weights ----


@settings(max_examples=40)
@given(layers())
def test_packed_convolutions_come_back(isas, layer):
    q, params, w, weights, groups, to, bias, geometry = layer
    for _ in isas():
        packed = qk.pack_conv(w, weights, groups=groups)
        for other in packed, pickle.loads(pickle.dumps(packed)), qk.PackedConv.from_arrays(packed.to_arrays()):
            assert_array_equal(other.unpack(), w, strict=True)
            assert other.params == weights and other.groups == groups and other.shape == w.shape
            assert other.dtype == w.dtype and other.nbytes == packed.nbytes
            assert repr(other) == f"PackedConv(shape={w.shape}, params={weights}, groups={groups})"
        assert packed.nbytes >= w.nbytes


def test_nbytes_is_what_is_allocated(isas):
    """As tracemalloc sees it, but for Python's objects."""
    import tracemalloc

    rng = np.random.default_rng(0)
    for _ in isas():
        for shape, groups in (((3, 3, 64, 96), 1), ((3, 3, 32, 96), 2), ((5, 5, 1, 960), 960)):
            w, params = random_codes(rng, shape, "int8"), qk.QParams(rng.uniform(0.1, 0.2, shape[3]), axis=3)
            tracemalloc.start()
            packed = qk.pack_conv(w, params, groups=groups)
            held, nbytes = tracemalloc.get_traced_memory()[0], packed.nbytes
            q, of, to = np.ones((1, 3, 3, groups * shape[2]), "uint8"), qk.QParams(0.1, 0, "uint8"), qk.QParams(9)
            qk.qconv2d(q, of, packed, to, np.ones(shape[3], np.int32), padding=1)
            more = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert nbytes - 64 <= held <= nbytes + 2500 and nbytes < packed.nbytes
            assert packed.nbytes - 64 <= more <= packed.nbytes + q.nbytes + 8000


@pytest.mark.parametrize(("shape", "groups"), [((3, 3, 20, 24), 1), ((3, 3, 1, 70), 70), ((3, 3, 4, 15), 3)])
def test_a_convolution_does_not_depend_on_the_one_before(isas, shape, groups):
    """Each after each other one, with the same weights: as with weights that are packed for it, errors included."""
    rng = np.random.default_rng(0)
    w, channels = random_codes(rng, shape, "int8"), groups * shape[2]
    weights = qk.QParams(rng.uniform(0.01, 0.02, shape[3]), axis=3)
    q, small = random_codes(rng, (2, 6, 7, channels), "uint8"), random_codes(rng, (1, 4, 4, channels), "uint8")
    bias, of, to = rng.integers(-2000, 2000, shape[3]).astype(np.int32), PARAMS, TO
    calls = [((q, of), (to, bias), {}), ((small, of), (to, bias), {}), ((q[:1], of), (to, bias), {})]
    calls += [((q, of), (to, -bias), {}), ((q, of), (to, None), {}), ((q, of), (None, bias), {})]
    calls += [((q[..., 1:], of), (to, bias), {}), ((q[0], of), (to, bias), {}), ((q.view(np.int8), of), (to, bias), {})]
    options = [{"strides": s} for s in (2, 1.0, (1, 2), [2, 1])] + [
        {"padding": p} for p in (1, "same_upper", (1, 0), 9)
    ]
    options += [{"dilations": d} for d in (2, 1, 7)] + [{"clamp": (0, 6)}, {"activation": "relu"}, {"padding": True}]
    calls += [((q, of), (to, bias), how) for how in options]
    for name in isas():
        fresh = [qk.pack_conv(w, weights, groups=groups) for _ in calls]
        wants = [answer(lambda: qk.qconv2d(*x, p, *y, **how)) for (x, y, how), p in zip(calls, fresh, strict=True)]
        packed = qk.pack_conv(w, weights, groups=groups)
        for first, _ in enumerate(calls):
            for second, want in enumerate(wants):
                for number in first, second, second:
                    x, y, how = calls[number]
                    got = answer(lambda: qk.qconv2d(*x, packed, *y, **how))
                assert np.array_equal(got, want), (name, calls[first][1:], calls[second][1:])


# ---- pools ----


@settings(max_examples=100)
@given(geometries(), st.sampled_from(CODES), st.sampled_from([1, 3, 16, 65, 300]), st.booleans(), st.integers(0, 2**32))
def test_pools(variants, geometry, dtype, channels, counted, seed):
    kernel, image, how = geometry
    rng = np.random.default_rng(seed)
    q = random_codes(rng, (2, *image, channels), dtype)
    least = code_range(dtype)[0]
    most = windows(q, least, kernel, **how).max(axis=(3, 4)).astype(dtype)
    params, to = (qk.QParams(rng.uniform(0.5, 1), random_codes(rng, (), d), d) for d in (dtype, str(rng.choice(CODES))))
    sums = (windows(q, int(params.zero_point), kernel, **how) - int(params.zero_point)).sum(axis=(3, 4))
    count = windows(np.ones_like(q), 0, kernel, **how).sum(axis=(3, 4))
    count = np.full_like(count, kernel[0] * kernel[1]) if counted else np.maximum(count, 1)
    real = sums.astype(np.float32) * (params.scale / (to.scale * count.astype(np.float32)))
    want = np.clip(np.rint(real) + to.zero_point, to.qmin, to.qmax).astype(to.dtype)
    out = np.empty(want.shape, to.dtype)
    for variant in variants():
        assert_array_equal(qk.max_pool2d(q, kernel, **how), most, err_msg=variant, strict=True)
        got = qk.qaverage_pool2d(q, params, to, kernel, count_include_pad=counted, **how, out=out)
        assert got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)
        total = qk.qglobal_average_pool(q, params, to)
        assert_array_equal(total, qk.qaverage_pool2d(q, params, to, image), strict=True)


BEYOND = [(3e38, 3e38), (2.0**-126, 2.0**-126), (3e38, 2.0**-126), (1e-30, 3e38)]


@pytest.mark.parametrize(("scale", "out_scale"), BEYOND)
def test_averages_of_scales_that_leave_float32(scale, out_scale, everywhere):
    q = np.uint8([[[[200, 100, 3]], [[202, 100, 4]], [[201, 100, 7]]]])
    params, to = qk.QParams(scale, 100, "uint8"), qk.QParams(out_scale, 7, "uint8")
    mean = (q.astype(np.float64).mean(axis=(1, 2), keepdims=True) - 100) * np.float32(scale) / np.float32(out_scale)
    want = np.clip(np.rint(mean) + 7, 0, 255)
    assert_array_equal(everywhere(lambda: qk.qglobal_average_pool(q, params, to)), want)


def test_a_mean_of_many_pixels(everywhere):
    """More than 16 bits hold the sum of."""
    q = np.full((1, 300, 7, 3), 255, np.uint8)
    q[..., 1], q[..., 2] = 0, 254
    params = qk.QParams(1, 0, "uint8")
    assert_array_equal(everywhere(lambda: qk.qglobal_average_pool(q, params, params)), [[[[255, 0, 254]]]])


# ---- empty and refused ----


def test_empty_images(everywhere):
    packed, params = qk.pack_conv(np.ones((3, 3, 2, 5), np.int8), qk.QParams(1)), qk.QParams(1)
    none = np.ones((0, 4, 4, 2), np.int8)
    assert everywhere(lambda: qk.qconv2d(none, params, packed, params)).shape == (0, 2, 2, 5)
    assert everywhere(lambda: qk.max_pool2d(none, 2)).shape == (0, 2, 2, 2)
    assert everywhere(lambda: qk.qglobal_average_pool(none, params, params)).shape == (0, 1, 1, 2)
    no_filters = qk.pack_conv(np.ones((3, 3, 2, 0), np.int8), qk.QParams(1))
    assert everywhere(lambda: qk.qconv2d(none + 1, params, no_filters, params)).shape == (0, 2, 2, 0)
    no_channels = qk.pack_conv(np.ones((3, 3, 0, 4), np.int8), qk.QParams(1))
    image = np.ones((1, 4, 4, 0), np.int8)
    bias = np.int32([1, 2, 3, 4])
    want = np.broadcast_to(bias, (1, 2, 2, 4))
    assert_array_equal(everywhere(lambda: qk.qconv2d(image, params, no_channels, params, bias)), want)


NAMES = {
    "qk": qk,
    "np": np,
    "q": np.zeros((1, 5, 6, 4), np.int8),
    "p": qk.QParams(0.5),
    "u": qk.QParams(0.5, 3, "uint8"),
    "w": np.zeros((3, 3, 4, 6), np.int8),
    "packed": qk.pack_conv(np.zeros((3, 3, 4, 6), np.int8), qk.QParams(0.5)),
    "matrix": qk.pack(np.zeros((4, 6), np.int8), qk.QParams(0.5)),
}


@refusals("""
    qk.pack_conv(w[0], p)                             # ValueError: w must have shape .*, got \\(3, 4, 6\\)
    qk.pack_conv(w[:0], p)                            # ValueError: w must have shape
    qk.pack_conv(w.astype(np.int16), p)               # TypeError: w must be int8 or uint8, got int16
    qk.pack_conv(w, u)                                # TypeError: w must have dtype uint8
    qk.pack_conv(w, None)                             # TypeError: params must be QParams, got NoneType
    qk.pack_conv(w, p, groups=4)                      # ValueError: groups must divide the 6 filters of w, got 4
    qk.pack_conv(w, p, groups=0)                      # ValueError: groups must be at least 1, got 0
    qk.pack_conv(w, p, groups=1.0)                    # TypeError: groups must be an integer, got 1.0
    qk.pack_conv(w, qk.QParams([1] * 4, axis=2))      # ValueError: params must be per tensor or per filter
    qk.pack_conv(w, qk.QParams([1] * 5, axis=3))      # ValueError: 5
    qk.pack_conv(w + np.int8(-128), qk.QParams(1, narrow_range=True))  # ValueError: narrow range, got -128
    qk.qconv2d(q, p, matrix, p)                       # TypeError: packed must be a PackedConv, got PackedMatrix
    qk.qconv2d(q[0], p, packed, p)                    # ValueError: q must have shape \\(N, H, W, C\\), got
    qk.qconv2d(q[..., :3], p, packed, p)              # ValueError: q must have 4 channels to match packed
    qk.qconv2d(q, u, packed, p)                       # TypeError: q must have dtype uint8
    qk.qconv2d(q[:, :2], p, packed, p)                # ValueError: packed must fit the padded image of \\(2, 6\\)
    qk.qconv2d(q, p, packed, p, dilations=3)          # ValueError: packed must fit .* spans \\(7, 7\\)
    qk.qconv2d(q, p, packed, p, strides=0)            # ValueError: strides must be at least 1, got 0
    qk.qconv2d(q, p, packed, p, strides=(1, 2, 3))    # ValueError: strides must be one integer or two
    qk.qconv2d(q, p, packed, p, strides=1.5)          # TypeError: strides must be an integer or a tuple
    qk.qconv2d(q, p, packed, p, padding=(1, 2, 3))    # ValueError: padding must be one number, two or four
    qk.qconv2d(q, p, packed, p, padding=-1)           # ValueError: padding must be at least 0, got -1
    qk.qconv2d(q, p, packed, p, padding="same")       # ValueError: padding must be numbers, 'same_upper' or
    qk.qconv2d(q, p, packed, p, padding=2**31)        # ValueError: padding must hold integers of at most
    qk.qconv2d(q, p, packed, p, padding=2**31 - 1)    # ValueError: result of .* bytes, which no array holds
    qk.qconv2d(q, p, packed, p, np.ones(5))           # ValueError: bias must have shape \\(6,\\), got \\(5,\\)
    qk.qconv2d(q, p, packed, None, np.ones(6))        # TypeError: bias must be int32
    qk.qconv2d(q, p, packed, None, activation="relu")  # ValueError: activation must be None where out_params is None
    qk.qconv2d(q, p, packed, None, clamp=(0, 6))      # ValueError: clamp must be None where out_params is None
    qk.qconv2d(q, p, packed, None, rounding="tflite")  # ValueError: rounding must be 'half_even' where
    qk.qconv2d(q, p, packed, p, out=np.zeros((1, 3, 4, 5), np.int8))  # ValueError: out must have shape
    qk.qconv2d(q, p, packed, p, out=q)                # ValueError: out
    qk.max_pool2d(q, 7)                               # ValueError: kernel must fit the padded image
    qk.max_pool2d(q, 0)                               # ValueError: kernel must be at least 1
    qk.max_pool2d(q.astype(float), 2)                 # TypeError: q must be uint8 or int8, got float64
    qk.max_pool2d(q, 2, out=q)                        # ValueError: out
    qk.max_pool2d(q, 2**31 - 1, padding=2**31 - 1, strides=2**31 - 1)  # MemoryError: no memory to gather rows
    qk.qaverage_pool2d(q, p, p, 2**15)                # ValueError: kernel must have at most 8421504 pixels
    qk.qaverage_pool2d(q, p, p, 2, count_include_pad=1)  # TypeError: count_include_pad must be True or False
    qk.qglobal_average_pool(q[:, :0], p, p)           # ValueError: q must have shape .* and pixels
    qk.qglobal_average_pool(q, p, None)               # TypeError: out_params must be QParams
""")
def test_refusals(refusal):
    refuse(refusal, NAMES)


def test_what_is_packed_stays_as_it_is():
    packed = qk.pack_conv(np.ones((1, 1, 2, 3), np.int8), qk.QParams(0.5))
    for change in (lambda: setattr(packed, "groups", 2), lambda: delattr(packed, "groups")):
        with pytest.raises(AttributeError, match="PackedConv are frozen: groups cannot be"):
            change()
    assert packed.groups == 1
