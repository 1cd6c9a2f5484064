from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import Codebook, QParams, _Array

__all__ = ["from_awq", "from_bitsandbytes", "from_gptq", "to_awq", "to_bitsandbytes", "to_gptq"]

def from_gptq(
    arrays: Mapping[str, _Array], *, bits: Literal[2, 3, 4, 8] = 4, version: Literal[1, 2] = 1
) -> tuple[NDArray[Any], QParams, NDArray[np.int64] | None]: ...
def to_gptq(
    codes: _Array,
    params: QParams,
    order: _Array | None = None,
    *,
    bits: Literal[2, 3, 4, 8] | None = None,
    version: Literal[1, 2] = 1,
) -> dict[str, NDArray[Any]]: ...
def from_awq(arrays: Mapping[str, _Array]) -> tuple[NDArray[Any], QParams]: ...
def to_awq(codes: _Array, params: QParams) -> dict[str, NDArray[Any]]: ...
def from_bitsandbytes(
    arrays: Mapping[str, _Array],
) -> tuple[NDArray[np.uint8], Codebook, NDArray[np.float32]]: ...
def to_bitsandbytes(
    codes: _Array,
    codebook: Codebook,
    scales: _Array,
    *,
    nested: bool | Mapping[str, _Array] = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> dict[str, NDArray[Any]]: ...
