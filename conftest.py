"""Give the examples in docstrings the names that they take for granted; and let NumPy raise what it else reports."""

from importlib.util import find_spec

import numpy as np
import pytest

import qkernels

OPTIONAL = "torch", "numba", "threadpoolctl"  # modules of ours are named after what they need
collect_ignore = [f"qkernels/{name}{end}" for name in OPTIONAL if not find_spec(name) for end in ("", ".py")]


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["qk"] = qkernels


@pytest.fixture(autouse=True)
def errors_of_numpy_raise():
    """No function of ours may overflow, divide by 0 and so on before NumPy's eyes; references set np.errstate."""
    with np.errstate(all="raise"):
        yield
