"""Build dense.pyx, which needs no header and no library of qkernels: `python setup.py build_ext --inplace`."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

import qkernels

# Cython finds __init__.pxd of an installed package by itself; the path serves a checkout that is installed with `-e`.
setup(
    ext_modules=cythonize(
        [Extension("dense", ["dense.pyx"])],
        include_path=[str(Path(qkernels.__file__).parents[1])],
    )
)
