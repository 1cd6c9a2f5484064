"""Whatever the caller's floating-point mode and np.errstate: results have the same bits, and both are as before."""

import ctypes
import hashlib
import inspect
import pickle
import platform
import re
import tempfile
import threading
import warnings
from functools import cache, partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from common import COMPILER, python, run

import qkernels as qk

HERE = Path(__file__).parent
FLUSH, DENORMALS, DOWN, UP, TO_ZERO = (
    (0x8000, 0x40, 0x2000, 0x4000, 0x6000)
    if platform.machine() == "x86_64"
    else (1 << 24, 1 << 19, 2 << 22, 1 << 22, 3 << 22)
)
DEFAULT = 0x1F80 | 0x37F << 32 if platform.machine() == "x86_64" else 0
SINGLE_TO_ZERO = 0x0F00 ^ 0x0300 << 32 if platform.machine() != "x86_64" else (0x0C7F ^ 0x037F) << 32  # of the x87
MODES = {
    "flush": FLUSH,
    "denormals": DENORMALS,
    "both": FLUSH | DENORMALS,
    "down": DOWN,
    "up": UP,
    "zero": TO_ZERO,
    "up and both": UP | FLUSH | DENORMALS,
    "zero, both, x87": TO_ZERO | FLUSH | DENORMALS | SINGLE_TO_ZERO,
}


@cache
def helper(folder=None):
    """fpmode.c, compiled."""
    path = Path(folder or tempfile.mkdtemp()) / "fpmode.so"
    run(COMPILER, "-O1", "-shared", "-fPIC", HERE / "fpmode.c", "-o", path)
    library = ctypes.CDLL(str(path))
    library.get_mode.restype, library.set_mode.restype = ctypes.c_uint64, None
    library.set_mode.argtypes = [ctypes.c_uint64]
    return library


# ---- every public function, with inputs that a mode would reach ----

RNG = np.random.default_rng(10)
F32, BF16 = np.float32, ml_dtypes.bfloat16
NEAR_TIES = np.linspace(-4, 4, 257) + np.tile([0, 1e-17, -1e-17], 86)[:257]  # halves among them
HALVES = np.float16([6e-8, -3e-7, 1e-6, 3e-5, -6.1e-5, 0.1, 1, -2])
TINY = F32([1e-45, -3e-42, 5e-39, 1.1e-38, -1.2e-38, 2e-38, 0, 7e-40])
TINY64 = np.float64([5e-324, -1e-310, 2e-308, 1e-300, -1e-45, 1e-39, 0.1, 1e-50])
MANY_HALVES = np.tile(HALVES, 1 << 14)
MANY = RNG.normal(size=(1 << 15, 4)).astype(F32) * F32(1e-38)
SUBNORMAL = MANY[:4] * F32(1e-2)
THIRDS = np.float64(MANY[:99]) / 3
WIDE = (RNG.normal(size=(128, 256)) * np.logspace(-39, 3, 128)[:, None]).astype(F32)
CODES = RNG.integers(-127, 128, (256, 64), np.int8)
THIRD = np.longdouble(1) / 3
SMALLEST = 2.0**-126


def floats_of(x):
    """x in each float type."""
    return {t.__name__: x.astype(t) for t in (np.float16, F32, BF16, np.float64)}


@cache
def weights():
    """PackedMatrix of each kind, K = 256 and N = 64."""
    four = RNG.integers(-8, 8, (256, 64)).astype(ml_dtypes.int4)
    small = np.full((8, 64), 6e-8, F32) * RNG.integers(1, 9, (8, 64))
    book = qk.Codebook.fit(RNG.normal(size=500).astype(F32), 16, block_size=32)
    blocks = qk.Codebook(book.levels, axis=0, block_size=32)
    codes, scales = qk.encode(RNG.normal(size=(256, 64)).astype(F32) * F32(1e-39), blocks)
    own = qk.Codebook(np.sort(RNG.normal(size=(64, 16)) * 1e-38), axis=1)
    floats = RNG.normal(size=(256, 64)) * np.logspace(-8, 0, 256)[:, None]
    return {
        "int8": qk.pack(CODES, qk.QParams(1e-37)),
        "uint8": qk.pack(CODES.view(np.uint8), qk.QParams(np.linspace(0.01, 0.02, 64), np.arange(64), "uint8", axis=1)),
        "int16": qk.pack(CODES * np.int16(256), qk.QParams(1e-36, dtype="int16")),
        "int4": qk.pack(four, qk.QParams(np.float16(small), dtype="int4", axis=0, block_size=32)),
        "int4, float32 scales": qk.pack(four, qk.QParams(small * F32(1e-30), dtype="int4", axis=0, block_size=32)),
        "codebook": qk.pack(codes, blocks, scales=scales),
        "codebook of columns": qk.pack(qk.encode(floats.astype(F32), own), own),
        "float16": qk.pack(floats.astype(np.float16), None),
        "bfloat16": qk.pack((floats * 1e-35).astype(BF16), None),
    }


def observed(name, axis):
    """All that an observer of that name tells of small numbers."""
    options = {"rate": THIRD} if name == "MovingAverage" else {}
    seen = getattr(qk.observers, name)(axis=axis, **options).update(MANY[:4096]).update(THIRDS)
    if name != "MovingAverage":
        seen.merge(pickle.loads(pickle.dumps(seen)))
    return seen.to_arrays(), seen.qparams("int8"), seen.qparams("uint8"), repr(seen)


def elementwise():
    yield "quantize", partial(qk.quantize, HALVES[:4], qk.QParams(2e-7))
    yield "quantize", partial(qk.quantize, [np.float32(1e-40), 2.0], qk.QParams(SMALLEST))
    yield "quantize", partial(qk.quantize, MANY_HALVES, qk.QParams(2e-7))
    for x in (HALVES, TINY, TINY64, NEAR_TIES, MANY):
        for y in floats_of(x).values():
            for params in (
                qk.QParams(SMALLEST, 3, "uint8"),
                qk.QParams(0.1, dtype="int16"),
                qk.QParams(2e-38, dtype="float8_e4m3fn"),
                qk.QParams(0.3, dtype="float4_e2m1fn"),
                qk.QParams(1e-3, dtype="float8_e5m2"),
            ):
                yield "quantize", partial(qk.quantize, y, params)
                yield "fake_quantize", partial(qk.fake_quantize, y, params)
            yield "quantize", partial(qk.quantize, y, qk.QParams(0.25), rounding="half_away")
            yield "quantize", partial(qk.quantize, y, qk.QParams(SMALLEST, 3, "uint8"), rounding="stochastic", seed=1)
            for scale in (SMALLEST, 0.1):
                yield "fake_quantize_grad", partial(qk.fake_quantize_grad, y, y, qk.QParams(scale, 3, "uint8"))
            for dtype in ("uint8", "int4", "float8_e5m2"):
                yield "dynamic_quantize", partial(qk.dynamic_quantize, y, dtype)
                yield "choose_qparams", partial(qk.choose_qparams, y, dtype)
    yield "quantize", lambda: qk.quantize(MANY, qk.QParams([SMALLEST, 2e-38, 3e-38, 1e20], axis=1))
    yield "dynamic_quantize", lambda: qk.dynamic_quantize(WIDE, axis=0)
    for dtype in floats_of(TINY):
        dtype = BF16 if dtype == "bfloat16" else dtype
        yield "dequantize", partial(qk.dequantize, CODES, qk.QParams(SMALLEST / 2 * 3, 5), dtype=dtype)
        yield (
            "dequantize",
            partial(qk.dequantize, np.arange(-999, 999, dtype=np.int32) * 2**20, qk.QParams(1e-6 / 3), dtype=dtype),
        )
        yield (
            "dequantize",
            partial(
                qk.dequantize,
                np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
                qk.QParams(2e-38, dtype="float8_e4m3fn"),
                dtype=dtype,
            ),
        )
    for method in ("minmax", "mse"):
        for x in (np.float16([0, 1, 2]), HALVES, TINY, NEAR_TIES.astype(F32), MANY[:64].T):
            yield "choose_qparams", partial(qk.choose_qparams, x, "uint8", method=method)
            yield "choose_qparams", partial(qk.choose_qparams, x, "int4", axis=0, method=method)
    yield (
        "choose_qparams",
        lambda: qk.choose_qparams(np.tile(MANY, (2, 2)).T, "int4", axis=0, method="mse"),
    )  # by threads
    yield "choose_qparams", partial(qk.choose_qparams, WIDE.astype(np.float64), "int4", axis=1, block_size=32)
    yield "choose_qparams", partial(qk.choose_qparams, np.float64([1, 1e-3]) / 3, "int8")
    for method in ("percentile", "entropy"):
        for x in (HALVES, TINY, NEAR_TIES.astype(F32), TINY64):
            yield "choose_qparams", partial(qk.choose_qparams, x, "uint8", method=method)
    for name in qk.observers.__all__:
        for axis in (None, 1):
            yield "choose_qparams", partial(observed, name, axis)
    for scale in (0.1, THIRD, np.float64(1e-37) / 3, np.float16(6e-8), BF16(1e-38 * 2)):
        yield "QParams", partial(qk.QParams, scale)
    yield "QParams", lambda: repr(qk.QParams(0.1, 3, "uint8"))
    for scale in (HALVES[HALVES > 0], TINY[TINY > 2e-38], NEAR_TIES[NEAR_TIES > 0]):
        params = qk.QParams(scale, axis=0)
        yield "QParams", lambda params=params: pickle.loads(pickle.dumps(params))
    yield "QParams", partial(qk.QParams, np.array([THIRD, 1 - THIRD / 8]), axis=0)


def rounding():
    sums = RNG.integers(-(2**31), 2**31, (64, 512), np.int32)
    for how in ("half_even", "half_away", "gemmlowp", "tflite"):
        for multiplier in (1e-8 / 3, THIRD * 1e-8, 1e-320, np.linspace(1e-9, 1e-7, 512), np.float16(6e-8)):
            yield "requantize", partial(qk.requantize, sums, multiplier, qk.QParams(1, 3, "uint8"), rounding=how)
        yield (
            "requantize",
            partial(qk.requantize, np.arange(-99, 99, dtype=np.int32), 0.5, qk.QParams(1, dtype="int16"), rounding=how),
        )
    for m in (0.1, THIRD, np.float64([5e-324, 2.0**-31, 1 - 2.0**-53, 1e300]), F32(1e-45)):
        yield "quantize_multiplier", partial(qk.quantize_multiplier, m)


def products():
    yield "matmul", lambda: qk.matmul(CODES.view(np.uint8), CODES.T, a_zero_point=3)
    floats = {
        "some": WIDE,
        "tiny64": np.float64(WIDE[:3]) * 1e-30,
        "halves": np.tile(HALVES, (2, 32)),
        "bfloat16": WIDE[:5].astype(BF16),
    }
    bias = np.linspace(-1e-38, 1e-38, 64).astype(F32)
    for packed in weights().values():
        for x in floats.values():
            yield "linear", partial(qk.linear, x, packed)
        for activation in ("relu", "gelu", "gelu_tanh", "silu"):
            yield "linear", partial(qk.linear, WIDE, packed, bias, activation=activation)
        residual = WIDE[:, :64].copy()
        yield (
            "linear",
            partial(qk.linear, WIDE, packed, bias.astype(np.float64) / 3, residual=residual, clamp=(-THIRD, 1e300)),
        )
        yield "PackedMatrix", packed.to_arrays
        yield (
            "PackedMatrix",
            lambda packed=packed: (packed.level_error, packed.unpack(), pickle.loads(pickle.dumps(packed))),
        )
        yield "PackedMatrix", lambda packed=packed: (qk.PackedMatrix.from_arrays(packed.to_arrays()), repr(packed))
        yield "pack", partial(qk.pack, packed.unpack(), packed.params, scales=packed.scales)
    for rounding in ("half_even", "half_away", "gemmlowp", "tflite"):
        for name in ("int8", "uint8"):
            packed = weights()[name]
            call = partial(qk.qlinear, CODES.T.copy(), qk.QParams(0.1, -3), packed, rounding=rounding)
            out = qk.QParams(packed.params.scale.max() * 3000, 7, "uint8")
            yield "qlinear", partial(call, out)
            yield "qlinear", partial(call, out, activation="relu", clamp=(0, 1e300), bias=np.arange(64, dtype=np.int32))
            if rounding.startswith("half"):
                yield (
                    "qlinear",
                    partial(call, out, np.float64(packed.params.scale) * np.ones(64) / 3, activation="silu"),
                )


def convolutions():
    images = CODES.reshape(-1)[: 6 * 7 * 32].reshape(1, 6, 7, 32)
    params, to = qk.QParams(0.1, -3), qk.QParams(THIRD, 7, "uint8")
    for shape, groups in ((3, 3, 32, 5), 1), ((3, 3, 16, 6), 2), ((5, 3, 1, 32), 32):
        w = np.resize(CODES, shape)
        weights = qk.QParams(np.linspace(1e-3, THIRD, shape[3]), axis=3)
        packed = qk.pack_conv(w, weights, groups=groups)
        yield "PackedConv", lambda packed=packed: (packed.unpack(), pickle.loads(pickle.dumps(packed)), repr(packed))
        yield "PackedConv", lambda packed=packed: qk.PackedConv.from_arrays(packed.to_arrays())
        yield "pack_conv", partial(qk.pack_conv, w, weights, groups=groups)
        for rounding in ("half_even", "half_away", "gemmlowp", "tflite"):
            call = partial(qk.qconv2d, images, params, packed, to, padding=1, rounding=rounding)
            yield "qconv2d", partial(call, clamp=(0, 1e300))
            if rounding.startswith("half"):
                yield "qconv2d", partial(call, np.linspace(-1e-38, 0.3, shape[3]), activation="silu")
        yield "qconv2d", partial(qk.qconv2d, images, params, packed, None)
    yield "max_pool2d", partial(qk.max_pool2d, images, 2)
    yield "qaverage_pool2d", partial(qk.qaverage_pool2d, images, params, to, 3, padding="same_upper")
    yield "qglobal_average_pool", partial(qk.qglobal_average_pool, images, params, qk.QParams(1e-37))


def layers():
    one, zero = np.ones(256, F32), np.zeros(256, F32)
    for eps in (1e-12, THIRD * 1e-12, 0, F32(1e-42)):
        yield "layer_norm", partial(qk.layer_norm, WIDE, one, zero, eps=eps)
    yield "layer_norm", partial(qk.layer_norm, WIDE, one * F32(1e-30), zero + F32(1e-42), residual=WIDE[::-1].copy())
    for scale in (None, 0.1, THIRD, 1e-30):
        yield "attention", partial(qk.attention, WIDE, WIDE[::-1], WIDE, 8, scale=scale)
    yield "attention", partial(qk.attention, WIDE * F32(1e-30), WIDE, WIDE * F32(1e-30), 4, starts=[0, 60, 128])
    tiny, to = qk.QParams(SMALLEST * 3), qk.QParams(np.full(64, SMALLEST), axis=-1)
    options = dict(residual=CODES, params=tiny, residual_params=tiny, out_params=to)
    yield "layer_norm", partial(qk.layer_norm, CODES, WIDE[0, :64] * F32(1e-37), WIDE[1, :64] * F32(1e-37), **options)
    yield "attention", partial(qk.attention, CODES, CODES, CODES, 4, params=tiny, out_params=tiny, scale=THIRD)
    for inverse in False, True:
        yield "rotate", partial(qk.rotate, WIDE[:, :192], 3, inverse=inverse)
    yield "smooth", partial(qk.smooth, WIDE, np.abs(WIDE[:, 0]), THIRD)


def integer_layers():
    weight, bias = WIDE[:2, :64].copy()
    tiny, third = qk.QParams(SMALLEST * 3), qk.QParams(1 / 3, 5)
    for params, to in (third, qk.QParams(0.01)), (tiny, tiny), (third, tiny), (tiny, qk.QParams(1e30)):
        for rounding in ("half_even", "tflite"):
            yield "qadd", partial(qk.qadd, CODES, params, CODES[::-1], third, to, rounding=rounding)
            yield "qmultiply", partial(qk.qmultiply, CODES, params, CODES[0], tiny, to, rounding=rounding)
            parts = ((CODES, params), (CODES, third))
            yield "qconcatenate", partial(qk.qconcatenate, parts, to, axis=1, rounding=rounding)
        for name in ("gelu", "hard_swish", "softplus", np.positive):
            yield "make_table", partial(qk.make_table, name, params, to)
        yield "qsoftmax", partial(qk.qsoftmax, CODES, params, to)
        for eps in (0, 1e-12, THIRD * 1e-30):
            yield "qlayer_norm", partial(qk.qlayer_norm, CODES, params, weight, bias, to, eps=eps)
            yield "qrms_norm", partial(qk.qrms_norm, CODES, params, weight, to, eps=eps)
    yield "take_table", partial(qk.take_table, CODES, np.arange(256, dtype=np.uint8))
    yield "fold_batchnorm", partial(qk.fold_batchnorm, WIDE, None, *WIDE[:3], np.abs(WIDE[3]), eps=THIRD * 1e-9)
    yield "quantize_bias", partial(qk.quantize_bias, weight * F32(1e-38), tiny, third)


def codebooks():
    tables = {
        "tiny": qk.Codebook(np.sort(TINY)),
        "ties": qk.Codebook([0, 1, 2, 1e-45, 3]),
        "many": qk.Codebook(NEAR_TIES[:256]),
        "blocks": qk.Codebook([-1, -1e-40, 0, 0.5, 1], block_size=4),
        "channels": qk.Codebook(MANY[:8], axis=0),
    }
    for name, book in tables.items():
        for x in (
            TINY,
            HALVES,
            TINY64 * (1 if name != "blocks" else 1e-10),
            NEAR_TIES.astype(F32)[:256],
            *([MANY] if name != "channels" else []),
        ):
            x = x[:8] if name == "channels" else x
            yield "encode", partial(qk.encode, x, book)
        yield "Codebook", lambda book=book: (book, repr(book), pickle.loads(pickle.dumps(book)))
    yield "decode", lambda: qk.decode(np.arange(8, dtype=np.uint8), tables["tiny"])
    yield "decode", partial(qk.decode, np.arange(64, dtype=np.uint8) % 5, tables["blocks"], TINY64.repeat(2))
    for levels in (THIRD * np.arange(4), TINY64, BF16(TINY)):
        yield "Codebook", partial(qk.Codebook, levels)
    for name in ("NF4", "FP4"):
        yield (
            name,
            lambda name=name: (
                getattr(qk._codebook, f"_{name.lower()}")(),
                qk.encode(WIDE, getattr(qk, name)),
            ),
        )
        yield (
            name,
            partial(qk.decode, qk.encode(WIDE, getattr(qk, name))[0], getattr(qk, name), np.full(512, 1e-39, F32)),
        )
    for x in (TINY, HALVES, TINY64, WIDE):
        yield "Codebook", partial(qk.Codebook.fit, x, 3)
        yield "Codebook", partial(qk.Codebook.fit, x, 3, zero=True, weights=np.abs(x.astype(np.float64)))
    yield "Codebook", lambda: qk.Codebook.fit(WIDE, 4, axis=0)
    yield "Codebook", lambda: qk.Codebook.fit(WIDE, 4, block_size=16)
    vectors = {
        1.0: qk.Codebook(WIDE[:128].reshape(2, 64, 256), vector=True),
        1e-30: qk.Codebook(WIDE[:2, :16].reshape(4, 8) * F32(1e-36), vector=True),
    }
    for factor, book in vectors.items():
        x = np.tile(WIDE, 2) * F32(factor)
        codes = qk.encode(x, book)
        yield "encode", partial(qk.encode, x, book)
        yield "decode", partial(qk.decode, codes, book)
        yield "distance_tables", partial(qk.distance_tables, x[:9], book)
        yield "search", partial(qk.search, x[:9], codes, book, 5)
    yield "Codebook", lambda: qk.Codebook.fit(WIDE, 4, vector=64, rng=0)


def clusters():
    columns = np.float64(WIDE[:, :4]) * [1, 1e-50, 1e-100, 1e50]
    for x in (MANY[:4096], WIDE[:, :8], columns, HALVES.reshape(4, 2)):
        for init in ("k-means++", "random"):
            yield "kmeans", partial(qk.kmeans, x, 4, init=init, rng=1)
        yield (
            "kmeans",
            partial(
                qk.kmeans, x, 3, init=x[:3].astype(np.float64), weights=np.linspace(0, 1e-310, len(x)), tol=THIRD * 1e-9
            ),
        )
    for x in (TINY, HALVES, TINY64, NEAR_TIES, MANY_HALVES):
        yield "kmeans1d", partial(qk.kmeans1d, x, 3)
    yield "kmeans1d", partial(qk.kmeans1d, WIDE[::8], 5, axis=1, weights=np.linspace(1e-310, 1, 256))
    yield "kmeans1d", lambda: qk.kmeans1d(MANY, 5, axis=0)
    losses, sizes = np.abs(THIRDS[:8]).reshape(4, 8), np.linspace(1e-310, 1, 8)
    seen = qk.Hessian(4).update(MANY[:100]).update(MANY[:100] * F32(1e37)).merge(qk.Hessian(4).update(MANY[:9]))
    yield "Hessian", lambda: list(pickle.loads(pickle.dumps(seen)).update(MANY[:9]).to_arrays().values())
    yield "sensitivity", lambda: qk.sensitivity(MANY[:4], seen, [qk.QParams(SMALLEST), -MANY[:4]], center=True)
    for grid in (qk.QParams(SMALLEST, dtype="int4"), qk.Codebook([-1e-38, 0, 2e-38])):
        yield "gptq", lambda grid=grid: [a for a in qk.gptq(MANY[:4], seen, grid) if isinstance(a, np.ndarray)]
        yield "gptq", lambda grid=grid: qk.gptq(MANY[:4], seen, grid, refit=True).codes
    yield "GPTQResult", lambda: qk.GPTQResult(*qk.gptq(MANY[:4], seen, qk.QParams(SMALLEST), refine=0)).codes
    yield "prune", lambda: list(qk.prune(MANY[:4], seen, 0.5)[:2])
    yield "prune", lambda: qk.prune(SUBNORMAL, seen, "1:2", damp=THIRD, passes=3).weights
    yield "PruneResult", lambda: qk.PruneResult(*qk.prune(MANY[:4], seen, "1:2")).weights
    yield "allocate_bits", partial(qk.allocate_bits, losses, sizes, 1.7)
    yield "pareto", partial(qk.pareto, losses, np.outer([1, 2, 3, 4], sizes))
    yield "Allocation", lambda: qk.Allocation(*qk.allocate_bits(losses, sizes, THIRD * 4))
    yield "KMeansResult", lambda: qk.KMeansResult(*qk.kmeans1d([0.1, 0.2, 0.7], 2))


def storage():
    yield "pack_bits", lambda: qk.pack_bits(CODES & 15, 5)
    yield "pack_codes", lambda: qk.pack_codes(CODES.view(np.uint8) & 15)
    yield "PackedCodes", lambda: qk.PackedCodes.from_arrays(qk.pack_codes(CODES.view(np.uint8) & 15).to_arrays())
    yield "unpack_bits", lambda: qk.unpack_bits(np.arange(256, dtype=np.uint8), 3, 682)
    for kind, (_, values, size, _) in qk.gguf.KINDS.items():
        yield "from_gguf", partial(qk.from_gguf, np.tile(np.arange(60, dtype=np.uint8), size), kind)
        if kind in qk.gguf.WRITTEN:
            yield "to_gguf", partial(qk.to_gguf, np.geomspace(1e-38, 1, 2 * values, dtype=F32), kind)
    for kind in ("Q8_0", "Q4_0", "MXFP4"):
        for x in np.full((1, 32), 0.005, F32), *(np.tile(x, 4) for x in (TINY, HALVES, TINY64, MANY_HALVES)), WIDE:
            yield "to_gguf", partial(qk.to_gguf, x, kind)
            yield "from_gguf", partial(qk.from_gguf, qk.to_gguf(x, kind), kind)


def settings():
    yield "get_include", qk.get_include
    yield "get_num_threads", lambda: qk.get_num_threads() >= 1
    yield "set_num_threads", lambda: qk.set_num_threads(qk.get_num_threads())
    yield "show_config", qk.show_config

    def inside():
        with qk.num_threads(2):
            return qk.get_num_threads()

    yield "num_threads", inside


@cache
def calls():
    """(name, function without arguments), made in the default mode."""
    with np.errstate(all="ignore"):
        return [
            call
            for group in (
                elementwise,
                rounding,
                products,
                convolutions,
                layers,
                integer_layers,
                codebooks,
                clusters,
                storage,
                settings,
            )
            for call in group()
        ]


def bits(result):
    """All of a result, as what can be compared and hashed."""
    if isinstance(result, (np.ndarray, np.generic)):
        return result.dtype.name, result.shape, result.tobytes()
    if isinstance(result, (tuple, list)):
        return tuple(map(bits, result))
    if isinstance(result, dict):
        return tuple((key, bits(value)) for key, value in result.items())
    if isinstance(result, qk.QParams):
        where = result.axis, result.block_size, result.qmin, result.qmax
        return bits((result.scale, result.zero_point, result.dtype.name, *where))
    if isinstance(result, qk.Codebook):
        return bits((result.levels, result.axis, result.block_size, result.vector))
    if isinstance(result, qk.PackedMatrix):
        return bits((result.to_arrays(), result.params, result.scales))
    if isinstance(result, qk.PackedConv):
        return bits((result.to_arrays(), result.params, result.groups))
    if hasattr(result, "to_arrays"):
        return bits(result.to_arrays())
    return result.hex() if isinstance(result, float) else result


def in_mode(mode, function):
    """(what it gives, the mode afterwards)."""
    mode_of = helper()
    mode_of.set_mode(DEFAULT ^ mode)
    try:
        result = function()
        after = mode_of.get_mode()
    finally:
        mode_of.set_mode(DEFAULT)
    return result, after ^ DEFAULT


@cache
def expected():
    with np.errstate(all="ignore"), qk.num_threads(1):
        return [bits(function()) for _, function in calls()]


def differing(mode):
    """Names of functions whose result depends on the mode, or that leave another mode behind."""
    found = set()
    for (name, function), right in zip(calls(), expected()):
        result, after = in_mode(mode, function)
        if bits(result) != right:
            found.add(name)
        if after != mode:
            found.add(f"{name} leaves {after:x}")
    return found


# ---- tests ----


def test_no_public_name_is_forgotten():
    assert {name for name, _ in calls()} == set(qk.__all__)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_results_do_not_depend_on_the_mode(isas, mode):
    for isa in isas():
        for threads in (1, 2):
            with qk.num_threads(threads):
                assert differing(mode) == set(), f"{isa}, {threads} threads"


def test_results_do_not_depend_on_the_mode_of_another_thread():
    """A Python thread that calls has a mode of its own."""
    found = []
    with qk.num_threads(2):
        for mode in (MODES["both"], MODES["zero, both, x87"]):
            thread = threading.Thread(target=lambda: found.append(differing(mode)))
            thread.start()
            thread.join()
            found.append(differing(0))
    assert found == [set()] * 4


BORN = """
import ctypes, sys
import numpy, ml_dtypes
library, mode = ctypes.CDLL(sys.argv[1]), int(sys.argv[2])
library.get_mode.restype, library.set_mode.argtypes, library.set_mode.restype = ctypes.c_uint64, [ctypes.c_uint64], None
default = library.get_mode()
library.set_mode(default ^ mode)
import qkernels
library.set_mode(default)
import test_fpmode
with qkernels.num_threads(2):
    print(test_fpmode.digest(mode), test_fpmode.digest(0))
"""


def digest(mode):
    results = [bits(in_mode(mode, function)[0]) for name, function in calls() if name != "show_config"]
    return hashlib.sha256(repr(results).encode()).hexdigest()


def test_threads_born_in_a_mode_do_not_keep_it(tmp_path):
    """The pool, and Python's threads, start while the mode is set; then it is taken away."""
    helper(tmp_path)
    digests = set()
    for mode in (0, MODES["zero, both, x87"]):
        ran = python("-c", BORN, tmp_path / "fpmode.so", str(mode), cwd=HERE, OMP_NUM_THREADS="2")
        assert ran.returncode == 0, ran.stderr
        digests.update(ran.stdout.split()[-2:])
    assert len(digests) == 1


TRAPS = """
import test_fpmode
for i, (name, function) in enumerate(test_fpmode.calls()):
    print(name, i, flush=True)
    result, after = test_fpmode.in_mode(test_fpmode.TRAPPING, function)
    assert test_fpmode.bits(result) == test_fpmode.bits(function()), name
    assert after == test_fpmode.TRAPPING
"""
TRAPPING = 0x1F80 | 0x3F << 32  # every exception unmasked, here and in the x87


@pytest.mark.skipif(platform.machine() != "x86_64", reason="few other CPUs have traps")
def test_unmasked_exceptions_do_not_trap(tmp_path):
    ran = python("-c", TRAPS, cwd=HERE)
    assert ran.returncode == 0, ran.stdout[-100:] + ran.stderr[-2000:]


def refuse(*args):
    raise AssertionError(f"NumPy reported {args}")


@pytest.mark.parametrize("state", ["raise", "warn", "call", "print"])
def test_error_state_of_numpy_reaches_no_function(state, capfd):
    found = set()
    for (name, function), right in zip(calls(), expected()):
        with warnings.catch_warnings(), np.errstate(all=state, call=refuse):
            warnings.simplefilter("error")
            before = np.geterr()
            try:
                result = function()
            except (FloatingPointError, RuntimeWarning, AssertionError) as error:
                found.add(f"{name}: {error}")
                continue
            assert np.geterr() == before
        if bits(result) != right:
            found.add(name)
    assert found == set()
    assert "Warning" not in "".join(capfd.readouterr())


FAILING = {
    "quantize": lambda: qk.quantize(TINY, qk.QParams([1, 2], axis=0)),
    "QParams": lambda: qk.QParams(1e-40),
    "choose_qparams": lambda: qk.choose_qparams(F32([np.nan])),
    "requantize": lambda: qk.requantize(np.int32([1]), -1.0, qk.QParams(1)),
    "linear": lambda: qk.linear(F32([[np.inf] * 256]), weights()["int8"]),
    "qlinear": lambda: qk.qlinear(np.int8([[1]]), qk.QParams(1), weights()["int8"], qk.QParams(1)),
    "pack": lambda: qk.pack(np.float16([[np.nan]]), None),
    "layer_norm": lambda: qk.layer_norm(TINY, TINY, TINY, eps=-1.0),
    "attention": lambda: qk.attention(WIDE, WIDE, WIDE, 4, scale=-1.0),
    "encode": lambda: qk.encode(np.float64([1e300, 1]), qk.Codebook([0, 1], block_size=2)),
    "fit": lambda: qk.Codebook.fit(TINY, 3, weights=-np.ones(8)),
    "kmeans": lambda: qk.kmeans(WIDE, 3, callback=lambda iteration, inertia: 1 / 0),
    "kmeans1d": lambda: qk.kmeans1d([1.0, np.nan], 1),
    "to_gguf": lambda: qk.to_gguf(np.full(32, 1e30), "Q8_0"),
    "quantize_multiplier": lambda: qk.quantize_multiplier(-1.0),
}


@pytest.mark.parametrize("name", FAILING)
def test_mode_is_as_before_after_an_exception(name):
    mode, mode_of = MODES["zero, both, x87"], helper()
    calls()  # whose weights are made in the default mode
    mode_of.set_mode(DEFAULT ^ mode)
    try:
        with pytest.raises((ValueError, TypeError, ZeroDivisionError)), np.errstate(all="raise"):
            FAILING[name]()
        assert mode_of.get_mode() ^ DEFAULT == mode
    finally:
        mode_of.set_mode(DEFAULT)


def test_callback_sees_the_mode_and_the_error_state_of_its_user():
    seen, mode = [], MODES["both"]

    def callback(iteration, inertia):
        seen.append((helper().get_mode() ^ DEFAULT, np.geterr()["under"], bits(qk.quantize(HALVES, qk.QParams(2e-7)))))

    def cluster():
        with np.errstate(all="raise"):
            return qk.kmeans(WIDE, 3, rng=0, callback=callback)

    result, after = in_mode(mode, cluster)
    assert after == mode and bits(result) == bits(qk.kmeans(WIDE, 3, rng=0))
    assert set(seen) == {(mode, "raise", bits(qk.quantize(HALVES, qk.QParams(2e-7))))}


def test_functions_keep_name_signature_and_docstring_and_can_be_pickled():
    functions = [getattr(qk, name) for name in qk.__all__ if name not in ("FP4", "NF4")]
    for function in functions:
        assert pickle.loads(pickle.dumps(function)) is function
        assert function.__doc__ and function.__module__.startswith("qkernels")
        assert "args" not in inspect.signature(function).parameters
    assert list(inspect.signature(qk.choose_qparams).parameters)[:3] == ["x", "dtype", "axis"]
    assert list(inspect.signature(qk.QParams).parameters)[:2] == ["scale", "zero_point"]


# These count, copy and look up, without arithmetic of floats, or hand all of it to one of the others.
WITHOUT_FLOATS = re.compile(
    r"qk_(active|find|name|built|activate|version|status_text|(set|get)_isa|(set|get)_num_threads|most_threads|"
    r"set_interrupt|gemm8_kernels_for|\w+_init|\w+_bytes|\w+_free|weights_(rows|cols)|"
    r"scale_count|most_rows|multiply|book_tables|histogram_(new|block|least|most)|group_columns|"
    r"order_channels|fake_grad_sums|set_alone|holds_as_half)"
)


def test_functions_of_the_c_interface_begin_with_the_default_mode():
    sources = "\n".join(path.read_text() for path in (HERE.parent / "csrc").rglob("*.c"))
    headers = [(HERE.parent / "csrc" / name).read_text() for name in ("include/qkernels.h", "drivers/drivers.h")]
    header = re.sub(r"/\*.*?\*/", "", "\n".join(headers), flags=re.DOTALL)
    declared = set(re.findall(r"\b(qk_\w+)\(", header))
    assert len(declared) > 50
    for name in declared:
        if not WITHOUT_FLOATS.fullmatch(name):
            body = re.search(rf"^\w[^;{{}}]*\b{name}\([^;{{}}]*\)\n?\s*\{{\s*(.*)", sources, flags=re.MULTILINE)
            assert body and body[1] == "QK_DEFAULT_MODE;", name
