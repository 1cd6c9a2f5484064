"""MiniLM as a module of torch, quantized by us and by torch: `python -m bench.minilm.torch`, in the project's folder.

Dense layers of the same module (padded.py) are replaced, by `qkernels.torch.quantize_module` and by
`torch.ao.quantization.quantize_dynamic`, on FBGEMM's kernels: oneDNN's crash in torch 2.13. All run the same batches in
turns. Speed-ups are to torch's int8; the cosine is that of embeddings to those in float32.

    python -m bench.minilm.torch --every 50     # a quick look: each 50th batch of the docstrings, not each 10th
"""

import argparse
import subprocess
import sys
import time
import warnings
from functools import partial

import numpy as np

from qkernels._bind import runtime

from .measure import set_threads, step
from .peers import MORE_ROUNDS, ROUNDS, cases, conftest, race, report, take_turns

TORCH, FLOAT = "torch int8, dynamic", "torch float32"
RECIPES = {
    "qkernels int8": "int8",
    "qkernels uint4, blocks of 32": {"*": {"weights": "uint4", "method": "mse", "scale_bits": 4}},
    "qkernels nf4": "nf4",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=10, metavar="N", help="use each Nth batch of docstrings")
    every = parser.parse_args().every
    conftest.set_environment(), conftest.pin(), set_threads(conftest.THREADS)
    race.timer = getattr(time, conftest.TIMER)
    found, cosines = {}, {}
    for case, batches in cases(every).items():
        seconds = found[case] = dict.fromkeys(names := [*models()], 0.0)
        with step(case, len(batches)) as done:
            for sentences in batches:
                runners = race_batch(sentences, ROUNDS if len(batches) > 1 else MORE_ROUNDS)
                exact = runners[0].read()
                for name, runner in zip(names, runners):
                    seconds[name] += runner.seconds
                    cosines.setdefault(name, []).extend(np.sum(exact * runner.read(), axis=1))
                done(1)
    print(report.as_markdown(**table(found, cosines)))


_made = {}


def models():
    """Return modules by name, that of floats first."""
    if not _made:
        from qkernels.torch import quantize_module

        from . import padded

        def load():
            return padded.load().requires_grad_(False)

        _made[FLOAT] = load()
        if survives():
            _made[TORCH] = by_torch(load())
        _made.update((name, quantize_module(load(), recipe)) for name, recipe in RECIPES.items())
    return _made


def by_torch(model):
    """Return the model as torch quantizes it: weights of int8, and inputs at run time."""
    import torch

    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be gone
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


def survives():
    """Tell whether torch's layers give in another process what layers should, but for rounding."""
    code = """
import torch
from bench.minilm.torch import by_torch
layer, x = torch.nn.Linear(384, 1536), torch.randn(512, 384)
y = layer(x)
assert (by_torch(torch.nn.Sequential(layer))(x) - y).norm() < 0.05 * y.norm()
"""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


def race_batch(sentences, rounds):
    import torch

    from .padded import pad

    batch = [torch.from_numpy(array) for array in pad(sentences)]
    with torch.inference_mode():
        calls = [partial(model, *batch) for model in models().values()]
        runners = [race.Contender("", call, lambda call=call: call().numpy()) for call in calls]
        take_turns(runners, rounds)
    return runners


def table(found, cosines):
    lines = []
    for name in models():
        speeds = [f"{seconds[TORCH] / seconds[name]:.2f}x" for seconds in found.values()]
        lines.append([name, *speeds, f"{np.mean(cosines[name]):.4f}"])
    text = (
        f"{report.cpu_name()}, {runtime.get_isa()}, {conftest.THREADS} thread(s). torch {report.version_of('torch')}."
    )
    text += "\nSpeed-ups against torch's int8. Made by `python -m bench.minilm.torch`."
    headings = ["", *found, "cosine to float32"]
    return dict(title="MiniLM as a module of torch", headings=headings, lines=lines, text=text)


if __name__ == "__main__":
    main()
