"""Zero-shot classification: a model of images and texts (CLIP) as a classifier whose classes are given texts.

Nothing of such a model is implemented here: its own forward is given the images of a batch, and the same texts every
time; its own similarity of each image to each text is the logit of that text.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anydepth.core.model_io import device_of, distance, fields_of, first_samples, model_output, split_batch
from anydepth.core.patching import evaluating
from anydepth.core.prefix_cache import Answers, Prefix, answering
from anydepth.core.stack import Stack
from anydepth.core.truncation import truncate
from anydepth.core.verification import tolerance_of
from anydepth.core.watching import Call, watch
from anydepth.errors import ModelError, listed, one_line
from anydepth.models.input_length import max_input_length
from anydepth.models.label_names import TEMPLATE, texts_of

_INPUTS = ("input_ids", "pixel_values")
_LOGITS = "logits_per_image"
_SLACK = 10
"""Masked positions are zeros in sums, which round otherwise: this many times `tolerance_of` is no difference."""
ENTRY = "zero_shot"
"""The entry of a `ZeroShot`'s config with its template and labels: what else than weights decides its answers."""


def zero_shot(model: nn.Module, processor: Any, labels: Sequence[str], *, template: str = TEMPLATE) -> ZeroShot:
    """Make a classifier of images of a model that compares images with texts, such as CLIP: one text for each class.

    Args:
        model: of transformers, with images and texts as inputs, and `logits_per_image` in its output: CLIP, SigLIP,
            AltCLIP, BLIP and others. It is not copied.
        processor: its processor, or its tokenizer.
        labels: names of the classes.
        template: the text of a class, with {} in the place of its name.

    Returns:
        A module that takes what the model takes of images, and answers with `logits` (B, C). `Stack` finds its blocks
        in the image tower.

    Raises:
        ModelError: a model without images or texts, or without a tokenizer; a template without {}; fewer than two
            labels, or labels that the model cannot tell apart.

    Example:
        >>> zero_shot(nn.Linear(2, 2), None, ["cat", "dog"])
        Traceback (most recent call last):
        anydepth.errors.ModelError: Linear takes input, expected a model of images and texts such as CLIP: ...
    """
    require_both(model)
    tokens = _tokens(model, getattr(processor, "tokenizer", processor), texts_of(labels, template))
    return ZeroShot(model, tokens, labels=labels, template=template, processor=processor)


class ZeroShot(nn.Module):
    """A model of images and texts as a classifier of images; made by `zero_shot`.

    Attributes:
        model: the model itself.
        labels: names of the classes.
        template: of their texts.
    """

    main_input_name = "pixel_values"

    def __init__(
        self, model: nn.Module, tokens: Mapping[str, Tensor], *, labels: Sequence[str], template: str, processor: Any
    ) -> None:
        super().__init__()
        self.model, self.labels, self.template = model, tuple(labels), template
        self._processor, self._names = processor, tuple(tokens)
        for name, values in tokens.items():
            self.register_buffer(f"texts_{name}", values)
        self._text_outputs = _TextOutputs()
        self.training = model.training

    @property
    def config(self) -> Any:
        """The model's config, with the labels as the names of its classes."""
        config: Any = copy.deepcopy(getattr(self.model, "config", SimpleNamespace()))
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: index for index, label in enumerate(self.labels)}
        config.problem_type = None
        setattr(config, ENTRY, {"template": self.template, "labels": list(self.labels)})
        return config

    @property
    def texts(self) -> dict[str, Tensor]:
        """The tokens of all texts, as the model takes them: (C, T) each."""
        return {name: self.get_buffer(f"texts_{name}") for name in self._names}

    def forward(self, pixel_values: Tensor, **images: Tensor) -> dict[str, Float[Tensor, "b c"]]:
        """The model's own similarity of each image to each text, as `logits`; the model may take more of `images`."""
        inputs = {"pixel_values": pixel_values, **images}
        with self._text_outputs.replayed(self.model, self.texts, inputs):
            output = fields_of(self.model(**self.texts, **inputs))
        logits = output.get(_LOGITS)
        # not len(pixel_values), which an exporter would take for a constant
        if not isinstance(logits, Tensor) or logits.shape != (pixel_values.shape[0], len(self.labels)):
            shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
            raise ModelError(
                f"{type(self.model).__name__} answers with {', '.join(output)}{shape and f', {_LOGITS}{shape}'}, "
                f"expected {_LOGITS} with a number for each image and text"
            )
        return {"logits": logits}

    def truncated(self, depth: int, *, batch: Any = None) -> ZeroShot:
        """The same texts for a copy of the model whose image tower has its first blocks only; see `truncate`."""
        both = None
        if batch is not None:
            images = first_samples(split_batch(batch, self).inputs, 2)
            images = {"pixel_values": images} if isinstance(images, Tensor) else images
            both = {**{name: tokens[:2] for name, tokens in self.texts.items()}, **images}
        cut = truncate(Stack(self.model, stack="image"), depth, batch=both)
        return ZeroShot(cut, self.texts, labels=self.labels, template=self.template, processor=self._processor)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the model and its tokenizer, or processor, as transformers does; the texts are not among them."""
        for part in (self.model, self._processor):
            part.save_pretrained(folder)  # type: ignore[operator]  # of transformers


class _TextOutputs:
    """Outputs of the modules that only read the texts: computed once, and again where weights or tokens change."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Answers] | None = None

    def replayed(self, model: nn.Module, texts: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> Any:
        """Context manager: these modules return their outputs instead of running, if that makes no difference."""
        kept = self._kept
        modules = [model] if kept is None else [module for module, _ in kept[1]]
        if torch.compiler.is_compiling() or _are_learning(modules):
            return nullcontext()
        if kept is None or kept[0] != _stamp(kept[1], texts):
            # in a context of its own, whoever watches the model or has stubs in it does not see these forwards
            answers = Context().run(self._computed, model, texts, images)
            self._kept = kept = _stamp(answers, texts), answers
        return nullcontext() if kept[0] is None else answering(kept[1])

    def _computed(self, model: nn.Module, texts: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> Answers:
        batch = {**texts, **{name: values[:1] for name, values in images.items()}}
        with torch.inference_mode(False), torch.no_grad():
            calls = watch(model, batch, ()).calls
            modules = [call.module for call in _outermost(calls, model, texts)]
            with Prefix().recorded(batch, modules) as answers:
                model(**batch)
        return answers

    def __reduce__(self) -> Any:
        """A copy is empty: it belongs to other modules."""
        return _TextOutputs, ()


def _outermost(calls: Iterable[Call], model: nn.Module, texts: Mapping[str, Tensor]) -> Iterator[Call]:
    """The calls of modules that are given nothing but tokens of the texts, or what such modules made of them.

    Those inside another one are left out.
    """
    of_texts, end = {id(values) for values in texts.values()}, -1
    for call in calls:
        if call.module is not model and call.start > end and call.given and {id(v) for v in call.given} <= of_texts:
            of_texts |= {id(answer) for answer in call.answers}
            end = call.end
            yield call


def _are_learning(modules: Sequence[nn.Module]) -> bool:
    """Whether outputs of these modules may differ from one call to the next, or need gradients."""
    weights = (weight for module in modules for weight in module.parameters())
    return any(part.training for module in modules for part in module.modules()) or (
        torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    )


def _stamp(answers: Answers, texts: Mapping[str, Tensor]) -> Any:
    """What changes whenever the outputs may; None where torch does not count writes."""
    weights = [tensor for module, _ in answers for tensor in (*module.parameters(), *module.buffers())]
    tensors = [*weights, *texts.values()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    kind = tensors[0].device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    cast = torch.get_autocast_dtype(kind) if casts else None
    return cast, [(tensor.data_ptr(), tensor._version) for tensor in tensors]


def takes_both(model: nn.Module) -> bool:
    """Whether a model takes images and texts together."""
    return not set(_INPUTS) - set(inspect.signature(model.forward).parameters)


def compares(model: nn.Module) -> bool:
    """Whether a model has a tower for images and one for texts, each with an embedding of its own, as CLIP has."""
    return all(hasattr(model, f"get_{kind}_features") for kind in ("image", "text")) and takes_both(model)


def require_both(model: nn.Module) -> None:
    """Raise a `ModelError` for a model that does not take images and texts together."""
    takes = list(inspect.signature(model.forward).parameters)
    if missing := [name for name in _INPUTS if name not in takes]:
        raise ModelError(
            f"{type(model).__name__} takes {listed(takes, 4)}, expected a model of images and texts such as CLIP: its "
            f"forward has no {' and no '.join(missing)}"
        )


# --- texts ------------------------------------------------------------------------------------------------------------


def _tokens(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """The tokens of texts as the model takes them, padded to the longest, or to the length that it was trained with.

    Raises:
        ModelError: no tokenizer, a text that is too long, or two that become the same tokens.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "model_max_length"):
        raise ModelError(f"processor is {type(tokenizer).__name__}, expected the model's processor or its tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    each, most = tokenizer(list(texts), verbose=False)["input_ids"], max_input_length(model, tokenizer)
    seen: dict[tuple[int, ...], str] = {}
    for text, ids in zip(texts, map(tuple, each), strict=True):
        if most is not None and len(ids) > most:
            raise ModelError(f"{text!r:.80} becomes {len(ids)} tokens, and the model takes {most}: shorten the text")
        if ids in seen:
            raise ModelError(f"{seen[ids]!r} and {text!r} become the same tokens: the model cannot tell them apart")
        seen[ids] = text
    takes = inspect.signature(model.forward).parameters

    def encoded(padding: Any, some: Sequence[str]) -> dict[str, Tensor]:
        length = {"max_length": most} if padding == "max_length" else {}
        made = tokenizer(list(some), padding=padding, padding_side="right", return_tensors="pt", **length)
        return {name: values.to(device_of(model)) for name, values in made.items() if name in takes}

    tokens = encoded(True, texts)
    shortest = min(range(len(texts)), key=lambda index: len(each[index]))
    alone = encoded(True, [texts[shortest]])
    if most is None or not _reads_padding(model, alone, encoded("max_length", [texts[shortest]])):
        return tokens
    return encoded("max_length", texts)  # as SigLIP, which reads the last position, whatever is there


def _reads_padding(model: nn.Module, text: Mapping[str, Tensor], padded: Mapping[str, Tensor]) -> bool:
    """Whether a text means something else to the model with more padding."""
    features = getattr(model, "get_text_features", None)
    if features is None:
        return False
    try:
        with evaluating(model), torch.no_grad():
            plain, other = (model_output(features(**tokens))[1] for tokens in (text, padded))
    except IndexError as error:  # of an embedding
        raise ModelError(
            f"the tokenizer gives tokens that {type(model).__name__} does not know: it is another model's "
            f"({one_line(error)})"
        ) from error
    return distance(other, plain) > _SLACK * tolerance_of(plain)
