from __future__ import annotations

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from anydepth.core.masks import Masks
from anydepth.core.stack import Stack
from anydepth.core.tokens import IGNORED, check_policy, default_policy, next_token_labels, select
from anydepth.errors import DataError, LabelError

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

STATE = torch.arange(24.0).reshape(2, 4, 3)
RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
LEFT = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]).bool()


@pytest.mark.parametrize(
    ("policy", "valid", "rows", "samples"),
    [
        ("first", RIGHT, [STATE[0, 0], STATE[1, 0]], [0, 1]),
        ("first", LEFT, [STATE[0, 1], STATE[1, 3]], [0, 1]),
        ("last", RIGHT, [STATE[0, 3], STATE[1, 1]], [0, 1]),
        ("last", LEFT, [STATE[0, 3], STATE[1, 3]], [0, 1]),
        ("mean", RIGHT, [STATE[0].mean(0), STATE[1, :2].mean(0)], [0, 1]),
        ("each", LEFT, [STATE[0, 1], STATE[0, 2], STATE[0, 3], STATE[1, 3]], [0, 0, 0, 1]),
    ],
)
def test_policies_by_hand(policy: str, valid: torch.Tensor, rows: list[torch.Tensor], samples: list[int]) -> None:
    selected, sample = select(STATE, valid, check_policy(policy))
    torch.testing.assert_close(selected, torch.stack(rows))
    assert sample.tolist() == samples


@pytest.mark.parametrize("policy", ["first", "last", "each", "mean"])
def test_padding_never_counts(policy: str) -> None:
    poisoned = STATE.masked_fill(~RIGHT.unsqueeze(-1), float("nan"))
    selected, _ = select(poisoned, RIGHT, check_policy(policy))
    torch.testing.assert_close(selected, select(STATE, RIGHT, check_policy(policy))[0])


@pytest.mark.parametrize("policy", ["first", "last", "each", "mean"])
def test_a_sample_of_padding_alone_has_no_row(policy: str) -> None:
    valid = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert set(select(STATE, valid, check_policy(policy))[1].tolist()) == {0}


def test_states_without_tokens_stand_for_themselves() -> None:
    state = torch.randn(5, 3)
    valid = Masks(lambda batch: state).of_states(torch.randn(5, 8), state)
    for policy in ("first", "last", "each", "mean"):
        assert torch.equal(select(state, valid, check_policy(policy))[0], state)


def test_low_precision_is_averaged_in_float32() -> None:
    state = torch.full((1, 4096, 1), 1.001, dtype=torch.bfloat16)
    mean, _ = select(state, torch.ones(1, 4096, dtype=torch.bool), "mean")
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(state[0, 0].item(), rel=1e-6)


def test_next_tokens() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    expected = [[6, 7, 8, IGNORED], [4, IGNORED, IGNORED, IGNORED]]
    assert next_token_labels({"input_ids": ids}, None, RIGHT).tolist() == expected
    left = [[IGNORED, 7, 8, IGNORED], [IGNORED] * 4]
    assert next_token_labels({"input_ids": ids}, None, LEFT).tolist() == left
    given = torch.tensor([[IGNORED, IGNORED, 7, 8], [9, 4, IGNORED, IGNORED]])
    expected = [[IGNORED, 7, 8, IGNORED], [4, IGNORED, IGNORED, IGNORED]]
    assert next_token_labels({"input_ids": ids}, given, RIGHT).tolist() == expected


class Pooled(tiny_models.PlainEncoder):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        keep = attention_mask.unsqueeze(-1)
        encoded = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head((encoded * keep).sum(1) / keep.sum(1))


def _build(name: str) -> tuple[nn.Module, object]:
    if name == "mean pooling":
        return Pooled().eval(), tiny_models.text()
    if name == "timm averages":
        return tiny_models.timm_vit("vit_base_patch16_siglip_gap_224")[0].eval(), torch.rand(3, 3, 8, 8)
    if name == "gpt2 without a head":
        return transformers.GPT2Model(transformers.GPT2Config(**tiny_models._GPT2)).eval(), tiny_models.text()
    if name == "vit without a head":
        return transformers.ViTModel(
            transformers.ViTConfig(**tiny_models._IMAGE), add_pooling_layer=False
        ).eval(), tiny_models.images()
    return tiny_models.build(name)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *((name, "first") for name in tiny_models.ENCODERS if name != "modernbert"),
        *((name, "first") for name in tiny_models.IMAGES if name != "beit"),
        ("beit", "mean"),  # BEiT's own default: its head reads the mean of the patches
        ("deit distilled", "first"),
        ("timm vit", "first"),
        ("timm deit distilled", "first"),
        ("timm averages", "mean"),
        ("nn.TransformerEncoder", "first"),
        ("mean pooling", "mean"),
        ("bert without a head", "first"),
        ("vit without a head", "first"),
        ("llama classifier", "last"),
        ("gpt2 classifier", "last"),
        ("gpt2 without a head", "last"),
        ("clip text", "last"),
        ("clip vision", "first"),
        ("nobody's", "first"),
    ],
)
def test_the_default_is_where_the_readout_looks(name: str, policy: str) -> None:
    model, batch = _build(name)
    with torch.no_grad():  # as a trace asks
        assert default_policy(Stack(model), batch, labels_each=False) == policy


def test_one_answer_per_position_means_each() -> None:
    model, batch = tiny_models.build("llama")
    assert default_policy(Stack(model), batch, labels_each=True) == "each"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(DataError, match=r"unknown token policy 'cls', expected one of first, last, each, mean"):
        check_policy("cls")
    with pytest.raises(DataError, match=r"mask is \(2, 3\), the states have \(2, 4\) positions: expected"):
        Masks(lambda batch: STATE).of_states({"attention_mask": torch.ones(2, 3)}, STATE)
    with pytest.raises(DataError, match="expected 'input_ids' in the batch"):
        next_token_labels(torch.zeros(2, 4), None, RIGHT)


def test_answers_at_more_positions_than_there_are_tokens_have_no_next_one() -> None:
    """As of a model that puts an image before its text."""
    message = "the model answers at 7 positions, and there are 4 tokens: which of its positions are theirs is not known"
    with pytest.raises(LabelError, match=message):
        next_token_labels({"input_ids": torch.ones(2, 4, dtype=torch.long)}, None, torch.ones(2, 7, dtype=torch.bool))


def test_streams_of_a_token_in_turn_have_its_padding() -> None:
    """Gemma-3n has four, as an axis before that of the positions."""
    settings = tiny_models.DECODERS["gemma2"] | {"laurel_rank": 4, "hidden_size_per_layer_input": 8}
    settings |= {"vocab_size_per_layer_input": tiny_models.VOCABULARY, "num_kv_shared_layers": 0}
    torch.manual_seed(0)
    model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**settings)).eval()
    batch = tiny_models.text()
    stack = Stack(model)
    state = stack.states(batch)[1]
    streams, tokens = 4, batch["attention_mask"].shape[1]
    assert state.shape[1] == streams * tokens
    valid = stack.valid_positions(batch, state)
    assert torch.equal(valid, batch["attention_mask"].bool().repeat(1, streams))


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_a_classifier_gives_its_decoder_the_text_one_place_later(kind: str) -> None:
    """MBart, besides, begins with the last token of the text."""
    settings = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 99}
    settings |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**settings, pad_token_id=0, bos_token_id=1)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 5, 2, 0, 0], [6, 2, 0, 0, 0]])
    stack = Stack(model)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    valid = stack.valid_positions(batch, stack.states(batch)[1])
    assert valid.sum(1).tolist() == [5, 4, 3]
    assert valid.int().diff(dim=1).max() <= 0, "padding comes last"
