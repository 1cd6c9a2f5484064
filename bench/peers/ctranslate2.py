"""CTranslate2, whose Python has whole models alone. Its products are MKL's or oneDNN's; MKL_ENABLE_INSTRUCTIONS and
ONEDNN_MAX_CPU_ISA hold them."""

import os
import tempfile
from functools import cache

import numpy as np

import peers

os.environ["CT2_FORCE_CPU_ISA"] = "AVX512" if "512" in peers.isa else "AVX2"  # it would choose AVX2, of the fastest CPU
import ctranslate2  # noqa: E402
from ctranslate2.specs import common_spec, transformer_spec  # noqa: E402


class Converter(ctranslate2.converters.Converter):
    def _load(self):
        from minilm import example

        weights, _, config = example.load_model()
        network = example.MiniLM(weights, config, np.asarray)
        options = dict(pre_norm=False, activation=common_spec.Activation.GELU, layernorm_embedding=True)
        encoder = transformer_spec.TransformerEncoderSpec(len(network.layers), network.heads, **options)
        encoder.scale_embeddings = False
        encoder.embeddings[0].weight, encoder.position_encodings.encodings = network.words, network.positions
        encoder.layernorm_embedding.gamma, encoder.layernorm_embedding.beta = network.norm
        for into, (dense, norms) in zip(encoder.layer, network.layers):
            attention, ffn = into.self_attention, into.ffn
            for linear, (weight, bias) in zip([*attention.linear, ffn.linear_0, ffn.linear_1], dense):
                linear.weight, linear.bias = np.ascontiguousarray(weight.T), bias
            for norm, (weight, bias) in zip([attention.layer_norm, ffn.layer_norm], norms):
                norm.gamma, norm.beta = weight, bias
        model = transformer_spec.TransformerEncoderModelSpec(encoder)
        model.register_vocabulary([str(i) for i in range(len(network.words))])
        model.config.unk_token, model.config.layer_norm_epsilon = "0", network.eps
        return model


@cache
def minilm_model():
    with tempfile.TemporaryDirectory() as folder:
        Converter().convert(folder, force=True)
        options = dict(compute_type="int8", inter_threads=1, intra_threads=peers.threads)
        return ctranslate2.Encoder(folder, **options)


def minilm(ids, mask):
    model, view = minilm_model(), ctranslate2.StorageView.from_array
    ids, lengths, counts = np.int32(ids), mask.sum(axis=1, dtype=np.int32), np.float32(mask[..., None])

    def call():
        means = (np.asarray(model.forward_batch(view(ids), view(lengths)).last_hidden_state) * counts).sum(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    return peers.contender("CTranslate2", call, held_to=peers.BY_ENVIRONMENT)
