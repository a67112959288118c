"""Early exit without torch: runs the folders of `anydepth.onnx.export` with onnxruntime and numpy alone.

The policy is in the graphs: each segment gives the scores of its last depth. The router compares them with the level,
and runs the next segment on the samples that have not exited. This module, and all it imports, work where torch is not
installed.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.errors import AnydepthWarning, DataError, ModelError, TraceFileError, one_line
from anydepth.exits.exit_output import ExitOutput
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
    """Name of h[depth] in the graphs."""
    return f"h{depth}"


def memory_at(depth: int) -> str:
    """Name in the graphs of what a policy remembers of a depth."""
    return f"memory{depth}"


@dataclass(frozen=True)
class SegmentOutput:
    """Readout of a whole batch at one exit.

    Attributes:
        depth: of the exit.
        logits: (B, C).
        score: (B,) of the policy; None at the last exit, where all exit.
    """

    depth: int
    logits: NDArray[np.float32]
    score: NDArray[np.floating[Any]] | None


class Router:
    """Runs an exported model with early exit.

    Args:
        folder: of `anydepth export`.
        options: an `onnxruntime.SessionOptions` for every segment. By default onnxruntime's own, except that the
            threads of one segment stop spinning when it is done.
        providers: onnxruntime's names of what to run on, in order of preference.

    Attributes:
        exits: the depths at which samples exit, ascending; at the last all remaining do.
        level: the score from which on a sample exits; None where there is one exit.
        inputs: name, dtype and shape of each input of the model.
        classes: name of each class; empty where the model has none.
        guarantee: the certificate in words, for inputs made as in the calibration; None without one.
        max_length: tokens at which texts were cut when it was calibrated; None for images, or if unknown. Longer texts
            give a warning: the certificate does not hold for them.
        manifest: all of `export.json`.

    Raises:
        TraceFileError: the folder is incomplete, truncated, was changed, or is of another format.
        ModelError: onnxruntime is not installed, or cannot run the graphs.
    """

    def __init__(
        self, folder: Path | str, *, options: Any = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.manifest = content = _read_manifest(Path(folder))
        self.exits = tuple(int(segment["stop"]) for segment in content["segments"])
        self.level = None if content["level"] is None else float(content["level"])
        self.inputs: dict[str, dict[str, Any]] = content["inputs"]
        self.classes: tuple[str, ...] = tuple(content["model"]["classes"].values())
        self.guarantee: str | None = content.get("about", {}).get("promise")
        self.max_length: int | None = (content.get("about", {}).get("inputs") or {}).get("max_length")
        self._last = int(content["model"]["depth"])
        self._segments = _segments(Path(folder), content, options, providers)

    @property
    def promise(self) -> str | None:
        """The former name of `guarantee`."""
        warnings.warn("Router.promise is called Router.guarantee", DeprecationWarning, stacklevel=2)
        return self.guarantee

    def __call__(self, inputs: Any) -> ExitOutput[NDArray[Any]]:
        """Logits and exit depths of a batch.

        Args:
            inputs: the arrays that `inputs` names, as a dict; or the array itself, where there is one.

        Raises:
            DataError: an array is missing, unknown, or of another dtype or shape, or onnxruntime fails on them.
        """
        arrays, count = _checked(inputs, self.inputs)
        self._warn_of_length(arrays)
        rows, depth = np.arange(count), np.zeros(count, dtype=np.int64)
        counts = np.zeros((3, self._last), dtype=np.int64)
        logits: NDArray[np.float32] | None = None
        for segment in self._segments:
            counts[0, segment.start : segment.stop] = counts[1, segment.stop - 1] = len(rows)
            outputs = segment(arrays)
            exiting = np.ones(len(rows), dtype=bool)
            if (score := outputs.get(SCORE)) is not None:
                counts[2, segment.stop - 1] = np.isnan(score).sum()
                exiting = score >= self.level
            if logits is None:
                logits = np.empty((count, outputs[LOGITS].shape[1]), dtype=outputs[LOGITS].dtype)
            logits[rows[exiting]], depth[rows[exiting]] = outputs[LOGITS][exiting], segment.stop
            if exiting.all():
                break
            arrays = segment.needed_later({**arrays, **outputs})
            if exiting.any():
                rows = rows[~exiting]
                arrays = {name: values[~exiting] for name, values in arrays.items()}
        assert logits is not None
        blocks, readouts, undecided = counts
        return ExitOutput(logits=logits, depth=depth, blocks=blocks, readouts=readouts, undecided=undecided)

    def _warn_of_length(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if self.guarantee is None or self.max_length is None:
            return
        lengths = [arrays[name].shape[1] for name, kind in self.inputs.items() if kind["shape"][1:2] == ["sequence"]]
        if max(lengths, default=0) > self.max_length:
            warnings.warn(
                f"inputs of {max(lengths)} tokens, and texts were cut at {self.max_length} when the exits were "
                "calibrated: nothing is guaranteed of these answers",
                AnydepthWarning,
                stacklevel=3,
            )

    def look(self, inputs: Any) -> Iterator[SegmentOutput]:
        """Logits and scores of a batch at every exit, in one pass without early exit; raises as a call does."""
        arrays, _ = _checked(inputs, self.inputs)
        for segment in self._segments:
            outputs = segment(arrays)
            yield SegmentOutput(segment.stop, outputs[LOGITS], outputs.get(SCORE))
            arrays = segment.needed_later({**arrays, **outputs})


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Blocks start + 1..stop with the readout after them, and the names of what the segments after it need."""

    start: int
    stop: int
    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    later: frozenset[str]

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self.session.run(self.gives, {name: arrays[name] for name in self.takes})
        except Exception as problem:  # onnxruntime raises a class of its own for each status code
            raise DataError(
                f"blocks {self.start + 1}..{self.stop} fail on these inputs: {one_line(problem)}; expected what the "
                "model itself takes"
            ) from problem
        return dict(zip(self.gives, outputs, strict=True))

    def needed_later(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: values for name, values in arrays.items() if name in self.later}


def _segments(folder: Path, content: dict[str, Any], options: Any, providers: Sequence[str]) -> list[_Segment]:
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        raise ModelError(f"'{folder}' is run by onnxruntime: pip install onnxruntime") from error
    if options is None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # errors are raised; they need not be printed too
    # some releases go on without a provider that they lack
    if missing := sorted(set(providers) - set(onnxruntime.get_available_providers())):
        available = ", ".join(onnxruntime.get_available_providers())
        raise ModelError(f"onnxruntime cannot run '{folder}' with {', '.join(missing)}: it has {available}")
    segments: list[_Segment] = []
    later: frozenset[str] = frozenset()
    for entry in reversed(content["segments"]):
        path, start, stop = folder / entry["file"], entry["start"], entry["stop"]
        try:
            session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as problem:  # a class of its own for each status code; ValueError for an unknown provider
            raise ModelError(f"onnxruntime cannot run {path}: {one_line(problem)}") from problem
        takes = tuple(value.name for value in session.get_inputs())
        gives = tuple(value.name for value in session.get_outputs())
        segments.append(_Segment(start=start, stop=stop, session=session, takes=takes, gives=gives, later=later))
        later |= {*takes}
    return segments[::-1]


def load_onnxruntime() -> Any:
    """Import `onnxruntime` without its telemetry, unless the user's own setting asks for that.

    It would write to the user's home folder and send from there, as soon as it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _read_manifest(folder: Path) -> dict[str, Any]:
    settle(folder)
    content = read_sealed(folder / MANIFEST, known=FORMAT, again=_AGAIN)
    try:
        for name, expected in content["files"].items():
            require_intact(folder / name, expected, again=_AGAIN)
    except OSError as problem:
        raise TraceFileError(f"{folder} cannot be read: {problem.strerror or problem}") from None
    return content


def _checked(inputs: Any, expected: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
    """The inputs by name, checked against the manifest; and how many samples they are."""
    if not isinstance(inputs, Mapping) and len(expected) == 1:
        inputs = dict.fromkeys(expected, inputs)
    if not isinstance(inputs, Mapping):
        raise DataError(f"the inputs are {type(inputs).__name__}, expected a dict of arrays: {', '.join(expected)}")
    for name in (*expected, *inputs):
        if name not in inputs or name not in expected:
            problem = "missing" if name in expected else "unknown"
            raise DataError(f"input {name!r} is {problem}: expected {', '.join(expected)}, as at the export")
    sizes: dict[str, int] = {}
    for name, kind in expected.items():
        _check(name, inputs[name], kind, sizes)
    return dict(inputs), sizes["batch"]


def _check(name: str, values: Any, expected: Mapping[str, Any], sizes: dict[str, int]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != expected["dtype"]:
        kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(
            f"input {name!r} is {kind}, expected a numpy array of {expected['dtype']}: make it one, as by "
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
