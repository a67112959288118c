"""A loaded model with its processor, and checks of a folder that is to hold one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from anydepth.core.heads import HEADS_FILE
from anydepth.errors import ModelError, one_line

Task = Literal[
    "text-classification", "image-classification", "token-classification", "causal-lm", "object-detection", "features"
]
Kind = Literal["text", "image", "tensor"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run, with its tokenizer or image transform.

    Attributes:
        model: in evaluation mode, on its device.
        processor: the tokenizer of a text model, or `Pixels` of an image model; None if it takes tensors.
        kind: the kind of its inputs.
        task: what it was trained for.
        name: as the user gave it.
        classes: names of the classes in the classifier's order; empty where there is no classifier.
        max_length: maximum number of tokens; None if unknown.
        heads: the folder that holds a classifier for each depth; None if the model has one for all.
        notes: what a reader of the results should know, one sentence each.
    """

    model: nn.Module
    processor: Any
    kind: Kind
    task: Task
    name: str
    classes: tuple[str, ...] = ()
    max_length: int | None = None
    heads: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def to_save(self) -> Any:
        """The tokenizer or image processor to save with the model; None if it has none."""
        return getattr(self.processor, "processor", self.processor) if self.kind == "image" else self.processor


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights as safetensors; raises a ModelError if it holds them as pickles."""
    if any(path.name != HEADS_FILE for path in folder.glob("*.safetensors")):
        return True
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the weights in '{folder}' are pickles ({pickles[0]}), which can run code when loaded: "
            "save them as safetensors, as save_pretrained does"
        )
    return False


def check_folder(folder: Path, *, pretrained: bool) -> None:
    """Raise a ModelError for a folder without a config, or without weights that can be read safely if `pretrained`."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"'{folder}' is no model: it holds no config.json")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"'{config}' cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"'{config}' holds {json.dumps(content):.40}, expected an object: the config of a model")
    if pretrained and not has_weights(folder):
        raise ModelError(f"'{folder}' holds no weights (*.safetensors)")
