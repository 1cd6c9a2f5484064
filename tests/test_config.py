"""Threads, instruction sets and what `import qkernels` does. What must be seen in a process of its own runs in one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from common import COMPILER, output, python, run

import qkernels as qk
from qkernels._bind import runtime

# ---- threads ----


def test_number_of_threads():
    before = qk.get_num_threads()
    try:
        for n in 1, 3, np.int64(2), 8:
            qk.set_num_threads(n)
            assert qk.get_num_threads() == n
            with qk.num_threads(5) as nothing:
                assert qk.get_num_threads() == 5 and nothing is None
                with qk.num_threads(1):
                    assert qk.get_num_threads() == 1
                assert qk.get_num_threads() == 5
            assert qk.get_num_threads() == n
            with pytest.raises(KeyError), qk.num_threads(5):
                raise KeyError
            assert qk.get_num_threads() == n
    finally:
        qk.set_num_threads(before)


@pytest.mark.parametrize("n", [1000000, 2**31 - 1, 2**31, 2**63])
def test_more_threads_than_the_machine_has_are_as_many_as_it_has(n):
    most = max(os.cpu_count(), 8)
    with qk.num_threads(n):
        assert qk.get_num_threads() == most
        assert np.all(qk.quantize(np.ones(10**6, np.float32), qk.QParams(1)) == 1)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n must be at least 1, got 0"),
        (-2, ValueError, "n must be at least 1, got -2"),
        (1.0, TypeError, "n must be an integer, got 1.0"),
        ("2", TypeError, "n must be an integer, got '2'"),
        (True, TypeError, "n must be an integer, got True"),
        (None, TypeError, "n must be an integer, got None"),
    ],
)
def test_numbers_of_threads_that_are_refused(n, error, message):
    before = qk.get_num_threads()
    for call in qk.set_num_threads, lambda n: qk.num_threads(n).__enter__():
        with pytest.raises(error, match=message):
            call(n)
    assert qk.get_num_threads() == before


def test_environment_sets_the_number_of_threads():
    code = "import qkernels as qk; print(qk.get_num_threads())"
    available = str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count())
    assert output(code) == available
    assert output(code, OMP_NUM_THREADS="5") == "5"
    assert output(code, QKERNELS_NUM_THREADS="7", OMP_NUM_THREADS="5") == "7"
    assert output(code, QKERNELS_NUM_THREADS=" 7\n") == "7"
    assert output(code, QKERNELS_NUM_THREADS="8192") == str(runtime.most_threads())
    for nonsense in "", "0", "-3", "many":
        assert output(code, OMP_NUM_THREADS=nonsense) == available
    assert output(code, QKERNELS_NUM_THREADS="", OMP_NUM_THREADS="5,2") == "5"


@pytest.mark.parametrize(
    "text", ["0", "-3", "many", "1.5", "4,2", " ", "+2", "0x2", "8193", "100000", "4294967297", "9" * 30, "٣"]
)
def test_a_number_of_threads_in_the_environment_that_is_none_is_an_error_at_import(text):
    done = python("-c", "import qkernels", QKERNELS_NUM_THREADS=text, PYTHONIOENCODING="utf-8")
    expected = f"RuntimeError: QKERNELS_NUM_THREADS must be a number from 1 to 8192, got {text!r}"
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1] == expected


def test_threadpoolctl_reaches_our_threads_once_it_knows_them():
    pytest.importorskip("threadpoolctl")
    code = """
    import qkernels as qk
    from threadpoolctl import threadpool_info, threadpool_limits
    qk.set_num_threads(3)
    with threadpool_limits(1):
        before = qk.get_num_threads()
    import qkernels.threadpoolctl
    (ours,) = [found for found in threadpool_info() if found["user_api"] == "qkernels"]
    with threadpool_limits(1):
        inside = qk.get_num_threads()
        with threadpool_limits(2, user_api="blas"):
            assert qk.get_num_threads() == 1
    with threadpool_limits({"qkernels": 2}):
        two = qk.get_num_threads()
    assert ours["version"] == qk.__version__
    print(before, ours["num_threads"], inside, two, qk.get_num_threads())
    """
    assert output(code) == "3 3 1 2 3"


COUNT_THREADS = """
    import os
    import numpy as np, qkernels as qk
    count = lambda: len(os.listdir("/proc/self/task"))
    before = count()
    params = qk.QParams(1)
    qk.quantize(np.zeros(100, np.float32), params)
    small = count() - before
    qk.quantize(np.zeros(10**6, np.float32), params)
    print(small, count() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted as Linux shows them")
def test_large_work_uses_the_threads_and_small_work_does_not():
    assert output(COUNT_THREADS, QKERNELS_NUM_THREADS="1") == "0 0"
    assert output(COUNT_THREADS, QKERNELS_NUM_THREADS="3") == "0 2"


WORK = """
    import os, sys
    import numpy as np, qkernels as qk
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (600, 700)).astype(np.float32)
    w = rng.integers(-128, 128, (700, 300), np.int8)
    packed = qk.pack(w, qk.QParams(0.01))

    def work():
        q, params = qk.dynamic_quantize(x, axis=0)
        c = qk.matmul(q, packed)
        y = qk.linear(x, packed, activation="gelu")
        distances = qk.kmeans1d(x, 4, axis=1).inertia
        return b"".join(a.tobytes() for a in (q, qk.dequantize(q, params), c, y, distances))
"""


def test_a_forked_child_works_after_its_parent_used_threads():
    """Threads do not survive a fork: a child that waited for them would wait for ever."""
    code = """
    import signal
    qk.set_num_threads(3)
    before = work()
    for generation in range(3):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            child = os.fork()
            if child == 0:
                signal.alarm(30)
            same = work() == before
            if child:
                same = os.waitpid(child, 0)[1] == 0 and same
            os._exit(0 if same else 1)
        assert os.waitpid(pid, 0)[1] == 0, "the child failed or was stopped by its alarm"
        assert work() == before
    print("done")
    """
    assert output(WORK, code) == "done"


def test_multiprocessing_by_fork():
    code = """
    import multiprocessing
    qk.set_num_threads(2)
    before = work()
    def same(_):
        return work() == before
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(pool.map_async(same, range(6)).get(60))
    """
    assert output(WORK, code) == str([True] * 6)


def test_calls_from_several_threads_at_once():
    """The same bits as one after the other, with shared parameters and packed weights."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(0, 1, (n, 256)).astype(np.float32) for n in (3, 300, 1100, 1400)]
    weights = rng.integers(-127, 128, (256, 160), np.int8)
    packed = qk.pack(weights, qk.QParams(rng.uniform(0.01, 0.02, 160), axis=1))
    params = qk.QParams(rng.uniform(0.01, 0.02, 256), rng.integers(0, 256, 256), "uint8", axis=1)

    def work(x):
        q = qk.quantize(x, params)
        parts = (
            q,
            qk.dequantize(q, params),
            qk.fake_quantize(x, params),
            qk.dynamic_quantize(x)[0],
            qk.linear(x, packed),
            qk.matmul(q, packed),
        )
        return b"".join(part.tobytes() for part in parts)

    with qk.num_threads(2), ThreadPoolExecutor(4) as pool:
        alone = [work(x) for x in xs]
        assert list(pool.map(work, xs * 12)) == alone * 12


# ---- instruction sets ----


@pytest.mark.parametrize("isa", runtime.built_isas())
def test_environment_forces_an_instruction_set(isa):
    code = "import qkernels as qk; from qkernels._bind import runtime; print(runtime.get_isa()); qk.show_config()"
    done = python("-c", code, QKERNELS_ISA=isa)
    if isa in runtime.available_isas():
        assert done.stdout.splitlines()[0] == isa
        assert f"in use: {isa}" in done.stdout
    else:
        assert f"RuntimeError: QKERNELS_ISA: instruction set '{isa}' is not available here, only " in done.stderr


def test_the_best_instruction_set_is_the_default():
    code = "from qkernels._bind import runtime; print(runtime.get_isa())"
    assert output(code) == output(code, QKERNELS_ISA="") == runtime.available_isas()[0]
    assert runtime.available_isas()[-1] == "scalar"
    assert [isa for isa in runtime.built_isas() if isa in runtime.available_isas()] == runtime.available_isas()


@pytest.mark.parametrize("name", ["avx9000", "AVX2", "avx2 "])
def test_instruction_sets_that_do_not_exist(name):
    done = python("-c", "import qkernels", QKERNELS_ISA=name)
    here = ", ".join(runtime.available_isas())
    expected = f"RuntimeError: QKERNELS_ISA: instruction set {name!r} is not available here, only {here}"
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1] == expected
    before = runtime.get_isa()
    with pytest.raises(ValueError, match="instruction set 'avx9000' is not available here, only .*scalar"):
        runtime.set_isa("avx9000")
    assert runtime.get_isa() == before


# ---- what embedders and importers see ----


def test_show_config(capsys):
    with qk.num_threads(3):
        assert qk.show_config() is None
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["instruction sets built"].split(", ") == runtime.built_isas()
    assert lines["instruction sets of this CPU"].split(", ") == runtime.available_isas()
    assert lines["in use"].split()[0] == runtime.get_isa()
    assert lines["threads"] == "3"
    assert lines["compiler"].split()[0] in ("gcc", "clang")
    assert python("-m", "qkernels", "--seconds", "0").stdout.startswith(f"qkernels {qk.__version__}\n")


# ---- first use: nothing is compiled, and no cache is read or written ----

FIRST_USE = """
import sys
import numpy as np, qkernels as qk
x = np.float32([[1, 2, 8, 9, 10]])
assert qk.kmeans1d(x, 2).inertia == 2.5
assert qk.Codebook.fit(x, 3, axis=0, zero=True).levels.shape == (1, 3)
assert qk.choose_qparams(x, "uint8", method="mse").scale > 0
assert not {"numba", "llvmlite"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"XDG_CACHE_HOME": ""},
        {"XDG_CACHE_HOME": "cache"},
        {"HOME": None},
        {"HOME": "/nonexistent"},
        {"HOME": "relative"},
        {"NUMBA_CACHE_DIR": "/nonexistent/cache"},
        {"TMPDIR": "/nonexistent"},
    ],
    ids=str,
)
def test_first_calls_need_no_home_and_leave_no_file(tmp_path, change):
    settings = {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"} | change
    assert output(FIRST_USE, cwd=tmp_path, **settings) == "" and list(tmp_path.rglob("*")) == []


def test_a_planted_cache_is_not_read(tmp_path):
    """Caches of compiled code are pickles, which run what they please: none is opened, whoever owns it."""
    folder = tmp_path / ".cache" / "qkernels"
    folder.mkdir(parents=True)
    for name in ("kmeans1d.cluster_lines-1.py311.nbi", "least_squares._refine-1.py311.nbi"):
        (folder / name).write_bytes(b"cos\nabort\n(tR.")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)
    watched = "import sys; opened = []\n"
    watched += "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
    told = f"print(any({str(folder)!r} in name for name in opened))"
    settings = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    assert output(watched, FIRST_USE, told, **settings) == "False"


@pytest.mark.parametrize(
    "call",
    [
        "qk.kmeans1d(x, 3)",
        "qk.Codebook.fit(x, 3)",
        "qk.Codebook.fit(x, 3, zero=True)",
        'qk.choose_qparams(x, "uint8", method="mse")',
    ],
)
def test_first_calls_are_as_quick_as_others(call):
    code = f"""
    import time
    import numpy as np, qkernels as qk
    x = np.random.default_rng(0).standard_normal(1000).astype("f4")
    start = time.process_time(); {call}
    print(time.process_time() - start)
    """
    assert float(output(code)) < 1  # 0.003 on an idle machine; compiling took seconds


def test_compile_has_nothing_to_do():
    done = python("-m", "qkernels", "--compile")
    assert (done.stdout, done.stderr) == ("nothing to compile: all loops are built into the extension\n", "")


def test_get_include_compiles(tmp_path):
    header = Path(qk.get_include()) / "qkernels.h"
    source = tmp_path / "embedder.c"
    source.write_text('#include "qkernels.h"\nint main(void) { return (int)sizeof(qk_dtype) == 0; }\n')
    run(COMPILER, "-std=c11", "-Wall", "-Werror", "-fsyntax-only", f"-I{header.parent}", source)


def test_import_brings_little_more_than_numpy():
    """What costs milliseconds each waits for the function that needs it."""
    code = """
    import sys
    import numpy, ml_dtypes
    before = set(sys.modules)
    import qkernels as qk
    qk.quantize(numpy.ones(3, "f4"), qk.QParams(1))
    print(*{name.split(".")[0] for name in set(sys.modules) - before})
    """
    ours = set(output(code).split())
    others = {"numba", "llvmlite", "scipy", "torch", "onnx", "onnxruntime", "pandas"}
    slow = {"asyncio", "concurrent", "ctypes", "dataclasses", "decimal", "fractions", "inspect", "logging", "pathlib"}
    assert "qkernels" in ours and not ours & (others | slow)


def test_every_public_name_is_listed_and_documented():
    assert qk.__all__ == sorted(qk.__all__)
    for name in qk.__all__:
        thing = getattr(qk, name)
        assert thing.__doc__ and (">>>" in thing.__doc__), name


def test_a_second_interpreter_is_refused():
    """By NumPy, and by us: their extensions have one state a process."""
    code = """
    import qkernels
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    made = interpreters.create()
    try:
        print("refused" if "ImportError" in str(interpreters.run_string(made, "import qkernels")) else "taken")
    except Exception as error:
        print("refused" if "ImportError" in str(error) else error)
    interpreters.destroy(made)   # 3.14 warns of one that is left
    """
    assert output(code) == "refused"
