"""The library at a glance: python bench/glance.py [chart.png], from the results in bench/results.

On the left a model in float32, 8 and 4 bits: bytes, time, and what it finds. On the right each case that has peers, a
point: how many times the fastest of them takes our time; the mark is the geometric mean of a row.
"""

import json
import re
import sys
from pathlib import Path

from promises import geometric_mean, to_best_peer
from report import load, pyplot

RESULTS = Path(__file__).parent / "results"
CHART = Path(__file__).parents[1] / "docs" / "glance.png"
INK, GRAY, PALE = "#1e293b", "#64748b", "#cbd5e1"
SETS = {"best": ("AVX-512 VNNI", "#1d4ed8"), "avx2": ("AVX2", "#ea580c")}
VARIANTS = {"NumPy float32": ("float32", "#94a3b8"), "int8": ("int8", "#1d4ed8")}
VARIANTS |= {"k-means, blocks of 64, compensated": ("4 bits", "#0d9488")}
PANELS = {  # heading: value, its error, how it is written
    "weights of the layers, MB": (lambda r: r["linear_bytes"] / 1e6, lambda r: None, "{:.1f}"),
    "one sentence, ms": (lambda r: r["latency"] * 1e3, lambda r: None, "{:.1f}"),
    "1,678 documents, s": (lambda r: r["seconds"], lambda r: None, "{:.0f}"),
    "recall@1": (lambda r: r["recall"], lambda r: r["recall_error"], "{:.3f}"),
}
ROWS = {  # heading: suites, and how their cases begin
    "8-bit products": (["matmul"], "matmul (?!unpacked)"),
    "8-bit layers": (["linear"], "q?linear"),
    "4-bit layers": (["linear4"], "linear 4-bit"),
    "16-bit layers": (["linear16"], ""),
    "convolutions": (["conv"], "conv"),
    "depthwise convolutions": (["conv"], "depthwise"),
    "pools": (["conv"], "max_pool|qaverage|qglobal"),
    "layers on codes": (["integer_layers"], ""),
    "quantize": (["quantize"], "quantize|dynamic"),
    "dequantize": (["quantize"], "dequantize"),
    "fake_quantize": (["quantize"], "fake_quantize"),
    "MX formats, NVFP4": (["quantize"], "MX|NVFP"),
    "calibration": (["observers"], ""),
    "codebooks, GGUF": (["codebook"], ""),
    "k-means": (["kmeans"], ""),
    "nearest neighbours": (["pq"], ""),
    "gptq, Hessian": (["gptq"], "gptq|Hessian"),
    "rotations": (["gptq"], "rotate"),
    "PyTorch layers": (["torch"], ""),
}
OURS = {
    "packed",
    "int32",
    "8-bit",
    "4-bit",
    "float scales",
    "one scale a column",
    "uniform",
    "half_even",
    "nearest",
    "qlinear",
    "qkernels.linear",
}


def main():
    draw(Path(sys.argv[1]) if sys.argv[1:] else CHART)


def draw(path=CHART):
    plt, model = pyplot(), json.loads((RESULTS / "minilm.json").read_text())
    results = {name: load(*sorted(RESULTS.glob(f"{name}*.json"))) for name in SETS}
    figure = plt.figure(figsize=(8.6, 5.6), facecolor="white")
    left = figure.add_gridspec(len(PANELS), 1, left=0.075, right=0.33, top=0.8, bottom=0.05, hspace=0.75)
    for place, (heading, how) in zip(left, PANELS.items()):
        draw_bars(figure.add_subplot(place), model, heading, *how)
    axis = figure.add_subplot(figure.add_gridspec(1, 1, left=0.57, right=0.985, top=0.8, bottom=0.09)[0])
    draw_rows(axis, results)
    cpu = model["title"].split("\n")[1].split(",")[0].replace("(R)", "").replace("Intel Xeon Processor", "Intel Xeon")
    write_title(figure, 0.015, "A transformer in fewer bits", f"MiniLM-L6, {cpu}; float32 by NumPy")
    below = f"each case a point, their geometric mean a mark; a core of an {results['best']['cpu']}"
    write_title(figure, 0.375, "Times as fast as the fastest other library", below)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def write_title(figure, x, title, below):
    figure.text(x, 0.94, title, fontsize=12.5, fontweight="bold", color=INK)
    figure.text(x, 0.9, below, fontsize=9, color=GRAY)


def draw_bars(axis, model, heading, value, error, form):
    """A bar for each variant, as long as the value is to the largest."""
    rows = {row["name"]: row for row in model["results"]}
    for i, (name, (_, color)) in enumerate(VARIANTS.items()):
        row = rows[name]
        text = form.format(value(row)) + (f" ± {error(row):.3f}" if error(row) else "")
        axis.barh(i, value(row), height=0.72, color=color, xerr=error(row), ecolor=INK)
        axis.annotate(
            text, (value(row) + (error(row) or 0), i), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set_title(heading, fontsize=9.5, loc="left", x=0, color=INK, pad=4)
    axis.set_yticks(range(len(VARIANTS)), labels=[label for label, _ in VARIANTS.values()], fontsize=9)
    axis.set(xlim=(0, 1.45 * max(value(rows[name]) for name in VARIANTS)), xticks=[])
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def draw_rows(axis, results):
    for shift, (name, (label, color)) in zip((-0.19, 0.19), SETS.items()):
        for i, (suites, start) in enumerate(ROWS.values()):
            ratios = ratios_of(results[name], suites, start)
            axis.scatter(ratios, [i + shift] * len(ratios), s=9, color=color, alpha=0.28, linewidths=0, zorder=2)
            if ratios:  # with AVX2 onnxruntime cannot be held to it
                mark = dict(marker="D", s=22, color=color, zorder=3, label=label if i == 0 else None)
                axis.scatter(geometric_mean(ratios), i + shift, **mark)
    axis.axvline(1, color=INK, linewidth=1.2, zorder=1)
    axis.hlines([i + 0.5 for i in range(len(ROWS) - 1)], 0.2, 600, color=PALE, linewidth=0.5, zorder=0)
    axis.set(xscale="log", xlim=(0.25, 600), ylim=(len(ROWS) - 0.5, -0.5))
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100, 500]
    axis.set_xticks(ticks, labels=[f"{tick:g}x" for tick in ticks], fontsize=9)
    axis.set_yticks(range(len(ROWS)), labels=ROWS, fontsize=9.5)
    axis.minorticks_off()
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9, frameon=False, handletextpad=0.2)


def ratios_of(results, suites, start):
    """Return how many times our time the fastest other library takes that is right and held to the instruction set."""
    cases = [row for row in results["rows"].values() if row["suite"] in suites and re.match(start, row["case"])]
    others = [row | {"peers": {name: row["peers"][name] for name in row["peers"].keys() - OURS}} for row in cases]
    return [ratio for row in others if (ratio := to_best_peer(row))]


if __name__ == "__main__":
    main()
