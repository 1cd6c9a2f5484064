"""Types of the public names. What each does stands in its docstring; tests/test_typing.py holds the two together."""

from collections.abc import Callable, Mapping, Sequence
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    TypeVar,
    overload,
    type_check_only,
)

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import config as config
from . import gguf as gguf
from . import io as io
from . import layouts as layouts
from . import mixed_precision as mixed_precision
from . import observers as observers
from .config import get_include as get_include
from .config import get_num_threads as get_num_threads
from .config import num_threads as num_threads
from .config import set_num_threads as set_num_threads
from .config import show_config as show_config
from .gguf import from_gguf as from_gguf
from .gguf import to_gguf as to_gguf
from .mixed_precision import Allocation as Allocation
from .mixed_precision import allocate_bits as allocate_bits
from .mixed_precision import pareto as pareto
from .mixed_precision import sensitivity as sensitivity

__version__: str
__pyx_capi__: dict[str, object]

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

# ---- what goes in ----

@type_check_only
class _SupportsArray(Protocol):
    def __array__(self) -> Any: ...

@type_check_only
class _SupportsDLPack(Protocol):
    def __dlpack__(self) -> Any: ...

@type_check_only
class _Dtype(Protocol):  # torch.dtype, and what else has these
    @property
    def itemsize(self) -> int: ...

_Array: TypeAlias = ArrayLike | _SupportsArray | _SupportsDLPack
_Out = TypeVar("_Out", bound=NDArray[Any] | _SupportsArray | _SupportsDLPack)
_Scalar = TypeVar("_Scalar", bound=np.generic)

_CodeName: TypeAlias = Literal[
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int4",
    "uint4",
    "int2",
    "uint2",
    "float8_e4m3fn",
    "float8_e5m2",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
]
_TorchCodeName: TypeAlias = Literal[
    "torch.int8",
    "torch.uint8",
    "torch.int16",
    "torch.uint16",
    "torch.int4",
    "torch.uint4",
    "torch.int2",
    "torch.uint2",
    "torch.float8_e4m3fn",
    "torch.float8_e5m2",
]
_Codes: TypeAlias = _CodeName | _TorchCodeName | np.dtype[Any] | type[np.generic] | _Dtype

_Float32: TypeAlias = Literal["float32", "torch.float32"]
_Float64: TypeAlias = Literal["float64", "torch.float64"] | type[float]
_Float16: TypeAlias = Literal["float16", "torch.float16"]
_BFloat16: TypeAlias = Literal["bfloat16", "torch.bfloat16"]
_Floats: TypeAlias = _Float32 | _Float64 | _Float16 | _BFloat16 | np.dtype[Any] | type[np.generic] | _Dtype

_HalfEven: TypeAlias = Literal["half_even"]
_Nearest: TypeAlias = Literal["nearest"]
_Stochastic: TypeAlias = Literal["stochastic"]
_Rounding: TypeAlias = Literal["half_even", "half_away"]
_AnyRounding: TypeAlias = Literal["half_even", "half_away", "gemmlowp", "tflite"]
_Activation: TypeAlias = Literal["relu", "gelu", "gelu_tanh", "silu"]
_Clamp: TypeAlias = tuple[SupportsFloat | None, SupportsFloat | None]
_Random: TypeAlias = int | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | None

# ---- parameters ----

class QParams:
    def __new__(
        cls,
        scale: _Array,
        zero_point: _Array | None = None,
        dtype: _Codes = "int8",
        *,
        axis: int | None = None,
        block_size: int | None = None,
        narrow_range: bool = False,
        block_scale: _Array | None = None,
        block_shift: _Array | None = None,
    ) -> QParams: ...
    @property
    def scale(self) -> Any: ...  # numpy.float32, or an array of it where there is an axis
    @property
    def zero_point(self) -> Any: ...  # numpy.int32, or an array of it
    @property
    def block_scale(self) -> NDArray[np.uint8] | None: ...
    @property
    def block_shift(self) -> NDArray[np.int8] | None: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def axis(self) -> int | None: ...
    @property
    def block_size(self) -> int | None: ...
    @property
    def qmin(self) -> float: ...
    @property
    def qmax(self) -> float: ...
    @property
    def codes_are_floats(self) -> bool: ...
    def check_shape(self, shape: Sequence[int], name: str = "x") -> None: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> QParams: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes = "int8",
    *,
    axis: int | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["minmax", "entropy"] = "minmax",
) -> QParams: ...
@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes,
    *,
    axis: int,
    block_size: int,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["minmax"] = "minmax",
    scale_bits: int,
) -> QParams: ...
@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes = "int8",
    *,
    axis: int | None = None,
    block_size: None = None,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["percentile"],
    percentile: SupportsFloat = 99.99,
) -> QParams: ...
@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes = "int8",
    *,
    axis: int | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["mse"],
    importance: _Array | None = None,
    scale_bits: int | None = None,
) -> QParams: ...
@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes = "int8",
    *,
    axis: int,
    block_size: int | None = None,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["mx"],
    scale_rounding: Literal["floor", "even", "rceil"] = "floor",
) -> QParams: ...
@overload
def choose_qparams(
    x: _Array,
    dtype: _Codes,
    *,
    axis: int,
    block_size: int | None = None,
    symmetric: bool | None = None,
    narrow_range: bool | None = None,
    method: Literal["nvfp4"],
    tensor_scale: SupportsFloat | None = None,
) -> QParams: ...

# ---- elementwise ----

@overload
def quantize(
    x: _Array,
    params: QParams,
    *,
    rounding: _Rounding | _Stochastic = "half_even",
    seed: int | None = None,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def quantize(
    x: _Array, params: QParams, *, rounding: _Rounding | _Stochastic = "half_even", seed: int | None = None, out: _Out
) -> _Out: ...
@overload
def dequantize(q: _Array, params: QParams, *, dtype: _Float32 = ..., out: None = None) -> NDArray[np.float32]: ...
@overload
def dequantize(q: _Array, params: QParams, *, dtype: _Float64, out: None = None) -> NDArray[np.float64]: ...
@overload
def dequantize(q: _Array, params: QParams, *, dtype: _Float16, out: None = None) -> NDArray[np.float16]: ...
@overload
def dequantize(
    q: _Array, params: QParams, *, dtype: np.dtype[_Scalar] | type[_Scalar], out: None = None
) -> NDArray[_Scalar]: ...
@overload
def dequantize(q: _Array, params: QParams, *, dtype: _BFloat16 | _Dtype, out: None = None) -> NDArray[Any]: ...
@overload
def dequantize(q: _Array, params: QParams, *, dtype: _Floats = ..., out: _Out) -> _Out: ...
@overload
def fake_quantize(
    x: NDArray[_Scalar],
    params: QParams,
    *,
    rounding: _HalfEven | _Stochastic = "half_even",
    seed: int | None = None,
    out: None = None,
) -> NDArray[_Scalar]: ...
@overload
def fake_quantize(
    x: _Array,
    params: QParams,
    *,
    rounding: _HalfEven | _Stochastic = "half_even",
    seed: int | None = None,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def fake_quantize(
    x: _Array, params: QParams, *, rounding: _HalfEven | _Stochastic = "half_even", seed: int | None = None, out: _Out
) -> _Out: ...
@overload
def fake_quantize_grad(
    grad: _Array, x: NDArray[_Scalar], params: QParams, *, edge: Literal["rounded", "clipped"] = "rounded"
) -> tuple[NDArray[_Scalar], Any, Any]: ...
@overload
def fake_quantize_grad(
    grad: _Array, x: _Array, params: QParams, *, edge: Literal["rounded", "clipped"] = "rounded"
) -> tuple[NDArray[Any], Any, Any]: ...
def dynamic_quantize(
    x: _Array, dtype: _Codes = "uint8", *, axis: int | None = None, symmetric: bool | None = None
) -> tuple[NDArray[Any], QParams]: ...
@overload
def requantize(
    acc: _Array,
    multiplier: _Array,
    params: QParams,
    *,
    bias: _Array | None = None,
    rounding: _AnyRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def requantize(
    acc: _Array,
    multiplier: _Array,
    params: QParams,
    *,
    bias: _Array | None = None,
    rounding: _AnyRounding = "half_even",
    out: _Out,
) -> _Out: ...
@overload
def quantize_multiplier(m: float | np.floating[Any]) -> tuple[int, int]: ...
@overload
def quantize_multiplier(m: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
@overload
def quantize_multiplier(m: _SupportsArray | _SupportsDLPack) -> tuple[Any, Any]: ...
def pack_bits(codes: _Array, bits: int) -> NDArray[np.uint8]: ...
@overload
def unpack_bits(
    data: _Array,
    bits: int,
    shape: int | Sequence[SupportsIndex],
    *,
    dtype: Literal["uint8", "torch.uint8"] | type[np.uint8] = ...,
) -> NDArray[np.uint8]: ...
@overload
def unpack_bits(
    data: _Array,
    bits: int,
    shape: int | Sequence[SupportsIndex],
    *,
    dtype: Literal["int8", "torch.int8"] | type[np.int8],
) -> NDArray[np.int8]: ...
@overload
def unpack_bits(data: _Array, bits: int, shape: int | Sequence[SupportsIndex], *, dtype: _Codes) -> NDArray[Any]: ...

# ---- products ----

class PackedMatrix:
    def __new__(cls, b: _Array, params: QParams | Codebook | None, scales: _Array | None = None) -> PackedMatrix: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def params(self) -> QParams | Codebook | None: ...
    @property
    def scales(self) -> NDArray[np.float32] | None: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def level_error(self) -> float: ...
    def unpack(self) -> NDArray[Any]: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> PackedMatrix: ...

def pack(b: _Array, params: QParams | Codebook | None, *, scales: _Array | None = None) -> PackedMatrix: ...
@overload
def matmul(
    a: NDArray[np.int8] | NDArray[np.uint8],
    b: NDArray[np.int8] | NDArray[np.uint8],
    *,
    a_zero_point: _Array = 0,
    b_zero_point: _Array = 0,
    out: None = None,
) -> NDArray[np.int32]: ...
@overload
def matmul(
    a: NDArray[np.int16],
    b: _Array | PackedMatrix,
    *,
    a_zero_point: _Array = 0,
    b_zero_point: _Array = 0,
    out: None = None,
) -> NDArray[np.int64]: ...
@overload
def matmul(
    a: _Array, b: NDArray[np.int16], *, a_zero_point: _Array = 0, b_zero_point: _Array = 0, out: None = None
) -> NDArray[np.int64]: ...
@overload
def matmul(
    a: _Array, b: _Array | PackedMatrix, *, a_zero_point: _Array = 0, b_zero_point: _Array = 0, out: None = None
) -> NDArray[np.int32] | NDArray[np.int64]: ...
@overload
def matmul(
    a: _Array, b: _Array | PackedMatrix, *, a_zero_point: _Array = 0, b_zero_point: _Array = 0, out: _Out
) -> _Out: ...
@overload
def linear(
    x: _Array,
    packed: PackedMatrix,
    bias: _Array | None = None,
    *,
    activation: _Activation | None = None,
    residual: _Array | None = None,
    clamp: _Clamp | None = None,
    params: QParams | None = None,
    out: None = None,
) -> NDArray[np.float32]: ...
@overload
def linear(
    x: _Array,
    packed: PackedMatrix,
    bias: _Array | None = None,
    *,
    activation: _Activation | None = None,
    residual: _Array | None = None,
    clamp: _Clamp | None = None,
    params: QParams | None = None,
    out: _Out,
) -> _Out: ...
@overload
def qlinear(
    q: _Array,
    params: QParams,
    packed: PackedMatrix,
    out_params: QParams,
    bias: _Array | None = None,
    *,
    activation: _Activation | None = None,
    clamp: _Clamp | None = None,
    rounding: _AnyRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qlinear(
    q: _Array,
    params: QParams,
    packed: PackedMatrix,
    out_params: QParams,
    bias: _Array | None = None,
    *,
    activation: _Activation | None = None,
    clamp: _Clamp | None = None,
    rounding: _AnyRounding = "half_even",
    out: _Out,
) -> _Out: ...

# ---- convolution ----

_Pair: TypeAlias = int | tuple[int, int]
_Padding: TypeAlias = int | tuple[int, int] | tuple[int, int, int, int] | Literal["same_upper", "same_lower"]

class PackedConv:
    def __new__(cls, w: _Array, params: QParams, groups: int = 1) -> PackedConv: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def groups(self) -> int: ...
    @property
    def params(self) -> QParams: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    def unpack(self) -> NDArray[Any]: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> PackedConv: ...

def pack_conv(w: _Array, params: QParams, *, groups: int = 1) -> PackedConv: ...
@overload
def qconv2d(
    q: _Array,
    params: QParams,
    packed: PackedConv,
    out_params: None,
    bias: _Array | None = None,
    *,
    strides: _Pair = 1,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    activation: None = None,
    clamp: None = None,
    rounding: Literal["half_even"] = "half_even",
    out: None = None,
) -> NDArray[np.int32]: ...
@overload
def qconv2d(
    q: _Array,
    params: QParams,
    packed: PackedConv,
    out_params: QParams,
    bias: _Array | None = None,
    *,
    strides: _Pair = 1,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    activation: _Activation | None = None,
    clamp: _Clamp | None = None,
    rounding: _AnyRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qconv2d(
    q: _Array,
    params: QParams,
    packed: PackedConv,
    out_params: QParams | None,
    bias: _Array | None = None,
    *,
    strides: _Pair = 1,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    activation: _Activation | None = None,
    clamp: _Clamp | None = None,
    rounding: _AnyRounding = "half_even",
    out: _Out,
) -> _Out: ...
@overload
def max_pool2d(
    q: _Array,
    kernel: _Pair,
    *,
    strides: _Pair | None = None,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def max_pool2d(
    q: _Array,
    kernel: _Pair,
    *,
    strides: _Pair | None = None,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    out: _Out,
) -> _Out: ...
@overload
def qaverage_pool2d(
    q: _Array,
    params: QParams,
    out_params: QParams,
    kernel: _Pair,
    *,
    strides: _Pair | None = None,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    count_include_pad: bool = False,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qaverage_pool2d(
    q: _Array,
    params: QParams,
    out_params: QParams,
    kernel: _Pair,
    *,
    strides: _Pair | None = None,
    padding: _Padding = 0,
    dilations: _Pair = 1,
    count_include_pad: bool = False,
    out: _Out,
) -> _Out: ...
@overload
def qglobal_average_pool(q: _Array, params: QParams, out_params: QParams, *, out: None = None) -> NDArray[Any]: ...
@overload
def qglobal_average_pool(q: _Array, params: QParams, out_params: QParams, *, out: _Out) -> _Out: ...

# ---- layers ----

@overload
def layer_norm(
    x: _Array,
    weight: _Array,
    bias: _Array,
    *,
    eps: SupportsFloat = 1e-12,
    residual: _Array | None = None,
    params: QParams | None = None,
    residual_params: QParams | None = None,
    out_params: None = None,
    out: None = None,
) -> NDArray[np.float32]: ...
@overload
def layer_norm(
    x: _Array,
    weight: _Array,
    bias: _Array,
    *,
    eps: SupportsFloat = 1e-12,
    residual: _Array | None = None,
    params: QParams | None = None,
    residual_params: QParams | None = None,
    out_params: QParams,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def layer_norm(
    x: _Array,
    weight: _Array,
    bias: _Array,
    *,
    eps: SupportsFloat = 1e-12,
    residual: _Array | None = None,
    params: QParams | None = None,
    residual_params: QParams | None = None,
    out_params: QParams | None = None,
    out: _Out,
) -> _Out: ...
@overload
def rotate(x: _Array, seed: int = 0, *, inverse: bool = False, out: None = None) -> NDArray[np.float32]: ...
@overload
def rotate(x: _Array, seed: int = 0, *, inverse: bool = False, out: _Out) -> _Out: ...
@overload
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    heads: int,
    *,
    starts: _Array | None = None,
    scale: SupportsFloat | None = None,
    params: QParams | tuple[QParams, QParams, QParams] | None = None,
    out_params: None = None,
    out: None = None,
) -> NDArray[np.float32]: ...
@overload
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    heads: int,
    *,
    starts: _Array | None = None,
    scale: SupportsFloat | None = None,
    params: QParams | tuple[QParams, QParams, QParams] | None = None,
    out_params: QParams,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    heads: int,
    *,
    starts: _Array | None = None,
    scale: SupportsFloat | None = None,
    params: QParams | tuple[QParams, QParams, QParams] | None = None,
    out_params: QParams | None = None,
    out: _Out,
) -> _Out: ...

# ---- layers on codes ----

_LayerRounding: TypeAlias = Literal["half_even", "tflite"]
_Function: TypeAlias = Literal[
    "sigmoid",
    "tanh",
    "exp",
    "gelu",
    "gelu_tanh",
    "silu",
    "hard_swish",
    "hard_sigmoid",
    "leaky_relu",
    "elu",
    "softplus",
]

def make_table(
    function: _Function | Callable[[NDArray[np.float64]], _Array], params: QParams, out_params: QParams
) -> NDArray[Any]: ...
@overload
def take_table(q: _Array, table: NDArray[_Scalar], *, out: None = None) -> NDArray[_Scalar]: ...
@overload
def take_table(q: _Array, table: _Array, *, out: None = None) -> NDArray[Any]: ...
@overload
def take_table(q: _Array, table: _Array, *, out: _Out) -> _Out: ...
@overload
def qadd(
    a: _Array,
    a_params: QParams,
    b: _Array,
    b_params: QParams,
    out_params: QParams,
    *,
    activation: Literal["relu"] | None = None,
    rounding: _LayerRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qadd(
    a: _Array,
    a_params: QParams,
    b: _Array,
    b_params: QParams,
    out_params: QParams,
    *,
    activation: Literal["relu"] | None = None,
    rounding: _LayerRounding = "half_even",
    out: _Out,
) -> _Out: ...
@overload
def qmultiply(
    a: _Array,
    a_params: QParams,
    b: _Array,
    b_params: QParams,
    out_params: QParams,
    *,
    activation: Literal["relu"] | None = None,
    rounding: _LayerRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qmultiply(
    a: _Array,
    a_params: QParams,
    b: _Array,
    b_params: QParams,
    out_params: QParams,
    *,
    activation: Literal["relu"] | None = None,
    rounding: _LayerRounding = "half_even",
    out: _Out,
) -> _Out: ...
@overload
def qconcatenate(
    parts: Sequence[tuple[_Array, QParams]],
    out_params: QParams,
    *,
    axis: int,
    rounding: _LayerRounding = "half_even",
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qconcatenate(
    parts: Sequence[tuple[_Array, QParams]],
    out_params: QParams,
    *,
    axis: int,
    rounding: _LayerRounding = "half_even",
    out: _Out,
) -> _Out: ...
@overload
def qsoftmax(
    q: _Array,
    params: QParams,
    out_params: QParams,
    *,
    axis: int = -1,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qsoftmax(
    q: _Array,
    params: QParams,
    out_params: QParams,
    *,
    axis: int = -1,
    out: _Out,
) -> _Out: ...
@overload
def qlayer_norm(
    q: _Array,
    params: QParams,
    weight: _Array,
    bias: _Array,
    out_params: QParams,
    *,
    eps: SupportsFloat = 1e-12,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qlayer_norm(
    q: _Array,
    params: QParams,
    weight: _Array,
    bias: _Array,
    out_params: QParams,
    *,
    eps: SupportsFloat = 1e-12,
    out: _Out,
) -> _Out: ...
@overload
def qrms_norm(
    q: _Array,
    params: QParams,
    weight: _Array,
    out_params: QParams,
    *,
    eps: SupportsFloat = 1e-6,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def qrms_norm(
    q: _Array,
    params: QParams,
    weight: _Array,
    out_params: QParams,
    *,
    eps: SupportsFloat = 1e-6,
    out: _Out,
) -> _Out: ...
def fold_batchnorm(
    w: _Array,
    bias: _Array | None,
    gamma: _Array,
    beta: _Array,
    mean: _Array,
    var: _Array,
    *,
    eps: SupportsFloat = 1e-5,
    axis: int = -1,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def smooth(
    w: _Array, activation_absmax: _Array, alpha: SupportsFloat = 0.5
) -> tuple[NDArray[Any], NDArray[np.float32]]: ...
def quantize_bias(bias: _Array, x_params: QParams, w_params: QParams) -> NDArray[np.int32]: ...

# ---- codebooks ----

class Codebook:
    @overload
    def __new__(
        cls, levels: _Array, *, axis: int | None = None, block_size: None = None, vector: bool = False
    ) -> _PlainCodebook: ...
    @overload
    def __new__(
        cls, levels: _Array, *, axis: int | None = None, block_size: int, vector: Literal[False] = False
    ) -> _BlockCodebook: ...
    @overload
    def __new__(
        cls, levels: _Array, *, axis: int | None = None, block_size: int | None, vector: bool = False
    ) -> Codebook: ...
    @overload
    @classmethod
    def fit(
        cls,
        x: _Array,
        k: int,
        *,
        axis: int | None = None,
        block_size: None = None,
        weights: _Array | None = None,
        zero: bool = False,
        vector: int | None = None,
        rng: _Random = None,
    ) -> _PlainCodebook: ...
    @overload
    @classmethod
    def fit(
        cls,
        x: _Array,
        k: int,
        *,
        axis: int | None = None,
        block_size: int,
        weights: _Array | None = None,
        zero: bool = False,
        vector: None = None,
        rng: _Random = None,
    ) -> _BlockCodebook: ...
    @overload
    @classmethod
    def fit(
        cls,
        x: _Array,
        k: int,
        *,
        axis: int | None = None,
        block_size: int | None,
        weights: _Array | None = None,
        zero: bool = False,
        vector: int | None = None,
        rng: _Random = None,
    ) -> Codebook: ...
    @property
    def levels(self) -> NDArray[np.float32]: ...
    @property
    def axis(self) -> int | None: ...
    @property
    def block_size(self) -> int | None: ...
    @property
    def vector(self) -> bool: ...
    @property
    def k(self) -> int: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> Codebook: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@type_check_only
class _PlainCodebook(Codebook):  # `encode` gives codes
    @property
    def block_size(self) -> None: ...

@type_check_only
class _BlockCodebook(Codebook):  # `encode` gives codes and scales
    @property
    def block_size(self) -> int: ...

NF4: _BlockCodebook
FP4: _BlockCodebook

@overload
def encode(
    x: _Array, codebook: _PlainCodebook, *, rounding: _Nearest | _Stochastic = "nearest", seed: int | None = None
) -> NDArray[np.uint8]: ...
@overload
def encode(
    x: _Array, codebook: _BlockCodebook, *, rounding: _Nearest | _Stochastic = "nearest", seed: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...
@overload
def encode(
    x: _Array, codebook: Codebook, *, rounding: _Nearest | _Stochastic = "nearest", seed: int | None = None
) -> Any: ...
@overload
def decode(
    codes: _Array, codebook: Codebook, scales: _Array | None = None, *, out: None = None
) -> NDArray[np.float32]: ...
@overload
def decode(codes: _Array, codebook: Codebook, scales: _Array | None = None, *, out: _Out) -> _Out: ...
def distance_tables(queries: _Array, codebook: Codebook) -> NDArray[np.float32]: ...

class PackedCodes:
    def __new__(cls, codes: _Array) -> PackedCodes: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def unpack(self) -> NDArray[np.uint8]: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> PackedCodes: ...

def pack_codes(codes: _Array) -> PackedCodes: ...
def search(
    queries: _Array, codes: _Array | PackedCodes, codebook: Codebook, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

# ---- clustering ----

_Inertia = TypeVar("_Inertia")

class KMeansResult(NamedTuple, Generic[_Inertia]):
    centroids: NDArray[Any]
    labels: NDArray[Any]
    inertia: _Inertia
    @property
    def n_iter(self) -> int: ...
    @property
    def converged(self) -> bool: ...
    def predict(self, x: _Array) -> NDArray[np.int32]: ...
    def distances(self, x: _Array) -> NDArray[np.float64]: ...

def kmeans(
    x: _Array,
    k: int,
    *,
    weights: _Array | None = None,
    init: Literal["k-means++", "random"] | _Array = "k-means++",
    n_init: int = 1,
    max_iter: int = 100,
    tol: SupportsFloat = 1e-4,
    rng: _Random = None,
    callback: Callable[[int, float], object] | None = None,
) -> KMeansResult[float]: ...
@overload
def kmeans1d(x: _Array, k: int, *, weights: _Array | None = None, axis: None = None) -> KMeansResult[float]: ...
@overload
def kmeans1d(x: _Array, k: int, *, weights: _Array | None = None, axis: int) -> KMeansResult[NDArray[np.float64]]: ...
@overload
def kmeans1d(x: _Array, k: int, *, weights: _Array | None = None, axis: int | None) -> KMeansResult[Any]: ...

_Grid = TypeVar("_Grid", QParams, Codebook)

class GPTQResult(NamedTuple, Generic[_Grid]):
    codes: NDArray[Any]
    params: _Grid
    scales: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    report: dict[str, Any]

def gptq(
    w: _Array,
    hessian: Hessian,
    grid: _Grid | tuple[_Grid, _Array],
    *,
    order: Literal["activation", "natural"] = "activation",
    damp: SupportsFloat = 0.01,
    center: bool = True,
    refine: int = 2,
    refit: bool = False,
) -> GPTQResult[_Grid]: ...

class PruneResult(NamedTuple):
    weights: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    report: dict[str, Any]

def prune(
    w: _Array,
    hessian: Hessian,
    pattern: str | SupportsFloat,
    *,
    damp: SupportsFloat = 0.01,
    center: bool = True,
    passes: int = 8,
) -> PruneResult: ...

class Hessian:
    def __init__(self, k: int) -> None: ...
    @property
    def k(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def sum(self) -> NDArray[np.float64]: ...
    @property
    def moments(self) -> NDArray[np.float64]: ...
    def update(self, x: _Array) -> Hessian: ...
    def merge(self, other: Hessian) -> Hessian: ...
    def to_arrays(self) -> dict[str, NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, _Array]) -> Hessian: ...
