"""The output folder of a command that is given none."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from anydepth.storage.paths import local_path, real_path


def default_folder(*names: str | Path, suffix: str = "") -> Path:
    """Default output folder: in `runs/`, named after the inputs, with a hash where other inputs could be called alike.

    Args:
        *names: of a model, data, traces. Paths to the same place are the same name, however written.
        suffix: for the command.

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
        identities = "\0".join(identity for identity, _ in parts).encode(errors="surrogateescape")
        readable += "-" + hashlib.blake2b(identities, digest_size=4).hexdigest()
    return Path("runs") / f"{readable}{suffix}"


def _identity(name: str) -> tuple[str, str]:
    """What identifies the input of a name (its real path, or the name), and a short name for it."""
    with suppress(OSError, ValueError):
        path = local_path(name)
        if path.exists():
            real = real_path(path)
            return (real.name if real.parent == real_path(".") else str(real)), real.name
    return name, name
