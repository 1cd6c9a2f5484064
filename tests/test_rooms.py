"""The rooms of the package: imports run downward from storey to storey, and functions take few arguments."""

import ast
from pathlib import Path

import pytest

import qkernels

PACKAGE = Path(qkernels.__file__).parent
EXTENSION = {"_bind"}  # the storey below, which imports no Python of ours
STOREYS = [  # from the bottom; a module may import those of the storeys below its own
    {"_checks", "_mode", "_value", "_blas"},
    {"_qparams", "_kmeans", "_codebook_tables", "_histogram", "config"},
    {"_choose", "_rounding", "_kmeans1d", "_hessian", "_feedback"},
    {"_quantize", "_codebook_fit", "_tables", "observers", "_prune"},
    {"_integer_layers"},
    {"dask"},
    {"_codebook"},
    {"_weights", "mixed_precision", "_gptq", "_gguf_search"},
    {"_products", "_pq", "gguf", "layouts"},
    {"_conv", "_layers"},
    {"io", "numba", "threadpoolctl", "torch._handles"},
    {"torch._operators", "torch._packed_weight"},
    {"torch._attention", "torch._modules", "torch._training"},
    {"torch._convert"},
    {"torch.__init__"},
    {"__init__", "_selftest_cases", "_speed"},
    {"_selftest_frameworks"},
    {"selftest"},
    {"__main__"},
]
MOST_ARGUMENTS = 8
PUBLIC = {("_products", "qlinear"), ("_kmeans", "kmeans"), ("_conv", "qconv2d"), ("_conv", "qaverage_pool2d")}
PUBLIC |= {("torch._training", name) for name in ("fake_quantize", "_forward", "_backward")}
PUBLIC |= {("_layers", "layer_norm"), ("_layers", "attention")}
# whose signatures, mostly of keywords, are a contract
FOLDERS = "", "torch."  # of modules
MODULES = sorted(f"{folder}{path.stem}" for folder in FOLDERS for path in (PACKAGE / folder[:-1]).glob("*.py"))


def tree(module):
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text("utf-8"))


def imports(node, folder=""):
    """The modules of the package that a module imports, in functions too."""
    for found in ast.walk(node):
        if isinstance(found, ast.ImportFrom) and found.level:
            assert found.level <= 1 + bool(folder)
            inside = folder if found.level == 1 else ""
            names = [found.module] if found.module else [alias.name for alias in found.names]
            yield from (inside + name.split(".")[0] for name in names)
        elif isinstance(found, ast.ImportFrom | ast.Import):
            names = [found.module] if isinstance(found, ast.ImportFrom) else [alias.name for alias in found.names]
            assert not [name for name in names if name.split(".")[0] == "qkernels"], "imports of ours are relative"


def upward(module, node):
    """What a module imports although it does not stand below; a circle has at least one such import."""
    storey = {name: i for i, names in enumerate(STOREYS) for name in names}
    folder = module[: module.rfind(".") + 1]
    packages = {name.removesuffix(".__init__"): name for name in storey}
    inside = [packages.get(name, name) for name in imports(node, folder) if name not in EXTENSION]
    return [name for name in inside if not storey.get(name, len(STOREYS)) < storey[module]]


def too_many_arguments(node):
    """Functions that take more than MOST_ARGUMENTS, not counting self and cls of methods."""
    classes = [found for found in ast.walk(node) if isinstance(found, ast.ClassDef)]
    methods = {id(function) for found in classes for function in found.body}
    for function in ast.walk(node):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            a = function.args
            count = len(a.posonlyargs + a.args + a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)
            if count - (id(function) in methods) > MOST_ARGUMENTS:
                yield getattr(function, "name", "lambda")


def test_every_module_has_a_storey():
    assert sorted(set().union(*STOREYS)) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    assert upward(module, tree(module)) == []


def test_the_bottom_imports_only_the_extension():
    assert {name for module in STOREYS[0] for name in imports(tree(module))} <= EXTENSION


@pytest.mark.parametrize("module", MODULES)
def test_functions_take_few_arguments(module):
    assert [name for name in too_many_arguments(tree(module)) if (module, name) not in PUBLIC] == []


@pytest.mark.parametrize(
    "source", ["from ._products import linear", "from . import __version__", "def f():\n    from ._pq import x"]
)
def test_upward_imports_are_found(source):
    assert len(upward("_weights", ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source, many", [("def f(a, b, c, d, e, *, f, g, h): 0", 0), ("def f(a, b, c, d, e, *f, g, h, **i): 0", 1)]
)
def test_long_signatures_are_found(source, many):
    assert len(list(too_many_arguments(ast.parse(source)))) == many
