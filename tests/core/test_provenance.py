from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

import anydepth.core.provenance
from anydepth.core.provenance import data_fingerprint, describe_model, model_fingerprint, now, versions
from anydepth.core.stack import Stack


def test_the_fingerprint_is_of_names_types_shapes_and_values() -> None:
    model, _ = tiny_models.build("bert")
    same, _ = tiny_models.build("bert")
    other, _ = tiny_models.build("bert", seed=1)
    found = model_fingerprint(model)
    assert found == model_fingerprint(same) == model_fingerprint(model.train())
    others = [
        other,
        tiny_models.build("electra")[0],
        tiny_models.build("bert")[0].half(),
        nn.Sequential(tiny_models.build("bert")[0]),
    ]
    assert len({found, *map(model_fingerprint, others)}) == 5


@pytest.mark.parametrize("index", [0, 1, -1])
def test_one_bit_of_one_weight_changes_it(index: int) -> None:
    model, _ = tiny_models.build("bert")
    before = model_fingerprint(model)
    weight = list(model.parameters())[index]
    with torch.no_grad():
        flat = weight.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
    assert model_fingerprint(model) != before


def test_large_tensors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2000, 2000)
    whole = model_fingerprint(model)
    monkeypatch.setattr(anydepth.core.provenance, "_HASHED_WHOLE", 2**21)
    sampled = model_fingerprint(model)
    assert sampled != whole
    with torch.no_grad():
        model.weight.add_(1.0)
    assert model_fingerprint(model) != sampled


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_has_one(dtype: torch.dtype) -> None:
    assert len(model_fingerprint(nn.BatchNorm1d(3).to(dtype))) == 32


def test_data_are_the_same_in_any_order() -> None:
    digests = np.random.default_rng(0).integers(2**64 - 1, size=20, dtype=np.uint64)
    assert data_fingerprint(digests) == data_fingerprint(digests[::-1])
    assert data_fingerprint(digests) != data_fingerprint(digests[1:])
    assert data_fingerprint(digests) != data_fingerprint(np.append(digests, digests[:1])), "a sample twice is another"


def test_what_is_said_of_a_model() -> None:
    model, _ = tiny_models.build("vit")
    model.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    found = describe_model(Stack(model), "my-vit")
    assert (found["name"], found["class"], found["depth"]) == (
        "my-vit",
        "ViTForImageClassification",
        tiny_models.BLOCKS,
    )
    assert found["classes"] == {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}
    assert describe_model(Stack(tiny_models.Nobodys()))["name"] == "Nobodys"
    assert describe_model(Stack(tiny_models.Nobodys()))["classes"] == {}


def test_versions_and_time() -> None:
    assert {"anydepth", "torch", "transformers", "numpy"} <= versions().keys()
    assert now().endswith("+00:00")
