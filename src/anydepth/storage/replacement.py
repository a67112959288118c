"""Replace old files of a result by new ones, by a plan that another process can complete after a kill.

.partial/plan.json   which files to put, and which to drop
.partial/new/        new files that are not in place yet
.partial/old/        old files that were moved aside
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from anydepth.errors import OutputError
from anydepth.storage.checksums import read_sealed_object, with_checksum
from anydepth.storage.disk import flush, remove_tree

with suppress(ImportError):  # on Windows, where files have no such flags either
    import fcntl

PLAN, NEW, OLD = "plan.json", "new", "old"
"""Names of the plan and the two folders in a work folder."""
_GET_FLAGS, _FIXED = 0x80086601, 0x30  # Linux's FS_IOC_GETFLAGS; immutable, and append-only


def write_plan(partial: Path, *, put: Sequence[str], drop: Sequence[str]) -> None:
    """Write the plan into the work folder: from here on the new files count, whatever happens to this process.

    The old files to `drop` are moved aside first, then the new ones are put in place in order.
    """
    beside = partial / f"{PLAN}.tmp"
    beside.write_text(json.dumps(with_checksum({"put": list(put), "drop": list(drop)})), encoding="utf-8")
    flush(beside)
    beside.replace(partial / PLAN)
    flush(partial)


def plan_in(partial: Path) -> dict[str, Any] | None:
    """The plan in a work folder; None if there is none, or it is damaged."""
    plan = read_sealed_object(partial / PLAN)
    if plan is None:
        return None
    names = [*plan.get("put", ()), *plan.get("drop", ())]
    safe = all(not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts for name in names)
    return plan if safe else None


def carry_out(folder: Path, partial: Path) -> None:
    """Complete a plan, if there is one, and clear up; raises an OutputError if a new file is in the way."""
    plan = plan_in(partial)
    if plan is not None:
        _move_all(folder, partial, plan)
        (partial / PLAN).unlink()
        for place in {(folder / name).parent for name in plan["drop"]}:
            _remove_if_empty(place, folder)
    with suppress(OSError):  # what cannot be removed now does no harm, and is tried again
        for name in (PLAN, f"{PLAN}.tmp"):
            (partial / name).unlink(missing_ok=True)
        for name in (NEW, OLD):
            remove_tree(partial / name)


def _move_all(folder: Path, partial: Path, plan: dict[str, Any]) -> None:
    """Make the remaining moves of a plan, in such an order that any of them may be the last."""
    new, old = partial / NEW, partial / OLD
    for name in plan["drop"]:
        if os.path.lexists(folder / name) and not os.path.lexists(old / name):
            _move(folder / name, old / name)
    for name in plan["put"]:
        if os.path.lexists(new / name):
            if os.path.lexists(folder / name):
                _move(folder / name, old / name)
            _move(new / name, folder / name)
    for place in {(folder / name).parent for name in (*plan["put"], *plan["drop"])}:
        if place.is_dir():
            flush(place)


def undo(folder: Path, partial: Path) -> None:
    """Undo the moves of a plan, so that the old result is there again; if that fails, the plan stays."""
    plan = plan_in(partial)
    if plan is None:
        return
    new, old = partial / NEW, partial / OLD
    for name in reversed(plan["put"]):
        if not os.path.lexists(new / name) and os.path.lexists(folder / name):
            _move(folder / name, new / name)
    for name in (*plan["put"], *plan["drop"]):
        if os.path.lexists(old / name) and not os.path.lexists(folder / name):
            _move(old / name, folder / name)
    (partial / PLAN).unlink()
    for place in {(folder / name).parent for name in plan["put"]} - {folder}:
        _remove_if_empty(place, folder)


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise OutputError(f"'{target}' came into being meanwhile: move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _remove_if_empty(place: Path, folder: Path) -> None:
    with suppress(OSError):
        while place != folder:
            place.rmdir()
            place = place.parent


def require_replaceable(folder: Path, names: Sequence[str]) -> None:
    """Raise an OutputError, before the work, for a file that cannot be moved."""
    device = folder.stat().st_dev
    for path in (folder / name for name in names):
        if os.path.lexists(path) and (why := _why_fixed(path, device)):
            raise OutputError(f"'{path}' is to be replaced, and {why}: see to that, or give another folder (out)")


def _why_fixed(path: Path, device: int) -> str:
    """Why a file cannot be moved: a mount, another disk, permissions, or a flag; empty if it can."""
    status, place = path.lstat(), path.parent.stat()
    if os.path.ismount(path) or status.st_dev != device:
        return "something is mounted there"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"'{path.parent}' cannot be written"
    if place.st_mode & stat.S_ISVTX and os.geteuid() not in {0, status.st_uid, place.st_uid}:
        return "it is another user's"
    return "it is marked as one not to be changed (lsattr)" if _flags(path) & _FIXED else ""


def _flags(path: Path) -> int:
    """The flags of a file on Linux's file systems; 0 where there are none."""
    if os.name != "posix" or not stat.S_ISREG(path.lstat().st_mode):
        return 0
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(handle, _GET_FLAGS, bytes(8))[:4], "little")
    except OSError as problem:
        if problem.errno not in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return 0
    finally:
        os.close(handle)
