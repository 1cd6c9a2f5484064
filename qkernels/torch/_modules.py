"""Serve as layers of a model of PyTorch, on packed weights.

Autograd takes rounding for the identity: a layer passes gradients on to its input and its bias. Weights do not learn.
"""

import torch
from torch.compiler import is_dynamo_compiling

from .._bind import tensors
from .._bind.arrays import ACTIVATIONS
from .._checks import integer, is_a, shown
from .._choose import choose_qparams
from .._codebook import NF4, Codebook, encode
from .._conv import PackedConv, pack_conv
from .._qparams import code_dtype
from .._quantize import quantize
from .._weights import BITS, PackedMatrix, pack
from . import _operators
from ._packed_weight import PackedWeight

tensors.use(torch)

BLOCK_SIZE = 32  # of codes of less than 8 bits
CODEBOOKS = {"nf4": Codebook(NF4.levels, axis=0, block_size=64)}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Layer(torch.nn.Module):
    """Serve as a base: `weight` is packed, and `bias` a parameter, which does not learn unless it is told to."""

    def __init__(self, weight, outputs, bias):
        super().__init__()
        self.weight = weight
        zeros = torch.nn.Parameter(torch.zeros(outputs), requires_grad=False)
        self.register_parameter("bias", zeros if bias else None)

    def _take(self, packed, bias):
        """Hold packed weights and a copy of the bias, a tensor or None."""
        self.weight.hold(packed)
        if bias is not None:
            if not isinstance(bias, torch.Tensor):
                raise TypeError(f"bias must be a tensor or None, got {type(bias).__name__}")
            if bias.dtype not in _operators.FLOATS:
                raise TypeError(f"bias must be float32, float64, float16 or bfloat16, got {bias.dtype}")
            self.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)  # on its device
        return self

    def _operands(self, x):
        """Return what an operator is given."""
        if isinstance(x, torch.Tensor) and x.device.type not in ("cpu", "meta"):
            raise TypeError(f"x must be in the CPU's memory, got a tensor on {x.device}")
        return x, self.weight.number, self.bias


# ---- dense ----


class Linear(Layer):
    """Apply packed weights as `torch.nn.Linear` applies its own: each row of the input is quantized by its own range.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Weights come by `from_float`, `from_packed` or load_state_dict.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        What follows in the model, which can then do without: it costs next to nothing here.

    Attributes
    ----------
    weight : module
        ``weight.dequantize()`` returns what it stands for, (out_features, in_features).
    bias : Parameter or None

    References
    ----------
    `qkernels.linear`; docs/numerics.md, section 26.

    Examples
    --------
    >>> import torch
    >>> from qkernels.torch import Linear
    >>> layer = torch.nn.Linear(64, 8)
    >>> packed = Linear.from_float(layer, "uint4", method="mse")
    >>> x = torch.randn(3, 64)
    >>> bool((packed(x) - layer(x)).abs().max() < 0.3)
    True
    """

    def __init__(self, in_features, out_features, bias=True, activation=None):
        in_features, out_features = integer(in_features, "in_features", 0), integer(out_features, "out_features", 0)
        super().__init__(PackedWeight(PackedMatrix, (in_features, out_features)), out_features, bias)
        if activation not in (None, *ACTIVATIONS):
            raise ValueError(f"activation must be None, {', '.join(map(repr, ACTIVATIONS))}, got {shown(activation)}")
        self.activation = activation
        self.in_features, self.out_features = in_features, out_features
        self._plain = tensors.PlainLinear()

    @classmethod
    def from_float(cls, layer, weights="int8", *, activation=None, **options):
        """Return a layer with the weights of a `torch.nn.Linear`.

        Parameters
        ----------
        layer : torch.nn.Linear
            On the meta device it makes one without weights, for load_state_dict to fill.
        weights : str, Codebook or function
            A dtype of `pack`: codes of 8 bits have a scale for each output, those of less one for each `block_size`
            inputs of an output, 32 by default; ``float16`` and ``bfloat16`` are not quantized. ``nf4`` are its 16
            levels in blocks of 64; another Codebook is as `pack` takes it. A function makes a PackedMatrix of a float32
            array (in_features, out_features).
        activation : str, optional
        **options
            Those of `choose_qparams`, for a dtype, or of the function.

        Raises
        ------
        TypeError, ValueError
            As `choose_qparams` and `pack` do.
        """
        if not is_a(layer, torch.nn.Linear):
            raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, activation)
        if layer.weight.is_meta:
            return made
        return made._take(_packed(layer.weight.detach().T, weights, options), layer.bias)

    @classmethod
    def from_packed(cls, packed, bias=None, activation=None):
        """Return a layer of a PackedMatrix, and of a bias that is a tensor of shape (out_features,)."""
        if not is_a(packed, PackedMatrix):
            raise TypeError(f"packed must be a PackedMatrix, got {type(packed).__name__}")
        if bias is not None and bias.shape != packed.shape[1:]:
            raise ValueError(f"bias must have shape {packed.shape[1:]}, got {tuple(bias.shape)}")
        return cls(*packed.shape, bias is not None, activation)._take(packed, bias)

    def extra_repr(self):
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{text}, activation={self.activation!r}" if self.activation else text

    def forward(self, x):
        if not is_dynamo_compiling():
            try:
                bias = self._parameters["bias"]  # faster than `self.bias`
            except KeyError:  # it is computed
                bias = self.bias
            y = self._plain(x, self._modules["weight"].packed, bias, self.activation)
            if y is not None:
                return y
        return torch.ops.qkernels.linear(*self._operands(x), self.activation, self.out_features)


def _packed(w, weights, options):
    """Return the PackedMatrix of a tensor (in_features, out_features)."""
    if is_a(weights, str) and weights in HALVES:
        return pack(w.to(HALVES[weights]), None, **options)
    w = w.float().numpy()
    if callable(weights) and not isinstance(weights, type):  # a type may be a dtype
        return weights(w, **options)
    codebook = CODEBOOKS.get(weights, weights) if is_a(weights, str) else weights
    if is_a(codebook, Codebook):
        found = encode(w, codebook, **options)
        codes, scales = found if codebook.block_size else (found, None)
        return pack(codes, codebook, scales=scales)
    options = dict(block_size=BLOCK_SIZE if code_dtype(weights) in BITS else None) | options
    params = choose_qparams(w, weights, axis=1 if options["block_size"] is None else 0, **options)
    return pack(quantize(w, params), params)


# ---- convolution ----


class Conv2d(Layer):
    """Apply packed weights as `torch.nn.Conv2d` applies its own: each image is quantized by its own range.

    So no image changes the result of another in its batch. Results have channels last in memory, and inputs are best
    so, too.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`. Weights come by `from_float` or load_state_dict.

    Attributes
    ----------
    weight : module
        ``weight.dequantize()`` returns what it stands for, (out_channels, in_channels / groups, height, width).
    bias : Parameter or None

    References
    ----------
    `qkernels.qconv2d`; docs/numerics.md, section 26.

    Examples
    --------
    >>> import torch
    >>> from qkernels.torch import Conv2d
    >>> layer = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> packed = Conv2d.from_float(layer)
    >>> x = torch.randn(2, 3, 16, 16)
    >>> packed(x).shape, bool((packed(x) - layer(x)).abs().max() < 0.1)
    (torch.Size([2, 8, 8, 8]), True)
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        window = kernel_size, stride, padding, dilation
        like = torch.nn.Conv2d(in_channels, out_channels, *window, groups, bias, device="meta")  # which checks them
        shape = *like.kernel_size, in_channels // groups, out_channels, groups
        super().__init__(PackedWeight(PackedConv, shape), out_channels, bias)
        self.in_channels, self.out_channels, self._described = in_channels, out_channels, like.extra_repr()
        window = dict(kernel_size=like.kernel_size, stride=like.stride, padding=_sides(like), dilation=like.dilation)
        self.window = [[integer(n, name, int(name != "padding")) for n in sides] for name, sides in window.items()]

    @classmethod
    def from_float(cls, layer, weights="int8", **options):
        """Return a layer with the weights of a `torch.nn.Conv2d`.

        Parameters
        ----------
        layer : torch.nn.Conv2d
            On the meta device it makes one without weights, for load_state_dict to fill.
        weights : {"int8", "uint8"}
            With a scale for each filter.
        **options
            Those of `choose_qparams`.

        Raises
        ------
        TypeError, ValueError
            As `choose_qparams` and `pack_conv` do; and for padding with anything but zeros.
        """
        if not is_a(layer, torch.nn.Conv2d):
            raise TypeError(f"layer must be a torch.nn.Conv2d, got {type(layer).__name__}")
        if layer.padding_mode != "zeros":
            raise ValueError(f"layer must pad with zeros, got padding_mode={layer.padding_mode!r}")
        window = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        made = cls(layer.in_channels, layer.out_channels, *window, layer.groups, layer.bias is not None)
        if layer.weight.is_meta:
            return made
        w = layer.weight.detach().float().permute(2, 3, 1, 0).numpy()
        params = choose_qparams(w, weights, axis=3, **options)
        return made._take(pack_conv(quantize(w, params), params, groups=layer.groups), layer.bias)

    def extra_repr(self):
        return self._described

    def forward(self, x):
        return torch.ops.qkernels.conv2d(*self._operands(x), self.out_channels, *self.window)


def _sides(like):
    """Return the padding of a torch.nn.Conv2d: top, left, bottom, right."""
    if like.padding == "valid":
        return [0, 0, 0, 0]
    if like.padding == "same":
        both = [d * (k - 1) for d, k in zip(like.dilation, like.kernel_size, strict=True)]
        return [n // 2 for n in both] + [n - n // 2 for n in both]
    return [*like.padding, *like.padding]
