"""`python -m qkernels`: what it prints, with and without a terminal, and that it is about the same work."""

import importlib
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from common import environment, python

import qkernels as qk
from qkernels import _speed
from qkernels._bind import runtime


@pytest.fixture(scope="module")
def rows():
    return list(_speed.rows())


def test_both_sides_do_the_same_work(rows):
    """As far as their results can be compared."""
    by_name = {row.name.split()[0]: row for row in rows}
    assert np.array_equal(by_name["matmul"].ours(), by_name["matmul"].numpy().astype(np.int32))
    for name, error in {"quantize": 0, "dequantize": 0, "fake_quantize": 0, "layer_norm": 1e-4}.items():
        assert np.abs(by_name[name].ours().astype(float) - by_name[name].numpy()).max() <= error, name
    for row in rows:
        if row.name.startswith("linear"):
            y, want = row.ours(), row.numpy()
            assert np.linalg.norm(y - want) < (0.02 if "8 bits" in row.name else 0.15) * np.linalg.norm(want)
    codes = by_name["encode"].ours()[0].reshape(-1, 64)
    assert np.mean(codes == by_name["encode"].numpy()) > 0.9999
    assert set(by_name["search"].ours()[1][0]) == set(by_name["search"].numpy()[:10])


def test_figures_are_those_of_times():
    row = _speed.Row("sum", lambda: np.ones(10).sum(), lambda: np.ones(10**6).sum(), 1e6, "GB/s", 10**6)
    figures = _speed.measured(row, 0.5, _speed.Peak())
    assert figures.ratio > 10 and figures.rate > 0 and figures.share > 0 and figures.limit == "copy"


def test_the_limit_of_a_product_is_what_takes_longer(isas):
    """The peak of the registers, which scalar has none of, or a copy of as many bytes."""

    for isa in isas():
        has_peak = runtime.run_peak(1) > 0
        assert has_peak == (isa != "scalar")
        for work, moved, limit in (1e9, 2, "peak"), (1, 10**8, "copy"):
            row = _speed.Row("a product", lambda: None, lambda: None, work, "GMAC/s", moved)
            assert _speed.measured(row, 0.01, _speed.Peak()).limit == (limit if has_peak else "copy")


def test_registers_multiply_in_proportion_and_faster_than_the_product():
    isa = runtime.get_isa()
    if not (products := runtime.run_peak(1)):
        pytest.skip("scalar has no peak")
    assert runtime.run_peak(1000) == 1000 * products
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (256, 1024), np.uint8), rng.integers(-128, 128, (1024, 256), np.int8)
    packed, out = qk.pack(b, qk.QParams(1)), np.empty((256, 256), np.int32)
    with qk.num_threads(1):
        row = _speed.Row("matmul", lambda: qk.matmul(a, packed, out=out), lambda: None, 256 * 256 * 1024, "GMAC/s", 1)
        figures = _speed.measured(row, 1.0, _speed.Peak())
    assert 0.2 < figures.share < 1.2, (isa, figures)


def test_the_command_prints_what_it_is_checks_and_measures():
    done = python("-m", "qkernels", "--seconds", "0.2")
    assert done.returncode == 0 and not done.stderr, done.stderr
    for part in (
        "qkernels ",
        "in use: ",
        "Self-check",
        "integers",
        "GMAC/s",
        "GB/s",
        "search",
        "layer_norm",
        "of a copy",
    ):
        assert part in done.stdout
    assert "\x1b" not in done.stdout
    assert "GB/s" not in python("-m", "qkernels", "--seconds", "0").stdout


@pytest.mark.skipif(os.name == "nt", reason="needs signals of pipes")
@pytest.mark.parametrize("module", ["qkernels", "qkernels.selftest"])
def test_what_reads_it_may_have_enough(module):
    """As `head` has, or who looks for a word: it ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", module, "--seconds", "0"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=100)
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE and not done.stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e999", "soon"])
@pytest.mark.parametrize("module", ["qkernels", "qkernels.selftest"])
def test_a_time_is_finite(module, seconds, monkeypatch, capsys):
    main = importlib.import_module(module if module.endswith("selftest") else "qkernels.__main__").main
    monkeypatch.setattr(sys, "argv", [module, "--seconds", seconds])
    monkeypatch.setattr(_speed, "show", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert f"argument --seconds: invalid seconds value: '{seconds}'" in said.err and not said.out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_it_is_in_colour_on_a_terminal():
    pytest.importorskip("rich")
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-c", "from qkernels import _speed; _speed.show(0.1)"]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment(TERM="xterm-256color")) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:
                break
            if not part:
                break
            said += part
    os.close(master)
    assert process.returncode == 0 and b"\x1b[3" in said and b"layer_norm" in said


def test_without_rich_it_is_plain(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    _speed.print_table([_speed.Figures("linear", 12.3, "GMAC/s", 4.5, 0.951, "peak")])
    assert terminal.getvalue().splitlines()[1].split() == [
        "linear",
        "12.3",
        "GMAC/s",
        "4.50x",
        *["95%", "of", "the", "peak"],
    ]
