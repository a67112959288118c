from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from anydepth.training import chunked_loss as vocabulary
from anydepth.training.chunked_loss import Target, depth_losses

Case = tuple[list[Tensor], Tensor, Tensor | None, Target, list[float]]


def naive(case: Case) -> Tensor:
    """All logits at once, and torch's own losses."""
    features, weight, bias, target, coefficients = case
    total = weight.new_zeros(())
    for one, coefficient in zip(features, coefficients, strict=True):
        logits = functional.linear(one, weight, bias)
        loss = functional.cross_entropy(logits, target.labels, label_smoothing=target.smoothing, reduction="sum")
        if target.teacher is not None and target.rows is not None:
            teacher = target.teacher[target.rows].softmax(1)
            divergence = (teacher * (teacher.log() - logits.log_softmax(1))).sum()
            loss = (1 - target.imitation) * loss + target.imitation * divergence
        total = total + coefficient * loss
    return total


def case(seed: int, *, depths: int, rows: int, classes: int, bias: bool, smoothing: float, imitation: float) -> Case:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, learns: bool = True) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_(learns)

    labels = torch.randint(classes, (rows,), generator=draw)
    teacher = normal(2 * rows, classes, learns=False) if imitation else None
    picked = torch.randperm(2 * rows, generator=draw)[:rows] if imitation else None
    target = Target(labels=labels, smoothing=smoothing, imitation=imitation, teacher=teacher, rows=picked)
    shares = torch.rand(depths, generator=draw).tolist()
    head = normal(classes) if bias else None
    return [normal(rows, 4) for _ in range(depths)], normal(classes, 4), head, target, shares


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depths=st.integers(1, 4),
    rows=st.integers(1, 9),
    classes=st.integers(2, 7),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    imitation=st.sampled_from([0.0, 0.4, 1.0]),
    at_once=st.sampled_from([1, 13, 10**6]),
)
def test_loss_and_gradients_equal_all_logits_at_once(
    seed: int, depths: int, rows: int, classes: int, bias: bool, smoothing: float, imitation: float, at_once: int
) -> None:
    given_case = case(
        seed, depths=depths, rows=rows, classes=classes, bias=bias, smoothing=smoothing, imitation=imitation
    )
    features, weight, head, target, shares = given_case
    learning = [*features, weight, *([head] if head is not None else [])]
    expected = naive(given_case)
    expected_gradients = torch.autograd.grad(3 * expected, learning)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_AT_ONCE", at_once)
        found = depth_losses(features, weight, head, target, shares)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(3 * found.total, learning), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    logits = [functional.linear(one, weight, head) for one in features]
    nats = [functional.cross_entropy(one, target.labels, reduction="sum") for one in logits]
    torch.testing.assert_close(found.nats, torch.stack(nats).detach())
    assert found.right.tolist() == [int((one.argmax(1) == target.labels).sum()) for one in logits]


def test_what_needs_no_gradient_gets_none() -> None:
    features, weight, _, target, shares = case(1, depths=2, rows=5, classes=6, bias=False, smoothing=0.0, imitation=0.0)
    frozen = weight.detach()
    found = torch.autograd.grad(depth_losses(features, frozen, None, target, shares).total, features)
    expected = torch.autograd.grad(naive((features, weight, None, target, shares)), features)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert not depth_losses(features, weight, None, target, shares).total.requires_grad


def test_it_goes_backward_once() -> None:
    features, weight, _, target, shares = case(1, depths=1, rows=5, classes=6, bias=False, smoothing=0.0, imitation=0.0)
    total = depth_losses(features, weight, None, target, shares).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be backpropagated once; compute them again"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_the_gradient_in_float32(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 16, generator=draw).to(dtype).requires_grad_()
    features = [torch.randn(400, 16, generator=draw).to(dtype).requires_grad_() for _ in range(12)]
    target = Target(labels=torch.randint(50, (400,), generator=draw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_AT_ONCE", 500)  # ten rows at a time: 480 additions
        found = depth_losses(features, weight, None, target, [1 / 12] * 12)
    found.total.backward()
    exact = weight.detach().double().requires_grad_()
    doubles = [one.detach().double() for one in features]
    expected = naive((doubles, exact, None, target, [1 / 12] * 12))
    expected.backward()
    assert weight.grad is not None
    assert exact.grad is not None
    assert weight.grad.dtype == dtype
    relative = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert relative < 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.total.double(), expected.detach(), rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_autocast_runs_the_products_in_its_dtype() -> None:
    features, weight, _, target, shares = case(2, depths=2, rows=9, classes=6, bias=False, smoothing=0.0, imitation=0.0)
    singles = [one.detach().float().requires_grad_() for one in features]
    matrix = weight.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = depth_losses(singles, matrix, None, target, shares)
        halves = [functional.linear(one, matrix).float() for one in singles]
        expected = sum(
            share * functional.cross_entropy(one, target.labels, reduction="sum")
            for share, one in zip(shares, halves, strict=True)
        )
    torch.testing.assert_close(found.total, expected)
    found.total.backward()
    assert matrix.grad is not None
    assert matrix.grad.dtype == torch.float32
