"""The site: it builds without warnings, has an entry for each public name, and no link of it leads nowhere."""

import importlib
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from common import python

import qkernels as qk

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/qkernels/qkernels/blob/main/"
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links |= {attrs[name] for name in ("href", "src") if attrs.get(name)}
        self.anchors |= {attrs["id"]} if attrs.get("id") else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site, by their paths."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site").resolve()
    done = python("-m", "sphinx", "-W", "-n", "-q", "docs", folder, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return pages_of(folder)


def pages_of(folder):
    return {path: Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}


def leads_nowhere(link, path, pages):
    """Tell whether a link of the page at `path` is to a file, or a place in one, that is not there."""
    if link.startswith(REPOSITORY):
        return not (ROOT / urlsplit(link.removeprefix(REPOSITORY)).path).exists()
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False  # of other sites, which nobody can reach from everywhere
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    return not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].anchors)


def public_names():
    """Each public module and each public name, and the object."""
    names = {f"qkernels.{name}": getattr(qk, name) for name in qk.__all__}
    known = {id(found) for found in names.values()}
    for stem in (found.name for found in pkgutil.iter_modules(qk.__path__) if not found.name.startswith("_")):
        try:
            module = importlib.import_module(f"qkernels.{stem}")
        except ModuleNotFoundError as error:
            assert not error.name.startswith("qkernels")  # of an extra that is not installed
            continue
        names[f"module-qkernels.{stem}"] = module
        own = {f"qkernels.{stem}.{name}": getattr(module, name) for name in getattr(module, "__all__", [])}
        names |= {name: found for name, found in own.items() if id(found) not in known}
    return names


def test_each_public_name_has_an_entry(site):
    names = public_names()
    assert {"qkernels.quantize", "qkernels.NF4", "qkernels.observers.MSE", "module-qkernels.io"} <= names.keys()
    assert names.keys() - set().union(*(page.anchors for page in site.values())) == set()


def test_no_link_leads_nowhere(site):
    links = [(path, link) for path, page in site.items() for link in page.links]
    assert len(links) > 1000 and any(link.startswith(REPOSITORY + "examples/") for _, link in links)
    assert [(path.name, link) for path, link in links if leads_nowhere(link, path, site)] == []


@pytest.mark.parametrize("link", ["other.html", "#there", "page.html#there", "../page.html", REPOSITORY + "nothing.py"])
def test_links_to_nowhere_are_found(link, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f'<p id="here"><a href="{link}"> <a href="page.html#here"> <a href="{REPOSITORY}setup.py"></p>')
    pages = pages_of(tmp_path)
    assert [found for found in sorted(pages[page].links) if leads_nowhere(found, page, pages)] == [link]


def test_names_in_code_link_to_their_entries(site):
    [guide] = [page for path, page in site.items() if path.name == "guide.html"]
    assert {"api/products.html#qkernels.linear", "api/layouts.html#qkernels.layouts.from_awq"} <= guide.links


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_the_sources_lead_somewhere(path):
    """They are read on GitHub as well."""
    links = re.findall(r"\]\(([^()#\s]+)[^()\s]*\)", path.read_text("utf-8"))
    assert [link for link in links if not urlsplit(link).scheme and not (path.parent / link).exists()] == []
