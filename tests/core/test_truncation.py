from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.heads import Heads, separate_heads
from anydepth.core.model_io import call_model, model_output
from anydepth.core.stack import Stack
from anydepth.core.truncation import truncate
from anydepth.errors import TruncationError

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def answer(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return model_output(call_model(model, batch))[1]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", tiny_models.CASES)
def test_it_answers_as_the_readout_did(name: str, depth: int, tmp_path: Path) -> None:
    model, batch = tiny_models.build(name)
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


@pytest.mark.parametrize("name", [*tiny_models.ENCODERS, *tiny_models.DECODERS, *tiny_models.IMAGES])
def test_transformers_alone_saves_and_loads_it(name: str, tmp_path: Path) -> None:
    model, batch = tiny_models.build(name)
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


def longformer() -> tuple[nn.Module, Any, str | None]:
    settings = tiny_models._USUAL | tiny_models._SPECIAL | {"attention_window": [8] * 4, "max_position_embeddings": 66}
    return (
        transformers.LongformerForSequenceClassification(transformers.LongformerConfig(**settings)),
        tiny_models.text(),
        None,
    )


def gemma3n() -> tuple[nn.Module, Any, str | None]:
    """Lists, a number of blocks from the end, and weights in which all blocks have a part."""
    settings = (
        tiny_models._USUAL
        | tiny_models._WINDOWED
        | tiny_models._SPECIAL
        | {"laurel_rank": 4, "num_kv_shared_layers": 2}
    )
    settings |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny_models.VOCABULARY}
    return transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**settings)), tiny_models.text(), None


def bart(part: str) -> tuple[nn.Module, Any, str | None]:
    """An encoder and a decoder of one depth, which one config states in three places."""
    model, batch = tiny_models.seq2seq()
    config = model.config
    config.encoder_layers = config.num_hidden_layers = 3
    model = transformers.BartForConditionalGeneration(config).double()
    inputs = {"input_ids": batch["input_ids"], "decoder_input_ids": batch["input_ids"]}
    return model, inputs, f"model.{part}.layers"


def clip() -> tuple[nn.Module, Any, str | None]:
    """Two towers of one depth, of which one is cut."""
    text, image = tiny_models._USUAL | tiny_models._SPECIAL, tiny_models._IMAGE
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=16))
    path = next(name for name, one in model.vision_model.named_modules() if isinstance(one, nn.ModuleList))
    return model, {**tiny_models.text(), **tiny_models.images()}, f"vision_model.{path}"


SPECIAL: dict[str, Any] = {"longformer": longformer, "gemma3n": gemma3n, "clip": clip}
SPECIAL |= {f"bart {part}": lambda part=part: bart(part) for part in ("encoder", "decoder")}


@pytest.mark.parametrize("name", SPECIAL)
def test_configs_with_more_than_one_entry_for_the_depth(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch, path = SPECIAL[name]()
    stack = Stack(model.eval(), blocks=path)
    with torch.no_grad():
        expected = stack.readout(stack.states(batch)[2], batch)
    cut = truncate(stack, 2, batch=batch)
    torch.testing.assert_close(answer(cut, batch), expected)
    cut.save_pretrained(tmp_path)
    back, report = type(model).from_pretrained(tmp_path, dtype=model.dtype, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(answer(back.eval(), batch), expected)
    assert len(back.get_submodule(stack.path)) == 2
    assert (len(stack.model.get_submodule(stack.path)), stack.depth) == (stack.depth, 3 if "bart" in name else 4)
    config = back.config
    if name == "longformer":
        assert config.attention_window == cut.config.attention_window == [8, 8]
        assert model.config.attention_window == [8] * 4
    if name == "gemma3n":
        assert (len(config.intermediate_size), config.num_kv_shared_layers, config.sliding_window) == (2, 0, 4)
    if name == "clip":
        assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (4, 2)
    if name == "bart encoder":
        assert (config.encoder_layers, config.num_hidden_layers, config.decoder_layers) == (2, 2, 3)


def test_what_modules_keep_of_a_forward_with_gradients_is_no_obstacle() -> None:
    """RecurrentGemma's blocks keep their last recurrent state."""
    model, batch = tiny_models.build("bert")
    block = model.bert.encoder.layer[0]
    block.kept = next(block.parameters()) * 2
    cut = truncate(model, 2, batch=batch)
    kept = cut.bert.encoder.layer[0].kept
    assert torch.equal(kept, block.kept)
    assert (kept.requires_grad, block.kept.requires_grad) == (False, True)


def test_a_class_that_builds_its_last_block_otherwise() -> None:
    """Gemma-4's last block always attends to all positions: cut after one with a window, it would be another model."""
    settings = tiny_models.DECODERS["gemma2"] | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
    settings |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99, "num_kv_shared_layers": 0}
    settings |= {"global_head_dim": 8, "num_global_key_value_heads": 2}
    model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**settings)).eval()
    message = "its layer_type of block 0.self_attn is 'full_attention', the model's 'sliding_attention'"
    with pytest.raises(TruncationError, match=f"cut after block 1 does not .*; built with 1 of its blocks, {message}"):
        truncate(model, 1, batch=tiny_models.text())


def test_a_list_as_long_as_the_model_is_deep_by_chance_stays() -> None:
    config = transformers.ViTConfig(
        **tiny_models._IMAGE | {"num_hidden_layers": 2, "image_size": [8, 8]}, favourites=[7, 8]
    )
    model = transformers.ViTForImageClassification(config).eval()
    cut = truncate(model, 1, batch=tiny_models.images())
    assert (cut.config.num_hidden_layers, cut.config.image_size, cut.config.favourites) == (1, [8, 8], [7, 8])


def test_a_model_that_was_changed_is_cut_as_it_is() -> None:
    """No config makes it, before or after: it goes by its state dict."""
    model, batch = tiny_models.build("bert")
    model.classifier = nn.Sequential(nn.LayerNorm(tiny_models.WIDTH), nn.Linear(tiny_models.WIDTH, 3))
    cut = truncate(model, 2, batch=batch)
    assert (cut.config.num_hidden_layers, model.config.num_hidden_layers) == (2, 4)
    assert answer(cut, batch).shape == (3, 3)


def test_a_head_of_a_tied_vocabulary_is_saved_as_its_own(tmp_path: Path) -> None:
    model, batch = tiny_models.build("gpt2")
    heads = separate_heads(model.lm_head, 4)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    stack = Stack(model, heads=heads)
    cut = truncate(stack, 2, batch=batch)
    cut.save_pretrained(tmp_path)
    back = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(answer(back, batch), stack.readout(stack.states(batch)[2], batch, depth=2))
    assert model.config.tie_word_embeddings


def test_a_head_that_the_class_has_no_place_for() -> None:
    model, batch = tiny_models.build("gpt2")
    width, classes = tiny_models.WIDTH, tiny_models.VOCABULARY
    heads = Heads(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes)) for _ in range(3))
    message = r"GPT2LMHeadModel cut after block 2 of 4 could not be loaded again, .* has no lm_head.0.bias"
    with pytest.raises(TruncationError, match=message):
        truncate(Stack(model, heads=heads), 2, batch=batch)


def test_a_cut_model_that_does_not_run() -> None:
    """Its cache wants at least one block of full attention."""
    sizes = tiny_models._USUAL | tiny_models._GROUPED | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "linear_num_value_heads": 2}
    sizes |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    model = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**sizes | tiny_models._SPECIAL)).eval()
    with pytest.raises(TruncationError, match=r"Qwen3NextForCausalLM cut after block 2 does not run \(.*; cut it aft"):
        truncate(model, 2, batch=tiny_models.text())


def test_others_go_by_their_state_dict() -> None:
    for name in ("timm vit", "nobody's"):
        model, batch = tiny_models.build(name)
        cut = truncate(model, 2)
        fresh = truncate(tiny_models.build(name, seed=1)[0], 2)
        fresh.load_state_dict(cut.state_dict())
        assert torch.equal(answer(fresh, batch), answer(cut, batch))


def test_a_head_goes_with_its_depth() -> None:
    model, batch = tiny_models.build("bert")
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
    model, batch = tiny_models.build("vit")
    assert truncate(model.train(), 2, batch=batch).training
    assert model.training


def test_depths_that_do_not_exist() -> None:
    model, _ = tiny_models.build("bert")
    for depth in (0, 5, -1):
        with pytest.raises(TruncationError, match=f"depth is {depth}, expected 1..4 for BertForSequenceClassification"):
            ad.truncate(model, depth)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_adapters_are_to_be_merged_first() -> None:
    import peft

    adapted = peft.get_peft_model(tiny_models.build("bert")[0], peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(TruncationError, match=r"holds adapters of 4 blocks: merge them \(merge_and_unload\) first"):
        truncate(adapted, 2)
    assert Stack(truncate(adapted.merge_and_unload(), 2)).depth == 2


class Counting(tiny_models.Nobodys):
    """Keeps its depth where nobody looks: the last state is scaled by it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(*self.last, Scale(self))


class Scale(nn.Module):
    def __init__(self, model: tiny_models.Nobodys) -> None:
        super().__init__()
        self.__dict__["_trunk"] = model.trunk

    def forward(self, x: Tensor) -> Tensor:
        return x * len(self.__dict__["_trunk"])


def test_a_cut_that_changes_the_rest_is_noticed() -> None:
    with pytest.raises(TruncationError, match="Counting cut after block 2 does not answer as its readout there: larg"):
        truncate(Counting(), 2, batch=torch.randn(3, 8))


def test_a_config_that_is_shared_is_not_touched() -> None:
    config = transformers.BertConfig(**tiny_models._USUAL)
    model = transformers.BertModel(config).eval()
    truncate(model, 1)
    assert model.config.num_hidden_layers == config.num_hidden_layers == 4
