"""Contenders for one case, checked against the exact answer, then timed in turns.

Turns are windows of about a millisecond and go round many times, so that all contenders, the limits and the peak of
the registers see the same machine. Of each the fastest turn counts. One thread is timed on its own clock, which stands
still while others have the core. A race in which the peak never came near what this core is known to do was disturbed:
it runs again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, repeat
from time import perf_counter, sleep

import numpy as np

WINDOW = 1e-3  # seconds of a turn
MIN_ROUNDS, MAX_ROUNDS = 24, 400
FEW_ROUNDS, LONG_ROUND = 5, 0.1  # rounds that take longer are fewer
PATIENCE = 5 * WINDOW  # a contender whose turn takes longer than this and ours sits out rounds in proportion
DISTURBED, ATTEMPTS = 0.9, 3  # of the known peak; races of a case at most
PAUSE = 5.0  # seconds to wait at most until a disturbed machine is itself again

EXACT, CLOSE, WRONG, CRASHED, MISSING = "", "~", "wrong", "crashed", "missing"

# set by conftest.py
timer = perf_counter  # or the clock of the thread
case_seconds = 1.5
gauge = None  # the Contender that is nothing but the peak; its work is 1e9 multiply-accumulates


@dataclass
class Contender:
    name: str
    call: Callable[[], object] | None  # None if it must not or cannot be called
    read: Callable[[], np.ndarray] | None = None  # the result, of the last call or of one more
    check: Callable[[np.ndarray], str] | None = None  # if the check of the case does not suit
    held: bool = True  # to the instruction set that ours is held to
    scale: float = 1.0  # calls that make the work of the case
    note: str = EXACT
    calls: int = 1  # a turn
    warming: int = 1  # calls before, as others have had the caches
    every: int = 1  # rounds
    timed: Callable[[int, int], float] | None = None  # `time_calls` of one that another process calls
    turns: list[float] = field(default_factory=list)  # seconds of one call

    @property
    def seconds(self):
        """Of the work of the case; None if it was not timed."""
        return min(self.turns) * self.scale if self.turns else None


def our_own(call, out=None, check=None):
    """Return our contender. Its result stands in `out`, or is what the call returns."""
    return Contender("qkernels", call, call if out is None else lambda: out, check)


def timed_turn(contender):
    """Return the seconds of one call."""
    if contender.timed:
        return contender.timed(contender.calls, contender.warming)
    return time_calls(contender.call, contender.calls, contender.warming)


def time_calls(call, calls, warming):
    for _ in repeat(None, warming):
        call()
    start = timer()
    for _ in repeat(None, calls):
        call()
    return (timer() - start) / calls


def plan(contenders):
    """Fit the calls of a turn to WINDOW; return the number of rounds. The first contender, ours, sits out none."""
    a_round, patience = 0.0, PATIENCE
    for contender in contenders:
        seconds = timed_turn(contender)
        if seconds < LONG_ROUND:
            seconds = min(seconds, timed_turn(contender), timed_turn(contender))
        patience = max(patience, seconds) if contender is contenders[0] else patience
        fit_to_window(contender, seconds)
        contender.every = max(1, int(seconds / patience))
        a_round += (contender.calls + contender.warming) * seconds / contender.every
    return max(MIN_ROUNDS if a_round < LONG_ROUND else FEW_ROUNDS, min(MAX_ROUNDS, int(case_seconds / a_round)))


def fit_to_window(contender, seconds):
    """Long calls are not warmed: little of what they need is in caches when they begin."""
    contender.calls = max(1, min(10_000, int(WINDOW / seconds)))
    contender.warming = 1 + contender.calls // 8 if seconds < PATIENCE else 0


def run_race(ours, others):
    """Time the contenders; return the peak meanwhile, in GMAC/s, or None on a CPU of which it is not known."""
    runners = [c for c in [ours, *others] if c.call and c.note[:1] in (EXACT, CLOSE)]
    if gauge is None:
        return take_turns(runners)
    peak = Contender("peak", gauge.call, scale=gauge.scale)
    for _ in range(ATTEMPTS):
        take_turns([*runners, peak])
        if not is_disturbed(min(peak.turns)):
            break
        wait_for_quiet()
    gauge.turns.append(min(peak.turns))
    return 1 / peak.seconds


def is_disturbed(seconds):
    """Return if a call of the gauge took longer than on an undisturbed machine."""
    return seconds * DISTURBED > min(gauge.turns)


def wait_for_quiet():
    end = perf_counter() + PAUSE
    while perf_counter() < end and is_disturbed(timed_turn(gauge)):
        sleep(0.1)


def take_turns(contenders):
    for number in range(plan(contenders)):
        for contender in contenders[:: 1 if number % 2 else -1]:  # none always follows the same one
            if number % contender.every == 0:
                contender.turns.append(timed_turn(contender))


# ---- pytest-benchmark, whose statistics and JSON hold our turns ----

recorded = iter(())


def replay():
    """A clock for pytest-benchmark that goes as the turns went."""
    return next(recorded)


def hand_over(benchmark, turns):
    global recorded
    recorded = chain.from_iterable((0.0, seconds) for seconds in turns)
    benchmark.pedantic(lambda: None, rounds=len(turns))


# ---- checks: what a result is worth ----


def exactly(expected):
    def check(result):
        return EXACT if np.array_equal(result, expected) else WRONG

    return check


def within(expected, step, most=1e-3):
    """Exact, or off by at most `step` in a share of at most `most`: rounding of near ties by other formulas."""

    def check(result):
        if result.shape != expected.shape:
            return WRONG
        with np.errstate(invalid="ignore"):  # of a peer that leaves parts of its result as they were
            error = np.abs(result.astype(np.float64) - expected.astype(np.float64))
        if not error.any():
            return EXACT
        return CLOSE if error.max() <= step and np.mean(error > 1e-6 * step) <= most else WRONG

    return check


def relative(expected, tolerance):
    """Float arithmetic on another path: the error in units of the largest value."""

    def check(result):
        error = np.abs(result.astype(np.float64) - expected).max() / np.abs(expected).max()
        return EXACT if error == 0 else CLOSE if error <= tolerance else WRONG

    return check
