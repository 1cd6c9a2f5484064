"""What is particular to 4-bit weights, numbers and codes of codebooks: docs/numerics.md, section 12."""

import ml_dtypes
import numpy as np
import pytest
from common import refuse, refused
from numpy.testing import assert_array_equal
from products import FOUR, LEVELS, long_blocks

import qkernels as qk


@pytest.mark.parametrize("dtype", FOUR.dtypes)
def test_long_blocks(dtype, isas):
    """65,536 rows are the most that AVX-512 sums two codes at once for."""
    for x, b, params, want in long_blocks(FOUR, dtype, (65536, 65537, 70000)):
        for isa in isas():
            assert_array_equal(qk.linear(x, qk.pack(b, params)), want, err_msg=isa, strict=True)


@pytest.mark.parametrize(
    ("half", "asymmetric", "most"), [(False, False, 0.63), (True, False, 0.57), (False, True, 0.66), (True, True, 0.6)]
)
def test_bytes(half, asymmetric, most):
    rng = np.random.default_rng(0)
    for k, n in [(384, 1536), (1536, 384), (1024, 1024)]:
        packed = FOUR.make(rng, k, n, "int4", 32, "own" if asymmetric else "none", half).pack()
        assert 0.5 * k * n <= packed.nbytes <= most * k * n


def test_narrow_range_is_kept():
    params = qk.QParams(0.1, dtype="int4", narrow_range=True)
    packed = qk.pack(np.ones((3, 4), ml_dtypes.int4), params)
    assert qk.PackedMatrix.from_arrays(packed.to_arrays()).params == params


def test_any_byte_of_a_4_bit_code_is_taken_by_its_low_half(isas):
    """ml_dtypes reads them so."""
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        for isa in isas():
            for b in (raw.view(dtype), raw.view(dtype).T):
                packed = qk.pack(b, qk.QParams(1, dtype=dtype))
                assert_array_equal(packed.unpack(), b.astype(np.int8).astype(dtype), err_msg=isa)


def test_refuses_blocks_whose_sums_could_overflow():
    """127 * 15 for each row: one more than fits."""
    k = (2**31 - 1) // (127 * 15)
    for rows, block_size in [(k, None), (k + 1, None), (k + 1, k)]:
        params = qk.QParams(1, 0, "uint4")
        if block_size:
            params = qk.QParams(np.ones((-(-rows // block_size), 1)), 0, "uint4", axis=0, block_size=block_size)
        packed = qk.pack(np.full((rows, 1), 15, ml_dtypes.uint4), params)
        x = np.full((1, rows), 127, np.float32)
        if block_size is None and rows > k:
            with pytest.raises(ValueError, match=f"shared by {rows} rows, at most {k} are possible"):
                qk.linear(x, packed)
        else:
            assert_array_equal(qk.linear(x, packed), FOUR.linear(x, np.full((rows, 1), 15, ml_dtypes.uint4), params))


# ---- codes of codebooks ----


@pytest.mark.parametrize("kind", ["all", "column", 32, 40, 1024])
def test_codebook_worst_cases(kind, isas):
    """Levels and codes of x at the ends of their range, where pairs of products are largest."""
    k, n = 1000, 40
    levels = np.float32([-1, 1, 126 / 127, -126 / 127])
    if kind == "column":
        codebook, scales = qk.Codebook(np.tile(levels, (n, 1)), axis=1), None
    elif kind == "all":
        codebook, scales = qk.Codebook(levels), None
    else:
        codebook, scales = qk.Codebook(levels, axis=0, block_size=kind), np.full((-(-k // kind), n), 0.7)
    for pair in (127, 127), (-127, -127), (127, -127):
        x = np.tile(np.float32(pair), (70, k // 2))
        for of_rows in (0, 0), (1, 1), (2, 2), (3, 3), (0, 1):
            codes = np.tile(np.uint8(of_rows)[:, None], (k // 2, n))
            want = LEVELS.linear(x, codes, codebook, scales)
            for isa in isas():
                packed = qk.pack(codes, codebook, scales=scales)
                for m in (5, 70):
                    assert_array_equal(qk.linear(x[:m], packed), want[:m], err_msg=isa, strict=True)


@pytest.mark.parametrize("kind", ["numbers", "levels"])
@pytest.mark.parametrize("shared", ["column", 32, 20, 300])
def test_a_row_has_the_same_bits_among_few_and_many(kind, shared, everywhere):
    """Of many rows panels become bytes, of which few rows would use too little; some rows leave float32 on the way."""
    rng = np.random.default_rng(0)
    for m, k, n in [(24, 37, 5), (25, 384, 70), (130, 1000, 33), (48, 21_800, 3)]:
        x = np.float32(rng.integers(-99, 100, (m, k)) * 2.0 ** rng.choice([-149, -100, 0, 100, 120], (m, 1)))
        if kind == "numbers":
            weights = FOUR.make(rng, k, n, rng.choice(FOUR.dtypes), shared, half=k == 384)
        else:
            weights = LEVELS.make(rng, k, n, 16, shared)
        few = np.concatenate([qk.linear(x[i : i + 7], weights.pack()) for i in range(0, m, 7)])
        assert_array_equal(everywhere(lambda: qk.linear(x, weights.pack())), few, strict=True)


@pytest.mark.parametrize("axis_of", [lambda w: w, lambda w: np.ascontiguousarray(w.T).T])
def test_weights_that_encode_gave(axis_of):
    """From floats to the product: the error is that of the codes, of int8 levels and of half a step of x."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), axis_of(rng.normal(0, 0.05, (384, 200)).astype(np.float32))
    quantiles = np.quantile(w, np.linspace(0.02, 0.98, 16), axis=0).T
    for codebook in (
        qk.Codebook(qk.NF4.levels, axis=0, block_size=64),
        qk.Codebook(qk.NF4.levels * np.abs(w).max()),
        qk.Codebook(quantiles, axis=1),
    ):
        result = qk.encode(w, codebook)
        codes, scales = result if codebook.block_size else (result, None)
        packed, real = qk.pack(codes, codebook, scales=scales), qk.decode(codes, codebook, scales).astype(np.float64)
        largest = np.abs(codebook.levels).max(-1) * (1 if scales is None else np.repeat(scales, 64, axis=0))
        of_levels = packed.level_error * (np.abs(x).astype(np.float64) @ np.broadcast_to(largest, w.shape))
        of_steps = np.abs(x).max(1, keepdims=True) / 254 * (np.abs(real).sum(0) * 1.01)
        y = qk.linear(x, packed)
        assert (np.abs(y - x.astype(np.float64) @ real) <= (of_levels + of_steps) * 1.001).all()
        assert np.corrcoef(y.ravel(), (x @ w).ravel())[0, 1] > 0.99


def test_axes_from_the_end_are_those_from_the_front():
    codes, scales = np.zeros((64, 3), np.uint8), np.ones((2, 3))
    blocks = qk.pack(codes, qk.Codebook([1, 2], axis=-2, block_size=32), scales=scales)
    assert blocks.params == qk.Codebook([1, 2], axis=0, block_size=32)
    assert qk.pack(codes, qk.Codebook(np.ones((3, 2)), axis=-1)).params.axis == 1


def test_codebook_bytes():
    rng = np.random.default_rng(0)
    for shared, most in [(None, 0.505), ("column", 0.583), (32, 0.63), (64, 0.57)]:
        _, codes, codebook, scales = LEVELS.make(rng, 1024, 1024, 16, shared)
        assert 0.5 * codes.size <= qk.pack(codes, codebook, scales=scales).nbytes <= most * codes.size
    assert qk.pack(codes, codebook, scales=np.float16(scales)).nbytes <= 0.54 * codes.size


def test_level_error():
    """The largest distance to the int8 multiple that stands for a level, in units of the largest level."""
    exactly = ([-127, 3, 50, 127], 0), ([0, 0], 0), ([-1], 0)
    for levels, want in *exactly, ([127, 0.5], 0.5 / 127), ([127, 10.25], 0.25 / 127):
        packed = qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook(levels))
        assert packed.level_error == pytest.approx(want, rel=1e-5, abs=1e-7)
    columns = qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook([[127, 10.25], [127, 1.125]], axis=1))
    assert columns.level_error == pytest.approx(0.25 / 127, rel=1e-5)
    assert qk.pack(np.zeros((3, 2), np.uint8), qk.Codebook(qk.NF4.levels)).level_error <= 0.5 / 127 + 1e-7
    assert qk.pack(np.zeros((3, 2), np.int8), qk.QParams(1)).level_error == 0


def test_levels_that_are_all_zero_or_tiny_give_zero():
    x = np.ones((2, 40), np.float32)
    for levels in ([0, 0], [1e-45, 0]):
        assert (qk.linear(x, qk.pack(np.zeros((40, 3), np.uint8), qk.Codebook(levels))) == 0).all()


def test_codebook_errors_name_what_was_wrong():
    _, codes, codebook, scales = LEVELS.make(np.random.default_rng(0), 64, 3, 16, 32)

    def book(k, **options):
        return qk.Codebook(np.arange(k), **options)

    sixteen = book(16)
    for refusal in refused(r"""
        qk.pack(codes.astype(np.int8), codebook, scales=scales)
            # TypeError: b must be uint8 codes for a Codebook, got int8
        qk.pack(codes[0], codebook, scales=scales)  # ValueError: b must have shape \(K, N\), got \(3,\)
        qk.pack(codes, codebook)  # ValueError: scales are needed for a codebook with block_size=32
        qk.pack(codes, codebook, scales=scales.astype(int))  # TypeError: scales must be floats.*int64
        qk.pack(codes, codebook, scales=scales[:1])
            # ValueError: scales must have shape \(2, 3\) for codes with shape \(64, 3\), got \(1, 3\)
        qk.pack(codes, codebook, scales=scales * np.inf)  # ValueError: scales must be finite in float32, got inf
        qk.pack(codes, sixteen, scales=scales)  # ValueError: scales must be None for a codebook without block_size
        qk.pack(codes, book(17))  # ValueError: at most 16 levels and no vectors, got .*17 levels
        qk.pack(codes, qk.Codebook(np.ones((16, 2)), vector=True))  # ValueError: no vectors
        qk.pack(codes, qk.Codebook(np.ones((64, 16)), axis=0))  # ValueError: got axis=0, block_size=None
        qk.pack(codes, book(16, block_size=32), scales=scales)  # ValueError: got axis=None, block_size=32
        qk.pack(codes, book(16, axis=1, block_size=32), scales=scales)  # ValueError: got axis=1, block_size=32
        qk.pack(codes, qk.Codebook(np.ones((4, 16)), axis=1))  # ValueError: levels for 3 columns, got 4
        qk.pack(np.full((4, 3), 16, np.uint8), sixteen)  # ValueError: b must hold codes below 16, got 16
        qk.pack(np.full((4, 3), 5, np.uint8), book(5))  # ValueError: b must hold codes below 5, got 5
        qk.pack(codes, 5)  # TypeError: params must be QParams or a Codebook, got int
        qk.pack(codes, qk.QParams(1, 0, "uint8"), scales=scales)
            # ValueError: scales must be None for weights without a Codebook, got ndarray
    """):
        refuse(refusal, globals() | locals())
    arrays = qk.pack(codes, codebook, scales=scales).to_arrays()
    del arrays["shape"]
    with pytest.raises(ValueError, match="arrays must hold codes, shape and levels, got no shape"):
        qk.PackedMatrix.from_arrays(arrays)


def test_refuses_levels_whose_sums_could_overflow(isas):
    """127 * 128 for each row: one more than fits."""
    k = (2**31 - 1) // (127 * 128)
    codebook, x = qk.Codebook([127, -127]), np.full((1, k + 1), 127, np.float32)
    for isa in isas():
        y = qk.linear(x[:, :k], qk.pack(np.zeros((k, 1), np.uint8), codebook))
        assert y == np.float32(127 * 127 * k), isa
        with pytest.raises(ValueError, match=f"shared by {k + 1} rows, at most {k} are possible"):
            qk.linear(x, qk.pack(np.zeros((k + 1, 1), np.uint8), codebook))
