"""A part of what run.py does that the ordinary tests have time for: the pool of threads, forks and all, under the
thread sanitizer, and the calls of results.py and stray_codes_test.c under those of addresses and undefined behaviour;
and some of the calls of limits.py.
"""

import re
import subprocess
import sys

import pytest

HERE = __file__.rpartition("test_sanitize.py")[0]
sys.path.insert(0, HERE)
import run  # noqa: E402

sys.path.remove(HERE)


def chosen(name):
    """What the chosen part writes; skips where the compiler lacks the sanitizer."""
    if run.library(name) is None:
        pytest.skip(f"the compiler has no library of the {name} sanitizer")
    done = subprocess.run(
        [sys.executable, HERE + "run.py", name, "--chosen"], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_threads_have_no_races():
    said = chosen("thread")
    assert " passed" in said and re.search(r"^\d+ calls by teams of \(2, 3, 4\) threads$", said, re.MULTILINE)


def test_calls_touch_no_foreign_memory_and_have_no_undefined_behaviour():
    """Codes may change between check and use: kernels are given stray ones at once, in C."""
    stray, *results = chosen("address").splitlines()
    assert re.fullmatch(r"\d+ calls", stray) and int(stray.split()[0]) > 1000 and len(results) > 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="addresses are limited as Linux does it")
def test_calls_without_memory_or_threads_are_right_or_refused():
    command = [sys.executable, HERE + "limits.py", "quantize", "files", "search"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout and "'refused'" in done.stdout and "without threads: {'right': 3}" in done.stdout
