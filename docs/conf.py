"""Build the site: `python -m sphinx -W -n docs build/site`, with what the extra `docs` installs.

Its pages are the Markdown files of this folder, which read well on GitHub too; the API's say only which modules they
are about. What a browser wants beyond that is made here: entries for public names, from the package itself; links out
of this folder; and, in the text, links from names to their entries and powers that are set as such.
"""

import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

import qkernels

REPOSITORY = "https://github.com/qkernels/qkernels"
OPTIONAL = "dask", "numba", "torch"  # what a module of ours needs that may not be installed

project, version = "qkernels", qkernels.__version__
author = copyright = "the authors of qkernels"
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
default_role = "literal"
smartquotes = False
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_typehints, autodoc_preserve_defaults, autodoc_inherit_docstrings = "none", True, False
autosummary_generate = False
numpydoc_show_class_members = False
# Each thing is said once, in plain sentences.
NOT_CHECKED = "ES01 EX01 GL01 GL08 PR01 PR02 PR03 PR04 PR07 PR08 PR09 RT01 RT03 RT04 RT05 SA01 YD01"
numpydoc_validation_checks = {"all", *NOT_CHECKED.split()}
myst_heading_anchors = 3
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. ", True

html_theme, html_title, html_favicon = "furo", f"qkernels {version}", "_static/icon.svg"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}


# ---- entries of the API ----


def resolve(name):
    """Return what a name of the package stands for, without its first part."""
    return reduce(getattr, name.split("."), qkernels)


def position(found):
    """Return the line of a function or class, to sort by; compiled ones have none."""
    try:
        return inspect.getsourcelines(found)[1]
    except (OSError, TypeError):
        return 0


def names_of(stem):
    """Return the public functions and classes of a module, as users write them, without the package's own name."""
    module = import_module(f"qkernels.{stem}")
    public = getattr(module, "__all__", None)
    if public is None:
        own = [name for name in qkernels.__all__ if resolve(name).__module__ == module.__name__]
        public = sorted(filter(lambda name: callable(resolve(name)), own), key=lambda name: position(resolve(name)))
    return [name if getattr(qkernels, name, None) is getattr(module, name) else f"{stem}.{name}" for name in public]


def entry(name):
    """Return the lines that document a name."""
    found = resolve(name)
    kind = "class" if inspect.isclass(found) else "function"
    whole = kind == "class" and not issubclass(found, tuple)  # whose fields stand in its docstring
    members = ["   :members:", "   :inherited-members: Module"] if whole else []
    return [f".. auto{kind}:: qkernels.{name}", *members, ""]


def entries(match):
    """Turn a block that names modules to what they say of themselves, a table of their names, and these."""
    stems, lines, names = match[1].split(), [], []
    for stem in stems:
        try:
            names += names_of(stem)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            return f"`qkernels.{stem}` needs {error.name}, which was not there when this page was made."
        if not stem.startswith("_"):
            lines += [f".. automodule:: qkernels.{stem}", "", ".. currentmodule:: qkernels", ""]
    lines += [".. autosummary::", "", *(f"   {name}" for name in names), ""] if names else []
    homes = tuple(f"qkernels.{stem}" for stem in stems)
    own = [name for name in names if resolve(name).__module__.startswith(homes)]  # others have their entry elsewhere
    return "\n".join(["```{eval-rst}", ".. currentmodule:: qkernels", "", *lines, *sum(map(entry, own), []), "```"])


# ---- sources ----


def read_page(_app, page, source):
    """Make the entries of the API, targets of numbered sections, and links to files that are no pages."""
    text = re.sub(r"```\{public\} (.*)\n```", entries, source[0])
    if page == "index":
        text = text.replace("the rest\n", "".join(f"{name}\n" for name in unlisted(text)))
    if page == "numerics":
        text = re.sub(r"^## (\d+)\.", r"(section-\1)=\n## \1.", text, flags=re.MULTILINE)
    else:
        text = re.sub(r"\bnumerics (\d+)", r"[numerics \1](#section-\1)", text)
    text = re.sub(r"\[(\w+)\.md\]\(\1\.md\)", r"[](\1.md)", text)  # with the title of the page as its text
    up = r"\.\./" * (page.count("/") + 1)
    source[0] = re.sub(rf"\]\({up}", f"]({REPOSITORY}/blob/main/", text)


def unlisted(lists):
    """Return the pages beside the first one that its lists do not name."""
    pages = sorted(path.stem for path in Path(__file__).parent.glob("*.md") if path.stem != "index")
    return [name for name in pages if not re.search(rf"^{name}$|<{name}>$", lists, flags=re.MULTILINE)]


def read_included(_app, _path, _page, content):
    """Let links of README and its neighbours, which are from the folder above, lead to pages or to the repository."""
    text = re.sub(r"\[docs/\w+\.md\]\((?=docs/)", "[](", content[0])
    text = re.sub(r"\]\((?=[\w/.]+[)#])(?!docs/)", f"]({REPOSITORY}/blob/main/", text)
    content[0] = re.sub(r"\]\(docs/", "](", text)


def link_sections(_app, _what, _name, _object, _options, lines):
    """Let docstrings that cite numerics.md link to its sections."""
    text = re.sub(r"\bdocs/numerics\.md,\s+(sections?)", r"Numerics, \1", "\n".join(lines))
    cited = re.compile(r"(?<=\bNumerics, )(sections?)((?:(?:,| and| to)?\s+\d+)+)")
    linked = cited.sub(lambda m: m[1] + re.sub(r"\d+", r":ref:`\g<0> <section-\g<0>>`", m[2]), text)
    lines[:] = linked.split("\n")


# ---- text ----


def linked_names():
    """Return the full name of each public function, class and method, by the names that documents use."""
    names = {name: name for name in qkernels.__all__}
    for stem in "observers", "layouts", "io", *OPTIONAL:
        try:
            full = {name.partition(".")[2]: name for name in names_of(stem) if name not in names}
        except ModuleNotFoundError:
            continue  # what is not documented cannot be linked to
        names |= {name: name for name in full.values()} | (full if stem in ("observers", "layouts") else {})
    classes = {short: full for short, full in names.items() if inspect.isclass(resolve(full))}
    for short, full in classes.items():
        members = [] if issubclass(resolve(full), tuple) else [name for name in dir(resolve(full)) if name[0] != "_"]
        names |= {f"{short}.{name}": f"{full}.{name}" for name in members if callable(resolve(f"{full}.{name}"))}
    return names


NAMES = linked_names()
CLASSES = re.compile(rf"\b({'|'.join(name for name in NAMES if inspect.isclass(resolve(NAMES[name])))})\b")


class LinkNames(SphinxTransform):
    """Link public names to their entries: in code, with arguments or without, and classes as types of parameters."""

    default_priority = 400

    def link(self, name, content):
        """Return a link to the entry of a name."""
        where = dict(refdomain="py", reftype="obj", reftarget=f"qkernels.{NAMES[name]}", refdoc=self.env.docname)
        return pending_xref("", content, **where, refexplicit=True, refwarn=True)

    def apply(self):
        """Wrap what names something."""
        for literal in list(self.document.findall(nodes.literal)):
            called = re.fullmatch(r"(?:qk\.|qkernels\.)?([\w.]+)(?:\(.*\))?", literal.astext(), flags=re.DOTALL)
            inside = isinstance(literal.parent, nodes.reference | nodes.title | pending_xref)
            if called and called[1] in NAMES and not inside:
                literal.replace_self(self.link(called[1], literal.deepcopy()))
        for text in texts_within(self.document, nodes.classifier | nodes.term):
            replace_parts(text, CLASSES, lambda name: self.link(name, nodes.inline(name, name)))


class Typeset(SphinxTransform):
    """Raise exponents, such as that of 2^-24, and end code with its last line."""

    default_priority = 400
    exponent = re.compile(r"(?<=[\w)|])(?:\^|\*\*)(-?\w+|\([^()]*\))")

    def apply(self):
        """Replace the nodes of text and code."""
        for text in texts_within(self.document, nodes.paragraph | nodes.title):
            replace_parts(text, self.exponent, lambda power: nodes.superscript(power, power))
        for block in list(self.document.findall(nodes.literal_block)):
            code = block.astext().rstrip("\n")
            block.replace_self(nodes.literal_block(code, code, **block.attributes))


def texts_within(document, kinds):
    """Return what is text, not code or a link, in nodes of these kinds."""
    within = [node for node in document.findall() if isinstance(node, kinds)]
    found = [text for node in within for text in node.findall(nodes.Text)]
    return [text for text in found if not isinstance(text.parent, nodes.literal | nodes.reference | pending_xref)]


def replace_parts(text, pattern, make):
    """Replace what the only group of a pattern finds in a text by nodes."""
    parts = pattern.split(text)
    if len(parts) > 1:
        new = [make(part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]
        text.parent.replace(text, new)


def setup(app):
    """Do all of this where Sphinx offers to."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", link_sections)
    app.add_transform(LinkNames)
    app.add_transform(Typeset)
