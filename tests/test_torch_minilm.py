"""The example and the bench of MiniLM in PyTorch, on a tiny random model of the same structure."""

import io

import numpy as np
import pytest
from test_minilm import CONFIG, embed_all, tokens, weights  # noqa: F401

torch = pytest.importorskip("torch")

import torch_minilm  # noqa: E402
from minilm import model  # noqa: E402
from minilm.variants import VARIANTS  # noqa: E402

import qkernels as qk  # noqa: E402
from qkernels.torch import Linear  # noqa: E402


@pytest.fixture(scope="module")
def network(weights):  # noqa: F811
    return torch_minilm.model_of(weights, CONFIG)


@pytest.fixture(scope="module")
def exact(weights, tokens):  # noqa: F811
    return embed_all(model.NumPyFloat32(weights, CONFIG), tokens, 100)


def embed(network, tokens):  # noqa: F811
    return torch_minilm.embed(network, [model.example.make_batch(part) for part in (tokens[:3], tokens[3:])])


def test_floats_are_those_of_the_example_in_numpy(network, tokens, exact):  # noqa: F811
    np.testing.assert_allclose(embed(network, tokens), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", torch_minilm.RECIPES)
def test_quantized_models_point_where_floats_do(name, network, tokens, exact):  # noqa: F811
    made = torch_minilm.quantize(network, torch_minilm.RECIPES[name])
    kinds = [type(layer) for layer in made.modules()]
    assert kinds.count(Linear) == 8 and torch.nn.Linear not in kinds and torch.nn.GELU not in kinds
    found = embed(made, tokens)
    assert (found * exact).sum(axis=1).min() > (0.995 if name == "int8" else 0.9)


def test_int8_is_near_the_example_in_numpy(network, weights, tokens):  # noqa: F811
    made = torch_minilm.quantize(network, {"weights": "int8"})
    ours = embed_all(model.Quantized(weights, CONFIG, VARIANTS["int8"]), tokens, 100)
    found = embed(made, tokens)
    assert (found * ours).sum(axis=1).min() > 0.9999


def test_an_empty_model_is_filled(network, weights, tokens):  # noqa: F811
    options = torch_minilm.RECIPES["nf4, blocks of 64"]
    made, file = torch_minilm.quantize(network, options), io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = torch_minilm.quantize(torch_minilm.empty_model(weights, CONFIG), options)
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    np.testing.assert_array_equal(embed(other, tokens), embed(made, tokens))


@pytest.mark.filterwarnings("default")
def test_the_encoder_is_compiled_as_one_graph(network, tokens):  # noqa: F811
    made = torch_minilm.quantize(network, {"weights": "int8"})
    batch = [torch.from_numpy(part) for part in model.example.make_batch(tokens)]
    with qk.num_threads(1), torch.no_grad():
        x = made.norm(made.words(batch[0]))
        layer = torch.compile(made.layers[0], fullgraph=True, backend="aot_eager")
        assert torch.equal(layer(x, batch[2]), made.layers[0](x, batch[2]))


def test_the_bench_makes_a_table(monkeypatch, network, tokens):  # noqa: F811
    from minilm import torch as bench

    made = torch_minilm.quantize(network, {"weights": "int8"})
    names = [bench.WHOLE + bench.FLOAT, bench.WHOLE + bench.TORCH]
    monkeypatch.setattr(bench, "FLOAT", names[0]), monkeypatch.setattr(bench, "TORCH", names[1])
    monkeypatch.setattr(bench, "models", lambda: dict(zip(names, (network, made))))
    runners = bench.race_batch(tokens, 2)
    assert all(runner.seconds > 0 and runner.read().shape == (len(tokens), 64) for runner in runners)
    found = bench.table({"batch": dict(zip(names, (1.0, 0.5)))}, {name: [1.0] for name in names})
    assert found["lines"][0][1] == "0.50x" and found["lines"][1][1:] == ["1.00x", "1.0000"]
