"""What padding does to answers: found by running a text with it and without, and never left unsaid."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import anydepth as ad
from anydepth.core.padding import counts_padding
from anydepth.errors import AnydepthWarning, DataError

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=32, num_labels=3, pad_token_id=0)
    return GPT2ForSequenceClassification(config).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=3, pad_token_id=0)).eval()


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZE, num_labels=3)).eval()


def batch(*lengths: int, left: bool = True) -> dict[str, torch.Tensor]:
    width, rows = max(lengths), torch.Generator().manual_seed(1)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = torch.randint(1, 30, (length,), generator=rows), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(lengths)) % 3}


@pytest.mark.parametrize(("make", "counts"), [(gpt2, True), (bert, True), (llama, False)])
def test_who_counts_positions_from_the_left(make, counts):
    """Against the model itself: does the answer to a text change when it is padded on the left?"""
    model, texts = make(), batch(4, 9)
    del texts["labels"]
    with torch.no_grad():
        padded = model(**texts).logits[0]
        alone = model(texts["input_ids"][:1, 5:]).logits[0]
    assert torch.allclose(padded, alone, atol=1e-5) is not counts
    assert counts_padding(ad.Stack(model), texts) is counts


def test_nothing_to_tell():
    stack, texts = ad.Stack(gpt2()), batch(4, 9)
    positions = (texts["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert counts_padding(stack, {**texts, "position_ids": positions}) is None
    assert counts_padding(stack, batch(4, 9, left=False)) is None
    assert counts_padding(stack, batch(7, 7)) is None
    assert counts_padding(stack, {"input_ids": texts["input_ids"]}) is None


@pytest.mark.parametrize("batches", [[batch(4, 9)], [batch(9, 9), batch(5, 9)]], ids=["first", "later"])
def test_a_trace_says_so(batches):
    with pytest.warns(
        AnydepthWarning, match="texts are padded on the left without position_ids, and this model counts"
    ):
        trace = ad.trace(gpt2(), batches, measures=[])
    assert sum("counts positions from the left" in note for note in trace.notes) == 1


def test_a_model_of_relative_positions_is_left_in_peace():
    trace = ad.trace(llama(), [batch(4, 9)], measures=[])  # a warning would be an error here
    assert not any("from the left" in note for note in trace.notes)


def test_early_exit_warns_once():
    exits = ad.EarlyExit(gpt2(), ad.Confidence(0.9))
    with pytest.warns(AnydepthWarning, match="counts positions from the left"):
        exits(batch(4, 9))
    exits(batch(3, 8))


def test_padding_alone_is_no_sample():
    texts = batch(5, 9, left=False)
    texts["attention_mask"][1] = 0
    with pytest.raises(
        DataError, match=r"sample 1 of batch 0 is padding alone \(its attention_mask holds no 1\), expected"
    ):
        ad.trace(bert(), [texts], measures=[])
    with pytest.raises(DataError, match="sample 1 of the batch is padding alone"):
        ad.EarlyExit(bert(), ad.Confidence(0.9))(texts)
