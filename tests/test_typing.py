"""Types: mypy and pyright accept a script that uses each public name and asserts what it gives; the stubs say what the
code says."""

import ast
import inspect
import json
import re
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from common import python

import qkernels as qk
from qkernels import config, dask, gguf, io, layouts, mixed_precision, observers

SCRIPT = Path(__file__).parent / "typing" / "uses_all.py"
PACKAGE = Path(qk.__file__).parent
MODULES = {"__init__": qk, "config": config, "dask": dask, "gguf": gguf, "io": io, "observers": observers}
MODULES |= {"layouts": layouts, "mixed_precision": mixed_precision}
if find_spec("torch"):
    MODULES["torch/__init__"] = import_module("qkernels.torch")


def run(*command):
    """Away from the folder of the sources, so that the package is that of any user. (An editable install is hidden from
    these tools.)"""
    done = python("-m", *command, cwd=SCRIPT.parent)
    return done.returncode, done.stdout + done.stderr


def test_the_script_uses_each_public_name_and_runs(capsys):
    used = {
        node.attr
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qk"
    }
    assert used >= set(qk.__all__)
    runpy.run_path(str(SCRIPT))


def test_mypy_accepts_the_script(tmp_path):
    pytest.importorskip("mypy")
    code, report = run("mypy", "--strict", "--cache-dir", str(tmp_path), SCRIPT.name)
    assert code == 0, report


def test_pyright_accepts_the_script():
    pytest.importorskip("pyright")
    code, report = run("pyright", "--pythonpath", sys.executable, SCRIPT.name)
    assert code == 0, report


def test_at_least_95_percent_of_what_is_public_has_a_known_type():
    pytest.importorskip("pyright")
    _, report = run(
        "pyright", "--pythonpath", sys.executable, "--verifytypes", "qkernels", "--ignoreexternal", "--outputjson"
    )
    found = json.loads(report[report.index("{") :])["typeCompleteness"]
    assert found["completenessScore"] >= 0.95, report


MISTAKES = """
qk.quantize(x, p, rounding='up')
qk.linear(x, packed, activation='tanh')
qk.to_gguf(x, 'Q5')
qk.choose_qparams(x, 'int32')
qk.choose_qparams(x, method='best')
qk.choose_qparams(x, importance=x)
qk.kmeans(x, 2, tol='1')
qk.set_num_threads(1.5)
qk.quantize(x, 0.5)
qk.encode(x, qk.NF4).shape
qk.kmeans1d(x, 2).inertia.shape
"""


def test_mypy_finds_mistakes(tmp_path):
    """One in each line, and nothing else."""
    pytest.importorskip("mypy")
    names = "import numpy as np\nimport qkernels as qk\nx = np.ones((2, 32), np.float32)\n"
    names += "p = qk.QParams(1)\npacked = qk.pack(x, p)"
    script = tmp_path / "script.py"
    script.write_text(names + MISTAKES)
    status, report = run("mypy", "--cache-dir", str(tmp_path / "cache"), str(script))
    wrong = [int(line) for line in re.findall(r"script\.py:(\d+): error", report)]
    assert status == 1 and wrong == list(range(6, 6 + len(MISTAKES.split("\n")[1:-1]))), report


# ---- stubs and code ----


def definitions(body, prefix=""):
    """(dotted name, definition) of the functions and methods of a stub."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef) and not any(
            ast.unparse(d) == "type_check_only" for d in node.decorator_list
        ):
            yield from definitions(node.body, f"{prefix}{node.name}.")


def stub_parameters(node):
    """(names, names of keyword-only ones, and defaults) of a definition."""
    positional = [a.arg for a in node.args.posonlyargs + node.args.args]
    keywords = [a.arg for a in node.args.kwonlyargs]
    pairs = [
        *zip(positional[len(positional) - len(node.args.defaults) :], node.args.defaults),
        *zip(keywords, node.args.kw_defaults),
    ]
    defaults = {name: default for name, default in pairs if default is not None and ast.unparse(default) != "..."}
    return positional, keywords, {name: ast.literal_eval(default) for name, default in defaults.items()}


DEFINITIONS = [
    (module, name, node)
    for module in MODULES
    for name, node in definitions(ast.parse((PACKAGE / f"{module}.pyi").read_text()).body)
]


def same(a, b):
    return a is b or (type(a) is type(b) and a == b)


@pytest.mark.parametrize(
    ("module", "name", "node"), DEFINITIONS, ids=lambda part: part if isinstance(part, str) else None
)
def test_a_stub_has_the_parameters_and_defaults_of_the_code(module, name, node):
    found = MODULES[module]
    for part in name.split("."):
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    if any(ast.unparse(d) == "property" for d in node.decorator_list):
        assert not callable(found)
        return
    if part in ("__eq__", "__hash__", "unpack", "check_shape"):
        assert callable(found)
        return
    parameters = inspect.signature(getattr(found, "__func__", found)).parameters
    positional, keywords, defaults = stub_parameters(node)
    kinds = inspect.Parameter
    assert positional == [p.name for p in parameters.values() if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    options = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    there = [p.name for p in parameters.values() if p.kind is kinds.KEYWORD_ONLY]
    assert keywords == there or options and keywords[: len(there)] == there
    for parameter, default in defaults.items():
        assert parameter in keywords and options or same(parameters[parameter].default, default), parameter


def test_a_stub_has_each_public_name():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert names == qk.__all__
    for module, found in MODULES.items():
        public = {
            name
            for name, value in vars(found).items()
            if inspect.isfunction(value)
            and not name.startswith("_")
            and value.__module__.startswith("qkernels")
            and (module == "__init__" or value.__module__ == found.__name__)
        }
        stub = (PACKAGE / f"{module}.pyi").read_text()
        assert all(f"def {name}(" in stub or f"import {name} as {name}" in stub for name in public), module


@pytest.mark.parametrize("name", ["QParams", "PackedMatrix", "Codebook", "KMeansResult"])
def test_a_stub_has_each_public_attribute(name):
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    (node,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    stub = {n.name for n in node.body if isinstance(n, ast.FunctionDef)} | {
        n.target.id for n in node.body if isinstance(n, ast.AnnAssign)
    }
    public = {
        attribute
        for c in getattr(qk, name).__mro__[:-1]
        if c.__module__.startswith("qkernels")
        for attribute in vars(c)
        if not attribute.startswith("_")
    }
    assert public <= stub, public - stub


def test_results_have_the_types_that_stubs_tell():
    assert isinstance(qk.kmeans1d(np.eye(3), 2, axis=0).inertia, np.ndarray) and isinstance(
        qk.kmeans1d(np.eye(3), 2).inertia, float
    )
    assert isinstance(qk.config.get_include(), str) and isinstance(qk.QParams(1).qmin, int)
