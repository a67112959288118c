"""Early exit in other number formats, on models that share weights between depths, and where a depth says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.heads import separate_heads


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "vit", "llama classifier"])
def test_in_every_number_format_the_answer_is_the_readout(name: str, dtype: torch.dtype) -> None:
    model, batch = tiny_models.build(name)
    model = model.to(dtype)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    stack = ad.Stack(model)
    with torch.no_grad():
        states = stack.states(batch)
        logits = torch.stack([stack.readout(states[depth], batch) for depth in range(1, stack.depth + 1)])
    surest = logits.float().softmax(2).amax(2)
    out = ad.EarlyExit(stack, ad.Confidence(float(surest[:-1].flatten().median())))(batch)
    assert out.logits.dtype == dtype
    own = logits[out.depth - 1, torch.arange(len(out.depth))]
    tolerance = {torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(out.logits, own, rtol=tolerance, atol=tolerance)


class Tied(nn.Module):
    """One block, four times over."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.first, self.trunk, self.head = nn.Linear(8, 16), nn.ModuleList([block] * 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        answer: Tensor = self.head(x)
        return answer


def test_depths_that_share_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(6, 8)
    exits = ad.EarlyExit(model, ad.Confidence(0.4))
    out = exits(x)
    expected = []
    with torch.no_grad():
        for sample in x:
            state = model.first(sample)
            for depth in range(1, 5):
                state = model.trunk[0](state)
                if depth == 4 or model.head(state).softmax(0).max() >= 0.4:
                    expected.append((depth, model.head(state)))
                    break
    assert out.depth.tolist() == [depth for depth, _ in expected]
    assert len(set(out.depth.tolist())) > 1
    torch.testing.assert_close(out.logits, torch.stack([logits for _, logits in expected]))
    exits.save(tmp_path / "out")
    assert ad.EarlyExit.load(tmp_path / "out", model=model)(x).depth.tolist() == out.depth.tolist()


def test_a_depth_that_says_nothing_lets_nobody_go_and_is_counted() -> None:
    """NaN logits at one depth only: those samples go on, and the next depth decides."""
    model, batch = tiny_models.build("bert")
    stack = ad.Stack(model)
    heads = separate_heads(stack.classifier(batch), stack.depth)
    with torch.no_grad():
        heads[1].bias.fill_(float("nan"))
    out = ad.EarlyExit(ad.Stack(model, heads=heads), ad.Confidence(0.0))(batch)
    count = len(out.depth)
    assert out.depth.tolist() == [2] * count
    assert out.undecided.tolist() == [count, 0, 0, 0]
    assert out.logits.isfinite().all()
