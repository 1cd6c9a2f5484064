"""Libraries that disturb others, or that are held to an instruction set apart, each in a process of its own.

What stands for a module of peers/ makes its contenders there, with the same arguments. Turns are run and timed there,
on the same core: each process waits at its pipe while others have their turns.
"""

import importlib
import os
import subprocess
import sys
import time
import weakref
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
        self.pipe, self.numbers, self.forgotten = None, count(), []

    def start(self):
        self.pipe, theirs = Pipe()
        environment = {k: v for k, v in os.environ.items() if not (self.free and k in HOLD_AMX)}
        command = [sys.executable, "-W", "ignore", __file__, str(theirs.fileno()), self.module]
        command += [str(peers.threads), peers.isa, peers.best_isa]
        fds = [theirs.fileno()]
        process = subprocess.Popen(command, pass_fds=fds, env=environment, stdout=subprocess.DEVNULL)
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
        number, forgotten = next(self.numbers), [self.forgotten.pop() for _ in self.forgotten[:]]
        try:
            made = Contender(**self.ask("make", number, forgotten, function, arguments, options))
        except (EOFError, ConnectionError):
            self.end()
            self.pipe, made = None, Contender(self.module, None, note=CRASHED)
        made.name += ", free" if self.free else ""
        if not made.note:
            made.timed, made.read = partial(self.ask, "time", number), partial(self.ask, "read", number)
            made.call, made.held = partial(made.timed, 1, 0), made.held and not self.free
        weakref.finalize(made, self.forgotten.append, number)
        return made


def stop(pipe, process):
    pipe.close()
    process.wait()


# ---- in the other process ----


def make(contenders, module, number, forgotten, function, arguments, options):
    for old in forgotten:
        contenders.pop(old, None)
    try:
        made = getattr(importlib.import_module(f"peers.{module}"), function)(*arguments, **options)
    except ImportError:
        return dict(name=module, call=None, note=MISSING)
    made.call()
    contenders[number] = made
    return dict(name=made.name, call=None, held=made.held)


def serve(pipe, module):
    """Answer until the other end is closed. An error ends the process, and shows."""
    contenders = {}
    answers = {
        "make": partial(make, contenders, module),
        "time": lambda number, calls, warming: race.time_calls(contenders[number].call, calls, warming),
        "read": lambda number: contenders[number].read(),
    }
    try:
        while True:
            verb, *given = pipe.recv()
            pipe.send(answers[verb](*given))
    except EOFError:
        pass


if __name__ == "__main__":
    peers.threads, peers.isa, peers.best_isa = int(sys.argv[3]), *sys.argv[4:]
    race.timer = time.process_time if peers.threads == 1 else time.perf_counter  # their one thread may not be the first
    serve(Connection(int(sys.argv[1])), sys.argv[2])
