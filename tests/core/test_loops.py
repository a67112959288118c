"""Blocks that are lists of parts, against the loops written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.stack import Stack
from anydepth.errors import UnknownArchitecture

WIDTH, BLOCKS = 16, 4


class Pairs(nn.Module):
    """As vit-pytorch has them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        parts = [(nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())) for _ in range(BLOCKS)]
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in parts)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for mix, feed in self.layers:
            x = x + scale * mix(x).tanh()
            x = x + feed(x)
        return self.norm(x)

    def step(self, x: Tensor, place: int) -> Tensor:
        mix, feed = self.layers[place]
        x = x + 0.5 * mix(x).tanh()
        return x + feed(x)

    def end(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Typed(nn.Module):
    """As x-transformers has them: kinds and an order beside the list, norms in lists, some of which are None."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = ("double", "plain") * (BLOCKS // 2)
        self.order = tuple(range(BLOCKS))
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(BLOCKS))
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.ModuleList([nn.LayerNorm(WIDTH), None]), nn.Linear(WIDTH, WIDTH)]) for _ in range(BLOCKS)
        )

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        beside = [(self.kinds[place], self.gates[place], self.layers[place]) for place in self.order]
        for kind, gate, ((before, after), mix) in beside:
            y = scale * mix(before(x)) * gate(x).sigmoid()
            y = y if after is None else after(y)
            x = x + (2 * y if kind == "double" else y)
        return x

    def step(self, x: Tensor, place: int) -> Tensor:
        (norm, _), mix = self.layers[place]
        y = 0.5 * mix(norm(x)) * self.gates[place](x).sigmoid()
        return x + (2 * y if self.kinds[place] == "double" else y)

    def end(self, x: Tensor) -> Tensor:
        return x


class Classifier(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(8, WIDTH), body, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x), scale=0.5).mean(1))


def built(kind: type[Pairs] | type[Typed]) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return Classifier(kind()).eval(), torch.randn(5, 6, 8)


def slow(model: Any, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The states and readouts, written out."""
    states = [model.embed(batch)]
    for place in range(BLOCKS):
        states.append(model.body.step(states[-1], place))
    return states, [model.head(model.body.end(state).mean(1)) for state in states]


@pytest.mark.parametrize("kind", [Pairs, Typed])
def test_states_readouts_and_exits_are_those_of_the_loop_written_out(kind: Any) -> None:
    model, batch = built(kind)
    with torch.no_grad():
        states, readouts = slow(model, batch)
        stack = Stack(model)
        seen, answer = stack.forward(batch)
        assert torch.equal(answer, model(batch))
        for depth, (state, expected) in enumerate(zip(seen, states, strict=True)):
            torch.testing.assert_close(state, expected)
            torch.testing.assert_close(stack.readout(state, batch, depth=depth), readouts[depth])
        replay = stack.replay(batch)
        torch.testing.assert_close(replay.step(states[2], 3), states[3])
    sure = torch.stack([logits.softmax(1).amax(1) for logits in readouts[1:BLOCKS]])
    threshold = float(sure.amax(0).median()) - 1e-6
    out = ad.EarlyExit(model, ad.Confidence(threshold))(batch)
    assert len(set(out.depth.tolist())) > 1
    expected = torch.stack([readouts[int(depth)][row] for row, depth in enumerate(out.depth)])
    torch.testing.assert_close(out.logits, expected)


@pytest.mark.parametrize("kind", [Pairs, Typed])
def test_a_loop_is_cut_and_trained_at_every_depth(kind: Any) -> None:
    model, batch = built(kind)
    labels = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        readouts = slow(model, batch)[1]
    cut = ad.truncate(model, 2, batch=batch)
    assert (len(cut.body.layers), len(model.body.layers)) == (2, BLOCKS)
    torch.testing.assert_close(cut(batch), readouts[2])
    loss = ad.AlignedLoss()(Stack(model), {"x": batch, "labels": labels}, step=0)
    expected = torch.stack([nn.functional.cross_entropy(logits, labels) for logits in readouts[1:]])
    torch.testing.assert_close(loss.by_depth.detach(), expected)
    loss.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_blocks_that_do_more_than_their_state_are_refused() -> None:
    class Numbered(Pairs):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            for number, (mix, feed) in enumerate(self.layers):
                x = x + number * feed(mix(x))
            return self.norm(x)

    torch.manual_seed(0)
    with pytest.raises(UnknownArchitecture, match="its members are lists, whose parts the forward calls itself"):
        Stack(Classifier(Numbered()).eval()).verify(torch.randn(4, 6, 8))
