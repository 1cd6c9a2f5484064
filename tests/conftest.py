import os
import pickle
import re
import subprocess
import sys
import tempfile
from contextlib import suppress

import pytest
from common import bits
from hypothesis import HealthCheck, settings
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels._bind import runtime

collect_ignore = ["typing", "sanitize/fuzz_loaders.py"]  # scripts: test_typing.py runs the one, the other needs atheris

# `isas` serves every example of a test alike; the same examples in each run, so that a failure is found again.
settings.register_profile(
    "qkernels",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("qkernels")


@pytest.fixture
def isas():
    """A function to loop over: the name of each instruction set of this machine, in use while the loop is at it.

    BEST_ISA_ALONE in the environment leaves the first, for a run that would take hours."""
    names = runtime.available_isas()[: 1 if os.environ.get("BEST_ISA_ALONE") else None]

    def each():
        for name in names:
            runtime.set_isa(name)
            yield name

    before = runtime.get_isa()
    yield each
    runtime.set_isa(before)


@pytest.fixture
def variants(isas):
    """Likewise, each instruction set with 1, 2 and 3 threads."""

    def each():
        for name in isas():
            for threads in (1, 2, 3):
                with qk.num_threads(threads):
                    yield f"{name}, {threads} threads"

    return each


@pytest.fixture
def everywhere(variants):
    """A function that returns the result of a call, once each variant has given it with the same bits."""

    def parts(result):
        return result if isinstance(result, tuple) else (result,)

    def same(call):
        first = None
        for variant in variants():
            result = call()
            first = result if first is None else first
            for got, want in zip(parts(result), parts(first), strict=True):
                assert_array_equal(bits(got), bits(want), err_msg=variant, strict=True)
        return first

    return same


# ---- a second session ----

# Most of these files' time is that of compilers and other processes.
BESIDE = re.compile(r"tests/(sanitize/|test_(arm|build|c_library|cython|memory|platforms|typing)\.py)")
REPORTS = "QKERNELS_TESTS_REPORT_TO"  # the file that the second session writes, pickles of reports


class Beside:
    """The tests of BESIDE, in a session that runs beside this one and a little behind it; this one tells of them at its
    end, and runs what that has not reported."""

    def __init__(self, config, names, file):
        self.reports, self.file = None, file
        self.process = subprocess.Popen(
            ["nice", "-n", "3", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *names],
            cwd=config.rootpath,
            env=os.environ | {REPORTS: file},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def of(self, item):
        """Return what has been reported of a test, once the session has ended."""
        if self.reports is None:
            self.process.wait()
            restore, self.reports = item.config.hook.pytest_report_from_serializable, []
            with open(self.file, "rb") as file, suppress(EOFError):
                while True:
                    self.reports.append(restore(config=item.config, data=pickle.load(file)))
        return [report for report in self.reports if report.nodeid == item.nodeid]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        reports = self.of(item) if BESIDE.match(item.nodeid) else []
        if not reports or reports[-1].when != "teardown":
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    beside, options = [item.nodeid for item in session.items if BESIDE.match(item.nodeid)], session.config.option
    alone = REPORTS in os.environ or hasattr(session.config, "workerinput") or options.collectonly or options.usepdb
    if alone or not 0 < len(beside) < len(session.items):
        return (yield)
    session.items.sort(key=lambda item: bool(BESIDE.match(item.nodeid)))
    with tempfile.NamedTemporaryFile() as file:
        second = Beside(session.config, beside, file.name)
        session.config.pluginmanager.register(second)
        try:
            return (yield)
        finally:
            session.config.pluginmanager.unregister(second)
            second.process.terminate()
            second.process.wait()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    report = yield
    if REPORTS in os.environ:
        with open(os.environ[REPORTS], "ab") as file:
            pickle.dump(item.config.hook.pytest_report_to_serializable(config=item.config, report=report), file)
    return report
