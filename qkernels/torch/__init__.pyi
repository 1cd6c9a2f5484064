from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, type_check_only

import torch

from .. import Codebook, PackedConv, PackedMatrix, QParams, _Array, _Codes

__all__ = ["Conv2d", "FakeQuantize", "Linear", "attention", "fake_quantize", "quantize_module"]

_Weights: TypeAlias = str | _Codes | Codebook | Callable[..., PackedMatrix]
_Wish: TypeAlias = _Weights | dict[str, Any] | None
_Activation: TypeAlias = Literal["relu", "gelu", "gelu_tanh", "silu"] | None
_Size: TypeAlias = int | tuple[int, int]

def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    dtype: str = "int8",
    *,
    axis: int | None = None,
    block_size: int | None = None,
    narrow_range: bool = False,
    edge: Literal["rounded", "clipped"] = "rounded",
    grad_factor: float = 1.0,
) -> torch.Tensor: ...

class FakeQuantize(torch.nn.Module):
    scale: torch.nn.Parameter
    zero_point: torch.Tensor
    dtype: str
    axis: int | None
    block_size: int | None
    narrow_range: bool
    qmax: float
    def __init__(self, params: QParams) -> None: ...
    @classmethod
    def of(cls, x: _Array, dtype: str = "int8", *, method: str = "mse", **options: Any) -> FakeQuantize: ...
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...
    def clamp_(self, least: float = 1e-6) -> FakeQuantize: ...
    def qparams(self) -> QParams: ...

@type_check_only
class _PackedWeight(torch.nn.Module):
    packed: PackedMatrix | PackedConv | None
    number: torch.Tensor
    @property
    def nbytes(self) -> int: ...
    def hold(self, packed: PackedMatrix | PackedConv) -> None: ...
    def dequantize(self) -> torch.Tensor: ...

class Linear(torch.nn.Module):
    weight: _PackedWeight
    bias: torch.nn.Parameter | None
    in_features: int
    out_features: int
    activation: _Activation
    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: _Activation = None
    ) -> None: ...
    @classmethod
    def from_float(
        cls, layer: torch.nn.Linear, weights: _Weights = "int8", *, activation: _Activation = None, **options: Any
    ) -> Linear: ...
    @classmethod
    def from_packed(
        cls, packed: PackedMatrix, bias: torch.Tensor | None = None, activation: _Activation = None
    ) -> Linear: ...
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

class Conv2d(torch.nn.Module):
    weight: _PackedWeight
    bias: torch.nn.Parameter | None
    in_channels: int
    out_channels: int
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | Literal["same", "valid"] = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None: ...
    @classmethod
    def from_float(cls, layer: torch.nn.Conv2d, weights: _Codes = "int8", **options: Any) -> Conv2d: ...
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

def quantize_module(
    model: torch.nn.Module,
    recipe: Mapping[str | type[torch.nn.Module], _Wish] | Callable[[str, torch.nn.Module], _Wish] | _Wish = "int8",
    *,
    inplace: bool = False,
) -> torch.nn.Module: ...
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    *,
    starts: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor: ...
