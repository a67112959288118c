"""Checkpoints of a training that may be killed at any moment: which is whole, what one takes, what goes into it."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anydepth.errors import TrainingError
from anydepth.store import in_words

STATE_FILE = "trainer_state.json"
_PREFIX = "checkpoint-"


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint in a training's folder that was written to its end; None if there is none.

    The state file is what `transformers.Trainer` writes last, so a folder in which it can be read is whole. (Trainer's
    own search takes the newest folder, whatever is in it.)

    Args:
        folder: the training's `output_dir`.

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
    steps = ((path.name.removeprefix(_PREFIX), path) for path in Path(folder).glob(f"{_PREFIX}*"))
    newest_first = sorted(((int(step), path) for step, path in steps if step.isdigit()), reverse=True)
    return next((path for _, path in newest_first if is_whole(path)), None)


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return "global_step" in json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def checkpoint_bytes(model: nn.Module) -> int:
    """What a checkpoint takes on disk, at most: the weights, and three numbers for each that is trained.

    Example:
        >>> checkpoint_bytes(nn.Linear(9, 10))
        1600
    """
    sizes = [(one.numel() * one.element_size(), one.requires_grad) for one in model.parameters()]
    return sum(size * (4 if trained else 1) for size, trained in sizes)


def require_room(folder: str | Path, model: nn.Module) -> None:
    """See that a checkpoint of the model fits on the disk of a folder.

    Raises:
        TrainingError: it does not.
    """
    needed, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"a checkpoint takes up to {in_words(needed)}, and {folder} has {in_words(free)} free: make room, or save "
            "to another folder"
        )


def read_weights(model: Any, folder: str | Path) -> None:
    """Load the weights that `save_pretrained` left, under whatever names.

    transformers saves some models (ViT) under the names of older releases, and translates when it loads them again;
    Trainer, resuming, takes the file's names as they are, and leaves what it does not find at its random start.

    Args:
        model: a `PreTrainedModel`.
        folder: of a checkpoint.
    """
    # a copy: loading notes in the config what it was loaded with
    saved = type(model).from_pretrained(folder, config=copy.deepcopy(model.config), dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


@contextmanager
def without(model: nn.Module, name: str) -> Iterator[None]:
    """The model lacks one of its children inside, if it has it at all: what is saved and loaded there is the rest."""
    child = model._modules.pop(name, None)
    try:
        yield
    finally:
        if child is not None:
            model._modules[name] = child


@contextmanager
def randomness_kept() -> Iterator[None]:
    """What is drawn inside leaves no trace: Python, numpy and torch on the CPU draw afterwards as if it had not been.

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
