"""Paths from names that users gave, taken literally, with one-line errors."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from anydepth.errors import AnydepthError

Entry = Literal["file", "folder", "other"]

_SHOWN = 80  # characters of a name in a message


def local_path(name: str | Path) -> Path:
    """The path of a name; `~` is the home folder, unless something of that very name exists.

    Example:
        >>> local_path("data/d[1].csv").as_posix(), local_path("~nosuchuser/x").as_posix()
        ('data/d[1].csv', '~nosuchuser/x')
    """
    path = Path(name)
    if not str(name).startswith("~") or os.path.lexists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user: the name is literal
        return path


def real_path(path: str | Path) -> Path:
    """The absolute path with all links followed, as far as they lead anywhere.

    Unlike `Path.resolve` it never raises, not even for links in a circle.

    Example:
        >>> real_path("/no/./such/../thing").as_posix()
        '/no/thing'
    """
    return Path(os.path.realpath(path))


def entry_at(name: str | Path, raised: type[AnydepthError]) -> Entry | None:
    """The kind of entry at the path of a name, links followed; None where there is none.

    Raises:
        AnydepthError: of the class `raised`, where the file system cannot say: a name that is too long, links in a
            circle, a folder without permission.

    Example:
        >>> from anydepth.errors import DataError
        >>> entry_at("/", DataError), entry_at("/no/such/thing", DataError)
        ('folder', None)
        >>> entry_at("x" * 300, DataError)
        Traceback (most recent call last):
        anydepth.errors.DataError: 'xxx...xxx' is no usable path: file name too long; expected a shorter or another name
    """
    try:
        mode = os.stat(local_path(name)).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a name that holds a null character
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise raised(f"'{shown(name)}' is no usable path: {why}; expected a shorter or another name") from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def shown(name: str | Path) -> str:
    """A name for a message: the middle of a long one is left out."""
    text = str(name)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
