"""Contenders for one case, checked against the exact answer, then timed in turns.

Turns are short and go round: where the machine changes speed, all contenders (and the limit) see it alike. Of each the
fastest turn counts. One thread is timed on its own clock, which stands still while others have the core.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, repeat
from time import perf_counter

import numpy as np

TURN_SECONDS = 0.5e-3
CASE_SECONDS = 1.5
MIN_ROUNDS, MAX_ROUNDS = 24, 400
FEW_ROUNDS, LONG_ROUND = 5, 0.1  # rounds that take longer are fewer
PATIENCE = 10 * TURN_SECONDS  # a contender whose turn takes longer sits out rounds in proportion

timer = perf_counter  # or the thread's own clock: conftest.py

EXACT, CLOSE, WRONG, CRASHED = "", "~", "wrong", "crashed"


@dataclass
class Contender:
    name: str
    call: Callable[[], object] | None  # None where it must not be called: it crashed
    read: Callable[[], np.ndarray] | None = None  # the result, of the last call or of one more
    check: Callable[[np.ndarray], str] | None = None  # where the check of the case does not suit
    held: bool = True  # to the instruction set that ours is held to
    scale: float = 1.0  # calls that make the work of the case
    note: str = EXACT
    calls: int = 1  # a turn
    every: int = 1  # rounds
    turns: list[float] = field(default_factory=list)  # seconds of one call

    @property
    def seconds(self):
        return min(self.turns) * self.scale


@dataclass
class Row:
    """A line of the closing table."""

    suite: str
    case: str
    work: float  # multiply-accumulates, or bytes read and written
    unit: str
    ours: Contender
    peers: list[Contender]
    limits: list[Contender]
    moved: float = 0.0  # bytes read and written once, of a product

    @property
    def to_best_peer(self):
        """Its time in units of ours; None where no peer was right and held."""
        best = self.best_peer
        return best and best.seconds / self.ours.seconds

    @property
    def best_peer(self):
        return min(
            (peer for peer in self.peers if peer.turns and peer.held), key=lambda peer: peer.seconds, default=None
        )

    @property
    def of_limit(self):
        """The slowest limit binds."""
        return max((limit.seconds for limit in self.limits), default=0) / self.ours.seconds


def timed_turn(contender):
    """Seconds of one call."""
    call, calls = contender.call, contender.calls
    for _ in range(warm_ups(contender)):
        call()
    start = timer()
    for _ in repeat(None, calls):
        call()
    return (timer() - start) / calls


def warm_ups(contender):
    """Calls before a turn, since the others have had the caches: none where a call is long."""
    return 1 + contender.calls // 8 if contender.every == 1 else 0


def plan(ours, others):
    """Fits the calls a turn to TURN_SECONDS; returns the number of rounds. Ours sits out none."""
    a_round = 0.0
    for contender in [ours, *others]:
        seconds = timed_turn(contender)
        if seconds < LONG_ROUND:
            seconds = min(seconds, timed_turn(contender), timed_turn(contender))
        contender.calls = max(1, min(10_000, int(TURN_SECONDS / seconds)))
        contender.every = max(1, int(seconds / PATIENCE))
        a_round += (warm_ups(contender) + contender.calls) * seconds / (1 if contender is ours else contender.every)
    return max(MIN_ROUNDS if a_round < LONG_ROUND else FEW_ROUNDS, min(MAX_ROUNDS, int(CASE_SECONDS / a_round)))


def run_race(benchmark, row):
    """Times row.ours with `benchmark` (so that its reports and JSON hold it) and the others between its rounds."""
    ours, others = row.ours, row.peers + row.limits
    others = [contender for contender in others if contender.note in (EXACT, CLOSE)]
    rounds, number = plan(ours, others), count()

    def turns_of_others():
        this_round = next(number)
        for contender in others:
            if this_round % contender.every == 0:
                contender.turns.append(timed_turn(contender))
        for _ in range(warm_ups(ours)):
            ours.call()

    def turn_of_ours():
        for _ in repeat(None, ours.calls):
            ours.call()

    benchmark.pedantic(turn_of_ours, setup=turns_of_others, rounds=rounds)
    # pedantic takes either a setup or several calls a round: make its times those of one call.
    stats = benchmark.stats
    stats.iterations = ours.calls
    stats.stats.data[:] = [seconds / ours.calls for seconds in stats.stats.data]
    ours.turns = stats.stats.data
    benchmark.extra_info.update({contender.name: contender.seconds for contender in others})


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
