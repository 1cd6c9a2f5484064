# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind layers between products."""

from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

import numpy as np

cimport numpy as cnp

from .arrays import raise_not_finite
from .runtime import shown

from .arrays cimport (
    array_of, BRIEF, BRIEF_PRODUCT, contiguous, data_of, FLOAT32, float32_array, floats, overlap, PyArray_ISCARRAY_RO,
    refuse_overlap, result_array,
)
from .c cimport qk_attention, qk_attention_args, qk_enter_scope, qk_layer_norm, qk_scope
from .elementwise cimport rows_are_finite

cnp.import_array()


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
    if residual is not None:
        r = contiguous(float32_array(residual, "residual"))
        if not cnp.PyArray_SAMESHAPE(r, a):
            raise ValueError(f"residual must have shape {(<object>a).shape} (as x), got {(<object>r).shape}")
    cdef cnp.ndarray y = result_array(out, a, FLOAT32)
    if out is not None:
        refuse_partial_overlap(y, a, "x")
        if r is not None:
            refuse_partial_overlap(y, r, "residual")
        refuse_overlap(y, w, "weight")
        refuse_overlap(y, b, "bias")
    cdef size_t rows = <size_t>(cnp.PyArray_SIZE(a) // n) if n else 0
    if rows * <size_t>n <= BRIEF:
        qk_layer_norm(floats(a), floats(r), rows, <size_t>n, floats(w), floats(b), eps, floats(y))
    else:
        with nogil:
            qk_layer_norm(floats(a), floats(r), rows, <size_t>n, floats(w), floats(b), eps, floats(y))
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
    cdef const int64_t *s = <const int64_t *>data_of(result)
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
            if not rows_are_finite(data_of(a), <size_t>tokens, <size_t>width, <ptrdiff_t>stride * 4):
                raise_not_finite(a, name)
    args.q, args.k, args.v, args.out, args.out_stride = floats(qa), floats(ka), floats(va), floats(y), <size_t>width
    args.heads, args.size = <size_t>heads, <size_t>(width // heads)
    args.sequences = <size_t>(cnp.PyArray_DIM(bounds, 0) - 1)
    args.starts = <const int64_t *>data_of(bounds)
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
