"""What several test files share: processes, codes, the same values in other places in memory, calls that are refused,
and the fused multiply-add."""

import builtins
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import qkernels

ROOT = Path(qkernels.__file__).parents[1]
COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
SETTINGS = "QKERNELS_ISA", "QKERNELS_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND"
INT_CODES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]
FLOAT_CODES = ["float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"]
FLOATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


def environment(**settings):
    """Return the environment of a process: ours, of our settings only these; None takes a variable away."""
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return {name: value for name, value in (env | settings).items() if value is not None}


def python(*arguments, cwd=None, **settings):
    """Run Python with these arguments in a process of its own."""
    command = [sys.executable, "-Wignore:This process:DeprecationWarning", *arguments]  # forks beside threads
    return subprocess.run(command, env=environment(**settings), cwd=cwd, capture_output=True, text=True, timeout=900)


def output(*code, cwd=None, **settings):
    """Return what code prints in a process of its own, which must succeed without a warning."""
    done = python("-c", "".join(map(textwrap.dedent, code)), cwd=cwd, **settings)
    assert done.returncode == 0 and not done.stderr, done.stderr or f"killed by signal {-done.returncode}"
    return done.stdout.strip()


def run(*command, **options):
    """Return what a command prints; it must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=3600, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def code_range(dtype):
    """Return the lowest and the highest code of a dtype or its name."""
    info = ml_dtypes.iinfo(getattr(ml_dtypes, str(dtype), dtype))
    return int(info.min), int(info.max)


def random_codes(rng, shape, dtype, largest=2**15):
    """Return codes of at most that magnitude, a third of which are at the ends of the range, where a kernel that
    saturates would be wrong."""
    low, high = np.clip(code_range(dtype), -largest, largest)
    ends = rng.choice([low, high], shape)
    codes = np.where(rng.random(shape) < 1 / 3, ends, rng.integers(low, high + 1, shape))
    return codes.astype(getattr(ml_dtypes, str(dtype), dtype))


def unaligned(x):
    copy = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def wider(x):
    """Return a view of columns of a wider array: unit stride, rows further apart."""
    padded = np.empty((*x.shape[:-1], x.shape[-1] + 7), x.dtype)
    padded[..., 3 : 3 + x.shape[-1]] = x
    return padded[..., 3 : 3 + x.shape[-1]]


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": lambda x: x.T.copy().T,
    "wider": wider,
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :] if x.ndim > 1 else x,
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()) if x.dtype.isbuiltin == 1 else x,
}
layouts = st.sampled_from(list(LAYOUTS.values()))


def reversed_everywhere(x):
    backwards = (..., *[slice(None, None, -1)] * x.ndim)
    return x[backwards].copy()[backwards]


def strided_everywhere(x):
    wide = np.zeros([3 * n for n in x.shape], x.dtype)[(..., *[slice(None, None, 3)] * x.ndim)]
    wide[...] = x
    return wide


# Of any number of axes, also none.
ANY_AXES = {name: LAYOUTS[name] for name in ("contiguous", "fortran", "read-only", "unaligned", "byte-swapped")}
ANY_AXES |= {"reversed": reversed_everywhere, "strided": strided_everywhere}


def bits(x):
    x = np.asarray(x)
    return x.view(f"u{x.itemsize}")


REFUSAL = re.compile(r"^ *(\S.*?)\s+# (\w+Error): (.*)$", re.MULTILINE)


def refused(text):
    """Return the refusals that are lines `call  # Error: words`; what is too long for a line stands in two. The words
    are a pattern."""
    assert not REFUSAL.sub("", text).strip()
    return REFUSAL.findall(text)


def refusals(text):
    """Parametrize a test by them."""
    return pytest.mark.parametrize("refusal", refused(text), ids=lambda refusal: refusal[0])


def refuse(refusal, names):
    """Evaluate a call of these names, which must raise that error with these words."""
    call, error, words = refusal
    with pytest.raises(getattr(builtins, error), match=words):
        eval(call, names)


class Raising:
    """The names of qkernels. Whatever NumPy would report raises in their calls, though not in a test that uses them:
    for tests whose own references underflow."""

    def __init__(self, named=qkernels):
        self.named = named

    def __getattr__(self, name):
        found = getattr(self.named, name)
        return Raising(found) if callable(found) else found

    def __call__(self, *args, **options):
        with np.errstate(all="raise"):
            return self.named(*args, **options)


@np.errstate(all="ignore")
def fused(a, b, c):
    """fl(a * b + c) of float32: the product is exact in float64; where the sum is not, rounding it to odd keeps what
    decides the second rounding (Boldo and Melquiond, 2008)."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (error != 0) & (total.view(np.int64) & 1 == 0)
    total[even] = np.nextafter(total[even], np.where(error[even] > 0, np.inf, -np.inf))
    return total.astype(np.float32)


def philox(counter, seed):
    """Return the words of Philox4x32-7 for counters (n,) below 2**64."""
    mask = np.uint64(2**32 - 1)
    words = [counter & mask, counter >> np.uint64(32), np.zeros_like(counter), np.zeros_like(counter)]
    for i in range(7):
        keys = [(half + i * bump) % 2**32 for half, bump in ((seed, 0x9E3779B9), (seed >> 32, 0xBB67AE85))]
        a, b = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words[0] = b >> np.uint64(32) ^ words[1] ^ np.uint64(keys[0])
        words[2] = a >> np.uint64(32) ^ words[3] ^ np.uint64(keys[1])
        words[1], words[3] = b & mask, a & mask
    return np.stack(words, axis=-1)


def random_bits(n, seed):
    """Return the 16 bits that elements 0 to n - 1 take: eight xoroshiro128+, drawn by Philox for each 1,024 of them."""
    chunks = -(-n // 1024)
    words = philox(np.arange(8 * chunks, dtype=np.uint64), seed)
    s0, s1 = words[:, 0] | words[:, 1] << np.uint64(32), words[:, 2] | words[:, 3] << np.uint64(32)
    sums = np.empty((chunks, 32, 8), "<u8")
    for step in range(32):
        with np.errstate(over="ignore"):
            sums[:, step] = (s0 + s1).reshape(chunks, 8)
        s1 = s1 ^ s0
        s0, s1 = turned(s0, 24) ^ s1 ^ s1 << np.uint64(16), turned(s1, 37)
    return sums.view("<u2").ravel()[:n].astype(np.int64)


def turned(v, bits):
    return v << np.uint64(bits) | v >> np.uint64(64 - bits)


def answer(call):
    """Return what a call returns, or says that is wrong."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
