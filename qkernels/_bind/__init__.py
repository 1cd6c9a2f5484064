"""The bindings: Python to C by subject, in one shared object, so that all of them share one C library and its state.

The file bears the name of its first module, `runtime`. Python looks in the file that it is given for the initializer
of the name that it is given; so all others are loaded from there as well.
"""

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location

from . import runtime as runtime


def _load(name):
    full_name, file = f"{__name__}.{name}", runtime.__spec__.origin
    spec = spec_from_file_location(full_name, file, loader=ExtensionFileLoader(full_name, file))
    module = sys.modules[full_name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In this order: a module imports those before it.
arrays = _load("arrays")
elementwise = _load("elementwise")
weights = _load("weights")
products = _load("products")
codebooks = _load("codebooks")
layers = _load("layers")
integer_layers = _load("integer_layers")
conv = _load("conv")
clusters = _load("clusters")
histograms = _load("histograms")
tensors = _load("tensors")
capi = _load("capi")
jit = _load("jit")
