from collections.abc import Mapping
from os import PathLike
from typing import Any

__all__ = ["load", "save"]

def save(path: str | PathLike[str], arrays: Mapping[str, Any]) -> None: ...
def load(path: str | PathLike[str]) -> dict[str, Any]: ...
