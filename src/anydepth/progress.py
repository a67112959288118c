"""How long work says how far it is: a callback, or bars of tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Progress = Callable[[int, int | None, str], None]
"""Called with the number of items done, their total (None if unknown), and what they are."""


@contextmanager
def reporting(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Context manager: the callback itself, or one that moves bars of `tqdm.auto`, one for each kind of work.

    Args:
        progress: a callback; True for bars, False for none; None for bars in a notebook and at a terminal.

    Example:
        >>> with reporting(False) as report:
        ...     print(report)
        None
    """
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not _is_watched()):
        yield None
    else:
        with ExitStack() as opened:
            yield _bars(opened)


def _is_watched() -> bool:
    """Whether this is a notebook, or errors go to a terminal."""
    shell = sys.modules.get("IPython")
    if shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {}):
        return True
    return sys.stderr is not None and sys.stderr.isatty()


def _bars(opened: ExitStack) -> Progress:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    bars: dict[str, Any] = {}

    def report(done: int, total: int | None, what: str) -> None:
        kind = what.split(",")[0]
        if kind not in bars:
            bars[kind] = opened.enter_context(tqdm(total=total, desc=what))
        bar = bars[kind]
        bar.total = total
        bar.set_description_str(what, refresh=False)
        bar.update(done - bar.n)

    return report
