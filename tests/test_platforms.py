"""Other systems, by zig, which has their headers: the library is linked for them, and runs under Wine."""

import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from common import environment, run

from qkernels._bind import runtime

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(CSRC.rglob("*.c"))
TARGETS = {
    "x86_64-windows-gnu": ("qkernels.dll", ".exe"),
    "aarch64-macos": ("libqkernels.dylib", ""),
    "x86_64-macos": ("libqkernels.dylib", ""),
}
# What matters to meaning as setup.py has it. zig makes wrong use of C trap where nothing is optimized.
FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-sanitize=all"]
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-pass-failed", "-Wno-unused-command-line-argument"]

needs_zig = pytest.mark.skipif(not find_spec("ziglang"), reason="no zig: pip install ziglang")


def zig(*arguments):
    return run(sys.executable, "-m", "ziglang", *arguments)


def compile_all(target, sources, folder, *flags):
    """Return the objects of some sources, two of which are compiled at a time."""

    def compile_one(source):
        made = folder / f"{source.parent.name}_{source.stem}.o"
        zig("cc", "-target", target, *FLAGS, *flags, "-c", source, "-o", made)
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


@pytest.fixture(scope="module", params=TARGETS)
def library(request, tmp_path_factory):
    """A target, and its shared library in a folder."""
    target, folder = request.param, tmp_path_factory.mktemp("library")
    objects = compile_all(target, SOURCES, folder, *STRICT, "-DQK_EXPORT", "-fvisibility=hidden", f"-I{CSRC}")
    made = folder / TARGETS[target][0]
    zig("cc", "-target", target, "-shared", *objects, "-o", made)
    return target, made


def build_program(library, name, source):
    target, made = library
    program = made.with_name(name + TARGETS[target][1])
    zig("cc", "-target", target, "-std=c11", *STRICT, f"-I{CSRC / 'include'}", source, made, "-o", program)
    return program


@needs_zig
def test_the_library_and_its_c_test_are_built(library):
    program = build_program(library, "c_api_test", ROOT / "tests/c_api_test.c")
    assert library[1].stat().st_size > 500_000 and program.exists()


@needs_zig
@pytest.mark.skipif(not shutil.which("wine"), reason="no Wine: apt-get install wine64 wine")
@pytest.mark.parametrize("library", ["x86_64-windows-gnu"], indirect=True)
def test_the_library_of_windows_runs(library, tmp_path):
    """By the instruction set that it has on Linux, but for AMX."""
    source = tmp_path / "isa.c"
    source.write_text("#include <qkernels.h>\n#include <stdio.h>\nint main(void) { puts(qk_get_isa()); }\n")
    folder, env = library[1].parent, environment(WINEPREFIX=str(tmp_path / "wine"), WINEDEBUG="-all")
    try:
        isa = run("wine", build_program(library, "isa", source), env=env, cwd=folder).split()[-1]
        assert isa == next(name for name in runtime.available_isas() if name != "amx")
        shown = run("wine", build_program(library, "c_api_test", ROOT / "tests/c_api_test.c"), env=env, cwd=folder)
        assert re.search(r"^[1-9]\d{3,} checks, 0 failures", shown, re.MULTILINE)
    finally:
        subprocess.run(["wineserver", "--kill"], env=env, check=False)


# ---- the bindings ----

# What the headers of CPython want to know of Windows: of those that are here only this one is of Linux.
WINDOWS = """
#define MS_WINDOWS
#define MS_WIN64
#define Py_ENABLE_SHARED
#define HAVE_DECLSPEC_DLL
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_PID_T 4
#define ALIGNOF_MAX_ALIGN_T 16
#define HAVE_STDINT_H 1
#define WITH_THREAD 1
#define NT_THREADS 1
#define WITH_DOC_STRINGS 1
#define HAVE_SSIZE_T 1
"""
HERE = '#include "pyconfig_here.h"\n'
MACOS = HERE + "#undef HAVE_CRYPT_H\n#undef HAVE_CRYPT_R\n"


@pytest.fixture(scope="module")
def bindings(tmp_path_factory):
    """What Cython makes of each."""
    pytest.importorskip("Cython")
    folder = tmp_path_factory.mktemp("bindings")
    ignored = shutil.ignore_patterns("*.so", "*.c", "*.h", "__pycache__")
    shutil.copytree(ROOT / "qkernels", folder / "qkernels", ignore=ignored)
    sources = sorted((folder / "qkernels/_bind").glob("*.pyx"))
    run(sys.executable, "-m", "cython", "-3", *sources, cwd=folder)
    return [source.with_suffix(".c") for source in sources]


def headers_for(target, folder):
    """Return the headers of this Python, as they would be on that system."""
    headers = shutil.copytree(sysconfig.get_path("include"), folder / "python")
    (headers / "pyconfig.h").rename(headers / "pyconfig_here.h")
    told = WINDOWS if "windows" in target else MACOS if "macos" in target else HERE
    (headers / "pyconfig.h").write_text(told + "#define Py_GIL_DISABLED 1\n" * ("GIL" in target))
    if "linux" not in target:  # where NumPy has found it
        order = "BYTE_ORDER 1234", "LITTLE_ENDIAN 1234", "BIG_ENDIAN 4321"
        (headers / "endian.h").write_text("".join(f"#undef {line.split()[0]}\n#define {line}\n" for line in order))
    return headers


@needs_zig
@pytest.mark.parametrize("target", [*TARGETS, "x86_64-linux-gnu without a GIL"])
def test_the_bindings_compile(target, bindings, tmp_path):
    """With the headers of this Python and of this NumPy."""
    if "GIL" in target and sys.version_info < (3, 13):
        pytest.skip("this Python has no headers for one without a GIL")
    folders = headers_for(target, tmp_path), CSRC, np.get_include()
    flags = ["-w", "-O0", "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION", *(f"-I{folder}" for folder in folders)]
    compile_all(target.split()[0], bindings, tmp_path, *flags)
