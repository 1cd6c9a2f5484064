"""Hostile arguments of every public function, some at once: `python tests/sanitize/hostile.py --cases 100000`.

Each case is a valid call (tests/calls.py) of which one to three arguments are something else: an object of
tests/test_errors.py, or an array of another shape, dtype, order or content. It must return, or raise what is for wrong
arguments. Compiled code (qkernels.numba) gets arrays of hostile shapes and contents likewise. A process that dies has
told its seed before: `--seed N --cases 1` repeats that case. Under the sanitizers: `run.py address --hostile`.
"""

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import CALLS, call  # noqa: E402
from test_errors import ENDLESS, ERRORS, HOSTILE  # noqa: E402

import qkernels as qk  # noqa: E402

DTYPES = ["f4", "f8", "f2", "i1", "u1", "i2", "u2", "i4", "i8", "u8", "?", "c8", "O", "S3", "M8[s]"]


def other_array(rng, like):
    """An array of another shape, dtype, order or content."""
    shape = [int(n) for n in rng.integers(0, 6, rng.integers(0, 4))] if rng.integers(2) else list(like.shape)
    dtype = np.dtype(str(rng.choice(DTYPES))) if rng.integers(2) else like.dtype
    made = np.frombuffer(rng.bytes(int(np.prod(shape)) * 16), np.uint8)[: int(np.prod(shape)) * dtype.itemsize]
    if dtype.hasobject:
        return np.full(shape, None, dtype)
    made = made.copy().view(dtype).reshape(shape)
    kind = rng.integers(6)
    if kind == 0 and made.ndim:
        return made[::-1]
    if kind == 1:
        return made.T
    if kind == 2:
        return np.broadcast_to(made, (int(rng.integers(0, 4)), *made.shape))
    if kind == 3 and made.dtype.kind == "f":
        return np.full(made.shape, rng.choice([np.nan, np.inf, 1e38, 1e-45, -0.0]), made.dtype)
    if kind == 4:
        return made.astype(made.dtype.newbyteorder())
    return made


def hostile(rng, value):
    if isinstance(value, np.ndarray) and rng.integers(2):
        return "array", other_array(rng, value)
    return HOSTILE[rng.integers(len(HOSTILE))]


def of_python(rng):
    """Make the call of a random function; return its name."""
    name = str(rng.choice(sorted(CALLS)))
    arguments = CALLS[name][rng.integers(len(CALLS[name]))]
    given = {key: value() if key == "out" else value for key, value in arguments.items()}
    for key in rng.permutation(sorted(given))[: rng.integers(1, 4)]:
        label, value = hostile(rng, given[key])
        if (key == "n_init" and label in ENDLESS) or (key in ("callback", "function") and callable(value)):
            continue
        given[str(key)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(name, given)
    return name


def compiled_functions():
    """Functions of arrays and an object, compiled, or none without Numba; each with the kind of object and arrays."""
    try:
        from numba import njit

        import qkernels.numba  # noqa: F401
    except ImportError:
        return []
    rows, line, sums = np.float32, np.float64, np.int32
    return [
        (njit(lambda x, p, q: qk.quantize(x, p, out=q)), "params", [(rows, 2), (np.int8, 2)]),
        (njit(lambda q, p, y: qk.dequantize(q, p, out=y)), "params", [(np.int8, 2), (rows, 2)]),
        (njit(lambda acc, p, m, b: qk.requantize(acc, m, p, b)), "params", [(sums, 2), (line, 1), (sums, 1)]),
        (njit(lambda a, w, z, c: qk.matmul(a, w, 0, z, c)), "packed", [(np.int8, 2), (sums, 1), (sums, 2)]),
        (njit(lambda x, w, b, r: qk.linear(x, w, b, residual=r)), "packed", [(rows, 2), (rows, 1), (rows, 2)]),
        (njit(lambda x, b: qk.encode(x, b)), "book", [(rows, 2)]),
        (njit(lambda c, b, s: qk.decode(c, b, s)), "book", [(np.uint8, 2), (rows, 2)]),
    ]


def of_numba(rng, compiled):
    """Call a compiled function with arrays whose sizes fit or do not, and whose bytes are any."""
    function, kind, wanted = compiled[rng.integers(len(compiled))]
    n = int(rng.integers(0, 9))
    scale = np.ones((), "f4") if rng.integers(2) else np.ones(n, "f4")
    packed = qk.pack(rng.integers(-128, 128, (int(rng.integers(0, 9)), n), np.int8), qk.QParams(1))
    objects = {
        "params": qk.QParams(scale, axis=int(rng.integers(-3, 3)) if scale.ndim else None),
        "packed": packed,
        "book": qk.Codebook([-1, 0, 1], axis=int(rng.integers(-3, 3)), block_size=int(rng.integers(1, 5))),
    }
    arrays = []
    for dtype, ndim in wanted:
        shape = (int(rng.integers(0, 9)), *packed.shape)[-ndim:] if rng.integers(4) else rng.integers(0, 9, ndim)
        if ndim == 2 and rng.integers(2):
            shape = (3, int(shape[1]))
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype).reshape(shape).copy())
    function(arrays[0], objects[kind], *arrays[1:])
    return "numba"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    compiled, done, refused = compiled_functions(), Counter(), Counter()
    with np.errstate(all="ignore"):
        for seed in range(options.seed, options.seed + options.cases):
            rng = np.random.default_rng(seed)
            if seed % 1000 == 0:
                print(f"from seed {seed}", flush=True)
            try:
                done[of_numba(rng, compiled) if compiled and seed % 5 == 0 else of_python(rng)] += 1
            except ERRORS as error:
                refused[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"--seed {seed} --cases 1: {type(error).__name__}: {error}") from error
    total = sum(done.values()) + sum(refused.values())
    print(f"{total} cases: {sum(done.values())} returned, {dict(refused)} raised")


if __name__ == "__main__":
    main()
