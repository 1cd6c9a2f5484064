"""docs/performance.md from the results of the benchmarks: python bench/performance.py [--measure]

`--measure` runs everything first, in about an hour, and keeps the results in bench/results: the suites on the best
instruction set of this CPU, on AVX2, and on two threads, MiniLM, and its error against bits. Without it the tables are
made of what is there. Cases measured again go beside the others, in best-2.json, say, and replace theirs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import glance
import report
import roofline
from minilm import error_against_bits, measure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
RUNS = {  # name: environment, arguments of pytest, heading
    "best": ({}, [], "One thread"),
    "avx2": ({"QKERNELS_ISA": "avx2"}, [], "One thread, AVX2"),
    "threads": ({"QKERNELS_NUM_THREADS": "2"}, ["-k", "threads"], "Two threads"),
}
OTHER_CPUS = {  # results that were brought from elsewhere
    "xeon": "One thread, a Xeon",
}
INTRODUCTION = """# Performance

Made by `python bench/performance.py` from the results of `pytest bench`, on the CPU and in the state of the code that
each section names; [bench/README.md](../bench/README.md) tells how they are measured. A time is the best of many turns;
the ratio is that of the fastest peer's time to ours. *Of limit* is the share of what this machine could do at most: its
multiply-accumulates from registers alone, or reading and writing each array once, whichever takes longer. `~` marks
results that agree but for float roundings, `wrong`, `crashed` and `missing` peers that are not timed, `*` peers that
could not be held to the instruction set of ours and are left out of the ratio, `!` rows that the machine disturbed.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="run the benchmarks first")
    if parser.parse_args().measure:
        run_all()
    parts = [INTRODUCTION]
    if (path := RESULTS / "minilm.json").exists():
        parts.append(minilm_section(json.loads(path.read_text())))
    if (path := RESULTS / "minilm_peers.json").exists():
        parts.append(report.as_markdown(**json.loads(path.read_text())))
    if error_against_bits.RESULTS.exists():
        parts.append(bits_section(json.loads(error_against_bits.RESULTS.read_text())))
    headings = {name: heading for name, (_, _, heading) in RUNS.items()} | OTHER_CPUS
    found = {name: report.load(*paths) for name in headings if (paths := sorted(RESULTS.glob(f"{name}*.json")))}
    if {"best", "avx2"} <= found.keys():
        glance.draw()
    if "best" in found:
        roofline.draw(found["best"], ROOT / "docs" / "roofline.png")
        parts.append("## Roofline\n\n![Multiply-accumulates a second against arithmetic intensity](roofline.png)\n")
    parts += [section(headings[name], results) for name, results in found.items()]
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


def run_all():
    def run(*command, **environment):
        subprocess.run([sys.executable, *command], env=os.environ | environment, cwd=ROOT, check=True)

    for name, (environment, arguments, _) in RUNS.items():
        for path in RESULTS.glob(f"{name}*.json"):
            path.unlink()
        path = RESULTS / f"{name}.json"
        run("-m", "pytest", "bench", "-q", f"--benchmark-json={path}", *arguments, **environment)
        report.save(path, report.load(path))
    options = ["--output", ROOT / "docs" / "minilm.png", "--json", RESULTS / "minilm.json"]
    run("-m", "bench.minilm", *options)
    run("-m", "bench.minilm.peers", "--json", RESULTS / "minilm_peers.json")
    run("-m", "bench.minilm.error_against_bits")


# ---- sections ----


def minilm_section(results):
    title = ". ".join(results["title"].split("\n"))
    text = f"{title}. {results.get('note', '')} Made by `python -m bench.minilm`."
    lines = measure.table_of([measure.Result(**result) for result in results["results"]])
    table = report.as_markdown("MiniLM", *lines, text)
    return f"{table}\n![Size, speed and quality](minilm.png)\n"


def bits_section(results):
    error_against_bits.draw(results, error_against_bits.CHART)
    headings = ["", *(f"codes of {bits} bits" for bits in error_against_bits.CODE_BITS)]
    rows = [[name, *(f"{r['cosine']:.4f} ({r['bits']:.2f})" for r in rs)] for name, rs in results["schemes"].items()]
    text = (
        f"{results['title']}. Decoded weights, all else in float32: cosine to the embeddings of float32, and in "
        "parentheses the\nbits a weight, of codes, scales and levels (float16) together. *Weighted*: by the mean "
        "squares of inputs, on other docstrings. *Compensated*: by `gptq`, on the same."
    )
    table = report.as_markdown("Error against bits", headings, rows, text)
    return f"{table}\n![Error against bits](error_against_bits.png)\n"


def section(heading, results):
    text = "\n".join([f"## {heading}\n", *report.heading(results), f"{results['note']}\n"])
    return "\n".join([text, *(report.as_markdown(*table, level=3) for table in report.suite_tables(results))])


if __name__ == "__main__":
    main()
