"""Batches, steps that show how far they are, the figures of a model, and their table."""

import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import numpy as np

import qkernels as qk

from . import example

BATCH_TOKENS = 512  # what torch runs fastest with; much more no longer fits the L2 cache
SENTENCE_TOKENS = 16

Result = namedtuple("Result", "name linear_bytes total_bytes seconds latency recall recall_error cosine cosine_error")


def set_threads(n):
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    qk.set_num_threads(n)


@contextmanager
def step(name, total=None):
    """Show `name` and a moving bar while the block runs. Yields a function that tells how much more of `total` is done.

    Without a terminal, the name is printed before the block starts."""
    if not sys.stdout.isatty():
        print(f"{name} ...", flush=True)
        yield lambda amount: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description:36}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, *[TimeRemainingColumn()] * (total is not None)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda amount: progress.advance(task, amount)
        progress.update(task, total=total or 1, completed=total or 1)


def make_groups(tokens, most=BATCH_TOKENS):
    """Return lists of sentences (indices of `tokens`) in the order of their lengths, as many to a list as `most`
    tokens allow."""
    groups, group, size = [], [], 0
    for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])):
        if group and size + len(tokens[i]) > most:
            groups.append(group)
            group, size = [], 0
        group.append(i)
        size += len(tokens[i])
    return groups + [group] if group else groups


def timed_embeddings(models, tokens):
    """Return embeddings in the order of `tokens`, and seconds, of each model: (models, sentences, width) and (models,).

    The models take turns, batch by batch, so that a machine whose speed drifts is the same for all."""
    batches = [(group, example.make_batch([tokens[i] for i in group])) for group in make_groups(tokens)]
    embeddings = np.empty((len(models), len(tokens), models[0].words.shape[1]), np.float32)
    seconds = np.zeros(len(models))
    with step("warming up"):
        for model in models:
            model.embed(*batches[0][1])
    total = sum(map(len, tokens))
    with step(f"embedding {total:,} tokens in {len(models)} ways", total) as done:
        for sentences, batch in batches:
            for i, model in enumerate(models):
                begin = time.perf_counter()
                embeddings[i, sentences] = model.embed(*batch)
                seconds[i] += time.perf_counter() - begin
            done(len(batch[0]))
    return embeddings, seconds


def measure(model, embeddings, seconds, reference, tokens, known):
    """Return the `Result` of a model whose embeddings of all `tokens` took `seconds`; `reference` are those in
    float32. The cosine to them is that of docstrings other than the `known` ones, on which models were calibrated."""
    queries, documents = np.split(embeddings, 2)
    cosines = [np.delete(part, known, axis=0) for part in np.split((embeddings * reference).sum(axis=1), 2)]
    cosine, cosine_error = float(np.mean(cosines)), float(np.std(cosines) / np.size(cosines) ** 0.5)
    with step(f"one sentence, {model.name}"):
        latency = sentence_latency(model, tokens)
    recall = recall_at_1(queries, documents)
    error = standard_error(recall, len(queries))
    sizes = model.linear_bytes, model.total_bytes
    return Result(model.name, *sizes, seconds, latency, recall, error, cosine, cosine_error)


def sentence_latency(model, tokens, seconds=1.0):
    """Return the shortest time that one sentence of 16 tokens takes, in seconds."""
    longest = max(tokens, key=len)
    batch = example.make_batch([longest[:SENTENCE_TOKENS]])
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        model.embed(*batch)
        best = min(best, time.perf_counter() - begin)
    return best


def recall_at_1(queries, documents):
    """Return the share of the queries whose nearest document, by cosine, is their own."""
    return float(np.mean(np.argmax(queries @ documents.T, axis=1) == np.arange(len(queries))))


def standard_error(recall, count):
    """Return the standard error of a recall that was measured on `count` queries: that of a share."""
    return (recall * (1 - recall) / count) ** 0.5


def table_of(results):
    """Return the headings and the lines of a table; the first result is the baseline."""
    base = results[0]
    headings = ["", "linear weights", "bits a weight", "all docs", "speed-up", "16 tokens", "speed-up", "recall@1"]
    lines = []
    for r in results:
        size = [f"{r.linear_bytes / 1e6:.1f} MB", f"{bits_a_weight(r, base):.2f}"]
        all_docs = [f"{r.seconds:.1f} s", f"{base.seconds / r.seconds:.2f}x"]
        sentence = [f"{r.latency * 1e3:.2f} ms", f"{base.latency / r.latency:.2f}x"]
        quality = [f"{r.recall:.3f} ± {r.recall_error:.3f}", f"{r.cosine:.4f} ± {r.cosine_error:.4f}"]
        lines.append([r.name, *size, *all_docs, *sentence, *quality])
    return [*headings, "cosine to float32"], lines


def bits_a_weight(result, base):
    return 32 * result.linear_bytes / base.linear_bytes
