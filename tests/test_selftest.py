"""`python -m qkernels.selftest`: it covers all that is public, finds what is wrong, and tells how to find it again."""

import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from common import python

import qkernels as qk
from qkernels import _selftest_cases, io, layouts, observers, selftest
from qkernels._bind import runtime

# What computes nothing: settings, and what they tell.
SETTINGS = {"get_include", "get_num_threads", "num_threads", "set_num_threads", "show_config"}


def test_no_public_function_is_forgotten():
    public = set(qk.__all__) - SETTINGS
    for module in io, layouts, observers:
        public |= {f"{module.__name__.removeprefix('qkernels.')}.{name}" for name in module.__all__}
    for name in "torch", "dask":
        if find_spec(name):
            public |= {f"{name}.{function}" for function in import_module(f"qkernels.{name}").__all__}
    covered = set(_selftest_cases.COVERED)
    assert public <= covered and covered - public <= {"Codebook.fit"}


@pytest.mark.parametrize("name", _selftest_cases.CASES)
def test_cases_hold(name):
    counts = Counter()
    for seed in range(4):
        assert selftest.check(seed, [name], counts) == name
    assert {isa for isa, _ in counts} == set(runtime.available_isas()) and min(counts.values()) > 0


def called(name):
    """The public functions that a case calls, as far as it is made before it is."""
    found = set()

    class Watched:
        def __getattr__(self, attribute):
            found.add(attribute)
            return getattr(qk, attribute)

    before, _selftest_cases.qk = _selftest_cases.qk, Watched()
    try:
        for seed in range(6):
            selftest.check(seed, [name])
    finally:
        _selftest_cases.qk = before
    return found


@pytest.mark.parametrize("name", _selftest_cases.CASES)
def test_cases_call_what_they_cover(name):
    covers = {public for public, case in _selftest_cases.COVERED.items() if case == name and "." not in public}
    # a result's type is that of what returns it, a packed one's of what packs
    made_by = {"KMeansResult": "kmeans1d", "GPTQResult": "gptq", "PruneResult": "prune", "Allocation": "allocate_bits"}
    made_by |= {"PackedConv": "pack_conv", "PackedCodes": "pack_codes"}
    assert {made_by.get(public, public) for public in covers} <= called(name)


@pytest.mark.parametrize("change", [1, 128])
def test_a_wrong_result_is_found_and_repeated(monkeypatch, capsys, change):
    """One code in a million."""

    class Wrong:
        def __getattr__(self, name):
            return getattr(qk, name)

        def take_table(self, q, table):
            y = qk.take_table(q, table)
            if runtime.get_isa() == runtime.available_isas()[-1] and y.size:
                y[-1] ^= change
            return y

    monkeypatch.setattr(_selftest_cases, "qk", Wrong())
    monkeypatch.setattr(selftest, "CASES", {"tables": selftest.CASES["tables"]})
    assert selftest.main(["--seconds", "1"]) == 1
    said = capsys.readouterr().out
    assert f"MISMATCH: tables on {runtime.available_isas()[-1]} with 1 threads: 1 of" in said
    seed = said.split("--seed ")[1].split()[0]
    assert selftest.main(["--seed", seed]) == 1
    assert said.split(":")[2].split(",")[0] in capsys.readouterr().out


def test_differences_are_told():
    ones = np.ones(3, np.int8)
    assert selftest.differs(ones, ones) is None
    assert "1 of 3 values, the first at (1,): 1, not 2" in selftest.differs(ones, np.int8([1, 2, 1]))
    assert selftest.differs(ones, ones.astype(np.int16)) and selftest.differs(ones, ones[:2])
    assert selftest.differs(np.float32([0.0]), np.float32([-0.0]))
    near = selftest.Near(np.zeros(2), 0.5)
    assert selftest.differs(np.float32([0.5, -0.5]), near) is None and selftest.differs(np.float32([0.5, 0.6]), near)
    assert selftest.differs(np.float32([0.5, np.nan]), near) and selftest.differs(np.float32([0.5]), near)
    assert selftest.differs((ones, ones), [ones, lambda x: x.sum() == 4]) == "a law does not hold"


def test_the_command_counts_and_leaves_settings_as_they_were():
    before = runtime.get_isa(), qk.get_num_threads()
    done = python("-m", "qkernels.selftest", "--seconds", "2")
    assert done.returncode == 0 and not done.stderr, done.stderr
    for isa in runtime.available_isas():
        assert any(line.split()[0] == isa for line in done.stdout.splitlines()[1:])
    assert (runtime.get_isa(), qk.get_num_threads()) == before
    done = python("-m", "qkernels.selftest", "--seed", "7")
    assert done.returncode == 0 and "no difference" in done.stdout


def test_it_needs_no_more_than_qkernels_does():
    code = "import sys, qkernels; before = set(sys.modules); import qkernels.selftest\n"
    code += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    assert set(python("-c", code).stdout.split()) <= set(sys.stdlib_module_names) | {"qkernels"}
