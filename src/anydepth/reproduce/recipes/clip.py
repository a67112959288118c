"""Figs. 22 and 23: similarity within the two towers of a CLIP, and across them, by depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.core.stack import Stack
from anydepth.models import image_transform as pixels
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.curves import by_depth, largest_fall
from anydepth.reproduce.experiment import MEASURES, Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.images import class_names, image_model, optimizer_of, shuffled, to_learn
from anydepth.reproduce.recipes.vision import FASHION
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.small_models import CAPTIONS
from anydepth.reproduce.subjects import Subject
from anydepth.tracing.run import trace

CAPTION = "This is a photo of a {}"
TOWERS = ("image", "text")
RANDOM = ", random weights"
STEADY = 0.03
"""How far accuracy may fall from one depth to the next and still count as rising."""
fig_22 = partial(Claim, where="Fig. 22")
fig_23 = partial(Claim, where="Fig. 23")


class ImageTower(nn.Module):
    """One half of a CLIP as a model: pixels to the space both halves share."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.body, self.projection = clip.vision_model, clip.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, P)."""
        shared: Tensor = self.projection(self.body(pixel_values=pixel_values).pooler_output)
        return shared


class TextTower(nn.Module):
    """The other half: a caption to the same space."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.body, self.projection = clip.text_model, clip.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) to (B, P)."""
        pooled = self.body(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        shared: Tensor = self.projection(pooled)
        return shared


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A CLIP and what it is shown.

    Attributes:
        clip: transformers' CLIPModel.
        tokenizer: of its captions.
        images: its image tower, and how it takes images.
        classes: names of the classes, in the order of the labels.
    """

    clip: Any
    tokenizer: Any
    images: LoadedModel
    classes: tuple[str, ...]

    @classmethod
    def load(cls, bench: Experiment, subject: Subject, *, random: bool) -> Pair:
        """As released, or with random weights drawn by the seed."""
        from transformers import AutoImageProcessor

        source = bench.source(subject.model)
        torch.manual_seed(bench.seed)
        loaded = models.load(source, task="features", device=bench.device, pretrained=not random)
        transform = pixels.from_transformers(AutoImageProcessor.from_pretrained(source), channels=3)
        classes = class_names(bench, subject)
        images = image_model(ImageTower(loaded.model).eval(), transform, subject, classes)
        return cls(clip=loaded.model, tokenizer=loaded.processor, images=images, classes=classes)

    def captions(self, template: str) -> dict[str, Tensor]:
        """One caption for each class."""
        texts = [template.format(name) for name in self.classes]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        device = device_of(self.clip)
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}


def measure(bench: Experiment) -> Values:
    """The towers as they are, or as they were trained here, and with random weights."""
    (subject,) = bench.subjects.values()
    values: dict[str, Any] = {}
    for name, random in (("clip", False), ("clip-random", True)):
        key = {"subject": subject.decisive(), "random": random}
        values |= bench.remembered(name, key, partial(_measured, bench, subject, random=random))
    return values


def _measured(bench: Experiment, subject: Subject, folder: Path, *, random: bool) -> dict[str, Any]:
    pair = Pair.load(bench, subject, random=random or subject.from_scratch)
    if subject.from_scratch and not random:
        bench.announce(subject.title)
        _train(pair, bench, subject)
    captions = pair.captions(CAPTION)
    image, text = Stack(pair.images.model), Stack(TextTower(pair.clip).eval())
    batches = bench.batches(subject, pair.images)
    how: dict[str, Any] = {"measures": MEASURES, "labels": False, "readout": None, "progress": bench.progress}
    values: dict[str, Any] = {
        "image": by_depth(trace(image, batches, out=folder / "image", **how)),
        "text": by_depth(trace(text, [captions], out=folder / "text", **how)),
    }
    with torch.inference_mode():
        values["across"] = _across(image, batches, _embedded(text, captions), progress=bench.progress)
    return {f"{name}{RANDOM if random else ''}": value for name, value in values.items()}


def _across(
    image: Stack, batches: Any, texts: Float[Tensor, "m classes p"], progress: Any
) -> dict[str, Float[np.ndarray, " k"]]:
    """Images held against the captions of all classes, in the shared space, by the depth of the image.

    Args:
        image: the image tower.
        batches: of images, with labels.
        texts: the captions at every depth of their tower.
        progress: told of every batch.

    Returns:
        matched: mean cosine of an image with its own caption, at the same share of the depth; mismatched: with those of
        the other classes; margin: the one less the other; margin_last: the same with captions at the last depth;
        accuracy: of the caption that is closest there.
    """
    sums, count = torch.zeros(5, image.depth + 1, dtype=torch.float64), 0
    for done, item in enumerate(batches):
        batch = to_device({"pixel_values": item["pixel_values"]}, texts.device)
        labels = item["labels"].to(texts.device)
        for depth, shared in enumerate(_embedded(image, batch)):
            same = texts[round(depth * (len(texts) - 1) / image.depth)]
            last = shared @ texts[-1].T
            (own, other), (own_last, other_last) = _means(shared @ same.T, labels), _means(last, labels)
            right = last.argmax(1) == labels
            rows = (own, other, own - other, own_last - other_last, right)
            sums[:, depth] += torch.stack([row.double().sum() for row in rows]).cpu()
        count += len(labels)
        if progress is not None:
            progress(done + 1, len(batches), "across")
    names = ("matched", "mismatched", "margin", "margin_last", "accuracy")
    return dict(zip(names, (sums / count).numpy(), strict=True))


def _embedded(stack: Stack, batch: Batch) -> Float[Tensor, "k b p"]:
    """Every depth of a batch through the tower's own norm and projection, as directions."""
    embedded = [stack.readout(state, batch) for state in stack.states(batch)]
    return functional.normalize(torch.stack(embedded).float(), dim=-1)


def _means(cosines: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image: the cosine with its own class, and the mean of those with the others."""
    own = cosines.gather(1, labels[:, None])[:, 0]
    return own, (cosines.sum(1) - own) / (cosines.shape[1] - 1)


def _train(pair: Pair, bench: Experiment, subject: Subject) -> None:
    """CLIP's own loss: which of a batch's captions belongs to which of its images. Its caption's wording is drawn."""
    images, labels = to_learn(bench, subject, pair.images)
    texts = [pair.captions(template) for template in CAPTIONS]
    optimizer = optimizer_of(pair.clip, subject)
    steps = list(shuffled(len(labels), bench, subject))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, subject.training["learning_rate"], total_steps=len(steps))
    generator = np.random.default_rng(bench.seed)
    pair.clip.train()
    for done, chosen in enumerate(steps):
        text = texts[generator.integers(len(texts))]
        words = {name: tokens[labels[chosen].to(tokens.device)] for name, tokens in text.items()}
        pixel_values = images[chosen].to(device_of(pair.clip))
        optimizer.zero_grad()
        pair.clip(pixel_values=pixel_values, **words, return_loss=True).loss.backward()
        optimizer.step()
        schedule.step()
        if bench.progress is not None:
            bench.progress(done + 1, len(steps), "training")
    pair.clip.eval()


def claims(results: RecipeResults) -> list[Claim]:
    """Closeness within each tower; across them, what matches grows apart from what does not."""
    released = results.scale == "full"  # nothing is drawn then but the random weights
    trained, random = (results.each(f"across{kind}", "margin") for kind in ("", RANDOM))
    growth, null = trained[:, -1] - trained[:, 1], random[:, -1] - random[:, 1]
    return [
        *(
            fig_22(
                paper="within a tower, similarity to the last layer rises with depth; as printed, in 9 of 11 steps of "
                "each",
                measured=f"{tower} tower: share of the steps from depth 1 on that raise the cosine to the last",
                values=(np.diff(results.each(tower, "cosine")[:, 1:]) > 0).mean(1),
                about="closeness",
                above=0.75,
                certain=released,
            )
            for tower in TOWERS
        ),
        *(
            fig_22(
                paper="within a tower, shallow layers are like the last; no null is drawn, and random weights rise, "
                "too",
                measured=f"{tower} tower: mean cosine of depths 1 to L - 1 with L, minus that of random weights",
                values=results.shallow(tower, "cosine") - results.shallow(f"{tower}{RANDOM}", "cosine"),
            )
            for tower in TOWERS
        ),
        fig_23(
            paper="across modalities, image and caption come closer with depth",
            measured="cosine of images with their own captions, minus with other captions: depth L minus depth 1",
            values=growth,
            certain=released,
        ),
        fig_23(
            paper="across modalities, image and caption come closer with depth",
            measured="the same, minus that of random weights",
            values=growth - null,
        ),
        fig_23(
            paper="accuracy by depth is monotone",
            measured="the largest fall of the zero-shot accuracy from one image depth to the next",
            values=largest_fall(results.each("across", "accuracy")),
            about="minimal-depth",
            below=STEADY,
            certain=released,
        ),
    ]


PRINTED = {
    "image": (0.48, 0.47, 0.49, 0.52, 0.55, 0.58, 0.61, 0.64, 0.63, 0.67, 0.71, 1.0),
    "text": (0.64, 0.74, 0.76, 0.72, 0.68, 0.69, 0.75, 0.82, 0.85, 0.88, 0.93, 1.0),
}


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Within the towers, across them, and the paper's own."""
    across = ("across", f"across{RANDOM}")
    within = (*TOWERS, *(tower + RANDOM for tower in TOWERS))
    return (
        Panel("cosine", "Cosine to the last, within a tower", "similarity", within, start=1),
        Panel("margin", "Cosine with the own caption, less with others", "number", across, start=1),
        Panel("accuracy", "Zero-shot accuracy", "share", across, start=1),
        Panel("cosine", "Cosine to the last, as printed (CLIP-B/32, CIFAR-10)", "similarity", start=1, printed=PRINTED),
    )


RECIPE = Recipe(
    name="clip",
    title="CLIP: similarity within its towers and across them",
    figures=("Fig. 22", "Fig. 23"),
    shows="Within each tower similarity to the last layer rises with depth, and across the towers an image and its "
    "caption come closer.",
    cpu=Plan(
        {
            "clip": Subject(
                title="CLIP of 6 + 6 blocks and width 64 from scratch, Fashion-MNIST",
                model="made:clip",
                train=8_000,
                split="train",
                from_scratch=True,
                batch_size=256,
                training={
                    "num_train_epochs": 5.0,
                    "per_device_train_batch_size": 64,
                    "learning_rate": 2e-3,
                    "weight_decay": 0.05,
                },
                **FASHION,
            )
        },
        cost=1.1,
        unit="CPU minutes",
        notes=(
            "A small CLIP, trained here on one data set with captions made of its ten class names: it has the loss "
            "and the two towers of the released one, and none of what that one knows.",
        ),
    ),
    full=Plan(
        {
            "clip": Subject(
                title="CLIP-B/32 as released, CIFAR-10",
                model="openai/clip-vit-base-patch32",
                data="uoft-cs/cifar10",
                task="image-classification",
                eval_split="test",
                columns={"image": "img", "label": "label"},
                batch_size=256,
            )
        },
        cost=0.1,
        unit="GPU hours",
        notes=("Nothing is trained: seeds differ in the random weights only.",),
    ),
    measure=measure,
    claims=claims,
    panels=panels,
    notes=("The paper's summary has similarity rise; its own curve of the text tower falls between layers 3 and 5.",),
    ours=(
        "Images and captions lie in different parts of the shared space, so a bare cosine across them says little: "
        "here it is held against captions of other classes.",
        "The captions are ten, one a class: similarities of the text tower are over ten texts.",
        "At depth 0 the class token has seen nothing and is the same for all images: no similarity is defined there.",
    ),
)
