"""Figures that every change must keep: printed at the end of a run, one pinned thread."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Promise:
    text: str
    cases: list[str]       # of the table; `figure` gets their rows
    figure: Callable        # None where it cannot be told
    bound: float
    unit: str = "x"
    isa: str | None = None  # where it holds only there
    at_most: bool = False


def to_best_peer(row):
    return row.to_best_peer


def to(name):
    return lambda row: next((peer.seconds / row.ours.seconds for peer in row.peers if peer.name == name and peer.turns), None)


def slower_than(row, other):
    return row.ours.seconds / other.ours.seconds


def milliseconds(row):
    return row.ours.seconds * 1e3


BIG = "1024x1024x1024"
PROMISES = [
    Promise("matmul u8s8 1024^3 to the best peer", [f"matmul u8s8 {BIG}"], to_best_peer, 1.0, isa="avx512vnni"),
    Promise("matmul s8s8 1024^3 to the best peer", [f"matmul s8s8 {BIG}"], to_best_peer, 1.0, isa="avx512vnni"),
    Promise("matmul u8s8 1024^3 to sgemm at AVX2", [f"matmul u8s8 {BIG}"], to("sgemm"), 1.5, isa="avx2"),
    Promise("matmul s8s8 1024^3 to sgemm at AVX2", [f"matmul s8s8 {BIG}"], to("sgemm"), 1.5, isa="avx2"),
    Promise("linear 4-bit (32) 1024^3 to MatMulNBits", [f"linear 4-bit, block 32, {BIG}"], to("onnxruntime"), 2.7, isa="avx512vnni"),
    Promise("linear 4-bit (32) 1024^3 to 8-bit at AVX2", [f"linear 4-bit, block 32, {BIG}"], to("8-bit"), 1.3, isa="avx2"),
    Promise("quantize to the best peer", ["quantize"], to_best_peer, 1.05),
    Promise("dequantize to the best peer", ["dequantize"], to_best_peer, 1.2),
    Promise("quantize along the last axis, of per tensor", ["quantize last axis", "quantize"], slower_than, 1.5, at_most=True),
    Promise("fake_quantize to torch", ["fake_quantize"], to("torch"), 20),
    Promise("quantize of 64 floats", ["quantize 64 floats"], lambda row: row.ours.seconds * 1e6, 0.8, "us", at_most=True),
    Promise("kmeans1d 1e6, 16 to kmeans1d", ["kmeans1d 1000000 points, 16 clusters"], to("kmeans1d"), 20),
    Promise("kmeans1d 1e6, 256 to kmeans1d", ["kmeans1d 1000000 points, 256 clusters"], to("kmeans1d"), 300),
    Promise("kmeans1d 1e5, 256 to ckwrap", ["kmeans1d 100000 points, 256 clusters"], to("ckwrap"), 30),
    Promise("kmeans1d 1e6, 16 to flash1dkmeans", ["kmeans1d 1000000 points, 16 clusters"], to("flash1dkmeans"), 1),
    Promise("kmeans1d 100, 4 to kmeans1d", ["kmeans1d 100 points, 4 clusters"], to("kmeans1d"), 1),
    Promise("kmeans1d 100, 4 to ckwrap", ["kmeans1d 100 points, 4 clusters"], to("ckwrap"), 1),
    Promise("kmeans1d 1e7 bfloat16", ["kmeans1d 10000000 bfloat16, 16 clusters"], milliseconds, 150, "ms", at_most=True),
    Promise("kmeans1d a weighted line of 4096", ["kmeans1d 64 weighted lines of 4096, 16 clusters"], lambda row: milliseconds(row) / 64,
            0.45, "ms", at_most=True),
]
