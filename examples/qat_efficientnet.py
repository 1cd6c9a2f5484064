"""Training that knows of its quantization, in PyTorch: EfficientNet-Lite0's last block and head at 2 and 3 bits.

    pip install ".[examples,torch]" && python examples/qat_efficientnet.py [--images N] [--plot qat.png]

The network, which tells clothes apart as in examples/efficientnet.py, runs up to its last block once, in float32. The
weights of what follows (of its 3.4 million 0.9 million) are rounded to 2 or 3 bits, a scale for each output, which
costs points of accuracy. Training on, with qkernels.torch.FakeQuantize and scales that are learned (LSQ), wins them
back, from the labels or, with --distill, also from what the float network says. The step is compiled as one graph.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from efficientnet_data import load_images, load_weights, resize
from efficientnet_float import fold, train
from efficientnet_torch import BITS, Part
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional

from qkernels.torch import FakeQuantize

SIZE, AT_ONCE, BATCH = 64, 100, 64  # pixels of a side; images that are run at a time, and a step of training
KEPT = 2  # blocks that are trained: the last one, and the head
HEAD = 4000  # images on whose features the logistic layer begins


def in_parts(function, x, what=None):
    """Return what a function makes of rows, a part at a time."""
    parts = x.split(AT_ONCE)
    with torch.no_grad():
        return torch.cat([function(part) for part in (track(parts, what) if what else parts)])


def accuracy(tail, x, labels):
    return float((in_parts(tail, x).argmax(1) == labels).float().mean())


def learn(tail, x, labels, teacher, what, epochs, test, rate=1e-3):
    """Train in place; return the accuracy on the test after each epoch. `teacher` has the float network's logits."""
    scales = {"params": tail.quantizers.parameters(), "lr": rate / 10}  # which are small beside a step of Adam
    optimizer = torch.optim.Adam([{"params": [*tail.w, *tail.bias]}, scales], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // BATCH))
    call, told = torch.compile(tail, fullgraph=True, backend="aot_eager"), []
    shuffled = torch.Generator().manual_seed(0)
    for _ in track(range(epochs), what):
        for rows in torch.randperm(len(x), generator=shuffled)[: len(x) // BATCH * BATCH].split(BATCH):
            logits = call(x[rows])
            loss = functional.cross_entropy(logits, labels[rows])
            if teacher is not None:
                soft = functional.kl_div(logits.log_softmax(1), teacher[rows].softmax(1), reduction="batchmean")
                loss = (loss + soft) / 2
            optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
            for quantizer in tail.quantizers:
                quantizer.clamp_() if isinstance(quantizer, FakeQuantize) else None
        told.append(accuracy(tail, *test))
    return told


def values(part, images, what):
    """Return what a part of the network makes of images (N, H, W)."""

    def enter(images):
        pixels = (resize(images.numpy(), SIZE).astype(np.float32) - 127) / 128
        return part(torch.tensor(pixels).permute(0, 3, 1, 2))  # in the order of channels last, which is the faster one

    return in_parts(enter, torch.tensor(images), what).contiguous()


def compare(count, epochs, distill=False):
    """Yield the name of each network, its accuracy before and after training, and the curve."""
    blocks, data = fold(load_weights()), load_images()
    frozen, last = Part(blocks[:-KEPT]), blocks[-KEPT:]
    (images, labels), (test, answers) = (
        [part[:most] for part in data[kind]] for kind, most in (("train", 2 * count), ("t10k", count))
    )
    x, test_x = values(frozen, images, "features"), values(frozen, test, "features of the test")
    features = in_parts(Part(last), x[:HEAD]).mean((2, 3))
    dense = train(features.numpy(), labels[:HEAD])
    labels, test = torch.tensor(labels).long(), (test_x, torch.tensor(answers).long())
    exact = Part(last, dense)
    first = accuracy(exact, *test)
    curve = learn(exact, x, labels, None, "float32", epochs, test, 1e-4)
    yield "float32", first, curve[-1], curve
    teacher = in_parts(exact, x) if distill else None
    for levels, kind in BITS.items():
        tail = Part(last, dense)
        tail.load_state_dict(exact.state_dict())
        tail.quantize(kind)
        before = accuracy(tail, *test)
        curve = learn(tail, x, labels, teacher, levels, epochs, test)
        yield levels, before, curve[-1], curve


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4000, metavar="N", help="test on N images, learn from 2 N")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--distill", action="store_true", help="learn from the float network's probabilities, too")
    parser.add_argument("--plot", help="write the curves to this PNG")
    options = parser.parse_args()
    table, curves = Table("weights", "rounded", "trained", title=f"{options.images:,} images"), {}
    for what, before, after, curves[what] in compare(options.images, options.epochs, options.distill):
        table.add_row(what, f"{before:.1%}", f"{after:.1%}")
    Console().print(table)
    if options.plot:
        for what, curve in curves.items():
            plt.plot(curve, label=what)
        plt.legend(), plt.xlabel("epoch"), plt.ylabel("accuracy"), plt.savefig(options.plot)


if __name__ == "__main__":
    main()
