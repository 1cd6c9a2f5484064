"""What matmul, linear and qlinear have in common: arguments that they refuse, overlapping memory, and many threads."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import ml_dtypes
import numpy as np
import pytest
from common import random_codes, refusals, refuse
from numpy.testing import assert_array_equal
from products import exact, wrapped

import qkernels as qk

# ---- bad input ----


A, B = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(12, dtype=np.int8).reshape(3, 4)
X, PARAMS = A.astype(np.float32), qk.QParams(0.5)
PACKED = qk.pack(B, PARAMS)
CALLS = {
    "matmul": (qk.matmul, {"a": A, "b": B}, np.int32),
    "linear": (qk.linear, {"x": X, "packed": PACKED}, np.float32),
    "qlinear": (
        qk.qlinear,
        {"q": A, "params": qk.QParams(0.5, 3, "uint8"), "packed": PACKED, "out_params": PARAMS},
        np.int8,
    ),
}


def with_bad_value(value):
    x = X.copy()
    x[1, 2] = value
    return x


@refusals(r"""
matmul(a=A.astype(np.int32))  # TypeError: a must be uint8, int8 or int16, got int32
matmul(a=X)  # TypeError: a must be uint8, int8 or int16, got float32
matmul(b=B.astype(np.int32))  # TypeError: b must be uint8, int8 or int16, got int32
matmul(b=B[0])  # ValueError: b must have shape \(\.\.\., K, N\), got \(4,\)
matmul(b=B[None])  # ValueError: out must have shape \(1, 2, 4\), got \(2, 4\)
matmul(a=A.T)  # ValueError: a must have 3 columns to match b, got shape \(3, 2\)
matmul(a=A.T, b=PACKED)  # ValueError: a must have 3 columns to match b, got shape \(3, 2\)
matmul(a=np.uint8(3))  # ValueError: a must have 3 columns to match b, got shape \(\)
matmul(a_zero_point=256)  # ValueError: a_zero_point must be within \[0, 255\] for uint8, got 256
matmul(a_zero_point=-1)  # ValueError: a_zero_point must be within \[0, 255\] for uint8, got -1
matmul(b_zero_point=128)  # ValueError: b_zero_point must be within \[-128, 127\] for int8, got 128
matmul(a_zero_point=[1, 2, 3])  # ValueError: a_zero_point must be a scalar or have shape \(2,\), got \(3,\)
matmul(b_zero_point=[1, 2])  # ValueError: b_zero_point must be a scalar or have shape \(4,\), got \(2,\)
matmul(b_zero_point=[[1, 2, 3, 4]])  # ValueError: b_zero_point must be .* shape \(4,\), got \(1, 4\)
matmul(a_zero_point=1.5)  # TypeError: a_zero_point must be an integer or an array of integers, got 1.5
linear(x=A)  # TypeError: x must be float32, float64, float16 or bfloat16, got uint8
linear(x=X.T)  # ValueError: x must have 3 columns to match packed, got shape \(3, 2\)
linear(x=with_bad_value(np.nan))  # ValueError: x has 1 NaN or infinite values, the first at \(1, 2\)
linear(x=with_bad_value(-np.inf))  # ValueError: x has 1 NaN or infinite values, the first at \(1, 2\)
linear(packed=B)  # TypeError: packed must be a PackedMatrix, got ndarray
linear(bias=np.ones(3, np.float32))  # ValueError: bias must have shape \(4,\), got \(3,\)
linear(bias=np.ones(4, np.int32))  # TypeError: bias must be a float array, got int32
linear(activation="tanh")  # ValueError: activation must be one of None, 'relu', 'gelu', 'gelu_tanh', 'silu', got 'tanh'
linear(residual=np.ones((2, 3), np.float32))
    # ValueError: residual must have shape \(2, 4\) \(as the result\), got \(2, 3\)
linear(residual=np.ones(4, np.float32))  # ValueError: residual must have shape \(2, 4\)
linear(residual=np.ones((2, 4)))  # TypeError: residual must be float32, got float64
linear(clamp=6)  # TypeError: clamp must be None or a pair of floats \(lo, hi\), got 6
linear(clamp=(0, "6"))  # TypeError: clamp must be None or a pair of floats
linear(clamp=(0, 1, 2))  # TypeError: clamp must be None or a pair of floats
linear(clamp=(1, 0))  # ValueError: clamp must have lo <= hi, got \(1, 0\)
linear(clamp=(np.nan, 0))  # ValueError: clamp must have lo <= hi
qlinear(clamp=(1, 0))  # ValueError: clamp must have lo <= hi, got \(1, 0\)
qlinear(bias=np.float32([1, np.nan, np.inf, 0]))  # ValueError: bias has 2 NaN or infinite values, the first at \(1,\)
linear(activation=["relu"])  # ValueError: activation must be one of .*, got \['relu'\]
qlinear(q=A.astype(np.int8))  # TypeError: q must have dtype uint8 \(as params\), got int8
qlinear(q=X)  # TypeError: q must have dtype uint8
qlinear(q=A.T)  # ValueError: q must have 3 columns to match packed, got shape \(3, 2\)
qlinear(params=0.5)  # TypeError: params must be QParams, got float
qlinear(params=qk.QParams(1, dtype="uint4"))  # TypeError: params must have dtype int8 or uint8, got uint4
qlinear(params=qk.QParams([1.0, 1.0], dtype="uint8", axis=0))  # ValueError: params must be per tensor, got axis 0
qlinear(packed=B)  # TypeError: packed must be a PackedMatrix, got ndarray
qlinear(out_params=None)  # TypeError: out_params must be QParams, got NoneType
qlinear(out_params=qk.QParams(1, dtype="int16"))  # TypeError: out_params must have dtype int8 or uint8, got int16
qlinear(out_params=qk.QParams([1.0] * 4, axis=1))  # ValueError: out_params must be per tensor, got axis 1
qlinear(bias=np.ones(3, np.int32))  # ValueError: bias must have shape \(4,\), got \(3,\)
qlinear(bias=np.full(4, 2**31))  # ValueError: bias must fit int32, got .*2147483648
qlinear(bias=np.ones(4, complex))  # TypeError: bias must be int32 or a float array, got complex128
qlinear(bias=np.ones(4, np.float32), rounding="tflite")
    # TypeError: bias must be int32 with rounding 'tflite', got float32
qlinear(rounding="up")  # ValueError: rounding must be one of 'half_even', .*, got 'up'
qlinear(activation="tanh")  # ValueError: activation must be one of .*, got 'tanh'
qlinear(activation="gelu", rounding="gemmlowp")
    # ValueError: activation must be None or 'relu' with rounding 'gemmlowp', got 'gelu'
""")
def test_bad_input(refusal):
    outs = {name: np.full((2, 4), 77, dtype) for name, (_, _, dtype) in CALLS.items()}
    calls = {name: partial(function, **given, out=outs[name]) for name, (function, given, _) in CALLS.items()}
    refuse(refusal, globals() | calls)
    assert all((out == 77).all() for out in outs.values())


BLOCKED = "uint8 with a scale for each block of rows"
UINT8 = qk.QParams(1, 0, "uint8")
OTHERS = [  # what they are called; whether `matmul` takes them, by a of their own type
    (B.astype(ml_dtypes.int4), qk.QParams(1, dtype="int4"), "int4", False),
    (B.astype(np.uint8), qk.Codebook(range(16)), "codes of a Codebook", False),
    (B.astype(np.float16), None, "float16", False),
    (B.astype(ml_dtypes.bfloat16), None, "bfloat16", False),
    (B.astype(np.int16), qk.QParams(1, dtype="int16"), "int16", True),
    (B.view(np.uint8), qk.QParams(np.ones((2, 4)), dtype="uint8", axis=0, block_size=2), BLOCKED, False),
]


@pytest.mark.parametrize("rounding", ["half_even", "tflite"])
@pytest.mark.parametrize(("b", "params", "what", "in_matmul"), OTHERS, ids=[what for _, _, what, _ in OTHERS])
def test_weights_for_linear_alone_are_refused(b, params, what, in_matmul, rounding):
    packed = qk.pack(b, params)
    words = f"must hold {'weights with one scale a column' if what is BLOCKED else '8-bit weights'}, got {what}"
    if what != "codes of a Codebook":
        words += ": such weights are for linear"
    with pytest.raises(TypeError, match="packed " + words):
        qk.qlinear(A, UINT8, packed, UINT8, rounding=rounding)
    if not in_matmul:
        with pytest.raises(TypeError, match="b " + words):
            qk.matmul(A, packed)


def overlapping(x, shape, dtype, offset):
    """A copy of x and an `out` that begins `offset` bytes after the copy's begin."""
    memory = np.full(4096, 77, np.uint8)
    copy = memory[64 : 64 + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return copy, memory[64 + offset : 64 + offset + size].view(dtype).reshape(shape)


@pytest.mark.parametrize(
    ("name", "argument", "x"),
    [
        ("matmul", "a", A),
        ("matmul", "b", B),
        ("matmul", "a_zero_point", np.ones(2, np.int32)),
        ("linear", "x", X),
        ("linear", "bias", np.ones(4, np.float32)),
        ("qlinear", "q", A),
        ("qlinear", "bias", np.ones(4, np.int32)),
        ("qlinear", "bias", np.ones(4, np.float32)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_out_must_not_overlap_input(name, argument, x, transposed):
    function, arguments, dtype = CALLS[name]
    arguments = dict(arguments)
    for offset in (0, 4):
        copy, out = overlapping(x.T if transposed else x, (2, 4), dtype, offset)
        before = out.tobytes()
        arguments[argument] = copy.T if transposed else copy
        with pytest.raises(ValueError, match=f"out must not overlap {argument}"):
            function(**arguments, out=out)
        assert out.tobytes() == before
    copy, out = overlapping(x, (2, 4), dtype, -(-x.nbytes // 4) * 4)
    arguments[argument] = copy
    assert function(**arguments, out=out) is out


# ---- threads ----


def test_one_matrix_in_many_python_threads():
    rng = np.random.default_rng(0)
    b = random_codes(rng, (257, 301), "int8")
    packed = qk.pack(b, qk.QParams(0.01))
    lefts = [random_codes(rng, (m, 257), "uint8") for m in (1, 63, 200, 7, 150, 33, 90, 11)]
    together = Barrier(len(lefts))

    def work(a):
        together.wait(timeout=60)
        return [qk.matmul(a, packed) for _ in range(20)]

    with ThreadPoolExecutor(len(lefts)) as pool:
        for a, results in zip(lefts, pool.map(work, lefts)):
            want = wrapped(exact(a, b))
            for result in results:
                assert_array_equal(result, want, strict=True)
