"""Training an encoder-decoder at every depth of its decoder, held against the model's own states and head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from train_worker import arguments

import anydepth as ad
from anydepth.training.trainer import AlignedTrainer

VOCABULARY, LENGTH, DEPTH, FIRST = 12, 5, 3, 3
Sample = dict[str, Tensor]


def bart() -> transformers.BartForConditionalGeneration:
    """Two blocks that read, three that write."""
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "decoder_layers": DEPTH, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, max_position_embeddings=16, dropout=0.0, init_std=0.1, **sizes, **special
    )
    return transformers.BartForConditionalGeneration(config)


def copying(count: int, seed: int) -> list[Sample]:
    """Texts to be repeated, some of them shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number in range(count):
        ids = torch.randint(FIRST, VOCABULARY, (LENGTH,), generator=generator)
        length = LENGTH - number % 2
        mask, labels = (torch.arange(LENGTH) < length).long(), ids.clone()
        labels[length:] = -100
        samples.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return samples


@torch.no_grad()
def losses(model: transformers.BartForConditionalGeneration, samples: list[Sample]) -> list[float]:
    """The cross-entropy at every depth of the decoder, out of the model's own states, head and bias."""
    model.eval()
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    start = torch.full((len(samples), 1), model.config.decoder_start_token_id)
    before = torch.cat([start, batch["labels"][:, :-1]], dim=1)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=before.masked_fill(before == -100, 0),
        output_hidden_states=True,
    )
    by_depth = []
    for state in output.decoder_hidden_states[1:]:
        logits = model.lm_head(state) + model.final_logits_bias
        by_depth.append(float(nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())))
    return by_depth


def test_training_lowers_the_loss_at_every_depth_of_a_decoder(tmp_path: Path) -> None:
    model, held_out = bart(), copying(64, seed=1)
    before = losses(model, held_out)
    trainer = AlignedTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=30, learning_rate=1e-2, per_device_train_batch_size=16),
        train_dataset=copying(512, seed=0),
        objective="aligned",
    )
    trainer.train()
    after = losses(model, held_out)
    assert len(before) == len(after) == DEPTH
    chance = float(torch.tensor(VOCABULARY - FIRST).float().log())
    for depth, (first, last) in enumerate(zip(before, after, strict=True), start=1):
        assert first > chance - 0.1, f"nothing is known at depth {depth} before"
        assert last < min(0.7 * first, chance), f"depth {depth} learns to copy"
    # what a trace says of the trained model is what the loop says
    batch = {name: torch.stack([sample[name] for sample in held_out]) for name in held_out[0]}
    trace = ad.trace(model, [batch], measures=[])
    assert trace.cross_entropy[1:] == pytest.approx(after, rel=1e-4)
