"""Pack weights in the layout that products read fastest. Formulas: docs/numerics.md, sections 6, 12, 16 and 17."""

import math

import ml_dtypes
import numpy as np

from ._bind.arrays import FLOATS, contiguous_as
from ._bind.weights import Packed
from ._checks import (
    SMALLEST_SCALE,
    array_named,
    arrays_named,
    as_array,
    is_a,
    number_named,
    refuse_missing,
    refuse_surplus,
)
from ._codebook import Codebook, checked_scales
from ._mode import default_mode
from ._qparams import FOUR_BITS, QParams, blocks_named, code_range, dense_blocks, smallest, spread
from ._quantize import pack_bits, unpack_bits
from ._value import Frozen, restored

FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
INTEGERS = {
    (int(name[-1]), name[0] == "i"): np.dtype(getattr(ml_dtypes, name)) for name in ("int2", "uint2", "int4", "uint4")
}
BITS = {dtype: bits for (bits, _), dtype in INTEGERS.items()} | {FLOAT4: 4}
HALVES = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def pack(b, params, *, scales=None):
    """Pack weights in the layout that the products read fastest.

    Parameters
    ----------
    b : int8, uint8, int16, int4, uint4, int2, uint2, float4_e2m1fn, float16 or bfloat16 array of shape (K, N)
        Inputs by outputs: the transpose of what `torch.nn.Linear` keeps, (out, in). Strides are free, so that
        ``weight.T`` costs no copy. 2- and 4-bit codes (of `ml_dtypes`) are kept dense, and so are those of a codebook
        (uint8): at 2 bits up to 4 levels, at 3 up to 8 (unless blocks have so few rows that 4 take less), else at 4.
        All but int8 and uint8 codes are for `linear` only; floats must be finite.
    params : QParams or Codebook, or None if b is float16 or bfloat16
        QParams of dtype `b.dtype`, per tensor or per column (``axis=1``); codes of up to 8 bits also per block of rows
        and column (``axis=0``, `block_size`), as MXFP4, MXINT8 and NVFP4 are, of which multiples of 4 run fastest, of 2
        and 3 bits of 8 and 16; 8-bit codes fastest with the zero point 0 (int8) or 128 (uint8). Scales of blocks, and
        of all codes of up to 4 bits, are kept as float16 if that holds them all exactly; integer scales in a byte a
        block and column, and `linear` gives the bits of the int8 weights that they make.

        A codebook of at most 16 levels, for all values, for each column (``axis=1``) or for blocks of rows (``axis=0``,
        `block_size`). Its levels are rounded to int8 multiples of the largest over 127, unless they all are int8
        multiples of a power of two.
    scales : float array of shape (ceil(K / block_size), N)
        Those of `encode`, for a codebook of blocks; kept as QParams' are.

    Returns
    -------
    PackedMatrix

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or axis, NaN or infinity, or a code beyond the levels.

    References
    ----------
    docs/numerics.md, sections 6, 12, 16 and 17.

    Examples
    --------
    >>> w = np.float32([[0.5, -1], [1, 0.25], [-0.5, 2]])
    >>> params = qk.choose_qparams(w, "int8", axis=1)
    >>> qk.pack(qk.quantize(w, params), params).shape
    (3, 2)
    >>> codebook = qk.Codebook([-1, -0.3, 0, 0.3, 1], axis=0, block_size=2)
    >>> codes, scales = qk.encode(w, codebook)
    >>> qk.pack(codes, codebook, scales=scales).level_error < 0.001
    True
    >>> qk.pack(w.astype(np.float16), None)
    PackedMatrix(shape=(3, 2), dtype='float16')

    Ternary weights are int2, a quarter of a byte each:

    >>> ternary = np.sign(np.random.default_rng(0).normal(size=(512, 512)).round()).astype("int2")
    >>> qk.pack(ternary, qk.QParams(0.1, dtype="int2")).nbytes / ternary.size < 0.26
    True
    """
    return PackedMatrix(b, params, scales)


class PackedMatrix(Packed, Frozen):
    """Hold weights as `pack` makes them: read-only, picklable, to be used from any thread.

    Attributes
    ----------
    shape : (int, int)
        (K, N)
    params : QParams or Codebook, or None with float16 and bfloat16
    dtype : dtype
        That of the weights, or of the codes: uint8 for a codebook.
    scales : float32 array or None
        Those of the blocks of a codebook.
    level_error : float
        The largest distance of a level of the codebook from what stands for it, an int8 multiple of a scale, in units
        of the codebook's largest level: at most 1 / 254, and 0 if all levels are multiples of a power of two, as many
        as int8 has. 0 for QParams.
    nbytes : int
        All that it holds: the codes or floats in panels, scales and zero points (once: in the panels, or for each
        column), sums of columns, and the levels of a codebook; and what `qlinear` keeps of its last call for a next one
        with the same parameters, 12 to 40 bytes a column. What it does not count is constant: Python's objects, of
        about 1 kB, and less than a cache line before the panels. `params` and `scales` are made when they are asked
        for.

    Examples
    --------
    >>> packed = qk.pack(np.eye(3, 2, dtype=np.int8), qk.QParams(0.5))
    >>> packed
    PackedMatrix(shape=(3, 2), params=QParams(scale=0.5, dtype='int8'))
    >>> qk.PackedMatrix.from_arrays(packed.to_arrays()).unpack()
    array([[1, 0],
           [0, 1],
           [0, 0]], dtype=int8)
    """

    __slots__ = ()

    @staticmethod
    @default_mode
    def __new__(cls, b, params, scales=None):
        b = as_array(b, "b")
        b = b if b.dtype.isnative else contiguous_as(b, b.dtype.newbyteorder("="))
        if is_a(params, Codebook):
            params, scales = _check_codes(b, params, scales)
            return super().__new__(cls, b, params._without_tables(), scales)
        if scales is not None:
            raise ValueError(f"scales must be None for weights without a Codebook, got {type(scales).__name__}")
        if params is None or b.dtype in HALVES:
            return cls._of_floats(b, params)
        if not is_a(params, QParams):
            raise TypeError(f"params must be QParams or a Codebook, got {type(params).__name__}")
        return super().__new__(cls, b, _check_weights(b, params))

    @classmethod
    def _of_floats(cls, b, params):
        if b.dtype not in HALVES:
            raise TypeError(f"b must be float16 or bfloat16 where params is None, got {b.dtype}")
        if params is not None:
            raise TypeError(f"params must be None for weights of {b.dtype}, got {type(params).__name__}")
        if b.ndim != 2:
            raise ValueError(f"b must have shape (K, N), got {b.shape}")
        return super().__new__(cls, b, None)

    @default_mode
    def __repr__(self):
        if self.params is None:
            return f"PackedMatrix(shape={self.shape}, dtype='{self.dtype}')"
        return f"PackedMatrix(shape={self.shape}, params={self.params})"

    def __reduce__(self):
        return restored, (PackedMatrix, self.to_arrays())

    @property
    def params(self):
        if isinstance(self._kept, Codebook):
            return self._kept._without_tables()  # whose tables, once they are made, are the caller's
        if self._kept is None or isinstance(self._kept, QParams):
            return self._kept
        qmin, qmax, axis, block_size = self._kept
        scale, zero_point = self._columns()
        if self.dtype in FOUR_BITS and scale.ndim == 1:  # else 4 bits have scales in panels
            return QParams._folded(scale, self.dtype, (qmin, qmax), block_size, *self._integer_scales())
        if block_size is None:
            scale, zero_point = scale.reshape(-1), zero_point.reshape(-1)
        return QParams._chosen(scale, zero_point, self.dtype, (qmin, qmax), axis, block_size)

    @property
    def scales(self):
        if not isinstance(self._kept, Codebook) or self._kept.block_size is None:
            return None
        scales = self._columns()[0]
        scales.flags.writeable = False
        return scales

    @property
    @default_mode
    def level_error(self):
        return _level_error(self._kept) if isinstance(self._kept, Codebook) else 0.0

    @default_mode
    def to_arrays(self):
        """Return plain arrays that hold all of it, for safetensors, npz and the like.

        `from_arrays` reads them on any machine.

        Returns
        -------
        dict of str to array
            ``codes`` (K, N), ``scale`` and ``zero_point`` (their shape in `params`; () if all zero points are equal),
            and ``qmin`` (). Weights of 8 bits in blocks also have ``block_size`` (). Weights of 4 and 2 bits have
            ``codes`` of one dimension, as `pack_bits` makes them, and ``shape`` (2,), ``signed`` () and ``block_size``
            () (0 for none) tell the rest, ``bits`` () unless it is 4, ``floats`` (), which float4_e2m1fn has, and
            ``integer_scales`` as `QParams.to_arrays` has them. A codebook has such ``codes``, ``shape``,
            ``bits`` (2 or 3, unless it is 4), ``levels``, and, if it has blocks, ``block_size`` and ``scales``. Floats
            are ``weights`` (K, N) alone: float16, or uint16 that holds the bits of bfloat16.

            Scales are float16 if that holds them all exactly, else float32; zero points have the smallest integer type
            that does.
        """
        if self.dtype in HALVES:
            weights = self.unpack()
            return {"weights": weights if self.dtype == np.float16 else weights.view(np.uint16)}
        p = self.params
        if isinstance(p, Codebook):
            arrays = self._dense(bits_of(p.k)) | {"levels": np.array(p.levels)}
            scales = self.scales
            blocks = {} if scales is None else {"block_size": np.array(p.block_size), "scales": smallest(scales)}
            return arrays | blocks
        scale, zero_point = (np.asarray(a) for a in smallest(p.scale, p.zero_point))
        arrays = {"scale": scale, "zero_point": zero_point, "qmin": np.array(p.qmin, np.int32)}
        if p.dtype not in BITS:
            return {"codes": self.unpack()} | arrays | ({"block_size": np.array(p.block_size)} if p.block_size else {})
        signed, floats = p.dtype in (INTEGERS[2, True], INTEGERS[4, True], FLOAT4), p.dtype == FLOAT4
        if p.block_scale is not None:
            arrays["integer_scales"] = dense_blocks(p)
        kinds = {"signed": np.array(signed), "block_size": np.array(p.block_size or 0)}
        return self._dense(BITS[p.dtype]) | kinds | arrays | ({"floats": np.array(True)} if floats else {})

    def _dense(self, bits):
        """Return what `dense_codes` reads."""
        codes = self.unpack()
        codes = pack_bits(codes.view(np.uint8) if self.dtype == FLOAT4 else codes, bits)
        arrays = {"codes": codes, "shape": np.array(self.shape)}
        return arrays if bits == 4 else arrays | {"bits": np.array(bits)}

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Pack for this machine the matrix whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, one too many, or not as `to_arrays` makes it.
        """
        arrays = arrays_named(arrays, (), set().union(*NEEDED.values(), *OPTIONAL.values()), only=True)
        kind = next((name for name in ("weights", "levels", "shape") if name in arrays), "codes")
        refuse_missing(arrays, NEEDED[kind])
        refuse_surplus(arrays, {*NEEDED[kind], *OPTIONAL[kind]})
        if kind == "weights":
            weights = array_named(arrays, "weights", np.float16, np.uint16)
            return cls(weights if weights.dtype == np.float16 else weights.view(HALVES[1]), None)
        if kind == "levels":
            return cls._of_levels(arrays)
        codes = dense_codes(arrays) if kind == "shape" else array_named(arrays, "codes", np.int8, np.uint8, np.int16)
        if codes.ndim != 2:
            raise ValueError(f"codes must have shape (K, N), got {codes.shape}")
        block_size = (number_named(arrays, "block_size", 0) or None) if "block_size" in arrays else None
        if "integer_scales" in arrays and block_size is None:
            raise ValueError("block_size must be at least 4 where there are integer_scales, got none")
        scale, qmin = array_named(arrays, "scale", *FLOATS), number_named(arrays, "qmin")
        lowest = code_range(codes.dtype)[0]
        if qmin not in (lowest, lowest + (codes.dtype != FLOAT4)):
            raise ValueError(f"qmin must be {lowest} or {lowest + 1} for codes of {codes.dtype}, got {qmin}")
        zero_point = spread(array_named(arrays, "zero_point"), scale.shape)
        axis, narrow = 0 if block_size else 1 if scale.ndim else None, qmin != lowest
        params = QParams(
            scale,
            zero_point,
            codes.dtype,
            axis=axis,
            block_size=block_size,
            narrow_range=narrow,
            **blocks_named(arrays),
        )
        return cls(codes, params)

    @classmethod
    def _of_levels(cls, arrays):
        levels, blocks = array_named(arrays, "levels", *FLOATS), bool(arrays.keys() & {"block_size", "scales"})
        if blocks:
            refuse_missing(arrays, ("block_size", "scales"))
        axis = 1 if levels.ndim == 2 else 0 if blocks else None
        codebook = Codebook(levels, axis=axis, block_size=number_named(arrays, "block_size", 1) if blocks else None)
        return cls(dense_codes(arrays), codebook, array_named(arrays, "scales", *FLOATS) if blocks else None)


NEEDED = {
    "weights": ("weights",),
    "levels": ("codes", "shape", "levels"),
    "codes": ("codes", "scale", "zero_point", "qmin"),
    "shape": ("codes", "shape", "signed", "block_size", "scale", "zero_point", "qmin"),
}
OPTIONAL = {
    "weights": (),
    "levels": ("bits", "block_size", "scales"),
    "codes": ("block_size",),
    "shape": ("bits", "floats", "integer_scales"),
}


def bits_of(count):
    """Return the bits of a code of so many levels: 2, 3 or 4."""
    return max(2, (count - 1).bit_length())


def dense_codes(arrays):
    """Return codes of 2, 3 or 4 bits (``bits``, which 4 do without), one a byte; those of a codebook are uint8."""
    codes, shape = array_named(arrays, "codes", np.uint8), array_named(arrays, "shape")
    bits = number_named(arrays, "bits") if "bits" in arrays else 4
    if shape.shape != (2,):
        raise ValueError(f"shape must have shape (2,), got {shape.shape}")
    if bits not in (2, 3, 4) or (bits == 3 and "signed" in arrays):
        raise ValueError(f"bits must be {'2 or 4' if 'signed' in arrays else '2, 3 or 4'}, got {bits}")
    count = math.prod(map(int, shape))
    expected = (-(-count * bits // 8),)
    if shape.min() >= 0 and codes.shape != expected:
        raise ValueError(
            f"codes must have shape {expected} to hold those of shape {tuple(shape.tolist())}, got {codes.shape}"
        )
    if "signed" not in arrays:
        return unpack_bits(codes, bits, tuple(shape))
    signed, floats = (
        array_named(arrays, name, np.bool_) if name in arrays else np.False_ for name in ("signed", "floats")
    )
    if signed.ndim:
        raise ValueError(f"signed must have shape (), got {signed.shape}")
    if floats.ndim:
        raise ValueError(f"floats must have shape (), got {floats.shape}")
    if floats and bits != 4:
        raise ValueError(f"bits must be 4 for floats, got {bits}")
    if floats:
        return unpack_bits(codes, 4, tuple(shape)).view(FLOAT4)
    return unpack_bits(codes, bits, tuple(shape), dtype=INTEGERS[bits, bool(signed)])


def _check_weights(b, params):
    """Return the params of b, an axis from the end named from the front: so from_arrays gives equal ones back."""
    if b.dtype not in (np.int8, np.uint8, np.int16, *BITS):
        raise TypeError(f"b must be int8, uint8, int16, int4, uint4, int2, uint2 or float4_e2m1fn, got {b.dtype}")
    if b.dtype != params.dtype:
        raise TypeError(f"b must have dtype {params.dtype} (as params), got {b.dtype}")
    if b.ndim != 2:
        raise ValueError(f"b must have shape (K, N), got {b.shape}")
    by_column = params.axis in (None, 1, -1) and params.block_size is None
    if not by_column and not (b.dtype != np.int16 and params.axis in (0, -2) and params.block_size):
        blocks = ", or per block of rows (axis=0 and block_size)" if b.dtype != np.int16 else ""
        raise ValueError(
            f"params must be per tensor or per column (axis=1){blocks}, got axis={params.axis}, "
            f"block_size={params.block_size}"
        )
    params.check_shape(b.shape, "b")
    if params.qmin != code_range(b.dtype)[0] and b.size:
        least = int(b.min())
        if least < params.qmin:
            raise ValueError(f"b must hold codes from {params.qmin} on, as params have a narrow range, got {least}")
    if params.axis in (-1, -2):
        codes, axis = (params.qmin, params.qmax), params.axis + 2
        if params.block_scale is not None:
            return QParams._folded(
                params.scale, params.dtype, codes, params.block_size, params.block_scale, params.block_shift
            )
        return QParams._chosen(params.scale, params.zero_point, params.dtype, codes, axis, params.block_size)
    return params


def _check_codes(b, codebook, scales):
    """Return the codebook of b, its axis named from the front, and contiguous float32 scales, or None."""
    if b.dtype != np.uint8:
        raise TypeError(f"b must be uint8 codes for a Codebook, got {b.dtype}")
    if b.ndim != 2:
        raise ValueError(f"b must have shape (K, N), got {b.shape}")
    if codebook.vector or codebook.k > 16:
        raise ValueError(f"params must be a Codebook of at most 16 levels and no vectors, got {codebook}")
    axis, block_size = codebook.axis, codebook.block_size
    if (axis, block_size) != (None, None) and axis not in ((0, -2) if block_size else (1, -1)):
        raise ValueError(
            "params must be a Codebook for all values, for each column (axis=1) or for blocks of rows (axis=0 and "
            f"block_size), got axis={axis}, block_size={block_size}"
        )
    if axis in (1, -1) and len(codebook.levels) != b.shape[1]:
        raise ValueError(f"params must have levels for {b.shape[1]} columns, got {len(codebook.levels)}")
    if b.size and b.max() >= codebook.k:
        raise ValueError(f"b must hold codes below {codebook.k}, got {b.max()}")
    scales = checked_scales(scales, codebook, b.shape, 0)
    return Codebook(codebook.levels, axis=axis + 2, block_size=block_size) if axis in (-1, -2) else codebook, scales


def _level_error(codebook):
    """Return the largest distance of a level from an int8 multiple of a scale (numerics 12), over the largest level."""
    levels = codebook.levels.reshape(-1, codebook.k).astype(np.float64)
    largest = np.abs(levels).max(axis=1)
    with np.errstate(under="ignore"):
        scale, unit = np.float32(largest / 127), np.ldexp(1.0, np.frexp(largest)[1] - 7)
    exact = (levels / unit[:, None] == np.rint(levels / unit[:, None])).all(axis=1) & (unit >= SMALLEST_SCALE)
    scale = np.where(exact, unit.astype(np.float32), np.where(scale > 0, scale, SMALLEST_SCALE))
    scale = np.where(largest > 0, scale, np.float32(1))
    units = np.clip(np.rint(levels / scale[:, None]), -127, 127)
    off = np.abs(levels - units * scale[:, None]).max(axis=1)
    return float(np.max(np.divide(off, largest, where=largest > 0, out=np.zeros_like(off)), initial=0.0))
