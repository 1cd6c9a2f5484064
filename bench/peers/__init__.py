"""The other libraries, a module each, imported at first use: peers.torch.int_mm(a, b) binds its inputs once.

What such a function returns is a Contender, which race.py checks and times. A library that is not installed leaves the
others alive: its contenders are noted as missing. Each module tells the instruction sets that its library can be
held to, by itself or by the environment that conftest.py sets.
"""

import importlib
from pathlib import Path

from race import MISSING, Contender

# of this run, set by conftest.py before any peer is used
threads, isa, best_isa = 1, None, None
left_out = False  # bench/compare.py times our own code alone
BY_ENVIRONMENT = ["avx2", "avxvnni", "avx512"]  # what conftest.py can hold to by the environment


class Missing:
    """Stands for the module of a library that is not there: all its contenders are missing."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, function):
        return lambda *arguments, **options: Contender(self.name, None, note=MISSING)


def __getattr__(name):
    if not Path(__file__).with_name(f"{name}.py").exists():
        raise AttributeError(f"no peer {name}")
    try:
        return Missing(name) if left_out else importlib.import_module(f"{__name__}.{name}")
    except ImportError:
        return globals().setdefault(name, Missing(name))


def contender(name, call, read=None, check=None, held_to=()):
    """Return a Contender, whose result is that of one more call if `read` does not tell. It counts as held if our
    instruction set is the best, or among those it can be held to."""
    return Contender(name, call, read or call, check, held=isa == best_isa or isa in held_to)
