"""Attend by integers in models of PyTorch, with gradients. Formulas: docs/numerics.md, sections 10 and 26."""

import math
from itertools import pairwise

import torch

from .._layers import attention as _attention
from ._operators import define, differentiate, floats_of, implement, library, refuse_meta, refuse_second

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? starts, int heads, float? scale"
define("attention", _INPUTS)
library.define(f"attention_grad(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)")


def attention(q, k, v, heads, *, starts=None, scale=None):
    """Attend as `qkernels.attention` does: ``softmax(scale * q @ k.T) @ v`` for each head of each sequence.

    Gradients are those of attention in floats.

    Parameters
    ----------
    q, k, v : Tensors of floats, of shape (tokens, heads * size)
        Columns of a wider tensor are read in place.
    heads : int
    starts : Tensor of integers, of shape (sequences + 1,), optional
        Sequences lie one after another, without padding: sequence i is the tokens ``starts[i]:starts[i + 1]``.
    scale : float, optional
        ``1 / sqrt(size)`` by default.

    Returns
    -------
    Tensor of the dtype and shape of q

    Raises
    ------
    TypeError, ValueError
        As `qkernels.attention` does.

    Examples
    --------
    >>> import torch
    >>> from qkernels.torch import attention
    >>> q, k, v = torch.randn(9, 3 * 64).chunk(3, dim=1)
    >>> attention(q, k, v, 4, starts=torch.tensor([0, 5, 9])).shape
    torch.Size([9, 64])
    """
    return torch.ops.qkernels.attention(q, k, v, starts, heads, None if scale is None else float(scale))


@implement("attention")
def _(q, k, v, starts, heads, scale):
    rows = floats_of(q, "q"), floats_of(k, "k"), floats_of(v, "v")
    y = _attention(*rows, heads, starts=None if starts is None else starts.numpy(), scale=scale)
    return torch.from_numpy(y).to(q.dtype)


@torch.library.register_fake("qkernels::attention_plain", lib=library)
def _(q, k, v, starts, heads, scale):
    refuse_meta(q, k=k, v=v, starts=starts)
    return q.new_empty(q.shape)


@torch.library.impl("qkernels::attention_grad", "cpu", lib=library)
def _(grad, q, k, v, starts, heads, scale):
    found = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (q, k, v)]
    scale = 1 / math.sqrt(q.shape[1] // heads) if scale is None else scale
    for begin, end in pairwise([0, len(q)] if starts is None else starts.tolist()):
        parts = [x[begin:end].float().unflatten(1, (heads, -1)).transpose(0, 1) for x in (grad, q, k, v)]
        for tensor, part in zip(found, _gradients_of_sequence(*parts, scale), strict=True):
            tensor[begin:end] = part.transpose(0, 1).flatten(1)
    return tuple(found)


def _gradients_of_sequence(grad, q, k, v, scale):
    """Return the gradients of q, k and v (heads, tokens, size)."""
    weights = torch.softmax(scale * q @ k.mT, -1)
    of_weights = grad @ v.mT
    of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    return of_scores @ k, of_scores.mT @ q, weights.mT @ grad


@torch.library.register_fake("qkernels::attention_grad", lib=library)
def _(grad, q, k, v, starts, heads, scale):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v))


def _keep(ctx, inputs, output):
    *tensors, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad):
    return *torch.ops.qkernels.attention_grad(grad, *ctx.saved_tensors, ctx.heads, ctx.scale), None, None, None


differentiate("attention", _gradients, _keep)
torch.library.register_autograd("qkernels::attention_grad", refuse_second, lib=library)
