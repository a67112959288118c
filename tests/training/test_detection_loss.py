"""Aligned training of detectors: their own matched loss at each depth, against transformers' auxiliary losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_detectors
import torch
from tiny_detectors import BLOCKS, targets
from torch import Tensor, nn
from transformers import TrainingArguments

import anydepth as ad
from anydepth.errors import LabelError, ObjectiveError
from anydepth.training import AlignedTrainer


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal_gradients(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


def slow_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over depths of the model's own loss function, of what its head answers there."""
    outputs = tiny_detectors.slow_outputs(model, batch)
    losses = [
        model.loss_function(logits, targets(), logits.device, boxes, model.config)[0] for logits, boxes in outputs
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", ["detr", "conditional", "yolos"])
def test_uniform_weights_are_the_mean_of_the_models_own_losses(name: str) -> None:
    model, batch = tiny_detectors.build(name)
    result = ad.AlignedLoss("uniform")(ad.Stack(model), {**batch, "labels": targets()})
    expected = slow_loss(model, batch)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.by_depth.mean(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert result.accuracy.isnan().all()
    assert_equal_gradients(gradients(model, result.loss), gradients(model, slow_loss(model, batch)))


@pytest.mark.parametrize(("name", "training"), [("refined", False), ("two stages", True), ("real time", True)])
def test_uniform_weights_are_transformers_own_auxiliary_loss(name: str, training: bool) -> None:
    settings = {"num_denoising": 4} if training and name == "real time" else {}
    model, batch = tiny_detectors.build(name, apart=name != "real time", **settings)
    model.train(training)
    assert model.config.auxiliary_loss
    result = ad.AlignedLoss("uniform")(ad.Stack(model), {**batch, "labels": targets()})
    ours = gradients(model, BLOCKS * result.loss)
    output = model(**batch, labels=targets())
    expected = output.loss
    if name == "real time":  # which adds the loss of what its encoder proposes, and of noisy targets
        own = [
            loss for name, loss in output.loss_dict.items() if f"_aux_{BLOCKS - 1}" not in name and "_dn_" not in name
        ]
        expected = torch.stack(own).sum()
    torch.testing.assert_close(BLOCKS * result.loss, expected, rtol=1e-5, atol=1e-5)
    theirs = gradients(model, expected)
    assert_equal_gradients(
        {name: ours[name] for name in theirs if theirs[name].any()},
        {name: gradient for name, gradient in theirs.items() if gradient.any()},
    )


def test_all_weight_on_the_last_depth_is_the_models_own_loss() -> None:
    model, batch = tiny_detectors.build("real time")
    model.config.auxiliary_loss = False
    result = ad.AlignedLoss("final")(ad.Stack(model), {**batch, "labels": targets()})
    expected = model(**batch, labels=targets()).loss
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=0)
    assert result.by_depth.isnan().tolist() == [True] * (BLOCKS - 1) + [False]


def test_the_aligned_loss_lowers_the_loss_at_every_depth() -> None:
    model, batch = tiny_detectors.build("detr")
    stack, objective = ad.Stack(model), ad.AlignedLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(6):
        result = objective(stack, {**batch, "labels": targets()}, step=step)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.by_depth)
    assert (losses[-1] < losses[0]).all()


@pytest.mark.parametrize(
    ("objective", "items", "says"),
    [
        (ad.AlignedLoss(label_smoothing=0.1), None, "label_smoothing has no meaning"),
        (ad.AlignedLoss(distillation=0.5), None, "distillation has no meaning"),
        (ad.AlignedLoss(), 6, "items has no meaning"),
    ],
)
def test_what_is_of_cross_entropy_is_refused(objective: ad.AlignedLoss, items: int | None, says: str) -> None:
    model, batch = tiny_detectors.build("yolos")
    with pytest.raises(ObjectiveError, match=f"YolosForObjectDetection matches its targets by its own loss, .*{says}"):
        objective(ad.Stack(model), {**batch, "labels": targets()}, items=items)


def test_targets_that_the_model_does_not_take_are_named() -> None:
    model, batch = tiny_detectors.build("yolos")
    labels = [{"classes": each["class_labels"], "boxes": each["boxes"]} for each in targets()]
    with pytest.raises(LabelError, match=r"computes no loss of these labels \(KeyError: 'class_labels'\)"):
        ad.AlignedLoss()(ad.Stack(model), {**batch, "labels": labels})


def test_a_trainer_trains_a_detector(tmp_path: Path) -> None:
    model, batch = tiny_detectors.build("yolos")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rows = [
        {"pixel_values": pixels, "labels": each} for pixels, each in zip(batch["pixel_values"], targets(), strict=True)
    ]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": [row["labels"] for row in rows],
        }

    settings = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = AlignedTrainer(model, settings, train_dataset=rows, data_collator=collate)
    trainer.train()
    assert all(entry["loss"] > 0 for entry in trainer.state.log_history if "loss" in entry)
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    with pytest.raises(LabelError, match="which its own loss matches with its answers"):
        trainer.evaluate(rows)
