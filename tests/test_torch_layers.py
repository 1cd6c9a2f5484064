"""Layers of PyTorch on packed weights: the bits of arrays, the rules of torch, and what else models do to modules."""

import copy
import io
import pickle
import weakref

import numpy as np
import pytest
from common import output, refusals, refuse
from numpy.testing import assert_array_equal

torch = pytest.importorskip("torch")

from functorch.compile import make_boxed_func  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import qkernels as qk  # noqa: E402
from qkernels.torch import Conv2d, Linear, attention, fake_quantize, quantize_module  # noqa: E402

nn = torch.nn
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def kmeans(w, k=16):
    codebook = qk.Codebook.fit(w, k, axis=1)
    return qk.pack(qk.encode(w, codebook), codebook)


WEIGHTS = {
    "int8": dict(weights="int8"),
    "uint8": dict(weights=np.uint8),
    "int16": dict(weights="int16"),
    "int8 blocks": dict(weights="int8", block_size=16),
    "uint4": dict(weights="uint4"),
    "int4, whole": dict(weights="uint4", method="mse", scale_bits=4),
    "int2": dict(weights="int2", block_size=48),
    "float4": dict(weights="float4_e2m1fn", method="mx"),
    "nf4": dict(weights="nf4"),
    "codebook": dict(weights=qk.Codebook([-0.2, -0.05, 0.1, 0.3])),
    "function": dict(weights=kmeans, k=8),
    "bfloat16": dict(weights="bfloat16"),
    "float16": dict(weights="float16"),
}


def dense(bias=True, inputs=96, outputs=40):
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias)


def images(*shape, dtype=torch.float32, last=False):
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype).contiguous(
        memory_format=torch.channels_last if last else torch.preserve_format
    )


CONVS = {
    "3 x 3": (dict(padding=1), (3, 16, 3)),
    "stride": (dict(stride=2, padding=(1, 0), bias=False), (3, 16, (3, 2))),
    "dilated": (dict(dilation=(1, 2), padding="same"), (8, 4, (3, 4))),
    "groups": (dict(groups=4), (8, 12, 3)),
    "depthwise": (dict(groups=16, padding=2), (16, 16, 5)),
    "1 x 1": (dict(padding="valid"), (8, 32, 1)),
}


def conv(name):
    torch.manual_seed(len(name))
    options, arguments = CONVS[name]
    return nn.Conv2d(*arguments, **options)


# ---- values ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_dense_layer_has_the_bits_of_linear_and_the_dtype_of_its_input(name, dtype):
    layer = dense()
    made = Linear.from_float(layer, **WEIGHTS[name])
    x = torch.randn(2, 5, 96).to(dtype)
    want = qk.linear(x.float().numpy(), made.weight.packed, layer.bias.detach().numpy())
    assert torch.equal(made(x), torch.from_numpy(want).to(dtype))
    assert torch.equal(torch.ops.qkernels.linear(x, made.weight.number, made.bias, None, 40), made(x))
    exact = x.double() @ made.weight.dequantize().T.double() + layer.bias.double()
    few = made.weight.packed.level_error
    assert (exact - made(x)).norm() < (0.03 + 3 * few) * exact.norm()


def test_weights_are_those_of_choose_qparams_and_pack():
    layer = dense()
    w = layer.weight.detach().numpy().T
    params = qk.choose_qparams(w, "int8", axis=1)
    found = Linear.from_float(layer).weight.packed
    assert_array_equal(found.unpack(), qk.quantize(w, params))
    assert found.params == params
    blocks = Linear.from_float(layer, "uint4", method="mse").weight.packed.params
    assert blocks == qk.choose_qparams(w, "uint4", axis=0, block_size=32, method="mse")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_is_exact_on_the_codes_of_each_image(name, last):
    layer = conv(name)
    made = Conv2d.from_float(layer)
    x = images(3, layer.in_channels, 11, 9, last=last)
    x[1] *= 100
    y = made(x)
    assert y.shape == layer(x).shape and y.is_contiguous(memory_format=torch.channels_last)
    w = made.weight.dequantize().double()
    for i, image in enumerate(x):
        codes, params = qk.dynamic_quantize(image.numpy())
        seen = torch.from_numpy(qk.dequantize(codes, params, dtype=np.float64))
        bias = None if layer.bias is None else layer.bias.double()
        want = layer._conv_forward(seen[None], w, bias)[0]
        torch.testing.assert_close(y[i].double(), want, rtol=1e-6, atol=1e-6 * want.abs().max().item())
        assert torch.equal(made(image), y[i])  # whatever else is in the batch
    assert (y - layer(x)).norm() < 0.02 * y.norm()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_convolutions_of_other_dtypes(dtype):
    made = Conv2d.from_float(conv("3 x 3"))
    x = images(2, 3, 8, 8, dtype=dtype)
    assert torch.equal(made(x), made(x.float()).to(dtype))


@pytest.mark.parametrize("of_x, of_w", [(1e-30, 1e-15), (1e30, 1e30), (1e-20, 1e-25), (3e38, 1e-30)])
def test_magnitudes_are_not_lost(of_x, of_w):
    layer = nn.Conv2d(2, 3, 1, bias=False)
    layer.weight.data = torch.sign(layer.weight.data) * of_w
    x = torch.full((1, 2, 2, 2), of_x)
    x[..., 1, 1] = 0
    found = Conv2d.from_float(layer)(x).double()
    want = layer.double()(x.double()).clamp(-torch.finfo().max, torch.finfo().max)
    seen = want.abs() <= 3e38 * (want.abs() > 2e-45)
    assert not found.isnan().any() and (found[..., 1, 1] == 0).all()
    torch.testing.assert_close(found[seen], want[seen], rtol=0.02, atol=2e-45)


def test_empty_tensors_and_strides():
    made, windows = Linear.from_float(dense()), Conv2d.from_float(conv("3 x 3"))
    assert made(torch.zeros(0, 96)).shape == (0, 40) and made(torch.zeros(3, 0, 96)).shape == (3, 0, 40)
    assert windows(torch.zeros(0, 3, 8, 8)).shape == (0, 16, 8, 8)
    x = torch.randn(96, 7)
    assert torch.equal(made(x.T), made(x.T.contiguous()))
    assert torch.equal(made(x[:, 0]), made(x.T)[0])


# ---- the rules of torch ----


def test_tensors_that_are_not_what_their_memory_says():
    """Negated lazily, of one row's memory, turned, with a gradient that nobody wants: bits are those of a copy."""
    layer = torch.nn.Linear(6, 5)
    made = Linear.from_float(layer)
    x = torch.randn(6, 6)
    pairs = torch.view_as_complex(torch.randn(6, 6, 2))
    for given in x.T, x[:1].expand(4, 6), x[::2], pairs.real, pairs.conj().imag, x.clone().requires_grad_():
        with torch.no_grad():
            assert torch.equal(
                made(given), made(given.detach().resolve_neg().clone(memory_format=torch.contiguous_format))
            )
    expected = made(x)
    made.bias.data = torch.view_as_complex(torch.stack([layer.bias, layer.bias], 1).detach()).conj().imag
    assert made.bias.is_neg() and torch.allclose(made(x), expected - 2 * layer.bias, atol=1e-5)
    for _ in range(2):
        assert torch.equal(made(x), made.from_packed(made.weight.packed, made.bias.detach().resolve_neg().clone())(x))


@pytest.mark.parametrize("grad", [False, True])
def test_operators_keep_the_rules_of_torch(grad):
    """Schemas, fake tensors, autograd and dynamic shapes, as torch itself checks them."""
    ops = torch.ops.qkernels
    made, windows = Linear.from_float(dense(), "uint4"), Conv2d.from_float(conv("stride"))
    with_bias = Conv2d.from_float(conv("groups"))
    made.bias.requires_grad_(grad), with_bias.bias.requires_grad_(grad)
    x = torch.randn(3, 96, requires_grad=grad)
    torch.library.opcheck(ops.linear.default, (x, made.weight.number, made.bias, None, 40))
    torch.library.opcheck(ops.linear.default, (x, made.weight.number, made.bias, "gelu", 40))
    torch.library.opcheck(ops.linear_plain.default, (x.detach(), made.weight.number, made.bias.detach(), None, 40))
    torch.library.opcheck(ops.linear_grad.default, (torch.randn(3, 40), made.weight.number, 96))
    for layer in windows, with_bias:
        x = images(2, layer.in_channels, 9, 9).requires_grad_(grad)
        arguments = layer.weight.number, layer.bias, layer.out_channels, *layer.window
        torch.library.opcheck(ops.conv2d.default, (x, *arguments))
        torch.library.opcheck(ops.conv2d.default, (x[0].detach().requires_grad_(grad), *arguments))
        y = layer(x).detach()
        torch.library.opcheck(ops.conv2d_grad.default, (y, layer.weight.number, [*x.shape], *layer.window))


@pytest.mark.parametrize("weights", ["int8", "uint4", "nf4", "float16"])
def test_gradients_are_those_of_the_weights_that_packed_ones_stand_for(weights):
    made = Linear.from_float(dense(), weights)
    x, grad = torch.randn(2, 5, 96, requires_grad=True), torch.randn(2, 5, 40)
    made.bias.requires_grad_()
    made(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ made.weight.dequantize())
    torch.testing.assert_close(made.bias.grad, grad.sum((0, 1)))


ACTIVATIONS = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_a_layer_and_its_gradients_are_those_after_it(name):
    plain, made = Linear.from_float(dense()), Linear.from_float(dense(), activation=name)
    plain.bias.requires_grad_(), made.bias.requires_grad_()
    x, grad = torch.randn(3, 96, requires_grad=True), torch.randn(3, 40)
    found = [made(x), ACTIVATIONS[name](plain(x))]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert torch.equal(made(x.detach()), found[0])
    assert torch.equal(torch.compile(made, backend="aot_eager")(x), found[0])
    gradients = [torch.autograd.grad(y, (x, layer.bias), grad) for y, layer in zip(found, (made, plain))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("starts", [None, [0, 7, 7, 20]])
def test_attention_is_that_of_arrays_and_has_the_gradients_of_floats(starts, dtype):
    torch.manual_seed(0)
    wide, grad = torch.randn(20, 3 * 48).to(dtype).requires_grad_(), torch.randn(20, 48).to(dtype)
    q, k, v = wide.chunk(3, 1)
    where = None if starts is None else torch.tensor(starts)
    y = attention(q, k, v, 4, starts=where, scale=0.2)
    rows = (x.detach().float().numpy() for x in (q, k, v))
    assert_array_equal(
        y.detach().double(), torch.from_numpy(qk.attention(*rows, 4, starts=starts, scale=0.2)).to(dtype).double()
    )
    exact = []
    for begin, end in zip((starts or [0, 20]), (starts or [0, 20])[1:]):
        heads = (x[begin:end].double().unflatten(1, (4, -1)).transpose(0, 1) for x in (q, k, v))
        exact.append(nn.functional.scaled_dot_product_attention(*heads, scale=0.2).transpose(0, 1).flatten(1))
    found, want = (torch.autograd.grad(z, wide, g)[0] for z, g in ((y, grad), (torch.cat(exact), grad.double())))
    tolerance = 0.02 if dtype is torch.bfloat16 else 2e-3
    torch.testing.assert_close(found, want.to(dtype), rtol=tolerance, atol=tolerance)
    if dtype is torch.float32:
        arguments = q.detach(), k.detach(), v.detach(), where, 4, None
        torch.library.opcheck(torch.ops.qkernels.attention.default, arguments)
        torch.library.opcheck(torch.ops.qkernels.attention_grad.default, (grad, *arguments))


@pytest.mark.parametrize("name", CONVS)
def test_gradients_of_convolutions(name):
    layer = conv(name)
    made = Conv2d.from_float(layer)
    layer.weight.data = made.weight.dequantize()
    x = images(2, layer.in_channels, 12, 10).requires_grad_()
    y = made(x)
    grad = torch.randn(y.shape)
    found = torch.autograd.grad(y, x, grad)
    image = x[1].detach().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(made(image), image, grad[1])[0], found[0][1])
    torch.testing.assert_close(found, torch.autograd.grad(layer(x), x, grad), rtol=1e-4, atol=1e-5)


def test_second_gradients_are_refused():
    x = torch.randn(2, 96, requires_grad=True)
    (grad,) = torch.autograd.grad((Linear.from_float(dense())(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="packed layers have no second gradients"):
        torch.autograd.grad(grad.sum(), x)


def test_second_gradients_of_attention_are_refused():
    x = torch.randn(6, 32, requires_grad=True)
    (grad,) = torch.autograd.grad((attention(x, x, x, 4) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="attention and packed layers have no second gradients"):
        torch.autograd.grad(grad.sum(), x)


FORWARD = {
    "Linear": (Linear.from_float(dense()), torch.randn(2, 96)),
    "Conv2d": (Conv2d.from_float(conv("3 x 3")), torch.randn(1, 3, 8, 8)),
    "attention": (lambda x: attention(x, x, x, 4), torch.randn(6, 32)),
    "fake_quantize": (lambda x: fake_quantize(x, torch.tensor(0.1)), torch.randn(3)),
}


@pytest.mark.filterwarnings("default")  # of modules that torch imports
@pytest.mark.parametrize("name", FORWARD)
def test_gradients_in_forward_mode_are_refused(name):
    call, x = FORWARD[name]
    with pytest.raises(RuntimeError, match="no gradients in forward mode"):
        torch.func.jvp(call, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no gradients in forward mode"):
        call(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["Linear", "Conv2d", "attention"])
def test_gradients_by_torch_func_are_refused_and_of_vmap_are_there(name):
    call, x = FORWARD[name]
    with pytest.raises(RuntimeError, match="gradients by torch.autograd, not by torch.func"):
        torch.func.grad(lambda x: call(x).sum())(x)
    batch = torch.stack([x, 2 * x]).requires_grad_()
    found, want = torch.func.vmap(call)(batch), torch.stack([call(item) for item in batch])
    assert torch.equal(found, want)
    grad = torch.randn(found.shape)
    torch.testing.assert_close(*(torch.autograd.grad(y, batch, grad)[0] for y in (found, want)))


def test_graphs_hold_operators_without_gradients():
    """torch.library's gradients would cost each call; a graph with gradients has them in its backward part."""
    graphs = []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return make_boxed_func(graph.forward)

    model, x = quantize_module(network()), images(2, 3, 8, 8)
    for grad in False, True:
        graphs.clear()
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=backend))
        assert torch.equal(compiled(x.requires_grad_(grad)), model(x))
        plain = {"qkernels.linear_plain.default", "qkernels.conv2d_plain.default"}
        assert plain <= graphs[0] and not {"qkernels.linear.default", "qkernels.conv2d.default"} & graphs[0]


def test_other_layers_learn_through_a_packed_one():
    """As an adapter does beside frozen weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 96), quantize_module(dense(), "uint4"), nn.Linear(40, 1))
    x = torch.randn(64, 16)
    target = x.sum(1, keepdim=True)
    optimizer, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01), []
    for _ in range(40):
        loss = ((model(x) - target) ** 2).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), dense(inputs=8 * 36)
    ).eval()


@pytest.mark.filterwarnings("default")  # of modules that inductor imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_model_is_compiled_as_one_graph(backend, grad):
    model = quantize_module(network())
    x = images(2, 3, 8, 8).requires_grad_(grad)
    try:
        found = torch.compile(model, fullgraph=True, backend=backend)(x)
    except Exception as error:
        if backend == "inductor" and "compiler" in str(error).lower():
            pytest.skip("no compiler for inductor")
        raise
    assert torch.equal(found, model(x))
    if grad:
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, model(x))))


def test_layers_share_a_graph_and_new_weights_need_none():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    layers = [Linear.from_float(dense(), weights) for weights in ("int8", "uint4", "nf4")]
    call = torch.compile(lambda layer, x: layer(x), backend=backend, fullgraph=True, dynamic=False)
    x = torch.randn(2, 96)
    for layer in layers:
        assert torch.equal(call(layer, x), layer(x))
    layers[0].load_state_dict(layers[1].state_dict())
    assert torch.equal(call(layers[0], x), layers[1](x))
    assert len(graphs) == 1


@pytest.mark.filterwarnings("default")
def test_a_model_is_exported():
    model, x = quantize_module(network()), images(2, 3, 8, 8)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    inference = exported.run_decompositions().module()
    assert torch.equal(inference(x), model(x))
    x.requires_grad_()
    wanted = torch.autograd.grad(model(x).sum(), x)[0]
    for net in exported.module(), inference:
        assert torch.equal(torch.autograd.grad(net(x).sum(), x)[0], wanted)
    with torch.no_grad():
        assert torch.equal(inference(x), model(x))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["linear", "conv2d", "attention"])
def test_a_graph_for_inference_has_gradients_after_all(kind):
    x = torch.randn(2, 3, 8, 8) if kind == "conv2d" else torch.randn(6, 96)
    bias = torch.randn(4, requires_grad=True)
    window = [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]
    if kind == "linear":
        made = Linear.from_float(dense(), activation="gelu")
        args = made.weight.number, made.bias, "gelu", 40
    elif kind == "conv2d":
        made = Conv2d.from_float(torch.nn.Conv2d(3, 4, 3, padding=1))
        args = made.weight.number, bias, 4, *window
    else:
        args = x, x, None, 4, None
    found = []
    for name in kind, f"{kind}_plain":
        tensor = x.clone().requires_grad_()
        y = getattr(torch.ops.qkernels, name)(tensor, *args)
        found.append((y, *torch.autograd.grad(y.square().sum(), [tensor, bias] if kind == "conv2d" else [tensor])))
    assert all(map(torch.equal, *found))


@pytest.mark.filterwarnings("default")
def test_transforms_and_traces_see_an_operator():
    layer, x = Linear.from_float(dense()), torch.randn(3, 5, 96)
    assert torch.equal(torch.func.functionalize(layer)(x), layer(x))
    assert torch.equal(torch.func.vmap(layer)(x), layer(x))
    traced = torch.jit.trace(layer, (x,))
    assert torch.equal(traced(2 * x), layer(2 * x))
    with FlopCounterMode(display=False):
        assert torch.equal(layer(x), traced(x))
    symbolic = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), layer))
    assert torch.equal(symbolic(x), layer(x.relu()))
    model = quantize_module(network())
    assert torch.equal(torch.fx.symbolic_trace(model)(x := images(2, 3, 8, 8)), model(x))
    x = torch.randn(3, 5, 96)
    meta = layer(x.to("meta"))
    assert meta.is_meta and meta.shape == (3, 5, 40)


def test_the_bias_may_change_in_every_way():
    layer, x = Linear.from_float(dense()), torch.randn(2, 96)
    without = layer(x) - layer.bias

    def check():
        torch.testing.assert_close(layer(x), without + layer.bias, rtol=1e-6, atol=1e-6)

    check()
    with torch.no_grad():
        layer.bias += 1
    check()
    layer.bias.data = torch.randn(40)
    check()
    layer.bias = nn.Parameter(torch.randn(40), requires_grad=False)
    check()
    layer.to(torch.bfloat16)
    with torch.no_grad():
        layer.bias += 1
    check()
    layer.to(torch.float32).bias.requires_grad_()
    layer(x).sum().backward()
    assert layer.bias.grad.eq(2).all()


def test_a_bias_in_the_same_memory_is_another():
    layer, x = Linear.from_float(dense()), torch.randn(2, 96)
    without = layer(x) - layer.bias
    memory = torch.randn(80)
    for bias in memory[:40], memory[::2], memory[:40].view(torch.bfloat16)[:40], memory[:40]:
        layer.bias.data = bias
        torch.testing.assert_close(layer(x), without + layer.bias, rtol=1e-6, atol=1e-6)
    layer.bias.data = memory[:20]
    with pytest.raises(ValueError, match=r"bias must have shape \(40,\)"):
        layer(x)


def test_a_bias_of_another_dtype_is_refused():
    """Before a call on floats and after, when their array is kept."""
    for dtype in torch.int32, torch.bool, torch.complex64:
        layer, x = Linear.from_float(dense()), torch.randn(2, 96)
        for _ in range(2):
            floats, layer.bias.data = layer.bias.data, layer.bias.data.to(dtype)
            with pytest.raises(TypeError, match=f"bias must be float32, float64, float16 or bfloat16, got {dtype}"):
                layer(x)
            layer.bias.data = floats
            layer(x)


def test_a_bias_that_is_an_array_is_refused():
    packed = qk.pack(np.eye(4, dtype=np.int8), qk.QParams(1))
    with pytest.raises(TypeError, match="bias must be a tensor or None, got ndarray"):
        Linear.from_packed(packed, np.zeros(4, np.float32))


def test_a_bias_may_be_computed():
    x = torch.randn(2, 96)
    pruned, twice = Linear.from_float(dense()), Linear.from_float(dense())
    without = pruned(x) - pruned.bias
    prune.random_unstructured(pruned, "bias", 0.5)
    parametrize.register_parametrization(twice, "bias", nn.Softplus())
    assert (pruned.bias == 0).sum() == 20
    for layer in pruned, twice:
        torch.testing.assert_close(layer(x), without + layer.bias, rtol=1e-6, atol=1e-6)


def test_one_row_has_a_gradient_of_the_bias():
    layer = Linear.from_float(dense())
    layer.bias.requires_grad_()
    layer(torch.randn(96)).backward(grad := torch.randn(40))
    assert torch.equal(layer.bias.grad, grad)


def test_weights_of_another_layer_are_taken():
    layer, other, x = Linear.from_float(dense()), Linear.from_float(dense(), "uint4"), torch.randn(2, 96)
    layer.weight = other.weight
    for made in layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert torch.equal(made(x), other(x))


# ---- saved, copied and moved ----


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_state_dict_of_plain_tensors_is_loaded(name):
    made, x = Linear.from_float(dense(), **WEIGHTS[name]), torch.randn(3, 96)
    state = torch.load(saved(made.state_dict()), weights_only=True)
    assert {type(value) for value in state.values()} == {torch.Tensor}
    again = Linear(96, 40)
    assert repr(again.weight) == "PackedWeight(empty)"
    again.load_state_dict(state)
    assert torch.equal(again(x), made(x)) and repr(again) == repr(made)
    assert again.weight.nbytes == made.weight.nbytes == made.weight.packed.nbytes


def test_a_model_is_saved_copied_and_pickled():
    model, x = quantize_module(network()), images(2, 3, 8, 8)
    y = model(x)
    other = quantize_module(nn.Sequential(*(copy.deepcopy(layer) for layer in network())).to("meta"))
    other.load_state_dict(torch.load(saved(model.state_dict()), weights_only=True), assign=True)
    whole = torch.load(saved(model), weights_only=False)
    for made in other, whole, copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert torch.equal(made(x), y)
        assert torch.equal(torch.compile(made, backend="aot_eager")(x), y)


def test_a_pickle_runs_in_another_process(tmp_path):
    model, x = quantize_module(network()), images(2, 3, 8, 8)
    torch.save((model, x, model(x)), tmp_path / "model.pt")
    code = f"""
        import torch
        import qkernels.torch
        model, x, y = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        print(torch.equal(model(x), y), torch.equal(torch.compile(model, backend="aot_eager")(x), y))
    """
    assert output(code) == "True True"


def test_models_are_moved_to_other_dtypes():
    model = quantize_module(network()).to(torch.bfloat16)
    x = images(2, 3, 8, 8)
    y = model(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - quantize_module(network())(x)).norm() < 0.02 * y.float().norm()


def test_a_number_without_weights_is_refused():
    layer = Linear.from_float(dense())
    number, weights = layer.weight.number.clone(), weakref.ref(layer.weight.number.held)
    assert torch.ops.qkernels.linear(torch.randn(2, 96), number, None, None, 40).shape == (2, 40)
    del layer
    assert weights() is None
    with pytest.raises(ValueError, match="weight must stand for packed weights that a module"):
        torch.ops.qkernels.linear(torch.randn(2, 96), number, None, None, 40)


GOOD = Linear.from_float(dense(), "uint4").state_dict()
HOSTILE = {
    "nothing": ({}, "Missing key.*weight"),
    "missing": ({key: GOOD[key] for key in GOOD if "scale" not in key}, "got no scale"),
    "floats": (dense().state_dict(), r"Missing key.*weight(.|\n)*Unexpected key.*weight"),
    "more": (GOOD | {"weight.more": torch.ones(1), "weight.scale": torch.ones(1)}, "Unexpected key.*weight.more"),
    "strange": (GOOD | {"weight.codes": "codes"}, "weight: codes must be"),
    "short": (GOOD | {"weight.codes": GOOD["weight.codes"][:-1]}, "weight: codes must have shape"),
    "shape": (GOOD | {"weight.shape": torch.tensor([96, -40])}, "weight: "),
    "huge": (GOOD | {"weight.shape": torch.tensor([2**62, 2**62])}, "weight: codes must have shape"),
    "NaN": (GOOD | {"weight.scale": GOOD["weight.scale"] * float("nan")}, "weight: scale must be"),
    "negative": (GOOD | {"weight.scale": -GOOD["weight.scale"]}, "weight: scale must be positive"),
    "meta": ({key: value.to("meta") for key, value in GOOD.items()}, "weight: .*meta"),
    "another layer": (Linear.from_float(dense(inputs=64)).state_dict(), r"weight must have shape \(96, 40\)"),
    "a convolution": (
        Conv2d.from_float(conv("1 x 1")).state_dict(),
        r"weight: (.|\n)*Unexpected key.*weight.groups|Unexpected key.*weight.groups(.|\n)*weight: ",
    ),
    "giant": (GOOD | {"weight.scale": torch.ones(()).expand(2**20, 2**20)}, "weight: scale must have memory for all"),
}


def test_safetensors_hold_a_state_dict(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    made, x = Linear.from_float(dense(), "uint4"), torch.randn(2, 96)
    safetensors.save_file(made.state_dict(), tmp_path / "layer.safetensors")
    again = Linear(96, 40)
    again.load_state_dict(safetensors.load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(again(x), made(x))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_state_dicts_are_refused_and_leave_the_weights(name):
    state, words = HOSTILE[name]
    layer = Linear.from_float(dense())
    packed = layer.weight.packed
    with pytest.raises(RuntimeError, match=words):
        layer.load_state_dict(state)
    assert layer.weight.packed is packed


@pytest.mark.parametrize("layer", [Linear.from_float(dense()), Conv2d.from_float(conv("3 x 3"))], ids=repr)
def test_strange_keys_are_refused_or_else_passed_over(layer):
    other = copy.deepcopy(layer)
    state = layer.state_dict() | {"weight.levels_": torch.ones(1), "weight.strange": torch.ones(1)}
    with pytest.raises(RuntimeError, match="Unexpected key.*weight.levels_.*weight.strange"):
        other.load_state_dict(state)
    packed = other.weight.packed
    assert other.load_state_dict(state, strict=False).unexpected_keys == ["weight.levels_", "weight.strange"]
    assert other.weight.packed is not packed
    with pytest.raises(RuntimeError, match="Unexpected key.*weight.bits"):
        Conv2d.from_float(conv("3 x 3")).load_state_dict(CONV_STATE | {"weight.bits": torch.tensor(3)})


CONV_STATE = Conv2d.from_float(conv("3 x 3")).state_dict()


def test_layers_are_made_on_the_cpu_whatever_is_the_default():
    layer, x = dense(), torch.randn(2, 96)
    with torch.device("meta"):
        made = Linear.from_float(layer)
    assert torch.equal(made(x), Linear.from_float(layer)(x))


# ---- models ----


def kinds(model):
    return {name: type(layer) for name, layer in model.named_modules() if type(layer) in (Linear, Conv2d)}


def test_a_model_is_copied_without_its_weights_or_changed_in_place():
    model = network()
    names = [*kinds(made := quantize_module(model))]
    assert names == ["0", "2", "4"] and kinds(model) == {} and not made.training
    assert made[1] is not model[1]
    changed = quantize_module(model, inplace=True)
    assert changed is model and [*kinds(model)] == names
    assert type(quantize_module(dense(), inplace=True)) is Linear
    assert quantize_module(network().train()).training


def test_recipes_name_layers():
    def found(recipe):
        layers = quantize_module(model, recipe).named_modules()
        return {name: repr(layer.weight) for name, layer in layers if type(layer) in (Linear, Conv2d)}

    model = nn.ModuleDict({"body": nn.Sequential(dense(), nn.GELU(), dense()), "head": dense(), "stem": conv("1 x 1")})
    four, eight = "PackedWeight(uint4, block_size=32)", "PackedWeight(int8)"
    whole = {"body.0": eight, "body.2": eight, "head": eight, "stem": eight}
    assert found("int8") == found(lambda name, layer: "int8") == whole
    assert found({"body.*": "uint4", "stem": "int8"}) == {"body.0": four, "body.2": four, "stem": eight}
    assert found({"head": None, nn.Linear: {"weights": "nf4"}}) == dict.fromkeys(
        ("body.0", "body.2"), "PackedWeight(16 levels, block_size=64)"
    )
    assert found({nn.Linear: kmeans})["head"] == "PackedWeight(16 levels)"
    assert found(lambda name, layer: {"weights": "uint4", "block_size": 16} if name == "head" else None) == {
        "head": "PackedWeight(uint4, block_size=16)"
    }


def test_recipes_may_be_types_and_name_each_name_of_a_layer():
    shared = dense(inputs=40)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert type(quantize_module(model, np.uint8)[0]) is Linear
    assert quantize_module(model, {"2": "uint8", nn.Linear: None})[0].weight.packed.dtype == np.uint8
    assert kinds(quantize_module(model, {"0": None, nn.Linear: "int8"})) == {}
    names = nn.Sequential()
    names._modules["a[0]"] = dense()
    assert [*kinds(quantize_module(names, {"a[0]": "int8"}))] == ["a[0]"]


def test_errors_of_functions_keep_their_text():
    def decode(w):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no")

    with pytest.raises(ValueError, match="^0: 'utf-8' codec can't decode"):
        quantize_module(nn.Sequential(dense()), lambda name, layer: decode)


def hooked(add):
    layer = dense()
    add(layer)
    return nn.Sequential(layer)


ADDITIONS = {
    "_forward_hooks": lambda layer: layer.register_forward_hook(lambda *_: None),
    "_forward_pre_hooks": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "_backward_hooks": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "forward": lambda layer: setattr(layer, "forward", lambda x: x),
    "a weight that is no parameter": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_what_would_be_lost_is_refused(name):
    model = hooked(ADDITIONS[name])
    with pytest.raises(ValueError, match=f"^0: layer must be plain, got .*{name}"):
        quantize_module(model)
    assert type(quantize_module(model, {"0": None}, inplace=True)[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_of_a_norm_are_not_taken_before_it():
    with pytest.raises(ValueError, match="^0: layer must be plain, got .*a weight that is no parameter"):
        quantize_module(hooked(nn.utils.weight_norm))


def test_layers_of_two_names_stay_one():
    shared = dense(inputs=40)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    for made in quantize_module(model), quantize_module(model, inplace=True):
        assert type(made[0]) is Linear and made[0] is made[2]


def test_layers_of_torch_that_fuse_their_own_call_ours():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    made, x = quantize_module(model), torch.randn(2, 5, 32)
    assert len(kinds(made)) == 4  # not those that attention reads itself
    with torch.no_grad():
        assert 0 < (made(x) - model(x)).abs().max() < 0.05


LAYER, X, W = Linear.from_float(dense()), torch.ones(2, 96), qk.pack(np.eye(3, dtype=np.int8), qk.QParams(1))
REFLECT, NAN = nn.Conv2d(1, 1, 3, padding_mode="reflect"), dense()
NAN.weight.data[3, 5] = float("nan")
NARROW = Conv2d.from_float(conv("3 x 3"))
NARROW.bias.data = torch.ones(1)


@refusals(r"""
LAYER(torch.ones(2, 95))  # ValueError: x must have 96 columns
LAYER(X * float("nan"))  # ValueError: NaN
LAYER(X.int())  # TypeError: x must be float32, float64, float16 or bfloat16, got torch.int32
Linear(3, 4)(torch.ones(1, 3))  # ValueError: weight is empty until load_state_dict
Linear(3, 4).state_dict()  # ValueError: weight is empty until load_state_dict
Linear.from_float(nn.Conv2d(1, 1, 1))  # TypeError: layer must be a torch.nn.Linear, got Conv2d
Linear.from_float(dense(), "int5")  # TypeError: dtype must be
Linear.from_float(dense(), "int8", method="best")  # ValueError: method must be
Linear.from_float(dense(), lambda w: w)  # TypeError: weight must be a PackedMatrix, got ndarray
Linear.from_float(dense(), lambda w: W)  # ValueError: weight must have shape \(96, 40\), got \(3, 3\)
Linear(3, 4, activation="tanh")  # ValueError: activation must be None, 'relu', .* got 'tanh'
attention(X, X, X, 5)  # ValueError: heads
attention(X, X, X[:1], 4)  # ValueError: v must have shape
attention(X, X.int(), X, 4)  # TypeError: k must be float32
Linear.from_packed(X)  # TypeError: packed must be a PackedMatrix, got Tensor
Linear.from_packed(W, torch.ones(4))  # ValueError: bias must have shape \(3,\), got \(4,\)
Linear.from_packed(W, torch.ones(3).int())  # TypeError: bias must be float32, .* got torch.int32
Linear.from_packed(W, torch.ones(3) * 1j)  # TypeError: bias must be float32, .* got torch.complex64
Linear(96.0, 40)  # TypeError: in_features must be an integer, got 96.0
Linear(-1, 4)  # ValueError: in_features must be at least 0, got -1
Conv2d(1, 1, 1, stride=0)  # ValueError: stride must be at least 1, got 0
Conv2d(1, 1, 1, padding=-1)  # ValueError: padding must be at least 0, got -1
Conv2d(1, 1, 1, dilation=0)  # ValueError: dilation must be at least 1, got 0
NARROW(images(1, 3, 8, 8))  # ValueError: bias must have shape \(16,\), got \(1,\)
Conv2d.from_float(conv("3 x 3"))(torch.ones(0, 4, 8, 8))  # ValueError: q must have 3 channels
Conv2d.from_float(REFLECT)  # ValueError: layer must pad with zeros, got padding_mode='reflect'
Conv2d.from_float(dense())  # TypeError: layer must be a torch.nn.Conv2d, got Linear
Conv2d.from_float(conv("1 x 1"), "int4")  # TypeError: w must be int8 or uint8, got int4
Conv2d.from_float(nn.Conv2d(33_026, 1, 1))  # ValueError: weight must have at most 33025 inputs a filter
Conv2d.from_float(conv("3 x 3"))(torch.ones(1, 3, 1, 1, 1))  # ValueError: x must have shape \(N, C, H, W\)
Conv2d.from_float(conv("3 x 3"))(torch.ones(1, 4, 8, 8))  # ValueError: q must have 3 channels
Conv2d.from_float(conv("groups"))(torch.ones(1, 8, 2, 2))  # ValueError: packed must fit the padded image
quantize_module(3)  # TypeError: model must be a torch.nn.Module, got int
quantize_module(nn.Sequential(NAN))  # ValueError: 0: .*finite
quantize_module(nn.Sequential(REFLECT))  # ValueError: 0: layer must pad with zeros
quantize_module(network(), {"heads": "int8"})  # ValueError: recipe must have names and types of layers .* got 'heads'
quantize_module(network(), {3: "int8"})  # TypeError: recipe must have names and types as keys, got 3
nn.functional.linear(X, LAYER.weight)  # TypeError: linear cannot take packed weights; their method dequantize
""")
def test_refusals(refusal):
    refuse(refusal, globals())


def test_a_refused_layer_leaves_the_model():
    model = nn.Sequential(dense(), NAN)
    with pytest.raises(ValueError, match="^1: "):
        quantize_module(model, inplace=True)
    assert kinds(model) == {}


def test_other_devices_are_refused():
    layer = Linear.from_float(dense())
    elsewhere = torch.empty(2, 96, device="meta")
    elsewhere.__class__ = type("Elsewhere", (torch.Tensor,), {"device": torch.device("cuda", 0)})
    with pytest.raises(TypeError, match="x must be in the CPU's memory, got a tensor on cuda:0"):
        layer(elsewhere)


def on_meta(made):
    """Return a layer whose weights have come, but not its bias, as load_state_dict without assign=True leaves it."""
    made.bias = nn.Parameter(made.bias.to("meta"), requires_grad=False)
    return made


LACKING = {
    "linear": lambda: on_meta(Linear.from_float(dense()))(torch.ones(2, 96)),
    "linear, activation": lambda: on_meta(Linear.from_float(dense(), activation="relu"))(torch.ones(2, 96)),
    "linear, float64": lambda: on_meta(Linear.from_float(dense()))(torch.ones(2, 96, dtype=torch.float64)),
    "linear, gradients": lambda: on_meta(Linear.from_float(dense()))(torch.ones(2, 96, requires_grad=True)),
    "conv2d": lambda: on_meta(Conv2d.from_float(conv("3 x 3")))(images(1, 3, 8, 8)),
    "moved": lambda: quantize_module(network()).to("meta")(images(2, 3, 8, 8)),
    "k": lambda: attention(X, X.to("meta"), X, 4),
    "v": lambda: attention(X, X, X.to("meta"), 4),
    "starts": lambda: attention(X, X, X, 4, starts=torch.tensor([0, 2]).to("meta")),
    "scale": lambda: fake_quantize(X, torch.ones((), device="meta")),
    "zero_point": lambda: fake_quantize(X, torch.ones(()), torch.zeros((), dtype=torch.int32, device="meta")),
}


@pytest.mark.parametrize("call", LACKING.values(), ids=LACKING)
def test_what_has_no_memory_is_refused(call):
    with pytest.raises(TypeError, match="must have memory where the input has, .* assign=True"):
        call()


def test_a_state_dict_that_was_not_assigned_is_refused():
    layer, x = Linear.from_float(dense()), torch.ones(2, 96)
    with torch.device("meta"):
        other = Linear(96, 40)
    with pytest.warns(UserWarning, match="no-op"):
        other.load_state_dict(layer.state_dict())
    with pytest.raises(TypeError, match="bias must have memory"):
        other(x)
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other(x), layer(x))
