"""Train with quantization: operators with gradients, which torch.compile takes as they are, and a module.

Formulas: docs/numerics.md, section 26. Tensors are in the memory of the CPU: float32, float64, float16 or bfloat16.
"""

import math

import numpy as np
import torch

from .._checks import is_a
from .._choose import choose_qparams
from .._qparams import FLOAT_CODES, QParams, code_dtype, code_range
from .._quantize import fake_quantize as _fake_quantize
from .._quantize import fake_quantize_grad as _fake_quantize_grad
from ._operators import refuse_meta, refuse_tangents

__all__ = ["FakeQuantize", "fake_quantize"]


def fake_quantize(
    x,
    scale,
    zero_point=None,
    dtype="int8",
    *,
    axis=None,
    block_size=None,
    narrow_range=False,
    edge="rounded",
    grad_factor=1.0,
):
    """Quantize and dequantize x, so that gradients reach x, the scale and the zero point.

    Parameters
    ----------
    x : Tensor of float32, float64, float16 or bfloat16
    scale : Tensor of floats
        In the shape that `QParams` takes with `axis` and `block_size`; positive.
    zero_point : Tensor of integers or floats, of the shape of `scale`, optional
        Floats are rounded half to even and kept within the codes, and have a gradient.
    dtype : str
    axis, block_size : int, optional
    narrow_range : bool
    edge : {"rounded", "clipped"}
        As `qkernels.fake_quantize_grad` has it.
    grad_factor : float
        What gradients of the scale and of the zero point are multiplied by: LSQ's 1 / sqrt(n * qmax).

    Returns
    -------
    Tensor of the dtype and shape of x

    Raises
    ------
    TypeError, ValueError
        As `QParams` and `qkernels.fake_quantize` do.

    References
    ----------
    Esser et al., *Learned Step Size Quantization*, 2020.

    Examples
    --------
    >>> import torch
    >>> from qkernels.torch import fake_quantize
    >>> x = torch.tensor([0.3, 0.9, 99.0], requires_grad=True)
    >>> y = fake_quantize(x, torch.tensor(0.5), dtype="int4")
    >>> y.sum().backward()
    >>> y.detach(), x.grad
    (tensor([0.5000, 1.0000, 3.5000]), tensor([1., 1., 0.]))
    """
    if edge not in ("rounded", "clipped"):
        raise ValueError(f"edge must be 'rounded' or 'clipped', got {edge!r}")
    if type(narrow_range) is not bool:
        raise TypeError(f"narrow_range must be a bool, got {narrow_range!r}")
    if type(grad_factor) not in (int, float):
        raise TypeError(f"grad_factor must be a float, got {grad_factor!r}")
    where = axis, block_size, narrow_range
    return torch.ops.qkernels.fake_quantize(x, scale, zero_point, str(dtype), *where, edge, float(grad_factor))


class FakeQuantize(torch.nn.Module):
    """Quantize and dequantize what passes, by scales that are learned (LSQ): `scale` is a parameter.

    Parameters
    ----------
    params : QParams
        What training begins with. Zero points stay as they are.

    Attributes
    ----------
    scale : Parameter

    Examples
    --------
    >>> from qkernels.torch import FakeQuantize
    >>> import torch
    >>> w = torch.linspace(-1, 1, 12).reshape(4, 3)
    >>> learned = FakeQuantize.of(w, "int4", axis=1)
    >>> learned(w).shape, learned.qparams().scale.shape
    (torch.Size([4, 3]), (3,))
    """

    def __init__(self, params):
        super().__init__()
        if not is_a(params, QParams):
            raise TypeError(f"params must be QParams, got {type(params).__name__}")
        if params.dtype in FLOAT_CODES:
            raise TypeError(f"params must have an integer dtype, whose scales are learned, got {params.dtype}")
        if params.block_scale is not None:
            raise ValueError(f"params must not have integer scales, which are not learned, got {params!r}")
        self.scale = torch.nn.Parameter(torch.tensor(np.array(params.scale)))
        self.register_buffer("zero_point", torch.tensor(np.array(params.zero_point)))
        self.dtype, self.axis, self.block_size = params.dtype.name, params.axis, params.block_size
        self.qmax, self.narrow_range = float(params.qmax), params.qmin != code_range(params.dtype)[0]

    @classmethod
    def of(cls, x, dtype="int8", *, method="mse", **options):
        """Begin with the parameters that `choose_qparams` chooses for x."""
        return cls(choose_qparams(x, dtype, method=method, **options))

    def forward(self, x):
        factor = 1 / math.sqrt(max(x.numel() / max(self.scale.numel(), 1) * self.qmax, 1))
        where = dict(axis=self.axis, block_size=self.block_size, narrow_range=self.narrow_range)
        return fake_quantize(x, self.scale, self.zero_point, self.dtype, **where, edge="clipped", grad_factor=factor)

    def extra_repr(self):
        return f"dtype={self.dtype!r}, axis={self.axis}, block_size={self.block_size}"

    @torch.no_grad()
    def clamp_(self, least=1e-6):
        """Keep scales from becoming 0 or negative; call it after each step of an optimizer."""
        self.scale.clamp_(min=least)
        return self

    def qparams(self):
        """Return what has been learned, for `quantize`, `pack` and the products of integers."""
        return _params(self.scale, self.zero_point, self.dtype, self.axis, self.block_size, self.narrow_range)


# ---- operators ----

_PARAMS = "Tensor scale, Tensor? zero_point, str dtype, int? axis, int? block_size, bool narrow_range, str edge"


@torch.library.custom_op(
    "qkernels::fake_quantize", mutates_args=(), schema=f"(Tensor x, {_PARAMS}, float grad_factor) -> Tensor"
)
def _forward(x, scale, zero_point, dtype, axis, block_size, narrow_range, edge, grad_factor):
    refuse_tangents()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    params = _params(scale, zero_point, dtype, axis, block_size, narrow_range)
    if x.numel():  # an empty tensor has no memory that NumPy could write
        _fake_quantize(x, params, out=out)
    return out


@torch.library.custom_op(
    "qkernels::fake_quantize_grad",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, {_PARAMS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad, x, scale, zero_point, dtype, axis, block_size, narrow_range, edge):
    params = _params(scale, zero_point, dtype, axis, block_size, narrow_range)
    grad_x, *of_params = (_tensor(a) for a in _fake_quantize_grad(grad, x, params, edge=edge))
    return grad_x, *(a.to(scale.dtype).reshape(scale.shape) for a in of_params)


@_forward.register_fake
def _(x, scale, zero_point, *_):
    refuse_meta(x, scale=scale, zero_point=zero_point)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad, x, scale, *_):
    like = torch.empty_like(scale, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=torch.contiguous_format), like, torch.empty_like(like)


def _keep(ctx, inputs, output):
    x, scale, zero_point, *ctx.options, ctx.grad_factor = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _gradients(ctx, grad):
    x, scale, zero_point = ctx.saved_tensors
    grad_x, grad_scale, grad_zero = torch.ops.qkernels.fake_quantize_grad(grad, x, scale, zero_point, *ctx.options)
    learned = zero_point is not None and zero_point.is_floating_point()
    grad_zero = (grad_zero * ctx.grad_factor).to(zero_point.dtype) if learned else None
    return grad_x, grad_scale * ctx.grad_factor, grad_zero, *(None for _ in ctx.options), None


_forward.register_autograd(_gradients, setup_context=_keep)


def _params(scale, zero_point, dtype, axis, block_size, narrow_range):
    """Return parameters of tensors; zero points that are floats become codes."""
    dtype = code_dtype(dtype)
    if zero_point is not None and zero_point.is_floating_point():
        zero_point = zero_point.detach().round().clamp(*code_range(dtype, narrow_range)).int()
    return QParams(scale.detach(), zero_point, dtype, axis=axis, block_size=block_size, narrow_range=narrow_range)


def _tensor(array):
    """Return the memory of an array, or scalar, as a tensor."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
