"""What the suites of products share: shapes, limits and the race itself. Shapes are M x N x K."""

from functools import cache
from itertools import cycle

import peers
from limits import moving, multiplying, reading

CUBES = [(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)]
LAYERS = [(128, 384, 384), (128, 1536, 384), (128, 384, 1536), (256, 3072, 768), (32, 4096, 4096), (8, 4096, 4096)]
MANY_ROWS = [(512, n, 4096) for n in (1024, 4096, 11008)] + [(512, 384, 384), (512, 1536, 384), (512, 384, 1536)]
FEW_ROWS = [(4, 4096, 4096), (1, 4096, 4096), (1, 11008, 4096), (1, 1536, 384)]
SMALL = [(1, 64, 32), (7, 13, 5), (300, 1000, 77)]
SHAPES = CUBES + LAYERS + FEW_ROWS + SMALL
THREADED = [CUBES[0], *CUBES[3:], *LAYERS[1:3], (8, 4096, 4096), (1, 4096, 4096)]
UNPACKED = CUBES[2:] + SMALL[:2]
CODES = {"uint8": "u8", "int8": "s8"}

COLD_BYTES = 2**30  # of weights in turn: more than caches hold


def named(shape):
    return "x".join(map(str, shape))


def race_product(race, isa, case, shape, ours, peers, check, inputs, weight_bytes, out, cold=False):
    """Race products of arrays: `inputs`, `out` and the weights are moved once, cold ones from memory."""
    m, n, k = shape
    read, written = sum(a.nbytes for a in inputs) + weight_bytes, out.nbytes
    limits = product_limits(isa, m * n * k, read, written)
    if cold and len(limits) > 1:
        limits = [*limits[:-1], reading(COLD_BYTES, weight_bytes)]
    race(case, ours, peers, check, m * n * k, "GMAC/s", limits, read + written)


def product_limits(isa, macs, read, written):
    """Return none if no peak is known: a stream alone would say too little. The stream has one thread."""
    peak = multiplying(isa, macs, peers.threads)
    return peak and [*peak, moving(read, written)] if peers.threads == 1 else peak


def in_turn(calls):
    """One of the calls after the other, for ever."""
    following = cycle(calls).__next__
    return lambda: following()()


@cache
def minilm_layer(name):
    """float32 weights (K, N) of a dense layer of MiniLM, which the example downloads."""
    from minilm import example

    weights, _, _ = example.load_model()
    return weights[f"encoder.layer.2.{name}.weight"].T
