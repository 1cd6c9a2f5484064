"""MiniLM in float32 as a torch module on padded sentences, which other libraries compile, convert and quantize."""

import numpy as np
import torch
from torch.nn import functional

from . import example


class Padded(torch.nn.Module):
    """Return unit vectors of token ids (sentences, length), of which the mask has 1 for those that count, 0 for others.

    `linear` makes a dense layer of its weight (outputs, inputs) and bias."""

    def __init__(self, weights, config, linear=None):
        super().__init__()
        network = example.MiniLM(weights, config, np.asarray)
        self.heads, self.eps, linear = network.heads, network.eps, linear or float_linear
        tables = map(torch.from_numpy, (network.words, network.positions))
        self.words, self.positions = map(torch.nn.Embedding.from_pretrained, tables)
        self.norm, self.layers = self.layer_norm(*network.norm), torch.nn.ModuleList()
        for dense, norms in network.layers:
            layer = [linear(torch.from_numpy(weight.T), torch.from_numpy(bias)) for weight, bias in dense]
            self.layers.append(torch.nn.ModuleList([*layer, *(self.layer_norm(*norm) for norm in norms)]))

    def layer_norm(self, weight, bias):
        return loaded(torch.nn.LayerNorm(len(weight), self.eps), torch.from_numpy(weight), torch.from_numpy(bias))

    def forward(self, ids, mask):
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        counts = mask.to(x.dtype)
        hidden = (counts[:, None, None] - 1) * 1e4
        for qkv, out, up, down, attended, fed in self.layers:
            heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1)]
            found = functional.scaled_dot_product_attention(*heads, hidden)
            x = attended(x + out(found.transpose(1, 2).flatten(2)))
            x = fed(x + down(functional.gelu(up(x))))
        return functional.normalize((x * counts[..., None]).sum(1))


def load(linear=None):
    weights, _, config = example.load_model()
    return Padded(weights, config, linear).eval()


def float_linear(weight, bias):
    return loaded(torch.nn.Linear(*weight.T.shape), weight, bias)


def loaded(layer, weight, bias):
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def pad(sentences):
    """Return ids and mask, int64, of sentences, each an array of token ids."""
    ids = np.zeros((len(sentences), max(map(len, sentences))), np.int64)
    mask = np.zeros_like(ids)
    for row, seen, tokens in zip(ids, mask, sentences):
        row[: len(tokens)], seen[: len(tokens)] = tokens, 1
    return ids, mask
