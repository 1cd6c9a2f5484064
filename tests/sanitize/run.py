"""The library under the compiler's sanitizers: `python tests/sanitize/run.py address` (with undefined behaviour) or `thread`.

Builds the extension, whose C has them, in a temporary folder, and runs the Python tests that concern C against it. Arguments after the
name go to pytest instead; `--chosen` is a short part, that of `thread` in the ordinary tests. Needs gcc with the sanitizers' libraries.
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
# What these say of memory, time and the number of threads is not what the sanitizers leave of it; nor does TSan's library end well in
# a process whose other threads compute.
MEANT = "not memory and not costs and not process_ends and not leave_to_start and not large_work and not environment"
CHOSEN = {
    "address": ["test_gemm.py", "test_layers.py", "test_pq.py", "-k", MEANT],
    "thread": ["test_threads.py", "test_config.py", "-k", f"(thread or fork) and {MEANT}"],
}


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
    compile = [*CC, *FLAGS, "-fPIC", "-fvisibility=hidden", *include]
    sources = ["core.c", *(f"csrc/{path.name}" for path in sorted((ROOT / "csrc").glob("*.c")))]
    objects = [f"{Path(source).stem}.{name}.o" for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # What Cython writes is long, and not ours: it is not instrumented.
        commands = [[*compile, *(SANITIZERS[name] if source != "core.c" else ["-O0"]), "-c", source, "-o", target]
                    for source, target in zip(sources, objects)]
        list(pool.map(lambda command: subprocess.run(command, cwd=folder, check=True), commands))
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
    chosen = CHOSEN[name] if arguments == ("--chosen",) else list(arguments) or [*TESTS[name], "-k", MEANT]
    sys.exit(run(name, chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
