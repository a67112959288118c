"""Every way to use a model that lies on another device than its batches: a pretended one, in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import forks
import numpy as np
import pretended_device
import pytest
import tiny_models
import torch
from pretended_device import Pretended, pretended
from torch import Tensor

import anydepth as ad
from anydepth.core.provenance import model_fingerprint, unread_weights
from anydepth.generation import at_depth, dynamic_exit, self_speculative


def moved(batch: Any) -> Any:
    return {name: Pretended(value) for name, value in batch.items()}


def on_the_device(name: str, check: Callable[[Any, Any, Any], None]) -> None:
    """Check a model on the device against its copy on the CPU, in a fork: the device is for the whole process."""
    model, batch = tiny_models.build(name)
    plain = copy.deepcopy(model)

    def work() -> None:
        pretended_device.set_up()
        with pretended(model), torch.no_grad():
            check(model, plain, batch)

    assert forks.forked(work) == 0


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_the_device_refuses_what_a_gpu_refuses(name: str) -> None:
    def check(model: Any, plain: Any, batch: Any) -> None:
        there, here = model(**moved(batch)).logits.cpu(), plain(**batch).logits
        if name == "gpt2":  # what padding answers depends on the kernel
            there, here = (each[batch["attention_mask"].bool()] for each in (there, here))
        torch.testing.assert_close(there, here)
        with pytest.raises(RuntimeError, match="same device"):
            model(**batch)

    on_the_device(name, check)


@pytest.mark.filterwarnings("ignore:texts are padded on the left")
@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_a_trace(name: str) -> None:
    def check(model: Any, plain: Any, batch: Any) -> None:
        data = [batch if name == "gpt2" else {**batch, "labels": torch.arange(3)}]
        tokens = "each" if name == "gpt2" else "first"
        there, here = (ad.trace(each, data, tokens=tokens) for each in (model, plain))
        np.testing.assert_array_equal(there.accuracy, here.accuracy)
        for measure in here.similarity:
            np.testing.assert_allclose(there.similarity[measure], here.similarity[measure], atol=1e-6)

    on_the_device(name, check)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_exits_of_a_batch_that_lies_elsewhere(name: str) -> None:
    def check(model: Any, plain: Any, batch: Any) -> None:
        policy = ad.Confidence(0.3)
        there, here = (ad.EarlyExit(each, policy)(batch) for each in (model, plain))
        assert there.depth.tolist() == here.depth.tolist()
        torch.testing.assert_close(there.logits.cpu(), here.logits)

    on_the_device(name, check)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_cut_model(name: str) -> None:
    def check(model: Any, plain: Any, batch: Any) -> None:
        cut = ad.truncate(model, 2, batch=moved(batch))
        assert next(cut.parameters()).device == pretended_device.DEVICE
        expected = ad.truncate(plain, 2, batch=batch)(**batch).logits
        torch.testing.assert_close(cut(**moved(batch)).logits.cpu(), expected, equal_nan=True)

    on_the_device(name, check)


def test_generation() -> None:
    def check(model: Any, plain: Any, batch: Any) -> None:
        one = {name: value[:1] for name, value in batch.items()}
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        policy = ad.Confidence(0.05, depths=(2,))
        for method in (at_depth(4), at_depth(2), self_speculative(2), dynamic_exit(policy)):
            texts = [
                each.generate(**given, **options, custom_generate=method).cpu().tolist()
                for each, given in ((model, moved(one)), (plain, one))
            ]
            assert texts[0] == texts[1], method

    on_the_device("gpt2", check)


def test_weights_that_are_put_away_are_read_where_they_are() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny_models.build("bert")
    before = model_fingerprint(model)
    state: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(**batch).logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"), state_dict=state)
        assert any(parameter.device.type == "meta" for parameter in model.parameters())
        assert model_fingerprint(model) == before
        assert unread_weights(model) == []
        out = ad.EarlyExit(model, ad.AtDepth(4))(batch)
    torch.testing.assert_close(out.logits, expected)


def test_weights_that_nobody_has_are_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    assert unread_weights(model) == ["1.weight", "1.bias"]
    assert model_fingerprint(model) == model_fingerprint(model)
