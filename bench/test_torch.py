"""Layers of qkernels.torch: a call with few values, whose time is that of tensors and modules, beside torch's own."""

import numpy as np
import peers
import pytest
from arrays import random_floats
from race import Contender, relative

import qkernels as qk


@pytest.mark.parametrize("rows, n", [(1, 64), (1, 384), (128, 384)])
def test_torch_linear(race, isa, rows, n):
    """Also without torch: the difference to qkernels.linear is what a module costs."""
    torch = pytest.importorskip("torch")
    from qkernels.torch import Linear

    x, w, bias = random_floats(rows, n, seed=1), random_floats(n, n, seed=2), random_floats(n, seed=3)
    layer = torch.nn.Linear(n, n).requires_grad_(False)
    layer.weight[:], layer.bias[:] = torch.from_numpy(w.T), torch.from_numpy(bias)
    made, tensor = Linear.from_float(layer), torch.from_numpy(x)
    packed = made.weight.packed
    b, scale = np.ascontiguousarray(packed.unpack()), packed.params.scale
    check = relative(x.astype(np.float64) @ (b * scale.astype(np.float64)) + bias, 0.03)
    ours, others = Contender("qkernels", lambda: made(tensor), lambda: made(tensor).numpy(), check), []
    others += [peers.contender("qkernels.linear", lambda: qk.linear(x, packed, bias))]
    others += [peers.torch.contender(lambda: layer(tensor), name="torch.nn.Linear")]
    others += [peers.torch.dynamic_linear("fbgemm", x, b, scale, bias, [(rows, n, n)])]
    race(f"torch Linear {rows} x {n} x {n}", ours, others, check, rows * n * n, "GMAC/s")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor imports
@pytest.mark.parametrize("layers", [1, 9])
def test_torch_graph(race, isa, layers):
    """Layers in one graph of torch.compile: the difference of the two cases is eight of them."""
    torch = pytest.importorskip("torch")
    from qkernels.torch import quantize_module

    rows, n = 1, 64
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(n, n) for _ in range(layers))).requires_grad_(False)
    x = torch.from_numpy(random_floats(rows, n, seed=1))
    check = relative(model(x).numpy(), 0.02 * layers)
    ours, theirs = (torch.compile(net, fullgraph=True) for net in (quantize_module(model), model))
    contender = Contender("qkernels", lambda: ours(x), lambda: ours(x).numpy(), check)
    others = [peers.torch.contender(lambda: theirs(x), name="torch.nn.Linear")]
    race(f"torch graph of {layers}, {rows} x {n} x {n}", contender, others, check, layers * rows * n * n, "GMAC/s")
