"""Training that knows of its quantization: a network of 2-bit weights reads scikit-learn's handwritten digits.

    pip install ".[examples]" && python examples/qat.py [--distill] [--plot qat.png]

It learns in float32. Rounding it afterwards costs points; training on, with `fake_quantize`, its gradients and learned
scales (LSQ, Esser et al. 2020), wins them back. In the end `qlinear` gives the answers that training saw, on integers.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import qkernels as qk

SIZES = 64, 48, 32, 10
LAYERS, HIDDEN = range(len(SIZES) - 1), range(len(SIZES) - 2)
PIXELS = qk.QParams(1 / 16, dtype="uint8")  # pixels of 0 to 16 are codes as they come
CASES = {"2-bit weights, 4-bit activations": ("int2", "uint4"), "2-bit weights, 2-bit activations": ("int2", "uint2")}
EPOCHS, BATCH = 60, 64


def params_of(net, name, dtype):
    """Return the parameters of weights, a scale a column, or of activations."""
    return qk.QParams(net[f"scale of {name}"], dtype=dtype, axis=1 if name[0] == "w" else None)


def forward(net, x, dtypes=None):
    """Return logits, and what each layer has seen: its input, its weights and what they are of, its output."""
    seen = []
    for i in LAYERS:
        w = qk.fake_quantize(net[f"w{i}"], params_of(net, f"w{i}", dtypes[0])) if dtypes else net[f"w{i}"]
        y = x @ w + net[f"b{i}"]
        seen.append((x, w, np.maximum(y, 0)))
        x = seen[-1][2] if i in HIDDEN else y
        if dtypes and i in HIDDEN:
            x = qk.fake_quantize(x, params_of(net, f"a{i}", dtypes[1]))
    return x, seen


def straight_through(grads, grad, x, name, net, dtypes):
    """Return the gradient by x; that by its scale, divided as LSQ has it, joins the others."""
    params = params_of(net, name, dtypes[name[0] == "a"])
    grad, of_scale, _ = qk.fake_quantize_grad(grad, x, params, edge="clipped")
    grads[f"scale of {name}"] = of_scale / np.sqrt(x.size / params.scale.size * float(params.qmax))
    return grad


def backward(net, grad, seen, dtypes=None):
    grads = {}
    for i in reversed(LAYERS):
        x, w, rectified = seen[i]
        if i in HIDDEN:
            if dtypes:
                grad = straight_through(grads, grad, rectified, f"a{i}", net, dtypes)
            grad = grad * (rectified > 0)
        grads[f"b{i}"], grads[f"w{i}"], grad = grad.sum(0), x.T @ grad, grad @ w.T
        if dtypes:
            grads[f"w{i}"] = straight_through(grads, grads[f"w{i}"], net[f"w{i}"], f"w{i}", net, dtypes)
    return grads


def train(net, x, targets, what, dtypes, judge, rate=2e-3):
    """Return the network after EPOCHS of Adam, and what `judge` says of it after each."""
    net, rng, step, told = dict(net), np.random.default_rng(0), 0, []
    mean, square = ({name: np.zeros_like(v) for name, v in net.items()} for _ in range(2))
    for epoch in track(range(EPOCHS), what):
        for rows in np.array_split(rng.permutation(len(x)), len(x) // BATCH):
            logits, seen = forward(net, x[rows], dtypes)
            grads, step = backward(net, (softmax(logits, 1) - targets[rows]) / len(rows), seen, dtypes), step + 1
            for name, grad in grads.items():
                mean[name] = 0.9 * mean[name] + 0.1 * grad
                square[name] = 0.999 * square[name] + 0.001 * grad * grad
                move = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
                least = 1e-4 if name.startswith("scale") else -np.inf
                net[name] = np.float32(np.maximum(net[name] - rate * (1 - epoch / EPOCHS) * move, least))
        told.append(judge(net))
    return net, told


def rounded(net, x, dtypes):
    """Return the network with scales of least squares, of its weights and of its activations on x: no training."""
    net, (_, seen), least = dict(net), forward(net, x), dict(method="mse", narrow_range=False)
    for i in LAYERS:
        net[f"scale of w{i}"] = qk.choose_qparams(net[f"w{i}"], dtypes[0], axis=1, **least).scale
        if i in HIDDEN:
            net[f"scale of a{i}"] = qk.choose_qparams(seen[i][2], dtypes[1], symmetric=False, **least).scale
    return net


def integers(net, pixels, dtypes):
    """Return logits by integer products: codes of fewer bits are int8 and uint8 ones that stay below a clamp."""
    q, params = pixels, PIXELS
    for i in LAYERS:
        codes, scale = qk.quantize(net[f"w{i}"], params_of(net, f"w{i}", dtypes[0])), net[f"scale of w{i}"]
        packed = qk.pack(codes.astype(np.int8), qk.QParams(scale, axis=1))
        if i not in HIDDEN:
            return qk.linear(q, packed, net[f"b{i}"], params=params)
        few, to = params_of(net, f"a{i}", dtypes[1]), qk.QParams(net[f"scale of a{i}"], dtype="uint8")
        most = float(few.scale) * float(few.qmax)
        q, params = qk.qlinear(q, params, packed, to, net[f"b{i}"], activation="relu", clamp=(0, most)), to


def compare(distill=False, seed=0):
    """Yield, of the float network and of each case: its name, accuracy rounded, trained, on integers; and the curve."""
    images, labels = load_digits(return_X_y=True)
    x, test_x, labels, test_labels = train_test_split(np.float32(images / 16), labels, test_size=0.3, random_state=0)

    def accuracy(logits):
        return float(np.mean(logits.argmax(1) == test_labels))

    def learn(net, what, dtypes=None):
        return train(net, x, targets, what, dtypes, lambda n: accuracy(forward(n, test_x, dtypes)[0]))

    targets = np.eye(10, dtype=np.float32)[labels]
    rng = np.random.default_rng(seed)
    net = {f"w{i}": np.float32(rng.normal(0, np.sqrt(2 / SIZES[i]), SIZES[i : i + 2])) for i in LAYERS}
    net, curve = learn(net | {f"b{i}": np.zeros(SIZES[i + 1], np.float32) for i in LAYERS}, "float32")
    yield "float32", curve[-1], None, None, curve
    targets = (targets + softmax(forward(net, x)[0], 1)) / 2 if distill else targets
    for what, dtypes in CASES.items():
        first = rounded(net, x, dtypes)
        trained, curve = learn(first, what, dtypes)
        whole = integers(trained, np.uint8(test_x * 16), dtypes)
        yield what, accuracy(forward(first, test_x, dtypes)[0]), curve[-1], accuracy(whole), curve


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--distill", action="store_true", help="learn from the float network's probabilities, too")
    parser.add_argument("--plot", help="write the curves to this PNG")
    options = parser.parse_args()
    table, curves = Table("network", "float or rounded", "trained", "on integers"), {}
    for what, *accuracies, curves[what] in compare(options.distill):
        table.add_row(what, *("" if a is None else f"{a:.1%}" for a in accuracies))
    Console().print(table)
    if options.plot:
        for what, curve in curves.items():
            plt.plot(curve, label=what)
        plt.legend(), plt.xlabel("epoch"), plt.ylabel("accuracy"), plt.savefig(options.plot)


if __name__ == "__main__":
    main()
