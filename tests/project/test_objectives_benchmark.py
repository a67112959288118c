"""benchmarks/objectives: its statistics against scipy and simulation; its runs resume; what they write is read back."""

import doctest
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "objectives"))
import comparing
import measuring
import paired
import tasks
import training
from paired import at_every_depth, difference, mean_over_seeds, verdict


@pytest.mark.parametrize("module", [paired, training])
def test_docstrings(module):
    found = doctest.testmod(module, extraglobs={"np": np})
    assert found.attempted > 0
    assert found.failed == 0


def test_interval_over_units_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    candidate, reference = rng.normal(0.1, 1.0, 60), rng.normal(0.0, 1.0, 60)
    found = difference((candidate - reference)[None], np.ones(60))
    expected = stats.ttest_rel(candidate, reference).confidence_interval(0.95)
    assert found.over_units == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.mean == pytest.approx(float((candidate - reference).mean()))


def test_seeds_of_a_unit_are_one_draw():
    # three identical seeds tell no more about other units than one does, and nothing about seeds
    one = np.random.default_rng(1).normal(size=(1, 40))
    single, triple = difference(one, np.ones(40)), difference(np.repeat(one, 3, axis=0), np.ones(40))
    assert triple.over_units == pytest.approx(single.over_units)
    assert triple.over_seeds == pytest.approx(triple.over_units)
    assert all(math.isnan(bound) for bound in single.over_seeds)


def test_ratio_of_sums_agrees_with_the_bootstrap_over_documents():
    rng = np.random.default_rng(2)
    tokens = rng.integers(200, 2000, size=80).astype(float)
    nats = tokens * rng.normal(0.02, 0.05, size=(2, 80))
    found = difference(nats, tokens)
    assert found.mean == pytest.approx(nats.sum() / (2 * tokens.sum()))
    drawn = rng.integers(80, size=(20_000, 80))
    ratios = nats.mean(axis=0)[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    half = (found.over_units[1] - found.over_units[0]) / 2
    assert found.over_units == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.1 * half)


def test_units_without_effect_are_weighed_by_their_tokens():
    # a document of 900 tokens with 9 nats more, and one of 100 with 1 nat less: 8 nats over 1,000 tokens
    assert difference(np.array([[9.0, -1.0]]), np.array([900.0, 100.0])).mean == pytest.approx(0.008)


def test_coverage_over_units_and_seeds():
    rng = np.random.default_rng(3)
    hits, trials = np.zeros(2), 1500
    for _ in range(trials):
        seeds, units, rest = rng.normal(size=(3, 1)), rng.normal(size=(1, 50)), rng.normal(size=(3, 50))
        found = difference(0.3 * seeds + units + rest, np.ones(50))
        hits += [low <= 0 <= high for low, high in (found.over_units, found.over_seeds)]
    over_units, over_seeds = hits / trials
    assert over_seeds >= 0.94  # 95 % promised, and it errs on the wide side
    assert over_units < 0.85  # it speaks of these models: it must not be read as speaking of others


def test_no_difference_at_all():
    found = difference(np.zeros((3, 10)), np.ones(10))
    assert (found.mean, *found.over_units, *found.over_seeds) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-0.004, 0.01), "non-inferior"),
        ((-0.005, 0.01), "undecided"),  # the margin itself is not within the margin
        ((-0.02, -0.006), "inferior"),
        ((-0.02, -0.005), "undecided"),
        ((math.nan, math.nan), "undecided"),
    ],
)
def test_verdict(interval, expected):
    assert verdict(interval, 0.005) == expected


def test_all_depths_together():
    assert at_every_depth(["non-inferior"] * 3) == "non-inferior"
    assert at_every_depth(["non-inferior", "inferior", "undecided"]) == "inferior"


def test_interval_over_seeds_is_students():
    values = np.array([[0.81, 0.9], [0.83, 0.9], [0.82, 0.9]])
    mean, low, high = mean_over_seeds(values)
    expected = stats.t.interval(0.95, 2, loc=0.82, scale=stats.sem(values[:, 0]))
    assert (low[0], high[0]) == pytest.approx(expected)
    assert (mean[1], low[1], high[1]) == pytest.approx((0.9, 0.9, 0.9))
    assert np.isnan(mean_over_seeds(values[:1])[1:]).all()


def tiny_vit(task, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.1}  # a resume has to find the stream of random numbers where it was
    return ViTForImageClassification(
        ViTConfig(**sizes, **dropout, image_size=28, patch_size=14, num_channels=1, num_labels=3)
    )


@pytest.fixture
def tiny(monkeypatch):
    """The task `vit`, with 48 made-up images and a model of three blocks."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 28, 28), generator=generator, dtype=torch.uint8)
    images = tasks.Images(pixels, pixels.float().mean((1, 2)).argsort().argsort() // 16)
    data = tasks.Data(images, images, np.arange(48))
    for module in (training, measuring):
        monkeypatch.setattr(module, "data_of", lambda task, stage: data)
    groups = [list(range(start, start + 8)) for start in range(0, 48, 8)]
    monkeypatch.setattr(training, "groups_of", lambda task, stage, seed: groups)
    monkeypatch.setattr(training, "model_of", tiny_vit)
    return data


class Killed(Exception):
    pass


@pytest.mark.parametrize("objective", ["standard", "sampled", "heads"])
def test_a_killed_run_ends_at_the_same_weights(tiny, tmp_path, monkeypatch, objective):
    run = training.Run("screen", "vit", objective, 0)
    whole = training.Training(run, tmp_path / "whole")
    whole.finish(print)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)  # at every step

    def killed(text):
        if text.startswith("step 3 "):
            raise Killed

    with pytest.raises(Killed):
        training.Training(run, tmp_path / "killed").finish(killed)
    assert training.steps_done(run, tmp_path / "killed") == 3
    resumed = training.Training(run, tmp_path / "killed")
    resumed.finish(print)
    assert resumed.progress.nats == whole.progress.nats
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name
    # the heads are among what is trained: three blocks have two, each of a weight and a bias
    assert sum(name.startswith("heads.") for name in whole.parameters) == (4 if objective == "heads" else 0)


def test_what_is_written_is_read_back(tiny, tmp_path):
    for objective in ("standard", "heads"):
        trained = training.Training(training.Run("screen", "vit", objective, 0), tmp_path)
        trained.finish(print)
        result, units = measuring.measure(trained)
        measuring.write(result, units, tmp_path / "results", trained.run.name)
        # accuracy counted anew, image by image, with the model's own forward
        with torch.no_grad():
            answer = trained.stack.model(pixel_values=tiny.train.batch(range(48))["pixel_values"]).logits
        assert result["accuracy"][-1] == float((answer.argmax(1) == tiny.train.labels).double().mean())
        assert len(result["saturation"]) == 3
        assert result["similarity_to_last"]["cka"][-1] == pytest.approx(1)
    found = comparing.finished(tmp_path / "results", "screen")["vit"]
    assert list(found) == ["standard", "heads"]
    for one in found.values():
        np.testing.assert_allclose(1 - one.losses[0].mean(axis=0), one.quality()[0], atol=1e-6)
    apart = comparing.compare(found["heads"], found["standard"], 3)
    expected = found["heads"].quality()[0][2] - found["standard"].quality()[0][2]
    assert apart.shown(apart.loss.mean) == pytest.approx(100 * expected, abs=1e-4)
    stale = tmp_path / "results" / "screen-vit-heads-0.json"
    stale.write_text(stale.read_text().replace('"rate": 0.001', '"rate": 0.1'))
    with pytest.raises(ValueError, match=r"screen-vit-heads-0.json was trained with other settings \(rate 0.1\)"):
        comparing.finished(tmp_path / "results", "screen")
