"""Read and write the quantized weights of others' checkpoints. Formulas: docs/numerics.md, section 32.

Each function takes or gives the tensors of one layer, by the names that they have in its checkpoint.
"""

import json

import ml_dtypes
import numpy as np

from . import _codebook
from ._bind.arrays import FLOATS, contiguous_as, copied
from ._bind.runtime import word
from ._checks import (
    array_named,
    arrays_named,
    as_array,
    finite_float32,
    float_array,
    integer,
    is_a,
    shown,
)
from ._codebook import Codebook, decode, encode
from ._mode import default_mode
from ._qparams import QParams, code_range, smallest
from ._quantize import pack_bits, unpack_bits

__all__ = ["from_awq", "from_bitsandbytes", "from_gptq", "to_awq", "to_bitsandbytes", "to_gptq"]

WORD = np.dtype("<i4")
BITS = 2, 3, 4, 8
UINT4, INT4 = np.dtype(ml_dtypes.uint4), np.dtype(ml_dtypes.int4)
WIDEST = {UINT4: 4, INT4: 4, np.dtype(np.uint8): 8, np.dtype(np.int8): 8}
WIDEST |= {np.dtype(ml_dtypes.uint2): 2, np.dtype(ml_dtypes.int2): 2}
AWQ_COLUMNS = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of eight neighbours, from the lowest bits of a word on


# ---- GPTQ ----


def from_gptq(arrays, *, bits=4, version=1):
    """Return what `pack` takes of a layer of a GPTQ checkpoint (AutoGPTQ's, GPTQModel's).

    Parameters
    ----------
    arrays : mapping of str to array
        - ``qweight`` (K * bits / 32, N), int32: codes of a column stand densely, from the lowest bits on.
        - ``qzeros`` (G, N * bits / 32), int32: the zero points of G groups of rows, densely along N.
        - ``scales`` (G, N), floats.
        - ``g_idx`` (K,), integers, optional: the group of each row. Without it groups are of K / G neighbours.
    bits : {2, 3, 4, 8}
    version : {1, 2}
        Whether ``qzeros`` hold zero points less 1, modulo 2**bits (``checkpoint_format`` "gptq"), or themselves
        ("gptq_v2").

    Returns
    -------
    codes : uint4 (of 2 and 3 bits, too) or uint8 array of shape (K, N)
    params : QParams
        A scale and a zero point for each group, or each column if there is one group.
    order : int64 array of shape (K,), or None
        If rows do not stand in the order of their groups (``desc_act``), codes do, and the layer is
        ``linear(x[:, order], packed)``.

    Raises
    ------
    TypeError, ValueError
        If a tensor is missing or not as above, or groups are not all as long as the first; the last may be shorter.

    References
    ----------
    Frantar et al., *GPTQ*, 2022; AutoGPTQ and GPTQModel, ``QuantLinear``, for the layout.

    Examples
    --------
    >>> w = np.linspace(-1, 1, 64 * 8, dtype=np.float32).reshape(64, 8)
    >>> params = qk.choose_qparams(w, "uint4", axis=0, block_size=32)
    >>> tensors = qk.layouts.to_gptq(qk.quantize(w, params), params)
    >>> {name: tensor.shape for name, tensor in tensors.items()}
    {'qweight': (8, 8), 'qzeros': (2, 1), 'scales': (2, 8), 'g_idx': (64,)}
    >>> codes, params, order = qk.layouts.from_gptq(tensors)
    >>> qk.pack(codes, params).shape
    (64, 8)
    """
    arrays, bits, version = arrays_named(arrays, NEEDED, ("g_idx",)), _checked_bits(bits), _checked_version(version)
    words, zeros, scales = _matrices(arrays)
    groups, n = scales.shape
    k = words.shape[0] * 32 // bits
    if words.shape[0] * 32 % bits or words.shape[1] != n or zeros.shape != (groups, n * bits // 32) or n * bits % 32:
        raise ValueError(
            f"arrays must hold qweight (K * bits / 32, N), qzeros (G, N * bits / 32), scales (G, N), bits={bits}, "
            f"got {words.shape}, {zeros.shape} and {scales.shape}"
        )
    if not k and groups > 1:
        raise ValueError(f"scales must have at most one group for codes without rows, got {groups}")
    order, group = _order(arrays.get("g_idx"), k, groups)
    codes, zero_points = _sparse(words.T, bits, (n, k)).T, _sparse(zeros, bits, (groups, n))
    zero_points = (zero_points + np.uint8(version == 1)) & np.uint8((1 << bits) - 1)
    codes = codes if order is None else codes[order]
    return codes.view(np.uint8 if bits == 8 else UINT4), _params(scales, zero_points, bits, group), order


def to_gptq(codes, params, order=None, *, bits=None, version=1):
    """Return the tensors of a layer of a GPTQ checkpoint: `from_gptq` backwards.

    Parameters
    ----------
    codes : uint2, uint4, uint8, int2, int4 or int8 array of shape (K, N)
        K and N whole words of 32 bits. Signed codes are written with 2, 8 or 128 added, as are their zero points.
    params : QParams
        Those of codes, per column (``axis=1``) or per block of rows (``axis=0``, `block_size`).
    order : int array of shape (K,), optional
        Which input each row of codes is for; a permutation.
    bits : {2, 3, 4, 8}, optional
        None: 2, 4 or 8, as the dtype says. Unsigned codes may have fewer.
    version : {1, 2}

    Returns
    -------
    dict of str to array
        ``qweight``, ``qzeros``, ``scales`` (float16 if that holds them all exactly, else float32) and ``g_idx``.

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, or codes or zero points beyond `bits`.

    References
    ----------
    As `from_gptq`.
    """
    codes, params, scale, zero_point = _unsigned(codes, params)
    widest = WIDEST[params.dtype]
    bits, version = widest if bits is None else _checked_bits(bits), _checked_version(version)
    (k, n), group = codes.shape, params.block_size or max(codes.shape[0], 1)
    for name, array in ("codes", codes), ("zero points of params", zero_point):
        if array.size and array.max() >= 1 << bits:
            raise ValueError(f"{name} must be below {1 << bits} for {bits} bits, got {array.max()}")
    if k * bits % 32 or n * bits % 32:
        raise ValueError(f"codes of {bits} bits must fill words of 32 bits by rows and columns, got shape {(k, n)}")
    g_idx = (np.arange(k) // group).astype(np.int32)
    if order is not None:
        inverse = _inverse(order, k)
        codes, g_idx = codes[inverse], g_idx[inverse]
    stored = (zero_point - np.uint8(version == 1)) & np.uint8((1 << bits) - 1)
    qweight = copied(_dense(codes.T, bits).T, np.int32)
    return {"qweight": qweight, "qzeros": _dense(stored, bits), "scales": scale, "g_idx": g_idx}


def _order(g_idx, k, groups):
    """Return the order of rows that brings groups together, None if they are, and the rows of a group."""
    if g_idx is None:
        if k and (not groups or k % groups):
            raise ValueError(f"g_idx must tell the {groups} groups of {k} rows, which are not of one length")
        return None, max(k // max(groups, 1), 1)
    g_idx = array_named({"g_idx": g_idx}, "g_idx")
    if g_idx.shape != (k,):
        raise ValueError(f"g_idx must have shape ({k},), got {g_idx.shape}")
    if k and not 0 <= g_idx.min() <= g_idx.max() < groups:
        raise ValueError(f"g_idx must be within [0, {groups - 1}], got {g_idx.min()} to {g_idx.max()}")
    counts = np.bincount(g_idx.astype(np.intp), minlength=groups)
    group = max(int(counts[0]), 1) if groups else 1
    if (counts[:-1] != group).any() or (groups and k and not 0 < counts[-1] <= group):
        raise ValueError(f"g_idx must give each group but the last as many rows as the first, got {counts.tolist()}")
    together = bool((g_idx[1:] >= g_idx[:-1]).all())
    return (None if together else np.argsort(g_idx, kind="stable").astype(np.int64)), group


def _inverse(order, k):
    order = as_array(order, "order")
    if order.dtype.kind not in "iu":
        raise TypeError(f"order must be integers, got {order.dtype}")
    inverse = np.full(k, -1)
    if order.shape == (k,) and (not k or 0 <= order.min() <= order.max() < k):
        inverse[order.astype(np.intp)] = np.arange(k)
    if order.shape != (k,) or (inverse < 0).any():
        raise ValueError(f"order must be a permutation of the {k} rows, got {shown(order)}")
    return inverse


# ---- AWQ ----


def from_awq(arrays):
    """Return what `pack` takes of a layer of an AWQ checkpoint of 4 bits (AutoAWQ's ``version`` "gemm").

    Parameters
    ----------
    arrays : mapping of str to array
        - ``qweight`` (K, N / 8), int32: codes of eight neighbours, from the lowest bits on the columns 0, 2, 4, 6, 1,
          3, 5 and 7 of them.
        - ``qzeros`` (G, N / 8), int32: zero points of groups of K / G rows, likewise.
        - ``scales`` (G, N), floats.

    Returns
    -------
    codes : uint4 array of shape (K, N)
    params : QParams
        A scale and a zero point for each group, or each column if there is one group.

    Raises
    ------
    TypeError, ValueError
        If a tensor is missing or not as above.

    References
    ----------
    Lin et al., *AWQ: Activation-aware Weight Quantization*, 2023; AutoAWQ, ``WQLinear_GEMM``, for the layout.

    Examples
    --------
    >>> zeros, word = np.zeros((1, 1), np.int32), 0x76543210
    >>> tensors = {"qweight": np.full((2, 1), word), "qzeros": zeros, "scales": np.ones((1, 8), np.float16)}
    >>> qk.layouts.from_awq({**tensors, "qweight": np.full((2, 1), word, np.int32)})[0][0]
    array([0, 4, 1, 5, 2, 6, 3, 7], dtype=uint4)
    """
    words, zeros, scales = _matrices(arrays_named(arrays, NEEDED))
    (groups, n), k = scales.shape, len(words)
    if n % 8 or words.shape != (k, n // 8) or zeros.shape != (groups, n // 8) or (k and (not groups or k % groups)):
        raise ValueError(
            "arrays must hold qweight (K, N / 8), qzeros (G, N / 8) and scales (G, N) of a G that divides K, "
            f"got {words.shape}, {zeros.shape} and {scales.shape}"
        )
    codes, zero_points = (_in_columns(_sparse(a, 4, (len(a), n)), AWQ_COLUMNS.argsort()) for a in (words, zeros))
    return codes.view(UINT4), _params(scales, zero_points, 4, max(k // max(groups, 1), 1))


def to_awq(codes, params):
    """Return the tensors of a layer of an AWQ checkpoint: `from_awq` backwards.

    Parameters
    ----------
    codes : uint4 or int4 array of shape (K, N)
        N a multiple of 8. Signed codes are written with 8 added, as are their zero points.
    params : QParams
        Those of codes, per column (``axis=1``) or per block of rows (``axis=0``), whose `block_size` divides K.

    Returns
    -------
    dict of str to array
        ``qweight``, ``qzeros`` and ``scales`` (float16 if that holds them all exactly, else float32).

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape.

    References
    ----------
    As `from_awq`.
    """
    codes, params, scale, zero_point = _unsigned(codes, params)
    k, n = codes.shape
    if WIDEST[params.dtype] != 4:
        raise TypeError(f"codes must be uint4 or int4 for AWQ, got {params.dtype}")
    if n % 8 or k % (params.block_size or 1):
        raise ValueError(
            f"codes must have N a multiple of 8 and K one of block_size {params.block_size}, got shape {(k, n)}"
        )
    qweight, qzeros = (_dense(_in_columns(a, AWQ_COLUMNS), 4) for a in (codes, zero_point))
    return {"qweight": qweight, "qzeros": qzeros, "scales": scale}


def _in_columns(codes, columns):
    """Return codes (rows, n) whose columns have another order within each eight."""
    return codes.reshape(len(codes), codes.shape[1] // 8, 8)[:, :, columns].reshape(codes.shape)


# ---- what these two share ----

NEEDED = "qweight", "qzeros", "scales"


def _checked_bits(bits):
    bits = integer(bits, "bits")
    if bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits}")
    return bits


def _checked_version(version):
    version = integer(version, "version")
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version}")
    return version


def _matrices(arrays):
    """Return words of codes, words of zero points, and scales."""
    found = [array_named(arrays, name, np.int32, np.uint32) for name in NEEDED[:2]]
    found.append(array_named(arrays, "scales", *FLOATS))
    for name, array in zip(NEEDED, found, strict=True):
        if array.ndim != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {array.shape}")
    return found


def _sparse(words, bits, shape):
    """Return the codes, one a byte, that stand densely in words along the last axis."""
    words = copied(words, WORD) if words.dtype.kind == "i" else copied(words, "<u4")
    return unpack_bits(words.view(np.uint8).reshape(-1), bits, shape)


def _dense(codes, bits):
    """Return words in which codes, whole words of them, stand densely along the last axis."""
    rows, n = codes.shape
    return pack_bits(codes, bits).view(WORD).reshape(rows, n * bits // 32).astype(np.int32, copy=False)


def _params(scales, zero_points, bits, group):
    """Return parameters of groups of rows, of columns if there is one group."""
    dtype = np.dtype(np.uint8) if bits == 8 else UINT4
    if len(scales) == 1:
        return QParams(scales[0], zero_points[0], dtype, axis=1)
    return QParams(scales, zero_points, dtype, axis=0, block_size=group)


def _unsigned(codes, params):
    """Return codes as uint8, their params, scales as they are written, and zero points (G, N) as uint8."""
    codes = as_array(codes, "codes")
    if not is_a(params, QParams):
        raise TypeError(f"params must be QParams, got {type(params).__name__}")
    if params.block_scale is not None:
        raise ValueError(f"params must not have integer scales, which this layout does not know, got {params!r}")
    if codes.dtype not in WIDEST or codes.dtype != params.dtype:
        expected = (
            f"{params.dtype} (as params)" if params.dtype in WIDEST else "uint2, uint4, uint8, int2, int4 or int8"
        )
        raise TypeError(f"codes must be {expected}, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have shape (K, N), got {codes.shape}")
    if params.axis not in ((0, -2) if params.block_size else (1, -1)):
        raise ValueError(
            "params must be per column (axis=1) or per block of rows (axis=0 and block_size), "
            f"got axis={params.axis}, block_size={params.block_size}"
        )
    params.check_shape(codes.shape, "codes")
    scale, zero_point = (np.atleast_2d(a) for a in (params.scale, params.zero_point))
    lowest = code_range(codes.dtype)[0]
    codes = contiguous_as(codes, codes.dtype).view(np.uint8)
    if lowest:  # the sum modulo the number of codes, by the bit of the sign
        codes = (codes ^ np.uint8(-lowest)) & np.uint8(-2 * lowest - 1)
    return codes, params, smallest(scale), (zero_point - lowest).astype(np.uint8)


# ---- bitsandbytes ----

MOST = float(np.finfo(np.float32).max)
STATE = "weight.quant_state.bitsandbytes__"
KINDS = "nf4", "fp4"
NESTED = "weight.nested_absmax", "weight.nested_quant_map"
NESTED_BLOCK = 256
KEPT = "dtype", "nested_blocksize", "nested_dtype", "nested_offset"  # of the state of a double quantization


@default_mode
def from_bitsandbytes(arrays):
    """Return what `pack` takes of a layer of a bitsandbytes checkpoint of 4 bits (NF4, FP4).

    Parameters
    ----------
    arrays : mapping of str to array
        - ``weight``: uint8, or another dtype whose bytes are meant: the codes of the weight (N, K) in C order, two a
          byte, the first in the high bits.
        - ``weight.absmax``: float32, the scale of each so many neighbours, or with double quantization uint8, codes of
          scales less their mean, for which ``weight.nested_absmax`` and ``weight.nested_quant_map`` are the scales and
          levels.
        - ``weight.quant_map`` (16,), floats: the levels.
        - ``weight.quant_state.bitsandbytes__nf4`` (or ``fp4``), uint8: the text of a JSON object that tells the rest.

    Returns
    -------
    codes : uint8 array of shape (K, N)
    codebook : Codebook
        Of blocks of rows.
    scales : float32 array of shape (K / block_size, N)
        Those of bitsandbytes, bit for bit.

    Raises
    ------
    TypeError, ValueError
        If a tensor is missing or not as above, or blocks reach from one output to the next: K must be a multiple of
        their size.

    References
    ----------
    Dettmers et al., *QLoRA: Efficient Finetuning of Quantized LLMs*, 2023; bitsandbytes, ``functional.QuantState``, for
    the layout.

    Examples
    --------
    >>> book = qk.Codebook(qk.NF4.levels, axis=0, block_size=64)
    >>> codes, scales = qk.encode(np.eye(128, 3, dtype=np.float32), book)
    >>> tensors = qk.layouts.to_bitsandbytes(codes, book, scales, nested=True)
    >>> sorted(tensors)[:3]
    ['weight', 'weight.absmax', 'weight.nested_absmax']
    >>> codes, book, scales = qk.layouts.from_bitsandbytes(tensors)
    >>> qk.pack(codes, book, scales=scales).shape
    (128, 3)
    """
    arrays, state = _with_state(arrays)
    n, k, block = (*state["shape"], state["blocksize"])
    if k % block:
        raise ValueError(f"weight must have K a multiple of the block size {block}, got shape (N, K) = {(n, k)}")
    data = contiguous_as(as_array(arrays["weight"], "weight"), as_array(arrays["weight"], "weight").dtype)
    data = data.reshape(-1).view(np.uint8)
    if data.size != -(-n * k // 2):
        raise ValueError(f"weight must have {-(-n * k // 2)} bytes for shape (N, K) = {(n, k)}, got {data.size}")
    levels = array_named(arrays, "weight.quant_map", *FLOATS)
    if levels.shape != (16,):
        raise ValueError(f"weight.quant_map must have shape (16,), got {levels.shape}")
    scales = _absmax(arrays, state)
    if scales.shape != (n * k // block,):
        raise ValueError(f"weight.absmax must have shape ({n * k // block},), got {scales.shape}")
    codes = unpack_bits(_swapped(data), 4, (n, k)).T
    return codes, Codebook(levels, axis=0, block_size=block), scales.reshape(n, k // block).T


@default_mode
def to_bitsandbytes(codes, codebook, scales, *, nested=False, dtype="float32"):
    """Return the tensors of a layer of a bitsandbytes checkpoint: `from_bitsandbytes` backwards.

    Parameters
    ----------
    codes : uint8 array of shape (K, N)
    codebook : Codebook
        With the levels of `NF4` or `FP4`, of blocks of rows (``axis=0``), whose `block_size` divides K.
    scales : float array of shape (K / block_size, N)
    nested : bool or mapping of str to array
        Whether scales are quantized in turn, as bitsandbytes does (8 bits for each of 256, less their mean); or the
        tensors that they come from, whose double quantization is then kept.
    dtype : str
        What bitsandbytes is to return: "float32", "float16" or "bfloat16".

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, other levels, NaN or infinity, or tensors of other scales.

    References
    ----------
    As `from_bitsandbytes`.
    """
    codes = as_array(codes, "codes")
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    most = codes.max(initial=0)
    if codes.ndim != 2 or most > 15:
        raise ValueError(f"codes must have shape (K, N) and be below 16, got shape {codes.shape} and {most}")
    kind, (k, n), block = _kind(codebook), codes.shape, codebook.block_size
    scales = float_array(scales, "scales")
    if k % block or scales.shape != (k // block, n):
        raise ValueError(
            f"scales must have shape (K / {block}, N) and K be a multiple of {block}, "
            f"got {scales.shape} for codes of shape {(k, n)}"
        )
    dtype = word(dtype)
    if not is_a(dtype, str) or dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype must be 'float32', 'float16' or 'bfloat16', got {shown(dtype)}")
    state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [n, k]}
    made = {"weight": _swapped(pack_bits(codes.T, 4)).reshape(-1, 1)}
    made |= _nested(finite_float32(scales.T, "scales").reshape(-1), nested, state)
    made["weight.quant_map"] = np.array(codebook.levels)
    return made | {STATE + kind: np.frombuffer(json.dumps(state).encode(), np.uint8).copy()}


def _kind(codebook):
    """Return "nf4" or "fp4" for a codebook of blocks of rows."""
    if not is_a(codebook, Codebook):
        raise TypeError(f"codebook must be a Codebook, got {type(codebook).__name__}")
    for kind in KINDS:
        if np.array_equal(codebook.levels, getattr(_codebook, kind.upper()).levels):
            if codebook.axis in (0, -2) and codebook.block_size:
                return kind
            break
    raise ValueError(f"codebook must have the levels of NF4 or FP4 and blocks of rows (axis=0), got {codebook}")


def _swapped(data):
    """Return bytes whose halves have changed places."""
    return data >> np.uint8(4) | data << np.uint8(4)


def _with_state(tensors):
    """Return tensors by name, and what the one of text says, of which all is checked."""
    names = "weight", "weight.absmax", "weight.quant_map"
    arrays = arrays_named(tensors, names, (*NESTED, *(STATE + kind for kind in KINDS)))
    name = next((STATE + kind for kind in KINDS if STATE + kind in arrays), None)
    if name is None:
        raise ValueError(f"arrays must hold {STATE}nf4 or {STATE}fp4, got neither")
    text = contiguous_as(array_named(arrays, name, np.uint8), np.uint8).tobytes()
    try:
        state = json.loads(text)
        shape, block = state["shape"], state["blocksize"]
        nested = [state["nested_blocksize"], state["nested_offset"]] if "nested_offset" in state else [1, 0.0]
        sizes = [*shape, block, nested[0]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} must be a JSON object with shape and blocksize, got {shown(text)}") from error
    numbers = all(type(size) is int and 0 <= size < 2**63 for size in sizes) and type(nested[1]) in (int, float)
    if not numbers or len(shape) != 2 or 0 in sizes[2:] or not abs(nested[1]) <= MOST:
        raise ValueError(f"{name} must have sizes (N, K) of a matrix and of blocks, got {shown(text)}")
    return arrays, state


def _absmax(arrays, state):
    """Return the scales as float32: with double quantization level times scale plus offset, rounded twice."""
    if "nested_offset" not in state:
        return finite_float32(array_named(arrays, "weight.absmax", *FLOATS), "weight.absmax")
    codes = array_named(arrays, "weight.absmax", np.uint8)
    for name in NESTED:
        if name not in arrays:
            raise ValueError(f"arrays must hold {name} for scales that are quantized, got none")
    largest, levels = (array_named(arrays, name, *FLOATS) for name in NESTED)
    book = Codebook(levels, block_size=state["nested_blocksize"])
    with np.errstate(over="ignore"):
        scales = decode(codes, book, largest) + np.float32(state["nested_offset"])
    return finite_float32(scales, "weight.absmax")


def _nested(scales, nested, state):
    """Return the tensors of scales, and tell `state` of their double quantization."""
    if not is_a(nested, bool, np.bool_):
        return _kept(scales, nested, state)
    if not nested:
        return {"weight.absmax": scales}
    offset = np.float32(scales.mean(dtype=np.float64)) if scales.size else np.float32(0)
    state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
    levels = _dynamic_levels()
    codes, largest = encode(scales - offset, Codebook(levels, block_size=NESTED_BLOCK))
    return dict(zip(("weight.absmax", *NESTED), (codes, largest, levels), strict=True))


def _kept(scales, tensors, state):
    """Return the tensors of scales from which these were read."""
    try:
        arrays, theirs = _with_state(tensors)
        stands = theirs.keys() >= set(KEPT) and np.array_equal(_absmax(arrays, theirs), scales)
    except (TypeError, ValueError) as error:
        raise type(error)(f"nested must be True, False or tensors of double quantization: {error}") from error
    if not stands:
        raise ValueError("nested must hold a double quantization that stands for these scales")
    state |= {name: theirs[name] for name in KEPT}
    return {name: np.array(arrays[name]) for name in ("weight.absmax", *NESTED)}


def _dynamic_levels():
    """Return the 256 levels of bitsandbytes' 8-bit codes, in its float32: 2**i a sign in the decade up to 10**(i - 6).

    They are the means of neighbours of evenly spaced numbers, which are rounded once, from the nearer end.
    """
    levels, least, one = [np.float32([0, 1])], np.float32(0.1), np.float32(1)
    for i in range(7):
        at, step = np.arange(2**i + 1), np.float64((one - least) / np.float32(2**i))
        ends = np.where(2 * at < 2**i, least + step * at, one - step * (2**i - at)).astype(np.float32)
        means = np.float32(10.0 ** (i - 6)) * ((ends[1:] + ends[:-1]) / np.float32(2))
        levels += [means, -means]
    return np.sort(np.concatenate(levels))
