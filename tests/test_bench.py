"""The machinery of bench/: what is disturbed, what is missing, and what a comparison fails on."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import qkernels as qk

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(autouse=True)
def modules_of_bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)


@pytest.fixture
def clock(monkeypatch):
    """A clock that contenders set forward: their calls take as long as they say."""
    import race

    now = [0.0]
    monkeypatch.setattr(race, "timer", lambda: now[0])
    monkeypatch.setattr(race, "case_seconds", 0.01)
    monkeypatch.setattr(race, "PAUSE", 0.0)

    def taking(*seconds):
        """Return a call that takes so long, a value after the other; the last for ever."""
        left = list(seconds)

        def call():
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return call

    return taking


def run_with_peak(race, monkeypatch, peak):
    gauge = race.Contender("peak", peak, scale=10.0, turns=[1e-4])  # 1e9 products in a millisecond
    monkeypatch.setattr(race, "gauge", gauge)
    return gauge


def test_a_case_runs_again_while_the_peak_is_low(clock, monkeypatch):
    import race

    attempts = []
    monkeypatch.setattr(
        race, "take_turns", lambda field: attempts.append([c.turns.append(race.timed_turn(c)) for c in field])
    )
    run_with_peak(race, monkeypatch, clock(2e-4, 2e-4, 1.05e-4))
    assert race.run_race(race.our_own(clock(1e-3)), []) == pytest.approx(1 / 1.05e-3)
    assert len(attempts) == 2


def test_a_case_that_stays_disturbed_runs_three_times_and_is_marked(clock, monkeypatch):
    import race
    import report

    gauge = run_with_peak(race, monkeypatch, clock(1.2e-4))
    ours = race.our_own(clock(1e-3))
    row = {"case": "a", "peak": race.run_race(ours, [])}
    assert len(ours.turns) == 3 * race.MIN_ROUNDS and min(ours.turns) == pytest.approx(1e-3)
    assert report.is_disturbed(row, {"rows": {"a": row, "b": {"peak": 1 / (gauge.turns[0] * gauge.scale)}}})
    assert not report.is_disturbed(row, {"rows": {"a": row}})


def test_contenders_take_turns_of_a_millisecond(clock, monkeypatch):
    import race

    monkeypatch.setattr(race, "gauge", None)
    fast, slow, wrong = (
        race.Contender(name, clock(s)) for name, s in [("fast", 3e-5), ("slow", 2e-3), ("wrong", 1e-5)]
    )
    wrong.note = race.WRONG
    race.run_race(fast, [slow, wrong, race.Contender("absent", None, note=race.MISSING)])
    assert (fast.calls, slow.calls, len(wrong.turns)) == (33, 1, 0)
    assert len(fast.turns) == len(slow.turns) >= race.MIN_ROUNDS
    assert fast.seconds == pytest.approx(3e-5) and slow.seconds == pytest.approx(2e-3) and wrong.seconds is None


def test_a_library_that_is_not_installed_leaves_its_contenders_out(monkeypatch):
    import sys

    import peers
    import race

    monkeypatch.setitem(sys.modules, "numkong", None)
    monkeypatch.delitem(vars(peers), "numkong", raising=False)
    found = peers.numkong.dots(1, 2)
    assert (found.name, found.call, found.note) == ("numkong", None, race.MISSING)
    with pytest.raises(AttributeError, match="no peer numpong"):
        _ = peers.numpong


class Deadly:
    """Ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def elsewhere(monkeypatch):
    """Other processes, which end with the test."""
    import peers
    from elsewhere import Elsewhere

    monkeypatch.setattr(peers, "isa", "scalar")
    monkeypatch.setattr(peers, "best_isa", "scalar")
    return Elsewhere


def test_a_contender_of_another_process_runs_and_is_timed_there(elsewhere):
    import race

    a, b = np.arange(6, dtype=np.int8).reshape(2, 3), np.arange(12, dtype=np.int8).reshape(3, 4)
    found = elsewhere("blas").dgemm(a, b)
    assert (found.name, found.note) == ("dgemm", race.EXACT) and np.array_equal(found.read(), a @ b)
    assert race.timed_turn(found) > 0


def test_another_process_may_die_or_lack_its_library(elsewhere, tmp_path, monkeypatch):
    import race

    (tmp_path / "numkong.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert elsewhere("numkong").dots(1, 2).note == race.MISSING
    library = elsewhere("blas")
    lost = library.dgemm(np.eye(2), np.eye(2))
    assert library.no_such_product(1, 2).note == race.CRASHED and lost.note == race.EXACT
    assert library.dgemm(Deadly(), np.eye(2)).note == lost.note == race.CRASHED and lost.call is None
    assert np.array_equal(library.dgemm(np.eye(2), np.eye(2)).read(), np.eye(2))


def results(path, **seconds):
    info = {"cpu": "a CPU", "isa": "avx2", "threads": 1}
    extra = {"work": 1, "unit": "GB/s", "moved": 0, "peak": None, "limits": {}, "peers": {}}
    rows = [{"name": c, "group": "g", "stats": {"min": s}, "extra_info": extra} for c, s in seconds.items()]
    path.write_text(json.dumps({"machine_info": info, "benchmarks": rows}))
    return path


def test_compare_names_what_is_more_than_ten_percent_slower(tmp_path):
    import compare

    old = results(tmp_path / "old.json", same=1.0, slower=1.0, faster=1.0, gone=1.0)
    new = results(tmp_path / "new.json", same=1.09, slower=1.11, faster=0.5, come=1.0)
    assert list(compare.compare_results(old, new, 10)) == ["slower"]
    assert list(compare.compare_results(old, new, 5)) == ["same", "slower"]


def test_results_cut_to_a_case_a_line_are_read_as_they_were(tmp_path):
    import report

    path = results(tmp_path / "all.json", one=1.0, two=2.0)
    before = report.load(path)
    report.save(path, before)
    assert report.load(path) == before and len(path.read_text().splitlines()) == 6
    again = results(tmp_path / "again.json", two=3.0)
    assert [row["seconds"] for row in report.load(path, again)["rows"].values()] == [1.0, 3.0]


# ---- the chart of README ----


def test_the_chart_counts_each_case_that_has_a_peer_once():
    """Those of `low_bits` and `numba` have only our own functions beside them."""
    import glance
    import report

    drawn = {suite for suites, _ in glance.ROWS.values() for suite in suites}
    for name in glance.SETS:
        results = report.load(*sorted((BENCH / "results").glob(f"{name}*.json")))
        counted = sum(len(glance.ratios_of(results, *row)) for row in glance.ROWS.values())
        suites = {row["suite"] for row in results["rows"].values()}
        assert suites - drawn <= {"low_bits", "numba"}
        everything = {"suites": drawn, "start": ""}
        assert counted == len(glance.ratios_of(results, **everything)) > 150


def test_the_chart_shows_where_others_are_faster(clock):
    import glance

    peers = {"torch": dict(seconds=1.0, held=True), "packed": dict(seconds=0.1, held=True)}
    peers |= {"onnxruntime": dict(seconds=0.5, held=False), "wrong": dict(seconds=None, held=True)}
    rows = {"matmul 1": dict(suite="matmul", case="matmul 1", seconds=2.0, peers=peers)}
    assert glance.ratios_of({"rows": rows}, ["matmul"], "matmul") == [0.5]
    assert glance.ratios_of({"rows": rows}, ["linear"], "matmul") == []


def test_the_chart_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    import glance

    glance.draw(tmp_path / "glance.png")
    assert (tmp_path / "glance.png").stat().st_size > 50_000


def test_a_round_with_a_late_worker_is_repeated(monkeypatch):
    """Further ahead from then on; and where they stay late, the table has what there is."""
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    import oversubscription as bench

    with qk.num_threads(1):
        late, early = (bench.turn("mixed", 1, start, 0) for start in (0, time.monotonic() + 10 * bench.AHEAD))
    assert late is None and early >= 0
    calls = []

    def take(name, threads, start, seconds):
        calls.append((threads, round(start - time.monotonic())))
        return [threads, None if len(calls) in (1, 3) else threads]

    monkeypatch.setattr(bench, "AHEAD", 10)
    monkeypatch.setattr(bench, "FURTHEST", 30)
    found = bench.compare(take, "mixed", 2, 0.01)
    assert calls == [(2, 10), (2, 20), (1, 20), (2, 30), (1, 30), (1, 30), (2, 30)]
    assert found == [{1: 2, 2: 4}] * 2 and bench.row(found) == ("2", "2.00", "2.00 to 2.00", True)
    assert bench.compare(lambda *_: [None, 1], "mixed", 2, 0.01) == []
    assert bench.row(found[:1]) == ("", "", "late", False)
