"""Use qkernels in PyTorch: layers of packed weights in the place of a model's own, and training with quantization.

Operators have kernels for the CPU and for meta tensors, and gradients; torch.compile takes them as they are.
"""

from ._attention import attention
from ._convert import quantize_module
from ._modules import Conv2d, Linear
from ._training import FakeQuantize, fake_quantize

__all__ = ["Conv2d", "FakeQuantize", "Linear", "attention", "fake_quantize", "quantize_module"]
