"""Read text files in several encodings and compressions."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anydepth.errors import DataError
from anydepth.storage.file_kinds import COMPRESSIONS

_OPENERS: dict[str, Callable[..., Any]] = dict(zip(COMPRESSIONS, (gzip.open, bz2.open, lzma.open), strict=True))

# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Few letters of a Western European text have accents; of another script decoded as cp1252, most seem to.
_MOST_ACCENTS = 0.3


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a file, decompressed if its name says so, and notes on what was assumed to decode it.

    A byte order mark states the encoding; without one, text is UTF-8. Bytes that are not UTF-8 at all and read like a
    Western European text in cp1252 (of which Latin-1 is a part) are read as that, and a note says so.

    Raises:
        DataError: it cannot be read or decompressed, is damaged UTF-8, or no text.
    """
    try:
        with _OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as file:
            content: bytes = file.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"'{path}' cannot be read: {why}") from error
    text, notes = _decoded(content, path)
    if "\0" in text:
        raise DataError(f"'{path}' holds null characters, expected text: save it as UTF-8")
    return text, notes


def require_text(text: str, what: str) -> None:
    """Raise a DataError for a text from the command line that is not UTF-8: such bytes come as halves of characters.

    The message calls the text `what`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} {text[:20]!r} holds bytes that are no UTF-8, expected text") from error


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, whichever system ended them; form feeds and the like are characters.

    Example:
        >>> lines_of("one\r\ntwo\x0bhalves\n\nfour\n")
        ['one', 'two\x0bhalves', '', 'four']
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _decoded(content: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding), ()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"'{path}' is no {encoding.removesuffix('-sig').upper()} text in line {line}"
        if encoding != "utf-8" or b"\0" in content or _is_damaged(content):
            raise DataError(f"{what}: mend it, or save it as UTF-8") from error
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}, and no cp1252 (Latin-1) either: save it as UTF-8") from error
    letters = [character for character in text if character.isalpha() or ord(character) > 127]
    if sum(ord(character) > 127 for character in letters) > _MOST_ACCENTS * len(letters):
        raise DataError(f"{what}, and no script of Western Europe: save it as UTF-8")
    return text, (f"'{path.name}' is no UTF-8 and was read as cp1252 (Latin-1)",)


def _is_damaged(content: bytes) -> bool:
    """Whether parts of the bytes are UTF-8: cp1252 would read two letters for each of its accents."""
    return not content.decode("utf-8", errors="ignore").isascii()
