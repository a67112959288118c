"""Detectors: queries as positions, classes and boxes at every depth, against transformers' own auxiliary outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detectors
import torch
from tiny_detectors import BLOCKS, CLASSES, QUERIES, targets
from tiny_models import Block
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.heads import Heads
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets
from anydepth.errors import LabelError, ReadoutMismatch, TruncationError, UnknownArchitecture, UnsupportedHead

# of one head for all depths, and of a head for each
SHARED = ["detr", "conditional", "yolos", "yolos, positions between"]
OWN = ["deformable", "refined", "two stages", "real time", "real time 2"]


def close(given: Any, logits: Tensor, boxes: Tensor) -> None:
    torch.testing.assert_close(given.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.pred_boxes, boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_classes_and_boxes_at_every_depth_are_those_of_the_head_itself(name: str) -> None:
    model, batch = tiny_detectors.build(name)
    stack, plain = Stack(model), model(**batch)
    states, answer = stack.forward(batch)
    assert torch.equal(answer, plain.logits), "the model's own answer, to the last bit"
    assert stack.depth == BLOCKS
    assert states[0].shape[:2] == (3, QUERIES if hasattr(model, "model") else states[0].shape[1])
    for depth, (logits, boxes) in enumerate(tiny_detectors.slow_outputs(model, batch), start=1):
        output = stack.readout_output(states, batch, depth=depth)
        close(output, logits, boxes)
        assert type(output) is type(plain)
        torch.testing.assert_close(stack.readout(states[depth], batch), logits, rtol=1e-5, atol=1e-5)
    close(stack.readout_output(states, batch, depth=BLOCKS), plain.logits, plain.pred_boxes)


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_classes_and_boxes_at_every_depth_are_the_auxiliary_outputs(name: str) -> None:
    model, batch = tiny_detectors.build(name, apart=not name.startswith("real time"))
    plain = model(**batch, labels=targets())
    stack = Stack(model)
    states = stack.states(batch)
    outputs = [*plain.auxiliary_outputs[: BLOCKS - 1], {"logits": plain.logits, "pred_boxes": plain.pred_boxes}]
    for depth, expected in enumerate(outputs, start=1):
        output = stack.readout_output(states, batch, depth=depth)
        close(output, expected["logits"], expected["pred_boxes"])
        # of the states before it, the boxes alone are made
        readout = stack.readout(states[depth], batch, depth=depth)
        torch.testing.assert_close(readout, expected["logits"], rtol=1e-5, atol=1e-5)
    with stack.cut(2, batch):
        cut = model(**batch)
    close(cut, outputs[1]["logits"], outputs[1]["pred_boxes"])


@torch.no_grad()
def test_a_model_trained_with_auxiliary_losses_normalizes_between_its_blocks() -> None:
    model, batch = tiny_detectors.build("detr", auxiliary_loss=True)
    plain, stack = model(**batch, labels=targets()), Stack(model)
    states = stack.states(batch)
    for depth, expected in enumerate(plain.auxiliary_outputs, start=1):
        output = stack.readout_output(states, batch, depth=depth)
        # its last depth is normalized twice: nearly the same with the weights of a new norm
        torch.testing.assert_close(output.logits, expected["logits"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(output.pred_boxes, expected["pred_boxes"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["detr", "refined", "real time", "yolos"])
@torch.no_grad()
def test_a_truncated_detector_loads_by_its_class_and_answers_as_the_readout(name: str, tmp_path: Path) -> None:
    model, batch = tiny_detectors.build(name)
    stack = Stack(model)
    expected = stack.readout_output(stack.states(batch), batch, depth=2)
    ad.truncate(stack, 2, batch=batch).save_pretrained(tmp_path)
    close(type(model).from_pretrained(tmp_path).eval()(**batch), expected.logits, expected.pred_boxes)


def test_a_truncated_yolos_with_positions_between_its_blocks_is_refused() -> None:
    model, batch = tiny_detectors.build("yolos, positions between")
    with pytest.raises(TruncationError, match="mid_position_embeddings is"):
        ad.truncate(model, 2, batch=batch)


@pytest.mark.parametrize("name", ["refined", "yolos, positions between", "conditional"])
@torch.no_grad()
def test_blocks_are_replayed_on_what_the_model_makes_of_the_states(name: str) -> None:
    model, batch = tiny_detectors.build(name)
    stack = Stack(model)
    verification, states = stack.verify(batch), stack.states(batch)
    assert verification.replay <= verification.tolerance
    assert stack.learn(batch).between
    replay = stack.replay(batch)
    # a block whose arguments are made of all states before is not replayed from the last of them alone
    for depth in range(1, BLOCKS + 1 if name != "refined" else 2):
        torch.testing.assert_close(replay.step(states[depth - 1], depth), states[depth], rtol=1e-4, atol=1e-4)


def test_a_trace_has_a_row_for_each_query() -> None:
    model, batch = tiny_detectors.build("real time")
    with torch.no_grad():
        outputs = model(**batch, labels=targets())
    answers = [*outputs.auxiliary_outputs[: BLOCKS - 1], outputs]
    top = torch.stack([each["logits"].argmax(-1).flatten() for each in answers], 1).numpy()
    trace = ad.trace(model, [{**batch, "labels": targets()}], measures=["cka"])
    assert trace.rows is not None
    np.testing.assert_array_equal(trace.rows.prediction[:, 1:], top)
    assert trace.rows.sample.tolist() == sorted(list(range(3)) * QUERIES)
    final = top == top[:, -1:]
    expected = [min(at for at in range(BLOCKS) if row[at:].all()) + 1 for row in final]
    np.testing.assert_array_equal(trace.saturation, np.bincount(expected, minlength=BLOCKS + 1))
    assert "accuracy" not in trace.statistics
    assert any(note.startswith("each query is an answer: labels would have to be matched") for note in trace.notes)
    assert any(note.startswith("RTDetrForObjectDetection scores classes one by one") for note in trace.notes)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2])], ids=["none", "of the images"])
def test_labels_that_are_for_no_query_are_left_out(labels: Tensor | None) -> None:
    model, batch = tiny_detectors.build("detr")
    trace = ad.trace(model, [batch if labels is None else {**batch, "labels": labels}], measures=["cka"])
    assert trace.provenance["answers"] == 3 * QUERIES
    assert "accuracy" not in trace.statistics
    assert trace.similarity["cka"][-1, -1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("d-fine", ReadoutMismatch, "the readout law is broken at 'model.decoder.layers'"),
        ("dab", UnknownArchitecture, r"does not end after block 1 .*: only depth L has a readout"),
    ],
)
def test_a_detector_whose_depths_are_not_read_out_is_refused(name: str, error: type[Exception], says: str) -> None:
    model, batch = tiny_detectors.build(name)
    with pytest.raises(error, match=says):
        Stack(model).verify(batch)


def test_what_has_no_meaning_for_queries_says_so() -> None:
    model, batch = tiny_detectors.build("detr")
    with pytest.raises(UnsupportedHead, match="positions attend to each other, and cannot exit one by one"):
        ad.EarlyExit(model, ad.Confidence(0.9))(batch)
    stack = Stack(model)
    with pytest.raises(LabelError, match="a mapping for each sample, which its own loss matches with its answers"):
        Targets.of(stack, batch, targets(), stack.forward(batch)[1])


class Between(nn.Module):
    """Adds something to a state before it gives it to the next block."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.first, self.in_place = nn.Linear(8, 16), in_place
        self.blocks = nn.ModuleList(Block(16) for _ in range(BLOCKS))
        self.added = nn.Parameter(torch.randn(BLOCKS - 1, 16))
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number < BLOCKS - 1 and self.in_place:
                x += self.added[number]
            elif number < BLOCKS - 1:
                x = x + self.added[number]
        return self.last(x)


@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_samples_exit_from_a_model_that_adds_to_its_states_between_blocks(in_place: bool) -> None:
    torch.manual_seed(0)
    model, x = Between(in_place=in_place).eval(), torch.randn(6, 8)
    stack, expected, state = Stack(model), list[Tensor](), model.first(x)
    for number, block in enumerate(model.blocks):
        state = block(state if number == 0 else state + model.added[number - 1])
        expected.append(state)
    states, answer = stack.forward(x)
    for depth, slow in enumerate(expected, start=1):
        torch.testing.assert_close(states[depth], slow)
        torch.testing.assert_close(stack.readout(states[depth], x), model.last(slow))
        with stack.cut(depth, x):
            torch.testing.assert_close(model(x), model.last(slow))
    torch.testing.assert_close(answer, model(x), rtol=0, atol=0)
    readouts = torch.stack([model.last(slow) for slow in expected])
    confidence = readouts.softmax(2).amax(2)
    threshold = float(confidence[:-1].max(0).values.sort().values[2:4].mean())
    out = ad.EarlyExit(model, ad.Confidence(threshold))(x)
    exits = [next((at for at in range(BLOCKS - 1) if confidence[at, row] >= threshold), BLOCKS - 1) for row in range(6)]
    assert len(set(exits)) > 1, "some exit, and some do not"
    assert (out.depth - 1).tolist() == exits
    torch.testing.assert_close(out.logits, readouts[exits, range(6)])


class Headed(nn.Module):
    """Has a norm for each depth, of which the last is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(BLOCKS))
        self.norms = nn.ModuleList(nn.Linear(16, 16) for _ in range(BLOCKS))
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, read = self.first(x), []
        for block, norm in zip(self.blocks, self.norms, strict=False):
            x = block(x)
            read.append(norm(x))
        return self.last(read[-1])


@torch.no_grad()
def test_a_depth_is_read_out_by_what_is_of_that_depth() -> None:
    torch.manual_seed(0)
    model, x = Headed().eval(), torch.randn(3, 8)
    stack = Stack(model)
    states = stack.states(x)
    for depth in range(1, BLOCKS + 1):
        expected = model.last(model.norms[depth - 1](states[depth]))
        torch.testing.assert_close(stack.readout(states[depth], x, depth=depth), expected)
    # h[0] is read out by what is of depth 1
    torch.testing.assert_close(stack.readout(states[0], x, depth=0), model.last(model.norms[0](states[0])))
    with pytest.raises(UnsupportedHead, match="reads each depth out by what is of that depth alone"):
        ad.EarlyExit(model, ad.Confidence(0.9))(x)
    heads = Heads(nn.Linear(16, CLASSES) for _ in range(BLOCKS - 1))
    with pytest.raises(UnsupportedHead, match="heads for Headed, which reads each depth out by what is of that depth"):
        Stack(model, heads=heads).verify(x)
