"""The storeys of csrc/: what each file includes, and that each header says all that it needs."""

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
FILES = sorted(path.relative_to(CSRC) for path in CSRC.rglob("*") if path.suffix in {".c", ".h", ".def"})
HEADERS = [path for path in FILES if path.suffix == ".h"]
# What each storey may include: a folder, or a file.
BELOW = {
    "include": [],
    "runtime": ["include", "runtime"],
    "kernels": ["include", "kernels", "runtime/sizes.h", "runtime/compiler.h"],
    "drivers": ["include", "runtime", "drivers", "kernels/arguments.h", "kernels/kernels.h", "kernels/kmeans1d.h"],
}
# Dispatch lists the tables; lines beyond the range of double are searched by the same loops, in software.
BESIDES = {
    "runtime/dispatch.c": ["kernels/kernels.h"],
    "drivers/kmeans1d.c": ["kernels/generic/kmeans1d_template.h"],
}


def text_of(path):
    """The file without comments."""
    return re.sub(r"/\*.*?\*/", "", (CSRC / path).read_text(), flags=re.DOTALL)


def included(path):
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', text_of(path), flags=re.MULTILINE)


@pytest.mark.parametrize("path", HEADERS, ids=str)
def test_each_header_compiles_alone_and_twice(path, tmp_path):
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))[0]
    if "x86" in path.parts and os.uname().machine != "x86_64":
        pytest.skip("a header of x86-64")
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{path}"\n#include "{path}"\n')
    # Loops that nothing calls here are the purpose of generic/.
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-function", "-fsyntax-only"]
    done = subprocess.run([compiler, *flags, f"-I{CSRC}", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_include_only_what_lies_below(path):
    allowed = [*BELOW[path.parts[0]], *BESIDES.get(str(path), [])]
    for name in included(path):
        if name[0] == '"':
            lower = name.strip('"')
            assert (CSRC / lower).exists(), f"{lower} is named by its path within csrc/"
            assert any(lower == one or lower.startswith(one + "/") for one in allowed), lower


def test_only_kernels_of_an_instruction_set_know_its_intrinsics():
    knowing = {str(path) for path in FILES if {"<immintrin.h>", "<arm_neon.h>"} & set(included(path))}
    assert knowing == {"kernels/x86/target.h"}
    for path in FILES:
        if path.parts[0] != "kernels" or path.parts[1] in {"generic", "scalar"}:
            assert not re.search(r"\b_mm\d*_(?![gs]etcsr)|\b__m(128|256|512)|kernels/(x86|arm)/", text_of(path)), path


def test_what_an_instruction_set_may_set_is_written_in_one_place():
    listed = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", (CSRC / "kernels/generic/target.h").read_text()))
    asked = set()
    for path in CSRC.glob("kernels/generic/*.h"):
        conditions = re.findall(r"^#\s*(?:if|ifdef|ifndef|elif)\b(.*)", text_of(path), flags=re.MULTILINE)
        asked |= {name for line in conditions for name in re.findall(r"\b[A-Z][A-Z0-9_]+\b", line)}
    asked = {name for name in asked if not name.endswith("_H")} - {"REAL"}  # the type of a template
    assert {"GROUP", "HAVE_LEVELS16", "MR", "VECTOR"} <= asked <= listed
    for path in CSRC.glob("kernels/x86/*.c"):
        own = re.findall(r"^#define ((?:HAVE_|GROUP|VECTOR|MR|NR|KR)\w*)", text_of(path), flags=re.MULTILINE)
        assert own and set(own) <= listed


def test_nothing_of_the_tests_is_known_to_the_code():
    for path in FILES:
        assert not re.search(r"\btests/|simde", (CSRC / path).read_text(), flags=re.IGNORECASE), path
