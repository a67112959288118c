"""The site shows every page and every public name, and its checker finds what is wrong with a site.

None of the packages that build the site is needed.
"""

import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import anydepth
from anydepth import errors
from anydepth.errors import AnydepthError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
PACKAGES = ("anydepth", "assets", "data", "generation", "measures", "onnx", "report.charts", "training")

faults = runpy.run_path(str(ROOT / "tools" / "check_site.py"))["faults"]


def fences(text: str, directive: str) -> list[str]:
    return re.findall(rf"^```\{{{directive}\}}(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def entries(page: Path) -> set[Path]:
    """The pages that the navigation below a page names."""
    lines = [line for fence in fences(page.read_text("utf-8"), "toctree") for line in fence.splitlines()]
    names = [re.sub(r".*<(.*)>$", r"\1", line) for line in lines if line and not line.startswith(":")]
    return {path.resolve() for name in names for path in page.parent.glob(f"{name}.md")}


def named() -> dict[str, Any]:
    """The public names that the pages of the reference describe, by their dotted path."""
    paths = [
        f"{module}.{name}"
        for page in REFERENCE
        for module, *names in (fence.split() for fence in fences(page.read_text("utf-8"), "api"))
        for name in names
    ]
    assert len(paths) == len(set(paths)), "a name is described twice"
    return {path: getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths}


def test_the_navigation_names_every_page() -> None:
    shown = entries(DOCS / "index.md") | entries(DOCS / "reference" / "index.md")
    pages = {path for path in DOCS.rglob("*.md") if path != DOCS / "index.md"}
    assert pages <= shown
    assert {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"} <= shown


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_describes_every_public_name(package: str) -> None:
    module = importlib.import_module(package if package == "anydepth" else f"anydepth.{package}")
    described = list(named().values())
    missing = [name for name in module.__all__ if not any(getattr(module, name) is value for value in described)]
    assert not missing, f"no page of docs/reference names {missing} of {module.__name__}"


def test_the_reference_describes_every_error() -> None:
    kinds = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AnydepthError)}
    assert kinds <= set(filter(lambda value: isinstance(value, type), named().values()))


def test_every_package_with_public_names_is_among_these() -> None:
    source = Path(anydepth.__file__).parent
    declaring = {path.parent for path in source.rglob("__init__.py") if "\n__all__ = " in path.read_text("utf-8")}
    assert {".".join(path.relative_to(source).parts) or "anydepth" for path in declaring} == set(PACKAGES)


def site(folder: Path, body: str) -> list[str]:
    (folder / "a.html").write_text(f'<h1 id="top">A</h1>\n{body}\n')
    (folder / "b c.html").write_text('<a href="a.html#top">back</a>')
    (folder / "style.css").write_text("p { color: red }")
    return list(faults(folder))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b%20c.html">b</a> <a href="#top">up</a> <a href="https://example.org/x">out</a>', None),
        ('<link rel="stylesheet" href="style.css?v=1"><img src="data:image/png;base64,AA==">', None),
        ('<a href="none.html">b</a>', "a.html:2: none.html leads nowhere"),
        ('<a href="../outside.html">b</a>', "leads nowhere"),
        ('<a href="a.html#none">b</a>', "a.html#none leads to no place of that page"),
        ('<script src="https://example.org/x.js"></script>', "is fetched from another server"),
        (
            '<script>load("https://example.org/y.js")</script>',
            "https://example.org/y.js is fetched from another server",
        ),
        ('<img srcset="style.css 1x, //example.org/x.png 2x">', "//example.org/x.png is fetched from another server"),
    ],
)
def test_what_is_wrong_with_a_site_is_found(tmp_path: Path, body: str, fault: str | None) -> None:
    lines = site(tmp_path, body)
    assert not lines if fault is None else (len(lines) == 1 and fault in lines[0])


def test_a_style_that_fetches_a_font_is_found(tmp_path: Path) -> None:
    site(tmp_path, "")
    (tmp_path / "style.css").write_text('@import "https://example.org/a.css"; p { src: url(//example.org/f.woff) }')
    assert [line.split()[1] for line in faults(tmp_path)] == [
        "https://example.org/a.css",
        "//example.org/f.woff",
    ]


def test_an_empty_folder_is_no_site(tmp_path: Path) -> None:
    assert list(faults(tmp_path)) == [f"{tmp_path} holds no page: build the site first (make docs)"]
