"""Names that the examples in docstrings take for granted; and what NumPy would report to a user who asks it to raises here."""

import numpy as np
import pytest

import qkernels


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["qk"] = qkernels


@pytest.fixture(autouse=True)
def errors_of_numpy_raise():
    """No function of ours may overflow, divide by 0 and so on before NumPy's eyes. References that do have an np.errstate of their own."""
    with np.errstate(all="raise"):
        yield
