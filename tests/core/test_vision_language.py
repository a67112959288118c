"""Language models that see images: both stacks against loops over the model's own hidden states, norm and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import odd_models
import pytest
import tiny_models
import torch
import transformers
from tiny_models import BLOCKS, VOCABULARY, WIDTH
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.stack import Stack
from anydepth.errors import UnknownArchitecture

Batch = dict[str, Tensor]
SAMPLES, PATCHES, IMAGE, START = 3, 16, VOCABULARY - 1, VOCABULARY - 2
_WORDS = tiny_models._USUAL | tiny_models._GROUPED | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TOKENS = {"image_token_id": IMAGE, "video_token_id": VOCABULARY - 3, "vision_start_token_id": START}
_PATCHES = {"depth": BLOCKS, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def qwen2_vl() -> nn.Module:
    seeing = {**_PATCHES, "embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2, "in_channels": 3}
    config = transformers.Qwen2VLConfig(text_config=_rotated(), vision_config=seeing, **_TOKENS)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> nn.Module:
    """Its image blocks attend within windows, whose patches it puts side by side first."""
    seeing = {**_PATCHES, "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48, "in_channels": 3}
    seeing |= {"window_size": 8, "fullatt_block_indexes": [1, 3]}
    config = transformers.Qwen2_5_VLConfig(text_config=_rotated(), vision_config=seeing, **_TOKENS)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _rotated() -> dict[str, Any]:
    return {**_WORDS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}


def patches() -> Batch:
    """Texts, padded on the left, around an image each: its patches lie behind those of the others, in one axis."""
    ids, mask = torch.randint(5, START - 1, (SAMPLES, 12)), torch.ones(SAMPLES, 12, dtype=torch.long)
    mask[1, :3] = mask[2, :2] = 0
    ids[:, 3], ids[:, 4:8] = START, IMAGE  # two by two patches are one token
    ids *= mask
    width = 3 * _PATCHES["temporal_patch_size"] * _PATCHES["patch_size"] ** 2
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.rand(SAMPLES * PATCHES, width),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * SAMPLES),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "qwen2-vl": (qwen2_vl, patches),
    "qwen2.5-vl": (qwen2_5_vl, patches),
    "llava": (odd_models.llava, odd_models.seen_texts),
}


def built(name: str) -> tuple[Any, Batch]:
    """A model whose answers depend on its images, and a batch."""
    torch.manual_seed(0)
    build, batch = MODELS[name]
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, batch()


@pytest.mark.parametrize("name", MODELS)
def test_the_language_stack_is_read_out_by_the_models_own_norm_and_head(name: str) -> None:
    model, batch = built(name)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        darker = model(**{**batch, "pixel_values": batch["pixel_values"] / 2}).logits
    assert not torch.allclose(output.logits, darker, atol=1e-3), "images matter"
    trace = ad.trace(model, [batch], measures=["cka"])
    valid = batch["attention_mask"].bool()
    counted = valid[:, :-1] & valid[:, 1:]
    targets = batch["input_ids"][:, 1:][counted]
    assert trace.depth == BLOCKS
    assert len(trace.rows.sample) == int(counted.sum())
    for depth, state in enumerate(output.hidden_states):
        with torch.no_grad():  # the last of these has been through the norm
            logits = output.logits if depth == BLOCKS else model.lm_head(model.model.language_model.norm(state))
        read = logits[:, :-1][counted]
        assert trace.accuracy[depth] == pytest.approx(float((read.argmax(-1) == targets).float().mean()))
        nats = float(nn.functional.cross_entropy(read, targets))
        assert trace.cross_entropy[depth] == pytest.approx(nats, rel=1e-4)
    rows = [state[valid] for state in output.hidden_states[:-1]]
    expected = ad.trace_states(rows, measures=["cka"], groups=valid.nonzero()[:, 0]).similarity["cka"]
    np.testing.assert_allclose(trace.similarity["cka"][:-1, :-1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen2-vl", "join all samples in one axis"),
        ("qwen2.5-vl", "join all samples in one axis"),
        # it takes the hidden states that hooks of transformers keep of these blocks
        ("llava", "runs by itself, but not with stubs in the place of its blocks"),
    ],
)
def test_image_stacks_that_are_not_read_by_their_last_state_are_refused_for_that(name: str, reason: str) -> None:
    model, batch = built(name)
    with pytest.raises(UnknownArchitecture, match=reason):
        Stack(model, stack="image").verify(batch)


def test_the_image_tower_of_a_language_model_is_a_model_of_its_own() -> None:
    model, batch = built("llava")
    tower = model.model.vision_tower
    with torch.no_grad():
        output = tower(batch["pixel_values"], output_hidden_states=True)
        stack = Stack(tower)
        states = stack.states({"pixel_values": batch["pixel_values"]})
        for depth, (state, hidden) in enumerate(zip(states, output.hidden_states, strict=True)):
            torch.testing.assert_close(state, hidden, rtol=0, atol=0)
            early = stack.readout(state, {"pixel_values": batch["pixel_values"]})
            expected = tower.post_layernorm(hidden[:, 0])
            torch.testing.assert_close(early, expected, msg=f"depth {depth}")
