"""Each job from the shell, from Python by name and with objects: equal results, and settings that reproduce them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoints
import datasets
import numpy as np
import pandas
import pytest
import tiny_models
import torch
import transformers
from run_cli import Command, in_folder, write_csv
from safetensors.torch import load_file

import anydepth as ad
from anydepth.exits.costs import measure_costs
from anydepth.onnx import Router
from anydepth.storage.files import read_json

pytestmark = pytest.mark.usefixtures("undrawn", "timed_briefly", "charts_unchecked")
FAST = {"max_steps": 2, "use_cpu": True, "eval_steps": 2}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, its exits, a language model and labelled texts."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    checkpoints.bert(root / "bert", num_hidden_layers=3)
    checkpoints.gpt2(root / "gpt2")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9))) for _ in range(120)]
    write_csv(root / "reviews.csv", [(text, ("LABEL_0", "LABEL_1")[row % 2]) for row, text in enumerate(texts)])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(root / "bert")
    exits = ad.EarlyExit(model, ad.Confidence(0.52))
    exits.save(root / "exits", processor=transformers.AutoTokenizer.from_pretrained(root / "bert"))
    return root


def rows(assets: Path) -> list[dict[str, str]]:
    with (assets / "reviews.csv").open() as file:
        return list(csv.DictReader(file))


def classifier(assets: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(assets / "bert")


def tokenizer(assets: Path, name: str = "bert") -> Any:
    return transformers.AutoTokenizer.from_pretrained(assets / name)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job with tiny settings: by name as arguments of the function, and as objects in their place."""

    command: str
    function: Callable[..., Any]
    names: dict[str, Any]
    objects: Callable[[Path], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    result: Callable[[Path], Any]

    def words(self) -> list[str]:
        """The settings as the command line has them."""
        given = self.names | self.settings
        first = [given.pop(name) for name in ("model",) if name in given]
        flags = [(f"--{name.replace('_', '-')}", value) for name, value in given.items()]
        return [*first, *(word for flag, value in flags for word in _option(flag, value))]


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-")]
    return [flag, str(value)]


def weights(folder: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def of_trace(folder: Path) -> Any:
    trace = ad.Trace.load(folder)
    return [trace.similarity["cka"], trace.rows.prediction, trace.rows.label, trace.rows.cross_entropy]


def of_exits(folder: Path) -> Any:
    content = read_json(folder / "exit.json")
    kept = {name: value for name, value in content["about"]["calibration"].items() if name not in ("notes", "tested")}
    return [kept, content["policy"], weights(folder)]


def of_predictions(folder: Path) -> Any:
    frame = pandas.read_csv(folder / "predictions.csv")
    return [frame["prediction"].tolist(), frame["depth"].tolist(), frame["probability"].to_numpy()]


def of_cut(folder: Path) -> Any:
    return [read_json(folder / "truncate.json")["certificate"], weights(folder)]


def of_graphs(folder: Path) -> Any:
    router = Router(folder)
    answer = router({"input_ids": np.array([[2, 5, 6, 3]]), "attention_mask": np.ones((1, 4), np.int64)})
    return [answer.logits, answer.depth, router.classes]


DATA = {"data": "~reviews.csv"}
JOBS = {
    "trace": Job(
        command="trace",
        function=ad.trace,
        names={"model": "~bert", **DATA, "device": "cpu"},
        objects=lambda at: {"model": classifier(at), "data": rows(at), "processor": tokenizer(at)},
        settings={"measures": "cka", "limit": 50},
        result=of_trace,
    ),
    "calibrate": Job(
        command="exit",
        function=ad.calibrate,
        names={"model": "~bert", **DATA, "device": "cpu"},
        objects=lambda at: {
            "model": ad.Stack(classifier(at)),
            "data": pandas.DataFrame(rows(at)),
            "processor": tokenizer(at),
        },
        settings={"tolerance": 0.3, "depths": "1,2", "tune": False},
        result=of_exits,
    ),
    "predict": Job(
        command="predict",
        function=ad.predict,
        names={"model": "~exits", **DATA, "device": "cpu"},
        objects=lambda at: {
            "model": ad.EarlyExit.load(at / "exits"),
            "data": rows(at),
            "processor": tokenizer(at),
        },
        result=of_predictions,
    ),
    "truncate": Job(
        command="truncate",
        function=ad.truncate,
        names={"model": "~bert", **DATA, "device": "cpu"},
        objects=lambda at: {"model": classifier(at), "data": rows(at), "processor": tokenizer(at)},
        settings={"depth": "auto", "tolerance": 0.6},
        result=of_cut,
    ),
    "export": Job(
        command="export",
        function=ad.export,
        names={"model": "~bert"},
        objects=lambda at: {"model": classifier(at), "processor": tokenizer(at)},
        settings={"depth": 1},
        result=of_graphs,
    ),
    "align": Job(
        command="align",
        function=ad.align,
        names={"model": "~bert", **DATA},
        objects=lambda at: {"model": classifier(at), "data": pandas.DataFrame(rows(at)), "processor": tokenizer(at)},
        settings=FAST,
        result=lambda folder: [weights(folder), read_json(folder / "align.json")["result"]["values"]],
    ),
}
each_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


def located(assets: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"{assets}/{value[1:]}" if isinstance(value, str) and value.startswith("~") else value
        for name, value in arguments.items()
    }


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once what is only written down, and leave out reports, which have tests of their own."""
    for page in ("exits", "comparison"):
        monkeypatch.setattr(f"anydepth.report.pages.{page}.write", lambda *_: None)
    monkeypatch.setattr("anydepth.jobs.calibrate.measure_costs", lambda *given: measure_costs(*given, rounds=1))


@pytest.mark.usefixtures("briefly", "operators_listed_once")
@each_job
def test_a_job_is_the_same_from_everywhere(
    job: Job, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command: Command = in_folder(assets, tmp_path / "here", monkeypatch, capsys)
    done = command(job.command, *job.words(), "--out", "shell")
    assert done.status == 0, done.err
    expected = job.result(Path("shell"))
    job.function(**located(assets, job.names | job.settings), out="named")
    np.testing.assert_equal(job.result(Path("named")), expected)
    assert Path("named/settings.yaml").read_text() == Path("shell/settings.yaml").read_text()
    assert command(job.command, "--config", "named/settings.yaml", "--out", "again").status == 0
    np.testing.assert_equal(job.result(Path("again")), expected)
    job.function(**job.objects(assets), **job.settings, out=Path("objects"))
    np.testing.assert_equal(job.result(Path("objects")), expected)


@pytest.mark.usefixtures("briefly")
def test_comparing_is_the_same_from_everywhere(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = in_folder(assets, tmp_path / "here", monkeypatch, capsys)
    model, texts = classifier(assets), rows(assets)[:30]
    traces = []
    for name in ("one", "two"):
        traces.append(ad.trace(model, texts, processor=tokenizer(assets), measures=(), out=name))
        torch.nn.init.normal_(model.classifier.weight)
    assert command("compare", "one", "two", "--out", "shell").status == 0
    assert command("compare", "--config", "shell/settings.yaml", "--out", "again").status == 0
    expected = read_json(Path("shell/compare.json"))["comparisons"]
    assert read_json(Path("again/compare.json"))["comparisons"] == expected
    by_name = ad.compare("one", Path("two"), out="named")
    by_object = ad.compare(*traces, out="objects")
    for folder in ("named", "objects"):
        assert read_json(Path(folder, "compare.json"))["comparisons"] == expected
    assert by_name.comparisons == by_object.comparisons
    assert ad.compare(a=traces[0], b="two") == by_name.comparisons[0]
    assert [each.names for each in ad.compare(*traces, traces[0]).comparisons] == [("one", "two"), ("one", "one")]


def test_generating_is_the_same_from_everywhere(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = in_folder(assets, tmp_path / "here", monkeypatch, capsys)
    done = command("generate", "~gpt2", "--prompt", "the film", "--depth", "1", "--max-new-tokens", "5")
    assert done.status == 0, done.err
    settings = {"depth": 1, "max_new_tokens": 5}
    named = ad.generate(str(assets / "gpt2"), ["the film"], device="cpu", **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(assets / "gpt2")
    with_objects = ad.generate(model, "the film", processor=tokenizer(assets, "gpt2"), **settings)
    assert named.texts == with_objects.texts
    assert named.texts[0].strip() in done.out


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a setting for a name, a model": (
        lambda at: ad.trace(classifier(at), rows(at), dtype="float16"),
        "dtype is for a model by name, and model is a BertForSequenceClassification as it is: leave it out",
    ),
    "a setting for rows, batches": (
        lambda at: ad.trace(str(at / "bert"), [{"input_ids": torch.ones(2, 3).long()}], limit=3),
        "limit is for rows of data, and data are batches (list): leave it out",
    ),
    "texts, no tokenizer": (
        lambda at: ad.trace(classifier(at), ["the film"]),
        "data are texts, and BertForSequenceClassification comes without a tokenizer or image processor: give it",
    ),
    "tokens, no tokenizer": (
        lambda at: ad.trace(classifier(at), [[2, 4, 3], [2, 3]]),
        "data are rows of tokens, which have to be padded: give the tokenizer (processor)",
    ),
    "no model": (lambda at: ad.trace(object(), ["a"]), "model is object, expected a module, a Stack, a pipeline, or a"),
    "no processor": (lambda at: ad.trace(classifier(at), ["a"], processor=3), "processor is int, expected a tokenizer"),
    "no table": (
        lambda at: ad.trace(str(at / "bert"), [{"text": "a"}, {"text": 3}]),
        "the rows are no table, expected",
    ),
    "a lens, no folder": (lambda at: ad.trace(str(at / "gpt2"), ["a b"], lens=("a b",)), "lens is shown in the report"),
    "batches to train on": (
        lambda at: ad.align(classifier(at), [torch.ones(2, 3)], out="o"),
        "data are batches (list)",
    ),
    "a module to train": (lambda at: ad.align(torch.nn.Linear(2, 2), ["a"], out="o"), "model is a Linear, expected a"),
    "no exits": (
        lambda at: ad.predict(classifier(at), rows(at)),
        "model is BertForSequenceClassification, expected an",
    ),
    "an iterator, read twice": (
        lambda at: ad.trace(classifier(at), iter([{}]), theory=True),
        "theory=True reads the data several times, and an iterator can be read once: give a list",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case: str, assets: Path) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ad.AnydepthError) as refused:
        call(assets)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_settings_file_of_objects_names_what_is_missing(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = in_folder(assets, tmp_path / "here", monkeypatch, capsys)
    ad.trace(classifier(assets), rows(assets)[:9], processor=tokenizer(assets), measures=(), out="out")
    assert "# model: an object (BertForSequenceClassification)" in Path("out/settings.yaml").read_text()
    done = command("trace", "--config", "out/settings.yaml", "--out", "again")
    assert (done.status, done.out) == (2, "")
    assert "MODEL is missing: give it, or a settings file that has it (--config)" in done.err


# --- every kind of model and data ------------------------------------------------------------------------------------


def of_texts(batch: list[dict[str, str]], processor: Any) -> dict[str, Any]:
    tokens = processor([row["text"] for row in batch], padding=True, return_tensors="pt")
    return {**tokens, "labels": torch.tensor([int(row["label"][-1]) for row in batch])}


GIVEN: dict[str, Callable[[Path, Any, Any], tuple[Any, Any, dict[str, Any]]]] = {
    "a pipeline": lambda at, model, tok: (
        transformers.pipeline("text-classification", model=model, tokenizer=tok, device="cpu"), rows(at), {}
    ),
    "pairs": lambda at, model, tok: (model, [(row["text"], row["label"]) for row in rows(at)], {"processor": tok}),
    "a data set": lambda at, model, tok: (model, datasets.Dataset.from_list(rows(at)), {"processor": tok}),
    "splits": lambda at, model, tok: (
        model, datasets.DatasetDict(test=datasets.Dataset.from_list(rows(at))), {"processor": tok}
    ),
    "tokens": lambda at, model, tok: (
        at / "bert",
        [{"input_ids": tok(row["text"])["input_ids"], "label": int(row["label"][-1])} for row in rows(at)],
        {},
    ),
    "a data set of tokens": lambda at, model, tok: (
        model,
        datasets.Dataset.from_list([{**tok(row["text"]), "labels": int(row["label"][-1])} for row in rows(at)]),
        {"processor": tok},
    ),
    "rows and collate_fn": lambda at, model, tok: (model, rows(at), {"collate_fn": lambda batch: of_texts(batch, tok)}),
    "a loader": lambda at, model, tok: (
        str(at / "bert"),
        torch.utils.data.DataLoader(rows(at), 32, collate_fn=lambda batch: of_texts(batch, tok)),
        {"device": "cpu"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(assets: Path) -> ad.Trace:
    return ad.trace(classifier(assets), [of_texts(rows(assets), tokenizer(assets))], measures=["cka"])


@pytest.mark.parametrize("kind", GIVEN)
def test_models_and_data_of_every_kind(kind: str, assets: Path, expected: ad.Trace) -> None:
    model, data, more = GIVEN[kind](assets, classifier(assets), tokenizer(assets))
    trace = ad.trace(model, data, measures=["cka"], **more)
    np.testing.assert_array_equal(trace.rows.label, expected.rows.label)
    np.testing.assert_array_equal(trace.rows.prediction, expected.rows.prediction)
    np.testing.assert_allclose(trace.rows.cross_entropy, expected.rows.cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(trace.similarity["cka"], expected.similarity["cka"], atol=1e-5)


class Own(torch.nn.Module):
    """A classifier that no config describes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(len(checkpoints.VOCABULARY), 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, 2)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)[:, 0])


def test_a_model_whose_config_names_no_classes() -> None:
    model, batch = tiny_models.build("vit")
    labelled = [{**batch, "labels": torch.zeros(len(batch["pixel_values"]), dtype=torch.long)}]
    expected = ad.trace(model, labelled, measures=())
    model.config.id2label = None  # as that of PVT
    found = ad.trace(model, labelled, measures=())
    np.testing.assert_array_equal(found.rows.cross_entropy, expected.rows.cross_entropy)


def test_a_model_of_ones_own_with_a_tokenizer(assets: Path) -> None:
    """Its classes are counted by its answer, and labels are numbered as they sort."""
    torch.manual_seed(0)
    model = Own().eval()
    trace = ad.trace(model, rows(assets), processor=tokenizer(assets), measures=())
    batch = of_texts(rows(assets), tokenizer(assets))
    with torch.no_grad():
        right = model(batch["input_ids"], batch["attention_mask"]).argmax(1) == batch["labels"]
    assert trace.accuracy[-1] == right.double().mean().item()


def test_truncating_gives_the_copy_or_what_was_found(assets: Path) -> None:
    model, texts = classifier(assets), rows(assets)
    small = ad.truncate(model, 1)
    assert len(small.bert.encoder.layer) == 1
    found = ad.truncate(model, "auto", data=texts, processor=tokenizer(assets), tolerance=0.6)
    assert (found.folder, found.last) == (None, 3)
    assert len(found.module.bert.encoder.layer) == found.depth == found.minimal.depth
