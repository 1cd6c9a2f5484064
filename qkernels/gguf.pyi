from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import QParams, _Array, _Out

BLOCK: int
KINDS: dict[str, int]

def to_gguf(x: _Array, kind: Literal["Q8_0", "Q4_0"]) -> NDArray[np.uint8]: ...
@overload
def from_gguf(data: _Array, kind: Literal["Q8_0", "Q4_0"], *, codes: Literal[False] = False, out: None = None) -> NDArray[np.float32]: ...
@overload
def from_gguf(data: _Array, kind: Literal["Q8_0", "Q4_0"], *, codes: Literal[False] = False, out: _Out) -> _Out: ...
@overload
def from_gguf(data: _Array, kind: Literal["Q8_0", "Q4_0"], *, codes: Literal[True], out: None = None) -> tuple[NDArray[Any], QParams]: ...
