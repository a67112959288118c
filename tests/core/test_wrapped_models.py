"""Models of transformers inside modules that take a whole batch as one dict, as those of sentence-transformers do."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

import anydepth as ad
from anydepth.core.stack import Stack
from anydepth.core.tokens import default_policy


class Words(nn.Module):
    """Adds the states of its model to the features that it is given, in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        output = self.model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        features["token_embeddings" if "logits" not in output else "scores"] = output[0]
        return features


class Pooling(nn.Module):
    """The mean of the valid positions; `peaks`: the largest of each feature, written in place where gradients fail."""

    def __init__(self, *, peaks: bool = False) -> None:
        super().__init__()
        self.peaks = peaks

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        states, mask = features["token_embeddings"], features["attention_mask"].unsqueeze(-1)
        if self.peaks:
            features["sentence_embedding"] = (states * mask).relu_().log1p_().log1p_().amax(1)
        else:
            features["sentence_embedding"] = (states * mask).sum(1) / mask.sum(1)
        return features


class Chain(nn.Sequential):
    """Hands one dict through its modules."""

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        for module in self:
            input = module(input)
        return input


def bert() -> dict[str, int]:
    return {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 40,
    }


def chains() -> dict[str, Chain]:
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(BertConfig(num_labels=3, **bert()))
    return {
        "mean": Chain(Words(BertModel(BertConfig(**bert()))), Pooling()),
        "in place": Chain(Words(BertModel(BertConfig(**bert()))), Pooling(peaks=True)),
        "one module": Chain(Words(classifier)),  # the chain is a list of one class: the blocks lie further in
    }


def batch() -> dict[str, Tensor]:
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(1, 40, (4, 7)) * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", ["mean", "in place", "one module"])
@torch.no_grad()
def test_states_and_readouts_are_those_of_the_model_inside(name: str) -> None:
    chain, given = chains()[name].eval(), batch()
    stack, names = Stack(chain), set(given)
    answer = "scores" if name == "one module" else "sentence_embedding"
    inner: Any = chain[0].model
    hidden = inner(**given, output_hidden_states=True).hidden_states
    states, last = stack.forward(given)
    assert set(given) == names, "a batch is what it was"
    assert len(states) == len(hidden) == 4
    assert torch.equal(last, chain(dict(given))[answer])
    for depth in range(1, 4):
        torch.testing.assert_close(states[depth], hidden[depth], rtol=0, atol=0)
        if name == "one module":
            expected = inner.classifier(inner.bert.pooler(hidden[depth]))
        else:
            expected = chain[1]({"token_embeddings": hidden[depth], **given})[answer]
        torch.testing.assert_close(stack.readout(states[depth], given), expected)


def test_the_readout_shows_where_it_looks_also_without_gradients() -> None:
    expected = {"mean": "mean", "in place": "mean", "one module": "first"}
    for name, chain in chains().items():
        assert default_policy(Stack(chain.eval()), batch(), labels_each=False) == expected[name]


@pytest.mark.parametrize("name", ["mean", "in place", "one module"])
@torch.no_grad()
def test_the_config_of_the_model_inside_is_cut_with_its_blocks(name: str) -> None:
    chain, given = chains()[name].eval(), batch()
    stack = Stack(chain)
    expected = stack.readout(stack.states(given)[2], given)
    cut = ad.truncate(stack, 2, batch=given)
    inner: Any = cut.get_submodule("0.model")
    with tempfile.TemporaryDirectory() as folder:
        inner.save_pretrained(folder)
        loaded = type(inner).from_pretrained(folder).eval()
    assert loaded.config.num_hidden_layers == inner.config.num_hidden_layers == 2
    answer = Chain(Words(loaded), *chain[1:])(dict(given))
    torch.testing.assert_close(list(answer.values())[-1], expected)
    assert chain[0].model.config.num_hidden_layers == 3, "the model itself is as it was"
