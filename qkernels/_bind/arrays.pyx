# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Take arrays in and give them out: those of other libraries, `out`, and what dtypes and options are called.

What calls with few values need stands in arrays.pxd, to be inlined.
"""

from libc.stdint cimport uint8_t

import math
import sys

import ml_dtypes
import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

from .runtime import shown, word

from .c cimport (
    QK_BF16, qk_enter_scope, QK_F16, QK_F4_E2M1, QK_F64, QK_F6_E2M3, QK_F6_E3M2, QK_F8_E4M3, QK_F8_E5M2, QK_GELU,
    QK_GELU_TANH, QK_GEMMLOWP, QK_HALF_AWAY, QK_I16, QK_I2, QK_I4, QK_I8, QK_IDENTITY, QK_RELU, qk_scope,
    QK_SILU, QK_TFLITE, QK_U16, QK_U2, QK_U4, QK_U8,
)

cnp.import_array()

INT32, INT64, FLOAT32 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BF16_NUM = BFLOAT16.num

CODE_TYPES = {
    np.dtype(np.int8): QK_I8, np.dtype(np.uint8): QK_U8, np.dtype(np.int16): QK_I16, np.dtype(np.uint16): QK_U16,
    np.dtype(ml_dtypes.int4): QK_I4, np.dtype(ml_dtypes.uint4): QK_U4, np.dtype(ml_dtypes.int2): QK_I2,
    np.dtype(ml_dtypes.uint2): QK_U2, np.dtype(ml_dtypes.float8_e4m3fn): QK_F8_E4M3,
    np.dtype(ml_dtypes.float8_e5m2): QK_F8_E5M2, np.dtype(ml_dtypes.float6_e2m3fn): QK_F6_E2M3,
    np.dtype(ml_dtypes.float6_e3m2fn): QK_F6_E3M2, np.dtype(ml_dtypes.float4_e2m1fn): QK_F4_E2M1,
}
CODE_NAMES = {dtype.name: dtype for dtype in CODE_TYPES}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16)
ROUNDINGS = {"half_even": QK_HALF_EVEN, "half_away": QK_HALF_AWAY, "gemmlowp": QK_GEMMLOWP, "tflite": QK_TFLITE}
ACTIVATIONS = {"relu": QK_RELU, "gelu": QK_GELU, "gelu_tanh": QK_GELU_TANH, "silu": QK_SILU}


# ---- arrays of other libraries ----

# Floats that NumPy lacks: by the names that ml_dtypes and torch share, and by DLPack's (code, bits).
SMALL_TYPES = {name: np.dtype(getattr(ml_dtypes, name)) for name in
               ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn",
                "int4", "uint4", "int2", "uint2")}
DLPACK_TYPES = {(4, 16): "bfloat16", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"}
PLAIN_TYPES = (int, float, bool, list, tuple)   # they offer no protocol
PART = 1 << 22   # values that take NumPy some tens of milliseconds
CPU_DEVICES = (1, 3, 11, 13)   # DLPack's numbers for the CPU's memory, also pinned or managed by a GPU's driver
DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}

cdef extern from *:
    """
    typedef struct {uint8_t code, bits; uint16_t lanes;} dl_type;
    typedef struct {
        void *data;
        int32_t device[2], ndim;
        dl_type type;
        int64_t *shape, *strides;
        uint64_t offset;
    } dl_tensor;
    typedef struct {uint32_t version[2]; void *context; void *deleter; uint64_t flags; dl_tensor tensor;} dl_versioned;
    """
    ctypedef struct dl_type:
        uint8_t code, bits
    ctypedef struct dl_tensor:
        dl_type type
    ctypedef struct dl_versioned:
        dl_tensor tensor


class DLPackBits:
    """Stand for a DLPack object, so that NumPy reads its floats of DLPACK_TYPES, which it does not know, as integers.

    `dtype` is the true one, `versioned` whether the object can tell that its memory is read-only: NumPy takes that of
    older ones for such.
    """

    def __init__(self, x):
        self.x, self.dtype, self.versioned = x, None, False

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()

    def __dlpack__(self, **options):
        cdef dl_type *t
        capsule = self.x.__dlpack__(**options)
        self.versioned = PyCapsule_IsValid(capsule, "dltensor_versioned")
        if self.versioned:
            t = &(<dl_versioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")).tensor.type
        else:
            t = &(<dl_tensor *>PyCapsule_GetPointer(capsule, "dltensor")).type
        if (t.code, t.bits) in DLPACK_TYPES:
            self.dtype = SMALL_TYPES[DLPACK_TYPES[t.code, t.bits]]
            t.code = 1
        return capsule


def refuse_devices(x):
    """Raise TypeError if x says that its memory is a device's: what it has for NumPy would copy all of it unasked."""
    if hasattr(x, "__dlpack_device__"):
        try:
            kind, *number = x.__dlpack_device__()
            kind = int(kind)
        except MemoryError:
            raise
        except Exception:   # it is on several, or is no array after all: NumPy may know, or say why not
            return
        if kind not in CPU_DEVICES:
            name = DEVICES.get(kind, "which is none of the CPU's")
            raise TypeError(f"it lies on DLPack's device {shown((kind, *number))}, {name}, not in the CPU's memory")
    elif hasattr(x, "__cuda_array_interface__"):
        raise TypeError("it lies on a CUDA device, as its __cuda_array_interface__ says, not in the CPU's memory")


def array_of_dlpack(x):
    bits = DLPackBits(x)
    array = np.from_dlpack(bits)
    if not bits.versioned:
        PyArray_ENABLEFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array if bits.dtype is None else array.view(bits.dtype)


def is_tensor(x):
    """Tell whether x is a torch.Tensor; torch need not be imported to know."""
    return any(c.__module__ == "torch" and c.__name__ == "Tensor" for c in type(x).__mro__)


def array_of_tensor(x):
    """Return the memory of a torch tensor, small floats by way of integers: `numpy` knows NumPy's own types only."""
    if x.device.type == "meta":
        raise TypeError("it lies on the meta device, where tensors have no values")
    if x.device.type != "cpu":
        raise TypeError(f"it lies on {x.device}, not in the CPU's memory (the method cpu copies it there)")
    x = x.detach().resolve_conj().resolve_neg()
    dtype = SMALL_TYPES.get(str(x.dtype).removeprefix("torch."))
    if dtype is None:
        return x.numpy()
    torch = sys.modules["torch"]
    return x.view(torch.int16 if dtype.itemsize == 2 else torch.uint8).numpy().view(dtype)


def base_array(x):
    """Return an array of a subclass as its base, whatever attributes it overrides."""
    ma = sys.modules.get("numpy.ma")  # which takes milliseconds to import; before, nothing is masked
    if ma is not None and isinstance(x, ma.MaskedArray) and ma.is_masked(x):
        masked = int(np.sum(ma.getmaskarray(x)))
        raise TypeError(f"it is masked, at {masked} of its values (the method filled gives them values)")
    return np.ndarray.view(x, np.ndarray)


def read_array(x):
    """Read x, which is no plain ndarray, by the first way that it offers: what its methods raise comes through."""
    kind = type(x)
    if kind in PLAIN_TYPES:
        return base_array(np.asanyarray(x))
    if is_tensor(x):
        return array_of_tensor(x)
    refuse_devices(x)
    if hasattr(kind, "__dlpack__") and not any(hasattr(kind, name) for name in
                                               ("__array__", "__array_interface__", "__array_struct__")):
        return array_of_dlpack(x)
    return base_array(np.asanyarray(x))


cdef cnp.ndarray foreign_array(x, name):
    """Read what a caller gave as `name` (a tensor, an object of NumPy's or DLPack's protocol, a number, a list)."""
    cdef qk_scope _mode = qk_enter_scope()   # numbers of a list may be converted
    try:
        return read_array(x)
    except MemoryError:
        raise
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} must be an array, got a {type(x).__name__}: {shown(error, str, 200)}") from error


cdef cnp.ndarray memory_of(out):
    """Return the memory of an `out` that is no plain ndarray, as one."""
    cdef cnp.ndarray array = foreign_array(out, "out"), again
    if not isinstance(out, cnp.ndarray):
        again = foreign_array(out, "out")
        if cnp.PyArray_DATA(again) != cnp.PyArray_DATA(array):
            raise TypeError(f"out must be an array whose memory can be written, got a {type(out).__name__}")
    return array


# ---- dtypes and options ----


cdef int float_type_of_others(cnp.ndarray x, name) except -1:
    """Return the qk_dtype of a float array that is not float32."""
    cdef int num = PyArray_TYPE(x)
    if num == cnp.NPY_FLOAT64:
        return QK_F64
    if num == cnp.NPY_FLOAT16:
        return QK_F16
    if num == BF16_NUM:
        return QK_BF16
    raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")


def named_dtype(dtype):
    """Return the NumPy dtype that `dtype`, of NumPy or torch or the name of one, is called by, or None."""
    if type(dtype) is str and dtype in CODE_NAMES:
        return CODE_NAMES[dtype]
    try:
        dtype = word(str(dtype) if type(dtype).__module__ == "torch" else dtype)
        if isinstance(dtype, str):
            dtype = {"torch.float": "float32"}.get(dtype, dtype.removeprefix("torch."))
            dtype = SMALL_TYPES.get(dtype, dtype)
        return None if dtype is None else np.dtype(dtype)
    except Exception:   # whatever the attributes of a hostile object raise
        return None


def float_dtype(dtype):
    """Return the one of FLOATS that is called `dtype`."""
    found = named_dtype(dtype)
    if found is None or found not in FLOATS:
        given = shown(dtype) if found is None else found
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {given}")
    return found


cdef int rounding_code_of_others(rounding, int most) except -1:
    rounding = word(rounding)
    code = ROUNDINGS.get(rounding) if isinstance(rounding, str) else None
    if code is None or code > most:
        names = ", ".join(repr(name) for name, value in ROUNDINGS.items() if value <= most)
        raise ValueError(f"rounding must be one of {names}, got {shown(rounding)}")
    return code


cdef int activation_code(activation) except -1:
    if activation is None:
        return QK_IDENTITY
    activation = word(activation)
    code = ACTIVATIONS.get(activation) if isinstance(activation, str) else None
    if code is None:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be one of None, {names}, got {shown(activation)}")
    return code


# ---- memory ----


cdef int refuse_giant(cnp.ndarray x, name) except -1:
    """Raise MemoryError if x repeats its memory to more than the machine could hold: a pass over it would not end."""
    cdef Py_ssize_t extent = 1, i
    for i in range(cnp.PyArray_NDIM(x)):
        extent += (cnp.PyArray_DIM(x, i) - 1) * abs(cnp.PyArray_STRIDE(x, i))
    if cnp.PyArray_NBYTES(x) // 2 > extent:
        try:
            np.empty(cnp.PyArray_NBYTES(x), np.uint8)
        except MemoryError:
            raise MemoryError(f"{name} must fit the memory, got shape {(<object>x).shape} of {x.dtype}") from None
    return 0


def as_array(x, name):
    return array_of(x, name)


def cuts(shape, most=PART):
    """Yield indices that cut an array along its first long axis into parts of some `most` values.

    Between two of them Python sees signals.
    """
    size = math.prod(shape)
    if size <= most:
        yield ...
        return
    axis = next((i for i, n in enumerate(shape) if n * most >= size), shape.index(max(shape)))
    step = max(1, most * shape[axis] // size)
    for first in range(0, shape[axis], step):
        PyErr_CheckSignals()
        yield (slice(None),) * axis + (slice(first, first + step),)


def copied(x, dtype):
    """Return a new aligned C-contiguous array of the values of x, made in such parts."""
    if x.size <= PART:
        return x.astype(dtype, order="C")
    made = np.empty(x.shape, dtype)
    for part in cuts(x.shape):
        made[part] = x[part]
    return made


cdef cnp.ndarray contiguous_copy(cnp.ndarray x):
    return copied(x, x.dtype.newbyteorder("="))


def contiguous_as(x, dtype):
    """Return x as an aligned C-contiguous array of a dtype in native byte order: itself, or a copy."""
    return x if PyArray_ISCARRAY_RO(x) and x.dtype == dtype else copied(x, dtype)


cdef cnp.ndarray float32_array(x, name):
    cdef cnp.ndarray given = array_of(x, name)
    if PyArray_TYPE(given) != cnp.NPY_FLOAT32:
        raise TypeError(f"{name} must be float32, got {given.dtype}")
    return given


cdef bint may_overlap(cnp.ndarray a, cnp.ndarray b) except -1:
    return np.may_share_memory(a, b)


def check_out(out, tuple shape, dtype):
    """Raise unless `out` is a writeable, aligned, C-contiguous array of this shape and dtype."""
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype.str if not out.dtype.isnative else out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if not (out.flags.c_contiguous and out.flags.aligned):
        raise ValueError(f"out must be C-contiguous and aligned, got strides {out.strides} for shape {out.shape}")


cdef cnp.ndarray out_array(out, tuple shape, dtype):
    """Return the memory of `out`, checked, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and out.shape == shape:
        return <cnp.ndarray>out
    array = out if cnp.PyArray_CheckExact(out) else memory_of(out)
    check_out(array, shape, dtype)
    return array


def store(out, value, cnp.ndarray x, name):
    """Copy `value`, an array or a NumPy scalar, to `out`, if it is given."""
    value = contiguous(np.asarray(value))
    if out is None:
        return value
    cdef cnp.ndarray y = out_array(out, value.shape, value.dtype)
    refuse_overlap(y, x, name)
    for part in cuts(value.shape):
        y[part] = value[part]
    return out


def frozen(array):
    """Return a copy that nobody can make writeable: its memory is that of a bytes object."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def holds_as_half(values):
    """Tell whether float16 has each of the float32 values."""
    return bool(np.all(np.float16(values) == values))


cdef void lay_out(cnp.ndarray a, int axis, size_t *outer, size_t *length, size_t *inner) noexcept:
    """Split an array's shape as (outer, length, inner) around the axis."""
    cdef int i
    outer[0] = inner[0] = 1
    for i in range(axis):
        outer[0] *= <size_t>cnp.PyArray_DIM(a, i)
    length[0] = <size_t>cnp.PyArray_DIM(a, axis)
    for i in range(axis + 1, cnp.PyArray_NDIM(a)):
        inner[0] *= <size_t>cnp.PyArray_DIM(a, i)


def raise_not_finite(x, name="x"):
    """Raise the ValueError that says how many values of x are NaN or infinite, and where the first is."""
    cdef qk_scope _mode = qk_enter_scope()
    with np.errstate(invalid="ignore"):   # a signalling NaN is invalid
        bad = ~np.isfinite(x)
    where = tuple(map(int, np.unravel_index(np.argmax(bad), bad.shape)))
    raise ValueError(f"{name} has {int(bad.sum())} NaN or infinite values, the first at {where}")
