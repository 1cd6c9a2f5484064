#!/bin/bash
# Runs Python tests on an emulated 64-bit ARM: CPython and wheels for it under qemu, the extension cross-compiled here.
#
#     tests/emulated/aarch64.sh FOLDER [CPU [arguments of pytest]]
#
# FOLDER keeps what is fetched and built, for the next run. CPU is one of qemu's: cortex-a57 has NEON alone,
# neoverse-n1 and cortex-a76 dot products, max products of matrices too (the default). Without arguments the core of
# the suite runs: what computes, without what starts processes, whose programs would need emulation of their own.
# That is a matter of hours; BEST_ISA_ALONE=1 leaves the best instruction set of the CPU.
#
# It takes Debian 12 or its like: apt-get install gcc-aarch64-linux-gnu qemu-user, and a Python with Cython, NumPy and
# setuptools. Nothing is installed: packages of Debian and wheels of PyPI are unpacked in FOLDER. SUITE=trixie
# VERSION=3.13 in the environment, or sid and 3.14, take another CPython of Debian's than that of its release 12.
set -eu

suite=${SUITE-} version=${VERSION:-3.11}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
work=$(cd "$1" && pwd)
cpu=${2:-max}
shift $(($# < 2 ? $# : 2))
root=$work/root site=$work/site tree=$work/tree
cc=${CC:-aarch64-linux-gnu-gcc}

fetch_python() {
    local apt=$work/apt
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root"
    : > "$apt/status"
    local options=(-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt"
        -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt")
    if [ -n "$suite" ]; then
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" \
            > "$apt/sources.list"
        options+=(-o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=-)
    fi
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install -y --download-only --no-install-recommends "python$version" libstdc++6
    (cd "$apt/archives" && apt-get "${options[@]}" download "libpython$version-dev")
    for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$root"; done
    [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
}

fetch_wheels() {
    local tags=() tag
    for tag in manylinux2014 manylinux_2_17 manylinux_2_27 manylinux_2_28; do tags+=(--platform "${tag}_aarch64"); done
    python3 -m pip download -q "${tags[@]}" --python-version "$version" --only-binary=:all: -d "$work/wheels" \
        numpy ml_dtypes scipy "pytest>=8" hypothesis mpmath safetensors threadpoolctl
    for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
}

# Extension modules of the target are made of its own headers; Cython and setuptools are this machine's.
build() {
    rm -rf "$tree"
    mkdir -p "$tree"
    cp -r "$here"/{qkernels,csrc,tests,setup.py,pyproject.toml,README.md,LICENSE,conftest.py} "$tree"
    find "$tree/qkernels" -name '*.so' -delete
    (cd "$tree" && CC=$cc LDSHARED="$cc -shared" SETUPTOOLS_EXT_SUFFIX=".cpython-${version/./}-aarch64-linux-gnu.so" \
        CFLAGS="-I$root/usr/include/python$version -I$root/usr/include -I$site/numpy/_core/include" \
        python3 setup.py -q build_ext --inplace)
}

[ -e "$root/usr/bin/python$version" ] || fetch_python
[ -e "$site/numpy" ] || fetch_wheels
build
# Processes that tests start by sys.executable are emulated, too.
emulated=(qemu-aarch64 -cpu "$cpu" -L "$root" "$root/usr/bin/python$version")
printf '#!/bin/sh\nexec %s "$@"\n' "${emulated[*]@Q}" > "$work/python"
chmod +x "$work/python"
echo "import sys; sys.executable = '$work/python'" > "$site/sitecustomize.py"
core=(matmul linear gemm4 gemm16 blocks8 folded low_bits products pack quantize qparams scales codebook kmeans kmeans1d
    pq layers integer_layers qlinear conv rounding observers hessian microscaling prune gptq checksums)
core=("${core[@]/#/tests/test_}")
[ $# -gt 0 ] || set -- -q "${core[@]/%/.py}"
cd "$tree"
export PYTHONPATH=$tree:$site PYTHONDONTWRITEBYTECODE=1
export OPENBLAS_CORETYPE=NEOVERSEN1 # NumPy's BLAS for SME, which qemu's max has, raises stray flags of floats
exec "${emulated[@]}" -m pytest -p no:cacheprovider "$@"
