"""A forward in legs against the states and readouts of a plain one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from anydepth.core.heads import separate_heads
from anydepth.core.model_io import samples_of
from anydepth.core.stack import Stack

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
SOME = ["bert", "modernbert", "deberta-v2", "gemma2", "llama classifier", "vit", "timm vit", "nn.TransformerEncoder"]


class Stops:
    """Ends legs at some depths, and keeps the states it is shown."""

    def __init__(self, at: Iterable[int]) -> None:
        self.at, self.shown = set(at), {}

    def __call__(self, depth: int, state: Tensor) -> bool:
        self.shown[depth] = state.clone()
        return depth in self.at


def in_legs_is_plain(stack: Stack, batch: Any) -> None:
    """Wherever the legs end, states and answers are those of the whole forward; blocks run once each, in order."""
    states = stack.states(batch)
    answers = {depth: stack.readout(states[depth], batch, depth=depth) for depth in range(1, stack.depth + 1)}
    for ends in (ends for count in range(stack.depth) for ends in combinations(range(1, stack.depth), count)):
        stops = Stops(ends)
        with stack.segments(batch) as legs:
            for depth in (*ends, stack.depth):
                torch.testing.assert_close(legs.run(batch, stops), answers[depth])
                assert legs.depth == depth
        assert list(stops.shown) == list(range(1, stack.depth + 1))
        for depth, state in stops.shown.items():
            torch.testing.assert_close(state, states[depth])


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_legs_are_the_forward(name: str) -> None:
    model, batch = tiny_models.build(name)
    in_legs_is_plain(Stack(model), batch)


@torch.no_grad()
def test_each_leg_by_the_head_of_its_depth() -> None:
    model, batch = tiny_models.build("vit")
    plain = Stack(model)
    heads = separate_heads(plain.classifier(batch), plain.depth)
    for parameter in heads.parameters():
        parameter.normal_()
    in_legs_is_plain(Stack(model, heads=heads), batch)
    assert "forward" not in model.classifier.__dict__


class InPlace(tiny_models.Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(torch.tanh(self.mix(x)))


@torch.no_grad()
def test_blocks_that_overwrite_their_input() -> None:
    model = tiny_models.Nobodys()
    model.trunk = nn.ModuleList(InPlace(16) for _ in range(3))
    in_legs_is_plain(Stack(model.eval()), torch.randn(3, 8))


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_the_next_leg_with_some_of_the_samples(name: str) -> None:
    model, batch = tiny_models.build(name)
    stack = Stack(model)
    states = stack.states(batch)
    rows = torch.tensor([2, 0])
    with stack.segments(batch) as legs:
        legs.run(batch, Stops([2]))
        legs.keep(rows)
        answer = legs.run(samples_of(batch, rows), Stops([3]))
    torch.testing.assert_close(answer, stack.readout(states[3], batch)[rows], rtol=1e-4, atol=1e-5)


def test_the_model_is_as_it_was_also_after_an_error() -> None:
    model, batch = tiny_models.build("bert")
    stack = Stack(model)
    blocks = list(model.bert.encoder.layer)

    def fail(depth: int, state: Tensor) -> bool:
        raise ZeroDivisionError

    def run() -> None:
        with stack.segments(batch) as legs, stack.recorded_prefix(batch):
            assert list(model.bert.encoder.layer) != blocks
            legs.run(batch, fail)

    with pytest.raises(ZeroDivisionError):
        run()
    assert list(model.bert.encoder.layer) == blocks
    assert not model.bert.embeddings._forward_hooks


@torch.no_grad()
def test_nothing_is_held_after_the_last_leg() -> None:
    """The states of a batch must go with it, and not wait for the garbage collector."""
    model, batch = tiny_models.build("bert")
    stack = Stack(model)
    stack.verify(batch)
    gc.disable()
    try:
        with stack.segments(batch) as legs:
            legs.run(batch, Stops([2]))
            held = weakref.ref(legs)
        del legs
        assert held() is None
    finally:
        gc.enable()
