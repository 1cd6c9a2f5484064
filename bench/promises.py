"""Figures that every change must keep: printed at the end of a run, one pinned thread unless they are of threads."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from products import CUBES, SHAPES, THREADED, named


@dataclass
class Promise:
    text: str
    cases: list[str]  # of the table; `figure` gets their rows
    figure: Callable  # None where it cannot be told
    bound: float
    unit: str = "x"
    isa: str | None = None  # where it holds only there
    at_most: bool = False


def geometric_mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


# ---- figures ----


def to_best_peer(*rows):
    """The least."""
    ratios = [row.to_best_peer for row in rows]
    return None if None in ratios else min(ratios)


def mean_to_best_peer(*rows):
    ratios = [row.to_best_peer for row in rows]
    return None if None in ratios else geometric_mean(ratios)


def to(name):
    """The least ratio to a peer."""

    def least(*rows):
        ratios = [
            peer.seconds / row.ours.seconds for row in rows for peer in row.peers if peer.name == name and peer.turns
        ]
        return min(ratios, default=None)

    return least


def of_limit(*rows):
    return min(row.of_limit for row in rows)


def slower_than(row, other):
    return row.ours.seconds / other.ours.seconds


def slower_than_int32(row):
    return 1 / to("int32")(row)


def microseconds(row):
    return row.ours.seconds * 1e6


def milliseconds(row):
    return row.ours.seconds * 1e3


def rate(*rows):
    return min(row.work / row.ours.seconds / 1e9 for row in rows)


# ---- cases ----


def cases(prefix, shapes):
    return [f"{prefix} {named(shape)}" for shape in shapes]


VNNI, AVX2 = "avx512vnni", "avx2"
BIG = (1024, 1024, 1024)
READ = [f"matmul {temperature} weights {m}x4096x4096" for temperature in ("hot", "cold") for m in (1, 2, 3, 4)]
READ += [f"matmul {temperature} weights 1x1536x384" for temperature in ("hot", "cold")]
MINILM = [
    "matmul MiniLM attention 128x384x384",
    "matmul MiniLM intermediate 128x1536x384",
    "matmul MiniLM output 128x384x1536",
]
MANY_ROWS, ONE_ROW, LONG_ROW = [BIG, (8, 4096, 4096), (128, 384, 1536)], [(1, 4096, 4096)], [(1, 11008, 4096)]


def matmul_promises(kind):
    all_shapes = cases(f"matmul {kind}", SHAPES)
    return [
        Promise(f"matmul {kind} to the best peer, least", all_shapes, to_best_peer, 1.0, isa=VNNI),
        Promise(f"matmul {kind} to the best peer, geometric mean", all_shapes, mean_to_best_peer, 1.25, isa=VNNI),
        Promise(
            f"matmul {kind} 64^3 to the best peer", cases(f"matmul {kind}", CUBES[:1]), to_best_peer, 1.5, isa=VNNI
        ),
        Promise(
            f"matmul {kind} of the peak, 512^3 and up", cases(f"matmul {kind}", CUBES[3:]), of_limit, 0.95, "", VNNI
        ),
        Promise(f"matmul {kind} 1024^3 to sgemm", cases(f"matmul {kind}", [BIG]), to("sgemm"), 1.6, isa=AVX2),
        Promise(f"matmul {kind} 1024^3 to the best peer", cases(f"matmul {kind}", [BIG]), to_best_peer, 0.85, isa=AVX2),
        Promise(
            f"matmul {kind} 64^3 to the best peer", cases(f"matmul {kind}", CUBES[:1]), to_best_peer, 2.0, isa=AVX2
        ),
    ]


def linear4_promises(block, many_rows, one_row, long_row):
    text, prefix = f"linear 4-bit, block {block}, to MatMulNBits (32)", f"linear 4-bit, block {block},"
    peer = to("onnxruntime" if block == 32 else "onnxruntime, block 32")
    return [
        Promise(f"{text}, many rows", cases(prefix, MANY_ROWS), peer, many_rows, isa=VNNI),
        Promise(f"{text}, 1x4096x4096", cases(prefix, ONE_ROW), peer, one_row, isa=VNNI),
        Promise(f"{text}, 1x11008x4096", cases(prefix, LONG_ROW), peer, long_row, isa=VNNI),
        Promise(f"linear 4-bit, block {block}, 1024^3 to 8-bit", cases(prefix, [BIG]), to("8-bit"), 1.4, isa=AVX2),
    ]


KMEANS = [
    ("1000000 x 4, 256 clusters", 2.5),
    ("1000000 x 8, 256 clusters", 2.5),
    ("200000 x 32, 256 clusters", 1.5),
    ("100000 x 64, 16 clusters", 1.0),
]

PROMISES = [
    *matmul_promises("u8s8"),
    *matmul_promises("s8s8"),
    Promise("matmul of 1 to 4 rows, of the read bandwidth", READ, of_limit, 0.9, "", VNNI),
    Promise("matmul MiniLM to the best peer", MINILM, to_best_peer, 1.0),
    Promise("matmul of b that is not packed, to packed", cases("matmul unpacked", CUBES[2:]), to("packed"), 0.8),
    Promise("matmul on all threads to one, 1024^3 and up", cases("matmul threads", CUBES[4:]), to("one thread"), 1.9),
    Promise("matmul on all threads to one, least", cases("matmul threads", THREADED), to("one thread"), 1.0),
    Promise("matmul 7x13x5", ["matmul u8s8 7x13x5"], microseconds, 1.5, "us", at_most=True),
    Promise("linear 1x64x32", ["linear small 1x64x32"], microseconds, 2.0, "us", at_most=True),
    Promise("linear 1x256x256 to float32", ["linear small 1x256x256"], to("NumPy float32"), 1.0),
    Promise("int8 with relu, of int32", ["epilogue int8 with relu, half_even"], slower_than_int32, 1.08, at_most=True),
    Promise("float32 with gelu, of int32", ["epilogue float32 with gelu"], slower_than_int32, 1.2, at_most=True),
    Promise("packing", ["pack int8 4096x4096", "pack int8 transposed 4096x4096"], rate, 2.0, "GB/s"),
    *linear4_promises(32, 2.7, 2.2, 1.8),
    *linear4_promises(128, 3.0, 2.2, 2.8),
    *(
        Promise(f"kmeans {case} to the best peer", [f"kmeans {case}"], to_best_peer, bound, isa="avx512vnni")
        for case, bound in KMEANS
    ),
    Promise("linear bfloat16 1024^3 to sgemm", ["linear bfloat16 1024x1024x1024"], to("sgemm"), 1.0, isa="avx512vnni"),
    Promise("linear bfloat16 1x4096x4096 to sgemm", ["linear bfloat16 1x4096x4096"], to("sgemm"), 2.0),
    Promise("matmul of 12-bit int16 1024^3 to dgemm", ["matmul int16, 12 bits, 1024x1024x1024"], to("dgemm"), 3.0),
    Promise("quantize to the best peer", ["quantize"], to_best_peer, 1.05),
    Promise("dequantize to the best peer", ["dequantize"], to_best_peer, 1.2),
    Promise(
        "quantize along the last axis, of per tensor",
        ["quantize last axis", "quantize"],
        slower_than,
        1.5,
        at_most=True,
    ),
    Promise("fake_quantize to torch", ["fake_quantize"], to("torch"), 20),
    Promise("quantize of 64 floats", ["quantize 64 floats"], microseconds, 0.8, "us", at_most=True),
    Promise("kmeans1d 1e6, 16 to kmeans1d", ["kmeans1d 1000000 points, 16 clusters"], to("kmeans1d"), 20),
    Promise("kmeans1d 1e6, 256 to kmeans1d", ["kmeans1d 1000000 points, 256 clusters"], to("kmeans1d"), 300),
    Promise("kmeans1d 1e5, 256 to ckwrap", ["kmeans1d 100000 points, 256 clusters"], to("ckwrap"), 30),
    Promise("kmeans1d 1e6, 16 to flash1dkmeans", ["kmeans1d 1000000 points, 16 clusters"], to("flash1dkmeans"), 1),
    Promise("kmeans1d 100, 4 to kmeans1d", ["kmeans1d 100 points, 4 clusters"], to("kmeans1d"), 1),
    Promise("kmeans1d 100, 4 to ckwrap", ["kmeans1d 100 points, 4 clusters"], to("ckwrap"), 1),
    Promise(
        "kmeans1d 1e7 bfloat16", ["kmeans1d 10000000 bfloat16, 16 clusters"], milliseconds, 150, "ms", at_most=True
    ),
    Promise("encode NF4 to bitsandbytes", ["encode 16 levels, block 64"], to("bitsandbytes"), 50),
    Promise("encode NF4 of a copy", ["encode 16 levels, block 64"], lambda row: row.of_limit, 0.4),
    Promise("decode NF4 to bitsandbytes", ["decode 16 levels, block 64"], to("bitsandbytes"), 1.0),
    Promise("encode 256 levels to bitsandbytes", ["encode 256 levels, block 256"], to("bitsandbytes"), 10),
    Promise("decode 256 levels to bitsandbytes", ["decode 256 levels, block 256"], to("bitsandbytes"), 2),
    Promise("search 48 x 8 bits to faiss, one query", ["search 48 x 8 bits, 1 query"], to("faiss"), 1.0),
    Promise("search 48 x 8 bits to faiss, 100 queries", ["search 48 x 8 bits, 100 queries"], to("faiss"), 1.0),
    Promise(
        "search 96 x 4 bits to faiss",
        [f"search 96 x 4 bits, {n}" for n in ("1 query", "100 queries")],
        to("faiss"),
        1.0,
    ),
    Promise(
        "encode and decode vectors to faiss",
        [f"{what} vectors {case}" for what in ("encode", "decode") for case in ("48 x 8 bits", "96 x 4 bits")],
        to("faiss"),
        1.0,
        isa=VNNI,
    ),
    Promise(
        "kmeans1d a weighted line of 4096",
        ["kmeans1d 64 weighted lines of 4096, 16 clusters"],
        lambda row: milliseconds(row) / 64,
        0.45,
        "ms",
        at_most=True,
    ),
]
