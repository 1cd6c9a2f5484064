"""Give objects what they have in common: parameters and codebooks are frozen values, observers lock what changes."""

from contextlib import contextmanager, nullcontext
from threading import RLock


class Lockable:
    """Serve as a base of objects that threads share."""

    def __init__(self):
        self._lock, self._in_use = RLock(), False

    @contextmanager
    def _locked(self):
        """Lock the object, or raise if this thread has it: a signal handler must not wait for what it interrupts."""
        with self._lock:
            if self._in_use:
                name = type(self).__name__
                raise RuntimeError(f"this thread is using this {name}: a signal handler cannot until it returns")
            self._in_use = True
            try:
                yield
            finally:
                self._in_use = False


@contextmanager
def both_locked(one, other):
    """Lock two objects, in an order that does not depend on who asks: no two threads wait for each other's."""
    first, second = sorted((one, other), key=id)
    with first._locked(), nullcontext() if first is second else second._locked():
        yield


def restored(cls, arrays):
    """Return cls.from_arrays(arrays): what pickles name, as cloudpickle takes a class's method apart."""
    return cls.from_arrays(arrays)


class Frozen:
    """Serve as a base of frozen objects, of which a copy is the object itself."""

    __slots__ = ()

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


class Sealed(Frozen):
    """Serve as a base of what is packed in slots and can be had as plain arrays: nothing of it can be set."""

    __slots__ = ()

    def __setattr__(self, name, value):
        raise AttributeError(f"{type(self).__name__} are frozen: {name} cannot be set")

    def __delattr__(self, name):
        raise AttributeError(f"{type(self).__name__} are frozen: {name} cannot be deleted")

    def __reduce__(self):
        return restored, (type(self), self.to_arrays())


class Value(Frozen):
    """Serve as a base of frozen objects that are equal if their keys are, which no other class has alike."""

    __slots__ = ()

    def __eq__(self, other):
        return self._key() == other._key() if isinstance(other, Value) else NotImplemented

    def __hash__(self):
        return hash(self._key())
