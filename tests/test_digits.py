"""The example, on integers alone; and the same network run by LiteRT and onnxruntime, with equal integers.

LiteRT's reference kernels do not round alike: its convolutions round twice, which is our "gemmlowp", its FULLY_CONNECTED
once, our "tflite", and its ADD has a "tflite" of its own. onnxruntime rounds half to even throughout. Both sum the
exponentials of softmax in their own ways: there a code may differ by one.
"""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator
from common import ROOT
from graphs import (
    ACTIVATIONS,
    convolution_options,
    litert_graph,
    onnxruntime_graph,
    options_of,
    tensor,
)
from integers_only import run_in_integers
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

import qkernels as qk
from qkernels import observers

sys.path.append(str(ROOT / "examples"))
import digits

LITERT = SimpleNamespace(
    qconv2d=partial(qk.qconv2d, rounding="gemmlowp"),
    qadd=partial(qk.qadd, rounding="tflite"),
    max_pool2d=qk.max_pool2d,
    qlinear=partial(qk.qlinear, rounding="tflite"),
    qsoftmax=qk.qsoftmax,
)
