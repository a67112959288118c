"""Progress bars and lines in the terminal: safe against control characters and closed pipes."""

from __future__ import annotations

import codecs
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from anydepth.errors import AnydepthWarning
from anydepth.safe_text import printable

if TYPE_CHECKING:
    from anydepth.progress import Progress as Reporter

QUIET = 10.0
"""Seconds after which work that is under way says how far it is where no bar can move."""

# Replacements of our own characters where a terminal or a pipe takes only ASCII or Latin-1.
_PLAINLY = {"×": "x", "–": "-", "−": "-", "…": "...", "•": "*", "·": ".", "≤": "<=", "≥": ">=", "→": "->", "δ": "delta"}


def prepare_streams() -> None:
    """Make sure that there are three standard streams, and that any character can be printed to them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place, and be printed into
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("anydepth", _in_other_characters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="anydepth")


def _in_other_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAINLY.get(character, ascii(character)[1:-1]) for character in text), error.end


@contextmanager
def bars(*, enabled: bool, lines: bool = False) -> Iterator[Reporter | None]:
    """Context manager: progress bars on standard error, one for each kind of work, if it is a terminal.

    Args:
        enabled: False for no progress at all.
        lines: without a terminal, print a line whenever there is news beside the count, and not only now and then.

    Yields:
        A function of what is done, how much there is, and what it is: the kind, and after a comma the news.
    """
    with _warnings_as_lines(), _progress(enabled=enabled, lines=lines) as report:
        yield report


@contextmanager
def _progress(*, enabled: bool, lines: bool) -> Iterator[Reporter | None]:
    from anydepth.cli import console

    moves = (
        console.stderr.is_terminal and console.stderr.file.isatty()
    )  # FORCE_COLOR makes a terminal of a file, for colours
    if not enabled:
        yield None
    elif not moves:
        yield _lines(news=lines)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console.stderr) as progress:
            tasks: dict[str, Any] = {}

            def report(done: int, total: int | None, what: str) -> None:
                kind = what.split(",")[0]
                if kind not in tasks:
                    tasks[kind] = progress.add_task(what, total=total)
                progress.update(tasks[kind], completed=done, total=total, description=what)

            yield report


def _lines(*, news: bool) -> Reporter:
    """Report in lines, one whenever `QUIET` seconds have passed without; with `news`, also when there is news."""
    latest: dict[str, str] = {}
    spoke = time.monotonic()

    def report(done: int, total: int | None, what: str) -> None:
        nonlocal spoke
        kind, _, now = what.partition(",")
        if (news and now and latest.get(kind) != now) or time.monotonic() - spoke > QUIET:
            say(f"{done:,}/{total:,} {what}" if total else what)
            latest[kind], spoke = now, time.monotonic()

    return report


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings of anydepth as lines; those of libraries stay as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", AnydepthWarning)
        as_it_was = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, AnydepthWarning):
                say(f"anydepth: {message}")
            else:
                as_it_was(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def say(line: str) -> None:
    """Print a line to standard error."""
    from rich.text import Text

    from anydepth.cli import console

    console.stderr.print(Text(line), soft_wrap=True)


def write(text: str) -> None:
    """Print generated text to standard output at once, without control characters, which would steer the terminal."""
    print(printable(text.replace("\r\n", "\n")), end="", flush=True)


def write_json(content: Mapping[str, Any]) -> None:
    """Print a line of JSON to standard output: ASCII without control characters, and no NaN."""
    print(json.dumps(content, allow_nan=False).replace("\x7f", "\\u007f"))


def quiet_libraries() -> None:
    """Turn off progress bars and advice of transformers, datasets and huggingface_hub; errors still come through."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
