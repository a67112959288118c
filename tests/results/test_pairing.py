"""Which rows of two traces belong together, and what is refused because none can be told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.errors import IncompatibleTraces
from anydepth.results.pairing import common_states, pair_samples
from anydepth.results.trace_data import Rows
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

COUNT, DEPTHS, CLASSES = 9, 3, 4
LABELS = np.arange(COUNT) % CLASSES


def of(
    ids: Sequence[Any], *, digests: Sequence[int] | None = None, labels: Sequence[int] | None = None, each: int = 1
) -> Trace:
    """A trace of these samples, with `each` answers to each of them."""
    count = len(ids)
    sample = np.repeat(np.arange(count), each)
    shape = (len(sample), DEPTHS)
    return Trace(
        names=tuple(map(str, range(DEPTHS))),
        similarity={},
        rows=Rows(
            sample=sample,
            position=np.tile(np.arange(each, dtype=np.int32), count),
            label=np.repeat(np.arange(count) if labels is None else np.asarray(labels), each).astype(np.int64),
            prediction=np.zeros(shape, np.int32),
            cross_entropy=np.zeros(shape, np.float32),
            confidence=np.zeros(shape, np.float32),
        ),
        ids=tuple(ids),
        digests=np.asarray(range(count) if digests is None else digests, dtype=np.uint64),
    )


def refusal(a: Trace, b: Trace, **settings: Any) -> str:
    with pytest.raises(IncompatibleTraces) as caught:
        pair_samples(a, b, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(COUNT)), st.permutations(range(COUNT)), st.integers(1, COUNT), st.integers(1, 3))
def test_answers_of_one_sample_meet_whatever_the_orders(first: Any, second: Any, kept: int, each: int) -> None:
    """Samples are named by letters, hold what is theirs, and are some of them in one trace only."""

    def shuffled(order: Sequence[int]) -> Trace:
        return of(["abcdefghi"[one] for one in order], digests=order, labels=order, each=each)

    a, b = shuffled(first), shuffled(second[:kept])
    found = pair_samples(a, b)
    assert found.samples == kept
    assert len(found.first) == len(found.second) == kept * each
    assert a.rows is not None
    assert b.rows is not None
    for one, other in zip(found.first, found.second, strict=True):
        assert a.ids[a.rows.sample[one]] == b.ids[b.rows.sample[other]]
        assert a.rows.position[one] == b.rows.position[other]
    assert np.bincount(found.sample).tolist() == [each] * kept
    assert bool(found.notes) == (kept < COUNT)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_sample_in_common() -> None:
    assert refusal(of("abcde"), of([0, 1])) == (
        "no sample is in both traces: the first has 'a', 'b', 'c', ..., the second 0, 1; trace the same data, or name "
        "the column of ids"
    )


def test_the_same_data_in_another_order_under_the_rows_numbers() -> None:
    order = [0, 1, 3, 2, 4, 5, 6, 7, 8]
    message = refusal(of(range(COUNT)), of(range(COUNT), digests=order))
    assert message.startswith(
        "sample 2 is not the same in the two traces, nor are 1 more of 9: other data, another order under the same ids"
    )
    assert message.endswith("give samples ids of their own, or compare them all the same (despite=['data'])")
    assert pair_samples(of(range(COUNT)), of(range(COUNT), digests=order), ["data"]).samples == COUNT
    assert "sample 0 is not the same" in refusal(of(range(COUNT)), of(range(COUNT), digests=range(COUNT)[::-1]))


def test_data_of_which_some_were_changed() -> None:
    changed = [*range(7), 100, 101]
    assert refusal(of(range(COUNT)), of(range(COUNT), digests=changed)).startswith("sample 7 is not the same")


def test_models_that_are_shown_other_content_are_joined_by_ids_alone() -> None:
    """Another tokenizer: hardly any sample is the same, but for an empty one, say."""
    other = [0, *range(100, 100 + COUNT - 1)]
    assert pair_samples(of(range(COUNT)), of(range(COUNT), digests=other)).samples == COUNT
    assert pair_samples(of(range(COUNT)), replace(of(range(COUNT)), digests=np.empty(0, np.uint64))).samples == COUNT


def test_a_sample_with_another_label() -> None:
    labels = LABELS.copy()
    labels[5] += 1
    assert refusal(of(range(COUNT), labels=LABELS), of(range(COUNT), labels=labels)) == (
        "sample 5 has label 1 in the first trace and 2 in the second: ids or classes do not mean the same"
    )


def test_labels_that_only_one_has_are_no_contradiction() -> None:
    bare = of(range(COUNT), labels=np.full(COUNT, -100))
    assert pair_samples(of(range(COUNT), labels=LABELS), bare).samples == COUNT


def test_answers_at_other_positions() -> None:
    message = refusal(of(range(COUNT), each=2), of(range(COUNT), each=3))
    assert message.startswith("sample 0 is answered at 2 positions in the first trace and 3 in the second")


def test_real_traces_of_texts_in_another_order(tmp_path: Path) -> None:
    """As a loader that shuffles gives them: the rows' numbers mean other texts."""
    texts, labels = naive.sentences(COUNT), [0] * COUNT
    torch.manual_seed(0)
    model, _ = tiny_models.build("bert")
    order = np.random.default_rng(0).permutation(COUNT)
    while order[0] != 0:  # the first one in its place
        order = np.roll(order, 1)
    a = trace(model, naive.padded(texts, labels, 4), measures=[])
    b = trace(model, naive.padded([texts[place] for place in order], labels, 4), measures=[])
    first = int(np.flatnonzero(order != np.arange(COUNT))[0])
    assert refusal(a, b).startswith(f"sample {first} is not the same in the two traces")
    named = [dict(batch) for batch in naive.padded([texts[place] for place in order], labels, COUNT)]
    named[0]["id"] = order
    assert pair_samples(a, trace(model, named, measures=[])).samples == COUNT


# --- kept states -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Sequence[int]], Trace]:
    """Traces with their states, of some texts in some order."""
    texts, root = naive.sentences(COUNT), tmp_path_factory.mktemp("kept")
    made: dict[tuple[str, tuple[int, ...]], Trace] = {}

    def make(name: str, order: Sequence[int]) -> Trace:
        key = (name, tuple(order))
        if key not in made:
            (batch,) = naive.padded([texts[place] for place in order], None, COUNT)
            batches = [{**batch, "id": list(order)}]
            settings = {"measures": [], "labels": False, "keep_states": True}
            made[key] = trace(tiny_models.build(name)[0], batches, out=root / str(len(made)), **settings)
        return made[key]

    return make


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_states_of_one_sample_meet_whatever_the_orders(name: str, kept: Any) -> None:
    """One row for a sample, or one for each of its positions."""
    a, b = kept(name, list(range(COUNT))), kept(name, [7, 1, 5, 0])
    first, second = common_states(a, b)
    assert first.count == second.count
    assert (first.groups is None) == (name == "bert")
    for one, other in zip(first.chunks(5), second.chunks(5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_trace_without_states_says_which(kept: Any) -> None:
    a = kept("bert", list(range(COUNT)))
    for pair, which in (((replace(a, states=None), a), "first"), ((a, replace(a, states=None)), "second")):
        with pytest.raises(IncompatibleTraces, match=f"the {which} trace kept no states, .* with keep_states=True"):
            common_states(*pair)


def test_samples_with_other_numbers_of_rows(kept: Any) -> None:
    a, b = kept("bert", list(range(COUNT))), kept("gpt2", list(range(COUNT)))
    with pytest.raises(IncompatibleTraces) as caught:
        common_states(a, b)
    assert str(caught.value).startswith("sample 0 has 1 rows of states in the first trace and ")
    assert str(caught.value).endswith("trace both with one row for a sample (tokens='mean', 'first' or 'last')")
