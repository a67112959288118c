"""Traces of models in several stages, against slow loops over hooks and the plain formula of CKA."""

from __future__ import annotations

import json
from pathlib import Path

import naive_measures
import numpy as np
import odd_models
import pytest
import staged_models
import torch

import anydepth as ad
from anydepth.core.model_io import samples_of
from anydepth.core.stack import Stack
from anydepth.errors import DataError
from anydepth.measures.readout import saturation_depth


def pixels(seed: int, count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(count, 3, 16, 16, generator=generator),
        "labels": torch.randint(staged_models.CLASSES, (count,), generator=generator),
    }


def test_a_trace_of_stages_of_differing_shape(tmp_path: Path) -> None:
    model, _, case = staged_models.build("swin")
    data = [pixels(seed, count) for seed, count in enumerate((7, 5, 8))]
    whole = {name: torch.cat([batch[name] for batch in data]) for name in data[0]}
    labels = whole.pop("labels")
    ad.trace(model, data, out=tmp_path / "t", keep_states=True)
    trace = ad.Trace.load(tmp_path / "t")
    means = [state.mean(1).double().numpy() for state in odd_models.slow_states(model, whole, case)]
    np.testing.assert_allclose(trace.similarity["cka"], naive_measures.cka(means, debiased=True), atol=1e-5)
    cosines = naive_measures.cosines(means, centred=True).mean(0)
    assert np.isnan(cosines[0, 2:]).all()
    np.testing.assert_allclose(trace.similarity["cosine"], cosines, atol=1e-5)
    first = case.firsts[-1]
    read = {depth: odd_models.slow_readout(model, whole, case, depth) for depth in range(first, trace.depth + 1)}
    assert np.isnan(trace.accuracy[:first]).all()
    for depth, logits in read.items():
        assert trace.accuracy[depth] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
        nats = torch.nn.functional.cross_entropy(logits, labels)
        assert trace.cross_entropy[depth] == pytest.approx(float(nats), rel=1e-5)
    tops = np.stack([logits.argmax(1).numpy() for logits in read.values()], axis=1)
    last_stage = np.arange(first, trace.depth + 1)
    padded = np.concatenate([np.full((20, 1), -1), tops], axis=1)  # depth 0 of what is counted from 1
    np.testing.assert_array_equal(trace.saturation_depth, last_stage[saturation_depth(padded) - 1])
    assert trace.provenance["tokens"] == "mean"
    assert trace.stages == dict(zip(trace.provenance["model"]["stages"], case.firsts, strict=True))
    frame = trace.to_frame()
    assert frame.stage.tolist() == [
        f"swin.encoder.layers.{stage}.blocks" for stage, count in enumerate((2, 2, 3)) for _ in range(count)
    ]
    assert trace.states is not None
    assert trace.states.widths == (8, 8, 16, 16, 32, 32, 32)
    notes = [note for note in trace.notes if "stage" in note]
    assert notes == [
        "token policy 'mean': positions of different stages do not correspond",
        "the readout exists from depth 4 on: the model's head accepts the states of its last stage alone, and what is "
        "read out is blank at the depths before",
    ]
    assert any(note.startswith("cosine is undefined between depths of different widths") for note in trace.notes)


def test_both_sides_of_an_encoder_decoder_in_one_trace() -> None:
    model, batch, case = staged_models.build("bart")
    batch = samples_of(batch, torch.tensor([0, 1, 2, 0, 1, 2]))
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"] == 0, torch.randint(5, 99, (6, 12)))
    labels = batch["decoder_input_ids"].roll(-1, 1).masked_fill(batch["decoder_attention_mask"] == 0, -100)
    trace = ad.trace(Stack(model, stack="both"), [{**batch, "labels": labels}], measures=["cka", "cka_biased"])
    masks = [batch["attention_mask"]] * 5 + [batch["decoder_attention_mask"]] * 4
    means = [
        ((state * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)).double().numpy()
        for state, mask in zip(odd_models.slow_states(model, batch, case), masks, strict=True)
    ]
    np.testing.assert_allclose(trace.similarity["cka"], naive_measures.cka(means, debiased=True), atol=1e-4)
    np.testing.assert_allclose(trace.similarity["cka_biased"], naive_measures.cka(means, debiased=False), atol=1e-5)
    counted = labels != -100
    assert len(trace.rows.sample) == int(counted.sum())
    assert np.isnan(trace.cross_entropy[:5]).all()
    for depth in range(5, 9):
        read = odd_models.slow_readout(model, batch, case, depth)
        nats = torch.nn.functional.cross_entropy(read[counted], labels[counted])
        assert trace.cross_entropy[depth] == pytest.approx(float(nats), rel=1e-5)
    alone = ad.trace(Stack(model), [{**batch, "labels": labels}], measures=[])
    np.testing.assert_array_equal(trace.rows.prediction[:, 5:], alone.rows.prediction[:, 1:])
    assert trace.stages == {"model.encoder.layers": 0, "model.decoder.layers": 5}
    assert alone.stages == {}


def test_positions_of_different_stages_are_not_paired() -> None:
    model, _, _ = staged_models.build("swin")
    with pytest.raises(DataError, match="tokens is 'each', and SwinForImageClassification runs in stages"):
        ad.trace(model, [pixels(0, 4)], tokens="each")


def test_traces_in_stages_are_merged(tmp_path: Path) -> None:
    model, _, _ = staged_models.build("swin")
    data = [{**pixels(seed, 6), "id": list(range(6 * seed, 6 * seed + 6))} for seed in range(2)]
    parts = [ad.trace(model, [batch], out=tmp_path / str(row), keep_states=True) for row, batch in enumerate(data)]
    whole, merged = ad.trace(model, data), parts[0].merge(parts[1])
    np.testing.assert_array_equal(merged.accuracy, whole.accuracy)
    np.testing.assert_allclose(merged.similarity["cka"], whole.similarity["cka"], atol=1e-6)
    assert merged.stages == whole.stages
    written = json.loads((tmp_path / "0" / "trace.json").read_text("utf-8"))
    assert written["provenance"]["model"]["stages"] == whole.stages
