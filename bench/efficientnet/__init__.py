"""EfficientNet-Lite0 in many ways, timed and drawn: `python -m bench.efficientnet`. The network is that of
examples/efficientnet.py, `example` here."""

import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # report.py and what it needs
_spec = importlib.util.spec_from_file_location("efficientnet_example", Path(__file__).parents[2] / "examples" / "efficientnet.py")
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
