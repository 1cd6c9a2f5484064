"""Codebooks on 4 Mi floats (16 MB): 16 levels in blocks of 64 (NF4), 256 in blocks of 256 (bitsandbytes' dynamic map),
levels without blocks, and GGUF's blocks. The limit is a copy of the floats by NumPy, which moves more bytes than
encoding does."""

import numpy as np
import peers
import pytest
from arrays import aligned_empty, random_floats
from race import EXACT, WRONG, Contender, exactly, our_own, within

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


def dynamic_map():
    """Return the 256 levels of bitsandbytes: seven powers of ten, the finer divided the larger."""
    parts = [10.0 ** (i - 6) * midpoints(np.linspace(0.1, 1, 2**i + 1)) for i in range(7)]
    return np.sort(np.concatenate([[0, 1], *parts, *(-part for part in parts)])).astype(np.float32)


# The book, and what may differ: bitsandbytes' 4-bit codes at ties alone; its 8-bit search finds some neighbours.
CASES = {
    "16 levels, block 64": (qk.NF4, {"step": 1, "most": 1e-6}),
    "256 levels, block 256": (qk.Codebook(dynamic_map(), block_size=256), {"step": 3, "most": 1e-2}),
}


@pytest.mark.parametrize("case", CASES)
def test_encode_blocks(race, case):
    (book, allowed), x = CASES[case], random_floats(COUNT)
    largest = np.abs(x).reshape(-1, book.block_size).max(axis=1)
    expected = exact_codes((x.reshape(len(largest), -1) * (1 / largest)[:, None]).reshape(-1), book.levels)
    ours, others = our_own(lambda: qk.encode(x, book)[0]), [peers.bitsandbytes.encode(x, book)]
    race(f"encode {case}", ours, others, within(expected, **allowed), COUNT * (FLOAT + 1), "GB/s", [copy(x)])


@pytest.mark.parametrize("case", CASES)
def test_decode_blocks(race, case):
    book, x, out = CASES[case][0], random_floats(COUNT), aligned_empty((COUNT,), "float32")
    codes, scales = qk.encode(x, book)
    expected = (book.levels[codes].reshape(len(scales), -1) * scales[:, None]).reshape(-1)
    ours = our_own(lambda: qk.decode(codes, book, scales, out=out), out)
    others = [peers.bitsandbytes.decode(codes, scales, book)]
    race(f"decode {case}", ours, others, exactly(expected), COUNT * (FLOAT + 1), "GB/s", [copy(x)])


BOOKS = {
    "16 levels, block 64": qk.NF4,
    "16 levels": qk.Codebook(np.linspace(-2, 2, 16) ** 3),
    "256 levels": qk.Codebook(np.linspace(-2, 2, 256) ** 3),
}


@pytest.mark.parametrize("case", BOOKS)
def test_encode_stochastic(race, case):
    """No peer does: against the nearest levels."""
    book, x = BOOKS[case], random_floats(COUNT // 16)

    def codes(**options):
        found = qk.encode(x, book, **options)
        return found if book.block_size is None else found[0]

    check = within(codes(), step=1, most=1)
    ours = our_own(lambda: codes(rounding="stochastic", seed=1), check=check)
    others = [peers.contender("nearest", codes, codes)]
    race(f"encode, stochastic, {case}", ours, others, check, x.size * (FLOAT + 1), "GB/s", [])


@pytest.mark.parametrize("k", [16, 256])
def test_encode_levels(race, k):
    x, levels = random_floats(COUNT), np.sort(random_floats(k, seed=5))
    book, bounds = qk.Codebook(levels), midpoints(levels).astype(np.float32)
    ours, others = our_own(lambda: qk.encode(x, book)), [peers.blas.searchsorted(bounds, x)]
    check = within(exact_codes(x, levels), step=1, most=1e-4)
    race(f"encode {k} levels", ours, others, check, COUNT * (FLOAT + 1), "GB/s", [copy(x)])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_to_gguf(race, kind):
    x, quants = random_floats(COUNT), pytest.importorskip("gguf.quants")
    expected = quants.quantize(x, quants.GGMLQuantizationType[kind])
    ours, others = our_own(lambda: qk.to_gguf(x, kind)), [peers.gguf.write(x, kind)]
    race(f"to_gguf {kind}", ours, others, exactly(expected), x.nbytes + expected.nbytes, "GB/s", [copy(x)])


GGUF = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
GGUF += ["IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"]


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_to_gguf_by_a_search(race, kind):
    """No peer: gguf-py has no K kinds to write, and ggml no function for Python."""
    x = random_floats(COUNT)
    most = {"Q4_K": 0.0713, "Q5_K": 0.0359, "Q6_K": 0.0177}[kind]  # relative rms of ggml's own

    def check(data):
        return EXACT if np.linalg.norm(qk.from_gguf(data, kind) - x) <= most * np.linalg.norm(x) else WRONG

    race(f"to_gguf {kind}", our_own(lambda: qk.to_gguf(x, kind)), [], check, x.size * 1e3, "Mvalue/s", [])


@pytest.mark.parametrize("kind", GGUF)  # not those of the library: compare.py counts on equal cases in both trees
def test_from_gguf(race, kind):
    x, out, quants = random_floats(COUNT), aligned_empty((COUNT,), "float32"), pytest.importorskip("gguf.quants")
    _, values, size, _ = qk.gguf.KINDS[kind]
    data = np.random.default_rng(0).integers(0, 60, COUNT // values * size, np.uint8)  # no infinite scales
    check = exactly(quants.dequantize(data, quants.GGMLQuantizationType[kind]))
    ours, others = our_own(lambda: qk.from_gguf(data, kind, out=out), out), [peers.gguf.read(data, kind)]
    race(f"from_gguf {kind}", ours, others, check, x.nbytes + data.nbytes, "GB/s", [copy(x)])
