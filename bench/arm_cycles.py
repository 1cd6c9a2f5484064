"""Cycles of the inner loops of ARM's 8-bit products, as llvm-mca estimates them: `python bench/arm_cycles.py` prints
the tables of docs/platforms.md.

No clock has measured these: they are what LLVM's models of the cores make of the code that gcc compiles, with all of it
in the L1 cache. apt-get install gcc-aarch64-linux-gnu llvm-19; LLVM_MCA names another llvm-mca. LLVM has no model of
Cortex-A76, for which that of Neoverse N1 stands, its kin for servers."""

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CC = "aarch64-linux-gnu-gcc"
CORES = {"neoverse-n1": "Cortex-A76, Neoverse N1", "neoverse-v1": "Neoverse V1"}
ITERATIONS = 1000


class Table(NamedTuple):
    """The tile of an instruction set, and what one turn of its loop takes."""

    instruction: str
    products: int  # of one instruction
    issued: dict[str, int]  # how many a core issues in a cycle
    k: int  # codes
    rows: int
    columns: int
    sums: bool  # whether a loop before it sums up its rows, 16 codes of each a turn


TABLES = {
    "neon": Table("umull", 8, {"neoverse-n1": 1, "neoverse-v1": 2}, 8, 4, 4, True),
    "neon_dotprod": Table("udot", 16, {"neoverse-n1": 2, "neoverse-v1": 4}, 4, 6, 16, True),
    "neon_i8mm": Table("usmmla", 32, {"neoverse-v1": 4}, 8, 6, 16, False),
}


@cache
def assembly(name):
    """What gcc makes of a file, with the flags of setup.py."""
    flags = re.findall(r'"(-[^"]+)"', (ROOT / "setup.py").read_text().partition("flags = [")[2].partition("]")[0])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "kernels.s")
        source = ROOT / f"csrc/kernels/arm/{name}.c"
        subprocess.run([CC, *flags, f"-I{ROOT / 'csrc'}", "-S", source, "-o", target], check=True)
        return target.read_text()


def lines_of(text):
    """The lines, without those that say where inline assembly begins and ends."""
    return [line for line in text.splitlines() if not line.startswith(("#", "//"))]


def spans(lines):
    """Yield the label and the branch back to it of each loop."""
    places = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L\d+:$", line)}
    for i, line in enumerate(lines):
        branch = re.match(r"\t(?:b\S*|cbn?z|tbn?z)\t.*?(\.L\d+)$", line)
        if branch and places.get(branch[1], i) < i:
            yield places[branch[1]], i


def loops(text):
    """Yield the innermost loops: lines from a label to a branch back to it, without a label between."""
    lines = lines_of(text)
    for first, last in spans(lines):
        body = lines[first + 1 : last + 1]
        if not any(line.startswith(".L") for line in body):
            yield body


def around(text, body):
    """What the loop around this one has beside its inner loops."""
    lines = lines_of(text)
    found = list(spans(lines))
    first, last = next(span for span in found if lines[span[0] + 1 : span[1] + 1] == body)
    begin, end = min((span for span in found if span[0] < first and last < span[1]), key=lambda span: span[1] - span[0])
    inner = {i for a, b in found if begin < a and b < end for i in range(a, b + 1)}
    return [lines[i] for i in range(begin, end + 1) if re.match(r"\t[a-z]", lines[i]) and i not in inner]


def function(text, name):
    return text.partition(f"\n{name}:")[2].partition("\t.size\t")[0]


def count(body, instruction):
    return sum(line.split()[0] == instruction for line in body)


def multiply_loop(text, table):
    """The loop of a whole tile."""
    where = function(text, "gemm8_tile")
    body = max(loops(where), key=lambda body: (count(body, table.instruction), count(body, "ldr")))
    assert count(body, table.instruction) * table.products == table.k * table.rows * table.columns
    return body


def is_sum(body, added, rows):
    """Whether a loop sums up so many rows, 16 codes of each."""
    return count(body, added) == rows == sum("\tldr\tq" in line for line in body)


@cache
def simulator():
    """The command of llvm-mca; before version 17 it takes all these cores for Cortex-A57."""
    tool = os.environ.get("LLVM_MCA") or shutil.which("llvm-mca-19") or "llvm-mca"
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.search(r"LLVM version (\d+)", version)[1]) < 17:
        raise SystemExit(f"{tool} must be of LLVM 17 or later, got\n{version}")
    return tool


def cycles(body, core):
    """Cycles of one turn."""
    command = [simulator(), "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+i8mm", f"-iterations={ITERATIONS}"]
    done = subprocess.run(command, input="\n".join(body) + "\n", capture_output=True, text=True, check=True)
    return int(re.search(r"Total Cycles: +(\d+)", done.stdout)[1]) / ITERATIONS


def estimate(name, core):
    """Products a cycle of the loop; of it and the sums of rows, for a panel of 16 columns; and the peak."""
    table, text = TABLES[name], assembly(name)
    turn = cycles(multiply_loop(text, table), core)
    products, step = table.rows * 16, turn / table.k * 16 / table.columns  # of a code of k
    sums = 0
    if table.sums:
        added = "udot" if "udot" in function(text, "shifts_of") else "uadalp"
        body = next(body for body in loops(function(text, "shifts_of")) if is_sum(body, added, table.rows))
        sums = cycles(body, core) / 16
    return products / step, products / (step + sums), table.products * table.issued[core]


def estimate_folded(name, core):
    """Products a cycle of three rows and 4-bit weights with integer scales: eight turns a block, and its end."""
    text, instruction = function(assembly(name), "folded_tile"), "umlal" if name == "neon" else "udot"
    body = max(loops(text), key=lambda body: count(body, instruction))
    assert count(body, instruction) == 12
    return 3 * 16 * 32 / (8 * cycles(body, core) + cycles(around(text, body), core))


def estimate_depthwise(name, core):
    """Products a cycle of two pixels, 16 channels and the rows of a kernel that a step has."""
    instruction, taps = {"neon": ("smull", 2), "neon_dotprod": ("sdot", 4), "neon_i8mm": ("usdot", 4)}[name]
    body = max(loops(function(assembly(name), "depthwise_codes")), key=lambda body: count(body, instruction))
    assert count(body, instruction) == 8
    return 2 * 16 * taps / cycles(body, core)


def main():
    print("| instruction set | core | products a cycle | with the sums of rows | peak |\n|---|---|---|---|---|")
    for name, table in TABLES.items():
        for core in table.issued:
            loop, whole, peak = estimate(name, core)
            shares = f"{loop:.1f}, {loop / peak:.0%} | {whole:.1f}, {whole / peak:.0%}"
            print(f"| {name} | {CORES[core]} | {shares} | {peak} |", flush=True)
    print("\n| instruction set | core | integer scales, 3 rows | depthwise |\n|---|---|---|---|")
    for name, table in TABLES.items():
        for core in table.issued:
            both = estimate_folded(name, core), estimate_depthwise(name, core)
            print(f"| {name} | {CORES[core]} | {both[0]:.1f} | {both[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
