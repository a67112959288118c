"""Models of images and texts (CLIP) as people ask for them: one tower by itself, or images with labels as texts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from anydepth.core.model_io import model_output
from anydepth.errors import ModelError, listed
from anydepth.models.label_names import are_numbers
from anydepth.models.loaded import LoadedModel
from anydepth.models.loading import image_processor_of, tokenizer_of
from anydepth.models.zero_shot import ENTRY, ZeroShot, require_both, zero_shot


class ImageTower(nn.Module):
    """The image tower of a model of images and texts, by the model's own `get_image_features`."""

    main_input_name = "pixel_values"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values: Tensor, **images: Tensor) -> dict[str, Tensor]:
        """The embedding of each image."""
        return {"image_embeds": model_output(self.model.get_image_features(pixel_values=pixel_values, **images))[1]}


class TextTower(nn.Module):
    """The text tower of a model of images and texts, by the model's own `get_text_features`."""

    main_input_name = "input_ids"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **texts: Tensor) -> dict[str, Tensor]:
        """The embedding of each text."""
        masked = "attention_mask" in inspect.signature(self.model.forward).parameters
        given = {**texts, **({"attention_mask": attention_mask} if masked else {})}
        return {"text_embeds": model_output(self.model.get_text_features(input_ids=input_ids, **given))[1]}

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens: the one that is as large as the vocabulary."""
        size = self.config.get_text_config().vocab_size
        tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding))
        return next(table for table in tables if table.num_embeddings == size)


def as_tower(loaded: LoadedModel, kind: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """One tower, "image" or "text", of a loaded model that has both."""
    note = f"the {kind} tower of {type(loaded.model).__name__}, by itself"
    if kind == "image":
        return _seeing(loaded, ImageTower(loaded.model), (note,), trust_remote_code=trust_remote_code)
    return replace(loaded, model=TextTower(loaded.model), notes=(*loaded.notes, note))


def as_zero_shot(
    loaded: LoadedModel, labels: Sequence[str], template: str, *, trust_remote_code: bool = False
) -> LoadedModel:
    """A loaded model of images and texts as a classifier of images, whose classes are the labels of the data.

    Raises:
        ModelError: it takes no images or no texts; the data have no labels, or some that it cannot tell apart.
    """
    require_both(loaded.model)
    if not labels:
        raise ModelError("labels_as_texts takes names of classes from the data, which have none: name a column (label)")
    notes: list[str] = []
    tokenizer = loaded.processor
    if loaded.kind != "text":
        tokenizer = tokenizer_of(loaded.name, loaded.model, trust_remote_code, notes)
    model = zero_shot(loaded.model, tokenizer, labels, template=template).eval()
    texts = f"{template!r} with {listed(list(labels), 4)}"
    notes.append(f"zero-shot: classes are texts, {texts}; probabilities are a softmax over these")
    if are_numbers(labels):
        notes.append("the names of the classes are numbers, and the texts say these: data with names may do better")
    seeing = _seeing(loaded, model, tuple(notes), trust_remote_code=trust_remote_code)
    return replace(seeing, classes=model.labels)


def with_saved_texts(loaded: LoadedModel, config: Mapping[str, Any], *, trust_remote_code: bool = False) -> LoadedModel:
    """A loaded model as a classifier of images by the texts that a `ZeroShot`'s config names; as it is without any."""
    texts = config.get(ENTRY)
    if texts is None:
        return loaded
    return as_zero_shot(loaded, texts["labels"], texts["template"], trust_remote_code=trust_remote_code)


def like(loaded: LoadedModel, other: LoadedModel, *, trust_remote_code: bool = False) -> LoadedModel:
    """A loaded model in the form of another one of the same kind: one tower, or with the same texts."""
    model = other.model
    if isinstance(model, ZeroShot):
        return as_zero_shot(loaded, model.labels, model.template, trust_remote_code=trust_remote_code)
    kind = {ImageTower: "image", TextTower: "text"}.get(type(model))
    return loaded if kind is None else as_tower(loaded, kind, trust_remote_code=trust_remote_code)


def _seeing(loaded: LoadedModel, model: nn.Module, notes: tuple[str, ...], *, trust_remote_code: bool) -> LoadedModel:
    """A loaded model that takes images."""
    more: list[str] = []
    pixels = loaded.processor
    if loaded.kind != "image":
        pixels = image_processor_of(loaded.name, loaded.model, trust_remote_code, more)
    return replace(
        loaded, model=model, processor=pixels, kind="image", max_length=None, notes=(*loaded.notes, *notes, *more)
    )
