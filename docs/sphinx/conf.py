"""How Sphinx makes the site: the markdown of the repository at its own paths, and the docstrings of the package.

The source folder is the repository, so that every relative link of a page leads to the same file on a code host and on
the site. Nothing is imported from anydepth: `reference` reads its source.
"""

import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "anydepth"
author = "The anydepth authors"
version = release = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]["version"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/*.md",
    "benchmarks/**/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = ["docs/sphinx", "**/.ipynb_checkpoints", ".*", "runs", "site"]  # which are not walked either

extensions = ["myst_nb", "sphinx_copybutton", "mathml", "reference"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_fence_as_directive = {"math"}
myst_heading_anchors = 4
nb_execution_mode = "off"  # a notebook is shown as it was saved
# What needs no script of somebody else's comes first.
nb_mime_priority_overrides = [
    ("html", "image/svg+xml", 1),
    ("html", "image/png", 2),
    ("html", "text/html", 3),
]
suppress_warnings = ["mystnb.unknown_mime_type"]  # of the forms that an output has, those shown are enough
maximum_signature_line_length = 80
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"anydepth {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["root"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
smartquotes_action = "D"  # dashes alone: "each" is a value, quotes and all


def add_title(app: Sphinx, name: str, source: list[str]) -> None:
    """Give a title to the results of benchmarks, which the navigation leaves out and other pages link to."""
    if found := re.fullmatch(r"benchmarks/(?:.*/)?results/(\w+)", name):
        title = found[1].replace("_", " ").capitalize()
        source[0] = f"---\norphan: true\n---\n# {title}: results\n\n{source[0]}"


def setup(app: Sphinx) -> None:
    """Register what this file does to pages."""
    app.connect("source-read", add_title)
