"""Names that the examples in docstrings take for granted."""

import numpy as np
import pytest

import qkernels


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["qk"] = qkernels
