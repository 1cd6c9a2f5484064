import os

import pytest
from common import bits
from hypothesis import HealthCheck, settings
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels._bind import runtime

collect_ignore = ["typing"]  # a script that test_typing.py runs

# `isas` serves every example of a test alike; the same examples in each run, so that a failure is found again.
settings.register_profile(
    "qkernels",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("qkernels")


@pytest.fixture
def isas():
    """A function to loop over: the name of each instruction set of this machine, in use while the loop is at it.

    BEST_ISA_ALONE in the environment leaves the first, for a run that would take hours."""
    names = runtime.available_isas()[: 1 if os.environ.get("BEST_ISA_ALONE") else None]

    def each():
        for name in names:
            runtime.set_isa(name)
            yield name

    before = runtime.get_isa()
    yield each
    runtime.set_isa(before)


@pytest.fixture
def variants(isas):
    """Likewise, each instruction set with 1, 2 and 3 threads."""

    def each():
        for name in isas():
            for threads in (1, 2, 3):
                with qk.num_threads(threads):
                    yield f"{name}, {threads} threads"

    return each


@pytest.fixture
def everywhere(variants):
    """A function that returns the result of a call, once each variant has given it with the same bits."""

    def parts(result):
        return result if isinstance(result, tuple) else (result,)

    def same(call):
        first = None
        for variant in variants():
            result = call()
            first = result if first is None else first
            for got, want in zip(parts(result), parts(first), strict=True):
                assert_array_equal(bits(got), bits(want), err_msg=variant, strict=True)
        return first

    return same
