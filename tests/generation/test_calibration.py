"""What is promised of generated sequences: counted right, kept in simulation, refused where it cannot be made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_lm import greedy, prompts, speaker

from anydepth import Confidence, Entropy, Patience
from anydepth.core.stack import Stack
from anydepth.errors import CertificateError
from anydepth.exits.policies import THRESHOLDS
from anydepth.generation import dynamic_exit
from anydepth.generation.calibration import calibrate, differing
from anydepth.stats.certificates import certified

NEW = 6


def rows(count: int, seed: int = 0) -> list[torch.Tensor]:
    return [prompt[0] for prompt in prompts(count, seed=seed)]


def surest_first(model: Any, starts: list[torch.Tensor], count: int) -> list[float]:
    """Thresholds that let ever more tokens go at depth 2: quantiles of its confidence along the model's own texts."""
    stack, seen = Stack(model), []
    for start in starts:
        batch = {"input_ids": greedy(model, start[None], NEW)}
        with torch.no_grad():
            seen.append(stack.readout(stack.states(batch)[2], batch)[0, len(start) - 1 :].softmax(-1).amax(-1))
    return torch.cat(seen).quantile(torch.linspace(0.9, 0.1, count)).tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_differing_counts_places(one: list[int], other: list[int]) -> None:
    longest = max(len(one), len(other))
    both = [a == b for a, b in zip(one, other, strict=False)]
    assert differing(torch.tensor(one), torch.tensor(other)) == pytest.approx(1 - sum(both) / longest)
    assert differing(torch.tensor(one), torch.tensor(one)) == 0


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What a model writes after each of some prompts alone, without padding; and under each threshold of a path.

    Attributes:
        model: the model.
        starts: the prompts.
        path: thresholds.
        full: the model's own tokens after each prompt.
        early: of each threshold, the tokens after each prompt and the depths that they were read from.
    """

    model: Any
    starts: list[torch.Tensor]
    path: list[float]
    full: list[torch.Tensor]
    early: dict[float, list[tuple[torch.Tensor, tuple[int, ...]]]]


@pytest.fixture(scope="module")
def alone() -> Alone:
    model, starts = speaker("llama"), rows(24)
    path = surest_first(model, starts, 3)
    full = [greedy(model, start[None], NEW)[0, len(start) :] for start in starts]
    early: dict[float, list[tuple[torch.Tensor, tuple[int, ...]]]] = {threshold: [] for threshold in path}
    for threshold, written in early.items():
        mode = dynamic_exit(Confidence(threshold, depths=(2,)))
        for start in starts:
            tokens = greedy(model, start[None], NEW, mode)[0, len(start) :]
            written.append((tokens, tuple(mode.spent.depths)))
    return Alone(model=model, starts=starts, path=path, full=full, early=early)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_each_step_counts_whole_sequences(share: float, alone: Alone) -> None:
    """Against generating every prompt alone, without padding."""
    settings = {"tolerance": 0.9, "confidence": 0.5, "new_tokens": NEW, "share": share, "thresholds": alone.path}
    _, promise = calibrate(alone.model, alone.starts, Confidence(0.5, depths=(2,)), **settings)
    assert promise.steps[-1].depth < 4
    for step in promise.steps:
        failures, wrong, depths = 0, 0, []
        for full, (early, left) in zip(alone.full, alone.early[step.threshold], strict=True):
            failures += int((full != early).float().mean() > share)
            wrong += int((full != early).sum())
            depths += left
        assert step.failures == failures
        assert step.differing == pytest.approx(wrong / (NEW * len(alone.starts)))
        assert step.depth == pytest.approx(np.mean(depths))


def test_the_path_ends_at_the_first_that_fails() -> None:
    model, starts = speaker("gpt2"), rows(40)
    found, promise = calibrate(model, starts, Confidence(0.5, depths=(1, 2)), tolerance=0.1, new_tokens=NEW)
    assert promise.passed in (len(promise.steps), len(promise.steps) - 1)
    assert [step.threshold for step in promise.steps] == list(THRESHOLDS[: len(promise.steps)])
    if found is None:
        assert "nothing could be certified" in str(promise)
    else:
        assert promise.taken is not None
        assert found == Confidence(promise.taken.threshold, depths=(1, 2))
        assert f"P(any of the first {NEW} tokens ≠ full model's) ≤ 10 %" in str(promise)


def test_sequences_that_end_are_counted_to_their_end() -> None:
    """Also where a row of the batch goes on after it."""
    model, starts = speaker("gpt2"), rows(20)
    model.generation_config.eos_token_id = int(greedy(model, starts[0][None], NEW)[0, -2])
    _, promise = calibrate(
        model, starts, Confidence(0.5, depths=(2,)), tolerance=0.2, confidence=0.9, new_tokens=NEW, thresholds=[1.0]
    )
    assert promise.steps[0].failures == 0
    assert promise.steps[0].differing == 0


def test_an_interrupted_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written under a threshold is not written again; another model's is not taken for it."""
    model, starts = speaker("gpt2"), rows(24)
    settings = {"tolerance": 0.5, "new_tokens": NEW, "thresholds": surest_first(model, starts, 3)}
    policy = Confidence(0.5, depths=(2,))
    plain = calibrate(model, starts, policy, **settings)
    stopped: list[str] = []

    def stop(done: int, total: int, told: str) -> None:
        stopped.append(told)
        if told.startswith("threshold") and len(set(stopped)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, starts, policy, **settings, keep=tmp_path, progress=stop)
    told: list[str] = []
    found = calibrate(
        model, starts, policy, **settings, keep=tmp_path, progress=lambda done, total, what: told.append(what)
    )
    assert found == plain
    assert not {"the full model", stopped[-2]} & set(told)
    assert len(set(stopped[:-1]) & set(told)) == 0
    calibrate(
        speaker("gpt2", seed=2), starts, policy, **settings, keep=tmp_path, progress=lambda *what: told.append(what[2])
    )
    assert "the full model" in told


def test_each_kind_of_policy_has_its_path_from_strict_to_loose() -> None:
    model, starts = speaker("llama"), rows(16)
    for policy in (Confidence(0.5, depths=(1, 2)), Entropy(0.5, depths=(1, 2)), Patience(2, depths=(1, 2))):
        path = policy.threshold_path()
        _, promise = calibrate(
            model, starts, policy, tolerance=0.99, confidence=0.5, new_tokens=2, thresholds=path[::4]
        )
        depths = [step.depth for step in promise.steps]
        assert depths == sorted(depths, reverse=True)


@pytest.mark.slow
def test_the_promise_is_kept_in_simulation() -> None:
    """The truth is the failure rate over a pool; of 1,000 calibrations on draws from it at most 5 % may break it."""
    model, pool = speaker("llama"), rows(300, seed=3)
    path = surest_first(model, pool[:50], 5)
    plain = [greedy(model, start[None], NEW)[0, len(start) :] for start in pool]
    failed = []
    for threshold in path:
        mode = dynamic_exit(Confidence(threshold, depths=(2,)))
        early = [greedy(model, start[None], NEW, mode)[0, len(start) :] for start in pool]
        failed.append([differing(one, other) > 0 for one, other in zip(early, plain, strict=True)])
    outcomes = np.array(failed)
    truth = outcomes.mean(1)
    tolerance = float(np.sort(truth)[len(truth) // 2] * 0.9)  # some hold, some do not
    assert truth.min() < tolerance < truth.max()
    rng, broken = np.random.default_rng(0), 0
    for _ in range(1000):
        drawn = outcomes[:, rng.integers(len(pool), size=200)].sum(1).tolist()
        passed = len(certified(drawn, 200, against="model", tolerance=tolerance, confidence=0.95))
        broken += bool(passed) and bool(truth[passed - 1] > tolerance)
    assert broken <= 65  # 50 are allowed; more than 65 would be noticed at p = 0.02


def test_what_cannot_be_promised() -> None:
    model, policy = speaker("gpt2"), Confidence(0.5, depths=(2,))
    with pytest.raises(CertificateError, match=r"there are 5 prompts, and to certify .* 0.05 .* at least 59"):
        calibrate(model, rows(5), policy)
    with pytest.raises(CertificateError, match="share is 1"):
        calibrate(model, rows(5), policy, share=1.0)
    with pytest.raises(CertificateError, match="tolerance is 0"):
        calibrate(model, rows(5), policy, tolerance=0.0)
