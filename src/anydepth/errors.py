"""Exceptions of anydepth: `except AnydepthError` catches every error this library raises on purpose.

Every message is one line that says what came, what was expected and what to do. The command line prints that
line and exits with status 2.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class AnydepthError(Exception):
    """Base of every error raised on purpose."""


class UnknownArchitecture(AnydepthError):
    """The model has no list of blocks, several of them, or blocks that do not run once each in order."""


class ReadoutMismatch(AnydepthError):
    """The readout of a hidden state is not what the model itself answers: see `Stack.verify`."""


class UnsupportedHead(AnydepthError):
    """The model's output is not a choice among classes, so accuracy and saturation have no meaning."""


class NonFiniteStates(AnydepthError):
    """A hidden state holds NaN or infinity; the message names the depth and the batch."""


class DataError(AnydepthError):
    """The data cannot be read, lacks a column, is empty, or does not fit the model."""


class LabelError(DataError):
    """Labels are missing, of the wrong kind, or outside the classifier's range."""


class ModelError(AnydepthError):
    """The model cannot be loaded."""


class AssetError(AnydepthError):
    """A model or data set of a package registry is missing, or differs from the pinned version."""


class TraceFileError(AnydepthError):
    """A saved trace is missing, corrupt, truncated, or of another format; or it cannot be written."""


class OutputError(TraceFileError):
    """An output folder is in use, or holds files that the job did not write and would have to replace."""


class IncompatibleTraces(AnydepthError):
    """Two traces cannot be merged or compared; the message names the first difference."""


class MeasureError(AnydepthError):
    """An unknown measure, or one that is undefined for the given states."""


class ObjectiveError(AnydepthError):
    """An unknown objective, or settings of one that make no sense for this model."""


class TrainingError(AnydepthError):
    """Training cannot start: settings exclude each other, or there is no checkpoint to resume from."""


class NonFiniteLoss(AnydepthError):
    """A training loss is NaN or infinite; the message names the depth and the optimizer step."""


class PolicyError(AnydepthError):
    """An unknown exit policy, or one with settings that make no sense."""


class TruncationError(AnydepthError):
    """A model cannot be cut at this depth, or its output then differs from the readout there."""


class ExportError(AnydepthError):
    """A model cannot be exported, or the exported model answers differently."""


class GenerationError(AnydepthError):
    """A model does not support this way of generating, or not from this prompt."""


class CertificateError(AnydepthError):
    """A guarantee was requested that makes no sense, or needs more samples than there are."""


class DependencyError(AnydepthError):
    """An installed library behaves differently than the versions anydepth was tested with; the message names both."""


class OptionError(AnydepthError):
    """A setting has a wrong type, is out of range or missing, or has no effect beside the others."""


class LaunchError(AnydepthError):
    """The environment of a distributed job is invalid, or its processes cannot be reached."""


class ReproduceError(AnydepthError):
    """There is no such recipe, or its results are of another version, scale or setting."""


class AnydepthWarning(UserWarning):
    """Work goes on, but may fail: states take most of a disk, for instance. The command line shows it as one line."""


def one_line(error: BaseException, limit: int = 200) -> str:
    r"""The first non-empty line of an error's message, cut to `limit` characters; the error's class name if none is.

    Example:
        >>> one_line(ValueError("\n  bad header\nsecond line"))
        'bad header'
        >>> one_line(KeyError())
        'KeyError'
    """
    lines = (line.strip() for line in str(error).splitlines())
    text = next(filter(None, lines), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def choose(name: object, table: Iterable[T], what: str, error: type[AnydepthError], *, otherwise: str = "") -> T:
    """The entry of a table that has the name which the user gave.

    Where there is none, an `error` names `what` they are, all of them, what is accepted `otherwise`, and the nearest.

    Example:
        >>> choose("ckaa", ["cosine", "cka"], "measure", MeasureError)
        Traceback (most recent call last):
        anydepth.errors.MeasureError: unknown measure 'ckaa', expected one of cosine, cka: did you mean cka?
    """
    names = list(table)
    for entry in names:
        if entry == name:
            return entry
    expected = ", ".join([*map(str, names), *([f"or {otherwise}"] if otherwise else [])])
    raise error(f"unknown {what} {name!r}, expected one of {expected}{suggestion(str(name), map(str, names))}")


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first few names, for a message.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggestion(name: str, names: Iterable[str], *, n: int = 1) -> str:
    """The end of a message about an unknown name: up to `n` names that resemble it, or nothing.

    Example:
        >>> suggestion("ckaa", ["cosine", "cka"]), suggestion("x", ["cosine", "cka"])
        (': did you mean cka?', '')
    """
    near = get_close_matches(name, list(names), n=n)
    return f": did you mean {', '.join(near)}?" if near else ""
