"""Benchmarks: pytest bench. One pinned core and one thread (QKERNELS_NUM_THREADS asks for more), every library held to
the instruction set of QKERNELS_ISA where it can be."""

import os
import sys
import time
from pathlib import Path

import pytest

THREADS = int(os.environ.get("QKERNELS_NUM_THREADS") or 1)
TIMER = "thread_time" if THREADS == 1 else "perf_counter"
THREAD_COUNTS = ["QKERNELS_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]

# Overrides that would slow OpenBLAS, and what holds each library to AVX2.
OPENBLAS_OVERRIDES = ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"]
# Freed results stay with the process: a call that allocates should not pay for new pages, whoever's it is.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
HOLD_TO_AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FAISS_OPT_LEVEL": "AVX2",
}


def set_environment(config):
    """Libraries read the environment as they load, and pytest's plugins may have loaded NumPy: start again with it."""
    wanted = dict.fromkeys(OPENBLAS_OVERRIDES) | dict.fromkeys(THREAD_COUNTS, str(THREADS)) | KEEP_FREED_MEMORY
    if os.environ.get("QKERNELS_ISA") == "avx2":
        wanted |= HOLD_TO_AVX2
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    for name, value in wanted.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()  # gives stdout back
    os.execv(sys.executable, sys.orig_argv)


def pin():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not: the suites share modules
collect_ignore = ["minilm", *(path.name for path in Path(__file__).parent.glob("*.py") if path.name[:5] != "test_")]


def pytest_addoption(parser):
    parser.addoption(
        "--report", type=Path, metavar="FILE", help="JSON of the closing table; cases that it has already are replaced"
    )


ROWS, ISA = pytest.StashKey(), pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    set_environment(config)
    pin()
    config.stash[ROWS] = []
    config.option.benchmark_timer = f"time.{TIMER}"
    config.option.benchmark_quiet = True  # its own table knows neither peers nor limits; its JSON works as ever
    config.addinivalue_line("filterwarnings", "ignore::sklearn.exceptions.ConvergenceWarning")
    config.addinivalue_line("filterwarnings", "ignore:torch.quantize_per_tensor:UserWarning")


@pytest.fixture(autouse=True)
def errors_of_numpy_raise():
    """They do in tests; here data and peers may under- and overflow."""


@pytest.fixture(scope="session")
def isa(request):
    """The instruction set of this run, with every peer settled before it is used."""
    import peers
    import race as racing

    from qkernels import _core

    racing.timer = getattr(time, TIMER)
    isa, best = _core.get_isa(), _core.available_isas()[0]
    peers.settle(isa, best, THREADS)
    request.config.stash[ISA] = isa
    return isa


@pytest.fixture
def race(benchmark, isa, request):
    """Checks every contender against the exact answer, times them in turns, and records the row of the table."""
    from race import EXACT, Row, run_race

    def check_and_run(case, ours, peers, check, limits, work, unit, moved=0):
        for contender in [ours, *peers]:
            if contender.call:
                contender.call()
                contender.note = (contender.check or check)(contender.read())
        assert ours.note == EXACT or ours.check, f"{case}: our own result is not exact"
        row = Row(request.module.__name__.rpartition("test_")[2], case, work, unit, ours, peers, limits, moved)
        if benchmark.disabled:
            benchmark(ours.call)
            return
        run_race(benchmark, row)
        request.config.stash[ROWS].append(row)

    return check_and_run


def pytest_terminal_summary(config):
    if rows := config.stash[ROWS]:
        from report import print_report, save_report

        print_report(rows, config.stash[ISA], THREADS)
        if config.option.report:
            save_report(config.option.report, rows, config.stash[ISA], THREADS)
