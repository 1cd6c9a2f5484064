# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind layers that take codes of 8 bits and give them."""

from libc.string cimport memset

from itertools import zip_longest

cimport numpy as cnp
from cpython.ref cimport PyObject

from .arrays import raise_not_finite
from .runtime import shown, word

from .arrays cimport (
    array_of, BRIEF, contiguous, descr_of, float32_array, floats, out_array, PyArray_TYPE, refuse_overlap, result_array,
    uint8s,
)
from .c cimport (
    qk_code_norm_args, qk_code_pair, qk_code_params, qk_enter_scope, QK_HALF_EVEN, QK_I8, qk_norm_codes, qk_pair_codes,
    qk_scope, qk_softmax_codes, qk_take_table, QK_TFLITE, QK_U8,
)
from .elementwise cimport code_params, Params, rows_are_finite

cnp.import_array()


cdef Params checked(params, name):
    """Return what a caller gave as QParams per tensor of 8-bit codes."""
    if not isinstance(params, Params):
        raise TypeError(f"{name} must be QParams, got {type(params).__name__}")
    cdef Params p = params
    if p.axis is not None:
        raise ValueError(f"{name} must be per tensor, got axis {p.axis}")
    if p.codes_are_floats or p.storage != QK_I8 and p.storage != QK_U8:
        raise TypeError(f"{name} must have dtype int8 or uint8, got {p.dtype.name}")
    return p


def check_params(params, name):
    checked(params, name)


cdef cnp.ndarray codes_of(q, Params params, name, params_name):
    """Return what a caller gave as codes of these parameters, contiguous."""
    cdef cnp.ndarray given = array_of(q, name)
    if descr_of(given) != <PyObject *>params.dtype and given.dtype != params.dtype:
        raise TypeError(f"{name} must have dtype {params.dtype} (as {params_name}), got {given.dtype}")
    return contiguous(given)


cdef tuple broadcast_shape(cnp.ndarray a, cnp.ndarray b):
    """Return the shape of the result of two."""
    of_a, of_b = (<object>a).shape, (<object>b).shape
    # Unlike np.broadcast_shapes, of as many axes as an array can have.
    pairs = list(zip_longest(of_a[::-1], of_b[::-1], fillvalue=1))
    if [1 for m, n in pairs if m != n and 1 not in (m, n)]:
        raise ValueError(f"b with shape {of_b} must broadcast with a, which has shape {of_a}")
    return tuple([n if m == 1 else m for m, n in pairs][::-1])


cdef int check_bytes(cnp.ndarray a, name) except -1:
    if PyArray_TYPE(a) != cnp.NPY_INT8 and PyArray_TYPE(a) != cnp.NPY_UINT8:
        raise TypeError(f"{name} must be int8 or uint8, got {a.dtype}")
    return 0


def take_table(q, table, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef cnp.ndarray given = array_of(q, "q"), t = contiguous(array_of(table, "table"))
    check_bytes(given, "q")
    check_bytes(t, "table")
    if cnp.PyArray_NDIM(t) != 1 or cnp.PyArray_DIM(t, 0) != 256:
        raise ValueError(f"table must have shape (256,), got {(<object>t).shape}")
    cdef cnp.ndarray a = contiguous(given), y = result_array(out, a, t.dtype)
    cdef bint is_signed = PyArray_TYPE(a) == cnp.NPY_INT8
    cdef size_t n = <size_t>cnp.PyArray_SIZE(a)
    if out is not None:
        refuse_overlap(y, given, "q")
        refuse_overlap(y, t, "table")
    if n <= BRIEF:
        qk_take_table(uint8s(a), 1, n, is_signed, uint8s(t), uint8s(y), n)
    else:
        with nogil:
            qk_take_table(uint8s(a), 1, n, is_signed, uint8s(t), uint8s(y), n)
    return y if out is None else out


def concatenate(parts, tables, tuple shape, int axis, Params to, out):
    """Look the codes of parts, arrays that differ in length along the axis, up in their tables, beside each other."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef cnp.ndarray y = out_array(out, shape, to.dtype), q, t
    cdef size_t rows = 1, inner = 1, stride, cols, at = 0
    for i, n in enumerate(shape):
        rows *= n if i < axis else 1
        inner *= n if i > axis else 1
    stride = inner * <size_t>shape[axis]
    for part in parts if out is not None else ():
        refuse_overlap(y, part, "parts")
    for part, table in zip(parts, tables):
        q, t = contiguous(part), table
        cols = inner * <size_t>cnp.PyArray_DIM(q, axis)
        with nogil:
            qk_take_table(uint8s(q), rows, cols, False, uint8s(t), uint8s(y) + at, stride)
        at += cols
    return y if out is None else out


cdef bint lay_out_pair(cnp.ndarray a, cnp.ndarray b, tuple shape, qk_code_pair *p) except -1:
    """Count two contiguous arrays through the result's shape, in as few axes as may be; return whether they swap.

    They do if b has more than one code along the last of these axes, and a has one.
    """
    cdef Py_ssize_t n, steps_a = 1, steps_b = 1, i
    if cnp.PyArray_SAMESHAPE(a, b):
        p.n, p.b_step = <size_t>cnp.PyArray_SIZE(a), 1
        return False
    axes = []
    for i in range(len(shape)):
        n = shape[len(shape) - 1 - i]
        na = cnp.PyArray_DIM(a, cnp.PyArray_NDIM(a) - 1 - i) if i < cnp.PyArray_NDIM(a) else 1
        nb = cnp.PyArray_DIM(b, cnp.PyArray_NDIM(b) - 1 - i) if i < cnp.PyArray_NDIM(b) else 1
        step_a, step_b = (steps_a if na > 1 else 0), (steps_b if nb > 1 else 0)
        steps_a, steps_b = steps_a * na, steps_b * nb
        if n == 1:
            continue
        if axes and axes[-1][0] * axes[-1][1] == step_a and axes[-1][0] * axes[-1][2] == step_b:
            axes[-1][0] *= n
        else:
            axes.append([n, step_a, step_b])
    swapped = bool(axes) and axes[0][1] == 0
    p.n, p.b_step, p.axes = (axes[0][0] if axes else 1), (min(axes[0][1:]) if axes else 1), max(len(axes) - 1, 0)
    for i in range(p.axes):
        n, step_a, step_b = axes[p.axes - i]
        p.shape[i], p.a_steps[i], p.b_steps[i] = n, (step_b if swapped else step_a), (step_a if swapped else step_b)
    return swapped


def options(activation, rounding):
    """Return whether there is a ReLU, and whether to round as LiteRT."""
    activation, rounding = word(activation), word(rounding)
    if not (activation is None or isinstance(activation, str) and activation == "relu"):
        raise ValueError(
            f"activation must be None or 'relu' (others are tables: make_table), got {shown(activation)}"
        )
    if not (isinstance(rounding, str) and rounding in ("half_even", "tflite")):
        raise ValueError(f"rounding must be 'half_even' or 'tflite', got {shown(rounding)}")
    return activation is not None, rounding == "tflite"


def pair(bint product, a, of_a, b, of_b, of_result, activation, rounding, out):
    """Add or multiply codes of one dtype."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef bint relu = False, tflite = False
    if activation is not None or type(rounding) is not str or rounding != "half_even":
        relu, tflite = options(activation, rounding)
    cdef Params a_params = checked(of_a, "a_params"), b_params = checked(of_b, "b_params")
    cdef Params to = checked(of_result, "out_params")
    if a_params.storage != b_params.storage:
        raise TypeError(f"b_params must have dtype {a_params.dtype} (as a_params), got {b_params.dtype}")
    cdef cnp.ndarray left = codes_of(a, a_params, "a", "a_params"), right = codes_of(b, b_params, "b", "b_params")
    cdef tuple shape = None
    cdef cnp.ndarray y
    if cnp.PyArray_SAMESHAPE(left, right):
        y = result_array(out, left, to.dtype)
    else:
        shape = broadcast_shape(left, right)
        y = out_array(out, shape, to.dtype)
    if out is not None:
        refuse_overlap(y, array_of(a, "a"), "a")
        refuse_overlap(y, array_of(b, "b"), "b")
    cdef qk_code_pair p
    memset(&p, 0, sizeof(p))
    if lay_out_pair(left, right, shape, &p):
        left, right, a_params, b_params = right, left, b_params, a_params
    p.a_codes, p.b_codes, p.y_codes = uint8s(left), uint8s(right), uint8s(y)
    p.a, p.b, p.y = code_params(a_params), code_params(b_params), code_params(to)
    if relu:
        p.y.qmin = max(p.y.qmin, p.y.zero_point)
    p.product, p.is_signed, p.rounding = product, a_params.storage == QK_I8, QK_TFLITE if tflite else QK_HALF_EVEN
    if cnp.PyArray_SIZE(y) <= BRIEF:
        qk_pair_codes(&p)
    else:
        with nogil:
            qk_pair_codes(&p)
    return y if out is None else out


cdef Py_ssize_t row_length(cnp.ndarray q) except -1:
    if cnp.PyArray_NDIM(q) == 0:
        raise ValueError("q must have at least one axis, got a scalar")
    return cnp.PyArray_DIM(q, cnp.PyArray_NDIM(q) - 1)


def softmax(q, of_codes, of_result, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params params = checked(of_codes, "params"), to = checked(of_result, "out_params")
    cdef cnp.ndarray a = codes_of(q, params, "q", "params")
    cdef Py_ssize_t n = row_length(a)
    cdef cnp.ndarray y = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(y, array_of(q, "q"), "q")
    cdef size_t rows = <size_t>(cnp.PyArray_SIZE(a) // n) if n else 0
    cdef qk_code_params source = code_params(params), result = code_params(to)
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_softmax_codes(uint8s(a), &source, rows, <size_t>n, uint8s(y), &result)
    else:
        with nogil:
            qk_softmax_codes(uint8s(a), &source, rows, <size_t>n, uint8s(y), &result)
    return y if out is None else out


cdef cnp.ndarray column_floats(values, Py_ssize_t n, name):
    cdef cnp.ndarray v = float32_array(values, name)
    if cnp.PyArray_NDIM(v) != 1 or cnp.PyArray_DIM(v, 0) != n:
        raise ValueError(f"{name} must have shape {(n,)} to match the last axis of q, got {(<object>v).shape}")
    v = contiguous(v)
    if not rows_are_finite(floats(v), 1, <size_t>n, n * 4):
        raise_not_finite(v, name)
    return v


def norm(q, of_codes, weight, bias, of_result, double eps, out):
    """Apply layer norm, or RMS norm where bias is None."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params params = checked(of_codes, "params"), to = checked(of_result, "out_params")
    cdef cnp.ndarray a = codes_of(q, params, "q", "params")
    cdef Py_ssize_t n = row_length(a)
    cdef cnp.ndarray w = column_floats(weight, n, "weight")
    cdef cnp.ndarray b = None if bias is None else column_floats(bias, n, "bias")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    cdef cnp.ndarray y = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(y, array_of(q, "q"), "q")
        refuse_overlap(y, array_of(weight, "weight"), "weight")
        if bias is not None:
            refuse_overlap(y, array_of(bias, "bias"), "bias")
    cdef qk_code_norm_args args
    args.q, args.y, args.cols, args.rows = uint8s(a), uint8s(y), <size_t>n, <size_t>(a.size // n) if n else 0
    args.weight, args.bias, args.eps = floats(w), floats(b), eps
    args.params, args.to = code_params(params), code_params(to)
    cdef int status
    with nogil:
        status = qk_norm_codes(&args)
    if status == -1:
        raise MemoryError(f"no memory for the factors of {n} columns")
    return y if out is None else out
