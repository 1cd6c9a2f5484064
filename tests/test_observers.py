"""Observers: any division of the data, in any order, gives the bits of one pass; ranges keep what they promise,
whatever outliers, zeros or subnormal numbers there are. Formulas: docs/numerics.md, section 24."""

import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from common import ANY_AXES, FLOATS, bits, output, refusals, refuse
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels import observers
from qkernels._bind import histograms
from qkernels._histogram import bins_of

RNG = np.random.default_rng(25)
F32 = np.float32
NORMAL = RNG.normal(0, 1, 30_000).astype(F32)
DATA = {
    "normal": NORMAL,
    "shifted": NORMAL * F32(0.01) + F32(3),
    "rectified": np.maximum(NORMAL, 0),
    "few zeros": np.where(RNG.random(NORMAL.size) < 0.1, F32(-0.0), NORMAL),
    "constant": np.full(9000, -1.7, F32),
    "zeros": np.zeros(9000, F32),
    "outliers": np.concatenate([NORMAL, F32([1e30, -3e37])]),
    "subnormal": NORMAL * F32(1e-42),
    "ends": np.tile(F32([np.finfo(F32).max, -np.finfo(F32).max, 0, -0.0, 1e-45, -1e-45]), 900),
    "heavy": RNG.standard_cauchy(20_000).astype(F32) ** 3,
    "one": F32([-0.25]),
}
MERGED = {
    "MinMax": observers.MinMax,
    "Percentile": lambda **axis: observers.Percentile(percentile=99.0, **axis),
    "Entropy": observers.Entropy,
    "MSE": observers.MSE,
}
ALL = MERGED | {"MovingAverage": observers.MovingAverage}


def state(observer):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in observer.to_arrays().items()}


def same_params(a, b):
    assert a == b and a.scale.tobytes() == b.scale.tobytes()


@np.errstate(under="ignore")
def cast(x, dtype):
    return x.astype(dtype)


def merged(make, parts, rng):
    """The parts seen by as many observers, which are merged in a random tree."""
    found = [make().update(part) for part in parts]
    while len(found) > 1:
        i, j = rng.choice(len(found), 2, replace=False)
        found[i].merge(found[j])
        del found[j]
    return found[0]


# ---- any division, any order ----


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("data", DATA)
def test_any_division_in_any_order_gives_the_bits_of_one_pass(name, data):
    x, rng = DATA[data], np.random.default_rng(1)
    whole = MERGED[name]().update(x)
    for cuts in 1, 7:
        shuffled = rng.permutation(x)
        parts = np.split(shuffled, np.sort(rng.integers(0, x.size + 1, cuts)))
        for found in (
            merged(MERGED[name], parts, rng),
            merged(MERGED[name], parts[::-1], rng),
            MERGED[name]().update(shuffled[: x.size // 3]).update(shuffled[x.size // 3 :]),
        ):
            assert state(found) == state(whole) and found.count == x.size
    for dtype in ("int8", "uint8"):
        same_params(found.qparams(dtype), whole.qparams(dtype))


@pytest.mark.parametrize("name", MERGED)
def test_lines_of_an_axis_are_observed_each_by_itself(name):
    lines = [rng[:2500] for rng in (DATA["normal"], DATA["rectified"], DATA["heavy"], DATA["constant"])]
    x, rng = np.stack(lines, axis=1).reshape(50, 50, 4), np.random.default_rng(2)
    for axis in 2, -1:
        make = partial(MERGED[name], axis=axis)
        whole = make().update(x)
        assert state(merged(make, np.split(x, [3, 20]), rng)) == state(whole)
        params = whole.qparams("uint8")
        assert params.axis == axis and params.scale.shape == (4,)
        for i, line in enumerate(lines):
            one = MERGED[name](axis=0).update(line[None]).qparams("uint8")
            assert (params.scale[i], params.zero_point[i]) == (one.scale[0], one.zero_point[0])
    assert state(MERGED[name](axis=0).update(np.moveaxis(x, 2, 0))) | {"axis": 0} == state(whole) | {"axis": 0}


@pytest.mark.parametrize("shape, axis", [((40_000,), None), ((3, 20_000), 0), ((300, 7), 1), ((2, 3, 4), -2)])
@pytest.mark.parametrize("data", ["normal", "few zeros", "rectified", "ends", "outliers"])
def test_counts_are_those_of_numpy_on_every_instruction_set_and_thread_count(shape, axis, data, everywhere):
    x = np.resize(DATA[data], shape)

    def counted():
        seen = observers.Percentile(axis=axis).update(x)
        return tuple(seen.to_arrays()[name] for name in ("blocks", "counts", "ranks"))

    blocks, counts, ranks = everywhere(counted)
    lines = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    size = 1024 if axis is None else 128
    for line, of_line, (least, most) in zip(lines, counts, ranks.T):
        keys = bits(line) // (2**23 // size)
        keys[keys == 256 * size] = 0  # -0.0
        expected = np.bincount(keys, minlength=512 * size).reshape(512, size)
        assert_array_equal(of_line, expected[blocks])
        assert of_line.sum() == line.size
        assert [least, most] == [r ^ (r >> 31 & 2**31 - 1) for r in np.sort(line)[[0, -1]].view(np.int32)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", ANY_AXES)
def test_any_layout_of_any_float_type_is_read(name, layout):
    for dtype in FLOATS:
        x = np.resize(NORMAL, (20, 30, 2))
        x = cast(x, dtype)
        for axis in None, 1:
            want = ALL[name](axis=axis).update(x.astype(F32))
            assert state(ALL[name](axis=axis).update(ANY_AXES[layout](x))) == (
                state(want) if dtype != np.float64 or name != "MinMax" else state(want)
            )


def test_float64_is_rounded_but_bounds_go_outward():
    x = np.float64([1 / 3, -1e-60, 0.1])
    assert observers.MinMax().update(x).to_arrays()["hi"] >= 1 / 3
    assert state(observers.MSE().update(x)) == state(observers.MSE().update(cast(x, F32)))
    for name in ALL:
        with pytest.raises(ValueError, match="beyond the range of float32"):
            ALL[name]().update([1e39, 1.0])


# ---- ranges ----


def edges(x, params):
    """How many values are beyond the codes by more than a rounding, below and above."""
    x = x.astype(float)
    lo, hi = ((q - int(params.zero_point)) * float(params.scale) for q in (params.qmin, params.qmax))
    slack = float(params.scale) / 2
    return np.sum(x < lo - slack), np.sum(x > hi + slack)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("percentile", [100, 99.99, 99.9, 95, 50])
def test_no_more_values_saturate_than_the_percentile_says(data, percentile):
    x = DATA[data]
    seen, out = observers.Percentile(percentile=percentile).update(x), 1 - Fraction(str(percentile)) / 100
    for dtype in ("int8", "uint8", "int4", "float8_e4m3fn"):
        params = seen.qparams(dtype)
        if percentile == 100:
            same_params(params, qk.choose_qparams(x, dtype))
        if dtype != "float8_e4m3fn":
            assert sum(edges(x, params)) <= int(out * x.size)
    # and the range is no wider than the bins are: that of the values which decide it, by a relative 2**-10
    magnitudes = np.sort(np.abs(x.astype(float)))
    last = magnitudes[x.size - 1 - int(out * x.size)]
    exact = max(last / 127, 2.0**-126) if magnitudes[-1] and last else 1.0
    scale = seen.qparams("int8").scale
    assert scale <= max(exact * (1 + 2.0**-10) * (1 + 2.0**-23), 2.0**-126) or (scale == 1 and last < 2.0**-136)


def test_either_end_may_leave_out_half():
    x = np.arange(-1000, 3000, dtype=F32)
    params = observers.Percentile(percentile=90).update(x).qparams("uint8")
    below, above = edges(x, params)
    assert 180 < below <= 200 and 180 < above <= 200


@pytest.mark.parametrize("name", ["Percentile", "Entropy"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_outliers_do_not_spoil_the_bins(name, dtype):
    with_outliers = ALL[name]().update(NORMAL).update(F32([1e30, -1e35, 3e38])).qparams(dtype)
    without = ALL[name]().update(NORMAL).qparams(dtype)
    assert 0.9 < with_outliers.scale / without.scale < 1.2
    mse = qk.choose_qparams(NORMAL, dtype, method="mse").scale
    assert 0.5 < without.scale / mse < 2


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [1.7, -1.7, 0.0, 1e-45, 1e-38, 3.4e38])
def test_a_constant_has_a_code_of_its_own(name, value):
    x = np.full(5000, value, F32)
    for dtype in ("int8", "uint8"):
        params = ALL[name]().update(x).qparams(dtype)
        again = qk.fake_quantize(x, params)[0]
        assert again == x[0] or abs(float(again) - float(x[0])) <= max(abs(float(x[0])) * 2e-7, 2.0**-127)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int2"])
@pytest.mark.parametrize("data", DATA)
def test_the_squared_error_is_within_the_bound_of_the_least(data, dtype):
    x = DATA[data]

    def distance(params):
        with np.errstate(over="ignore"):
            return math.dist(x.astype(float).tolist(), qk.fake_quantize(x.astype(float), params).tolist())

    moved = math.hypot(*(2.0**-11 * x.astype(float)))
    least = distance(qk.choose_qparams(x, dtype, method="mse"))
    assert distance(observers.MSE().update(x).qparams(dtype)) <= (least + 2 * moved) * (1 + 1e-6) + 2.0**-127 * x.size


def test_the_error_is_nearly_the_least_of_ordinary_data():
    for x in (NORMAL, DATA["rectified"]):
        for dtype in ("int8", "uint8", "int4"):
            losses = [
                np.square(x - qk.fake_quantize(x, params), dtype=float).sum()
                for params in (observers.MSE().update(x).qparams(dtype), qk.choose_qparams(x, dtype, method="mse"))
            ]
            assert losses[0] <= losses[1] * 1.01


# ---- relative entropy ----


def divergence(begin, end, count, cells, lo, hi):
    """The definition, term by term."""
    middle = [(a + b) / 2 for a, b in zip(begin, end)]
    within = [j for j, m in enumerate(middle) if lo <= m < hi]
    if not within:
        return math.inf
    p = {j: float(count[j]) for j in within}
    p[within[0]] += sum(count[j] for j in range(within[0]))
    p[within[-1]] += sum(count[j] for j in range(within[-1] + 1, len(count)))
    cell = {j: math.floor((middle[j] - lo) * cells / (hi - lo)) for j in within}
    mass, size = {}, {}
    for j in within:
        mass[cell[j]] = mass.get(cell[j], 0) + float(count[j])
        size[cell[j]] = size.get(cell[j], 0) + (end[j] - begin[j])
    q = {j: mass[cell[j]] * (end[j] - begin[j]) / size[cell[j]] for j in within}
    all_p, all_q = sum(p.values()), sum(q.values())
    return math.fsum(p[j] / all_p * math.log(p[j] / all_p / (q[j] / all_q)) for j in within)


def test_divergences_are_those_of_the_definition(everywhere):
    widths = RNG.uniform(0.1, 1, 300) * np.logspace(-3, 3, 300)
    ends = np.cumsum(widths) - 700
    begin, end = ends - widths, ends - widths * 0.25
    count = np.ceil(RNG.exponential(50, 300))
    lo, hi = np.array([-690, -699.5, -300, 0, 10, 1e6]), np.array([900, -600, 1000, 1e9, 20.5, 2e6])
    for cells in 1, 7, 16, 255:
        got = everywhere(lambda cells=cells: histograms.divergences(begin, end, count, cells, lo, hi))
        want = [divergence(begin, end, count, cells, *limits) for limits in zip(lo, hi)]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_divergences_are_those_of_onnxruntime_where_both_define_the_same():
    """Its ranges have 2 i + 1 bins: where the cells divide that, divisions come out even and no bin is 0."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    seen = []

    def entropy(p, q):
        seen.append((len(p), original(p, q)))
        return seen[-1][1]

    cells, n = 15, 151
    counts = (RNG.integers(1, 40, n) * 36036000).astype(np.int64)  # which cells of 1, 3, 5, 7, 9 bins divide
    edges = np.linspace(-3.775, 3.775, n + 1)
    original, calibrate.entropy = calibrate.entropy, entropy
    try:
        collector = calibrate.HistogramCollector("entropy", False, n, cells, 99.9, "")
        collector.get_entropy_threshold((counts, edges, edges[0], edges[-1], edges[-1]), cells)
    finally:
        calibrate.entropy = original
    compared = 0
    for size, value in seen:
        if size % cells:
            continue
        first = (n - size) // 2
        ours = histograms.divergences(
            edges[:-1].copy(), edges[1:].copy(), counts.astype(float), cells, edges[[first]], edges[[first + size]]
        )
        np.testing.assert_allclose(ours, value, rtol=1e-6)
        compared += 1
    assert compared >= 4


def test_the_range_of_least_divergence_is_chosen():
    x = np.concatenate([NORMAL, F32([40, -35])])
    seen = observers.Entropy().update(x)
    bins = bins_of(seen._histogram, 0, seen._histogram.lines)
    keep = (bins.counts[0] > 0) & ((bins.begin != 0) | (bins.end != 0))
    coarse = bits(np.where(bins.begin < 0, bins.end, bins.begin).astype(F32)) >> 16
    groups = [np.flatnonzero(keep & (coarse == key)) for key in dict.fromkeys(coarse[keep])]
    key_of = F32(np.array([int(coarse[g[0]]) << 16 for g in groups], np.uint32).view(F32)).astype(float)
    next_of = np.array([(int(coarse[g[0]]) + 1) << 16 for g in groups], np.uint32).view(F32).astype(float)
    begin, end = np.minimum(key_of, next_of), np.maximum(key_of, next_of)
    count = np.array([bins.counts[0][g].sum() for g in groups], float)
    limit = float(seen.qparams("int8").scale) * 127
    best = divergence(begin, end, count, 255, -limit, limit)
    for other in np.quantile(np.abs(x), [0.9, 0.99, 0.999, 0.9999, 1]):
        assert best <= divergence(begin, end, count, 255, -other, other) * (1 + 1e-6) + 1e-9


def test_zeros_do_not_count_for_the_entropy():
    half = DATA["rectified"]
    same_params(
        observers.Entropy().update(half).qparams("uint8"), observers.Entropy().update(half[half > 0]).qparams("uint8")
    )


# ---- averages ----


def test_the_moving_average_is_that_of_its_formula():
    batches = [RNG.normal(0, i + 1, (50, 3)).astype(F32) for i in range(5)]
    seen = observers.MovingAverage(axis=1, rate=0.25)
    lo = hi = None
    for batch in batches:
        seen.update(batch)
        low, high = np.minimum(batch.min(axis=0), 0).astype(float), np.maximum(batch.max(axis=0), 0).astype(float)
        lo, hi = (low, high) if lo is None else (lo + 0.25 * (low - lo), hi + 0.25 * (high - hi))
    arrays = seen.to_arrays()
    assert_array_equal(arrays["lo"], lo)
    assert_array_equal(arrays["hi"], hi)
    with pytest.raises(TypeError, match="depends on the order of its updates"):
        seen.merge(observers.MovingAverage(axis=1, rate=0.25))


# ---- state ----


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_lines_without_values_have_a_scale_of_1(method, shape):
    for axis in (0, 1):
        params = qk.choose_qparams(np.zeros(shape, np.float32), "int8", axis=axis, method=method)
        assert np.array_equal(params.scale, np.ones(shape[axis]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("empty", [True, False])
def test_arrays_and_pickles_hold_all_of_it(name, axis, empty):
    seen = ALL[name](axis=axis)
    if not empty:
        seen.update(NORMAL.reshape(-1, 3))
    for again in (type(seen).from_arrays(seen.to_arrays()), pickle.loads(pickle.dumps(seen)), copy.deepcopy(seen)):
        assert state(again) == state(seen) and again.axis == axis and repr(again) == repr(seen)
        again.update(NORMAL.reshape(-1, 3))
        if not empty:
            assert again.count == 2 * NORMAL.size and seen.count == NORMAL.size
            if name != "MovingAverage":
                assert state(seen.__copy__() if hasattr(seen, "__copy__") else again) == state(again)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_is_refused_and_changes_nothing(name, variants):
    for axis, shape in ((None, (-1,)), (1, (-1, 2))):
        seen = ALL[name](axis=axis).update(NORMAL.reshape(shape))
        before = state(seen)
        for bad in (np.nan, -np.inf, np.inf):
            for at in (0, 12_345, NORMAL.size - 1):
                for dtype in FLOATS:
                    x = cast(NORMAL, dtype)
                    x[at] = bad
                    with pytest.raises(ValueError, match="x has 1 NaN or infinite values"):
                        seen.update(x.reshape(shape))
        assert state(seen) == before
        for _ in variants():
            x = np.resize(NORMAL, 400_000)
            x[399_000] = np.nan
            with pytest.raises(ValueError, match="NaN"):
                seen.update(x.reshape(shape))
            assert state(seen) == before
        seen.update(NORMAL.reshape(shape))
        if name != "MovingAverage":
            assert state(seen) == state(ALL[name](axis=axis).update(np.tile(NORMAL, 2).reshape(shape)))


@pytest.mark.parametrize("name", ALL)
def test_calibrating_on_nothing_is_refused(name):
    for seen in (ALL[name](), ALL[name](axis=0), ALL[name]().update(np.zeros((0, 3), F32))):
        with pytest.raises(ValueError, match=f"observers.{name} has seen no values: update it"):
            seen.qparams()
    if name != "MovingAverage":
        assert ALL[name]().merge(ALL[name]()).count == 0


@refusals(r"""
MinMax().update([[1, "a"]])  # TypeError: ^x must be
MinMax(axis=2).update(X)  # ValueError: ^axis 2 is out of range for x with shape \(2, 3\)
MinMax(axis=99)  # ValueError: ^axis must be within
MSE(axis=1).update(X).update(X.T)  # ValueError: ^x must have length 3 along axis 1, got shape \(3, 2\)
MSE(axis=1).update(X).merge(MSE(axis=1).update(X.T))  # ValueError: ^other must have seen arrays of length 3 along
MSE().merge(Entropy())  # TypeError: ^other must be an observers.MSE, got
MSE().merge(None)  # TypeError: ^other must be an observers.MSE, got None
MSE().merge(MSE(axis=1))  # ValueError: ^other must have axis None, got 1
Percentile().merge(Percentile(percentile=50))  # ValueError: ^other must have percentile 99.99, got 50
Percentile(percentile=0)  # ValueError: ^percentile must be above 0 and at most 100, got 0
Percentile(percentile=100.5)  # ValueError: ^percentile must be above 0 and at most 100, got 100.5
Percentile(percentile="9")  # TypeError: ^percentile must be a float
MovingAverage(rate=0)  # ValueError: ^rate must be above 0 and at most 1, got 0
MSE().update(X).qparams("float8_e4m3fn")  # ValueError: ^method 'mse' is for integer codes, got dtype float8_e4m3fn
Entropy().update(X).qparams("float4_e2m1fn")  # ValueError: ^method 'entropy' is for integer codes
MinMax().update(X).qparams("int32")  # TypeError: ^dtype must be one of
MinMax.from_arrays({"count": 1})  # ValueError: ^arrays must hold count, lo and hi, got no lo, hi
MinMax.from_arrays(ARRAYS | {"lo": np.float32([1])})  # ValueError: ^lo must not be above 0
MSE.from_arrays(COUNTS | {"count": np.int64(5)})  # ValueError: ^counts must not be negative
MSE.from_arrays(COUNTS | {"count": np.int64(0), "counts": WRAPPING})  # ValueError: ^counts must not be negative
MinMax.from_arrays(ARRAYS | {"count": np.uint64(2**64 - 1)})  # ValueError: ^an observer sees at most 2\*\*63 - 1 values
MovingAverage.from_arrays(AVERAGES | {"hi": np.float64([1e39])})  # ValueError: ^lo must not be .* finite in float32
MSE.from_arrays(COUNTS | {"blocks": np.uint16([600])})  # ValueError: ^blocks must ascend|^blocks, counts and ranks
MSE.from_arrays(COUNTS | {"ranks": np.int32([[2**31 - 1], [2**31 - 1]])})  # ValueError: ^ranks must be those of finite
choose(X, method="entropy", percentile=3)  # TypeError: ^method 'entropy' takes no option 'percentile'
choose(X, axis=0, block_size=2, method="percentile")  # ValueError: ^block_size is not for method 'percentile', got 2
""")
def test_refusals(refusal):
    x = F32([[1, 2, 3], [4, 5, 6]])
    names = {name: getattr(observers, name) for name in observers.__all__}
    arrays, counts = observers.MinMax().update(x).to_arrays(), observers.MSE().update(x).to_arrays()
    names |= {"AVERAGES": observers.MovingAverage().update(x).to_arrays(), "ARRAYS": arrays, "COUNTS": counts}
    wrapping = np.where(np.arange(counts["counts"].size).reshape(counts["counts"].shape) < 4, 2**62, 0)
    refuse(refusal, names | {"X": x, "np": np, "WRAPPING": wrapping, "choose": qk.choose_qparams})


@pytest.mark.parametrize("name", MERGED)
def test_a_count_beyond_64_bits_is_refused_and_changes_nothing(name):
    observer = ALL[name]().update(F32([1, -2, 3, 0.5]))
    with pytest.raises(ValueError, match=r"^an observer sees at most 2\*\*63 - 1 values, got 9223372036854775808"):
        for _ in range(64):
            observer.merge(observer)
    assert observer.count == 2**62
    same_params(observer.qparams(), ALL[name]().update(F32([1, -2, 3, 0.5])).qparams())


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_choose_qparams_goes_the_same_way(axis):
    x = np.resize(DATA["heavy"], (40, 60)).astype(ml_dtypes.bfloat16)
    for dtype in ("int8", "uint8", "int4"):
        for name, options in (("Percentile", {"percentile": 99.0}), ("Percentile", {}), ("Entropy", {})):
            seen = getattr(observers, name)(axis=axis, **options).update(x)
            same_params(qk.choose_qparams(x, dtype, axis=axis, method=name.lower(), **options), seen.qparams(dtype))
    assert qk.choose_qparams(x[:0], method="entropy").scale == 1
    assert qk.choose_qparams(x[:, :0], axis=0, method="percentile").scale.tolist() == [1] * 40


def test_threads_may_share_an_observer():
    seen, part = observers.Percentile(), np.resize(NORMAL, 200_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: seen.update(part), range(8)))
    want = observers.Percentile().update(np.tile(part, 8))
    assert state(seen) == state(want)


@pytest.mark.parametrize("how", ["update", "first update", "merge", "first merge"])
@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_call_has_taken_all_or_nothing(name, how):
    """Whichever line of the observer Ctrl-C comes before."""
    if "merge" in how and name not in MERGED:
        return
    seen, part = ALL[name](), cast(NORMAL[:500], F32)
    if "first" not in how:
        seen.update(NORMAL[500:1500])
    given = part if "update" in how else ALL[name]().update(part)

    def call(observer):
        return observer.update(given) if "update" in how else observer.merge(given)

    before, after = state(seen), state(call(copy.deepcopy(seen)))
    found, left = set(), 0

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != observers.__file__:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    for lines in range(100):
        one, left, traced = copy.deepcopy(seen), lines, sys.gettrace()
        sys.settrace(trace)
        try:
            call(one)
            ended = True
        except KeyboardInterrupt:
            ended = False
        finally:
            sys.settrace(traced)
        found.add("nothing" if (now := state(one)) == before else "all" if now == after else "a part")
        if ended:
            break
    assert ended and lines > 5 and found == {"nothing", "all"}


def test_memory_does_not_grow_with_the_data():
    """From 1e6 to 1e8 values."""
    grown = output("""
        import numpy as np, qkernels as qk
        from qkernels import observers
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        x = np.random.default_rng(0).normal(0, 1, 10**6).astype(np.float32)
        seen = [getattr(observers, name)() for name in observers.__all__]
        for one in seen:
            one.update(x)
        before = resident()
        for i in range(99):
            for one in seen:
                one.update(x)
        print(resident() - before)
    """)
    assert int(grown) < 1_000_000
