"""A small convolutional network in integers only, from pixels to probabilities, on qkernels and NumPy alone.

    pip install ".[examples]" && python examples/digits.py

It learns scikit-learn's 8 x 8 handwritten digits in float32, in seconds. Then observers watch 256 images pass, and from
there on there are codes and nothing else. docs/static.md tells more.
"""

import timeit

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import qkernels as qk
from qkernels import observers

OBSERVERS = observers.MinMax, observers.MSE, observers.Percentile, observers.Entropy
SHAPES = (3, 3, 1, 16), (3, 3, 1, 16), (1, 1, 16, 16), (256, 10)  # stem, depthwise, pointwise, dense
GROUPS = 1, 16, 1, None
PIXELS, PROBABILITIES = qk.QParams(1 / 16), qk.QParams(1 / 256, -128)  # pixels of 0 to 16 are codes as they come


# ---- in float32 ----


def windows(x, height, width):
    """Yield what each weight of a kernel sees of images (N, H, W, C), padded so that the result is as large."""
    padded = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    for i, j in np.ndindex(height, width):
        yield padded[:, i : i + x.shape[1], j : j + x.shape[2]]


def convolve(x, w):
    product = np.multiply if w.shape[2] < x.shape[3] else np.matmul  # depthwise, or of all channels
    return sum(product(seen, v) for seen, v in zip(windows(x, *w.shape[:2]), w.reshape(-1, *w.shape[2:])))


def gradients(grad, x, w):
    """Return the gradients of x, w and the bias, given that of the result."""
    depthwise, flipped = w.shape[2] < x.shape[3], w[::-1, ::-1]
    sums = "nhwf,nhwf->f" if depthwise else "nhwc,nhwf->cf"
    of_w = [np.einsum(sums, seen, grad, optimize=True) for seen in windows(x, *w.shape[:2])]
    of_x = convolve(grad, flipped if depthwise else flipped.swapaxes(2, 3))
    return of_x, np.reshape(of_w, w.shape), grad.sum((0, 1, 2))


def network(x, weights):
    """Return what each of the layers gives, and their sum; the logits last."""
    stem, depthwise, pointwise, dense = weights
    a = np.maximum(convolve(x, stem[0]) + stem[1], 0)
    b = np.maximum(convolve(a, depthwise[0]) + depthwise[1], 0)
    c = convolve(b, pointwise[0]) + pointwise[1]
    total = np.maximum(a + c, 0)
    return a, b, c, total, pool(total).reshape(len(x), -1) @ dense[0] + dense[1]


def pool(x):
    return x.reshape(len(x), 4, 2, 4, 2, -1).max((2, 4))


def slopes(x, labels, weights):
    """Return the gradients of the cross entropy by weights and biases."""
    stem, depthwise, pointwise, dense = (w for w, _ in weights)
    a, b, _, total, logits = network(x, weights)
    pooled, p = pool(total), np.exp(logits - logits.max(1, keepdims=True))
    grad = (p / p.sum(1, keepdims=True) - np.eye(10, dtype=np.float32)[labels]) / np.float32(len(x))
    of_dense = pooled.reshape(len(x), -1).T @ grad, grad.sum(0)
    of_pooled = (grad @ dense.T).reshape(pooled.shape)
    largest, of_total = (v.repeat(2, 1).repeat(2, 2) for v in (pooled, of_pooled))
    of_total *= (total == largest) & (total > 0)
    of_b, *of_pointwise = gradients(of_total, b, pointwise)
    of_a, *of_depthwise = gradients(of_b * (b > 0), a, depthwise)
    _, *of_stem = gradients((of_a + of_total) * (a > 0), x, stem)
    return of_stem, of_depthwise, of_pointwise, of_dense


def train(x, labels, epochs=10, rate=0.05, seed=0):
    """Return the (weights, bias) of four layers, by gradient descent with momentum."""
    rng = np.random.default_rng(seed)
    weights = [(rng.normal(0, (2 / np.prod(s[:-1])) ** 0.5, s).astype("f4"), np.zeros(s[-1], "f4")) for s in SHAPES]
    speeds, order = [tuple(np.zeros_like(v) for v in layer) for layer in weights], np.arange(len(x))
    for _ in track(range(epochs), "learning in float32"):
        rng.shuffle(order)
        for batch in np.array_split(order, len(x) // 32):
            for layer, speed, slope in zip(weights, speeds, slopes(x[batch], labels[batch], weights)):
                for value, v, s in zip(layer, speed, slope):
                    v[...] = np.float32(0.9) * v - np.float32(rate) * s
                    value += v
    return weights


# ---- in integers ----


class Quantized:
    """The network on codes: a scale for each filter, and of each result what an observer chooses from images."""

    def __init__(self, weights, images, observer, functions=qk):
        self.functions, seen = functions, network(np.float32(images / 16), weights)
        self.params = [PIXELS, *(observer().update(values).qparams("int8", symmetric=False) for values in seen)]
        inputs = (self.params[i] for i in (0, 1, 2, 4))
        self.layers = [self.layer(*of_layer, *given) for of_layer, *given in zip(weights, inputs, GROUPS)]

    def layer(self, w, bias, params, groups):
        w_params = qk.choose_qparams(w, "int8", axis=w.ndim - 1)
        codes = qk.quantize(w, w_params)
        packed = qk.pack(codes, w_params) if groups is None else qk.pack_conv(codes, w_params, groups=groups)
        return packed, qk.quantize_bias(bias, params, w_params)

    def __call__(self, pixels):
        """Return codes of probabilities (N, 10), given int8 pixels (N, 8, 8, 1): there is no float on the way."""
        do, (of_pixels, of_a, of_b, of_c, of_total, of_logits) = self.functions, self.params
        (stem, bias0), (depthwise, bias1), (pointwise, bias2), (dense, bias3) = self.layers
        a = do.qconv2d(pixels, of_pixels, stem, of_a, bias0, padding=1, activation="relu")
        b = do.qconv2d(a, of_a, depthwise, of_b, bias1, padding=1, activation="relu")
        c = do.qconv2d(b, of_b, pointwise, of_c, bias2)
        total = do.qadd(a, of_a, c, of_c, of_total, activation="relu")
        pooled = do.max_pool2d(total, 2, strides=2).reshape(len(pixels), -1)  # of the same parameters
        return do.qsoftmax(do.qlinear(pooled, of_total, dense, of_logits, bias3), of_logits, PROBABILITIES)


def load():
    """Return int8 pixels and labels of digits: images to learn from, as many to test with; the labels of both."""
    images, labels = load_digits(return_X_y=True)
    images = np.int8(images).reshape(-1, 8, 8, 1)
    return train_test_split(images, labels, test_size=0.5, random_state=0)


def main():
    images, test, labels, answers = load()
    weights, size = train(np.float32(images / 16), labels), 4 * sum(map(np.prod, SHAPES))
    runs = {"float32, NumPy": (lambda q: network(np.float32(q / 16), weights)[-1], size)}
    for observer in track(OBSERVERS, "calibrating"):
        run = Quantized(weights, images[:256], observer)
        runs[f"int8, {observer.__name__}"] = run, sum(packed.nbytes for packed, _ in run.layers)
    exact, table = None, Table("", "weights", "accuracy", "agreement", "time", title=f"{len(test)} images to test")
    for name, (run, size) in runs.items():
        found, seconds = run(test).argmax(1), min(timeit.repeat(lambda: run(test), number=1, repeat=3))
        exact, right = found if exact is None else exact, np.mean(found == answers)
        accuracy = f"{right:.2%} ± {(right * (1 - right) / len(test)) ** 0.5:.2%}"
        table.add_row(name, f"{size:,} B", accuracy, f"{np.mean(found == exact):.2%}", f"{1e3 * seconds:.2f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()
