"""A valid call of each public function, for the tests that vary one argument at a time."""

import functools
import inspect
import tempfile

import ml_dtypes
import numpy as np

import qkernels as qk
from qkernels import layouts, observers

X, ROW = np.float32([[0.5, -1, 0.25, 2], [1, 0, 3, -2]]), np.float32([1, 2, 3])
Q, U = np.int8([[5, -1, 0, 2], [1, 0, 3, -2]]), np.uint8([[5, 1, 0, 2], [1, 0, 3, 2]])
W = np.int8(np.arange(-6, 6).reshape(4, 3))
PARAMS, UNSIGNED = qk.QParams(0.5), qk.QParams(0.25, 3, "uint8")
BOOK, BLOCKS = qk.Codebook([-1, 0, 1, 2]), qk.Codebook([-1, 0, 1, 2], axis=0, block_size=2)
VECTORS, FLOAT8 = qk.Codebook([[0, 0], [4, 4]], vector=True), qk.QParams(2, dtype="float8_e5m2")
WEIGHTS, SUMS = np.uint8(W % 4), np.int32([[1, 2, 3]])
INTEGERS = dict(axis=0, block_size=4, block_scale=[[1, 2, 3]], block_shift=[[0, -1, 2]])
PACKED = {
    "int8": qk.pack(W, PARAMS),
    "uint8": qk.pack(W.view(np.uint8), qk.QParams(0.5, 3, "uint8")),
    "columns": qk.pack(W, qk.QParams([0.5, 1, 2], axis=1)),
    "int16": qk.pack(W.astype(np.int16), qk.QParams(0.5, dtype="int16")),
    "int4": qk.pack(W.astype(ml_dtypes.int4), qk.QParams(0.5, dtype="int4")),
    "float4": qk.pack(W.astype(ml_dtypes.float4_e2m1fn), qk.QParams(0.5, dtype="float4_e2m1fn")),
    "float16": qk.pack(W.astype(np.float16), None),
    "codebook": qk.pack(WEIGHTS, BOOK),
    "blocks of 8 bits": qk.pack(W, qk.QParams(np.ones((2, 3)), [[1, 2, 3], [0, 0, 1]], axis=0, block_size=2)),
    "folded": qk.pack(W.astype(ml_dtypes.int4), FOLDED := qk.QParams(ROW, dtype="int4", **INTEGERS)),
    "blocks": qk.pack(WEIGHTS, BLOCKS, scales=np.ones((2, 3), np.float32)),
}


IMAGE, FILTERS = np.int8(np.arange(-30, 30).reshape(1, 5, 6, 2)), np.int8(np.arange(-18, 18).reshape(3, 3, 2, 2))
CONVS = [qk.pack_conv(FILTERS, PARAMS), qk.pack_conv(FILTERS[:, :, :1], qk.QParams([0.5, 1], [0, 3], axis=3), groups=2)]


def out(shape, dtype=np.float32):
    return np.full(shape, 77, dtype)


GGUF = np.zeros((2, 34), np.uint8)
CALLS = {}  # name of the function: its valid calls. An `out` is a function that makes it.


def saved(arrays):
    """Save and load them; what a path may be is a matter of test_io.py."""
    with tempfile.TemporaryDirectory() as folder:
        qk.io.save(f"{folder}/x.safetensors", arrays)
        return qk.io.load(f"{folder}/x.safetensors")


def valid(name, **arguments):
    CALLS.setdefault(name, []).append(arguments)


valid("Codebook", levels=[-1, 0, 1], axis=None, block_size=2, vector=False)
valid("Codebook", levels=X, axis=0)
valid("Codebook", levels=X, vector=True)
for book in BOOK, BLOCKS, VECTORS, qk.Codebook(X, axis=0):
    valid("Codebook.from_arrays", arrays=book.to_arrays())
valid("Codebook.fit", x=X, k=2, axis=0, weights=np.abs(X) + 1, zero=True)
valid("Codebook.fit", x=X, k=2, axis=1, block_size=2)
no_lines = dict(axis=None, block_size=None, zero=False)
valid("Codebook.fit", x=X, k=2, weights=[1, 2], vector=2, rng=0, **no_lines)
HESSIAN = qk.Hessian(4).update(X)
valid("Hessian", k=3)
valid("Hessian.from_arrays", arrays=HESSIAN.to_arrays())
valid("Hessian.update", x=X)
valid("Hessian.merge", other=HESSIAN)
valid("PackedMatrix", b=W, params=PARAMS, scales=None)
for packed in PACKED.values():
    valid("PackedMatrix.from_arrays", arrays=packed.to_arrays())
valid("PackedCodes", codes=U)
valid("PackedCodes.from_arrays", arrays=qk.pack_codes(U).to_arrays())
valid("PackedConv", w=FILTERS, params=PARAMS, groups=1)
for packed in CONVS:
    valid("PackedConv.from_arrays", arrays=packed.to_arrays())
valid("QParams", scale=[0.5, 1], zero_point=[1, 2], dtype="uint8", axis=0, block_size=None, narrow_range=False)
valid("QParams", scale=0.5, zero_point=0, dtype="float8_e4m3fn")
valid("QParams", scale=[[0.5, 1]], axis=1, block_size=4)
valid("QParams", scale=ROW, dtype="uint4", **INTEGERS)
for params in PARAMS, UNSIGNED, FLOAT8, FOLDED, qk.QParams([[0.5, 1]], axis=1, block_size=4, narrow_range=True):
    valid("QParams.from_arrays", arrays=params.to_arrays())
valid("allocate_bits", errors=X, sizes=X[1] + 2, budget=8.5)
valid("attention", q=X, k=X, v=X, heads=2, starts=[0, 1, 2], scale=0.5, out=lambda: out((2, 4)))
valid("attention", q=Q, k=Q, v=Q, heads=2, params=PARAMS, out_params=UNSIGNED, out=lambda: out((2, 4), np.uint8))
valid("attention", q=Q, k=U, v=Q, heads=2, params=(PARAMS, UNSIGNED, PARAMS), out_params=None)
least = dict(method="mse", importance=np.abs(X) + 1)
valid("choose_qparams", x=X, dtype="int8", axis=0, block_size=2, symmetric=True, narrow_range=True, **least)
valid("choose_qparams", x=X, dtype="float8_e4m3fn")
valid("choose_qparams", x=X, dtype="uint4", axis=0, block_size=4, scale_bits=4, **least)
valid("choose_qparams", x=X, dtype="float4_e2m1fn", axis=1, block_size=2, method="mx", scale_rounding="even")
valid("choose_qparams", x=X, dtype="float4_e2m1fn", axis=0, method="nvfp4", tensor_scale=0.5)
valid("choose_qparams", x=X, dtype="uint8", axis=1, method="percentile", percentile=99.0)
valid("choose_qparams", x=X, dtype="int4", method="entropy")
valid("decode", codes=U % 4, codebook=BLOCKS, scales=np.ones((1, 4), np.float32), out=lambda: out((2, 4)))
valid("decode", codes=U % 2, codebook=VECTORS, out=lambda: out((2, 8)))
valid("dequantize", q=Q, params=PARAMS, dtype="float16", out=lambda: out((2, 4), np.float16))
valid("dequantize", q=W.astype(ml_dtypes.int4), params=FOLDED, out=lambda: out((4, 3)))
valid("dequantize", q=X.astype(ml_dtypes.float8_e5m2), params=FLOAT8, dtype=np.float32, out=lambda: out((2, 4)))
valid("distance_tables", queries=X, codebook=VECTORS)
valid("dynamic_quantize", x=X, dtype="uint8", axis=0, symmetric=False)
valid("dynamic_quantize", x=X, dtype="float8_e4m3fn", axis=1)
valid("encode", x=X, codebook=BLOCKS)
valid("encode", x=X, codebook=BLOCKS, rounding="stochastic", seed=5)
valid("encode", x=X, codebook=VECTORS)
valid("encode", x=X.astype(float), codebook=BOOK)
valid("fake_quantize", x=X, params=PARAMS, out=lambda: out((2, 4)))
valid("fake_quantize", x=W / np.float32(7), params=FOLDED, out=lambda: out((4, 3)))
valid("fake_quantize", x=X, params=FLOAT8, out=lambda: out((2, 4)))
valid("fake_quantize", x=X, params=PARAMS, rounding="stochastic", seed=1, out=lambda: out((2, 4)))
valid("fake_quantize_grad", grad=X, x=X, params=PARAMS, edge="clipped")
valid("fake_quantize_grad", grad=X, x=X, params=qk.QParams(np.ones((2, 2)), axis=1, block_size=3))
four = dict(gamma=ROW, beta=ROW, mean=ROW, var=ROW)
valid("fold_batchnorm", w=np.ones((4, 3), np.float32), bias=ROW, **four, eps=1e-3, axis=1)
valid("from_gguf", data=GGUF, kind="Q8_0", codes=False, out=lambda: out((2, 32)))
valid("from_gguf", data=GGUF, kind="Q8_0", codes=True)
valid("get_include")
valid("get_num_threads")
way = dict(order="natural", damp=0.5, center=False, refine=1, refit=True)
valid("gptq", w=W / np.float32(7), hessian=HESSIAN, grid=qk.QParams([0.5, 1, 2], axis=1), **way)
valid("gptq", w=W / np.float32(7), hessian=HESSIAN, grid=FOLDED, **way)
valid("gptq", w=W / np.float32(7), hessian=HESSIAN, grid=(BLOCKS, np.ones((2, 3), np.float32)))
valid("io.save and load", arrays={"layer": {"w": PACKED["int4"], "bias": ROW}, "x": UNSIGNED, "book": BOOK})
valid("kmeans", x=X, k=2, weights=[1, 2], init="random", n_init=2, max_iter=3, tol=1e-3, rng=0, callback=None)
valid("kmeans", x=X, k=2, init=X, n_init=1)
valid("kmeans1d", x=X, k=2, weights=np.abs(X) + 1, axis=1)
valid("layer_norm", x=X, weight=X[0], bias=X[0], eps=1e-5, residual=X, out=lambda: out((2, 4)))
columns = qk.QParams(ROW[[0, 0, 1, 2]], axis=-1)
of_codes = dict(params=columns, residual_params=UNSIGNED, out_params=columns)
valid("layer_norm", x=Q, weight=X[0], bias=X[0], residual=U, **of_codes, out=lambda: out((2, 4), np.int8))
few = np.arange(64, dtype=np.uint8).reshape(8, 8) & 7
for bits, version, order in (4, 1, None), (3, 2, np.arange(32)[::-1]):
    rows = (np.tile(few, (4, 4)).view(ml_dtypes.uint4), qk.QParams(np.ones((2, 32)), 3, "uint4", axis=0, block_size=16))
    rows = dict(zip(("codes", "params"), rows)) | {"order": order}
    valid("layouts.to_gptq", **rows, bits=bits, version=version)
    valid("layouts.from_gptq", arrays=layouts.to_gptq(**rows, bits=bits, version=version), bits=bits, version=version)
rows.pop("order")
valid("layouts.to_awq", **rows)
valid("layouts.from_awq", arrays=layouts.to_awq(**rows))
rows = dict(codes=few[:, :3], codebook=qk.Codebook(qk.FP4.levels, axis=0, block_size=4), scales=X.T[:2, [0, 0, 1]] + 3)
for nested in False, True:
    valid("layouts.to_bitsandbytes", **rows, nested=nested, dtype="float16")
    valid("layouts.from_bitsandbytes", arrays=layouts.to_bitsandbytes(**rows, nested=nested))
valid("linear", x=Q, packed=PACKED["columns"], bias=ROW, params=PARAMS, out=lambda: out((2, 3)))
for packed in PACKED.values():
    added = dict(bias=ROW, residual=np.zeros((2, 3), np.float32))
    valid("linear", x=X, packed=packed, **added, activation="relu", clamp=(-1, 1), out=lambda: out((2, 3)))
valid("make_table", function="gelu", params=PARAMS, out_params=UNSIGNED)
valid("make_table", function=np.tanh, params=UNSIGNED, out_params=PARAMS)
valid("matmul", a=Q, b=W, a_zero_point=1, b_zero_point=[1, 2, 3], out=lambda: out((2, 3), np.int32))
valid("matmul", a=Q.astype(np.int16), b=W, a_zero_point=[1, 2], b_zero_point=1, out=lambda: out((2, 3), np.int64))
valid("matmul", a=Q[None], b=W[None], a_zero_point=[[1, 2]], b_zero_point=3, out=lambda: out((1, 2, 3), np.int32))
valid("max_pool2d", q=IMAGE, kernel=2, strides=1, padding=1, dilations=2, out=lambda: out((1, 5, 6, 2), np.int8))
valid("num_threads", n=1)
valid("observers.Entropy", axis=0)
valid("observers.MSE", axis=-1)
valid("observers.MinMax", axis=None)
valid("observers.MovingAverage", axis=1, rate=0.5)
valid("observers.Percentile", axis=1, percentile=99.5)
for name in observers.__all__:
    seen = getattr(observers, name)().update(X)
    valid(f"observers.{name}.from_arrays", arrays=seen.to_arrays())
    valid(f"observers.{name}.update", x=X)
    valid(f"observers.{name}.qparams", dtype="int8", symmetric=True, narrow_range=True)
    if name != "MovingAverage":
        valid(f"observers.{name}.merge", other=seen)
valid("pack", b=W, params=PARAMS, scales=None)
valid("pack", b=W.astype(np.float16), params=None)
valid("pack", b=WEIGHTS, params=BLOCKS, scales=np.ones((2, 3), np.float32))
valid("pack_bits", codes=U, bits=4)
valid("pack_codes", codes=U)
valid("pack_conv", w=FILTERS[:, :, :1], params=qk.QParams([0.5, 1], axis=3), groups=2)
valid("pareto", errors=X, sizes=[[1, 2, 3, 4], [2, 3, 5, 1]])
valid("prune", w=W / np.float32(7), hessian=HESSIAN, pattern="1:2", damp=0.5, center=False, passes=2)
valid("prune", w=W / np.float32(7), hessian=HESSIAN, pattern=0.5)
pooled = dict(q=IMAGE, params=PARAMS, out_params=UNSIGNED)
where = dict(kernel=(2, 3), strides=(1, 2), padding=(1, 0, 1, 0), dilations=1, count_include_pad=True)
valid("qaverage_pool2d", **pooled, **where, out=lambda: out((1, 6, 2, 2), np.uint8))
valid("qglobal_average_pool", **pooled, out=lambda: out((1, 1, 1, 2), np.uint8))
for packed, rounding in zip(CONVS, ("half_even", "tflite")):
    layer = dict(pooled, packed=packed, bias=[1, 2], strides=2, padding=1, dilations=1, activation="relu", clamp=(0, 6))
    valid("qconv2d", **layer, rounding=rounding, out=lambda: out((1, 3, 3, 2), np.uint8))
sums = dict(q=IMAGE, params=PARAMS, packed=CONVS[0], out_params=None, bias=[1, 2], padding="same_upper")
valid("qconv2d", **sums, out=lambda: out((1, 5, 6, 2), np.int32))
for rounding in ("half_even", "tflite"):
    pair = dict(a=Q, a_params=PARAMS, b=Q[0], b_params=PARAMS, out_params=UNSIGNED, rounding=rounding)
    for name in ("qadd", "qmultiply"):
        valid(name, **pair, activation="relu", out=lambda: out((2, 4), np.uint8))
    joined = dict(parts=((Q, PARAMS), (U[:1], UNSIGNED)), out_params=PARAMS, axis=0, rounding=rounding)
    valid("qconcatenate", **joined, out=lambda: out((3, 4), np.int8))
normed = dict(q=Q, params=PARAMS, weight=X[0], out_params=UNSIGNED, eps=1e-5, out=lambda: out((2, 4), np.uint8))
valid("qlayer_norm", **normed, bias=X[1])
valid("qrms_norm", **normed)
for axis in (0, 1):
    valid("qsoftmax", q=U, params=UNSIGNED, out_params=PARAMS, axis=axis, out=lambda: out((2, 4), np.int8))
for rounding in ("half_even", "tflite"):
    layer = dict(q=U, params=UNSIGNED, packed=PACKED["columns"], out_params=PARAMS, bias=[1, 2, 3], clamp=(0, 6))
    valid("qlinear", **layer, activation="relu", rounding=rounding, out=lambda: out((2, 3), np.int8))
valid("quantize", x=X, params=PARAMS, rounding="half_even", out=lambda: out((2, 4), np.int8))
valid("quantize", x=X, params=FLOAT8, rounding="half_even", out=lambda: out((2, 4), ml_dtypes.float8_e5m2))
valid("quantize", x=X, params=PARAMS, rounding="stochastic", seed=3, out=lambda: out((2, 4), np.int8))
valid("quantize_bias", bias=ROW, x_params=PARAMS, w_params=qk.QParams([0.5, 1, 2], axis=0))
valid("quantize_multiplier", m=[0.5, 0.25])
for rounding in ("half_even", "gemmlowp"):
    of_columns = dict(multiplier=[0.5, 1, 2], bias=[1, 2, 3])
    valid("requantize", acc=SUMS, **of_columns, params=PARAMS, rounding=rounding, out=lambda: out((1, 3), np.int8))
valid("search", queries=X, codes=U[:, :2] % 2, codebook=VECTORS, k=1)
valid("search", queries=X, codes=qk.pack_codes(U[:, :2] % 2), codebook=VECTORS, k=1)
valid("sensitivity", w=W / np.float32(7), hessian=HESSIAN, candidates=[PARAMS, BOOK, BLOCKS, W + ROW], center=True)
valid("set_num_threads", n=1)
valid("show_config")
valid("rotate", x=X, seed=3, inverse=True, out=lambda: out((2, 4)))
valid("smooth", w=np.ones((4, 3), np.float32), activation_absmax=[1.0, 2, 0, 3], alpha=0.75)
valid("take_table", q=Q, table=np.arange(256, dtype=np.uint8), out=lambda: out((2, 4), np.uint8))
valid("to_gguf", x=np.ones((2, 32), np.float32), kind="Q8_0", importance=None)
valid("to_gguf", x=np.ones((2, 64), np.float32), kind="NVFP4", importance=np.ones(64))
valid("unpack_bits", data=np.uint8([33, 15]), bits=4, shape=(3,), dtype="int8")

NOT_CALLED = {
    "FP4",
    "NF4",
    "KMeansResult",
    "Allocation",
    "GPTQResult",
    "PruneResult",
}  # objects, and results that nobody passes in


def of_observer(cls, method, *of_new):
    """The method of a new one, that has seen something; with the method's arguments but for self."""

    @functools.wraps(getattr(cls, method))
    def call(**arguments):
        observer = cls(*of_new)
        return getattr(observer if method == "merge" else observer.update(X), method)(**arguments)

    parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]
    call.__signature__ = inspect.Signature(parameters)
    return call


def public_functions():
    """Name and function of all that a user calls: the public names, the class methods of public classes, and what
    observers do."""
    for name in observers.__all__:
        cls = getattr(observers, name)
        yield f"observers.{name}", cls
        yield f"observers.{name}.from_arrays", cls.from_arrays
        yield from (
            (f"observers.{name}.{method}", of_observer(cls, method))
            for method in ("update", "merge", "qparams")
            if (name, method) != ("MovingAverage", "merge")  # which refuses any call
        )
    yield "io.save and load", saved
    yield from ((f"layouts.{name}", getattr(layouts, name)) for name in layouts.__all__)
    yield from ((f"Hessian.{method}", of_observer(qk.Hessian, method, 4)) for method in ("update", "merge"))
    for name in qk.__all__:
        value = getattr(qk, name)
        if name in NOT_CALLED:
            continue
        yield name, value
        if inspect.isclass(value):
            yield from (
                (f"{name}.{method}", getattr(value, method))
                for method, f in vars(value).items()
                if isinstance(f, classmethod) and not method.startswith("_")
            )


FUNCTIONS = dict(public_functions())


def call(name, arguments):
    result = FUNCTIONS[name](**arguments)
    if name == "num_threads":
        with result:
            pass
    return result
