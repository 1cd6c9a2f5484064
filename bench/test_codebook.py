"""Codebooks on 4 Mi floats (16 MB): 16 levels in blocks of 64 (NF4), 256 in blocks of 256 (bitsandbytes' dynamic map), levels without
blocks, and GGUF's blocks. The limit is a copy of the floats by NumPy, which moves more bytes than encoding does."""

import numpy as np
import peers
import pytest
from arrays import aligned_empty, random_floats
from race import Contender, exactly, within

import qkernels as qk

COUNT = 1 << 22
FLOAT = 4


def copy(x):
    out = aligned_empty(x.shape, "float32")
    return Contender("copy", lambda: np.copyto(out, x))


def midpoints(levels):
    return (levels[1:].astype(np.float64) + levels[:-1]) / 2


def exact_codes(values, levels):
    return np.searchsorted(midpoints(levels), values).astype(np.uint8)


# The book, and what may differ: bitsandbytes' 4-bit codes at ties alone, its 8-bit search finds a neighbour now and then.
CASES = {
    "16 levels, block 64": (lambda: qk.NF4, {"step": 1, "most": 1e-6}),
    "256 levels, block 256": (lambda: qk.Codebook(peers.dynamic_map(), block_size=256), {"step": 3, "most": 1e-2}),
}


@pytest.mark.parametrize("case", CASES)
def test_encode_blocks(race, case):
    book, allowed = CASES[case][0](), CASES[case][1]
    x = random_floats(COUNT)
    largest = np.abs(x).reshape(-1, book.block_size).max(axis=1)
    expected = exact_codes((x.reshape(len(largest), -1) * (1 / largest)[:, None]).reshape(-1), book.levels)
    race(
        f"encode {case}", work=COUNT * (FLOAT + 1), unit="GB/s",
        ours=Contender("qkernels", lambda: qk.encode(x, book), lambda: qk.encode(x, book)[0]),
        peers=[peers.bitsandbytes_encode(x, book)], check=within(expected, **allowed), limits=[copy(x)],
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_decode_blocks(race, case):
    book = CASES[case][0]()
    x, out = random_floats(COUNT), aligned_empty((COUNT,), "float32")
    codes, scales = qk.encode(x, book)
    expected = (book.levels[codes].reshape(len(scales), -1) * scales[:, None]).reshape(-1)
    race(
        f"decode {case}", work=COUNT * (FLOAT + 1), unit="GB/s",
        ours=Contender("qkernels", lambda: qk.decode(codes, book, scales, out=out), lambda: out),
        peers=[peers.bitsandbytes_decode(codes, scales, book)], check=exactly(expected), limits=[copy(x)],
    )  # fmt: skip


@pytest.mark.parametrize("k", [16, 256])
def test_encode_levels(race, k):
    x, levels = random_floats(COUNT), np.sort(random_floats(k, seed=5))
    book, bounds = qk.Codebook(levels), midpoints(levels).astype(np.float32)
    race(
        f"encode {k} levels", work=COUNT * (FLOAT + 1), unit="GB/s",
        ours=Contender("qkernels", lambda: qk.encode(x, book), lambda: qk.encode(x, book)),
        peers=[peers.contender("searchsorted", lambda: np.searchsorted(bounds, x), lambda: np.searchsorted(bounds, x))],
        check=within(exact_codes(x, levels), step=1, most=1e-4), limits=[copy(x)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_to_gguf(race, kind):
    x = random_floats(COUNT)
    peer = peers.gguf_write(x, kind)
    expected = peer.read()
    race(
        f"to_gguf {kind}", work=x.nbytes + expected.nbytes, unit="GB/s",
        ours=Contender("qkernels", lambda: qk.to_gguf(x, kind), lambda: qk.to_gguf(x, kind)),
        peers=[peer], check=exactly(expected), limits=[copy(x)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_from_gguf(race, kind):
    x, out = random_floats(COUNT), aligned_empty((COUNT,), "float32")
    data = qk.to_gguf(x, kind)
    peer = peers.gguf_read(data, kind)
    race(
        f"from_gguf {kind}", work=x.nbytes + data.nbytes, unit="GB/s",
        ours=Contender("qkernels", lambda: qk.from_gguf(data, kind, out=out), lambda: out),
        peers=[peer], check=exactly(peer.read()), limits=[copy(x)],
    )  # fmt: skip
