"""Fail if a case became slower, and name it.

python bench/compare.py OLD.json NEW.json                       # two results of pytest bench --benchmark-json
python bench/compare.py OLDTREE NEWTREE [arguments of pytest]   # two built checkouts, in turns, in one run

The second way is the surer one. Two processes run the benchmarks of this checkout, each with the library of its tree
and without the peers. They take turns case by case, a window of a millisecond each, and the ratio is the median of
those of neighbouring windows. Slow cases run again in new processes, where arrays lie elsewhere, and fail if they are
slow each time.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).parent
REPEATS = 2  # of the slow cases
# A suite of what the old tree lacks cannot be imported there.
QUIET = ["-q", "--tb=no", "--disable-warnings", "--benchmark-disable", "--continue-on-collection-errors"]
AT_THE_END = "[Infinity, null, null, null]"
MOST_ROUNDS, LEAST_ROUNDS = 400, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--limit", type=float, default=10, help="percent that a case may be slower (10)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of a case of two trees (1)")
    given, rest = parser.parse_known_args()
    if given.old.is_dir():
        slow = compare_trees(given.old.resolve(), given.new.resolve(), given.limit, given.seconds, rest)
    else:
        slow = compare_results(given.old, given.new, given.limit)
    for case, (ratio, *_) in slow.items():
        print(f"slower: {case}, {ratio:.3f} of the speed before" if ratio else f"only the old tree can run {case}")
    sys.exit(1 if slow else 0)


def is_slow(ratio, limit):
    return ratio < 1 / (1 + limit / 100)


# ---- two results ----


def compare_results(old, new, limit):
    from report import is_disturbed, load

    before, after = load(old), load(new)
    for name in "cpu", "isa", "threads":
        if before[name] != after[name]:
            sys.exit(f"{name} differs: {before[name]} and {after[name]}")
    ratios = {}
    for case in before["rows"].keys() & after["rows"].keys():
        rows = before["rows"][case], after["rows"][case]
        mark = " (disturbed)" if is_disturbed(rows[0], before) or is_disturbed(rows[1], after) else ""
        ratios[case + mark] = [rows[0]["seconds"] / rows[1]["seconds"]]
    print(f"{len(ratios)} cases in both, {len(before['rows'].keys() ^ after['rows'].keys())} in one")
    if not ratios:
        sys.exit("no case in both")
    return {case: found for case, found in sorted(ratios.items()) if is_slow(found[0], limit)}


# ---- two trees ----


class Runner:
    """A process that runs the benchmarks with the library of a tree. It stops at each case, to time it when told to."""

    def __init__(self, tree, arguments):
        (read, its_write), (its_read, write) = os.pipe(), os.pipe()
        command = [sys.executable, "-m", "pytest", f"--answer={its_read},{its_write}", *QUIET, *arguments]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            command, cwd=BENCH, env=environment, pass_fds=[its_read, its_write], stdout=subprocess.PIPE, text=True
        )
        os.close(its_read), os.close(its_write)
        self.read, self.write = os.fdopen(read), os.fdopen(write, "w", buffering=1)
        self.tree = tree
        self.go_on(first=True)

    def go_on(self, first=False):
        """Go to the next case; `place` is its number among all, `node` what pytest calls it."""
        if not first:
            print("next", file=self.write)
        self.place, self.node, self.case, tree = json.loads(self.read.readline() or AT_THE_END)
        if tree and Path(tree) != self.tree:
            self.process.kill()
            sys.exit(f"{self.tree} has no built library: that of {tree} was imported")

    def time(self):
        print("time", file=self.write)
        return float(self.read.readline())


def answer(request, case, ours):
    """Time `ours` for the process at the other end of the pipes, until it wants the next case."""
    import race

    import qkernels

    to_read, to_write = map(int, request.config.option.answer.split(","))
    place, tree = request.session.items.index(request.node), str(Path(qkernels.__file__).parents[1])
    node = f"{request.path.name}::{request.node.name}"
    os.write(to_write, f"{json.dumps([place, node, case, tree])}\n".encode())
    race.plan([ours])
    while (asked := os.read(to_read, 5)) == b"time\n":
        os.write(to_write, f"{race.timed_turn(ours)}\n".encode())
    if not asked:
        request.session.shouldstop = "bench/compare.py is gone"


def compare_trees(old, new, limit, seconds, arguments):
    slow = {}
    for again in range(1 + REPEATS):
        ratios = race_trees(old, new, seconds, arguments)
        slow = {case: found for case, found in ratios.items() if is_slow(found[0], limit)}
        if not again and not ratios:
            sys.exit("no case that both trees can run")
        if not slow:
            break
        arguments = [node for _, node in slow.values()]
    return slow


def race_trees(old, new, seconds, arguments):
    """Return (ratio, node) by case; the ratio is 0 if only the old tree can run it."""
    runners, ratios = [Runner(tree, arguments) for tree in (old, new)], {}
    while min(places := [runner.place for runner in runners]) < math.inf:
        if places[0] != places[1]:
            behind = runners[places[0] > places[1]]
            print(f"{behind.case}: only in {behind.tree}", flush=True)
            if behind is runners[0]:
                ratios[behind.case] = 0.0, behind.node
            behind.go_on()
            continue
        before, after = take_turns(runners, seconds)
        ratio = statistics.median(a / b for a, b in zip(before, after))
        times = f"{min(before) * 1e6:12.2f} {min(after) * 1e6:12.2f} us"
        print(f"{ratio:6.3f} {times} {len(before):4d} rounds  {runners[0].case}", flush=True)
        ratios[runners[0].case] = ratio, runners[0].node
        for runner in runners:
            runner.go_on()
    for runner in runners:
        print(f"{runner.tree}: {runner.process.communicate()[0].splitlines()[-1]}")
    return ratios


def take_turns(runners, seconds):
    times, end = ([], []), time.monotonic() + seconds
    while len(times[0]) < LEAST_ROUNDS or (time.monotonic() < end and len(times[0]) < MOST_ROUNDS):
        for which in (0, 1) if len(times[0]) % 2 else (1, 0):
            times[which].append(runners[which].time())
    return times


if __name__ == "__main__":
    main()
