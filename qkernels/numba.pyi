from . import decode as decode
from . import dequantize as dequantize
from . import encode as encode
from . import linear as linear
from . import matmul as matmul
from . import quantize as quantize
from . import requantize as requantize

__all__ = ["decode", "dequantize", "encode", "linear", "matmul", "quantize", "requantize"]
