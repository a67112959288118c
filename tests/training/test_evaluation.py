"""What an evaluation reports and a training logs, against one sample at a time and one step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from train_worker import (
    BLOCKS,
    CLASSES,
    DEPTHS,
    KINDS,
    data,
    logged,
    model,
    quick_collections,
    trained,
    trainer,
)
from transformers import TrainerCallback

from anydepth.core.stack import Stack
from anydepth.training.objectives import AlignedLoss


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_collections():
        yield


# --- evaluation -------------------------------------------------------------------------------------------------------


def by_hand(of: nn.Module, samples: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Accuracy and mean nats of every depth, one sample at a time."""
    stack, found = Stack(of.eval()), {}
    for depth in DEPTHS:
        right, nats = [], []
        for sample in samples:
            batch = transformers.default_data_collator([sample])
            labels = batch.pop("labels")
            with torch.no_grad():
                logits = stack.readout(stack.states(batch)[depth], batch)
            if logits.ndim == 3:
                logits, labels = logits[0, :-1], labels[0, 1:]
                logits, labels = logits[labels != -100], labels[labels != -100]
            right += (logits.argmax(-1) == labels).tolist()
            nats += nn.functional.cross_entropy(logits.double(), labels, reduction="none").tolist()
        found[depth] = (float(np.mean(right)), float(np.mean(nats)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_says_what_every_depth_is_worth(kind: str, tmp_path: Path) -> None:
    ours = trained(kind, tmp_path, objective="aligned")
    found, expected = ours.evaluate(), by_hand(ours.model, data(kind, 7, seed=1))
    loss = sum(AlignedLoss().expected(BLOCKS)[depth] * expected[depth][1] for depth in DEPTHS)
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx(expected[BLOCKS][0])
    name, values = "accuracy", {depth: right for depth, (right, _) in expected.items()}
    if kind == "gpt2":
        name, values = "perplexity", {depth: np.exp(nats) for depth, (_, nats) in expected.items()}
        assert found["eval_perplexity"] == pytest.approx(values[BLOCKS], rel=1e-5)
    assert {depth: found[f"eval_{name}_depth_{depth}"] for depth in DEPTHS} == pytest.approx(values, rel=1e-5)


def test_the_loss_of_an_evaluation_is_the_objectives(tmp_path: Path) -> None:
    expected = by_hand(model("vit"), data("vit", 7, seed=1))
    for objective in ("standard", "cosine"):
        found = trainer("vit", tmp_path, objective=objective).evaluate()
        assert found["eval_loss"] == pytest.approx(expected[BLOCKS][1], rel=1e-5)
    found = trainer("vit", tmp_path, objective=AlignedLoss([0.75, 0.25], exits=[1, 2])).evaluate()
    assert found["eval_loss"] == pytest.approx(0.75 * expected[1][1] + 0.25 * expected[2][1], rel=1e-5)


def test_the_users_own_metrics_get_the_final_logits(tmp_path: Path) -> None:
    given: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        given.append(prediction)
        return {"accuracy": 7.0, "mine": 1.0}

    ours = trainer("vit", tmp_path, compute_metrics=metrics)
    found = ours.evaluate()
    batch = transformers.default_data_collator(data("vit", 7, seed=1))
    with torch.no_grad():
        logits = ours.model.eval()(batch["pixel_values"]).logits.numpy()
    assert np.allclose(given[0].predictions, logits, atol=1e-6)
    assert given[0].label_ids.tolist() == batch["labels"].tolist()
    assert (found["eval_accuracy"], found["eval_mine"]) == (7.0, 1.0)
    assert found["eval_accuracy_depth_4"] < 1.1


def test_predictions_come_with_and_without_labels(tmp_path: Path) -> None:
    ours, samples = trainer("vit", tmp_path), data("vit", 7, seed=1)
    found = ours.predict(samples)
    assert found.predictions.shape == (7, CLASSES)
    assert {"test_loss", "test_accuracy_depth_1"} <= set(found.metrics)
    found = ours.predict([{"pixel_values": sample["pixel_values"]} for sample in samples])
    assert found.predictions.shape == (7, CLASSES)
    assert found.label_ids is None
    assert not {"test_loss", "test_accuracy"} & set(found.metrics)
    lean = trainer("vit", tmp_path, prediction_loss_only=True).predict(samples)
    assert lean.predictions is None
    assert "test_accuracy_depth_1" in lean.metrics


def test_several_evaluation_sets_are_told_apart(tmp_path: Path) -> None:
    ours = trainer("vit", tmp_path)
    found = ours.evaluate({"a": data("vit", 3), "b": data("vit", 5, seed=2)})
    for name, samples in (("a", data("vit", 3)), ("b", data("vit", 5, seed=2))):
        expected = by_hand(ours.model, samples)
        assert [found[f"eval_{name}_accuracy_depth_{depth}"] for depth in DEPTHS] == [
            pytest.approx(expected[depth][0]) for depth in DEPTHS
        ]


def test_an_evaluation_keeps_no_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer("vit", tmp_path)
    shapes: list[tuple[int, ...]] = []
    gather = ours.accelerator.gather_for_metrics
    monkeypatch.setattr(
        ours.accelerator, "gather_for_metrics", lambda of: (shapes.append(tuple(of.shape)), gather(of))[1]
    )
    ours.evaluate()
    assert shapes == [(4, BLOCKS, 3), (3, BLOCKS, 3)]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_losses_by_depth_are_logged_where_a_step_looked(tmp_path: Path) -> None:
    reported: list[dict[str, float]] = []

    class Report(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            reported.append(dict(logs))

    ours = trained("vit", tmp_path, objective="alternating", callbacks=[Report()])
    depths = [sorted(name for name in line if name.startswith("loss_depth")) for line in reported]
    every = [f"loss_depth_{depth}" for depth in DEPTHS]
    assert depths[:4] == [every[-1:], every, every[-1:], every]
    assert [line["loss"] for line in reported[:4:2]] == [pytest.approx(line[every[-1]]) for line in reported[:4:2]]
    weighted = AlignedLoss().expected(BLOCKS)
    for line in reported[1:4:2]:
        assert line["loss"] == pytest.approx(sum(weighted[depth] * line[f"loss_depth_{depth}"] for depth in DEPTHS))
    assert ours.state.log_history[0]["loss_depth_4"] == reported[0]["loss_depth_4"]
    assert 0 <= reported[0]["accuracy_depth_4"] <= 1


def test_a_log_of_several_steps_shows_their_mean(tmp_path: Path) -> None:
    each = trained("vit", tmp_path, objective="alternating")
    both = trained("vit", tmp_path, objective="alternating", logging_steps=4)
    for depth, count in ((1, 2), (BLOCKS, 4)):
        values = logged(each, f"loss_depth_{depth}")
        assert len(values) == count
        assert logged(both, f"loss_depth_{depth}") == [pytest.approx(np.mean(values), rel=1e-6)]
