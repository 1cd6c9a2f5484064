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


BIG = "1024x1024x1024"
KMEANS = [("1000000 x 4, 256 clusters", 2.5), ("1000000 x 8, 256 clusters", 2.5), ("200000 x 32, 256 clusters", 1.5),
          ("100000 x 64, 16 clusters", 1.0)]
PROMISES = [
    Promise("matmul u8s8 1024^3 to the best peer", [f"matmul u8s8 {BIG}"], to_best_peer, 1.0, isa="avx512vnni"),
    Promise("matmul s8s8 1024^3 to the best peer", [f"matmul s8s8 {BIG}"], to_best_peer, 1.0, isa="avx512vnni"),
    Promise("matmul u8s8 1024^3 to sgemm at AVX2", [f"matmul u8s8 {BIG}"], to("sgemm"), 1.5, isa="avx2"),
    Promise("matmul s8s8 1024^3 to sgemm at AVX2", [f"matmul s8s8 {BIG}"], to("sgemm"), 1.5, isa="avx2"),
    Promise("linear 4-bit (32) 1024^3 to MatMulNBits", [f"linear 4-bit, block 32, {BIG}"], to("onnxruntime"), 2.7, isa="avx512vnni"),
    Promise("linear 4-bit (32) 1024^3 to 8-bit at AVX2", [f"linear 4-bit, block 32, {BIG}"], to("8-bit"), 1.3, isa="avx2"),
    *(Promise(f"kmeans {case} to the best peer", [f"kmeans {case}"], to_best_peer, bound, isa="avx512vnni") for case, bound in KMEANS),
    Promise("quantize to the best peer", ["quantize"], to_best_peer, 1.05),
    Promise("dequantize to the best peer", ["dequantize"], to_best_peer, 1.2),
    Promise("quantize along the last axis, of per tensor", ["quantize last axis", "quantize"], slower_than, 1.5, at_most=True),
    Promise("fake_quantize to torch", ["fake_quantize"], to("torch"), 20),
    Promise("quantize of 64 floats", ["quantize 64 floats"], lambda row: row.ours.seconds * 1e6, 0.8, "us", at_most=True),
]
