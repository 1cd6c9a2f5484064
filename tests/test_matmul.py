"""matmul of 8 bits and of int16 against NumPy in wider types, exactly; on every instruction set, at 1, 2 and 3
threads."""

import numpy as np
import pytest
from common import LAYOUTS, code_range, layouts, random_codes, refusals, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from products import PAIRS, PAIRS_OF_16, exact, matmul_by_numpy, shapes_of_rows, sizes, wrapped

import qkernels as qk

every_pair = pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS)


@st.composite
def products(draw, pairs):
    """a, b and zero points: arguments of matmul."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(shapes_of_rows | st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 9)))
    k, n, (a_dtype, b_dtype) = draw(sizes), draw(sizes), draw(st.sampled_from(pairs))
    magnitudes = st.sampled_from([32768, 32767, 16383, 11585, 5792, 2048, 100, 1, 0] if pairs is PAIRS_OF_16 else [255])
    a = random_codes(rng, (*rows, k), a_dtype, draw(magnitudes))
    b = random_codes(rng, (k, n), b_dtype, draw(magnitudes))
    zero = {}
    for name, dtype, shape in ("a_zero_point", a_dtype, rows), ("b_zero_point", b_dtype, (n,)):
        if draw(st.booleans()):
            codes, one = random_codes(rng, shape, dtype), random_codes(rng, (), dtype)
            zero[name] = draw(st.sampled_from([codes, codes.astype(int), one, int(one)]))
    return a, b, zero


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS_OF_16], ids=["8 bits", "16 bits"])
@settings(max_examples=150)
@given(st.data(), layouts, layouts, st.booleans())
def test_matmul(variants, pairs, data, layout, layout_of_b, with_out):
    a, b, zero = data.draw(products(pairs))
    want = matmul_by_numpy(a, b, **zero)
    for variant in variants():
        rights = [layout_of_b(b)]
        if pairs is PAIRS or b.dtype == np.int16:
            rights.append(qk.pack(layout_of_b(b), qk.QParams(1, dtype=b.dtype)))
            assert_array_equal(rights[1].unpack(), b, err_msg=variant, strict=True)
        for right in rights:
            out = np.full(want.shape, 77, want.dtype) if with_out else None
            got = qk.matmul(layout(a), right, **zero, out=out)
            assert out is None or got is out
            assert_array_equal(got, want, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 63, 64, 65, 1031, 33_025, 65_793, 70_000])
def test_matmul_worst_cases(a_dtype, b_dtype, k, isas):
    """Every factor at an end of its range, with zero points at the ends too. Beyond int32 sums wrap, as ONNX
    MatMulInteger's."""
    for isa in isas():
        for left in code_range(a_dtype):
            for right in code_range(b_dtype):
                a, b = np.full((7, k), left, a_dtype), np.full((k, 17), right, b_dtype)
                for zero in [(0, 0), (left, right), (code_range(a_dtype)[0], code_range(b_dtype)[1])]:
                    want = wrapped(np.full((7, 17), k * (left - zero[0]) * (right - zero[1])))
                    got = qk.matmul(a, b, a_zero_point=zero[0], b_zero_point=zero[1])
                    assert_array_equal(got, want, err_msg=f"{isa}, {left}, {right}, {zero}", strict=True)


@every_pair
def test_longest_sums_that_fit_without_zero_points(a_dtype, b_dtype):
    """K of numerics 6: one more and the extremes no longer fit int32."""
    k = {0: 131_071, 1: 65_793, 2: 33_025}[[a_dtype, b_dtype].count("uint8")]
    largest = max(abs(x * y) for x in code_range(a_dtype) for y in code_range(b_dtype))
    assert k * largest <= 2**31 - 1 < (k + 1) * largest
    for left in code_range(a_dtype):
        for right in code_range(b_dtype):
            got = qk.matmul(np.full((1, k), left, a_dtype), np.full((k, 1), right, b_dtype))
            assert got.item() == k * left * right


@every_pair
@pytest.mark.parametrize("of_a", ["none", "one", "per row"])
@pytest.mark.parametrize("of_b", ["none", "one", "per column"])
def test_every_kind_of_zero_point(a_dtype, b_dtype, of_a, of_b, isas):
    """With rows that are read in place and rows that must be padded, few and many."""
    rng = np.random.default_rng(0)
    for m, k, n in [(7, 128, 35), (7, 129, 35), (500, 64, 70), (500, 67, 70)]:
        a, b, zero = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype), {}
        if of_a != "none":
            zero["a_zero_point"] = random_codes(rng, m if of_a == "per row" else (), a_dtype)
        if of_b != "none":
            zero["b_zero_point"] = random_codes(rng, n if of_b == "per column" else (), b_dtype)
        want = wrapped(exact(a, b, **zero))
        for isa in isas():
            assert_array_equal(qk.matmul(a, b, **zero), want, err_msg=isa, strict=True)


@every_pair
@pytest.mark.parametrize(
    ("m", "k", "n"), [(301, 401, 203), (3, 2049, 1543), (2003, 129, 33), (1, 4096, 2048), (2, 2051, 2100)]
)
def test_equal_bits_at_any_thread_count(a_dtype, b_dtype, m, k, n, variants):
    """Shapes that threads share by rows, by columns, and by both."""
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    zero = {"a_zero_point": random_codes(rng, m, a_dtype), "b_zero_point": random_codes(rng, n, b_dtype)}
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, **zero))
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)
        assert_array_equal(qk.matmul(a, b, **zero), with_zero_points, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize("m", [47, 48, 49, 300])
@pytest.mark.parametrize(("k", "n"), [(1, 16), (33, 40), (700, 17)])
def test_panels_that_many_rows_share(a_dtype, b_dtype, m, k, n, variants):
    """AVX2 widens a panel from 48 rows on: results that are stored at once, and ones that an epilogue gets."""
    rng = np.random.default_rng(m)
    a, b = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, n), b_dtype)
    b_zero_point = random_codes(rng, n, b_dtype)
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, 0, b_zero_point))
    for variant in variants():
        packed = qk.pack(b, qk.QParams(1, dtype=b_dtype))
        assert_array_equal(qk.matmul(a, packed), want, err_msg=variant, strict=True)
        got = qk.matmul(a, packed, b_zero_point=b_zero_point)
        assert_array_equal(got, with_zero_points, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize("m", [31, 32, 33, 301])
@pytest.mark.parametrize("k", [0, 1, 63, 64, 1025, 66_000])
def test_a_single_column(a_dtype, b_dtype, m, k, variants):
    """Of many rows it has sums of its own, also of weights so small that AVX2 has another layout for them."""
    rng = np.random.default_rng(m + k)
    for magnitude in (255, 15) if k < 66_000 or m == 33 else ():
        a, b = random_codes(rng, (m, k), a_dtype), random_codes(rng, (k, 1), b_dtype, magnitude)
        zero = {"a_zero_point": random_codes(rng, m, a_dtype), "b_zero_point": random_codes(rng, 1, b_dtype)}
        want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, **zero))
        for variant in variants():
            packed = qk.pack(b, qk.QParams(1, dtype=b_dtype))
            assert_array_equal(qk.matmul(a, packed), want, err_msg=variant, strict=True)
            assert_array_equal(qk.matmul(a, packed, **zero), with_zero_points, err_msg=variant, strict=True)


@pytest.mark.parametrize("a_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("k", [2051, 2056])
def test_few_rows_of_weights_that_no_cache_holds(a_dtype, k, isas):
    rng = np.random.default_rng(k)
    a, b = random_codes(rng, (5, k), a_dtype), random_codes(rng, (k, 2107), "int8")
    want = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)
    for isa in isas():
        packed = qk.pack(b, qk.QParams(1))
        for rows in range(1, 6):
            assert_array_equal(qk.matmul(a[:rows], packed), want[:rows], err_msg=isa, strict=True)


def test_lists_and_broadcast_rows():
    assert_array_equal(qk.matmul(np.broadcast_to(np.uint8([1, 2]), (3, 2)), np.int8([[3, 4], [5, 6]])), [[13, 16]] * 3)
    assert_array_equal(qk.matmul(np.uint8([1, 2]), np.int8([[3, 4], [5, 6]])), [13, 16])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul_in_each_layout(layout):
    rng = np.random.default_rng(5)
    for a_dtype, b_dtype in PAIRS + PAIRS_OF_16:
        a, b = random_codes(rng, (5, 7), a_dtype), random_codes(rng, (7, 9), b_dtype)
        assert_array_equal(qk.matmul(LAYOUTS[layout](a), LAYOUTS[layout](b)), matmul_by_numpy(a, b), strict=True)


# ---- many products ----


@st.composite
def batches(draw):
    """a and b whose leading axes broadcast, and zero points."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    small = st.integers(0, 40)
    m, k, n = draw(small), draw(small), draw(small)
    lead = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    keep = draw(st.tuples(*[st.tuples(st.booleans(), st.booleans())] * len(lead)))
    of_a, of_b = ([size if kept[i] else 1 for size, kept in zip(lead, keep)] for i in (0, 1))
    of_a = of_a[draw(st.integers(0, len(of_a))) :]
    a, b = random_codes(rng, (*of_a, m, k), a_dtype), random_codes(rng, (*of_b, k, n), b_dtype)
    zero = {}
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(), (1,), (m,), (*of_a, m), (*of_a, 1)]))
        zero["a_zero_point"] = random_codes(rng, shape, a_dtype)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(), (1,), (n,), (*of_b, n), (*of_b, 1)]))
        zero["b_zero_point"] = random_codes(rng, shape, b_dtype)
    return a, b, zero


MATRIX_LAYOUTS = {
    **LAYOUTS,
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "moved": lambda x: np.moveaxis(np.moveaxis(x, 0, -2).copy(), -2, 0),
}
matrix_layouts = st.sampled_from(list(MATRIX_LAYOUTS.values()))


@settings(max_examples=150)
@given(batches(), matrix_layouts, matrix_layouts, st.booleans())
def test_batched_matmul(variants, batch, a_layout, b_layout, with_out):
    a, b, zero = batch
    left, right = a.astype(np.float64), b.astype(np.float64)
    if "a_zero_point" in zero:
        left = left - np.broadcast_to(zero["a_zero_point"], a.shape[:-1])[..., None]
    if "b_zero_point" in zero:
        right = right - np.broadcast_to(zero["b_zero_point"], (*b.shape[:-2], b.shape[-1]))[..., None, :]
    want = wrapped(left @ right)
    for variant in variants():
        out = np.full(want.shape, 77, np.int32) if with_out else None
        got = qk.matmul(a_layout(a), b_layout(b), **zero, out=out)
        assert out is None or got is out
        assert_array_equal(got, want, err_msg=variant, strict=True)


@every_pair
@pytest.mark.parametrize(
    ("heads", "m", "k", "n"), [(12, 100, 32, 128), (2, 300, 40, 500), (3, 200, 200, 33), (1, 400, 300, 200)]
)
def test_batches_large_enough_for_threads(a_dtype, b_dtype, heads, m, k, n, variants):
    """Shared by product, and, where there are fewer products than threads, within each."""
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, (heads, m, k), a_dtype), random_codes(rng, (heads, n, k), b_dtype).swapaxes(1, 2)
    want = wrapped(a.astype(np.float64) @ b.astype(np.float64))
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)


@refusals(r"""
many(a=(3, 5, 7))
    # ValueError: a and b must have leading axes that broadcast, got shapes \(3, 5, 7\) and \(2, 7, 4\)
many(a=(2, 5, 6))
    # ValueError: a must have shape \(\.\.\., M, 7\) to match b with shape \(2, 7, 4\), got \(2, 5, 6\)
many(a=(7,))  # ValueError: a must have shape \(\.\.\., M, 7\) .* got \(7,\)
many(a_zero_point=[1, 2])  # ValueError: a_zero_point must be a scalar or broadcast to shape \(2, 5\), got \(2,\)
many(b_zero_point=[[1], [2], [3]])
    # ValueError: b_zero_point must be a scalar or broadcast to shape \(2, 4\), got \(3, 1\)
many(a_zero_point=[[256], [0]])  # ValueError: a_zero_point must be within \[0, 255\]
many(b_zero_point=1.5)  # TypeError: b_zero_point must be an integer
many(out=(2, 5, 5))  # ValueError: out must have shape \(2, 5, 4\), got \(2, 5, 5\)
many(out=(5, 4))  # ValueError: out must have shape \(2, 5, 4\)
""")
def test_bad_batches(refusal):
    outs = []

    def many(a=(2, 5, 7), out=(2, 5, 4), **zero):
        outs.append(np.full(out, 77, np.int32))
        qk.matmul(np.ones(a, np.uint8), np.ones((2, 7, 4), np.int8), **zero, out=outs[0])

    refuse(refusal, {"many": many})
    assert (outs[0] == 77).all()


def test_countless_products_without_values():
    a, b = np.broadcast_to(np.zeros((0, 7), np.uint8), (2**40, 0, 7)), np.ones((7, 4), np.int8)[None]
    assert qk.matmul(a, b).shape == (2**40, 0, 4)


def test_out_must_not_overlap_a_batch():
    memory = np.zeros(2 * 5 * 4 * 4, np.uint8)
    out = memory.view(np.int32).reshape(2, 5, 4)
    a, b = np.ones((2, 5, 7), np.uint8), np.ones((2, 7, 4), np.int8)
    for name, arguments in [
        ("a", {"a": memory[:70].reshape(2, 5, 7), "b": b}),
        ("b", {"a": a, "b": memory[:56].view(np.int8).reshape(2, 7, 4)}),
        ("a_zero_point", {"a": a, "b": b, "a_zero_point": memory[:5]}),
    ]:
        with pytest.raises(ValueError, match=f"out must not overlap {name}"):
            qk.matmul(**arguments, out=out)


# ---- small weights: sums of 16 bits (numerics 6) ----


def extreme_rows(b, column):
    """uint8 rows that make the sum of a column's products as large, as small and as mixed as can be."""
    up = np.where(b[:, column] > 0, 255, 0)
    return np.array([up, 255 - up, *(np.full(len(b), code) for code in (255, 0, 128, 127))], np.uint8)


@pytest.mark.parametrize("total", [127, 128, 129, 130, 255, 256, 257, 258, 381, 508, 512])
@pytest.mark.parametrize("signs", ["++++", "----", "+-+-", "++--", "+---"])
@pytest.mark.parametrize("rows", [(0, 1, 4, 5), (2, 3, 6, 7), (0, 1, 6, 7)])
def test_four_codes_at_below_and_above_what_16_bits_hold(total, signs, rows, isas):
    """Two steps alone, in which one column's magnitudes sum up to `total`; elsewhere the weights are small. Even and
    uneven parts."""
    for parts in (
        [total // 4 + (i < total % 4) for i in range(4)],
        np.diff([0, *np.clip(np.cumsum([127] * 4), 0, total)]),
    ):
        b = np.ones((8, 64), np.int8)
        for column in (3, 12):
            b[:, column] = 0
            signed = [int(part) * (1 if sign == "+" else -1) for part, sign in zip(parts, signs)]
            b[list(rows), column] = np.clip(signed, -128, 127)
        a = np.concatenate([extreme_rows(b, 3), extreme_rows(b, 12)])
        for isa in isas():
            packed = qk.pack(b, qk.QParams(1))
            assert_array_equal(qk.matmul(a, packed), wrapped(exact(a, b)), err_msg=isa, strict=True)
            assert_array_equal(packed.unpack(), b, err_msg=isa, strict=True)


@st.composite
def small_weights(draw):
    """a and b, whose codes are normally distributed, a few at the ends of their range."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a_dtype, b_dtype = draw(st.sampled_from(PAIRS))
    k = draw(st.one_of(st.integers(8, 300), st.sampled_from([1023, 1024, 1025, 1028, 2051])))
    n = draw(st.integers(8, 70))
    b = np.clip(rng.normal(0, draw(st.sampled_from([1, 10, 25, 35, 45, 60])), (k, n)).round(), -128, 127)
    at_ends = rng.random((k, n)) < draw(st.sampled_from([0, 0.001, 0.02, 0.1]))
    b = np.where(at_ends, rng.choice([-128, 127], (k, n)), b).astype(np.int8)
    some = random_codes(rng, (draw(st.integers(0, 12)), k), "uint8")
    a = np.concatenate([extreme_rows(b, draw(st.integers(0, n - 1))), some])
    flip = np.uint8(128)
    a = a if a_dtype == "uint8" else (a ^ flip).view(np.int8)
    return a[: draw(st.integers(1, len(a)))], b if b_dtype == "int8" else b.view(np.uint8) ^ flip, rng


@settings(max_examples=150)
@given(small_weights(), layouts, layouts)
def test_small_weights(variants, example, a_layout, b_layout):
    a, b, rng = example
    zero = {"a_zero_point": random_codes(rng, len(a), a.dtype), "b_zero_point": random_codes(rng, b.shape[1], b.dtype)}
    want, with_zero_points = wrapped(exact(a, b)), wrapped(exact(a, b, **zero))
    for variant in variants():
        packed = qk.pack(b_layout(b), qk.QParams(1, dtype=b.dtype))
        assert_array_equal(qk.matmul(a_layout(a), packed), want, err_msg=variant, strict=True)
        assert_array_equal(qk.matmul(a_layout(a), packed, **zero), with_zero_points, err_msg=variant, strict=True)
        assert_array_equal(packed.unpack(), b, err_msg=variant, strict=True)


TILES = {"scalar": (16, 4), "avx2": (16, 2), "avx512": (32, 2), "avxvnni": (16, 4)}  # nr, kr
TILES |= {"avx512vnni": (32, 4), "amx": (32, 64), "neon": (16, 8), "neon_dotprod": (16, 4), "neon_i8mm": (16, 8)}
WITHOUT_VNNI = ("avx2", "avx512")  # these pack small weights apart


@pytest.mark.parametrize(
    ("code", "small"), [(1, True), (-64, True), (64, True), (65, False), (-65, False), (127, False), (-128, False)]
)
def test_weights_that_break_the_bound_keep_to_products_of_16_bits(code, small, isas):
    """Panels of small weights are larger, since they hold an order of k."""
    for isa in isas():
        packed = qk.pack(np.full((256, 64), code, np.int8), qk.QParams(1))
        plain = packed.nbytes == 256 * 64 + 8 * 64
        assert plain == (isa not in WITHOUT_VNNI or not small), isa


@settings(max_examples=60)
@given(st.data())
def test_heavy_weights_take_the_slow_path(isas, data):
    """Weights most of whose sums of four magnitudes exceed 256 are packed without an order of k; lighter ones with it.
    Both are exact."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    k, n, size = data.draw(st.integers(32, 160)), data.draw(st.integers(32, 80)), data.draw(st.integers(1, 127))
    b = (size * rng.choice([-1, 1], (k, n))).astype(np.int8)
    rows = np.concatenate([extreme_rows(b, 0), extreme_rows(b, n - 1)])
    for isa in isas():
        packed = qk.pack(b, qk.QParams(1))
        nr, kr = TILES[isa]
        plain = packed.nbytes == -(-n // nr) * nr * (-(-k // kr) * kr + 8)
        assert plain == (isa not in WITHOUT_VNNI or 4 * size > 256), isa
        assert_array_equal(qk.matmul(rows, packed), wrapped(exact(rows, b)), err_msg=isa, strict=True)


# ---- int16 ----


@pytest.mark.parametrize("k", [1, 2, 3, 255, 256, 257, 510, 511, 512, 1023, 70_000])
def test_int16_worst_cases(k, isas):
    """Every code at an end of the range, where a sum of 32 bits would overflow first; object arrays have integers of
    any size."""
    ends = [-32768, -32767, 32767]
    for left in ends:
        for right in ends:
            a, b = np.full((3, k), left, np.int16), np.full((k, 17), right, np.int16)
            for zeros in ({}, {"a_zero_point": 32767, "b_zero_point": np.full(17, -32768)}):
                one = k * (left - zeros.get("a_zero_point", 0)) * (right - (-32768 if zeros else 0))
                want = np.full((3, 17), one, object).astype(np.int64)
                for isa in isas():
                    assert_array_equal(qk.matmul(a, b, **zeros), want, err_msg=isa, strict=True)


def test_magnitudes_at_the_bounds_of_the_proof(isas):
    """s pairs of sums of the largest magnitude, exactly as many as fit int32, and one more."""
    for steps in (1, 2, 7, 8, 9, 16, 100, 255):
        for largest_b in (1, 127, 128, 4096):
            largest_a = (2**31 - 1) // (2 * steps * largest_b)
            for size in (largest_a, largest_a + 1):
                if size <= 32768:
                    for k in (2 * steps, 2 * steps + 1, 4 * steps + 3):
                        a, b = np.full((13, k), -size, np.int16), np.full((k, 3), -largest_b, np.int16)
                        for isa in isas():
                            assert (qk.matmul(a, b) == k * size * largest_b).all(), isa


def test_each_block_of_rows_has_its_own_bound(variants):
    """Small rows beside large ones, more than a block holds."""
    rng = np.random.default_rng(0)
    a = random_codes(rng, (1200, 300), "int16")
    a[300:700] >>= 8
    b = random_codes(rng, (300, 70), "int16")
    want = exact(a, b)
    for variant in variants():
        assert_array_equal(qk.matmul(a, b), want, err_msg=variant, strict=True)


def test_byte_swapped_int16(isas):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(2**15), 2**15, shape).astype(np.int16) for shape in ((3, 5), (5, 4)))
    want = a.astype(np.int64) @ b
    for isa in isas():
        for left, right in ((a, b.astype(">i2")), (a.astype(">i2"), b), (a.astype(">i2"), b.astype(">i2"))):
            assert_array_equal(qk.matmul(left, right), want, err_msg=isa)


A, B = np.ones((2, 4), np.int16), np.ones((4, 3), np.int16)


@refusals(r"""
product(a=A.astype(np.int32))  # TypeError: a must be int16, int8 or uint8 where the other is int16, got int32
product(a=A.astype(np.uint16))  # TypeError: a must be int16, int8 or uint8 .*got uint16
product(b=B.astype(np.float32))  # TypeError: b must be int16, int8 or uint8 .*got float32
product(b=B[0])  # ValueError: b must have shape \(K, N\) where a or b is int16, got \(3,\)
product(b=B[:3])  # ValueError: a must have 3 columns to match b, got shape \(2, 4\)
product(b=qk.pack(B.astype(np.int8), qk.QParams(1)))
    # TypeError: b must be packed from int16 where a is int16, got a PackedMatrix of int8
product(b=qk.pack(B.astype(np.float16), None))
    # TypeError: b must be packed from int16 where a is int16, got a PackedMatrix of float16
product(a_zero_point=2**15)  # ValueError: a_zero_point must be within \[-32768, 32767\] for int16, got 32768
product(a=A.astype(np.uint8), a_zero_point=-1)  # ValueError: a_zero_point must be within \[0, 255\] for uint8
product(b_zero_point=np.zeros(2, int))  # ValueError: b_zero_point must be a scalar or have shape \(3,\), got \(2,\)
product(b_zero_point=1.0)  # TypeError: b_zero_point must be an integer
product(out=np.full((2, 3), 7, np.int32))  # TypeError: out must have dtype int64, got int32
product(out=np.full((2, 2), 7, np.int64))  # ValueError: out must have shape \(2, 3\), got \(2, 2\)
""")
def test_int16_errors(refusal):
    outs = []

    def product(a=A, b=B, out=None, **zero):
        outs.append(np.full((2, 3), 7, np.int64) if out is None else out)
        qk.matmul(a, b, **zero, out=outs[0])

    refuse(refusal, globals() | {"product": product})
    assert (outs[0] == 7).all()


def test_int16_overlap():
    memory = np.zeros(64, np.int16)
    a, out = memory[:8].reshape(2, 4), memory[4:28].view(np.int64).reshape(2, 3)
    with pytest.raises(ValueError, match="out must not overlap a"):
        qk.matmul(a, B, out=out)
