"""Check on this machine that results are what the documentation says: ``python -m qkernels.selftest --seconds 60``.

Public functions are called with random arguments, on every instruction set that the CPU has and with 1, 2 and 3
threads, and compared with references by NumPy in int64 and float64. It prints how many values were compared for each
instruction set, and stops at the first that differs, with the seed that repeats the call: ``--seed 1234``.

It needs nothing but an installed qkernels: where that runs, this does. Where PyTorch or Dask are installed, what is for
them is called, too. docs/reliability.md has the counts of long runs.
"""

import argparse
import signal
import sys
import time
from collections import Counter

import numpy as np

from . import _selftest_frameworks  # noqa: F401  it enters its cases
from ._bind import runtime
from ._selftest_cases import CASES, RARE, Near
from .config import get_num_threads, set_num_threads

THREADS = 1, 2, 3


class Mismatch(Exception):
    """Tell which call differs, and how."""


# ---- how results are compared ----


def differs(got, want):
    """Return in words how a result differs from what it should be, or None."""
    if isinstance(want, list):
        return next(filter(None, (differs(g, w) for g, w in zip(got, want, strict=True))), None)
    if callable(want):
        return None if want(got) else "a law does not hold"
    if isinstance(want, Near):
        return _far(np.asarray(got), want)
    got, want = np.asarray(got), np.asarray(want)
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype} of shape {got.shape}, not {want.dtype} of shape {want.shape}"
    wrong = np.flatnonzero(_bits(got) != _bits(want))
    return _first(got, want, wrong) if wrong.size else None


def is_exact(want):
    return all(map(is_exact, want)) if isinstance(want, list) else isinstance(want, np.ndarray | np.generic)


def _far(got, want):
    value = np.asarray(want.value, np.float64)
    if got.shape != value.shape:
        return f"shape {got.shape}, not {value.shape}"
    wrong = np.flatnonzero(~(np.abs(got.astype(np.float64) - value) <= want.error))
    return _first(got, value, wrong) if wrong.size else None


def _first(got, want, wrong):
    where = tuple(map(int, np.unravel_index(wrong[0], got.shape)))
    return f"{wrong.size} of {got.size} values, the first at {where}: {got[where]}, not {want[where]}"


def _bits(x):
    x = np.ascontiguousarray(x).reshape(-1)
    return x.view(f"u{x.itemsize}")


def leaves(result):
    """Return the arrays that a result holds."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in leaves(part)]
    return [np.asarray(result)] if isinstance(result, np.ndarray | np.generic) else []


def check(seed, names=None, counts=None):
    """Make the call of a seed on every instruction set and with each number of threads; return its case's name.

    Raises
    ------
    Mismatch
        Where a result differs from its reference, or from those of other instruction sets.
    """
    rng = np.random.default_rng(seed)
    names = names or [name for name in CASES if name not in RARE or rng.random() < 0.1]
    name = str(rng.choice(names))
    with np.errstate(all="ignore"):  # whatever the caller's, references may underflow
        made = CASES[name](rng)
    before, first = (runtime.get_isa(), get_num_threads()), None
    try:
        for isa in runtime.available_isas():
            runtime.set_isa(isa)
            for threads in THREADS:
                set_num_threads(threads)
                result = made.call()
                found = leaves(result)
                with np.errstate(all="ignore"):
                    problem = differs(result, made.want)
                if not is_exact(made.want):  # else it has been compared
                    problem = problem or (first and differs(found, first))
                    first = first or found
                if problem:
                    raise Mismatch(f"{name} on {isa} with {threads} threads: {problem}")
                for array in found if counts is not None else ():
                    counts[isa, "floats" if array.dtype.kind == "f" else "integers"] += array.size
    finally:
        runtime.set_isa(before[0])
        set_num_threads(before[1])
    return name


def run(seconds, seed=0):
    """Check seeds from `seed` on for so many seconds; return how many calls were made, and the values compared.

    Returns
    -------
    calls : Counter of str
        By name of the case.
    counts : Counter
        By instruction set and "integers" or "floats".
    """
    calls, counts, end = Counter(), Counter(), time.monotonic() + seconds
    while not calls or time.monotonic() < end:
        try:
            calls[check(seed, counts=counts)] += 1
        except Exception as problem:  # a call that raises is wrong as well
            said = problem if isinstance(problem, Mismatch) else f"{type(problem).__name__}: {problem}"
            raise Mismatch(f"{said}\nTo repeat it: python -m qkernels.selftest --seed {seed}") from problem
        seed += 1
    return calls, counts


# ---- the command ----


def seconds(word):
    """Return an option as a time: finite, and at least 0."""
    if not 0 <= (value := float(word)) < float("inf"):
        raise ValueError
    return value


def _seed(word):
    if (seed := int(word)) < 0:
        raise ValueError
    return seed


def report(counts, calls):
    """Print how many values were compared."""
    print(f"{sum(calls.values()):,} random calls of {len(calls)} kinds, each with {THREADS} threads; values compared:")
    for isa in runtime.available_isas():
        print(f"  {isa:12} {counts[isa, 'integers']:>18,} integers {counts[isa, 'floats']:>18,} floats")
    every = {kind: sum(n for (_, k), n in counts.items() if k == kind) for kind in ("integers", "floats")}
    print(f"  {'all':12} {every['integers']:>18,} integers {every['floats']:>18,} floats")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m qkernels.selftest", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=seconds, default=10, help="how long to go on (10)")
    parser.add_argument("--seed", type=_seed, help="make one call only, that of this seed")
    options = parser.parse_args(arguments)
    try:
        if options.seed is not None:
            print(f"{check(options.seed)}: no difference")
        else:
            report(*reversed(run(options.seconds, int(time.time_ns() % 10**12))))
    except Mismatch as problem:
        print(f"MISMATCH: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # what reads all of it may be a `head`
    sys.exit(main())
