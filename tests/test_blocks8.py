"""What is particular to 8-bit weights with a scale for each block of rows (docs/numerics.md, section 12); and GGUF's
blocks on their way into a product."""

import numpy as np
import pytest
from common import code_range
from numpy.testing import assert_array_equal
from products import BLOCKS8, random_x

import qkernels as qk

every_dtype = pytest.mark.parametrize("dtype", BLOCKS8.dtypes)


@pytest.mark.parametrize("zeros", ["none", "own"])
@pytest.mark.parametrize("rows", [*range(1, 14), 30, 31, 32, 33])
def test_every_height_of_a_tile(rows, zeros, isas):
    rng = np.random.default_rng(0)
    for k, n, block_size in [(96, 64, 32), (70, 33, 32), (600, 40, 300)]:
        x, weights = random_x(rng, rows, k), BLOCKS8.make(rng, k, n, "int8", block_size, zeros)
        want = weights.linear(x)
        for isa in isas():
            assert_array_equal(qk.linear(x, weights.pack()), want, err_msg=isa, strict=True)


@pytest.mark.parametrize("size", [60, 64, 65])
@pytest.mark.parametrize("block_size", [8, 12, 32])
def test_sums_at_the_ends_of_16_bits(size, block_size, isas):
    """Four codes of x of at most 64 times -128 fit 16 bits, of more they do not; of a row, or of one of its tile."""
    k, n = 4 * block_size, 40
    x = np.full((7, k), size, np.float32)
    x[:, -1] = 127  # so that codes are the values
    x[1], x[2, ::2], x[3, 1::4], x[4, : block_size // 2] = -x[1], -x[2, ::2], -x[3, 1::4], 1
    for low, high in [(-128, -128), (127, 127), (-128, 127)]:
        b = np.full((k, n), low, np.int8)
        b[1::2] = high
        params = qk.QParams(np.full((4, n), 0.5), axis=0, block_size=block_size)
        for rows in [x, x[4:5], x[[4, 4, 4, 0]], np.where(abs(x) == size, x + np.sign(x), x)]:
            want = BLOCKS8.linear(rows, b, params)
            for isa in isas():
                assert_array_equal(qk.linear(rows, qk.pack(b, params)), want, err_msg=isa, strict=True)


@every_dtype
def test_longest_blocks(dtype, isas):
    """65,536 rows share a scale at most: two int16 hold the sum of their codes of x."""
    (low, high), k = code_range(dtype), 65536
    for sign, zero_point in [(1, low), (-1, low), (1, high), (-1, high)]:
        x, b = np.full((2, k + 1), 127.0 * sign, np.float32), np.full((k + 1, 2), high + low - zero_point, dtype)
        params = qk.QParams([[0.1, 0.2]], [[zero_point, low]], dtype, axis=0, block_size=k + 1)
        want = BLOCKS8.linear(x[:, :k], b[:k], params)
        for isa in isas():
            assert_array_equal(qk.linear(x[:, :k], qk.pack(b[:k], params)), want, err_msg=isa, strict=True)
            with pytest.raises(ValueError, match="shared by 65537 rows, at most 65536 are possible"):
                qk.linear(x, qk.pack(b, params))


def test_scales_far_from_one_give_the_exact_product(everywhere):
    """Where float32 would overflow or vanish on the way (numerics 21)."""
    rng = np.random.default_rng(0)
    for zeros in ("none", "own"):
        _, b, params, _ = BLOCKS8.make(rng, 70, 40, "int8", 32, zeros)
        for of_x, of_w in [(1e-30, 1e37), (1e30, 1e-35), (1e-20, 1e22), (3e37, 1e-35)]:
            x = random_x(rng, 14, 70) * np.float32(of_x)
            far = qk.QParams(params.scale * np.float32(of_w), params.zero_point, axis=0, block_size=32)
            q, of_rows = qk.dynamic_quantize(x, "int8", axis=0)
            want = qk.dequantize(q, of_rows, dtype=np.float64) @ qk.dequantize(b, far, dtype=np.float64)
            y = everywhere(lambda: qk.linear(x, qk.pack(b, far)))
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_rows_of_zeros_give_the_bias_itself(isas):
    rng = np.random.default_rng(0)
    bias = random_x(rng, 40)
    for isa in isas():
        for zeros in ("middle", "own"):
            packed = BLOCKS8.make(rng, 100, 40, "uint8", 32, zeros).pack()
            assert_array_equal(
                qk.linear(np.zeros((13, 100), np.float32), packed, bias), np.tile(bias, (13, 1)), err_msg=isa
            )


def test_axes_from_the_end_and_narrow_ranges_are_kept():
    params = qk.QParams(np.ones((2, 3)), axis=-2, block_size=32, narrow_range=True)
    packed = qk.pack(np.ones((64, 3), np.int8), params)
    assert packed.params == qk.QParams(np.ones((2, 3)), axis=0, block_size=32, narrow_range=True)
    assert qk.PackedMatrix.from_arrays(packed.to_arrays()).params == packed.params
    assert repr(packed) == f"PackedMatrix(shape=(64, 3), params={packed.params})" and "block_size=32" in repr(packed)


@pytest.mark.parametrize(
    ("block_size", "half", "zeros", "most"),
    [
        (32, False, "none", 9.5),
        (32, True, "none", 9),
        (32, True, "own", 9.25),
        (128, False, "none", 8.4),
        (1024, False, "none", 8.07),
    ],
)
def test_bytes(block_size, half, zeros, most):
    """Bits of a weight: 8, a scale, a sum of the column, of more than 255 rows in 4 bytes, and a zero point."""
    rng = np.random.default_rng(0)
    for k, n in [(1024, 1536), (1024, 1024)]:
        packed = BLOCKS8.make(rng, k, n, "int8", block_size, zeros, half).pack()
        assert 8 * k * n < 8 * packed.nbytes <= most * k * n


# ---- GGUF's blocks ----


BYTES = {"Q8_0": 34, "Q4_0": 18}
every_kind = pytest.mark.parametrize("kind", list(BYTES))


def hostile_blocks(kind, *shape):
    """Blocks of any bytes, also with scales that are 0, subnormal in float16, and negative."""
    data = np.random.default_rng(1).integers(0, 256, (*shape[:-1], shape[-1] * BYTES[kind]), np.uint8)
    blocks = data.reshape(-1, BYTES[kind])
    blocks[:, 1] &= 0xBF  # no infinite or NaN scales
    for i, d in enumerate((0x0000, 0x8000, 0x0001, 0x8001, 0x83FF)):
        blocks[i::11, :2] = d & 255, d >> 8
    blocks[::3, 2:4] = 0x80  # the lowest code of Q8_0, whose negative int8 does not have
    return data


@every_kind
def test_gguf_codes_are_its_values(kind):
    for shape in [(7, 5), (24, 11), (5,), (2, 3, 4), (1, 1), (0, 2), (3, 0)]:
        data = hostile_blocks(kind, *shape)
        values = qk.from_gguf(data, kind)
        codes, params = qk.from_gguf(data, kind, codes=True)
        turned = values.swapaxes(-1, -2) if values.ndim > 1 else values
        assert codes.shape == turned.shape and codes.dtype == params.dtype == ("int8" if kind == "Q8_0" else "uint4")
        got = qk.dequantize(codes, params)
        assert_array_equal(got.view(np.int32), (turned + np.float32(0)).view(np.int32))  # -0.0 + 0 is 0
        assert (params.scale == np.float16(params.scale)).all()


@every_kind
def test_gguf_goes_straight_into_a_product(kind, isas):
    data = hostile_blocks(kind, 70, 6)
    values = qk.from_gguf(data, kind).T
    x = random_x(np.random.default_rng(2), 13, 192)
    q, of_rows = qk.dynamic_quantize(x, "int8", axis=0)
    want = qk.dequantize(q, of_rows).astype(np.float64) @ values.astype(np.float64)
    for isa in isas():
        codes, params = qk.from_gguf(data, kind, codes=True)
        packed = qk.pack(codes, params)
        assert packed.params == params
        assert_array_equal(qk.dequantize(packed.unpack(), packed.params), values, err_msg=isa)
        y = qk.linear(x, packed)
        assert_array_equal(y, BLOCKS8.linear(x, codes, params), err_msg=isa, strict=True)
        size = np.abs(x).max(1, keepdims=True) * np.abs(values.astype(np.float64)).sum(0)
        assert (np.abs(y - want) <= 1e-6 * size).all(), isa


@every_kind
def test_gguf_codes_of_real_weights(kind):
    """Written by to_gguf; Q8_0 then has no zero points, and the float16 scales are kept as they are."""
    w = random_x(np.random.default_rng(0), 96, 256)
    w[3] = 0
    data = qk.to_gguf(w, kind)
    codes, params = qk.from_gguf(data, kind, codes=True)
    assert_array_equal(qk.dequantize(codes, params), qk.from_gguf(data, kind).T)
    if kind == "Q8_0":
        assert not params.zero_point.any() and qk.pack(codes, params).nbytes == 9 * w.size // 8
    else:
        assert set(params.zero_point.ravel()) == {7, 8} and qk.pack(codes, params).nbytes == 4.75 * w.size // 8


@every_kind
def test_gguf_codes_refuse_scales_that_no_params_have(kind):
    data = hostile_blocks(kind, 4, 3)
    for high in (0x7C, 0xFC, 0x7E):
        data.reshape(4, 3, -1)[2, 1, :2] = 0, high
        with pytest.raises(
            ValueError, match=r"data has 1 blocks whose scale is NaN or infinite, the first at \(2, 1\)"
        ):
            qk.from_gguf(data, kind, codes=True)
    with pytest.raises(ValueError, match="out must be None with codes, got ndarray"):
        qk.from_gguf(data, kind, codes=True, out=np.empty((4, 96), np.float32))
    with pytest.raises(TypeError, match="codes must be True or False, got 1"):
        qk.from_gguf(data, kind, codes=1)
