"""Product quantization of 384 values in 48 bytes (48 groups of 8 values, 256 levels) or 48 (96 groups of 4, 16 levels):
search among 100,000 codes, encoding and decoding. faiss' codes of 4 bits are packed two to a byte; ours lie in a byte
each, or are packed, as its fast scan has them. Search among 1,000,000 codes of 4 bits meets faiss' fast scan, whose
note is the part of our answer that it finds."""

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, random_floats
from race import CLOSE, EXACT, WRONG, exactly, our_own

import qkernels as qk

COUNT, WIDTH, NEAREST = 100_000, 384, 10
BOOKS = {"48 x 8 bits": (48, 256), "96 x 4 bits": (96, 16)}


def book_of(case):
    m, k = BOOKS[case]
    return qk.Codebook(random_floats(m, k, WIDTH // m, seed=2), vector=True)


def random_codes_of(book):
    return aligned(np.random.default_rng(3).integers(0, book.k, (COUNT, len(book.levels)), np.uint8))


def nearest_by(queries, codes, book):
    """Indices by the sums of tables in float32, in the order of groups: exact for us; others add in another order."""
    tables = qk.distance_tables(queries, book)
    sums = np.zeros((len(queries), len(codes)), np.float32)
    for g in range(codes.shape[1]):
        sums += tables[:, g, codes[:, g]]
    expected = np.argsort(sums, axis=1, kind="stable")[:, :NEAREST]

    def check(indices):
        if np.array_equal(indices, expected):
            return EXACT
        found, least = (np.take_along_axis(sums, i, axis=1) for i in (indices, expected))
        return CLOSE if np.allclose(found, least, rtol=1e-5) else WRONG

    return check


@pytest.mark.parametrize("count", [1, 16, 100])
@pytest.mark.parametrize("case", BOOKS)
def test_search(race, case, count):
    book = book_of(case)
    codes, queries = random_codes_of(book), random_floats(count, WIDTH)
    ours = our_own(lambda: qk.search(queries, codes, book, NEAREST)[1])
    others, check = [peers.faiss.search(queries, codes, book, NEAREST)], nearest_by(queries, codes, book)
    race(f"search {case}, {count} quer{'ies' if count > 1 else 'y'}", ours, others, check, count * codes.size, "Gadd/s")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1, 4, 16, 100])
@pytest.mark.parametrize("groups", [32, 96])
def test_search_16_levels(race, groups, count, packed):
    book = qk.Codebook(random_floats(groups, 16, 4, seed=2), vector=True)
    codes = np.random.default_rng(3).integers(0, 16, (1_000_000, groups), np.uint8)
    queries, stored = random_floats(count, 4 * groups), qk.pack_codes(codes) if packed else aligned(codes)
    few, found = nearest_by(queries[:2], codes, book), []

    def check(indices):
        if not found:  # ours is the first
            found.append(indices)
            return few(indices[:2])
        return f"{CLOSE}{np.mean([np.isin(one, best).mean() for one, best in zip(indices, found[0])]):.2f}"

    ours = our_own(lambda: qk.search(queries, stored, book, NEAREST)[1])
    others = [peers.faiss.fast_scan(queries, codes, book, NEAREST)]
    case = f"search 1e6 x {groups} x 4 bits, {'packed, ' if packed else ''}{count} quer{'ies' if count > 1 else 'y'}"
    race(case, ours, others, check, count * codes.size, "Gadd/s")


def near_codes(x, book):
    """Distances, not codes: two levels may be as near but for roundings."""
    parts = x.reshape(len(x), len(book.levels), -1)

    def loss(codes):
        return np.square(parts - book.levels[np.arange(len(book.levels)), codes]).sum(axis=-1)

    least = loss(qk.encode(x, book))
    return lambda codes: EXACT if np.allclose(loss(codes), least, rtol=1e-5) else WRONG


@pytest.mark.parametrize("case", BOOKS)
def test_encode_vectors(race, case):
    book, x = book_of(case), random_floats(5000, WIDTH)
    ours, others = our_own(lambda: qk.encode(x, book)), [peers.faiss.encode(x, book)]
    race(f"encode vectors {case}", ours, others, near_codes(x, book), len(x) * book.levels.size, "GMAC/s")


@pytest.mark.parametrize("case", BOOKS)
def test_decode_vectors(race, case):
    book, out = book_of(case), aligned_empty((COUNT, WIDTH), "float32")
    codes = random_codes_of(book)
    expected = book.levels[np.arange(len(book.levels)), codes].reshape(COUNT, WIDTH)
    ours, others = our_own(lambda: qk.decode(codes, book, out=out), out), [peers.faiss.decode(codes, book)]
    race(f"decode vectors {case}", ours, others, exactly(expected), codes.size + out.nbytes, "GB/s")
