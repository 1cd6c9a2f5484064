"""What an installed wheel must do: import, know its version and instruction sets, and multiply as NumPy does."""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

import qkernels as qk
from qkernels._bind import runtime

assert "site-packages" in Path(qk.__file__).parts, f"not the installed package: {qk.__file__}"
assert qk.__version__ == version("qkernels")

rng = np.random.default_rng(0)
a, b = rng.integers(-128, 128, (70, 300), np.int8), rng.integers(-128, 128, (300, 90), np.int8)
exact = a.astype(np.int64) @ b.astype(np.int64)
w, x = np.float32(rng.normal(size=(300, 90))), np.float32(rng.normal(size=(70, 300)))
products = []
for isa in runtime.available_isas():
    runtime.set_isa(isa)
    for threads in 1, 2:
        with qk.num_threads(threads):
            assert np.array_equal(qk.matmul(a, b), exact), (isa, threads)
            params = qk.choose_qparams(w, "int4", axis=0, block_size=50)
            products.append(qk.linear(x, qk.pack(qk.quantize(w, params), params), activation="gelu").tobytes())
assert len(set(products)) == 1, "instruction sets differ"
assert qk.kmeans1d(np.float32([1, 2, 8, 9, 10]), 2).inertia == 2.5
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
print(
    f"qkernels {qk.__version__}, Python {sys.version.split()[0]}{'' if gil else ' without GIL'}:",
    *runtime.available_isas(),
)
