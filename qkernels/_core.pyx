# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind Python to C: arrays are made contiguous, `out` is checked, the GIL is released, one C driver is called.

The public functions (_quantize.py, _products.py, _rounding.py) hold the documentation. The checks that every call needs
stand here, since 64 floats should not wait for Python.
"""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.string cimport memset

import contextvars
import os
import sys
import threading

import ml_dtypes
import numpy as np

cimport numpy as cnp
from cpython.contextvars cimport PyContextVar_Reset, PyContextVar_Set
from cpython.exc cimport PyErr_CheckSignals
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from cpython.ref cimport PyObject

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int PyArray_ISCARRAY_RO(cnp.ndarray a)
    int PyArray_ISCARRAY(cnp.ndarray a)
    int PyArray_TYPE(cnp.ndarray a)
    void PyArray_ENABLEFLAGS(cnp.ndarray a, int flags)

cdef extern from *:
    """
    #if defined(__clang__)
    #define QK_COMPILER "clang " __clang_version__
    #else
    #define QK_COMPILER "gcc " __VERSION__
    #endif
    static PyObject *descr_of(PyArrayObject *a) { return (PyObject *)PyArray_DESCR(a); }

    /* Python runs the handlers of signals in its main thread alone. An exception of theirs stays set while C returns.
     */
    static unsigned long main_thread;
    static int signal_raises(void)
    {
        if (PyThread_get_thread_ident() != main_thread) return 0;
        const PyGILState_STATE state = PyGILState_Ensure();
        const int raised = PyErr_CheckSignals();
        PyGILState_Release(state);
        return raised;
    }
    """
    const char *QK_COMPILER
    PyObject *descr_of(cnp.ndarray a)   # borrowed
    unsigned long main_thread
    int signal_raises() noexcept nogil

cdef extern from "runtime/fpmode.h" nogil:
    ctypedef struct qk_mode:
        pass
    ctypedef struct qk_scope "QK_SCOPE":   # a mode that is left where the function ends
        pass
    qk_mode qk_enter_mode()
    qk_scope qk_enter_scope "qk_enter_mode" ()
    void qk_leave_mode(qk_mode was)

cdef object INT32 = np.dtype(np.int32)
cdef object INT64 = np.dtype(np.int64)
cdef object FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
cdef int BF16_NUM = BFLOAT16.num

CODE_TYPES = {
    np.dtype(np.int8): QK_I8, np.dtype(np.uint8): QK_U8, np.dtype(np.int16): QK_I16, np.dtype(np.uint16): QK_U16,
    np.dtype(ml_dtypes.int4): QK_I4, np.dtype(ml_dtypes.uint4): QK_U4, np.dtype(ml_dtypes.int2): QK_I2,
    np.dtype(ml_dtypes.uint2): QK_U2,
}
CODE_NAMES = {dtype.name: dtype for dtype in CODE_TYPES}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16)
ROUNDINGS = {"half_even": QK_HALF_EVEN, "half_away": QK_HALF_AWAY, "gemmlowp": QK_GEMMLOWP, "tflite": QK_TFLITE}
MAX_LEVELS = QK_MAX_LEVELS   # a codebook has no more
ACTIVATIONS = {"relu": QK_RELU, "gelu": QK_GELU, "gelu_tanh": QK_GELU_TANH, "silu": QK_SILU}


# Releasing the GIL, and having it back, costs as much as work on so many values or products: smaller work keeps it.
cdef enum:
    BRIEF = 1 << 13
    BRIEF_PRODUCT = 1 << 18


# ---- instruction sets and threads ----


def shown(value, text=repr, most=100):
    """Describe what a caller gave, for a message: short, and never an error of its own."""
    try:
        found = " ".join(text(value).split())
    except Exception:
        return f"a {type(value).__name__}"
    return found if len(found) <= most else f"{found[: most - 20]}... (a {type(value).__name__})"


def word(value):
    """Return what a caller gave; of a subclass of str, which may compare as it likes, the str that it is."""
    return str.__str__(value) if isinstance(value, str) else value


def built_isas():
    """Return the names of the instruction sets that are built, best first."""
    cdef size_t i = 0
    names = []
    while qk_built(i) != NULL:
        names.append(qk_built(i).decode())
        i += 1
    return names


def available_isas():
    """Return the names of those that this CPU has."""
    return [name for name in built_isas() if qk_find(name.encode()) != NULL]


def compiler():
    return QK_COMPILER.decode()


def get_isa():
    """Return the name of the instruction set in use."""
    return qk_name(qk_active()).decode()


def set_isa(str name):
    """Use the instruction set `name` from now on (for tests and comparisons)."""
    cdef const qk_kernels *k = qk_find(name.encode())
    if k == NULL:
        raise ValueError(f"instruction set {name!r} is not available here, only {', '.join(available_isas())}")
    qk_activate(k)


def set_num_threads(int n):
    qk_set_num_threads(n)


def get_num_threads():
    return qk_get_num_threads()


def most_threads():
    """Return the largest number of threads that can be set."""
    return qk_most_threads()


def know_main_thread():
    global main_thread
    main_thread = threading.main_thread().ident


know_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=know_main_thread)
qk_set_interrupt(signal_raises)

if os.environ.get("QKERNELS_ISA"):
    try:
        set_isa(os.environ["QKERNELS_ISA"])
    except ValueError as error:
        raise RuntimeError(f"QKERNELS_ISA: {error}") from None

MOST_CPUS = 8192   # that a machine can have: a larger number of threads is a slip, one up to this means all CPUs


def check_thread_count(text):
    """Raise unless an environment's number of threads, which C reads on first use, is one."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and 1 <= int(digits) <= MOST_CPUS):
        raise RuntimeError(f"QKERNELS_NUM_THREADS must be a number from 1 to {MOST_CPUS}, got {shown(text)}")


if os.environ.get("QKERNELS_NUM_THREADS"):
    check_thread_count(os.environ["QKERNELS_NUM_THREADS"])


# ---- floating-point mode (_mode.py) ----

cdef extern from *:
    """
    /* Of this thread: whether a function of in_default_mode is at work, and the mode of its caller. */
    static __thread struct { int inside; qk_mode of_caller; } qk_calls;
    """
    struct calls:
        int inside
        qk_mode of_caller
    calls qk_calls


cdef void enter_default() noexcept:
    qk_calls.inside = True
    qk_calls.of_caller = qk_enter_mode()


cdef void leave_default() noexcept:
    qk_calls.inside = False
    qk_leave_mode(qk_calls.of_caller)


def _quiet_errors():
    """Return NumPy's context variable for what np.errstate sets, and its value for all="ignore"; None without one."""
    with np.errstate(all="ignore"):
        context = contextvars.copy_context()
    return next(((var, state) for var, state in context.items() if var.name == "numpy.ufunc.extobj"), None)


# np.errstate costs more than the rest of a call with few values.
cdef object quiet_errors = _quiet_errors()


cdef call_quietly(function, tuple args, dict kwargs):
    """Call the function under np.errstate(all="ignore")."""
    if quiet_errors is None:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    token = PyContextVar_Set(quiet_errors[0], quiet_errors[1])
    try:
        return function(*args, **kwargs)
    finally:
        PyContextVar_Reset(quiet_errors[0], token)


def in_default_mode(function):
    """Wrap the function so that it runs in the default mode and without NumPy's warnings.

    (In Python, Ctrl-C could come between entering and `try`.)
    """
    def call(*args, **kwargs):
        if qk_calls.inside:
            return function(*args, **kwargs)
        enter_default()
        try:
            return call_quietly(function, args, kwargs)
        finally:
            leave_default()
    return call


def in_mode_of_caller(function, errors):
    """Wrap the function so that it runs in the mode of the caller of the outermost in_default_mode.

    `errors` are the settings of np.errstate that it then has.
    """
    def call(*args, **kwargs):
        cdef bint inside = qk_calls.inside
        if inside:
            leave_default()
        try:
            with np.errstate(**errors):
                return function(*args, **kwargs)
        finally:
            if inside:
                enter_default()
    return call


# ---- arrays of other libraries ----

# Floats that NumPy lacks: by the names that ml_dtypes and torch share, and by DLPack's (code, bits).
SMALL_TYPES = {name: np.dtype(getattr(ml_dtypes, name)) for name in
               ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint4", "int2", "uint2")}
DLPACK_TYPES = {(4, 16): "bfloat16", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"}
PLAIN_TYPES = (int, float, bool, list, tuple)   # they offer no protocol
CPU_DEVICES = (1, 3, 11, 13)   # DLPack's numbers for the CPU's memory, also pinned or managed by a GPU's driver

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


def array_of_dlpack(x):
    device = tuple(map(int, x.__dlpack_device__()))
    if device[0] not in CPU_DEVICES:
        raise TypeError(f"it lies on DLPack's device {device}, not in the CPU's memory")
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
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        masked = int(np.sum(np.ma.getmaskarray(x)))
        raise TypeError(f"it is masked, at {masked} of its values (the method filled gives them values)")
    return np.ndarray.view(x, np.ndarray)


def read_array(x):
    """Read x, which is no plain ndarray, by the first way that it offers: what its methods raise comes through."""
    kind = type(x)
    if kind in PLAIN_TYPES:
        return base_array(np.asanyarray(x))
    if is_tensor(x):
        return array_of_tensor(x)
    if hasattr(kind, "__dlpack__") and not any(hasattr(kind, name) for name in
                                               ("__array__", "__array_interface__", "__array_struct__")):
        return array_of_dlpack(x)
    return base_array(np.asanyarray(x))


def foreign_array(x, name):
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


# ---- arrays ----


cdef int float_type(cnp.ndarray x, name) except -1:
    """Return the qk_dtype of a float array."""
    cdef int num = PyArray_TYPE(x)
    if num == cnp.NPY_FLOAT32:
        return QK_F32
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


cdef enum:
    GIANT = 1 << 28   # bytes from which an array is looked at


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


cdef inline cnp.ndarray array_of(x, name):
    """Return what a caller gave as `name` as a plain ndarray, in place if possible: all arrays come in by this door."""
    cdef cnp.ndarray array = <cnp.ndarray>x if cnp.PyArray_CheckExact(x) else foreign_array(x, name)
    if cnp.PyArray_NBYTES(array) >= GIANT:
        refuse_giant(array, name)
    return array


def as_array(x, name):
    return array_of(x, name)


cdef cnp.ndarray contiguous(cnp.ndarray x):
    """Return x as an aligned C-contiguous array in native byte order: itself, or a copy."""
    if PyArray_ISCARRAY_RO(x):
        return x
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return np.require(x, requirements="CA")


def contiguous_reals(x, dtype):
    """Return x as an aligned C-contiguous array of a float type: itself, or a copy."""
    a = contiguous(x)
    return a if a.dtype == dtype else a.astype(dtype)


cdef bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Tell whether two contiguous arrays share bytes."""
    cdef char *pa = <char *>cnp.PyArray_DATA(a)
    cdef char *pb = <char *>cnp.PyArray_DATA(b)
    return pa < pb + cnp.PyArray_NBYTES(b) and pb < pa + cnp.PyArray_NBYTES(a)


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
    array = out if cnp.PyArray_CheckExact(out) else memory_of(out)
    check_out(array, shape, dtype)
    return array


cdef cnp.ndarray result_array(out, cnp.ndarray like, dtype):
    """Return the memory of `out`, or a new array, with the shape of `like`."""
    if out is not None and cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and cnp.PyArray_SAMESHAPE(<cnp.ndarray>out, like):
        return <cnp.ndarray>out
    return out_array(out, (<object>like).shape, dtype)


cdef int refuse_overlap(cnp.ndarray out, cnp.ndarray x, name) except -1:
    """Raise if `out` overlaps x, which is what the caller gave, by array_of: a copy of it overlaps nothing."""
    if overlap(out, x) if PyArray_ISCARRAY_RO(x) else np.may_share_memory(out, x):
        raise ValueError(f"out must not overlap {name}")
    return 0


def store(out, value, cnp.ndarray x, name, bint may_be_x=False):
    """Copy `value`, an array or a NumPy scalar, to `out`, if it is given."""
    value = np.asarray(value)
    if out is None:
        return value
    cdef cnp.ndarray y = out_array(out, value.shape, value.dtype)
    if not (may_be_x and cnp.PyArray_DATA(y) == cnp.PyArray_DATA(x)):
        refuse_overlap(y, x, name)
    y[...] = value
    return out


cdef int rounding_code(rounding, int most) except -1:
    rounding = word(rounding)
    if isinstance(rounding, str) and rounding == "half_even":
        return QK_HALF_EVEN
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


def raise_not_finite(x, name="x"):
    """Raise the ValueError that says how many values of x are NaN or infinite, and where the first is."""
    cdef qk_scope _mode = qk_enter_scope()
    with np.errstate(invalid="ignore"):   # a signalling NaN is invalid
        bad = ~np.isfinite(x)
    where = tuple(map(int, np.unravel_index(np.argmax(bad), bad.shape)))
    raise ValueError(f"{name} has {int(bad.sum())} NaN or infinite values, the first at {where}")


# ---- elementwise ----


def frozen(array):
    """Return a copy that nobody can make writeable: its memory is that of a bytes object."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


cdef class Params:
    """Hold QParams (_qparams.py), which has checked the arguments, as C reads them."""

    cdef qk_params c
    cdef qk_dtype storage
    cdef readonly object scale, zero_point, dtype, axis, block_size, qmin, qmax
    cdef readonly bint codes_are_floats
    cdef object reciprocal
    cdef int c_axis
    cdef float one_scale
    cdef int32_t one_zero_point

    def __cinit__(self, scale, zero_point, dtype, qmin, qmax, axis, block_size):
        self.dtype, self.qmin, self.qmax, self.axis, self.block_size = dtype, qmin, qmax, axis, block_size
        if axis is not None:
            scale, zero_point = frozen(scale), frozen(zero_point)
        self.c.scale = <const float *>cnp.PyArray_DATA(scale)
        self.c.zero_point = <const int32_t *>cnp.PyArray_DATA(zero_point)
        self.c.outer = self.c.length = self.c.inner = self.c.block = 1
        self.c.kind = QK_PER_TENSOR if axis is None else QK_PER_AXIS if block_size is None else QK_PER_BLOCK
        self.codes_are_floats = dtype not in CODE_TYPES
        if not self.codes_are_floats:
            self.storage = CODE_TYPES[dtype]
            self.c.qmin, self.c.qmax = qmin, qmax
        if axis is None:
            self.one_scale, self.one_zero_point = scale, zero_point
            self.c.scale, self.c.zero_point = &self.one_scale, &self.one_zero_point
            self.scale, self.zero_point = scale[()], zero_point[()]
            return
        self.scale, self.zero_point, self.c_axis = scale, zero_point, axis
        self.reciprocal = np.empty(scale.size, np.float32)
        cdef float *reciprocal = <float *>cnp.PyArray_DATA(self.reciprocal)
        if qk_reciprocals(self.c.scale, <size_t>cnp.PyArray_SIZE(scale), reciprocal):
            self.c.reciprocal = reciprocal
        if block_size is not None:
            self.c.block = block_size

    cdef Py_ssize_t nbytes(self):
        """Return the bytes of the arrays that it holds."""
        return 0 if self.axis is None else self.scale.nbytes + self.zero_point.nbytes + self.reciprocal.nbytes

    def check_shape(self, shape, name="x"):
        """Raise unless the scales fit data of this shape, which the caller gave as `name`."""
        if self.axis is None:
            return
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"params: axis {self.axis} is out of range for {name} with shape {tuple(shape)}")
        expected, axis, what = tuple(shape), self.axis % len(shape), f"axis {self.axis}"
        if self.block_size is None:
            expected = expected[axis : axis + 1]
        else:
            blocks = -(-expected[axis] // self.block_size)
            expected = expected[:axis] + (blocks,) + expected[axis + 1 :]
            what = f"blocks of {self.block_size} along axis {self.axis}"
        if self.scale.shape != expected:
            raise ValueError(f"params: scale must have shape {expected} to match {what} of {name} with shape "
                             f"{tuple(shape)}, got {self.scale.shape}")

    cdef int lay_over(self, cnp.ndarray x, qk_params *p, name) except -1:
        """Fill the C parameters for an array of the shape of x."""
        cdef int i, axis, ndim = cnp.PyArray_NDIM(x)
        p[0] = self.c
        if p.kind == QK_PER_TENSOR:
            p.length = <size_t>cnp.PyArray_SIZE(x)
            return 0
        self.check_shape((<object>x).shape, name)
        axis = self.c_axis + ndim if self.c_axis < 0 else self.c_axis
        for i in range(axis):
            p.outer *= <size_t>cnp.PyArray_DIM(x, i)
        p.length = <size_t>cnp.PyArray_DIM(x, axis)
        for i in range(axis + 1, ndim):
            p.inner *= <size_t>cnp.PyArray_DIM(x, i)
        return 0


cdef Params params_of(params):
    if not isinstance(params, Params):
        raise TypeError(f"params must be QParams, got {type(params).__name__}")
    return <Params>params


def quantize(x, params, rounding, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params to = params_of(params)
    cdef cnp.ndarray given = array_of(x, "x"), a = contiguous(given)
    cdef qk_dtype from_ = <qk_dtype>float_type(a, "x")
    cdef qk_rounding how = <qk_rounding>rounding_code(rounding, QK_HALF_AWAY)
    cdef qk_params p
    to.lay_over(a, &p, "x")
    cdef cnp.ndarray q = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(q, given, "x")
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *target = cnp.PyArray_DATA(q)
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_quantize(source, from_, target, to.storage, &p, how)
    else:
        with nogil:
            qk_quantize(source, from_, target, to.storage, &p, how)
    return q if out is None else out


def dequantize(q, params, dtype, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params)
    cdef cnp.ndarray given = array_of(q, "q"), a = contiguous(given)
    cdef qk_dtype from_ = of.storage
    if PyArray_TYPE(a) == cnp.NPY_INT32:
        from_ = QK_I32
    elif descr_of(a) != <PyObject *>of.dtype and a.dtype != of.dtype:
        raise TypeError(f"q must have dtype {of.dtype} (as params) or int32, got {a.dtype}")
    if dtype is not np.float32:
        dtype = float_dtype(dtype)
    else:
        dtype = FLOAT32
    cdef qk_params p
    of.lay_over(a, &p, "q")
    cdef cnp.ndarray y = result_array(out, a, dtype)
    cdef qk_dtype to = <qk_dtype>float_type(y, "out")
    if out is not None:
        refuse_overlap(y, given, "q")
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *target = cnp.PyArray_DATA(y)
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_dequantize(source, from_, target, to, &p)
    else:
        with nogil:
            qk_dequantize(source, from_, target, to, &p)
    return y if out is None else out


def fake_quantize(x, params, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params by = params_of(params)
    cdef cnp.ndarray given = array_of(x, "x"), a = contiguous(given)
    cdef qk_dtype type = <qk_dtype>float_type(a, "x")
    cdef qk_params p
    by.lay_over(a, &p, "x")
    cdef cnp.ndarray y = result_array(out, a, <object>descr_of(a))
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *target = cnp.PyArray_DATA(y)
    if out is not None and source != target:
        refuse_overlap(y, given, "x")
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_fake_quantize(source, target, type, &p)
    else:
        with nogil:
            qk_fake_quantize(source, target, type, &p)
    return y if out is None else out


def minmax(cnp.ndarray x):
    """Return the bounds of a contiguous float32 array and 0, or None if a value is not finite."""
    cdef float lo, hi
    cdef int finite
    cdef const float *data = <const float *>cnp.PyArray_DATA(x)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(x)
    with nogil:
        finite = qk_minmax(data, n, &lo, &hi)
    return (lo, hi) if finite else None


def choose(lo, hi, int qmin, int qmax, bint symmetric):
    """Return scale and zero_point of ranges: float32 and int32 arrays of the shape of lo and hi."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef cnp.ndarray low = contiguous(np.asarray(lo)), high = contiguous(np.asarray(hi))
    scale, zero_point = np.empty((<object>low).shape, np.float32), np.empty((<object>low).shape, np.int32)
    cdef const float *least = <const float *>cnp.PyArray_DATA(low)
    cdef const float *most = <const float *>cnp.PyArray_DATA(high)
    cdef float *s = <float *>cnp.PyArray_DATA(scale)
    cdef int32_t *z = <int32_t *>cnp.PyArray_DATA(zero_point)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(low)):
        qk_choose(least[i], most[i], qmin, qmax, symmetric, s + i, z + i)
    return scale, zero_point


def quantize_rows(x, tuple shape, dtype, int qmin, int qmax, bint symmetric):
    """Quantize float32 x, which is not empty, as one row (shape ()) or as rows (shape (rows,)).

    Returns q, and scale and zero_point of `shape`.
    """
    cdef cnp.ndarray a = contiguous(x)
    cdef cnp.ndarray q = np.empty((<object>a).shape, dtype)
    scale, zero_point = np.empty(shape, np.float32), np.empty(shape, np.int32)
    cdef size_t rows = <size_t>cnp.PyArray_SIZE(scale)
    cdef float *s = <float *>cnp.PyArray_DATA(scale)
    cdef int32_t *z = <int32_t *>cnp.PyArray_DATA(zero_point)
    cdef const float *source = <const float *>cnp.PyArray_DATA(a)
    cdef void *target = cnp.PyArray_DATA(q)
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(a) // rows
    cdef qk_dtype to = CODE_TYPES[dtype]
    cdef int finite
    with nogil:
        finite = qk_quantize_rows(source, rows, cols, target, to, qmin, qmax, symmetric, s, z)
    if not finite:
        raise_not_finite(x)
    return q, scale, zero_point


# ---- requantize ----


def quantize_multiplier(cnp.ndarray m):
    """Return mantissas and shifts of a contiguous float64 array (n,)."""
    mantissa, shift = np.empty((<object>m).shape, np.int32), np.empty((<object>m).shape, np.int32)
    cdef const double *source = <const double *>cnp.PyArray_DATA(m)
    cdef int32_t *a = <int32_t *>cnp.PyArray_DATA(mantissa)
    cdef int32_t *b = <int32_t *>cnp.PyArray_DATA(shift)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(m)):
        qk_quantize_multiplier(source[i], a + i, b + i)
    return mantissa, shift


def multipliers(given, Py_ssize_t n, bint fixed_point):
    """Return multipliers, one or n real numbers, as n entries of what the kernels read.

    That is (float32, None, None), or (None, mantissas, shifts) if they are fixed-point.
    """
    cdef qk_scope _mode = qk_enter_scope()
    if given.shape not in ((), (1,), (n,)):
        raise ValueError(f"multiplier must be a scalar or have shape {(n,)}, got {given.shape}")
    cdef cnp.ndarray wide = np.ascontiguousarray(given, np.float64), narrow = np.empty(n, FLOAT32)
    cdef const double *m = <const double *>cnp.PyArray_DATA(wide)
    cdef Py_ssize_t i, count = cnp.PyArray_SIZE(wide)
    for i in range(count):
        if not 0 < m[i] < INFINITY:
            raise ValueError(f"multiplier must be positive and finite, got {given.flat[i]}")
    if fixed_point:
        return None, *quantize_multiplier(np.full(n, wide) if count != n else wide)
    cdef float *to = <float *>cnp.PyArray_DATA(narrow)
    for i in range(n):
        # beyond FLT_MAX, all but 0 saturates with the largest one as well
        to[i] = <float>min(m[i if count == n else 0], FLT_MAX)
    return narrow, None, None


cdef multipliers_of_scales(Params a, b_scale, Params of_result):
    """Return mantissas and shifts of scale(a) * b_scale / scale(result), a and the result per tensor.

    In double nothing leaves the range.
    """
    cdef qk_scope _mode = qk_enter_scope()
    exact = <double>a.one_scale * np.asarray(b_scale, np.float64).reshape(-1) / <double>of_result.one_scale
    return multipliers(exact, exact.size, True)[1:]


def requantize(cnp.ndarray acc, cnp.ndarray bias, given_bias, params, rounding, tuple columns, given_multiplier, out):
    """Requantize int32 acc (..., n); bias and the multipliers, `columns`, are contiguous and have n entries.

    The caller gave arrays: `acc`, `given_bias` or None, `given_multiplier`.
    """
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params to = params_of(params)
    cdef cnp.ndarray a = contiguous(acc)
    multiplier, mantissa, shift = columns
    cdef qk_requant r
    memset(&r, 0, sizeof(r))
    r.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    r.zero_point, r.qmin, r.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    if r.rounding <= QK_HALF_AWAY:
        r.multiplier = <const float *>cnp.PyArray_DATA(multiplier)
    else:
        r.mantissa = <const int32_t *>cnp.PyArray_DATA(mantissa)
        r.shift = <const int32_t *>cnp.PyArray_DATA(shift)
    cdef cnp.ndarray q = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(q, acc, "acc")
        refuse_overlap(q, bias if given_bias is None else given_bias, "bias")
        refuse_overlap(q, given_multiplier, "multiplier")
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(bias)
    cdef size_t rows = <size_t>cnp.PyArray_SIZE(a) // cols if cols else 0
    cdef const int32_t *source = <const int32_t *>cnp.PyArray_DATA(a)
    cdef const int32_t *b = <const int32_t *>cnp.PyArray_DATA(bias)
    cdef void *target = cnp.PyArray_DATA(q)
    if rows * cols <= BRIEF:
        qk_requantize(source, b, target, to.storage, rows, cols, &r)
    else:
        with nogil:
            qk_requantize(source, b, target, to.storage, rows, cols, &r)
    return q if out is None else out


# ---- products ----


def holds_as_half(values):
    """Tell whether float16 has each of the float32 values."""
    return bool(np.all(np.float16(values) == values))


cdef class Packed:
    """Hold a PackedMatrix (_weights.py), which has checked the arguments, in the panels that an instruction set reads.

    b is (k, n), of any strides: int8 or uint8, which fill `c`, or `gemm4` if blocks of rows have scales of their own,
    int4 or uint4, which fill `gemm4`, float16 or bfloat16, which fill `gemmf16`, or int16, which fill `gemm16`. Without
    params it has no scales, and zero points are the caller's. If params are a Codebook, `levels` says what b, uint8,
    stands for: int8 levels (1 or n, 16), their float32 scales (1 or n), and the scales of blocks (blocks, n) or None.


    What the products read, it holds; what they do not is made of that when it is asked for. `_kept` is what is missing
    then: QParams per tensor, of others (qmin, qmax, axis, block_size), or the Codebook.
    """

    cdef qk_gemm8_weights c
    cdef qk_gemm4_weights gemm4
    cdef qk_gemmf16_weights gemmf16
    cdef qk_gemm16_weights gemm16
    cdef bint is_gemm4, is_gemmf16, is_gemm16
    cdef readonly object _kept
    cdef readonly object dtype       # that of b, in native byte order
    cdef object panels, colsum, scale, zero_point, levels   # zero_point: None if all are 0
    cdef int64_t bound               # max over columns of sum |b - zero_point|
    cdef Py_ssize_t k, n, n_pad, panel_bytes
    cdef float least_scale, most_scale

    def __cinit__(self, cnp.ndarray b not None, params, levels=None):
        self.dtype = np.dtype(b.dtype.type)
        self.k, self.n = cnp.PyArray_DIM(b, 0), cnp.PyArray_DIM(b, 1)
        if PyArray_TYPE(b) in (cnp.NPY_FLOAT16, BF16_NUM):
            self.pack_gemmf16(b)
            return
        if PyArray_TYPE(b) == cnp.NPY_INT16:
            self.pack_gemm16(b, params)
            return
        if levels is not None:
            self._kept = params
            self.pack_levels(b, levels[0], levels[1], levels[2])
            return
        if params is not None and (params_of(params).storage in (QK_I4, QK_U4) or params.block_size is not None):
            self.pack_blocks(b, params_of(params))
            return
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        cdef int is_unsigned = PyArray_TYPE(b) == cnp.NPY_UINT8
        cdef const qk_kernels *kernels = qk_active()
        if params is not None:  # packed once, used often
            kernels = qk_gemm8_kernels_for(kernels, data, row_stride, col_stride, <size_t>self.k, <size_t>self.n,
                                           is_unsigned)
        qk_gemm8_init(&self.c, kernels, <size_t>self.k, <size_t>self.n, is_unsigned)
        self.c.panels = <int8_t *>self.panels_of(qk_gemm8_bytes(&self.c), self.c.n_pad)
        self.colsum = np.empty(self.n_pad, np.int32)
        self.c.colsum = <int32_t *>cnp.PyArray_DATA(self.colsum)
        cdef const int32_t *zero = NULL
        if params is not None:
            zero_point = self.keep_columns(params)
            zero = <const int32_t *>cnp.PyArray_DATA(zero_point)
        if self.panel_bytes <= BRIEF:
            self.bound = qk_gemm8_pack(&self.c, data, row_stride, col_stride, zero)
        else:
            with nogil:
                self.bound = qk_gemm8_pack(&self.c, data, row_stride, col_stride, zero)

    cdef cnp.ndarray keep_columns(self, Params params):
        """Keep scales and zero points of columns, padded to whole panels, and return the latter."""
        self.keep(params)
        self.scale = self.padded(params.scale, np.float32)
        zero_point = self.padded(params.zero_point, np.int32)
        if np.any(zero_point):
            self.zero_point = zero_point
        self.least_scale, self.most_scale = np.min(params.scale, initial=FLT_MAX), np.max(params.scale, initial=0)
        return zero_point

    cdef int keep(self, Params params) except -1:
        self._kept = params if params.axis is None else (params.qmin, params.qmax, params.axis, params.block_size)
        return 0

    cdef int pack_blocks(self, cnp.ndarray b, Params params) except -1:
        """Fill `gemm4`. Per tensor or per column, all rows are one block; equal zero points are kept once."""
        cdef qk_block_params p
        cdef cnp.ndarray zero_point = np.asarray(params.zero_point)
        cdef int32_t zero = zero_point.flat[0] if zero_point.size else 0
        cdef int bits = 4 if params.storage in (QK_I4, QK_U4) else 8
        if bits == 8:
            zero = 0 if params.qmin < 0 else 128
        cdef bint own_zeros = bool(np.any(zero_point != zero))
        cdef bint half_scales = holds_as_half(params.scale)
        cdef Py_ssize_t block = max(self.k if params.block_size is None else min(params.block_size, self.k), 1)
        if self.k:
            self.keep(params)
        else:   # there are no panels to hold them
            self._kept = params
        qk_gemm4_init(&self.gemm4, qk_active(), <size_t>self.k, <size_t>self.n, <size_t>block, bits,
                      params.qmin < 0, half_scales, own_zeros, zero)
        p.scale, p.zero_point = params.c.scale, params.c.zero_point
        p.col_stride = params.axis is not None
        p.row_stride = <size_t>self.n if params.block_size is not None else 0
        return self.fill_gemm4(b, &p)

    cdef int pack_levels(self, cnp.ndarray b, cnp.ndarray levels, cnp.ndarray level_scale, scales) except -1:
        """Fill `gemm4` with codes. Levels of each column stand in the panels."""
        cdef qk_block_params p
        cdef bint own = cnp.PyArray_DIM(levels, 0) != 1 or self._kept.axis == 1
        cdef cnp.ndarray of_blocks = level_scale if own else np.ones(1, np.float32) if scales is None else scales
        cdef Py_ssize_t block = max(self.k if scales is None else min(self._kept.block_size, self.k), 1)
        cdef float one_scale = 1 if own else level_scale[0]
        qk_gemm4_init_levels(&self.gemm4, qk_active(), <size_t>self.k, <size_t>self.n, <size_t>block,
                             not own and holds_as_half(of_blocks), <const int8_t *>cnp.PyArray_DATA(levels),
                             own, one_scale)
        p.scale, p.zero_point = <const float *>cnp.PyArray_DATA(of_blocks), NULL
        p.col_stride = own or scales is not None
        p.row_stride = 0 if scales is None else <size_t>self.n
        self.fill_gemm4(b, &p)
        if own:
            self.gemm4.levels = NULL
        else:
            self.levels = levels
        return 0

    cdef int fill_gemm4(self, cnp.ndarray b, const qk_block_params *p) except -1:
        self.is_gemm4 = True
        self.gemm4.panels = <uint8_t *>self.panels_of(qk_gemm4_bytes(&self.gemm4), self.gemm4.n_pad)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        with nogil:
            qk_gemm4_pack(&self.gemm4, data, row_stride, col_stride, p)
        return 0

    cdef int pack_gemmf16(self, cnp.ndarray b) except -1:
        """Fill `gemmf16` with weights that must be finite."""
        b = np.require(b, requirements="A")
        qk_gemmf16_init(&self.gemmf16, qk_active(), <size_t>self.k, <size_t>self.n,
                        QK_BF16 if PyArray_TYPE(b) == BF16_NUM else QK_F16)
        self.is_gemmf16 = True
        self.gemmf16.panels = <uint16_t *>self.panels_of(qk_gemmf16_bytes(&self.gemmf16), self.gemmf16.n_pad)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        cdef int finite
        with nogil:
            finite = qk_gemmf16_pack(&self.gemmf16, data, row_stride, col_stride)
        if not finite:
            raise_not_finite(b, "b")
        return 0

    cdef int pack_gemm16(self, cnp.ndarray b, params) except -1:
        """Fill `gemm16`."""
        b = np.require(b, requirements="A")
        qk_gemm16_init(&self.gemm16, qk_active(), <size_t>self.k, <size_t>self.n)
        self.is_gemm16 = True
        self.gemm16.panels = <int16_t *>self.panels_of(qk_gemm16_bytes(&self.gemm16), self.gemm16.n_pad)
        self.colsum = np.zeros(self.n_pad, np.int64)
        self.gemm16.colsum = <int64_t *>cnp.PyArray_DATA(self.colsum)
        if params is not None:
            self.keep_columns(params)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        with nogil:
            qk_gemm16_pack(&self.gemm16, data, row_stride, col_stride)
        return 0

    cdef void *panels_of(self, size_t size, size_t n_pad) except NULL:
        """Allocate `size` bytes for panels of n_pad columns, aligned to 64."""
        if max(size, n_pad) > <size_t>PY_SSIZE_T_MAX - 63:
            raise MemoryError(f"no memory for packed weights of shape {self.shape}")
        cdef cnp.npy_intp length = <cnp.npy_intp>size + 63
        cdef cnp.ndarray buffer = cnp.PyArray_EMPTY(1, &length, cnp.NPY_UINT8, 0)
        self.panels, self.panel_bytes, self.n_pad = buffer, <Py_ssize_t>size, <Py_ssize_t>n_pad
        return <char *>cnp.PyArray_DATA(buffer) + (-<Py_ssize_t>cnp.PyArray_DATA(buffer) & 63)

    cdef padded(self, values, dtype):
        """Return one entry a column, and zeros up to whole panels."""
        result = np.zeros(self.n_pad, dtype)
        result[: self.n] = values
        return result

    @property
    def shape(self):
        return self.k, self.n

    @property
    def nbytes(self):
        arrays = self.colsum, self.scale, self.zero_point, self.levels
        held = sum([array.nbytes for array in arrays if array is not None])
        if isinstance(self._kept, Params):
            held += (<Params>self._kept).nbytes()
        elif hasattr(self._kept, "levels"):
            held += self._kept.levels.nbytes
        return self.panel_bytes + held

    def _columns(self):
        """Return float32 scales and int32 zero points: (N,), or (blocks, N) if they stand in panels of blocks.

        Those are weights in blocks, all weights of 4 bits, and codes of a codebook.
        """
        if not self.is_gemm4:
            zeros = np.zeros(self.n, np.int32) if self.zero_point is None else self.zero_point[: self.n]
            return self.scale[: self.n], zeros
        shape = self.gemm4.blocks, self.n
        cdef cnp.ndarray scale = np.empty(shape, np.float32), zero_point = np.empty(shape, np.int32)
        if scale.size:
            qk_gemm4_params(&self.gemm4, <float *>cnp.PyArray_DATA(scale), <int32_t *>cnp.PyArray_DATA(zero_point))
        return scale, zero_point

    def unpack(self):
        """Return the weights as they were packed: (K, N), of dtype `dtype`."""
        codes = np.empty((self.k, self.n), self.dtype)
        cdef void *to = cnp.PyArray_DATA(codes)
        if codes.size == 0:   # there may be more rows or columns than a loop can count
            return codes
        with nogil:
            if self.is_gemmf16:
                qk_gemmf16_unpack(&self.gemmf16, to)
            elif self.is_gemm16:
                qk_gemm16_unpack(&self.gemm16, <int16_t *>to)
            elif self.is_gemm4:
                qk_gemm4_unpack(&self.gemm4, to)
            else:
                qk_gemm8_unpack(&self.c, to)
        return codes


cpdef int need_eight_bits(Packed b, name) except -1:
    """Raise unless the weights given as `name` are those of 8 bits, which have one integer product for all."""
    if b.is_gemm4 or b.is_gemmf16 or b.is_gemm16:
        needs, what = "8-bit weights", b.dtype.name
        if b.is_gemm4 and b.gemm4.bits == 8:
            needs, what = "weights with one scale a column", f"{what} with a scale for each block of rows"
        elif b.dtype == np.uint8:
            what = "codes of a Codebook"
        raise TypeError(f"{name} must hold {needs}, got {what}: such weights are for linear")
    return 0


cdef int describe_rows(cnp.ndarray a, Py_ssize_t k, object name, object other, qk_rows *source) except -1:
    """Fill m and row_stride if a (..., k) can be read in place; return 0 if it must be copied."""
    cdef int ndim = cnp.PyArray_NDIM(a)
    if ndim == 0 or cnp.PyArray_DIM(a, ndim - 1) != k:
        raise ValueError(f"{name} must have {k} columns to match {other}, got shape {(<object>a).shape}")
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    source.m = <size_t>(cnp.PyArray_SIZE(a) // k) if k else <size_t>int(np.prod((<object>a).shape[:-1]))
    source.row_stride = k * item
    if PyArray_ISCARRAY_RO(a):
        source.a = cnp.PyArray_DATA(a)
        return 1
    if ndim == 2 and (k <= 1 or cnp.PyArray_STRIDE(a, 1) == item) and a.flags.aligned and a.dtype.isnative:
        source.a = cnp.PyArray_DATA(a)
        source.row_stride = cnp.PyArray_STRIDE(a, 0)
        return source.row_stride % item == 0
    return 0


cdef cnp.ndarray rows_of(cnp.ndarray a, Py_ssize_t k, object name, object other, qk_rows *source):
    """Describe a, or a contiguous copy of it, in `source`; `name` and `other`, b, are the caller's."""
    if not describe_rows(a, k, name, other, source):
        a = contiguous(a)
        describe_rows(a, k, name, other, source)
    return a


cdef cnp.ndarray product_out(out, cnp.ndarray a, Py_ssize_t n, object dtype):
    """Return `out`, checked, or a new array, of shape a.shape[:-1] + (n,)."""
    cdef int ndim = cnp.PyArray_NDIM(a), i
    if out is not None and cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim \
            and cnp.PyArray_DIM(<cnp.ndarray>out, ndim - 1) == n:
        for i in range(ndim - 1):
            if cnp.PyArray_DIM(<cnp.ndarray>out, i) != cnp.PyArray_DIM(a, i):
                break
        else:
            return <cnp.ndarray>out
    return out_array(out, (<object>a).shape[:-1] + (n,), dtype)


cdef int run(qk_rows *source, qk_gemm8_weights *b, qk_epilogue *epilogue, object x) except -1:
    cdef int status
    if source.m * b.k_pad * b.n_pad <= BRIEF_PRODUCT:
        status = qk_gemm8(source, b, epilogue)
    else:
        with nogil:
            status = qk_gemm8(source, b, epilogue)
    return check_status(status, x)


cdef int run_gemm16(qk_rows *source, qk_gemm16_weights *b, qk_epilogue *epilogue, object x) except -1:
    cdef int status
    if source.m * b.k * b.n_pad <= BRIEF_PRODUCT:
        status = qk_gemm16(source, b, epilogue)
    else:
        with nogil:
            status = qk_gemm16(source, b, epilogue)
    return check_status(status, x)


cdef int linear_of(const qk_rows *source, const qk_gemm4_weights *gemm4, const qk_gemmf16_weights *gemmf16,
                   const qk_epilogue *epilogue) except -3 nogil:
    """Multiply rows of floats by the weights that are not NULL."""
    if gemmf16 != NULL:
        return qk_gemmf16_linear(<const float *>source.a, source.row_stride, source.m, gemmf16, epilogue)
    return qk_gemm4_linear(<const float *>source.a, source.row_stride, source.m, gemm4, epilogue)


cdef int run_floats(const qk_rows *source, Packed b, const qk_epilogue *epilogue, object x) except -1:
    cdef const qk_gemm4_weights *gemm4 = &b.gemm4 if b.is_gemm4 else NULL
    cdef const qk_gemmf16_weights *gemmf16 = &b.gemmf16 if b.is_gemmf16 else NULL
    cdef int status
    if source.m * <size_t>b.k * <size_t>b.n_pad <= BRIEF_PRODUCT:
        status = linear_of(source, gemm4, gemmf16, epilogue)
    else:
        with nogil:
            status = linear_of(source, gemm4, gemmf16, epilogue)
    return check_status(status, x)


cdef int check_status(int status, object x) except -1:
    """Raise what the status of a product says, whose left operand is x."""
    if status == -1:
        raise MemoryError("no memory for the packed rows of a")
    if status == -2:
        raise_not_finite(x)
    return 0


cdef zero_points(value, cnp.ndarray codes, tuple shape, name):
    """Return a zero point, or an array of them with `shape`, as contiguous int32 within the range of the codes."""
    given = array_of(value, name)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or an array of integers, got {shown(value)}")
    if given.shape == (1,):
        given = given.reshape(())   # as ONNX files hold a scalar
    if given.ndim and given.shape != shape:
        raise ValueError(f"{name} must be a scalar or have shape {shape}, got {given.shape}")
    refuse_giant(given, name)
    info = np.iinfo(codes.dtype)
    if given.size and (given.min() < info.min or given.max() > info.max):
        raise ValueError(f"{name} must be within [{info.min}, {info.max}] for {codes.dtype}, got {shown(value)}")
    return np.asarray(given, np.int32, order="C")


cdef int codes_type(cnp.ndarray a, name, also="") except -1:
    cdef int num = PyArray_TYPE(a)
    if num == cnp.NPY_UINT8:
        return QK_CODES_U8
    if num == cnp.NPY_INT8:
        return QK_CODES_I8
    raise TypeError(f"{name} must be uint8{', int8' if also else ''} or {also or 'int8'}, got {a.dtype}")


cdef tuple lay_over_batch(cnp.ndarray a, cnp.ndarray b, qk_batch *p):
    """Fill axes and shape: the leading axes of a and b, broadcast."""
    cdef int na = cnp.PyArray_NDIM(a) - 2, nb = cnp.PyArray_NDIM(b) - 2, axis
    cdef Py_ssize_t of_a, of_b
    p.axes = max(na, nb)
    for axis in range(p.axes):
        of_a = cnp.PyArray_DIM(a, axis - p.axes + na) if axis >= p.axes - na else 1
        of_b = cnp.PyArray_DIM(b, axis - p.axes + nb) if axis >= p.axes - nb else 1
        if of_a != of_b and of_a != 1 and of_b != 1:
            raise ValueError(f"a and b must have leading axes that broadcast, got shapes {(<object>a).shape} "
                             f"and {(<object>b).shape}")
        p.shape[axis] = <size_t>(of_b if of_a == 1 else of_a)
    return tuple([<Py_ssize_t>p.shape[axis] for axis in range(p.axes)])


cdef void fill_steps(cnp.ndarray x, int own, Py_ssize_t unit, const qk_batch *p, ptrdiff_t *step) noexcept:
    """Fill the strides of the leading axes of x, all but its last `own`, over `unit`; 0 if x is broadcast."""
    cdef int missing = p.axes - (cnp.PyArray_NDIM(x) - own), axis
    for axis in range(p.axes):
        step[axis] = 0
        if axis >= missing and cnp.PyArray_DIM(x, axis - missing) > 1:
            step[axis] = cnp.PyArray_STRIDE(x, axis - missing) // unit


cdef cnp.ndarray batch_zero_points(value, cnp.ndarray codes, tuple shape, name):
    """Return zero points, like zero_points, of any shape that broadcasts to `shape`: all of them, or a scalar."""
    given = array_of(value, name)
    if given.size == 1:
        return zero_points(given.reshape(()), codes, (), name)
    try:
        given = np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"{name} must be a scalar or broadcast to shape {shape}, got {given.shape}") from None
    return zero_points(given, codes, shape, name)


cdef matmul_batch(cnp.ndarray a, cnp.ndarray b, a_zero_point, b_zero_point, out):
    """Multiply codes a (..., m, k) and b (..., k, n)."""
    cdef qk_batch p
    memset(&p, 0, sizeof(p))
    cdef int na = cnp.PyArray_NDIM(a), nb = cnp.PyArray_NDIM(b)
    cdef Py_ssize_t k = cnp.PyArray_DIM(b, nb - 2), n = cnp.PyArray_DIM(b, nb - 1)
    if na < 2 or cnp.PyArray_DIM(a, na - 1) != k:
        raise ValueError(f"a must have shape (..., M, {k}) to match b with shape {(<object>b).shape}, "
                         f"got {(<object>a).shape}")
    cdef Py_ssize_t m = cnp.PyArray_DIM(a, na - 2)
    shape = lay_over_batch(a, b, &p) + (m, n)
    cdef cnp.ndarray c = out_array(out, shape, INT32), az, bz
    if out is not None:
        for name, x in (("a", a), ("b", b), ("a_zero_point", a_zero_point), ("b_zero_point", b_zero_point)):
            if type(x) is not int:
                refuse_overlap(c, array_of(x, name), name)
    cdef cnp.ndarray rows = a if k <= 1 or cnp.PyArray_STRIDE(a, na - 1) == 1 else contiguous(a)
    p.source.m, p.source.a, p.source.row_stride = <size_t>m, cnp.PyArray_DATA(rows), cnp.PyArray_STRIDE(rows, na - 2)
    p.source.type = <qk_rows_type>codes_type(a, "a", "int16")
    fill_steps(rows, 2, 1, &p, p.a_step)
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = batch_zero_points(a_zero_point, a, (<object>a).shape[:-1], "a_zero_point")
        p.source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        p.source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
        if p.source.zero_point_per_row:
            fill_steps(az, 1, 4, &p, p.a_zero_step)
    p.b, p.k, p.n = cnp.PyArray_DATA(b), <size_t>k, <size_t>n
    p.b_row_stride, p.b_col_stride = cnp.PyArray_STRIDE(b, nb - 2), cnp.PyArray_STRIDE(b, nb - 1)
    p.b_unsigned = PyArray_TYPE(b) == cnp.NPY_UINT8
    fill_steps(b, 2, 1, &p, p.b_step)
    if not (type(b_zero_point) is int and b_zero_point == 0):
        of_columns = (<object>b).shape[:-2] + (n,)
        bz = batch_zero_points(b_zero_point, b, of_columns, "b_zero_point")
        if cnp.PyArray_NDIM(bz) == 0:
            bz = np.full(n, bz, np.int32)
        p.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
        fill_steps(bz, 1, 4, &p, p.b_zero_step)
    p.out = <int32_t *>cnp.PyArray_DATA(c)
    cdef int status
    if cnp.PyArray_SIZE(c) <= BRIEF_PRODUCT // (k + 1):
        status = qk_gemm8_batch(&p)
    else:
        with nogil:
            status = qk_gemm8_batch(&p)
    check_status(status, a)
    return c if out is None else out


def matmul(a, b, a_zero_point, b_zero_point, out):
    cdef cnp.ndarray left_array = array_of(a, "a")
    cdef cnp.ndarray right_array
    cdef Packed packed
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    if not isinstance(b, Packed):
        b = array_of(b, "b")
    if PyArray_TYPE(left_array) == cnp.NPY_INT16 or is_int16(b):
        return matmul_gemm16(left_array, b, a_zero_point, b_zero_point, out)
    source.type = <qk_rows_type>codes_type(left_array, "a", "int16")
    if isinstance(b, Packed):
        packed = <Packed>b
        need_eight_bits(packed, "b")
    else:
        right_array = <cnp.ndarray>b
        codes_type(right_array, "b", "int16")
        if cnp.PyArray_NDIM(right_array) > 2:
            return matmul_batch(left_array, right_array, a_zero_point, b_zero_point, out)
        if cnp.PyArray_NDIM(right_array) < 2:
            raise ValueError(f"b must have shape (..., K, N), got {(<object>right_array).shape}")
        packed = None
    cdef Py_ssize_t k = packed.k if packed is not None else cnp.PyArray_DIM(right_array, 0)
    cdef Py_ssize_t n = packed.n if packed is not None else cnp.PyArray_DIM(right_array, 1)
    cdef cnp.ndarray _rows = rows_of(left_array, k, "a", "b", &source)
    cdef cnp.ndarray c = product_out(out, left_array, n, INT32)
    if out is not None:
        refuse_overlap(c, left_array, "a")
        if packed is None:
            refuse_overlap(c, right_array, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, left_array, (<object>left_array).shape[:-1], "a_zero_point")
        source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
        if out is not None:
            refuse_overlap(c, array_of(a_zero_point, "a_zero_point"), "a_zero_point")
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = right_array if packed is None else np.empty(0, np.uint8 if packed.c.flipped else np.int8)
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    else:
        bz = None
    if packed is None:
        packed = Packed(right_array, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
        epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
    epilogue.type = QK_TO_INT32
    epilogue.out = cnp.PyArray_DATA(c)
    epilogue.row_stride = <size_t>n * 4
    run(&source, &packed.c, &epilogue, a)
    return c if out is None else out


cdef bint is_int16(b):
    if isinstance(b, Packed):
        return (<Packed>b).is_gemm16
    return isinstance(b, cnp.ndarray) and PyArray_TYPE(<cnp.ndarray>b) == cnp.NPY_INT16


cdef cnp.ndarray int16_codes(codes, name):
    """Return codes of at most 16 bits as int16 in native byte order."""
    if codes.dtype.newbyteorder("=") not in (np.int16, np.int8, np.uint8):
        raise TypeError(f"{name} must be int16, int8 or uint8 where the other is int16, got {codes.dtype}")
    return codes.astype(np.int16, copy=False)


cdef matmul_gemm16(cnp.ndarray a, b, a_zero_point, b_zero_point, out):
    """Multiply if a or b is int16."""
    cdef qk_rows source
    cdef Packed packed
    memset(&source, 0, sizeof(source))
    cdef cnp.ndarray codes = int16_codes(a, "a")
    if isinstance(b, Packed):
        if not (<Packed>b).is_gemm16:
            raise TypeError(f"b must be packed from int16 where a is int16, got a PackedMatrix of {b.dtype}")
        packed = <Packed>b
    else:
        wide = int16_codes(b, "b")
        if b.ndim != 2:
            raise ValueError(f"b must have shape (K, N) where a or b is int16, got {b.shape}")
        packed = None
    cdef Py_ssize_t k = packed.k if packed is not None else b.shape[0]
    cdef Py_ssize_t n = packed.n if packed is not None else b.shape[1]
    cdef cnp.ndarray _rows = rows_of(codes, k, "a", "b", &source)
    cdef cnp.ndarray c = product_out(out, a, n, INT64)
    cdef qk_epilogue epilogue
    memset(&epilogue, 0, sizeof(epilogue))
    if out is not None:
        refuse_overlap(c, a, "a")
        if packed is None:
            refuse_overlap(c, b, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, a, (<object>a).shape[:-1], "a_zero_point")
        if out is not None:
            refuse_overlap(c, array_of(a_zero_point, "a_zero_point"), "a_zero_point")
        source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = np.empty(0, np.int16) if packed is not None else b
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    else:
        bz = None
    if packed is None:
        packed = Packed(wide, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
        epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
    epilogue.out = cnp.PyArray_DATA(c)
    epilogue.row_stride = <size_t>n * 8
    run_gemm16(&source, &packed.gemm16, &epilogue, a)
    return c if out is None else out


cdef int refuse_overflow(Packed b, int64_t largest, int64_t bias) except -1:
    if b.bound * largest + bias > 0x7FFFFFFF:
        raise ValueError(f"packed: int32 could overflow: the largest column sum of |b - zero_point| is {b.bound}, "
                         f"|a - zero_point| can be {largest} and |bias| {bias}: {b.bound * largest + bias} exceeds "
                         "2**31 - 1")
    return 0


cdef float_bias(Packed b, cnp.ndarray bias):
    """Return bias (n,) as float32 padded to whole panels."""
    cdef object given = bias
    if PyArray_TYPE(bias) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(bias) == 1 \
            and cnp.PyArray_DIM(bias, 0) == b.n == b.n_pad and PyArray_ISCARRAY_RO(bias):
        return bias
    if given.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"bias must be a float array, got {given.dtype}")
    if given.shape != (b.n,):
        raise ValueError(f"bias must have shape {(b.n,)}, got {given.shape}")
    if given.dtype == FLOAT32:
        return b.padded(given, FLOAT32)
    with np.errstate(all="ignore"):   # float64 may be beyond float32
        return b.padded(given, FLOAT32)


cdef int rows_are_finite(const void *x, size_t rows, size_t cols, ptrdiff_t row_stride) except -1:
    """Tell whether all values are finite, before anything is written to an `out` that an error must leave untouched.

    The stride is in bytes.
    """
    cdef float lo, hi
    cdef size_t i, first = 0
    cdef size_t n = cols
    if row_stride == <ptrdiff_t>(cols * sizeof(float)):
        n, rows = rows * cols, 1
    if rows == 1 and n <= BRIEF:
        return qk_minmax(<const float *>x, n, &lo, &hi)
    while first < rows:
        with nogil:
            for i in range(first, min(first + 65536, rows)):
                if not qk_minmax(<const float *>(<const char *>x + <ptrdiff_t>i * row_stride), n, &lo, &hi):
                    return False
        first += 65536
        PyErr_CheckSignals()
    return True


cdef size_t most_rows(Packed b):
    """Return how many rows' sum int32 holds; with b of 8 bits, the sum of a's codes in two int16 (numerics 12)."""
    return 65536 if b.gemm4.bits == 8 else 0x7FFFFFFF // (127 * (128 if b.dtype == np.uint8 else 15))


cdef double bound(value) except? -1:
    """Return a bound as a double, that of an array without what the conversion would warn of (axes, gradients)."""
    if not isinstance(value, (float, int, np.generic)) and hasattr(value, "__array__"):
        value = as_array(value, "clamp")
        if value.ndim:
            raise TypeError
    return <double>value


def clamp_bounds(clamp):
    """Return (lo, hi) as floats; None, for either, is no bound."""
    try:
        lo, hi = clamp
        lo, hi = -INFINITY if lo is None else bound(lo), INFINITY if hi is None else bound(hi)
    except MemoryError:
        raise
    except Exception as error:   # whatever the methods of its entries raise
        kind = ValueError if isinstance(error, OverflowError) else TypeError
        raise kind(f"clamp must be None or a pair of floats (lo, hi), got {shown(clamp)}") from None
    if not lo <= hi:
        raise ValueError(f"clamp must have lo <= hi, got {shown(clamp)}")
    return lo, hi


cdef cnp.ndarray residual_of(residual, cnp.ndarray y, bint is_out):
    """Return residual as contiguous float32 of the shape of y, which it may be itself if y is `out`."""
    cdef cnp.ndarray r = float32_array(residual, "residual")
    if not cnp.PyArray_SAMESHAPE(r, y):
        raise ValueError(f"residual must have shape {(<object>y).shape} (as the result), got {(<object>r).shape}")
    cdef bint is_y = PyArray_ISCARRAY_RO(r) and cnp.PyArray_DATA(r) == cnp.PyArray_DATA(y)
    if is_out and not is_y and np.may_share_memory(y, r):
        raise ValueError("out must be residual itself or not overlap it")
    return contiguous(r)


def linear(cnp.ndarray x, Packed b, bias, activation, residual, clamp, out):
    """Multiply float32 x (..., k)."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    epilogue.activation = <qk_activation>activation_code(activation)
    if clamp is not None:
        epilogue.bounded = True
        epilogue.lo, epilogue.hi = clamp_bounds(clamp)
    cdef cnp.ndarray _rows = rows_of(x, b.k, "x", "packed", &source)
    if bias is not None:
        bias = array_of(bias, "bias")
    cdef object bias_array = None if bias is None else float_bias(b, bias)
    cdef cnp.ndarray y = product_out(out, x, b.n, FLOAT32)
    if out is not None:
        refuse_overlap(y, x, "x")
        if bias is not None:
            refuse_overlap(y, bias, "bias")
    epilogue.out = cnp.PyArray_DATA(y)
    epilogue.row_stride = epilogue.residual_stride = <size_t>b.n * 4
    epilogue.float_bias = <const float *>cnp.PyArray_DATA(bias_array) if bias is not None else NULL
    if residual is not None:
        residual = residual_of(residual, y, out is not None)
        epilogue.residual = <const float *>cnp.PyArray_DATA(residual)
    if not b.is_gemm4:
        refuse_overflow(b, 255, 0)
    elif b.gemm4.block > most_rows(b):
        raise ValueError(f"packed: int32 could overflow: a scale is shared by {b.gemm4.block} rows, at most "
                         f"{most_rows(b)} are possible")
    if out is not None and not rows_are_finite(source.a, source.m, <size_t>b.k, source.row_stride):
        raise_not_finite(x)
    if b.is_gemm4 or b.is_gemmf16:
        run_floats(&source, b, &epilogue, x)
        return y if out is None else out
    source.type = QK_FLOATS
    epilogue.type = QK_TO_FLOAT
    epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.zero_point is not None else NULL
    epilogue.col_scale = <const float *>cnp.PyArray_DATA(b.scale)
    epilogue.least_scale, epilogue.most_scale = b.least_scale, b.most_scale
    if b.is_gemm16:
        run_gemm16(&source, &b.gemm16, &epilogue, x)
    else:
        run(&source, &b.c, &epilogue, x)
    return y if out is None else out


cdef set_multipliers(qk_epilogue *epilogue, float a_scale, Packed b, float out_scale, real_bias):
    """Point `epilogue` to multipliers, scales and biases of sums, in arrays that are returned (numerics 8 and 21)."""
    cdef qk_unit_columns unit
    cdef float lo, hi
    memset(&unit, 0, sizeof(unit))
    unit.n, unit.a_scale, unit.out_scale = <size_t>b.n, a_scale, out_scale
    unit.b_scale = <const float *>cnp.PyArray_DATA(b.scale)
    unit.real = epilogue.activation > QK_RELU
    if real_bias is not None:
        unit.bias = <const float *>cnp.PyArray_DATA(real_bias)
        if not qk_minmax(unit.bias, unit.n, &lo, &hi):
            raise_not_finite(real_bias, "bias")
    cdef cnp.ndarray columns = np.zeros((3, b.n_pad), np.float32), wide = None
    cdef float *multiplier = <float *>cnp.PyArray_DATA(columns)
    cdef bint all_serve = qk_unit_multipliers(&unit, multiplier, multiplier + b.n_pad, multiplier + 2 * b.n_pad)
    epilogue.requant.multiplier = multiplier
    epilogue.col_scale, epilogue.float_bias = multiplier + b.n_pad, multiplier + 2 * b.n_pad
    if not all_serve:
        wide = np.zeros((2, b.n_pad))
        epilogue.wide_scale = <const double *>cnp.PyArray_DATA(wide)
        epilogue.wide_bias = epilogue.wide_scale + b.n_pad
        qk_wide_columns(&unit, multiplier, <double *>epilogue.wide_scale, <double *>epilogue.wide_bias)
    return columns, wide


cdef int64_t largest_magnitude(cnp.ndarray x):
    """Return the largest magnitude of contiguous int32 values."""
    cdef const int32_t *values = <const int32_t *>cnp.PyArray_DATA(x)
    cdef int64_t largest = 0
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(x)):
        largest = max(largest, -<int64_t>values[i] if values[i] < 0 else values[i])
    return largest


def qlinear(cnp.ndarray a, params, Packed b, out_params, bias, activation, bounds, rounding, out):
    """Multiply codes a (..., k), the caller's q, and requantize the sums; params and out_params are per tensor.

    `bias` is None, or a pair: int32 or float32 (contiguous, n entries), and what the caller gave. `bounds` are the
    codes of a clamp, or None.
    """
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params), to = params_of(out_params)
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    source.type = <qk_rows_type>codes_type(a, "q")
    source.zero_point = &of.one_zero_point
    epilogue.type = QK_TO_CODES
    epilogue.activation = <qk_activation>activation_code(activation)
    epilogue.requant.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    epilogue.requant.zero_point, epilogue.requant.qmin, epilogue.requant.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    if bounds is not None:
        epilogue.requant.qmin, epilogue.requant.qmax = bounds
    epilogue.out_scale = to.one_scale
    epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.zero_point is not None else NULL
    cdef cnp.ndarray _rows = rows_of(a, b.k, "q", "packed", &source)
    cdef cnp.ndarray y = product_out(out, a, b.n, to.dtype)
    if out is not None:
        refuse_overlap(y, a, "q")
        if bias is not None:
            refuse_overlap(y, bias[1], "bias")
    cdef cnp.ndarray int_bias = None, real_bias = None
    if bias is not None:
        if PyArray_TYPE(bias[0]) == cnp.NPY_INT32:
            int_bias = bias[0]
        else:
            real_bias = bias[0]
    cdef int64_t lo = 0 if of.c.qmin >= 0 else -128, hi = 255 if of.c.qmin >= 0 else 127
    cdef int64_t bias_size = 0 if int_bias is None else largest_magnitude(int_bias)
    refuse_overflow(b, max(of.one_zero_point - lo, hi - of.one_zero_point), bias_size)
    if epilogue.requant.rounding <= QK_HALF_AWAY:
        _columns = set_multipliers(&epilogue, of.one_scale, b, to.one_scale, real_bias)
    else:
        scale = b._kept.scale if isinstance(b._kept, Params) else b._columns()[0]
        mantissa, shift = multipliers_of_scales(of, scale, to)
        mantissa, shift = b.padded(mantissa, np.int32), b.padded(shift, np.int32)
        epilogue.requant.mantissa = <const int32_t *>cnp.PyArray_DATA(mantissa)
        epilogue.requant.shift = <const int32_t *>cnp.PyArray_DATA(shift)
    if int_bias is not None:
        int_bias = b.padded(int_bias, np.int32)
        epilogue.int_bias = <const int32_t *>cnp.PyArray_DATA(int_bias)
    epilogue.out = cnp.PyArray_DATA(y)
    epilogue.row_stride = <size_t>b.n
    run(&source, &b.c, &epilogue, a)
    return y if out is None else out


# ---- codebooks ----


cdef class Levels:
    """Hold the tables of a scalar Codebook (_codebook_tables.py) for C; arrays have a row for each channel."""

    cdef qk_codebook c
    cdef object arrays

    def __cinit__(self, cnp.ndarray level, cnp.ndarray node, cnp.ndarray order, bint in_order, buckets):
        self.arrays = level, node, order, buckets
        self.c.channels = <size_t>cnp.PyArray_DIM(level, 0)
        self.c.first.depth = int(cnp.PyArray_DIM(level, 1)).bit_length() - 1
        self.c.first.in_order = in_order
        self.c.first.level = <const float *>cnp.PyArray_DATA(level)
        self.c.first.node = <const float *>cnp.PyArray_DATA(node)
        self.c.first.order = <const uint8_t *>cnp.PyArray_DATA(order)
        if buckets is not None:
            entries, self.c.first.least, self.c.first.last, self.c.first.shift = buckets
            self.c.first.bucket = <const uint64_t *>cnp.PyArray_DATA(entries[0])
            if len(entries) > 1:
                self.c.first.second = <const uint64_t *>cnp.PyArray_DATA(entries[1])


cdef int lay_out(cnp.ndarray a, axis, size_t *outer, size_t *length, size_t *inner) except -1:
    """Split a contiguous array's shape as (outer, length, inner) around the axis; None: all of it is the axis."""
    cdef int i, at, ndim = cnp.PyArray_NDIM(a)
    outer[0] = inner[0] = 1
    length[0] = <size_t>cnp.PyArray_SIZE(a)
    if axis is None:
        return 0
    at = axis
    for i in range(at):
        outer[0] *= <size_t>cnp.PyArray_DIM(a, i)
    length[0] = <size_t>cnp.PyArray_DIM(a, at)
    for i in range(at + 1, ndim):
        inner[0] *= <size_t>cnp.PyArray_DIM(a, i)
    return 0


def encode(cnp.ndarray x, Levels levels not None, axis, size_t block, cnp.ndarray scales):
    """Return codes of a contiguous float32 array, or None if a value is not finite.

    scales, contiguous, is filled; None: no blocks.
    """
    cdef size_t outer, length, inner
    lay_out(x, axis, &outer, &length, &inner)
    q = np.empty((<object>x).shape, np.uint8)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(q)
    cdef float *scale = NULL
    if scales is not None:
        scale = <float *>cnp.PyArray_DATA(scales)
    cdef int finite
    with nogil:
        finite = qk_encode(source, target, &levels.c, outer, length, inner, block, scale)
    return q if finite else None


def decode(cnp.ndarray codes, int k, Levels levels not None, axis, size_t block, cnp.ndarray scales, given_scales, out):
    """Return levels of uint8 codes below k times their scales (contiguous float32, or None), as float32."""
    cdef cnp.ndarray a = contiguous(codes)
    cdef size_t outer, length, inner
    lay_out(a, axis, &outer, &length, &inner)
    cdef cnp.ndarray y = result_array(out, a, FLOAT32)
    if out is not None:
        refuse_overlap(y, codes, "codes")
        if given_scales is not None:
            refuse_overlap(y, given_scales, "scales")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef const float *scale = NULL
    if scales is not None:
        scale = <const float *>cnp.PyArray_DATA(scales)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a)
    cdef int most = 0
    with nogil:
        if k < 256:
            most = qk_largest_code(source, n)
        if most < k:
            qk_decode(source, target, &levels.c, outer, length, inner, block, scale)
    if most >= k:
        raise ValueError(f"codes must be below {k}, the number of levels, got {most}")
    return y if out is None else out


# ---- codebooks of vectors ----


cdef class VectorLevels:
    """Hold the tables of a Codebook of vectors (_codebook_tables.py) as C reads them.

    Levels are (1 or m, k, d), columns (1 or m, d, k), scaled (1 or m, k + 1, d). Values
    are multiplied by 2**shift before they are compared with these; None: by 1.
    """

    cdef qk_pq_book c
    cdef object arrays
    cdef readonly object shift

    def __cinit__(self, cnp.ndarray levels, cnp.ndarray columns, cnp.ndarray scaled, bint shared, shift):
        self.arrays = levels, columns, scaled
        self.shift = shift
        self.c.shared = shared
        self.c.k, self.c.d = <size_t>cnp.PyArray_DIM(levels, 1), <size_t>cnp.PyArray_DIM(levels, 2)
        self.c.levels = <const float *>cnp.PyArray_DATA(levels)
        self.c.columns = <const float *>cnp.PyArray_DATA(columns)
        self.c.scaled = <const float *>cnp.PyArray_DATA(scaled)

    cdef qk_pq_book over(self, size_t groups):
        cdef qk_pq_book book = self.c
        book.m = groups
        return book


cdef int refuse_codes(const uint8_t *codes, size_t n, size_t k) except -1:
    cdef int most = 0
    if k < QK_MAX_LEVELS:
        with nogil:
            most = qk_largest_code(codes, n)
    if <size_t>most >= k and n:
        raise ValueError(f"codes must be below {k}, the number of levels, got {most}")
    return 0


def encode_vectors(cnp.ndarray x, cnp.ndarray given, VectorLevels levels not None, size_t groups):
    """Return codes (..., groups) of finite contiguous x (..., groups * d), in the scale of the levels and as given."""
    q = np.empty((*(<object>x).shape[:-1], groups), np.uint8)
    cdef qk_pq_book book = levels.over(groups)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef const float *unscaled = <const float *>cnp.PyArray_DATA(given)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(q)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(x) // (groups * book.d) if groups else 0
    cdef int done
    with nogil:
        done = qk_pq_encode(source, unscaled, target, n, &book)
    if not done:
        raise MemoryError(f"no memory for levels of {book.d} values")
    return q


def decode_vectors(cnp.ndarray codes, VectorLevels levels not None, out):
    """Return levels (..., groups * d), as float32, of uint8 codes (..., groups)."""
    cdef cnp.ndarray a = contiguous(codes), y
    cdef size_t groups = <size_t>cnp.PyArray_DIM(a, cnp.PyArray_NDIM(a) - 1)
    cdef qk_pq_book book = levels.over(groups)
    shape = (*(<object>a).shape[:-1], int(groups) * int(book.d))   # may exceed Py_ssize_t
    y = out_array(out, shape, FLOAT32)
    if out is not None:
        refuse_overlap(y, codes, "codes")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a) // groups if groups else 0
    refuse_codes(source, n * groups, book.k)
    with nogil:
        qk_pq_decode(source, target, n, &book)
    return y if out is None else out


def distance_tables(cnp.ndarray queries, VectorLevels levels not None):
    """Return (queries, groups, k) of finite contiguous float32 queries (queries, groups * d)."""
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0)
    cdef qk_pq_book book = levels.over(<size_t>cnp.PyArray_DIM(queries, 1) // levels.c.d)
    tables = np.empty((count, book.m, book.k), np.float32)
    cdef const float *source = <const float *>cnp.PyArray_DATA(queries)
    cdef float *target = <float *>cnp.PyArray_DATA(tables)
    with nogil:
        qk_pq_distance_tables(source, count, &book, target)
    return tables


def search(cnp.ndarray queries, codes, VectorLevels levels not None, Py_ssize_t k):
    """Return (distances, indices), both (queries, k).

    Queries are finite contiguous float32 (queries, groups * d), codes uint8 (n, groups).
    """
    cdef cnp.ndarray a = contiguous(codes)
    cdef size_t count = <size_t>cnp.PyArray_DIM(queries, 0), n = <size_t>cnp.PyArray_DIM(a, 0)
    cdef qk_pq_book book = levels.over(<size_t>cnp.PyArray_DIM(a, 1))
    distances, indices = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    cdef const float *source = <const float *>cnp.PyArray_DATA(queries)
    cdef const uint8_t *stored = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef float *sums = <float *>cnp.PyArray_DATA(distances)
    cdef int64_t *where = <int64_t *>cnp.PyArray_DATA(indices)
    cdef int done
    refuse_codes(stored, n * book.m, book.k)
    with nogil:
        done = qk_pq_search(source, count, stored, n, &book, <size_t>k, sums, where)
    if not done:
        raise MemoryError(f"no memory for {count} queries")
    return distances, indices


# ---- dense bits and GGUF's blocks ----


def pack_bits(cnp.ndarray codes, int bits):
    """Pack contiguous codes, one a byte, that fit `bits` bits."""
    cdef size_t n = <size_t>cnp.PyArray_SIZE(codes)
    data = np.empty((n * bits + 7) // 8, np.uint8)
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(codes)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(data)
    with nogil:
        qk_pack_bits(source, n, bits, target)
    return data


def unpack_bits(data, int bits, Py_ssize_t n):
    codes = np.empty(n, np.uint8)
    cdef cnp.ndarray a = contiguous(data)
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(codes)
    with nogil:
        qk_unpack_bits(source, <size_t>n, bits, target)
    return codes


def to_gguf(cnp.ndarray x, Py_ssize_t size):
    """Return contiguous float32 x in blocks of `size` bytes, and None, or the largest magnitude.

    It is None if float16 holds all scales.
    """
    cdef qk_scope _mode = qk_enter_scope()
    shape = (<object>x).shape
    data = np.empty(shape[:-1] + (shape[-1] // 32 * size,), np.uint8)
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef uint8_t *target = <uint8_t *>cnp.PyArray_DATA(data)
    cdef size_t blocks = <size_t>cnp.PyArray_SIZE(x) // 32
    cdef qk_gguf_type type = QK_Q8_0 if size == 34 else QK_Q4_0
    cdef int32_t most
    with nogil:
        most = qk_to_gguf(source, target, blocks, type)
    largest = np.int32(most).view(np.float32)
    cdef bint held = <float>largest / (127 if type == QK_Q8_0 else 8) < 65520   # false of NaN
    return data, None if held else largest


def from_gguf(cnp.ndarray data, Py_ssize_t size, out):
    cdef cnp.ndarray a = contiguous(data), y
    shape = (<object>a).shape[:-1] + ((<object>a).shape[-1] // size * 32,)
    y = out_array(out, shape, FLOAT32)
    if out is not None:
        refuse_overlap(y, data, "data")
    cdef const uint8_t *source = <const uint8_t *>cnp.PyArray_DATA(a)
    cdef float *target = <float *>cnp.PyArray_DATA(y)
    cdef size_t blocks = <size_t>(cnp.PyArray_SIZE(a) // size)
    cdef qk_gguf_type type = QK_Q8_0 if size == 34 else QK_Q4_0
    with nogil:
        qk_from_gguf(source, target, blocks, type)
    return y if out is None else out


# ---- layers ----


cdef cnp.ndarray float32_array(x, name):
    cdef cnp.ndarray given = array_of(x, name)
    if PyArray_TYPE(given) != cnp.NPY_FLOAT32:
        raise TypeError(f"{name} must be float32, got {given.dtype}")
    return given


cdef cnp.ndarray float32_vector(values, Py_ssize_t n, name):
    """Return values (n,) as a contiguous float32 array."""
    cdef cnp.ndarray v = float32_array(values, name)
    if cnp.PyArray_NDIM(v) != 1 or cnp.PyArray_DIM(v, 0) != n:
        raise ValueError(f"{name} must have shape {(n,)} to match the last axis of x, got {(<object>v).shape}")
    return contiguous(v)


cdef int refuse_partial_overlap(cnp.ndarray out, cnp.ndarray x, name) except -1:
    if cnp.PyArray_DATA(out) != cnp.PyArray_DATA(x) and overlap(out, x):
        raise ValueError(f"out must be {name} itself or not overlap it")
    return 0


def layer_norm(x, weight, bias, double eps, residual, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef cnp.ndarray a = contiguous(float32_array(x, "x")), r = None
    cdef int ndim = cnp.PyArray_NDIM(a)
    if ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    cdef Py_ssize_t n = cnp.PyArray_DIM(a, ndim - 1)
    cdef cnp.ndarray w = float32_vector(weight, n, "weight"), b = float32_vector(bias, n, "bias")
    cdef const float *second = NULL
    if residual is not None:
        r = contiguous(float32_array(residual, "residual"))
        if not cnp.PyArray_SAMESHAPE(r, a):
            raise ValueError(f"residual must have shape {(<object>a).shape} (as x), got {(<object>r).shape}")
        second = <const float *>cnp.PyArray_DATA(r)
    cdef cnp.ndarray y = result_array(out, a, FLOAT32)
    if out is not None:
        refuse_partial_overlap(y, a, "x")
        if r is not None:
            refuse_partial_overlap(y, r, "residual")
        refuse_overlap(y, w, "weight")
        refuse_overlap(y, b, "bias")
    cdef size_t rows = <size_t>(cnp.PyArray_SIZE(a) // n) if n else 0
    cdef const float *first = <const float *>cnp.PyArray_DATA(a)
    cdef const float *scale = <const float *>cnp.PyArray_DATA(w)
    cdef const float *shift = <const float *>cnp.PyArray_DATA(b)
    cdef float *to = <float *>cnp.PyArray_DATA(y)
    if rows * <size_t>n <= BRIEF:
        qk_layer_norm(first, second, rows, <size_t>n, scale, shift, eps, to)
    else:
        with nogil:
            qk_layer_norm(first, second, rows, <size_t>n, scale, shift, eps, to)
    return y if out is None else out


cdef cnp.ndarray token_rows(x, name, size_t *stride):
    """Return x (tokens, width) with unit stride along a row: itself, or a copy."""
    cdef cnp.ndarray a = float32_array(x, name)
    if cnp.PyArray_NDIM(a) != 2:
        raise ValueError(f"{name} must have shape (tokens, width), got {(<object>a).shape}")
    cdef bint in_place = PyArray_ISCARRAY_RO(a)
    if not in_place and cnp.PyArray_STRIDE(a, 1) == 4 and cnp.PyArray_STRIDE(a, 0) > 0:
        in_place = cnp.PyArray_STRIDE(a, 0) % 4 == 0 and a.flags.aligned and a.dtype.isnative
    if not in_place:
        a = contiguous(a)
    stride[0] = <size_t>cnp.PyArray_STRIDE(a, 0) // 4
    return a


cdef cnp.ndarray sequence_starts(starts, Py_ssize_t tokens):
    """Return starts as int64: ascending from 0 to `tokens`, sequences of at most 65,536."""
    given = array_of(starts, "starts")
    if given.dtype.kind not in "iu" or given.ndim != 1 or given.size < 1:
        raise ValueError(f"starts must be a 1-D array of integers with at least one entry, got {shown(starts)}")
    cdef cnp.ndarray result = np.array(given, np.int64)   # a copy: what is checked must stay as it is
    cdef const int64_t *s = <const int64_t *>cnp.PyArray_DATA(result)
    cdef Py_ssize_t i, last = cnp.PyArray_DIM(result, 0) - 1
    if s[0] != 0 or s[last] != tokens:
        raise ValueError(f"starts must begin with 0 and end with the {tokens} tokens of q, got {s[0]} and {s[last]}")
    for i in range(last):
        if not 0 <= s[i + 1] - s[i] <= 65536:
            raise ValueError(f"starts must ascend by at most 65536, got {s[i]} then {s[i + 1]} at {i}")
    return result


def attention(q, k, v, heads, starts, scale, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_attention_args args
    cdef cnp.ndarray qa = token_rows(q, "q", &args.q_stride)
    cdef cnp.ndarray ka = token_rows(k, "k", &args.k_stride)
    cdef cnp.ndarray va = token_rows(v, "v", &args.v_stride)
    for name, a in (("k", ka), ("v", va)):
        if not cnp.PyArray_SAMESHAPE(<cnp.ndarray>a, qa):
            raise ValueError(f"{name} must have shape {(<object>qa).shape} (as q), got {(<object>a).shape}")
    cdef Py_ssize_t tokens = cnp.PyArray_DIM(qa, 0), width = cnp.PyArray_DIM(qa, 1)
    if heads < 1 or width % heads or not 0 < width // heads <= 65536:
        raise ValueError(f"heads must divide the {width} columns of q into at least 1 and at most 65536 each, "
                         f"got {heads}")
    cdef double factor = (width / heads) ** -0.5 if scale is None else scale
    if not 0 < factor < INFINITY:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    cdef cnp.ndarray bounds = sequence_starts(np.array((0, tokens)) if starts is None else starts, tokens)
    cdef cnp.ndarray y = result_array(out, qa, FLOAT32)
    if out is not None:
        for name, a, stride in (("q", qa, args.q_stride), ("k", ka, args.k_stride), ("v", va, args.v_stride)):
            if np.may_share_memory(y, a):
                raise ValueError(f"out must not overlap {name}")
            if not rows_are_finite(cnp.PyArray_DATA(<cnp.ndarray>a), <size_t>tokens, <size_t>width,
                                   <ptrdiff_t>stride * 4):
                raise_not_finite(a, name)
    args.q = <const float *>cnp.PyArray_DATA(qa)
    args.k = <const float *>cnp.PyArray_DATA(ka)
    args.v = <const float *>cnp.PyArray_DATA(va)
    args.out = <float *>cnp.PyArray_DATA(y)
    args.out_stride = <size_t>width
    args.heads, args.size = <size_t>heads, <size_t>(width // heads)
    args.sequences = <size_t>(cnp.PyArray_DIM(bounds, 0) - 1)
    args.starts = <const int64_t *>cnp.PyArray_DATA(bounds)
    args.scale = factor
    cdef int status
    if tokens * tokens <= BRIEF_PRODUCT // (width + 1):
        status = qk_attention(&args)
    else:
        with nogil:
            status = qk_attention(&args)
    if status == -1:
        raise MemoryError("no memory for the codes of a sequence")
    if status == -2:
        for name, a in (("q", qa), ("k", ka), ("v", va)):
            if not np.isfinite(a).all():
                raise_not_finite(a, name)
    return y if out is None else out


# ---- scales of least squares ----


def refine(cnp.ndarray x, cnp.ndarray importance, size_t block, code_range, zero_points, cnp.ndarray scale,
           cnp.ndarray zero_point):
    """Replace scale (float32) and zero_point (int32), (rows, blocks), by those of least squares.

    x (rows, n) is contiguous float64; importance is like x, or None.
    """
    cdef qk_least_squares p
    p.n, p.block = <size_t>cnp.PyArray_DIM(x, 1), block
    p.qmin, p.qmax = code_range
    p.first_zero, p.last_zero = zero_points
    cdef size_t rows = <size_t>cnp.PyArray_DIM(x, 0)
    cdef const double *values = <const double *>cnp.PyArray_DATA(x)
    cdef const double *weights = NULL
    if importance is not None:
        weights = <const double *>cnp.PyArray_DATA(importance)
    cdef float *s = <float *>cnp.PyArray_DATA(scale)
    cdef int32_t *z = <int32_t *>cnp.PyArray_DATA(zero_point)
    cdef int status
    with nogil:
        status = qk_refine(&p, rows, values, weights, s, z)
    if status == -1:
        raise MemoryError(f"no memory for the breakpoints of {p.n} values")


# ---- k-means ----


cdef enum:
    FILLED_AT_ONCE = 1 << 21


cdef class KMeans:
    """Hold contiguous points x (n, d), float32 or float64, with their labels and bounds, for _kmeans.py.

    Every call leaves all of it as the next one needs it.
    """

    cdef qk_kmeans c
    cdef size_t chunks
    cdef readonly object x, weights, labels, sums
    cdef object centroids, distance, half, moved, passed, upper, lower, dtype

    def __init__(self, cnp.ndarray x, weights, Py_ssize_t k, Py_ssize_t chunk, bint with_distances):
        n, d = (<object>x).shape
        self.x, self.weights, self.dtype = x, weights, (<object>x).dtype
        self.c.type = <qk_dtype>float_type(x, "x")
        self.c.n, self.c.d, self.c.k, self.c.chunk = n, d, k, chunk
        self.c.x = cnp.PyArray_DATA(x)
        self.c.weight = NULL if weights is None else <double *>cnp.PyArray_DATA(weights)
        self.labels, self.half = np.empty(n, np.int32), np.empty(k, self.dtype)
        self.upper, self.lower = np.empty(n, self.dtype), np.empty(n, self.dtype)
        self.distance = np.empty((k, k), self.dtype) if with_distances else None
        self.chunks = (n + chunk - 1) // chunk
        self.c.stride = (d + 8) // 8 * 8
        memory = np.empty(int(self.chunks) * k * int(self.c.stride) + 8)   # may exceed Py_ssize_t
        start = -memory.ctypes.data % 64 // 8
        self.sums = memory[start : memory.size - 8 + start].reshape(self.chunks, k, self.c.stride)[..., : d + 1]
        self.c.labels = <int32_t *>cnp.PyArray_DATA(self.labels)
        self.c.half, self.c.sums = cnp.PyArray_DATA(self.half), <double *>cnp.PyArray_DATA(self.sums)
        self.c.upper, self.c.lower = cnp.PyArray_DATA(self.upper), cnp.PyArray_DATA(self.lower)
        self.forget()

    def forget(self):
        """Forget all of the points: labels are 0, and any centroid may be nearer."""
        self.centroids = None
        for array, value in ((self.labels, 0), (self.upper, np.inf), (self.lower, 0)):
            for first in range(0, self.c.n, FILLED_AT_ONCE):   # new pages take long, and Cython sees no signals
                array[first : first + FILLED_AT_ONCE] = value
                PyErr_CheckSignals()
        self._use_distances(False)

    cdef _use_distances(self, bint use):
        self.c.distance = cnp.PyArray_DATA(self.distance) if use else NULL
        if not use:
            self.half[:] = 0

    def place(self, centroids):
        """Move the centroids (k, d), which have the type of x."""
        table = np.concatenate([centroids, np.full((1, self.c.d), np.inf)], dtype=self.dtype)
        eps, moved = np.finfo(self.dtype).eps, np.zeros(self.c.k)
        if self.centroids is not None:
            moved = np.sqrt(np.square(np.subtract(table[:-1], self.centroids[:-1], dtype=np.float64)).sum(axis=1))
            moved *= 1 + (self.c.d + 16) * eps
        most = np.argmax(moved)
        passed = np.full(self.c.k, moved[most])
        passed[most] = np.delete(moved, most).max(initial=0)
        up = (np.nextafter(bound.astype(self.dtype), np.inf, dtype=self.dtype) for bound in (moved, passed))
        self.moved, self.passed = up
        self.c.moved, self.c.passed = cnp.PyArray_DATA(self.moved), cnp.PyArray_DATA(self.passed)
        self.centroids = table
        self.c.centroids = cnp.PyArray_DATA(table)

    def assign(self):
        """Label points by the centroids as they are placed, add up `sums` of chunks, return how many labels changed."""
        cdef qk_kmeans_counts counts
        cdef int done = 1
        counts.changed = counts.by_label = 0
        if self.c.distance:
            with nogil:
                done = qk_kmeans_distances(&self.c)
        if done:
            with nogil:
                done = qk_kmeans_assign(&self.c, 0, self.chunks, &counts)
        if not done:
            raise MemoryError(f"no memory for chunks of {self.c.chunk} points")
        self._use_distances(self.distance is not None and (counts.by_label > 0 or not self.c.distance))
        return counts.changed

    def errors(self, cnp.ndarray each=None):
        """Return the sums over chunks of weight * squared distance to the label's centroid; `each` gets the terms."""
        cdef cnp.ndarray parts = np.empty(self.chunks)
        cdef double *sums = <double *>cnp.PyArray_DATA(parts)
        cdef double *terms = NULL if each is None else <double *>cnp.PyArray_DATA(each)
        with nogil:
            qk_kmeans_errors(&self.c, terms, sums)
        return parts

    def seed(self, cnp.ndarray seeds, cnp.ndarray nearest, bint update):
        """Return (chunks, seeds) sums of weight * min(nearest, squared distance); `update` stores a seed's minima."""
        cdef size_t count = cnp.PyArray_DIM(seeds, 0)
        cdef cnp.ndarray potential = np.empty((self.chunks, count))
        cdef const void *rows = cnp.PyArray_DATA(seeds)
        cdef void *least = cnp.PyArray_DATA(nearest)
        cdef double *sums = <double *>cnp.PyArray_DATA(potential)
        cdef int done
        with nogil:
            done = qk_kmeans_seed(&self.c, rows, count, update, least, sums)
        if not done:
            raise MemoryError(f"no memory for points of {self.c.d} values")
        return potential


# ---- clustering on a line ----


cdef class Stop:
    """Tell loops that run without the GIL to give up.

    The reason is a signal's exception, kept in `error`, or another thread that calls `now`.
    """

    cdef readonly object error
    cdef bint asked

    def now(self):
        self.asked = True


cdef int must_stop(void *context) noexcept with gil:
    stop = <Stop>context
    try:
        PyErr_CheckSignals()   # does nothing but in the main thread
    except BaseException as error:
        stop.error, stop.asked = error, True
    return stop.asked


cdef int raise_unless_done(qk_lines_status status, Stop stop, size_t n) except -1:
    if status == QK_LINES_STOPPED:   # by a signal, or by the thread that got one
        raise KeyboardInterrupt if stop.error is None else stop.error
    if status == QK_LINES_NO_MEMORY:
        raise MemoryError(f"no memory to cluster lines of {n} values")
    return 0


def distinct_points(cnp.ndarray values, cnp.ndarray weights):
    """Return the number n of different values, float64, whose weight is not 0.

    The first n of both arrays are then these, ascending, and the sums of their weights.
    """
    cdef qk_lines p
    cdef qk_lines_status status
    cdef int32_t count
    stop = Stop()
    p.lines, p.n, p.integers, p.pinned = 1, cnp.PyArray_DIM(values, 0), 0, 0
    p.values, p.weights, p.counts = cnp.PyArray_DATA(values), <double *>cnp.PyArray_DATA(weights), &count
    p.stop, p.context = must_stop, <void *>stop
    with nogil:
        status = qk_distinct_points(&p)
    raise_unless_done(status, stop, p.n)
    return count


def cluster_lines(cnp.ndarray values, weights, Py_ssize_t k, found, Stop stop, bint signed=False, bint pinned=False):
    """Cluster each line best: see qk_lines. Values (lines, n) are float64, or uint64; they and weights are overwritten.

    `found` are the arrays to fill: centroids, limits, counts, inertia, and exponents or None.
    """
    cdef cnp.ndarray centroids, limits, counts, inertia
    centroids, limits, counts, inertia, exponents = found
    cdef qk_lines p
    cdef qk_lines_status status
    p.lines, p.n, p.k = cnp.PyArray_DIM(values, 0), cnp.PyArray_DIM(values, 1), k
    p.integers = 0 if PyArray_TYPE(values) == cnp.NPY_DOUBLE else 2 if signed else 1
    p.pinned, p.values = pinned, cnp.PyArray_DATA(values)
    p.weights = NULL if weights is None else <double *>cnp.PyArray_DATA(weights)
    p.centroids, p.limits = <double *>cnp.PyArray_DATA(centroids), cnp.PyArray_DATA(limits)
    p.counts, p.inertia = <int32_t *>cnp.PyArray_DATA(counts), <double *>cnp.PyArray_DATA(inertia)
    p.exponents = NULL if exponents is None else <int32_t *>cnp.PyArray_DATA(exponents)
    p.stop, p.context = must_stop, <void *>stop
    with nogil:
        status = qk_cluster_lines(&p)
    raise_unless_done(status, stop, p.n)


def label_lines(cnp.ndarray values, cnp.ndarray limits, cnp.ndarray counts, cnp.ndarray labels):
    """Fill labels (lines, n), uint8 or int32: of how many `limits`, which have its type, each value is above."""
    cdef size_t lines = cnp.PyArray_DIM(values, 0), n = cnp.PyArray_DIM(values, 1), k = cnp.PyArray_DIM(limits, 1)
    cdef int integers = PyArray_TYPE(values) != cnp.NPY_DOUBLE, as_int32 = PyArray_TYPE(labels) == cnp.NPY_INT32
    cdef const void *x = cnp.PyArray_DATA(values)
    cdef const void *bounds = cnp.PyArray_DATA(limits)
    cdef const int32_t *used = <int32_t *>cnp.PyArray_DATA(counts)
    cdef void *to = cnp.PyArray_DATA(labels)
    with nogil:
        qk_label_lines(x, integers, lines, n, bounds, k, used, to, as_int32)


def count_codes(cnp.ndarray codes, weights, cnp.ndarray bins):
    """Add the weight of each code (uint16), or 1, to its bin; return False if a weight is negative or not finite."""
    cdef const uint16_t *at = <uint16_t *>cnp.PyArray_DATA(codes)
    cdef const double *each = NULL if weights is None else <double *>cnp.PyArray_DATA(weights)
    cdef double *to = <double *>cnp.PyArray_DATA(bins)
    cdef size_t n = cnp.PyArray_DIM(codes, 0)
    cdef int valid
    with nogil:
        valid = qk_count_codes(at, each, n, to)
    return bool(valid)


def look_up(cnp.ndarray codes, cnp.ndarray table, cnp.ndarray labels):
    """Look codes (uint16) up in a table, uint8 or int32."""
    cdef const uint16_t *at = <uint16_t *>cnp.PyArray_DATA(codes)
    cdef const void *entries = cnp.PyArray_DATA(table)
    cdef void *to = cnp.PyArray_DATA(labels)
    cdef size_t n = cnp.PyArray_DIM(codes, 0)
    cdef int as_int32 = PyArray_TYPE(labels) == cnp.NPY_INT32
    with nogil:
        qk_look_up(at, n, entries, to, as_int32)
