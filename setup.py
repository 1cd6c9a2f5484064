"""The extension module; everything else is in pyproject.toml."""

from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march: each csrc/kernels_*.c carries its own target pragma. Contraction to FMA
# would make float results differ between instruction sets. gcc would also peel the loops over a tile's 16 columns
# before it vectorizes them, and then fail to.
core = Extension(
    "qkernels._core",
    sources=["qkernels/_core.pyx", *sorted(glob("csrc/*.c"))],
    depends=glob("csrc/*.h") + ["qkernels/_core.pxd"],
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    extra_compile_args=["-std=gnu11", "-O3", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
                        "--param=max-completely-peel-times=8", "-fvisibility=hidden", "-g0"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=cythonize([core], compiler_directives={"language_level": 3}))
