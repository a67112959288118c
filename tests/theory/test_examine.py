"""The pass behind a theory against models taken apart by hand; the whole of it, saved, told and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import naive
import numpy as np
import pytest
import tiny_models
import torch
from browser import Browser
from run_cli import Command, in_folder, write_csv

import anydepth as ad
from anydepth.core.heads import separate_heads
from anydepth.errors import DataError, LabelError, NonFiniteStates, TraceFileError, UnsupportedHead
from anydepth.measures.engine.states import ArrayStates
from anydepth.report import theory_sentences as theory_words
from anydepth.report.pages import trace as page
from anydepth.report.pages.theory import section, table
from anydepth.stats.means import Estimate
from anydepth.theory.closeness import closeness
from anydepth.theory.collapse import collapse
from anydepth.theory.examine import examine
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS, UNCENTRED, Theory
from anydepth.theory.geometry import geometry
from anydepth.theory.observation import Observed, observe
from anydepth.theory.updates import updates

pytestmark = pytest.mark.usefixtures("charts_checked")


def seen(model: Any, batches: Any, folder: Path, **settings: Any) -> Observed:
    return observe(ad.Stack(model), batches, folder, **settings)


def side_by_side(states: Any) -> np.ndarray:
    """(n, K, D)."""
    rows = np.concatenate([chunk.numpy() for chunk in states.chunks(3)])
    return rows.reshape(states.count, len(states.widths), -1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


@pytest.mark.parametrize("size", [4, 11])
def test_a_classifier_taken_apart(size: int, tmp_path: Path) -> None:
    model, _ = tiny_models.build("bert")
    texts, labels = naive.sentences(11), naive.classes(11)
    found = seen(model, naive.padded(texts, labels, size), tmp_path)
    assert (found.tokens, found.notes, found.states.groups) == ("first", (), None)
    assert found.labels.tolist() == labels
    np.testing.assert_allclose(found.weight, model.classifier.weight.detach().numpy())
    features = replace(naive.BERT, head=lambda model, h: torch.tanh(model.bert.pooler.dense(h[:, 0])))
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        states, logits = naive.alone(model, text, naive.BERT)
        _, entering = naive.alone(model, text, features)
        nats = log_softmax(logits)
        assert found.final[row] == logits[-1].argmax()
        np.testing.assert_allclose(side_by_side(found.states)[row], states[:, 0], atol=1e-5)
        np.testing.assert_allclose(side_by_side(found.features)[row], entering, atol=1e-5)
        np.testing.assert_allclose(found.log_probability["true"][row], nats[:, label], atol=1e-5)
        np.testing.assert_allclose(found.log_probability["final"][row], nats[:, found.final[row]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "anatomy", "norm", "left"),
    [
        ("gpt2", naive.GPT2, lambda model, h: model.transformer.ln_f(h), False),
        ("llama", naive.LLAMA, lambda model, h: model.model.norm(h), True),
    ],
)
def test_a_language_model_taken_apart(
    name: str, anatomy: naive.Anatomy, norm: Any, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anydepth.theory.observation._PIECE", 2 * tiny_models.VOCABULARY * 9)  # two texts at a time
    monkeypatch.setattr("anydepth.theory.observation._EXACT", 5 * tiny_models.VOCABULARY)
    model, _ = tiny_models.build(name)
    texts = naive.sentences(7)
    found = seen(model, naive.padded(texts, None, 4, left=left), tmp_path)
    assert (found.tokens, found.notes) == ("each", ())
    assert found.states.groups.tolist() == [row for row, text in enumerate(texts) for _ in text[1:]]
    assert found.labels.tolist() == [token for text in texts for token in text[1:].tolist()]
    taken = [naive.alone(model, text, anatomy) for text in texts]
    states = np.concatenate([states[:, :-1].swapaxes(0, 1) for states, _ in taken])
    nats = log_softmax(np.concatenate([logits[:, :-1].swapaxes(0, 1) for _, logits in taken]))
    entering = [naive.alone(model, text, replace(anatomy, head=norm))[1] for text in texts]
    entering = np.concatenate([features[:, :-1].swapaxes(0, 1) for features in entering])
    rows = np.arange(len(nats))
    assert found.final.tolist() == nats[:, -1].argmax(-1).tolist()
    np.testing.assert_allclose(side_by_side(found.states), states, atol=1e-5)
    np.testing.assert_allclose(side_by_side(found.features), entering, atol=1e-5)
    np.testing.assert_allclose(found.log_probability["true"], nats[rows, :, found.labels], atol=2e-5)
    np.testing.assert_allclose(found.log_probability["final"], nats[rows, :, found.final], atol=2e-5)


def test_a_tagger_counts_labelled_positions_only(tmp_path: Path) -> None:
    model, _ = tiny_models.build("bert tagger")
    texts = naive.sentences(5)
    labels = [torch.full_like(text, -100) for text in texts]
    for label in labels:
        label[1:] = torch.arange(len(label) - 1) % tiny_models.CLASSES
    found = seen(model, naive.padded(texts, labels, 3), tmp_path)
    assert found.labels.tolist() == [int(one) for label in labels for one in label[1:]]
    states = np.concatenate([naive.alone(model, text, naive.TAGGER)[0][:, 1:].swapaxes(0, 1) for text in texts])
    np.testing.assert_allclose(side_by_side(found.states), states, atol=1e-5)


# --- what is missing, and why ----------------------------------------------------------------------------------------


def batches_of(name: str, labels: bool = True) -> tuple[Any, list[Any]]:
    model, batch = tiny_models.build(name)
    truth = torch.arange(3) % tiny_models.CLASSES
    if isinstance(batch, torch.Tensor):
        return model, [(batch, truth) if labels else batch]
    return model, [batch | ({"labels": truth} if labels else {})]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("bert without a head", "the model has no classifier: Theorem 2.2, neural collapse and what blocks write are"),
        ("deit distilled", "what blocks write, and NC3, are missing: more than one linear map lies between"),
        ("gemma2", "what blocks write, and NC3, are missing: more than one linear map lies between"),
        ("clip vision", "the model has no classifier"),
    ],
)
def test_models_without_a_linear_classifier(name: str, note: str, tmp_path: Path) -> None:
    model, batches = batches_of(name, labels=name == "deit distilled")
    found = seen(model, batches, tmp_path)
    assert found.features is None
    assert found.notes[0].startswith(note)
    assert ("final" in found.log_probability) == note.startswith("what blocks write")


@pytest.mark.parametrize("name", ["vit", "timm vit", "llama classifier", "nn.TransformerEncoder", "nobody's", "opt"])
def test_models_with_one(name: str, tmp_path: Path) -> None:
    model, batches = batches_of(name, labels=name != "opt")
    found = seen(model, batches, tmp_path)
    assert found.notes == ()
    assert found.features is not None
    assert found.weight.shape[1] == found.features.widths[0]
    logits = side_by_side(found.features)[:, -1] @ found.weight.T
    assert np.isfinite(logits).all()


def test_no_labels_no_true_class(tmp_path: Path) -> None:
    model, batches = batches_of("vit", labels=False)
    found = seen(model, batches, tmp_path)
    assert list(found.log_probability) == ["final"]
    assert found.labels is None
    assert found.notes == ("neural collapse and the true class are missing: there are no labels",)
    whole = examine(model, batches)
    assert whole.collapse == {}
    assert list(whole.updates) == ["final"]


def test_a_classifier_for_each_depth(tmp_path: Path) -> None:
    model, batches = batches_of("vit")
    heads = separate_heads(model.classifier, tiny_models.BLOCKS)
    found = observe(ad.Stack(model, heads=heads), batches, tmp_path)
    assert found.notes == ("what blocks write, and NC3, are missing: each depth has a classifier of its own",)
    assert set(found.log_probability) == {"final", "true"}


@pytest.mark.parametrize(
    ("name", "settings", "note"),
    [
        ("vit", {"readout": False}, "readouts were left out: Theorem 2.2"),
        ("vit", {"tokens": "each"}, "the model answers for each sample, which the states of 'each' are not: Theorem"),
        ("gpt2", {"tokens": "last"}, "the model answers for each position, which the states of 'last' are not: Theo"),
    ],
)
def test_states_without_answers(name: str, settings: dict[str, Any], note: str, tmp_path: Path) -> None:
    model, batches = batches_of(name, labels=name == "vit")
    found = seen(model, batches, tmp_path, **settings)
    assert found.log_probability == {}
    assert found.notes[0].startswith(note)
    whole = examine(model, batches, **settings)
    assert (whole.closeness, whole.collapse, whole.updates) == ({}, {}, {})
    assert np.isfinite(whole.geometry[MEASURED].straightness.value)


def test_too_many_classes_for_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anydepth.theory.collapse._MOST_BYTES", 10)
    model, batches = batches_of("vit")
    found = examine(model, batches)
    assert found.collapse == {}
    assert any(note.startswith("neural collapse is missing: the means of 3 classes take") for note in found.notes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda batch: [], DataError, "the data set is empty: expected at least one batch (each pass reads the data a"),
        (lambda batch: [batch | {"labels": torch.tensor([0, 1, 9])}], LabelError, "label 9 is out of range"),
        (lambda batch: [batch | {"labels": torch.tensor([0, 1, -100])}], LabelError, "a sample has the label -100"),
        (lambda batch: [batch, {"pixel_values": batch["pixel_values"]}], LabelError, "batch 1 has no 'labels', as th"),
        (
            lambda batch: [batch, batch | {"pixel_values": batch["pixel_values"] * torch.nan}],
            NonFiniteStates,
            "a state holds NaN or infinity: expected finite numbers; try another dtype",
        ),
        (
            lambda batch: [batch | {"labels": torch.rand(3, tiny_models.CLASSES)}],
            UnsupportedHead,
            "ViTForImageClassificatio",
        ),
    ],
)
def test_bad_data(change: Any, error: type[Exception], message: str) -> None:
    model, (batch,) = batches_of("vit")
    with pytest.raises(error) as raised:
        examine(model, change(batch))
    assert str(raised.value).startswith(message)


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject() -> tuple[Any, list[Any], Any]:
    """A model, data and a reference."""
    model, _ = tiny_models.build("vit")
    torch.manual_seed(5)
    batches = [
        {"pixel_values": torch.rand(n, 3, 8, 8), "labels": torch.arange(n) % tiny_models.CLASSES} for n in (13, 13, 7)
    ]
    return model, batches, tiny_models.build("vit", seed=9)[0]


@pytest.fixture(scope="module")
def whole(subject: tuple[Any, list[Any], Any]) -> Theory:
    model, batches, reference = subject
    return examine(model, batches, reference=reference, seed=3, describe={"model": "mine", "notes": ["told"]})


def same(one: Any, other: Any) -> None:
    for name in one.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, Estimate):
            same(a, b)
        elif isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert a == b, name


def test_it_is_made_of_its_parts(subject: tuple[Any, list[Any], Any], whole: Theory, tmp_path: Path) -> None:
    model, batches, reference = subject
    other = tmp_path / "other"
    other.mkdir()
    found, null = seen(model, batches, tmp_path), seen(reference, batches, other)
    h = side_by_side(found.states)
    states = ArrayStates({str(depth): h[:, depth] for depth in range(h.shape[1])})
    same(whole.geometry[MEASURED], geometry(states, seed=3))
    same(whole.geometry[UNCENTRED], geometry(states, centred=False, seed=3))
    same(whole.geometry[RANDOM_WEIGHTS], geometry(null.states, seed=3))
    same(whole.closeness["true"], closeness(states, found.log_probability["true"], seed=3))
    same(whole.collapse[MEASURED], collapse(found.features, found.labels, found.weight))
    same(whole.collapse[RANDOM_WEIGHTS], collapse(null.features, null.labels, null.weight))
    same(whole.updates["final"], updates(found.features, found.final, found.weight, seed=3))
    assert set(whole.geometry) == {MEASURED, UNCENTRED, "random walk", "shuffled", RANDOM_WEIGHTS}
    assert set(whole.collapse) == {MEASURED, SHUFFLED_LABELS, RANDOM_WEIGHTS}
    assert whole.notes[0] == "told"
    assert whole.provenance["model"]["name"] == "mine"
    assert (whole.provenance["samples"], whole.provenance["rows"], whole.depth) == (33, 33, tiny_models.BLOCKS)


def test_it_does_not_depend_on_batches(subject: tuple[Any, list[Any], Any], whole: Theory) -> None:
    model, batches, reference = subject
    one = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    again = examine(model, [one], reference=reference, seed=3)
    for part in ("geometry", "closeness", "collapse", "updates"):
        for name, value in getattr(whole, part).items():
            same(value, getattr(again, part)[name])
    other = examine(model, [one], seed=4)
    assert other.geometry["random walk"].gap.value != whole.geometry["random walk"].gap.value
    assert RANDOM_WEIGHTS not in other.geometry


def test_the_model_is_left_as_it_was(subject: tuple[Any, list[Any], Any]) -> None:
    model, batches, _ = subject
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examine(model, batches)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model.eval()


# --- saved -----------------------------------------------------------------------------------------------------------


def test_it_comes_back(whole: Theory, tmp_path: Path) -> None:
    path = whole.save(tmp_path / "new")
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["theory.json"]
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = Theory.load(tmp_path / "new")
    assert (again.notes, again.provenance["rows"]) == (whole.notes, whole.provenance["rows"])
    for part in ("geometry", "closeness", "collapse", "updates"):
        assert set(getattr(again, part)) == set(getattr(whole, part))
        for name, value in getattr(whole, part).items():
            same(value, getattr(again, part)[name])
    assert again.closeness["final"].counts.dtype == np.int64


def test_what_cannot_be_read(whole: Theory, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(TraceFileError, match=message):
            Theory.load(tmp_path)

    refused("theory.json does not exist")
    whole.save(tmp_path)
    content = json.loads((tmp_path / "theory.json").read_text())
    for changed, message in (
        ({"format": 2}, "is of format 2, and this anydepth reads up to 1: upgrade anydepth"),
        ({"format": None}, "is no theory: it states no format"),
        ({"geometry": {}}, "theory.json is corrupt: KeyError at 'measured'"),
        ({"geometry": {"measured": {}}}, "theory.json is corrupt: KeyError"),
        ({"updates": 3}, "theory.json is corrupt: AttributeError"),
    ):
        (tmp_path / "theory.json").write_text(json.dumps(content | changed))
        refused(message)
    (tmp_path / "theory.json").write_text(json.dumps(content)[:-50])
    refused("is corrupt or cannot be read")


def test_a_theory_of_another_model_beside_a_trace(
    subject: tuple[Any, list[Any], Any], whole: Theory, tmp_path: Path
) -> None:
    model, batches, reference = subject
    ad.trace(model, batches, measures=(), out=tmp_path)
    whole.save(tmp_path)
    assert Theory.load(tmp_path).depth == tiny_models.BLOCKS
    ad.trace(model, batches[:1], measures=(), out=tmp_path)
    with pytest.raises(TraceFileError, match="and the trace beside it are of different data: trace with --theory"):
        Theory.load(tmp_path)
    ad.trace(reference, batches, measures=(), out=tmp_path)
    with pytest.raises(TraceFileError, match="are of different model: trace with --theory"):
        Theory.load(tmp_path)


# --- told and drawn --------------------------------------------------------------------------------------------------


def around(value: float, spread: float = 0.01) -> Estimate:
    return Estimate(*(np.array(value + side * spread) for side in (0, -1, 1)))


def with_measured(whole: Theory, **changes: Estimate) -> Theory:
    geometries = dict(whole.geometry)
    geometries[MEASURED] = replace(geometries[MEASURED], **changes)
    return replace(whole, geometry=geometries)


@pytest.mark.parametrize(
    ("name", "field", "far", "words"),
    [
        ("line", "gap", -1, "come closer to a line than chance does."),
        ("line", "gap", 1, "are further from a line than chance is"),
        ("line", "gap", 0, "these samples do not tell the two apart"),
        ("monotone", "violations", -1, "more strictly than by chance"),
        ("monotone", "violations", 1, "less strictly than by chance"),
        ("straight", "straightness", 1, "it is straighter than by chance"),
        ("straight", "straightness", -1, "the way winds more than by chance"),
    ],
)
def test_verdicts_follow_intervals(whole: Theory, name: str, field: str, far: int, words: str) -> None:
    chance = float(getattr(whole.geometry["random walk"], field).value)
    said = getattr(theory_words, name)(with_measured(whole, **{field: around(chance + far)}))
    assert words in said
    blank = getattr(theory_words, name)(with_measured(whole, **{field: Estimate.without_interval(np.array(np.nan))}))
    assert "nan" not in blank


@pytest.mark.parametrize(
    ("closer", "farther", "words"),
    [
        (0.9, 0.5, "it rises more often where the state comes closer"),
        (0.4, 0.6, "it rises less often where the state comes closer, against the theorem"),
        (0.5, 0.5, "these samples do not tell the two apart"),
    ],
)
def test_what_is_said_of_theorem_2_2(whole: Theory, closer: float, farther: float, words: str) -> None:
    found = replace(whole.closeness["final"], all_closer=around(closer), all_farther=around(farther))
    said = theory_words.nearer(replace(whole, closeness={"final": found}))
    assert said.endswith(f"{words}.")
    assert f"{100 * closer:.1f}%" in said
    alone = replace(found, all_farther=Estimate.without_interval(np.array(np.nan)))
    assert "There is no case in which it moves away." in theory_words.nearer(replace(whole, closeness={"final": alone}))


def test_every_sentence_is_on_the_page(subject: tuple[Any, list[Any], Any], whole: Theory, tmp_path: Path) -> None:
    model, batches, _ = subject
    trace = ad.trace(model, batches)
    drawn = section(whole, trace.names)
    assert [figure.note for figure in drawn.figures] == theory_words.sentences(whole)
    assert not any("nan" in note.lower() for note in theory_words.sentences(whole))
    written = page.write([trace], tmp_path / "report.html", theories=[whole]).read_text()
    assert "The theory, put to the test" in written
    assert "told" in written
    assert section(whole, trace.names, ", mine").title == "The theory, put to the test, mine"


def test_the_table_has_every_depth(whole: Theory) -> None:
    names = tuple(map(str, range(tiny_models.BLOCKS + 1)))
    content = table(whole, names)
    assert len(content.rows) == len(names)
    assert {len(row) for row in content.rows} == {len(content.columns)}
    turn, nc1 = content.columns.index("Turn"), content.columns.index("NC1")
    assert [row[turn].text == "–" for row in content.rows] == [True, *[False] * (tiny_models.BLOCKS - 1), True]
    assert content.rows[-1][nc1].value == pytest.approx(whole.collapse[MEASURED].nc1[-1])


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with Browser(chromium) as running:
        yield running


@pytest.mark.parametrize("settings", [{}, {"readout": False}])
def test_in_a_browser(
    subject: tuple[Any, list[Any], Any], settings: dict[str, Any], tmp_path: Path, browser: Browser
) -> None:
    model, batches, _ = subject
    found = examine(model, batches, **settings)
    page.write([ad.trace(model, batches)], tmp_path / "report.html", theories=[found])
    browser.open(tmp_path / "report.html")
    assert browser.complaints() == []


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    checkpoints.bert(root / "bert", initializer_range=0.5)
    checkpoints.bert(root / "features", "Model")
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice(checkpoints.WORDS, size=5)), str(row % 2)) for row in range(24)]
    write_csv(root / "reviews.csv", rows)
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def test_the_command_line(command: Command, assets: Path) -> None:
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--theory")
    assert (done.status, done.err) == (0, "")
    found = Theory.load("out")
    assert RANDOM_WEIGHTS in found.geometry
    assert RANDOM_WEIGHTS in found.collapse
    report = Path("out/report.html").read_text()
    assert "The theory, put to the test" in report
    flat = " ".join(done.out.split())
    for sentence in theory_words.sentences(found):
        assert sentence in flat


@pytest.mark.parametrize("arguments", [("~features",), ("~bert", "--no-labels")])
def test_the_command_line_without_answers(command: Command, arguments: tuple[str, ...]) -> None:
    done = command("trace", *arguments, "--data", "~reviews.csv", "--out", "out", "--theory", "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["theory"] == "out/theory.json"
    found = Theory.load("out")
    assert found.collapse == {}
    assert ("final" in found.closeness) == ("--no-labels" in arguments)
    assert RANDOM_WEIGHTS in found.geometry


def test_several_processes_are_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anydepth.jobs.trace.rank_and_count", lambda: (0, 2))
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--theory")
    assert done.status == 2
    assert done.err == "anydepth: --theory is for one process, and there are 2: run it without torchrun\n"


def test_a_model_that_cannot_be_drawn_anew(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from anydepth.errors import ModelError
    from anydepth.models import loading as models

    load = models.load

    def only_once(name: str, **settings: Any) -> Any:
        if not settings.get("pretrained", True):
            raise ModelError("no")
        return load(name, **settings)

    monkeypatch.setattr(models, "load", only_once)
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--theory")
    assert done.status == 0
    assert "no model with random weights to compare with: no" in done.out
