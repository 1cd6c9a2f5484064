"""``python -m qkernels`` tells what this build is and uses, checks it, and measures what this CPU reaches.

That takes half a minute; ``--seconds 0`` leaves out all but the first. With ``--compile`` it does what first calls
would have to: nothing, since all loops are part of the extension; no code is compiled when a function is called, and
none is kept in a cache.
"""

import argparse
import signal
import sys

from . import _speed, selftest
from .config import show_config

CHECK = 1.0  # seconds of the self-test


def main():
    parser = argparse.ArgumentParser(
        prog="python -m qkernels", description="What this build of qkernels is, that it is right, and how fast."
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile ahead what first calls would (nothing: all of it is built in)"
    )
    parser.add_argument(
        "--seconds", type=selftest.seconds, default=30, help="to measure for (30; 0: neither check nor measure)"
    )
    options = parser.parse_args()
    if options.compile:
        print("nothing to compile: all loops are built into the extension")
        return 0
    show_config()
    if options.seconds == 0:
        return 0
    print("\nSelf-check (python -m qkernels.selftest --seconds 3600 is a longer one):")
    if selftest.main(["--seconds", str(min(CHECK, options.seconds))]):
        return 1
    print("\nWhat this CPU reaches, with the threads above (NumPy has its own):", flush=True)
    _speed.show(options.seconds)
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # what reads all of it may be a `head`
    sys.exit(main())
