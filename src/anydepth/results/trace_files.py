"""Save a trace to a folder, and load it; damaged files are refused.

    trace.json           format, provenance, notes, size and checksum of every other file, and a checksum of itself
    arrays.safetensors   similarity matrices, intervals, quantiles, one short row per answer, sample ids
    sums.safetensors     the sums that CKA is made of: what merging needs
    states/              if kept: states.npy (rows, K x D) float32, and sample.npy, the sample of each row
    report.html          the same numbers to look at

New files replace old ones together, see `anydepth.storage.output_folder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from anydepth.errors import MeasureError, TraceFileError
from anydepth.measures.engine.moments import Moments
from anydepth.measures.engine.states import ArrayStates
from anydepth.results.trace_data import ARRAYS, REPORT, STATES, SUMS, TRACE, TRACE_OUTPUT, Rows, TraceData, row_samples
from anydepth.storage.checksums import file_record, read_sealed, require_intact, with_checksum
from anydepth.storage.files import plain, read_json, require_space, write_json
from anydepth.storage.output_folder import PARTIAL, output, settle
from anydepth.storage.rows import RowFile, StoredStates

FORMAT = 2
T = TypeVar("T", bound=TraceData)
_ROWS_AT_ONCE = 4096


def save(trace: TraceData, folder: Path, *, report: Callable[[Path], object] | None = None, sums: bool = True) -> Path:
    """Write a trace to a folder, which is returned; an earlier trace there is replaced.

    Args:
        trace: to write.
        folder: made if missing.
        report: writes the report to a file; None for none.
        sums: write the sums that merging needs; (K·D)² / 2 numbers, so tens of megabytes for a base-sized model.

    Raises:
        TraceFileError: the folder cannot be written, its disk is full, or it holds files of these names that no trace
            has written. Earlier files are unchanged then.
    """
    with output(folder, TRACE_OUTPUT) as opened, opened.publish() as staged:
        _write(trace, folder, staged, report=report, sums=sums)
    return folder


@contextmanager
def adding(folder: Path) -> Iterator[Path]:
    """Context manager: a folder to fill, whose files are added to the trace in `folder`, or replace earlier ones."""
    with output(folder, TRACE_OUTPUT) as opened, opened.publish(adds=True) as staged:
        yield staged


def _write(
    trace: TraceData, folder: Path, staged: Path, *, report: Callable[[Path], object] | None, sums: bool
) -> None:
    arrays = _arrays(trace)
    moments = trace.moments.to_tensors() if sums and trace.moments is not None else None
    needed = sum(array.nbytes for array in arrays.values())
    needed += sum(tensor.nbytes for tensor in moments.values()) if moments else 0
    ready = _ready_to_link(trace.states, folder)
    needed += trace.states.bytes if trace.states is not None and ready is None else 0
    require_space(folder, needed, "the trace")
    (staged / ARRAYS).write_bytes(safetensors.numpy.save(arrays))
    if moments:
        (staged / SUMS).write_bytes(safetensors.torch.save(moments))
    states = None
    if trace.states is not None:
        _write_states(trace.states, staged / STATES, ready)
        states = _about_states(staged / STATES, trace.states.widths)
    if report:
        report(staged / REPORT)
    content = {
        "format": FORMAT,
        "names": list(trace.names),
        "provenance": plain(dict(trace.provenance)),
        "notes": list(trace.notes),
        "states": states,
        "files": {name: file_record(staged / name) for name in (ARRAYS, SUMS) if (staged / name).exists()},
    }
    write_json(staged / TRACE, with_checksum(content))


def _ready_to_link(states: StoredStates | ArrayStates | None, folder: Path) -> Path | None:
    """The file of states that can be linked instead of copied: a pass wrote it here, or the trace that is here."""
    if states is None or len(states.parts) != 1:
        return None
    part, places = states.parts[0].resolve(), (folder / PARTIAL, folder / STATES)
    return part if any(part.is_relative_to(place.resolve()) for place in places) else None


def _about_states(folder: Path, widths: tuple[int, ...]) -> dict[str, Any]:
    """The entry of the states in `trace.json`."""
    states = StoredStates([folder / "states.npy"], widths, np.load(folder / "sample.npy", allow_pickle=False))
    return {"widths": list(widths), "rows": states.count, "fingerprint": states.fingerprint}


def _write_states(states: StoredStates | ArrayStates, staged: Path, ready: Path | None) -> None:
    """Write the states in the order of the samples; several processes collect them in another order."""
    staged.mkdir()
    groups = row_samples(states)
    order = np.argsort(groups, kind="stable")
    in_order = bool((np.diff(order) > 0).all())
    if not (in_order and ready is not None and _linked(ready, staged / "states.npy")):
        # by writes, not through a memory map: where the disk is full, a map ends the process without a word
        with closing(RowFile(staged / "states.npy", np.float32, sum(states.widths))) as rows:
            for start in range(0, states.count, _ROWS_AT_ONCE):
                rows.append(states.rows(order[start : start + _ROWS_AT_ONCE]))
    np.save(staged / "sample.npy", groups[order].astype(np.int64))


def _linked(source: Path, target: Path) -> bool:
    """Make a hard link; False where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _arrays(trace: TraceData) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.frombuffer(json.dumps(list(trace.ids)).encode() or b"[]", dtype=np.uint8),
        "digests": trace.digests.view(np.int64),
    }
    for group in ("similarity", "similarity_intervals", "quantiles"):
        arrays |= {f"{group}/{name}": np.ascontiguousarray(values) for name, values in getattr(trace, group).items()}
    if trace.rows is not None:
        arrays |= {f"rows/{name}": np.ascontiguousarray(column) for name, column in trace.rows.columns.items()}
    return arrays


def load(folder: Path, kind: type[T]) -> T:
    """Read the trace in a folder, as an instance of `kind`.

    Raises:
        TraceFileError: it is missing, corrupt, truncated, or of a newer format.
    """
    settle(folder)
    content = read_json(folder / TRACE)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise TraceFileError(f"{folder / TRACE} is not a trace: it states no format")
    if content["format"] > FORMAT:
        raise TraceFileError(
            f"{folder} is of format {content['format']}, and this anydepth reads up to {FORMAT}: upgrade anydepth"
        )
    content = read_sealed(folder / TRACE, known=FORMAT, again="trace again")
    try:
        for name, expected in {ARRAYS: content["files"][ARRAYS], **content["files"]}.items():
            require_intact(folder / name, expected, again="trace again")
        return _assemble(folder, content, kind)
    except OSError as problem:
        raise TraceFileError(f"{folder} cannot be read: {problem.strerror or problem}; trace again") from None
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, MeasureError) as problem:
        raise TraceFileError(f"{folder / TRACE} is corrupt: {type(problem).__name__} at {problem}") from None


def _assemble(folder: Path, content: dict[str, Any], kind: type[T]) -> T:
    arrays = safetensors.numpy.load_file(folder / ARRAYS)
    groups: dict[str, dict[str, Any]] = {"similarity": {}, "similarity_intervals": {}, "quantiles": {}, "rows": {}}
    for key, values in arrays.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = values
    columns = groups.pop("rows")
    sums = safetensors.torch.load_file(folder / SUMS) if SUMS in content["files"] else None
    return kind(
        names=tuple(content["names"]),
        **{group: _ordered(values, content["provenance"].get("measures")) for group, values in groups.items()},
        rows=Rows(**columns) if columns else None,
        ids=tuple(json.loads(arrays["ids"].tobytes())),
        digests=arrays["digests"].view(np.uint64),
        provenance=content["provenance"],
        notes=tuple(content["notes"]),
        moments=None if sums is None else Moments.from_tensors(sums),
        states=_kept_states(folder / STATES, content["states"]) if content["states"] else None,
    )


def _kept_states(folder: Path, expected: dict[str, Any]) -> StoredStates:
    try:
        groups = np.load(folder / "sample.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise TraceFileError(f"{folder / 'sample.npy'} is missing or corrupt; trace again with keep_states") from None
    alone = np.array_equal(groups, np.arange(len(groups)))
    states = StoredStates([folder / "states.npy"], tuple(expected["widths"]), None if alone else groups)
    if not states.count == len(groups) == expected["rows"]:
        raise TraceFileError(f"{folder} is truncated: {states.count} rows, expected {expected['rows']}; trace again")
    for path in (folder / "states.npy", folder / "sample.npy"):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stat().st_size != rows.offset + rows.nbytes:
            raise TraceFileError(f"{path} holds more than its rows: it was changed; trace again with keep_states")
    if states.fingerprint != expected.get("fingerprint", states.fingerprint):
        raise TraceFileError(
            f"{folder} is stale: its states are not those this trace was made of, but of another model or other data; "
            "trace again with keep_states=True"
        )
    return states


def _ordered(values: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    """The values in the order of the measures; safetensors sorts by name."""
    return {name: values[name] for name in names or values if name in values}
