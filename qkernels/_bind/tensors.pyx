# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind layers to tensors of PyTorch: Python would spend the time of a small layer on asking what a tensor is."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from cpython.ref cimport PyObject

from .products import linear

cnp.import_array()

cdef extern from *:
    """
    /* DLPack's functions for C (since its version 1.3): `view` tells where a tensor is, which stays its own. */
    typedef struct {
        void *data;
        int32_t device, device_number, ndim;
        uint8_t code, bits;
        uint16_t lanes;
        int64_t *shape, *strides;
        uint64_t offset;
    } dl_view;
    typedef struct {
        uint32_t major, minor;
        void *older, *allocate, *take, *give;
        int (*view)(PyObject *tensor, dl_view *view);
    } dl_functions;

    static PyObject *array_at(void *data, int ndim, npy_intp *shape, npy_intp *strides, PyArray_Descr *dtype)
    {
        Py_INCREF(dtype); /* which NumPy takes */
        return PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, strides, data, NPY_ARRAY_BEHAVED, NULL);
    }
    """
    cnp.ndarray array_at(void *data, int ndim, cnp.npy_intp *shape, cnp.npy_intp *strides, cnp.dtype dtype)
    ctypedef struct dl_view:
        void *data
        int32_t device, ndim
        uint8_t code, bits
        uint16_t lanes
        int64_t *shape
        int64_t *strides
        uint64_t offset
    ctypedef struct dl_functions:
        uint32_t major
        int (*view)(PyObject *tensor, dl_view *view) except -1

cdef enum:
    CPU = 1         # DLPack's number
    FLOAT_CODE = 2
    MOST_AXES = 8

cdef cnp.dtype FLOAT32 = np.dtype(np.float32)
cdef const dl_functions *functions = NULL  # or torch is older than them
cdef object Tensor, from_numpy, dispatch_modes, interpreter, tracing_state, forward_ad, float32
cdef tuple floats = ()


def use(torch):
    """Take from PyTorch what is called here."""
    global functions, Tensor, from_numpy, dispatch_modes, interpreter, tracing_state, forward_ad, float32, floats
    Tensor, from_numpy, forward_ad = torch.Tensor, torch.from_numpy, torch.autograd.forward_ad
    dispatch_modes, tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
    interpreter = torch._C._functorch.peek_interpreter_stack
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if PyCapsule_IsValid(capsule, "dlpack_exchange_api"):
        functions = <const dl_functions *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
        if functions.major != 1 or functions.view == NULL:
            functions = NULL
    float32, floats = torch.float32, (torch.float32, torch.float64, torch.float16, torch.bfloat16)


cdef bint look(tensor, dl_view *v) except -1:
    """Tell whether DLPack's functions know where the floats of a float32 tensor are, in the memory of the CPU."""
    if functions == NULL:
        return False
    functions.view(<PyObject *>tensor, v)
    return v.device == CPU and v.code == FLOAT_CODE and v.bits == 32 and v.lanes == 1 and v.data != NULL \
        and v.strides != NULL and v.offset == 0 and v.ndim <= MOST_AXES


cpdef array_of(tensor):
    """Return the memory of a float32 tensor, as its method `numpy` does, in a quarter of the time."""
    cdef dl_view v
    cdef cnp.npy_intp shape[MOST_AXES]
    cdef cnp.npy_intp strides[MOST_AXES]
    cdef cnp.ndarray array
    cdef int i
    if tensor.requires_grad or tensor.is_neg() or not look(tensor, &v):
        return tensor.numpy()  # or it says why not
    for i in range(v.ndim):
        shape[i], strides[i] = v.shape[i], 4 * v.strides[i]
    array = array_at(v.data, v.ndim, shape, strides, FLOAT32)
    cnp.set_array_base(array, tensor)
    return array


cdef class PlainLinear:
    """Call a dense layer on tensors of which nothing but a result is wanted.

    The array of a bias is kept while that is the same memory.
    """
    cdef cnp.ndarray kept

    def __reduce__(self):
        return PlainLinear, ()

    cdef bias_of(self, bias):
        cdef dl_view v
        cdef cnp.ndarray kept = self.kept  # other threads may set another
        if kept is not None and not bias.is_neg() and look(bias, &v) and v.data == cnp.PyArray_DATA(kept) \
                and v.ndim == 1 and v.shape[0] == cnp.PyArray_DIM(kept, 0) and (v.strides[0] == 1 or v.shape[0] <= 1):
            return kept
        if bias.dtype not in floats:
            raise TypeError("of integers or complex numbers, whose refusal says so")
        array = bias.resolve_neg().float().numpy()
        if bias.dtype is float32 and bias.is_contiguous() and array.ndim == 1:  # else it may be a copy
            self.kept = array
        return array

    def __call__(self, x, packed, bias, activation):
        """Return what `below` does; or None if x is no plain tensor, or `packed` is None."""
        if packed is None or type(x) is not Tensor or dispatch_modes() or interpreter() is not None \
                or tracing_state() is not None:
            return None
        return self.below(x, packed, bias, activation)

    cpdef below(self, x, packed, bias, activation):
        """Return the layer of x in its dtype, below torch's dispatcher; or None if more than that is wanted of it."""
        dtype = x.dtype
        if forward_ad._current_level >= 0 or dtype is not float32 and dtype not in floats:
            return None
        try:
            rows = array_of(x) if dtype is float32 else x.float().numpy()
            array = None if bias is None else self.bias_of(bias)
        except (BufferError, RuntimeError, TypeError):  # one has a gradient, or does not lie in plain memory of the CPU
            return None
        if bias is not None and bias.requires_grad:
            return None
        y = from_numpy(linear(rows, packed, array, activation, None, None, None, None))
        return y if dtype is float32 else y.to(dtype)
