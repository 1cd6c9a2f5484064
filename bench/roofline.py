"""A roofline chart of the products: python bench/roofline.py [results.json] [chart.png]

Each case is a point: the multiply-accumulates that it does for each byte of a, b and the result, and how many it does
a second. No case can be above the roofs: the multiply-accumulates of the registers, and the bandwidth of the cache that
its arrays fit. The results are those of `pytest bench --benchmark-json`, limits included.
"""

import re
import sys
from pathlib import Path

from report import load, pyplot

RESULTS = Path(__file__).parent / "results" / "best.json"
CHART = Path(__file__).parents[1] / "docs" / "roofline.png"
BLUE, ORANGE, GREEN, GRAY = "#1d4ed8", "#c2410c", "#15803d", "#64748b"
EIGHT = {"qkernels": "qkernels, 8-bit weights", "onnxruntime": "onnxruntime MatMulInteger"}
EIGHT |= {"torch": "torch._int_mm (oneDNN)", "sgemm": "OpenBLAS sgemm, float32"}
LINEAR = {"qkernels": "qkernels linear, 8-bit weights, float32 in and out", "zentorch": "zentorch dynamic_qlinear"}
FOUR = {"qkernels": "qkernels linear, 4-bit weights in blocks of 32", "onnxruntime": "onnxruntime MatMulNBits"}
# prefix of cases: color, and {contender: label}
SERIES = {"matmul u8s8 ": (BLUE, EIGHT), "linear ": (GREEN, LINEAR), "linear 4-bit, block 32, ": (ORANGE, FOUR)}
MARKERS = {"onnxruntime": "s", "torch": "^", "sgemm": "v", "zentorch": "D"}
ROOFS = {"L2": "#475569", "L3": "#64748b", "memory": "#94a3b8"}
LEFT, RIGHT = 0.4, 600  # MAC a byte
TICKS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]


def main():
    source, target = (Path(given) for given in [*sys.argv[1:], *[RESULTS, CHART][len(sys.argv) - 1 :]])
    draw(load(source), target)


def draw(report, path):
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(11, 7), layout="constrained")
    draw_roofs(axis, report)
    for prefix, (color, labels) in SERIES.items():
        shapes = {case: re.fullmatch(re.escape(prefix) + r"(\d+x\d+x\d+)", case) for case in report["rows"]}
        rows = {shape[1]: report["rows"][case] for case, shape in shapes.items() if shape}
        draw_series(axis, rows, color, labels)
    axis.set(xscale="log", yscale="log", xlim=(LEFT, RIGHT), ylim=(4, 700))
    axis.set_title(f"Products M x N x K on one core: {report['cpu']}, {report['isa']}")
    axis.set_xlabel("arithmetic intensity (multiply-accumulates for each byte of a, b and the result)")
    axis.set_ylabel("multiply-accumulates a second (GMAC/s)")
    axis.set_xticks(TICKS, labels=map(str, TICKS))
    axis.set_yticks(TICKS[3:], labels=map(str, TICKS[3:]))
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_roofs(axis, report):
    """Bandwidths as slanted lines up to the best peak, and the peaks as level ones."""
    peak = max(report["peaks"].values())
    for i, (level, bandwidth) in enumerate(report["bandwidths"].items()):
        axis.plot([LEFT, peak / bandwidth], [LEFT * bandwidth, peak], color=ROOFS[level], linewidth=1.5, zorder=1)
        slanted = dict(rotation=45, rotation_mode="anchor", transform_rotates_text=True, fontsize=9)
        at, place = (LEFT * 1.1, LEFT * 1.1 * bandwidth), (0, 4 if i == 0 else -14)
        write(axis, f"{level}: {bandwidth:.0f} GB/s", at, place, ROOFS[level], **slanted)
    names = {}
    for name, rate in report["peaks"].items():
        names.setdefault(round(rate), []).append(name)
    ridge = peak / max(report["bandwidths"].values())
    for rate, titles in names.items():
        highest = rate == round(peak)
        style = dict(linewidth=1.5, linestyle="-") if highest else dict(linewidth=0.8, linestyle=":")
        axis.plot([ridge if highest else LEFT, RIGHT], [rate, rate], color=GRAY, zorder=1, **style)
        at = (ridge if highest else RIGHT * 0.95, rate)
        write(axis, f"{' or '.join(titles)}: {rate} GMAC/s", at, (0, 4), GRAY, fontsize=9, ha="right")


def write(axis, text, at, place, color, **options):
    """Write beside a point, so many points of type to the right and up."""
    axis.annotate(text, at, color=color, xytext=place, textcoords="offset points", **options)


def draw_series(axis, rows, color, labels):
    points = {shape: row["work"] / row["moved"] for shape, row in rows.items() if row["moved"]}
    points = dict(sorted((item for item in points.items() if LEFT < item[1] < RIGHT), key=lambda item: item[1]))
    rates = {shape: rows[shape]["work"] / rows[shape]["seconds"] / 1e9 for shape in points}
    axis.scatter(points.values(), rates.values(), s=46, color=color, zorder=3, label=labels["qkernels"])
    for name, marker in MARKERS.items():
        times = {shape: rows[shape]["peers"].get(name, {}).get("seconds") for shape in points}
        at = [(points[shape], rows[shape]["work"] / seconds / 1e9) for shape, seconds in times.items() if seconds]
        if at and name in labels:
            style = dict(facecolors="none", edgecolors=GRAY if name == "sgemm" else color, alpha=0.7, zorder=2)
            axis.scatter(*zip(*at), marker=marker, s=34, label=labels[name], **style)
    if color == GREEN:
        return  # labels of the same shapes, which would lie on the others
    up = 1 if color == BLUE else -1
    for shape, x in points.items():
        leaning = x > 5  # where they stand close
        place = (2, 7 if up > 0 else -10) if leaning else (6, -3)
        slanted = dict(rotation=60 * up * leaning, rotation_mode="anchor", fontsize=8)
        write(axis, re.sub(r"^(\d+)x\1x\1$", r"\1³", shape), (x, rates[shape]), place, color, **slanted)


if __name__ == "__main__":
    main()
