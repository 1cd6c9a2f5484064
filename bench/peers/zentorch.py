"""zentorch, ZenDNN for torch, whose AOCL AOCL_DLP_ENABLE_INSTRUCTIONS holds. It has no products of AMX."""

from functools import cache

import numpy as np
import torch
import zentorch  # noqa: F401  fills torch.ops.zentorch

import peers

HELD_TO = ["avx2", "avx512"]
torch.set_num_threads(peers.threads)


def contender(call, name="zentorch"):
    return peers.contender(name, call, lambda: call().numpy(), held_to=HELD_TO)


def dynamic_linear(x, b, b_scale, bias, prepacked=False):
    """x is quantized by rows. Weights that are packed beforehand give wrong sums at K = 4096."""
    tensors = [torch.from_numpy(np.ascontiguousarray(t)) for t in (x, b.T, b_scale, bias)]
    run = torch.ops.zentorch.zentorch_dynamic_qlinear.default
    if prepacked:
        tensors[1] = torch.ops.zentorch.zentorch_weight_prepack_for_dynamic_qlinear.default(tensors[1])
    name = "zentorch prepacked" if prepacked else "zentorch"
    return contender(lambda: run(*tensors, is_weight_prepacked=prepacked), name)


def qlinear(q, scale, zero_point, b, b_scale, y_scale, y_zero):
    """Weights are packed at the first call."""
    tensors = [torch.from_numpy(t) for t in (q, np.ascontiguousarray(b.T))]
    tensors += [torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32), torch.from_numpy(b_scale)]
    tensors += [torch.zeros(len(b_scale), dtype=torch.int32), None]
    tensors += [torch.tensor([y_scale]), torch.tensor([y_zero], dtype=torch.int32), torch.uint8]
    run = torch.ops.zentorch.zentorch_qlinear.default
    return contender(lambda: run(*tensors))


class DynamicLinear(torch.nn.Module):
    """A dense layer in int8, with a scale for each output; its inputs are quantized by rows."""

    def __init__(self, weight, bias):
        super().__init__()
        self.scale, self.bias = weight.abs().amax(1) / 127, bias
        self.codes = torch.round(weight / self.scale[:, None]).to(torch.int8).contiguous()

    def forward(self, x):
        return torch.ops.zentorch.zentorch_dynamic_qlinear.default(x, self.codes, self.scale, self.bias)


@cache
def minilm_model():
    from minilm.padded import load

    return torch.compile(load(DynamicLinear), backend="zentorch", dynamic=True)


def minilm(ids, mask):
    """Dense layers in int8; its compiler fuses what is between them."""
    tensors, network = [torch.from_numpy(ids), torch.from_numpy(mask)], minilm_model()
    return contender(torch.inference_mode()(lambda: network(*tensors)))
