"""MiniLM in many ways, timed and drawn: `python -m bench.minilm`. The network is that of examples/minilm.py, `example`
here."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("example", Path(__file__).parents[2] / "examples" / "minilm.py")
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
