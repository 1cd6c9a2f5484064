"""EfficientNet-Lite0 in float32, by NumPy: batch norms folded, a logistic layer trained on the features of images."""

from typing import NamedTuple

import numpy as np

import qkernels as qk

STRIDED = "stem", "1.depthwise", "3.depthwise", "5.depthwise", "11.depthwise"


class Layer(NamedTuple):
    """A convolution with its batch norm folded: of the values called `source` it makes those called `name`."""

    name: str
    source: str
    w: np.ndarray  # (height, width, C / groups, F)
    bias: np.ndarray
    stride: int
    groups: int
    relu6: bool
    sum: str | None = None  # the name of its values plus those of its block's source


def fold(weights):
    """Return blocks, each a list of layers; the first is the stem, the last makes the features."""

    def layer(name, source, prefix, conv, norm):
        batchnorm = [weights[f"{prefix}{norm}.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")]
        w, bias = qk.fold_batchnorm(weights[f"{prefix}{conv}.weight"].transpose(2, 3, 1, 0), None, *batchnorm, eps=1e-3)
        groups = w.shape[3] if conv.startswith("_depthwise") else 1
        return Layer(name, source, w, bias, 2 if name in STRIDED else 1, groups, not name.endswith("project"))

    blocks, source = [[layer("stem", "pixels", "", "_conv_stem", "_bn0")]], "stem"
    for i in range(sum(name.endswith("_project_conv.weight") for name in weights)):
        block, prefix = [], f"_blocks.{i}."
        for kind, norm in ("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2"):
            if f"{prefix}_{kind}_conv.weight" in weights:
                block.append(layer(f"{i}.{kind}", source, prefix, f"_{kind}_conv", norm))
                source = block[-1].name
        if len(block) == 3 and block[1].stride == 1 and block[0].w.shape[2] == block[2].w.shape[3]:
            block[-1], source = block[-1]._replace(sum=f"{i}.sum"), f"{i}.sum"
        blocks.append(block)
    return [*blocks, [layer("head", source, "", "_conv_head", "_bn1")]]


def sum_of(block):
    """Return the name of what is added to a block's input, or None."""
    return block[-1].sum


def run(blocks, x, do):
    """Return what the functions of `do` make of images: logits, or features if it has no weights for these."""
    x = do.enter(x)
    for block in blocks:
        y = x
        for layer in block:
            y = do.convolve(y, layer)
        x = do.add(x, y, block) if sum_of(block) else y
    return do.dense(do.pool(x))


class Float32:
    """The functions in float32, by NumPy. They show all values to `see`, by name."""

    def __init__(self, head=None, see=lambda name, values: None):
        self.head, self.see = head, see

    def seen(self, name, values):
        self.see(name, values)
        return values

    def enter(self, pixels):
        return (pixels.astype(np.float32) - 127) / 128

    def convolve(self, x, layer):
        (size, *_), (_, height, width, _), stride = layer.w.shape, x.shape, layer.stride
        before = (size - stride) // 2  # of images of even sizes, or strides of 1; and one more at the end
        x = np.pad(x, ((0, 0), *[(before, size - stride - before)] * 2, (0, 0))) if size > 1 else x
        y = layer.bias
        for i, j in np.ndindex(size, size):
            tap, w = x[:, i : i + height : stride, j : j + width : stride], layer.w[i, j]
            y = y + (tap @ w if layer.groups == 1 else tap * w[0])
        return self.seen(layer.name, np.clip(y, 0, 6) if layer.relu6 else y)

    def add(self, x, y, block):
        return self.seen(sum_of(block), x + y)

    def pool(self, x):
        return self.seen("features", x.mean(axis=(1, 2)))

    def dense(self, x):
        return x if self.head is None else self.seen("logits", x @ self.head[0] + self.head[1])

    def nbytes(self, blocks):
        arrays = [array for block in blocks for layer in block for array in (layer.w, layer.bias)]
        return sum(array.nbytes for array in [*arrays, *self.head])


def train(features, labels):
    """Return the weights and biases of a logistic layer, in seconds."""
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(axis=0), features.std(axis=0) + np.float32(1e-3)
    model = LogisticRegression(C=0.005, max_iter=1000).fit((features - mean) / std, labels)
    w = (model.coef_.T / std[:, None]).astype(np.float32)
    return w, (model.intercept_ - mean @ w).astype(np.float32)
