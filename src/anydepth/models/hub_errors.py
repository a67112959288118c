"""Silence the loading libraries, and translate their exceptions into one-line errors."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anydepth.errors import AnydepthError, one_line

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""Names of models and data sets on the hub."""
# Class names, not classes: the HTTP library under the hub client has changed before, and none is worth importing here.
_UNREACHABLE = {
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout"),
    *("NetworkError", "ProxyError", "ReadTimeout", "gaierror"),
}
_NOT_FOUND = {"RepositoryNotFoundError", "DatasetNotFoundError", "GatedRepoError"}


def explain(error: BaseException, what: str, name: str) -> str:
    """One line on why a model or data set (`what`) could not be loaded, and what to do.

    The first cause is reported, since loaders wrap it in a sentence without information.

    Example:
        >>> explain(ConnectionError("no route"), "model", "google/vit")  # doctest: +ELLIPSIS
        "'google/vit' is no local path, and the hub that may have this model cannot be reached (...): ..."
    """
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    if names & _NOT_FOUND:
        return (
            f"the hub has no {what} '{name}' that you may read: "
            "check the name, or log in with `hf auth login` if it is private or gated"
        )
    if names & _UNREACHABLE:
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else "no network"
        return (
            f"'{name}' is no local path, and the hub that may have this {what} cannot be reached ({why}): "
            "give a local folder or file, or go online"
        )
    while error.__cause__ is not None:
        error = error.__cause__
    return f"the {what} '{name}' cannot be loaded: {_describe(error)}"


def _describe(error: BaseException) -> str:
    """An error's message, or an explanation where the message does not help."""
    text = one_line(error)
    if isinstance(error, StopIteration | EOFError) or not text:
        return "it holds nothing, or ends too early"
    if isinstance(error, KeyError):
        return f"it lacks {text}"
    if isinstance(error, RecursionError):
        return "a file of JSON in it is nested too deeply: it is damaged"
    if "ignore_mismatched_sizes" in text or "report" in text.lower():
        return "its weights are of other shapes than its config says: one of the two files is not of this model"
    if isinstance(error, TypeError | AttributeError):
        return f"a file of its configuration holds something else than it should ({type(error).__name__}: {text})"
    return text


@contextmanager
def quiet(log: Any) -> Iterator[None]:
    """Context manager: no progress bars and log lines of a library, given its module of logging.

    Ours are the messages about missing weights or unreadable files.
    """
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextmanager
def translated(raised: type[AnydepthError], what: str, name: str) -> Iterator[None]:
    """Context manager: turn any exception of a loading library into `raised` with the line of `explain`."""
    try:
        yield
    except AnydepthError:
        raise
    except Exception as error:  # loaders raise anything from OSError to their parser's own types
        raise raised(explain(error, what, name)) from error
