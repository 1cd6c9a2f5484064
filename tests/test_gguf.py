"""What to_gguf searches for. (Bytes: conformance/test_gguf.py; codes in products: test_blocks8.py.)"""

import numpy as np
import pytest
from common import refusals, refuse
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels.gguf import KINDS

# Relative rms of what ggml 0.13.1 writes by ggml_quantize_chunk (the library is in the wheel of pywhispercpp 1.5.1) of
# each of the `weights`, and the weighted one when it knows the importance.
GGML = {
    "Q4_K": (0.07133, 0.06205, 0.08648, 0.07552, 0.0694, 0.05878),
    "Q5_K": (0.03591, 0.03175, 0.04377, 0.03887, 0.03511, 0.0303),
    "Q6_K": (0.01767, 0.01537, 0.02304, 0.02049, 0.01748, 0.0151),
    "IQ4_NL": (0.07599, 0.06741, 0.09323, 0.08313, 0.07449, 0.0662),
    "MXFP4": (0.11514, 0.11452, 0.13058, 0.12969, 0.11432, 0.11533),
    "NVFP4": (0.09539, 0.0952, 0.09099, 0.0905, 0.09451, 0.09695),
}
every_kind = pytest.mark.parametrize("kind", GGML)


def weights():
    """Normal ones, ones with heavy tails, and rows that differ in scale and are not about 0."""
    for make in (
        lambda rng: rng.standard_normal((32, 1024), np.float32),
        lambda rng: rng.standard_t(4, (32, 1024)).astype(np.float32),
        lambda rng: (rng.standard_normal((32, 1024)) * np.exp(rng.standard_normal((32, 1))) + 0.5).astype(np.float32),
    ):
        yield make(np.random.default_rng(0))


def error(x, kind, w=1, **options):
    y = qk.from_gguf(qk.to_gguf(x, kind, **options), kind)
    return np.sqrt((w * (y - x) ** 2).sum() / (w * x**2).sum())


@every_kind
def test_the_error_is_no_larger_than_that_of_ggml(kind):
    importance = np.random.default_rng(1).random(1024, np.float32) ** 4 + np.float32(1e-3)
    for x, (plain, weighted) in zip(weights(), np.reshape(GGML[kind], (3, 2))):
        assert error(x, kind) < plain
        ours = error(x, kind, importance, importance=importance)
        assert ours < weighted and ours < error(x, kind, importance)


@every_kind
def test_importance_counts_within_a_block(kind):
    """Not its scale; and values that do not count do not matter."""
    rng, (_, values, *_) = np.random.default_rng(2), KINDS[kind]
    x, w = rng.standard_normal((3, 2 * values), np.float32), rng.random((3, 2 * values))
    data = qk.to_gguf(x, kind, importance=w)
    assert_array_equal(qk.to_gguf(x, kind, importance=np.repeat([1e-30, 4, 1e30], 2 * values).reshape(3, -1) * w), data)
    assert_array_equal(qk.to_gguf(x, kind, importance=7), qk.to_gguf(x, kind))
    some = (np.arange(2 * values) % 4 == 0).astype(np.float32)
    assert error(x, kind, some, importance=some) < (1 if kind == "MXFP4" else 0.9) * error(x, kind, some)
    assert np.isfinite(qk.from_gguf(qk.to_gguf(x, kind, importance=np.zeros_like(x)), kind)).all()


@every_kind
def test_blocks_at_the_ends_of_what_there_is(kind):
    """Zeros, one value, equal values, very small and large ones; and any layout of x."""
    _, values, size, _ = KINDS[kind]
    x = np.zeros((9, values), np.float32)
    x[1, 5], x[2], x[3], x[4] = -3, 0.5, -0.5, np.float32(1e-30)
    x[5], x[6] = np.linspace(0, 1, values), np.linspace(-1, 0, values)
    x[7], x[8] = 2000 * np.cos(np.arange(values)), -np.float32(1e-41)
    y = qk.from_gguf(qk.to_gguf(x, kind), kind)
    most = {"Q4_K": 0.075, "Q5_K": 0.036, "Q6_K": 0.02, "IQ4_NL": 0.1, "MXFP4": 0.25, "NVFP4": 0.17}[kind]
    assert (np.abs(y - x) <= most * np.abs(x).max(axis=1, keepdims=True).astype(float) + 2.0**-15).all()
    assert not y[0].any()
    data = qk.to_gguf(x, kind)
    for same in np.asfortranarray(x), x.astype(np.float64), x.astype(">f4"), np.repeat(x, 2, axis=0)[::2]:
        assert_array_equal(qk.to_gguf(same, kind), data)
    assert_array_equal(qk.to_gguf(x.reshape(3, 3, values), kind).reshape(9, size), data)
    assert qk.to_gguf(x[:, :0], kind).shape == (9, 0) and qk.to_gguf(x[:0], kind).shape == (0, size)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
@pytest.mark.parametrize("exponent", [-10, -13, -15, -17])
def test_small_weights_are_not_lost(kind, exponent):
    """Scales become subnormal float16, whose next smaller one holds much less, and that of the least is 0."""
    x = next(weights()) * np.float32(2.0**exponent)
    assert error(x, kind) < {"Q4_K": 0.2, "Q5_K": 0.2, "Q6_K": 0.05, "IQ4_NL": 0.1}[kind]


@every_kind
def test_bits_depend_on_nothing_else(kind, isas):
    """Neither on the instruction set nor on other blocks."""
    x = np.random.default_rng(3).standard_normal((40, 1024), np.float32)
    data = qk.to_gguf(x, kind)
    assert_array_equal(qk.to_gguf(x[7], kind), data[7])
    for isa in isas():
        assert_array_equal(qk.to_gguf(x[:2], kind), data[:2], err_msg=isa)


X = np.ones((2, 256), np.float32)


@refusals(r"""
qk.to_gguf(X * np.float32(1e9), "Q4_K")  # ValueError: ^x reaches 1000000000.0 in magnitude, beyond 2.09715e
qk.to_gguf(-X * 3000, "NVFP4")  # ValueError: ^x reaches 3000.0 in magnitude, beyond 2688, which NVFP4 surely holds
qk.to_gguf(X[:, :32], "NVFP4")  # ValueError: ^the last axis of x must be a multiple of 64, got shape \(2, 32\)
qk.to_gguf(X * np.float32(np.inf), "Q6_K")  # ValueError: ^x has 512
qk.to_gguf(X, "Q4_0", importance=X)  # ValueError: ^importance must be None for Q4_0, got
qk.to_gguf(X, "Q4_K", importance=-X)  # ValueError: ^importance must not be negative, got -1.0 at \(0, 0\)
qk.to_gguf(X, "Q4_K", importance=X[:, :3])  # ValueError: ^importance must broadcast to the shape of x
qk.to_gguf(X, "Q4_K", importance=X * np.float32(np.nan))  # ValueError: ^importance has 512
qk.to_gguf(X, "Q3_K")  # ValueError: ^kind must be one of 'Q8_0', 'Q4_0', 'Q4_K'
qk.from_gguf(np.zeros(144, np.uint8), "Q4_K", codes=True)  # ValueError: ^kind must be one without least values
qk.from_gguf(np.full(17, 1, np.uint8), "MXFP4", codes=True)  # ValueError: ^data has blocks whose scale is below 2
""")
def test_what_is_refused(refusal):
    refuse(refusal, {"qk": qk, "np": np, "X": X})
