"""What the source distribution holds."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".pyx", ".pxd", ".c", ".h", ".def", ".md", ".json", ".txt", ".cmake", ".in"}


def is_generated(name):
    """Tell whether a file is what Cython made of one of ours."""
    return name.startswith("qkernels/") and name.endswith((".c", ".h"))


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Paths in the archive, without its top folder."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_source_distribution_holds_documents_benchmarks_tests_and_examples(names):
    kept = ["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "conftest.py"]
    for folder in "docs", "bench", "tests", "examples", "csrc", "qkernels":
        kept += [
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if (path.suffix in SUFFIXES or path.name == "Makefile") and "cache" not in path.parts
        ]
    assert {name for name in set(kept) - names if not is_generated(name)} == set()


def test_the_citation_has_the_version_of_the_header():
    header = (ROOT / "csrc/include/qkernels.h").read_text()
    version = re.search(r'^#define QK_VERSION "(.*)"$', header, re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_source_distribution_holds_nothing_that_is_built(names):
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc")) or is_generated(name)]
