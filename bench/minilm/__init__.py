"""MiniLM in many ways, timed and drawn: `python -m bench.minilm`. The network is that of examples/minilm.py, `example`
here."""

import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path += [str(Path(__file__).parents[1]), str(EXAMPLES)]  # report.py and what it needs; minilm_static.py
_spec = importlib.util.spec_from_file_location("example", EXAMPLES / "minilm.py")
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
