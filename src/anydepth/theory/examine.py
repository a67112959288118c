"""All tests of the theory for a model on data, and for a reference model with random weights."""

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
    """Test the paper's theory on a model and data.

    Args:
        model: any transformer, or a `Stack` of it; it runs where its weights are, in eval mode.
        data: batches as `anydepth.trace` takes them; with a reference they are read twice, so an iterator won't do.
        tokens: which positions represent a sample; None for those that the model's own readout uses.
        readout: False to examine states only.
        labels: False to ignore labels.
        reference: a model of the same architecture with random weights, to compare with.
        seed: of the nulls.
        describe: the origin for the provenance: {"model": name, "data": {"name": ...}, "notes": [...]}.
        progress: called with batches done, batches in all, and what is being done.

    Raises:
        AnydepthError: in one of its kinds, as `anydepth.trace` does.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> batches = [{"pixel_values": torch.rand(20, 1, 8, 8), "labels": torch.arange(20) % 5} for _ in range(2)]
        >>> theory = examine(ViTForImageClassification(config), batches)
        >>> list(theory.geometry), list(theory.closeness), theory.collapse["measured"].nc1.shape
        (['measured', 'not centred', 'random walk', 'shuffled'], ['final', 'true'], (4,))
    """
    stack, origin = _stack(model), dict(describe or {})
    how: dict[str, Any] = {"readout": readout, "labels": labels, "progress": progress}
    with scratch_folder() as folder:
        own, others = (folder / name for name in ("model", "reference"))
        own.mkdir()
        others.mkdir()
        observed = observe(stack, data, own, tokens=tokens, **how)
        null = None
        if reference is not None:
            # at the positions of this model's readout, not of that of random weights
            null = observe(_stack(reference), data, others, tokens=observed.tokens, what=RANDOM_WEIGHTS, **how)
        provenance = {
            "model": describe_model(stack, origin.get("model")),
            "data": {**origin.get("data", {}), "fingerprint": data_fingerprint(observed.digests)},
        }
        return _theory(observed, null, seed, provenance, tuple(origin.get("notes", ())))


def _stack(model: nn.Module | Stack) -> Stack:
    return model if isinstance(model, Stack) else Stack(model)


def _theory(
    observed: Observed, null: Observed | None, seed: int, provenance: dict[str, Any], notes: tuple[str, ...]
) -> Theory:
    """All results from the observations of the model, and of one with random weights."""
    paths = {
        MEASURED: geometry(observed.states, seed=seed),
        UNCENTRED: geometry(observed.states, centred=False, seed=seed),
        **{name: geometry(observed.states, null=walk, seed=seed) for name, walk in NULLS.items()},
    }
    if null is not None:
        paths[RANDOM_WEIGHTS] = geometry(null.states, seed=seed)
    collapsed, missing = _collapse(observed, null, seed)
    of_collapse = (note for part in collapsed.values() for note in part.notes)
    notes = (*notes, *observed.notes, *missing, *paths[MEASURED].notes, *of_collapse)
    return Theory(
        geometry=paths,
        closeness={
            name: closeness(observed.states, nats, seed=seed) for name, nats in sorted(observed.log_probability.items())
        },
        collapse=collapsed,
        updates=_updates(observed, seed),
        notes=tuple(dict.fromkeys(notes)),
        provenance={
            **provenance,
            "samples": len(observed.digests),
            "rows": observed.states.count,
            "tokens": observed.tokens,
            "collapse": "states" if observed.features is None else "what enters the classifier",
            "seed": seed,
            "versions": versions(),
            "created": now(),
        },
    )


def _updates(observed: Observed, seed: int) -> dict[str, Updates]:
    if observed.features is None or observed.weight is None:
        return {}
    classes = {"final": observed.final, "true": observed.labels}
    return {
        name: updates(observed.features, of_rows, observed.weight, seed=seed)
        for name, of_rows in classes.items()
        if of_rows is not None
    }


def _collapse(observed: Observed, null: Observed | None, seed: int) -> tuple[dict[str, Collapse], list[str]]:
    """Collapse with the labels, with shuffled labels, and with random weights; and notes on what is missing."""
    if observed.labels is None:
        return {}, []
    orders = {MEASURED: observed.labels, SHUFFLED_LABELS: np.random.default_rng(seed).permutation(observed.labels)}
    states = observed.features or observed.states
    try:
        results = {name: collapse(states, labels, observed.weight) for name, labels in orders.items()}
    except MeasureError as error:
        return {}, [f"neural collapse is missing: {error}"]
    if null is not None and null.labels is not None:
        results[RANDOM_WEIGHTS] = collapse(null.features or null.states, null.labels, null.weight)
    return results, []
