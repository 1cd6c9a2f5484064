"""GGUF's blocks as gguf-py writes and reads them, bit for bit."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import qkernels as qk

gguf = pytest.importorskip("gguf")


def cases():
    rng = np.random.default_rng(0)
    for scale in 1, 1e-3, 1e-7, 1e-30, 1e4:
        yield (rng.standard_normal((5, 320)) * scale).astype(np.float32)
    yield np.zeros((1, 32), np.float32)
    both = rng.standard_normal((64, 32)).astype(np.float32)  # the largest magnitude with both signs, in either order
    both[np.arange(64), rng.integers(0, 16, 64)] = np.where(np.arange(64) % 2, 9, -9)
    both[np.arange(64), rng.integers(16, 32, 64)] = np.where(np.arange(64) % 2, -9, 9)
    yield both
    ties = (rng.integers(-254, 255, (64, 64)) / 2).astype(np.float32)  # halves of the scale 1
    ties[:, ::32] = 127
    yield ties
    ties = (rng.integers(-15, 16, (64, 64)) / 2).astype(np.float32)
    ties[:, ::32] = -8
    yield ties


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_bytes(kind, variants):
    type_of = gguf.GGMLQuantizationType[kind]
    with np.errstate(under="ignore"):
        written = [(x, gguf.quants.quantize(x, type_of)) for x in cases()]
        expected = [(x, data, gguf.quants.dequantize(data, type_of)) for x, data in written]
    for variant in variants():
        for x, data, values in expected:
            got = qk.to_gguf(x, kind)
            assert_array_equal(got, data, err_msg=variant, strict=True)
            assert_array_equal(qk.from_gguf(got, kind).view(np.int32), values.view(np.int32), err_msg=variant)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_any_bytes_are_read(kind, isas):
    """Other writers use other scales and codes."""
    size, type_of = {"Q8_0": 34, "Q4_0": 18}[kind], gguf.GGMLQuantizationType[kind]
    data = np.random.default_rng(1).integers(0, 256, (7, 5 * size), np.uint8)
    data.reshape(-1, size)[:, 1] &= 0xBF  # no infinite or NaN scales
    for isa in isas():
        got, want = qk.from_gguf(data, kind), gguf.quants.dequantize(data, type_of)
        assert_array_equal(got.view(np.int32), want.view(np.int32), err_msg=isa)
        codes, params = qk.from_gguf(data, kind, codes=True)
        packed = qk.pack(codes, params)
        for turned in qk.dequantize(codes, params), qk.dequantize(packed.unpack(), packed.params):
            assert_array_equal(turned, want.T, err_msg=isa, strict=True)
