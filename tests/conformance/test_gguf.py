"""GGUF's blocks as gguf-py writes and reads them, bit for bit."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels.gguf import CODES, KINDS

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


def any_blocks(kind, rows, count):
    """Bytes that nobody has written: other writers use other scales and codes. Infinite and NaN scales are left out."""
    _, values, size, _ = KINDS[kind]
    data = np.random.default_rng(1).integers(0, 256, (rows, count * size), np.uint8)
    blocks = data.reshape(-1, size)
    for at in HALVES.get(kind, (0,)):
        blocks[:, at + 1] &= 0xBF
    return data, values


# Where the float16 of a block are, if not only at its begin.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2)}
HALVES |= {"Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (), "NVFP4": ()}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind):
    assert KINDS[kind][1:3] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_read(kind, variants):
    """Bit for bit; 1,400 blocks and a few."""
    data, values = any_blocks(kind, 7, 200)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert want.shape == (7, 200 * values)
    for variant in variants():
        assert_array_equal(qk.from_gguf(data, kind).view(np.int32), want.view(np.int32), err_msg=variant)


@pytest.mark.parametrize("kind", CODES)
def test_codes_of_any_bytes_go_straight_into_a_product(kind, isas):
    """Whose values are exactly those of the blocks."""
    data, _ = any_blocks(kind, 7, 3)
    if kind == "MXFP4":
        data.reshape(-1, 17)[:, 0] = data.reshape(-1, 17)[:, 0] % 100 + 60
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).T + np.float32(0)  # -0.0 + 0 is 0
    for isa in isas():
        codes, params = qk.from_gguf(data, kind, codes=True)
        packed = qk.pack(codes, params)
        for turned in qk.dequantize(codes, params), qk.dequantize(packed.unpack(), packed.params):
            assert_array_equal(turned.view(np.int32), want.view(np.int32), err_msg=isa, strict=True)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "NVFP4"])
def test_what_is_written_is_read(kind):
    """By gguf-py; and codes of MXFP4 are no worse than its own, block by block."""
    x = np.random.default_rng(2).standard_normal((8, 512)).astype(np.float32)
    data = qk.to_gguf(x, kind)
    read = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert_array_equal(qk.from_gguf(data, kind), read)
    if kind == "MXFP4":
        theirs = gguf.quants.dequantize(gguf.quants.quantize(x, MXFP4), MXFP4)
        ours, theirs = (((y - x) ** 2).reshape(-1, 32).sum(axis=1) for y in (read, theirs))
        assert (ours <= theirs).all() and ours.sum() < 0.97 * theirs.sum()


MXFP4 = gguf.GGMLQuantizationType.MXFP4
