"""Folders for a while: nobody else's are touched, and what a killed process left there is cleared away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anydepth.storage.locks import JOB, scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from anydepth.storage.locks import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "rows.npy").write_bytes(b"x" * 100)
    print(folder.name, flush=True)
    {then}
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="without locks nobody knows who is alive")


def holding(place: Path, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED.format(then=then), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_it_is_gone_afterwards_whatever_happened(tmp_path: Path) -> None:
    def interrupted() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "a").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = holding(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    (name,) = killed.communicate()[0].split()
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / name / "rows.npy").is_file()

    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_somebody_is_using_stays(tmp_path: Path) -> None:
    other = holding(tmp_path, "sys.stdin.read()")
    assert other.stdout is not None
    name = other.stdout.readline().strip()
    with scratch_folder(tmp_path) as outer, scratch_folder(tmp_path) as inner:
        assert {entry.name for entry in tmp_path.iterdir()} == {name, outer.name, inner.name}
        assert (tmp_path / name / "rows.npy").is_file()
    other.communicate("")
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Whatever it is called: a folder without our file, one with another's, a link, a file."""
    (tmp_path / "anydepth-notes").mkdir()
    (tmp_path / "anydepth-notes" / "thesis.txt").write_text("mine")
    (tmp_path / "anydepth-jobs").mkdir()
    (tmp_path / "anydepth-jobs" / JOB).write_text('{"what": "mine"}')
    (tmp_path / "anydepth-file").write_text("mine")
    with scratch_folder(tmp_path / "anydepth-notes") as elsewhere:
        (tmp_path / "anydepth-link").symlink_to(elsewhere)
        before = sorted(tmp_path.rglob("*"))
        with scratch_folder(tmp_path):
            pass
        assert sorted(tmp_path.rglob("*")) == before


def test_a_child_of_a_killed_process_does_not_keep_it(tmp_path: Path) -> None:
    """A worker outlives its parent for a moment, and the lock is the parent's alone."""
    then = "os.fork() or os.execvp('sleep', ['sleep', '60']); os.kill(os.getpid(), signal.SIGKILL)"
    with holding(tmp_path, then) as killed:
        assert killed.stdout is not None
        left = tmp_path / killed.stdout.readline().strip()
    assert left.is_dir()
    until = time.monotonic() + 50
    while left.exists() and time.monotonic() < until:  # the child lets go as soon as it runs
        with scratch_folder(tmp_path):
            pass
    assert not left.exists()
