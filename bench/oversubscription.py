"""Two workers of a framework with two threads each, beside two with one: python bench/oversubscription.py

A worker calls one operation again and again for a fraction of a second, at the same time as the other; what counts is
how many calls both make. The two settings take turns, and the ratio is the median of those of neighbouring turns. On a
machine with two CPUs, as here, two workers with two threads are twice what it has; on a larger one the processes are
held to the first two.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

import qkernels as qk  # noqa: E402

WORKERS, THREADS = 2, 2
AHEAD = 0.2  # seconds from handing out a turn until it begins, for both workers to be ready
FURTHEST = 3.2  # it is put off up to so much where a worker was late
TRIES = 3  # for each round that is asked for
PROMISE = 0.95

# ---- what a worker does ----


def operations():
    """Return calls by name, each with arrays of its own."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(128, 1536)).astype(np.float32), rng.normal(size=(1536, 384)).astype(np.float32)
    weight_params, params = qk.choose_qparams(w, axis=1), qk.QParams(0.1)
    packed, y = qk.pack(qk.quantize(w, weight_params), weight_params), np.empty((128, 384), np.float32)
    z = np.empty_like(y)
    values, q = rng.normal(size=10**6).astype(np.float32), np.empty(10**6, np.int8)

    def linear():
        qk.linear(x, packed, out=y)

    def quantize():
        qk.quantize(values, params, out=q)

    def mixed():
        """As in a model: calls of 10 to 300 us, some of them too small to be shared, and NumPy between them."""
        qk.linear(x, packed, out=y)
        qk.layer_norm(y, y[0], y[1], out=z)
        np.add(y, z, out=z)
        qk.quantize(z, params)
        qk.linear(x[:4], packed)

    return {"linear 128 x 1536 x 384": linear, "quantize 1e6 values": quantize, "mixed": mixed}


def turn(name, threads, start, seconds):
    """Call an operation from `start` on, on the clock of the system, for so many seconds; return calls a second.

    Or None where that was too late.
    """
    call = operations()[name]
    qk.set_num_threads(threads)
    call()
    if time.monotonic() > start:
        return None
    while time.monotonic() < start:
        time.sleep(1e-4)
    begin, calls = time.monotonic(), 0
    while (now := time.monotonic()) < start + seconds:
        call()
        calls += 1
    return calls / (now - begin)


# ---- frameworks: contexts of a function that has both workers take a turn, and returns what they return ----


@contextmanager
def of_joblib(backend):
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS, backend=backend) as pool:
        yield lambda *of: pool(delayed(turn)(*of) for _ in range(WORKERS))


@contextmanager
def of_dask(processes):
    from distributed import Client

    shape = dict(n_workers=WORKERS, threads_per_worker=1) if processes else dict(threads_per_worker=WORKERS)
    with Client(processes=processes, dashboard_address=":0", silence_logs=50, **shape) as client:
        yield lambda *of: client.gather([client.submit(turn, *of, pure=False) for _ in range(WORKERS)])


@contextmanager
def of_futures():
    with ThreadPoolExecutor(WORKERS) as pool:
        yield lambda *of: list(pool.map(lambda _: turn(*of), range(WORKERS)))


FRAMEWORKS = {
    "joblib, processes (loky)": lambda: of_joblib("loky"),
    "joblib, threads": lambda: of_joblib("threading"),
    "Dask, processes": lambda: of_dask(True),
    "Dask, threads": lambda: of_dask(False),
    "ThreadPoolExecutor": of_futures,
}


# ---- turns, and the table ----


def compare(take, name, rounds, seconds):
    """Return rounds as calls a second of both workers by threads of each; fewer rounds where workers are often late.

    A round in which one was late is repeated, with twice as much time to be ready from then on.
    """
    found, ahead = [], AHEAD
    for _ in range(TRIES * rounds):
        rates = {}
        for threads in (1, THREADS) if len(found) % 2 else (THREADS, 1):
            of_each = take(name, threads, time.monotonic() + ahead, seconds)
            if None in of_each:
                ahead = min(2 * ahead, FURTHEST)
                break
            rates[threads] = sum(of_each)
        else:
            found.append(rates)
        if len(found) == rounds:
            break
    return found


def row(found):
    """Return the table's cells of such rounds, and whether the promise was kept."""
    if len(found) < 2:
        return "", "", "late", False
    ratios = [rates[THREADS] / rates[1] for rates in found]
    low, middle, high = statistics.quantiles(ratios, n=4)
    alone = statistics.median(rates[1] for rates in found)
    return f"{alone:,.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}", middle >= PROMISE


def rows(chosen, rounds, seconds):
    for framework in chosen:
        with FRAMEWORKS[framework]() as take:
            for name in operations():
                take(name, 1, time.monotonic() + 20 * AHEAD, 0)  # processes start
                found = compare(take, name, rounds, seconds)
                yield framework, name, str(len(found)), *row(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("frameworks", nargs="*", help=f"of {', '.join(FRAMEWORKS)}")
    options = parser.parse_args()
    chosen = [name for name in FRAMEWORKS if not options.frameworks or name in options.frameworks]
    print_table(rows(chosen, options.rounds, options.seconds))


def print_table(every):
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for title in "workers", "operation", "rounds", "calls/s, 2 x 1", "2 x 2 to 2 x 1", "quartiles":
        table.add_column(title, justify="left" if title in ("workers", "operation") else "right", no_wrap=True)
    with Console().status("taking turns ..."):
        for *cells, kept in every:
            table.add_row(*cells, style=None if kept else "red")
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    main()
