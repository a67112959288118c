from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from anydepth.core.heads import Heads, parameter_counts, separate_heads
from anydepth.core.stack import Stack
from anydepth.errors import ModelError, ObjectiveError, UnsupportedHead


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "roberta", "dinov2", "timm vit", "llama classifier"])
@torch.no_grad()
def test_each_depth_is_read_by_its_own_head(name: str) -> None:
    model, batch = tiny_models.build(name)
    plain = Stack(model)
    heads = separate_heads(plain.classifier(batch), plain.depth)
    assert len(heads) == plain.depth - 1
    for depth in range(1, plain.depth):
        assert isinstance(heads[depth], nn.Linear)
        heads[depth].weight.mul_(depth + 1)
        if heads[depth].bias is not None:
            heads[depth].bias.mul_(depth + 1)
    stack = Stack(model, heads=heads)
    states = stack.states(batch)
    for depth in range(1, stack.depth + 1):
        scale = depth + 1 if depth < stack.depth else 1
        own = stack.readout(states[depth], batch, depth=depth)
        torch.testing.assert_close(own, scale * plain.readout(states[depth], batch), rtol=1e-5, atol=1e-5)
        assert torch.equal(stack.readout(states[depth], batch), plain.readout(states[depth], batch))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, batch = tiny_models.build("bert")
    heads = separate_heads(Stack(model).classifier(batch), 4)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    heads.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["heads.safetensors"]
    back = Heads.load(tmp_path, model.classifier, 4)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), back.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    model, batch = tiny_models.build("bert")
    classifier = Stack(model).classifier(batch)
    with pytest.raises(UnsupportedHead, match="2 heads for BertForSequenceClassification of 4 blocks, expected 3: one"):
        Stack(model, heads=separate_heads(classifier, 3))
    with pytest.raises(ModelError, match=r"heads.safetensors' holds no heads for this model of 4 blocks"):
        Heads.load(tmp_path, classifier, 4)
    separate_heads(classifier, 3).save(tmp_path)
    with pytest.raises(
        ModelError, match=r"heads.safetensors' holds no heads for this model of 4 blocks: .*Missing key"
    ):
        Heads.load(tmp_path, classifier, 4)
    (tmp_path / "heads.safetensors").write_bytes(b"half of it")
    with pytest.raises(ModelError, match=r"heads.safetensors' holds no heads for this model of 4 blocks"):
        Heads.load(tmp_path, classifier, 4)
    model.requires_grad_(False)
    with pytest.raises(ObjectiveError, match="the classifier is frozen, so heads copied from it would not learn"):
        separate_heads(classifier, 4)


def test_a_model_without_a_classifier() -> None:
    class Bare(tiny_models.Nobodys):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Sequential(nn.Tanh())

    with pytest.raises(UnsupportedHead, match="Bare has nothing to train after its blocks: no classifier"):
        Stack(Bare()).classifier(torch.randn(3, 8))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_an_adapter_on_the_classifier_is_part_of_it() -> None:
    import peft

    model, batch = tiny_models.build("bert")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "classifier"], r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.normal_()
    plain = Stack(adapted)
    heads = separate_heads(plain.classifier(batch), plain.depth)
    stack = Stack(adapted, heads=heads)
    with torch.no_grad():
        states = stack.states(batch)
        for depth in range(1, stack.depth):
            own = stack.readout(states[depth], batch, depth=depth)
            torch.testing.assert_close(own, plain.readout(states[depth], batch))
            heads[depth].base_layer.weight.zero_()
            heads[depth].base_layer.bias.zero_()
            assert not torch.allclose(stack.readout(states[depth], batch, depth=depth), own)


def test_parameter_counts_of_real_shapes() -> None:
    """GPT-2 by its published sizes: 124,439,808 parameters, a tied vocabulary of 50,257 x 768."""
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    counts = parameter_counts(model, model.lm_head, 12)
    assert counts.single == 124_439_808
    assert counts.multi == 124_439_808 + 11 * 50_257 * 768
    assert counts.share == pytest.approx(3.4119, abs=1e-4)


@torch.no_grad()
def test_features_are_what_the_classifier_reads() -> None:
    for name, linear in (("gpt2", True), ("llama", True), ("granite", True), ("gemma2", False), ("bert", False)):
        model, batch = tiny_models.build(name)
        stack = Stack(model)
        states = stack.states(batch)
        features = stack.features(states[2], batch)
        assert (features is not None) == linear, name
        if features is not None:
            classifier = stack.classifier(batch)
            assert isinstance(classifier, nn.Linear)
            again = nn.functional.linear(features, classifier.weight, classifier.bias)
            torch.testing.assert_close(again, stack.readout(states[2], batch), rtol=1e-5, atol=1e-5)
