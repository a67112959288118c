"""The folder of one training: what was asked for, whether it is finished, and what became of it.

`align.json` holds the settings from the first moment on, and the result once everything else is in place: a folder is
finished when it has one. Until then there are checkpoints in `checkpoints/`, and nothing that looks like a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.checkpoints import last_checkpoint
from anydepth.errors import TrainingError
from anydepth.store import read_json, write_json, writing

FILE, CHECKPOINTS = "align.json", "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training.

    Attributes:
        path: where.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where Trainer keeps its checkpoints until the model is finished."""
        return self.path / CHECKPOINTS

    def standing(self, settings: Mapping[str, Any], *, resume: bool, restart: bool) -> dict[str, Any] | None:
        """See whether a training may be done here.

        Args:
            settings: those that matter to the result, as far as they are known yet.
            resume: whether to go on with what is here.
            restart: whether to put another training in its place.

        Returns:
            The result, if it is finished and was to be resumed; None if there is something to do.

        Raises:
            TrainingError: something is here that is not to be overwritten, or was trained with other settings.
            TraceFileError: it cannot be read.
        """
        if resume and restart:
            raise TrainingError("--resume goes on and --restart starts over: give one of them")
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise TrainingError(f"'{self.path}' is a file, expected a folder: give one with --out")
        if not any(self.path.iterdir()):
            return None
        if not (self.path / FILE).is_file():
            raise TrainingError(f"'{self.path}' holds other files than a training's: give another folder with --out")
        if restart:
            return None
        known = read_json(self.path / FILE)
        self._require_leave(known, resume=resume)
        if resume and (difference := first_difference(known["settings"], settings)):
            raise TrainingError(f"'{self.path}' {difference}: give the same, another --out, or --restart to start over")
        result: dict[str, Any] | None = known.get("result")
        return result

    def _require_leave(self, known: Mapping[str, Any], *, resume: bool) -> None:
        if resume:
            return
        if "result" in known:
            raise TrainingError(
                f"'{self.path}' holds a finished model: give another folder with --out, or --restart to train anew in "
                "its place"
            )
        if (checkpoint := last_checkpoint(self.checkpoints)) is not None:
            raise TrainingError(
                f"'{self.path}' holds an interrupted training ({checkpoint.name}): go on with it by --resume, or start "
                "over with --restart"
            )

    @contextmanager
    def begun(self, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Write down what is done inside; unless resumed, remove what an earlier training left.

        What fails before there is a checkpoint leaves nothing behind.

        Raises:
            TraceFileError: nothing can be written here.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / FILE).is_file():
                self._clear(keep_checkpoints=resume)
        write_json(self.path / FILE, {"settings": settings})
        try:
            yield
        except BaseException:
            if last_checkpoint(self.checkpoints) is None:
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                (self.path / FILE).unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()
            raise

    def _clear(self, *, keep_checkpoints: bool) -> None:
        for name in read_json(self.path / FILE).get("result", {}).get("files", ()):
            (self.path / Path(name).name).unlink(missing_ok=True)
        if not keep_checkpoints:
            self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        """Trainer's own, and nothing else that may have been logged beside them."""
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        with suppress(OSError):
            self.checkpoints.rmdir()

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """A folder to put the model into; its files come into place when all are there, the config last."""
        beside = self.path / ".model"
        try:
            with writing(self.path):
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
            yield beside
            with writing(self.path):
                # a folder without a config is no model yet, for transformers as for us
                for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):
                    file.replace(self.path / file.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def finish(self, settings: Mapping[str, Any], result: Mapping[str, Any], *, keep_checkpoints: bool) -> None:
        """Write down the result; from then on the training is finished."""
        write_json(self.path / FILE, {"settings": settings, "result": result})
        if not keep_checkpoints:
            self._remove_checkpoints()


def first_difference(before: Any, now: Any) -> str | None:
    """What differs first, in words, among the settings that are known now.

    Example:
        >>> first_difference({"data": "a.csv", "training": {"seed": 0}}, {"training": {"seed": 1}})
        'was started with seed 0, and is now asked for 1'
    """
    for name, value in json.loads(json.dumps(now)).items():
        known = before.get(name)
        if isinstance(value, dict):
            if found := first_difference(known or {}, value):
                return found
        elif known != value:
            return f"was started with {name} {_shown(known)}, and is now asked for {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
