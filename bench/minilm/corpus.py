"""The texts: docstrings of the public functions of NumPy and SciPy."""

import importlib
import inspect
import pkgutil
import re
import warnings
from collections import namedtuple

import numpy as np

Docstring = namedtuple("Docstring", "function query document")


def collect_docstrings():
    """Return one `Docstring` for each first sentence: where functions share it, nothing tells them apart."""
    found = {}
    for module in public_modules():
        for name in sorted(getattr(module, "__all__", ())):  # some are made of sets
            function = getattr(module, name, None)
            if inspect.isroutine(function) or isinstance(function, np.ufunc):
                query, document = split_docstring(inspect.getdoc(function) or "")
                if len(document) >= 200:
                    found.setdefault(query, Docstring(f"{module.__name__}.{name}", query, document))
    return list(found.values())


def public_modules():
    """Yield numpy, scipy and their public subpackages."""
    skipped = {"tests", "testing", "core", "f2py", "distutils", "lib"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for root in ("numpy", "scipy"):
            package = importlib.import_module(root)
            yield package
            for info in pkgutil.walk_packages(package.__path__, root + "."):
                parts = info.name.split(".")
                if info.ispkg and not any(part.startswith("_") or part in skipped for part in parts):
                    yield importlib.import_module(info.name)


def split_docstring(text):
    """Return (first sentence, the rest), without the signature that some docstrings begin with."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    while paragraphs and re.match(r"[\w.]+\(.*\)", " ".join(paragraphs[0].split())):
        del paragraphs[0]
    text = "\n\n".join(paragraphs)
    sentence = re.match(r"(.+?\.)(?=\s|$)|(.+?)(?=\n\n|$)", text, re.DOTALL)
    if not sentence:
        return "", ""
    return " ".join(sentence[0].split()), text[sentence.end() :].strip()
