"""What one scale a tensor costs MiniLM, and what brings it back: `python -m bench.minilm.static`.

Each way is calibrated on the same 200 docstrings of NumPy and SciPy, and judged by all others: by the cosine of
embeddings to those in float32, and by recall@1 (measure.py). Speeds are to that of dynamic int8: batch by batch in
turns, and of one sentence of 16 tokens, each way by itself. Run it in the project's folder.

    python -m bench.minilm.static --docs 400    # a quick look: the first N that are judged
"""

import argparse

import minilm_static
import numpy as np

from . import example
from .corpus import collect_docstrings
from .measure import (
    make_groups,
    recall_at_1,
    sentence_latency,
    set_threads,
    standard_error,
    step,
    timed_embeddings,
)

CALIBRATION = 200
WAYS = {  # the options of Static
    "static, one scale a tensor": dict(alpha=None, split=0),
    "huge columns split": dict(alpha=None, split=4),
    "smoothed, alpha 0.5": dict(alpha=0.5, split=0),
    "smoothed, alpha 0.8": dict(alpha=0.8, split=0),
    "smoothed, alpha 0.95": dict(alpha=0.95, split=0),
    "smoothed, alpha 0.5, split": dict(alpha=0.5, split=4),
    "smoothed, alpha 0.8, split": dict(alpha=0.8, split=4),
    "smoothed, alpha 0.95, split": dict(alpha=0.95, split=4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="judge by the first N docstrings only")
    docs = parser.parse_args().docs
    set_threads(1)
    print("loading the model ...", flush=True)
    weights, tokenizer, config = example.load_model()
    with step("collecting docstrings"):
        found = collect_docstrings()
        order = np.random.default_rng(5).permutation(len(found))
    known, judged = order[:CALIBRATION], order[CALIBRATION:][:docs]
    with step("tokenizing"):
        of_calibration = tokenize(tokenizer, [found[i].document for i in known])
        queries, rest = ([getattr(found[i], kind) for i in judged] for kind in ("query", "document"))
        tokens = tokenize(tokenizer, queries + rest)
    models = make_models(weights, config, of_calibration)
    embeddings, seconds = timed_embeddings(list(models.values()), tokens)
    print(f"{len(judged)} docstrings, {sum(map(len, tokens)):,} tokens; calibrated on {CALIBRATION} others")
    print("| | cosine to float32 | recall@1 | speed | of one sentence |\n|---|---|---|---|---|")
    latencies = [sentence_latency(model, tokens) for model in models.values()]
    for name, vectors, time, latency in zip(models, embeddings, seconds, latencies, strict=True):
        recall = recall_at_1(*np.split(vectors, 2))
        cosine = float(np.mean(np.sum(vectors * embeddings[0], axis=1)))
        quality = f"{cosine:.4f} | {recall:.4f} ± {standard_error(recall, len(judged)):.4f}"
        print(f"| {name} | {quality} | {seconds[1] / time:.2f}x | {latencies[1] / latency:.2f}x |", flush=True)


def tokenize(tokenizer, texts):
    return [np.array(text.ids) for text in tokenizer.encode_batch(texts)]


def make_models(weights, config, tokens):
    """Return networks by name: in float32, dynamic, and in each static way."""
    float32 = (weights, config, np.asarray, example.Float32)
    models = {"float32": example.MiniLM(*float32), "dynamic": example.MiniLM(weights, config, example.int8)}
    network, groups = example.MiniLM(*float32), make_groups(tokens)
    recorder = minilm_static.Recorder(network.functions)
    network.functions = recorder
    with step("calibrating", len(groups)) as done:
        for group in groups:
            recorder.at = 0
            network.encode(*example.make_batch([tokens[i] for i in group]))
            done(1)
    ranges = [seen.to_arrays() for seen in recorder.ranges]
    for name, options in WAYS.items():
        with step(f"making {name}"):
            models[name] = example.MiniLM(*float32)
            models[name].encode = minilm_static.Static(models[name], ranges, **options).encode
    return models


if __name__ == "__main__":
    main()
