"""EfficientNet-Lite0 by onnxruntime, torch and ours: `python -m bench.efficientnet`, in the project's folder.

Fashion-MNIST's test images, 64 x 64, are classified in float32, by onnxruntime's static int8 and by ours, calibrated by
each observer. A table, and a chart, compare size, speed (one image, one thread) and accuracy. It takes some minutes;
each step has a bar, or says its name before it starts.

    python -m bench.efficientnet --images 500   # a quick look, under a minute
"""

import argparse
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import race
from efficientnet_data import load_images, load_weights
from efficientnet_float import fold, train
from report import as_rich, console, cpu_name
from rich.progress import track

import qkernels as qk
from qkernels._bind import runtime

from . import example, peers
from .chart import draw_chart

SIZES = 64, 224
BASELINE, INT8 = "onnxruntime float32", "onnxruntime int8"


class Ours(example.Integers):
    """The example's network, called as the others are."""

    def __init__(self, blocks, head, params):
        super().__init__(blocks, head, params)
        self.blocks = blocks

    def load(self, pixels):
        self.input = pixels

    def call(self):
        return example.run(self.blocks, self.input, self)

    def __call__(self, pixels):
        return example.run(self.blocks, pixels, self)


def each(what, images, function, size=64):
    """Return function(one image, enlarged), of each, joined."""
    print(f"{what} ...", flush=True)
    return np.concatenate([function(example.resize(images[i : i + 1], size)) for i in track(range(len(images)), what)])


def make_networks(blocks, head, images):
    """Return {name: (bytes, {size: what is called, with pixels or alone})}, and the parameters by each observer."""
    floats = {size: peers.model_of(blocks, head, size) for size in SIZES}
    codes = {}
    for size, model in floats.items():
        some = images if size == 64 else images[:8]  # with 224 x 224 only times are measured
        what = f"onnxruntime calibrates at {size} x {size}"
        pixels = each(what, some, lambda pixels: peers.floats_of(pixels), size)
        codes[size] = peers.quantized(model, pixels[:, None])
    networks = {}
    for name, models in (BASELINE, floats), (INT8, codes):
        size = len(models[64].SerializeToString())
        networks[name] = size, {size: peers.Session(model) for size, model in models.items()}
    if find_spec("torch"):
        made = peers.Torch(blocks, head)
        networks["torch float32"] = networks[BASELINE][0], dict.fromkeys(SIZES, made)
    params = example.calibrate(blocks, head, images)
    for name, chosen in params.items():
        made = Ours(blocks, head, chosen)
        networks[f"qkernels {name}"] = made.nbytes(blocks), dict.fromkeys(SIZES, made)
    return networks, params


Result = namedtuple("Result", "name nbytes seconds accuracy error agreement")  # seconds by size


def time_networks(networks, image):
    """Return {name: seconds of one image} for each size: networks take turns."""
    race.case_seconds, times = 10.0, []
    for size in SIZES:
        print(f"timing at {size} x {size} ...", flush=True)
        pixels, contenders = example.resize(image[None], size), []
        for name, (_, by_size) in networks.items():
            by_size[size].load(pixels)
            contenders.append(race.Contender(name, by_size[size].call))
        race.take_turns(contenders)
        times.append({contender.name: contender.seconds for contender in contenders})
    return times


def measure(networks, images, labels):
    """Return the results; the first network is what others shall agree with."""
    times, exact, results = time_networks(networks, images[0]), None, []
    for name, (size, by_size) in networks.items():
        found = each(name, images, by_size[64]).argmax(axis=1)
        exact = found if exact is None else exact
        share = np.mean(found == labels)
        error = np.sqrt(share * (1 - share) / len(labels))
        results.append(Result(name, size, [t[name] for t in times], share, error, np.mean(found == exact)))
    return results


def table_of(results):
    base = next(result for result in results if result.name == BASELINE)
    headings = ["", "bytes", "smaller"]
    for size in SIZES:
        headings += [f"{size} x {size}", "speed-up"]
    lines = []
    for r in results:
        times = [(f"{s * 1e3:.2f} ms", f"{b / s:.2f}x") for s, b in zip(r.seconds, base.seconds)]
        sizes = [f"{r.nbytes:,}", f"{base.nbytes / r.nbytes:.2f}x"]
        quality = [f"{100 * r.accuracy:.2f} ± {100 * r.error:.2f} %", f"{100 * r.agreement:.2f} %"]
        lines.append([r.name, *sizes, *times[0], *times[1], *quality])
    return [*headings, "accuracy", "agreement"], lines


def main():
    options = parse_options()
    qk.set_num_threads(1)
    print("loading the network and the images ...", flush=True)
    blocks, data = fold(load_weights()), load_images()
    images, labels = (part[: min(4 * options.images, 10_000)] for part in data["train"])
    session = peers.Session(peers.model_of(blocks, None, 64))
    features = each("learning: features", images, session)
    print("learning: a logistic layer ...", flush=True)
    head = train(features, labels)
    networks, params = make_networks(blocks, head, images[: example.CALIBRATION])
    results = measure(networks, *(part[: options.images] for part in data["t10k"]))
    title = f"EfficientNet-Lite0, {options.images:,} images\n{cpu_name()}, {runtime.get_isa()}, 1 thread"
    console().print(as_rich(title, *table_of(results)))
    draw_chart(title, results, params, options.output)
    print(f"Chart: {options.output}")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="test on N images, learn from 4 N")
    chart = dict(type=Path, default=Path("efficientnet.png"))
    parser.add_argument("--output", **chart, help="the chart (default: efficientnet.png)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
