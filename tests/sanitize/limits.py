"""Public functions where memory or threads cannot be had: `python tests/sanitize/limits.py [cases of the self-test]`.

Each case of the self-test, which call every public function between them, is called with little address space left
(RLIMIT_AS), a little more each time, and where no thread may be started (RLIMIT_NPROC). It must return what is right,
or raise MemoryError. A process for each case tells of crashes, and its time limit of calls that hang.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections import Counter

import numpy as np

import qkernels as qk
from qkernels import _selftest_cases as cases
from qkernels._selftest_frameworks import FRAMEWORKS  # which answer for their memory themselves
from qkernels.selftest import differs

ROOMS = [0, *(2**n for n in range(12, 28))]  # bytes beyond what is in use
THREADS = 1, 3
HANGS = 600  # seconds
NOBODY = 65534  # the limit on threads does not bind root
# Blocks that are freed go back to the system at once: else the next call would find room there.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OPENBLAS_NUM_THREADS": "1"}


def limited(kind, most, call):
    """Return what a call returns under a limit, or None where it raises MemoryError."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most, hard))
    try:
        return call()
    except MemoryError:
        return None
    finally:
        resource.setrlimit(kind, (hard, hard))


def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def made(name, seed):
    """Return a call of a case, with arrays as large as it makes them, which has run once: modules are imported."""
    cases.size = lambda rng, most: most - int(rng.integers(1 + most // 8))
    with np.errstate(all="ignore"):
        found = cases.CASES[name](np.random.default_rng(seed))
    qk.set_num_threads(1)
    found.call()
    return found


def check(found, result, states):
    states["refused" if result is None else "right"] += 1
    with np.errstate(all="ignore"):
        if result is not None and (problem := differs(result, found.want)):
            raise AssertionError(problem)


def without_memory(name, seed):
    found, states = made(name, seed), Counter()
    for room in ROOMS:
        for threads in THREADS:
            qk.set_num_threads(threads)
            check(found, limited(resource.RLIMIT_AS, used() + room, found.call), states)
    return states


def without_threads(name, seed):
    found, states = made(name, seed), Counter()
    if os.getuid() == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    qk.set_num_threads(8)
    before = len(os.listdir("/proc/self/task"))
    check(found, limited(resource.RLIMIT_NPROC, 0, found.call), states)
    if states["refused"] or len(os.listdir("/proc/self/task")) != before:
        raise AssertionError(f"{states}, and {len(os.listdir('/proc/self/task'))} threads after {before}")
    return states


WAYS = {"memory": without_memory, "threads": without_threads}


def in_process(way, name, seed):
    """Return the states of the calls, or raise AssertionError with the end of what the process said."""
    command = [sys.executable, __file__, "--way", way, "--seed", str(seed), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=os.environ | SETTINGS)
    except subprocess.TimeoutExpired:
        raise AssertionError("it hangs") from None
    if done.returncode:
        raise AssertionError(f"it ended with {done.returncode}: {done.stderr[-1500:]}")
    return Counter(json.loads(done.stdout))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="of random arguments, for each case")
    parser.add_argument("--way", choices=WAYS, help="make the calls of one case here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", default=[name for name in cases.CASES if name not in FRAMEWORKS])
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(WAYS[options.way](options.names[0], options.seed)))
        return 0
    totals, wrong = {way: Counter() for way in WAYS}, 0
    for name in options.names:
        for way in WAYS:
            states = Counter()
            try:
                for seed in range(options.seeds):
                    states += in_process(way, name, seed)
            except AssertionError as problem:
                wrong += 1
                print(f"{name} without {way}, seed {seed}: WRONG: {problem}", flush=True)
            totals[way] += states
            print(f"{name} without {way}: {dict(states)}", flush=True)
    print(", ".join(f"without {way}: {dict(states)}" for way, states in totals.items()), f"{wrong} wrong", sep="; ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
