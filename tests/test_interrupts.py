"""Ctrl-C, and other signals, during calls that take long: each in a process of its own, one thread of plain C, so that
little memory takes long."""

import os

import pytest
from common import output

SECONDS = 0.2  # that a signal may wait, of the time of each thread, which other processes do not lengthen
WALL = 5.0  # on a busy machine

SETUP = """
    import os, signal, sys, threading, time
    import ml_dtypes, numpy as np, qkernels as qk

    normal = np.random.default_rng(0).normal(0, 1, 99991).astype(np.float32)
    small = np.random.default_rng(0).integers(0, 7, 99991)
    distinct = np.random.default_rng(1).normal(0, 1, 3 * 10**6)
    rate = qk.QParams(0.01)
    vectors = qk.Codebook(normal[:1024].reshape(256, 4), vector=True)

    def floats(*shape):
        return np.resize(normal, shape)

    def codes(*shape, dtype=np.int8):
        return np.resize(small.astype(dtype), shape)
"""

CALLS = {
    "linear": "p = qk.pack(codes(2048, 2048), rate); x = floats(4000, 2048); call = lambda: qk.linear(x, p)",
    "linear of one row": """
        p = qk.pack(codes(128, 1000000), rate); x = floats(8, 128)
        call = lambda: [qk.linear(x, p) for _ in range(9)]""",
    "linear, out": """
        p = qk.pack(codes(2048, 2048), rate); x, y = floats(4000, 2048), floats(4000, 2048)
        call = lambda: qk.linear(x, p, out=y)""",
    "linear, 4 bits": """
        params = qk.QParams(np.ones((64, 2048)), None, "int4", axis=0, block_size=32)
        p = qk.pack(codes(2048, 2048, dtype=ml_dtypes.int4), params)
        x = floats(4000, 2048)
        call = lambda: qk.linear(x, p)""",
    "linear, int16": """
        p = qk.pack(codes(2048, 2048, dtype=np.int16), qk.QParams(0.1, dtype='int16')); x = floats(4000, 2048)
        call = lambda: qk.linear(x, p)""",
    "linear, float16": """
        p = qk.pack(codes(2048, 2048, dtype=np.float16), None); x = floats(4000, 2048)
        call = lambda: qk.linear(x, p)""",
    "qlinear": """
        p, q = qk.pack(codes(2048, 2048), rate), codes(4000, 2048)
        call = lambda: qk.qlinear(q, rate, p, qk.QParams(1), activation="gelu")""",
    "qconv2d": """
        p, q = qk.pack_conv(codes(3, 3, 256, 256), rate), codes(20, 112, 112, 256)
        call = lambda: qk.qconv2d(q, rate, p, qk.QParams(1), padding=1)""",
    "qconv2d, groups": """
        p, q = qk.pack_conv(codes(3, 3, 32, 256), rate, groups=8), codes(60, 112, 112, 256)
        call = lambda: qk.qconv2d(q, rate, p, None, padding=1)""",
    "qconv2d, depthwise": """
        p, q = qk.pack_conv(codes(5, 5, 1, 256), rate, groups=256), codes(300, 112, 112, 256)
        call = lambda: qk.qconv2d(q, rate, p, rate, padding=2)""",
    "max_pool2d": "q = codes(200, 112, 112, 256); call = lambda: qk.max_pool2d(q, 3)",
    "qaverage_pool2d": "q = codes(200, 112, 112, 256); call = lambda: qk.qaverage_pool2d(q, rate, rate, 3)",
    "matmul": "a, b = codes(4000, 2048), codes(2048, 2048); call = lambda: qk.matmul(a, b)",
    "matmul, int16": """
        a, b = codes(2000, 2048, dtype=np.int16), codes(2048, 2048, dtype=np.int16)
        call = lambda: qk.matmul(a, b)""",
    "matmul, many": "a, b = codes(9000, 64, 128), codes(9000, 128, 64); call = lambda: qk.matmul(a, b)",
    "matmul, few": "a, b = codes(2, 6000, 1024), codes(2, 1024, 2048); call = lambda: qk.matmul(a, b)",
    "matmul, few columns of many rows": """
        a, p = codes(40, 4000000), qk.pack(codes(4000000, 8), rate)
        call = lambda: qk.matmul(a, p)""",
    "linear, one column of many rows": """
        x, p = floats(120, 2000000), qk.pack(codes(2000000, 1), rate)
        call = lambda: qk.linear(x, p)""",
    "linear, 4 bits, few columns of many rows": """
        params = qk.QParams(np.ones((31250, 8)), None, "int4", axis=0, block_size=32)
        x, p = floats(40, 1000000), qk.pack(codes(1000000, 8, dtype=ml_dtypes.int4), params)
        call = lambda: qk.linear(x, p)""",
    "linear, int16, few columns of many rows": """
        p = qk.pack(codes(4000000, 8, dtype=np.int16), qk.QParams(0.1, dtype='int16')); x = floats(20, 4000000)
        call = lambda: qk.linear(x, p)""",
    "linear, float16, few columns of many rows": """
        x, p = floats(20, 4000000), qk.pack(codes(4000000, 8, dtype=np.float16), None)
        call = lambda: qk.linear(x, p)""",
    "attention, one head": "x = floats(16384, 64); call = lambda: qk.attention(x, x, x, 1)",
    "attention": "x = floats(16384, 768); call = lambda: qk.attention(x, x, x, 12)",
    "search": "q, c = floats(200, 64), codes(2000000, 16, dtype=np.uint8); call = lambda: qk.search(q, c, vectors, 10)",
    "search, 16 levels": """
        q, c, few = floats(5000, 64), codes(2000000, 16, dtype=np.uint8), qk.Codebook(vectors.levels[:16], vector=True)
        call = lambda: qk.search(q, c, few, 10)""",
    "search, 16 levels, all codes near": """
        q, c = floats(300, 64), qk.pack_codes(np.zeros((500000, 16), np.uint8))
        few = qk.Codebook(vectors.levels[:16], vector=True)
        call = lambda: qk.search(q, c, few, 7000)""",
    "search, one query, all codes": """
        q, c = floats(1, 16), codes(6000000, 4, dtype=np.uint8)
        call = lambda: qk.search(q, c, vectors, 6000000)""",
    "search, many queries, all codes": """
        q, c = floats(60, 16), codes(2000000, 4, dtype=np.uint8)
        call = lambda: qk.search(q, c, vectors, 2000000)""",
    "encode": "x, c = floats(4 * 10**7), qk.Codebook(np.linspace(-1, 1, 256)); call = lambda: qk.encode(x, c)",
    "encode, float64": """
        x, c = floats(2 * 10**7).astype(np.float64), qk.Codebook(np.linspace(-1, 1, 16))
        call = lambda: qk.encode(x, c)""",
    "encode, a codebook a channel": """
        x, c = floats(4 * 10**5, 100), qk.Codebook(floats(100, 256), axis=1)
        call = lambda: qk.encode(x, c)""",
    "encode, vectors": "x = floats(300000, 64); call = lambda: qk.encode(x, vectors)",
    "decode": """
        q, c = codes(4 * 10**7, dtype=np.uint8), qk.Codebook(np.linspace(-1, 1, 8))
        call = lambda: qk.decode(q, c)""",
    "decode, vectors": "q = codes(10**6, 16, dtype=np.uint8); call = lambda: qk.decode(q, vectors)",
    "distance_tables": "x = floats(30000, 64); call = lambda: qk.distance_tables(x, vectors)",
    "quantize, float8": """
        x, p = floats(6 * 10**7), qk.QParams(0.1, dtype='float8_e4m3fn')
        call = lambda: qk.quantize(x, p)""",
    "dequantize, float8": """
        q, p = codes(6 * 10**7, dtype=ml_dtypes.float8_e5m2), qk.QParams(0.1, dtype='float8_e5m2')
        call = lambda: [qk.dequantize(q, p) for _ in range(9)]""",
    "choose_qparams, blocks": """
        x = floats(4000, 16000)
        call = lambda: [qk.choose_qparams(x, 'int4', axis=0, block_size=32) for _ in range(9)]""",
    "kmeans": "x = floats(10**6, 16); call = lambda: qk.kmeans(x, 300, rng=0)",
    "kmeans, large chunks": "x = floats(10**5, 64); call = lambda: qk.kmeans(x, 8000, init='random', rng=0)",
    "kmeans, few clusters": "x = floats(2 * 10**7, 2); call = lambda: qk.kmeans(x, 3, rng=0)",
    "kmeans1d": "call = lambda: qk.kmeans1d(distinct, 16)",
    "kmeans1d, two clusters": "call = lambda: qk.kmeans1d(distinct, 2)",
    "kmeans1d, weights": "w = np.abs(distinct); call = lambda: qk.kmeans1d(distinct, 16, weights=w)",
    "kmeans1d, weights of many magnitudes": """
        x = distinct[:300_000]
        call = lambda: qk.kmeans1d(x, 5, weights=10 ** (50 * x))""",
    "kmeans1d, one cluster of weights of many magnitudes": """
        x = np.arange(4e6); w = np.resize(10 ** np.float64(50 * normal), len(x))
        call = lambda: qk.kmeans1d(x, 1, weights=w)""",
    "kmeans1d, a far value": """
        x = np.append(np.arange(4e6), 1e300)
        call = lambda: qk.kmeans1d(x, 1)""",
    "kmeans1d, integers": "x = (distinct * 2.0**58).astype(np.int64); call = lambda: qk.kmeans1d(x, 16)",
    "kmeans1d, two lines": "x = distinct.reshape(2, -1); call = lambda: qk.kmeans1d(x, 16, axis=1)",
    "kmeans1d, lines": "x = distinct.reshape(1000, 3000); call = lambda: qk.kmeans1d(x, 16, axis=1)",
    "kmeans1d, float16": "x = floats(10**8).astype(np.float16); call = lambda: qk.kmeans1d(x, 16)",
    "Hessian": "x = floats(8192, 3000); call = lambda: qk.Hessian(3000).update(x)",
    "sensitivity": """
        w, seen = floats(3000, 3000), qk.Hessian(3000).update(floats(4, 3000))
        call = lambda: qk.sensitivity(w, seen, [rate])""",
    "gptq, a large factor": """
        import scipy.linalg  # or the signal finds Python in the midst of this
        w, seen = floats(5000, 32), qk.Hessian(5000).update(floats(4, 5000))
        call = lambda: qk.gptq(w, seen, rate)""",
    "gptq, refit": """
        import scipy.linalg
        w, seen = floats(1500, 3000), qk.Hessian(1500).update(floats(4, 1500))
        call = lambda: qk.gptq(w, seen, rate, refit=True, refine=9)""",
    "prune": """
        import scipy.linalg
        w, seen = floats(1500, 3000), qk.Hessian(1500).update(floats(4, 1500))
        call = lambda: qk.prune(w, seen, "2:4")""",
    "prune, a share": """
        import scipy.linalg
        w, seen = floats(200, 100000), qk.Hessian(200).update(floats(4, 200))
        call = lambda: qk.prune(w, seen, 0.5)""",
    "io.save": """
        import tempfile; folder = tempfile.TemporaryDirectory(); x = floats(16000, 16000)
        call = lambda: qk.io.save(folder.name + '/x', {'turned': x.T, 'x': x})""",
    "to_gguf, a search": "x = floats(2**24); call = lambda: qk.to_gguf(x, 'Q4_K')",
    "from_gguf, codes of levels": """
        x = codes(18 * 2**24, dtype=np.uint8); x = np.where(x > 100, 0, x).astype(np.uint8)
        call = lambda: qk.from_gguf(x, 'IQ4_NL', codes=True)""",
    "choose_qparams, integer scales": """
        x = np.repeat(floats(4096), 2048).reshape(4096, 2048)
        call = lambda: qk.choose_qparams(x, 'uint4', axis=0, block_size=32, method='mse', scale_bits=4)""",
    "QParams, integer scales": """
        scale, shift = np.ones((2**14, 2**14), np.uint8), np.zeros((2**14, 2**14), np.int8)
        blocks = dict(axis=0, block_size=32, block_scale=scale, block_shift=shift)
        call = lambda: qk.QParams(np.ones(2**14), None, 'int4', **blocks)""",
    "params, integer scales": """
        scale, shift = np.ones((2**18, 2**9), np.uint8), np.zeros((2**18, 2**9), np.int8)
        blocks = dict(axis=0, block_size=4, block_scale=scale, block_shift=shift)
        params = qk.QParams(np.ones(2**9), None, 'int4', **blocks)
        p = qk.pack(np.zeros((2**20, 2**9), ml_dtypes.int4), params)
        call = lambda: [p.params for _ in range(9)]""",
    "choose_qparams, microscaling": """
        x = floats(2**14, 2**14)
        call = lambda: [qk.choose_qparams(x, 'float4_e2m1fn', axis=0, method='mx') for _ in range(9)]""",
    "quantize to floats": """
        x, to = floats(2**14, 2**13).astype(np.float64), qk.QParams(1, dtype='float8_e4m3fn')
        call = lambda: qk.quantize(x, to)""",
    "Codebook.fit": "x = floats(6 * 10**6); call = lambda: qk.Codebook.fit(x, 16, axis=0, block_size=64)",
    "Codebook.fit, zero": "call = lambda: qk.Codebook.fit(distinct, 64, zero=True)",
    "Codebook.fit, vectors": "x = floats(10**6, 16); call = lambda: qk.Codebook.fit(x, 256, vector=4, rng=0)",
    "choose_qparams, mse": "call = lambda: qk.choose_qparams(distinct, 'uint8', method='mse')",
    "choose_qparams, mse, float16": """
        x = floats(10**8).astype(np.float16)
        call = lambda: qk.choose_qparams(x, method='mse')""",
    "quantize": "x = floats(4 * 10**7); call = lambda: [qk.quantize(x, rate) for _ in range(4)]",
    "quantize, float64": """
        x = floats(4 * 10**7).astype(np.float64)
        call = lambda: qk.quantize(x, rate, rounding='half_away')""",
    "quantize, a scale a channel": """
        x, p = floats(4 * 10**6, 10), qk.QParams(np.ones(10), axis=1)
        call = lambda: qk.quantize(x, p)""",
    "quantize, transposed": "x = floats(8000, 12000).T; call = lambda: qk.quantize(x, rate)",
    "linear, float64": """
        p, x = qk.pack(codes(1000, 1), rate), floats(100_000, 1000).astype(np.float64)
        call = lambda: qk.linear(x, p)""",
    "dequantize": "q = codes(6 * 10**7); call = lambda: qk.dequantize(q, rate)",
    "fake_quantize": "x = floats(6 * 10**7); call = lambda: qk.fake_quantize(x, rate)",
    "fake_quantize_grad": "x = floats(6 * 10**7); call = lambda: qk.fake_quantize_grad(x, x, rate)",
    "quantize, stochastic": "x = floats(6 * 10**7); call = lambda: qk.quantize(x, rate, rounding='stochastic', seed=1)",
    "dynamic_quantize": "x = floats(6 * 10**7); call = lambda: qk.dynamic_quantize(x)",
    "dynamic_quantize, rows": "x = floats(60000, 1000); call = lambda: qk.dynamic_quantize(x, axis=0)",
    "requantize": """
        a = codes(60000, 1000, dtype=np.int32)
        call = lambda: qk.requantize(a, 0.1, rate, rounding='tflite')""",
    "choose_qparams": "x = floats(6 * 10**7); call = lambda: qk.choose_qparams(x)",
    "observers": """
        x, o = floats(10**8), qk.observers.Percentile()
        call = lambda: [o.update(x) for _ in range(9)]""",
    "observers, lines": """
        x, o = floats(10000, 4000), qk.observers.MSE(axis=1)
        call = lambda: o.update(x)""",
    "observers, arrays": """
        o = qk.observers.MSE(axis=0).update(floats(20000, 100))
        call = lambda: qk.observers.MSE.from_arrays(o.to_arrays())""",
    "observers, entropy": """
        o = qk.observers.Entropy(axis=0).update(floats(3000, 2000))
        call = o.qparams""",
    "pack": "b = codes(10000, 10000).T; call = lambda: qk.pack(b, rate)",
    "pack, one column": "b = codes(3 * 10**7, 1); call = lambda: qk.pack(b, rate)",
    "pack, one column, float16": "b = codes(3 * 10**7, 1, dtype=np.float16); call = lambda: qk.pack(b, None)",
    "pack, one column, 4 bits": """
        b = codes(10**7, 1, dtype=ml_dtypes.int4)
        params = qk.QParams(np.ones((312500, 1)), None, "int4", axis=0, block_size=32)
        call = lambda: [qk.pack(b, params) for _ in range(9)]""",
    "pack, 4 bits": """
        b = codes(8000, 8000, dtype=ml_dtypes.int4)
        call = lambda: qk.pack(b, qk.QParams(1, dtype='int4'))""",
    "pack, 2 bits": """
        b = codes(10**7, 1, dtype=ml_dtypes.int2)
        call = lambda: [qk.pack(b, qk.QParams(1, dtype='int2')) for _ in range(9)]""",
    "unpack, 2 bits": """
        p = qk.pack(codes(8000, 8000, dtype=ml_dtypes.int2), qk.QParams(1, dtype='int2'))
        call = p.unpack""",
    "unpack": "p = qk.pack(codes(10000, 10000), rate); call = p.unpack",
    "unpack, 4 bits": """
        p = qk.pack(codes(8000, 8000, dtype=ml_dtypes.int4), qk.QParams(1, dtype='int4'))
        call = p.unpack""",
    "unpack, int16": "p = qk.pack(codes(6000, 6000, dtype=np.int16), qk.QParams(1, dtype='int16')); call = p.unpack",
    "unpack, float16": "p = qk.pack(codes(6000, 6000, dtype=np.float16), None); call = p.unpack",
    "layer_norm": "x, w = floats(60000, 1000), floats(1000); call = lambda: qk.layer_norm(x, w, w)",
    "layer_norm, one row": "x, w = floats(1, 10**8), floats(10**8); call = lambda: qk.layer_norm(x, w, w)",
    "qsoftmax, first axis": "q = codes(10000, 20000); call = lambda: qk.qsoftmax(q, rate, rate, axis=0)",
    "qconv2d, channels first": """
        p, q = qk.pack_conv(codes(1, 1, 512, 1), rate), codes(30, 512, 112, 112).transpose(0, 2, 3, 1)
        call = lambda: qk.qconv2d(q, rate, p, None)""",
    "pack_conv, filters first": """
        w = codes(2000, 2000, 5, 5).transpose(2, 3, 1, 0)
        call = lambda: qk.pack_conv(w, rate)""",
    "fold_batchnorm": """
        w, row = floats(10000, 10000), np.ones(10000)
        call = lambda: qk.fold_batchnorm(w, row, row, row, row, row)""",
    "take_table": """
        q, t = codes(4 * 10**8), np.arange(256, dtype=np.uint8)
        call = lambda: qk.take_table(q, t)""",
    "qadd": "q = codes(10**8); call = lambda: qk.qadd(q, rate, q, rate, rate)",
    "qmultiply, tflite": "q = codes(4 * 10**7); call = lambda: qk.qmultiply(q, rate, q, rate, rate, rounding='tflite')",
    "qconcatenate": """
        q, other = codes(2 * 10**8), qk.QParams(1)
        call = lambda: qk.qconcatenate([(q, rate), (q, rate)], other, axis=0)""",
    "qsoftmax": "q = codes(60000, 1000); call = lambda: qk.qsoftmax(q, rate, rate)",
    "rotate": "x = floats(60000, 1000); call = lambda: qk.rotate(x)",
    "qlayer_norm": "q, w = codes(60000, 1000), floats(1000); call = lambda: qk.qlayer_norm(q, rate, w, w, rate)",
    "qsoftmax, one row": "q = codes(1, 10**8); call = lambda: qk.qsoftmax(q, rate, rate)",
    "qlayer_norm, one row": """
        q, w = codes(1, 5 * 10**7), floats(5 * 10**7)
        call = lambda: qk.qlayer_norm(q, rate, w, w, rate)""",
    "to_gguf": "x = floats(60000, 1024); call = lambda: qk.to_gguf(x, 'Q4_0')",
    "from_gguf, codes": """
        d = np.zeros((800000, 18 * 32), np.uint8)
        call = lambda: qk.from_gguf(d, 'Q4_0', codes=True)""",
    "from_gguf": "d = np.zeros((100000, 18 * 32), np.uint8); call = lambda: qk.from_gguf(d, 'Q4_0')",
    "pack_bits": "q = codes(10**8, dtype=np.uint8); call = lambda: qk.pack_bits(q, 3)",
    "pack_codes": "q = codes(2 * 10**6, 64, dtype=np.uint8); call = lambda: qk.pack_codes(q)",
    "unpack codes": "p = qk.pack_codes(codes(2 * 10**6, 64, dtype=np.uint8)); call = p.unpack",
    "unpack_bits": "d = codes(375 * 10**5, dtype=np.uint8); call = lambda: qk.unpack_bits(d, 3, (10**8,))",
}

INTERRUPTED = """
    before = qk.linear(floats(3, 64), qk.pack(codes(64, 32), rate))
    sent = []
    def send():
        sent[:] = time.process_time(), time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for delay in 0.05, 0.15, 0.4:
        timer = threading.Timer(delay, send)
        try:
            timer.start()   # on a busy machine the signal may come before it returns
            call()
            for _ in range(900):  # a signal that comes just before a sleep waits for its end
                time.sleep(0.01)
        except KeyboardInterrupt:
            print(time.process_time() - sent[0], time.perf_counter() - sent[1])
        timer.join()
    assert (qk.linear(floats(3, 64), qk.pack(codes(64, 32), rate)) == before).all()
"""


def settings(threads):
    return {"QKERNELS_ISA": "scalar", "QKERNELS_NUM_THREADS": str(threads)}


def check_waits(name, threads):
    lines = output(SETUP, CALLS[name] + "\n", INTERRUPTED, **settings(threads)).splitlines()
    waits = [tuple(map(float, line.split())) for line in lines]
    assert len(waits) == 3 and all(busy < threads * SECONDS and wall < WALL for busy, wall in waits), waits


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_returns_soon(name):
    check_waits(name, 1)


@pytest.mark.parametrize(
    "name", ["linear", "matmul, few", "attention", "attention, one head", "search", "search, 16 levels", "kmeans"]
)
def test_ctrl_c_stops_all_threads(name):
    check_waits(name, 3)


SHORT = "p = qk.pack(codes(2048, 2048), rate); x = floats(150, 2048); call = lambda: qk.linear(x, p)\n"
HANDLED = """
    expected = call()
    alone = qk.quantize(floats(10**6), rate)
    seen = []
    def handler(*_):
        seen.append((qk.quantize(floats(10**6), rate) == alone).all())
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    result = call()
    during = len(seen)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print((result == expected).all(), during > 0, all(seen))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_handler_that_returns_does_not_change_a_result(threads):
    """It may call the library, too."""
    assert output(SETUP, SHORT, HANDLED, **settings(threads)) == "True True True"


OTHER_THREAD = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    expected, results = call(), []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        print("interrupted", thread.is_alive())
    thread.join()
    print((results[0] == expected).all())
"""


def test_a_call_in_another_thread_is_not_interrupted():
    assert output(SETUP, SHORT, OTHER_THREAD, **settings(2)) == "interrupted True\nTrue"


FORKING = """
    expected = call()
    def handler(*_):
        if os.fork() == 0:
            signal.alarm(60)
            children.append(0)
    children = []
    signal.signal(signal.SIGUSR1, handler)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    try:
        result = call()
        assert not children and (result == expected).all()
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    except RuntimeError:
        same = (call() == expected).all()
        os._exit(7 if children and same else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_handler_that_forks_does_not_leave_the_child_waiting():
    """Its threads are gone, so its call ends with an error; the next one works."""
    assert output(SETUP, SHORT, FORKING, **settings(2)) == "7"
