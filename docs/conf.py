"""Sphinx's settings for `make docs`: the pages, the executed notebooks and the API as one site with a search.

The source folder is the repository, so that links between pages, notebooks and files are the same here and on GitHub.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
OWN = ["reports/local/**", "reports/mine*/**"]  # what the reader executed
# Of several copies the first folder's: 05 of the README's run is in gap.
REPORTS = sorted({*ROOT.glob("reports/*/*.ipynb")}.difference(*map(ROOT.glob, OWN)), reverse=True)
EXECUTED = {path.name: path.relative_to(ROOT).as_posix() for path in REPORTS}

project = html_title = "TIMAM"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "reports/*/*.ipynb", "reports/*/*.md"]
exclude_patterns = ["docs/site", "docs/jupyter_execute", *OWN]  # the first two: what an earlier build left
extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"

myst_heading_anchors = 3
nb_execution_mode = "off"  # the reports are evidence, and stay as they are

apidoc_modules = [
    {"path": str(ROOT / name), "destination": f"docs/api/{name}", "separate_modules": True, "module_first": True}
    for name in ("timam", "timam_lab")
]
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # an attribute that a docstring describes is not described twice
default_role = "literal"  # `name` in a docstring
# Docstrings are no reStructuredText, and name what two modules export. Links are what must hold.
suppress_warnings = ["docutils", "ref.python", "misc.highlighting_failure", "mystnb.unknown_mime_type", "myst.header"]


def setup(app: Sphinx) -> None:
    """Links to a notebook lead to its executed copy, tables in docstrings stay as they are, the README comes first."""

    def to_executed(app: Sphinx, page: str, source: list[str]) -> None:
        up = "../" * page.count("/")
        source[0] = re.sub(
            r"\]\((?:\.\./)*notebooks/([\w.]+\.ipynb)\)",
            lambda link: f"]({up}{EXECUTED[link[1]]})" if link[1] in EXECUTED else link[0],
            source[0].replace("](../reports/", "](/reports/"),  # of a notebook, from its folder
        )

    def open_with_readme(app: Sphinx, error: Exception | None) -> None:
        page = '<meta http-equiv="refresh" content="0; url=README.html"><a href="README.html">TIMAM</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")

    def tables_as_written(app: Sphinx, kind: str, name: str, of: object, options: object, lines: list[str]) -> None:
        table = [line.startswith("|") for line in lines]
        for i in reversed(range(len(lines))):
            if table[i]:
                lines[i : i + 1] = [f"    {lines[i]}"] if i and table[i - 1] else ["::", "", f"    {lines[i]}"]

    app.connect("source-read", to_executed)
    app.connect("autodoc-process-docstring", tables_as_written)
    app.connect("build-finished", open_with_readme)
