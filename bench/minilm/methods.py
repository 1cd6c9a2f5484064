"""Methods around the rounding of weights, each for itself: `python -m bench.minilm.methods`, in the project's folder.

Of MiniLM's dense layers, to 8 and 16 levels of each layer times a scale for 64 weights (3.25 and 4.25 bits), plainly
and with feedback (gptq). Calibrated on 200 docstrings of NumPy and SciPy, on what layers are given in float32, and
judged by 400 others: by the cosine of embeddings to those in float32, and by recall@1 (measure.py). Activations are in
int8, a scale a row. docs/methods.md has the table, which takes 15 minutes.

    python -m bench.minilm.methods --docs 50 --methods nothing smooth   # a quick look
"""

import argparse
from functools import partial
from typing import NamedTuple

import numpy as np
from minilm_budget import Layers
from scipy import sparse, special

import qkernels as qk
from qkernels._feedback import Problem

from . import example
from .budget import embed, told
from .corpus import collect_docstrings
from .measure import recall_at_1, set_threads, step
from .static import CALIBRATION, tokenize
from .variants import fit_grid, variances

BLOCK, SHARE, JUDGED = 64, 0.005, 400


class Seen(NamedTuple):
    """What a layer is given: its moments, and the largest magnitude of each input."""

    hessian: qk.Hessian
    most: np.ndarray


class Layer(NamedTuple):
    """A layer that a method has made: `before` goes over its inputs, `dense` is rounded, `apart` is added to it."""

    weight: np.ndarray
    before: object = np.asarray
    apart: object = None  # a sparse matrix


# ---- what keeps the float function ----


def nothing(weight, seen):
    return Layer(weight)


def rotated(weight, seen):
    """Inputs and weights turned by Hadamard matrices and random signs (QuaRot; Ashkboos et al., 2024)."""

    def before(x):
        return qk.rotate(x.astype(np.float32, copy=False)).astype(x.dtype, copy=False)

    return Layer(np.ascontiguousarray(before(weight.T).T), before)


def scaled(weight, factors):
    return Layer(weight * factors[:, None], lambda x: x / factors)


def activation_aware(weight, seen):
    """Weights of large inputs made larger (AWQ; Lin et al., 2024): the best of 20 powers of the inputs' magnitudes."""
    size = np.sqrt(np.diagonal(seen.hessian.moments) / seen.hessian.count)
    size = np.float32(size / np.exp(np.log(size).mean()))
    every = [size ** np.float32(power) for power in np.linspace(0, 1, 20)]
    back = [plain(weight * factors[:, None], seen.hessian, 3).weight / factors[:, None] for factors in every]
    return scaled(weight, every[np.argmin(qk.sensitivity(weight, seen.hessian, back))])


def smoothed(weight, seen):
    """What `smooth` finds for int8 activations (SmoothQuant)."""
    made, factors = qk.smooth(weight, seen.most, 0.5)
    return Layer(made, lambda x: x / factors)


def split(weight, seen):
    """0.5 % of the weights, those of which outputs have most, apart in float16."""
    most = weight**2 * variances(seen.hessian)[:, None]
    apart = most >= np.quantile(most, 1 - SHARE)
    kept = np.where(apart, np.float16(weight), 0).astype(np.float32)
    return Layer(np.where(apart, 0, weight), apart=sparse.csc_array(kept))


def equalized(dense):
    """Return layers with the ranges of values and of what multiplies them made equal (Nagel et al., 2019).

    Attention is linear in its values, so a factor of one of their columns goes into the next layer's row. Columns of
    queries and keys have scales of their own anyway.
    """
    made = list(dense)
    for i in range(0, len(dense), 4):
        (qkv, bias), (out, out_bias) = dense[i : i + 2]
        values = qkv[:, -len(out) :]
        factors = np.ones(qkv.shape[1], np.float32)
        factors[-len(out) :] = np.sqrt(np.abs(out).max(axis=1) / np.abs(values).max(axis=0))
        made[i] = qkv * factors, bias * factors
        made[i + 1] = out / factors[-len(out) :, None], out_bias
    return made


# ---- rounding ----


class Rounded(NamedTuple):
    """What weights become, what the bias gains, and what `linear` takes, if it can."""

    weight: np.ndarray
    change: object = 0
    packed: qk.PackedMatrix | None = None


def plain(weight, hessian, bits):
    book, scales = fit_grid(weight, hessian, bits, BLOCK)
    codes = qk.encode(weight, book)[0]
    return Rounded(qk.decode(codes, book, scales), packed=qk.pack(codes, book, scales=scales))


def corrected(weight, hessian, bits):
    """The bias takes over what the mean of outputs loses (Nagel et al., 2019)."""
    made = plain(weight, hessian, bits)
    return made._replace(change=np.float32(hessian.sum / hessian.count @ (weight - made.weight)))


def feedback(weight, hessian, bits, center=True):
    codes, book, scales, change, _ = qk.gptq(
        weight, hessian, fit_grid(weight, hessian, bits, BLOCK), refine=3, refit=True, center=center
    )
    packed = qk.pack(codes, book, scales=scales)
    return Rounded(qk.decode(codes, book, scales), 0 if change is None else change, packed)


def vectors(weight, hessian, bits):
    """Pairs of inputs share a code of twice the bits: points of a plane (VPTQ, GPTVQ), here without feedback."""
    points, scales = pairs(weight)
    weights = np.repeat(variances(hessian).reshape(-1, 2).mean(axis=1), weight.shape[1])
    found = qk.kmeans(points, 4**bits, weights=weights * scales.ravel() ** 2, max_iter=30, rng=0)
    made = np.float32(found.centroids)[found.labels].reshape(-1, weight.shape[1], 2) * scales[..., None]
    return Rounded(made.swapaxes(1, 2).reshape(weight.shape))


def vectors_fed(weight, hessian, bits):
    """The same with feedback, one pair after the other, each the point of least loss; the mean goes to the bias."""
    points, scales = pairs(weight)
    weights = np.repeat(variances(hessian).reshape(-1, 2).mean(axis=1), weight.shape[1])
    levels = np.float32(qk.kmeans(points, 4**bits, weights=weights * scales.ravel() ** 2, max_iter=30, rng=0).centroids)
    problem = Problem(hessian, "natural", 0.01, True)
    diagonal, errors = np.diagonal(problem.factor), np.zeros_like(weight)
    feed = problem.factor / diagonal[:, None]
    for i in range(0, len(weight), 2):
        first, second = weight[i : i + 2] + feed[i : i + 2, :i] @ errors[:i]
        unit = scales[i // 2][:, None]
        lost = first[:, None] - levels[:, 0] * unit
        other = (weight[i][:, None] - levels[:, 0] * unit) * feed[i + 1, i] + second[:, None] - levels[:, 1] * unit
        best = np.argmin((diagonal[i] * lost) ** 2 + (diagonal[i + 1] * other) ** 2, axis=1)
        errors[i : i + 2] = weight[i : i + 2] - (levels[best] * unit).T
    return Rounded(weight - errors, np.float32(problem.mean @ errors))


def pairs(weight):
    """Return pairs of weights of two inputs, over the largest magnitude of their block, and that, for each pair."""
    k, n = weight.shape
    blocks = np.abs(weight.reshape(-1, BLOCK, n)).max(axis=1)
    scales = np.repeat(np.float32(np.float16(blocks)), BLOCK // 2, axis=0)
    return (weight.reshape(-1, 2, n).swapaxes(1, 2) / scales[..., None]).reshape(-1, 2), scales


# ---- the methods: of layers, and two ways to round what they make ----

METHODS = {
    "nothing": (nothing, plain, feedback),
    "vectors": (nothing, vectors, vectors_fed),
    "split": (split, plain, feedback),
    "rotation": (rotated, plain, feedback),
    "awq": (activation_aware, plain, feedback),
    "smooth": (smoothed, plain, feedback),
    "equalize": (nothing, plain, feedback),
    "bias": (nothing, corrected, partial(feedback, center=False)),
}


def changed(hessian, before):
    """Return the moments of inputs that `before`, a linear function of their last axis, has gone over."""
    moments = before(before(hessian.moments).T)
    arrays = dict(hessian.to_arrays(), sum=before(hessian.sum), moments=(moments + moments.T) / 2)
    return qk.Hessian.from_arrays(arrays)


def make(method, rounding, bits, layer, seen):
    """Return a function of inputs and the name of an activation that gives a layer's outputs."""
    weight, bias = layer
    made = method(weight, seen)
    rounded = rounding(made.weight, changed(seen.hessian, made.before), bits)
    bias = bias + rounded.change

    def run(x, activation):
        given = np.ascontiguousarray(made.before(x))
        if rounded.packed is not None and made.apart is None:
            return qk.linear(given, rounded.packed, bias, activation=activation)
        q, params = qk.dynamic_quantize(given, "int8", axis=0)
        y = qk.dequantize(q, params) @ rounded.weight + bias
        return gelu(y if made.apart is None else y + x @ made.apart, activation)

    return run


def gelu(y, activation):
    return y * np.float32(0.5) * (1 + special.erf(y * np.float32(0.5**0.5))) if activation else y


# ---- measuring ----


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", default=JUDGED, help="judge by so many docstrings")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bits", nargs="*", type=int, choices=[2, 3, 4], default=[3, 4])
    options = parser.parse_args()
    set_threads(1)
    weights, tokenizer, config = example.load_model()
    docstrings = collect_docstrings()
    order = np.random.default_rng(5).permutation(len(docstrings))
    known = tokenize(tokenizer, [docstrings[i].document for i in order[:CALIBRATION]])
    judged = [docstrings[i] for i in order[CALIBRATION:][: options.docs]]
    tokens = tokenize(tokenizer, [d.query for d in judged] + [d.document for d in judged])
    network = example.MiniLM(weights, config, np.asarray, example.Float32)
    dense = [layer for layers, _ in network.layers for layer in layers]
    with step("float32"):
        exact, seen = embed(network, tokens), observe(network, dense, known)
    print("| | " + " | ".join(f"{bits} bits, plainly | with feedback | recall@1" for bits in options.bits) + " |")
    print("|---" * (1 + 3 * len(options.bits)) + "|")
    for name in options.methods:
        method, *ways = METHODS[name]
        found = equalized(dense) if name == "equalize" else dense
        inputs = observe(network, found, known) if found is not dense else seen
        cells = [name]
        for bits in options.bits:
            for rounding in ways:
                layers = [make(method, rounding, bits, *each) for each in zip(found, inputs)]
                vectors = embed(on(network, layers), tokens)
                cells.append(told(np.sum(vectors * exact, axis=1), 4))
            cells.append(f"{recall_at_1(*np.split(vectors, 2)):.3f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def on(network, layers):
    """Return the network, its dense layers these functions."""

    def run(number, x, weight, bias, activation):
        return layers[number](x, activation)

    network.functions = Layers(len(layers), run)
    return network


def observe(network, dense, tokens):
    """Return what each of these layers is given in float32."""
    seen = [(qk.Hessian(len(weight)), qk.observers.MinMax(axis=-1)) for weight, _ in dense]

    def watched(number):
        def run(x, activation):
            for each in seen[number]:
                each.update(x)
            weight, bias = dense[number]
            return gelu(x @ weight + bias, activation)

        return run

    embed(on(network, [watched(i) for i in range(len(dense))]), tokens)
    ranges = [observer.to_arrays() for _, observer in seen]
    return [Seen(hessian, np.maximum(-r["lo"], r["hi"])) for (hessian, _), r in zip(seen, ranges)]


if __name__ == "__main__":
    main()
