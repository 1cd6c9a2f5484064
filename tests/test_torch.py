"""The operators of PyTorch: those of NumPy, bit for bit, with their gradients; and what was trained is what runs."""

import numpy as np
import pytest
from common import refusals, refuse
from numpy.testing import assert_array_equal

torch = pytest.importorskip("torch")

import qkernels as qk  # noqa: E402
from qkernels.torch import FakeQuantize, fake_quantize  # noqa: E402

CASES = {
    "tensor": (dict(dtype="int8"), ()),
    "zero point": (dict(dtype="uint8"), ()),
    "axis": (dict(dtype="int4", axis=1), (48,)),
    "blocks": (dict(dtype="uint4", axis=0, block_size=16), (3, 48)),
    "narrow": (dict(dtype="int2", axis=1, narrow_range=True), (48,)),
}


def arguments(name, dtype=torch.float32):
    """x, scale, zero point and options."""
    options, shape = CASES[name]
    rng = np.random.default_rng(len(name))
    x, scale = rng.normal(size=(40, 48)), rng.uniform(0.05, 0.4, shape)
    zero = None if name in ("tensor", "narrow") else torch.tensor(rng.integers(0, 8, shape).astype(np.float32))
    return torch.tensor(x, dtype=dtype), torch.tensor(np.float32(scale)), zero, options


def params_of(scale, zero, options):
    return qk.QParams(scale.detach(), None if zero is None else zero.detach().int(), **options)


@pytest.mark.parametrize("edge", ["rounded", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_arrays(name, dtype, edge):
    x, scale, zero, options = arguments(name, dtype)
    learned = [t.requires_grad_() for t in (x, scale, zero) if t is not None]
    y = fake_quantize(x, scale, zero, edge=edge, grad_factor=0.25, **options)
    grad = torch.tensor(np.random.default_rng(0).normal(size=x.shape), dtype=dtype)
    found = torch.autograd.grad(y, learned, grad)
    params = params_of(scale, zero, options)
    assert y.dtype == x.dtype
    assert_array_equal(y.detach().double(), qk.fake_quantize(x.detach(), params).astype(float))
    want = qk.fake_quantize_grad(grad, x.detach(), params, edge=edge)
    for got, expected, factor in zip(found, want, (1, 0.25, 0.25)):
        assert_array_equal(got.double(), expected.astype(float) * factor)


@pytest.mark.parametrize("name", CASES)
def test_operators_keep_the_rules_of_torch(name):
    """Schemas, fake tensors, autograd and dynamic shapes, as torch itself checks them."""
    x, scale, zero, options = arguments(name)
    where = options["dtype"], options.get("axis"), options.get("block_size"), options.get("narrow_range", False)
    x.requires_grad_(), scale.requires_grad_()
    torch.library.opcheck(torch.ops.qkernels.fake_quantize, (x, scale, zero, *where, "clipped", 0.5))
    back = (x.detach(), x.detach(), scale.detach(), zero, *where, "rounded")
    torch.library.opcheck(torch.ops.qkernels.fake_quantize_grad, back)


@pytest.mark.filterwarnings("default")  # of modules that inductor imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_layer_is_compiled_as_one_graph(backend):
    """Forward and backward, by both kinds of operators, with equal results."""
    x, w = (torch.tensor(a, dtype=torch.float32) for a in np.random.default_rng(1).normal(size=(2, 32, 32)))
    layer = [FakeQuantize.of(w, "int4", axis=1), FakeQuantize.of(x, "int8")]

    def loss(x, w):
        return ((layer[1](x) @ layer[0](w)).relu() ** 2).mean()

    def step(call):
        leaf = w.clone().requires_grad_()
        value = call(x, leaf)
        return [value, *torch.autograd.grad(value, [leaf, layer[0].scale, layer[1].scale])]

    try:
        compiled = step(torch.compile(loss, fullgraph=True, backend=backend))
    except Exception as error:
        if backend == "inductor" and "compiler" in str(error).lower():
            pytest.skip("no compiler for inductor")
        raise
    for got, want in zip(compiled, step(loss)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_was_trained_runs_on_integers(dtype):
    """After steps of an optimizer the codes of weights are those that training saw, and so are those of the result."""
    torch.manual_seed(0)
    x, target = torch.rand(128, 32), torch.rand(128, 8)
    w = (torch.randn(32, 8) / 6).requires_grad_()
    of_x, of_w, of_y = (
        FakeQuantize.of(x, "uint8", symmetric=False, method="minmax"),
        FakeQuantize.of(w.detach(), dtype, axis=1),
        FakeQuantize.of((x @ w).detach(), "uint8", symmetric=False, method="minmax"),
    )
    optimizer = torch.optim.Adam([w, of_x.scale, of_w.scale, of_y.scale], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = ((of_y(of_x(x) @ of_w(w)) - target) ** 2).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        [learned.clamp_() for learned in (of_x, of_w, of_y)]
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    params, few = of_x.qparams(), of_w.qparams()
    codes = qk.quantize(w.detach(), few)
    assert_array_equal(of_w(w).detach(), qk.dequantize(codes, few))
    packed = qk.pack(codes.astype(np.int8), qk.QParams(few.scale, axis=1))
    real = qk.qlinear(qk.quantize(x, params), params, packed, of_y.qparams())
    sums = of_x(x).detach().double() @ of_w(w).detach().double()
    exact = qk.quantize(sums.numpy(), of_y.qparams())
    assert_array_equal(real, exact)
    seen = qk.quantize(of_y(of_x(x) @ of_w(w)).detach(), of_y.qparams())
    assert np.mean(real != seen) < 0.005  # where a sum in float32 is next to a tie


def test_modules_are_saved_and_shown():
    learned = FakeQuantize.of(torch.randn(8, 4), "int4", axis=0, block_size=4)
    again = FakeQuantize(qk.QParams(np.ones((2, 4)), dtype="int4", axis=0, block_size=4, narrow_range=True))
    again.load_state_dict(learned.state_dict())
    assert again.qparams() == learned.qparams()
    assert repr(learned) == "FakeQuantize(dtype='int4', axis=0, block_size=4)"
    with torch.no_grad():
        learned.scale[0, 0] = -1
    assert learned.clamp_(0.125).scale.min() == 0.125


X, ONE = torch.ones(2, 3), torch.tensor(0.5)


@refusals(r"""
fake_quantize(X, -ONE)  # ValueError: scale must be positive
fake_quantize(X, ONE, dtype="int5")  # TypeError: dtype must be one of
fake_quantize(X, torch.ones(2), axis=1)  # ValueError: scale must have shape \(3,\)
fake_quantize(X.int(), ONE)  # TypeError: x must be float32
fake_quantize(X, ONE, edge="hard")  # ValueError: edge must be 'rounded' or 'clipped', got 'hard'
fake_quantize(X, ONE, narrow_range="no")  # TypeError: narrow_range must be a bool, got 'no'
fake_quantize(X, ONE, grad_factor="1")  # TypeError: grad_factor must be a float, got '1'
""")
def test_refusals(refusal):
    refuse(refusal, globals())


def test_what_the_layer_cannot_learn_is_refused():
    w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    with pytest.raises(ValueError, match="params must not have integer scales"):
        FakeQuantize(qk.choose_qparams(w, "uint4", axis=0, block_size=32, scale_bits=4))
    with pytest.raises(TypeError, match="params must have an integer dtype, whose scales are learned, got float4"):
        FakeQuantize.of(torch.tensor(w), "float4_e2m1fn", axis=0, block_size=32, method="mx")
    with pytest.raises(TypeError, match="params must be QParams, got NoneType"):
        FakeQuantize(None)


def test_empty_tensors_and_a_scale_of_shape_1():
    assert fake_quantize(torch.zeros(0, 3), torch.tensor(0.1)).shape == (0, 3)
    scale = torch.tensor([0.1], requires_grad=True)
    fake_quantize(torch.ones(3), scale).sum().backward()
    assert scale.grad.shape == (1,)
