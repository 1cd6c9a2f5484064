# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind packed weights: which panels hold what, and how they come back."""

from libc.stdint cimport int8_t, uint8_t
from libc.string cimport memcmp, memset

import ml_dtypes
import numpy as np

cimport cython
cimport numpy as cnp
from cpython.pyport cimport PY_SSIZE_T_MAX

from .arrays import CODE_TYPES, raise_not_finite

from .arrays cimport data_of, float_type, floats, int32s, PyArray_ISCARRAY_RO, PyArray_TYPE
from .c cimport (
    qk_dtype, QK_FOLDED, qk_folded_params, QK_GEMM4, QK_GEMM8, qk_matrix, QK_NO_MEMORY, QK_NOT_FINITE,
    QK_PER_AXIS, QK_PER_BLOCK, QK_PER_TENSOR, QK_U8, qk_weights_fill, qk_weights_init, qk_weights_params,
    qk_weights_unpack,
)
from .elementwise cimport Params

cnp.import_array()

FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
E2M1_LEVELS = np.arange(16, dtype=np.uint8).view(FLOAT4).astype(np.float32)


cdef class Layer:
    """Keep what a layer of codes made of its parameters for the columns of its weights: the next call is often alike.

    It never changes, so that threads can share it.
    """

    cdef Py_ssize_t nbytes(self):
        """Return the bytes of the arrays that it holds."""
        cdef Py_ssize_t held = 0 if self.bias is None else cnp.PyArray_NBYTES(self.bias)
        for array in self.columns:
            held += 0 if array is None else array.nbytes
        return held


@cython.binding(False)  # which checks whose method is called
cdef class Packed:
    """Hold a PackedMatrix (_weights.py), which has checked the arguments, in the panels that an instruction set reads.

    b is (k, n), of any strides. Without params it has no scales, and zero points are the caller's. If params are a
    Codebook, `scales` are those of its blocks (blocks, n), or None. `height` is that of a depthwise kernel, whose taps
    are rows of b, and a column a channel.

    What the products read, it holds; what they do not is made of that when it is asked for. `_kept` is what is missing
    then: QParams per tensor, of others (qmin, qmax, axis, block_size), or the Codebook.
    """

    def __cinit__(self, cnp.ndarray b not None, params, scales=None, size_t height=0):
        cdef qk_matrix m
        memset(&m, 0, sizeof(m))
        self.dtype = np.dtype(b.dtype.type)
        if not cnp.PyArray_ISALIGNED(b):  # asking NumPy takes half a microsecond
            b = np.require(b, requirements="A")
        cdef bint floats4 = self.dtype == FLOAT4
        if floats4:
            b = cleared(b)
        m.b, m.k, m.n = data_of(b), <size_t>cnp.PyArray_DIM(b, 0), <size_t>cnp.PyArray_DIM(b, 1)
        m.row_stride, m.col_stride = cnp.PyArray_STRIDE(b, 0), cnp.PyArray_STRIDE(b, 1)
        m.type = CODE_TYPES[self.dtype] if self.dtype in CODE_TYPES else <qk_dtype>float_type(b, "b")
        if params is not None:
            m.block = params.block_size or 0
            m.kind = QK_PER_BLOCK if m.block else QK_PER_TENSOR if params.axis is None else QK_PER_AXIS
        if isinstance(params, Params):
            m.scale, m.zero_point = (<Params>params).c.scale, (<Params>params).c.zero_point
            if params.block_scale is not None:
                m.block_scale = <const uint8_t *>data_of(params.block_scale)
                m.block_shift, m.zero_point = <const int8_t *>data_of(params.block_shift), NULL
        elif params is not None:
            m.scale, m.levels, m.level_count = floats(scales), floats(params.levels), params.k
        if floats4:   # levels of blocks, whatever shares a scale
            scales = np.full(m.n, params.scale) if params.axis is None else params.scale
            m.type, m.kind, m.block = QK_U8, QK_PER_BLOCK, m.block or max(m.k, <size_t>1)
            m.scale, m.zero_point, m.levels, m.level_count = floats(scales), NULL, floats(E2M1_LEVELS), 16
        qk_weights_init(&self.c, &m, height)
        self._kept = params
        if isinstance(params, Params) and params.axis is not None and (m.k or self.c.family != QK_GEMM4):
            self._kept = params.qmin, params.qmax, params.axis, params.block_size
        cdef int status
        cdef void *memory = self.obtain()
        with nogil:
            status = qk_weights_fill(&self.c, &m, memory)
        if status == QK_NO_MEMORY:
            raise MemoryError(f"no memory for packed weights of shape {self.shape}")
        if status == QK_NOT_FINITE:
            raise_not_finite(b, "b")

    cdef void *obtain(self) except? NULL:
        """Return memory for all of it, aligned to 64."""
        if max(self.c.bytes, self.c.n_pad) > <size_t>PY_SSIZE_T_MAX - 63:
            raise MemoryError(f"no memory for packed weights of shape {self.shape}")
        cdef cnp.npy_intp length = <cnp.npy_intp>self.c.bytes + 63
        cdef cnp.ndarray memory = cnp.PyArray_EMPTY(1, &length, cnp.NPY_UINT8, 0)
        self.memory = memory
        return <char *>data_of(memory) + (-<Py_ssize_t>data_of(memory) & 63)

    cdef padded(self, values, dtype):
        """Return one entry a column, and zeros up to whole panels; what is like that already is not copied."""
        if self.c.n == self.c.n_pad and cnp.PyArray_CheckExact(values) and values.dtype is dtype \
                and cnp.PyArray_NDIM(values) == 1 and PyArray_ISCARRAY_RO(<cnp.ndarray>values) \
                and <size_t>cnp.PyArray_SIZE(values) == self.c.n:
            return values
        result = np.zeros(self.c.n_pad, dtype)
        result[: self.c.n] = values
        return result

    @property
    def shape(self):
        return self.c.k, self.c.n

    @property
    def nbytes(self):
        held = self.c.bytes
        if isinstance(self._kept, Params):
            held += (<Params>self._kept).nbytes()
        elif hasattr(self._kept, "levels"):
            held += self._kept.levels.nbytes
        with cython.critical_section(self):
            layer = self.last
        return held if layer is None else held + (<Layer>layer).nbytes()

    def _columns(self):
        """Return float32 scales and int32 zero points: (N,), or (blocks, N) if they stand in panels of blocks.

        Those are weights in blocks, all weights of 4 bits, and codes of a codebook.
        """
        cdef tuple shape = (self.c.gemm4.blocks, self.c.n)
        shape = shape if self.c.family == QK_GEMM4 else shape[1:]
        cdef cnp.ndarray scale = np.empty(shape, np.float32), zero_point = np.empty(shape, np.int32)
        if scale.size:
            qk_weights_params(&self.c, floats(scale), int32s(zero_point))
        if self.dtype == FLOAT4:
            zero_point[...] = 0
        return scale, zero_point

    def _integer_scales(self):
        """Return the scales and shifts of blocks (blocks, N), uint8 and int8."""
        cdef tuple shape = (self.c.gemm8.folded.blocks, self.c.n)
        cdef cnp.ndarray scale = np.empty(shape, np.uint8), shift = np.empty(shape, np.int8)
        cdef uint8_t *scales = <uint8_t *>data_of(scale)
        cdef int8_t *shifts = <int8_t *>data_of(shift)
        if scale.size:
            with nogil:
                qk_folded_params(&self.c.gemm8, scales, shifts)
        return scale, shift

    def unpack(self):
        """Return the weights as they were packed: (K, N), of dtype `dtype`."""
        cdef cnp.ndarray codes = np.empty(self.shape, self.dtype)
        if codes.size:   # else there may be more rows or columns than a loop can count
            with nogil:
                qk_weights_unpack(&self.c, data_of(codes))
        return codes


cdef cnp.ndarray cleared(cnp.ndarray b):
    """Return codes of 4 bits without what may stand above these in their bytes."""
    codes = b.view(np.uint8)
    return b if not codes.size or codes.max() < 16 else (codes & 15).view(b.dtype)


cdef bint is_constant(option):
    """Tell whether that is a number, a word or None, or a tuple of them: of such what is the same stays the same."""
    if type(option) is tuple:
        for entry in <tuple>option:
            if not is_constant(entry):
                return False
        return True
    return option is None or type(option) is int or type(option) is str or type(option) is float


cdef bint are_same(tuple options, tuple others):
    """Tell whether options equal those of a layer, which are constant; 1.0 is not 1."""
    cdef Py_ssize_t i
    for i in range(len(others)):
        a, b = options[i], others[i]
        if a is not b and not (type(a) is type(b) and is_constant(a) and repr(a) == repr(b)):
            return False
    return True


cdef bint holds_same(given, cnp.ndarray kept):
    """Tell whether a bias, if there is one, has the type, shape and values of the one that was kept."""
    if given is None or kept is None:
        return given is None and kept is None
    if not (cnp.PyArray_CheckExact(given) and PyArray_ISCARRAY_RO(<cnp.ndarray>given)
            and PyArray_TYPE(<cnp.ndarray>given) == PyArray_TYPE(kept)
            and cnp.PyArray_SAMESHAPE(<cnp.ndarray>given, kept)):
        return False
    return memcmp(data_of(<cnp.ndarray>given), data_of(kept), <size_t>cnp.PyArray_NBYTES(kept)) == 0


cdef Layer last_layer(Packed b, params, out_params, bias, tuple options):
    """Return what the last call with these weights has left, if its parameters were the same, else None."""
    cdef Layer layer
    with cython.critical_section(b):
        layer = b.last
    if layer is None or layer.of is not params or layer.to is not out_params \
            or not holds_same(bias, layer.bias) or not are_same(options, layer.options):
        return None
    return layer


cdef int keep_layer(Packed b, Layer layer) except -1:
    """Have it for the next call, unless that could not know its options again, or it has none."""
    if layer.options is not None and is_constant(layer.options):
        with cython.critical_section(b):
            b.last = layer
    return 0


cpdef int need_eight_bits(Packed b, name) except -1:
    """Raise unless the weights given as `name` are those of 8 bits, which have one integer product for all."""
    if b.c.family != QK_GEMM8:
        needs, what = "8-bit weights", b.dtype.name
        if b.c.family == QK_FOLDED:
            what = f"{what} with integer scales"
        elif b.c.family == QK_GEMM4 and b.c.gemm4.bits == 8:
            needs, what = "weights with one scale a column", f"{what} with a scale for each block of rows"
        elif b.dtype == np.uint8:
            what = "codes of a Codebook"
        raise TypeError(f"{name} must hold {needs}, got {what}: such weights are for linear")
    return 0
