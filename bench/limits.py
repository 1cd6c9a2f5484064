"""What this core can do at most, measured in the same run: limits.c, compiled for the occasion."""

import ctypes
import os
import subprocess
import sysconfig
import tempfile
from functools import cache
from itertools import cycle
from pathlib import Path
from time import perf_counter

from arrays import aligned_empty
from race import Contender

# name in limits.c: (how it is printed, products a step, who must have it)
PEAKS = {
    "peak_tdpbusd": ("tdpbusd", 4 * 16 * 16 * 64, "has_amx"),
    "peak_vpdpbusd": ("vpdpbusd, 512 bits", 12 * 64, "has_avx512vnni"),
    "peak_vpdpwssd": ("vpdpwssd, 512 bits", 12 * 32, "has_avx512vnni"),
    "peak_vpdpbusd_256": ("vpdpbusd, 256 bits", 12 * 32, "has_avxvnni"),
    "peak_vpmaddwd_512": ("vpmaddwd + vpaddd, 512 bits", 12 * 32, "has_avx512"),
    "peak_vpmaddubsw_512": ("vpmaddubsw in pairs, 512 bits", 12 * 128, "has_avx512"),
    "peak_vpmaddubsw": ("vpmaddubsw in pairs, 256 bits", 12 * 64, "has_avx2"),
    "peak_vpmaddwd": ("vpmaddwd + vpaddd, 256 bits", 12 * 16, "has_avx2"),
    "peak_fma_512": ("float32 FMA, 512 bits", 12 * 16, "has_avx512"),
    "peak_fma_256": ("float32 FMA, 256 bits", 12 * 8, "has_avx2"),
    "peak_usmmla": ("usmmla", 12 * 32, "has_i8mm"),
    "peak_udot": ("udot", 12 * 16, "has_dotprod"),
    "peak_umull": ("umull + uadalp", 12 * 8, "has_neon"),
    "peak_smlal": ("smlal", 12 * 4, "has_neon"),
    "peak_fmla": ("fmla", 12 * 4, "has_neon"),
}
PEAK_OF_ISA = {
    "amx": "peak_tdpbusd",
    "avx512vnni": "peak_vpdpbusd",
    "avx512": "peak_vpmaddwd_512",
    "avxvnni": "peak_vpdpbusd_256",
    "avx2": "peak_vpmaddwd",
    "neon_i8mm": "peak_usmmla",
    "neon_dotprod": "peak_udot",
    "neon": "peak_umull",
}
ARM = [isa for isa in PEAK_OF_ISA if isa.startswith("neon")]
FLOAT_PEAK_OF_ISA = {isa: "peak_fma_512" if "512" in isa or isa == "amx" else "peak_fma_256" for isa in PEAK_OF_ISA}
FLOAT_PEAK_OF_ISA |= dict.fromkeys(ARM, "peak_fmla")
INT16_PEAK_OF_ISA = PEAK_OF_ISA | {"amx": "peak_vpdpwssd", "avx512vnni": "peak_vpdpwssd", "avxvnni": "peak_vpmaddwd"}
INT16_PEAK_OF_ISA |= dict.fromkeys(ARM, "peak_smlal")
LINE = 64
MOST_STEPS = 26_000  # of a call: more tell no more


@cache
def library():
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "limits.so")
        source = Path(__file__).with_name("limits.c")
        subprocess.run([*compiler.split(), "-O3", "-shared", "-fPIC", "-o", target, source], check=True)
        return ctypes.CDLL(str(target))


def multiply_adds(peak, macs):
    """Return a call that does at least `macs` multiply-accumulates from registers, and how many it does."""
    run = getattr(library(), peak)
    per_step = PEAKS[peak][1]
    steps = -(-macs // per_step)
    sink = aligned_empty((64,), "uint8")
    arguments = ctypes.c_size_t(steps), ctypes.c_void_p(sink.ctypes.data)
    return lambda keep=sink: run(*arguments), steps * per_step


def stream(reads, writes, groups):
    """Return a call that reads and writes so many cache lines a group: 8 and 0, 4 and 1, 1 and 1, or 1 and 4."""
    run = library().stream_avx2 if library().has_avx2() else library().stream_baseline
    source = aligned_empty((groups * reads * LINE,), "uint8")
    target = aligned_empty((max(groups * writes, 1) * LINE,), "uint8")
    pointers = ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data)
    arguments = ctypes.c_int(reads), ctypes.c_int(writes), *pointers, ctypes.c_size_t(groups)
    return lambda keep=(source, target): run(*arguments)


def traffic(read_bytes, written_bytes):
    """Return a stream of as many bytes in all, in about the proportion of reading to writing."""
    ratio = read_bytes / written_bytes if written_bytes else float("inf")
    reads, writes = (8, 0) if ratio > 8 else (4, 1) if ratio > 2 else (1, 1) if ratio > 0.5 else (1, 4)
    return stream(reads, writes, max(1, (read_bytes + written_bytes) // ((reads + writes) * LINE)))


def reading(total, piece):
    """Return a contender that reads the next `piece` bytes, of a buffer of `total`, at each call."""
    run = library().stream_avx2 if library().has_avx2() else library().stream_baseline
    groups = max(1, piece // (8 * LINE))
    source, sink = big_buffer(total), aligned_empty((LINE,), "uint8")
    starts = range(0, total - groups * 8 * LINE + 1, groups * 8 * LINE)
    following = cycle([ctypes.c_void_p(source.ctypes.data + start) for start in starts]).__next__
    proportion, rest = (ctypes.c_int(8), ctypes.c_int(0)), (ctypes.c_void_p(sink.ctypes.data), ctypes.c_size_t(groups))
    return Contender("stream", lambda keep=(source, sink): run(*proportion, following(), *rest))


@cache
def big_buffer(size):
    return aligned_empty((size,), "uint8")


# ---- what binds an operation: contenders that run in turn with it ----


def moving(read_bytes, written_bytes):
    return Contender("stream", traffic(read_bytes, written_bytes))


def multiplying(isa, macs, threads, peak_of_isa=PEAK_OF_ISA):
    """Return the peak of `macs` products; nothing if the instruction set has no such loop here."""
    if not runs(peak := peak_of_isa.get(isa)):
        return []
    call, done = multiply_adds(peak, min(macs, MOST_STEPS * PEAKS[peak][1]))
    return [Contender("peak", call, scale=macs / done / threads)]


def gauge(isa):
    """Return the peak as a contender whose work is 1e9 products: each race has it, to see what the machine gives it."""
    peak = next(filter(runs, [PEAK_OF_ISA.get(isa), "peak_fma_256", "peak_fmla"]), None)
    if peak is None:
        return None
    call, done = multiply_adds(peak, MOST_STEPS * PEAKS[peak][1])
    return Contender("peak", call, scale=1e9 / done)


# ---- of the machine ----


def runs(peak):
    return peak is not None and getattr(library(), PEAKS[peak][2])()


def best_seconds(call, turns=50):
    best = float("inf")
    for _ in range(turns):
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best


@cache
def peaks():
    """Return GMAC/s of this CPU from registers alone, by name."""
    found = {}
    for name in filter(runs, PEAKS):
        call, macs = multiply_adds(name, MOST_STEPS * PEAKS[name][1])
        found[PEAKS[name][0]] = macs / best_seconds(call) / 1e9
    return found


@cache
def bandwidths():
    """Return GB/s of reading what half fills each cache but the first, and of memory, by name."""
    found = {}
    for level in (2, 3):
        if size := cache_size(level):
            found[f"L{level}"] = size // 2 / best_seconds(traffic(size // 2, 0), 300) / 1e9
    call, piece = reading(2**28, 2**24).call, 2**24
    return found | {"memory": piece / best_seconds(call) / 1e9}


def cache_size(level):
    """Return bytes; None if the system does not tell."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        found, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if found == str(level) and kind != "Instruction":
            return int(size.removesuffix("K")) * 1024
    return None
