"""List the cases of the self-test for PyTorch and Dask, where they are installed.

Results have the bits of the functions on arrays, which have cases of their own, unless told.
"""

from importlib.util import find_spec

import numpy as np

from ._selftest_cases import Case, Near, case, floats, qk, size, windows

FRAMEWORKS = set()  # names of the cases that are here


def where_installed(package, *names):
    """Enter a case for functions of a module of ours, whose name is that of what it needs."""

    def enter(function):
        if find_spec(package):
            case(*(f"{package}.{name}" for name in names), rare=True)(function)
            FRAMEWORKS.add(function.__name__.removeprefix("_"))
        return function

    return enter


# ---- PyTorch ----


def filled(layer, rng):
    """Return a layer of torch, made on its meta device, with random weights: torch's own random numbers stay."""
    import torch

    for name, empty in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(torch.from_numpy(floats(rng, tuple(empty.shape)))))
    return layer.requires_grad_(False)


@where_installed("torch", "Linear", "quantize_module")
def _torch_linear(rng):
    # Its gradient is that of the weights that packed ones stand for.
    import torch

    from .torch import quantize_module

    m, k, n = size(rng, 100), size(rng, 300), size(rng, 300)
    layer = filled(torch.nn.Linear(k, n, device="meta"), rng)
    made = quantize_module(layer, str(rng.choice(["int8", "uint4", "nf4", "int2", "float16"])))
    x, grad = floats(rng, (m, k)), floats(rng, (m, n))
    w = made.weight.dequantize().numpy().astype(np.float64)

    def call():
        tensor = torch.from_numpy(x).requires_grad_()
        y = made(tensor)
        y.backward(torch.from_numpy(grad))
        return made(torch.from_numpy(x)).numpy(), y.detach().numpy(), tensor.grad.numpy()

    want, error = qk.linear(x, made.weight.packed, layer.bias.numpy()), np.abs(grad).astype(np.float64) @ np.abs(w)
    return Case(call, [want, want, Near(grad.astype(np.float64) @ w, 1e-5 * error + 1e-30)])


@where_installed("torch", "Conv2d")
def _torch_conv2d(rng):
    # Exact on the codes of each image, but for float roundings.
    import torch

    from .torch import Conv2d

    kernel, strides, pad = tuple(map(int, rng.integers(1, 4, 2))), tuple(map(int, rng.integers(1, 3, 2))), 1
    channels, filters = size(rng, 32), size(rng, 64)
    layer = filled(torch.nn.Conv2d(channels, filters, kernel, strides, pad, device="meta"), rng)
    made = Conv2d.from_float(layer)
    images = floats(rng, (1 + size(rng, 2), channels, *(3 + size(rng, 30) for _ in range(2))))
    codes, params = qk.dynamic_quantize(images.reshape(len(images), -1), axis=0)
    seen = qk.dequantize(codes, params, dtype=np.float64).reshape(images.shape).transpose(0, 2, 3, 1)
    at = windows(np.pad(seen, ((0, 0), (pad, pad), (pad, pad), (0, 0))), kernel, strides)
    w, bias = made.weight.dequantize().numpy().astype(np.float64), layer.bias.numpy()
    of_each = (3, 4, 5), (1, 2, 3)
    exact, most = np.tensordot(at, w, of_each) + bias, np.tensordot(np.abs(at), np.abs(w), of_each) + np.abs(bias)
    near = Near(exact.transpose(0, 3, 1, 2), 1e-5 * most.transpose(0, 3, 1, 2) + 1e-30)
    return Case(lambda: made(torch.from_numpy(images)).numpy(), near)


@where_installed("torch", "attention")
def _torch_attention(rng):
    import torch

    from .torch import attention

    tokens, heads, each = size(rng, 200), int(rng.integers(1, 5)), size(rng, 64)
    rows = [rng.normal(size=(tokens, heads * each)).astype(np.float32) / 3 for _ in range(3)]
    want = qk.attention(*rows, heads)
    return Case(lambda: attention(*map(torch.from_numpy, rows), heads).numpy(), want)


@where_installed("torch", "fake_quantize", "FakeQuantize")
def _torch_training(rng):
    import torch

    from .torch import FakeQuantize, fake_quantize

    shape = 1 + size(rng, 300), 1 + size(rng, 300)
    x, grad = floats(rng, shape), floats(rng, shape)
    params = qk.QParams(10 ** rng.uniform(-3, 1, shape[1]), dtype="int4", axis=1)

    def call():
        learned, tensor = FakeQuantize(params), torch.from_numpy(x).requires_grad_()
        y = learned(tensor)
        y.backward(torch.from_numpy(grad))
        again = fake_quantize(tensor.detach(), torch.from_numpy(np.array(params.scale)), dtype="int4", axis=1)
        return y.detach().numpy(), again.numpy(), tensor.grad.numpy()

    want = qk.fake_quantize(x, params)
    return Case(call, [want, want, qk.fake_quantize_grad(grad, x, params, edge="clipped")[0]])


# ---- Dask ----


@where_installed("dask", "calibrate", "kmeans", "kmeans1d")
def _dask(rng):
    import dask
    from dask import array

    from . import dask as on_dask
    from . import observers

    n, k = 8 + size(rng, 3000), int(rng.integers(1, 9))
    x, parts = rng.integers(-20, 20, (n, 3)).astype(np.float32), (1 + size(rng, n), int(rng.integers(1, 4)))
    kind = getattr(observers, str(rng.choice(["MinMax", "Percentile", "Entropy", "MSE"])))

    def call():
        blocks = array.from_array(x, chunks=parts)
        with dask.config.set(scheduler="synchronous"):
            seen = on_dask.calibrate(blocks, kind()).qparams("uint8")
            near, line = on_dask.kmeans(blocks, k, init=x[:k]), on_dask.kmeans1d(blocks.astype(np.int8), k)
            return seen.scale, near.centroids, near.labels.compute(), line.centroids, line.labels.compute()

    near, line = qk.kmeans(x, k, init=x[:k]), qk.kmeans1d(x.astype(np.int8), k)
    scale = kind().update(x).qparams("uint8").scale
    return Case(call, [scale, near.centroids, near.labels, line.centroids, line.labels])
