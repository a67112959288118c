"""The documentation does what it says: its code runs, its commands parse, its links lead somewhere, its maps are right.

Blocks marked `python` in README.md and docs/ run in order; those of one page share their names. A block with `>>>` in
it is run as a doctest. Lines that start with `$` in blocks of any other kind are commands.
"""

import doctest
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cyclopts import CycloptsError

from anydepth.cli.app import COMMANDS, parser
from anydepth.cli.command import Command, flags_of
from anydepth.errors import AnydepthError
from anydepth.measures import MEASURES
from anydepth.results.trace_data import STATISTICS

ROOT = Path(__file__).parents[2]
_NOT_OURS = ("runs", "build", "dist", "site", "venv", "node_modules")


def markdown() -> Iterator[Path]:
    for folder, inner, files in os.walk(ROOT):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _NOT_OURS)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".md"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PAGES = list(markdown())
EXECUTED = [path for path in PAGES if path == ROOT / "README.md" or path.parent == ROOT / "docs"]
each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- Fenced blocks ---------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    language: str
    line: int
    """Of the first line of the code, counted from 1."""
    code: str


def blocks(text: str) -> list[Block]:
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r" *(```+|~~~+) *(\w*)", line)
        if opened is None and fence:
            opened = (fence[1], fence[2], number + 1, line.index(fence[1]), [])
        elif opened is not None and line.strip() == opened[0]:
            found.append(Block(opened[1], opened[2], "\n".join(opened[4]) + "\n"))
            opened = None
        elif opened is not None:
            opened[4].append(line[opened[3] :] if line[: opened[3]].isspace() else line)
    assert opened is None, f"the block that starts in line {opened and opened[2] - 1} has no end"
    return found


def prose(text: str) -> str:
    """The text without its blocks and its `code`, line for line."""
    lines, kept = text.splitlines(), []
    hidden = {line for block in blocks(text) for line in range(block.line - 1, block.line + block.code.count("\n") + 1)}
    for number, line in enumerate(lines, start=1):
        kept.append("" if number in hidden else line)
    return re.sub(r"(`+)[^`]+?\1", lambda code: re.sub(r"[^\n]", " ", code[0]), "\n".join(kept))


# --- Code ------------------------------------------------------------------------------------------------------------


def run_code(text: str, name: str) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(text):
        if block.language != "python":
            continue
        if ">>> " in block.code:
            run_doctest(block, name, names)
        else:  # the empty lines make a traceback point into the page
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), names)


def run_doctest(block: Block, name: str, names: dict[str, Any]) -> None:
    examples = doctest.DocTestParser().get_doctest(block.code, names, name, name, block.line - 1)
    examples.globs = names  # the parser copies them, and later blocks of the page see what this one defines
    runner = doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    try:
        runner.run(examples, clear_globs=False)
    except doctest.DocTestFailure as failure:
        line = block.line + failure.example.lineno
        pytest.fail(f"{name}:{line}: expected {failure.example.want!r}, got {failure.got!r}")
    except doctest.UnexpectedException as failure:
        raise failure.exc_info[1] from None


@pytest.mark.usefixtures("operators_listed_once", "charts_unchecked")
@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_the_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_code(page.read_text("utf-8"), name_of(page))


def test_broken_code_is_found() -> None:
    shared = "```python\nx = 1\n```\n\n- in a list:\n\n  ```python\n  >>> x + 1\n  2\n  >>> y = 3\n  ```\n"
    run_code(shared + "```python\nassert (x, y) == (1, 3)\n```\n```text\nnot python\n```\n", "page")
    with pytest.raises(AssertionError):
        run_code(shared + "```python\nassert x == 2\n```\n", "page")
    with pytest.raises(ZeroDivisionError):
        run_code("```python\n>>> 1 / 0\n```\n", "page")
    with pytest.raises(pytest.fail.Exception, match=r"page:3: expected '5\\n', got '4\\n'"):
        run_code("```python\n>>> x = 2\n>>> x + 2\n5\n```\n", "page")
    with pytest.raises(AssertionError, match="line 1 has no end"):
        run_code("```python\nx = 1\n", "page")


# --- Commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each command of each line that starts with `$`, as words, with its line."""
    for block in blocks(text):
        for found in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", block.code, re.MULTILINE):
            if block.language != "python":
                line = block.line + block.code.count("\n", 0, found.start())
                yield from ((line, words) for words in simple_commands(found[1].replace("\\\n", " ")))


def simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("&|;"):
            yield words
            words = []
        elif set(word) <= set("<>"):
            next(lexer)
        elif words or not re.match(r"\w+=", word):  # OMP_NUM_THREADS=1 before a command
            words.append(word)
    yield words


def wrong_with(words: list[str]) -> str | None:
    """What is wrong with a command that names something of ours; None if nothing is."""
    if not words:
        return None
    program, arguments = Path(words[0]).name, words[1:]
    if "-m" in arguments[:-1] and "anydepth" in arguments:
        return wrong_with_anydepth(arguments[arguments.index("anydepth") + 1 :])
    if program == "anydepth":
        return wrong_with_anydepth(arguments)
    if arguments[:1] == ["-m"] and arguments[1:] and arguments[1].startswith("anydepth."):
        place = f"src/{arguments[1].replace('.', '/')}"
        script = f"{place}/__main__.py" if (ROOT / place).is_dir() else f"{place}.py"
        return wrong_with_script(script, arguments[2:], arguments[1])
    if re.fullmatch(r"python[\d.]*", program) and arguments and arguments[0].endswith(".py"):
        return wrong_with_script(arguments[0], arguments[1:])
    if program == "make":
        targets = [word for word in arguments if not word.startswith("-") and "=" not in word]
        known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return next((f"the Makefile has no {target!r}" for target in targets if target not in known), None)
    return None


def wrong_with_anydepth(arguments: list[str]) -> str | None:
    if not arguments or arguments[0].startswith("-"):
        return unknown_option("anydepth", arguments, {"--version"})
    verb, *given = arguments
    command = COMMANDS.get(verb)
    if command is None:
        return f"anydepth has no {verb!r}, it has {', '.join(COMMANDS)}"
    if wrong := unknown_option(f"anydepth {verb}", given, flags(command)):
        return wrong
    if {"-h", "--help"} & set(given):
        return None
    try:
        _, bound, _ = parser().parse_args([verb, *command.with_values(given)], exit_on_error=False, print_error=False)
        command.read(dict(zip(command.positional, bound.args, strict=False)) | bound.kwargs)
    except (CycloptsError, AnydepthError) as error:
        return f"anydepth {verb}: {error}"
    return None


def flags(command: Command) -> set[str]:
    return {flag for setting in command.settings for flag in flags_of(setting)}


def unknown_option(what: str, given: list[str], known: set[str]) -> str | None:
    known = known | {"-h", "--help"}
    unknown = [word for word in given if word.startswith("-") and word.partition("=")[0] not in known]
    return f"{what} has no option {unknown[0]}" if unknown else None


def wrong_with_script(script: str, arguments: list[str], name: str = "") -> str | None:
    if not (ROOT / script).is_file():
        return f"there is no {name or script}"
    source = (ROOT / script).read_text("utf-8")
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    return next((f"{script} has no option {option}" for option in options if f'"{option}"' not in source), None)


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    found = [(line, wrong_with(words)) for line, words in commands(page.read_text("utf-8"))]
    assert not [f"{name_of(page)}:{line}: {wrong}" for line, wrong in found if wrong]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("anydepth trace MODEL --data DATA --limit 5", None),
        ("anydepth trace MODEL --data=DATA --no-labels --out runs/x", None),
        ("anydepth --version", None),
        ("anydepth trace --help", None),
        ("anydepth trice MODEL", "anydepth has no 'trice'"),
        ("anydepth trace MODEL --data DATA --limits 5", "anydepth trace has no option --limits"),
        ("anydepth trace MODEL", "anydepth trace: --data is missing"),
        ("anydepth trace MODEL --data DATA --limit many", "anydepth trace: .*whole number"),
        ("anydepth --verbose", "anydepth has no option --verbose"),
        ("OMP_NUM_THREADS=1 anydepth trice x > log.txt", "no 'trice'"),
        ("cd here && anydepth trice x | tail", "no 'trice'"),
        ("torchrun --nproc-per-node 2 -m anydepth trace MODEL --data DATA --nope", "no option --nope"),
        (".venv/bin/python -m anydepth demo --nope", "no option --nope"),
        ("python -m anydepth.assets get all  # a comment", None),
        ("python -m anydepth.asset list", "no anydepth.asset"),
        ("python benchmarks/similarity.py > here.txt  # a comment", None),
        ("python benchmarks/similar.py", "no benchmarks/similar.py"),
        ("A=1 .venv/bin/python examples/finetune_text.py --nope 3", "finetune_text.py has no option --nope"),
        ("make test JOBS=8", None),
        ("make tests", "the Makefile has no 'tests'"),
        ("pip install -e '.[dev]'", None),
    ],
)
def test_wrong_commands_are_found(line: str, wrong: str | None) -> None:
    ((number, *_),) = {(number,) for number, _ in commands(f"```console\n$ {line}\n```\n")}
    assert number == 2
    found = [wrong_with(words) for _, words in commands(f"```console\n$ {line}\n```\n")]
    if wrong is None:
        assert not any(found)
    else:
        assert re.search(wrong, next(filter(None, found)))


def test_a_command_may_go_on_in_the_next_line() -> None:
    text = "```console\n$ anydepth trace m \\\n    --data d --nope\nits output\n```\n"
    assert list(commands(text)) == [(2, ["anydepth", "trace", "m", "--data", "d", "--nope"])]


# --- Links -----------------------------------------------------------------------------------------------------------


def links(text: str) -> Iterator[tuple[int, str]]:
    pattern = r'\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|^\[[^\]]+\]:\s*(\S+)|\b(?:src|href)="([^"]+)"'
    for number, line in enumerate(prose(text).splitlines(), start=1):
        yield from ((number, next(filter(None, found.groups()))) for found in re.finditer(pattern, line))


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    code = {line for block in blocks(text) for line in range(block.line, block.line + block.code.count("\n"))}
    found: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        heading = re.match(r"#+ +(.*?) *#*$", line)
        if heading and number not in code:
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            again = next(suffix for suffix in ("", *(f"-{n}" for n in range(1, 99))) if slug + suffix not in found)
            found.add(slug + again)
    return found


def broken(page: Path, text: str) -> Iterator[str]:
    for line, link in links(text):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path and (path.startswith("/") or not target.is_relative_to(ROOT) or not target.exists()):
            yield f"{name_of(page)}:{line}: {link} leads nowhere"
        elif anchor and target.suffix == ".md" and anchor not in anchors(text if not path else target.read_text()):
            yield f"{name_of(page)}:{line}: {link}: no such heading"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken(page, page.read_text("utf-8")))


def test_broken_links_are_found() -> None:
    good = "# A `b` & c\n[x](README.md) [y](#a-b--c) ![z](docs) [w](https://example.org/none)\n`[code](none.md)`\n"
    assert not list(broken(ROOT / "page.md", good))
    bad = '[x](none.md)\n[y](#none)\n<img src="none.png">\n\n[z]: ../outside.md\n[w](README.md#none) [v](/README.md)\n'
    lines = [int(found.split(":")[1]) for found in broken(ROOT / "page.md", bad)]
    assert lines == [1, 2, 3, 5, 6, 6]


# --- What must not be there, and what must ---------------------------------------------------------------------------

_MACHINE = re.compile(r"(?<![\w.~/-])/(?:home|root|work|Users|mnt|srv|tmp|var|opt)/|\b[A-Z]:\\|\bshared/")


@each_page
def test_no_path_of_some_machine_and_no_hole(page: Path) -> None:
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        assert not _MACHINE.search(line), f"{name_of(page)}:{number}: a path that others do not have: {line}"
        assert not re.search(r"@@|\b(?:TODO|TBD|FIXME)\b", line), f"{name_of(page)}:{number}: not written yet: {line}"


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see /home/me/x", True),
        ("`/srv/data`", True),
        ("shared/x.md", True),
        (r"C:\data", True),
        ("https://example.org/home/x", False),
        ("`~/.cache/x`", False),
        ("docs/home/x", False),
    ],
)
def test_paths_of_some_machine_are_found(text: str, bad: bool) -> None:
    assert bool(_MACHINE.search(text)) == bad


def test_every_measure_and_statistic_is_defined() -> None:
    headings = anchors((ROOT / "docs/measures.md").read_text("utf-8"))
    assert {*MEASURES, *STATISTICS} <= headings


def test_the_map_has_a_row_for_each_package_in_the_order_of_dependency() -> None:
    """The order itself is checked by `lint-imports`; this is that the page shows the same."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    table = page[page.index("## Packages") :].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)/?`", table, flags=re.MULTILINE)
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    rank = {name: place for place, layer in enumerate(layers) for name in layer.split(" | ")}
    assert set(listed) == set(rank) - {"__main__"}
    assert [rank[name] for name in listed] == sorted(rank[name] for name in listed)


def test_files_that_pages_name_exist() -> None:
    """In backticks, by their place in the package, in tests or in the repository."""
    places = [ROOT, ROOT / "src/anydepth", ROOT / "tests", ROOT / "benchmarks", ROOT / "examples"]
    for page in set(PAGES) - {ROOT / "CHANGELOG.md"}:  # which tells of what was
        for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page.read_text("utf-8")):
            assert any((place / name).is_file() for place in places), f"{page.name} names {name}"
