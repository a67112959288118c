"""The model card: what a trained model is, on the page where people look it up."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.storage.file_kinds import kind_of
from anydepth.storage.paths import local_path
from anydepth.training.summary import TrainingSummary

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "causal-lm": "AutoModelForCausalLM",
}
_TAGS = {"causal-lm": "text-generation"}  # the hub's name, where it is another than ours


def card(found: TrainingSummary) -> str:
    """The card as Markdown, with the YAML that the hub reads in front. Names are shown as text, whatever is in them."""
    parts = [
        f"---\n{_front(found)}\n---\n",
        f"# {plain(found.folder.resolve().name)}\n",
        f"{code(short_name(found.model))} trained on {code(short_name(found.data))} with the objective "
        f"**{plain(found.objective)}**: {plain(found.purpose)}\n",
        *_by_depth(found),
        *_use(found),
        *_training(found),
    ]
    return "\n".join(parts)


def _front(found: TrainingSummary) -> str:
    from huggingface_hub import ModelCardData

    data = found.data.partition(":")[0]  # an id may be followed by a configuration
    front = ModelCardData(
        library_name="transformers",
        base_model=found.model if is_hub_id(found.model) else None,
        datasets=[data] if is_hub_id(data) else None,
        tags=["anydepth", found.objective],
        metrics=[found.measure],
        pipeline_tag=_TAGS.get(found.task, found.task),
    )
    return front.to_yaml().strip()


def front(model: str, licence: Mapping[str, str]) -> str:
    """What the hub reads in front of the card of a model that was made of another one.

    Args:
        model: what it was made of.
        licence: of that, from `licence_in`.
    """
    from huggingface_hub import ModelCardData

    base = model if is_hub_id(model) else None
    data = ModelCardData(library_name="transformers", base_model=base, tags=["anydepth"], **licence)  # type: ignore[arg-type]
    return f"---\n{data.to_yaml().strip()}\n---\n\n"


def licence_in(card: Path) -> dict[str, str]:
    """The licence that the card of a model states; empty where there is no card, or none that the hub could read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]  # huggingface_hub brings it

    try:
        stated = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: stated[name] for name in names if isinstance(stated.get(name), str)}


def _by_depth(found: TrainingSummary) -> list[str]:
    lines = [f"| depth | {found.measure} |" + (" 95 % interval |" if found.bounds else "")]
    lines.append("|---:|---:|" + (":---|" if found.bounds else ""))
    for depth in range(1, len(found.values) + 1):
        low, high = found.bounds[depth - 1] if found.bounds else (0.0, 0.0)
        lines.append(f"| {depth} | {found.value(depth)} |" + (f" {low:.3f} – {high:.3f} |" if found.bounds else ""))
    each = "by the classifier of that depth" if found.separate_heads else "by the one classifier of the model"
    return [
        f"## {found.measure.capitalize()} by depth\n",
        f"What the state after each block says when it is read out {each}, on {plain(found.evaluated)}. "
        f"Depth {len(found.values)} is the whole model.\n",
        "\n".join(lines) + "\n",
    ]


def _use(found: TrainingSummary) -> list[str]:
    name = _CLASSES[found.task]
    heads = (
        "The classifiers of the depths below the last are in `heads.safetensors`; transformers leaves them alone, and "
        "`anydepth trace` reads each depth out by its own.\n"
    )
    return [
        "## Use\n",
        "It is a plain model: transformers loads it, and nothing else is needed.\n",
        f'```python\nfrom transformers import {name}\n\nmodel = {name}.from_pretrained("FOLDER")\n```\n',
        "To see what every depth of it knows about some data:\n",
        "```console\n$ anydepth trace FOLDER --data DATA\n```\n",
        *([heads] if found.separate_heads else []),
    ]


def _training(found: TrainingSummary) -> list[str]:
    rows = [
        f"| {plain(name.replace('_', ' '))} | {code(_value(value), table=True)} |"
        for name, value in found.settings.items()
    ]
    parts = ["## Training\n", "\n".join(["| setting | value |", "|---|---|", *rows]) + "\n"]
    if found.classes:
        shown = ", ".join(code(name) for name in found.classes[:20])
        more = f" and {len(found.classes) - 20} more" if len(found.classes) > 20 else ""
        parts.append(f"Classes: {shown}{more}.\n")
    parts += [f"- {plain(note)}" for note in found.notes]
    parts.append(f"\nMade with {', '.join(f'{name} {version}' for name, version in found.versions.items())}.\n")
    return parts


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository on the hub, and is nothing on this disk.

    Example:
        >>> is_hub_id("google/vit-base-patch16-224"), is_hub_id("./vit"), is_hub_id("a: b"), is_hub_id("reviews.csv")
        (True, False, False, False)
    """
    if local_path(name).exists() or name == "digits":
        return False
    owner = r"[A-Za-z0-9][\w.-]*"
    return kind_of(Path(name)) is None and re.fullmatch(rf"({owner}/)?{owner}", name) is not None


def short_name(name: str) -> str:
    """A name for others: a hub id as it is, of a path the last part only, since nobody else has this disk.

    Example:
        >>> short_name("google/vit-base-patch16-224"), short_name("./data/reviews.csv")
        ('google/vit-base-patch16-224', 'reviews.csv')
    """
    return name if is_hub_id(name.partition(":")[0]) else local_path(name).resolve().name or name


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain(text: str) -> str:
    r"""Text that Markdown and HTML leave alone.

    Example:
        >>> print(plain("a|b *c* <img src=x> [d](e)"))
        a\|b \*c\* &lt;img src=x&gt; \[d\](e)
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def code(text: str, *, table: bool = False) -> str:
    """Text as code, whatever is in it; in a table a bar would end the cell.

    Example:
        >>> code("a`b"), code("`")
        ('``a`b``', '`` ` ``')
    """
    text = " ".join(text.split())
    text = text.replace("|", "\\|") if table else text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
