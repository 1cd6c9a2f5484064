"""Convolve images of codes, and pool them. Formulas: docs/numerics.md, section 22."""

import math
from functools import lru_cache

import numpy as np

from ._bind import conv
from ._bind.arrays import FLOATS, as_array, contiguous_as
from ._bind.runtime import shown, word
from ._bind.weights import Packed
from ._checks import array_named, arrays_named, boolean, integer, is_a, number_named
from ._mode import default_mode
from ._products import BYTES, check_byte_params, checked_bias, codes_of, layer_of_codes
from ._qparams import QParams, code_range, smallest, spread
from ._value import Sealed

MOST = 2**31 - 1  # sizes, strides and padding; and pixels of a window times 255


def pack_conv(w, params, *, groups=1):
    """Pack the weights of a convolution in the layout that `qconv2d` reads fastest.

    Parameters
    ----------
    w : int8 or uint8 array of shape (height, width, C / groups, F)
        Strides are free: weights of ONNX and PyTorch, (F, C / groups, height, width), come by
        ``w.transpose(2, 3, 1, 0)``.
    params : QParams
        Per tensor, or per filter (``axis=3``), of dtype `w.dtype`.
    groups : int
        Filters of a group see the channels of that group alone. With C groups of one channel and one filter the
        convolution is depthwise, and has kernels of its own.

    Returns
    -------
    PackedConv

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or axis, and groups that do not divide the filters.

    References
    ----------
    docs/numerics.md, section 22.

    Examples
    --------
    >>> w = np.ones((3, 3, 1, 8), np.int8)
    >>> qk.pack_conv(w, qk.QParams(0.5), groups=8)
    PackedConv(shape=(3, 3, 1, 8), params=QParams(scale=0.5, dtype='int8'), groups=8)
    """
    return PackedConv(w, params, groups)


NAMES = "codes", "scale", "zero_point", "qmin", "groups"  # of `to_arrays`


class PackedConv(Sealed):
    """Hold the weights of a convolution as `pack_conv` makes them: read-only, picklable, to be used from any thread.

    Attributes
    ----------
    shape : (int, int, int, int)
        (height, width, C / groups, F)
    groups : int
    params : QParams
    dtype : dtype
    nbytes : int
        As that of a PackedMatrix. Filters of each of several groups are padded to whole panels, which it counts.

    Examples
    --------
    >>> packed = qk.pack_conv(np.ones((1, 1, 2, 3), np.int8), qk.QParams(0.5))
    >>> qk.PackedConv.from_arrays(packed.to_arrays()).unpack().shape
    (1, 1, 2, 3)
    """

    __slots__ = "_packed", "groups", "shape"

    @default_mode
    def __new__(cls, w, params, groups=1):
        w, groups = as_array(w, "w"), integer(groups, "groups", 1)
        _check_weights(w, params, groups)
        height, width, depth, filters = w.shape
        matrix = contiguous_as(w, w.dtype).reshape(height * width * depth, filters)
        if params.axis is not None:
            params = _of_columns(params, params.scale, params.zero_point)
        is_depthwise = depth == 1 and groups == filters > 1
        packed = Packed(matrix, params, None, height) if is_depthwise else Packed(*_padded(matrix, params, groups))
        self = super().__new__(cls)
        for name, value in zip(cls.__slots__, (packed, groups, w.shape), strict=True):
            object.__setattr__(self, name, value)
        return self

    @default_mode
    def __repr__(self):
        return f"PackedConv(shape={self.shape}, params={self.params}, groups={self.groups})"

    @property
    def _is_depthwise(self):
        return self.shape[2] == 1 and self.groups == self.shape[3] > 1

    @property
    def dtype(self):
        return self._packed.dtype

    @property
    def nbytes(self):
        return self._packed.nbytes

    @property
    def params(self):
        kept = self._packed._kept
        if isinstance(kept, QParams):
            return kept
        scale, zero_point = (np.ascontiguousarray(self._of_filters(values)) for values in self._packed._columns())
        return QParams._chosen(scale, zero_point, self.dtype, kept[:2], 3, None)

    def _of_filters(self, columns):
        """Return of columns, in the last axis, those that do not pad a group."""
        if self.groups == 1 or self._is_depthwise:
            return columns
        filters = self.shape[3] // self.groups
        return columns.reshape(*columns.shape[:-1], self.groups, -1)[..., :filters].reshape(*columns.shape[:-1], -1)

    def unpack(self):
        """Return the weights as they were packed: (height, width, C / groups, F), of dtype `dtype`."""
        return self._of_filters(self._packed.unpack()).reshape(self.shape)

    @default_mode
    def to_arrays(self):
        """Return plain arrays that hold all of it, for safetensors, npz and the like.

        `from_arrays` reads them on any machine.

        Returns
        -------
        dict of str to array
            ``codes`` (height, width, C / groups, F), ``scale`` and ``zero_point`` (their shape in `params`; () if all
            zero points are equal), ``qmin`` () and ``groups`` (). Scales are float16 if that holds them all exactly.
        """
        p = self.params
        scale, zero_point = (np.asarray(a) for a in smallest(p.scale, p.zero_point))
        return {
            "codes": self.unpack(),
            "scale": scale,
            "zero_point": zero_point,
            "qmin": np.array(p.qmin, np.int32),
            "groups": np.array(self.groups),
        }

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Pack for this machine the convolution whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        arrays = arrays_named(arrays, NAMES)
        codes, scale = array_named(arrays, "codes", *BYTES), array_named(arrays, "scale", *FLOATS)
        qmin, lowest = number_named(arrays, "qmin"), code_range(codes.dtype)[0]
        if qmin not in (lowest, lowest + 1):
            raise ValueError(f"qmin must be {lowest} or {lowest + 1} for codes of {codes.dtype}, got {qmin}")
        zero_point = spread(array_named(arrays, "zero_point"), scale.shape)
        axis = 3 if scale.ndim else None
        params = QParams(scale, zero_point, codes.dtype, axis=axis, narrow_range=qmin != lowest)
        return cls(codes, params, number_named(arrays, "groups", 1))


def _check_weights(w, params, groups):
    if w.dtype not in BYTES:
        raise TypeError(f"w must be int8 or uint8, got {w.dtype}")
    if not is_a(params, QParams):
        raise TypeError(f"params must be QParams, got {type(params).__name__}")
    if w.dtype != params.dtype:
        raise TypeError(f"w must have dtype {params.dtype} (as params), got {w.dtype}")
    if w.ndim != 4 or 0 in w.shape[:2]:
        raise ValueError(f"w must have shape (height, width, C / groups, F), got {w.shape}")
    if params.axis not in (None, 3, -1) or params.block_size is not None:
        raise ValueError(
            f"params must be per tensor or per filter (axis=3), got axis={params.axis}, block_size={params.block_size}"
        )
    params.check_shape(w.shape, "w")
    if w.shape[3] % groups:
        raise ValueError(f"groups must divide the {w.shape[3]} filters of w, got {groups}")
    if groups * w.shape[2] > MOST:
        raise ValueError(f"groups must make at most {MOST} channels, got {groups} of {w.shape[2]}")
    if params.qmin != code_range(w.dtype)[0] and w.size and w.min() < params.qmin:
        raise ValueError(f"w must hold codes from {params.qmin} on, as params have a narrow range, got {w.min()}")


def _of_columns(params, scale, zero_point):
    """Return params of the columns of a matrix, with the codes of `params`."""
    return QParams._chosen(scale, zero_point, params.dtype, (params.qmin, params.qmax), 1, None)


def _padded(matrix, params, groups):
    """Return weights (K, F) and their params, each group's columns padded to whole panels if there are several."""
    k, filters = matrix.shape
    if groups == 1:
        return matrix, params
    of_group = filters // groups
    columns = -(-of_group // conv.group_columns()) * conv.group_columns()
    fill = np.broadcast_to(params.zero_point, (groups, of_group))[:, :1] if params.axis is None else 0
    padded = np.full((k, groups, columns), fill, matrix.dtype)
    padded[..., :of_group] = matrix.reshape(k, groups, of_group)
    if params.axis is not None:
        scale, zero_point = np.ones((groups, columns), np.float32), np.zeros((groups, columns), np.int32)
        scale[:] = params.scale.reshape(groups, of_group)[:, :1]
        scale[:, :of_group] = params.scale.reshape(groups, of_group)
        zero_point[:, :of_group] = params.zero_point.reshape(groups, of_group)
        params = _of_columns(params, scale.reshape(-1), zero_point.reshape(-1))
    return padded.reshape(k, groups * columns), params


# ---- windows ----


def _pair(value, name, least):
    """Return one number, for height and width, or two."""
    if type(value) is int and least <= value <= MOST:
        return value, value
    values = _numbers(value, name, least)
    if len(values) > 2:
        raise ValueError(f"{name} must be one integer or two, got {shown(value)}")
    return values * 2 if len(values) == 1 else values


def _numbers(value, name, least):
    if is_a(value, int, np.integer):
        value = (value,)
    try:
        values = tuple(value)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"{name} must be an integer or a tuple of integers, got {shown(value)}") from error
    values = tuple(integer(entry, name, least, what="an integer or a tuple of integers") for entry in values)
    if not values or max(values) > MOST:
        raise ValueError(f"{name} must hold integers of at most {MOST}, got {shown(value)}")
    return values


def _sides(padding):
    """Return (top, left, bottom, right), or a name."""
    if type(padding) is int and 0 <= padding <= MOST:
        return (padding,) * 4
    named = word(padding)
    if is_a(named, str):
        if named not in ("same_upper", "same_lower"):
            raise ValueError(f"padding must be numbers, 'same_upper' or 'same_lower', got {shown(padding)}")
        return named
    sides = _numbers(padding, "padding", 0)
    if len(sides) not in (1, 2, 4):
        raise ValueError(f"padding must be one number, two or four (top, left, bottom, right), got {shown(padding)}")
    return sides * (4 // len(sides))


def _same(n, reach, stride, padding):
    """Return the padding before and after an axis of length n."""
    total = max(0, (-(-n // stride) - 1) * stride + reach - n)
    less = total // 2
    return (less, total - less) if padding == "same_upper" else (total - less, less)


def _window(q, kernel, strides, padding, dilations, what):
    """Return what the binding calls a window, of images q; `what` is the argument that has the kernel."""
    if q.ndim != 4:
        raise ValueError(f"q must have shape (N, H, W, C), got {q.shape}")
    plain = type(dilations) is int and (type(strides) is int or strides is kernel) and type(padding) in (int, str)
    find = _known_window if plain else _find_window  # 1.0, which equals 1, must not find what 1 left
    return find(q.shape[1:3], kernel, strides, padding, dilations, what)


def _find_window(image, kernel, strides, padding, dilations, what):
    (sy, sx), (dy, dx) = strides, dilations = _pair(strides, "strides", 1), _pair(dilations, "dilations", 1)
    height, width = image
    ry, rx = (kernel[0] - 1) * dy + 1, (kernel[1] - 1) * dx + 1
    sides = _sides(padding)
    if isinstance(sides, str):
        (top, bottom), (left, right) = _same(height, ry, sy, sides), _same(width, rx, sx, sides)
    else:
        top, left, bottom, right = sides
    height, width = top + height + bottom, left + width + right
    if ry > height or rx > width:
        raise ValueError(f"{what} must fit the padded image of {height, width}, got a kernel that spans {ry, rx}")
    return kernel, strides, dilations, (top, left), ((height - ry) // sy + 1, (width - rx) // sx + 1)


_known_window = lru_cache(256)(_find_window)


def _check_size(q, window, channels, item):
    """Raise if the result, of channels of so many bytes, is larger than an array can be."""
    height, width = window[4]
    size = len(q) * height * width * channels * item
    if size > 2**63 - 1:
        raise ValueError(f"q, strides and padding make a result of {size} bytes, which no array holds")


def qconv2d(
    q,
    params,
    packed,
    out_params,
    bias=None,
    *,
    strides=1,
    padding=0,
    dilations=1,
    activation=None,
    clamp=None,
    rounding="half_even",
    out=None,
):
    """Convolve images of codes: the integer sums of each window, requantized by `out_params`.

    Parameters
    ----------
    q : uint8 or int8 array of shape (N, H, W, C)
        Codes of dtype `params.dtype`. Other layouts come by strides, at the cost of one copy: images (N, C, H, W) by
        ``q.transpose(0, 2, 3, 1)``.
    params : QParams
        Those of q, per tensor.
    packed : PackedConv
    out_params : QParams or None
        Those of the result, per tensor; uint8 or int8. None: the result are the sums, int32 modulo 2**32.
    bias : int32 or float array of shape (F,), optional
        int32 is in units of scale(q) * scale(w) and added to the sums; floats are real values.
    strides, dilations : int or (int, int)
        Of height and width.
    padding : int, (int, int), (top, left, bottom, right), "same_upper" or "same_lower"
        With the zero point, that is with the real value 0. ``same_upper`` makes the result ``ceil(n / stride)`` long,
        and gives an odd pixel to the end, as TensorFlow's SAME.
    activation, clamp, rounding
        As in `qlinear`; None of them with sums.
    out : array of dtype `out_params.dtype`, or int32, and of shape (N, H', W', F), optional
        C-contiguous; may not overlap q or bias.

    Returns
    -------
    array of dtype `out_params.dtype`, or int32, and of shape (N, H', W', F)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, rounding or `out`, which is then left untouched; for a kernel larger than the padded
        image; and, unless sums are asked for, for weights with which an int32 sum could overflow.

    References
    ----------
    ONNX QLinearConv-10 and ConvInteger-10; docs/numerics.md, section 22.

    Examples
    --------
    >>> packed = qk.pack_conv(np.ones((3, 3, 1, 1), np.int8), qk.QParams(0.5))
    >>> q = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    >>> params = qk.QParams(0.1, 0, "uint8")
    >>> qk.qconv2d(q, params, packed, None, padding=1, strides=2)[0, ..., 0]
    array([[10, 24],
           [51, 90]], dtype=int32)
    >>> qk.qconv2d(q, params, packed, qk.QParams(0.25, 10, "uint8"))[0, ..., 0]
    array([[19, 21],
           [26, 28]], dtype=uint8)
    """
    if type(packed) is not PackedConv and not is_a(packed, PackedConv):
        raise TypeError(f"packed must be a PackedConv, got {type(packed).__name__}")
    options = strides, padding, dilations, activation, clamp, rounding
    y = conv.qconv2d_again(q, params, packed._packed, out_params, bias, options, out)
    if y is not None:
        return y
    q = codes_of(q, params)
    *kernel, depth, filters = packed.shape
    window = _window(q, tuple(kernel), strides, padding, dilations, "packed")
    channels = packed.groups * depth
    if q.shape[3] != channels:
        raise ValueError(f"q must have {channels} channels to match packed, got shape {q.shape}")
    _check_size(q, window, filters, 4 if out_params is None else 1)
    if out_params is None:
        biases, how = _bias_of_sums(bias, filters, activation, clamp, rounding), None
    else:
        biases, how = layer_of_codes(filters, out_params, bias, activation, clamp, rounding)
    count = filters, packed.groups
    return conv.qconv2d(q, params, packed._packed, count, window, out_params, biases, how, options, out)


def _bias_of_sums(bias, filters, activation, clamp, rounding):
    """Return the bias as `layer_of_codes` does, of sums that stay what they are."""
    for name, given, default in (("activation", activation, None), ("clamp", clamp, None)):
        if given is not default:
            raise ValueError(f"{name} must be None where out_params is None, got {shown(given)}")
    if word(rounding) != "half_even":
        raise ValueError(f"rounding must be 'half_even' where out_params is None, got {shown(rounding)}")
    if bias is None:
        return None
    bias = as_array(bias, "bias")
    return checked_bias(bias, filters, "tflite"), bias


# ---- pools ----


def max_pool2d(q, kernel, *, strides=None, padding=0, dilations=1, out=None):
    """Take the largest code of each window, which has the largest value.

    Parameters
    ----------
    q : uint8 or int8 array of shape (N, H, W, C)
    kernel : int or (int, int)
    strides : int or (int, int), optional
        Those of the kernel by default.
    padding, dilations
        As in `qconv2d`; what is padding is left out. A window of nothing else has the least code.
    out : array of the dtype of q and of shape (N, H', W', C), optional
        C-contiguous; may not overlap q.

    Returns
    -------
    array of the dtype of q and of shape (N, H', W', C)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape or `out`, which is then left untouched, and for a kernel larger than the padded image.

    References
    ----------
    ONNX MaxPool-12.

    Examples
    --------
    >>> qk.max_pool2d(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), 2)[0, ..., 0]
    array([[ 5,  7],
           [13, 15]], dtype=uint8)
    """
    q = as_array(q, "q")
    if q.dtype not in BYTES:
        raise TypeError(f"q must be uint8 or int8, got {q.dtype}")
    kernel = _pair(kernel, "kernel", 1)
    window = _window(q, kernel, kernel if strides is None else strides, padding, dilations, "kernel")
    _check_size(q, window, q.shape[3], 1)
    return conv.max_pool2d(q, window, out)


def qaverage_pool2d(
    q, params, out_params, kernel, *, strides=None, padding=0, dilations=1, count_include_pad=False, out=None
):
    """Take the mean of each window: the sum of its codes, exact, times one multiplier.

    Parameters
    ----------
    q : uint8 or int8 array of shape (N, H, W, C)
        Codes of dtype `params.dtype`.
    params, out_params : QParams
        Those of q and of the result, per tensor.
    kernel : int or (int, int)
    strides : int or (int, int), optional
        Those of the kernel by default.
    padding, dilations
        As in `qconv2d`.
    count_include_pad : bool
        Whether the sum is divided by the size of the kernel, or by the number of pixels that are in the image.
    out : array of dtype `out_params.dtype` and shape (N, H', W', C), optional
        C-contiguous; may not overlap q.

    Returns
    -------
    array of dtype `out_params.dtype` and shape (N, H', W', C)

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`, and for a kernel of so many pixels that an int32 sum could overflow.

    References
    ----------
    ONNX AveragePool-22; docs/numerics.md, section 22.

    Examples
    --------
    >>> params = qk.QParams(0.5, dtype="uint8")
    >>> qk.qaverage_pool2d(np.uint8([[[[1], [2]], [[3], [7]]]]), params, params, 2)
    array([[[[3]]]], dtype=uint8)
    """
    q, kernel = codes_of(q, params), _pair(kernel, "kernel", 1)
    check_byte_params(out_params, "out_params")
    counted = boolean(count_include_pad, "count_include_pad")
    if math.prod(kernel) * 255 > MOST:
        raise ValueError(f"kernel must have at most {MOST // 255} pixels, or int32 could overflow, got {kernel}")
    window = _window(q, kernel, kernel if strides is None else strides, padding, dilations, "kernel")
    _check_size(q, window, q.shape[3], 1)
    return conv.average_pool2d(q, params, out_params, window, counted, out)


def qglobal_average_pool(q, params, out_params, *, out=None):
    """Take the mean of each image.

    Parameters
    ----------
    q : uint8 or int8 array of shape (N, H, W, C)
        Codes of dtype `params.dtype`.
    params, out_params : QParams
        Those of q and of the result, per tensor.
    out : array of dtype `out_params.dtype` and shape (N, 1, 1, C), optional
        C-contiguous; may not overlap q.

    Returns
    -------
    array of dtype `out_params.dtype` and shape (N, 1, 1, C)
        Bit for bit that of onnxruntime's QLinearGlobalAveragePool.

    Raises
    ------
    TypeError, ValueError
        As `qaverage_pool2d`; also for images without pixels.

    Examples
    --------
    >>> params = qk.QParams(0.5, dtype="uint8")
    >>> qk.qglobal_average_pool(np.uint8([[[[1], [2]], [[3], [7]]]]), params, params)
    array([[[[3]]]], dtype=uint8)
    """
    q = codes_of(q, params)
    check_byte_params(out_params, "out_params")
    if q.ndim != 4 or 0 in q.shape[1:3]:
        raise ValueError(f"q must have shape (N, H, W, C) and pixels, got {q.shape}")
    if math.prod(q.shape[1:3]) * 255 > MOST:
        raise ValueError(f"q must have at most {MOST // 255} pixels, or int32 could overflow, got shape {q.shape}")
    one = 1, 1
    return conv.average_pool2d(q, params, out_params, (q.shape[1:3], one, one, (0, 0), one), False, out)
