"""The models of the sweep: every class of transformers' auto mappings, and some of other libraries; all tiny."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import made_inputs
import numpy as np
import torch
from shrunken_configs import BLOCKS, CLASSES, OTHER_BLOCKS, tiny_config
from torch import nn

# The auto mappings of transformers, in the order in which a class that is in several takes its kind.
MAPPINGS = {
    "SEQ_TO_SEQ_CAUSAL_LM": "encoder-decoder",
    "SPEECH_SEQ_2_SEQ": "encoder-decoder",
    "IMAGE_TEXT_TO_TEXT": "vision-language",
    "MULTIMODAL_LM": "vision-language",
    "CAUSAL_LM": "causal LM",
    "MASKED_LM": "masked LM",
    "SEQUENCE_CLASSIFICATION": "text classification",
    "TOKEN_CLASSIFICATION": "tagging",
    "QUESTION_ANSWERING": "question answering",
    "MULTIPLE_CHOICE": "multiple choice",
    "NEXT_SENTENCE_PREDICTION": "text classification",
    "AUDIO_CLASSIFICATION": "audio classification",
    "AUDIO_FRAME_CLASSIFICATION": "audio tagging",
    "AUDIO_XVECTOR": "audio classification",
    "CTC": "audio tagging",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "CLIP-like",
    "IMAGE_CLASSIFICATION": "image classification",
    "VIDEO_CLASSIFICATION": "image classification",
    "OBJECT_DETECTION": "detection, segmentation, depth",
    "ZERO_SHOT_OBJECT_DETECTION": "detection, segmentation, depth",
    "SEMANTIC_SEGMENTATION": "detection, segmentation, depth",
    "INSTANCE_SEGMENTATION": "detection, segmentation, depth",
    "UNIVERSAL_SEGMENTATION": "detection, segmentation, depth",
    "DEPTH_ESTIMATION": "detection, segmentation, depth",
}
_NO_CLASSES = ("CLIP-like", "detection, segmentation, depth", "question answering", "embedding")
_WRITE = ("encoder-decoder", "vision-language", "causal LM", "masked LM")  # kinds that are given what they have written


class NotBuilt(Exception):
    """The model could not be built tiny, or does not run on any made-up batch; with the reason."""


@dataclass(frozen=True)
class Built:
    """A tiny model in eval mode, with two batches that it takes."""

    model: nn.Module
    batches: list[Any]
    samples: list[int]
    kind: str
    classifies: bool
    padding_is_free: bool = False


@dataclass(frozen=True)
class Case:
    """One model of the sweep."""

    name: str
    library: str
    kind: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        return f"{self.library}/{self.name}"


def all_cases() -> list[Case]:
    """Every case, in an order that stays: the first class of each type before the others of that type.

    So a sweep that is stopped early has seen every architecture once before it sees a second head of any.
    """
    from other_libraries import other_cases

    ranks: dict[str, int] = {}
    ranked = []
    for case in transformers_cases():
        body = re.split(r"For(?=[A-Z])|LMHead", case.name)[0]
        ranks[body] = ranks.get(body, -1) + 1
        ranked.append((ranks[body], case))
    first = [*(case for rank, case in ranked if rank == 0), *other_cases()]
    rest = [case for rank, case in sorted(ranked, key=lambda entry: entry[0]) if rank > 0]
    shuffled = random.Random(0).sample(first, len(first))
    return [*shuffled, *rest]


def transformers_cases() -> Iterator[Case]:
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for mapping, kind in MAPPINGS.items():
        names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
        for classes in names.values():
            for name in (classes,) if isinstance(classes, str) else classes:
                if name not in seen:
                    seen.add(name)
                    yield Case(name, "transformers", kind, _Builder(name, kind))


@dataclass(frozen=True)
class _Builder:
    name: str
    kind: str

    def __call__(self) -> Built:
        import transformers

        try:
            kind: Any = getattr(transformers, self.name)
            model = kind(self._config(kind.config_class)).eval()
        except Exception as problem:
            raise NotBuilt(f"not built: {in_words(problem)}") from problem
        _randomize(model)
        config = model.config
        actual = "encoder-decoder" if getattr(config, "is_encoder_decoder", False) else self.kind
        if self.kind == "encoder-decoder" and actual == self.kind and not config.is_encoder_decoder:
            actual = "audio-language"
        batches = [self._batch(model, actual, seed) for seed in range(2)]
        classifies = self.kind not in _NO_CLASSES and actual not in _NO_CLASSES
        return Built(model, batches, [made_inputs.SAMPLES] * 2, actual, classifies)

    def _config(self, kind: Any) -> Any:
        seed_everything(0)
        towers = BLOCKS if self.kind == "CLIP-like" else OTHER_BLOCKS
        settings: dict[str, Any] = {"num_labels": CLASSES}
        if self.name.endswith("NextSentencePrediction") or "TypeClassification" in self.name:
            settings = {}
        if self.kind == "question answering":
            settings = {"num_labels": 2}
        config = tiny_config(kind, blocks=BLOCKS, others=towers, **settings)
        if self.kind == "causal LM" and getattr(config, "is_decoder", None) is False:
            config.is_decoder = True
        config.return_dict = True
        return config

    def _batch(self, model: nn.Module, kind: str, seed: int) -> dict[str, Any]:
        problems = []
        for batch in made_inputs.candidates(model, kind, seed, self.kind in _WRITE):
            batch = {name: value for name, value in batch.items() if value is not None}
            if not batch:
                continue
            try:
                with torch.no_grad():
                    model(**batch)
            except Exception as problem:
                problems.append(f"{sorted(batch)}: {in_words(problem)}")
            else:
                return batch
        raise NotBuilt(f"runs on no made-up batch; {problems[0] if problems else 'no inputs known'}")


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _randomize(model: nn.Module) -> None:
    """Replace weights of all zeros or all ones by random ones: heads at zero would answer the same at all depths."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if (
            parameter.is_floating_point() and parameter.ndim > 1 and not parameter.detach().any()
        ) or not parameter.detach().isfinite().all():
            parameter.data.normal_(0.0, 0.02, generator=generator)


def in_words(problem: BaseException) -> str:
    """An exception as one line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {' '.join(lines)[:220]}"


def with_samples(built: Built, count: int) -> Built:
    """The same with a second batch of fewer samples."""
    return replace(built, samples=[built.samples[0], count])
