"""What this core can do at most, measured in the same run: limits.c, compiled for the occasion."""

import ctypes
import os
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from time import perf_counter

from arrays import aligned_empty
from race import Contender

# name in limits.c: (how it is printed, products a step, who must have it)
PEAKS = {
    "peak_vpdpbusd": ("vpdpbusd, 512 bits", 12 * 64, "has_avx512vnni"),
    "peak_vpdpwssd": ("vpdpwssd, 512 bits", 12 * 32, "has_avx512vnni"),
    "peak_vpmaddwd": ("vpmaddwd + vpaddd, 256 bits", 12 * 16, "has_avx2"),
    "peak_fma_512": ("float32 FMA, 512 bits", 12 * 16, "has_avx512"),
    "peak_fma_256": ("float32 FMA, 256 bits", 12 * 8, "has_avx2"),
}
PEAK_OF_ISA = {"avx512vnni": "peak_vpdpbusd", "avx2": "peak_vpmaddwd"}
FLOAT_PEAK_OF_ISA = {"avx512vnni": "peak_fma_512", "avx2": "peak_fma_256"}
INT16_PEAK_OF_ISA = {"avx512vnni": "peak_vpdpwssd", "avx2": "peak_vpmaddwd"}
LINE = 64


@cache
def library():
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "limits.so")
        source = Path(__file__).with_name("limits.c")
        subprocess.run([*compiler.split(), "-O3", "-shared", "-fPIC", "-o", target, source], check=True)
        return ctypes.CDLL(str(target))


def multiply_adds(peak, macs):
    """A call that does at least `macs` multiply-accumulates from registers, and how many it does."""
    run = getattr(library(), peak)
    per_step = PEAKS[peak][1]
    steps = -(-macs // per_step)
    sink = aligned_empty((64,), "uint8")
    arguments = ctypes.c_size_t(steps), ctypes.c_void_p(sink.ctypes.data)
    return lambda keep=sink: run(*arguments), steps * per_step


def stream(reads, writes, groups):
    """A call that reads `reads` and writes `writes` cache lines a group: 8 and 0, 4 and 1, 1 and 1, or 1 and 4."""
    run = library().stream_avx2 if library().has_avx2() else library().stream_baseline
    source = aligned_empty((groups * reads * LINE,), "uint8")
    target = aligned_empty((max(groups * writes, 1) * LINE,), "uint8")
    pointers = ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data)
    arguments = ctypes.c_int(reads), ctypes.c_int(writes), *pointers, ctypes.c_size_t(groups)
    return lambda keep=(source, target): run(*arguments)


def traffic(read_bytes, written_bytes):
    """The stream nearest in proportion to an operation that reads and writes so many bytes, moving as many in all."""
    ratio = read_bytes / written_bytes if written_bytes else float("inf")
    reads, writes = (8, 0) if ratio > 8 else (4, 1) if ratio > 2 else (1, 1) if ratio > 0.5 else (1, 4)
    return stream(reads, writes, max(1, (read_bytes + written_bytes) // ((reads + writes) * LINE)))


# ---- what binds an operation: contenders that run in turn with it ----


def moving(read_bytes, written_bytes):
    return Contender("stream", traffic(read_bytes, written_bytes))


def multiplying(isa, macs, threads, peak_of_isa=PEAK_OF_ISA):
    """Empty where the instruction set has no such loop here."""
    if isa not in peak_of_isa:
        return []
    call, done = multiply_adds(peak_of_isa[isa], min(macs, 20_000_000))
    return [Contender("peak", call, scale=macs / done / threads)]


# ---- for the header ----


def best_seconds(call, turns=50):
    best = float("inf")
    for _ in range(turns):
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best


def describe(bytes_moved=5 * 2**18):
    """Every peak of this CPU, and the bandwidths where the elementwise cases live, as lines of text."""
    lines = []
    for name, (title, _, requirement) in PEAKS.items():
        if getattr(library(), requirement)():
            call, macs = multiply_adds(name, 20_000_000)
            lines.append(f"{title}: {macs / best_seconds(call) / 1e9:.0f} GMAC/s")
    for title, call in [("read", traffic(bytes_moved, 0)), ("copy, read + written", traffic(bytes_moved // 2, bytes_moved // 2))]:
        lines.append(f"{title}, {bytes_moved / 2**20} MB: {bytes_moved / best_seconds(call, 500) / 1e9:.0f} GB/s")
    return lines
