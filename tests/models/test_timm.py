"""What `timm:NAME` means."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from anydepth.errors import ModelError
from anydepth.models import loading as models


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **size)
    timm.models.save_for_hf(model, str(folder), model_args=size, safe_serialization=True)
    return folder


def test_timm_folder(timm_folder):
    loaded = models.load(f"timm:{timm_folder}", device="cpu")
    assert (loaded.task, loaded.kind, len(loaded.classes)) == ("image-classification", "image", 5)
    saved = load_file(timm_folder / "model.safetensors")
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in saved.items())
    assert loaded.processor([Image.new("L", (40, 30))]).shape == (1, 3, 16, 16)


def test_timm_features(timm_folder):
    loaded = models.load(f"timm:{timm_folder}", task="features", device="cpu", dtype="bfloat16")
    assert (loaded.task, loaded.classes) == ("features", ())
    assert loaded.model(torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)).shape == (1, 24)


def test_timm_random_weights():
    loaded = models.load("timm:vit_tiny_patch16_224", pretrained=False, device="cpu")
    assert (loaded.task, len(loaded.classes)) == ("image-classification", 1000)
    assert loaded.notes == ("the weights are random, not the checkpoint's",)


def test_timm_out_of_reach():
    with pytest.raises(ModelError, match=r"'timm:vit_tiny_patch16_224' is no local path, .* \(HF_HUB_OFFLINE is set\)"):
        models.load("timm:vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", "timm has no model 'vit_tiny_patch16_225': did you mean vit_tiny_patch16_224"),
        (
            "vit_tiny_patch16_224.nobody",
            r"the model 'timm:vit_tiny_patch16_224.nobody' cannot be loaded: Invalid pretrained",
        ),
        ("vit_base_patch16_gap_224", "timm has no safetensors weights for .*: take a name with weights on the hub"),
        ("", "timm has no model ''"),
    ],
)
def test_timm_names(name, message):
    with pytest.raises(ModelError, match=message):
        models.load(f"timm:{name}")


def test_timm_task():
    with pytest.raises(ModelError, match="is an image model, and causal-lm is a task of text models"):
        models.load("timm:vit_tiny_patch16_224", task="causal-lm")


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm and torchvision: pip install 'anydepth\[timm\]'"):
        models.load("timm:vit_tiny_patch16_224")


def test_timm_pickles_are_refused(timm_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((timm_folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"are pickles \(model.pth\)"):
        models.load(f"timm:{tmp_path}")
