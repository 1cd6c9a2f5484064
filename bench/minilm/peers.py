"""MiniLM in int8 by other libraries too: `python -m bench.minilm.peers`, in the project's folder.

Each library has a process of its own. All run the same batches in turns, once the cosine of their embeddings to those
of float32 was seen. The table has speed-ups against torch in float32. With QKERNELS_ISA=avx512vnni those that are
"free" may use AMX, the others may not, as ours.

    python -m bench.minilm.peers --every 50     # a quick look: each 50th batch of the docstrings, not each 10th
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import peers
import race
import report

import conftest
from qkernels._bind import runtime

from . import example
from .corpus import collect_docstrings
from .measure import make_groups, set_threads, step

LIBRARIES = ["torch", "openvino", "nncf", "zentorch", "ctranslate2", "onnxruntime"]
LEAST_COSINE = 0.98
ROUNDS, MORE_ROUNDS = 5, 25  # of each of many batches, and of the only one


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=10, metavar="N", help="use each Nth batch of docstrings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table too")
    options = parser.parse_args()
    conftest.set_environment(), conftest.pin(), set_threads(conftest.THREADS)
    race.timer = getattr(time, conftest.TIMER)
    peers.threads, peers.isa, peers.best_isa = conftest.THREADS, runtime.get_isa(), runtime.available_isas()[0]
    own, results = models(), {}
    for case, batches in cases(options.every).items():
        entries = results[case] = {}
        with step(case, len(batches)) as done:
            for sentences in batches:
                race_batch(own, sentences, entries, ROUNDS if len(batches) > 1 else MORE_ROUNDS)
                done(1)
    found = table(results)
    print(report.as_markdown(**found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def cases(every):
    """Return lists of batches by name; a batch is a list of sentences, each an array of token ids."""
    _, tokenizer, _ = example.load_model()
    with step("collecting and tokenizing docstrings"):
        texts = [text for docstring in collect_docstrings() for text in (docstring.query, docstring.document)]
        tokens = sorted((np.array(text.ids) for text in tokenizer.encode_batch(texts)), key=len)
    groups = [[tokens[i] for i in group] for group in make_groups(tokens)]
    by_32 = [tokens[i : i + 32] for i in range(0, len(tokens), 32)]
    found = {"docs, 512 tokens a batch": groups, "docs, 32 sentences a batch": by_32}
    found = {case: batches[every // 2 :: every] or batches[:1] for case, batches in found.items()}
    return found | {"8 sentences of 128": [tokens[-8:]], "one of 16": [[tokens[-1][:16]]]}


def models():
    """Return those of this process by name, torch in float32 first."""
    from .model import TorchFloat32

    weights, _, config = example.load_model()
    return {"torch float32": TorchFloat32(weights, config), "qkernels": example.MiniLM(weights, config, example.int8)}


def contenders(own, sentences):
    from .padded import pad

    batch, padded = example.make_batch(sentences), pad(sentences)
    for name, model in own.items():
        call = partial(model.embed, *batch)
        yield race.Contender(name, call, call)
    for openvino in peers.held_and_free("openvino"):
        yield from (openvino.minilm(*padded, precision) for precision in ("f32", "bf16"))
    for library in [peers.zentorch, *peers.held_and_free("ctranslate2"), peers.elsewhere("onnxruntime")]:
        yield library.minilm(*padded)


@dataclass
class Entry:
    seconds: float = 0.0
    cosines: list[float] = field(default_factory=list)
    note: str = race.EXACT


def race_batch(own, sentences, entries, rounds):
    """Add to {name of a model: its Entry}."""
    found = list(contenders(own, sentences))
    expected = found[0].read()
    for contender in found:
        entry = entries.setdefault(contender.name, Entry())
        if contender.call:
            cosines = np.sum(expected * contender.read(), axis=1)
            contender.note = race.EXACT if cosines.min() > LEAST_COSINE else race.WRONG
            entry.cosines += list(cosines)
        entry.note = entry.note or contender.note
    runners = [contender for contender in found if not contender.note]
    take_turns(runners, rounds)
    for contender in runners:
        entries[contender.name].seconds += contender.seconds


def take_turns(runners, rounds):
    """Every model has as many turns."""
    for runner in runners:
        race.fit_to_window(runner, race.timed_turn(runner))
    for number in range(rounds):
        for runner in runners[:: 1 if number % 2 else -1]:
            runner.turns.append(race.timed_turn(runner))


def table(results):
    base = {case: entries["torch float32"].seconds for case, entries in results.items()}
    lines = []
    for name, first in next(iter(results.values())).items():
        found = [entries[name] for entries in results.values()]
        ratios = [e.note or f"{seconds / e.seconds:.2f}x" for e, seconds in zip(found, base.values())]
        lines.append([name, *ratios, f"{np.mean(first.cosines):.4f}" if first.cosines else ""])
    versions = ", ".join(f"{name} {report.version_of(name)}" for name in LIBRARIES)
    text = f"""{report.cpu_name()}, {runtime.get_isa()}, {peers.threads} thread(s). {versions}.
Speed-ups against torch in float32, by batch. OpenVINO runs NNCF's static int8, the others quantize at run time; what is
"free" may use AMX, ours and the others use what is named above. Made by `python -m bench.minilm.peers`."""
    headings = ["", *base, "cosine to float32"]
    return dict(title="MiniLM by other libraries", headings=headings, lines=lines, text=text)


if __name__ == "__main__":
    main()
