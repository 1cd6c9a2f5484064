"""The other libraries, a module each, imported at first use: peers.torch.int_mm(a, b) binds its inputs once.

What such a function returns is a Contender, which race.py checks and times. A library that is not installed leaves the
others alive: its contenders are noted as missing. Each module tells the instruction sets that its library can be
held to, by itself or by the environment that conftest.py sets. Libraries that disturb others live elsewhere.
"""

import importlib
from functools import cache
from pathlib import Path

from race import MISSING, Contender

OWN_PROCESS = ["ctranslate2", "jax", "openvino", "torch_compile", "zentorch"]

# of this run, set by conftest.py before any peer is used
threads, isa, best_isa = 1, None, None
left_out = False  # bench/compare.py times our own code alone
BY_ENVIRONMENT = ["avx2", "avxvnni", "avx512", "avx512vnni"]  # what conftest.py can hold to by the environment


class Missing:
    """Stands for the module of a library that is not there: all its contenders are missing."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, function):
        return lambda *arguments, **options: Contender(self.name, None, note=MISSING)


@cache
def elsewhere(name, **options):
    from elsewhere import Elsewhere

    return Elsewhere(name, **options)


@cache
def has_amx():
    flags = Path("/proc/cpuinfo")
    return flags.exists() and " amx_int8 " in flags.read_text()


def held_and_free(name):
    """Return a library of its own process; on a CPU with AMX, from which ours is held, also one that may use it."""
    free = [elsewhere(name, free=True)] if has_amx() and isa == "avx512vnni" and not left_out else []
    return [__getattr__(name), *free]


def __getattr__(name):
    if not Path(__file__).with_name(f"{name}.py").exists():
        raise AttributeError(f"no peer {name}")
    if name in OWN_PROCESS and not left_out:
        return elsewhere(name)
    try:
        return Missing(name) if left_out else importlib.import_module(f"{__name__}.{name}")
    except ImportError:
        return globals().setdefault(name, Missing(name))


def contender(name, call, read=None, check=None, held_to=()):
    """Return a Contender, whose result is that of one more call if `read` does not tell. It counts as held if our
    instruction set is the best, or among those it can be held to."""
    return Contender(name, call, read or call, check, held=isa == best_isa or isa in held_to)
