"""What the extension's C says, as Cython writes it, since wrong directives are ignored in silence; and clang's view."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from common import environment, run

import qkernels as qk

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "qkernels" / "_bind").glob("*.pyx"))


@pytest.fixture(scope="module", params=SOURCES, ids=lambda path: path.stem)
def generated(request, tmp_path_factory):
    pytest.importorskip("Cython")
    path = tmp_path_factory.mktemp("build") / "module.c"
    run(sys.executable, "-m", "cython", "-3", request.param, "-o", path, cwd=ROOT)
    return path.read_text()


def test_the_module_declares_that_it_needs_no_gil(generated):
    assert re.findall(r"\{Py_mod_gil, (\w+)\}", generated) == ["__Pyx_FREETHREADING_COMPATIBLE"]
    assert re.findall(r"#define CYTHON_FREETHREADING_COMPATIBLE (\d)", generated) in ([], ["1"])
    default = generated.split("#ifdef CYTHON_FREETHREADING_COMPATIBLE")[1].split("#endif")[1]
    assert "#define __Pyx_FREETHREADING_COMPATIBLE Py_MOD_GIL_NOT_USED" in default


def test_integer_divisions_are_those_of_c(generated):
    assert "integer division or modulo by zero" not in generated
    assert not re.search(r"__Pyx_(div|mod)_(int|long|Py_ssize_t|size_t|u?int\d+_t)", generated)


def test_indices_from_the_end_are_counted_from_the_end(generated):
    """Shapes are asked for their last entry; directives for faster indices would have it read before the first."""
    flags = re.findall(r"__Pyx_GetItemInt\w*\([^;]*?, -\d+L, long, 1, \w+, (\d), (\d),", generated)
    asked = re.search(r"^ \*.*\w\[-1\]", generated, flags=re.MULTILINE)  # the sources stand in the comments
    assert set(flags) == ({("1", "1")} if asked else set())


@pytest.mark.skipif(not shutil.which("clang"), reason="no clang here")
def test_clang_takes_the_c_code_without_a_warning():
    flags = ["-std=gnu11", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only", f"-I{ROOT / 'csrc'}"]
    run("clang", *flags, *sorted((ROOT / "csrc").rglob("*.c")))


def results(package):
    """What results.py writes where qkernels is imported from the folder `package`."""
    env = environment(PYTHONPATH=os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])))
    return run(sys.executable, ROOT / "tests" / "results.py", env=env, cwd=package).splitlines()


@pytest.mark.skipif(not shutil.which("clang"), reason="no clang here")
def test_clang_builds_an_extension_that_gives_the_same_bits(tmp_path):
    pytest.importorskip("Cython")
    ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "qkernels", tmp_path / "qkernels", ignore=ignored)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for name in "setup.py", "pyproject.toml", "README.md", "LICENSE":
        shutil.copy(ROOT / name, tmp_path)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path, env=os.environ | {"CC": "clang"})
    assert b"clang" in next((tmp_path / "qkernels" / "_bind").glob("runtime.*.so")).read_bytes()
    here, there = results(Path(qk.__file__).parents[1]), results(tmp_path)
    assert len(here) > 1000
    assert [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]] == []


def test_wheels_are_built_of_the_source_that_is_here(tmp_path, monkeypatch):
    """And not of one that an earlier version left."""
    spec = importlib.util.spec_from_file_location("wheels", Path(__file__).parents[1] / ".ci/wheels.py")
    wheels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wheels)
    for version in "0.0.1", "99.0":
        (tmp_path / f"qkernels-{version}.tar.gz").write_text("old")

    def builds(*command, **_):
        (Path(command[command.index("--outdir") + 1]) / "qkernels-9.0.tar.gz").write_text("new")

    monkeypatch.setattr(wheels, "run", builds)
    source = Path(wheels.source_distribution(tmp_path))
    assert source == tmp_path / "qkernels-9.0.tar.gz" and source.read_text() == "new"
