from typing import Any, Literal

import torch

from . import QParams, _Array

__all__ = ["FakeQuantize", "fake_quantize"]

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
