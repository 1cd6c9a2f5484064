from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, SupportsFloat, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import Codebook, Hessian, QParams, _Array

__all__ = ["Allocation", "allocate_bits", "pareto", "sensitivity"]

_Sum = TypeVar("_Sum")

class Allocation(NamedTuple, Generic[_Sum]):
    choice: NDArray[np.intp]
    error: _Sum
    size: _Sum
    bound: _Sum

def sensitivity(
    w: _Array, hessian: Hessian, candidates: Sequence[QParams | Codebook | _Array], *, center: bool = False
) -> NDArray[np.float64]: ...
def allocate_bits(errors: _Array, sizes: _Array, budget: SupportsFloat) -> Allocation[float]: ...
def pareto(errors: _Array, sizes: _Array) -> Allocation[NDArray[Any]]: ...
