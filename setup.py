"""The extension modules, and the version, which the C header has; everything else is in pyproject.toml."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def use_zig():
    """Have Windows compile by zig: Microsoft's compiler lacks vectors of GNU C, and gcc does not align AVX's there."""
    import ziglang

    machine = {"win-amd64": "x86_64", "win-arm64": "aarch64"}[sysconfig.get_platform()]
    zig = Path(ziglang.__file__).with_name("zig.exe").as_posix()
    os.environ["CC"] = f'"{zig}" cc -target {machine}-windows-gnu'  # with a target, zig takes its least CPU


on_windows = sys.platform == "win32"
if on_windows and not os.environ.get("CC"):
    use_zig()


def compiler_is_clang():
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return "clang" in subprocess.run([*command, "--version"], capture_output=True, text=True).stdout


# No -march: each file of csrc/kernels/x86 carries its own target pragma. Contraction to FMA would make float results
# differ between instruction sets. Vectors wider than the ABI's registers go to static functions only. Functions begin
# cache lines, so that how the loops within lie, which is some 3 % of their time, does not depend on their neighbours.
flags = [
    "-std=gnu11",
    "-O3",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-falign-functions=64",
    "-Wno-psabi",
    "-g0",
]
if not compiler_is_clang():
    # gcc would also peel the loops over a tile's 16 columns before it vectorizes them, and then fail to.
    flags.append("--param=max-completely-peel-times=8")

if on_windows:
    flags.remove("-pthread")

# One shared object of all bindings and of csrc, named after the first of them: qkernels/_bind/__init__.py loads them.
names = [f"qkernels._bind.{path.stem}" for path in sorted(Path("qkernels/_bind").glob("*.pyx"))]
modules = cythonize(
    [Extension(name, [f"{name.replace('.', '/')}.pyx"]) for name in names],
    compiler_directives={"language_level": 3},
)
library = Extension(
    "qkernels._bind.runtime",
    sources=[source for module in modules for source in module.sources] + sorted(glob("csrc/**/*.c", recursive=True)),
    depends=glob("csrc/**/*.[hd]*", recursive=True) + glob("qkernels/**/*.pxd", recursive=True),
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    extra_compile_args=flags,
    extra_link_args=[] if on_windows else ["-pthread"],
)


class BuildOnAllCpus(build_ext):
    """Compile as many sources at once as there are CPUs; on Windows by $CC, which setuptools calls MinGW."""

    def finalize_options(self):
        super().finalize_options()
        if on_windows:
            self.compiler = "mingw32"

    def build_extension(self, extension):
        compile_some = self.compiler.compile

        def compile_all(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return sum(pool.map(lambda source: compile_some([source], **options), sources), [])

        self.compiler.compile = compile_all
        super().build_extension(extension)


version = re.search(r'^#define QK_VERSION "(.*)"$', Path("csrc/include/qkernels.h").read_text(), re.MULTILINE)[1]

setup(version=version, ext_modules=[library], cmdclass={"build_ext": BuildOnAllCpus})
