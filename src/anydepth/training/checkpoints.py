"""Checkpoints of a training that may be killed at any moment: seal, check, find, rotate and load them."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anydepth.errors import AnydepthWarning, TrainingError, one_line
from anydepth.storage.checksums import file_record, read_sealed_object, with_checksum
from anydepth.storage.disk import flush, flush_tree, leaves, open_to_all, remove_tree
from anydepth.storage.sizes import in_words

STATE_FILE, SEAL_FILE = "trainer_state.json", "sealed.json"
_PREFIX = "checkpoint-"


def last_checkpoint(folder: str | Path, *, thorough: bool = False) -> Path | None:
    """The newest complete checkpoint in a training's folder; None if there is none.

    `AlignedTrainer` seals a checkpoint when all of it is on the disk. Where no checkpoint is sealed, a plain `Trainer`
    wrote them: then one is complete that has a state file, which is written last, and no empty file. (Trainer's own
    search takes the newest folder, complete or not.)

    `thorough` compares checksums, too, and warns (`AnydepthWarning`) of each checkpoint that is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step, state in ((8, '{"global_step": 8}'), (12, '{"global_'), (16, None)):
        ...         checkpoint = Path(folder) / f"checkpoint-{step}"
        ...         checkpoint.mkdir()
        ...         if state:
        ...             _ = (checkpoint / "trainer_state.json").write_text(state)
        ...     last_checkpoint(folder).name
        'checkpoint-8'
    """
    checkpoints = every_checkpoint(folder)[::-1]
    sealed = [path for path in checkpoints if (path / SEAL_FILE).exists()]
    for path in sealed or checkpoints:
        problem = damage(path, thorough=thorough)
        if problem is None:
            return path
        if thorough:
            warnings.warn(f"{path} is damaged ({problem}), and left out", AnydepthWarning, stacklevel=2)
    return None


def every_checkpoint(folder: str | Path) -> list[Path]:
    """The folders `checkpoint-STEP` in a training's folder, by step, complete or not."""
    steps = ((path.name.removeprefix(_PREFIX), path) for path in Path(folder).glob(f"{_PREFIX}*"))
    known = [(int(step), path) for step, path in steps if step.isascii() and step.isdigit()]
    return [path for _, path in sorted(known)]


def damage(checkpoint: str | Path, *, thorough: bool = False) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is complete. `thorough` compares checksums, too."""
    folder = Path(checkpoint)
    try:
        if "global_step" not in json.loads((folder / STATE_FILE).read_text(encoding="utf-8")):
            return f"{STATE_FILE} names no step"
        if not (folder / SEAL_FILE).exists():
            return next((f"{name} is empty" for name in leaves(folder) if not (folder / name).stat().st_size), None)
        seal = read_sealed_object(folder / SEAL_FILE)
        if seal is None:
            return f"{SEAL_FILE} was changed"
        for name, expected in seal["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, expected {expected['bytes']}"
            if thorough and file_record(path) != expected:
                return f"{name} was changed"
    except (OSError, ValueError, TypeError, KeyError) as problem:
        return one_line(problem)
    return None


def seal_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once it is on the disk; its files get the mode of the umask."""
    opened = checkpoint / f"{SEAL_FILE}.tmp"
    opened.write_bytes(b"")  # a new file, so it has that mode
    open_to_all(checkpoint, opened.stat().st_mode & 0o666)
    files = {name: file_record(checkpoint / name) for name in leaves(checkpoint) if name != opened.name}
    flush_tree(checkpoint)
    opened.write_text(json.dumps(with_checksum({"files": files})), encoding="utf-8")
    flush(opened)
    opened.replace(checkpoint / SEAL_FILE)
    flush(checkpoint)
    flush(checkpoint.parent)


def unseal_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint that is about to be written, or removed, as incomplete."""
    for name in (SEAL_FILE, STATE_FILE):
        (checkpoint / name).unlink(missing_ok=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; if it is killed meanwhile, the rest counts as incomplete."""
    with suppress(OSError):
        unseal_checkpoint(checkpoint)
        remove_tree(checkpoint)


def rotate(folder: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond a limit (None or 0: none), but never the `newest`, nor the `best` one."""
    kept = {newest, *([Path(best)] if best else [])}
    others = [path for path in every_checkpoint(folder) if path not in kept]
    if limit:
        for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
            remove_checkpoint(path)


def checkpoint_bytes(model: nn.Module) -> int:
    """The most bytes that a checkpoint takes on disk: the weights, and three numbers for each that is trained.

    Example:
        >>> checkpoint_bytes(nn.Linear(9, 10))
        1600
    """
    return sum(each.numel() * each.element_size() * (4 if each.requires_grad else 1) for each in model.parameters())


def require_room(folder: str | Path, model: nn.Module) -> None:
    """Raise a `TrainingError` unless a checkpoint of the model fits on the disk of a folder."""
    needed, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"a checkpoint takes up to {in_words(needed)}, and {folder} has {in_words(free)} free: make room, or save "
            "to another folder"
        )


def read_weights(model: Any, folder: str | Path) -> None:
    """Load the weights of a checkpoint into a `PreTrainedModel`, under whatever names `save_pretrained` saved them.

    transformers saves some models (ViT) under the names of older releases, and translates when it loads them again.
    Trainer, resuming, takes the file's names as they are, and leaves weights that it does not find at random values.
    """
    # a copy, since loading changes the config
    saved = type(model).from_pretrained(folder, config=copy.deepcopy(model.config), dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


@contextmanager
def without(model: nn.Module, name: str) -> Iterator[None]:
    """Context manager: remove a child of the model, if it has it, so that saving and loading skip it."""
    child = model._modules.pop(name, None)
    try:
        yield
    finally:
        if child is not None:
            model._modules[name] = child


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Context manager: restore the random states of Python, numpy and torch on the CPU afterwards.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with randomness_kept():
        ...     a = torch.rand(3)
        >>> torch.equal(a, torch.rand(3))
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
