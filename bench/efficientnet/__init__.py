"""EfficientNet-Lite0 in many ways, timed and drawn: `python -m bench.efficientnet`. The network is that of
examples/efficientnet.py, `example` here."""

import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path += [str(Path(__file__).parents[1]), str(EXAMPLES)]  # report.py and what it needs; what the example imports
_spec = importlib.util.spec_from_file_location("efficientnet_example", EXAMPLES / "efficientnet.py")
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
