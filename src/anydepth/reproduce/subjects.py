"""Subjects of experiments: a model, its data, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Scale = Literal["cpu", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)
TRIAL_ROWS = 48
"""Rows of each split that a trial of a few steps reads at most."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, its data, and how it is trained.

    Attributes:
        title: what a reader is told: "ViT of 12 blocks from scratch, Fashion-MNIST".
        model: a hub id; `asset:NAME`, of `anydepth.assets`; or `made:NAME`, of `anydepth.reproduce.small_models`. Empty
            where the recipe builds it by itself.
        data: a hub id, with its configuration as `ID:CONFIGURATION`; `asset:NAME`; `made:NAME`; or `digits`.
        task: as in `anydepth.models.loaded.Task`.
        train: rows to train on, drawn by the seed; None for all.
        held_out: rows to evaluate and trace on, the same for every seed; None for all.
        split: to train on; None for what there is.
        eval_split: to evaluate and trace on; None for what there is.
        columns: which column is what, by "text", "label" and "image", where it cannot be guessed.
        from_scratch: random weights instead of the model's.
        augment: train on random views of the images; see `anydepth.data.augment`.
        length: most tokens of a text; of a language model, the length of its windows.
        positions: of a language model, positions of each window that go into similarities.
        batch_size: samples of a forward pass, in tracing.
        training: fields of `transformers.TrainingArguments`.
        printed: what the paper prints in the place of some of them and is not plausible, for `--as-printed`.
    """

    title: str
    model: str
    data: str
    task: str
    train: int | None = None
    held_out: int | None = None
    split: str | None = None
    eval_split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    from_scratch: bool = False
    augment: bool = False
    length: int | None = None
    positions: int | None = None
    batch_size: int = 64
    training: Mapping[str, Any] = field(default_factory=dict)
    printed: Mapping[str, Any] = field(default_factory=dict)

    def sources(self) -> tuple[str, ...]:
        """Names of the model and the data, as `use` takes them.

        Example:
            >>> model = {"model": "google-bert/bert-base-uncased", "task": "text-classification"}
            >>> Subject(title="BERT", data="nyu-mll/glue:rte", **model).sources()
            ('google-bert/bert-base-uncased', 'nyu-mll/glue:rte')
        """
        return tuple(name for name in (self.model, self.data) if name)

    def as_plain(self) -> dict[str, Any]:
        """All of it, as results keep it; what is not set is left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, False)}

    def decisive(self) -> dict[str, Any]:
        """All that decides what comes out, for keys of parts: another title is the same subject."""
        return {name: value for name, value in self.as_plain().items() if name != "title"}
