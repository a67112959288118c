"""What is shown together: one figure and its tables each."""

from __future__ import annotations

from dataclasses import dataclass

from commands import Alike, chance, likeness, with_input
from models import MODELS, full

Pair = tuple[str, str]


@dataclass(frozen=True)
class Part:
    """What one figure and its tables show.

    Attributes:
        name: of the figure's files.
        title: of the figure.
        models: whose curves are drawn, in the order of the colours; the first is what the others are levels of.
        maps: pairs whose depths are shown against each other.
        tuned: the model before training, and those that were trained from it.
        differences: pairs to look for differences in; the first is drawn.
        levels: what the first model is held against, from the least alike to the most.
        shuffled: models that stand for chance when their samples are in another order.
    """

    name: str
    title: str
    models: tuple[str, ...]
    maps: tuple[Pair, ...]
    tuned: tuple[str, ...]
    differences: tuple[Pair, ...]
    levels: tuple[str, ...]
    shuffled: tuple[str, ...]


def _tuning(name: str, title: str, others: tuple[str, ...] = ()) -> Part:
    frozen, tuned, aligned, drawn = (f"{name}-{kind}" for kind in ("frozen", "plain", "aligned", "random"))
    return Part(
        f"compare-{name}",
        title,
        (tuned, aligned, frozen, drawn),
        tuple((frozen, other) for other in (tuned, aligned, drawn)),
        (frozen, tuned, aligned, drawn),
        ((tuned, aligned), (frozen, tuned), (frozen, aligned)),
        (drawn, frozen, aligned, *others),
        (frozen,),
    )


PARTS = (
    _tuning("minilm", "MiniLM-L6 on movie reviews, before and after fine-tuning", ("minilm-plain-1",)),
    _tuning("dinov2s", "DINOv2-S on Fashion-MNIST, before and after fine-tuning"),
    Part(
        "compare-vit",
        "DINOv2-S and a small ViT trained from scratch, on Fashion-MNIST",
        ("vit-plain", "vit-aligned", "dinov2s-frozen", "dinov2s-plain", "vit-random"),
        (("dinov2s-frozen", "vit-plain"), ("dinov2s-plain", "vit-plain"), ("dinov2s-frozen", "vit-random")),
        (),
        (("vit-plain", "vit-aligned"), ("dinov2s-frozen", "vit-plain"), ("dinov2s-plain", "vit-plain")),
        ("dinov2s-random", "vit-random", "dinov2s-frozen", "dinov2s-plain", "vit-aligned", "vit-plain-1"),
        ("vit-plain-1", "dinov2s-plain"),
    ),
)


def label(name: str, part: Part) -> str:
    """What a model is called where it stands among these."""
    families = {MODELS[one].family for one in (*part.models, *part.levels)}
    return full(name) if len(families) > 1 else MODELS[name].kind


INPUT = {"mr": "length alone", "fashion-mnist": "pixels alone"}


def levels(part: Part) -> dict[str, dict[str, Alike]]:
    """By what a model is held against, then by measure: how alike the depths are."""
    one = part.models[0]
    found = {
        "chance" if len(part.shuffled) == 1 else f"{MODELS[other].family}, shuffled": chance(one, other)
        for other in part.shuffled
    }
    found[INPUT[MODELS[one].data]] = with_input(one)
    return found | {label(other, part): likeness(one, other) for other in part.levels}
