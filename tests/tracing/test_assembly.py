"""What several processes left, read as one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny_models

from anydepth.core.stack import Stack
from anydepth.passes.workspace import Workspace
from anydepth.results.trace_data import TRACE_OUTPUT
from anydepth.storage.output_folder import output
from anydepth.tracing.assembly import CollectedRows, build_trace
from anydepth.tracing.collect import TracePass
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

TEXTS, LABELS = naive.sentences(13), naive.classes(13)


def by_processes(stack: Stack, batches: Sequence[Any], folder: Path, ranks: int) -> Trace:
    """A trace of batches dealt out among processes, as `anydepth.trace` makes it, in this one."""
    what = TracePass(stack=stack, tokens=None, readout="tail", labels=True, keep_states=True)
    with output(folder, TRACE_OUTPUT) as place, ExitStack() as opened:
        workspaces = [
            opened.enter_context(closing(Workspace(place.partial / f"rank-{rank}", "key"))) for rank in range(ranks)
        ]
        for rank, workspace in enumerate(workspaces):
            what.run(batches, workspace, rank=rank, ranks=ranks)
        origin: dict[str, Any] = {"model": {}, "data": {}, "notes": ()}
        found = build_trace(
            CollectedRows(workspaces),
            stack,
            measures=("cosine", "cka"),
            origin=origin,
            keep_states=True,
            sums=True,
            seed=0,
        )
        found.save(folder, report=False)
    return Trace.load(folder)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_kept_states_belong_to_their_samples(name: str, ranks: int, tmp_path: Path) -> None:
    """With several processes the batches lie in another order than in the data."""
    model, _ = tiny_models.build(name)
    batches = naive.padded(TEXTS, LABELS if name == "bert" else None, 3)
    expected = trace(model, batches, measures=["cosine", "cka"], out=tmp_path / "one", keep_states=True)
    found = by_processes(Stack(model), batches, tmp_path / "several", ranks)
    assert found.ids == expected.ids
    assert found.states is not None
    assert expected.states is not None
    assert (found.states.groups is None) == (expected.states.groups is None) == (name == "bert")
    np.testing.assert_array_equal(found.states.groups, expected.states.groups)
    every = np.arange(expected.states.count)
    np.testing.assert_array_equal(found.states.rows(every), expected.states.rows(every))
    for measure, value in expected.similarity.items():
        np.testing.assert_allclose(found.similarity[measure], value, atol=1e-6)
        np.testing.assert_allclose(
            found.similarity_intervals[measure], expected.similarity_intervals[measure], atol=1e-5
        )
