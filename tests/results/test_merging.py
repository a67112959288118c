from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from naive import same
from torch import nn

from anydepth.errors import IncompatibleTraces
from anydepth.tracing.run import trace, trace_states
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

COUNT = 40
X = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor(naive.classes(COUNT))
IDS = [f"sample {index}" for index in range(COUNT)]
FROM_SUMS = ("cka", "cka_biased")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking a split of samples takes minutes and tells nothing


def narrow() -> nn.Module:
    """So narrow that a few rows are enough for CKA to come from sums."""
    torch.manual_seed(0)
    return tiny_models.Nobodys(width=4, depth=3).eval()


def of(chosen: Sequence[int], out: Path | None = None, **settings: Any) -> Trace:
    """The trace of some of the samples."""
    parts = itertools.batched(chosen, 16) if hasattr(itertools, "batched") else [chosen]
    batches = [{"x": X[list(at)], "labels": Y[list(at)], "id": [IDS[i] for i in at]} for at in parts]
    return trace(narrow(), batches, out=out, keep_states=out is not None, **{"sums": True, **settings})


def sorted_by_id(found: Trace) -> dict[str, Any]:
    """Rows and contents by the name of their sample, whatever order they came in."""
    assert found.rows is not None
    names = [found.ids[sample] for sample in found.rows.sample]
    order = sorted(range(len(names)), key=lambda row: (names[row], found.rows.position[row]))
    columns = {field.name: getattr(found.rows, field.name)[order] for field in dataclasses.fields(found.rows)}
    columns.pop("sample")
    contents = dict(sorted(zip(found.ids, found.digests.tolist(), strict=True)))
    return {"names": [names[row] for row in order], "contents": contents, **columns}


def merged_is_whole(merged: Trace, whole: Trace) -> None:
    one, other = sorted_by_id(merged), sorted_by_id(whole)
    assert (one.pop("names"), one.pop("contents")) == (other.pop("names"), other.pop("contents"))
    for name, column in one.items():
        np.testing.assert_allclose(column, other[name], atol=2e-6, rtol=0, err_msg=name)
    assert list(merged.similarity) == list(whole.similarity)
    for name, matrix in merged.similarity.items():
        np.testing.assert_allclose(matrix, whole.similarity[name], atol=1e-6, rtol=0, err_msg=name)
    assert merged.statistics == whole.statistics
    for name in merged.statistics:
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-6)
        np.testing.assert_allclose(merged.interval(name), whole.interval(name), atol=1e-6)
    assert merged.saturation.tolist() == whole.saturation.tolist()
    same_about = ("model", "data", "samples", "positions", "answers", "tokens", "measures", "readout", "dtype")
    assert {key: merged.provenance[key] for key in same_about} == {key: whole.provenance[key] for key in same_about}


# --- merged is as good as whole --------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(st.data())
def test_any_split_with_states_merges_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("split")
    order = data.draw(st.permutations(range(COUNT)))
    cut = data.draw(st.integers(1, COUNT - 1))
    a, b = of(order[:cut], folder / "a"), of(order[cut:], folder / "b")
    whole = of(range(COUNT))
    merged = a.merge(b)
    merged_is_whole(merged, whole)
    for name, values in merged.quantiles.items():
        np.testing.assert_allclose(values, whole.quantiles[name], atol=1e-6)
    assert merged.states is not None
    assert merged.states.count == COUNT


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(st.data())
def test_any_split_merges_to_the_whole_from_sums_alone(data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(COUNT)))
    first = data.draw(st.integers(10, COUNT - 20))
    second = data.draw(st.integers(first + 10, COUNT - 10))
    parts = [of(chosen, measures=FROM_SUMS) for chosen in (order[:first], order[first:second], order[second:])]
    a, b, c = parts
    whole = of(range(COUNT), measures=FROM_SUMS)
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        merged_is_whole(merged, whole)
        assert merged.states is None
        assert merged.moments is not None
        assert merged.moments.count == COUNT


def test_parts_in_order_merge_to_the_very_same(tmp_path: Path) -> None:
    """With the samples in the same order, intervals of similarity are the same as well."""
    a, b = of(range(25), tmp_path / "a"), of(range(25, COUNT), tmp_path / "b")
    merged, whole = a.merge(b), of(range(COUNT))
    same(merged, whole, tolerance=1e-6)
    assert merged.similarity_intervals.keys() == {"cosine", "cosine_raw", "cka"}


@pytest.mark.parametrize("name", ["gpt2", "bert tagger"])
def test_positions_stay_with_their_samples(name: str, tmp_path: Path) -> None:
    texts = naive.sentences(12)
    tags = None if name == "gpt2" else [text % tiny_models.CLASSES for text in texts]
    batches = [
        batch | {"id": IDS[5 * at : 5 * at + len(batch["input_ids"])]}
        for at, batch in enumerate(naive.padded(texts, tags, 5))
    ]
    model, _ = tiny_models.build(name)
    parts = [
        trace(model, part, out=tmp_path / str(index), keep_states=True)
        for index, part in enumerate((batches[:1], batches[1:]))
    ]
    merged, whole = parts[0].merge(parts[1]), trace(model, batches)
    same(merged, whole, tolerance=1e-6)
    merged_is_whole(merged, whole)


def test_what_was_saved_and_read_back_merges_as_well(tmp_path: Path) -> None:
    of(range(25), tmp_path / "a")
    of(range(25, COUNT), tmp_path / "b")
    merged = Trace.load(tmp_path / "a").merge(Trace.load(tmp_path / "b"))
    whole = of(range(COUNT))
    merged_is_whole(merged, whole)
    same(merged, whole, tolerance=1e-6)
    merged.save(tmp_path / "both")
    back = Trace.load(tmp_path / "both")
    same(back, merged)
    merged_is_whole(back, whole)
    more = {"x": X[:3] + 1, "labels": Y[:3], "id": ["new 0", "new 1", "new 2"]}
    again = back.merge(trace(narrow(), [more], out=tmp_path / "c", keep_states=True))
    assert len(again.ids) == COUNT + 3


def test_sums_that_were_saved_merge_as_well(tmp_path: Path) -> None:
    for name, chosen in (("a", range(25)), ("b", range(25, COUNT))):
        of(chosen, measures=FROM_SUMS).save(tmp_path / name)
    merged = Trace.load(tmp_path / "a").merge(Trace.load(tmp_path / "b"))
    merged_is_whole(merged, of(range(COUNT), measures=FROM_SUMS))


def test_without_measures_answers_merge() -> None:
    merged = of(range(25), measures=()).merge(of(range(25, COUNT), measures=()))
    merged_is_whole(merged, of(range(COUNT), measures=()))


def test_without_answers_similarity_merges() -> None:
    settings: dict[str, Any] = {"readout": None, "measures": FROM_SUMS, "tokens": "first"}
    merged = of(range(25), **settings).merge(of(range(25, COUNT), **settings))
    assert merged.rows is None
    whole = of(range(COUNT), **settings)
    np.testing.assert_allclose(merged.similarity["cka"], whole.similarity["cka"], atol=1e-6)
    assert merged.ids == whole.ids


def test_arrays_merge() -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(60, 4)) for name in "abc"}
    parts = [
        trace_states({name: array[part] for name, array in given.items()}, measures=FROM_SUMS)
        for part in (slice(35), slice(35, None))
    ]
    merged, whole = parts[0].merge(parts[1]), trace_states(given, measures=FROM_SUMS)
    np.testing.assert_allclose(merged.similarity["cka"], whole.similarity["cka"], atol=1e-6)
    assert (merged.provenance["samples"], merged.provenance["positions"]) == (60, 60)


def test_merging_changes_neither_part(tmp_path: Path) -> None:
    a, b = of(range(25), tmp_path / "a"), of(range(25, COUNT), tmp_path / "b")
    before = [(part.ids, part.accuracy.copy(), part.similarity["cka"].copy(), part.provenance) for part in (a, b)]
    a.merge(b)
    for part, (ids, accuracy, matrix, provenance) in zip((a, b), before, strict=True):
        assert part.ids == ids
        np.testing.assert_array_equal(part.accuracy, accuracy)
        np.testing.assert_array_equal(part.similarity["cka"], matrix)
        assert part.provenance == provenance
    same(Trace.load(tmp_path / "a"), a)


def test_what_was_noted_of_both_parts_stays_noted() -> None:
    settings: dict[str, Any] = {"measures": FROM_SUMS, "labels": False, "readout": "raw"}
    a, b = of(range(25), **settings), of(range(25, COUNT), **settings)
    for part in (a, b):
        assert any("without labels" in note for note in part.notes)
    merged = a.merge(b)
    assert any("without labels" in note for note in merged.notes)
    assert any("'raw'" in note for note in merged.notes)


def test_a_depth_that_is_constant_in_the_parts_only_is_defined_in_the_whole() -> None:
    rng = np.random.default_rng(0)
    given = {"a": rng.normal(size=(60, 4)), "b": np.repeat([[1.0] * 4, [2.0] * 4], 30, axis=0)}
    parts = [
        trace_states({name: array[part] for name, array in given.items()}, measures=FROM_SUMS)
        for part in (slice(30), slice(30, None))
    ]
    for part in parts:
        assert np.isnan(part.similarity["cka"][1, 1])
        assert any("depth 1 is the same for every row" in note for note in part.notes)
    merged = parts[0].merge(parts[1])
    assert np.isfinite(merged.similarity["cka"]).all()
    assert not any("depth 1" in note for note in merged.notes)


# --- what does not belong together -----------------------------------------------------------------------------------


def refused(says: str, a: Trace, b: Trace) -> None:
    for one, other in ((a, b), (b, a)):
        with pytest.raises(IncompatibleTraces, match=says) as caught:
            one.merge(other)
        assert "\n" not in str(caught.value)


def test_a_sample_in_both_is_refused(tmp_path: Path) -> None:
    a, b = of(range(25), tmp_path / "a"), of(range(24, COUNT), tmp_path / "b")
    refused(
        "sample 'sample 24' is in both traces; merging would count it twice: give ids that tell samples apart", a, b
    )
    refused("sample 'sample 0' is in both traces", a, a)


def test_the_same_place_in_other_data_is_a_name_too() -> None:
    parts = [trace(narrow(), [(X[at], Y[at])], measures=FROM_SUMS) for at in (slice(20), slice(20, None))]
    refused("sample 0 is in both traces; .*give ids", *parts)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"measures": ("cka",)}, r"differ in their measures: .*\('cka', 'cka_biased'\)|differ in their measures"),
        ({"readout": "raw"}, "differ in their readout modes: (tail and raw|raw and tail); merge traces made alike"),
        ({"labels": False}, "differ in their readouts: "),
        ({"readout": None}, "differ in their readouts: "),
        ({"tokens": "mean"}, "differ in their token policies: (first and mean|mean and first)"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    refused(says, of(range(20), measures=FROM_SUMS), of(range(20, COUNT), **{"measures": FROM_SUMS, **settings}))


def test_another_model_is_refused() -> None:
    other = narrow()
    with torch.no_grad():
        other.first.bias += 1e-3
    batch = {"x": X[20:], "labels": Y[20:], "id": IDS[20:]}
    a, b = of(range(20), measures=FROM_SUMS), trace(other, [batch], measures=FROM_SUMS)
    refused("differ in their models: [0-9a-f]{32} and [0-9a-f]{32}; merge traces made alike", a, b)
    deeper = trace(tiny_models.Nobodys(width=4, depth=4).eval(), [batch], measures=FROM_SUMS)
    refused(r"differ in their depths: \('0', '1', '2', '3'(, '4')?\) and ", a, deeper)


def test_cosine_needs_the_states(tmp_path: Path) -> None:
    a, b = of(range(20)), of(range(20, COUNT))
    says = r"cosine, cosine_raw cannot be merged without the states: .*keep_states=True, .*'cka_biased'"
    refused(says, a, b)
    refused(says, a, of(range(20, COUNT), tmp_path / "b"))


def test_cka_needs_sums_or_states() -> None:
    a, b = of(range(20), measures=FROM_SUMS), of(range(20, COUNT), measures=FROM_SUMS)
    refused(
        "cka cannot be merged: one of the traces has neither its sums nor its states",
        a,
        dataclasses.replace(b, moments=None),
    )
