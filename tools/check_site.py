"""Check a built site: every link leads to a page and a place in it, and reading it asks nothing of other servers.

Usage: python tools/check_site.py [FOLDER]    (site/ by default; after `make docs`)

Links to other sites are allowed and not followed; scripts, styles, fonts and pictures of other sites are not allowed.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

ADDRESSES = ("href", "src", "poster", "data", "xlink:href")
ELSEWHERE = re.compile(r"(?:[a-z][a-z+.-]*:)?//", re.IGNORECASE)
SCRIPT = re.compile(r"""["'`]((?:https?:)?//[^"'`\s]+)""")
STYLE = re.compile(r"""url\(\s*["']?((?:[a-z]+:)?//[^"')]+)|@import\s+["']((?:[a-z]+:)?//[^"']+)""", re.IGNORECASE)


class Link(NamedTuple):
    line: int
    tag: str
    address: str


class Page(HTMLParser):
    """The links of a page, and the names of the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[Link] = []
        self.places: set[str] = set()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        values = {name: value for name, value in attrs if value is not None}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        self.links += [Link(self.getpos()[0], tag, values[name]) for name in ADDRESSES if name in values]
        for candidate in values.get("srcset", "").split(","):
            self.links += [Link(self.getpos()[0], tag, address) for address in candidate.split()[:1]]

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.links += [Link(self.getpos()[0], "script", address) for address in SCRIPT.findall(data)]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def faults(folder: Path) -> Iterator[str]:
    """What is wrong with the site in a folder, a line each."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        yield f"{folder} holds no page: build the site first (make docs)"
    for path, page in pages.items():
        for link in page.links:
            if wrong := fault_of(link, path, pages, folder.resolve()):
                yield f"{path.relative_to(folder.resolve())}:{link.line}: {link.address} {wrong}"
    for path in sorted(folder.rglob("*.css")):
        for match in STYLE.finditer(path.read_text("utf-8")):
            yield f"{path.relative_to(folder)}: {match[1] or match[2]} is fetched from another server"


def fault_of(link: Link, path: Path, pages: dict[Path, Page], root: Path) -> str | None:
    """What is wrong with a link of the page at `path`; None if nothing is."""
    if ELSEWHERE.match(link.address):
        return None if link.tag == "a" else "is fetched from another server"
    if re.match(r"(?:mailto|data|javascript):", link.address):
        return None
    address, place = urldefrag(link.address)
    target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
    if not target.is_relative_to(root) or not target.is_file():
        return "leads nowhere"
    if place and target in pages and unquote(place) not in pages[target].places:
        return "leads to no place of that page"
    return None


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    lines = list(faults(folder))
    print("\n".join(lines) or f"{len(list(folder.rglob('*.html')))} pages: links and resources are right")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
