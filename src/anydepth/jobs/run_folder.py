"""The output folder of one training: its settings, its checkpoints, and its result.

While it is under way, its settings lie in the work folder (`.partial/align.json`), its checkpoints in `checkpoints/`.
The model, and `align.json` with settings and result, come into place together at the end: a folder is finished when it
has a result. A finished model that is trained anew (`restart`) stays until the new one is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.errors import OutputError, TrainingError
from anydepth.storage.disk import write_errors
from anydepth.storage.files import read_json, replacing_folder, write_json
from anydepth.storage.output_folder import PARTIAL, SETTINGS, Output, OutputKind, output
from anydepth.storage.schema import require_fields
from anydepth.training.checkpoints import SEAL_FILE, every_checkpoint, last_checkpoint, remove_checkpoint

FILE, CHECKPOINTS = "align.json", "checkpoints"
ALIGN_OUTPUT = OutputKind(
    job="align",
    mark=FILE,
    names=("config.json", "model.safetensors", "heads.safetensors", "README.md", SETTINGS),
    alone="holds other files than a training's",
    beside=(CHECKPOINTS,),
    error=TrainingError,
)


@dataclass(frozen=True)
class RunFolder:
    """The output folder of one training.

    Attributes:
        path: where it is.
        resume: whether to go on with what is there.
        restart: whether to put another training in its place.
        keep_checkpoints: whether they stay when the model is finished.
    """

    path: Path
    resume: bool = False
    restart: bool = False
    keep_checkpoints: bool = False

    @property
    def checkpoints(self) -> Path:
        """Where Trainer keeps its checkpoints until the model is finished."""
        return self.path / CHECKPOINTS

    @property
    def _under_way(self) -> Path:
        """The settings of a training that is not finished."""
        return self.path / PARTIAL / FILE

    @contextmanager
    def opened(self, inputs: Mapping[str, str | None], *, rank: int = 0) -> Iterator[Output]:
        """Have the folder to oneself; see `anydepth.storage.output_folder.output`."""
        again = "the same command with resume=True" + (" instead of restart=True" if self.restart else "")
        with output(self.path, ALIGN_OUTPUT, inputs=inputs, rank=rank, again=again) as opened:
            yield opened

    def standing(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a finished training that was to be resumed; None if there is something to train.

        Args:
            settings: those that matter to the result, as far as they are known yet.

        Raises:
            TrainingError: something is here that is not to be overwritten, or was trained with other settings.
            TraceFileError: it cannot be read.
        """
        if self.resume and self.restart:
            raise TrainingError("resume=True goes on and restart=True starts over: give one of them")
        with write_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise TrainingError(f"'{self.path}' is a file, expected a folder: give one (out)")
            empty = not self.path.exists() or all(entry.name == PARTIAL for entry in self.path.iterdir())
        if empty and not self._under_way.is_file():
            return None
        if not self._under_way.is_file() and not (self.path / FILE).is_file():
            raise TrainingError(f"'{self.path}' {ALIGN_OUTPUT.alone}: give another folder (out)")
        if self.restart:
            return None
        known = self._known()
        if not self.resume:
            self._refuse(known)
        elif difference := first_difference(known["settings"], settings):
            raise TrainingError(
                f"'{self.path}' {difference}: give the same, another folder (out), or restart=True to start over"
            )
        result: dict[str, Any] | None = known.get("result")
        return result

    def _known(self) -> dict[str, Any]:
        """The record of the training that is under way, or else of the one that is finished.

        Raises:
            TraceFileError: it is none of ours, or was changed.
        """
        records = [_read(path) for path in (self._under_way, self.path / FILE) if path.is_file()]
        # both of the same training: it was ended between putting the model in place and clearing up
        finished: bool = records[0].get("started") == records[-1].get("started")
        return dict(records[-1] if finished else records[0])

    def _refuse(self, known: Mapping[str, Any]) -> None:
        if "result" in known:
            raise TrainingError(
                f"'{self.path}' holds a finished model: give another folder (out), or restart=True to train anew "
                "in its place"
            )
        if (checkpoint := last_checkpoint(self.checkpoints)) is not None:
            raise TrainingError(
                f"'{self.path}' holds an interrupted training ({checkpoint.name}): go on with it by resume=True, or "
                "start over with restart=True"
            )

    @contextmanager
    def begun(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Record the settings while the training runs; unless resumed, remove the checkpoints of an earlier one.

        What fails before there is a checkpoint leaves nothing behind.

        Raises:
            OutputError: there are checkpoints of somebody else's.
            TraceFileError: nothing can be written here.
        """
        self._require_own_checkpoints()
        known = self._known() if self.resume and self._under_way.is_file() else {}
        for checkpoint in every_checkpoint(self.checkpoints):
            if not self.resume or not (checkpoint / SEAL_FILE).exists():  # the latter was cut short
                remove_checkpoint(checkpoint)
        write_json(self._under_way, {"settings": settings, "started": known.get("started", time.time_ns())})
        try:
            yield
        except BaseException:
            if last_checkpoint(self.checkpoints) is None:
                self._remove_checkpoints()
                self._under_way.unlink(missing_ok=True)
            raise

    def _require_own_checkpoints(self) -> None:
        kept = _read(self.path / FILE).get("kept", []) if (self.path / FILE).is_file() else []
        others = [path for path in every_checkpoint(self.checkpoints) if path.name not in kept]
        if others and not self._under_way.is_file():
            raise OutputError(
                f"'{others[0]}' is not of a training in '{self.path}': move it away, or give another folder (out)"
            )

    def _remove_checkpoints(self) -> None:
        """Trainer's own, and nothing else that may have been logged beside them."""
        for checkpoint in every_checkpoint(self.checkpoints):
            remove_checkpoint(checkpoint)
        with suppress(OSError):
            self.checkpoints.rmdir()

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """A folder to put the model and its result into; all come into place together."""
        with replacing_folder(self.path, ALIGN_OUTPUT) as beside:
            yield beside

    def finish(self, beside: Path, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Write the result beside the model, to come into place with it."""
        started = _read(self._under_way)["started"]
        kept = sorted(path.name for path in every_checkpoint(self.checkpoints)) if self.keep_checkpoints else []
        content = {"settings": settings, "result": result, "started": started, "kept": kept}
        write_json(beside / FILE, content)

    def clear(self) -> None:
        """Remove the record of a finished training being under way, and the checkpoints that were not to be kept."""
        if not _read(self.path / FILE).get("kept"):
            self._remove_checkpoints()
        with write_errors(self.path):
            self._under_way.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """The record of a training, its fields checked for their types.

    Raises:
        TraceFileError: it is damaged, or none of ours.
    """
    return require_fields(
        read_json(path),
        path,
        again="give another folder (out)",
        fields={"settings": dict},
        optional={"result": dict, "kept": list, "started": int},
    )


def first_difference(before: Any, now: Any) -> str | None:
    """The first difference, in words, among the settings that are known now.

    Example:
        >>> first_difference({"data": "a.csv", "training": {"seed": 0}}, {"training": {"seed": 1}})
        'was started with seed 0, and is now asked for 1'
    """
    for name, value in json.loads(json.dumps(now)).items():
        known = before.get(name)
        if isinstance(value, dict):
            if difference := first_difference(known or {}, value):
                return difference
        elif known != value:
            return f"was started with {name} {_in_words(known)}, and is now asked for {_in_words(value)}"
    return None


def _in_words(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
