"""A valid call of each public function, for the tests that vary one argument at a time."""

import inspect

import ml_dtypes
import numpy as np

import qkernels as qk

X, ROW = np.float32([[0.5, -1, 0.25, 2], [1, 0, 3, -2]]), np.float32([1, 2, 3])
Q, U, W = (
    np.int8([[5, -1, 0, 2], [1, 0, 3, -2]]),
    np.uint8([[5, 1, 0, 2], [1, 0, 3, 2]]),
    np.int8(np.arange(-6, 6).reshape(4, 3)),
)
PARAMS, UNSIGNED = qk.QParams(0.5), qk.QParams(0.25, 3, "uint8")
BOOK, BLOCKS, VECTORS = (
    qk.Codebook([-1, 0, 1, 2]),
    qk.Codebook([-1, 0, 1, 2], axis=0, block_size=2),
    qk.Codebook([[0, 0], [4, 4]], vector=True),
)
WEIGHTS = np.uint8(W % 4)
PACKED = {
    "int8": qk.pack(W, PARAMS),
    "uint8": qk.pack(W.view(np.uint8), qk.QParams(0.5, 3, "uint8")),
    "columns": qk.pack(W, qk.QParams([0.5, 1, 2], axis=1)),
    "int16": qk.pack(W.astype(np.int16), qk.QParams(0.5, dtype="int16")),
    "int4": qk.pack(W.astype(ml_dtypes.int4), qk.QParams(0.5, dtype="int4")),
    "float16": qk.pack(W.astype(np.float16), None),
    "codebook": qk.pack(WEIGHTS, BOOK),
    "blocks of 8 bits": qk.pack(W, qk.QParams(np.ones((2, 3)), [[1, 2, 3], [0, 0, 1]], axis=0, block_size=2)),
    "blocks": qk.pack(WEIGHTS, BLOCKS, scales=np.ones((2, 3), np.float32)),
}


def out(shape, dtype=np.float32):
    return np.full(shape, 77, dtype)


GGUF = np.zeros((2, 34), np.uint8)
CALLS = {  # name of the function: its valid calls. An `out` is a function that makes it.
    "Codebook": [
        {"levels": [-1, 0, 1], "axis": None, "block_size": 2, "vector": False},
        {"levels": X, "axis": 0},
        {"levels": X, "vector": True},
    ],
    "Codebook.fit": [
        {"x": X, "k": 2, "axis": 0, "weights": np.abs(X) + 1, "zero": True},
        {"x": X, "k": 2, "axis": 1, "block_size": 2},
        {"x": X, "k": 2, "weights": [1, 2], "vector": 2, "rng": 0},
    ],
    "PackedMatrix": [{"b": W, "params": PARAMS, "scales": None}],
    "PackedMatrix.from_arrays": [{"arrays": packed.to_arrays()} for packed in PACKED.values()],
    "QParams": [
        {
            "scale": [0.5, 1],
            "zero_point": [1, 2],
            "dtype": "uint8",
            "axis": 0,
            "block_size": None,
            "narrow_range": False,
        },
        {"scale": 0.5, "zero_point": 0, "dtype": "float8_e4m3fn"},
        {"scale": [[0.5, 1]], "axis": 1, "block_size": 4},
    ],
    "attention": [{"q": X, "k": X, "v": X, "heads": 2, "starts": [0, 1, 2], "scale": 0.5, "out": lambda: out((2, 4))}],
    "choose_qparams": [
        {
            "x": X,
            "dtype": "int8",
            "axis": 0,
            "block_size": 2,
            "symmetric": True,
            "narrow_range": True,
            "method": "mse",
            "importance": np.abs(X) + 1,
        },
        {"x": X, "dtype": "float8_e4m3fn"},
    ],
    "decode": [
        {"codes": U % 4, "codebook": BLOCKS, "scales": np.ones((1, 4), np.float32), "out": lambda: out((2, 4))},
        {"codes": U % 2, "codebook": VECTORS, "out": lambda: out((2, 8))},
    ],
    "dequantize": [
        {"q": Q, "params": PARAMS, "dtype": "float16", "out": lambda: out((2, 4), np.float16)},
        {
            "q": X.astype(ml_dtypes.float8_e5m2),
            "params": qk.QParams(2, dtype="float8_e5m2"),
            "dtype": np.float32,
            "out": lambda: out((2, 4)),
        },
    ],
    "distance_tables": [{"queries": X, "codebook": VECTORS}],
    "dynamic_quantize": [
        {"x": X, "dtype": "uint8", "axis": 0, "symmetric": False},
        {"x": X, "dtype": "float8_e4m3fn", "axis": 1},
    ],
    "encode": [{"x": X, "codebook": BLOCKS}, {"x": X, "codebook": VECTORS}, {"x": X.astype(float), "codebook": BOOK}],
    "fake_quantize": [
        {"x": X, "params": PARAMS, "out": lambda: out((2, 4))},
        {"x": X, "params": qk.QParams(2, dtype="float8_e5m2"), "out": lambda: out((2, 4))},
    ],
    "from_gguf": [
        {"data": GGUF, "kind": "Q8_0", "codes": False, "out": lambda: out((2, 32))},
        {"data": GGUF, "kind": "Q8_0", "codes": True},
    ],
    "get_include": [{}],
    "get_num_threads": [{}],
    "kmeans": [
        {
            "x": X,
            "k": 2,
            "weights": [1, 2],
            "init": "random",
            "n_init": 2,
            "max_iter": 3,
            "tol": 1e-3,
            "rng": 0,
            "callback": None,
        },
        {"x": X, "k": 2, "init": X, "n_init": 1},
    ],
    "kmeans1d": [{"x": X, "k": 2, "weights": np.abs(X) + 1, "axis": 1}],
    "layer_norm": [{"x": X, "weight": X[0], "bias": X[0], "eps": 1e-5, "residual": X, "out": lambda: out((2, 4))}],
    "linear": [
        {
            "x": X,
            "packed": packed,
            "bias": ROW,
            "activation": "relu",
            "residual": np.zeros((2, 3), np.float32),
            "clamp": (-1, 1),
            "out": lambda: out((2, 3)),
        }
        for packed in PACKED.values()
    ],
    "matmul": [
        {"a": Q, "b": W, "a_zero_point": 1, "b_zero_point": [1, 2, 3], "out": lambda: out((2, 3), np.int32)},
        {
            "a": Q.astype(np.int16),
            "b": W,
            "a_zero_point": [1, 2],
            "b_zero_point": 1,
            "out": lambda: out((2, 3), np.int64),
        },
        {
            "a": Q[None],
            "b": W[None],
            "a_zero_point": [[1, 2]],
            "b_zero_point": 3,
            "out": lambda: out((1, 2, 3), np.int32),
        },
    ],
    "num_threads": [{"n": 1}],
    "pack": [
        {"b": W, "params": PARAMS, "scales": None},
        {"b": W.astype(np.float16), "params": None},
        {"b": WEIGHTS, "params": BLOCKS, "scales": np.ones((2, 3), np.float32)},
    ],
    "pack_bits": [{"codes": U, "bits": 4}],
    "qlinear": [
        {
            "q": U,
            "params": UNSIGNED,
            "packed": PACKED["columns"],
            "out_params": PARAMS,
            "bias": [1, 2, 3],
            "activation": "relu",
            "clamp": (0, 6),
            "rounding": rounding,
            "out": lambda: out((2, 3), np.int8),
        }
        for rounding in ("half_even", "tflite")
    ],
    "quantize": [
        {"x": X, "params": PARAMS, "rounding": "half_even", "out": lambda: out((2, 4), np.int8)},
        {
            "x": X,
            "params": qk.QParams(2, dtype="float8_e5m2"),
            "rounding": "half_even",
            "out": lambda: out((2, 4), ml_dtypes.float8_e5m2),
        },
    ],
    "quantize_multiplier": [{"m": [0.5, 0.25]}],
    "requantize": [
        {
            "acc": np.int32([[1, 2, 3]]),
            "multiplier": [0.5, 1, 2],
            "params": PARAMS,
            "bias": [1, 2, 3],
            "rounding": rounding,
            "out": lambda: out((1, 3), np.int8),
        }
        for rounding in ("half_even", "gemmlowp")
    ],
    "search": [
        {"queries": X, "codes": U[:, :2] % 2, "codebook": VECTORS, "k": 1, "bits": 8},
        {"queries": X, "codes": np.uint8([[16], [1]]), "codebook": VECTORS, "k": 1, "bits": 4},
    ],
    "set_num_threads": [{"n": 1}],
    "show_config": [{}],
    "to_gguf": [{"x": np.ones((2, 32), np.float32), "kind": "Q8_0"}],
    "unpack_bits": [{"data": np.uint8([33, 15]), "bits": 4, "shape": (3,), "dtype": "int8"}],
}
NOT_CALLED = {"FP4", "NF4", "KMeansResult"}  # objects, and a tuple of results that nobody passes in


def public_functions():
    """Name and function of all that a user calls: the public names and the class methods of public classes."""
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
