"""Libraries that disturb others, or that are held to an instruction set apart, each in a process of its own.

What stands for a module of peers/ makes its contenders there, with the same arguments. Turns are run and timed there,
on the same core: each process waits at its pipe while others have their turns.
"""

import importlib
import os
import subprocess
import sys
import time
import traceback
import weakref
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import peers
import race
from race import CRASHED, MISSING, Contender

HOLD_AMX = ["ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"]


class Elsewhere:
    """Stands for the module; `free` of what keeps oneDNN and MKL from AMX."""

    def __init__(self, module, free=False):
        self.module, self.free = module, free
        self.pipe, self.numbers, self.alive = None, count(), weakref.WeakValueDictionary()

    def start(self):
        self.pipe, theirs = Pipe()
        environment = {k: v for k, v in os.environ.items() if not (self.free and k in HOLD_AMX)}
        arguments = map(str, (theirs.fileno(), self.module, peers.threads, peers.isa, peers.best_isa))
        options = dict(pass_fds=[theirs.fileno()], env=environment, stdout=subprocess.DEVNULL)
        process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, *arguments], **options)
        theirs.close()
        self.end = weakref.finalize(self, stop, self.pipe, process)

    def ask(self, *question):
        self.pipe.send(question)
        return self.pipe.recv()

    def __getattr__(self, function):
        return partial(self.contender, function)

    def contender(self, function, *arguments, **options):
        """Return a contender that has run once; if its process died of that, the next one has a new process."""
        if not self.pipe:
            self.start()
        number = next(self.numbers)
        try:
            made = Contender(**self.ask("make", number, list(self.alive), function, arguments, options))
        except (EOFError, ConnectionError):
            self.end()
            self.pipe, made = None, Contender(self.module, None, note=CRASHED)
            for lost in self.alive.values():
                lost.call, lost.note = None, CRASHED
        made.name += ", free" if self.free else ""
        if not made.note:
            made.timed, made.read = partial(self.ask, "time", number), partial(self.ask, "read", number)
            made.call, made.held = partial(made.timed, 1, 0), made.held and not self.free
            self.alive[number] = made
        return made


def stop(pipe, process):
    pipe.close()
    process.wait()


# ---- in the other process ----


def make(contenders, module, number, alive, function, arguments, options):
    """Return what tells of a contender that has run once; forget those that are no longer alive."""
    for old in contenders.keys() - set(alive):
        del contenders[old]
    try:
        made = getattr(importlib.import_module(f"peers.{module}"), function)(*arguments, **options)
        made.call()
    except ImportError:
        return dict(name=module, call=None, note=MISSING)
    except Exception:
        traceback.print_exc()
        return dict(name=module, call=None, note=CRASHED)
    contenders[number] = made
    return dict(name=made.name, call=None, held=made.held)


def serve(pipe, module):
    """Answer until the other end is closed."""
    contenders = {}
    answers = {
        "make": partial(make, contenders, module),
        "time": lambda number, calls, warming: race.time_calls(contenders[number].call, calls, warming),
        "read": lambda number: contenders[number].read(),
    }
    with suppress(EOFError):
        while True:
            verb, *given = pipe.recv()
            pipe.send(answers[verb](*given))


if __name__ == "__main__":
    peers.threads, peers.isa, peers.best_isa = int(sys.argv[3]), *sys.argv[4:]
    race.timer = time.process_time if peers.threads == 1 else time.perf_counter  # their one thread may not be the first
    serve(Connection(int(sys.argv[1])), sys.argv[2])
