# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind convolutions and pools of codes."""

from libc.string cimport memset

import numpy as np

cimport numpy as cnp

from .arrays cimport (
    BRIEF, BRIEF_PRODUCT, contiguous, data_of, INT32, int32s, is_plain, new_array, out_array, refuse_overlap, uint8s,
)
from .c cimport (
    qk_average_pool, qk_conv, QK_DEPTHWISE, qk_enter_scope, qk_epilogue, qk_group_columns, qk_image, qk_max_pool,
    qk_rows, qk_rows_type, qk_scope, QK_TO_INT32,
)
from .elementwise cimport Params, params_of
from .products cimport check_status, codes_type, new_layer
from .weights cimport keep_layer, last_layer, Layer, Packed

cnp.import_array()


def group_columns():
    """Return what the columns of each of several groups are padded to a multiple of."""
    return qk_group_columns()


cdef cnp.ndarray describe_image(cnp.ndarray q, window, zero_point, qk_image *image):
    """Fill `image` with q (count, height, width, channels), or a contiguous copy of it, which is returned.

    `window` is (height, width) of each: kernel, strides, dilations, padding before, result.
    """
    memset(image, 0, sizeof(qk_image))
    cdef cnp.ndarray codes = contiguous(q)
    image.codes = uint8s(codes)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(q)
    image.count, image.height, image.width, image.channels = shape[0], shape[1], shape[2], shape[3]
    (image.kernel_height, image.kernel_width), (image.stride_y, image.stride_x) = window[:2]
    (image.dilation_y, image.dilation_x), (image.top, image.left) = window[2:4]
    image.out_height, image.out_width = window[4]
    image.pad = zero_point & 255
    return codes


cdef columns_of(values, Packed b, size_t groups):
    """Return values, one a filter, as one a column: a group's are followed by zeros."""
    if groups == 1 or b.c.family == QK_DEPTHWISE:
        return values
    padded = np.zeros((groups, b.c.n // groups), values.dtype)
    padded[:, : len(values) // groups] = values.reshape(groups, -1)
    return padded.reshape(-1)


cdef int convolve(cnp.ndarray q, cnp.ndarray codes, Params of, Packed b, const qk_image *image, size_t filters,
                  size_t groups, qk_epilogue *epilogue, cnp.ndarray y) except -1:
    """Convolve the codes, which are q's, of an image that knows them."""
    cdef qk_rows source
    cdef int status
    memset(&source, 0, sizeof(source))
    source.type, source.zero_point = <qk_rows_type>codes_type(q, "q"), &of.one_zero_point
    epilogue.out, epilogue.row_stride = data_of(y), filters * <size_t>cnp.PyArray_ITEMSIZE(y)
    if <double>cnp.PyArray_SIZE(y) * b.c.k <= BRIEF_PRODUCT:
        status = qk_conv(&source, image, &b.c, groups, filters // groups, epilogue)
    else:
        with nogil:
            status = qk_conv(&source, image, &b.c, groups, filters // groups, epilogue)
    return check_status(status, codes)


cdef cnp.ndarray result_of(out, const qk_image *image, size_t filters, dtype, cnp.ndarray q, bias):
    """Return `out`, checked, or a new array; `bias` is what the caller gave."""
    cdef cnp.npy_intp[4] shape = [image.count, image.out_height, image.out_width, filters]
    if out is None:
        return new_array(4, shape, dtype)
    cdef cnp.ndarray y = out_array(out, (shape[0], shape[1], shape[2], shape[3]), dtype)
    refuse_overlap(y, q, "q")
    if bias is not None:
        refuse_overlap(y, bias, "bias")
    return y


cdef convolve_codes(cnp.ndarray q, Packed b, Layer layer, bias, out):
    """Convolve and requantize codes of an image like that of the layer; `bias` is what the caller gave."""
    cdef qk_epilogue epilogue = layer.epilogue
    cdef qk_image image = layer.image
    cdef cnp.ndarray codes = contiguous(q)
    image.codes, image.count = uint8s(codes), <size_t>cnp.PyArray_DIM(q, 0)
    cdef cnp.ndarray y = result_of(out, &image, layer.filters, layer.to.dtype, q, bias)
    convolve(q, codes, layer.of, b, &image, layer.filters, layer.groups, &epilogue, y)
    return y if out is None else out


def qconv2d_again(q, params, Packed b, out_params, bias, tuple options, out):
    """Return what qconv2d does, if its last call with b had the same parameters and sizes, else None."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Layer layer = last_layer(b, params, out_params, bias, options)
    if layer is None or not is_plain(q, layer.of.dtype) or cnp.PyArray_NDIM(<cnp.ndarray>q) != 4:
        return None
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(<cnp.ndarray>q)
    cdef qk_image *image = &layer.image
    if <size_t>shape[0] > image.count or <size_t>shape[1] != image.height or <size_t>shape[2] != image.width \
            or <size_t>shape[3] != image.channels:
        return None
    return convolve_codes(q, b, layer, bias, out)


def qconv2d(cnp.ndarray q, params, Packed b, filters, window, out_params, bias, how, tuple options, out):
    """Convolve codes q (count, height, width, channels); window is as describe_image has it.

    `filters` is a pair: their number, and that of groups. Without `out_params` the result are sums; else `bias`, `how`
    and `options` are as products.qlinear has them.
    """
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params)
    cdef qk_image image
    cdef qk_epilogue epilogue
    cdef size_t count = filters[0], groups = filters[1]
    cdef Layer layer
    biases, given = (None, None) if bias is None else (columns_of(bias[0], b, groups), bias[1])
    cdef cnp.ndarray codes = describe_image(q, window, of.one_zero_point, &image), y
    if out_params is not None:
        layer = new_layer(q, of, params_of(out_params), b, biases, how, options)
        layer.image, layer.filters, layer.groups = image, count, groups
        if layer.bias is not None and biases is not bias[0]:
            layer.bias = bias[0].copy()
        keep_layer(b, layer)
        return convolve_codes(q, b, layer, given, out)
    memset(&epilogue, 0, sizeof(epilogue))
    epilogue.type, epilogue.b_zero = QK_TO_INT32, b.c.zero_point
    _kept = None if bias is None else b.padded(biases, INT32)
    epilogue.int_bias = int32s(_kept)
    y = result_of(out, &image, count, INT32, q, given)
    convolve(q, codes, of, b, &image, count, groups, &epilogue, y)
    return y if out is None else out


def max_pool2d(cnp.ndarray q, window, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_image image
    cdef int is_signed = codes_type(q, "q"), status
    cdef cnp.ndarray codes = describe_image(q, window, 0, &image)
    cdef cnp.ndarray y = out_array(out, (image.count, *window[4], image.channels), q.dtype)
    if out is not None:
        refuse_overlap(y, q, "q")
    if cnp.PyArray_SIZE(codes) <= BRIEF:
        status = qk_max_pool(&image, is_signed, uint8s(y))
    else:
        with nogil:
            status = qk_max_pool(&image, is_signed, uint8s(y))
    check_status(status, codes)
    return y if out is None else out


def average_pool2d(cnp.ndarray q, params, out_params, window, with_padding, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params), to = params_of(out_params)
    cdef qk_image image
    cdef qk_epilogue epilogue
    cdef float[2] scales
    cdef int is_signed = codes_type(q, "q"), padded = with_padding, status
    memset(&epilogue, 0, sizeof(epilogue))
    scales[0], scales[1] = of.one_scale, to.one_scale
    epilogue.requant.zero_point, epilogue.requant.qmin, epilogue.requant.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    cdef cnp.ndarray codes = describe_image(q, window, of.one_zero_point, &image)
    cdef cnp.ndarray y = out_array(out, (image.count, *window[4], image.channels), to.dtype)
    if out is not None:
        refuse_overlap(y, q, "q")
    if cnp.PyArray_SIZE(codes) <= BRIEF:
        status = qk_average_pool(&image, is_signed, of.one_zero_point, padded, scales, &epilogue.requant, uint8s(y))
    else:
        with nogil:
            status = qk_average_pool(&image, is_signed, of.one_zero_point, padded, scales, &epilogue.requant, uint8s(y))
    check_status(status, codes)
    return y if out is None else out
