from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from . import QParams, _Array, _Out

KINDS: dict[str, tuple[int, int, int, int]]
CODES: dict[str, np.dtype[Any]]
WRITTEN: tuple[str, ...]
SEARCHED: int

_Written: TypeAlias = Literal["Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "NVFP4"]
_Coded: TypeAlias = Literal[
    "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"
]
_Kind: TypeAlias = _Coded | Literal["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"]

def to_gguf(x: _Array, kind: _Written, *, importance: _Array | None = None) -> NDArray[np.uint8]: ...
@overload
def from_gguf(data: _Array, kind: _Kind, *, codes: Literal[False] = False, out: None = None) -> NDArray[np.float32]: ...
@overload
def from_gguf(
    data: _Array, kind: _Coded, *, codes: Literal[True], out: None = None
) -> tuple[NDArray[Any], QParams]: ...
@overload
def from_gguf(data: _Array, kind: _Kind, *, codes: Literal[False] = False, out: _Out) -> _Out: ...
