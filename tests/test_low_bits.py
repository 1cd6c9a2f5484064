"""What is particular to weights of 2 and 3 bits: docs/numerics.md, section 12."""

import ml_dtypes
import numpy as np
import pytest
from common import refuse, refused
from numpy.testing import assert_array_equal
from products import LEVELS, TWO, long_blocks

import qkernels as qk


@pytest.mark.parametrize("dtype", TWO.dtypes)
def test_long_blocks(dtype, isas):
    """131,072 rows are the most that AVX-512 multiplies codes of in their places."""
    for x, b, params, want in long_blocks(TWO, dtype, (131_072, 131_073, 140_000)):
        for isa in isas():
            packed = qk.pack(b, params)
            for rows in x[:1], x:
                assert_array_equal(qk.linear(rows, packed), want[: len(rows)], err_msg=isa, strict=True)


def test_refuses_blocks_whose_sums_could_overflow():
    """127 * 12 for each row: one more than fits, as codes are multiplied where they lie in their bytes."""
    k = (2**31 - 1) // (127 * 12)
    b, x = np.full((k + 1, 1), 3, ml_dtypes.uint2), np.full((1, k + 1), 127, np.float32)
    params = qk.QParams(1, 0, "uint2")
    for m in 1, 2:
        rows = np.repeat(x, m, axis=0)
        assert_array_equal(qk.linear(rows[:, :k], qk.pack(b[:k], params)), np.full((m, 1), np.float32(127 * 3 * k)))
        with pytest.raises(ValueError, match=f"shared by {k + 1} rows, at most {k} are possible"):
            qk.linear(rows, qk.pack(b, params))


@pytest.mark.parametrize("levels", [4, 8])
@pytest.mark.parametrize("kind", ["all", "column", 32, 40, 1000])
def test_ends_of_the_range(kind, levels, isas):
    """All sums of products as large as they can be, in each of the places that a code has in a step."""
    k, n = 64, 40
    of = np.float32([-127, 127, 126, -126, 1, 0, -1, 64][:levels])
    books = {"all": qk.Codebook(of), "column": qk.Codebook(np.tile(of, (n, 1)), axis=1)}
    codebook = books.get(kind) or qk.Codebook(of, axis=0, block_size=kind)
    scales = None if kind in books else np.full((-(-k // kind), n), 0.75)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, levels, (k, n)).astype(np.uint8)
    x = np.float32(127 * np.vstack([np.eye(k), rng.choice([-1, 1], (5, k))]))
    want = LEVELS.linear(x, codes, codebook, scales)
    for isa in isas():
        packed = qk.pack(codes, codebook, scales=scales)
        for m in (1, 3, 4, len(x)):
            assert_array_equal(qk.linear(x[-m:], packed), want[-m:], err_msg=isa, strict=True)


@pytest.mark.parametrize("levels", [None, 4, 8])
@pytest.mark.parametrize("shared", ["column", 32, 20, 300])
def test_a_row_has_the_same_bits_among_few_and_many(levels, shared, everywhere):
    """Of many rows panels become bytes; some rows leave float32 on the way."""
    rng = np.random.default_rng(0)
    for m, k, n in [(24, 37, 5), (25, 384, 70), (130, 1000, 33), (48, 21_800, 3)]:
        x = np.float32(rng.integers(-99, 100, (m, k)) * 2.0 ** rng.choice([-149, -100, 0, 100, 120], (m, 1)))
        if levels:
            weights = LEVELS.make(rng, k, n, levels, shared)
        else:
            weights = TWO.make(rng, k, n, rng.choice(TWO.dtypes), shared, half=k == 384)
        few = np.concatenate([qk.linear(x[i : i + 7], weights.pack()) for i in range(0, m, 7)])
        assert_array_equal(everywhere(lambda: qk.linear(x, weights.pack())), few, strict=True)


def test_ternary_weights(everywhere):
    """As BitNet has them: -1, 0 and 1 times one scale."""
    rng = np.random.default_rng(0)
    w, x = rng.integers(-1, 2, (300, 70)).astype(ml_dtypes.int2), np.float32(rng.integers(-127, 128, (30, 300)))
    x[:, 0] = 127  # codes are x itself
    packed = qk.pack(w, qk.QParams(0.5, dtype="int2"))
    for m in 1, 30:
        want = (x[:m].astype(np.float64) @ w.astype(np.float64) * 0.5).astype(np.float32)
        assert_array_equal(everywhere(lambda: qk.linear(x[:m], packed)), want)


def test_bytes():
    """2 and 3 bits a code, beside float16 scales, and the levels of columns."""
    rng = np.random.default_rng(0)
    for k, n in [(384, 1536), (1536, 384), (1024, 1024)]:
        assert 2 * k * n <= 8 * TWO.make(rng, k, n, "int2", 32, "none", half=True).pack().nbytes <= 2.51 * k * n
        assert 2 * k * n <= 8 * TWO.make(rng, k, n, "int2", None, "none").pack().nbytes <= 2.1 * k * n
        for levels, bits in (4, 2), (3, 2), (8, 3), (5, 3), (9, 4):
            for shared, more in ("column", 2), (32, 1.01), (None, 0.1):
                _, codes, codebook, scales = LEVELS.make(rng, k, n, levels, shared)
                held = 8 * qk.pack(codes, codebook, scales=scales).nbytes / codes.size
                assert bits <= held <= bits + more, (levels, shared)


def test_three_bits_never_take_more_than_four():
    """Blocks are padded to 16 rows at 3 bits, to 4 rows at 4."""
    rng = np.random.default_rng(0)
    for k, block_size in [(3, 3), (100, 4), (100, 5), (120, 12), (120, 20), (5, 64), (90, 36)]:
        held = []
        for levels in 8, 9:
            _, codes, codebook, scales = LEVELS.make(rng, k, 40, levels, block_size)
            held.append(qk.pack(codes, codebook, scales=scales).nbytes - codebook.levels.nbytes)
        assert held[0] <= held[1], (k, block_size)


def test_any_byte_of_a_2_bit_code_is_taken_by_its_low_bits(isas):
    """ml_dtypes reads them so."""
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (ml_dtypes.int2, ml_dtypes.uint2):
        for isa in isas():
            for b in (raw.view(dtype), raw.view(dtype).T):
                packed = qk.pack(b, qk.QParams(1, dtype=dtype))
                assert_array_equal(packed.unpack(), b.astype(np.int8).astype(dtype), err_msg=isa)


def test_arrays_are_dense():
    rng = np.random.default_rng(0)
    for weights, bits in [
        (TWO.make(rng, 40, 7, "int2", 32), 2),
        (TWO.make(rng, 40, 7, "uint2", None), 2),
        (LEVELS.make(rng, 40, 7, 4, 32), 2),
        (LEVELS.make(rng, 40, 7, 8, "column"), 3),
        (LEVELS.make(rng, 40, 7, 5, None), 3),
    ]:
        packed = weights.pack()
        arrays = packed.to_arrays()
        assert arrays["codes"].nbytes == 40 * 7 * bits // 8
        assert arrays["bits"] == bits
        back = qk.PackedMatrix.from_arrays(arrays)
        assert_array_equal(back.unpack(), weights.b)
        assert (back.params, back.nbytes, back.dtype) == (packed.params, packed.nbytes, packed.dtype)


def test_arrays_that_are_not_as_they_were_made_are_refused():
    rng = np.random.default_rng(0)
    of_levels, of_numbers = (
        w.pack().to_arrays() for w in (LEVELS.make(rng, 8, 4, 8, 4), TWO.make(rng, 8, 4, "int2", 4))
    )
    for refusal in refused(r"""
        qk.PackedMatrix.from_arrays(of_levels | {"bits": np.array(5)})  # ValueError: bits must be 2, 3 or 4, got 5
        qk.PackedMatrix.from_arrays(of_numbers | {"bits": np.array(3)})  # ValueError: bits must be 2 or 4, got 3
        qk.PackedMatrix.from_arrays(of_levels | {"bits": np.array([3])})
            # ValueError: bits must have shape \(\), got \(1,\)
        qk.PackedMatrix.from_arrays(of_levels | {"bits": np.array(2)})
            # ValueError: codes must have shape \(8,\) to hold those of shape \(8, 4\), got \(12,\)
        qk.PackedMatrix.from_arrays(of_numbers | {"floats": np.array(True)})
            # ValueError: bits must be 4 for floats, got 2
        qk.PackedMatrix.from_arrays(of_levels | {"levels": np.arange(7)})  # TypeError: levels must be
        qk.PackedMatrix.from_arrays(of_levels | {"levels": np.arange(2.0)})  # ValueError: b must hold codes below 2
        qk.pack(np.full((4, 3), 8, np.uint8), qk.Codebook(np.arange(8)))  # ValueError: b must hold codes below 8, got 8
        qk.pack(np.zeros((4, 3), ml_dtypes.int2), qk.QParams(1, dtype="uint2"))
            # TypeError: b must have dtype uint2 \(as params\), got int2
    """):
        refuse(refusal, globals() | locals())
