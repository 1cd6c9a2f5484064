"""The network of the example in float32, by NumPy and by torch, and on the weights of a variant; and what its layers
are given."""

import importlib.util
from itertools import pairwise

import numpy as np

import qkernels as qk

from . import example
from .measure import make_groups, step

CALIBRATION = 200  # docstrings


class Model(example.MiniLM):
    """The example's network with a name and its size."""

    name = None

    @property
    def linear_bytes(self):
        return sum(packed.nbytes for dense, _ in self.layers for packed, _ in dense)

    @property
    def total_bytes(self):
        tables = [self.words, self.positions, *self.norm]
        for dense, norms in self.layers:
            tables += [bias for _, bias in dense] + [array for norm in norms for array in norm]
        return self.linear_bytes + sum(array.nbytes for array in tables)


class Quantized(Model):
    """Runs on qkernels. squares: {name of a dense layer: mean square of each of its inputs}, if the variant is
    calibrated."""

    def __init__(self, weights, config, variant, squares=None):
        self.name, self.variant, self.squares = variant.name, variant, squares
        super().__init__(weights, config, variant.quantize)

    def dense(self, name, weight, bias):
        return self.pack(name, weight.T), bias

    def pack(self, name, weight):
        """Return the PackedMatrix of a dense layer of float32 weights (inputs, outputs)."""
        known = {"importance": self.squares[name][:, None]} if self.variant.calibrated else {}
        return self.quantize(weight, **known)


class Compensated(Model):
    """Runs on dense layers that the variant rounds one after another: each on what the rounded ones before it give for
    `tokens`, sentences of calibration."""

    attention, layer_norm = staticmethod(qk.attention), staticmethod(qk.layer_norm)

    def __init__(self, weights, config, variant, tokens, done):
        self.name, self.rounded, self.done = variant.name, [], done
        super().__init__(weights, config, variant.quantize, self)
        self.encode(*example.make_batch(tokens))
        self.functions = qk
        self.layers = [(self.rounded[4 * i : 4 * i + 4], norms) for i, (_, norms) in enumerate(self.layers)]

    def dense(self, name, weight, bias):
        return weight.T, bias

    def linear(self, x, weight, bias, activation=None):
        self.rounded.append(self.quantize(weight, bias, qk.Hessian(len(weight)).update(x)))
        self.done(1)
        return qk.linear(x, *self.rounded[-1], activation=activation)


def network_of(weights, config, variant, squares, tokens, done=lambda layers: None):
    """Return the network on the weights of a variant, calibrated by `squares` or on `tokens` if it is."""
    if variant.calibrated == "hessian":
        return Compensated(weights, config, variant, tokens, done)
    return Quantized(weights, config, variant, squares)


class NumPy(example.Float32):
    """Every function that the network calls, by NumPy in float32."""

    def attention(q, k, v, heads, starts):
        out = np.empty_like(q)
        for begin, end in pairwise(starts):
            q_, k_, v_ = (x[begin:end].reshape(end - begin, heads, -1).swapaxes(0, 1) for x in (q, k, v))
            scores = q_ @ k_.transpose(0, 2, 1) / np.float32(np.sqrt(q_.shape[-1]))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[begin:end] = (weights @ v_).transpose(1, 0, 2).reshape(end - begin, -1)
        return out

    def layer_norm(x, weight, bias, eps, residual):
        x = x + residual
        x -= x.mean(axis=1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(eps)) * weight + bias


class NumPyFloat32(Model):
    name, description = "NumPy float32", f"NumPy {np.__version__} float32"

    def __init__(self, weights, config):
        super().__init__(weights, config, lambda weight: weight, NumPy)


class TorchFloat32(Model):
    name = "torch float32"

    def __init__(self, weights, config):
        import torch  # takes seconds

        torch.set_num_threads(qk.get_num_threads())
        self.torch, self.description = torch, f"torch {torch.__version__} float32"
        super().__init__(weights, config, lambda weight: weight, self)
        kept = self.words, self.positions, self.norm, self.layers
        self.words, self.positions, self.norm, self.layers = self.tensors(kept)

    def tensors(self, found):
        return self.torch.from_numpy(found) if isinstance(found, np.ndarray) else [self.tensors(part) for part in found]

    def embed(self, ids, positions, starts):
        ids, positions = map(self.torch.from_numpy, (ids, positions))
        with self.torch.inference_mode():
            return super().embed(ids, positions, starts, most=10**9)  # all at once, which is faster

    def linear(self, x, weight, bias, activation=None):
        functions = self.torch.nn.functional
        y = functions.linear(x, weight.T, bias)
        return functions.gelu(y) if activation == "gelu" else y

    def attention(self, q, k, v, heads, starts):
        """Sentences of one length, which sorting has made neighbours, go together."""
        lengths = np.diff(starts)
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(lengths)]
        parts = []
        for first, last in pairwise(edges):
            rows = slice(starts[first], starts[last])
            group = (x[rows].view(last - first, lengths[first], heads, -1).transpose(1, 2) for x in (q, k, v))
            attended = self.torch.nn.functional.scaled_dot_product_attention(*group)
            parts.append(attended.transpose(1, 2).reshape(starts[last] - starts[first], -1))
        return parts[0] if len(parts) == 1 else self.torch.cat(parts)

    def layer_norm(self, x, weight, bias, eps, residual):
        return self.torch.nn.functional.layer_norm(x + residual, x.shape[1:], weight, bias, eps)


def baseline():
    """Return the float32 model that the others are compared with."""
    return TorchFloat32 if importlib.util.find_spec("torch") else NumPyFloat32


class Observer(Model):
    """Gathers what its dense layers are given, in a Hessian each."""

    attention, layer_norm = staticmethod(NumPy.attention), staticmethod(NumPy.layer_norm)

    def __init__(self, weights, config):
        self.seen = {}
        super().__init__(weights, config, None, self)

    def dense(self, name, weight, bias):
        return (name, weight.T), bias

    def linear(self, x, named, bias, activation=None):
        name, weight = named
        self.seen.setdefault(name, qk.Hessian(len(weight))).update(x)
        return NumPy.linear(x, weight, bias, activation)


def hessians(weights, config, tokens):
    """Return those of the inputs of dense layers in float32, by name."""
    observer, groups = Observer(weights, config), make_groups(tokens)
    with step("what weights multiply", len(groups)) as done:
        for group in groups:
            observer.embed(*example.make_batch([tokens[i] for i in group]))
            done(1)
    return observer.seen


def mean_squares(weights, config, tokens):
    """Return those of each input of each dense layer, by name: {name: (inputs,)}."""
    return {name: squares(seen) for name, seen in hessians(weights, config, tokens).items()}


def squares(hessian):
    return np.diagonal(hessian.moments) / hessian.count
