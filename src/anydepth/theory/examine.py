"""The whole theory of a model on data: one pass, and one more of a model with random weights to hold it against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from anydepth.core.provenance import data_fingerprint, describe_model, now, versions
from anydepth.core.stack import Stack
from anydepth.errors import MeasureError
from anydepth.progress import Progress
from anydepth.storage.locks import scratch_folder
from anydepth.theory.closeness import closeness
from anydepth.theory.collapse import Collapse, collapse
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS, UNCENTRED, Theory
from anydepth.theory.geometry import geometry
from anydepth.theory.observation import Observed, observe
from anydepth.theory.paths import NULLS
from anydepth.theory.updates import Updates, updates


def examine(
    model: nn.Module | Stack,
    data: Iterable[Any],
    *,
    tokens: str | None = None,
    readout: bool = True,
    labels: bool = True,
    reference: nn.Module | Stack | None = None,
    seed: int = 0,
    describe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Theory:
    """Put the paper's theory to the test on a model and data.

    Args:
        model: any transformer, or a `Stack` of it; it runs where its weights are, in eval mode.
        data: batches as `anydepth.trace` takes them; with a reference they are read twice, so an iterator won't do.
        tokens: which positions stand for a sample; None for where the model's own readout looks.
        readout: False to examine states alone.
        labels: False to leave labels alone.
        reference: a model of the same architecture with random weights, to hold the other against.
        seed: of the nulls.
        describe: what the result should say of its origin: {"model": name, "data": {"name": ...}, "notes": [...]}.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        AnydepthError: in one of its kinds, as `anydepth.trace` does.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> batches = [{"pixel_values": torch.rand(20, 1, 8, 8), "labels": torch.arange(20) % 5} for _ in range(2)]
        >>> found = examine(ViTForImageClassification(config), batches)
        >>> list(found.geometry), list(found.closeness), found.collapse["measured"].nc1.shape
        (['measured', 'not centred', 'random walk', 'shuffled'], ['final', 'true'], (4,))
    """
    stack, told = _stack(model), dict(describe or {})
    with scratch_folder() as folder:
        own, others = (folder / name for name in ("model", "reference"))
        own.mkdir()
        others.mkdir()
        seen = observe(stack, data, own, tokens=tokens, readout=readout, labels=labels, progress=progress)
        null = None
        if reference is not None:
            # where this model's readout looks, not where that of random weights would
            null = observe(
                *(_stack(reference), data, others),
                tokens=seen.tokens,
                readout=readout,
                labels=labels,
                progress=progress,
                what=RANDOM_WEIGHTS,
            )
        data_seen = {**told.get("data", {}), "fingerprint": data_fingerprint(seen.digests)}
        origin = {"model": describe_model(stack, told.get("model")), "data": data_seen}
        return _theory(seen, null, seed, origin, tuple(told.get("notes", ())))


def _stack(model: nn.Module | Stack) -> Stack:
    return model if isinstance(model, Stack) else Stack(model)


def _theory(seen: Observed, null: Observed | None, seed: int, origin: dict[str, Any], told: tuple[str, ...]) -> Theory:
    """What follows from what was seen, of the model and of one with random weights."""
    paths = {
        MEASURED: geometry(seen.states, seed=seed),
        UNCENTRED: geometry(seen.states, centred=False, seed=seed),
        **{name: geometry(seen.states, null=walk, seed=seed) for name, walk in NULLS.items()},
    }
    if null is not None:
        paths[RANDOM_WEIGHTS] = geometry(null.states, seed=seed)
    collapsed, why = _collapse(seen, null, seed)
    notes = [*told, *seen.notes, *why, *paths[MEASURED].notes]
    notes += [note for one in collapsed.values() for note in one.notes]
    return Theory(
        geometry=paths,
        closeness={
            name: closeness(seen.states, nats, seed=seed) for name, nats in sorted(seen.log_probability.items())
        },
        collapse=collapsed,
        updates=_updates(seen, seed),
        notes=tuple(dict.fromkeys(notes)),
        provenance={
            **origin,
            "samples": len(seen.digests),
            "rows": seen.states.count,
            "tokens": seen.tokens,
            "collapse": "states" if seen.features is None else "what enters the classifier",
            "seed": seed,
            "versions": versions(),
            "created": now(),
        },
    )


def _updates(seen: Observed, seed: int) -> dict[str, Updates]:
    if seen.features is None or seen.weight is None:
        return {}
    asked = {"final": seen.final, "true": seen.labels}
    return {name: updates(seen.features, of, seen.weight, seed=seed) for name, of in asked.items() if of is not None}


def _collapse(seen: Observed, null: Observed | None, seed: int) -> tuple[dict[str, Collapse], list[str]]:
    """With the labels, with labels that have nothing to do with the rows, with random weights; and what is missing."""
    if seen.labels is None:
        return {}, []
    mixed = np.random.default_rng(seed).permutation(seen.labels)
    try:
        found = {
            MEASURED: collapse(seen.features or seen.states, seen.labels, seen.weight),
            SHUFFLED_LABELS: collapse(seen.features or seen.states, mixed, seen.weight),
        }
    except MeasureError as why:
        return {}, [f"neural collapse is missing: {why}"]
    if null is not None and null.labels is not None:
        found[RANDOM_WEIGHTS] = collapse(null.features or null.states, null.labels, null.weight)
    return found, []
