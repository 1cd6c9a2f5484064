"""Figures that every change must keep: printed at the end of a run, one pinned thread unless they are of threads."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dense import CUBES, SHAPES, THREADED, named


@dataclass
class Promise:
    text: str
    cases: list[str]  # of the table; `figure` gets their rows
    figure: Callable  # None if it cannot be told
    bound: str  # ">= 1.5 x"
    isa: str | None = None  # if it holds only there


def geometric_mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


# ---- figures of rows: the dicts of report.py ----


def to_best_peer(row):
    """Return its time in units of ours; None if no peer was right and held."""
    times = [peer["seconds"] for peer in row["peers"].values() if peer["seconds"] and peer["held"]]
    return min(times) / row["seconds"] if times else None


def of_limit(row):
    """Return the share of the slowest limit, which binds; None if there is none."""
    return max(row["limits"].values()) / row["seconds"] if row["limits"] else None


def to_peers(*rows):
    ratios = [to_best_peer(row) for row in rows]
    return None if None in ratios else min(ratios)


def mean_to_peers(*rows):
    ratios = [to_best_peer(row) for row in rows]
    return None if None in ratios else geometric_mean(ratios)


def to(name):
    """Return the figure that is the least ratio to a peer."""

    def least(*rows):
        times = [(row["peers"].get(name, {}).get("seconds"), row["seconds"]) for row in rows]
        return min((peer / ours for peer, ours in times if peer), default=None)

    return least


def of_limits(*rows):
    shares = [of_limit(row) for row in rows]
    return None if None in shares else min(shares)


def slower_than(row, other):
    return row["seconds"] / other["seconds"]


def slower_than_int32(row):
    return 1 / to("int32")(row)


def microseconds(row):
    return row["seconds"] * 1e6


def milliseconds(row):
    return row["seconds"] * 1e3


def rate(*rows):
    return min(row["work"] / row["seconds"] / 1e9 for row in rows)


# ---- cases ----


def cases(prefix, shapes):
    return [f"{prefix} {named(shape)}" for shape in shapes]


VNNI, AVX2 = "avx512vnni", "avx2"
BIG = (1024, 1024, 1024)
READ = [f"matmul {temperature} weights {m}x4096x4096" for temperature in ("hot", "cold") for m in (1, 2, 3, 4)]
READ += [f"matmul {temperature} weights 1x1536x384" for temperature in ("hot", "cold")]
LAYERS_OF_MINILM = "attention 128x384x384", "intermediate 128x1536x384", "output 128x384x1536"
MINILM = [f"matmul MiniLM {layer}" for layer in LAYERS_OF_MINILM]
MANY_ROWS, ONE_ROW, LONG_ROW = [BIG, (8, 4096, 4096), (128, 384, 1536)], [(1, 4096, 4096)], [(1, 11008, 4096)]


def matmul_promises(kind):
    name = f"matmul {kind}"
    every, smallest, big, biggest = (cases(name, shapes) for shapes in (SHAPES, CUBES[:1], [BIG], CUBES[3:]))
    return [
        Promise(f"{name} to the best peer, least", every, to_peers, ">= 1 x", VNNI),
        Promise(f"{name} to the best peer, geometric mean", every, mean_to_peers, ">= 1.25 x", VNNI),
        Promise(f"{name} 64^3 to the best peer", smallest, to_peers, ">= 1.5 x", VNNI),
        Promise(f"{name} of the peak, 512^3 and up", biggest, of_limits, ">= 0.95", VNNI),
        Promise(f"{name} 1024^3 to sgemm", big, to("sgemm"), ">= 1.6 x", AVX2),
        Promise(f"{name} 1024^3 to the best peer", big, to_peers, ">= 0.85 x", AVX2),
        Promise(f"{name} 64^3 to the best peer", smallest, to_peers, ">= 2 x", AVX2),
    ]


def linear4_promises(block, many_rows, one_row, long_row):
    text, prefix = f"linear 4-bit, block {block}, to MatMulNBits (32)", f"linear 4-bit, block {block},"
    peer = to("onnxruntime" if block == 32 else "onnxruntime, block 32")
    return [
        Promise(f"{text}, many rows", cases(prefix, MANY_ROWS), peer, f">= {many_rows} x", VNNI),
        Promise(f"{text}, 1x4096x4096", cases(prefix, ONE_ROW), peer, f">= {one_row} x", VNNI),
        Promise(f"{text}, 1x11008x4096", cases(prefix, LONG_ROW), peer, f">= {long_row} x", VNNI),
        Promise(f"linear 4-bit, block {block}, 1024^3 to 8-bit", cases(prefix, [BIG]), to("8-bit"), ">= 1.4 x", AVX2),
    ]


KMEANS = [("1000000 x 4, 256", 2.5), ("1000000 x 8, 256", 2.5), ("200000 x 32, 256", 1.5), ("100000 x 64, 16", 1.0)]
VECTORS = ["48 x 8 bits", "96 x 4 bits"]

PROMISES = [
    *matmul_promises("u8s8"),
    *matmul_promises("s8s8"),
    Promise("matmul of 1 to 4 rows, of the read bandwidth", READ, of_limits, ">= 0.9", VNNI),
    Promise("matmul MiniLM to the best peer", MINILM, to_peers, ">= 1 x"),
    Promise("matmul of b that is not packed, to packed", cases("matmul unpacked", CUBES[2:]), to("packed"), ">= 0.8 x"),
    Promise("matmul on all threads to one, big", cases("matmul threads", CUBES[4:]), to("one thread"), ">= 1.9 x"),
    Promise("matmul on all threads to one, least", cases("matmul threads", THREADED), to("one thread"), ">= 1 x"),
    Promise("matmul 7x13x5", ["matmul u8s8 7x13x5"], microseconds, "<= 1.5 us"),
    Promise("linear 1x64x32", ["linear small 1x64x32"], microseconds, "<= 2 us"),
    Promise("linear 1x256x256 to float32", ["linear small 1x256x256"], to("NumPy float32"), ">= 1 x"),
    Promise("int8 with relu, of int32", ["epilogue int8 with relu, half_even"], slower_than_int32, "<= 1.08 x"),
    Promise("float32 with gelu, of int32", ["epilogue float32 with gelu"], slower_than_int32, "<= 1.2 x"),
    Promise("packing", ["pack int8 4096x4096", "pack int8 transposed 4096x4096"], rate, ">= 2 GB/s"),
    *linear4_promises(32, 2.7, 2.2, 1.8),
    *linear4_promises(128, 3.0, 2.2, 2.8),
    *(
        Promise(f"kmeans {case} to the best peer", [f"kmeans {case} clusters"], to_peers, f">= {bound} x", VNNI)
        for case, bound in KMEANS
    ),
    Promise("linear bfloat16 1024^3 to sgemm", ["linear bfloat16 1024x1024x1024"], to("sgemm"), ">= 1 x", VNNI),
    Promise("linear bfloat16 1x4096x4096 to sgemm", ["linear bfloat16 1x4096x4096"], to("sgemm"), ">= 2 x"),
    Promise("matmul of 12-bit int16 1024^3 to dgemm", ["matmul int16, 12 bits, 1024x1024x1024"], to("dgemm"), ">= 3 x"),
    Promise("quantize to the best peer", ["quantize"], to_peers, ">= 1.05 x"),
    Promise("dequantize to the best peer", ["dequantize"], to_peers, ">= 1.2 x"),
    Promise("quantize along the last axis, of per tensor", ["quantize last axis", "quantize"], slower_than, "<= 1.5 x"),
    Promise("fake_quantize to torch", ["fake_quantize"], to("torch"), ">= 20 x"),
    Promise("quantize of 64 floats", ["quantize 64 floats"], microseconds, "<= 0.8 us"),
    Promise("kmeans1d 1e6, 16 to kmeans1d", ["kmeans1d 1000000 points, 16 clusters"], to("kmeans1d"), ">= 20 x"),
    Promise("kmeans1d 1e6, 256 to kmeans1d", ["kmeans1d 1000000 points, 256 clusters"], to("kmeans1d"), ">= 300 x"),
    Promise("kmeans1d 1e5, 256 to ckwrap", ["kmeans1d 100000 points, 256 clusters"], to("ckwrap"), ">= 30 x"),
    Promise("kmeans1d 1e6, 16 to flash", ["kmeans1d 1000000 points, 16 clusters"], to("flash1dkmeans"), ">= 1 x"),
    Promise("kmeans1d 100, 4 to kmeans1d", ["kmeans1d 100 points, 4 clusters"], to("kmeans1d"), ">= 1 x"),
    Promise("kmeans1d 100, 4 to ckwrap", ["kmeans1d 100 points, 4 clusters"], to("ckwrap"), ">= 1 x"),
    Promise("kmeans1d 1e7 bfloat16", ["kmeans1d 10000000 bfloat16, 16 clusters"], milliseconds, "<= 150 ms"),
    Promise("encode NF4 to bitsandbytes", ["encode 16 levels, block 64"], to("bitsandbytes"), ">= 50 x"),
    Promise("encode NF4 of a copy", ["encode 16 levels, block 64"], of_limits, ">= 0.4 x"),
    Promise("decode NF4 to bitsandbytes", ["decode 16 levels, block 64"], to("bitsandbytes"), ">= 1 x"),
    Promise("encode 256 levels to bitsandbytes", ["encode 256 levels, block 256"], to("bitsandbytes"), ">= 10 x"),
    Promise("decode 256 levels to bitsandbytes", ["decode 256 levels, block 256"], to("bitsandbytes"), ">= 2 x"),
    *(
        Promise(f"search {case} to faiss, {queries}", [f"search {case}, {queries}"], to("faiss"), ">= 1 x")
        for case in VECTORS
        for queries in ("1 query", "100 queries")
    ),
    Promise("encode vectors to faiss", [f"encode vectors {case}" for case in VECTORS], to("faiss"), ">= 1 x", VNNI),
    Promise("decode vectors to faiss", [f"decode vectors {case}" for case in VECTORS], to("faiss"), ">= 1 x", VNNI),
    Promise("kmeans1d weighted", ["kmeans1d 64 weighted lines of 4096, 16 clusters"], milliseconds, "<= 28.8 ms"),
]
