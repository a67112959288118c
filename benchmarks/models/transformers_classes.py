"""Every class of transformers' auto mappings for text, sound, images and both, built tiny."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import made_inputs
import torch
from shrunken_configs import BLOCKS, CLASSES, OTHER_BLOCKS, tiny_config
from sweep_cases import NO_CLASSES, Built, Case, NotBuilt, in_words, seed_everything
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
_WRITE = ("encoder-decoder", "vision-language", "causal LM", "masked LM")  # kinds that are given what they have written


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
        classifies = self.kind not in NO_CLASSES and actual not in NO_CLASSES
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


def _randomize(model: nn.Module) -> None:
    """Replace weights of all zeros or all ones by random ones: heads at zero would answer the same at all depths."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if (
            parameter.is_floating_point() and parameter.ndim > 1 and not parameter.detach().any()
        ) or not parameter.detach().isfinite().all():
            parameter.data.normal_(0.0, 0.02, generator=generator)
