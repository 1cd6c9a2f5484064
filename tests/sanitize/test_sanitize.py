"""A part of what run.py does that the ordinary tests have time for: the pool of threads, forks and all, under the thread sanitizer."""

import subprocess
import sys

import pytest

HERE = __file__.rpartition("test_sanitize.py")[0]
sys.path.insert(0, HERE)
import run  # noqa: E402

sys.path.remove(HERE)


@pytest.mark.skipif(run.library("thread") is None, reason="the compiler has no library of the thread sanitizer")
def test_threads_have_no_races():
    done = subprocess.run([sys.executable, HERE + "run.py", "thread", "--chosen"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
