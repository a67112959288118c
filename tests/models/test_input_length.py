"""The maximum number of tokens, of models that state it in different places."""

from types import SimpleNamespace

import pytest
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

from anydepth.generation.modes import positions_of
from anydepth.models.input_length import max_input_length

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (BertModel(BertConfig(max_position_embeddings=20, **SIZES)), 20),
        (GPT2LMHeadModel(GPT2Config(n_positions=20, vocab_size=9, n_embd=8, n_layer=1, n_head=2)), 20),
        (RobertaForCausalLM(RobertaConfig(max_position_embeddings=20, is_decoder=True, **SIZES)), 18),
    ],
    ids=["bert", "gpt2", "roberta"],
)
def test_positions_that_a_padding_index_reserves_hold_no_token(model: nn.Module, expected: int) -> None:
    assert max_input_length(model) == expected
    assert positions_of(model) == expected
    assert max_input_length(model, SimpleNamespace(model_max_length=16)) == 16
    assert max_input_length(model, SimpleNamespace(model_max_length=10**30)) == expected


def test_a_nested_text_config_states_the_positions() -> None:
    from transformers import Gemma3Config

    model = nn.Linear(1, 1)
    model.config = Gemma3Config(text_config={"max_position_embeddings": 24})
    assert not hasattr(model.config, "max_position_embeddings")
    assert max_input_length(model) == positions_of(model) == 24


def test_a_model_that_states_nothing_takes_any_number() -> None:
    assert max_input_length(nn.Linear(1, 1)) is None
    assert max_input_length(nn.Linear(1, 1), SimpleNamespace(model_max_length=16)) == 16
