"""Exits without torch: runs what `anydepth.onnx.export` wrote, with onnxruntime and numpy alone.

    router = Router("runs/exported")
    out = router({"input_ids": ids, "attention_mask": mask})
    out.logits, out.depth

The policy is in the graphs: each segment gives the scores of its last depth. What is left to do is to compare them with
the level, to let samples go, and to hand the others on. This module, and all it imports, work where torch is not
installed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.errors import AnydepthWarning, DataError, ModelError, TraceFileError, one_line
from anydepth.onnx.runtime import load_onnxruntime
from anydepth.storage.checksums import read_sealed, require_intact
from anydepth.storage.output_folder import settle

MANIFEST = "export.json"
FORMAT = 1
LOGITS, SCORE = "logits", "score"
_AGAIN = "export the model again"


def plain_level(level: float) -> float | str:
    """A level as JSON holds it: "inf" and "-inf" are words; `float` reads both back."""
    return level if math.isfinite(level) else str(level)


def state_at(depth: int) -> str:
    """What graphs call h[depth]."""
    return f"h{depth}"


def memory_at(depth: int) -> str:
    """What graphs call that which a policy remembers of a depth."""
    return f"memory{depth}"


@dataclass(frozen=True)
class ExitOutput:
    """What came out, sample by sample, in the order they went in.

    Attributes:
        logits: (B, C) of each sample, at the depth where it left.
        depth: (B,) that depth, 1..L.
        blocks: (L,) how many samples each block was run on; 0 where all had left before.
        readouts: (L,) how many samples were read out at each depth.
        undecided: (L,) at each depth, how many samples had a score that is NaN; they stayed.
    """

    logits: NDArray[np.float32]
    depth: NDArray[np.int64]
    blocks: NDArray[np.int64]
    readouts: NDArray[np.int64]
    undecided: NDArray[np.int64]


@dataclass(frozen=True)
class SegmentOutput:
    """What one exit shows of a batch that nobody has left.

    Attributes:
        depth: of the exit.
        logits: (B, C).
        score: (B,); None at the last exit, where nobody is asked.
    """

    depth: int
    logits: NDArray[np.float32]
    score: NDArray[np.floating[Any]] | None


class Router:
    """An exported model.

    Args:
        folder: what `anydepth export` wrote.
        options: an `onnxruntime.SessionOptions` for every segment. By default onnxruntime's own, but that the threads
            of one segment stop spinning when it is done.
        providers: onnxruntime's names of what to run on, the most wanted first.

    Attributes:
        exits: the depths at which samples leave, ascending; the last takes all who are left.
        level: the score from which on a sample leaves; None where there is one exit.
        inputs: name, dtype and shape of what the model takes.
        classes: name of each class; empty where the model has none.
        promise: what was certified of the model, for inputs made as they were then; None if nothing is promised.
        max_length: tokens at which texts were cut when it was calibrated; None for images, or if nobody told. Longer
            ones are answered, with a warning: nothing is promised of them.
        manifest: all that was written down, as `export.json` has it.

    Raises:
        TraceFileError: the folder is incomplete, truncated, was changed, or is of another format.
        ModelError: onnxruntime is not installed, or cannot run the graphs.
    """

    def __init__(
        self, folder: Path | str, *, options: Any = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.manifest = content = _read(Path(folder))
        self.exits = tuple(int(segment["stop"]) for segment in content["segments"])
        self.level = None if content["level"] is None else float(content["level"])
        self.inputs: dict[str, dict[str, Any]] = content["inputs"]
        self.classes: tuple[str, ...] = tuple(content["model"]["classes"].values())
        self.promise: str | None = content.get("about", {}).get("promise")
        self.max_length: int | None = (content.get("about", {}).get("inputs") or {}).get("max_length")
        self._last = int(content["model"]["depth"])
        self._segments = _segments(Path(folder), content, options, providers)

    def __call__(self, inputs: Any) -> ExitOutput:
        """Answer a batch.

        Args:
            inputs: the arrays that `inputs` names, as a dict; or the array itself, where there is one.

        Raises:
            DataError: an array is missing, unknown, or of another dtype or shape, or onnxruntime fails on them.
        """
        here, count = _checked(inputs, self.inputs)
        self._warn_of_length(here)
        rows, depth = np.arange(count), np.zeros(count, dtype=np.int64)
        counts = np.zeros((3, self._last), dtype=np.int64)
        logits: NDArray[np.float32] | None = None
        for segment in self._segments:
            counts[0, segment.start : segment.stop] = counts[1, segment.stop - 1] = len(rows)
            found = segment(here)
            leaving = np.ones(len(rows), dtype=bool)
            if (score := found.get(SCORE)) is not None:
                counts[2, segment.stop - 1] = np.isnan(score).sum()
                leaving = score >= self.level
            if logits is None:
                logits = np.empty((count, found[LOGITS].shape[1]), dtype=found[LOGITS].dtype)
            logits[rows[leaving]], depth[rows[leaving]] = found[LOGITS][leaving], segment.stop
            if leaving.all():
                break
            here = segment.kept({**here, **found})
            if leaving.any():
                rows = rows[~leaving]
                here = {name: values[~leaving] for name, values in here.items()}
        assert logits is not None
        return ExitOutput(logits, depth, *counts)

    def _warn_of_length(self, here: Mapping[str, NDArray[Any]]) -> None:
        if self.promise is None or self.max_length is None:
            return
        lengths = [here[name].shape[1] for name, kind in self.inputs.items() if kind["shape"][1:2] == ["sequence"]]
        if max(lengths, default=0) > self.max_length:
            warnings.warn(
                f"inputs of {max(lengths)} tokens, and texts were cut at {self.max_length} when the exits were "
                "calibrated: nothing is promised of these answers",
                AnydepthWarning,
                stacklevel=3,
            )

    def look(self, inputs: Any) -> Iterator[SegmentOutput]:
        """What every exit shows of a batch, in one pass that lets nobody go.

        Raises:
            DataError: as when called.
        """
        here, _ = _checked(inputs, self.inputs)
        for segment in self._segments:
            found = segment(here)
            yield SegmentOutput(segment.stop, found[LOGITS], found.get(SCORE))
            here = segment.kept({**here, **found})


@dataclass(frozen=True)
class _Segment:
    """Blocks start + 1..stop with the readout after them, and what the segments after it need."""

    start: int
    stop: int
    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    later: frozenset[str]

    def __call__(self, here: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            found = self.session.run(self.gives, {name: here[name] for name in self.takes})
        except Exception as problem:  # onnxruntime raises a class of its own for each status code
            raise DataError(
                f"blocks {self.start + 1}..{self.stop} fail on these inputs: {one_line(problem)}; expected what the "
                "model itself takes"
            ) from problem
        return dict(zip(self.gives, found, strict=True))

    def kept(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: values for name, values in arrays.items() if name in self.later}


def _segments(folder: Path, content: dict[str, Any], options: Any, providers: Sequence[str]) -> list[_Segment]:
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        raise ModelError(f"'{folder}' is run by onnxruntime: pip install onnxruntime") from error
    if options is None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
    found: list[_Segment] = []
    later: frozenset[str] = frozenset()
    for one in reversed(content["segments"]):
        try:
            session = onnxruntime.InferenceSession(folder / one["file"], options, providers=list(providers))
        except Exception as problem:  # a class of its own for each status code; ValueError for an unknown provider
            raise ModelError(f"onnxruntime cannot run {folder / one['file']}: {one_line(problem)}") from problem
        takes = tuple(value.name for value in session.get_inputs())
        gives = tuple(value.name for value in session.get_outputs())
        found.append(_Segment(one["start"], one["stop"], session, takes, gives, later))
        later |= {*takes}
    return found[::-1]


def _read(folder: Path) -> dict[str, Any]:
    settle(folder)
    content = read_sealed(folder / MANIFEST, known=FORMAT, again=_AGAIN)
    try:
        for name, expected in content["files"].items():
            require_intact(folder / name, expected, again=_AGAIN)
    except OSError as problem:
        raise TraceFileError(f"{folder} cannot be read: {problem.strerror or problem}") from None
    return content


def _checked(inputs: Any, wanted: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
    """The inputs by name, seen to be what was asked for; and how many samples they are."""
    if not isinstance(inputs, Mapping) and len(wanted) == 1:
        inputs = dict.fromkeys(wanted, inputs)
    if not isinstance(inputs, Mapping):
        raise DataError(f"the inputs are {type(inputs).__name__}, expected a dict of arrays: {', '.join(wanted)}")
    for name in (*wanted, *inputs):
        if name not in inputs or name not in wanted:
            what = "missing" if name in wanted else "unknown"
            raise DataError(f"input {name!r} is {what}: expected {', '.join(wanted)}, as at the export")
    sizes: dict[str, int] = {}
    for name, expected in wanted.items():
        _check(name, inputs[name], expected, sizes)
    return dict(inputs), sizes["batch"]


def _check(name: str, values: Any, expected: Mapping[str, Any], sizes: dict[str, int]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != expected["dtype"]:
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(
            f"input {name!r} is {found}, expected a numpy array of {expected['dtype']}: make it one, as by "
            f"numpy.asarray(..., dtype='{expected['dtype']}')"
        )
    shape = expected["shape"]
    fits = values.ndim == len(shape) and all(
        (sizes.setdefault(axis, size) if isinstance(axis, str) else axis) == size and size > 0
        for axis, size in zip(shape, values.shape, strict=True)
    )
    if not fits:
        known = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        of = f" with {known}" if sizes else ""
        raise DataError(f"input {name!r} has shape {values.shape}, expected ({', '.join(map(str, shape))}){of}, none 0")
