"""The storeys of csrc/: what each file includes, and that each header says all that it needs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from common import COMPILER, run

CSRC = Path(__file__).parents[1] / "csrc"
FILES = sorted(path.relative_to(CSRC) for path in CSRC.rglob("*") if path.suffix in {".c", ".h", ".def"})
HEADERS = [path for path in FILES if path.suffix == ".h"]
MACHINE = os.uname().machine
COMPILERS = {
    "x86": COMPILER if MACHINE == "x86_64" else None,
    "arm": COMPILER if MACHINE == "aarch64" else shutil.which("aarch64-linux-gnu-gcc"),
}
# What each storey may include: a folder, or a file.
SEEN = "arguments", "gguf", "kernels", "kmeans1d", "low_bits"  # of the kernels, by drivers
BELOW = {
    "include": [],
    "runtime": ["include", "runtime"],
    "kernels": ["include", "kernels", "runtime/sizes.h", "runtime/compiler.h"],
    "drivers": ["include", "runtime", "drivers", *(f"kernels/{name}.h" for name in SEEN)],
}
# Dispatch lists the tables; lines beyond the range of double are searched by the same loops, in software; quotients by
# multiplication are right unless the mode's flags tell of an underflow.
BESIDES = {
    "kernels/x86/fake_grad.h": ["runtime/fpmode.h"],
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
    compiler = COMPILERS.get(path.parts[1], COMPILER)
    if not compiler:
        pytest.skip("no compiler for this instruction set here")
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{path}"\n#include "{path}"\n')
    # Loops that nothing calls here are the purpose of generic/.
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-function", "-fsyntax-only"]
    if path.parts[1] == "x86":  # clang wants the registers that are named; files of an instruction set ask for them
        flags += ["-mavx512f", "-mavx512bw", "-mavx512vl"]
    run(compiler, *flags, f"-I{CSRC}", source)


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
    assert knowing == {"kernels/x86/target.h", "kernels/arm/target.h"}
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
    for path in {*CSRC.glob("kernels/x86/*.c"), *CSRC.glob("kernels/arm/*.c")} - {CSRC / "kernels/x86/cpu.c"}:
        names = r"^#define ((?:HAVE_|GROUP|VECTOR|MR|NR|KR|A_BYTES|PANEL|GEMM|BLOCKS8)\w*)"
        own = re.findall(names, text_of(path), flags=re.MULTILINE)
        assert own and set(own) <= listed


def test_nothing_of_the_tests_is_known_to_the_code():
    for path in FILES:
        assert not re.search(r"\btests/|simde", (CSRC / path).read_text(), flags=re.IGNORECASE), path


# ---- families: a line each ----

FAMILIES = sorted((CSRC / "kernels/families").glob("*.def"))
OPERATION = re.compile(r"^(?:OPERATION|PANEL)\((\w+), (\w+), ", flags=re.MULTILINE)


def compiles(sources, overlay):
    """Whether the sources compile with what lies in `overlay` in the place of files of csrc/, and what is said."""
    flags = ["-std=gnu11", "-w", "-fsyntax-only", f"-I{overlay}", f"-I{CSRC}"]
    done = subprocess.run([COMPILER, *flags, *sources], capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def changed(family, text, tmp_path):
    """A folder to include from, in which the family has these lines."""
    copy = tmp_path / family.relative_to(CSRC)
    copy.parent.mkdir(parents=True)
    copy.write_text(text)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_an_operation_that_an_instruction_set_lacks_does_not_compile(family, tmp_path):
    scalar = CSRC / "kernels/scalar/scalar.c"
    assert compiles([scalar], tmp_path / "nothing")[0]
    text = family.read_text() + "OPERATION(void, forgotten_f32, (const float *x, size_t n))\n"
    works, said = compiles([scalar], changed(family, text, tmp_path))
    assert not works and "forgotten_f32" in said


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_an_operation_without_a_line_does_not_compile(family, tmp_path):
    """Drivers ask for the first operation of each family."""
    lines = OPERATION.findall(family.read_text())
    result, name = lines[0]
    text = re.sub(rf"^\w+\({result}, {name}, .*?\)\)$", "", family.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert name not in OPERATION.sub("", text) and len(OPERATION.findall(text)) == len(lines) - 1
    works, said = compiles(sorted(CSRC.glob("drivers/*.c")), changed(family, text, tmp_path))
    assert not works and name in said


def test_each_instruction_set_has_each_family():
    """A table without a family would be NULL there, which the compiler lets pass."""
    fields = {path.stem for path in FAMILIES}
    assert len(fields) == 13
    tables = [path for path in CSRC.glob("kernels/*/*.c") if "const qk_kernels qk_kernels_" in path.read_text()]
    assert len(tables) == 9
    for path in tables:
        text = path.read_text()
        table = text[text.index("const qk_kernels qk_kernels_") :]
        assert fields | {"name", "available"} <= set(re.findall(r"^    \.(\w+) = ", table, flags=re.MULTILINE)), path
