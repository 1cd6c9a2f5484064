"""Benchmarks: pytest bench. One pinned core and one thread (QKERNELS_NUM_THREADS asks for more), every library held to
the instruction set of QKERNELS_ISA where it can be."""

import os
import sys
import time
import warnings
from pathlib import Path

import pytest

THREADS = int(os.environ.get("QKERNELS_NUM_THREADS") or 1)
TIMER = "thread_time" if THREADS == 1 else "perf_counter"
THREAD_COUNTS = ["QKERNELS_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]

OPENBLAS_OVERRIDES = ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"]  # they would slow it
# Freed results stay with the process: a call that allocates should not pay for new pages, whoever's it is.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
# What holds oneDNN, MKL, OpenBLAS, torch, faiss and zentorch's AOCL to an instruction set.
HOLDERS = ["ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY"]
HOLDERS += ["FAISS_OPT_LEVEL", "AOCL_DLP_ENABLE_INSTRUCTIONS"]
HOLD_TO = {
    "avx512vnni": ["AVX512_CORE_BF16", "AVX512_E3"],  # all but the tiles of AMX
    "avx2": ["AVX2", "AVX2", "Haswell", "avx2", "AVX2", "avx2"],
    "avxvnni": ["AVX2_VNNI", "AVX2_E1", "Haswell", "avx2", "AVX2", "avx2"],
    "avx512": ["AVX512_CORE", "AVX512", "SkylakeX", "avx512", "AVX512", "avx512"],
}


def set_environment(config=None):
    """Libraries read the environment as they load, and pytest's plugins may have loaded NumPy: start again with it."""
    wanted = (
        dict.fromkeys(OPENBLAS_OVERRIDES + HOLDERS) | dict.fromkeys(THREAD_COUNTS, str(THREADS)) | KEEP_FREED_MEMORY
    )
    wanted |= dict(zip(HOLDERS, HOLD_TO.get(os.environ.get("QKERNELS_ISA"), [])))
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    for name, value in wanted.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    if capture := config and config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()  # gives stdout back
    os.execv(sys.executable, sys.orig_argv)


def pin():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not: the suites share modules
collect_ignore = [path.name for path in Path(__file__).parent.iterdir() if not path.name.startswith("test_")]


def pytest_addoption(parser):
    parser.addoption("--seconds", type=float, default=1.5, help="time of a case, if its calls are not long")
    parser.addoption("--answer", metavar="READ,WRITE", help="of bench/compare.py: pipes through which to time cases")


ROWS = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    set_environment(config)
    pin()
    config.stash[ROWS] = []
    config.option.benchmark_timer = "race.replay"
    config.option.benchmark_quiet = True  # its own table knows neither peers nor limits; its JSON has them all
    config.addinivalue_line("filterwarnings", "ignore:Number of distinct clusters")
    config.addinivalue_line("filterwarnings", "ignore:torch.quantize_per_tensor:UserWarning")
    warnings.filterwarnings("ignore", "Benchmark machine_info is different")  # peaks always are


@pytest.fixture(autouse=True)
def errors_of_numpy_raise():
    """They do in tests; here data and peers may under- and overflow."""


@pytest.fixture(scope="session")
def isa(request):
    """Return the instruction set of this run, with all that a race needs in place before the first."""
    import limits
    import peers
    import race as racing
    from report import runtime

    peers.threads, peers.isa, peers.best_isa = THREADS, runtime.get_isa(), runtime.available_isas()[0]
    peers.left_out = bool(request.config.option.answer)
    racing.timer, racing.case_seconds = getattr(time, TIMER), request.config.option.seconds
    racing.gauge = limits.gauge(peers.isa)
    if racing.gauge:
        racing.gauge.turns = [racing.timed_turn(racing.gauge) for _ in range(100)]
    return peers.isa


@pytest.fixture
def race(benchmark, isa, request):
    """Check every contender against the exact answer, time them in turns, and record the row of the table."""
    import race as racing
    import report
    from compare import answer

    def check_and_run(case, ours, peers, check, work, unit, limits=(), moved=0):
        for contender in [ours, *peers]:
            if contender.call:
                contender.call()
                contender.note = (contender.check or check)(contender.read())
        assert ours.note == racing.EXACT or ours.check, f"{case}: our own result is not exact"
        if request.config.option.answer:
            answer(request, case, ours)
        if benchmark.disabled:
            benchmark(ours.call)
        else:
            peak = racing.run_race(ours, [*peers, *limits])
            benchmark.name, benchmark.group = case, request.module.__name__.rpartition("test_")[2]
            benchmark.extra_info |= report.extra_info(work, unit, moved, peak, limits, peers)
            racing.hand_over(benchmark, ours.turns)
            entry = {"name": case, "group": benchmark.group, "extra_info": benchmark.extra_info}
            request.config.stash[ROWS].append(report.row_of(entry | {"stats": {"min": ours.seconds}}))

    return check_and_run


def pytest_benchmark_generate_machine_info():
    from report import machine_info

    return machine_info(THREADS)


def pytest_benchmark_update_json(config, output_json):
    if not config.option.benchmark_save_data:
        for entry in output_json["benchmarks"]:
            entry["stats"].pop("data", None)  # --benchmark-json would always hold every turn


def pytest_terminal_summary(config):
    if rows := config.stash[ROWS]:
        from report import machine_info, print_report

        print_report(machine_info(THREADS) | {"rows": {row["case"]: row for row in rows}})
