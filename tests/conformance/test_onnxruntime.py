"""onnxruntime's answers, a million values or more for each operator: not one differs, on any instruction set.

The values to quantize are midpoints between codes (with many scales of few bits, so that they are exact ties), the
floats beside them, and extremes. NaN is left out: onnxruntime gives it whatever the CPU's conversion makes of it.
"""

import numpy as np
import onnxruntime
import pytest
from graphs import onnxruntime_run
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels._bind import runtime

DTYPES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "float8_e4m3fn", "float8_e5m2"]
EXTREMES = [s * v for s in (1, -1) for v in (np.inf, 3.4028235e38, 2.0**-126, 2.0**-149, 0.0)]

# shape of the data, shape of scale and zero point, which both ONNX and QParams are told as
LAYOUTS = {
    **{f"tensor{i}": ((262_147,), (), {}) for i in range(4)},
    "axis": ((67, 97, 163), (97,), {"axis": 1}),
    "last_axis": ((1027, 1023), (1023,), {"axis": 1}),
    "blocks": ((97, 1031, 11), (97, 33, 11), {"axis": 1, "block_size": 32}),
    "blocks_of_last_axis": ((1027, 1031), (1027, 33), {"axis": 1, "block_size": 32}),
}

# onnxruntime 1.23, the last for Python 3.10, is itself wrong here: elements across blocks and rows of 4-bit codes get a
# neighbour's scale, and int8 x uint8 sums differ.
OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)
OLD_IS_WRONG = {(d, name) for d in ("int4", "uint4") for name in LAYOUTS if not name.startswith("tensor")}
OLD_IS_WRONG |= {(d, "blocks") for d in ("int8", "uint8", "int16", "uint16")}


def unless_old_is_wrong(*case):
    return pytest.param(*case, marks=pytest.mark.skipif(OLD and case in OLD_IS_WRONG, reason="onnxruntime is too old"))


every_case = pytest.mark.parametrize(("dtype", "layout"), [(d, name) for d in DTYPES for name in LAYOUTS])


def bits(x):
    return x.view(f"u{x.itemsize}")


# ---- elementwise ----


def all_codes(params):
    """Every finite code, ascending."""
    if "float" in params.dtype.name:
        values = np.arange(256, dtype=np.uint8).view(params.dtype).astype(np.float64)
        return np.unique(values[np.isfinite(values)])
    return np.arange(params.qmin, params.qmax + 1.0)


def random_params(rng, dtype, layout):
    """Scales from 2**-126 to 2**101, half of which have 6 bits: midpoints between codes, times these, are exact.
    Zero points of any code; floats have none."""
    _, few, where = LAYOUTS[layout]
    mantissa = np.where(rng.random(few) < 0.5, rng.integers(32, 64, few) / 32, rng.uniform(1, 2, few))
    scale = np.ldexp(mantissa, rng.choice([-126, -70, *range(-20, 4), 30, 100], few)).astype(np.float32)
    zero_point = None if "float" in dtype else rng.choice(all_codes(qk.QParams(1, dtype=dtype)), few).astype(np.int32)
    return qk.QParams(scale, zero_point, dtype, **where)


def onnx_inputs(x, params):
    return {"x": x, "scale": params.scale, "zero_point": params.zero_point.astype(params.dtype)}


def per_element(values, layout):
    """The scale or zero point of each element."""
    shape, few, where = LAYOUTS[layout]
    if "block_size" in where:
        return np.repeat(values, where["block_size"], axis=1)[:, : shape[1]]
    return np.reshape(values, few + (1,) * (len(shape) - 2) if few else ())


@np.errstate(all="ignore")
def near_midpoints(rng, params, layout):
    """float32 values that are, divided by scale, at or beside a midpoint between codes; extremes among them."""
    codes = all_codes(params)
    midpoints = np.concatenate([[2 * codes[0] - 1], (codes[1:] + codes[:-1]) / 2, [2 * codes[-1] + 1]])
    x = rng.choice(midpoints, LAYOUTS[layout][0]) - per_element(params.zero_point, layout)
    x = (x * per_element(params.scale, layout)).astype(np.float32)
    flat = x.reshape(-1)
    flat[::3] = np.nextafter(flat[::3], np.float32(np.inf))
    flat[1::3] = np.nextafter(flat[1::3], np.float32(-np.inf))
    flat[::97] = np.resize(EXTREMES, flat[::97].shape)
    return x


@pytest.mark.parametrize(("dtype", "layout"), [unless_old_is_wrong(d, name) for d in DTYPES for name in LAYOUTS])
def test_quantize(dtype, layout, isas):
    rng = np.random.default_rng([DTYPES.index(dtype), list(LAYOUTS).index(layout)])
    params = random_params(rng, dtype, layout)
    x = near_midpoints(rng, params, layout)
    (want,) = onnxruntime_run("QuantizeLinear", onnx_inputs(x, params), [params.dtype], **LAYOUTS[layout][2])
    for isa in isas():
        assert_array_equal(bits(qk.quantize(x, params)), bits(want), err_msg=isa, strict=True)


@every_case
def test_dequantize(dtype, layout, isas):
    rng = np.random.default_rng([DTYPES.index(dtype), list(LAYOUTS).index(layout)])
    params = random_params(rng, dtype, layout)
    q = rng.choice(all_codes(params), LAYOUTS[layout][0]).astype(params.dtype)
    (want,) = onnxruntime_run("DequantizeLinear", onnx_inputs(q, params), [np.float32], **LAYOUTS[layout][2])
    for isa in isas():
        assert_array_equal(bits(qk.dequantize(q, params)), bits(want), err_msg=isa, strict=True)


def test_dequantize_int32(isas):
    """Sums of products, which ONNX dequantizes without a zero point."""
    q = np.random.default_rng(0).integers(-(2**31), 2**31, 1_000_003, dtype=np.int32)
    (want,) = onnxruntime_run("DequantizeLinear", {"x": q, "scale": np.float32(0.1)}, [np.float32])
    for isa in isas():
        assert_array_equal(bits(qk.dequantize(q, qk.QParams(0.1))), bits(want), err_msg=isa, strict=True)


def dynamic_values():
    """Ranges on both sides of zero, on one, ties at a scale of 2**-4, constants, and magnitudes from 1e-30 to 1e30."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (1021, 643)).astype(np.float32)
    ties = ((rng.integers(-100, 155, 400_001) + 0.5) / 16).astype(np.float32)
    ties[::3] = np.nextafter(ties[::3], np.float32(np.inf))
    ties[:2] = -100 / 16, 155 / 16
    magnitudes = [row * np.float32(10.0**e) for row, e in zip(x, range(-30, 31))]
    return [x, x + 20, x - 20, ties, np.zeros(5, np.float32), np.full(1, 3, np.float32), *magnitudes]


def test_dynamic_quantize(isas):
    for x in dynamic_values():
        want, scale, zero_point = onnxruntime_run("DynamicQuantizeLinear", {"x": x}, [np.uint8, np.float32, np.uint8])
        for isa in isas():
            q, params = qk.dynamic_quantize(x)
            assert (params.scale, params.zero_point) == (scale, zero_point), isa
            assert_array_equal(q, want, err_msg=isa, strict=True)


# ---- products ----

# On CPUs without VNNI onnxruntime adds pairs of u8 x s8 products in saturating int16, where only weights of 7 bits
# are exact: 2 * 255 * 64 < 2**15.
WEIGHT_LIMIT = 128 if "avx512vnni" in runtime.available_isas() else 64

every_pair = pytest.mark.parametrize(
    ("a_dtype", "b_dtype"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8")]
)
SHAPES = [((1027, 67), (67, 1021)), ((3, 5, 1031), (1031, 33)), ((1, 4), (4, 1)), ((7, 513), (513, 65))]


def random_codes(rng, dtype, shape, limit=256):
    """Codes of magnitude up to limit, a third of them at the ends of the range, where saturation would show."""
    low, high = max(np.iinfo(dtype).min, -limit), min(np.iinfo(dtype).max, limit - 1)
    ends = rng.choice([low, high], shape)
    return np.where(rng.random(shape) < 1 / 3, ends, rng.integers(low, high + 1, shape)).astype(dtype)


@pytest.mark.parametrize("zero_points", ["none", "per_tensor", "per_column"])
@every_pair
def test_matmul(a_dtype, b_dtype, zero_points, isas):
    if OLD and "uint8" in (a_dtype, b_dtype):
        pytest.skip("onnxruntime is too old: refused, or, on CPUs with AMX, wrong sums")
    rng = np.random.default_rng(0)
    for a_shape, b_shape in SHAPES:
        a, b = random_codes(rng, a_dtype, a_shape), random_codes(rng, b_dtype, b_shape, WEIGHT_LIMIT)
        zero = {}
        if zero_points != "none":
            per_column = b_shape[1:] if zero_points == "per_column" else ()
            zero = {
                "a_zero_point": random_codes(rng, a_dtype, ()),
                "b_zero_point": random_codes(rng, b_dtype, per_column),
            }
        (want,) = onnxruntime_run("MatMulInteger", {"a": a, "b": b, **zero}, [np.int32])
        for isa in isas():
            packed = qk.pack(b, qk.QParams(1, dtype=b_dtype))
            assert_array_equal(qk.matmul(a, b, **zero), want, err_msg=isa, strict=True)
            assert_array_equal(qk.matmul(a, packed, **zero), want, err_msg=isa, strict=True)


# onnxruntime 1.32 leaves the result uninitialised where K = 0, and refuses a zero point for each row of a; ONNX
# defines both. So do sums beyond int32, which wrap.
@every_pair
@pytest.mark.parametrize(("m", "k", "n"), [(5, 0, 7), (0, 3, 7), (5, 3, 0), (129, 131, 65), (2, 140_001, 3)])
def test_matmul_by_the_text_of_onnx(a_dtype, b_dtype, m, k, n, isas):
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, a_dtype, (m, k)), random_codes(rng, b_dtype, (k, n))
    a_zero_point, b_zero_point = random_codes(rng, a_dtype, m), random_codes(rng, b_dtype, n)
    if k > 131:
        a[:], b[:] = np.iinfo(a_dtype).max, np.iinfo(b_dtype).max
        a_zero_point[:], b_zero_point[:] = np.iinfo(a_dtype).min, np.iinfo(b_dtype).min
    want = (a.astype(np.int64) - a_zero_point[:, None]) @ (b.astype(np.int64) - b_zero_point)
    assert k <= 131 or want.max() > 2**31
    for isa in isas():
        got = qk.matmul(a, b, a_zero_point=a_zero_point, b_zero_point=b_zero_point)
        assert_array_equal(got, want.astype(np.int32), err_msg=isa, strict=True)


def qlinear_params(rng, a, b, per_column, powers_of_two):
    """Parameters of a, b and the result for which the results spread over all codes."""
    few = b.shape[1:] if per_column else ()
    scales = [rng.uniform(0.01, 0.02), rng.uniform(0.002, 0.004, few), rng.uniform(0.003, 0.005) * len(b) ** 0.5]
    if powers_of_two:
        scales = [2.0 ** np.round(np.log2(scale)) for scale in scales]
    zero_points = [
        int(a.mean()),
        (b.mean() + rng.integers(-9, 10, few)).astype(np.int32),
        np.iinfo(a.dtype).max // 2 - 10,
    ]
    axes = [None, 1 if per_column else None, None]
    return [
        qk.QParams(scale, zero_point, dtype, axis=axis)
        for scale, zero_point, dtype, axis in zip(scales, zero_points, [a.dtype, b.dtype, a.dtype], axes)
    ]


@pytest.mark.parametrize("powers_of_two", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize(("a_dtype", "b_dtype"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")])
def test_qlinear(a_dtype, b_dtype, per_column, powers_of_two, isas):
    """Scales that are powers of two make exact ties."""
    if OLD and "uint8" in (a_dtype, b_dtype):
        pytest.skip("onnxruntime is too old: refused, or, on CPUs with AMX, wrong sums")
    rng = np.random.default_rng(0)
    for a_shape, b_shape in SHAPES:
        a, b = random_codes(rng, a_dtype, a_shape), random_codes(rng, b_dtype, b_shape, WEIGHT_LIMIT)
        pa, pb, py = qlinear_params(rng, a, b, per_column, powers_of_two)
        inputs = [
            a,
            pa.scale,
            pa.zero_point.astype(pa.dtype),
            b,
            pb.scale,
            pb.zero_point.astype(pb.dtype),
            py.scale,
            py.zero_point.astype(py.dtype),
        ]
        (want,) = onnxruntime_run("QLinearMatMul", {f"x{i}": value for i, value in enumerate(inputs)}, [a_dtype])
        for isa in isas():
            assert_array_equal(qk.qlinear(a, pa, qk.pack(b, pb), py), want, err_msg=isa, strict=True)


# ---- layers on codes (numerics 23) ----


def any_codes(rng, shape, dtype):
    return rng.integers(0, 256, shape, np.uint8).view(dtype)


def any_params(rng, dtype):
    scale = 2.0 ** rng.uniform(-8, 2) if rng.random() < 0.7 else rng.integers(1, 32) / 16
    return qk.QParams(np.float32(scale), int(any_codes(rng, (), dtype)[()]), dtype)


def operand(name, params, q=None):
    given = {} if q is None else {f"{name}_codes": q}
    return given | {f"{name}_scale": params.scale, f"{name}_zero": params.zero_point.astype(params.dtype)}


PAIRS = [((65536,), (65536,)), ((300, 700), (300, 700)), ((300, 300), (300,)), ((1, 301), (300, 301))]
PAIRS += [((300, 1), (300, 301)), ((300, 301), (300, 1)), ((), (9999,)), ((9999,), ()), ((3, 1, 1), (1, 401, 1))]
PAIRS += [
    ((30, 1, 40), (30, 50, 40)),
    ((1, 50, 1), (30, 50, 40)),
    ((30, 50, 40), (1, 50, 1)),
    ((7, 5, 1, 1), (1, 5, 9, 1)),
]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
def test_pairs(operator, dtype, isas):
    """More than 3 million pairs, all pairs of codes among them; a third of the scales have few bits, and make ties."""
    rng, function = np.random.default_rng(0), {"QLinearAdd": qk.qadd, "QLinearMul": qk.qmultiply}[operator]
    every = [x.astype(np.uint8).view(dtype) for x in np.divmod(np.arange(65536), 256)]
    for shapes in PAIRS:
        for _ in range(6):
            a, b = every if shapes == PAIRS[0] else (any_codes(rng, shape, dtype) for shape in shapes)
            pa, pb, py = (any_params(rng, dtype) for _ in range(3))
            inputs = operand("a", pa, a) | operand("b", pb, b) | operand("y", py)
            (want,) = onnxruntime_run(operator, inputs, [dtype], domain="com.microsoft")
            for isa in isas():
                got = function(a, pa, b, pb, py)
                assert_array_equal(got, want, err_msg=f"{isa} {shapes} {pa} {pb} {py}", strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenation(axis, dtype):
    rng, shape = np.random.default_rng(0), [[3, 40, 80] for _ in range(3)]
    for length, one in zip((1, 77, 256), shape):
        one[axis] = length
    for _ in range(10):
        py, of = any_params(rng, dtype), [any_params(rng, dtype) for _ in shape]
        parts = [(any_codes(rng, one, dtype), p) for one, p in zip(shape, of)]
        inputs = operand("y", py)
        for i, (q, p) in enumerate(parts):
            inputs |= operand(f"x{i}", p, q)
        (want,) = onnxruntime_run("QLinearConcat", inputs, [dtype], domain="com.microsoft", axis=axis)
        assert_array_equal(qk.qconcatenate(parts, py, axis=axis), want, strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_tables_and_softmax_are_as_near(dtype):
    """onnxruntime's sigmoid is a table of nearest codes as well, from float32; its softmax is off by 0.5 at most."""
    rng, q = np.random.default_rng(0), np.arange(256, dtype=np.uint8).view(dtype)
    for _ in range(20):
        p, py = any_params(rng, dtype), qk.QParams(1 / 256, np.iinfo(dtype).min, dtype)
        inputs = operand("x", p, q) | operand("y", py)
        (want,) = onnxruntime_run("QLinearSigmoid", inputs, [dtype], domain="com.microsoft")
        got = qk.take_table(q, qk.make_table("sigmoid", p, py)).astype(int)
        assert np.abs(got - want).max() <= 1 and np.mean(got != want) < 0.01
        rows = any_codes(rng, (50, 100), dtype)
        inputs = operand("x", p, rows) | operand("y", py)
        (want,) = onnxruntime_run("QLinearSoftmax", inputs, [dtype], domain="com.microsoft", axis=-1, opset=13)
        got = qk.qsoftmax(rows, p, py).astype(int)
        assert np.abs(got - want).max() <= 1 and np.mean(got != want) < 0.001


# ---- convolution ----


def random_convolution(rng):
    """(x (N, C, H, W), its params, w, its params, those of the result, bias, attributes of the node) of a random shape,
    whose result has some 50,000 codes."""
    dtype = rng.choice(["uint8", "int8"])
    w_dtype = rng.choice(["uint8", "int8"]) if dtype == "uint8" else "int8"
    kernel = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (2, 5)][rng.integers(6)]
    strides, dilations, pads = rng.integers(1, 3, 2), rng.integers(1, 3, 2), rng.integers(0, 4, 4)
    groups = int(rng.choice([1, 1, 2, 4]))
    channels, filters = groups * int(rng.integers(1, 24)), groups * int(rng.integers(1, 40))
    if rng.random() < 0.4:
        channels = filters = groups = int(rng.integers(1, 150))
    side = int(np.sqrt(50_000 / filters * strides.prod())) + 14
    x = random_codes(rng, dtype, (int(rng.integers(1, 3)), channels, side, side + int(rng.integers(0, 5))))
    w = random_codes(rng, w_dtype, (filters, channels // groups, *kernel))
    few = () if rng.random() < 0.5 else (filters,)
    zero = rng.choice([0, int(random_codes(rng, w_dtype, ()))])
    params = rng.uniform(0.01, 0.1), random_codes(rng, dtype, ())
    weights = np.float32(rng.uniform(0.01, 0.02, few)), np.full(few, zero, w_dtype)
    to = rng.uniform(0.05, 0.2) * w[0].size ** 0.5, random_codes(rng, dtype, ())
    bias = rng.integers(-20_000, 20_000, filters).astype(np.int32)
    where = dict(strides=strides.tolist(), dilations=dilations.tolist(), pads=pads.tolist(), group=groups)
    return x, params, w, weights, to, bias, where


def qlinear_conv(x, params, w, weights, to, bias, where):
    inputs = {"x": x, "xs": np.float32(params[0]), "xz": params[1], "w": w, "ws": weights[0], "wz": weights[1]}
    inputs |= {"ys": np.float32(to[0]), "yz": to[1], "b": bias}
    return onnxruntime_run("QLinearConv", inputs, [x.dtype], **where)[0]


@pytest.mark.parametrize("seed", range(8))
def test_qlinear_conv(seed, isas):
    """240 shapes and 10 million codes in all."""
    rng, seen = np.random.default_rng(seed), 0
    for _ in range(30):
        x, params, w, weights, to, bias, where = case = random_convolution(rng)
        want = qlinear_conv(*case).transpose(0, 2, 3, 1)
        axis = 3 if weights[0].ndim else None
        for isa in isas():
            packed = qk.pack_conv(
                w.transpose(2, 3, 1, 0), qk.QParams(*weights, w.dtype, axis=axis), groups=where["group"]
            )
            got = qk.qconv2d(
                x.transpose(0, 2, 3, 1),
                qk.QParams(*params, x.dtype),
                packed,
                qk.QParams(*to, x.dtype),
                bias,
                strides=tuple(where["strides"]),
                dilations=tuple(where["dilations"]),
                padding=tuple(where["pads"]),
            )
            assert_array_equal(got, want, err_msg=f"{isa}, {where}, {w.shape}", strict=True)
        seen += want.size
    assert seen > 1_300_000


def test_qlinear_global_average_pool(isas):
    rng = np.random.default_rng(0)
    for dtype, side in (("uint8", 7), ("int8", 7), ("uint8", 12), ("int8", 1)):
        x = random_codes(rng, dtype, (50, 311, side, side))
        params, to = ((np.float32(rng.uniform(0.1, 0.2)), random_codes(rng, dtype, ())) for _ in range(2))
        inputs = {"x": x, "xs": params[0], "xz": params[1], "ys": to[0], "yz": to[1]}
        want = onnxruntime_run("QLinearGlobalAveragePool", inputs, [dtype], domain="com.microsoft", channels_last=0)[0]
        for isa in isas():
            got = qk.qglobal_average_pool(x.transpose(0, 2, 3, 1), qk.QParams(*params, dtype), qk.QParams(*to, dtype))
            assert_array_equal(got, want.transpose(0, 2, 3, 1), err_msg=isa, strict=True)


def window_sums(x, kernel, strides, pads):
    """Return the sums over windows of x (N, C, H, W), zeros standing outside."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    return seen[:, :, :: strides[0], :: strides[1]].sum(axis=(4, 5))


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_qlinear_average_pool(isas, count_include_pad):
    """onnxruntime adds floats, and the zero point before it rounds; so it may be one off next to ties, and only there.

    The sums are exact here.
    """
    rng = np.random.default_rng(0)
    for dtype, kernel, strides, pads in (
        ("uint8", (3, 3), (2, 2), (1, 1, 1, 1)),
        ("int8", (3, 3), (1, 1), (1, 0, 1, 2)),
        ("uint8", (2, 2), (2, 2), (0, 0, 0, 0)),
        ("int8", (5, 3), (2, 1), (2, 1, 0, 1)),
    ):
        x = random_codes(rng, dtype, (3, 131, 23, 26))
        params, to = ((np.float32(rng.uniform(0.1, 0.2)), random_codes(rng, dtype, ())) for _ in range(2))
        inputs = {"x": x, "xs": params[0], "xz": params[1], "ys": to[0], "yz": to[1]}
        where = dict(kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=int(count_include_pad))
        want = onnxruntime_run("QLinearAveragePool", inputs, [dtype], domain="com.microsoft", **where)[0]
        count = window_sums(np.ones_like(x, np.int64), kernel, strides, pads)
        total = window_sums(x.astype(np.int64) - params[1].astype(np.int64), kernel, strides, pads)
        real = total * np.float64(params[0]) / to[0] / (np.prod(kernel) if count_include_pad else count)
        near_tie = np.abs(np.abs(real - np.floor(real)) - 0.5) < 1e-4
        for isa in isas():
            got = qk.qaverage_pool2d(
                x.transpose(0, 2, 3, 1),
                qk.QParams(*params, dtype),
                qk.QParams(*to, dtype),
                kernel,
                strides=strides,
                padding=pads,
                count_include_pad=count_include_pad,
            ).transpose(0, 3, 1, 2)
            off = np.abs(got.astype(int) - want)
            assert off.max() <= 1 and not off[~near_tie].any() and near_tie.mean() < 0.01, (isa, where)
