"""MiniLM as a module of torch, quantized by us and by torch: `python -m bench.minilm.torch`, in the project's folder.

Dense layers of the same module (padded.py) are replaced, by `qkernels.torch.quantize_module` and by
`torch.ao.quantization.quantize_dynamic`, on FBGEMM's kernels: oneDNN's crash in torch 2.13. The module of
examples/torch_minilm.py has no padding, our attention, and GELU within layers. All run the same batches in turns.

    python -m bench.minilm.torch --every 50     # a quick look: each 50th batch of the docstrings, not each 10th
"""

import argparse
import subprocess
import sys
import time
import warnings
from functools import cache, partial

import numpy as np

from qkernels._bind import runtime

from .measure import set_threads, step
from .peers import MORE_ROUNDS, ROUNDS, cases, conftest, race, report, take_turns

TORCH, FLOAT = "torch int8, dynamic", "torch float32"
WHOLE = "examples/torch_minilm.py, "


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=10, metavar="N", help="use each Nth batch of docstrings")
    every = parser.parse_args().every
    conftest.set_environment(), conftest.pin(), set_threads(conftest.THREADS)
    race.timer = getattr(time, conftest.TIMER)
    found, cosines = {}, {}
    for case, batches in cases(every).items():
        if "32 sentences" in case:
            continue  # much padding for one module, and none for the other
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


@cache
def models():
    """Return modules by name, that of floats first."""
    import torch_minilm

    from qkernels.torch import quantize_module

    from . import example, padded

    made = {FLOAT: padded.load().requires_grad_(False)}
    if survives():
        made[TORCH] = by_torch(made[FLOAT])
    made["qkernels int8, layers alone"] = quantize_module(made[FLOAT])
    weights, _, config = example.load_model()
    whole = torch_minilm.model_of(weights, config)
    quantized = {name: torch_minilm.quantize(whole, options) for name, options in torch_minilm.RECIPES.items()}
    return made | {WHOLE + name: model for name, model in quantized.items()}


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

    from . import example
    from .padded import pad

    padded, whole = ([*map(torch.from_numpy, make(sentences))] for make in (pad, example.make_batch))
    with torch.inference_mode():
        calls = [partial(model, *(whole if WHOLE in name else padded)) for name, model in models().items()]
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
