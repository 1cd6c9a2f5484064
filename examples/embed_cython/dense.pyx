# cython: language_level=3
"""A dense layer in int8 for code in Cython: nothing in a call needs the GIL or makes an object."""

from libc.stdint cimport int8_t, int32_t
from libc.stdlib cimport free, malloc

cimport qkernels


cdef class Dense:
    """Multiply by weights w (outputs, inputs) and apply ReLU."""

    cdef qkernels.Weights *weights
    cdef Py_ssize_t inputs, outputs

    def __cinit__(self, const float[:, ::1] w):
        self.outputs, self.inputs = w.shape[0], w.shape[1]
        cdef int8_t *codes = <int8_t *>malloc(self.outputs * self.inputs)
        cdef float *scale = <float *>malloc(self.outputs * sizeof(float))
        cdef int32_t *zero_point = <int32_t *>malloc(self.outputs * sizeof(int32_t))
        try:
            if codes == NULL or scale == NULL or zero_point == NULL:
                raise MemoryError("no memory for codes of the weights")
            with nogil:   # each output's weights have a scale of their own
                qkernels.check(qkernels.dynamic_quantize(&w[0, 0], self.outputs, self.inputs, codes, qkernels.I8, True,
                                                         scale, zero_point))
                qkernels.check(qkernels.pack(codes, qkernels.I8, self.inputs, self.outputs, 1, self.inputs, 0, scale,
                                             zero_point, &self.weights))
        finally:
            free(codes)
            free(scale)
            free(zero_point)

    def __dealloc__(self):
        qkernels.free_weights(self.weights)

    def __call__(self, const float[:, ::1] x, const float[::1] bias, float[:, ::1] y):
        """Fill y (rows, outputs) with relu(x @ w.T + bias), x being (rows, inputs)."""
        if x.shape[1] != self.inputs or y.shape[0] != x.shape[0] or y.shape[1] != self.outputs \
                or bias.shape[0] != self.outputs:
            raise ValueError("x, bias and y must fit the weights")
        with nogil:
            qkernels.check(qkernels.linear(self.weights, &x[0, 0], x.shape[0], &bias[0], qkernels.RELU, &y[0, 0]))


def settings():
    """Return the instruction set and the number of threads: those of the process, which Python code sets as well."""
    return qkernels.get_isa().decode(), qkernels.get_num_threads()
