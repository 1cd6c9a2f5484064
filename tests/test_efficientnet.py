"""The example, and its peers in bench/efficientnet, on a small random network of the same structure: no download."""

import io
import pickle
from types import SimpleNamespace

import efficientnet_data as data
import numpy as np
import pytest
from efficientnet import example
from efficientnet_float import Float32, fold, run, sum_of
from integers_only import run_in_integers

import qkernels as qk

WIDTHS = 16, 24, 24, 40  # of blocks: no expansion, stride 2, a sum, 5 x 5 with stride 2


def random_weights(rng):
    """Return the arrays of a network of four blocks, by PyTorch's names."""
    weights = {}

    def layer(prefix, conv, norm, shape):
        fan = np.sqrt(np.float32(np.prod(shape[1:])))
        weights[f"{prefix}{conv}.weight"] = rng.standard_normal(shape, np.float32) * 2 / fan
        for kind, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            weights[f"{prefix}{norm}.{kind}"] = rng.uniform(low, high, shape[0]).astype(np.float32)

    layer("", "_conv_stem", "_bn0", (16, 3, 3, 3))
    inner = 16
    for i, outer in enumerate(WIDTHS):
        prefix, depth, size = f"_blocks.{i}.", 3 * inner if i else inner, 5 if i == 3 else 3
        if i:
            layer(prefix, "_expand_conv", "_bn0", (depth, inner, 1, 1))
        layer(prefix, "_depthwise_conv", "_bn1", (depth, 1, size, size))
        layer(prefix, "_project_conv", "_bn2", (outer, depth, 1, 1))
        inner = outer
    layer("", "_conv_head", "_bn1", (96, inner, 1, 1))
    return weights


@pytest.fixture(scope="module")
def network():
    """(blocks, head, images)."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((96, 10), np.float32) / 10, rng.standard_normal(10, np.float32)
    images = rng.integers(0, 256, (32, 7, 7), np.uint8)
    return fold(random_weights(rng)), head, images


@pytest.fixture(scope="module")
def params(network):
    return example.calibrate(*network)


def test_blocks_have_strides_sums_and_groups(network):
    blocks, _, _ = network
    layers = {layer.name: layer for block in blocks for layer in block}
    assert [name for name, layer in layers.items() if layer.stride == 2] == ["stem", "1.depthwise", "3.depthwise"]
    assert [sum_of(block) for block in blocks] == [None, None, None, "2.sum", None, None]
    assert layers["3.expand"].source == "2.sum" and layers["head"].source == "3.project"
    assert {layer.groups for name, layer in layers.items() if "depthwise" not in name} == {1}
    assert layers["3.depthwise"].groups == 72 and layers["3.depthwise"].w.shape == (5, 5, 1, 72)


@pytest.mark.parametrize("observer", ["MinMax", "Percentile", "MSE", "Entropy"])
def test_integers_are_close_to_floats(network, params, observer):
    blocks, head, images = network
    pixels = data.resize(images, 64)
    exact, codes = (
        run(blocks, pixels, Float32(head)),
        run(blocks, pixels, example.Integers(blocks, head, params[observer])),
    )
    found = qk.dequantize(codes, params[observer]["logits"])
    assert codes.dtype == np.uint8
    least = {"Entropy": 0.97}.get(observer, 0.99)  # which sees noise in so few values, and clips it
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > least


def test_no_floats_on_the_way(network, params):
    blocks, head, images = network
    made = example.Integers(blocks, head, params["MinMax"])

    def infer(functions, pixels):
        made.qk = functions
        return run(blocks, pixels, made)

    least = 4096  # bytes: more than scales and biases of 96 filters
    assert run_in_integers(infer, data.resize(images, 64), least=least).dtype == np.uint8


def test_a_float_on_the_way_is_found(network, params):
    blocks, head, images = network
    made = example.Integers(blocks, head, params["MinMax"])

    def infer(functions, pixels):
        def add(a, of_a, b, of_b, to):
            return qk.quantize(qk.dequantize(a, of_a) + qk.dequantize(b, of_b), to)

        made.qk = SimpleNamespace(**{name: getattr(functions, name) for name in USED} | {"qadd": add})
        return run(blocks, pixels, made)

    with pytest.raises(AssertionError, match="bytes"):
        run_in_integers(infer, data.resize(images, 64), least=4096)


USED = "qconv2d", "qglobal_average_pool", "qlinear"


def test_a_filter_of_nothing_but_its_bias_keeps_it(network, params):
    blocks, head, images = network
    stem = blocks[0][0]
    w, bias = stem.w.copy(), stem.bias.copy()
    w[..., 3], bias[3] = 1e-12, 2
    changed = [[stem._replace(w=w, bias=bias)], *blocks[1:]]
    chosen, made = params["MinMax"], example.Integers(changed, head, params["MinMax"])
    stem_codes = made.convolve(data.resize(images, 64), changed[0][0])
    step = chosen["stem"].scale
    assert np.all(np.abs(qk.dequantize(stem_codes[..., 3], chosen["stem"]) - 2) <= step)


def test_size_counts_each_weight_as_one_byte(network, params):
    blocks, head, _ = network
    floats = Float32(head).nbytes(blocks)
    assert floats / 4 < example.Integers(blocks, head, params["MinMax"]).nbytes(blocks) < floats / 2


def test_onnxruntime_and_torch_have_the_floats_of_the_example(network):
    pytest.importorskip("onnxruntime")
    from efficientnet import peers

    blocks, head, images = network
    pixels = data.resize(images[:1], 64)
    exact = run(blocks, pixels, Float32(head))
    model = peers.model_of(blocks, head, 64)
    np.testing.assert_allclose(peers.Session(model)(pixels), exact, rtol=1e-3, atol=1e-3)
    features = run(blocks, pixels, Float32())
    np.testing.assert_allclose(peers.Session(peers.model_of(blocks, None, 64))(pixels), features, rtol=1e-3, atol=1e-3)
    found = peers.Session(
        peers.quantized(model, [peers.floats_of(data.resize(images[i : i + 1], 64)) for i in range(4)])
    )
    assert np.corrcoef(found(pixels).ravel(), exact.ravel())[0, 1] > 0.9
    pytest.importorskip("torch")
    np.testing.assert_allclose(peers.Torch(blocks, head)(pixels), exact, rtol=1e-3, atol=1e-3)


# ---- files ----


def test_weights_are_read_as_pytorch_wrote_them():
    torch = pytest.importorskip("torch")
    w = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    tensors = {"w": w, "part": torch.arange(10.0)[3:7], "count": torch.tensor(5)}
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    found = data.read_weights(file)
    assert list(found) == list(tensors)
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name].numpy())
        assert array.dtype == tensors[name].numpy().dtype


def test_what_else_is_pickled_is_not_run():
    with pytest.raises(KeyError):
        data.Unpickler(io.BytesIO(pickle.dumps(print))).load()


def test_a_package_of_debian_is_unpacked(tmp_path):
    import tarfile

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as files:
        member = tarfile.TarInfo("./usr/share/text")
        member.size = 5
        files.addfile(member, io.BytesIO(b"hello"))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inner.getvalue()}
    archive = b"!<arch>\n"
    for name, content in parts.items():
        archive += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    (tmp_path / "a.deb").write_bytes(archive)
    data.extract(tmp_path / "a.deb", tmp_path)
    assert (tmp_path / "usr/share/text").read_bytes() == b"hello"


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    with pytest.raises(SystemExit, match="is not the file"):
        data.fetched(data.DEB, lambda: (tmp_path / data.DEB).write_bytes(b"else"))


def test_enlarged_images_are_bilinear():
    images = np.uint8([[[0, 100], [200, 40]]])
    found = data.resize(images, 4)
    assert found.shape == (1, 4, 4, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, ..., 0], found[0, ..., 2])
    np.testing.assert_array_equal(found[0, 0, :, 1], [0, 25, 75, 100])
    assert found[0, 1, 1, 0] == np.rint(0.75 * (0.25 * 100) + 0.25 * (0.75 * 200 + 0.25 * 40))


def test_the_network_in_torch_gives_the_same_and_learns_in_two_bits(network):
    """Of labels that the float network gives."""
    pytest.importorskip("torch")
    import qat_efficientnet as qat

    blocks, head, _ = network
    images = np.random.default_rng(1).integers(0, 256, (256, 7, 7), np.uint8)
    x = qat.values(qat.Part(blocks[:-2]), images, "features")
    exact = qat.Part(blocks[-2:], head)
    logits = qat.in_parts(exact, x)
    np.testing.assert_allclose(logits, run(blocks, data.resize(images, qat.SIZE), Float32(head)), atol=1e-4)
    for kind in qat.BITS.values():
        tail, labels = qat.Part(blocks[-2:], head), logits.argmax(1)
        tail.quantize(kind)
        before = qat.accuracy(tail, x, labels)
        few = [len(w.unique()) for w in (q(w)[..., 0] for q, w in zip(tail.quantizers, tail.w) if len(w) == 1)]
        assert max(few) <= (4 if kind is qat.BITS["2 bits"] else 8)
        told = qat.learn(tail, x, labels, logits, "few bits", 10, (x, labels))
        assert len(told) == 10 and before + 0.8 * (1 - before) <= told[-1] == qat.accuracy(tail, x, labels)
        assert all((q.scale > 0).all() for q in tail.quantizers if hasattr(q, "scale"))
