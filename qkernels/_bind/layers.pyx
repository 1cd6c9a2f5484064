# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind layers between products."""

from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import numpy as np

cimport numpy as cnp

from .arrays import raise_not_finite
from .runtime import shown

from .arrays cimport (
    array_of, BRIEF, BRIEF_PRODUCT, contiguous, data_of, FLOAT32, float32_array, floats, overlap, PyArray_ISCARRAY_RO,
    refuse_overlap, result_array,
)
from .c cimport (
    qk_attention_args, qk_attention_of, qk_code_params, qk_enter_scope, QK_I8, qk_layer_norm_of, QK_MOST_CODES,
    qk_norm_args, qk_params, QK_PER_BLOCK, QK_PER_TENSOR, qk_rotate, qk_rotation, qk_scope, QK_U8, qk_values,
)
from .elementwise cimport code_params, Params, rows_are_finite

cnp.import_array()

cdef enum:
    MOST_ROTATED = 1 << 20


cdef cnp.ndarray float32_vector(values, Py_ssize_t n, name):
    """Return values (n,) as a contiguous float32 array."""
    cdef cnp.ndarray v = float32_array(values, name)
    if cnp.PyArray_NDIM(v) != 1 or cnp.PyArray_DIM(v, 0) != n:
        raise ValueError(f"{name} must have shape {(n,)} to match the last axis of x, got {(<object>v).shape}")
    return contiguous(v)


cdef int refuse_shared(cnp.ndarray out, cnp.ndarray x, name, bint any_codes) except -1:
    """Raise if `out` overlaps x but is not x itself, or if one of them holds codes."""
    if any_codes:
        return refuse_overlap(out, x, name)
    if cnp.PyArray_DATA(out) != cnp.PyArray_DATA(x) and overlap(out, x):
        raise ValueError(f"out must be {name} itself or not overlap it")
    return 0


cdef int lay_over_rows(params, cnp.ndarray x, name, qk_params *laid) except -1:
    """Fill the C parameters for x, whose 8-bit codes have one scale, or one for each index of the last axis."""
    cdef Params p
    if not isinstance(params, Params):
        raise TypeError(f"{name} must be QParams, got {type(params).__name__}")
    p = <Params>params
    if p.storage != QK_I8 and p.storage != QK_U8:
        raise TypeError(f"{name} must have dtype int8 or uint8, got {p.dtype.name}")
    if p.c.kind != QK_PER_TENSOR and (p.c.kind == QK_PER_BLOCK or p.axis not in (-1, cnp.PyArray_NDIM(x) - 1)):
        raise ValueError(f"{name} must be per tensor or of the last axis, got axis {p.axis}, block_size {p.block_size}")
    return p.lay_over(x, laid, "x")


cdef cnp.ndarray rows_of(x, params, name, params_name, qk_params *laid, qk_values *values):
    """Describe x, float32 or codes of `params`, in `values`; return it, or a contiguous copy."""
    cdef cnp.ndarray a
    if params is None:
        a = contiguous(float32_array(x, name))
        values.params = NULL
    else:
        a = contiguous(array_of(x, name))
        lay_over_rows(params, a, params_name, laid)
        if a.dtype != params.dtype:
            raise TypeError(f"{name} must have dtype {params.dtype} (as {params_name}), got {a.dtype}")
        values.params, values.type = laid, (<Params>params).storage
    values.data = data_of(a)
    return a


def layer_norm(x, weight, bias, double eps, residual, all_params, out):
    """Normalise rows; all_params are those of x, of residual and of the result, each QParams or None."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_norm_args args
    cdef qk_params laid[3]
    memset(&args, 0, sizeof(args))
    params, residual_params, out_params = all_params
    cdef cnp.ndarray a = rows_of(x, params, "x", "params", laid, &args.x), r = None
    cdef int ndim = cnp.PyArray_NDIM(a), status
    if ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    cdef Py_ssize_t n = cnp.PyArray_DIM(a, ndim - 1)
    cdef cnp.ndarray w = float32_vector(weight, n, "weight"), b = float32_vector(bias, n, "bias")
    if residual is not None:
        r = rows_of(residual, residual_params, "residual", "residual_params", laid + 1, &args.residual)
        if not cnp.PyArray_SAMESHAPE(r, a):
            raise ValueError(f"residual must have shape {(<object>a).shape} (as x), got {(<object>r).shape}")
    elif residual_params is not None:
        raise ValueError("residual_params must be None without a residual")
    if out_params is not None:
        lay_over_rows(out_params, a, "out_params", laid + 2)
        args.y.params, args.y.type = laid + 2, (<Params>out_params).storage
    cdef cnp.ndarray y = result_array(out, a, FLOAT32 if out_params is None else out_params.dtype)
    if out is not None:
        refuse_shared(y, a, "x", args.x.params or args.y.params)
        if r is not None:
            refuse_shared(y, r, "residual", args.residual.params or args.y.params)
        refuse_overlap(y, w, "weight")
        refuse_overlap(y, b, "bias")
    args.rows, args.cols = <size_t>(cnp.PyArray_SIZE(a) // n) if n else 0, <size_t>n
    args.weight, args.bias, args.eps, args.y.data = floats(w), floats(b), eps, data_of(y)
    if args.rows * args.cols <= BRIEF:
        status = qk_layer_norm_of(&args)
    else:
        with nogil:
            status = qk_layer_norm_of(&args)
    if status == -1:
        raise MemoryError(f"no memory for a row of {n} values")
    return y if out is None else out


def rotate(x, uint64_t seed, bint inverse, out):
    """Rotate rows, or back."""
    cdef qk_rotation args
    cdef cnp.ndarray a = contiguous(float32_array(x, "x"))
    cdef int ndim = cnp.PyArray_NDIM(a), status
    if ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar")
    cdef Py_ssize_t n = cnp.PyArray_DIM(a, ndim - 1)
    if n > MOST_ROTATED:
        raise ValueError(f"the last axis of x must have at most 2**20 values, got {n}")
    cdef cnp.ndarray y = result_array(out, a, FLOAT32)
    if out is not None:
        refuse_shared(y, a, "x", False)
    args.x, args.y, args.seed, args.inverse = floats(a), <float *>data_of(y), seed, inverse
    args.rows, args.cols = <size_t>(cnp.PyArray_SIZE(a) // n) if n else 0, <size_t>n
    if args.rows * args.cols <= BRIEF:
        status = qk_rotate(&args)
    else:
        with nogil:
            status = qk_rotate(&args)
    if status == -1:
        raise MemoryError(f"no memory for the signs of {n} values")
    return y if out is None else out


cdef cnp.ndarray token_rows(x, name, params, size_t *stride):
    """Return x (tokens, width), float32 or codes of `params`, with unit stride along a row: itself, or a copy."""
    cdef cnp.ndarray a = float32_array(x, name) if params is None else array_of(x, name)
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    if params is not None and a.dtype != params.dtype:
        raise TypeError(f"{name} must have dtype {params.dtype} (as params), got {a.dtype}")
    if cnp.PyArray_NDIM(a) != 2:
        raise ValueError(f"{name} must have shape (tokens, width), got {(<object>a).shape}")
    cdef bint in_place = PyArray_ISCARRAY_RO(a)
    if not in_place and cnp.PyArray_STRIDE(a, 1) == item and cnp.PyArray_STRIDE(a, 0) > 0:
        in_place = cnp.PyArray_STRIDE(a, 0) % item == 0 and a.flags.aligned and a.dtype.isnative
    if not in_place:
        a = contiguous(a)
    stride[0] = <size_t>(cnp.PyArray_STRIDE(a, 0) // item)
    return a


cdef cnp.ndarray sequence_starts(starts, Py_ssize_t tokens, Py_ssize_t most):
    """Return starts as int64: ascending from 0 to `tokens`, sequences of at most `most`."""
    given = array_of(starts, "starts")
    if given.dtype.kind not in "iu" or given.ndim != 1 or given.size < 1:
        raise ValueError(f"starts must be a 1-D array of integers with at least one entry, got {shown(starts)}")
    cdef cnp.ndarray result = np.array(given, np.int64)   # a copy: what is checked must stay as it is
    cdef const int64_t *s = <const int64_t *>data_of(result)
    cdef Py_ssize_t i, last = cnp.PyArray_DIM(result, 0) - 1
    if s[0] != 0 or s[last] != tokens:
        raise ValueError(f"starts must begin with 0 and end with the {tokens} tokens of q, got {s[0]} and {s[last]}")
    for i in range(last):
        if not 0 <= s[i + 1] - s[i] <= most:
            raise ValueError(f"starts must ascend by at most {most}, got {s[i]} then {s[i + 1]} at {i}")
    return result


def attention(q, k, v, heads, starts, scale, params, out_params, out):
    """Attend; params are those of q, k and v, three QParams per tensor of 8-bit codes, or None; out_params likewise."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_attention_args args
    cdef qk_code_params codes[3]
    cdef qk_code_params to
    cdef Py_ssize_t i, most = 65536 if params is None else QK_MOST_CODES
    of = params or (None, None, None)
    cdef cnp.ndarray qa = token_rows(q, "q", of[0], &args.q_stride)
    cdef cnp.ndarray ka = token_rows(k, "k", of[1], &args.k_stride)
    cdef cnp.ndarray va = token_rows(v, "v", of[2], &args.v_stride)
    if params is not None:
        for i in range(3):
            codes[i] = code_params(<Params?>of[i])
    if out_params is not None:
        to = code_params(<Params?>out_params)
    for name, a in (("k", ka), ("v", va)):
        if not cnp.PyArray_SAMESHAPE(<cnp.ndarray>a, qa):
            raise ValueError(f"{name} must have shape {(<object>qa).shape} (as q), got {(<object>a).shape}")
    cdef Py_ssize_t tokens = cnp.PyArray_DIM(qa, 0), width = cnp.PyArray_DIM(qa, 1)
    if heads < 1 or width % heads or not 0 < width // heads <= most:
        raise ValueError(f"heads must divide the {width} columns of q into at least 1 and at most {most} each, "
                         f"got {heads}")
    cdef double factor = (width / heads) ** -0.5 if scale is None else scale
    if not 0 < factor < INFINITY:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    cdef cnp.ndarray bounds = sequence_starts(np.array((0, tokens)) if starts is None else starts, tokens, most)
    cdef cnp.ndarray y = result_array(out, qa, FLOAT32 if out_params is None else out_params.dtype)
    if out is not None:
        for name, a, stride in (("q", qa, args.q_stride), ("k", ka, args.k_stride), ("v", va, args.v_stride)):
            if np.may_share_memory(y, a):
                raise ValueError(f"out must not overlap {name}")
            if params is None and not rows_are_finite(data_of(a), <size_t>tokens, <size_t>width, <ptrdiff_t>stride * 4):
                raise_not_finite(a, name)
    args.q, args.k, args.v, args.out, args.out_stride = floats(qa), floats(ka), floats(va), floats(y), <size_t>width
    args.heads, args.size = <size_t>heads, <size_t>(width // heads)
    args.sequences = <size_t>(cnp.PyArray_DIM(bounds, 0) - 1)
    args.starts = <const int64_t *>data_of(bounds)
    args.scale = factor
    cdef const qk_code_params *given = NULL if params is None else codes
    cdef const qk_code_params *wanted = NULL if out_params is None else &to
    cdef int status
    if tokens * tokens <= BRIEF_PRODUCT // (width + 1):
        status = qk_attention_of(&args, given, wanted)
    else:
        with nogil:
            status = qk_attention_of(&args, given, wanted)
    if status == -1:
        raise MemoryError("no memory for the codes of a sequence")
    if status == -2:
        for name, a in (("q", qa), ("k", ka), ("v", va)):
            if not np.isfinite(a).all():
                raise_not_finite(a, name)
    return y if out is None else out
