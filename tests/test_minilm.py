"""The example, and bench/minilm, on a tiny random model of the same structure, so that no download is needed."""

from types import SimpleNamespace

import minilm_static
import numpy as np
import pytest
from minilm import corpus, example, measure, model, static
from minilm.variants import VARIANTS

import qkernels as qk

CONFIG = {"num_attention_heads": 4, "layer_norm_eps": 1e-12, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    shapes = {
        f"embeddings.{name}_embeddings.weight": (rows, 64)
        for name, rows in (("word", 500), ("position", 40), ("token_type", 2))
    }
    shapes |= {f"embeddings.LayerNorm.{kind}": (64,) for kind in ("weight", "bias")}
    for i in range(CONFIG["num_hidden_layers"]):
        for name, outputs, inputs in (
            ("attention.self.query", 64, 64),
            ("attention.self.key", 64, 64),
            ("attention.self.value", 64, 64),
            ("attention.output.dense", 64, 64),
            ("intermediate.dense", 256, 64),
            ("output.dense", 64, 256),
        ):
            shapes |= {
                f"encoder.layer.{i}.{name}.weight": (outputs, inputs),
                f"encoder.layer.{i}.{name}.bias": (outputs,),
            }
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{kind}": (64,) for kind in ("weight", "bias")}
    values = {
        name: rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[-1])) for name, shape in shapes.items()
    }
    return {name: value + 1 if name.endswith("LayerNorm.weight") else value for name, value in values.items()}


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 500, length) for length in [7, 40, 3, 40, 16, 1, 40, 25]]


@pytest.fixture(scope="module")
def squares(weights, tokens):
    return model.mean_squares(weights, CONFIG, tokens)


@pytest.fixture(scope="module")
def networks(weights, squares, tokens):
    return {key: model.network_of(weights, CONFIG, variant, squares, tokens) for key, variant in VARIANTS.items()}


def embed_all(network, tokens, most):
    embeddings = np.empty((len(tokens), 64), np.float32)
    for group in measure.make_groups(tokens, most):
        embeddings[group] = network.embed(*example.make_batch([tokens[i] for i in group]))
    return embeddings


def test_each_variant_points_where_float32_does(weights, tokens, networks):
    exact = embed_all(model.NumPyFloat32(weights, CONFIG), tokens, 100)
    least = {"int8": 0.995, "kmeans-8": 0.8, "gptq": 0.98, "gptq-4": 0.8}
    for key, network in networks.items():
        found = embed_all(network, tokens, 100)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert (exact * found).sum(axis=1).min() > least.get(key, 0.9), key


def test_the_static_network_points_where_float32_does_and_has_codes_between_layers(weights, tokens, monkeypatch):
    given = {"linear": [], "layer_norm": [], "attention": []}
    network = example.MiniLM(weights, CONFIG, np.asarray, example.Float32)
    exact = embed_all(network, tokens, 100)
    made = minilm_static.make_static(network, [example.make_batch(tokens)])
    for name, seen in given.items():
        function = getattr(qk, name)
        monkeypatch.setattr(qk, name, lambda x, *a, f=function, to=seen, **o: to.append(x.dtype) or f(x, *a, **o))
    found = embed_all(made, tokens, 100)
    assert made is network and (exact * found).sum(axis=1).min() > 0.99
    assert {*given["linear"], *given["attention"]} <= {np.dtype("uint8"), np.dtype("int8")}
    for options in static.WAYS.values():
        other = example.MiniLM(weights, CONFIG, np.asarray, example.Float32)
        found = embed_all(minilm_static.make_static(other, [example.make_batch(tokens)], **options), tokens, 100)
        assert (exact * found).sum(axis=1).min() > 0.97, options


def test_compensated_layers_are_packed_and_each_is_made_on_what_the_rounded_ones_give(weights, tokens):
    seen, variant = [], VARIANTS["gptq"]

    def quantize(weight, bias, hessian):
        seen.append(hessian)
        return variant.quantize(weight, bias, hessian)

    made = model.network_of(weights, CONFIG, variant._replace(quantize=quantize), None, tokens)
    assert len(seen) == 8 and {hessian.count for hessian in seen} == {sum(map(len, tokens))}
    assert all(isinstance(packed, qk.PackedMatrix) for dense, _ in made.layers for packed, _ in dense)
    given = []

    def recorded(x, *a, **o):
        given.append(qk.Hessian(x.shape[1]).update(x))
        return qk.linear(x, *a, **o)

    made.functions = SimpleNamespace(attention=qk.attention, layer_norm=qk.layer_norm, linear=recorded)
    made.encode(*example.make_batch(tokens))
    assert [hessian.sum.tolist() for hessian in seen] == [hessian.sum.tolist() for hessian in given]


def test_scales_of_least_squares_bring_the_weights_closer(weights, squares):
    name = "encoder.layer.0.output.dense"
    weight = weights[name + ".weight"].T

    def error(key, importance=1):
        packed = model.Quantized(weights, CONFIG, VARIANTS[key], squares).pack(name, weight)
        return np.sum(importance * (qk.dequantize(packed.unpack(), packed.params) - weight) ** 2)

    assert error("uint4-mse") < error("uint4") < error("int4")
    importance = squares[name][:, None]
    assert error("uint4-weighted", importance) < error("uint4-mse", importance)


def test_fitted_levels_bring_the_weights_closer(weights, squares):
    name = "encoder.layer.0.output.dense"
    weight, importance = weights[name + ".weight"].T, squares[name][:, None]

    def error(key, importance=1):
        packed = model.Quantized(weights, CONFIG, VARIANTS[key], squares).pack(name, weight)
        decoded = qk.decode(packed.unpack(), packed.params, packed.scales)
        return np.sum(importance * (decoded - weight) ** 2)

    assert error("kmeans") < error("kmeans-weighted") < error("kmeans-8")
    assert error("kmeans-weighted", importance) < error("kmeans", importance)
    assert error("kmeans-blocks", importance) < error("nf4", importance)


def test_mean_squares_of_inputs(weights, tokens, squares):
    """Those of the first layer are the normed embeddings."""
    network, (ids, positions, _) = model.NumPyFloat32(weights, CONFIG), example.make_batch(tokens)
    x = model.NumPy.layer_norm(network.words[ids], *network.norm, network.eps, network.positions[positions])
    np.testing.assert_allclose(squares["encoder.layer.0.attention.self"], np.mean(x**2, axis=0), rtol=1e-5)
    assert len(squares) == 4 * CONFIG["num_hidden_layers"]


def test_torch_and_numpy_agree(weights, tokens):
    pytest.importorskip("torch")
    exact = embed_all(model.NumPyFloat32(weights, CONFIG), tokens, 100)
    np.testing.assert_allclose(embed_all(model.TorchFloat32(weights, CONFIG), tokens, 100), exact, atol=2e-5)


def test_padding_does_not_change_an_embedding(weights, tokens):
    """The module that other libraries convert sees sentences of 1 to 40 tokens as rows of 40."""
    torch = pytest.importorskip("torch")
    from minilm.padded import Padded, pad

    with torch.inference_mode():
        found = Padded(weights, CONFIG)(*map(torch.from_numpy, pad(tokens))).numpy()
    np.testing.assert_allclose(found, embed_all(model.NumPyFloat32(weights, CONFIG), tokens, 100), atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_do_not_change_an_embedding(tokens, networks, variant):
    network = networks[variant]
    np.testing.assert_array_equal(embed_all(network, tokens, 1), embed_all(network, tokens, 1000))


def test_linear_weights_are_smaller(weights, networks):
    """What is kept for each output weighs more here than in a large model."""
    exact = model.NumPyFloat32(weights, CONFIG).linear_bytes
    for (key, network), least in zip(networks.items(), (3.2,) + (5.5,) * 5 + (2.6,) * 3 + (5.5,) * 6, strict=True):
        assert exact / network.linear_bytes > least, key


def test_batches_hold_each_sentence_once_and_no_padding(tokens):
    groups = measure.make_groups(tokens, 60)
    assert sorted(i for group in groups for i in group) == list(range(len(tokens)))
    for group in groups:
        ids, positions, starts = example.make_batch([tokens[i] for i in group])
        for i, begin, end in zip(group, starts[:-1], starts[1:]):
            np.testing.assert_array_equal(ids[begin:end], tokens[i])
            np.testing.assert_array_equal(positions[begin:end], np.arange(end - begin))


def test_recall_counts_queries_whose_nearest_document_is_their_own():
    documents = np.eye(4, dtype=np.float32)
    queries = documents[[0, 1, 3, 2]]
    assert measure.recall_at_1(queries, documents) == 0.5


def test_standard_error_of_a_recall_is_that_of_a_share():
    assert [measure.standard_error(recall, 100) for recall in (0.0, 0.5, 1.0)] == [0, 0.05, 0]


def test_each_step_says_its_name_before_it_starts(capsys):
    with measure.step("counting", 3) as done:
        assert "counting" in capsys.readouterr().out
        done(3)


def test_docstrings_are_split_after_the_first_sentence():
    text = "f(x, y=1.0)\n\nReturn 1.5 times\nthe sum. Nothing else.\n\nNotes\n-----\nSome."
    assert corpus.split_docstring(text) == ("Return 1.5 times the sum.", "Nothing else.\n\nNotes\n-----\nSome.")
    assert corpus.split_docstring("") == ("", "")


def test_docstrings_of_numpy_and_scipy():
    docstrings = corpus.collect_docstrings()
    assert len(docstrings) > 1000
    assert len({d.query for d in docstrings}) == len(docstrings)
    assert {"numpy.linspace", "scipy.signal.butter"} <= {d.function for d in docstrings}
