"""Models that are given as objects instead of by name, with a processor beside them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from anydepth.core.stack import Stack
from anydepth.errors import ModelError
from anydepth.models import image_transform as pixels
from anydepth.models.input_length import max_input_length
from anydepth.models.loaded import LoadedModel
from anydepth.models.loading import classes_of, load, require_padding
from anydepth.models.tasks import task_among

_PROCESSORS = ("processor", "processing_class", "tokenizer", "image_processor")


def open_model(
    model: Any,
    *,
    processor: Any = None,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """A model by name, or as an object that is taken as it is.

    Args:
        model: a name for `anydepth.models.loading.load`, a `LoadedModel`, a module, a `Stack`, an object that has
            one, or an object with a `model` and its processor, as a pipeline of transformers is.
        processor: tokenizer, image processor, or both in one; a function of a PIL image that returns a tensor will do.
        device: of a model by name.
        dtype: of a model by name.
        trust_remote_code: of a model by name.

    Raises:
        ModelError: it is no model, or its processor is none; see also `load`.

    Example:
        >>> open_model(nn.Linear(2, 2)).kind, open_model(nn.Linear(2, 2)).name
        ('tensor', 'Linear')
    """
    if isinstance(model, str | Path):
        loaded = load(str(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return loaded if processor is None else _with_processor(loaded.model, processor)
    if isinstance(model, LoadedModel):
        return model if processor is None else _with_processor(model.model, processor)
    if isinstance(model, nn.Module):
        return _with_processor(model, processor)
    if (stack := stack_in(model)) is not None:
        return _with_processor(stack.model, processor)
    inner = getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        raise ModelError(f"model is {type(model).__name__}, expected a module, a Stack, a pipeline, or a name")
    own = (getattr(model, name, None) for name in _PROCESSORS)
    return _with_processor(inner, processor or next(filter(None, own), None))


def stack_in(model: Any) -> Stack | None:
    """The stack that a model is given as, or that it has, as an `EarlyExit`; None of any other."""
    stack = getattr(model, "stack", model)
    return stack if isinstance(stack, Stack) else None


def _with_processor(model: nn.Module, processor: Any) -> LoadedModel:
    """A module with its tokenizer or image transform; with neither, it takes tensors."""
    notes: list[str] = []
    if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
        images = getattr(model, "main_input_name", None) == "pixel_values"
        processor = processor.image_processor if images else processor.tokenizer
    if processor is None and hasattr(model, "pretrained_cfg"):
        processor = pixels.from_timm(model)
    if is_tokenizer := hasattr(processor, "model_max_length"):
        processor = processor if processor.pad_token is not None else copy.deepcopy(processor)
        require_padding(processor, type(model).__name__, notes)
    elif processor is not None:
        processor = _as_pixels(model, processor)
    task = task_among(kind.__name__ for kind in type(model).__mro__)
    return LoadedModel(
        model=model,
        processor=processor,
        kind="text" if is_tokenizer else "tensor" if processor is None else "image",
        task=task,
        name=type(model).__name__,
        classes=classes_of(model.config) if task.endswith("classification") else (),
        max_length=max_input_length(model, processor) if is_tokenizer else None,
        notes=tuple(notes),
    )


def _as_pixels(model: nn.Module, processor: Any) -> pixels.Pixels:
    if isinstance(processor, pixels.Pixels):
        return processor
    if not callable(processor):
        raise ModelError(
            f"processor is {type(processor).__name__}, expected a tokenizer, an image processor, or a function of an "
            "image"
        )
    config = getattr(model, "config", None)
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    make = pixels.from_transformers if hasattr(processor, "to_dict") else pixels.from_function
    return make(processor, channels)
