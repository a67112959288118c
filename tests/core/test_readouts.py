from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import VOCABULARY
from torch import Tensor, nn

import anydepth.core.readouts
from anydepth import trace
from anydepth.core import model_io
from anydepth.core.model_io import distance, first_positions
from anydepth.core.readouts import Readouts
from anydepth.core.stack import Stack


class Positions(nn.Module):
    """Blocks and a head that answers for every position; `head_first` runs the head on the embeddings, too."""

    def __init__(self, head: nn.Module, *, head_first: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head, self.head_first = head, head_first

    def forward(self, x: Tensor) -> Tensor:
        state = x + self.head(x).tanh().mean(-1, keepdim=True) if self.head_first else x
        for block in self.blocks:
            state = block(state)
        return self.head(state)


class Mixing(nn.Linear):
    """A linear map of each position and the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x.roll(1, dims=1))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: lambda name=name: tiny_models.build(name) for name in ("gpt2", "llama", "gemma2", "cohere", "granite")},
    "linear": lambda: (Positions(nn.Linear(6, 9)), torch.randn(3, 5, 6)),
    "head first": lambda: (Positions(nn.Linear(6, 9), head_first=True), torch.randn(3, 5, 6)),
    "mixing": lambda: (Positions(Mixing(6, 9)), torch.randn(3, 5, 6)),
}
# whether logits are computed at the positions asked for alone, below depth L, and by the forward
ALONE = {"gemma2": (True, False), "head first": (False, False), "mixing": (False, False)}
GAP = torch.zeros(2, 20)
GAP[0, 0] = GAP[1, 19] = 1


@contextmanager
def rows_of_the_head(head: nn.Module, classes: int) -> Iterator[list[int]]:
    """How many rows of logits each run of a classifier gave."""
    rows: list[int] = []

    def count(_: nn.Module, given: Any, output: Tensor) -> None:
        if output.shape[-1] == classes:
            rows.append(output.numel() // classes)

    handle = head.register_forward_hook(count)
    yield rows
    handle.remove()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_depth_answers_at_some_positions_as_the_whole_readout_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    stack = Stack(model.eval())
    states, answer = stack.forward(batch)
    classes = answer.shape[-1]
    where = (torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([4, 0, 3, 1, 2, 4]))
    whole = [stack.readout(state, batch, depth=depth)[where] for depth, state in enumerate(states[:-1])]
    monkeypatch.setattr(anydepth.core.readouts, "PIECE", 4 * classes)
    by_row, by_forward = ALONE.get(name, (True, True))
    with rows_of_the_head(stack.classifier(batch), classes) as rows:
        readouts = Readouts(stack, batch)
        assert bool(rows) is not by_forward
        for depth, expected in enumerate([*whole, answer[where]]):
            rows.clear()
            pieces = list(readouts.pieces(depth, classes=classes, where=where))
            assert list(map(len, pieces)) == [4, 2]
            assert distance(torch.cat(pieces), expected) < 1e-6
            if by_forward or (by_row and depth < stack.depth):
                assert rows == [4, 2]
    assert torch.equal(torch.stack(readouts.states), torch.stack(states))


def test_a_trace_runs_blocks_on_the_batch_asked_for_and_each_head_once_on_labelled_positions() -> None:
    model, batch = tiny_models.build("gpt2")[0], tiny_models.text()
    stack, labelled = Stack(model), int(batch["attention_mask"].sum()) - 3
    stack.verify(batch)
    sizes: list[int] = []

    def count(_: nn.Module, given: Any) -> None:
        sizes.append(len(given[0]))

    with rows_of_the_head(stack.classifier(batch), VOCABULARY) as rows:
        ends: list[tuple[int, int]] = []
        handles = [block.register_forward_pre_hook(count) for block in model.transformer.h]
        trace(stack, [batch] * 3, measures=(), progress=lambda *_: ends.append((len(sizes), sum(rows))))
        for handle in handles:
            handle.remove()
    for before, after in pairwise(ends):
        assert sizes[before[0] : after[0]] == [3] * stack.depth
        assert after[1] - before[1] == (stack.depth + 1) * labelled


def test_the_law_of_a_causal_model_runs_on_few_positions_of_two_samples() -> None:
    model, _ = tiny_models.build("gpt2")
    batch = {"input_ids": torch.randint(VOCABULARY, (3, 60)), "attention_mask": torch.ones(3, 60, dtype=torch.int64)}
    batch["attention_mask"][0, :20] = 0
    shapes: set[tuple[int, ...]] = set()
    handle = model.transformer.h[0].register_forward_pre_hook(lambda _, given: shapes.add(tuple(given[0].shape[:2])))
    stack = Stack(model)
    stack.verify(batch)
    handle.remove()
    assert shapes == {(2, 16), (1, 16)}
    few = stack.few(batch)
    assert torch.equal(few["input_ids"], batch["input_ids"][:2, 20:36])


def test_first_positions_are_those_where_every_text_has_some() -> None:
    ids, mask = torch.arange(40).reshape(2, 20), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :18] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "label": torch.tensor([0, 1]), "flag": True}
    part = first_positions(batch, 4)
    assert torch.equal(part["input_ids"], ids[:, 16:])
    assert torch.equal(part["attention_mask"], mask[:, 16:])
    assert (part["label"] is batch["label"], part["flag"]) == (True, True)
    assert torch.equal(first_positions(ids, 4), ids[:, :4])


@pytest.mark.parametrize(
    "beside",
    [
        {"pixel_values": torch.zeros(2, 3, 8, 8)},
        {"attention_mask": torch.ones(2, 1, 20, 20)},
        {"position_ids": torch.arange(20)[None]},
        {"attention_mask": GAP},
    ],
    ids=["pixels", "a mask of pairs", "positions of all", "texts far apart"],
)
def test_a_batch_with_more_than_texts_stays_whole(beside: dict[str, Tensor]) -> None:
    batch = {"input_ids": torch.arange(40).reshape(2, 20), **beside}
    assert first_positions(batch, 4) is batch


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5], 0.5 / 7.5),
        ([1.0, 2.0, 3.0, 9.0], [1.5, 2.0, 3.0, 9.0], 0.5 / 9),
        ([NAN, 1.0, 2.0, 3.0], [NAN, 1.0, 2.0, 3.0], 0.0),
        ([NAN, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], NAN),
        ([1.0, 1.0, 2.0, INF], [0.0, 1.0, 2.0, 3.0], INF),
        ([0.0, 0.0, 0.0, 1e-9], [0.0, 0.0, 0.0, 0.0], 1e-3),
        ([2.0, 2.0, 2.0, 2.0], [INF, INF, INF, INF], INF),
        ([], [], 0.0),
    ],
)
def test_distances_are_those_of_all_entries_whatever_the_pieces(
    a: list[float], b: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distance(torch.tensor(a), torch.tensor(b))
    monkeypatch.setattr(model_io, "_COMPARED", 3)
    assert distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(whole, nan_ok=True)
    assert whole == pytest.approx(expected, nan_ok=True)
