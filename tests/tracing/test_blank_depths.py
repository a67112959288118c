"""A depth whose state or readout is not finite is blank, named, and touches no other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from anydepth import Trace, compare, trace
from anydepth.core.model_io import model_output
from anydepth.errors import NonFiniteStates, UnknownArchitecture, UnsupportedHead
from anydepth.measures.readout import saturation_depth
from anydepth.tracing.run import DEFAULT_MEASURES

torch.manual_seed(0)
X, Y = torch.randn(20, 8), torch.arange(20) % 5
BATCHES = [{"x": X[start : start + 5], "labels": Y[start : start + 5]} for start in range(0, 20, 5)]


class Spoiling(tiny_models.Block):
    """A block that hands on what it is given, but NaN where a test wants it; the block after it does not look there."""

    rows: Tensor | None = None
    mends = False

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(torch.nan_to_num(x, 0.0, 0.0, 0.0) if self.mends else x)
        return x if self.rows is None else x.masked_fill(self.rows(x), float("nan"))


class Model(nn.Module):
    """Five blocks; the second may spoil the state of some samples, which the third mends."""

    def __init__(self, spoils: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.trunk = nn.Linear(8, 16), nn.ModuleList(Spoiling(16) for _ in range(5))
        self.last = nn.Linear(16, 5)
        self.trunk[2].mends = True
        if spoils:
            self.trunk[1].rows = lambda x: x[:, :1] > x.new_tensor(LIMIT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        return self.last(x)


def states(model: Model) -> Tensor:
    """h[2] of all samples."""
    x = model.first(X)
    for block in model.trunk[:2]:
        x = block(x)
    return x


with torch.no_grad():
    LIMIT = float(states(Model(spoils=False))[:, 0].sort().values[-3])  # two samples are spoilt


@pytest.fixture(scope="module")
def spoilt() -> Trace:
    return trace(Model().eval(), BATCHES)


def test_the_depth_is_blank_in_everything_and_no_other_is(spoilt: Trace) -> None:
    with torch.no_grad():
        which = np.flatnonzero(states(Model(spoils=False))[:, 0] > LIMIT)
    assert len(which) == 2
    for name in (*spoilt.similarity, *spoilt.statistics):
        value = spoilt.similarity[name][:, -1] if name in spoilt.similarity else getattr(spoilt, name)
        assert np.flatnonzero(np.isnan(value)).tolist() == [2], name
    for name in spoilt.statistics:
        assert np.isnan(spoilt.interval(name)[:, 2]).all()
        assert np.isfinite(spoilt.interval(name)[:, [0, 1, 3, 4, 5]]).all()
    batch = which[0] // 5
    for what in ("the state at depth 2 holds NaN or infinity in batch", "the readout at depth 2 gives NaN in batch"):
        (note,) = [note for note in spoilt.notes if note.startswith(what)]
        assert note.startswith(f"{what} {batch}")
        assert f"first in sample {which[0]}: it is blank there" in note
    table = spoilt.by_class()
    assert table.accuracy[table.depth == 2].isna().all()
    assert table.accuracy[table.depth != 2].notna().all()


def test_saturation_is_that_of_the_other_depths(spoilt: Trace) -> None:
    kept = [0, 1, 3, 4, 5]
    expected = np.array(kept)[saturation_depth(spoilt.rows.prediction[:, kept])]
    np.testing.assert_array_equal(spoilt.saturation_depth, expected)
    assert spoilt.saturation[2] == 0
    assert spoilt.saturation.sum() == 20
    correct = (spoilt.rows.prediction == spoilt.rows.label[:, None])[:, kept]
    stays = [correct[correct[:, k], k:].all(1).mean() if correct[:, k].any() else np.nan for k in range(5)]
    np.testing.assert_allclose(spoilt.stays_correct[kept], stays)


def test_what_is_made_of_such_a_trace(spoilt: Trace, tmp_path: Path) -> None:
    spoilt.save(tmp_path / "t")
    loaded = Trace.load(tmp_path / "t")
    np.testing.assert_array_equal(loaded.accuracy, spoilt.accuracy)
    assert loaded.notes == spoilt.notes
    other = trace(Model(spoils=False).eval(), BATCHES, measures=[])
    found = compare(other, spoilt, measures=())
    for name, one in found.differences.items():
        if name != "settled":
            assert one.verdicts[2] == "undefined", name
            assert "undefined" not in one.verdicts[:2] + one.verdicts[3:]
    assert spoilt.to_frame().accuracy.isna().tolist() == [False, False, True, False, False, False]
    assert spoilt.effective_depth() >= 1


def test_merging_keeps_what_is_blank(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"keep_states": True, "measures": DEFAULT_MEASURES}
    ids = iter(range(20))
    named = [{**batch, "id": [next(ids) for _ in range(5)]} for batch in BATCHES]
    model = Model().eval()
    parts = [
        trace(model, half, out=tmp_path / str(index), **settings) for index, half in enumerate((named[:2], named[2:]))
    ]
    whole, merged = trace(model, named), parts[0].merge(parts[1])
    np.testing.assert_array_equal(np.isnan(merged.accuracy), np.isnan(whole.accuracy))
    np.testing.assert_allclose(merged.similarity["cka"], whole.similarity["cka"], atol=1e-6)
    assert any(note.startswith("the state at depth 2 holds NaN") for note in merged.notes)


def test_nothing_finite_is_refused() -> None:
    model = Model().eval()
    model.trunk[1].rows, model.trunk[2].mends = lambda x: x == x, False
    with pytest.raises(NonFiniteStates, match="own answer is NaN in batch 0, and the state not finite from depth 2 on"):
        trace(model, BATCHES)
    with pytest.raises(NonFiniteStates, match="the states at all depths hold NaN or infinity in batch 0"):
        trace(model, [{"x": torch.full((5, 8), torch.nan), "labels": Y[:5]}], readout=None)


# What a model answers with --------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    loss: Tensor
    scores: Tensor


@dataclass
class Record:
    loss: Tensor
    scores: Tensor


LOSS = torch.tensor(1.0)
ANSWERS = {
    "dict": lambda logits: {"scores": logits},
    "loss first": lambda logits: {"loss": LOSS, "scores": logits},
    "tuple": lambda logits: (LOSS, logits),
    "named tuple": lambda logits: Pair(LOSS, logits),
    "dataclass": lambda logits: Record(LOSS, logits),
    "known among others": lambda logits: {"features": logits @ torch.ones(5, 3), "logits": logits},
}


class Answering(Model):
    def __init__(self, form: Any) -> None:
        super().__init__(spoils=False)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(super().forward(x))


@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_is_found_under_any_name(form: str) -> None:
    expected = trace(Model(spoils=False).eval(), BATCHES, measures=[])
    found = trace(Answering(ANSWERS[form]).eval(), BATCHES, measures=[])
    np.testing.assert_array_equal(found.rows.prediction, expected.rows.prediction)
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)


def test_several_answers_under_unknown_names_are_refused_with_their_names() -> None:
    model = Answering(lambda logits: {"begin": logits, "end": logits[:, :3]}).eval()
    with pytest.raises(UnsupportedHead, match="Answering answers with 'begin', 'end', expected one answer"):
        trace(model, BATCHES)
    assert trace(model, BATCHES, readout=None).statistics == ()
    with pytest.raises(UnknownArchitecture, match="the model answers with dict"):
        model_output({"loss": LOSS})
