"""qkernels: exact, fast kernels for quantized machine learning on CPUs.

Wherever an array is taken, so is a torch tensor in the CPU's memory (bfloat16 and float8 too; one that requires a
gradient is detached), an object of DLPack's or of NumPy's array protocols, a subclass of ndarray, a list. Its memory is
read in place if the layout allows. Results are NumPy arrays, but for `out`, which may be any of these that has memory
to be written, and is returned as it was given. A masked array with a mask, or memory of another device, is refused.
"""

from . import _codebook
from . import io as io
from . import layouts as layouts
from . import observers as observers
from ._bind.capi import __pyx_capi__ as __pyx_capi__
from ._choose import choose_qparams
from ._codebook import Codebook, decode, encode
from ._conv import PackedConv, max_pool2d, pack_conv, qaverage_pool2d, qconv2d, qglobal_average_pool
from ._gptq import GPTQResult, gptq
from ._hessian import Hessian
from ._integer_layers import (
    fold_batchnorm,
    make_table,
    qadd,
    qconcatenate,
    qlayer_norm,
    qmultiply,
    qrms_norm,
    qsoftmax,
    quantize_bias,
    smooth,
    take_table,
)
from ._kmeans import KMeansResult, kmeans
from ._kmeans1d import kmeans1d
from ._layers import attention, layer_norm, rotate
from ._pq import PackedCodes, distance_tables, pack_codes, search
from ._products import linear, matmul, qlinear
from ._prune import PruneResult, prune
from ._qparams import QParams
from ._quantize import dequantize, dynamic_quantize, fake_quantize, fake_quantize_grad, pack_bits, quantize, unpack_bits
from ._rounding import quantize_multiplier, requantize
from ._weights import PackedMatrix, pack
from .config import __version__ as __version__
from .config import get_include, get_num_threads, num_threads, set_num_threads, show_config
from .gguf import from_gguf, to_gguf
from .mixed_precision import Allocation, allocate_bits, pareto, sensitivity


def __getattr__(name):
    if name in ("NF4", "FP4"):  # made on first use, with SciPy
        return getattr(_codebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Allocation",
    "Codebook",
    "FP4",
    "GPTQResult",
    "Hessian",
    "KMeansResult",
    "NF4",
    "PackedCodes",
    "PackedConv",
    "PackedMatrix",
    "PruneResult",
    "QParams",
    "allocate_bits",
    "attention",
    "choose_qparams",
    "decode",
    "dequantize",
    "distance_tables",
    "dynamic_quantize",
    "encode",
    "fake_quantize",
    "fake_quantize_grad",
    "fold_batchnorm",
    "from_gguf",
    "get_include",
    "get_num_threads",
    "gptq",
    "kmeans",
    "kmeans1d",
    "layer_norm",
    "linear",
    "make_table",
    "matmul",
    "max_pool2d",
    "num_threads",
    "pack",
    "pack_bits",
    "pack_codes",
    "pack_conv",
    "pareto",
    "prune",
    "qadd",
    "qaverage_pool2d",
    "qconcatenate",
    "qconv2d",
    "qglobal_average_pool",
    "qlayer_norm",
    "qlinear",
    "qmultiply",
    "qrms_norm",
    "qsoftmax",
    "quantize",
    "quantize_bias",
    "quantize_multiplier",
    "requantize",
    "rotate",
    "search",
    "sensitivity",
    "set_num_threads",
    "show_config",
    "smooth",
    "take_table",
    "to_gguf",
    "unpack_bits",
]
