"""MiniLM on budgets of bits: python -m bench.minilm.budget [results.json] [chart.png], in the project's folder.

Layers in 16 to 2 bits, as examples/minilm_budget.py shares them out, beside the same width for all layers. Calibrated
on 200 docstrings of NumPy and SciPy, and judged by 600 others: by the cosine of embeddings to those in float32, and by
recall@1 (measure.py). All layers are rounded with feedback, one after another; activations are in int8, a scale a row.
The errors of differences are those of the mean over docstrings of what each gains or loses. Takes some 15 minutes.
"""

import json
import sys
from functools import partial
from pathlib import Path

import minilm_budget
import numpy as np
from minilm_forms import FORMS, bits_of, levels
from report import pyplot

import qkernels as qk

from . import example
from .corpus import collect_docstrings
from .measure import make_groups, set_threads, step
from .static import CALIBRATION, tokenize

ROOT = Path(__file__).parents[2]
RESULTS, CHART = ROOT / "bench" / "results" / "budget.json", ROOT / "docs" / "budget.png"
JUDGED = 600
WIDTHS = {  # of all layers: name, function, bits of codes, weights of a scale
    "4 bits, blocks of 64": (FORMS[4], 4, 64),
    "4 bits, blocks of 384": (partial(levels, bits=4, block=384), 4, 384),
    "3 bits, blocks of 64": (FORMS[3], 3, 64),
    "2 bits, blocks of 64": (FORMS[2], 2, 64),
}
BUDGETS = {4.25: "4 bits, blocks of 64", 4.0: "4 bits, blocks of 384", 3.25: "3 bits, blocks of 64"}
BUDGETS |= {2.75: None, 2.25: "2 bits, blocks of 64"}  # and the widths that they are compared with
NAMES = ["query, key, value", "attention's output", "up", "down"]


def main():
    results, chart = (Path(given) for given in [*sys.argv[1:], *[RESULTS, CHART][len(sys.argv) - 1 :]])
    report = measure()
    results.write_text(json.dumps(report) + "\n")
    print("| | bits a weight | cosine to float32 | recall@1 | to one width of this size: cosine | recall@1 |")
    print("|---|---|---|---|---|---|")
    for row in report["rows"]:
        print("| " + " | ".join(cells(row, report["rows"])) + " |")
    draw(report, chart)


def cells(row, rows):
    """Return the cells of a row of the table, with differences to the row of the width that it is compared with."""
    found = [row["name"], f"{row['bits']:.2f}", told(row["cosines"], 4), told(row["found"], 3), "", ""]
    for other in rows:
        if other["name"] == row.get("beside"):
            found[4:] = [
                told(np.subtract(row[key], other[key], dtype=float), digits, "+")
                for key, digits in (("cosines", 4), ("found", 3))
            ]
    return found


def told(values, digits, sign=""):
    """Return the mean and its standard error."""
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values) / len(values) ** 0.5:.{digits}f}"


# ---- measuring ----


def measure():
    set_threads(1)
    weights, tokenizer, config = example.load_model()
    docstrings = collect_docstrings()
    order = np.random.default_rng(5).permutation(len(docstrings))
    known = tokenize(tokenizer, [docstrings[i].document for i in order[:CALIBRATION]])
    judged = [docstrings[i] for i in order[CALIBRATION:][:JUDGED]]
    tokens = tokenize(tokenizer, [d.query for d in judged] + [d.document for d in judged])
    network = example.MiniLM(weights, config, np.asarray, example.Float32)
    groups = make_groups(known)
    batches = [
        example.make_batch([known[i] for i in groups[at]]) for at in np.random.default_rng(5).permutation(len(groups))
    ]
    with step("float32"):
        exact = embed(network, tokens)
    budget = minilm_budget.Budget(network, batches, progress)
    sizes = [weight.size for weight, _ in budget.dense]
    rows = [row("float32", 32, exact, exact)]
    for name, (form, bits, block) in WIDTHS.items():
        with step(name):
            found = embedded(network, budget.round([form] * len(sizes)), tokens)
        rows.append(row(name, bits + 16 / block, found, exact))
    for bits, beside in BUDGETS.items():
        with step(f"a budget of {bits} bits"):
            share, layers = budget.best(bits)
            found = embedded(network, layers, tokens)
        of_layers = [bits_of(form, len(weight)) for form, (weight, _) in zip(share, budget.dense)]
        each = np.dot(of_layers, sizes) / sum(sizes)
        rows.append(row(f"a budget of {bits}", each, found, exact) | {"beside": beside, "share": share.tolist()})
    curve = qk.pareto(budget.costs, budget.sizes)
    curve = {"bits": (curve.size / budget.weights).tolist(), "cost": curve.error.tolist()}
    title = f"MiniLM-L6, {JUDGED} docstrings, {sum(map(len, tokens)):,} tokens"
    return dict(title=title, rows=rows, curve=curve)


def progress(steps, name):
    with step(name, len(steps)) as done:
        for each in steps:
            yield each
            done(1)


def embedded(network, layers, tokens):
    """Return the embeddings of the network by packed layers; it stays in float32."""
    kept = network.layers, network.functions
    network.layers, network.functions = layers, qk
    found = embed(network, tokens)
    network.layers, network.functions = kept
    return found


def embed(network, tokens):
    vectors = np.empty((len(tokens), network.words.shape[1]), np.float32)
    for group in make_groups(tokens):
        vectors[group] = network.embed(*example.make_batch([tokens[i] for i in group]))
    return vectors


def row(name, bits, vectors, exact):
    """Return, of each docstring, the mean cosine of its two embeddings, and whether it is found."""
    cosines = np.sum(vectors * exact, axis=1).reshape(2, -1).mean(axis=0)
    queries, documents = np.split(vectors, 2)
    found = np.argmax(queries @ documents.T, axis=1) == np.arange(len(queries))
    return dict(name=name, bits=bits, cosines=cosines.round(6).tolist(), found=found.astype(int).tolist())


# ---- the chart ----


def draw(report, path):
    """Bits of each layer for each budget, and costs against bits."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.4), layout="constrained", width_ratios=[1.25, 1])
    shares = [row for row in report["rows"] if "share" in row]
    table = np.array([row["share"] for row in shares])
    left.imshow(np.log2(table), cmap="Blues", aspect="auto", vmin=0, vmax=5)
    for (y, x), bits in np.ndenumerate(table):
        left.text(x, y, bits, ha="center", va="center", fontsize=9)
    names = [f"{layer} {name}" for layer in range(1, table.shape[1] // len(NAMES) + 1) for name in NAMES]
    left.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    left.set_yticks(range(len(shares)), [f"{row['bits']:.2f} bits" for row in shares])
    left.set_title("bits of the codes of each layer", fontsize=10)
    right.plot(
        report["curve"]["bits"], report["curve"]["cost"], color="#94a3b8", label="sum of costs, as expected (pareto)"
    )
    for label, rows, color, marker in (
        ("one width for all layers", [row for row in report["rows"][1:] if "share" not in row], "#c2410c", "s"),
        ("a budget", shares, "#1d4ed8", "o"),
    ):
        rows = sorted(rows, key=lambda row: row["bits"])
        lost = [1 - np.mean(row["cosines"]) for row in rows]
        right.plot([row["bits"] for row in rows], lost, color=color, marker=marker, label=label)
    right.set(yscale="log", xlim=(2, 9), ylim=(1e-3, 0.5), xlabel="bits a weight, scales included")
    right.set_title("1 - cosine to the embeddings of float32", fontsize=10)
    right.grid(alpha=0.25, which="both")
    right.legend(fontsize=9)
    figure.suptitle(report["title"], fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    main()
