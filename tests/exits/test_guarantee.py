"""What a certificate counts, what it is for, and when it is withheld."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import timm
import tiny_models
import torch
import transformers
from exit_models import FOUND, batches, bert, build, looked
from scipy.stats import binom, binomtest
from torch import nn

import anydepth as ad
from anydepth.core.model_io import call_model, model_output, split_labels
from anydepth.data.settings import InputSettings
from anydepth.errors import CertificateError, PolicyError, UnsupportedHead
from anydepth.exits.calibration import Calibration, calibrate, parted
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import Confidence, Entropy, Margin, Policy, as_plain, from_plain
from anydepth.exits.saving import ExitFile
from anydepth.stats.certificates import Failures, minimal_depth, one_of_each

LOOSE: dict[str, Any] = {"tolerance": 0.2, "confidence": 0.9, "against": "model"}


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Confidence, Margin, Entropy])
def test_scores_keep_the_order_that_a_float32_softmax_ties(kind: type[Policy]) -> None:
    lead = torch.linspace(18, 600, 300)
    logits = torch.stack([lead, torch.zeros(300), -torch.ones(300)], 1)
    assert len(logits.softmax(1).amax(1).unique()) == 1, "in float32 all are exactly 1"
    scores = kind(0.5).scores(1, logits, None)[0]
    assert scores.dtype == torch.float64
    assert (scores.diff() > 0).all()


@pytest.mark.parametrize("kind", [Confidence, Margin, Entropy])
def test_a_level_comes_back_to_the_last_bit(kind: type[Policy]) -> None:
    torch.manual_seed(0)
    scores = kind(0.5).scores(1, torch.randn(200, 4) * torch.logspace(-1, 2, 200)[:, None], None)[0]
    for level in scores.tolist():
        policy = kind(0.5).at_level(level)
        assert policy.level == level
        assert from_plain(json.loads(json.dumps(as_plain(policy)))) == policy
        assert 0 <= policy.threshold <= 1


def test_log_odds_of_another_threshold() -> None:
    sure = Confidence(0.5).at_level(50.0)
    with pytest.raises(PolicyError, match=r"log_odds is 50.0, expected those of the threshold 0.5 \(0\): set both"):
        replace(sure, threshold=0.5)
    with pytest.raises(PolicyError, match="Entropy has no threshold that is a probability: leave log_odds out"):
        Entropy(0.5, log_odds=1.0)


def test_failures_along_a_path_are_those_of_each_level() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(200, 3)), 1)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    shown = ExitScores(
        depths=(1, 3, 4, 6), scores=scores, predictions=rng.integers(0, 3, (200, 4)), labels=rng.integers(0, 3, 200)
    )
    path = [np.inf, 2.0, 0.5, 0.5, 0.1, -0.7, -5.0]
    for against in ("model", "labels"):
        expected = [shown.failures(level, against) for level in path]
        assert shown.failures_along(path, against).tolist() == expected


# --- what counts -----------------------------------------------------------------------------------------------------


def copied(found: PolicyInputs, times: int) -> PolicyInputs:
    content = np.arange(len(found)).repeat(times)
    return replace(found.rows(content), digests=content.astype(np.uint64))


def test_copies_count_once() -> None:
    found = looked(600)
    alone = calibrate(Confidence(0.5), replace(found, digests=np.arange(600, dtype=np.uint64)), **LOOSE)[1]
    thrice = calibrate(Confidence(0.5), copied(found, 3), **LOOSE)[1]
    assert alone.notes == ()
    assert thrice.samples == alone.samples == (150, 300, 150)
    assert thrice.notes == ("1,200 of 1,800 samples repeat others: each content counts once, 600 in all",)
    with pytest.raises(CertificateError) as caught:
        calibrate(Confidence(0.5), copied(found.rows(np.arange(12)), 50), **(LOOSE | {"tolerance": 0.01}))
    assert str(caught.value) == (
        "there are 12 distinct samples among 600, of which 6 can certify, and to certify a tolerance of 0.01 with 0.9 "
        "confidence takes at least 230, even without a failure: get 448 other ones, or raise the tolerance"
    )


def test_no_content_is_in_two_parts() -> None:
    rng = np.random.default_rng(1)
    content = rng.integers(0, 150, 600)
    found = replace(looked(150).rows(content), digests=content.astype(np.uint64))
    parts = [set(part.digests.tolist()) for part in parted(found, 3) if part.digests is not None]
    assert sum(map(len, parts)) == len(np.unique(content))
    assert not any(one & other for one, other in pairwise([*parts, parts[0]]))


def test_a_frequent_input_that_fails_is_not_hidden_among_distinct_ones() -> None:
    """One content in 400 fails; it is a third of all rows, so whoever is served by these exits is failed that often."""
    final = np.zeros(400, dtype=np.int64)
    seen = np.zeros((400, 1, 2), np.float32)
    seen[:, 0, 0] = np.linspace(1, 2, 400)
    seen[7] = [0, 9]
    early = np.where(np.arange(400) == 7, 1, 0)
    found = PolicyInputs(
        depths=(1, 2),
        seen=seen,
        predictions=np.stack([early, final], 1),
        labels=None,
        digests=np.arange(400, dtype=np.uint64),
    )
    settings: dict[str, Any] = {"tolerance": 0.05, "confidence": 0.9, "against": "model", "tune": False}
    assert calibrate(Confidence(0.5), found, **settings)[1].certificate is not None
    often = found.rows(np.concatenate([np.arange(400), np.full(200, 7)]))
    assert calibrate(Confidence(0.5), often, **settings)[1].certificate is None


def test_which_copy_stays_is_drawn_and_not_chosen_by_its_label() -> None:
    content = np.array([3, 3, 3, 5, 3])
    kept = [one_of_each(content, seed).tolist() for seed in range(400)]
    assert all(3 in rows and len(rows) == 2 for rows in kept)
    counts = np.bincount([next(row for row in rows if row != 3) for rows in kept], minlength=5)
    assert (counts[[0, 1, 2, 4]] > 60).all()


def test_certified_depths_count_distinct_samples() -> None:
    predictions = np.tile([9, 1, 2, 2], (600, 1))
    with pytest.raises(CertificateError, match="there are 12 distinct samples among 600, and to certify a tolerance"):
        minimal_depth(predictions, None, against="model", tolerance=0.01, confidence=0.95, contents=np.arange(600) % 12)
    found = minimal_depth(
        predictions, None, against="model", tolerance=0.01, confidence=0.95, contents=np.arange(600) % 400
    )
    assert found.certificate is not None
    assert found.certificate.samples == 400
    assert found.notes == ("200 of 600 samples repeat others: each content counts once, 400 in all",)


def test_a_trace_and_early_exit_know_copies_whatever_their_batch() -> None:
    model, parts = batches("bert", count=40)
    wider = [{name: nn.functional.pad(values, (0, 3)) if values.ndim == 2 else values for name, values in one.items()}
             for one in parts]  # fmt: skip
    trace = ad.trace(model, [*parts, *wider], measures=[], labels=False)
    assert trace.minimal_depth(0.2, 0.8).notes == (
        "40 of 80 samples repeat others: each content counts once, 40 in all",
    )
    exits = ad.EarlyExit(model, Confidence(0.5)).calibrate([*parts, *wider], tolerance=0.3, confidence=0.8)
    assert exits.calibration is not None
    assert exits.calibration.samples == (10, 20, 10)


@pytest.mark.parametrize(("failures", "samples"), [(0, 10), (3, 10), (10, 10), (12, 149)])
def test_exact_intervals(failures: int, samples: int) -> None:
    expected = binomtest(failures, samples).proportion_ci(0.95, method="exact")
    one = Failures(name="x", samples=samples, failures=failures)
    np.testing.assert_allclose(one.interval(), [expected.low, expected.high], atol=1e-9)
    assert one.excess(0.1) == pytest.approx(binom.sf(failures - 1, samples, 0.1))


def test_held_out_samples_that_contradict_it_are_said() -> None:
    found = replace(FOUND, samples=(100, 200, 100), held_out_failures=14)
    assert len(found.warnings) == 1
    assert "warning: the held-out samples contradict the certificate (so many failures have p = 0.00046 at 5 %)" in str(
        found
    )
    assert replace(FOUND, held_out_failures=5).warnings == ()


def test_a_class_that_fails_far_more_often_is_said() -> None:
    classes = (
        Failures(name="common", samples=290, failures=2),
        Failures(name="rare", samples=10, failures=6),
        Failures(name="never seen to fail", samples=5, failures=0),
    )
    found = replace(FOUND, classes=classes)
    (warning,) = found.warnings
    assert warning.startswith(
        "warning: class 'rare' fails far more often than 5 %: 6 of 10 (60.0 %, exact 95 % interval"
    )
    assert "by class: common 2 of 290 (0.7 %, exact 95 % interval 0.1–2.5), rare 6 of 10" in str(found)


def test_rare_classes_of_a_real_calibration_are_counted_by_name() -> None:
    found = looked(2000)
    calibration = calibrate(Confidence(0.5), found, **LOOSE, names=("a", "b", "c", "d"))[1]
    assert [one.name for one in calibration.classes] == ["a", "b", "c", "d"]
    assert calibration.certificate is not None
    total = calibration.certificate.failures + calibration.held_out_failures
    assert sum(one.failures for one in calibration.classes) == total
    assert sum(one.samples for one in calibration.classes) == sum(calibration.samples[1:])


# --- the model it is for ----------------------------------------------------------------------------------------------


def without_a_classifier() -> dict[str, tuple[nn.Module, Any]]:
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    text = {"input_ids": torch.randint(3, 60, (30, 6)), "attention_mask": torch.ones(30, 6, dtype=torch.long)}
    vit = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0)
    return {
        "bert": (transformers.BertModel(config), text),
        "vit": (transformers.ViTModel(vit), {"pixel_values": torch.rand(30, 1, 8, 8)}),
        "timm": (plain, torch.rand(30, 3, 32, 32)),
    }


@pytest.mark.parametrize("name", without_a_classifier())
def test_a_model_without_a_classifier_is_refused(name: str) -> None:
    model, batch = without_a_classifier()[name]
    exits = ad.EarlyExit(model.eval(), Confidence(0.05))
    for use in (lambda: exits.calibrate([batch], tolerance=0.3, confidence=0.8), lambda: exits(batch)):
        with pytest.raises(UnsupportedHead, match="that are no logits: it has no classifier to stop early; load it"):
            use()


def test_a_model_changed_in_memory_promises_nothing(tmp_path: Path) -> None:
    model = bert(tmp_path / "model")
    exits = ad.EarlyExit(model, Confidence(0.6), calibration=FOUND)
    assert exits.calibration == FOUND
    model.to(torch.device("cpu"))
    assert exits.calibration == FOUND
    kept = model.classifier.weight.detach().clone()
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    assert exits.calibration is not None
    assert exits.calibration.certificate is None
    assert str(exits.calibration) == (
        "nothing is guaranteed: the model was changed after it was calibrated: calibrate it again"
    )
    with pytest.raises(PolicyError, match="the model was changed after it was calibrated: calibrate it again before"):
        exits.save(tmp_path / "out")
    with torch.no_grad():
        model.classifier.weight.copy_(kept)
    assert exits.calibration == FOUND
    model.config.id2label = {0: "no", 1: "yes"}
    assert exits.calibration.certificate is None


def test_a_saved_model_whose_classes_or_config_were_changed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ad.EarlyExit(bert(tmp_path / "model"), Confidence(0.6), calibration=FOUND).save(folder)
    assert ad.EarlyExit.load(folder).calibration == FOUND
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"id2label": {"0": "swapped", "1": "LABEL_1"}}))
    found = ad.EarlyExit.load(folder).calibration
    assert found is not None
    assert found.withheld is not None
    assert found.withheld.startswith(
        "nothing is guaranteed: class 0 is called 'swapped', and was 'LABEL_0' when it was"
    )
    file.write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(
        PolicyError, match=r"with another config than this BertForSequenceClassification has \(hidden_act\)"
    ):
        ad.EarlyExit.load(folder)
    model = bert(tmp_path / "model").half()
    with pytest.raises(
        PolicyError, match="the thresholds are for float32 weights, and these are float16: calibrate it"
    ):
        ad.EarlyExit.load(folder, model=model)


def test_inputs_made_otherwise() -> None:
    before = InputSettings(kind="text", processor="a", max_length=32, columns=("text",), device="cpu")
    assert before.differences(replace(before, device="cuda")) == ()
    assert InputSettings.from_plain(json.loads(json.dumps(before.as_plain()))) == before
    assert before.differences(replace(before, processor="b", max_length=512, columns=("a", "b"))) == (
        "the tokenizer is another than when it was calibrated",
        "texts are cut at 512 tokens, and were at 32 when it was calibrated",
        "it reads 'a' with 'b' of the data, and read 'text' when it was calibrated",
    )


def test_what_was_calibrated_on_batches_of_ones_own_promises_nothing_of_files(tmp_path: Path) -> None:
    exits = ad.EarlyExit(bert(tmp_path / "model"), Confidence(0.6), calibration=FOUND)
    exits.save(tmp_path / "out", processor=checkpoints.tokenizer())
    saved = ExitFile.read(tmp_path / "out")
    now = InputSettings(kind="text", processor="a", max_length=32, columns=("text",), device="cpu")
    found = saved.calibration_for(exits.stack, now)
    assert found is not None
    assert found.withheld == (
        "nothing is guaranteed: it was calibrated in Python, on batches made there in an unknown way"
    )
    assert saved.calibration_for(exits.stack) == FOUND


# --- labels ----------------------------------------------------------------------------------------------------------


def question_answering() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    inputs = {"input_ids": torch.randint(3, 60, (6, 9)), "attention_mask": torch.ones(6, 9, dtype=torch.long)}
    return transformers.BertForQuestionAnswering(config).eval(), inputs


def test_the_loss_is_never_the_answer() -> None:
    model, inputs = question_answering()
    asked = inputs | {"start_positions": torch.arange(6), "end_positions": torch.arange(6)}
    name, answer = model_output(call_model(model, asked))
    assert (name, tuple(answer.shape)) == ("start_logits", (6, 9))
    assert model_output(model(**asked))[0] == "start_logits", "also where something else gave it the labels"
    assert model_output(model(**asked, return_dict=False))[1].shape == (6, 9)
    one, other = (ad.trace(model, [batch], measures=["cka"]) for batch in (inputs, asked))
    np.testing.assert_array_equal(one.similarity["cka"], other.similarity["cka"])
    assert one.digests.tolist() == other.digests.tolist(), "labels are no part of a sample's content"


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
def test_labels_by_every_name_that_collators_know(name: str) -> None:
    model, batch = build("bert")
    labels = torch.randint(0, tiny_models.CLASSES, (8,))
    expected = ad.EarlyExit(model, Confidence(0.4))(batch)
    torch.testing.assert_close(ad.EarlyExit(model, Confidence(0.4))({**batch, name: labels}).logits, expected.logits)
    trace = ad.trace(model, [{**batch, name: labels}], measures=[])
    assert trace.rows is not None
    assert trace.rows.label.tolist() == labels.tolist()


def test_what_a_forward_cannot_do_without_is_no_label() -> None:
    class Conditioned(nn.Module):
        def forward(self, x: torch.Tensor, label: torch.Tensor, mc_labels: Any = None) -> torch.Tensor:
            return x + label

    batch = {"x": torch.ones(2), "label": torch.ones(2), "mc_labels": torch.ones(2), "input_labels": torch.ones(2)}
    kept, labels = split_labels(batch, Conditioned())
    assert (sorted(kept), labels) == (["input_labels", "label", "x"], None)


def test_a_calibration_in_words_when_nothing_is_certified() -> None:
    none = Calibration(certificate=None, level=None, samples=(4, 8, 4), held_out_failures=0, held_out_depth=4.0)
    assert str(none) == none.guarantee == "nothing could be certified: every sample goes to the last depth"
