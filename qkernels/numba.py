"""Let code that Numba compiles call the functions of qkernels: importing this module is all that it takes.

Inside ``@njit`` one writes what one writes outside, ``qk.quantize(x, params)``: `quantize`, `dequantize`, `requantize`,
`matmul`, `linear`, `encode` and `decode`, which this module names as well, take the same arguments and give the same
bits. `QParams`, `PackedMatrix` and `Codebook` are passed to compiled functions as they are, in tuples and as attributes
of jitclasses too, or are global variables of theirs.

Calls need no GIL (``nogil=True``), make no Python objects, and take one thread each within `prange`; functions that
make them can be kept on disk (``cache=True``) unless they use a global. docs/embedding.md has the limits.

>>> import numba
>>> import qkernels.numba
>>> @numba.njit(nogil=True)
... def rounded(x, params):
...     return qk.dequantize(qk.quantize(x, params), params)
>>> rounded(np.float32([0.2, 0.6]), qk.QParams(0.5))
array([0. , 0.5], dtype=float32)
"""

import ctypes

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.imputils import lower_constant
from numba.extending import (
    NativeValue,
    box,
    intrinsic,
    models,
    overload,
    overload_attribute,
    register_jitable,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np.numpy_support import as_dtype, from_dtype
from numba.np.unsafe.ndarray import tuple_setitem

from ._bind import jit
from ._codebook import Codebook, decode, encode
from ._products import linear, matmul
from ._qparams import QParams
from ._quantize import dequantize, quantize
from ._rounding import requantize
from ._weights import PackedMatrix

__all__ = ["decode", "dequantize", "encode", "linear", "matmul", "quantize", "requantize"]

_ABI = 1  # counts what changes how compiled code, perhaps a cached one, calls: arguments, views, types
_INT, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()
_ROUNDINGS = "half_even", "half_away", "gemmlowp", "tflite"
_FLOATS = types.float32, types.float64  # Numba has no others on a CPU


class Failed(Exception):
    """Stand, in compiled code, for what a call raised; where it leaves that code, it becomes what was raised."""

    def __new__(cls):
        return jit.last_error()


def _symbol(name):
    """Return the name by which compiled code, which may be loaded from a cache by another process, finds a function."""
    return f"qkernels_{_ABI}_{name}"


def _region():
    """Return the address of the function that tells whether a thread is in a parallel loop of Numba's OpenMP, or 0."""
    try:
        from numba.np.ufunc import omppool

        return ctypes.cast(ctypes.CDLL(omppool.__file__).omp_in_parallel, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError):
        return 0


for _name, _address in jit.ADDRESSES.items():
    binding.add_symbol(_symbol(_name), _address)
jit.public.update((f.__name__, f) for f in (quantize, dequantize, requantize, matmul, linear, encode, decode))
jit.work_alone(_region())


# ---- types: an object, and a reference to it ----


class _Object(types.Type):
    """Type objects whose memory compiled code reads; `made_of` gives, of a value, the object that C knows."""

    def __init__(self, *traits):
        self.traits, self.abi = traits, _ABI
        super().__init__(f"{type(self).__name__}{traits}")

    @property
    def key(self):  # by which caches, too, know a type: those of another version do not find it
        return self.name, self.abi

    @staticmethod
    def made_of(value):
        return value


class QParamsType(_Object):
    """Type parameters by the dtype of their codes: where NumPy, and so Numba, has none, these are bytes."""

    @property
    def codes(self):
        dtype = np.dtype(self.traits[0]) if hasattr(np, self.traits[0]) else np.dtype(np.uint8)
        return from_dtype(dtype)


class PackedMatrixType(_Object):
    """Type weights by their dtype."""


class CodebookType(_Object):
    """Type codebooks by (whether they have an axis, blocks)."""

    made_of = staticmethod(jit.Book)


@typeof_impl.register(QParams)
def _(value, c):
    return QParamsType(value.dtype.name)


@typeof_impl.register(PackedMatrix)
def _(value, c):
    return PackedMatrixType(value.dtype.name)


@typeof_impl.register(Codebook)
def _(value, c):
    if value.vector:
        raise TypingError("codebook must not be one of vectors in compiled code")
    return CodebookType(value.axis is not None, value.block_size is not None)


@register_model(QParamsType)
@register_model(PackedMatrixType)
@register_model(CodebookType)
class _Model(models.StructModel):
    def __init__(self, dmm, fe_type):
        owner = types.MemInfoPointer(types.voidptr)  # of the object, which it decrements when it goes
        super().__init__(dmm, fe_type, [("owner", owner), ("object", types.voidptr)])


@unbox(QParamsType)
@unbox(PackedMatrixType)
@unbox(CodebookType)
def _(typ, value, c):
    made = value
    if typ.made_of is not _Object.made_of:
        make = c.pyapi.unserialize(c.pyapi.serialize_object(typ.made_of))
        made = c.pyapi.call_function_objargs(make, [value])
        c.pyapi.decref(make)
    result = cgutils.create_struct_proxy(typ)(c.context, c.builder)
    result.object = made
    failed = cgutils.is_null(c.builder, made)
    with c.builder.if_then(c.builder.not_(failed)):
        result.owner = c.pyapi.nrt_meminfo_new_from_pyobject(made, made)
        if made is not value:
            c.pyapi.decref(made)
    return NativeValue(result._getvalue(), is_error=failed)


@box(QParamsType)
@box(PackedMatrixType)
@box(CodebookType)
def _(typ, value, c):
    made = cgutils.create_struct_proxy(typ)(c.context, c.builder, value).object
    boxed = cgutils.alloca_once_value(c.builder, made)
    with c.builder.if_else(cgutils.is_null(c.builder, made)) as (is_unset, is_set):
        with is_unset:
            c.pyapi.err_set_string("PyExc_AttributeError", _UNSET)
        with is_set:
            if typ.made_of is _Object.made_of:
                c.pyapi.incref(made)
            else:
                c.builder.store(c.pyapi.object_getattr_string(made, "codebook"), boxed)
    c.context.nrt.decref(c.builder, typ, value)
    return c.builder.load(boxed)


_GLOBALS = []  # what compiled code refers to by address, which such code is not cached for: it has to stay


@lower_constant(QParamsType)
@lower_constant(PackedMatrixType)
@lower_constant(CodebookType)
def _(context, builder, typ, value):
    made = typ.made_of(value)
    _GLOBALS.append(made)
    result = cgutils.create_struct_proxy(typ)(context, builder)
    result.owner = ir.Constant(_POINTER, None)
    result.object = context.add_dynamic_addr(builder, id(made), info=repr(typ))
    return result._getvalue()


# ---- calls ----

_UNSET = "an attribute of a jitclass is used that was never set"


def _pointer(context, builder, typ, value):
    """Return the pointer that stands for an argument of a function of jit.pyx."""
    if isinstance(typ, types.NoneType):
        return ir.Constant(_POINTER, None)
    if isinstance(typ, _Object):
        pointer = cgutils.create_struct_proxy(typ)(context, builder, value).object
        with cgutils.if_unlikely(builder, cgutils.is_null(builder, pointer)):
            context.call_conv.return_user_exc(builder, AttributeError, (_UNSET,))
        return pointer
    if isinstance(typ, types.Array):
        array = context.make_array(typ)(context, builder, value)
        data, shape, dtype = array.data, cgutils.unpack_tuple(builder, array.shape), as_dtype(typ.dtype)
    else:
        wide = types.float64 if not isinstance(typ, types.Integer) else types.int64 if typ.signed else types.uint64
        value = context.cast(builder, value, typ, wide)
        data, shape, dtype = cgutils.alloca_once_value(builder, value), [], as_dtype(wide)
    view = cgutils.alloca_once(builder, ir.LiteralStructType([_POINTER, *[_INT] * (3 + len(shape))]))
    fields = [builder.bitcast(data, _POINTER), *(_INT(n) for n in (dtype.num, dtype.itemsize, len(shape))), *shape]
    for i, field in enumerate(fields):
        builder.store(field, cgutils.gep_inbounds(builder, view, 0, i))
    return builder.bitcast(view, _POINTER)


@intrinsic(prefer_literal=True)
def _call(typingctx, name, arguments, codes):
    """Call a function with pointers to some arguments, and some numbers; what it raises goes on to the caller."""

    def generate(context, builder, signature, given):
        values, numbers = (cgutils.unpack_tuple(builder, packed) for packed in given[1:])
        pointers = [_pointer(context, builder, *pair) for pair in zip(signature.args[1], values, strict=True)]
        wide = [context.cast(builder, n, t, types.int64) for n, t in zip(numbers, signature.args[2], strict=True)]
        kind = ir.FunctionType(ir.IntType(32), [_POINTER] * len(pointers) + [_INT] * len(wide))
        function = cgutils.get_or_insert_function(builder.module, kind, _symbol(signature.args[0].literal_value))
        failed = cgutils.is_not_null(builder, builder.call(function, [*pointers, *wide]))
        with cgutils.if_unlikely(builder, failed):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, _symbol("keep_error")), [])
            context.call_conv.return_user_exc(builder, Failed)
        return context.get_dummy_value()

    return types.none(name, arguments, codes), generate


@intrinsic(prefer_literal=True)
def _ask(typingctx, name, value):
    """Return the number that a function gives of an object."""

    def generate(context, builder, signature, given):
        kind = ir.FunctionType(_INT, [_POINTER])
        function = cgutils.get_or_insert_function(builder.module, kind, _symbol(signature.args[0].literal_value))
        return builder.call(function, [_pointer(context, builder, signature.args[1], given[1])])

    return types.intp(name, value), generate


@overload_attribute(PackedMatrixType, "shape")
def _(packed):
    return lambda packed: (_ask("rows_of", packed), _ask("columns_of", packed))


# ---- arguments, as types ----


def _shown(typ):
    return getattr(typ, "value", typ)


def _is_none(typ):
    return typ is None or isinstance(typ, types.NoneType | types.Omitted) and getattr(typ, "value", None) is None


def _need(typ, name, *dtypes, what=None):
    """Raise unless an argument is an array of one of the dtypes."""
    if not isinstance(typ, types.Array) or typ.dtype not in dtypes:
        raise TypingError(f"{name} must be {what or 'an array of ' + ' or '.join(map(str, dtypes))}, got {_shown(typ)}")


def _need_object(typ, name, kind):
    if not isinstance(typ, kind):
        raise TypingError(f"{name} must be a {kind.__name__.removesuffix('Type')}, got {_shown(typ)}")


def _need_out(typ, dtype, ndim):
    if _is_none(typ):
        return
    _need(typ, "out", dtype)
    if typ.layout != "C" or not typ.mutable:
        raise TypingError(f"out must be C-contiguous and writeable, got {typ}")
    if typ.ndim != ndim:
        raise TypingError(f"out must have {ndim} axes, got {typ.ndim}")


def _need_zero_point(typ, name):
    whole = typ.dtype if isinstance(typ, types.Array) else _shown(typ)
    if not isinstance(whole, int | types.Integer):
        raise TypingError(f"{name} must be an integer or an array of integers, got {_shown(typ)}")


def _need_none(typ, name):
    if not _is_none(typ):
        raise TypingError(f"{name} is not taken in compiled code, got {_shown(typ)}")


def _word(typ, name, words):
    """Return the index of the word that an option is: a constant."""
    word = None if _is_none(typ) else getattr(typ, "literal_value", _shown(typ))
    if word not in words:
        raise TypingError(f"{name} must be one of {', '.join(map(repr, words))}, written where it is used, got {word}")
    return words.index(word)


@register_jitable
def _bytes_of(x):
    """Return the addresses of the first byte of an array and of that after the last."""
    start = end = np.intp(x.ctypes.data)
    for n, stride in zip(x.shape, x.strides):  # noqa: B905 (Numba knows no strict)
        start, end = start + min((n - 1) * stride, 0), end + max((n - 1) * stride, 0)
    return start, end + x.itemsize


def _refuse_overlap(out, x, name):
    """Raise, as outside, if `out` has memory of an array of which functions of jit.pyx only see a copy."""


@overload(_refuse_overlap, prefer_literal=True)
def _(out, x, name):
    if _is_none(out):
        return lambda out, x, name: None
    name, may_be_same = name.literal_value, name.literal_value == "residual"
    words = "out must be residual itself or not overlap it" if may_be_same else f"out must not overlap {name}"

    def impl(out, x, name):
        (start, end), (first, last) = _bytes_of(out), _bytes_of(x)
        is_same = may_be_same and (start, end, out.strides) == (first, last, x.strides)
        if out.size and x.size and start < last and first < end and not is_same:
            raise ValueError(words)

    return impl


def _plain(value, out, name):
    """Return an argument as functions of jit.pyx take it: arrays C-contiguous."""


@overload(_plain, prefer_literal=True)
def _(value, out, name):
    if isinstance(value, types.Array) and value.layout != "C":
        text = name.literal_value

        def impl(value, out, name):
            _refuse_overlap(out, value, text)
            return np.ascontiguousarray(value)

        return impl
    return lambda value, out, name: value


def _real(value):
    """Return a bound of a clamp: a float, or None."""


@overload(_real)
def _(value):
    if isinstance(value, types.NoneType):
        return lambda value: None
    if not isinstance(value, types.Number):
        raise TypingError(f"clamp must be None or a pair of floats (lo, hi), got {value} in it")
    return lambda value: float(value)


def _bounds(clamp):
    """Return the bounds of a clamp."""


@overload(_bounds)
def _(clamp):
    if isinstance(clamp, types.NoneType):
        return lambda clamp: (None, None)
    if not isinstance(clamp, types.BaseTuple) or len(clamp) != 2:
        raise TypingError(f"clamp must be None or a pair of floats (lo, hi), got {clamp}")
    return lambda clamp: (_real(clamp[0]), _real(clamp[1]))


def _narrow(x, out):
    """Return x as C-contiguous float32, in which what float32 lacks is infinite."""


@overload(_narrow)
def _(x, out):
    if x.dtype == types.float32:
        return lambda x, out: _plain(x, out, "x")

    def impl(x, out):  # which may overlap x: this is a copy, outside too
        y = np.empty(x.shape, np.float32)
        _call("narrow", (_plain(x, None, "x"), y), ())
        return y

    return impl


def _scales_like(x, codebook):
    """Return room for the scales of blocks; None where there are none."""


@overload(_scales_like)
def _(x, codebook):
    has_axis, has_blocks = codebook.traits
    if not has_blocks:
        return lambda x, codebook: None
    if not has_axis:
        return lambda x, codebook: np.empty(-(-x.size // _ask("block_of", codebook)), np.float32)

    def impl(x, codebook):
        axis = _ask("axis_of", codebook)
        axis = axis + x.ndim if axis < 0 else axis
        if not 0 <= axis < x.ndim:  # which `encode` will say
            return np.empty(x.shape, np.float32)
        blocks = -(-x.shape[axis] // _ask("block_of", codebook))
        return np.empty(tuple_setitem(x.shape, axis, blocks), np.float32)

    return impl


# ---- functions ----


@overload(quantize, prefer_literal=True)
def _(x, params, rounding="half_even", seed=None, out=None):
    _need(x, "x", *_FLOATS)
    _need_object(params, "params", QParamsType)
    _need_none(seed, "seed")
    _need_out(out, params.codes, x.ndim)
    how, dtype = _word(rounding, "rounding", _ROUNDINGS[:2]), as_dtype(params.codes).type

    def impl(x, params, rounding="half_even", seed=None, out=None):
        q = np.empty(x.shape, dtype) if out is None else out
        _call("quantize", (params, _plain(x, out, "x"), q), (how,))
        return q

    return impl


@overload(dequantize)
def _(q, params, dtype=np.float32, out=None):
    _need_object(params, "params", QParamsType)
    _need(q, "q", params.codes, types.int32)
    made = types.float32 if dtype is np.float32 or isinstance(dtype, types.Omitted) else getattr(dtype, "dtype", dtype)
    if made not in _FLOATS:
        raise TypingError(f"dtype must be float32 or float64, got {_shown(dtype)}")
    _need_out(out, made, q.ndim)
    real = as_dtype(made).type

    def impl(q, params, dtype=np.float32, out=None):
        y = np.empty(q.shape, real) if out is None else out
        _call("dequantize", (params, _plain(q, out, "q"), y), ())
        return y

    return impl


@overload(requantize, prefer_literal=True)
def _(acc, multiplier, params, bias=None, rounding="half_even", out=None):
    _need(acc, "acc", types.int32)
    _need_object(params, "params", QParamsType)
    if not isinstance(multiplier, types.Number):
        _need(multiplier, "multiplier", *_FLOATS, what="a float or an array of float32 or float64")
    if not _is_none(bias):
        _need(bias, "bias", types.int32)
    _need_out(out, params.codes, acc.ndim)
    how, dtype = _word(rounding, "rounding", _ROUNDINGS), as_dtype(params.codes).type
    number = isinstance(multiplier, types.Number)

    def impl(acc, multiplier, params, bias=None, rounding="half_even", out=None):
        q = np.empty(acc.shape, dtype) if out is None else out
        m = float(multiplier) if number else _plain(multiplier, out, "multiplier")
        _call("requantize", (params, _plain(acc, out, "acc"), m, _plain(bias, out, "bias"), q), (how,))
        return q

    return impl


_CODES = types.int8, types.uint8, types.int16


@overload(matmul)
def _(a, b, a_zero_point=0, b_zero_point=0, out=None):
    _need(a, "a", *_CODES)
    packed = isinstance(b, PackedMatrixType)
    if not packed:
        _need(b, "b", *_CODES, what="a PackedMatrix or an array of int8, uint8 or int16")
    if not packed and b.ndim != 2 or not a.ndim:
        raise TypingError(f"a and b must have shapes (..., M, K) and (K, N) in compiled code, got {a} and {b}")
    wide = types.int16 in (a.dtype, types.int16 if packed and b.traits == ("int16",) else getattr(b, "dtype", None))
    _need_zero_point(a_zero_point, "a_zero_point")
    _need_zero_point(b_zero_point, "b_zero_point")
    _need_out(out, types.int64 if wide else types.int32, a.ndim)
    dtype = np.int64 if wide else np.int32

    def impl(a, b, a_zero_point=0, b_zero_point=0, out=None):
        c = np.empty(a.shape[:-1] + (b.shape[1],), dtype) if out is None else out
        weights, codes = (b, None) if packed else (None, _plain(b, out, "b"))
        az, bz = _plain(a_zero_point, out, "a_zero_point"), _plain(b_zero_point, out, "b_zero_point")
        _call("matmul", (weights, _plain(a, out, "a"), codes, az, bz, c), ())
        return c

    return impl


@overload(linear, prefer_literal=True)
def _(x, packed, bias=None, activation=None, residual=None, clamp=None, params=None, out=None):
    _need(x, "x", *_FLOATS)
    _need_object(packed, "packed", PackedMatrixType)
    _need_none(params, "params")
    _need_out(out, types.float32, x.ndim)
    for array, name, dtypes in (bias, "bias", _FLOATS), (residual, "residual", _FLOATS[:1]):
        if not _is_none(array):
            _need(array, name, *dtypes)
    how = _word(activation, "activation", jit.ACTIVATIONS)

    def impl(x, packed, bias=None, activation=None, residual=None, clamp=None, params=None, out=None):
        y = np.empty(x.shape[:-1] + (packed.shape[1],), np.float32) if out is None else out
        lo, hi = _bounds(clamp)
        added = _plain(residual, out, "residual")
        _call("linear", (packed, _narrow(x, out), _plain(bias, out, "bias"), added, lo, hi, y), (how,))
        return y

    return impl


@overload(encode, prefer_literal=True)
def _(x, codebook, rounding="nearest", seed=None):
    _need(x, "x", *_FLOATS)
    _need_object(codebook, "codebook", CodebookType)
    _need_none(seed, "seed")
    _word(rounding, "rounding", ("nearest",))
    has_blocks = codebook.traits[1]

    def impl(x, codebook, rounding="nearest", seed=None):
        codes, scales = np.empty(x.shape, np.uint8), _scales_like(x, codebook)
        values = _narrow(x, None) if has_blocks else _plain(x, None, "x")
        _call("encode", (codebook, values, codes, scales), ())
        return (codes, scales) if has_blocks else codes

    return impl


@overload(decode)
def _(codes, codebook, scales=None, out=None):
    _need(codes, "codes", types.uint8)
    _need_object(codebook, "codebook", CodebookType)
    if not _is_none(scales):
        _need(scales, "scales", *_FLOATS)
    _need_out(out, types.float32, codes.ndim)

    def impl(codes, codebook, scales=None, out=None):
        y = np.empty(codes.shape, np.float32) if out is None else out
        _call("decode", (codebook, _plain(codes, out, "codes"), _plain(scales, out, "scales"), y), ())
        return y

    return impl
