"""The library under the compiler's sanitizers: `python tests/sanitize/run.py address` (with undefined behaviour) or
`thread`.

Builds the extension, whose C has them, in a temporary folder, and runs the Python tests that concern C against it;
`address` runs the tests in C before. Arguments after the name go to pytest instead; `--chosen` is the part that
test_sanitize.py runs, `--hostile` hostile.py, with the arguments that follow, `--teams` teams.py, which is in the part
of `thread`, too. Needs gcc with the sanitizers' libraries.
"""

import os
import re
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
FLAGS = ["-std=gnu11", "-O1", "-g1", "-fno-omit-frame-pointer", "-pthread", "-w"]
FLAGS += ["-ffp-contract=off", "-fno-math-errno"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
# Python frees nothing at its end, and allocations that are refused are part of the tests. Children of a fork start
# threads of their own.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:die_after_fork=0:ignore_noninstrumented_modules=1:handle_segv=0",
}
PRODUCTS = "products matmul linear qlinear pack gemm4 gemm16"
STATIC = "conv integer_layers observers"
TESTS = {
    "address": f"quantize rounding qparams scales {PRODUCTS} {STATIC} blocks8 codebook pq kmeans kmeans1d layers",
    "thread": f"threads config {PRODUCTS} {STATIC} layers kmeans pq codebook quantize",
}
# What these say of memory, time and the number of threads is not what the sanitizers leave of it; nor does TSan's
# library end well in a process whose other threads compute.
LEFT = "memory", "costs", "process_ends", "leave_to_start", "large_work", "environment", "fill_the_cpus"
MEANT = " and ".join(f"not {name}" for name in LEFT)
SCRIPTS = "results.py", "sanitize/teams.py", "sanitize/hostile.py"
CHOSEN = ["test_threads.py", "test_config.py", "-k", f"(thread or fork) and {MEANT}"]  # of `thread`; else, results.py


def library(name):
    """Return the path of the sanitizer's library, to be loaded before Python's own; None if the compiler has none."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "empty.c"), Path(folder, "empty.so")
        source.write_text("int empty;")
        try:
            command = [*CC, *SANITIZERS[name], "-shared", "-fPIC", source, "-o", target]
            subprocess.run(command, capture_output=True, check=True)
            needed = subprocess.run(["ldd", target], capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None
    found = re.search(r"lib[at]san\S* => (/\S+)", needed)
    return found and found[1]


def build(name, folder):
    """Make a copy of the package in `folder`, whose extension is instrumented; return the objects of csrc/."""
    import numpy

    ignored = ignore_patterns("*.so", "*.c", "__pycache__")
    copytree(ROOT / "qkernels", folder / "qkernels", ignore=ignored)
    copytree(ROOT / "csrc", folder / "csrc")
    modules = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "qkernels" / "_bind").glob("*.pyx"))
    subprocess.run([sys.executable, "-m", "cython", "-3", *modules], cwd=folder, check=True)
    generated = [str(Path(module).with_suffix(".c")) for module in modules]
    include = [f"-I{path}" for path in ("csrc", sysconfig.get_path("include"), numpy.get_include())]
    compile = [*CC, *FLAGS, "-fPIC", "-fvisibility=hidden", *include]
    sources = [*generated, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.c")))]
    objects = [f"{source.replace(os.sep, '.')}.{name}.o" for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # What Cython writes is long, and not ours: it is not instrumented.
        commands = [
            [*compile, *(SANITIZERS[name] if source not in generated else ["-O0"]), "-c", source, "-o", target]
            for source, target in zip(sources, objects)
        ]
        list(pool.map(lambda command: subprocess.run(command, cwd=folder, check=True), commands))
    target = f"qkernels/_bind/runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [*CC, *SANITIZERS[name], "-shared", "-pthread", *objects, "-lm", "-o", target]
    subprocess.run(command, cwd=folder, check=True)
    return objects[len(generated) :]


def c_tests(folder, objects):
    """stray_codes_test.c under `address`. Not simde_test.c: SIMDe reads whole registers where loads are masked."""
    compiler = [*CC, *FLAGS, *SANITIZERS["address"], f"-I{ROOT / 'csrc'}"]
    source = ROOT / "tests/stray_codes_test.c"
    subprocess.run([*compiler, source, *objects, "-lm", "-o", "stray_codes_test"], cwd=folder, check=True)
    subprocess.run([folder / "stray_codes_test"], env=os.environ | OPTIONS, check=True)


def run(name, *commands):
    """The first exit status but 0 of Python with the arguments of each command, which imports a build in a temporary
    folder; `address` runs the tests in C before."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        objects = build(name, folder)
        if name == "address":
            c_tests(folder, objects)
        settings = {"LD_PRELOAD": library(name), "PYTHONPATH": str(folder), "PYTHONMALLOC": "malloc"}
        settings |= {"OPENBLAS_NUM_THREADS": "1", **OPTIONS}
        if name == "thread":  # drivers share work among threads, and are the same on each instruction set
            settings["BEST_ISA_ALONE"] = "1"
        every = ([sys.executable, *command] for command in commands)
        states = (subprocess.run(command, cwd=folder, env=os.environ | settings).returncode for command in every)
        return next(filter(None, states), 0)


def pytest(words):
    """The arguments of Python that have pytest run tests; what a sanitizer writes goes past it."""
    tests = [str(ROOT / "tests" / word) if word.endswith(".py") else word for word in words]
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    return ["-m", "pytest", *options, *tests]


def main(name, *arguments):
    results, teams, hostile = ([str(ROOT / "tests" / script)] for script in SCRIPTS)
    if arguments == ("--chosen",):
        sys.exit(run(name, *((pytest(CHOSEN), teams) if name == "thread" else (results,))))
    if arguments == ("--teams",):
        sys.exit(run(name, teams))
    if arguments[:1] == ("--hostile",):
        sys.exit(run(name, [*hostile, *arguments[1:]]))
    sys.exit(run(name, pytest(arguments or [*(f"test_{test}.py" for test in TESTS[name].split()), "-k", MEANT])))


if __name__ == "__main__":
    main(*sys.argv[1:])
