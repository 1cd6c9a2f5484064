"""The library under the compiler's sanitizers: `python tests/sanitize/run.py address` (with undefined behaviour) or `thread`.

Builds the extension and the C test with them in a temporary folder, and runs the C test and the Python tests against these. Arguments
after the name go to pytest instead of "all tests that concern C"; `--chosen` is the short part that the ordinary tests run. Needs gcc or
clang ($CC) with the sanitizers' libraries.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).resolve().parents[2]
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
FLAGS = ["-std=gnu11", "-O1", "-g1", "-fno-omit-frame-pointer", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-w"]
# Sums of codes wrap on purpose, in unsigned arithmetic or by instructions. Floats become integers only within range.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
LIBRARY = {"address": "libasan.so", "thread": "libtsan.so"}
# Python frees nothing at its end, and allocations that are refused are part of the tests. Children of a fork start threads of their own.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:die_after_fork=0:ignore_noninstrumented_modules=1:handle_segv=0",
}
TESTS = {
    "address": ["test_quantize.py", "test_rounding.py", "test_gemm.py", "test_gemm4.py", "test_gemm16.py", "test_codebook.py", "test_pq.py",
                "test_kmeans.py", "test_layers.py", "test_config.py"],
    "thread": ["test_threads.py", "test_config.py", "test_gemm.py", "test_gemm4.py", "test_gemm16.py", "test_layers.py", "test_kmeans.py",
               "test_pq.py", "test_codebook.py", "test_quantize.py"],
}
CHOSEN = {
    "address": [*TESTS["address"][:-1], "-k", "thread or alignment or unaligned or overlap or shapes or empty"],
    "thread": ["test_threads.py", "test_config.py", "-k", "thread or fork"],
}
# What these say of memory and time is not what the sanitizers leave of them.
SLOW = "not memory and not costs and not speed and not seconds and not a_process_ends and not leave_to_start"


def library(name):
    """The path of the sanitizer's library, to be loaded before Python's own; None where the compiler has none."""
    found = subprocess.run([*CC, f"-print-file-name={LIBRARY[name]}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


def build(name, folder):
    """A copy of the package in `folder`, whose extension is instrumented."""
    import numpy

    ignored = ignore_patterns("*.so", "*.c", "__pycache__")
    copytree(ROOT / "qkernels", folder / "qkernels", ignore=ignored)
    copytree(ROOT / "csrc", folder / "csrc")
    subprocess.run([sys.executable, "-m", "cython", "-3", "qkernels/_core.pyx", "-o", "core.c"], cwd=folder, check=True)
    include = [f"-I{path}" for path in ("csrc", sysconfig.get_path("include"), numpy.get_include())]
    compile = [*CC, *FLAGS, *SANITIZERS[name], "-fPIC", "-fvisibility=hidden", *include]
    sources = ["core.c", *(f"csrc/{path.name}" for path in sorted((ROOT / "csrc").glob("*.c")))]
    objects = [f"{Path(source).stem}.{name}.o" for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda pair: subprocess.run([*compile, "-c", pair[0], "-o", pair[1]], cwd=folder, check=True), zip(sources, objects)))
    target = f"qkernels/_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([*CC, *SANITIZERS[name], "-shared", "-pthread", *objects, "-lm", "-o", target], cwd=folder, check=True)


def run(name, arguments):
    """The exit status of pytest, of a build in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(name, folder)
        settings = {"LD_PRELOAD": library(name), "PYTHONPATH": str(folder), "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1", **OPTIONS}
        tests = [str(ROOT / "tests" / word) if word.endswith(".py") else word for word in arguments]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *tests]
        return subprocess.run(command, cwd=folder, env=os.environ | settings).returncode


def main(name, *arguments):
    chosen = CHOSEN[name] if arguments == ("--chosen",) else list(arguments) or [*TESTS[name], "-k", SLOW]
    sys.exit(run(name, chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
