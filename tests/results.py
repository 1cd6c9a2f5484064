"""Hashes of what the public functions give, to compare builds: `python results.py` writes a line for each call on each
instruction set.

The calls are those of calls.py and of test_fpmode.py, and larger ones with random inputs, whose sizes leave rests
beside all tiles. `python results.py --checksums` writes checksums.json: hashes of the larger ones, the same on
all instruction sets and kinds of CPU, whatever NumPy is there: inputs come from integers by exact operations."""

import argparse
import hashlib
import json
from functools import partial

import calls
import ml_dtypes
import numpy as np
import test_fpmode

import qkernels as qk
from qkernels._bind import runtime

# These tell of the process, not of inputs.
SETTINGS = {"get_include", "get_num_threads", "num_threads", "set_num_threads", "show_config"}


class ExactRandom:
    """Numbers that only integers modulo 2^64 go into (SplitMix64), and so the same everywhere."""

    def __init__(self, seed):
        self.at = seed << 32

    def words(self, size):
        count = int(np.prod(size))
        x = np.arange(self.at + 1, self.at + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.at += count
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
        return (x ^ x >> np.uint64(31)).reshape(size)

    def integers(self, low, high, size, dtype=np.int64):
        return (low + (self.words(size) % np.uint64(high - low)).astype(np.int64)).astype(dtype)

    def normal(self, size):
        """Almost normal: sums of 12 uniform numbers, multiples of 2^-16."""
        return self.integers(0, 1 << 16, (12, *np.atleast_1d(size))).sum(axis=0) / 65536 - 6


RNG = ExactRandom(22)


def small():
    for name, valid in calls.CALLS.items():
        for arguments in valid if name not in SETTINGS else []:
            made = {key: value() if key == "out" else value for key, value in arguments.items()}
            yield name, partial(calls.call, name, made)
    for name, function in test_fpmode.calls():
        if name not in SETTINGS:
            yield f"{name} of small and large numbers", function


def weights(k, n):
    """Name and PackedMatrix of each kind."""
    floats = RNG.normal(size=(k, n)).astype(np.float32)
    rows = k // 32
    for dtype in ("int8", "uint8", "int16", "int4", "uint4"):
        for where, axes in {"matrix": {}, "columns": {"axis": 1}, "blocks": {"axis": 0, "block_size": 32}}.items():
            if where == "blocks" and dtype == "int16":
                continue
            params = qk.choose_qparams(floats, dtype, **axes)
            yield f"{dtype} of {where}", qk.pack(qk.quantize(floats, params), params)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        yield np.dtype(dtype).name, qk.pack(floats.astype(dtype), None)
    one, own = qk.Codebook.fit(floats, 16), qk.Codebook.fit(floats[:64], 11, axis=1)
    blocks = qk.Codebook(qk.NF4.levels, axis=0, block_size=32)
    yield "a codebook", qk.pack(qk.encode(floats, one), one)
    yield "a codebook a column", qk.pack(qk.encode(floats, own), own)
    codes, scales = qk.encode(floats, blocks)
    assert scales.shape == (rows, n)
    yield "a codebook of blocks", qk.pack(codes, blocks, scales=scales)


def products():
    k, n = 224, 83
    x, q = RNG.normal(size=(37, k)).astype(np.float32), RNG.integers(0, 256, (37, k), np.uint8)
    bias, residual = RNG.normal(size=n).astype(np.float32), RNG.normal(size=(37, n)).astype(np.float32)
    params, out = qk.QParams(0.02, 121, "uint8"), qk.QParams(0.3, 5)
    for name, packed in weights(k, n):
        for m in (1, 4, 37):
            yield f"linear, {name}, {m} rows", partial(qk.linear, x[:m], packed)
        for activation in ("relu", "gelu", "gelu_tanh", "silu"):
            yield (
                f"linear, {name}, {activation}",
                partial(qk.linear, x, packed, bias, activation=activation, residual=residual),
            )
        if name in {"int8 of matrix", "int8 of columns", "uint8 of matrix", "uint8 of columns"}:
            for rounding in ("half_even", "half_away", "gemmlowp", "tflite"):
                yield f"qlinear, {name}, {rounding}", partial(qk.qlinear, q, params, packed, out, rounding=rounding)
            yield f"qlinear, {name}, gelu", partial(qk.qlinear, q, params, packed, out, bias=bias, activation="gelu")
    for left in ("int8", "uint8", "int16"):
        for right in ("int8", "uint8", "int16"):
            low, high = (np.iinfo(dtype) for dtype in (left, right))
            many = () if "int16" in (left, right) else (2,)
            a = RNG.integers(low.min, low.max + 1, (*many, 29, k), left)
            b = RNG.integers(high.min, high.max + 1, (*many, k, n), right)
            yield f"matmul, {left} and {right}", partial(qk.matmul, a, b, a_zero_point=3)


def elementwise():
    x = np.ldexp(RNG.normal(size=(77, 130)).astype(np.float32), np.arange(77)[:, None] // 5 - 9)
    floats = "float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float4_e2m1fn"
    for dtype in ("int8", "uint8", "int16", "int4", "uint4", "int2", *floats):
        for axes in ({}, {"axis": 0}, {"axis": 1}, {"axis": 1, "block_size": 13}):
            params = qk.choose_qparams(x, dtype, **axes)
            q = qk.quantize(x, params)
            yield f"quantize, {dtype}, {axes}", partial(qk.quantize, x, params)
            yield f"fake_quantize, {dtype}, {axes}", partial(qk.fake_quantize, x, params)
            yield f"dequantize, {dtype}, {axes}", partial(qk.dequantize, q, params)
            if "float" not in dtype:
                by_chance = dict(rounding="stochastic", seed=7)
                yield f"quantize, stochastic, {dtype}, {axes}", partial(qk.quantize, x, params, **by_chance)
                yield f"fake_quantize_grad, {dtype}, {axes}", partial(qk.fake_quantize_grad, x, x, params)
        if "float" not in dtype:
            yield f"choose_qparams, mse, {dtype}", partial(qk.choose_qparams, x, dtype, axis=0, method="mse")
    sums = RNG.integers(-(2**31), 2**31, (77, 130), np.int32)
    for rounding in ("half_even", "half_away", "gemmlowp", "tflite"):
        multiplier = np.ldexp(1 + np.arange(130) / 256, -30 + np.arange(130) // 20)
        yield (
            f"requantize, {rounding}",
            partial(qk.requantize, sums, multiplier, qk.QParams(1, 3, "uint8"), rounding=rounding),
        )


def tables():
    x = RNG.normal(size=(130, 48)).astype(np.float32)
    for k in (2, 3, 16, 100, 256):
        book = qk.Codebook(np.sort(RNG.normal(size=k)).astype(np.float32))
        yield f"encode, {k} levels", partial(qk.encode, x, book)
        yield f"decode, {k} levels", partial(qk.decode, RNG.integers(0, k, (9, 333)).astype(np.uint8), book)
        yield f"kmeans1d, {k}", partial(qk.kmeans1d, x, k)
    for k, d in ((16, 4), (256, 8), (33, 3)):
        book = qk.Codebook(RNG.normal(size=(48 // d, k, d)).astype(np.float32), vector=True)
        codes = qk.encode(x, book)
        yield f"encode, vectors, {k}", partial(qk.encode, x, book)
        yield f"search, {k}", partial(qk.search, x[:7], codes, book, 11)
    for dtype in (np.float32, np.float64):
        yield f"kmeans, {dtype.__name__}", partial(qk.kmeans, x.astype(dtype), 9, rng=0)


def digest(function):
    return hashlib.sha256(repr(test_fpmode.bits(function())).encode()).hexdigest()[:16]


def lines():
    """`instruction set, number and name of the call: hash` for each."""
    with np.errstate(all="ignore"):
        every = [call for group in (small, products, elementwise, tables) for call in group()]
        for isa in runtime.available_isas():
            runtime.set_isa(isa)
            for i, (name, function) in enumerate(every):
                yield f"{isa}, {i}, {name}: {digest(function)}"


def checksums():
    """The hash of each of the larger calls, on the instruction set in use."""
    global RNG
    RNG = ExactRandom(22)
    with np.errstate(all="ignore"):
        return {name: digest(function) for group in (products, elementwise, tables) for name, function in group()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--checksums", action="store_true")
    print(json.dumps(checksums(), indent=0) if parser.parse_args().checksums else "\n".join(lines()))
