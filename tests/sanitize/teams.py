"""Calls whose work teams of 2 to 4 threads share, for the thread sanitizer: tests/sanitize/run.py thread --teams.

Their results must have the bits that one thread gives. At the end two callers at once, of which one works alone.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import qkernels as qk

RNG = np.random.default_rng(0)
TEAMS, TURNS = (2, 3, 4), 3


def calls():
    """Return calls by name, each large enough to be shared, on the best instruction set."""
    m, k, n = 70, 320, 200
    x, w, many = (RNG.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n), (300, 1000)))
    a, b = RNG.integers(-128, 128, (m, k), np.int8), RNG.integers(-128, 128, (k, n), np.int8)
    whole, columns, blocks = qk.QParams(0.02), qk.choose_qparams(w, axis=1), dict(axis=0, block_size=32)
    weights = {"int8": qk.pack(qk.quantize(w, columns), columns), "float16": qk.pack(w.astype(np.float16), None)}
    for dtype in "uint4", "int2":
        params = qk.choose_qparams(w, dtype, **blocks)
        weights[dtype] = qk.pack(qk.quantize(w, params), params)
    image, filters = RNG.integers(-128, 128, (2, 30, 30, 32), np.int8), RNG.integers(-128, 128, (3, 3, 32, 64), np.int8)
    conv, book = qk.pack_conv(filters, whole), qk.Codebook.fit(w, 16)
    vectors = qk.Codebook(RNG.normal(size=(k // 8, 64, 8)).astype(np.float32), vector=True)
    parameters = {"one": whole, "rows": qk.choose_qparams(many, axis=0), "blocks": qk.choose_qparams(many, **blocks)}
    found = {
        "matmul": lambda: qk.matmul(a, b),
        "qlinear": lambda: qk.qlinear(a, whole, weights["int8"], whole),
        "qconv2d": lambda: qk.qconv2d(image, whole, conv, whole, padding=1),
        "dynamic_quantize": lambda: qk.dynamic_quantize(many, axis=0)[0],
        "choose_qparams, mse": lambda: qk.choose_qparams(many, "int4", axis=0, method="mse").scale,
        "layer_norm": lambda: qk.layer_norm(many, many[0], many[1]),
        "attention": lambda: qk.attention(many[:200, :256], many[:200, 256:512], many[:200, 512:768], 4),
        "encode": lambda: qk.encode(many, book),
        "encode, vectors": lambda: qk.encode(x, vectors),
        "kmeans": lambda: qk.kmeans(many.reshape(-1, 4), 16, max_iter=5, rng=0).centroids,
        "kmeans1d": lambda: qk.kmeans1d(many, 5).centroids,
        "observers": lambda: qk.observers.MSE(axis=0).update(many).qparams("int8").scale,
    }
    found |= {f"linear, {name}": lambda packed=packed: qk.linear(x, packed, w[0]) for name, packed in weights.items()}
    for name, params in parameters.items():
        found[f"quantize, {name}"] = lambda params=params: qk.quantize(many, params)
        found[f"fake_quantize_grad, {name}"] = lambda params=params: qk.fake_quantize_grad(many, many, params)[1]
    return found


def bits(result):
    return np.ascontiguousarray(result).tobytes()


def main():
    with np.errstate(all="ignore"):
        every = calls()
        with qk.num_threads(1):
            want = {name: bits(call()) for name, call in every.items()}
        for threads in TEAMS:
            with qk.num_threads(threads):
                for name, call in every.items():
                    assert all(bits(call()) == want[name] for _ in range(TURNS)), (name, threads)
        with qk.num_threads(TEAMS[-1]), ThreadPoolExecutor(2) as pool:
            for name, call in every.items():
                assert all(bits(found) == want[name] for found in pool.map(lambda _, call=call: call(), range(2))), name
    threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else TEAMS[-1]
    assert threads >= TEAMS[-1], f"only {threads} threads have ever worked"
    print(f"{len(every)} calls by teams of {TEAMS} threads")


if __name__ == "__main__":
    main()
