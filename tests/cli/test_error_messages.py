"""Failures of the world outside are one line; everything else is a bug. The errors are the libraries' own."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from anydepth.cli.error_messages import described


def raised(action: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whichever it is
        action()
    return caught.value


_SHORT = timedelta(milliseconds=10)


def limited(action: Callable[[], object]) -> None:
    """A limit on the size of files stands for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def panic() -> None:
    """As pyo3 has it, where a library unwraps what the system refused."""
    kind = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    raise kind('called `Result::unwrap()` on an `Err` value: Os { code: 24, kind: Uncategorized, message: "Too many" }')


def deep() -> object:
    return json.loads("[" * 100_000)


OUTSIDE: dict[str, tuple[Callable[[], object], str]] = {
    "a name too long": (lambda: Path("n" * 300).stat(), "'nnn.*': File name too long"),
    "no file": (lambda: Path("nowhere").read_bytes(), "'nowhere': No such file or directory"),
    "a folder": (lambda: Path("/").read_bytes(), "'/': Is a directory"),
    "a full disk": (lambda: limited(lambda: Path("x").write_bytes(bytes(9_000))), ".*File too large; the limit on"),
    "weights on a full disk": (
        lambda: limited(lambda: safetensors.torch.save_file({"a": torch.zeros(9_000)}, "x")),
        "safetensors cannot read or write a file: .*File too large",
    ),
    "weights that are none": (lambda: safetensors.torch.load(b"x" * 20), "safetensors cannot read or write a file: "),
    "memory": (lambda: torch.empty(10**15), "out of memory .*: use a smaller --batch-size"),
    "no picture": (lambda: Image.open(__file__), "'?.*"),
    "text that is none": (lambda: b"\xff".decode(), "a file holds something else than it should"),
    "deep JSON": (deep, "a file of JSON is nested too deeply"),
    "a library in Rust": (panic, "the system says: Too many open files; raise the limit"),
    "a link loop": (lambda: Path("loop").stat(), "'loop': Too many levels of symbolic links"),
    "processes": (
        lambda: torch.distributed.TCPStore("127.0.0.1", 1, is_master=False, timeout=_SHORT),
        "another process of this job cannot be reached",
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_failure_outside_is_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    action, says = OUTSIDE[kind]
    line = described(raised(action))
    assert line is not None
    assert re.match(says, line), line
    assert line.strip() != ""


def test_what_it_was_raised_from_counts() -> None:
    error = ValueError("a wrapper that says nothing")
    error.__cause__ = FileNotFoundError(2, "No such file or directory", "x.csv")
    assert described(error) == "'x.csv': No such file or directory"


BUGS: dict[str, Callable[[], object]] = {
    "key": lambda: {}["settings"],
    "attribute": lambda: None.get,  # type: ignore[attr-defined]
    "type": lambda: "a" in None,  # type: ignore[operator]
    "torch": lambda: torch.zeros(2) @ torch.zeros(3),
    "assertion": lambda: exec("assert False"),
    "recursion": lambda: (again := lambda depth: again(depth + 1))(0),
}


@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_is_none(kind: str) -> None:
    assert described(raised(BUGS[kind])) is None
