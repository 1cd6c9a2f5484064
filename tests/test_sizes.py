"""What packed weights hold, and shapes whose sizes no memory, or no 64 bits, can hold. Both run in processes of their
own: ``python test_sizes.py held ISA`` prints bytes, ``python test_sizes.py giants SIZE`` makes calls with arrays of
2**SIZE bytes in 4 GiB."""

import copy
import faulthandler
import gc
import itertools
import json
import math
import pickle
import sys
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from common import python

import qkernels as qk
from qkernels._bind import runtime

K = N = 2048


# ---- what is held ----


def codes(dtype, least=None, most=None):
    info, rng = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype)), np.random.default_rng(0)
    least, most = info.min if least is None else least, info.max + 1 if most is None else most
    return rng.integers(least, most, (K, N)).astype(info.dtype)


def blocks(size, *, half=True, zeros=False):
    """scale and zero_point of blocks of so many rows."""
    rng, shape = np.random.default_rng(1), (-(-K // size), N)
    scale = rng.uniform(0.1, 1, shape).astype(np.float32)
    return (scale.astype(np.float16) if half else scale), rng.integers(0, 8, shape) if zeros else None


def of_columns(dtype, zeros=False):
    rng = np.random.default_rng(2)
    return qk.QParams(rng.uniform(0.1, 1, N), rng.integers(0, 8, N) if zeros else None, dtype, axis=1)


def of_blocks(dtype, size, **options):
    return qk.QParams(*blocks(size, **options), dtype, axis=0, block_size=size)


def coded(size=None, *, own=False, half=True):
    """Arguments of `pack` for codes of a codebook."""
    levels = np.random.default_rng(3).normal(0, 1, (N, 16) if own else 16)
    codebook = qk.Codebook(levels, axis=1 if own else 0 if size else None, block_size=size)
    return codes("uint8", 0, 16), codebook, blocks(size, half=half)[0] if size else None


KINDS = {
    "int8 per tensor": lambda: (codes("int8"), qk.QParams(0.1)),
    "int8 per column": lambda: (codes("int8"), of_columns("int8")),
    "int8 small": lambda: (codes("int8", -32, 32), of_columns("int8")),
    "int8 small with zero points": lambda: (codes("int8", -32, 32), of_columns("int8", True)),
    "uint8 per tensor": lambda: (codes("uint8"), qk.QParams(0.1, 128, "uint8")),
    "uint8 per column": lambda: (codes("uint8"), of_columns("uint8", True)),
    "int8 in blocks of 32": lambda: (codes("int8"), of_blocks("int8", 32)),
    "uint8 in blocks of 64": lambda: (codes("uint8"), of_blocks("uint8", 64, half=False, zeros=True)),
    "int16 per tensor": lambda: (codes("int16"), qk.QParams(0.1, dtype="int16")),
    "int16 per column": lambda: (codes("int16"), of_columns("int16", True)),
    "int4 per tensor": lambda: (codes("int4"), qk.QParams(0.1, dtype="int4")),
    "int4 per column": lambda: (codes("int4"), of_columns("int4")),
    "int4 in blocks of 32": lambda: (codes("int4"), of_blocks("int4", 32)),
    "int4 in blocks of 32, float32 scales": lambda: (codes("int4"), of_blocks("int4", 32, half=False)),
    "int4 in blocks of 20": lambda: (codes("int4"), of_blocks("int4", 20)),
    "int4 in blocks of 10000": lambda: (codes("int4"), of_blocks("int4", 10000)),
    "uint4 per column": lambda: (codes("uint4"), of_columns("uint4", True)),
    "uint4 in blocks of 32": lambda: (codes("uint4"), of_blocks("uint4", 32, zeros=True)),
    "uint4 in blocks of 64, float32 scales": lambda: (codes("uint4"), of_blocks("uint4", 64, half=False, zeros=True)),
    "int2 per tensor": lambda: (codes("int2"), qk.QParams(0.1, dtype="int2")),
    "int2 in blocks of 32": lambda: (codes("int2"), of_blocks("int2", 32)),
    "uint2 in blocks of 20": lambda: (codes("uint2"), of_blocks("uint2", 20)),
    "codebook": coded,
    "codebook of each column": lambda: coded(own=True),
    "codebook in blocks of 64": lambda: coded(64),
    "codebook in blocks of 32, float32 scales": lambda: coded(32, half=False),
    "float16": lambda: (codes("int8").astype(np.float16), None),
    "bfloat16": lambda: (codes("int8").astype(ml_dtypes.bfloat16), None),
}


def pack(arguments):
    return qk.pack(*arguments[:2], scales=arguments[2] if len(arguments) > 2 else None)


def resident():
    """Return the bytes of memory that this process has, without files that the kernel maps and forgets as it likes."""
    fields = Path("/proc/self/status").read_text()
    return 1024 * sum(int(fields.split(name)[1].split()[0]) for name in ("RssAnon:", "VmSwap:"))


def print_held(isa):
    """For each kind what `nbytes` says, what tracemalloc and what the pages of a second matrix say."""
    runtime.set_isa(isa)
    result = {}
    pack(next(iter(KINDS.values()))())  # imports
    for kind, make in KINDS.items():
        tracemalloc.start()
        packed = pack(make())
        for name in ("params", "scales"):
            getattr(packed, name)  # what is made when asked for is not kept
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        gc.collect()  # or what only its cycle held is freed while the second one is made
        gc.disable()
        before = resident()
        more = pack(make())
        result[kind] = packed.nbytes, traced, resident() - before
        gc.enable()
        del more
    print(json.dumps(result))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc's malloc")
@pytest.mark.parametrize("isa", runtime.available_isas())
def test_nbytes_is_what_is_held(isa):
    # What is freed goes back to the system: a matrix that takes pages of what was there before would seem smaller.
    trimmed = dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0", MALLOC_TOP_PAD_="0")
    done = python(__file__, "held", isa, QKERNELS_NUM_THREADS="1", **trimmed)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, (told, traced, pages) in json.loads(done.stdout).items():
        for found in traced, pages:
            assert found == pytest.approx(told, rel=0.02), (kind, told, traced, pages)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_no_more_than_its_values(kind):
    packed = pack(KINDS[kind]())
    arrays = packed.to_arrays()
    stored = sum(array.nbytes for array in arrays.values())
    assert stored <= packed.nbytes + 64
    for protocol in 4, 5:
        assert len(pickle.dumps(packed, protocol)) <= stored + 700
    x = np.random.default_rng(4).normal(0, 1, (3, K)).astype(np.float32)
    copies = pickle.loads(pickle.dumps(packed)), copy.copy(packed), copy.deepcopy(packed)
    for same in qk.PackedMatrix.from_arrays(arrays), *copies:
        assert same.params == packed.params and same.nbytes == packed.nbytes and same.dtype == packed.dtype
        assert np.array_equal(same.scales, packed.scales)
        assert same.unpack().tobytes() == packed.unpack().tobytes()
        assert qk.linear(x, same).tobytes() == qk.linear(x, packed).tobytes()


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("int4 in blocks of 32", 4.51),
        ("uint4 in blocks of 32", 4.76),
        ("int4 per column", 4.02),
        ("int2 per tensor", 2.02),
        ("int2 in blocks of 32", 2.51),
        ("codebook in blocks of 64", 4.26),
        ("int8 per column", 8.02),
    ],
)
def test_bits_of_a_stored_weight(kind, most):
    arguments = KINDS[kind]()
    arrays = pack(arguments).to_arrays()
    assert sum(8 * array.nbytes for array in arrays.values()) <= most * K * N
    if kind == "int4 in blocks of 32":
        same = of_blocks("uint4", 32)
        equal = qk.QParams(same.scale, np.full(same.scale.shape, 7), "uint4", axis=0, block_size=32)
        arrays = qk.pack(codes("uint4"), equal).to_arrays()
        assert arrays["zero_point"].shape == () and sum(8 * array.nbytes for array in arrays.values()) <= most * K * N


def test_arrays_of_before_are_read():
    """Scales were float32 and zero points int32, one for each block."""
    b, params = codes("uint4"), of_blocks("uint4", 32, zeros=True)
    packed = qk.pack(b, params)
    before = packed.to_arrays() | {"scale": params.scale, "zero_point": params.zero_point}
    assert qk.PackedMatrix.from_arrays(before).params == params == packed.params


def test_parameters_are_those_given():
    rng = np.random.default_rng(5)
    for k, n in (0, 0), (0, 5), (5, 0), (1, 1), (3, 33), (70, 35):
        for dtype in "int8", "uint8", "int16", "int4", "uint4":
            info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype))
            least, most = info.min, info.max
            b = rng.integers(least + 1, most + 1, (k, n)).astype(info.dtype)
            of = [((), None, None), ((n,), 1, None), ((n,), -1, None)]
            if dtype != "int16":
                of += [((-(-k // size), n), axis, size) for axis in (0, -2) for size in (3, 32, 1 << 62)]
            for (shape, axis, size), narrow in itertools.product(of, (False, True)):
                equal = None if least < 0 else np.full(shape, 1)
                scales = rng.uniform(0.1, 1, shape).astype(np.float32), np.full(shape, 2.0**-24), np.full(shape, 3e38)
                for scale in scales:
                    for zero in rng.integers(least + 1, most + 1, shape), np.full(shape, most), equal:
                        options = {"block_size": size, "narrow_range": narrow}
                        positive = qk.QParams(scale, zero, dtype, axis=None if axis is None else axis % 2, **options)
                        packed = qk.pack(b, qk.QParams(scale, zero, dtype, axis=axis, **options))
                        assert packed.params == positive == qk.PackedMatrix.from_arrays(packed.to_arrays()).params
                        for same in packed, positive:
                            same = pickle.loads(pickle.dumps(same))
                            assert getattr(same, "params", same) == positive


def test_a_pickle_of_parameters_holds_their_values_once():
    params = of_blocks("uint4", 32, zeros=True)
    assert len(pickle.dumps(params)) <= 3 * params.scale.size + 500
    symmetric = of_blocks("int4", 32)
    assert len(pickle.dumps(symmetric)) <= 2 * params.scale.size + 500


def test_tables_of_a_codebook_are_not_kept_for_its_user():
    arguments = coded(64)
    packed = pack(arguments)
    before = packed.nbytes
    qk.decode(arguments[0], arguments[1], arguments[2])
    qk.decode(packed.unpack(), packed.params, packed.scales)
    assert packed.nbytes == before and not hasattr(packed._kept, "_tables")


# ---- giants: shapes of broadcast arrays, and of empty ones, that C must not take for smaller ones ----

FLOATS = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
LIMIT = 4 << 30


def wide(dtype, *shape):
    """An array of ones of this shape in the memory of one."""
    return np.broadcast_to(np.asarray(1, dtype), shape)


def empty(dtype, *shape):
    return np.empty(shape, dtype)


def array(dtype, *shape):
    return wide(dtype, *shape) if all(shape) else empty(dtype, *shape)


def packs(size):
    """Weights of about 2**size bytes."""
    item = {"int8": 0, "uint8": 0, "int16": 1, "float16": 1, "bfloat16": 1, "int4": 0, "uint4": 0}
    for dtype, bits in item.items():
        params = None if "float" in dtype else qk.QParams(1, dtype=dtype)
        long, narrow = 1 << size - bits, None if params is None else qk.QParams(1, dtype=dtype, narrow_range=True)
        for shape in (long, 1), (1, long), (1 << size // 2 - bits, 1 << size // 2), (long // 8, 8):
            yield lambda: qk.pack(wide(dtype, *shape), params)
            yield lambda: qk.pack(wide(dtype, *shape).T, params)
            yield lambda: qk.pack(wide(dtype, *shape), narrow)
        for shape in (0, long), (long, 0):
            yield lambda: qk.pack(empty(dtype, *shape), params).unpack()
            yield lambda: qk.PackedMatrix.from_arrays(qk.pack(empty(dtype, *shape), params).to_arrays())
    book, of_blocks = qk.Codebook(np.arange(16)), qk.Codebook(np.arange(16), axis=0, block_size=1 << 62)
    for shape in (1 << size, 1), (1, 1 << size), (0, 1 << size), (1 << size, 0):
        codes = array("uint8", *shape)
        yield lambda: qk.pack(codes, book)
        yield lambda: qk.pack(codes, of_blocks, scales=np.ones((1, 1), np.float32))
        yield lambda: qk.pack(codes, qk.Codebook(np.ones((1, 16)), axis=1))


def products(size):
    n = 1 << size
    packed = qk.pack(np.ones((1, 1), np.int8), qk.QParams(1))
    halves = qk.pack(np.ones((1, 1), np.float16), None)
    none = qk.pack(np.ones((0, 1), np.int8), qk.QParams(1))
    for a in "uint8", "int8":
        for b in "uint8", "int8":
            yield lambda: qk.matmul(empty(a, 0, n), wide(b, n, 1))
            yield lambda: qk.matmul(wide(a, 1, n), wide(b, n, 1))
            yield lambda: qk.matmul(wide(a, n, 1), wide(b, 1, 1))
            yield lambda: qk.matmul(wide(a, 1, 1), wide(b, 1, n))
            yield lambda: qk.matmul(wide(a, n, 1), wide(b, 1, n // 4))
            yield lambda: qk.matmul(empty(a, n, 0), empty(b, 0, 1))
            yield lambda: qk.matmul(empty(a, n, 0), empty(b, 0, 0), a_zero_point=wide(a, n))
            yield lambda: qk.matmul(empty(a, 0, 0), empty(b, 0, n), b_zero_point=wide(b, n))
            yield lambda: qk.matmul(empty(a, 2, 0, n), wide(b, 2, n, 1))
            yield lambda: qk.matmul(wide(a, n // 4, 1, 1), wide(b, n // 4, 1, 1))
            yield lambda: qk.matmul(wide(a, 2, 1, 1 << 20), wide(b, 2, 1 << 20, n >> 21))
            yield lambda: qk.matmul(empty(a, n // 8, 4, 0), empty(b, n // 8, 0, 0), a_zero_point=wide(a, 1, 4))
            yield lambda: qk.matmul(empty(a, 1 << 30, 1 << 30, 0), empty(b, 1, 0, 0), a_zero_point=wide(a, 1 << 30, 1))
    yield lambda: qk.matmul(empty("int16", 0, n // 2), wide("int16", n // 2, 1))
    yield lambda: qk.matmul(wide("int16", 1, n // 2), wide("int16", n // 2, 1))
    yield lambda: qk.matmul(wide("int16", n // 2, 1), wide("int16", 1, n // 2))
    yield lambda: qk.matmul(empty("int8", 0, n // 2), wide("int16", n // 2, 1))
    yield lambda: qk.matmul(empty("int16", n, 0), empty("int16", 0, 0), a_zero_point=wide("int16", n // 2))
    for b in packed, none, halves:
        x = wide("float32", n // 4, 1) if b.shape[0] else empty("float32", n // 4, 0)
        yield lambda: qk.linear(x, b)
        yield lambda: qk.linear(x, b, residual=wide("float32", n // 4, 1))
        yield lambda: qk.linear(wide("float32", 1, 1), b, wide("float32", n // 4))
    q = qk.QParams(1)
    yield lambda: qk.qlinear(wide("int8", n, 1), q, packed, q)
    yield lambda: qk.qlinear(empty("int8", n, 0), q, none, q)
    yield lambda: qk.qlinear(wide("int8", 1, 1), q, packed, q, wide("int32", n // 4))
    yield lambda: qk.matmul(wide("int8", n, 1), packed)
    levels = {"shape": np.array([n, 1]), "levels": np.arange(3.0)}
    yield lambda: qk.PackedMatrix.from_arrays({"codes": wide("uint8", n // 2)} | levels)
    stored = {"scale": np.array(1.0), "zero_point": np.array(0), "qmin": -127}
    yield lambda: qk.PackedMatrix.from_arrays({"codes": wide("int8", n, 1)} | stored)
    yield lambda: qk.PackedMatrix.from_arrays({"weights": wide("uint16", n // 2, 1)})


def convolutions(size):
    n, one = 1 << size, qk.QParams(1)
    shapes = (n // 2, 1, 1, 2), (1, n // 2, 1, 2), (1, 1, n // 2, 2), (1, 1, 1, n), (1 << 20, n >> 20, 1, 1)
    for shape in (*shapes, (2, 2, n >> 2, 1)):
        w = wide("int8", *shape)
        yield lambda: qk.pack_conv(w, one)
        yield lambda: qk.pack_conv(w, one, groups=shape[3])
        yield lambda: qk.pack_conv(w, qk.QParams(wide("float32", n // 4), axis=3))
    yield lambda: qk.pack_conv(np.ones((1, 1, 1, 0), np.int8), one, groups=n)
    dense, depthwise = (qk.pack_conv(np.ones((2, 2, c, 2), np.int8), one, groups=2 // c) for c in (2, 1))
    images = (n // 8, 2, 2, 2), (1, n // 4, 2, 2), (1, 2, n // 4, 2), (0, n // 4, 2, 2), (n // 16, 4, 2, 2)
    for q in [wide("int8", *shape) for shape in images]:
        for packed in dense, depthwise:
            yield lambda: qk.qconv2d(q, one, packed, one)
            yield lambda: qk.qconv2d(q, one, packed, None)
            yield lambda: qk.qconv2d(q, one, packed, one, padding="same_upper")
        yield lambda: qk.max_pool2d(q, 2)
        yield lambda: qk.qaverage_pool2d(q, one, one, 2, padding=1)
        yield lambda: qk.qglobal_average_pool(q, one, one)
    small = np.ones((1, 2, 2, 2), np.int8)
    for padding in n, (n, 0, 0, 0), (1 << 30, 1 << 30), (0, 0, 2**31 - 1, 2**31 - 1):
        for packed in dense, depthwise:
            yield lambda: qk.qconv2d(small, one, packed, one, padding=padding)
        yield lambda: qk.max_pool2d(small, 2, padding=padding)
        yield lambda: qk.max_pool2d(small, (1 << 30, 1 << 30), padding=padding)
        yield lambda: qk.qaverage_pool2d(small, one, one, (1 << 20, 1), padding=padding)
    yield lambda: qk.qconv2d(small, one, dense, one, dilations=n, padding=2**31 - 1)
    yield lambda: qk.qconv2d(small, one, depthwise, one, strides=n)


def elementwise(size):
    n = 1 << size
    for of in FLOATS:
        count = n // np.dtype(of).itemsize
        for shape in (count,), (1 << 20, count >> 20), (count >> 1, 2), (2, count >> 1), (count, 0), (0, count):
            x = array(of, *shape)
            for dtype in "int8", "uint16", "int4", "float8_e4m3fn":
                yield lambda: qk.quantize(x, qk.QParams(1, dtype=dtype))
                yield lambda: qk.fake_quantize(x, qk.QParams(1, dtype=dtype))
                yield lambda: qk.choose_qparams(x, dtype)
                yield lambda: qk.dynamic_quantize(x, dtype)
                yield lambda: qk.dynamic_quantize(x, dtype, axis=0)
                if x.ndim == 2:
                    yield lambda: qk.choose_qparams(x, dtype, axis=0)
                    yield lambda: qk.choose_qparams(x, dtype, axis=1, block_size=1)
                    yield lambda: qk.choose_qparams(x, dtype, axis=0, block_size=1 << 62)
                    scale = np.ones((1, shape[1] if shape[1] < 5 else 1))
                    yield lambda: qk.quantize(x, qk.QParams(scale, dtype=dtype, axis=0, block_size=1 << 62))
            yield lambda: qk.choose_qparams(x, "int8", method="mse")
            yield lambda: qk.choose_qparams(np.float32([1, 2]), "int8", method="mse", importance=wide(of, *shape))
    for dtype in "int8", "uint8", "int16", "int4", "float8_e5m2", "int32":
        params = qk.QParams(1, dtype="int8" if dtype == "int32" else dtype)
        q = wide(dtype, n // 4)
        for to in FLOATS:
            yield lambda: qk.dequantize(q, params, dtype=to)
        of_blocks = qk.QParams(np.ones((1, 1)), dtype=params.dtype, axis=0, block_size=1 << 62)
        yield lambda: qk.dequantize(empty(dtype, n // 4, 0), of_blocks)
    yield lambda: qk.QParams(wide("float32", n // 4), axis=0)
    yield lambda: qk.QParams(wide("float32", n // 4, 1), wide("int8", n // 4, 1), axis=0, block_size=1 << 62)
    for acc in wide("int32", n // 4), wide("int32", n // 8, 2), empty("int32", 0, n // 4), empty("int32", n // 4, 0):
        yield lambda: qk.requantize(acc, 0.5, qk.QParams(1))
        yield lambda: qk.requantize(acc, 0.5, qk.QParams(1), rounding="tflite")
        yield lambda: qk.requantize(acc, wide("float32", acc.shape[-1]), qk.QParams(1))
        yield lambda: qk.requantize(acc, 0.5, qk.QParams(1), bias=wide("int64", min(acc.shape[-1], 1 << 59)))
    yield lambda: qk.quantize_multiplier(wide("float64", n // 8))
    for bits in 1, 3, 4, 8:
        yield lambda: qk.pack_bits(wide("uint8", n), bits)
        yield lambda: qk.pack_bits(wide("int4", n), 8)
        yield lambda: qk.unpack_bits(wide("uint8", n * bits // 8), bits, n)
        yield lambda: qk.unpack_bits(wide("uint8", n * bits // 8), bits, (2, n // 2))
        yield lambda: qk.unpack_bits(empty("uint8", 0), bits, (1 << 62, 1 << 62, 0))
        yield lambda: qk.unpack_bits(empty("uint8", 0), bits, (1 << 70, 0))
        yield lambda: qk.unpack_bits(wide("uint8", 8), bits, 1 << 64)
        yield lambda: qk.unpack_bits(empty("uint8", 0), bits, 1 << 64)
        yield lambda: qk.unpack_bits(wide("uint8", n), bits, 1 << 200)
    for kind, block in ("Q8_0", 34), ("Q4_0", 18), ("MXFP4", 17):
        for of in FLOATS if kind != "MXFP4" else ():
            yield lambda: qk.to_gguf(wide(of, n // 8), kind)
            yield lambda: qk.to_gguf(wide(of, n // 256, 32), kind)
            yield lambda: qk.to_gguf(empty(of, 0, n), kind)
            yield lambda: qk.to_gguf(empty(of, n, 0), kind)
        yield lambda: qk.from_gguf(wide("uint8", n // 64 * block // 64, 64), kind)
        yield lambda: qk.from_gguf(wide("uint8", n // 64, block), kind)
        yield lambda: qk.from_gguf(empty("uint8", 0, n // 64 * block), kind)
        yield lambda: qk.from_gguf(empty("uint8", n, 0), kind)
    yield lambda: qk.to_gguf(empty("float32", 0, n), "NVFP4")
    yield lambda: qk.to_gguf(empty("float32", n, 0), "NVFP4")


def codebooks(size):
    n = 1 << size
    books = [
        qk.Codebook([0, 1]),
        qk.Codebook([0, 1], block_size=1 << 62),
        qk.Codebook([0, 1], axis=0, block_size=1 << 62),
        qk.Codebook([0, 1], axis=-1, block_size=3),
        qk.Codebook(np.ones((2, 3)), axis=0),
        qk.Codebook(np.ones((2, 3)), axis=1),
        qk.Codebook(np.ones((4, 2)), vector=True),
        qk.Codebook(np.ones((2, 4, 3)), vector=True),
        qk.Codebook(np.ones((4, 1 << 20)), vector=True),
    ]
    for book in books:
        for of in FLOATS:
            count = n // np.dtype(of).itemsize
            of_values = (count,), (count // 2, 2), (2, count // 2), (count // 8, 6)
            for shape in *of_values, (count, 0), (0, count), (0, count // 8 * 6):
                x = array(of, *shape)
                yield lambda: qk.encode(x, book)
        for shape in (n,), (n // 2, 2), (2, n // 2), (n, 0), (0, n), (0, 1 << 62):
            codes = array("uint8", *shape)
            yield lambda: qk.pack_codes(codes)
            yield lambda: qk.decode(codes, book)
            yield lambda: qk.decode(codes, book, wide("float32", 1, 1))
            yield lambda: qk.decode(codes, book, wide("float32", n // 4, 1))
        if book.vector:
            for shape in (n // 8, 6), (0, n // 8 * 6), (1, n // 8), (n // 8, 1 << 20):
                if 4 * math.prod(filter(None, shape)) < 2**63:
                    x = array("float32", *shape)
                    yield lambda: qk.distance_tables(x, book)
                    yield lambda: qk.search(x, wide("uint8", 4, 2), book, 1)
                    yield lambda: qk.search(np.ones((1, 6), np.float32), wide("uint8", n // 4, 2), book, n // 8)
                    yield lambda: qk.search(np.ones((1, 6), np.float32), wide("uint8", 1 << 31, 2), book, 1 << 30)
                    yield lambda: qk.search(x, qk.pack_codes(np.zeros((4, 2), np.uint8)), book, 1)
                    yield lambda: qk.search(np.ones((1, 6), np.float32), wide("uint8", n // 4, 2), book, n // 512)
    yield lambda: qk.Codebook(wide("float32", n // 64, 16), axis=0)
    yield lambda: qk.Codebook(wide("float32", n // 64, 4, 4), vector=True)
    yield lambda: qk.Codebook(wide("float32", 4, n // 16), vector=True)
    yield lambda: qk.Codebook(wide("float32", n // 4))
    for of in FLOATS:
        for shape in (n // 8,), (n // 16, 2), (2, n // 16), (0, n // 8):
            x = array(of, *shape)
            of_blocks = {"block_size": 1 << 62}, {"axis": 0, "block_size": 1}
            for options in {}, {"zero": True}, {"axis": 0}, {"axis": -1}, *of_blocks, {"vector": 2}:
                yield lambda: qk.Codebook.fit(x, 2, **options)
            for axis in None, 0, -1:
                yield lambda: qk.kmeans1d(x, 2, axis=axis)
                yield lambda: qk.kmeans1d(np.float32([1, 2, 3]), 2, weights=x, axis=axis)
            yield lambda: qk.kmeans(x, 2)
            yield lambda: qk.kmeans(np.ones((3, 2), np.float32), 2, weights=x)
            yield lambda: qk.kmeans(np.ones((3, 2), np.float32), 2, init=x)
    yield lambda: qk.kmeans1d(np.float32([[1, 2, 3]]), n, axis=1)
    yield lambda: qk.kmeans1d(np.float32([[1, 2, 3]]), 1 << 70, axis=1)
    yield lambda: qk.kmeans(np.ones((3, 2), np.float32), 1 << 70)


def layers(size):
    n, ones = 1 << size - 2, np.ones((3, 2), np.float32)
    for shape in (n, 1), (1, n), (n // 2, 2), (0, n), (n, 0), (n,):
        x = array("float32", *shape)
        row = wide("float32", shape[-1])
        yield lambda: qk.layer_norm(x, row, row)
        yield lambda: qk.layer_norm(x, row, row, residual=x)
        yield lambda: qk.attention(x, x, x, 1)
        yield lambda: qk.attention(x, x, x, max(n // 65536, 1))
        yield lambda: qk.attention(ones, ones, ones, 1, starts=wide("int64", n // 2))
    y = empty("float32", 1, 65536)
    yield lambda: qk.attention(empty("float32", 0, n), empty("float32", 0, n), empty("float32", 0, n), n // 65536)
    for starts in [0, 2**63 - 1, 1], np.uint64([0, 2**64 - 1, 1]), [0, -(2**63), 1]:
        yield lambda: qk.attention(y, y, y, 1, starts=starts)


def integer_layers(size):
    n, p = 1 << size, qk.QParams(1)
    one = np.ones((1, 1), np.int8)
    for shape in (n, 1), (1, n), (n // 2, 2), (0, n), (n, 0), (n,):
        q, row = array("int8", *shape), wide("float32", min(shape[-1], 1 << 58))
        yield lambda: qk.take_table(q, np.arange(256, dtype=np.uint8))
        yield lambda: qk.qadd(q, p, one, p, p)
        yield lambda: qk.qadd(q, p, wide("int8", n // 4, 1, 1), p, p)
        yield lambda: qk.qmultiply(one, p, q, p, p, rounding="tflite")
        yield lambda: qk.qconcatenate([(q, p)] * 2, p, axis=0)
        yield lambda: qk.qconcatenate([(q, p), (q, qk.QParams(2))], p, axis=-1)
        yield lambda: qk.qsoftmax(q, p, p)
        yield lambda: qk.qsoftmax(q, p, p, axis=0)
        yield lambda: qk.qlayer_norm(q, p, row, row, p)
        yield lambda: qk.qrms_norm(q, p, row, p)


def size_of(result):
    if isinstance(result, tuple):
        return max(map(size_of, result))
    return np.size(
        result.unpack() if isinstance(result, (qk.PackedMatrix, qk.PackedConv)) else getattr(result, "scale", result)
    )


SUBJECTS = [packs, products, convolutions, elementwise, codebooks, layers, integer_layers]


def call_giants(size):
    """Each call ends within seconds of this thread, in MemoryError or ValueError or with no values: prints others."""
    import resource

    qk.kmeans1d(np.float32([[1, 2, 3]]), 2, axis=1)  # compiles
    qk.choose_qparams(np.float32([1, 2]), "int8", method="mse")
    qk.Codebook.fit(np.float32([1, 2]), 2, zero=True)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    calls = 0
    for subject in SUBJECTS:
        for i, call in enumerate(subject(size)):
            faulthandler.dump_traceback_later(60, exit=True)
            begin, calls = time.thread_time(), calls + 1
            try:
                ended = size_of(call()) < 64
            except (MemoryError, ValueError):
                ended = True
            seconds = time.thread_time() - begin
            if seconds > 5 or not ended:
                print(f"{subject.__name__} {i} of 2**{size}: {seconds:.2f} s", flush=True)
    print(calls, "calls", flush=True)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS as Linux has it")
@pytest.mark.parametrize("size", [34, 40, 60, 62])
def test_giants_are_refused_at_once(size):
    """Arrays of 2**size bytes, in 4 GiB."""
    done = python(__file__, "giants", str(size), QKERNELS_NUM_THREADS="1")
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr[-3000:]}"
    *strays, last = done.stdout.splitlines()
    assert not strays and int(last.split()[0]) > 1000, strays


if __name__ == "__main__":
    if sys.argv[1] == "held":
        print_held(sys.argv[2])
    else:
        call_giants(int(sys.argv[2]))
