"""Results that a file has the hashes of, on each instruction set and each kind of CPU."""

import json
from pathlib import Path

import results

EXPECTED = json.loads((Path(__file__).parent / "checksums.json").read_text())


def test_results_are_those_of_every_other_machine(isas):
    assert len(EXPECTED) > 350
    for isa in isas():
        found = results.checksums()
        different = {name: found.get(name) for name in EXPECTED.keys() | found if found.get(name) != EXPECTED.get(name)}
        assert not different, isa
