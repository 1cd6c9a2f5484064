"""Every public function on more than 2**31 or 2**32 values: `python tests/giants.py [names of functions]`.

Takes a quarter of an hour and up to 20 GiB. Inputs are memory that is never written but at a few places, so that the
system need not provide it: the first values, those around the 2**31st and the 2**32nd, and the last. There results
must be those of the same values alone. It prints a line for each function and ends with 1 if one was wrong.
"""

import gc
import resource
import sys
import tempfile
import time
import traceback

import ml_dtypes
import numpy as np

import qkernels as qk
from qkernels import layouts, observers

N = 2**32 + 1999  # values
HALF = 2**31 + 1999  # where results take four bytes a value, and more
WIDTH = 64
CASES, LEFT_OUT = {}, {}
PARAMS, BOOK = qk.QParams(0.5), qk.Codebook(np.linspace(-1, 1, 16))
RNG = np.random.default_rng(0)


def case(run):
    CASES[run.__name__] = run
    return run


def left_out(reason, names):
    LEFT_OUT.update(dict.fromkeys(names.split(), reason))


left_out("takes no array that grows", "get_include get_num_threads set_num_threads num_threads show_config")
left_out("takes no array that grows", "quantize_multiplier make_table allocate_bits pareto sensitivity")
left_out("is a value", "Allocation GPTQResult KMeansResult PruneResult NF4 FP4 Codebook QParams")
left_out("is what pack, pack_conv and pack_codes return", "PackedMatrix PackedConv PackedCodes")
left_out("takes a number for each column of weights alone", "quantize_bias fold_batchnorm smooth")
left_out("holds 20 to 30 bytes for each weight, 60 GiB in all", "gptq prune")


def places(length, size=1):
    """Return where to look in `length` rows of `size` values: slices."""
    starts = {at // size - 1 for at in (0, 2**31 - WIDTH // 2, 2**32 - WIDTH // 2) if at // size < length}
    width = max(1, WIDTH // size)
    return [slice(max(0, start), min(length, max(0, start) + width)) for start in sorted(starts | {length - width})]


def sparse(shape, dtype="float32", axis=0):
    """Return zeros, with random values at the places along an axis."""
    x = np.zeros(shape, dtype)
    for at in places(shape[axis], x.size // shape[axis]):
        part = np.moveaxis(x, axis, 0)[at]
        values = RNG.integers(0, 7, part.shape) if np.dtype(dtype).kind in "iuV" else RNG.normal(size=part.shape)
        part[...] = values.astype(dtype)
    return x


def few_of(x):
    """Return the values at the places, and a zero."""
    return np.concatenate([*(x[at] for at in places(len(x), x.size // len(x))), 0 * x[:1]])


def same(function, x, axis=0, **of_rows):
    """Results at the places are those of what stands there alone; so are they with arrays that go with x."""
    y, along = function(x, **of_rows), np.index_exp[:] * axis
    assert y.shape[axis] == x.shape[axis]
    for at in places(x.shape[axis], x.size // x.shape[axis]):
        expected = function(x[(*along, at)], **{name: a[(*along, at)] for name, a in of_rows.items()})
        np.testing.assert_array_equal(y[(*along, at)], expected)


@case
def quantize():
    same(lambda x: qk.quantize(x, PARAMS), sparse((N,)))
    same(lambda x: qk.quantize(x, qk.QParams([0.5, 2], axis=0)), sparse((2, N // 2), axis=1), axis=1)
    columns = qk.QParams(RNG.uniform(1, 2, 1024), axis=1)
    same(lambda x: qk.quantize(x, columns), sparse((N // 1024, 1024)))
    same(lambda x: qk.quantize(x, PARAMS, rounding="half_away"), sparse((N,), np.float16))


@case
def dequantize():
    same(lambda q: qk.dequantize(q, PARAMS, dtype=np.float16), sparse((N,), np.int8))
    same(lambda q: qk.dequantize(q, PARAMS), sparse((HALF,), np.int32))


@case
def fake_quantize():
    same(lambda x: qk.fake_quantize(x, PARAMS), sparse((N,), np.float16))
    blocks = qk.QParams(np.ones((HALF // 4096, 128)), axis=1, block_size=32)
    y = qk.fake_quantize(x := sparse((HALF // 4096, 4096)), blocks)
    assert (y[-1] == np.rint(x[-1]).clip(-127, 127)).all()


@case
def fake_quantize_grad():
    x = sparse((HALF,), np.float16)
    grad, of_scale, _ = qk.fake_quantize_grad(x, x, PARAMS)
    small, expected, _ = qk.fake_quantize_grad(few_of(x), few_of(x), PARAMS)
    np.testing.assert_array_equal(few_of(grad), small)
    np.testing.assert_allclose(of_scale, expected, rtol=1e-5)


@case
def dynamic_quantize():
    same(lambda x: qk.dynamic_quantize(x, axis=0)[0], sparse((N // 1024, 1024)))
    x = sparse((N,))
    q, params = qk.dynamic_quantize(x)
    few, expected = qk.dynamic_quantize(few_of(x))
    assert params.scale == expected.scale and params.zero_point == expected.zero_point
    np.testing.assert_array_equal(few_of(q)[:-1], few[:-1])


@case
def requantize():
    same(lambda acc: qk.requantize(acc, 0.3, PARAMS), sparse((N // 64, 64), np.int32))
    same(lambda acc: qk.requantize(acc, 0.3, PARAMS), sparse((N, 1), np.int32))


@case
def encode():
    same(lambda x: qk.encode(x, BOOK), sparse((N,)))
    blocks = qk.Codebook(BOOK.levels, axis=1, block_size=64)
    same(lambda x: qk.encode(x, blocks)[0], sparse((N // 1024, 1024)))
    vectors = qk.Codebook(RNG.normal(size=(16, 8)), vector=True)
    same(lambda x: qk.encode(x, vectors), sparse((N // 64, 64)))


@case
def decode():
    same(lambda q: qk.decode(q, BOOK), sparse((HALF,), np.uint8))
    vectors = qk.Codebook(RNG.normal(size=(16, 8)), vector=True)
    same(lambda q: qk.decode(q, vectors), sparse((HALF // 64, 8), np.uint8))


@case
def pack_bits():
    q = sparse((N,), ml_dtypes.uint4)
    data = qk.pack_bits(q, 4)
    assert data.nbytes == (N + 1) // 2
    for at in places(N):
        at = slice(at.start // 2 * 2, at.stop)
        np.testing.assert_array_equal(data[at.start // 2 : (at.stop + 1) // 2], qk.pack_bits(q[at], 4))


@case
def unpack_bits():
    data = sparse((N // 2,), np.uint8)
    q = qk.unpack_bits(data, 4, (N // 2 * 2,))
    for at in places(N // 2):
        expected = qk.unpack_bits(data[at], 4, (2 * (at.stop - at.start),))
        np.testing.assert_array_equal(q[2 * at.start : 2 * at.stop], expected)


@case
def matmul():
    a, b = sparse((N // 1024, 1024), np.int8), RNG.integers(-128, 128, (1024, 16), np.int8)
    same(lambda a: qk.matmul(a, b), a)
    a, b = RNG.integers(-128, 128, (3, 64), np.int8), sparse((64, HALF // 64), np.int8, axis=1)
    columns_of(lambda b: qk.matmul(a, b), b)
    a, b = sparse((HALF // 64, 2), np.uint8), RNG.integers(-128, 128, (2, 64), np.int8)
    same(lambda a: qk.matmul(a, b), a)


def columns_of(function, b):
    """Results of the columns at the places are those of these columns alone."""
    y = function(b)
    for at in places(b.shape[1], b.shape[0]):
        np.testing.assert_array_equal(y[:, at], function(np.ascontiguousarray(b[:, at])))


@case
def pack():
    weights = sparse((4096, N // 4096), np.int8, axis=1)
    packed = qk.pack(weights, PARAMS)
    assert packed.nbytes >= weights.size
    x = RNG.normal(size=(2, 4096)).astype(np.float32)
    y = qk.linear(x, packed)
    for at in places(weights.shape[1], 4096):
        np.testing.assert_array_equal(y[:, at], qk.linear(x, qk.pack(weights[:, at], PARAMS)))
    del packed
    weights = sparse((4096, N // 4096), ml_dtypes.int4, axis=1)
    blocks = qk.QParams(np.ones((128, N // 4096)), dtype="int4", axis=0, block_size=32)
    y = qk.linear(x, qk.pack(weights, blocks))
    for at in places(weights.shape[1], 4096):
        few = qk.QParams(blocks.scale[:, at], dtype="int4", axis=0, block_size=32)
        np.testing.assert_array_equal(y[:, at], qk.linear(x, qk.pack(weights[:, at], few)))


@case
def linear():
    packed = qk.pack(RNG.integers(-128, 128, (1024, 8), np.int8), PARAMS)
    same(lambda x: qk.linear(x, packed, activation="gelu"), sparse((N // 1024, 1024)))
    packed = qk.pack(RNG.integers(-128, 128, (8, 1024), np.int8), PARAMS)
    same(lambda x: qk.linear(x, packed), sparse((HALF // 1024, 8)))


@case
def qlinear():
    packed = qk.pack(RNG.integers(-128, 128, (1024, 8), np.int8), PARAMS)
    same(lambda q: qk.qlinear(q, PARAMS, packed, qk.QParams(500)), sparse((N // 1024, 1024), np.int8))
    packed = qk.pack(RNG.integers(-128, 128, (8, 1024), np.int8), PARAMS)
    same(lambda q: qk.qlinear(q, PARAMS, packed, qk.QParams(500)), sparse((N // 1024, 8), np.int8))


def images(channels=64):
    return sparse((N // 16 // channels, 4, 4, channels), np.int8)


@case
def pack_conv():
    packed = qk.pack_conv(sparse((1, 1, 2**16, 2**15 + 16), np.int8, axis=3), PARAMS)
    assert packed.nbytes > 2**31


@case
def qconv2d():
    packed = qk.pack_conv(RNG.integers(-128, 128, (3, 3, 64, 16), np.int8), PARAMS)
    same(lambda q: qk.qconv2d(q, PARAMS, packed, qk.QParams(50), padding=1), images())
    packed = qk.pack_conv(RNG.integers(-128, 128, (3, 3, 1, 64), np.int8), PARAMS, groups=64)
    same(lambda q: qk.qconv2d(q, PARAMS, packed, qk.QParams(50), padding=1), images())


@case
def max_pool2d():
    same(lambda q: qk.max_pool2d(q, 2), images())


@case
def qaverage_pool2d():
    same(lambda q: qk.qaverage_pool2d(q, PARAMS, PARAMS, 2), images())


@case
def qglobal_average_pool():
    same(lambda q: qk.qglobal_average_pool(q, PARAMS, PARAMS), images())


@case
def qadd():
    a, b = sparse((N,), np.int8), sparse((N,), np.int8)
    same(lambda a, b: qk.qadd(a, PARAMS, b, PARAMS, PARAMS), a, b=b)


@case
def qmultiply():
    a, b = sparse((N,), np.int8), sparse((N,), np.int8)
    same(lambda a, b: qk.qmultiply(a, PARAMS, b, PARAMS, PARAMS), a, b=b)


@case
def qconcatenate():
    a, b = sparse((N // 64, 32), np.int8), sparse((N // 64, 32), np.int8)
    same(lambda a, b: qk.qconcatenate([(a, PARAMS), (b, qk.QParams(0.3))], PARAMS, axis=1), a, b=b)


@case
def take_table():
    table = qk.make_table("gelu", PARAMS, PARAMS)
    same(lambda q: qk.take_table(q, table), sparse((N,), np.int8))


@case
def qsoftmax():
    same(lambda q: qk.qsoftmax(q, PARAMS, qk.QParams(1 / 256, dtype="uint8")), sparse((N // 64, 64), np.int8))


@case
def qlayer_norm():
    weight, bias = RNG.normal(size=(2, 64)).astype(np.float32)
    same(lambda q: qk.qlayer_norm(q, PARAMS, weight, bias, PARAMS, eps=1e-5), sparse((N // 64, 64), np.int8))


@case
def qrms_norm():
    weight = RNG.normal(size=64).astype(np.float32)
    same(lambda q: qk.qrms_norm(q, PARAMS, weight, PARAMS, eps=1e-5), sparse((N // 64, 64), np.int8))


@case
def layer_norm():
    weight, bias = RNG.normal(size=(2, 1024)).astype(np.float32)
    same(lambda x: qk.layer_norm(x, weight, bias), sparse((HALF // 1024, 1024)))


@case
def rotate():
    same(lambda x: qk.rotate(x), sparse((HALF // 1024, 1024)))


@case
def attention():
    x = sparse((HALF // 1024, 1024))
    y = qk.attention(x, x, x, 16, starts=np.arange(len(x) + 1))  # each token attends to itself
    for at in places(len(x), 1024):
        np.testing.assert_array_equal(y[at], qk.attention(*[x[at]] * 3, 16, starts=np.arange(at.stop - at.start + 1)))


@case
def choose_qparams():
    x = sparse((N,))
    assert qk.choose_qparams(x).scale == qk.choose_qparams(few_of(x)).scale
    rows = sparse((HALF // 1024, 1024))
    same(lambda x: qk.choose_qparams(x, axis=0, method="mse").scale, rows)


@case
def kmeans1d():
    same(lambda x: qk.kmeans1d(x, 3, axis=1).centroids, sparse((HALF // 1024, 1024)))


@case
def kmeans():
    x = np.zeros((N // 16, 16), np.float32)
    x[-1] = x[2**27] = 3
    found = qk.kmeans(x, 2, init=np.float32([[0] * 16, [3] * 16]), max_iter=2)
    np.testing.assert_array_equal(found.centroids, np.float32([[0] * 16, [3] * 16]))
    assert np.flatnonzero(found.labels).tolist() == [2**27, len(x) - 1]


@case
def distance_tables():
    vectors = qk.Codebook(RNG.normal(size=(256, 8)), vector=True)
    same(lambda x: qk.distance_tables(x, vectors), sparse((HALF // 2**11, 64)))


@case
def search():
    vectors = qk.Codebook(RNG.normal(size=(256, 2)), vector=True)
    codes = np.full((1, 1), 5, np.uint8) + np.zeros((HALF // 8, 8), np.uint8)
    codes[-1], codes[2**28] = 77, 78
    queries = np.tile(vectors.levels[[77, 78]], 8).astype(np.float32)
    distances, places = qk.search(queries, codes, vectors, 1)
    assert places.ravel().tolist() == [len(codes) - 1, 2**28] and (distances < 1e-5).all()


@case
def pack_codes():
    book = qk.Codebook(RNG.normal(size=(16, 2)), vector=True)
    codes = np.zeros((HALF // 32, 32), np.uint8)
    codes[-1], codes[2**26] = 7, 8
    packed = qk.pack_codes(codes)
    queries = np.tile(book.levels[[7, 8]], 32).astype(np.float32)
    assert qk.search(queries, packed, book, 1)[1].ravel().tolist() == [len(codes) - 1, 2**26]


@case
def to_gguf():
    same(lambda x: qk.to_gguf(x, "Q8_0"), sparse((N // 1024, 1024)))


@case
def from_gguf():
    data = qk.to_gguf(sparse((2, 1024)), "Q8_0")
    giant = np.zeros((HALF // 1024, data.shape[1]), np.uint8)
    for at in places(len(giant), 1024):
        giant[at] = data[: at.stop - at.start]
    same(lambda data: qk.from_gguf(data, "Q8_0"), giant)


@case
def Hessian():
    x = sparse((N // 64, 64))
    found, expected = qk.Hessian(64).update(x).to_arrays(), qk.Hessian(64).update(few_of(x)).to_arrays()
    for name in "sum", "moments":
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def _observers():
    x = sparse((N,))
    for name in sorted({*observers.__all__} - {"MovingAverage"}):  # which depends on the order
        kind = getattr(observers, name)
        whole, parts = kind(), [kind().update(part) for part in (x[: N // 3], x[N // 3 :])]
        assert whole.update(x).qparams("int8").scale == parts[0].merge(parts[1]).qparams("int8").scale, name


def _io():
    with tempfile.TemporaryDirectory(dir=".") as folder:
        x = sparse((N,), np.int8)
        qk.io.save(f"{folder}/x", {"x": x, "y": np.arange(3)})
        read = qk.io.load(f"{folder}/x")
        assert all((read["x"][at] == x[at]).all() for at in places(N)) and (read["y"] == np.arange(3)).all()


def _layouts():
    codes = sparse((4096, HALF // 4096), ml_dtypes.uint4, axis=1)
    params = qk.QParams(np.ones((32, HALF // 4096 // 8 * 8)), 3, "uint4", axis=0, block_size=128)
    codes = np.ascontiguousarray(codes[:, : params.scale.shape[1]])
    back = layouts.from_awq(layouts.to_awq(codes, params))
    assert (back[0][:, -8:] == codes[:, -8:]).all() and (
        back[0][:, 2**19 : 2**19 + 8] == codes[:, 2**19 : 2**19 + 8]
    ).all()


CASES |= {"observers": _observers, "io": _io, "layouts": _layouts}


def main(names):
    forgotten = set(qk.__all__) - set(CASES) - set(LEFT_OUT)
    wrong = sorted(forgotten)
    for name in forgotten:
        print(f"{name}: no case and no reason")
    for name in names or CASES:
        began = time.perf_counter()
        try:
            CASES[name]()
            state = "ok"
        except Exception:
            state = f"WRONG\n{traceback.format_exc()}"
            wrong.append(name)
        gc.collect()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {state}, {time.perf_counter() - began:.0f} s, at most {most:.1f} GiB until here", flush=True)
    for name, reason in LEFT_OUT.items():
        print(f"{name}: left out, {reason}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
