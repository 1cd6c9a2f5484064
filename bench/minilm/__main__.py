"""The table and the chart of MiniLM in 8 and 4 bits: `python -m bench.minilm`, in the project's folder.

The documentation of NumPy and SciPy is searched: from the first sentence of a function's docstring the rest of that
docstring must be found, by the cosine of their embeddings. This is done in float32 and with every dense layer in int8,
and in 4 bits in several ways. A table, and a chart, compare size, speed and quality. It takes some minutes; each step
has a bar, or says its name before it starts.

The baseline, against which speed-ups count, is float32 by NumPy; if torch is installed (`pip install torch`), it is
float32 by torch, which is faster. The table says which.

    python -m bench.minilm --docs 200           # a quick look, under a minute: some of the docstrings
    python -m bench.minilm --variants int8      # besides float32; "all" for every variant
    python -m bench.minilm --threads 4          # of each variant; 1 by default
"""

import argparse
import json
from pathlib import Path

import numpy as np
from report import as_rich, console, cpu_name

from qkernels._bind import runtime

from . import example
from .chart import draw_chart
from .corpus import collect_docstrings
from .measure import measure, set_threads, step, table_of, timed_embeddings
from .model import CALIBRATION, baseline, mean_squares, network_of
from .variants import SHOWN, VARIANTS


def main():
    options = parse_options()
    set_threads(options.threads)
    print("loading the model ...", flush=True)  # pip has a bar of its own
    weights, tokenizer, config = example.load_model()
    with step("collecting docstrings"):
        docstrings = collect_docstrings()[: options.docs]
    texts = [d.query for d in docstrings] + [d.document for d in docstrings]
    with step("tokenizing"):
        tokens = [np.array(e.ids) for e in tokenizer.encode_batch(texts)]
    known = slice(0, None, max(2, len(docstrings) // CALIBRATION))
    models = make_models(options.variants, weights, config, tokens[len(docstrings) :][known])
    embeddings, seconds = timed_embeddings(models, tokens)
    results = [measure(*each, embeddings[0], tokens, known) for each in zip(models, embeddings, seconds)]
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    title = (
        f"MiniLM-L6 on {len(docstrings):,} docstrings, {sum(map(len, tokens)):,} tokens\n{cpu_name()}, "
        f"{runtime.get_isa()}, {threads}; baseline: {models[0].description}"
    )
    console().print(as_rich(title, *table_of(results)))
    with step("drawing the chart"):
        draw_chart(title, results, options.output)
    print(f"Chart: {options.output}")
    if options.json:
        report = {"title": title, "results": [r._asdict() for r in results]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def make_models(names, weights, config, documents):
    """Return the baseline, and a model for each variant that is named."""
    variants, squares = [VARIANTS[name] for name in names], None
    with step(f"making {baseline().name}"):
        models = [baseline()(weights, config)]
    if any(variant.calibrated == "squares" for variant in variants):
        squares = mean_squares(weights, config, documents)
    layers = 4 * config["num_hidden_layers"]
    for variant in variants:
        with step(f"making {variant.name}", layers if variant.calibrated == "hessian" else None) as done:
            models.append(network_of(weights, config, variant, squares, documents, done))
    return models


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="use the first N docstrings only")
    which, of = dict(nargs="*", choices=[*VARIANTS, "all"], default=list(SHOWN)), f"(default: {' '.join(SHOWN)})"
    parser.add_argument("--variants", **which, help=f"besides float32 {of}")
    parser.add_argument("--threads", type=int, default=1, help="of each variant (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("minilm.png"), help="the chart (default: minilm.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    options = parser.parse_args()
    if "all" in options.variants:
        options.variants = list(VARIANTS)
    return options


if __name__ == "__main__":
    main()
