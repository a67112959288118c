"""The model card of a trained model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.models.tasks import LOADERS
from anydepth.storage.file_kinds import kind_of
from anydepth.storage.paths import local_path
from anydepth.training.summary import TrainingSummary

_TAGS = {"causal-lm": "text-generation"}  # the hub's name, where it is another than ours


def card(summary: TrainingSummary) -> str:
    """The card as Markdown, after the YAML metadata for the hub. Special characters in names are escaped."""
    parts = [
        f"# {plain(summary.folder.resolve().name)}\n",
        f"{code(short_name(summary.model))} trained on {code(short_name(summary.data))} with the objective "
        f"**{plain(summary.objective)}**: {plain(summary.purpose)}\n",
        *_by_depth(summary),
        *_use(summary),
        *_training(summary),
    ]
    return _front(summary) + "\n".join(parts)


def _front(summary: TrainingSummary) -> str:
    data = summary.data.partition(":")[0]  # an id may be followed by a configuration
    return _yaml(
        summary.model,
        datasets=[data] if is_hub_id(data) else None,
        tags=["anydepth", summary.objective],
        metrics=[summary.measure],
        pipeline_tag=_TAGS.get(summary.task, summary.task),
    )


def front(model: str, licence: Mapping[str, str]) -> str:
    """YAML metadata for the card of a model that was made from another one, whose licence is that of `licence_in`."""
    return _yaml(model, tags=["anydepth"], **licence)


def _yaml(model: str, **entries: Any) -> str:
    from huggingface_hub import ModelCardData

    base = model if is_hub_id(model) else None
    data = ModelCardData(library_name="transformers", base_model=base, **entries)
    return f"---\n{data.to_yaml().strip()}\n---\n\n"


def licence_in(card: Path) -> dict[str, str]:
    """The licence in the card of a model; empty if there is no card that the hub could read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]  # huggingface_hub brings it

    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: metadata[name] for name in names if isinstance(metadata.get(name), str)}


def _by_depth(summary: TrainingSummary) -> list[str]:
    lines = [f"| depth | {summary.measure} |" + (" 95 % interval |" if summary.bounds else "")]
    lines.append("|---:|---:|" + (":---|" if summary.bounds else ""))
    for depth in range(1, len(summary.values) + 1):
        bounds = summary.bounds[depth - 1] if summary.bounds else None
        interval = " {:.3f} – {:.3f} |".format(*bounds) if bounds else " – |" if summary.bounds else ""
        lines.append(f"| {depth} | {summary.value(depth)} |{interval}")
    each = "by the classifier of that depth" if summary.separate_heads else "by the one classifier of the model"
    return [
        f"## {summary.measure.capitalize()} by depth\n",
        f"The hidden state after each block, read out {each}, on {plain(summary.evaluated)}. "
        f"Depth {len(summary.values)} is the whole model.\n",
        "\n".join(lines) + "\n",
    ]


def _use(summary: TrainingSummary) -> list[str]:
    name = LOADERS[summary.task]
    heads = (
        "The classifiers of the depths below the last are in `heads.safetensors`; transformers leaves them alone, and "
        "`anydepth trace` reads each depth out by its own.\n"
    )
    return [
        "## Use\n",
        "It is a plain model: transformers loads it, and nothing else is needed.\n",
        f'```python\nfrom transformers import {name}\n\nmodel = {name}.from_pretrained("FOLDER")\n```\n',
        "To trace every depth on some data:\n",
        "```console\n$ anydepth trace FOLDER --data DATA\n```\n",
        *([heads] if summary.separate_heads else []),
    ]


def _training(summary: TrainingSummary) -> list[str]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in summary.settings.items()}
    rows = [f"| {plain(name.replace('_', ' '))} | {code(text, table=True)} |" for name, text in texts.items()]
    parts = ["## Training\n", "\n".join(["| setting | value |", "|---|---|", *rows]) + "\n"]
    if summary.classes:
        names = ", ".join(code(name) for name in summary.classes[:20])
        more = f" and {len(summary.classes) - 20} more" if len(summary.classes) > 20 else ""
        parts.append(f"Classes: {names}{more}.\n")
    parts += [f"- {plain(note)}" for note in summary.notes]
    parts.append(f"\nMade with {', '.join(f'{name} {version}' for name, version in summary.versions.items())}.\n")
    return parts


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository on the hub, and does not exist on this disk.

    Example:
        >>> is_hub_id("google/vit-base-patch16-224"), is_hub_id("./vit"), is_hub_id("a: b"), is_hub_id("reviews.csv")
        (True, False, False, False)
    """
    if local_path(name).exists() or name == "digits":
        return False
    owner = r"[A-Za-z0-9][\w.-]*"
    return kind_of(Path(name)) is None and re.fullmatch(rf"({owner}/)?{owner}", name) is not None


def short_name(name: str) -> str:
    """A name to publish: a hub id as it is, of a path only the last part.

    Example:
        >>> short_name("google/vit-base-patch16-224"), short_name("./data/reviews.csv")
        ('google/vit-base-patch16-224', 'reviews.csv')
    """
    return name if is_hub_id(name.partition(":")[0]) else local_path(name).resolve().name or name


def plain(text: str) -> str:
    r"""Text escaped for Markdown and HTML.

    Example:
        >>> print(plain("a|b *c* <img src=x> [d](e)"))
        a\|b \*c\* &lt;img src=x&gt; \[d\](e)
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def code(text: str, *, table: bool = False) -> str:
    """Text as Markdown code, escaped; in a table also the bar, which would end the cell.

    Example:
        >>> code("a`b"), code("`")
        ('``a`b``', '`` ` ``')
    """
    text = " ".join(text.split())
    text = text.replace("|", "\\|") if table else text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
