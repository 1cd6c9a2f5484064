"""The pool of threads if threads are scarce, bound, forked or many; what needs a process of its own runs in one."""

import os
import subprocess

import pytest
from common import output

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="threads are looked at as Linux shows them"
)

WORK = """
    import os, resource, signal, sys, threading, time
    import numpy as np, qkernels as qk

    x = np.resize(np.arange(-100, 101, dtype=np.float32), 2000000)
    expected = np.rint(x).astype(np.int8)
    params = qk.QParams(1)
    a, b = np.resize(expected, (400, 300)), np.resize(expected, (300, 400))
    sums = a.astype(np.int32) @ b.astype(np.int32)

    def works():
        return bool((qk.quantize(x, params) == expected).all() and (qk.matmul(a, b) == sums).all())

    before = len(os.listdir("/proc/self/task"))   # a sanitizer has a thread of its own

    def started():
        for _ in range(1000):   # one that has just been started has no name yet
            time.sleep(0.02)
            tasks = os.listdir("/proc/self/task")
            named = [int(task) for task in tasks if open(f"/proc/self/task/{task}/comm").read() == "qkernels\\n"]
            if len(tasks) - len(named) <= before:
                break
        return named
"""


def working(code, **settings):
    return output(WORK, code, OPENBLAS_NUM_THREADS="1", **settings)


# ---- threads that cannot be had ----


def test_without_leave_to_start_threads_the_calling_thread_works():
    """And threads come when they can be had again."""
    code = """
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)   # the limit does not bind root
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    qk.set_num_threads(100000)
    print([works() for _ in range(3)], len(started()))
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    time.sleep(1.1)
    print(works(), len(started()) == qk.get_num_threads() - 1)
    """
    assert working(code) == "[True, True, True] 0\nTrue True"


@pytest.mark.parametrize("room", [0, 10**5, 10**6, 3 * 10**6, 10**7, 10**8])
def test_without_memory_for_threads_those_that_there_are_work(room):
    code = f"""
    q = np.empty(x.shape, np.int8)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    qk.set_num_threads(100000)
    resource.setrlimit(resource.RLIMIT_AS, (used + {room}, hard))
    for _ in range(3):
        qk.quantize(x, params, out=q)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(len(started()) == 0 or {room} > 2**20)   # the size of a stack
    print(bool((q == expected).all()))
    """
    assert working(code) == "True\nTrue"


def test_no_more_threads_are_started_than_the_work_needs():
    code = """
    qk.set_num_threads(8)
    small = np.zeros(600000, np.float32)     # 90 us of work: for 4 threads
    qk.quantize(small[:1000], params)
    print(len(started()))
    qk.quantize(small, params)
    print(len(started()))
    works()
    print(len(started()))
    """
    assert working(code) == "0\n3\n7"


# ---- what the threads are ----


def test_threads_have_a_name_and_take_no_signals():
    code = """
    qk.set_num_threads(3)
    works()
    names = lambda: {open(f"/proc/self/task/{task}/comm").read() for task in started()}
    end = time.monotonic() + 30
    while names() != {"qkernels\\n"} and time.monotonic() < end:   # one that has just been started has none yet
        time.sleep(0.01)
    for task in started():
        status = dict(line.split(":\\t", 1) for line in open(f"/proc/self/task/{task}/status"))
        blocked = int(status["SigBlk"], 16)
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGSEGV
        print(status["Name"].strip(), [bool(blocked >> number - 1 & 1) for number in numbers])
    """
    assert working(code).splitlines() == ["qkernels [True, True, False]"] * 2


def test_idle_threads_sleep():
    code = """
    qk.set_num_threads(2)
    works()
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.5)
    print(time.process_time() - start < 0.25)   # a thread that does not sleep takes 0.5
    """
    assert working(code) == "True"


@pytest.mark.parametrize("bind", ["true", "close", "spread"])
def test_a_binding_environment_leaves_all_cpus(bind):
    code = """
    qk.set_num_threads(3)
    works()
    print(*sorted({len(os.sched_getaffinity(task)) for task in {os.getpid(), *started()}}))
    """
    cpus = len(os.sched_getaffinity(0))
    assert working("print(qk.get_num_threads())", OMP_PROC_BIND=bind) == str(cpus)
    assert working(code, OMP_PROC_BIND=bind) == str(cpus)


def test_threads_stay_on_the_cpus_of_the_thread_that_calls():
    code = """
    one = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {one})
    print(qk.get_num_threads())
    qk.set_num_threads(2)
    print(works(), [os.sched_getaffinity(task) == {one} for task in started()])
    """
    assert working(code) == "1\nTrue [True]"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_callers_that_fill_the_cpus_leave_the_threads_asleep():
    """Of two CPUs each caller has one. The pool's worker, which would take half of one, is only tried now and then."""
    code = """
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    qk.set_num_threads(2)
    works()
    task = started()[0]
    cpu = lambda: sum(map(int, open(f"/proc/self/task/{task}/stat").read().rsplit(")")[1].split()[11:13])) / 100
    end, results = time.monotonic() + 2, []
    def calls():
        q = np.empty(x.shape, np.int8)
        while time.monotonic() < end:
            qk.quantize(x, params, out=q)
        results.append(bool((q == expected).all()))
    callers, before = [threading.Thread(target=calls) for _ in range(2)], cpu()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print(cpu() - before < 0.3, results)
    """
    assert working(code) == "True [True, True]"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_call_at_once_get_right_results(threads):
    """And the second works alone: it finds the pool in use, and both then have a thread each."""
    code = f"""
    from concurrent.futures import ThreadPoolExecutor
    qk.set_num_threads(2)
    with ThreadPoolExecutor({threads}) as executor:
        print(all(executor.map(lambda _: works(), range(50))), len(started()) <= 1)
    """
    assert working(code) == "True True"


@pytest.mark.parametrize("bind", ["false", "spread"])
def test_calls_within_a_parallel_region_of_openmp(bind, tmp_path):
    """Each of its threads calls: one has our threads, the others work alone, wherever OpenMP has bound them."""
    source, library = tmp_path / "region.c", tmp_path / "region.so"
    source.write_text("""
        #include <omp.h>
        void region(void (*call)(int)) {
            #pragma omp parallel num_threads(3)
            for (int i = 0; i < 20; i++) call(omp_get_thread_num());
        }
    """)
    command = [*(os.environ.get("CC") or "cc").split(), "-fopenmp", "-shared", "-fPIC", source, "-o", library]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler has no OpenMP")
    code = f"""
    import ctypes
    qk.set_num_threads(2)
    seen = []
    call = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda thread: seen.append((thread, works())))
    ctypes.CDLL("{library}").region(call)
    print(sorted(set(seen)), len(seen))
    """
    assert working(code, OMP_PROC_BIND=bind) == "[(0, True), (1, True), (2, True)] 60"


def test_limits_of_parallel_frameworks_are_read():
    """joblib's workers, for one, have OMP_NUM_THREADS set for them."""
    joblib = pytest.importorskip("joblib")
    assert joblib
    code = """
    from joblib import Parallel, delayed

    def count(_):
        import qkernels as qk
        return qk.get_num_threads()

    print(*Parallel(n_jobs=2)(delayed(count)(i) for i in range(2)), max(os.cpu_count() // 2, 1))
    """
    first, second, expected = working(code).split()
    assert first == second == expected


# ---- forks, other threads and the end ----


def test_a_fork_while_another_thread_computes():
    code = """
    qk.set_num_threads(3)
    stop = []
    def compute():
        while not stop:
            results.append(works())
    results = []
    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(20):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if works() and works() and len(started()) == 2 else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.append(True)
    for thread in threads:
        thread.join()
    print(set(codes), all(results), len(results) > 0)
    """
    assert working(code) == "{0} True True"


def test_the_number_of_threads_changes_while_others_compute():
    code = """
    stop, results = [], []
    def compute():
        while not stop:
            results.append(works())
    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(300):
        qk.set_num_threads(1 + n % 7)
        time.sleep(0.001)
    stop.append(True)
    for thread in threads:
        thread.join()
    print(all(results), len(results) > 0)
    """
    assert working(code) == "True True"


def test_a_process_ends_while_a_thread_computes():
    code = """
    qk.set_num_threads(2)
    def compute():
        while True:
            works()
    threading.Thread(target=compute, daemon=True).start()
    time.sleep(0.2)
    print("end")
    """
    assert working(code) == "end"
