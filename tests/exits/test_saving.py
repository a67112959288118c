"""A calibrated model that is saved and read back is the same, and nothing else passes for it."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pytest
import tiny_models
import torch
import transformers
from exit_models import FOUND, bert

from anydepth import EarlyExit, Stack
from anydepth.core.heads import separate_heads
from anydepth.errors import PolicyError, TraceFileError
from anydepth.exits.policies import (
    POLICIES,
    AtDepth,
    Confidence,
    Convergence,
    Margin,
    Patience,
    Policy,
    as_plain,
    from_plain,
    policy_named,
)


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, len(checkpoints.VOCABULARY), (count, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    "policy",
    [
        Confidence(0.6, depths=(1, 2), temperature={1: 0.5, 2: 1.25}),
        Margin(0.25),
        Patience(2),
        Convergence(0.9, depths=[1, 2]),
        AtDepth(2),
    ],
)
def test_what_was_saved_comes_back(policy: Policy, tmp_path: Path) -> None:
    exits = EarlyExit(bert(tmp_path / "model"), policy, calibration=FOUND)
    expected = exits(batch())
    assert exits.save(tmp_path / "out", processor=checkpoints.tokenizer(), about={"data": "mine"}) == tmp_path / "out"
    again = EarlyExit.load(tmp_path / "out")
    assert again.policy.level == policy.level
    assert again.tested == exits.tested
    assert again.calibration == FOUND
    found = again(batch())
    assert found.depth.tolist() == expected.depth.tolist()
    torch.testing.assert_close(found.logits, expected.logits)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.config.num_hidden_layers == 3, "it is a plain model, too"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "[PAD]"


def test_each_depth_keeps_its_head(tmp_path: Path) -> None:
    model = bert(tmp_path / "model")
    heads = separate_heads(model.classifier, 3)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    exits = EarlyExit(Stack(model, heads=heads), Confidence(0.6))
    with pytest.raises(PolicyError, match="the model has a head for each depth, and no batch has shown yet where"):
        exits.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    expected = exits(batch())
    exits.save(tmp_path / "out")
    found = EarlyExit.load(tmp_path / "out")(batch())
    assert found.depth.tolist() == expected.depth.tolist()
    torch.testing.assert_close(found.logits, expected.logits)


def test_a_model_that_is_not_of_transformers_is_handed_over(tmp_path: Path) -> None:
    model = tiny_models.Nobodys().eval()
    x = torch.randn(4, 8)
    exits = EarlyExit(model, Confidence(0.4))
    exits.save(tmp_path / "out")
    found = EarlyExit.load(tmp_path / "out", model=model)(x)
    assert found.depth.tolist() == exits(x).depth.tolist()
    with pytest.raises(PolicyError, match="with other weights than this Nobodys has"):
        EarlyExit.load(tmp_path / "out", model=tiny_models.Nobodys())


def test_thresholds_of_another_model(tmp_path: Path) -> None:
    EarlyExit(bert(tmp_path / "model"), Confidence(0.6)).save(tmp_path / "out")
    deeper = bert(tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(PolicyError) as caught:
        EarlyExit.load(tmp_path / "out", model=deeper)
    assert str(caught.value) == "the thresholds are for a model of 3 blocks, and this one has 4: calibrate it"
    other = bert(tmp_path / "other")
    other.save_pretrained(tmp_path / "out")  # someone trains on, and saves to the same place
    with pytest.raises(PolicyError, match="with other weights than this BertForSequenceClassification has"):
        EarlyExit.load(tmp_path / "out")


def test_what_was_changed_promises_nothing(tmp_path: Path) -> None:
    EarlyExit(bert(tmp_path / "model"), Confidence(0.6), calibration=FOUND).save(tmp_path / "out")
    file = tmp_path / "out" / "exit.json"
    content = json.loads(file.read_text())
    content["policy"]["threshold"] = 0.1
    file.write_text(json.dumps(content))
    with pytest.raises(TraceFileError, match=r"exit.json was changed after it was written"):
        EarlyExit.load(tmp_path / "out")
    file.write_text(file.read_text()[:100])
    with pytest.raises(TraceFileError, match=r"exit.json is corrupt or cannot be read"):
        EarlyExit.load(tmp_path / "out")
    file.write_text('{"format": 99}')
    with pytest.raises(TraceFileError, match=r"exit.json has format 99, expected 2"):
        EarlyExit.load(tmp_path / "out")
    file.unlink()
    with pytest.raises(TraceFileError, match=r"exit.json does not exist"):
        EarlyExit.load(tmp_path / "out")


def test_every_kind_survives_json() -> None:
    for name in POLICIES:
        policy = policy_named(name, depths=(1,))
        plain = json.loads(json.dumps(as_plain(policy)))
        assert from_plain(plain) == policy
        assert plain["kind"] == name


def test_unknown_policies() -> None:
    with pytest.raises(PolicyError) as caught:
        policy_named("confidance")
    assert str(caught.value) == (
        "unknown policy 'confidance', expected one of confidence, margin, entropy, patience, convergence, depth: "
        "did you mean confidence?"
    )

    class Whim(Confidence):
        pass

    with pytest.raises(PolicyError, match="Whim is no policy of anydepth's, and cannot be saved"):
        as_plain(Whim(0.5))
