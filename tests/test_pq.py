"""Product quantization: levels and distances by brute force in float64, search by its formula, equal bits anywhere."""

import copy
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from common import LAYOUTS, refusals, refuse

import qkernels as qk

RNG = np.random.default_rng(0)
SHAPES = [(1, 1, 1), (3, 5, 2), (8, 256, 4), (9, 16, 3), (17, 200, 8), (4, 256, 33)]  # m, k, d


def book_of(m, k, d, shared=False, integers=False):
    shape = (k, d) if shared else (m, k, d)
    return qk.Codebook(RNG.integers(-4, 5, shape) if integers else RNG.normal(0, 1, shape), vector=True)


def all_levels(book, m):
    return np.broadcast_to(book.levels, (m, *book.levels.shape[-2:]))


def squared_distances(x, book):
    """(n, m, k), in float64."""
    d = book.levels.shape[-1]
    parts = x.astype(np.float64).reshape(len(x), -1, 1, d)
    return np.square(parts - all_levels(book, parts.shape[1])).sum(axis=-1)


def sums_of(tables, codes):
    """(queries, n): a chain of additions in float32."""
    sums = np.zeros((len(tables), len(codes)), np.float32)
    for g in range(codes.shape[1]):
        sums += tables[:, g, codes[:, g]]
    return sums


def smallest(sums, k):
    indices = np.argsort(sums, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(sums, indices, axis=1), indices


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


# ---- encode and decode ----


@pytest.mark.parametrize("m, k, d", SHAPES)
@pytest.mark.parametrize("shared", [False, True])
def test_codes_are_of_the_nearest_levels(m, k, d, shared, everywhere):
    book = book_of(m, k, d, shared)
    x = RNG.normal(0, 1, (77, m * d)).astype(np.float32)
    distances = squared_distances(x, book)
    codes = everywhere(lambda: qk.encode(x, book))
    assert codes.dtype == np.uint8 and codes.shape == (77, m)
    chosen = np.take_along_axis(distances, codes[..., None].astype(int), axis=2)[..., 0]
    assert (chosen <= distances.min(axis=2) * (1 + 1e-6 * d)).all()


@pytest.mark.parametrize("m, k, d", SHAPES)
def test_ties_go_to_the_lower_code(m, k, d, variants):
    """Integers: distances are exact, and many are equal."""
    book = book_of(m, k, d, integers=True)
    x = RNG.integers(-4, 5, (40, m * d)).astype(np.float32)
    expected = squared_distances(x, book).argmin(axis=2).astype(np.uint8)
    for _ in variants():
        same(qk.encode(x, book), expected)


@pytest.mark.parametrize("m, k, d", SHAPES)
@pytest.mark.parametrize("shared", [False, True])
def test_decode_is_a_look_up_that_encode_reverses(m, k, d, shared, variants):
    book = book_of(m, k, d, shared)
    codes = RNG.integers(0, k, (5, 7, m), np.uint8)
    expected = all_levels(book, m)[np.arange(m), codes].reshape(5, 7, m * d)
    out = np.empty_like(expected)
    for _ in variants():
        same(qk.decode(codes, book), expected)
        assert qk.decode(codes, book, out=out) is out
        same(out, expected)
        same(qk.encode(expected, book), codes)


@pytest.mark.parametrize("power", [-130, -60, 0, 60, 120])
@np.errstate(under="ignore")  # of references
def test_scale_does_not_matter(power):
    book = book_of(3, 20, 4)
    x = RNG.normal(0, 1, (50, 12)).astype(np.float32)
    scaled = qk.Codebook(np.ldexp(book.levels, power), vector=True)
    if power > -126:  # nothing is rounded
        same(qk.encode(np.ldexp(x, power), scaled), qk.encode(x, book))
    same(qk.encode(scaled.levels[:, 7].reshape(1, 12), scaled), np.full((1, 3), 7, np.uint8))
    huge = np.full((1, 12), np.finfo(np.float32).max)
    assert qk.encode(huge, scaled).shape == (1, 3)


def nearest_exactly(x, levels):
    """Codes of vectors by fractions; those within the rounding of a distance of the nearest, as a set each."""
    found = []
    levels = [[*map(Fraction, level)] for level in levels.tolist()]
    for vector in x.tolist():
        distances = [sum((Fraction(a) - b) ** 2 for a, b in zip(vector, level)) for level in levels]
        most = min(distances) * (1 + (len(vector) + 2) * Fraction(2) ** -23)
        found.append([i for i, distance in enumerate(distances) if distance <= most])
    return found


@np.errstate(under="ignore")  # of references
def test_levels_and_vectors_of_any_magnitudes(everywhere):
    rng = np.random.default_rng(8)
    for _ in range(12):
        m, k, d = rng.integers(1, 5, 3) + (0, 3, 0)
        levels, x = (
            np.float32(rng.normal(0, 1, shape) * 10.0 ** rng.choice(rng.integers(-44, 38, 3), shape))
            for shape in ((m, k, d), (15, m * d))
        )
        rows = levels.transpose(1, 0, 2).reshape(k, -1)
        x = np.concatenate([x, rows, rows[::-1] * np.float32(0.75)])
        codes = everywhere(lambda: qk.encode(x, qk.Codebook(levels, vector=True)))
        for g in range(m):
            for code, near in zip(codes[:, g], nearest_exactly(x[:, g * d : (g + 1) * d], levels[g])):
                assert code in near


@np.errstate(under="ignore")  # of references
def test_far_levels_and_far_groups(variants):
    x = np.float32([[0], [1], [5], [-1e30]])
    far = qk.Codebook(x, vector=True)
    rng = np.random.default_rng(9)
    levels, points = rng.normal(0, 1, (1, 16, 4)).astype(np.float32), rng.normal(0, 1, (40, 4)).astype(np.float32)
    units = np.float32([1, 2.0**-73, 2.0**-110, 2.0**73])
    groups = qk.Codebook(np.concatenate([levels * unit for unit in units]), vector=True)
    for _ in variants():
        assert qk.encode(x.ravel(), far).tolist() == [0, 1, 2, 3]
        codes = qk.encode(np.concatenate([points * unit for unit in units], axis=1), groups)
        same(codes, np.repeat(qk.encode(points, qk.Codebook(levels, vector=True)), 4, axis=1))


def test_layouts_and_dtypes(isas):
    book = book_of(4, 30, 2)
    x = RNG.normal(0, 1, (33, 8)).astype(np.float32)
    for _ in isas():
        codes = qk.encode(x, book)
        for same_values in *(layout(x) for layout in LAYOUTS.values()), x.astype(np.float64):
            same(qk.encode(same_values, book), codes)
        same(qk.encode(x.reshape(3, 11, 8), book), codes.reshape(3, 11, 4))
        same(qk.encode(x[0], book), codes[0])
        same(qk.decode(codes[::2], book), qk.decode(codes, book)[::2])
        for dtype in np.float16, ml_dtypes.bfloat16:
            same(qk.encode(x.astype(dtype), book), qk.encode(x.astype(dtype).astype(np.float32), book))
            found = qk.search(x.astype(dtype), codes[::-1], book, 3)
            for got, want in zip(found, qk.search(x.astype(dtype).astype(np.float32), codes[::-1].copy(), book, 3)):
                same(got, want)


# ---- tables and search ----


@pytest.mark.parametrize("m, k, d", SHAPES)
@pytest.mark.parametrize("shared", [False, True])
def test_tables_hold_squared_distances(m, k, d, shared, everywhere):
    for integers in False, True:
        book = book_of(m, k, d, shared, integers)
        queries = (RNG.integers(-4, 5, (6, m * d)) if integers else RNG.normal(0, 1, (6, m * d))).astype(np.float32)
        expected = squared_distances(queries, book)
        tables = everywhere(lambda: qk.distance_tables(queries, book))
        np.testing.assert_allclose(tables, expected, rtol=0 if integers else 1e-6 * (d + 2))


@pytest.mark.parametrize("m, k, d", SHAPES)
def test_search_is_the_formula(m, k, d, variants):
    """Units of 16 queries, 8, 4 and 1 on the instruction sets, more and fewer vectors than are seen at a time."""
    book = book_of(m, k, d)
    codes = RNG.integers(0, k, (601, m), np.uint8)
    queries = RNG.normal(0, 1, (37, m * d)).astype(np.float32)
    tables = qk.distance_tables(queries, book)
    distances = np.square(queries.astype(np.float64)[:, None] - qk.decode(codes, book)).sum(axis=2)
    for variant in variants():
        for count, n, nearest in (37, 601, 10), (1, 601, 601), (3, 300, 1), (5, 1, 1), (18, 63, 40), (2, 257, 256):
            found, indices = qk.search(queries[:count], codes[:n], book, nearest)
            expected = smallest(sums_of(tables[:count], codes[:n]), nearest)
            same(found, expected[0])
            same(indices, expected[1])
            np.testing.assert_allclose(
                found, np.take_along_axis(distances[:count], indices, axis=1), rtol=1e-5, err_msg=variant
            )


def test_equal_distances_come_in_the_order_of_indices(variants):
    book = book_of(5, 3, 2, integers=True)
    codes = RNG.integers(0, 3, (2000, 5), np.uint8)
    queries = RNG.integers(-4, 5, (20, 10)).astype(np.float32)
    expected = smallest(sums_of(qk.distance_tables(queries, book), codes), 300)
    for _ in variants():
        for got, want in zip(qk.search(queries, codes, book, 300), expected):
            same(got, want)


def test_threads_take_parts_of_the_codes(variants):
    """Enough work for several threads, many queries and one."""
    book = book_of(8, 256, 2)
    codes = np.tile(RNG.integers(0, 256, (10_000, 8), np.uint8), (6, 1))  # each distance six times
    queries = RNG.normal(0, 1, (33, 16)).astype(np.float32)
    expected = smallest(sums_of(qk.distance_tables(queries, book), codes), 20)
    for _ in variants():
        for count in 33, 1:
            for got, want in zip(qk.search(queries[:count], codes, book, 20), expected):
                same(got, want[:count])


def check_search(queries, codes, book, nearest, variants):
    """Whichever way codes are stored."""
    expected = smallest(sums_of(qk.distance_tables(queries, book), codes), nearest)
    stored = codes, qk.pack_codes(codes)
    for _ in variants():
        for form in stored:
            for got, want in zip(qk.search(queries, form, book, nearest), expected):
                same(got, want)


MANY = 20_000  # vectors, from which on few levels are searched by a filter
FILTERED = [(1, 16), (2, 3), (4, 16), (15, 16), (16, 16), (30, 7), (32, 16), (33, 16), (47, 16), (70, 9)]  # m, k


@pytest.mark.parametrize("m, k", FILTERED)
def test_few_levels_are_searched_by_the_formula_too(m, k, isas, variants):
    """One query, more than share a scan, blocks that end within a tile; levels of each group alone and of all."""
    book = book_of(m, k, 2, shared=m % 2 == 1)
    codes = RNG.integers(0, k, (MANY + 77, m), np.uint8)
    queries = RNG.normal(0, 1, (130, 2 * m)).astype(np.float32)
    for count, n, nearest in (1, MANY, 10), (1, MANY + 1, 2), (2, MANY + 77, 3), (3, MANY + 77, 1), (17, MANY + 1, 50):
        check_search(queries[:count], codes[:n], book, nearest, variants)
    if m == 32:
        check_search(queries, codes, book, 4, isas)


def test_more_groups_than_sums_of_bytes_hold(isas):
    for m in 1023, 1024, 1025:
        book = book_of(1, 16, 1, shared=True)
        codes = RNG.integers(0, 16, (MANY, m), np.uint8)
        check_search(RNG.normal(0, 1, (2, m)).astype(np.float32), codes, book, 3, isas)


@np.errstate(over="ignore", under="ignore")  # of references
@pytest.mark.parametrize("far", [1e-44, 1e-22, 1e-19, 1.0, 1e17, 1.7e18, 3e18, 1e19, 3e38])
def test_few_levels_of_any_magnitude(far, isas):
    """Subnormal squares, sums beyond float32 or about as large, groups of different scales, one far level of many."""
    m = 12
    rng = np.random.default_rng(3)
    near = rng.uniform(0, 1, (m, 16, 2)) * rng.choice([1, 1e-3, 1e-12], (m, 1, 1))
    near[:, :3] = near[:, 3:6]
    one = near * np.minimum(far, 1)
    one[5, 7] = far
    codes = rng.integers(0, 16, (MANY, m), np.uint8)
    for levels in near * far, one, one * rng.choice([1, 1e-20], (m, 1, 1)):
        levels = levels.astype(np.float32)
        book = qk.Codebook(levels, vector=True)
        queries = np.concatenate([rng.uniform(0, 1, (2, 2 * m)) * far, levels[:, :2].transpose(1, 0, 2).reshape(2, -1)])
        check_search(queries.astype(np.float32), codes, book, 20, isas)
        check_search(queries.astype(np.float32), np.minimum(codes, 2), book, 50, isas)


def test_few_levels_and_equal_distances(variants):
    """All codes equal, few different distances, and vectors that come nearer from the first to the last, or further."""
    book = book_of(6, 16, 2, integers=True)
    queries = RNG.integers(-4, 5, (20, 12)).astype(np.float32)
    codes = RNG.integers(0, 16, (MANY, 6), np.uint8)
    ordered = codes[np.argsort(sums_of(qk.distance_tables(queries[:1], book), codes)[0], kind="stable")]
    for some in codes, codes % 2, np.zeros_like(codes), ordered, ordered[::-1].copy():
        check_search(queries, some, book, 30, variants)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_what_is_hardly_nearer_is_not_filtered(m, isas):
    """Each vector that comes is nearer than all before by less than sums of bytes tell; a sample sees the first."""
    levels = np.zeros((m, 16, 1), np.float32)
    levels[0, :14, 0] = np.sqrt(0.6 + np.arange(14) * 2.0**-14)  # no code is 15: the least distance is 0
    levels[0, 14] = 2
    codes = np.zeros((MANY, m), np.uint8)
    codes[:, 0] = 14
    codes[np.arange(14) * 1111, 0] = np.arange(13, -1, -1)
    check_search(np.zeros((2, m), np.float32), codes, qk.Codebook(levels, vector=True), 1, isas)


def test_the_k_nearest_may_be_many_or_lie_together(isas):
    """Near vectors that a sample misses, at the ends of parts; and k beyond what is filtered."""
    book = book_of(8, 16, 1)
    queries = RNG.normal(0, 1, (5, 8)).astype(np.float32)
    codes = RNG.integers(0, 16, (MANY, 8), np.uint8)
    for at in 0, 127, 6666, MANY - 9:
        codes[at : at + 9] = qk.encode(queries[:1], book)
    for nearest in 1, 36, 55, 57, 1000, MANY:
        check_search(queries, codes, book, nearest, isas)


@pytest.mark.parametrize("m, k", [(6, 16), (6, 5), (20, 15), (37, 16)])
def test_codes_without_a_level_are_refused_wherever_they_are(m, k, variants):
    book = book_of(m, k, 1)
    queries = np.zeros((3, m), np.float32)
    for n, some in (50, queries), (MANY, queries), (MANY, queries[:1]):
        codes = RNG.integers(0, k, (n, m), np.uint8)
        for row, group in (0, 0), (n - 1, m - 1), (n // 2, 1):
            for code in {k, 15, 16, 255} - set(range(k)):
                wrong = codes.copy()
                wrong[row, group] = code
                for _ in variants():
                    with pytest.raises(ValueError, match=f"codes must be below {k}, the number of levels, got {code}"):
                        qk.search(some, wrong, book, 2)
                    if code < 16:
                        with pytest.raises(ValueError, match=f"codes must be below {k}, .* got {code}"):
                            qk.search(some, qk.pack_codes(wrong), book, 2)


@pytest.mark.parametrize("n, m", [(0, 3), (1, 1), (3, 0), (127, 4), (128, 5), (1000, 6), (2001, 9)])
def test_packed_codes_are_the_codes(n, m, variants):
    codes = RNG.integers(0, 16, (n, m), np.uint8)
    for _ in variants():
        for given in (*(layout(codes) for layout in LAYOUTS.values()), np.asfortranarray(codes)):
            packed = qk.pack_codes(given)
            same(packed.unpack(), codes)
            assert packed.shape == (n, m) and packed.nbytes == -(-n // 128) * 128 * (-(-m // 2))
        same(qk.unpack_bits(packed.to_arrays()["codes"], 4, (n, m)), codes)
        copies = qk.PackedCodes.from_arrays(packed.to_arrays()), pickle.loads(pickle.dumps(packed))
        for other in (*copies, copy.deepcopy(packed)):
            same(other.unpack(), codes)
    for change in lambda: setattr(packed, "shape", (1, 1)), lambda: delattr(packed, "shape"):
        with pytest.raises(AttributeError, match="frozen: shape cannot be"):
            change()


def test_distances_beyond_float32_are_infinite(isas):
    book = qk.Codebook([[0.0], [1.0]], vector=True)
    for _ in isas():
        for count in 1, 20:
            queries = np.repeat(np.float32([[3e38, 0]]), count, axis=0)
            distances, indices = qk.search(queries, np.uint8([[1, 1], [0, 0], [0, 1]]), book, 3)
            assert np.isinf(distances).all() and (indices == [0, 1, 2]).all()


def test_empty_arrays():
    book, shared = book_of(2, 4, 3), book_of(2, 4, 3, shared=True)
    none = np.empty((0, 6), np.float32)
    assert qk.encode(none, book).shape == (0, 2) and qk.decode(np.empty((0, 2), np.uint8), book).shape == (0, 6)
    assert qk.encode(np.empty((5, 0), np.float32), shared).shape == (5, 0)
    assert qk.decode(np.empty((5, 0), np.uint8), shared).shape == (5, 0)
    assert qk.distance_tables(none, book).shape == (0, 2, 4)
    distances, indices = qk.search(none, np.zeros((5, 2), np.uint8), book, 3)
    assert distances.shape == indices.shape == (0, 3)


# ---- fit ----


def test_fit_is_kmeans_of_each_group():
    x = RNG.normal(0, 1, (300, 12)).astype(np.float32)
    weights = RNG.uniform(0, 1, 300)
    for w in None, weights:
        book = qk.Codebook.fit(x, 7, vector=4, weights=w, rng=5)
        rng = np.random.default_rng(5)
        same(book.levels, np.stack([qk.kmeans(x[:, g : g + 4], 7, weights=w, rng=rng).centroids for g in (0, 4, 8)]))
        assert book.vector and book.k == 7
    again = qk.Codebook.fit(x.reshape(3, 100, 12), 7, vector=4, weights=weights.reshape(3, 100), rng=5)
    same(again.levels, book.levels)


def test_fit_is_the_same_for_a_seed(variants):
    x = RNG.normal(0, 1, (200, 6)).astype(np.float32)
    first = qk.Codebook.fit(x, 16, vector=3, rng=1)
    for _ in variants():
        assert qk.Codebook.fit(x, 16, vector=3, rng=1) == first
    assert qk.Codebook.fit(x, 16, vector=3, rng=2) != first


def test_fit_finds_levels_that_are_all_there_is():
    levels = RNG.integers(-9, 9, (2, 5, 3))
    x = levels[np.arange(2), RNG.integers(0, 5, (100, 2))].reshape(100, 6).astype(np.float32)
    book = qk.Codebook.fit(x, 8, vector=3, rng=0)  # fewer different points than levels
    same(qk.decode(qk.encode(x, book), book), x)


def test_fit_takes_float64():
    x = RNG.normal(0, 1, (50, 4))
    assert qk.Codebook.fit(x, 3, vector=2, rng=0).levels.dtype == np.float32


def test_more_levels_lose_less():
    x = RNG.normal(0, 1, (500, 8)).astype(np.float32)
    books = [qk.Codebook.fit(x, k, vector=2, rng=0) for k in (1, 4, 16, 64)]
    losses = [np.square(qk.decode(qk.encode(x, book), book) - x).mean() for book in books]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1


# ---- bad input ----

BOOK = qk.Codebook(np.arange(24.0).reshape(2, 4, 3), vector=True)
SHARED = qk.Codebook(np.arange(12.0).reshape(4, 3), vector=True)
SCALARS = qk.Codebook([0, 1])
X, CODES = np.ones((5, 6), np.float32), np.zeros((5, 2), np.uint8)


def with_value(value):
    x = X.copy()
    x[3, 2] = value
    return x


@refusals(r"""
qk.encode(X[:, :5], BOOK)
    # ValueError: the last axis of x must be 6 long for codebook Codebook\(<2 x 4 x 3 levels>.*\(5, 5\)
qk.encode(X[:, :5], SHARED)  # ValueError: the last axis of x must be a multiple of 3 long
qk.encode(np.float32(1), SHARED)  # ValueError: got shape \(\)
qk.encode(with_value(np.nan), BOOK)  # ValueError: NaN
qk.encode(with_value(np.inf).astype(np.float16), BOOK)  # ValueError: infinit
qk.encode(np.full((1, 6), 1e300), BOOK)  # ValueError: x spans .* beyond the range of float32
qk.encode(X.astype(int), BOOK)  # TypeError: x must be float32, float64, float16 or bfloat16, got int64
qk.decode(CODES[:, :1], BOOK, out=out)  # ValueError: the last axis of codes must be 2 long .* \(5, 1\)
qk.decode(CODES + np.uint8(4), BOOK, out=out)  # ValueError: codes must be below 4, the number of levels, got 4
qk.decode(CODES.astype(int), BOOK, out=out)  # TypeError: codes must be uint8, got int64
qk.decode(CODES, BOOK, np.ones(2, np.float32), out=out)  # ValueError: scales must be None
qk.decode(CODES[:4], BOOK, out=out)  # ValueError: out must have shape \(4, 6\), got \(5, 6\)
qk.decode(out.view(np.uint8)[:, :2], BOOK, out=out)  # ValueError: out must not overlap codes
qk.distance_tables(X, SCALARS)  # ValueError: codebook must be of vectors, got Codebook\(\[0, 1\]\)
qk.distance_tables(X, BOOK.levels)  # TypeError: codebook must be a Codebook, got ndarray
qk.distance_tables(X[0], BOOK)  # ValueError: queries must have shape \(queries, columns\), columns 6 .* got \(6,\)
qk.distance_tables(X[:, :0], SHARED)  # ValueError: columns a multiple of 3 .* got \(5, 0\)
qk.distance_tables(with_value(np.inf), BOOK)  # ValueError: queries
qk.distance_tables(X.astype(int), BOOK)  # TypeError: queries must be float32, float64, float16 or bfloat16
qk.search(X, CODES[:, :1], BOOK, 1)
    # ValueError: codes must have shape \(n, 2\) to match queries with shape \(5, 6\), got \(5, 1\)
qk.search(X, CODES[0], BOOK, 1)  # ValueError: got \(2,\)
qk.search(X, CODES.astype(np.int8), BOOK, 1)  # TypeError: codes must be uint8, got int8
qk.search(X, CODES + np.uint8(9), BOOK, 1)  # ValueError: codes must be below 4, the number of levels, got 9
qk.search(X, qk.pack_codes(CODES[:, :1]), BOOK, 1)  # ValueError: codes must have shape \(n, 2\) .* \(5, 1\)
qk.search(X, qk.pack_codes(CODES + np.uint8(9)), BOOK, 1)  # ValueError: codes must be below 4, .* got 9
qk.search(X, qk.pack_codes(CODES), BOOK, 6)  # ValueError: rows of codes, 5, got 6
qk.pack_codes(CODES + np.uint8(16))  # ValueError: codes must be below 16, got 16
qk.pack_codes(CODES[0])  # ValueError: codes must have shape \(n, m\), got \(2,\)
qk.pack_codes(CODES.astype(int))  # TypeError: codes must be uint8, got int64
qk.PackedCodes.from_arrays(CODES)  # TypeError: arrays must be a mapping of str to array, got ndarray
qk.PackedCodes.from_arrays({"codes": CODES[0]})  # ValueError: arrays must hold codes and shape, got no shape
qk.PackedCodes.from_arrays({"codes": CODES[0], "shape": np.array([5, 2])})
    # ValueError: codes must have shape \(5,\) to hold those of shape \(5, 2\), got \(2,\)
qk.PackedCodes.from_arrays({"codes": CODES[0], "shape": np.array([4])})  # ValueError: shape must have shape \(2,\)
qk.search(X, CODES, BOOK, 0)  # ValueError: k must be from 1 to the number of rows of codes, 5, got 0
qk.search(X, CODES, BOOK, 6)  # ValueError: rows of codes, 5, got 6
qk.search(X, CODES[:0], BOOK, 1)  # ValueError: rows of codes, 0, got 1
qk.search(X, CODES, BOOK, 1.0)  # TypeError: k must be an integer
qk.search(X, CODES, BOOK, None)  # TypeError: k must be an integer, got None
qk.Codebook.fit(X, 6, vector=3)  # ValueError: k must be at most the number of vectors, 5, got 6
qk.Codebook.fit(X, 257, vector=3)  # ValueError: k must be from 1 to 256, got 257
qk.Codebook.fit(X, 2, vector=4)  # ValueError: its last axis a multiple of vector=4, got shape \(5, 6\)
qk.Codebook.fit(X, 2, vector=0)  # ValueError: vector must be at least 1, got 0
qk.Codebook.fit(X, 2, vector=True)  # TypeError: vector must be an integer
qk.Codebook.fit(X[:0], 2, vector=3)  # ValueError: x must not be empty.* got shape \(0, 6\)
qk.Codebook.fit(with_value(np.nan), 2, vector=3)  # ValueError: NaN
qk.Codebook.fit(X, 2, vector=3, weights=np.ones(4))  # ValueError: weights must broadcast to .* \(5,\), got \(4,\)
qk.Codebook.fit(X, 2, vector=3, weights=np.zeros(5))  # ValueError: weights must not all be 0
qk.Codebook.fit(X, 2, vector=3, axis=0)  # ValueError: vector=3 takes no axis
""")
def test_bad_input(refusal):
    out = np.full((5, 6), 7, np.float32)
    refuse(refusal, globals() | {"out": out})
    assert (out == 7).all()
