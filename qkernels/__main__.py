"""``python -m qkernels`` tells what this build is and what it uses.

With ``--compile`` it does what first calls would have to: nothing, since all loops are part of the extension; no code
is compiled when a function is called, and none is kept in a cache.
"""

import argparse

from .config import show_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m qkernels", description="What this build of qkernels is and what it uses."
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile ahead what first calls would (nothing: all of it is built in)"
    )
    if parser.parse_args().compile:
        print("nothing to compile: all loops are built into the extension")
    else:
        show_config()
