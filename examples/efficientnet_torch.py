"""EfficientNet-Lite0 in PyTorch, in parts whose weights train at 2 or 3 bits; for qat_efficientnet.py."""

import numpy as np
import torch
from efficientnet_float import sum_of
from torch.nn import functional

import qkernels as qk
from qkernels.torch import FakeQuantize, fake_quantize


class ThreeBits(FakeQuantize):
    """Codes of int4 from -4 to 3: values beyond are clamped first, which gives the scale LSQ's gradient of these."""

    def forward(self, x):
        x = torch.minimum(torch.maximum(x, -4 * self.scale), 3 * self.scale)
        return fake_quantize(x, self.scale, dtype="int4", axis=self.axis)

    @classmethod
    def of(cls, x, **options):
        """Begin with the best of scales from a third to all of what the largest magnitude needs, for each output."""
        largest = x.abs().amax((0, 1, 2)) / 4
        scales = [largest * factor for factor in np.linspace(1 / 3, 1, 50)]
        errors = [(cls(qk.QParams(s, dtype="int4", axis=3))(x) - x).square().sum((0, 1, 2)) for s in scales]
        best = torch.stack(errors).argmin(0)
        return cls(qk.QParams(torch.stack(scales).gather(0, best[None])[0], dtype="int4", axis=3))


BITS = {"2 bits": FakeQuantize, "3 bits": ThreeBits}


class Part(torch.nn.Module):
    """Blocks in a row and, where it is given, the logistic layer: of images or values (N, C, H, W) their logits."""

    def __init__(self, blocks, dense=None):
        super().__init__()
        layers = sum(blocks, [])
        self.plan = [[layer._replace(w=None, bias=None) for layer in block] for block in blocks]
        arrays = [(layer.w, layer.bias) for layer in layers]
        arrays += [] if dense is None else [(dense[0][None, None], dense[1])]
        self.w, self.bias = (torch.nn.ParameterList(map(torch.tensor, kind)) for kind in zip(*arrays))
        self.quantizers = torch.nn.ModuleList(torch.nn.Identity() for _ in arrays)

    def quantize(self, kind):
        """Give convolutions of 1 x 1 and the logistic layer few bits; begin with the scales of least squares."""
        for i, w in enumerate(self.w):
            if w.shape[0] == 1:
                self.quantizers[i] = kind.of(w.detach(), dtype="int2", axis=3, narrow_range=False)

    def forward(self, x):
        i = 0
        for block in self.plan:
            y = x
            for layer in block:
                y, i = self.convolve(y, layer, i), i + 1
            x = x + y if sum_of(block) else y
        return x.mean((2, 3)) @ self.quantizers[i](self.w[i])[0, 0] + self.bias[i] if i < len(self.w) else x

    def convolve(self, x, layer, i):
        more = len(self.w[i]) - layer.stride  # of images of even sizes, or strides of 1
        around = (more // 2, more - more // 2) * 2
        w = self.quantizers[i](self.w[i]).permute(3, 2, 0, 1)
        x = functional.pad(x, around) if len(self.w[i]) > 1 else x
        x = functional.conv2d(x, w, self.bias[i], layer.stride, groups=layer.groups)
        return x.clamp(0, 6) if layer.relu6 else x
