"""The curve against running the engine at each of its thresholds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from exit_models import batches

from anydepth import AtDepth, Confidence, EarlyExit, Patience, exit_curve
from anydepth.early_exit.curve import ExitCurve
from anydepth.errors import DataError, PolicyError


def test_each_point_is_what_the_engine_does() -> None:
    model, parts = batches("bert", count=24)
    exits = EarlyExit(model, Confidence(0.5))
    curve = exit_curve(exits, parts, timed=0)
    with torch.no_grad():
        full = torch.cat([model(**{k: v for k, v in one.items() if k != "labels"}).logits for one in parts]).argmax(1)
    labels = torch.cat([one["labels"] for one in parts])
    assert curve.level[0] == np.inf
    assert (curve.depth[0], curve.agreement[0]) == (4.0, 1.0)
    assert curve.accuracy is not None
    assert curve.accuracy[0] == pytest.approx(float((full == labels).double().mean()))
    checked = 0
    for place in range(1, len(curve.level), max(1, len(curve.level) // 8)):
        # just below a score that was seen, so that rounding decides nothing
        policy = exits.policy.at_level(float(curve.level[place]) - 1e-7)
        outs = [EarlyExit(exits.stack, policy)(one) for one in parts]
        depth = torch.cat([out.depth for out in outs])
        answers = torch.cat([out.logits for out in outs]).argmax(1)
        assert curve.depth[place] == pytest.approx(float(depth.double().mean()), abs=0.05)
        assert curve.accuracy[place] == pytest.approx(float((answers == labels).double().mean()), abs=0.05)
        assert curve.agreement[place] == pytest.approx(float((answers == full).double().mean()), abs=0.05)
        checked += 1
    assert checked >= 5


def test_orders_and_shares() -> None:
    model, parts = batches("bert", count=40)
    curve = exit_curve(EarlyExit(model, Confidence(0.5)), parts, timed=3)
    assert (np.diff(curve.depth) <= 0).all()
    assert (np.diff(curve.flops) <= 1e-12).all()
    assert curve.flops[0] > 1, "testing costs something where nobody leaves"
    assert curve.depth[-1] == 1.0
    assert np.allclose(curve.paper_speedup, 4 / curve.depth)
    assert np.isfinite(curve.measured).sum() in (2, 3)
    assert (curve.measured[np.isfinite(curve.measured)] > 0).all()
    low, high = curve.interval()
    assert ((low <= curve.quality) & (curve.quality <= high)).all()
    frame = curve.to_frame()
    assert len(frame) == len(curve.level)
    assert np.allclose(frame["predicted_speedup"], 1 / curve.predicted)


def made(depth: list[float], quality: list[float], last: int = 5) -> ExitCurve:
    n = len(depth)
    blank = np.full(n, np.nan)
    given = np.array(quality)
    return ExitCurve(
        last=last,
        tested=(1, 2, 3, 4),
        samples=100,
        level=blank,
        depth=np.array(depth, float),
        agreement=given,
        accuracy=None,
        flops=blank,
        predicted=blank,
        measured=blank,
        batch=8,
    )


def test_the_area_is_the_mean_quality_over_depths() -> None:
    assert made([5, 1], [0.8, 0.8]).area == pytest.approx(0.8)
    assert made([5, 1], [1.0, 0.0]).area == pytest.approx(0.5)
    # shallower than the loosest threshold goes, quality stays what it is there
    assert made([5, 3], [1.0, 0.5]).area == pytest.approx((2 * 0.75 + 2 * 0.5) / 4)
    assert made([5, 2], [1.0, 0.9]).area > made([5, 2], [1.0, 0.7]).area


@pytest.mark.usefixtures("timed_briefly")
def test_through_json_and_back() -> None:
    model, parts = batches("bert", count=16)
    curve = exit_curve(EarlyExit(model, Confidence(0.5)), parts, timed=2)
    again = ExitCurve.from_plain(json.loads(json.dumps(curve.as_plain(), allow_nan=False)))
    for name in ("level", "depth", "agreement", "accuracy", "flops", "predicted", "measured"):
        np.testing.assert_array_equal(getattr(again, name), getattr(curve, name))
    assert (again.last, again.tested, again.samples, again.batch) == (4, (1, 2, 3), 16, 8)
    assert again.area == curve.area


def test_without_labels_quality_is_agreement() -> None:
    model, parts = batches("bert", count=16)
    bare = [{name: values for name, values in one.items() if name != "labels"} for one in parts]
    curve = exit_curve(EarlyExit(model, Patience(2)), bare, timed=0)
    assert curve.accuracy is None
    assert np.array_equal(curve.quality, curve.agreement)


@pytest.mark.parametrize(
    ("policy", "data", "error", "message"),
    [
        (AtDepth(2), None, PolicyError, "has no range of thresholds: expected a policy that tests some depth below L"),
        (Confidence(0.5, depths=(4,)), None, PolicyError, "has no range of thresholds"),
        (Confidence(0.5), [], DataError, "the data set is empty: expected at least one batch"),
        (Confidence(0.5), iter([]), DataError, "data can be iterated over only once, and a few batches are run again"),
    ],
)
def test_bad_input(policy: Any, data: Any, error: type[Exception], message: str) -> None:
    model, parts = batches("bert", count=8)
    with pytest.raises(error, match=message):
        exit_curve(EarlyExit(model, policy), parts if data is None else data)


@pytest.mark.usefixtures("timed_briefly")
def test_a_model_is_left_as_it_was() -> None:
    model, parts = batches("bert", count=8)
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    exit_curve(EarlyExit(model, Confidence(0.5)), parts, timed=2)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
