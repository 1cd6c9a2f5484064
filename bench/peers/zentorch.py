"""zentorch, ZenDNN for torch, whose AOCL AOCL_DLP_ENABLE_INSTRUCTIONS holds. It has no products of AMX."""

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
