"""What is particular to weights of 16 bits: float16 and bfloat16 in `linear` (docs/numerics.md, section 16), and int16
(section 17)."""

import ml_dtypes
import numpy as np
import pytest
from common import refuse, refused
from numpy.testing import assert_array_equal
from products import HALVES, every_finite

import qkernels as qk

every_half = pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)


@every_half
def test_each_finite_weight(dtype, isas):
    """All 65,536 bit patterns but NaN and infinity, subnormal numbers and zeros of both signs included, are widened
    exactly."""
    values = every_finite(dtype)
    for shape in [(1, -1), (8, -1)]:  # in rows of a panel and in all places of it
        w = values.reshape(shape)
        for rows in (1, 2, 13):
            x = np.zeros((rows, len(w)), np.float32)
            for k in range(len(w)):
                x[:, :], x[:, k] = 0, 1
                for isa in isas():
                    y = qk.linear(x, qk.pack(w, None))
                    assert_array_equal(y, np.broadcast_to(w[k].astype(np.float32), y.shape), err_msg=isa, strict=True)


@every_half
def test_near_the_exact_product(dtype):
    """Within the bound of numerics 16. x of another type is used as float32."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), HALVES.make(rng, 384, 200, str(dtype)).b
    packed, real = qk.pack(w, None), w.astype(np.float64)
    bound = 384 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(real)) * 1.001
    assert (np.abs(qk.linear(x, packed) - x.astype(np.float64) @ real) <= bound).all()
    for other in (np.float64, np.float16, ml_dtypes.bfloat16):
        assert_array_equal(
            qk.linear(x.astype(other), packed), qk.linear(x.astype(other).astype(np.float32), packed), strict=True
        )


def test_sums_beyond_float32_are_infinite(isas):
    """As in float32 arithmetic; nothing is refused."""
    packed = qk.pack(np.full((2, 33), 2.0**127, ml_dtypes.bfloat16), None)
    for isa in isas():
        y = qk.linear(np.float32([[2, 0], [1, -1], [1, 1], [-2, 0]]), packed)
        assert_array_equal(
            y, np.repeat(np.float32([[np.inf], [0], [np.inf], [-np.inf]]), 33, 1), err_msg=isa, strict=True
        )


@every_half
def test_bytes(dtype):
    for k, n in [(384, 1536), (1536, 384), (7, 32)]:
        assert qk.pack(np.zeros((k, n), dtype), None).nbytes == 2 * k * n
    packed = qk.pack(np.zeros((1024, 1024), np.int16), qk.QParams(1, dtype="int16"))
    assert 2 * 1024 * 1024 <= packed.nbytes <= 2.02 * 1024 * 1024


@every_half
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_weights_that_are_not_finite(dtype, bad, isas):
    for k, n in [(1, 1), (70, 40), (33, 64)]:
        for place in [(0, 0), (k - 1, n - 1), (k // 2, n // 2)]:
            w = np.ones((k, n), dtype)
            w[place] = bad
            for b in (w, np.asfortranarray(w)):
                for _ in isas():
                    with pytest.raises(
                        ValueError, match=rf"b has 1 NaN or infinite values, the first at \({place[0]}, {place[1]}\)"
                    ):
                        qk.pack(b, None)


def test_errors_name_what_was_wrong():
    w = np.ones((4, 3), np.float16)
    for refusal in refused(r"""
        qk.pack(w, qk.QParams(1))  # TypeError: params must be None for weights of float16, got QParams
        qk.pack(w.astype(ml_dtypes.bfloat16), qk.QParams(1))
            # TypeError: params must be None for weights of bfloat16, got QParams
        qk.pack(w.astype(np.float32), None)
            # TypeError: b must be float16 or bfloat16 where params is None, got float32
        qk.pack(w.astype(np.int8), None)  # TypeError: b must be float16 or bfloat16 where params is None, got int8
        qk.pack(w[0], None)  # ValueError: b must have shape \(K, N\), got \(3,\)
        qk.pack(w[None], None)  # ValueError: b must have shape \(K, N\), got \(1, 4, 3\)
        qk.PackedMatrix.from_arrays({"weights": w.astype(np.float32)})
            # TypeError: weights must be float16 or uint16, got float32
    """):
        refuse(refusal, globals() | locals())


def test_linear_of_int16_is_nearer_to_the_float_product_than_of_8_bits():
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 1, (50, 384)).astype(np.float32), rng.normal(0, 0.05, (384, 200)).astype(np.float32)
    error = {}
    for dtype in ("int8", "int16"):
        params = qk.choose_qparams(w, dtype, axis=1)
        y = qk.linear(x, qk.pack(qk.quantize(w, params), params), activation="gelu")
        plain = qk.linear(x, qk.pack(qk.quantize(w, params), params))
        error[dtype] = np.abs(plain - x.astype(np.float64) @ w).max()
        assert np.abs(y - np.where(plain > 5, plain, y)).max() == 0  # gelu(x) = x there
    assert error["int16"] < error["int8"] / 100
