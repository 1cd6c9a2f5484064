import pytest

from qkernels import _core


@pytest.fixture
def isas():
    """A function to loop over: the name of each instruction set of this machine, in use while the loop is at it."""

    def each():
        for name in _core.available_isas():
            _core.set_isa(name)
            yield name

    before = _core.get_isa()
    yield each
    _core.set_isa(before)
