"""Fig. 12: a network of nine layers with and without skip connections, on the answer of its last layer alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.models.image_transform import plain
from anydepth.models.loaded import LoadedModel
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import MEASURES, Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.images import class_names, image_model, optimizer_of, shuffled, to_learn
from anydepth.reproduce.recipes.vision import FASHION
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.subjects import Subject
from anydepth.tracing.run import trace

LAYERS, WIDTH, SIDE = 9, 128, 28
VARIANTS = {"with skip": True, "without": False}
claim = partial(Claim, where="Fig. 12")


class Layer(nn.Module):
    """One layer, which adds to its input or takes its place."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.norm, self.map, self.skip = nn.LayerNorm(width), nn.Linear(width, width), skip

    def forward(self, h: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        new = functional.relu(self.map(self.norm(h)))
        return h + new if self.skip else new


class Network(nn.Module):
    """Pixels in, logits out; nothing after the last layer but the classifier."""

    def __init__(self, pixels: int, width: int, classes: int, *, skip: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(pixels, width)
        self.layers = nn.ModuleList(Layer(width, skip=skip) for _ in range(LAYERS))
        self.classifier = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, C)."""
        h: Tensor = self.embed(pixel_values.flatten(1))
        for layer in self.layers:
            h = layer(h)
        logits: Tensor = self.classifier(h)
        return logits


def measure(bench: Experiment) -> Values:
    """Both networks: the same weights at the start, the same images in the same order."""
    (subject,) = bench.subjects.values()
    return {
        variant: bench.remembered(
            f"mlp-{variant.replace(' ', '-')}",
            {"subject": subject.decisive(), "skip": skip},
            partial(_measured, bench, subject, skip=skip),
        )
        for variant, skip in VARIANTS.items()
    }


def _measured(bench: Experiment, subject: Subject, folder: Path, *, skip: bool) -> dict[str, Any]:
    bench.announce(f"{subject.title}, {'with skip' if skip else 'without'}")
    classes = class_names(bench, subject)
    torch.manual_seed(bench.seed)
    network = Network(SIDE * SIDE, WIDTH, len(classes), skip=skip)
    network.to(bench.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = image_model(network, plain((SIDE, SIDE), channels=1), subject, classes)
    _train(network, bench, subject, model)
    return by_depth(
        trace(network, bench.batches(subject, model), measures=MEASURES, out=folder / "trace", progress=bench.progress)
    )


def _train(network: Network, bench: Experiment, subject: Subject, model: LoadedModel) -> None:
    """AdamW on the cross-entropy of the last layer's answer."""
    device = network.embed.weight.device
    pixels, labels = (tensor.to(device) for tensor in to_learn(bench, subject, model))
    optimizer = optimizer_of(network, subject)
    for chosen in shuffled(len(labels), bench, subject):
        optimizer.zero_grad()
        functional.cross_entropy(network(pixels[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def claims(results: RecipeResults) -> list[Claim]:
    """Together with skips; apart without."""
    inner = slice(1, -1)
    cosine, cka, accuracy = (
        {variant: results.each(variant, quantity) for variant in VARIANTS} for quantity in ("cosine", "cka", "accuracy")
    )
    together = [np.corrcoef(*curves)[0, 1] for curves in zip(cosine["with skip"], accuracy["with skip"], strict=True)]
    apart = {variant: np.abs(cosine[variant] - cka[variant]).max(1) for variant in VARIANTS}
    return [
        claim(
            paper="with skip connections, a plain cosine and CKA rise together",
            measured="with skip: rank correlation of cosine and CKA over pairs of depths",
            values=results.each("with skip", "cosine_spearman"),
            about="cosine-cka",
            above=0.9,
            correlation=True,
        ),
        claim(
            paper="with skip connections, accuracy rises with similarity",
            measured="with skip: correlation over depths of the accuracy with the cosine to the last depth",
            values=together,
            above=0.9,
            correlation=True,
        ),
        claim(
            paper="without, CKA with the last layer is .64 to .98",
            measured="without: the lowest CKA of depths 1 to L - 1 with L",
            values=cka["without"][:, inner].min(1),
            above=0.5,
        ),
        claim(
            paper="without, accuracy stays at .12 to .25 until the last layer",
            measured="without: highest accuracy of depths 1 to L - 1",
            values=accuracy["without"][:, inner].max(1),
            below=0.25,
        ),
        claim(
            paper="do cosine and CKA part without skip connections?",
            measured="the largest gap between cosine and CKA to the last depth, without less with skip",
            values=apart["without"] - apart["with skip"],
        ),
    ]


SMALL = Subject(
    title="MLP of 9 layers, Fashion-MNIST",
    model="",
    train=6_000,
    split="train",
    from_scratch=True,
    batch_size=256,
    training={
        "num_train_epochs": 10.0,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
    },
    **FASHION,
)
FULL = replace(
    SMALL,
    title="MLP of 9 layers, MNIST",
    data="ylecun/mnist",
    train=None,
    held_out=None,
    columns={"image": "image", "label": "label"},
)


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Similarity by both measures, and accuracy."""
    return (
        Panel("cosine", "Cosine to the last", "similarity", tuple(VARIANTS)),
        Panel("cka", "CKA to the last", "similarity", tuple(VARIANTS)),
        Panel("accuracy", "Accuracy", "share", tuple(VARIANTS)),
    )


RECIPE = Recipe(
    name="skip",
    title="Nine layers with and without skip connections",
    figures=("Fig. 12",),
    shows="With skip connections, cosine, CKA and accuracy rise together over the layers. Without, CKA is high "
    "everywhere, while the classifier can read the last layer only.",
    cpu=Plan(
        {"mlp": SMALL},
        cost=0.2,
        unit="CPU minutes",
        notes=("Fashion-MNIST in the place of MNIST, and 6,000 of its images to train on.",),
    ),
    full=Plan({"mlp": FULL}, cost=0.1, unit="GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
    notes=("Width, training and norms of the paper's network are not stated: here 128, AdamW, a LayerNorm a layer.",),
)
