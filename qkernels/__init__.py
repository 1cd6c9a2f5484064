"""qkernels: exact, fast kernels for quantized machine learning on CPUs."""

from .config import get_include, get_num_threads, num_threads, set_num_threads, show_config
from .gemm import PackedMatrix, linear, matmul, pack, qlinear
from .kmeans import kmeans
from .layers import attention, layer_norm
from .qparams import QParams, choose_qparams
from .quantize import dequantize, dynamic_quantize, fake_quantize, pack_bits, quantize, unpack_bits
from .rounding import quantize_multiplier, requantize

__version__ = "0.1.0"

__all__ = [
    "PackedMatrix",
    "QParams",
    "attention",
    "choose_qparams",
    "dequantize",
    "dynamic_quantize",
    "fake_quantize",
    "get_include",
    "get_num_threads",
    "kmeans",
    "layer_norm",
    "linear",
    "matmul",
    "num_threads",
    "pack",
    "pack_bits",
    "qlinear",
    "quantize",
    "quantize_multiplier",
    "requantize",
    "set_num_threads",
    "show_config",
    "unpack_bits",
]
