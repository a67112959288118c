"""Tracing while training: ordinary traces, and a training that did not notice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_worker import BLOCKS, Do, data, quick_collections, same, trained

from anydepth.errors import TrainingError
from anydepth.tracing.trace import Trace
from anydepth.training.trace_callback import TraceCallback

pytestmark = pytest.mark.usefixtures("undrawn", "charts_unchecked")

DEPTHS = range(1, BLOCKS + 1)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_collections():
        yield


def batches(kind: str) -> torch.utils.data.DataLoader[Any]:
    """Shuffled, so that reading them draws."""
    return torch.utils.data.DataLoader(data(kind, 8, seed=2), batch_size=4, shuffle=True)  # type: ignore[arg-type]


@pytest.mark.drawn
@pytest.mark.parametrize(("kind", "objective", "changes"), [("vit", "heads", {}), ("gpt2", "aligned", {"bf16": True})])
def test_tracing_leaves_the_training_alone(kind: str, objective: str, changes: Any, tmp_path: Path) -> None:
    plain = trained(kind, tmp_path / "plain", objective=objective, **changes)
    modes: list[bool] = []
    watch = Do(3, lambda of: modes.extend(module.training for module in of.modules()))
    callback = TraceCallback(batches(kind), tmp_path / "traces", every=2)
    ours = trained(kind, tmp_path / "ours", objective=objective, callbacks=[callback, watch], **changes)
    assert same(ours, plain)
    assert all(modes)
    assert modes
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == [
        "report.html",
        "step-000002",
        "step-000004",
    ]
    assert "step 2" in (tmp_path / "traces" / "report.html").read_text()
    found = Trace.load(tmp_path / "traces" / "step-000004")
    assert found.accuracy.shape == (BLOCKS + 1,)
    if kind == "vit":
        metrics = ours.evaluate(data(kind, 8, seed=2))
        expected = [metrics[f"eval_accuracy_depth_{depth}"] for depth in DEPTHS]
        assert found.accuracy[1:].tolist() == pytest.approx(expected)


def test_tracing_follows_the_evaluations(tmp_path: Path) -> None:
    callback = TraceCallback(batches("vit"), tmp_path / "traces", measures=["cka"])
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "max_steps": 1}
    ours = trained("vit", tmp_path, callbacks=[callback], **settings)
    assert steps(tmp_path) == [0, 1]
    ours.evaluate({"a": data("vit", 4), "b": data("vit", 4)})
    assert steps(tmp_path) == [0, 1]


@pytest.mark.drawn
def test_a_report_shows_as_many_steps_as_can_be_told_apart(tmp_path: Path) -> None:
    callback = TraceCallback(batches("vit"), tmp_path / "traces", every=1)
    trained("vit", tmp_path, callbacks=[callback], max_steps=1)
    for step in range(2, 12):
        shutil.copytree(tmp_path / "traces" / "step-000001", tmp_path / "traces" / f"step-{step:06d}")
    callback.on_train_end(None, None, None)
    report = (tmp_path / "traces" / "report.html").read_text()
    assert [step for step in range(12) if f'"step {step}"' in report] == [1, 2, 4, 5, 7, 8, 10, 11]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in (folder / "traces").glob("*/trace.json"))


def test_an_interval_is_at_least_one_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="every is -1, expected a number of steps from 1 on"):
        TraceCallback([], tmp_path, every=-1)
