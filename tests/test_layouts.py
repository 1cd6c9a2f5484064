"""Checkpoints of others, bit by bit, and there and back. The layouts are written here in words of our own: what each
bit of each word is for."""

import json

import ml_dtypes
import numpy as np
import pytest
from common import ANY_AXES, refusals, refuse
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels import layouts

F32, UINT4 = np.float32, np.dtype(ml_dtypes.uint4)


def same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert_array_equal(got[name], array, err_msg=name, strict=True)


def words_of(codes, bits):
    """Lines of codes as words of 32 bits: code i of a line has its bits from i * bits on, in whatever word they are."""
    words = np.zeros((len(codes), codes.shape[1] * bits // 32), np.uint32)
    for i, line in enumerate(codes.tolist()):
        number = sum(code << at * bits for at, code in enumerate(line))
        words[i] = [number >> 32 * j & 0xFFFFFFFF for j in range(words.shape[1])]
    return words.view(np.int32)


def scales_of(rng, shape):
    return rng.uniform(1e-4, 1, shape).astype(np.float16)


# ---- GPTQ ----


def gptq_layer(rng, bits, version, group, turned, k=96, n=64):
    """Codes (K, N), zero points and scales (G, N), the group of each row; and the tensors that hold them."""
    groups = -(-k // group)
    codes, zeros = rng.integers(0, 1 << bits, (k, n)), rng.integers(0, 1 << bits, (groups, n))
    of_row = np.arange(k) // group
    of_row = rng.permutation(of_row) if turned else of_row
    scales = scales_of(rng, (groups, n))
    stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
    tensors = {"qweight": words_of(codes.T, bits).T.copy(), "qzeros": words_of(stored, bits)}
    return codes, zeros, tensors | {"scales": scales, "g_idx": of_row.astype(np.int32)}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", [32, 96, 40])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, version, group, turned):
    """Each weight is (code - zero point) * scale of the group of its row; and all tensors come back."""
    codes, zeros, tensors = gptq_layer(np.random.default_rng(bits), bits, version, group, turned)
    of_row, scales = tensors["g_idx"], tensors["scales"].astype(float)
    want = (codes - zeros[of_row]) * scales[of_row]
    got, params, order = layouts.from_gptq(tensors, bits=bits, version=version)
    assert got.dtype == params.dtype == (np.uint8 if bits == 8 else UINT4)
    assert (order is None) == (not turned or group == 96)
    order = np.arange(len(codes)) if order is None else order
    assert_array_equal(got.astype(int), codes[order])
    assert_array_equal(qk.dequantize(got, params, dtype=np.float64), want[order])
    assert_array_equal(qk.pack(got, params).unpack(), got)
    same(layouts.to_gptq(got, params, None if group == 96 else order, bits=bits, version=version), tensors)


def test_gptq_in_order_of_activations_multiplies_as_it_should():
    _, _, tensors = gptq_layer(np.random.default_rng(0), 4, 1, 32, True)
    codes, params, order = layouts.from_gptq(tensors)
    w = np.empty(codes.shape)
    w[order] = qk.dequantize(codes, params)
    x = np.random.default_rng(1).normal(size=(5, len(w))).astype(F32)
    off = np.abs(qk.linear(x[:, order], qk.pack(codes, params)) - x @ w).max()
    assert off < 0.02 * np.abs(x @ w).max()


def test_gptq_without_groups_of_rows():
    """Old checkpoints: groups are neighbours, as many as there are scales."""
    _, _, tensors = gptq_layer(np.random.default_rng(0), 4, 1, 32, False)
    codes, params, order = layouts.from_gptq({name: a for name, a in tensors.items() if name != "g_idx"})
    assert order is None and params.block_size == 32
    same(layouts.to_gptq(codes, params), tensors)


@pytest.mark.parametrize("dtype", ["int2", "int4", "int8", "uint2", "uint4", "uint8"])
def test_codes_of_weights_are_written(dtype):
    """What quantize made: signed codes, too, are the same weights when they are read; and keep scales in float32."""
    w = np.random.default_rng(0).normal(size=(64, 32)).astype(F32)
    for options in {"axis": 1}, {"axis": 0, "block_size": 16}, {"axis": 0, "block_size": 48}:
        params = qk.choose_qparams(w, dtype, **options)
        codes = qk.quantize(w, params)
        want = qk.dequantize(codes, params)
        read = layouts.from_gptq(layouts.to_gptq(codes, params, version=2), bits=int(dtype[-1]), version=2)
        assert read[2] is None
        assert_array_equal(qk.dequantize(*read[:2]), want)
        if dtype[-1] == "4" and options.get("block_size") != 48:
            assert_array_equal(qk.dequantize(*layouts.from_awq(layouts.to_awq(codes, params))), want)
        for place in ANY_AXES.values():
            same(layouts.to_gptq(place(codes), params), layouts.to_gptq(codes, params))


# ---- AWQ ----


@pytest.mark.parametrize("group", [16, 48])
def test_awq(group):
    """Eight columns a word: those of even numbers in its lower half, of odd ones in its upper half."""
    rng, k, n = np.random.default_rng(0), 48, 40
    codes, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (k // group, n))
    place = {column: 4 * (column // 2) + 16 * (column % 2) for column in range(8)}

    def words(a):
        made = np.zeros((len(a), n // 8), np.uint32)
        for column in range(n):
            made[:, column // 8] |= (a[:, column] << place[column % 8]).astype(np.uint32)
        return made.view(np.int32)

    tensors = {"qweight": words(codes), "qzeros": words(zeros), "scales": scales_of(rng, (k // group, n))}
    got, params = layouts.from_awq(tensors)
    assert_array_equal(got.astype(int), codes)
    want = (codes - np.repeat(zeros, group, axis=0)) * np.repeat(tensors["scales"].astype(float), group, axis=0)
    assert_array_equal(qk.dequantize(got, params, dtype=np.float64), want)
    assert_array_equal(qk.pack(got, params).unpack(), got)
    same(layouts.to_awq(got, params), tensors)


# ---- bitsandbytes ----


def bitsandbytes_layer(rng, kind, nested, shape=(24, 128), block=64, dtype="bfloat16"):
    """Codes and scales of a weight (N, K), and the tensors that hold them."""
    n, k = shape
    codes, scales = rng.integers(0, 16, shape).astype(np.uint8), rng.uniform(0.01, 0.2, n * k // block).astype(F32)
    tensors = {"weight": (codes.reshape(-1, 2) @ np.uint8([16, 1])).reshape(-1, 1)}
    tensors["weight.absmax"] = scales
    tensors["weight.quant_map"] = np.array(getattr(qk, kind.upper()).levels)
    state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [n, k]}
    if nested:
        state |= {"nested_blocksize": 32, "nested_dtype": "float32", "nested_offset": float(F32(0.0511))}
        levels = np.sort(rng.uniform(-1, 1, 256)).astype(F32)
        largest, few = rng.uniform(0.1, 0.2, -(-len(scales) // 32)).astype(F32), rng.integers(0, 256, len(scales))
        scales = levels[few] * np.repeat(largest, 32)[: len(few)] + F32(state["nested_offset"])
        tensors |= {"weight.absmax": few.astype(np.uint8)}
        tensors |= {"weight.nested_absmax": largest, "weight.nested_quant_map": levels}
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return codes, scales, tensors | {f"weight.quant_state.bitsandbytes__{kind}": text}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(kind, nested):
    codes, scales, tensors = bitsandbytes_layer(np.random.default_rng(0), kind, nested)
    want = getattr(qk, kind.upper()).levels[codes] * np.repeat(scales, 64).reshape(codes.shape)
    got, book, of_blocks = layouts.from_bitsandbytes(tensors)
    assert_array_equal(got, codes.T)
    assert_array_equal(qk.decode(got, book, of_blocks), want.T, strict=True)
    assert_array_equal(qk.pack(got, book, scales=of_blocks).unpack(), got)
    same(layouts.to_bitsandbytes(got, book, of_blocks, nested=tensors if nested else False, dtype="bfloat16"), tensors)


def test_bitsandbytes_scales_are_quantized_in_turn():
    """By the levels and blocks of bitsandbytes: decoded, they are within half a step; and all else is as it was."""
    codes, scales, tensors = bitsandbytes_layer(np.random.default_rng(1), "nf4", False, shape=(300, 192))
    got, book, of_blocks = layouts.from_bitsandbytes(tensors)
    written = layouts.to_bitsandbytes(got, book, of_blocks, nested=True)
    levels = written["weight.nested_quant_map"]
    assert levels.shape == (256,) and (np.diff(levels) > 0).all() and levels[-1] == 1 and levels[0] == F32(-0.99296875)
    again, _, near = layouts.from_bitsandbytes(written)
    assert_array_equal(again, got)
    widest = np.diff(levels).max() / 2 * np.abs(scales - scales.mean()).max()
    assert 0 < np.abs(near - of_blocks).max() <= widest * 1.001
    same(layouts.to_bitsandbytes(again, book, near, nested=written), written)


def test_weights_of_bitsandbytes_may_stand_in_other_dtypes():
    _, _, tensors = bitsandbytes_layer(np.random.default_rng(2), "nf4", True)
    want = layouts.from_bitsandbytes(tensors)
    for dtype in np.float32, ml_dtypes.bfloat16, np.int8:
        got = layouts.from_bitsandbytes(tensors | {"weight": tensors["weight"].view(np.uint8).reshape(-1).view(dtype)})
        assert_array_equal(got[0], want[0])


# ---- all of them ----


def test_tensors_of_any_layout_in_memory():
    rng = np.random.default_rng(3)
    _, _, tensors = gptq_layer(rng, 3, 1, 32, True)
    want = layouts.from_gptq(tensors, bits=3)
    for place in (*ANY_AXES.values(), lambda a: a.astype(a.dtype.newbyteorder())):
        got = layouts.from_gptq({name: place(a) for name, a in tensors.items()}, bits=3)
        assert_array_equal(got[0], want[0])
        assert got[1] == want[1]
        assert_array_equal(got[2], want[2])
    _, _, tensors = bitsandbytes_layer(rng, "fp4", True)
    want = layouts.from_bitsandbytes(tensors)
    for place in ANY_AXES.values():
        for a, b in zip(layouts.from_bitsandbytes({name: place(a) for name, a in tensors.items()}), want):
            assert_array_equal(a, b) if isinstance(a, np.ndarray) else None


def test_empty_layers():
    params = qk.QParams(np.ones((0, 8)), dtype="uint4", axis=0, block_size=32)
    for shape, p in ((0, 8), params), ((8, 0), qk.QParams(np.ones(0), dtype="uint4", axis=1)):
        codes = np.zeros(shape, UINT4)
        got = layouts.from_gptq(layouts.to_gptq(codes, p))
        assert got[0].shape == shape and got[2] is None
        assert layouts.from_awq(layouts.to_awq(codes, p))[0].shape == shape
    book = qk.Codebook(qk.NF4.levels, axis=0, block_size=64)
    for shape in (0, 3), (64, 0):
        for nested in False, True:
            empty = layouts.to_bitsandbytes(
                np.zeros(shape, np.uint8), book, np.ones((shape[0] // 64, shape[1])), nested=nested
            )
            assert layouts.from_bitsandbytes(empty)[0].shape == shape


GPTQ = gptq_layer(np.random.default_rng(0), 4, 1, 32, True)[2]
AWQ = {"qweight": np.zeros((32, 1), np.int32), "qzeros": np.zeros((2, 1), np.int32), "scales": np.ones((2, 8), F32)}
BNB, PLAIN = (bitsandbytes_layer(np.random.default_rng(0), "nf4", nested)[2] for nested in (True, False))
FEW, BOOK = np.zeros((64, 2), np.uint8), qk.Codebook(qk.NF4.levels, axis=0, block_size=64)
THREE = np.zeros((3, 8), np.int32)
STATE = "weight.quant_state.bitsandbytes__nf4"
COLUMNS = qk.QParams(np.ones(8), dtype="uint4", axis=1)


def text(value):
    return np.frombuffer((value if isinstance(value, str) else json.dumps(value)).encode(), np.uint8)


def forged(name):
    """Return tensors of the double quantization of FEW's scales, whose text lacks a name."""
    tensors = layouts.to_bitsandbytes(FEW, BOOK, np.ones((1, 2)), nested=True)
    state = json.loads(tensors[STATE].tobytes())
    del state[name]
    return tensors | {STATE: text(state)}


@refusals(r"""
layouts.from_gptq([])  # TypeError: arrays must be a mapping of str to array, got list
layouts.from_gptq(AWQ | {"scales": None})  # TypeError: scales
layouts.from_gptq({"qweight": AWQ["qweight"]})  # ValueError: arrays must hold .* got no qzeros, scales
layouts.from_gptq(GPTQ, bits=5)  # ValueError: bits must be one of 2, 3, 4, 8, got 5
layouts.from_gptq(GPTQ, bits="4")  # TypeError: bits must be an integer, got '4'
layouts.from_gptq(GPTQ, bits=8)  # ValueError: arrays must hold qweight .* bits=8, got \(12, 64\)
layouts.from_gptq(GPTQ, version=3)  # ValueError: version must be 1 or 2, got 3
layouts.from_gptq(GPTQ | {"qweight": GPTQ["qweight"].astype(np.int64)})  # TypeError: qweight must be int32 or uint32, g
layouts.from_gptq(GPTQ | {"qweight": GPTQ["qweight"][0]})  # ValueError: qweight must have two dimensions, got shape \(6
layouts.from_gptq(GPTQ | {"g_idx": GPTQ["g_idx"][1:]})  # ValueError: g_idx must have shape \(96,\), got \(95,\)
layouts.from_gptq(GPTQ | {"g_idx": GPTQ["g_idx"] + 1})  # ValueError: g_idx must be within \[0, 2\], got 1 to 3
layouts.from_gptq(GPTQ | {"g_idx": GPTQ["g_idx"] * 0})  # ValueError: g_idx must give each group .* got \[96, 0, 0\]
layouts.from_gptq(GPTQ | {"g_idx": GPTQ["g_idx"] * 1.0})  # TypeError: g_idx must be of integers, got float64
layouts.from_gptq(GPTQ | {"scales": -GPTQ["scales"]})  # ValueError: scale must be positive, finite
layouts.from_gptq(AWQ | {"qweight": np.zeros((8, 8), np.int32), "qzeros": THREE[:, :1], "scales": THREE + 1.0})
    # ValueError: g_idx must tell the 3 groups of 64 rows
layouts.from_gptq(GPTQ | {"qweight": GPTQ["qweight"][:0], "g_idx": GPTQ["g_idx"][:0]})  # ValueError: scales must have a
layouts.to_gptq(FEW, COLUMNS)  # TypeError: codes must be uint4 \(as params\), got uint8
layouts.to_gptq(np.zeros((8, 8), UINT4), qk.QParams(1, dtype="uint4"))  # ValueError: params must be per column
layouts.to_gptq(np.zeros((8, 8), UINT4), None)  # TypeError: params must be QParams, got NoneType
layouts.to_gptq(np.full((8, 8), 8, UINT4), COLUMNS, bits=3)  # ValueError: codes must be below 8 for 3 bits, got 8
layouts.to_gptq(np.zeros((9, 8), UINT4), COLUMNS)  # ValueError: codes of 4 bits must fill words .* got shape \(9, 8\)
layouts.to_gptq(np.zeros((8, 8), UINT4), COLUMNS, [0, 1, 2, 3, 4, 5, 6, 6])  # ValueError: order must be a permutation o
layouts.to_gptq(np.zeros((8, 8), UINT4), COLUMNS, np.arange(8.0))  # TypeError: order must be integers, got float64
layouts.from_awq(AWQ | {"qzeros": AWQ["qzeros"][:1]})  # ValueError: arrays must hold qweight .* got \(32, 1\), \(1, 1\)
layouts.from_awq(AWQ | {"scales": np.ones((2, 8), int)})  # TypeError: scales must be float32, .* got int64
layouts.to_awq(np.zeros((8, 4), UINT4), qk.QParams(np.ones(4), dtype="uint4", axis=1))  # ValueError: codes must have N
layouts.to_awq(np.zeros((8, 8), np.int8), qk.QParams(np.ones(8), axis=1))  # TypeError: codes must be uint4 or int4 for
layouts.from_bitsandbytes({"weight": FEW})  # ValueError: arrays must hold weight, .* got no weight.absmax, weight.quant
layouts.from_bitsandbytes({k: v for k, v in BNB.items() if k != STATE})  # ValueError: arrays must hold weight.quant_sta
layouts.from_bitsandbytes(BNB | {STATE: text("{")})  # ValueError: weight.quant_state.* must be a JSON object
layouts.from_bitsandbytes(BNB | {STATE: text([1])})  # ValueError: weight.quant_state.* must be a JSON object
layouts.from_bitsandbytes(BNB | {STATE: text({"shape": [4, 64], "blocksize": 0})})  # ValueError: weight.* must have siz
layouts.from_bitsandbytes(BNB | {STATE: text({"shape": [4, 64.0], "blocksize": 8})})  # ValueError: weight.* must have s
layouts.from_bitsandbytes(BNB | {STATE: text({"shape": [4, 60], "blocksize": 64})})  # ValueError: weight must have K a
layouts.from_bitsandbytes(BNB | {STATE: text({"shape": [4, 64], "blocksize": 64})})  # ValueError: weight must have 128
layouts.from_bitsandbytes({k: v for k, v in BNB.items() if k != "weight.nested_absmax"})  # ValueError: arrays must hold
layouts.from_bitsandbytes(BNB | {"weight.quant_map": np.ones(8, F32)})  # ValueError: weight.quant_map must have shape
layouts.from_bitsandbytes(BNB | {"weight.absmax": np.ones(48, F32)})  # TypeError: weight.absmax must be uint8, got floa
layouts.to_bitsandbytes(FEW, qk.Codebook(np.arange(16), axis=0, block_size=64), np.ones((1, 2)))  # ValueError: codebook
layouts.to_bitsandbytes(FEW, qk.NF4, np.ones((1, 2)))  # ValueError: codebook must have the levels of NF4 or FP4 and blo
layouts.to_bitsandbytes(FEW, BOOK, np.ones((2, 2)))  # ValueError: scales must have shape \(K / 64, N\) .* got \(2, 2\)
layouts.to_bitsandbytes(FEW + 16, BOOK, np.ones((1, 2)))  # ValueError: codes must have shape \(K, N\) and be below 16
layouts.to_bitsandbytes(FEW, BOOK, np.ones((1, 2)), dtype="int8")  # ValueError: dtype must be 'float32', 'float16' or
layouts.to_bitsandbytes(FEW, BOOK, np.ones((1, 2)), nested=BNB)  # ValueError: nested must hold a double
layouts.to_bitsandbytes(FEW, BOOK, np.ones((1, 2)), nested=forged("dtype"))  # ValueError: nested must hold a double
layouts.to_bitsandbytes(FEW, BOOK, np.ones((1, 2)), nested=forged("nested_dtype"))  # ValueError: nested must hold a do
layouts.from_bitsandbytes(BNB | {"weight.nested_absmax": BNB["weight.nested_absmax"] * F32(np.nan)})
    # ValueError: scales must be finite in float32, got nan
layouts.from_bitsandbytes(PLAIN | {"weight.absmax": PLAIN["weight.absmax"] * F32(np.nan)})
    # ValueError: weight.absmax has .* NaN
layouts.to_bitsandbytes(FEW, BOOK, np.full((1, 2), np.inf))  # ValueError: scales has 2 NaN or infinite values
layouts.to_bitsandbytes(FEW, BOOK, np.full((1, 2), np.nan), nested=True)  # ValueError: scales has 2 NaN or infinite va
""")
def test_refusals(refusal):
    refuse(refusal, globals())


@pytest.mark.parametrize("write", [qk.layouts.to_gptq, qk.layouts.to_awq])
def test_integer_scales_are_refused(write):
    w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    params = qk.choose_qparams(w, "uint4", axis=0, block_size=32, scale_bits=4)
    with pytest.raises(ValueError, match="params must not have integer scales"):
        write(qk.quantize(w, params), params)
