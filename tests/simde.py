"""What builds simde_test.c: the kernels of AVX-512, AVX-VNNI and AMX on CPUs without, with SIMDe in the place of the
instructions."""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
# As setup.py, without vectors; sums wrap in SIMDe as they do in the instructions.
FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-pthread", "-w"]


def simde_include():
    """The folder that holds simde/x86/avx512.h: of the package simde-py (extra `test`), else of the system."""
    places = [Path("/usr/include")]
    if found := importlib.util.find_spec("simde_py"):
        places = [*Path(found.origin).parent.glob("simde"), Path(found.origin).parent, *places]
    return next((place for place in places if (place / "simde/x86/avx512.h").exists()), None)


EMULATED = [CSRC / f"kernels/x86/{name}.c" for name in ("avxvnni", "avx512", "avx512vnni", "amx")]


def build_commands(compiler, program):
    """What builds simde_test.c: EMULATED find the <immintrin.h> of emulated/, all other files the compiler's."""
    targets = [program.with_name(path.stem + ".o") for path in EMULATED]
    include = [f"-I{CSRC}", f"-I{HERE / 'emulated'}", f"-I{simde_include()}"]
    others = sorted(path for path in CSRC.rglob("*.c") if path not in EMULATED)
    return [
        *([*compiler, *include, "-c", path, "-o", target] for path, target in zip(EMULATED, targets, strict=True)),
        [*compiler, f"-I{CSRC}", HERE / "simde_test.c", *others, *targets, "-lm", "-o", program],
    ]
