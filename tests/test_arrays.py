"""The door by which arrays come in: tensors, DLPack, NumPy's protocols and subclasses of ndarray are taken wherever an
array is, as views of their memory, and as `out`. Torch itself need not be installed: a class of its name and ways
stands in for it."""

import ctypes
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from calls import CALLS, call
from common import output

import qkernels as qk
from qkernels._bind import arrays

BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
SMALL = {t.name: t for t in (BFLOAT16, FLOAT8, np.dtype(ml_dtypes.float8_e5m2))}

# ---- stand-ins ----


class TorchDtype:
    __module__ = "torch"

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


class Tensor:
    """What matters of torch.Tensor: no types but NumPy's go to NumPy, nor what requires a gradient or is conjugated or
    negated lazily."""

    __module__ = "torch"

    def __init__(self, array, requires_grad=True, lazy=False, device="cpu"):
        self.array, self.requires_grad, self.lazy = array, requires_grad, lazy
        self.dtype, self.device = TorchDtype(array.dtype.name), types.SimpleNamespace(type=device)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("numpy() is the way")

    def detach(self):
        return Tensor(self.array, False, self.lazy)

    def resolve_conj(self):
        return Tensor(self.array, self.requires_grad)

    resolve_neg = resolve_conj

    def view(self, dtype):
        return Tensor(self.array.view(repr(dtype).removeprefix("torch.")), self.requires_grad, self.lazy)

    def numpy(self):
        if self.requires_grad or self.lazy:
            raise RuntimeError("Can't call numpy() on this tensor")
        if self.array.dtype.kind == "V":
            raise TypeError("Got unsupported ScalarType")
        return self.array


class Parameter(Tensor):
    __module__ = "torch.nn.parameter"


class DLPack:
    """An object of DLPack alone, whose small floats have the types that DLPack gives them."""

    codes = {"bfloat16": 4, "float8_e4m3fn": 10, "float8_e5m2": 12}

    def __init__(self, array, versioned=True):
        self.array, self.versioned = array, versioned

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        name = self.array.dtype.name
        bits = self.array.view(f"u{self.array.dtype.itemsize}") if name in self.codes else self.array
        capsule = bits.__dlpack__(**(options if self.versioned else {}))
        if name in self.codes:
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            versioned = "versioned" in repr(capsule)
            tensor = pointer(capsule, b"dltensor_versioned" if versioned else b"dltensor") + 32 * versioned
            ctypes.c_uint8.from_address(tensor + 20).value = self.codes[name]  # data, device, ndim: 8 + 8 + 4 bytes
        return capsule


def on_device(kind, *device):
    """Return the class of such objects whose memory is elsewhere, whatever they would copy for NumPy."""
    return types.new_class("Elsewhere", (kind,), {}, lambda d: d.update(__dlpack_device__=lambda self: device))


class OfCUDA:
    """An array of numba.cuda, say."""

    __cuda_array_interface__ = dict(shape=(2,), typestr="<f4", data=(4096, False), version=3)


class ByArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class ByInterface:
    def __init__(self, array):
        self.array, self.__array_interface__ = array, array.__array_interface__


class Lying(np.ndarray):
    shape = property(lambda self: (2**40,))
    dtype = property(lambda self: np.dtype("O"))
    ndim = property(lambda self: 99)
    flags = property(lambda self: None)

    def __array_wrap__(self, *others):
        raise AssertionError("not to be asked")

    def __array_ufunc__(self, *others, **options):
        raise AssertionError("not to be asked")


def real_torch(array):
    import torch

    bits = (
        array.view(f"i{array.dtype.itemsize}" if array.dtype.itemsize > 1 else np.uint8)
        if array.dtype.name in SMALL
        else array
    )
    tensor = torch.from_numpy(bits)
    return tensor.view(getattr(torch, array.dtype.name)) if array.dtype.name in SMALL else tensor


def real_jax(array):
    import jax.numpy

    return jax.numpy.asarray(array)


KINDS = {
    "torch": real_torch,
    "jax": real_jax,
    "tensor": Tensor,
    "parameter": Parameter,
    "lazy tensor": lambda a: Tensor(a, lazy=True),
    "DLPack": DLPack,
    "DLPack of old": lambda a: DLPack(a, False),
    "__array__": ByArray,
    "__array_interface__": ByInterface,
    "matrix": lambda a: a.view(np.matrix),
    "memmap": lambda a: a.view(np.memmap),
    "unmasked": lambda a: np.ma.array(a, copy=False),
    "lying": lambda a: a.view(Lying),
}


def takes(kind, array):
    """Whether such an object can hold the array at all."""
    small, subbyte = array.dtype.name in SMALL, array.dtype.kind == "V" and array.dtype.name not in SMALL
    if kind == "torch":
        return not subbyte
    if kind == "jax":  # whose arrays have 32 bits, the order of the CPU, and are contiguous
        return (
            array.dtype.kind in "iufV"
            and array.dtype.isnative
            and array.dtype.itemsize < 8
            and (array.flags.c_contiguous and not array.dtype.name.startswith("float6"))
        )
    if kind.startswith("DLPack") or kind == "tensor" or "tensor" in kind or kind == "parameter":
        return not subbyte
    return {"__array_interface__": not small and not subbyte, "matrix": array.ndim == 2}.get(kind, True)


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    if request.param == "torch":
        pytest.importorskip("torch", exc_type=ImportError)
    elif request.param == "jax":
        pytest.importorskip("jax")
    elif "torch" not in sys.modules:
        monkeypatch.setitem(
            sys.modules, "torch", types.SimpleNamespace(int16=TorchDtype("int16"), uint8=TorchDtype("uint8"))
        )
    return request.param


# ---- laws ----


def same(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "to_arrays"):
        first, second = a.to_arrays(), b.to_arrays()
        return type(a) is type(b) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if not isinstance(a, np.ndarray):
        return type(a) is type(b) and (a == b or a is None)
    return type(a) is type(b) is np.ndarray and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


ARRAYS = [
    (name, i, argument)
    for name, calls in sorted(CALLS.items())
    for i, arguments in enumerate(calls)
    for argument, value in arguments.items()
    if isinstance(value, (np.ndarray, list)) and argument != "candidates"
]


@pytest.mark.parametrize(("name", "i", "argument"), ARRAYS)
def test_each_kind_of_array_is_taken_wherever_an_array_is(name, i, argument, kind):
    arguments = {key: value for key, value in CALLS[name][i].items() if key != "out"}
    array = np.asarray(arguments[argument])
    if takes(kind, array):
        expected = call(name, arguments)
        given = KINDS[kind](array.copy())
        assert same(call(name, arguments | {argument: given}), expected)


@pytest.mark.parametrize(
    ("name", "i"),
    [(name, i) for name, calls in sorted(CALLS.items()) for i, arguments in enumerate(calls) if "out" in arguments],
)
def test_each_kind_of_array_may_be_out_and_is_returned(name, i, kind):
    arguments = CALLS[name][i]
    expected = call(name, arguments | {"out": arguments["out"]()})
    memory = arguments["out"]()
    if takes(kind, memory) and kind != "jax":
        out = KINDS[kind](memory)
        assert call(name, arguments | {"out": out}) is out
        assert same(memory, expected)


@pytest.mark.parametrize("name", ["from_arrays of int8", "from_arrays of a codebook"])
def test_each_kind_of_array_is_taken_in_a_mapping(name, kind):
    packed = qk.pack(
        *(
            (np.int8([[1, 2], [3, 4]]), qk.QParams([1, 2], axis=1))
            if "int8" in name
            else (np.uint8([[1, 2], [3, 0]]), qk.Codebook([0, 1, 2, 3]))
        )
    )
    arrays = {key: KINDS[kind](a) if takes(kind, a) else a for key, a in packed.to_arrays().items()}
    assert same(qk.PackedMatrix.from_arrays(arrays), packed)


@pytest.mark.parametrize(
    "layout", [lambda a: a, lambda a: a.T, lambda a: a[::2, 1::3], lambda a: a[0, 0], lambda a: a[:0]]
)
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "uint16", *SMALL.values()],
    ids=str,
)
def test_what_comes_in_is_a_view_of_what_was_given(dtype, layout, kind):
    array = np.asarray(layout(np.arange(48).reshape(6, 8).astype(dtype)))
    if takes(kind, array):
        got = arrays.as_array(KINDS[kind](array), "x")
        assert type(got) is np.ndarray and got.dtype == array.dtype and got.shape == array.shape
        assert same(np.ascontiguousarray(got), np.ascontiguousarray(array))
        assert got.strides == array.strides or array.size <= 1
        if kind != "jax":  # which has copied it
            assert np.shares_memory(got, array) or array.size == 0 or array.ndim == 0 and kind == "matrix"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("named", [TorchDtype, lambda name: f"torch.{name}", str, np.dtype])
def test_dtypes_go_by_the_names_that_torch_gives_them(dtype, named):
    assert qk.dequantize(np.int8([1]), qk.QParams(1), dtype=named(dtype)).dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int4", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("named", [TorchDtype, lambda name: f"torch.{name}"])
def test_dtypes_of_codes_go_by_the_names_that_torch_gives_them(dtype, named):
    expected = qk.QParams(1, dtype=dtype)
    assert qk.QParams(1, dtype=named(dtype)) == expected
    assert (
        qk.choose_qparams(np.ones(2), named(dtype)).dtype
        == qk.dynamic_quantize(np.ones(2), named(dtype))[0].dtype
        == expected.dtype
    )
    if dtype in ("int8", "uint8", "int4"):
        assert qk.unpack_bits(np.uint8([0]), 4, 2, dtype=named(dtype)).dtype == expected.dtype


def test_torch_calls_float32_float():
    assert qk.dequantize(np.int8([1]), qk.QParams(1), dtype="torch.float").dtype == np.float32


def test_mixed_arguments_of_8_and_16_bits(kind):
    a, b = np.int8([[1, -2]]), np.int16([[300], [4]])
    assert same(qk.matmul(a, KINDS[kind](b)), np.int64([[292]]))
    assert same(qk.matmul(KINDS[kind](b.T), a.T), np.int64([[292]]))


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=str)
def test_half_floats_are_taken_as_scales_multipliers_and_levels(dtype, kind):
    values = np.array([0.5, 2], dtype)
    if takes(kind, values):
        given, wide = KINDS[kind](values), values.astype(np.float32)
        assert qk.QParams(given, axis=0) == qk.QParams(wide, axis=0)
        acc, params = np.int32([[5, 9]]), qk.QParams(1)
        for rounding in "half_even", "half_away", "gemmlowp", "tflite":
            assert same(
                qk.requantize(acc, given, params, rounding=rounding),
                qk.requantize(acc, wide, params, rounding=rounding),
            )
        assert same(qk.quantize_multiplier(given), qk.quantize_multiplier(wide))
        assert qk.Codebook(given) == qk.Codebook(wide)


# ---- refusals ----


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.ma.array([1, 2], np.float32, mask=[0, 1]), "it is masked, at 1 of its values"),
        (np.ma.masked, "it is masked"),
        (ByArray(np.ma.array([1.0], mask=True)), "it is masked"),
        (Tensor(np.ones(2), device="cuda"), "it lies on .*cuda.*, not in the CPU's memory"),
        (Tensor(np.ones(2), device="meta"), "it lies on the meta device, where tensors have no values"),
        (on_device(DLPack, 2, 0)(np.ones(2)), r"it lies on DLPack's device \(2, 0\), CUDA, not in the CPU's memory"),
        (on_device(ByArray, 10, 1)(np.ones(2)), r"it lies on DLPack's device \(10, 1\), ROCm, not in"),
        (on_device(ByArray, 2, None)(np.ones(2)), r"it lies on DLPack's device \(2, None\), CUDA, not in"),
        (OfCUDA(), "it lies on a CUDA device, as its __cuda_array_interface__ says, not in the CPU's memory"),
    ],
    ids=[
        "mask",
        "masked",
        "mask by __array__",
        "tensor elsewhere",
        "tensor nowhere",
        "DLPack",
        "jax",
        "no number",
        "CUDA",
    ],
)
@pytest.mark.parametrize(("name", "i", "argument"), ARRAYS)
def test_masks_and_other_memory_are_refused_everywhere(name, i, argument, value, reason):
    if argument == "arrays":
        return
    with pytest.raises(TypeError, match=rf"^{argument} must be an array, got a \w+: {reason}"):
        call(name, {key: v() if key == "out" else v for key, v in CALLS[name][i].items()} | {argument: value})


def test_only_an_object_knows_whether_it_is_on_a_device():
    """Its class may have a property for it, which the CPU's lack."""

    class Either(ByArray):
        @property
        def __cuda_array_interface__(self):
            if self.array is not None:
                raise AttributeError
            return OfCUDA.__cuda_array_interface__

    np.testing.assert_array_equal(arrays.as_array(Either(np.arange(3)), "x"), np.arange(3))
    with pytest.raises(TypeError, match="x must be an array, got a Either: it lies on a CUDA device"):
        arrays.as_array(Either(None), "x")


def test_that_a_device_is_not_known_is_no_matter_but_that_memory_ends_is():
    class Asked(ByArray):
        def __dlpack_device__(self):
            raise self.error

    x = Asked(np.arange(3))
    x.error = RuntimeError("on several")
    np.testing.assert_array_equal(arrays.as_array(x, "x"), np.arange(3))
    x.error = MemoryError("none left")
    with pytest.raises(MemoryError, match="none left"):
        arrays.as_array(x, "x")


def test_a_mask_is_refused_in_out():
    out = np.ma.array(np.zeros(2, np.int8), mask=[0, 1])
    with pytest.raises(TypeError, match="out must be an array, got a MaskedArray: it is masked"):
        qk.quantize(np.zeros(2, np.float32), qk.QParams(1), out=out)


def test_arrays_of_jax_are_read_in_place_and_are_no_out():
    jax = pytest.importorskip("jax")
    x = jax.numpy.arange(12, dtype="float32").reshape(3, 4)
    first, again = (arrays.as_array(x, "x") for _ in range(2))
    assert np.shares_memory(first, again) and not first.flags.writeable
    with pytest.raises(ValueError, match="out must be writeable, got a read-only array"):
        qk.quantize(x, qk.QParams(1), out=jax.numpy.zeros((3, 4), "int8"))
    with pytest.raises(TypeError, match="x must be an array, got a DynamicJaxprTracer"):
        jax.jit(lambda x: qk.quantize(x, qk.QParams(1)))(x)


TENSORS = {  # what torch makes, and why it is refused, or the floats that it is read as
    "meta": (lambda torch: torch.empty(2, device="meta"), "meta device"),
    "sparse": (lambda torch: torch.eye(2).to_sparse(), "Sparse layout"),
    "of zeros without memory": (lambda torch: torch._efficientzerotensor(2), "ZeroTensor"),
    "with a gradient": (lambda torch: torch.ones(2, requires_grad=True), [1, 1]),
    "of a graph": (lambda torch: torch.ones(2, requires_grad=True) * 2, [2, 2]),
    "negated": (lambda torch: torch.tensor([1 + 2j, 3 + 4j]).conj().imag, [-2, -4]),
    "conjugated": (lambda torch: torch.tensor([1 + 2j]).conj(), "float32, .*, got complex64"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_torch_that_are_no_plain_memory(name):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    make, expected = TENSORS[name]
    if isinstance(expected, str):
        with pytest.raises(TypeError, match=f"^x must be .*{expected}"):
            qk.quantize(make(torch), qk.QParams(1))
    else:
        assert same(qk.quantize(make(torch), qk.QParams(1)), np.int8(expected))


def test_a_lazily_negated_tensor_is_no_out():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    with pytest.raises(TypeError, match="out must be an array whose memory can be written, got a Tensor"):
        qk.dequantize(np.int8([1, 2]), qk.QParams(1), out=torch.tensor([1 + 2j, 3 + 4j]).conj().imag)


@pytest.mark.parametrize("out", [[0, 0], np.int8(0), 3, range(2)])
def test_what_numpy_copies_is_no_out(out):
    with pytest.raises(TypeError, match="out must be an array whose memory can be written, got a"):
        qk.quantize(np.zeros(2, np.float32), qk.QParams(1), out=out)


def test_an_overlap_is_seen_through_any_kind(kind):
    if kind == "jax":
        pytest.skip("its arrays share no memory")
    memory = np.zeros((4, 4), np.int8)
    acc, out = KINDS[kind](memory.view(np.int32)), KINDS[kind](memory[:1].reshape(4, 1))
    with pytest.raises(ValueError, match="out must not overlap acc"):
        qk.requantize(acc, 1.0, qk.QParams(1), out=out)


def test_torch_is_not_imported():
    output("""
        import sys, numpy as np, qkernels as qk
        qk.quantize([1.0], qk.QParams(1, dtype='torch.int8'))
        qk.dequantize(np.int8([1]), qk.QParams(1), dtype='torch.float32')
        assert 'torch' not in sys.modules
    """)
