from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import _Array, _Out

BLOCK: int
KINDS: dict[str, int]

def to_gguf(x: _Array, kind: Literal["Q8_0", "Q4_0"]) -> NDArray[np.uint8]: ...
@overload
def from_gguf(data: _Array, kind: Literal["Q8_0", "Q4_0"], *, out: None = None) -> NDArray[np.float32]: ...
@overload
def from_gguf(data: _Array, kind: Literal["Q8_0", "Q4_0"], *, out: _Out) -> _Out: ...
