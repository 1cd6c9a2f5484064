"""Threads of Python at once, on the same objects: in turns under the GIL, in parallel on a free-threaded build.

QKERNELS_TESTS_SECONDS makes the tests that repeat themselves last longer, for a run that looks for races.
"""

import copy
import gc
import os
import random
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import calls
import ml_dtypes
import numpy as np
import pytest
import results
from common import answer, output
from test_fpmode import bits

import qkernels as qk
from qkernels import observers

THREADS = 8
SECONDS = float(os.environ.get("QKERNELS_TESTS_SECONDS", 0.5))


@pytest.fixture(autouse=True)
def frequent_turns():
    """Where there is a GIL, threads take turns 500 times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*works):
    """Run each function in a thread of its own, all from one moment on; return what they return."""
    start = threading.Barrier(len(works))

    def begin(work):
        start.wait()
        with np.errstate(all="raise"):
            return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(begin, work) for work in works]]


def repeat(seconds, work):
    """Call work(i) for i = 0, 1, ... until the time has passed, at least once."""
    i, end = 0, time.monotonic() + seconds
    while i == 0 or time.monotonic() < end:
        work(i)
        i += 1


def disturb(seconds):
    """Change the number of threads, and have the garbage collector stop the world."""

    def change(i):
        with qk.num_threads(1 + i % 4):
            time.sleep(0.002)
        if i % 8 == 0:
            gc.collect()

    repeat(seconds, change)


def all_give(cases, seconds=SECONDS):
    """Have threads go through functions, each in an order of its own, which must return the expected bits."""
    names, functions, expected = zip(*((name, call, bits(call())) for name, call in cases))

    def go(seed):
        order = random.Random(seed).sample(range(len(names)), len(names))
        end = time.monotonic() + seconds

        def check(i):
            for at in order:
                assert bits(functions[at]()) == expected[at], names[at]
                if i and time.monotonic() > end:
                    break

        repeat(seconds, check)

    at_once(*(partial(go, seed) for seed in range(THREADS)), partial(disturb, seconds))


# ---- every public function ----


def with_new_out(name, arguments):
    return calls.call(name, {key: value() if key == "out" else value for key, value in arguments.items()})


def test_every_public_function_on_shared_arguments():
    settings = results.SETTINGS
    cases = [
        (name, partial(with_new_out, name, arguments))
        for name, valid in calls.CALLS.items()
        for arguments in (valid if name not in settings else [])
    ]
    assert {name for name, _ in cases} == calls.FUNCTIONS.keys() - settings
    all_give(cases)


@pytest.mark.parametrize("kind", ["products", "elementwise", "tables"])
def test_larger_work_that_wants_the_pool(kind):
    """Whoever finds its threads at another's work does its own alone."""
    cases = list(getattr(results, kind)())
    assert len(cases) > 20
    all_give(cases[::3], 2 * SECONDS)


def test_errors_are_those_of_the_thread_that_made_them():
    x, codes = np.float32([[1, 2, 3]]), np.uint8([[3, 1]])
    bad = [
        ("NaN", lambda: qk.quantize(np.float32([1, np.nan]), calls.PARAMS)),
        ("shape", lambda: qk.linear(x, calls.PACKED["int8"])),
        ("a code", lambda: qk.decode(codes, qk.Codebook([-1, 0, 1]))),
        ("a dtype", lambda: qk.matmul(x, calls.PACKED["int8"])),
        ("an option", lambda: qk.linear(calls.X, calls.PACKED["int8"], activation="tangent")),
        ("out", lambda: qk.dequantize(codes, calls.PARAMS, out=np.empty(3))),
    ]
    cases = [(name, partial(answer, call)) for name, call in bad]
    assert all("Error: " in call() for name, call in cases if name != "NaN")
    all_give([*cases, *((f"valid {i}", partial(qk.quantize, x + i, calls.PARAMS)) for i in range(3))])


# ---- what is made on first use, or remembered ----


def test_first_import():
    """And of NF4 and FP4, which are made, with SciPy, on first use: one of each."""
    code = """
    import threading
    start, found = threading.Barrier(8), []

    def begin():
        start.wait()
        import qkernels as qk
        from qkernels import selftest
        found.append((qk.NF4, qk.FP4, qk.matmul, selftest))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(found), [len(set(map(id, objects))) for objects in zip(*found)])
    """
    assert output(code) == "8 [1, 1, 1, 1]"


def fresh_codebooks():
    """Codebooks whose tables nobody has asked for."""
    levels = np.linspace(-2, 3, 96, dtype=np.float32)
    yield qk.Codebook(levels[:16])
    yield qk.Codebook(levels, block_size=32)
    yield qk.Codebook(levels.reshape(6, 16), axis=1)
    yield qk.Codebook(levels.reshape(2, 16, 3), vector=True)


def test_tables_of_a_codebook_are_made_by_whoever_comes_first():
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    expected = [bits(qk.encode(x, book)) for book in fresh_codebooks()]

    def check(_):
        for book, want in zip(fresh_codebooks(), expected):
            assert all(got == want for got in at_once(*[lambda book=book: bits(qk.encode(x, book))] * THREADS))

    repeat(SECONDS, check)


def layers():
    """Calls that alternate between parameters, which weights remember for the next."""
    rng = np.random.default_rng(1)
    q = rng.integers(0, 256, (3, 64)).astype(np.uint8)
    packed = qk.pack(rng.integers(-127, 128, (64, 40)).astype(np.int8), qk.QParams(rng.uniform(0.01, 0.02, 40), axis=1))
    image = rng.integers(-128, 128, (1, 9, 9, 8)).astype(np.int8)
    conv = qk.pack_conv(rng.integers(-127, 128, (3, 3, 8, 16)).astype(np.int8), qk.QParams(0.01))
    for i in range(4):
        params, out_params, bias = qk.QParams(0.1 + i, i, "uint8"), qk.QParams(0.5 + i), np.arange(40) + i
        options = dict(bias=bias.astype(np.int32), activation="relu" if i % 2 else None)
        yield f"qlinear {i}", partial(qk.qlinear, q, params, packed, out_params, **options)
        yield f"qconv2d {i}", partial(qk.qconv2d, image, qk.QParams(0.1), conv, out_params, padding=i % 3)
    for weights in (packed, conv):  # which hold now the memory of one call, now of another
        yield "nbytes", lambda weights=weights: weights.nbytes > 0
        yield "to_arrays", weights.to_arrays


def test_what_weights_remember_of_a_call():
    all_give(layers())


# ---- objects that change ----

OBSERVERS = [(name, axis) for name in observers.__all__ if name != "MovingAverage" for axis in (None, 1)]


@pytest.mark.parametrize("name, axis", OBSERVERS)
def test_observers_are_updated_and_merged(name, axis):
    """In any order, what all have seen is the same; and in between each is whole."""
    kind, rng = getattr(observers, name), np.random.default_rng(2)
    parts = [(rng.normal(size=(200, 4)) * 2.0**i).astype(np.float32) for i in range(THREADS)]
    want = kind(axis=axis)
    for part in parts * 4:
        want.update(part)

    def check(_):
        one, other, ends = kind(axis=axis), kind(axis=axis), threading.Event()

        def look():
            while not ends.is_set():
                for seen in (other, kind(axis=axis).merge(other)):
                    arrays = seen.to_arrays()
                    assert kind.from_arrays(arrays).count == arrays["count"]  # which refuses other sums of counts

        def update(part):
            one.update(part), other.update(part), one.update(part), other.update(part)

        def updates():
            try:
                at_once(*(partial(update, part) for part in parts))
            finally:
                ends.set()

        at_once(updates, look)
        assert bits(one.merge(other).to_arrays()) == bits(want.to_arrays())

    repeat(SECONDS / 4, check)


def test_a_hessian_is_updated_and_merged():
    """Of rows of ones, sums and products are their number at any time."""
    rows = np.ones((37, 3), np.float32)

    def check(_):
        one, other, ends = qk.Hessian(3), qk.Hessian(3), threading.Event()

        def update():
            for i in range(1, 30):
                one.update(rows[: i + 1]), other.update(rows[i:])

        def look():
            while not ends.is_set():
                for seen in (qk.Hessian(3).merge(one), one, other):
                    arrays = seen.to_arrays()
                    assert (arrays["sum"] == arrays["count"]).all() and (arrays["moments"] == arrays["count"]).all()

        def updates():
            try:
                at_once(*[update] * 4)
            finally:
                ends.set()

        at_once(updates, look)
        assert one.count == 4 * sum(range(2, 31)) and (one.moments == one.count).all()

    repeat(SECONDS, check)


@pytest.mark.parametrize("make", [observers.MSE, observers.MinMax, lambda: qk.Hessian(4)])
def test_two_that_are_merged_into_each_other(make):
    """No thread waits for a lock whose owner waits for its own; nor does one that is merged into itself."""
    a, b = make().update(calls.X), make().update(calls.X)
    at_once(*[lambda: [a.merge(b) for _ in range(4)], lambda: [b.merge(a) for _ in range(4)]] * 2)
    seen = a.count
    assert a.merge(a).count == 2 * seen


@pytest.mark.parametrize("make", [observers.MSE, observers.MinMax, lambda: qk.Hessian(4)])
def test_a_signal_handler_that_uses_what_it_interrupts_is_refused(make, monkeypatch):
    """Rather than that it waits for ever. It may use others, of which copies are some; later this one, too."""
    seen, other, found = make().update(calls.X), make().update(calls.X), []

    def handle(count, *_):
        monkeypatch.undo()
        other.update(calls.X)
        for use in (lambda: seen.update(calls.X), seen.to_arrays, lambda: seen.merge(other), lambda: other.merge(seen)):
            try:
                use()
            except RuntimeError as error:
                found.append(str(error))
        return count

    for module in (observers, qk._hessian):
        monkeypatch.setattr(module, "within_64_bits", handle)  # which an update calls
    thread = threading.Thread(target=seen.update, args=(calls.X,), daemon=True)
    thread.start(), thread.join(20)
    assert found == [f"this thread is using this {type(seen).__name__}: a signal handler cannot until it returns"] * 4
    counts = [each.update(calls.X).count for each in (copy.deepcopy(seen), seen, other)]
    assert len(set(counts)) == 1


# ---- settings ----


def test_contexts_of_threads_overlap():
    """Whichever ends first, after all of them the setting is what it was."""
    before = qk.get_num_threads()
    first, second, third = (qk.num_threads(n) for n in (3, 4, 5))
    first.__enter__(), second.__enter__(), third.__enter__()
    first.__exit__(None, None, None)
    assert qk.get_num_threads() == 5
    third.__exit__(None, None, None)
    assert qk.get_num_threads() == 4
    second.__exit__(None, None, None)
    assert qk.get_num_threads() == before

    def work(seed):
        chance = random.Random(seed)
        for _ in range(50):
            with qk.num_threads(chance.randint(1, 7)):
                time.sleep(chance.random() * 1e-4)

    at_once(*(partial(work, seed) for seed in range(THREADS)))
    assert qk.get_num_threads() == before


def test_threadpoolctl_limits_while_others_compute():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    import qkernels.threadpoolctl  # noqa: F401

    def limit(_):
        with threadpoolctl.threadpool_limits(1, user_api="qkernels"):
            assert any(info["user_api"] == "qkernels" for info in threadpoolctl.threadpool_info())

    x = np.resize(calls.X, (500, 4))
    want = bits(qk.linear(x, calls.PACKED["int8"]))

    def compute(_):
        assert bits(qk.linear(x, calls.PACKED["int8"])) == want

    at_once(partial(repeat, SECONDS, limit), *[partial(repeat, SECONDS, compute)] * 3)


# ---- arrays that another thread writes ----


def test_arrays_that_change_under_a_call():
    """Results are of some of what was there, or an error says what was found: nothing else happens."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 4, (64, 32)).astype(np.uint8)
    x, scale = rng.normal(size=(64, 32)).astype(np.float32), np.ones(32, np.float32)
    book, params = qk.Codebook([-1, 0, 1, 2]), qk.QParams(0.1)
    vectors, rows = qk.Codebook(rng.normal(size=(32, 4, 2)), vector=True), np.ones((3, 64), np.float32)
    functions = [
        lambda: qk.decode(codes, book),
        lambda: qk.search(rows, codes, vectors, 5),
        lambda: qk.linear(rows, qk.pack(codes, book)),
        lambda: qk.take_table(codes, np.arange(256, dtype=np.uint8)),
        lambda: qk.pack_bits(codes, 2),
        lambda: qk.quantize(x, params),
        lambda: qk.encode(x, book),
        lambda: qk.kmeans1d(x, 5),
        lambda: qk.kmeans(x, 3, rng=0),
        lambda: qk.observers.MSE(axis=1).update(x).qparams("int4"),
        lambda: qk.choose_qparams(x, "int4", axis=0, method="mse"),
        lambda: qk.QParams(scale, axis=1),
        lambda: qk.dequantize(codes.view(ml_dtypes.uint4), qk.QParams(scale, dtype="uint4", axis=1)),
    ]

    def write(i):
        codes[...] = 255 if i % 2 else 3
        x[...] = np.nan if i % 2 else 1
        scale[...] = -1 if i % 2 else 1

    def call(i):
        answer(functions[i % len(functions)])

    at_once(partial(repeat, SECONDS, write), *[partial(repeat, SECONDS, call)] * (THREADS - 1))
    codes[...], x[...], scale[...] = 3, 1, 1
    assert all(not isinstance(answer(function), str) for function in functions)


def test_one_out_of_several_calls():
    x, q = np.linspace(-3, 3, 100_000, dtype=np.float32), np.empty(100_000, np.int8)
    at_once(*[lambda: qk.quantize(x, calls.PARAMS, out=q)] * THREADS)
    assert bits(q) == bits(qk.quantize(x, calls.PARAMS))


# ---- a build without GIL ----


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has a GIL")
def test_no_module_of_ours_brings_the_gil_back():
    """Python would say so by a warning, an error here, and enable it for the whole process."""
    code = """
    import sys
    import qkernels.io, qkernels.selftest
    from qkernels import _bind
    print(sys._is_gil_enabled(), len([m for m in sys.modules if m.startswith("qkernels._bind.")]) >= 13)
    """
    assert output(code, PYTHON_GIL=None, PYTHONWARNINGS="error") == "False True"
