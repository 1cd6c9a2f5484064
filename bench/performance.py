"""docs/performance.md from the results of the benchmarks: python bench/performance.py [--measure]

`--measure` runs everything first, in about half an hour, and keeps the results in bench/results: the suites on the best
instruction set of this CPU, on AVX2, and on two threads, MiniLM, and its error against bits. Without it the tables
are made of what is there.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import roofline
from minilm import error_against_bits

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
RUNS = {  # name: environment, arguments of pytest, heading
    "best": ({}, [], "One thread"),
    "avx2": ({"QKERNELS_ISA": "avx2"}, [], "One thread, AVX2"),
    "threads": ({"QKERNELS_NUM_THREADS": "2"}, ["-k", "threads"], "Two threads"),
}
OTHER_CPUS = {"amx": "One thread, a CPU with AMX"}  # results that were brought from elsewhere
INTRODUCTION = """# Performance

Made by `python bench/performance.py` from the results of `pytest bench`, on the CPU and in the state of the code that each section names; [bench/README.md](../bench/README.md) tells how they are measured. A time is
the best of many turns; the ratio is that of the fastest peer's time to ours. *Of limit* is the share of what this machine could do at most: its
multiply-accumulates from registers alone, or reading and writing each array once, whichever takes longer. `~` marks results that agree but for
float roundings, `wrong` and `crashed` peers that are not timed, `*` peers that could not be held to the instruction set of ours and are
left out of the ratio.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="run the benchmarks first")
    if parser.parse_args().measure:
        measure()
    parts = [INTRODUCTION]
    if (path := RESULTS / "minilm.json").exists():
        parts.append(minilm_section(json.loads(path.read_text())))
    if error_against_bits.RESULTS.exists():
        parts.append(bits_section(json.loads(error_against_bits.RESULTS.read_text())))
    found = {name: json.loads(path.read_text()) for name in RUNS if (path := RESULTS / f"{name}.json").exists()}
    if "best" in found:
        roofline.draw(found["best"], ROOT / "docs" / "roofline.png")
        parts.append("## Roofline\n\n![Multiply-accumulates a second against arithmetic intensity](roofline.png)\n")
    parts += [section(RUNS[name][2], report) for name, report in found.items()]
    parts += [
        section(heading, json.loads(path.read_text()))
        for name, heading in OTHER_CPUS.items()
        if (path := RESULTS / f"{name}.json").exists()
    ]
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


def measure():
    for name, (environment, arguments, _) in RUNS.items():
        path = RESULTS / f"{name}.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", ROOT / "bench", "-q", "--report", path, *arguments]
        subprocess.run(command, env=os.environ | environment, cwd=ROOT, check=True)
    options = ["--variants", "all", "--output", ROOT / "docs" / "minilm.png", "--json", RESULTS / "minilm.json"]
    for module in ["bench.minilm", *options], ["bench.minilm.error_against_bits"]:
        subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True)


# ---- tables ----


def table(headings, rows):
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def minilm_section(report):
    headings = [
        "",
        "linear weights",
        "bits a weight",
        "all docs",
        "speed-up",
        "16 tokens",
        "speed-up",
        "recall@1",
        "cosine to float32",
    ]
    base = report["results"][0]
    rows = [
        [
            r["name"],
            f"{r['linear_bytes'] / 1e6:.1f} MB",
            f"{32 * r['linear_bytes'] / base['linear_bytes']:.2f}",
            f"{r['seconds']:.1f} s",
            f"{base['seconds'] / r['seconds']:.2f}x",
            f"{r['latency'] * 1e3:.2f} ms",
            f"{base['latency'] / r['latency']:.2f}x",
            f"{r['recall']:.3f} ± {r['recall_error']:.3f}",
            f"{r['cosine']:.4f}",
        ]
        for r in report["results"]
    ]
    title = ". ".join(report["title"].split("\n"))
    return (
        f"## MiniLM\n\n{title}. {report.get('note', '')} Made by `python -m bench.minilm --variants all`.\n\n"
        f"{table(headings, rows)}\n![Size, speed and quality](minilm.png)\n"
    )


def bits_section(report):
    error_against_bits.draw(report, error_against_bits.CHART)
    columns = [f"codes of {bits} bits" for bits in error_against_bits.CODE_BITS]
    rows = [
        [name, *(f"{r['cosine']:.4f} ({r['bits']:.2f})" for r in found)] for name, found in report["schemes"].items()
    ]
    text = (
        f"{report['title']}. Decoded weights, all else in float32: cosine to the embeddings of float32, and in parentheses the\n"
        "bits a weight, of codes, scales and levels (float16) together. *Weighted*: by the mean squares of inputs, on other docstrings."
    )
    return f"## Error against bits\n\n{text}\n\n{table(['', *columns], rows)}\n![Error against bits](error_against_bits.png)\n"


def section(heading, report):
    libraries = ", ".join(f"{name} {version}" for name, version in report["libraries"].items())
    limits = [f"{rate:.0f} GMAC/s {name}" for name, rate in report["peaks"].items()]
    limits += [f"{rate:.0f} GB/s from {level}" for level, rate in report["bandwidths"].items()]
    text = [
        f"## {heading}\n",
        f"{report['cpu']}, {report['isa']}, {report['threads']} thread(s). {libraries}.",
        f"Limits of one core: {'; '.join(limits)}.",
        f"{report.get('note', '')}\n",
    ]
    for suite in dict.fromkeys(row["suite"] for row in report["rows"].values()):
        rows = {case: row for case, row in report["rows"].items() if row["suite"] == suite}
        text += [f"### {suite}\n", suite_table(rows)]
    return "\n".join(text)


def suite_table(rows):
    names = list(dict.fromkeys(name for row in rows.values() for name in row["peers"]))
    headings = ["", "qkernels", "rate", "of limit", "to best peer", *names]
    return table(
        headings,
        [
            [
                case,
                show_time(row["seconds"]),
                f"{row['work'] / row['seconds'] / 1e9:.1f} {row['unit']}",
                f"{row['of_limit']:.0%}" if row["of_limit"] else "",
                f"{row['to_best_peer']:.2f}x" if row["to_best_peer"] else "",
                *(show_peer(row["peers"].get(name)) for name in names),
            ]
            for case, row in rows.items()
        ],
    )


def show_time(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def show_peer(peer):
    if peer is None:
        return ""
    if peer["seconds"] is None:
        return peer["note"]
    return show_time(peer["seconds"]) + peer["note"] + ("" if peer["held"] else "\\*")


if __name__ == "__main__":
    main()
