"""The kernels of 64-bit ARM: cross-compiled, and run by qemu as CPUs that have more and more of the instructions.

apt-get install gcc-aarch64-linux-gnu qemu-user. Python itself on such CPUs: emulated/aarch64.sh."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from common import run

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CC, QEMU = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
LIBRARIES = "/usr/aarch64-linux-gnu"  # of the cross compiler
TABLES = ["neon_i8mm", "neon_dotprod", "neon", "scalar"]

pytestmark = [
    pytest.mark.skipif(not CC, reason="no cross compiler: apt-get install gcc-aarch64-linux-gnu"),
    pytest.mark.skipif(not QEMU, reason="no emulator: apt-get install qemu-user"),
]


def flags():
    """What setup.py compiles with."""
    listed = (ROOT / "setup.py").read_text().partition("flags = [")[2].partition("]")[0]
    return re.findall(r'"(-[^"]+)"', listed)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of simde_test and c_api_test."""
    folder = tmp_path_factory.mktemp("arm")
    sources = [path for path in sorted(CSRC.rglob("*.c")) if "x86" not in path.parts]
    objects = [folder / f"{path.parent.name}_{path.stem}.o" for path in sources]

    def compile_one(source, target):
        run(CC, *flags(), "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-c", source, "-o", target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    for name in "simde_test", "c_api_test":
        include = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
        options = ["-O1", "-w", "-fwrapv", "-ffp-contract=off", "-pthread"]
        run(CC, *options, *include, ROOT / f"tests/{name}.c", *objects, "-lm", "-o", folder / name)
    return folder


def emulated(cpu, *command, isa=""):
    return run(QEMU, "-cpu", cpu, "-L", LIBRARIES, *command, env=os.environ | {"QKERNELS_ISA": isa})


@pytest.mark.parametrize(
    ("cpu", "asked", "there"),
    [
        ("cortex-a57", TABLES, ["neon"]),
        ("neoverse-n1", TABLES[:2], ["neon_dotprod"]),
        ("max", TABLES[:1], ["neon_i8mm"]),
    ],
)
def test_tables_give_the_bits_of_scalar_at_all_tails(cpu, asked, there, programs):
    """Those that the CPU lacks are asked for, too, and say so."""
    lines = emulated(cpu, programs / "simde_test", *asked).splitlines()
    compared = {line.split()[3]: int(line.split()[0]) for line in lines}
    assert list(compared) == there and min(compared.values()) > 1_000_000


def test_peaks_of_the_benches_do_what_they_count(tmp_path):
    """Twelve sums, each of the products of a register: of bytes of 60, of pairs of them, of floats of four."""
    products = {"usmmla": 8, "udot": 4, "umull": 2, "smlal": 1, "fmla": 1}
    calls = "".join(f"peak_{name}(10, &sink); show();" for name in products)
    source, program = tmp_path / "main.c", tmp_path / "limits"
    source.write_text(
        f'#include <stdio.h>\n#include "{ROOT}/bench/limits.c"\n'
        "static union { uint32_t i[4]; float f[4]; } sink;\n"
        'static void show(void) { printf("%u %.9g\\n", sink.i[3], sink.f[3]); }\n'
        f"int main(void) {{ {calls} return !(has_neon() && has_dotprod() && has_i8mm()); }}\n"
    )
    run(CC, "-O3", "-w", source, "-o", program)
    *integers, last = (line.split() for line in emulated("max", program).splitlines())
    squares = [60 * 60] * 3 + [(60 * 257) ** 2]
    assert [int(i) for i, _ in integers] == [
        120 * n * square % 2**32 for n, square in zip(products.values(), squares, strict=False)
    ]
    assert float(last[1]) == pytest.approx(120 * 0.01148897**2, rel=1e-5)


@pytest.mark.parametrize("isa", TABLES)
def test_the_c_interface(isa, programs):
    assert emulated("max", programs / "c_api_test", isa=isa).endswith(" 0 failures\n")
