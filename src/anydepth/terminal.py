"""What a person sees while a command runs: bars on standard error, or lines where there is no terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from anydepth.errors import AnydepthWarning

if TYPE_CHECKING:
    from anydepth.collect import Progress as Reporter

stderr = Console(stderr=True)


@contextmanager
def bars(*, enabled: bool, lines: bool = False) -> Iterator[Reporter | None]:
    """A bar for each kind of work, on standard error, and only where somebody may be looking.

    Args:
        enabled: False for no progress at all.
        lines: without a terminal, print a line whenever there is something new to say beside the count.

    Yields:
        What to call with what is done, how much there is, and what it is: the kind, and after a comma what is new.
    """
    with _warnings_as_lines(), _shown(enabled=enabled, lines=lines) as report:
        yield report


@contextmanager
def _shown(*, enabled: bool, lines: bool) -> Iterator[Reporter | None]:
    if not enabled or not (stderr.is_terminal or lines):
        yield None
    elif not stderr.is_terminal:
        yield _lines()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr) as shown:
            tasks: dict[str, TaskID] = {}

            def report(done: int, total: int | None, what: str) -> None:
                kind = what.split(",")[0]
                if kind not in tasks:
                    tasks[kind] = shown.add_task(what, total=total)
                shown.update(tasks[kind], completed=done, total=total, description=what)

            yield report


def _lines() -> Reporter:
    said: dict[str, str] = {}

    def report(done: int, total: int | None, what: str) -> None:
        kind, _, news = what.partition(",")
        if news and said.get(kind) != news:
            say(f"{done}/{total} {what}" if total else what)
            said[kind] = news

    return report


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Our own warnings; those of libraries stay as they are."""
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
    """One line to the user, beside whatever is written to standard output."""
    stderr.print(Text(line), soft_wrap=True)


def write(text: str) -> None:
    """A piece of text to standard output, at once; control characters other than line breaks and tabs are left out.

    What a model writes must not move the cursor or colour the terminal.
    """
    print("".join(one for one in text if one.isprintable() or one in "\n\t"), end="", flush=True)


def quiet_libraries() -> None:
    """No loading bars, advice and retries of the libraries below; errors still come through."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def output() -> Console:
    """Standard output, as wide as the terminal; 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=120)
