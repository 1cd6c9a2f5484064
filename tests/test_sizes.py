"""What packed weights hold, and shapes whose sizes no memory, or no 64 bits, can hold. Both run in processes of their own:
``python test_sizes.py held ISA`` prints bytes, ``python test_sizes.py giants FIRST LAST`` makes calls within 4 GiB."""

import copy
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import qkernels as qk
from qkernels import _core

K = N = 2048


def run(*arguments, **environment):
    root = str(Path(qk.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "QKERNELS_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, __file__, *arguments], env=env, capture_output=True, text=True, timeout=300)


# ---- what is held ----


def codes(dtype, least=None, most=None):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    info = ml_dtypes.iinfo(dtype)
    shape = (K, N)
    return np.random.default_rng(0).integers(info.min if least is None else least, info.max + 1 if most is None else most, shape).astype(dtype)


def blocks(size, *, half=True, zeros=False):
    """scale and zero_point of blocks of so many rows."""
    rng, shape = np.random.default_rng(1), (-(-K // size), N)
    scale = rng.uniform(0.1, 1, shape).astype(np.float32)
    return (scale.astype(np.float16) if half else scale), rng.integers(0, 8, shape) if zeros else None


def of_columns(dtype, zeros=False):
    rng = np.random.default_rng(2)
    return qk.QParams(rng.uniform(0.1, 1, N), rng.integers(0, 8, N) if zeros else None, dtype, axis=1)


def of_blocks(dtype, size, **options):
    return qk.QParams(*blocks(size, **options), dtype, axis=0, block_size=size)


def coded(size=None, *, own=False, half=True):
    """Arguments of `pack` for codes of a codebook."""
    levels = np.random.default_rng(3).normal(0, 1, (N, 16) if own else 16)
    codebook = qk.Codebook(levels, axis=1 if own else 0 if size else None, block_size=size)
    return codes("uint8", 0, 16), codebook, blocks(size, half=half)[0] if size else None


KINDS = {
    "int8 per tensor": lambda: (codes("int8"), qk.QParams(0.1)),
    "int8 per column": lambda: (codes("int8"), of_columns("int8")),
    "int8 light": lambda: (codes("int8", -32, 32), of_columns("int8")),
    "int8 light with zero points": lambda: (codes("int8", -32, 32), of_columns("int8", True)),
    "uint8 per tensor": lambda: (codes("uint8"), qk.QParams(0.1, 128, "uint8")),
    "uint8 per column": lambda: (codes("uint8"), of_columns("uint8", True)),
    "int16 per tensor": lambda: (codes("int16"), qk.QParams(0.1, dtype="int16")),
    "int16 per column": lambda: (codes("int16"), of_columns("int16", True)),
    "int4 per tensor": lambda: (codes("int4"), qk.QParams(0.1, dtype="int4")),
    "int4 per column": lambda: (codes("int4"), of_columns("int4")),
    "int4 in blocks of 32": lambda: (codes("int4"), of_blocks("int4", 32)),
    "int4 in blocks of 32, float32 scales": lambda: (codes("int4"), of_blocks("int4", 32, half=False)),
    "int4 in blocks of 20": lambda: (codes("int4"), of_blocks("int4", 20)),
    "int4 in blocks of 10000": lambda: (codes("int4"), of_blocks("int4", 10000)),
    "uint4 per column": lambda: (codes("uint4"), of_columns("uint4", True)),
    "uint4 in blocks of 32": lambda: (codes("uint4"), of_blocks("uint4", 32, zeros=True)),
    "uint4 in blocks of 64, float32 scales": lambda: (codes("uint4"), of_blocks("uint4", 64, half=False, zeros=True)),
    "codebook": coded,
    "codebook of each column": lambda: coded(own=True),
    "codebook in blocks of 64": lambda: coded(64),
    "codebook in blocks of 32, float32 scales": lambda: coded(32, half=False),
    "float16": lambda: (codes("int8").astype(np.float16), None),
    "bfloat16": lambda: (codes("int8").astype(ml_dtypes.bfloat16), None),
}


def pack(arguments):
    return qk.pack(*arguments[:2], scales=arguments[2] if len(arguments) > 2 else None)


def resident():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def print_held(isa):
    """For each kind what `nbytes` says, what tracemalloc and what the pages of a second matrix say."""
    _core.set_isa(isa)
    result = {}
    for kind, make in KINDS.items():
        pack(make())
        tracemalloc.start()
        packed = pack(make())
        packed.params, packed.scales   # what is made when asked for is not kept
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        before = resident()
        more = pack(make())
        result[kind] = packed.nbytes, traced, resident() - before
        del more
    print(json.dumps(result))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc's malloc")
@pytest.mark.parametrize("isa", _core.available_isas())
def test_nbytes_is_what_is_held(isa):
    done = run("held", isa, MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, (told, traced, pages) in json.loads(done.stdout).items():
        assert traced == pytest.approx(told, rel=0.02) and pages == pytest.approx(told, rel=0.02), (kind, told, traced, pages)


if __name__ == "__main__":
    if sys.argv[1] == "held":
        print_held(sys.argv[2])
