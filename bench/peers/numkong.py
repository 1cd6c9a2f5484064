"""numkong's packed dot products."""

import numkong
import numpy as np

import peers

CAPABILITIES = {"avx2": ["haswell"], "avxvnni": ["haswell", "alder"], "avx512": ["haswell", "skylake"]}

held = peers.isa != peers.best_isa and peers.isa in CAPABILITIES
for name, on in numkong.get_capabilities().items():
    if on and (name.endswith("amx") or held and name not in ["serial", *CAPABILITIES[peers.isa]]):
        numkong.disable_capability(name)


def dots(a, b):
    """Both operands int8: it has no product of uint8 by int8."""
    packed = numkong.dots_pack(np.ascontiguousarray(b.T))
    out = numkong.dots_packed(a, packed)
    return peers.contender(
        "numkong", lambda: numkong.dots_packed(a, packed, out=out), lambda: np.asarray(out), held_to=CAPABILITIES
    )
