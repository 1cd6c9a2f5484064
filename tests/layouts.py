"""What several test files share: the same values in other places in memory, and the fused multiply-add."""

import numpy as np

import qkernels


def unaligned(x):
    copy = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


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
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = total.view(np.int64) & 1 == 0
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0), toward, total).astype(np.float32)
