"""Measure what this CPU reaches, beside NumPy: the table of ``python -m qkernels``.

It needs no compiler: NumPy has float32 products by its BLAS, and what an operation could reach at most is measured
beside it. Of products that is the peak of the instruction set in use, multiply-accumulates of bytes from registers
alone on all threads, or, of few rows, a copy of as many bytes; of all else the copy. (Where weights are small, AVX2 and
AVX-512 have a faster instruction than for any bytes: docs/numerics.md, section 6. These can pass the peak.) Contenders
take turns; of each the fastest counts.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ._bind import runtime

qk = sys.modules[__package__]
TURN = 0.01  # seconds
ROUNDS = 300_000  # of products from registers in a call: a millisecond or some


class Row(NamedTuple):
    """Hold an operation, by us and by NumPy, its size in multiply-accumulates or bytes, and the bytes that it moves."""

    name: str
    ours: Any
    numpy: Any
    work: float
    unit: str
    moved: int


class Figures(NamedTuple):
    """Hold what was measured of a row: its rate, how many times as fast as NumPy it is, the share of a limit, which."""

    name: str
    rate: float
    unit: str
    ratio: float
    share: float
    limit: str


# ---- operations ----


def rows():
    """Yield the rows."""
    rng = np.random.default_rng(0)
    yield _matmul(rng, 1024, 1024, 1024)
    for m, k, n, kind in (512, 1024, 1024, "int8"), (512, 1024, 1024, "uint4"), (1, 4096, 4096, "int8"):
        yield _linear(rng, m, k, n, kind)
    yield _linear(rng, 1, 4096, 4096, "uint4")
    yield _conv(rng)
    x = rng.normal(size=(1024, 1024)).astype(np.float32)
    params, scale = qk.QParams(1 / 32), np.float32(1 / 32)
    q, y = np.empty(x.shape, np.int8), np.empty_like(x)

    def codes():
        return np.clip(np.rint(x / scale), -128, 127).astype(np.int8)

    yield Row("quantize 1024 x 1024", lambda: qk.quantize(x, params, out=q), codes, *_bytes(5 * x.size))
    yield Row("dequantize", lambda: qk.dequantize(q, params, out=y), lambda: q * scale, *_bytes(5 * x.size))
    yield Row("fake_quantize", lambda: qk.fake_quantize(x, params, out=y), lambda: codes() * scale, *_bytes(8 * x.size))
    yield _encode(x)
    w, bias = x[0], x[1]

    def norm():
        apart = x - x.mean(axis=1, keepdims=True)
        return apart / np.sqrt((apart * apart).mean(axis=1, keepdims=True) + 1e-5) * w + bias

    yield Row("layer_norm", lambda: qk.layer_norm(x, w, bias, out=y), norm, *_bytes(8 * x.size))
    yield _search(rng)


def _bytes(count):
    return count, "GB/s", count


def _matmul(rng, m, k, n):
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-128, 128, (k, n), np.int8)
    packed, out, floats = qk.pack(b, qk.QParams(1)), np.empty((m, n), np.int32), (a.astype("f4"), b.astype("f4"))
    name = f"matmul {m} x {k} x {n}, uint8 x int8"
    return Row(
        name,
        lambda: qk.matmul(a, packed, out=out),
        lambda: floats[0] @ floats[1],
        m * k * n,
        "GMAC/s",
        _sizes(a, packed, out),
    )


def _sizes(*held):
    return sum(one.nbytes for one in held)


def _linear(rng, m, k, n, kind):
    x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    where = dict(axis=1) if kind == "int8" else dict(axis=0, block_size=32)
    params = qk.choose_qparams(w, kind, **where)
    packed, out = qk.pack(qk.quantize(w, params), params), np.empty((m, n), np.float32)
    name = f"linear {m} x {k} x {n}, {'8 bits' if kind == 'int8' else '4 bits in blocks of 32'}"
    return Row(name, lambda: qk.linear(x, packed, out=out), lambda: x @ w, m * k * n, "GMAC/s", _sizes(x, packed, out))


def _conv(rng):
    """NumPy has no convolution: its time is that of the product alone."""
    q, w = rng.integers(-128, 128, (1, 56, 56, 64), np.int8), rng.integers(-128, 128, (3, 3, 64, 64), np.int8)
    params, packed = qk.QParams(0.05), qk.pack_conv(w, qk.QParams(0.05))
    rows, columns = np.ones((56 * 56, 576), np.float32), np.ones((576, 64), np.float32)

    def ours():
        return qk.qconv2d(q, params, packed, params, padding=1)

    return Row(
        "qconv2d 3 x 3, 56 x 56, 64 to 64",
        ours,
        lambda: rows @ columns,
        56 * 56 * 576 * 64,
        "GMAC/s",
        2 * q.nbytes + packed.nbytes,
    )


def _encode(x):
    levels = np.sort(qk.NF4.levels)
    middles = (levels[1:] + levels[:-1]) / 2

    def nearest():
        blocks = x.reshape(-1, 64)
        return np.searchsorted(middles, blocks / np.abs(blocks).max(axis=1, keepdims=True))

    return Row("encode to NF4", lambda: qk.encode(x, qk.NF4), nearest, *_bytes(5 * x.size))


def _search(rng):
    levels, codes = rng.normal(size=(16, 256, 4)).astype(np.float32), rng.integers(0, 256, (20000, 16), np.uint8)
    book, query = qk.Codebook(levels, vector=True), rng.normal(size=(1, 64)).astype(np.float32)

    def gathered():
        tables = ((query.reshape(16, 1, 4) - levels) ** 2).sum(axis=2)
        return np.argpartition(tables[np.arange(16), codes].sum(axis=1), 10)

    name = "search 20,000 codes of 16 bytes"
    return Row(name, lambda: qk.search(query, codes, book, 10), gathered, *_bytes(codes.size))


# ---- measuring ----


class Peak:
    """Multiply from registers, on all threads at once; keep the best rate that any row has seen, in GMAC/s."""

    def __init__(self):
        self.threads, self.rate = qk.get_num_threads(), 0.0
        self.pool = ThreadPoolExecutor(self.threads)
        self.products = runtime.run_peak(1) * ROUNDS * self.threads

    def run(self):
        if self.threads == 1:
            runtime.run_peak(ROUNDS)
        else:
            list(self.pool.map(runtime.run_peak, [ROUNDS] * self.threads))

    def seconds(self, work, fastest):
        """Return what so many products take at the best rate, of which the last turns may be one."""
        self.rate = max(self.rate, self.products / fastest / 1e9)
        return work / self.rate / 1e9


def measured(row, seconds, peak):
    """Return the Figures of a row, within so many seconds, or a little more."""
    source = np.ones(row.moved // 2, np.uint8)
    target = np.empty_like(source)
    of_registers = [peak.run] if peak.products and row.unit == "GMAC/s" else []
    ours, numpy, copied, *turns = fastest(
        [row.ours, row.numpy, lambda: np.copyto(target, source), *of_registers], seconds
    )
    least, limit = max([(copied, "copy"), *((peak.seconds(row.work, turn), "peak") for turn in turns)])
    return Figures(row.name, row.work / ours / 1e9, row.unit, numpy / ours, least / ours, limit)


def fastest(calls, seconds):
    """Return the seconds of the fastest call of each, which take turns."""
    times, end = [np.inf] * len(calls), time.perf_counter() + seconds
    for call in calls:
        call()
    while True:
        for i, call in enumerate(calls):
            until = time.perf_counter() + TURN
            while (start := time.perf_counter()) < until:
                call()
                times[i] = min(times[i], time.perf_counter() - start)
        if time.perf_counter() > end:
            return times


# ---- the table ----

HEADER = "", "rate", "NumPy's time over ours", "of its limit"


def cells(figures):
    share = f"{figures.share:.0%} of {'the peak' if figures.limit == 'peak' else 'a copy'}"
    return figures.name, f"{figures.rate:,.1f} {figures.unit}", f"{figures.ratio:.2f}x", share


def show(seconds):
    """Print the table, whose measuring takes so many seconds, in colour where there is a terminal that can."""
    every, peak = list(rows()), Peak()
    print_table(measured(row, seconds / len(every), peak) for row in every)


def print_table(every):
    try:
        if not sys.stdout.isatty():
            raise ImportError
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in (HEADER, *map(cells, every)):
            print("{:50} {:>13} {:>23} {:>17}".format(*row).rstrip(), flush=True)
        return
    table = Table(box=None, header_style="bold")
    for i, title in enumerate(HEADER):
        table.add_column(title, justify="right" if i else "left")
    with Console().status("measuring ..."):
        for figures in every:
            name, rate, ratio, share = cells(figures)
            colour = "green" if figures.ratio >= 1 else "red"
            table.add_row(name, f"[cyan]{rate}[/]", f"[{colour}]{ratio}[/]", share)
    Console().print(table)
