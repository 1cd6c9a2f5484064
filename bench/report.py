"""The closing table, and the figures that the project promises."""

import json
import platform
import re
from importlib.metadata import version

from limits import bandwidths, peaks
from promises import PROMISES, geometric_mean
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info

LIBRARIES = ["numpy", "onnxruntime", "torch", "numkong", "faiss-cpu", "scikit-learn"]
LEGEND = """GB/s counts every array once, read or written (x of dynamic_quantize twice). The limit of a product is the slower of its
multiply-accumulates from registers alone and of streaming a, b and c once (cold weights from memory); of an elementwise operation, a
stream of the same bytes.
~ agrees with the exact answer but for float roundings. wrong: does not, and is not timed. * could not be held to the instruction
set of ours, and is left out of the ratio to the best peer."""


def print_report(rows, isa, threads):
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    console.print(f"\n[bold]{cpu_name()}[/], instruction set [bold]{isa}[/], {threads} thread(s)")
    console.print(", ".join(f"{name} {version(name)}" for name in LIBRARIES) + f", OpenBLAS for {openblas_core()}")
    console.print(
        "Limits of one core: "
        + "; ".join(f"{name} {rate:.0f} GMAC/s" for name, rate in peaks().items())
        + "; ".join(["", *(f"{level} {rate:.0f} GB/s read" for level, rate in bandwidths().items())])
    )
    for suite in dict.fromkeys(row.suite for row in rows):
        console.print(suite_table(suite, [row for row in rows if row.suite == suite]))
    console.print(LEGEND, style="dim")
    console.print(means_table(rows))
    console.print(promise_table(rows, isa))


def save_report(path, rows, isa, threads):
    """The rows as JSON, beside those of other cases that the file holds."""
    report = {
        "cpu": cpu_name(),
        "isa": isa,
        "threads": threads,
        "libraries": {name: version(name) for name in LIBRARIES},
        "peaks": peaks(),
        "bandwidths": bandwidths(),
        "rows": {},
    }
    if path.exists():
        report["rows"] = json.loads(path.read_text())["rows"]
    report["rows"] |= {row.case: row_as_json(row) for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def row_as_json(row):
    peers = {p.name: {"seconds": p.seconds if p.turns else None, "note": p.note, "held": p.held} for p in row.peers}
    return {
        "suite": row.suite,
        "work": row.work,
        "unit": row.unit,
        "moved": row.moved,
        "seconds": row.ours.seconds,
        "of_limit": row.of_limit if row.limits else None,
        "to_best_peer": row.to_best_peer,
        "peers": peers,
    }


def means_table(rows):
    """Of each group of cases that differ in shape alone: the ratio to the fastest peer."""
    table = Table(title="to the best peer", title_justify="left", title_style="bold")
    for heading in ["cases", "number", "geometric mean", "least", "at"]:
        table.add_column(heading, justify="right" if heading in ("number", "geometric mean", "least") else "left")
    for group, members in groups(rows).items():
        worst = min(members, key=lambda row: row.to_best_peer)
        table.add_row(
            group,
            str(len(members)),
            f"{geometric_mean(row.to_best_peer for row in members):.2f}x",
            f"{worst.to_best_peer:.2f}x",
            worst.case.removeprefix(group).strip(", "),
        )
    return table


def groups(rows):
    found = {}
    for row in rows:
        group = re.sub(r",? \d+x\d+(x\d+)?$", "", row.case)
        if group != row.case and row.to_best_peer:
            found.setdefault(group, []).append(row)
    return {group: members for group, members in found.items() if len(members) > 2}


def openblas_core():
    return next(
        (library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"), "no CPU"
    )


def cpu_name():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def suite_table(suite, rows):
    names = list(dict.fromkeys(peer.name for row in rows for peer in row.peers))
    table = Table(title=suite, title_justify="left", title_style="bold")
    table.add_column("case")
    for heading in ["qkernels", "rate", "of limit", "to best peer", *names]:
        table.add_column(heading, justify="right")
    for row in rows:
        peers = {peer.name: peer for peer in row.peers}
        table.add_row(
            row.case,
            show_time(row.ours.seconds),
            f"{row.work / row.ours.seconds / 1e9:.1f} {row.unit}",
            f"{row.of_limit:.0%}" if row.limits else "",
            show_ratio(row),
            *(show_peer(peers.get(name)) for name in names),
        )
    return table


def show_time(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def show_ratio(row):
    ratio = row.to_best_peer
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}x[/]" if ratio else ""


def show_peer(peer):
    if peer is None:
        return ""
    if not peer.turns:
        return peer.note
    return show_time(peer.seconds) + peer.note + ("" if peer.held else "*")


def promise_table(rows, isa):
    table = Table(title="promised", title_justify="left", title_style="bold")
    for heading in ["figure", "promised", "measured"]:
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    by_case = {row.case: row for row in rows}
    for promise in PROMISES:
        if promise.isa in (None, isa) and by_case.keys() >= set(promise.cases):
            figure = promise.figure(*(by_case[case] for case in promise.cases))
            if figure is not None:
                table.add_row(promise.text, *show_figure(figure, promise))
    return table


def show_figure(figure, promise):
    kept = figure <= promise.bound if promise.at_most else figure >= promise.bound
    sign, color = "<=" if promise.at_most else ">=", "green" if kept else "red"
    return f"{sign} {promise.bound:g} {promise.unit}", f"[{color}]{figure:.2f} {promise.unit}[/]"
