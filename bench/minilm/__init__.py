"""MiniLM in many ways, timed and drawn: `python -m bench.minilm`. The network is that of examples/minilm.py, `example`
here."""

import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # report.py and what it needs
_spec = importlib.util.spec_from_file_location("example", Path(__file__).parents[2] / "examples" / "minilm.py")
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
