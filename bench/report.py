"""The rows of the cases, taken from pytest-benchmark's JSON, and their tables: for the terminal or in Markdown."""

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from promises import PROMISES, geometric_mean, of_limit, to_best_peer
from race import DISTURBED
from threadpoolctl import threadpool_info

try:
    from qkernels._bind import runtime
except ImportError:  # an older tree, which compare.py races
    from qkernels import _core as runtime

LIBRARIES = ["numpy", "onnxruntime", "torch", "numkong", "bitsandbytes", "gguf", "faiss-cpu", "scikit-learn"]
LIBRARIES += ["openvino", "zentorch"]
LEGEND = """GB/s counts every array once, read or written (x of dynamic_quantize twice). The limit of a product is the
slower of its multiply-accumulates from registers alone and of streaming a, b and c once (cold weights from memory); of
an elementwise operation, a stream of the same bytes.
~ agrees with the exact answer but for float roundings. wrong: does not, and is not timed. * could not be held to the
instruction set of ours, and is left out of the ratio to the best peer. missing: not installed.
! the peak stayed below 90 % of what this core is known to do, however often the race ran: do not trust this row."""


# ---- rows: dicts ----


def row_of(benchmark):
    """Return the row of an entry of pytest-benchmark's JSON."""
    own = {"suite": benchmark["group"], "case": benchmark["name"], "seconds": benchmark["stats"]["min"]}
    return own | benchmark["extra_info"]


def extra_info(work, unit, moved, peak, limits, peers):
    """Return what a row holds beyond our own times. `peak`: GMAC/s from registers meanwhile."""
    times = {peer.name: {"seconds": peer.seconds, "note": peer.note, "held": peer.held} for peer in peers}
    limits = {limit.name: limit.seconds for limit in limits}
    return dict(work=work, unit=unit, moved=moved, peak=peak, limits=limits, peers=times)


def machine_info(threads):
    from limits import bandwidths, peaks

    libraries = {name: version_of(name) for name in LIBRARIES} | {"OpenBLAS": f"for {openblas_core()}"}
    info = dict(cpu=cpu_name(), python=platform.python_version(), isa=runtime.get_isa(), threads=threads)
    return info | dict(libraries=libraries, peaks=peaks(), bandwidths=bandwidths())


def load(*paths):
    """Return the machine's properties, the note and the rows by case; later files replace the cases of former ones."""
    found = {"rows": {}}
    for path in paths:
        data = json.loads(Path(path).read_text())
        rows = {row["case"]: row for row in map(row_of, data["benchmarks"])}
        found = data["machine_info"] | {"note": data.get("note", ""), "rows": found["rows"] | rows}
    return found


def save(path, report):
    """Write what `load` wants, a case a line: other statistics than the least time are left out."""
    rows = [dict(row) for row in report["rows"].values()]
    own = [{"group": r.pop("suite"), "name": r.pop("case"), "stats": {"min": r.pop("seconds")}} for r in rows]
    lines = [json.dumps(entry | {"extra_info": row}) for entry, row in zip(own, rows)]
    info = {name: value for name, value in report.items() if name not in ("note", "rows")}
    head = [f'"note": {json.dumps(report["note"])}', f'"machine_info": {json.dumps(info)}', '"benchmarks": [\n']
    Path(path).write_text("{" + ",\n".join(head) + ",\n".join(lines) + "\n]}\n")


def is_disturbed(row, report):
    known = max([row.get("peak") or 0, *(r.get("peak") or 0 for r in report["rows"].values())])
    return bool(row.get("peak")) and row["peak"] < DISTURBED * known


def version_of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def openblas_core():
    """Return the CPU that NumPy's OpenBLAS is for; other libraries may bring one of their own."""
    found = [library for library in threadpool_info() if library["internal_api"] == "openblas"]
    found.sort(key=lambda library: "numpy" not in library["filepath"])
    return found[0]["architecture"] if found else "no CPU"


def cpu_name():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---- tables: a title, headings, and lines of text ----


def heading(report):
    """Return the lines that tell the machine."""
    libraries = ", ".join(f"{name} {version}" for name, version in report["libraries"].items())
    limits = [f"{rate:.0f} GMAC/s {name}" for name, rate in report["peaks"].items()]
    limits += [f"{rate:.0f} GB/s from {level}" for level, rate in report["bandwidths"].items()]
    return [
        f"{report['cpu']}, {report['isa']}, {report['threads']} thread(s). {libraries}.",
        f"Limits of one core: {'; '.join(limits)}.",
    ]


def suite_tables(report):
    for suite in dict.fromkeys(row["suite"] for row in report["rows"].values()):
        rows = [row for row in report["rows"].values() if row["suite"] == suite]
        names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
        lines = [line_of(row, names, "!" if is_disturbed(row, report) else "") for row in rows]
        yield suite, ["", "qkernels", "rate", "of limit", "to best peer", *names], lines


def line_of(row, names, mark):
    ratio, share = to_best_peer(row), of_limit(row)
    rate = f"{row['work'] / row['seconds'] / 1e9:.1f} {row['unit']}"
    own = [row["case"], show_time(row["seconds"]) + mark, rate, f"{share:.0%}" if share else ""]
    return [*own, f"{ratio:.2f}x" if ratio else "", *(show_peer(row["peers"].get(name)) for name in names)]


def show_time(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def show_peer(peer):
    if peer is None or peer["seconds"] is None:
        return peer["note"] if peer else ""
    return show_time(peer["seconds"]) + peer["note"] + ("" if peer["held"] else "*")


def means_table(report):
    """Return the ratio to the fastest peer of each group of cases that differ in shape alone."""
    groups = {}
    for row in report["rows"].values():
        group = re.sub(r",? \d+x\d+(x\d+)?$", "", row["case"])
        if group != row["case"] and to_best_peer(row):
            groups.setdefault(group, []).append((to_best_peer(row), row["case"].removeprefix(group).strip(", ")))
    lines = []
    for group, found in groups.items():
        mean, (least, case) = geometric_mean(ratio for ratio, _ in found), min(found)
        if len(found) > 2:
            lines.append([group, str(len(found)), f"{mean:.2f}x", f"{least:.2f}x at {case}"])
    return "to the best peer", ["cases", "number", "geometric mean", "least"], lines


def promise_table(report):
    lines = []
    for promise in PROMISES:
        if promise.isa in (None, report["isa"]) and report["rows"].keys() >= set(promise.cases):
            figure = promise.figure(*(report["rows"][case] for case in promise.cases))
            if figure is not None:
                sign, bound, unit = f"{promise.bound} ".split(" ", 2)
                kept = figure <= float(bound) if sign == "<=" else figure >= float(bound)
                lines.append([promise.text, promise.bound, f"{figure:.2f} {unit}", "kept" if kept else "BROKEN"])
    return "promised", ["figure", "promised", "measured", ""], lines


# ---- the two ways to show a table ----


def as_markdown(title, headings, lines, text="", level=2):
    rows = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    rows += [[cell.replace("*", "\\*") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join(part for part in [f"{'#' * level} {title}", text, table] if part) + "\n"


def as_rich(title, headings, lines):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(headings):
        table.add_column(name, justify="right" if i else "left")
    for line in lines:
        table.add_row(*(Text(cell, style="red" if cell == "BROKEN" or cell.endswith("!") else "") for cell in line))
    return table


def console():
    from rich.console import Console

    return Console() if Console().is_terminal else Console(width=190)


def print_report(report):
    to = console()
    to.print("", *heading(report), sep="\n")
    for table in [*suite_tables(report), means_table(report), promise_table(report)]:
        if table[-1]:
            to.print(as_rich(*table))
    to.print(LEGEND, style="dim")


def pyplot():
    """Return matplotlib's pyplot, which draws to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
