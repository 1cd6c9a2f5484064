"""Keep the caller's floating-point mode, and NumPy's error state, from results: docs/numerics.md, section 20."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ._bind import runtime

F = TypeVar("F", bound=Callable[..., Any])


def default_mode(function: F) -> F:
    """Decorate a function that computes with floats, in Python or in threads of its own.

    Whatever the mode of its caller, it then runs in the default one, and no overflow, underflow, division or invalid
    operation on its way warns or raises.
    """
    return wraps(function)(runtime.in_default_mode(function))


def mode_of_caller(function: F) -> F:
    """Wrap a function of the user's where it is handed over, so that it is called in the user's mode."""
    return runtime.in_mode_of_caller(function, np.geterr())
