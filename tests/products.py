"""The kinds of weights, each with `linear` by NumPy, one operation after the other, by the formulas of
docs/numerics.md; and integer products by NumPy."""

import math
from collections import namedtuple

import ml_dtypes
import numpy as np
from common import code_range, fused, random_codes
from hypothesis import strategies as st

import qkernels as qk

sizes = st.one_of(
    st.integers(0, 200),
    st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 128, 129, 160, 200]),
)
shapes_of_rows = st.one_of(
    st.integers(0, 40).map(lambda m: (m,)),
    sizes.map(lambda m: (m,)),
    st.just(()),
    st.tuples(st.integers(0, 3), st.integers(0, 20)),
)
PAIRS = [(a, b) for a in ("uint8", "int8") for b in ("uint8", "int8")]
PAIRS_OF_16 = [("int16", "int16"), ("int16", "int8"), ("int16", "uint8"), ("int8", "int16"), ("uint8", "int16")]
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]


# ---- sums of integers ----


def exact(a, b, a_zero_point=0, b_zero_point=0):
    """Return the sums: of int16 in int64, of 8 bits as integers in float64, which holds them: K * 510**2 < 2**53."""
    wide = np.int64 if "int16" in (a.dtype, b.dtype) else np.float64
    a_zero_point = np.asarray(a_zero_point, wide)[..., None]
    return (a.astype(wide) - a_zero_point) @ (b.astype(wide) - np.asarray(b_zero_point, wide))


def wrapped(sums):
    """Return sums modulo 2**32, as int32."""
    return sums.astype(np.int64).astype(np.int32)


def matmul_by_numpy(a, b, **zero):
    """Return what matmul gives: int64 if int16 is among the codes, else int32 that wraps."""
    sums = exact(a, b, **zero)
    return sums if sums.dtype == np.int64 else wrapped(sums)


# ---- linear ----


class Weights(namedtuple("Weights", "kind b params scales")):
    """What `pack` takes."""

    def pack(self, layout=lambda b: b):
        return qk.pack(layout(self.b), self.params, scales=self.scales)

    def linear(self, x, bias=None):
        """Return the result by NumPy, before the activation."""
        return self.kind.linear(x, self.b, self.params, self.scales, bias)


class Kind:
    """8 bits with one scale for all or for each column: numerics 8. The other kinds differ from it.

    dtypes: of the codes. shared: what shares a scale, None for all, "column", or a number of rows of a column. some:
    (dtype, shared) for laws that are tested at few. lefts: dtypes of what matmul multiplies such weights by."""

    dtypes, shared = ("int8", "uint8"), (None, "column")
    some = ("int8", "column"), ("uint8", "column"), ("int8", None)
    lefts = "uint8", "int8"
    scales = 0.001, 0.1

    def make(self, rng, k, n, dtype, shared, zeros="own", half=False):
        """Return random Weights. zeros: "none", the "middle" of the codes, "one" zero point for all, or their "own"."""
        low, high = code_range(dtype)
        shape = {None: (), "column": (n,)}.get(shared) if not isinstance(shared, int) else (-(-k // shared), n)
        scale = rng.uniform(*self.scales, shape).astype(np.float16 if half else np.float32)
        one = {"none": 0, "middle": (low + high + 1) // 2, "one": rng.integers(low, high + 1), "own": None}[zeros]
        zero_point = rng.integers(low, high + 1, shape) if one is None else np.full(shape, one)
        axes = {"axis": 0, "block_size": shared} if isinstance(shared, int) else {"axis": 1 if shape else None}
        return Weights(self, random_codes(rng, (k, n), dtype), qk.QParams(scale, zero_point, dtype, **axes), None)

    @st.composite
    def layers(draw, self):
        """x, Weights and a bias."""
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        k, n, rows = draw(sizes), draw(sizes), draw(shapes_of_rows)
        x = rng.normal(rng.choice([0, 3]), 10.0 ** rng.integers(-3, 4), (*rows, k)).astype(np.float32)
        zeros = draw(st.sampled_from(["none", "middle", "one", "own"]))
        dtype, shared = draw(st.sampled_from(self.dtypes)), draw(st.sampled_from(self.shared))
        weights = self.make(rng, k, n, dtype, shared, zeros, draw(st.booleans()))
        return x, weights, draw(st.sampled_from([None, rng.normal(0, 10, n).astype(np.float32)]))

    def linear(self, x, b, params, scales=None, bias=None):
        """Return the result before the activation."""
        y = self.product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), b, params, scales)
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], b.shape[1])

    def product(self, rows, b, params, scales):
        q, of_rows = qk.dynamic_quantize(rows, "uint8", axis=0)
        sums = exact(q, b, of_rows.zero_point, params.zero_point).astype(np.float32)
        return sums * (of_rows.scale[:, None] * params.scale)


class Int16(Kind):
    """Numerics 17."""

    dtypes, some, lefts, scales = ("int16",), (("int16", "column"), ("int16", None)), ("int16",), (1e-4, 1e-3)

    def product(self, rows, b, params, scales):
        q, of_rows = qk.dynamic_quantize(rows, "int16", axis=0)
        return exact(q, b, 0, params.zero_point).astype(np.float32) * params.scale * of_rows.scale[:, None]


class Four(Kind):
    """Numerics 12: sums of blocks of rows, each times its scale."""

    dtypes, shared, lefts = ("int4", "uint4"), (32, 64, 128, 8, 16, 256, 1, 5, 20, 33, "column", None), ()
    some = *(("int4", shared) for shared in (32, 20, "column", None)), ("uint4", 32), ("uint4", "column")
    scales = 0.01, 0.1

    def product(self, rows, b, params, scales):
        q, of_rows = qk.dynamic_quantize(rows, "int8", axis=0)
        y, size = np.zeros((len(rows), b.shape[1]), np.float32), params.block_size or max(len(b), 1)
        for i, begin in enumerate(range(0, len(b), size)):
            scale, zero_point = (v[i] if params.block_size else v for v in (params.scale, params.zero_point))
            part = slice(begin, begin + size)
            sums = q[:, part].astype(np.float64) @ (b[part].astype(np.float64) - zero_point)
            y = fused(sums.astype(np.float32), np.broadcast_to(scale, y.shape), y)
        return y * of_rows.scale[:, None]


class Two(Four):
    """The same with codes of 2 bits."""

    dtypes, shared = ("int2", "uint2"), (32, 64, 8, 16, 4, 20, 33, "column", None)
    some = *(("int2", shared) for shared in (32, 20, "column", None)), ("uint2", 32), ("uint2", "column")


class Blocks8(Four):
    """The same with codes of 8 bits."""

    dtypes, shared = Kind.dtypes, Four.shared[:-2]
    some = ("int8", 32), ("int8", 300), ("uint8", 32), ("uint8", 20)


class Floats4(Four):
    """Codes that are floats, MXFP4 and NVFP4 among them: the same, as sums of their halves are exact."""

    dtypes, shared, some = ("float4_e2m1fn",), (32, 16, 20, 1, "column", None), (("float4_e2m1fn", 32),)

    def make(self, rng, k, n, dtype, shared, zeros=None, half=False):
        like = super().make(rng, k, n, "uint4", shared, "none", half).params
        params = qk.QParams(like.scale, dtype=dtype, axis=like.axis, block_size=like.block_size)
        return Weights(self, random_codes(rng, (k, n), "uint8", 15).view(params.dtype), params, None)


class Levels(Kind):
    """Codes of a codebook; `dtypes` are numbers of levels. Numerics 12, on int8 multiples that stand for the levels."""

    dtypes, shared, lefts = (16, 16, 9, 8, 5, 4, 3, 1), (None, "column", 32, 64, 20, 3), ()
    some = (
        *((16, shared) for shared in (None, "column", 32, 20)),
        (8, "column"),
        (8, 32),
        (8, 20),
        (4, "column"),
        (4, 32),
    )

    def make(self, rng, k, n, dtype, shared, zeros=None, half=False):
        """Return random Weights, a third of whose codes are at the ends of the levels."""
        codes, scales = random_codes(rng, (k, n), "uint8", dtype - 1), None
        if shared == "column" and n:
            codebook = qk.Codebook(np.sort(rng.normal(0, 0.1, (n, dtype))), axis=1)
        elif shared in (None, "column"):
            codebook = qk.Codebook(rng.normal(0, 0.1, dtype))
        else:
            codebook = qk.Codebook(np.sort(rng.normal(0, 0.4, dtype)), axis=0, block_size=shared)
            scales = rng.uniform(0.01, 1, (-(-k // shared), n))
        return Weights(self, codes, codebook, scales)

    def product(self, rows, b, params, scales):
        q, of_rows = qk.dynamic_quantize(rows, "int8", axis=0)
        levels = params.levels.reshape(-1, params.k)
        scale_of_levels = np.float32(np.abs(levels).max(1).astype(np.float64) / 127)
        levels = np.rint(levels / scale_of_levels[:, None].astype(np.float64))
        columns, (k, n) = params.axis == 1, b.shape
        weights = levels[np.arange(n), b] if columns else levels[0][b]
        y, size = np.zeros((len(rows), n), np.float32), params.block_size or max(k, 1)
        for i, begin in enumerate(range(0, k, size)):
            scale = scale_of_levels if columns else 1 if scales is None else np.float32(scales)[i]
            sums = q[:, begin : begin + size].astype(np.float64) @ weights[begin : begin + size]
            y = fused(sums.astype(np.float32), np.broadcast_to(np.float32(scale), y.shape), y)
        return y * (of_rows.scale[:, None] * (1 if columns else scale_of_levels))


class Halves(Kind):
    """Floats of 16 bits: numerics 16, one multiply-add after the other."""

    dtypes, shared, lefts = ("float16", "bfloat16"), (None,), ()
    some = ("float16", None), ("bfloat16", None)

    @np.errstate(all="ignore")
    def make(self, rng, k, n, dtype, shared=None, zeros=None, half=False):
        """Return normal weights, and a tenth of any finite bits that leave sums finite: subnormal numbers among
        them."""
        w, some = rng.normal(0, 1, (k, n)), every_finite(dtype)
        some = some[np.abs(some.astype(np.float32)) < 2**15].astype(np.float64)
        w = np.where(rng.random((k, n)) < 0.1, rng.choice(some, (k, n)), w)
        return Weights(self, w.astype(getattr(ml_dtypes, dtype, dtype)), None, None)

    def product(self, rows, w, params, scales):
        y, wide = np.zeros((len(rows), w.shape[1]), np.float32), w.astype(np.float32)
        for k in range(len(w)):
            y = fused(np.broadcast_to(rows[:, k, None], y.shape), np.broadcast_to(wide[k], y.shape), y)
        return y


def every_finite(dtype):
    """Return all finite values of a dtype of 16 bits or its name."""
    values = np.arange(65536, dtype=np.uint16)
    dtype = np.dtype(getattr(ml_dtypes, str(dtype), dtype))
    return values[values & 0x7FFF < (0x7C00 if dtype == np.float16 else 0x7F80)].view(dtype)


KINDS = Kind(), Int16(), Four(), Two(), Blocks8(), Floats4(), Levels(), Halves()
EIGHT, INT16, FOUR, TWO, BLOCKS8, FLOATS4, LEVELS, HALVES = KINDS
NAMES = ["8 bits", "int16", "4 bits", "2 bits", "8 bits in blocks", "4-bit floats", "levels", "halves"]
SOME = [(kind, *some) for kind in KINDS for some in kind.some]
SOME_NAMES = [f"{name} {dtype} {shared}" for kind, name in zip(KINDS, NAMES) for dtype, shared in kind.some]


def random_x(rng, *shape):
    return rng.normal(0, 1, shape).astype(np.float32)


# ---- activations in float64 ----


def gelu(x):
    return x / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * np.minimum(x, 1e100) ** 3)))


@np.errstate(all="ignore")
def silu(x):
    return x / (1 + np.exp(-np.maximum(x, -700)))


FUNCTIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def long_blocks(kind, dtype, lengths):
    """Yield inputs of two rows, codes of one block, the largest, their params, and what `linear` gives."""
    rng = np.random.default_rng(0)
    for k in lengths:
        x = np.where(rng.random((2, k)) < 0.9, 127, -127).astype(np.float32)
        b = np.full((k, 3), code_range(dtype)[1], getattr(ml_dtypes, dtype))
        for zero_point in ([0, 0, 0], [0, 1, code_range(dtype)[0]]):
            params = qk.QParams(np.float32([0.1, 0.2, 0.3]), zero_point, dtype, axis=1)
            yield x, b, params, kind.linear(x, b, params)
