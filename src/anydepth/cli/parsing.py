"""What verbs make of the words they are given."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from anydepth.errors import PolicyError
from anydepth.storage.paths import local_path, real_path


def depths_of(text: str) -> tuple[int, ...]:
    """Depths to test, out of "2,4,6".

    Raises:
        PolicyError: there is something else between the commas than whole numbers.
    """
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise PolicyError(f"the tested depths are {text!r}, expected whole numbers with commas: 2,4,6") from None


def names_of(text: str) -> tuple[str, ...]:
    """Names, out of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def default_folder(*names: str | Path, suffix: str = "") -> Path:
    """The folder to write to if none is given: in `runs/`, after the names, with a hash where others could read alike.

    Args:
        *names: of what is read: a model, data, traces. Paths in the same place are the same name, however written.
        suffix: what tells the job.

    Example:
        >>> default_folder("gpt2", "digits").as_posix()
        'runs/gpt2-digits'
        >>> default_folder("exp1/checkpoint-500", "digits") == default_folder("exp2/checkpoint-500", "digits")
        False
    """
    parts = [_identity(str(name)) for name in names]
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", short).strip("-.") or "trace" for _, short in parts]
    readable = "-".join(words)[:100].strip("-.")
    if [identity for identity, _ in parts] != readable.split("-"):
        named = "\0".join(identity for identity, _ in parts).encode(errors="surrogateescape")
        readable += "-" + hashlib.blake2b(named, digest_size=4).hexdigest()
    return Path("runs") / f"{readable}{suffix}"


def _identity(name: str) -> tuple[str, str]:
    """What a name stands for, and how to call it for short."""
    with suppress(OSError, ValueError):
        path = local_path(name)
        if path.exists():
            real = real_path(path)
            return (real.name if real.parent == real_path(".") else str(real)), real.name
    return name, name
