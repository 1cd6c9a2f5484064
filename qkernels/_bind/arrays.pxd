# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Share with the modules beside: what a call with few values passes through is inlined into each of them."""

from libc.stdint cimport int32_t, uint8_t

cimport numpy as cnp
from cpython.ref cimport PyObject

from .c cimport QK_F32, QK_HALF_EVEN

cdef extern from "numpy/arrayobject.h":
    int PyArray_ISCARRAY_RO(cnp.ndarray a)
    int PyArray_ISCARRAY(cnp.ndarray a)
    int PyArray_TYPE(cnp.ndarray a)
    void PyArray_ENABLEFLAGS(cnp.ndarray a, int flags)

cdef extern from *:
    """
    static CYTHON_UNUSED inline PyObject *descr_of(PyArrayObject *a) { return (PyObject *)PyArray_DESCR(a); }
    static CYTHON_UNUSED inline void *data_of(PyArrayObject *a) {
        return (PyObject *)a == Py_None ? NULL : PyArray_DATA(a);
    }
    static CYTHON_UNUSED inline PyObject *new_array(int ndim, npy_intp *shape, PyArray_Descr *dtype) {
        Py_INCREF(dtype);   /* which NumPy takes */
        return PyArray_Empty(ndim, shape, dtype, 0);
    }
    #define floats(a) ((float *)data_of(a))
    #define reals(a) ((double *)data_of(a))
    #define uint8s(a) ((uint8_t *)data_of(a))
    #define int32s(a) ((int32_t *)data_of(a))
    """
    PyObject *descr_of(cnp.ndarray a)   # borrowed
    cnp.ndarray new_array(int ndim, cnp.npy_intp *shape, cnp.dtype dtype)   # np.empty, in a quarter of the time
    # The memory of an array; NULL of None.
    void *data_of(cnp.ndarray a) nogil
    float *floats(cnp.ndarray a) nogil
    double *reals(cnp.ndarray a) nogil
    uint8_t *uint8s(cnp.ndarray a) nogil
    int32_t *int32s(cnp.ndarray a) nogil

cdef enum:
    # Releasing the GIL, and having it back, costs as much as work on so many values or products: smaller work keeps it.
    BRIEF = 1 << 13
    BRIEF_PRODUCT = 1 << 18
    GIANT = 1 << 28   # bytes from which an array is looked at

cdef object INT32, INT64, FLOAT32
cdef int BF16_NUM

cdef cnp.ndarray foreign_array(x, name)
cdef int refuse_giant(cnp.ndarray x, name) except -1
cdef cnp.ndarray contiguous_copy(cnp.ndarray x)
cdef bint may_overlap(cnp.ndarray a, cnp.ndarray b) except -1
cdef cnp.ndarray out_array(out, tuple shape, dtype)
cdef cnp.ndarray float32_array(x, name)
cdef int float_type_of_others(cnp.ndarray x, name) except -1
cdef int rounding_code_of_others(rounding, int most) except -1
cdef int activation_code(activation) except -1
cdef void lay_out(cnp.ndarray a, int axis, size_t *outer, size_t *length, size_t *inner) noexcept


cdef inline cnp.ndarray array_of(x, name):
    """Return what a caller gave as `name` as a plain ndarray, in place if possible: all arrays come in by this door."""
    cdef cnp.ndarray array = <cnp.ndarray>x if cnp.PyArray_CheckExact(x) else foreign_array(x, name)
    if cnp.PyArray_NBYTES(array) >= GIANT:
        refuse_giant(array, name)
    return array


cdef inline bint is_plain(x, dtype):
    """Tell whether array_of would return x as it is, and whether it is of this dtype."""
    return cnp.PyArray_CheckExact(x) and descr_of(<cnp.ndarray>x) == <PyObject *>dtype \
        and cnp.PyArray_NBYTES(<cnp.ndarray>x) < GIANT


cdef inline cnp.ndarray contiguous(cnp.ndarray x):
    """Return x as an aligned C-contiguous array in native byte order: itself, or a copy."""
    return x if PyArray_ISCARRAY_RO(x) else contiguous_copy(x)


cdef inline int float_type(cnp.ndarray x, name) except -1:
    """Return the qk_dtype of a float array."""
    return QK_F32 if PyArray_TYPE(x) == cnp.NPY_FLOAT32 else float_type_of_others(x, name)


cdef inline int rounding_code(rounding, int most) except -1:
    """Return the qk_rounding, at most `most`, of that name."""
    if type(rounding) is str and rounding == "half_even":
        return QK_HALF_EVEN
    return rounding_code_of_others(rounding, most)


cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Tell whether two contiguous arrays share bytes."""
    cdef char *pa = <char *>cnp.PyArray_DATA(a)
    cdef char *pb = <char *>cnp.PyArray_DATA(b)
    return pa < pb + cnp.PyArray_NBYTES(b) and pb < pa + cnp.PyArray_NBYTES(a)


cdef inline int refuse_overlap(cnp.ndarray out, cnp.ndarray x, name) except -1:
    """Raise if `out` overlaps x, which is what the caller gave, by array_of: a copy of it overlaps nothing."""
    if overlap(out, x) if PyArray_ISCARRAY_RO(x) else may_overlap(out, x):
        raise ValueError(f"out must not overlap {name}")
    return 0


cdef inline cnp.ndarray result_array(out, cnp.ndarray like, dtype):
    """Return the memory of `out`, or a new array, with the shape of `like`."""
    if out is None:
        return new_array(cnp.PyArray_NDIM(like), cnp.PyArray_DIMS(like), dtype)
    if cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and cnp.PyArray_SAMESHAPE(<cnp.ndarray>out, like):
        return <cnp.ndarray>out
    return out_array(out, (<object>like).shape, dtype)
