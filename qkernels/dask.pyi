from typing import Any, Literal, SupportsFloat, TypeVar

from . import KMeansResult, _Array, _Random
from .observers import _Observer

__all__ = ["calibrate", "kmeans", "kmeans1d"]

_Any = TypeVar("_Any", bound=_Observer)

def calibrate(x: Any, observer: _Any, *, progress: bool = False) -> _Any: ...
def kmeans1d(x: Any, k: int, *, progress: bool = False) -> KMeansResult[float]: ...
def kmeans(
    x: Any,
    k: int,
    *,
    init: Literal["k-means++", "random"] | _Array = "k-means++",
    max_iter: int = 100,
    tol: SupportsFloat = 1e-4,
    rng: _Random = None,
    progress: bool = False,
) -> KMeansResult[float]: ...
