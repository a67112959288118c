from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from torch import Tensor, nn

import anydepth as ad
from anydepth.calling import answer_of, call_model
from anydepth.errors import TruncationError
from anydepth.heads import separate_heads
from anydepth.stack import Stack
from anydepth.truncating import truncate

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def answer(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return answer_of(call_model(model, batch))[1]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", zoo.CASES)
def test_it_answers_as_the_readout_did(name: str, depth: int, tmp_path: Path) -> None:
    model, batch = zoo.build(name)
    before, blocks = copy.deepcopy(model.state_dict()), Stack(model).depth
    stack = Stack(model)
    with torch.no_grad():
        expected = stack.readout(stack.states(batch)[depth], batch)
    cut = truncate(model, depth)
    assert type(cut) is type(model)
    torch.testing.assert_close(answer(cut, batch), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert Stack(cut).depth == depth
    # the model itself is as it was, and shares nothing with the cut one
    assert Stack(model).depth == blocks
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [*zoo.ENCODERS, *zoo.DECODERS, *zoo.IMAGES])
def test_transformers_alone_saves_and_loads_it(name: str, tmp_path: Path) -> None:
    model, batch = zoo.build(name)
    cut = truncate(model, 2)
    cut.save_pretrained(tmp_path)
    back, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(answer(back.eval(), batch), answer(cut, batch), equal_nan=True)
    config = json.loads((tmp_path / "config.json").read_text())
    depths = {key: value for key, value in config.items() if "layer" in key and "interval" not in key}
    assert 4 not in depths.values()
    assert not [key for key, value in depths.items() if isinstance(value, list) and len(value) == 4]
    tied = getattr(model.config, "tie_word_embeddings", False) and model.get_output_embeddings() is not None
    if tied:
        assert back.get_output_embeddings().weight is back.get_input_embeddings().weight


def test_others_go_by_their_state_dict() -> None:
    for name in ("timm vit", "nobody's"):
        model, batch = zoo.build(name)
        cut = truncate(model, 2)
        fresh = truncate(zoo.build(name, seed=1)[0], 2)
        fresh.load_state_dict(cut.state_dict())
        assert torch.equal(answer(fresh, batch), answer(cut, batch))


def test_a_head_goes_with_its_depth() -> None:
    model, batch = zoo.build("bert")
    plain = Stack(model)
    heads = separate_heads(plain.classifier(batch), plain.depth)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    stack = Stack(model, heads=heads)
    with torch.no_grad():
        state = stack.states(batch)[2]
        expected = stack.readout(state, batch, depth=2)
        assert not torch.allclose(expected, stack.readout(state, batch))
    cut = truncate(stack, 2, batch={**batch, "labels": torch.zeros(3).long()})
    torch.testing.assert_close(answer(cut, batch), expected)
    assert cut.classifier is not heads[2]
    with pytest.raises(TruncationError, match="the model has a head for each depth, and a batch shows where it goes"):
        truncate(stack, 2)
    torch.testing.assert_close(answer(truncate(stack, 4), batch), answer(model, batch))


def test_a_training_model_stays_one() -> None:
    model, batch = zoo.build("vit")
    assert truncate(model.train(), 2, batch=batch).training
    assert model.training


def test_depths_that_do_not_exist() -> None:
    model, _ = zoo.build("bert")
    for depth in (0, 5, -1):
        with pytest.raises(TruncationError, match=f"depth is {depth}, expected 1..4 for BertForSequenceClassification"):
            ad.truncate(model, depth)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_adapters_are_to_be_merged_first() -> None:
    import peft

    adapted = peft.get_peft_model(zoo.build("bert")[0], peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(TruncationError, match=r"holds adapters of 4 blocks: merge them \(merge_and_unload\) first"):
        truncate(adapted, 2)
    assert Stack(truncate(adapted.merge_and_unload(), 2)).depth == 2


class Counting(zoo.Nobodys):
    """Keeps its depth where nobody looks: the last state is scaled by it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(*self.last, Scale(self))


class Scale(nn.Module):
    def __init__(self, model: zoo.Nobodys) -> None:
        super().__init__()
        self.__dict__["_trunk"] = model.trunk

    def forward(self, x: Tensor) -> Tensor:
        return x * len(self.__dict__["_trunk"])


def test_a_cut_that_changes_the_rest_is_noticed() -> None:
    with pytest.raises(TruncationError, match="Counting cut after block 2 does not answer as its readout there: larg"):
        truncate(Counting(), 2, batch=torch.randn(3, 8))


def test_a_config_that_is_shared_is_not_touched() -> None:
    config = transformers.BertConfig(**zoo._USUAL)
    model = transformers.BertModel(config).eval()
    truncate(model, 1)
    assert model.config.num_hidden_layers == config.num_hidden_layers == 4
