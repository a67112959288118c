"""Tiny models, batches and readouts for the tests of exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import tiny_models
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from anydepth.exits.calibration import Calibration
from anydepth.exits.exit_scores import PolicyInputs
from anydepth.stats.certificates import Certificate


def build(name: str, count: int = 8) -> tuple[nn.Module, Any]:
    """A model, and a batch of more samples than the zoo's, of differing lengths where it is text."""
    model, batch = tiny_models.build(name)
    draw = torch.Generator().manual_seed(3)
    if isinstance(batch, dict) and "input_ids" in batch:
        ids = torch.randint(5, tiny_models.VOCABULARY, (count, 12), generator=draw)
        mask = (torch.arange(12) < torch.randint(4, 13, (count, 1), generator=draw)).long()
        mask[0] = 1
        return model, {"input_ids": ids * mask, "attention_mask": mask}
    shape = batch.shape if isinstance(batch, Tensor) else batch["pixel_values"].shape
    values = torch.randn(count, *shape[1:], generator=draw)
    return model, values if isinstance(batch, Tensor) else {"pixel_values": values}


def batches(name: str, count: int = 40) -> tuple[nn.Module, list[dict[str, Any]]]:
    model, _ = build(name)
    parts = []
    for start in range(count // 8):
        torch.manual_seed(start)
        ids = torch.randint(5, tiny_models.VOCABULARY, (8, 12))
        mask = (torch.arange(12) < torch.randint(4, 13, (8, 1))).long()
        parts.append(
            {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, tiny_models.CLASSES, (8,))}
        )
    return model, parts


CERTIFICATE = Certificate(against="labels", tolerance=0.05, confidence=0.9, samples=200, failures=3, p_value=0.01)
FOUND = Calibration(
    certificate=CERTIFICATE, level=0.75, samples=(100, 200, 100), held_out_failures=2, held_out_depth=1.5
)


def bert(folder: Path, **settings: Any) -> transformers.BertForSequenceClassification:
    checkpoints.bert(folder, **({"num_hidden_layers": 3} | settings))
    return transformers.BertForSequenceClassification.from_pretrained(folder).eval()


CLASSES, LAST = 4, 5


def looked(count: int = 600, *, sharpness: tuple[float, ...] = (0.3, 1.0, 1.0, 3.0), seed: int = 0) -> PolicyInputs:
    """Logits that are calibrated with the last answer, each depth then multiplied by its own sharpness."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, LAST - 1, CLASSES)) * np.array([2.0, 1.0, 0.5, 0.0])[None, :, None]
    logits = rng.normal(size=(count, 1, CLASSES)) * rng.exponential(2.0, (count, 1, 1)) + noise
    p = functional.softmax(torch.from_numpy(logits), 2)
    # the last answer is drawn from what the deepest tested depth says, so that depth is calibrated as it is
    final = torch.multinomial(p[:, -1], 1, generator=torch.Generator().manual_seed(seed))[:, 0].numpy()
    seen = (logits * np.array(sharpness)[None, :, None]).astype(np.float32)
    predictions = np.concatenate([seen.argmax(2), final[:, None]], 1)
    labels = rng.integers(0, CLASSES, count)
    return PolicyInputs(depths=(1, 2, 3, 4, LAST), seen=seen, predictions=predictions, labels=labels)
