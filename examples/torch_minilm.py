"""Sentence embeddings with MiniLM-L6 as a model of PyTorch, whose layers qkernels.torch replaces.

    pip install ".[examples,torch]" && python examples/torch_minilm.py

The network and its test are those of minilm.py: the first paragraph of each docstring of NumPy must find the rest of
it. Weights are saved as a state dict, and a model that never had others is filled with them.
"""

import argparse
import io
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import qkernels.torch as qt

RECIPES = {  # what to make of all dense layers
    "int8": {"weights": "int8"},
    "uint4, blocks of 32": {"weights": "uint4", "method": "mse", "scale_bits": 4},
    "nf4, blocks of 64": {"weights": "nf4"},
}


def attention(q, k, v, heads, *, starts):
    """Attend within each sequence, in floats."""
    parts = []
    for begin, end in pairwise(starts.tolist()):
        split = (x[begin:end].unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        parts.append(nn.functional.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1))
    return torch.cat(parts)


class Layer(nn.Module):
    """A layer of the transformer, on tokens of sequences that lie one after another."""

    def __init__(self, width, inner, heads, eps):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gelu, self.down = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.attended, self.fed = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.heads, self.attention = heads, attention

    def forward(self, x, starts):
        y = self.attention(*self.qkv(x).chunk(3, 1), self.heads, starts=starts)
        x = self.attended(x + self.out(y))
        return self.fed(x + self.down(self.gelu(self.up(x))))


class MiniLM(nn.Module):
    """BERT with mean pooling: unit vectors of sentences, whose tokens lie as `make_batch` of minilm.py has them."""

    def __init__(self, tables, inner, config):
        super().__init__()
        words, positions = tables
        width, eps = words[1], config["layer_norm_eps"]
        self.words, self.positions, self.norm = nn.Embedding(*words), nn.Embedding(*positions), nn.LayerNorm(width, eps)
        layers = (Layer(width, inner, config["num_attention_heads"], eps) for _ in range(config["num_hidden_layers"]))
        self.layers = nn.ModuleList(layers)

    def forward(self, ids, positions, starts):
        x = self.norm(self.words(ids) + self.positions(positions))
        for layer in self.layers:
            x = layer(x, starts)
        sentence = torch.repeat_interleave(starts.diff())
        sums = x.new_zeros(len(starts) - 1, x.shape[1]).index_add(0, sentence, x)
        return nn.functional.normalize(sums)


def empty_model(weights, config):
    """Return a model of the sizes that arrays by name have, as BERT's checkpoints name them, but without memory."""
    tables = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position"))
    with torch.device("meta"):
        inner = len(weights["encoder.layer.0.intermediate.dense.bias"])
        return MiniLM([weights[name].shape for name in tables], inner, config).requires_grad_(False).eval()


def model_of(weights, config):
    model = empty_model(weights, config)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in state_of(weights, config)}, assign=True)
    return model.requires_grad_(False)


def state_of(weights, config):
    """Yield the names that the model has for arrays, and these."""
    yield "words.weight", weights["embeddings.word_embeddings.weight"]
    types = weights["embeddings.token_type_embeddings.weight"]  # one for every sentence
    yield "positions.weight", weights["embeddings.position_embeddings.weight"] + types[0]
    names = {"attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down"}
    names |= {"attention.output.LayerNorm": "attended", "output.LayerNorm": "fed"}
    for kind in "weight", "bias":
        yield f"norm.{kind}", weights[f"embeddings.LayerNorm.{kind}"]
        for i in range(config["num_hidden_layers"]):
            theirs = f"encoder.layer.{i}"
            parts = [weights[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            yield f"layers.{i}.qkv.{kind}", np.concatenate(parts)
            for name, ours in names.items():
                yield f"layers.{i}.{ours}.{kind}", weights[f"{theirs}.{name}.{kind}"]


def quantize(model, options):
    """Return a copy with packed weights, attention by integers, and GELU in the layer before it."""
    made = qt.quantize_module(model, {"*.up": options | {"activation": "gelu"}, nn.Linear: options})
    for layer in made.layers:
        layer.attention, layer.gelu = qt.attention, nn.Identity()
    return made


def embed(model, batches):
    with torch.inference_mode():
        return torch.cat([model(*map(torch.from_numpy, batch)) for batch in batches]).numpy()


def main():
    from minilm import docstrings, load_model, make_batch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="use the first N docstrings only")
    docs = docstrings()[: parser.parse_args().docs]
    weights, tokenizer, config = load_model()
    tokens = [np.array(text.ids) for texts in zip(*docs) for text in tokenizer.encode_batch(texts)]
    batches = [make_batch(tokens[i : i + 8]) for i in range(0, len(tokens), 8)]
    model, exact = model_of(weights, config), None
    for name, options in {"float32": None, **RECIPES}.items():
        made, file = quantize(model, options) if options else model, io.BytesIO()
        torch.save(made.state_dict(), file)
        size = file.tell() / 1e6
        if options:  # a model that has not had other weights
            file.seek(0)
            made = quantize(empty_model(weights, config), options)
            made.load_state_dict(torch.load(file, weights_only=True), assign=True)
        begin = time.perf_counter()
        vectors = embed(made, batches)
        seconds, exact = time.perf_counter() - begin, vectors if exact is None else exact
        found = np.argmax(vectors[: len(docs)] @ vectors[len(docs) :].T, axis=1) == np.arange(len(docs))
        cosine = np.sum(vectors * exact, axis=1).mean()
        print(f"{name:20}{size:7.1f} MB{seconds:8.2f} s{found.mean():8.3f}{cosine:9.4f}", flush=True)


if __name__ == "__main__":
    main()
