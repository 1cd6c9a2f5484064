"""Integer layers in the middle of compiled Python: find what kind of signal each of many streams carries.

Each stream is filtered sample by sample, cut into windows and described by numbers that need a loop (crossings, peaks),
which NumPy has no fast way for. Numba compiles the loop; the network on those numbers is in int8, by qkernels, inside
that loop: `qk.linear(x, packed)` is written as outside. Streams are shared among threads by `prange`, each of whose
calls takes one thread.

    python examples/numba_streams.py
"""

import argparse
import time

import numpy as np
from numba import njit, prange

import qkernels as qk
import qkernels.numba  # noqa: F401  (what lets compiled functions call the functions of qkernels)

LENGTH, WINDOW, FEATURES, HIDDEN = 4096, 256, 12, 128
KINDS = "sine", "chirp", "square", "noise"


def make_streams(count, rng):
    """Return streams (count, LENGTH) of each kind in turn, with noise, and the number of their kind."""
    t = np.linspace(0, 1, LENGTH)
    kinds = np.arange(count) % len(KINDS)
    frequency, phase = rng.uniform(40, 160, (count, 1)), rng.uniform(0, 6, (count, 1))
    angle = 2 * np.pi * frequency * np.where(kinds[:, None] == 1, t * (1 + 2 * t), t) + phase
    streams = np.sin(angle)
    streams[kinds == 2] = np.sign(streams[kinds == 2])
    streams[kinds == 3] = rng.normal(size=(np.sum(kinds == 3), LENGTH))
    return (streams * rng.uniform(0.5, 2, (count, 1)) + 0.4 * rng.normal(size=streams.shape)).astype(np.float32), kinds


@njit(nogil=True)
def describe(stream, features):
    """Fill the features (windows, FEATURES) of a stream that a low pass of first order has smoothed."""
    smooth = np.float32(0)
    for window in range(features.shape[0]):
        energy, jumps, crossings, peaks, last = 0.0, 0.0, 0, 0, smooth
        counts = features[window]
        counts[:] = 0
        rising = False
        for i in range(window * WINDOW, (window + 1) * WINDOW):
            smooth += np.float32(0.4) * (stream[i] - smooth)
            energy += smooth * smooth
            jumps += abs(smooth - last)
            crossings += (smooth > 0) != (last > 0)
            peaks += rising and smooth < last
            rising = smooth > last
            counts[4 + min(int(abs(smooth) * 5), 7)] += np.float32(1 / 32)
            last = smooth
        counts[0] = np.sqrt(energy / WINDOW)
        counts[1] = jumps / WINDOW * 4
        counts[2] = crossings / 32
        counts[3] = peaks / 32


@njit
def describe_all(streams):
    features = np.empty((len(streams), LENGTH // WINDOW, FEATURES), np.float32)
    for i in range(len(streams)):
        describe(streams[i], features[i])
    return features


@njit(parallel=True)
def classify(streams, first, bias, second):
    """Return the kind of each stream: two layers of packed weights, whose outputs are summed over windows."""
    kinds = np.empty(len(streams), np.int64)
    for i in prange(len(streams)):
        features = np.empty((LENGTH // WINDOW, FEATURES), np.float32)
        describe(streams[i], features)
        hidden = qk.linear(features, first, bias, activation="relu")
        kinds[i] = np.argmax(qk.linear(hidden, second).sum(axis=0))
    return kinds


def train(features, kinds, rng):
    """Return a hidden layer of random weights and the read-out that fits best (ridge regression)."""
    w, bias = rng.normal(size=(FEATURES, HIDDEN)).astype(np.float32), rng.normal(size=HIDDEN).astype(np.float32)
    hidden = np.maximum(features.reshape(-1, FEATURES) @ w + bias, 0)
    wanted = np.eye(len(KINDS))[np.repeat(kinds, features.shape[1])] - 0.25
    read_out = np.linalg.solve(hidden.T @ hidden + np.eye(HIDDEN), hidden.T @ wanted)
    return w, bias, read_out.astype(np.float32)


def pack(w):
    params = qk.choose_qparams(w, "int8", axis=1)
    return qk.pack(qk.quantize(w, params), params)


def best_time(call):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main(streams=2000, quiet=False):
    rng = np.random.default_rng(0)
    w, bias, read_out = train(describe_all((known := make_streams(400, rng))[0]), known[1], rng)
    unknown, kinds = make_streams(streams, rng)
    floats = np.maximum(describe_all(unknown) @ w + bias, 0) @ read_out
    packed = pack(w), bias, pack(read_out)
    result = {
        "float32": float(np.mean(floats.sum(axis=1).argmax(axis=1) == kinds)),
        "int8": float(np.mean(classify(unknown, *packed) == kinds)),
    }
    if not quiet:
        took = best_time(lambda: classify(unknown, *packed))
        print(f"{streams} streams of {LENGTH} samples: {took * 1e6 / streams:.0f} us each, int8 layers within the loop")
        print(f"right: {result['float32']:.1%} by layers in float32, {result['int8']:.1%} in int8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    main(parser.parse_args().streams)
