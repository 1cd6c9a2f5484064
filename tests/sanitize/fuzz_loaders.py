"""Coverage-guided fuzzing of what reads files of others: `python tests/sanitize/fuzz_loaders.py -max_total_time=600`.

Atheris (`pip install atheris`) changes bytes so that they reach new lines of qkernels. The bytes are a safetensors
file; a pickle of one of our objects; blocks of GGUF; or arrays that `from_arrays` and the layouts of others are to
read. Whatever they are, the result must be an object that can be used, or an error that is one of wrong arguments.
Arguments are libFuzzer's.
"""

import contextlib
import io
import pickle
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["qkernels"]):
    import qkernels as qk
    from qkernels import gguf

sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import CALLS  # noqa: E402

REFUSED = TypeError, ValueError, MemoryError
PATH = Path(tempfile.mkdtemp(), "x.safetensors")
KINDS = sorted(gguf.KINDS)
READERS = {
    "QParams": qk.QParams.from_arrays,
    "PackedMatrix": qk.PackedMatrix.from_arrays,
    "Codebook": qk.Codebook.from_arrays,
    "PackedConv": qk.PackedConv.from_arrays,
    "Hessian": qk.Hessian.from_arrays,
    "PackedCodes": qk.PackedCodes.from_arrays,
    "gptq": qk.layouts.from_gptq,
    "awq": qk.layouts.from_awq,
    "bitsandbytes": qk.layouts.from_bitsandbytes,
}
READERS |= {name: getattr(qk.observers, name).from_arrays for name in qk.observers.__all__}
SAMPLES = {  # valid arrays of each
    name: [
        call["arrays"]
        for full in (f"{name}.from_arrays", f"layouts.from_{name}", f"observers.{name}.from_arrays")
        for call in CALLS.get(full, [])
    ]
    for name in READERS
}
DTYPES = [np.dtype(t) for t in ("f4", "f2", "f8", "i1", "u1", "i2", "i4", "i8", "u2", "u4", "?")]


ARRAYS = "dtype", "ndarray", "scalar", "_reconstruct", "_frombuffer"


class Ours(pickle.Unpickler):
    """Reads pickles of our objects only: what else a pickle can do is the matter of whoever loads it."""

    def find_class(self, module, name):
        if not (
            module.partition(".")[0] in ("qkernels", "numpy", "ml_dtypes") and name[:1] != "_" or name == "_rebuild"
        ):
            raise ValueError(f"{module}.{name} is none of ours")
        if module.partition(".")[0] == "numpy" and name not in ("dtype", "ndarray", "scalar", "array"):
            raise ValueError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def use(thing):
    """Call what a loaded object can do, cheaply."""
    if isinstance(thing, dict):
        for part in thing.values():
            use(part)
    elif isinstance(thing, qk.PackedMatrix):
        repr(thing), thing.nbytes, thing.unpack(), thing.to_arrays()
        if thing.shape[0] * thing.shape[1] < 10**6:
            qk.linear(np.ones((2, thing.shape[0]), np.float32), thing)
    elif isinstance(thing, qk.Codebook):
        repr(thing), thing.to_arrays()
        if not thing.vector and thing.axis is None:
            qk.encode(np.ones(5, np.float32), thing)
    elif isinstance(thing, qk.QParams):
        repr(thing), thing.to_arrays(), thing == thing
    elif hasattr(thing, "to_arrays"):
        repr(thing), thing.to_arrays()


def load_file(data):
    PATH.write_bytes(data)
    use(qk.io.load(PATH))


def load_blocks(data):
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    blocks = np.frombuffer(data[1:], np.uint8)
    rows = blocks.reshape(1, -1)
    qk.from_gguf(rows, kind)
    use(qk.from_gguf(rows, kind, codes=True)[1])


def load_arrays(data):
    """Change one array, or two, of a valid set: its dtype, its shape, its bytes; or take it away."""
    given = atheris.FuzzedDataProvider(data)
    name = given.PickValueInList(sorted(READERS))
    arrays = dict(given.PickValueInList(SAMPLES[name]))
    for _ in range(given.ConsumeIntInRange(1, 2)):
        key, how = given.PickValueInList(sorted(arrays)), given.ConsumeIntInRange(0, 4)
        value = np.asarray(arrays[key])
        if how == 0:
            dtype = given.PickValueInList(DTYPES)
            with np.errstate(all="ignore"):
                value = value.astype(dtype)
        elif how == 1:
            shape = [given.ConsumeIntInRange(0, 5) for _ in range(given.ConsumeIntInRange(0, 3))]
            value = np.resize(value, shape)
        elif how == 2:
            raw = bytearray(value.tobytes())
            change = given.ConsumeBytes(8)
            at = given.ConsumeIntInRange(0, max(len(raw) - 1, 0))
            raw[at : at + len(change)] = change[: len(raw) - at]
            value = np.frombuffer(bytes(raw), value.dtype).reshape(value.shape)
        elif how == 3:
            del arrays[key]
            if not arrays:
                return
            continue
        else:
            value = np.array(given.ConsumeInt(8))
        arrays[key] = value
    use(READERS[name](arrays))


def load_pickle(data):
    try:
        thing = Ours(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, AssertionError):
        return
    except (OverflowError, UnicodeDecodeError, RuntimeError, SystemError, NotImplementedError):
        return  # of pickle and NumPy
    use(thing)


LOADERS = load_file, load_blocks, load_arrays, load_pickle


def one_input(data):
    loader = LOADERS[data[0] % len(LOADERS)] if data else load_file
    with contextlib.suppress(*REFUSED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader(data[1:])


def write_corpus(folder):
    """Valid inputs to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = {"q": qk.QParams([0.5, 1], axis=0), "b": qk.Codebook([-1, 0, 1]), "x": np.ones((2, 3), np.float32)}
    objects["w"] = qk.pack(np.int8([[1, -2], [3, 4]]), qk.QParams(0.5))
    qk.io.save(PATH, objects)
    (folder / "file").write_bytes(b"\0" + PATH.read_bytes())
    for i, kind in enumerate(KINDS):
        if kind not in gguf.WRITTEN:
            continue
        data = qk.to_gguf(np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, -1), kind)
        (folder / f"gguf{i}").write_bytes(b"\1" + bytes([i]) + data.tobytes())
    for i in range(40):
        (folder / f"arrays{i}").write_bytes(b"\2" + np.random.default_rng(i).bytes(60))
    for key, value in objects.items():
        (folder / f"pickle {key}").write_bytes(b"\3" + pickle.dumps(value, 2))


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp(), "corpus")
    write_corpus(corpus)
    np.seterr(all="ignore")
    atheris.Setup([sys.argv[0], *(sys.argv[1:] or ["-max_total_time=600"]), str(corpus)], one_input)
    atheris.Fuzz()
