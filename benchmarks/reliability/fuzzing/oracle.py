"""What must hold after a try: how it ended, what it said, whose files there are, and whether its answer is right.

Nothing here calls anydepth: results are read with json, csv and safetensors.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzzing.zygote import Ended

# Times, machines, and names that a try may have changed.
_IGNORED = {
    "created",
    "seconds",
    "started",
    "versions",
    "time",
    "names",
    "name",
    "model",
    "data",
    "notes",
    "out",
    "folder",
    "files",
}
_IGNORED |= {
    "checksum",
    "costs",
    "predicted",
    "measured",
    "readout_in_blocks",
    "curve",
    "processes",
    "eval_data",
    "title",
}
_IGNORED |= {
    "_name_or_path",
    "output_dir",
    "provenance",
    "report",
    "tokens_per_second",
    "host",
    "pid",
    "first",
    "second",
}
_IGNORED |= {
    "readout",
    "relative_time",
    "opened",
    "bytes",
    "blake2b",
    "promise_of",
    "speed",
    "sealed",
    "transformers_version",
}
_TEMPORARY = re.compile(r"^\.|\.tmp$|\.lock$|\.part$|~$|\.new$|\.old$")
# What anydepth itself says beside results: of how far it is, and of a generation.
_SAID = ("anydepth: ", "no draft depth pays: ", "drafts at ", "at depth ", "certified ", "nothing ")
_SAID += ("never calibrated", "loading", "writing", "training", "evaluating", "stopping after this step")
_SAID += ("blocks run: ", "blocks that only left ", "mean depth: ", "the tokenizer has no padding token: ")
_OURS = re.compile(rf"^({'|'.join(_SAID)}|\d+(/\d+)? |all blocks$)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PAYLOADS = ("\x1b[31m", "\x9b1m", "\x1b]0;")
_NAMED = {
    "trace": ("trace.json", ("provenance", "model", "name"), ("provenance", "data", "name")),
    "align": ("align.json", ("settings", "model"), ("settings", "data")),
    "predict": ("predict.json", ("model",), ("data",)),
    "truncate": ("truncate.json", ("model",), None),
    "exit": ("exit.json", ("about", "model"), ("about", "data")),
}
TOLD = {
    signal.SIGINT: {130},
    signal.SIGTERM: {143, -signal.SIGTERM},
    signal.SIGHUP: {129, -signal.SIGHUP},
    signal.SIGKILL: {-signal.SIGKILL},
}


def hashes(folder: Path) -> dict[str, str]:
    """Every path below, with the hash of what is there; links are not followed."""
    found = {}
    for place, names, files in os.walk(folder):
        for name in [*names, *files]:
            path = Path(place, name)
            if path.is_symlink():
                found[str(path)] = "link " + os.readlink(path)
            elif path.is_dir():
                found[str(path)] = "folder"
            else:
                found[str(path)] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return found


def without_colours(ended: Ended) -> Ended:
    """What was printed without the colours that were asked for; those that data bring stay."""
    if "\x1b[31mred" in ended.out + ended.err:
        return ended
    return replace(ended, out=_COLOUR.sub("", ended.out), err=_COLOUR.sub("", ended.err))


def ending(ended: Ended, *, number: int, tty: bool, stdout: str) -> Iterator[str]:
    """Faults of how a command ended and of what it said."""
    allowed = {0, 2} | TOLD.get(signal.Signals(number), set()) if number else {0, 2}
    if stdout in ("closed", "full", "absent"):
        allowed = allowed | {1, 141}
    if ended.status is None:
        yield "hang"
    elif ended.status not in allowed:
        yield f"status {ended.status}"
    if "Traceback" in ended.err or "Traceback" in ended.out:
        yield "traceback"
    lines = [line for line in re.split(r"[\n\r]", ended.err) if line.strip()]
    if not tty:
        if noise := [line for line in lines if not _OURS.match(line)]:
            yield f"noise: {noise[0][:160]!r}"
        if ended.status == 2 and sum(line.startswith("anydepth: ") for line in lines) not in (1, 2):
            yield f"{len(lines)} lines of error"
    if not tty and _CONTROL.search(ended.err + ended.out):
        yield "escape"
    if any(payload in ended.err + ended.out for payload in _PAYLOADS if payload != "\x1b[31m" or not tty):
        yield "escape"


def changes(before: dict[str, str], after: dict[str, str], *, replaceable: set[str]) -> Iterator[str]:
    """Files of the user's that are lost or changed.

    Args:
        before: hashes.
        after: likewise.
        replaceable: paths of an earlier result that this command may replace.
    """
    for path, value in before.items():
        if path not in replaceable and after.get(path) != value:
            yield f"user's {'file changed' if path in after else 'file lost'}: {path!r}"


def left_over(before: dict[str, str], after: dict[str, str], *, out: Path | None, succeeded: bool) -> Iterator[str]:
    """What is there and should not: anything after a refusal, and after a success what is not the result."""
    kept = None if out is None else out / ".partial"
    if not any((Path(path).name == "journal.json" or path.endswith(".npz")) and _is_in(path, kept) for path in after):
        kept = None
    for path in sorted(set(after) - set(before)):
        if kept and not succeeded and _is_around(Path(path), kept):
            continue
        inside = out is not None and (Path(path).is_relative_to(out) or out.is_relative_to(path))
        if not succeeded or not inside or (Path(path) != out and _TEMPORARY.search(Path(path).name)):
            yield f"left over: {path!r}"


def _is_in(path: str, folder: Path | None) -> bool:
    return folder is not None and Path(path).is_relative_to(folder)


def _is_around(path: Path, kept: Path) -> bool:
    """Whether a path is in a pass that the next command goes on from, or leads to it."""
    return path.is_relative_to(kept) or kept.is_relative_to(path)


def content(out: Path) -> dict[str, str]:
    """What a result holds, file by file, without times and names."""
    found = {}
    for path in sorted(out.rglob("*")) if os.path.isdir(out) else []:
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            found[name] = _tensors(path)
        elif path.suffix in (".npy", ".csv"):
            found[name] = _hash(path.read_bytes())
        elif path.suffix == ".json" and "tokenizer" not in name:
            found[name] = _json(path)
    return found


def wrong(verb: str, out: Path, *, model: str | None, data: str | None, rows: int | None) -> Iterator[str]:
    """What a result says of itself that is not so."""
    if verb not in _NAMED:
        return
    file, of_model, of_data = _NAMED[verb]
    try:
        stated = json.loads((out / file).read_text())
    except (OSError, ValueError) as error:
        yield f"wrong success: no {file} ({type(error).__name__})"
        return
    for given, where in ((model, of_model), (data, of_data)):
        if given is not None and where is not None:
            value: Any = stated
            for key in where:
                value = value.get(key) if isinstance(value, dict) else None
            if value != given and not str(value).startswith(f"{given} ("):
                yield f"wrong success: {file} names {value!r} for {given!r}"
    if rows is not None and verb == "trace" and stated["provenance"]["samples"] != rows:
        yield f"wrong success: {stated['provenance']['samples']} samples of {rows}"
    if rows is not None and verb == "predict":
        with (out / "predictions.csv").open(newline="") as lines:
            count = sum(1 for _ in csv.reader(lines)) - 1
        if count != rows:
            yield f"wrong success: {count} predictions of {rows}"


def _json(path: Path) -> str:
    """A hash of JSON without times and names; of the bytes, where the user has something else under such a name."""
    try:
        return _hash(json.dumps(_without(json.loads(path.read_text())), sort_keys=True).encode())
    except ValueError:
        return _hash(path.read_bytes())


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in _IGNORED}
    return [_without(one) for one in value] if isinstance(value, list) else value


def _tensors(path: Path) -> str:
    """A hash of tensors, whatever their order in the file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + size])
    except ValueError:  # a file of the user's that is called so
        return _hash(raw)
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(set(header) - {"__metadata__"}):
        start, stop = header[name]["data_offsets"]
        total.update(f"{name} {header[name]['dtype']} {header[name]['shape']}".encode() + raw[8 + size :][start:stop])
    return total.hexdigest()


def _hash(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
