"""How every result looks: one line, a summary at any width, HTML for notebooks; and when two results are equal."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from browser import Browser
from transformers import CLIPConfig, CLIPModel

import anydepth as ad
from anydepth.core.timing import Latency
from anydepth.exits.calibration import Calibration
from anydepth.exits.policies import Confidence
from anydepth.exits.summary import ExitSummary
from anydepth.generation.calibration import SequenceGuarantee, ThresholdResult
from anydepth.generation.decoder import GenerationStats
from anydepth.jobs.calibrate import CalibrateResult
from anydepth.jobs.calibrate_lm import LmCalibrateResult
from anydepth.jobs.compare import CompareResult
from anydepth.jobs.demo import DemoResult
from anydepth.jobs.generate import GenerateResult
from anydepth.jobs.predict import PredictResult
from anydepth.jobs.truncate import TruncateResult
from anydepth.measures.engine.states import ArrayStates
from anydepth.onnx.exporter import ExportResult
from anydepth.results.result import Result
from anydepth.results.trace_data import Rows
from anydepth.stats.certificates import Certificate, MinimalDepth
from anydepth.theory.geometry import geometry
from anydepth.training.summary import TrainingSummary

HOSTILE = "<script>alert(1)</script>\x1b[31m"
FOLDER = Path("out")
CERTIFICATE = Certificate(against="model", tolerance=0.01, confidence=0.95, samples=800, failures=2, p_value=0.0138)


def traced(name: str = "bert", *, samples: int = 12_345, depth: int = 12) -> ad.Trace:
    """A trace with readouts of many samples, whose numbers are made up."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, samples)
    shape = (samples, depth + 1)
    prediction = np.where(rng.random(shape) < np.linspace(0.3, 0.95, depth + 1), label[:, None], 0).astype(np.int32)
    rows = Rows(
        sample=np.arange(samples),
        position=np.full(samples, -100, np.int32),
        label=label,
        prediction=prediction,
        cross_entropy=rng.random(shape, np.float32),
        confidence=rng.random(shape, np.float32),
    )
    names = tuple(map(str, range(depth + 1)))
    matrix = np.full((depth + 1, depth + 1), 0.123)
    provenance = {"model": {"name": name}, "data": {"name": "reviews (test)"}, "samples": samples}
    similarity = {"cosine": matrix, "cka": matrix}
    return ad.Trace(
        names=names,
        similarity=similarity,
        rows=rows,
        ids=tuple(range(samples)),
        provenance=provenance,
        notes=("a note",),
    )


def compared() -> ad.Comparison:
    few = replace(traced("first", samples=60), digests=np.arange(60, dtype=np.uint64))
    return ad.compare(few, replace(few, provenance={**few.provenance, "model": {"name": "second"}}))


def calibrated() -> ExitSummary:
    share = np.array([1.0, 0.5])
    curve = ad.ExitCurve(
        last=6, tested=(2,), samples=400, level=share, depth=6 * share, agreement=share, accuracy=share, flops=share,
        predicted=share, measured=share, batch=8,
    )  # fmt: skip
    return ExitSummary(
        folder=FOLDER, model="bert", data="reviews (test)", policy=Confidence(0.8), leaving=(0, 100, 120, 80, 40, 60),
        calibration=Calibration(
            certificate=CERTIFICATE, level=0.8, samples=(400, 800, 400), held_out_failures=3, held_out_depth=3.5
        ),
        curve=curve, agreement=0.9925, accuracy=0.87, full_accuracy=0.88, predicted=0.61, measured=0.64,
        readout_in_blocks=0.02, notes=("a note",),
        latencies=tuple(
            Latency(name=name, batch=batch, calls=16, p50=0.00123, p95=1.23456, throughput=12_345.6)
            for batch in (1, 8, 32) for name in ("full model", "early exit")
        ),
    )  # fmt: skip


def language_model() -> LmCalibrateResult:
    steps = tuple(
        ThresholdResult(threshold=at, failures=count, depth=7.25, differing=0.0123)
        for at, count in ((0.99, 1), (0.5, 44))
    )
    guarantee = SequenceGuarantee(certificate=CERTIFICATE, share=0.0, new_tokens=64, steps=steps, passed=1)
    return LmCalibrateResult(
        folder=FOLDER, model="gpt2", data="corpus", policy=Confidence(0.8), guarantee=guarantee, last=12, notes=()
    )


def trained(measure: str = "accuracy") -> TrainingSummary:
    values, bounds = ((0.5, 0.75), ((0.4, 0.6), (0.7, 0.8))) if measure == "accuracy" else ((1234.5, None), ())
    return TrainingSummary(
        folder=FOLDER, model="bert", data="reviews (train)", task="text-classification", objective="aligned",
        purpose="", separate_heads=False, measure=measure, values=values, bounds=bounds, evaluated="40 rows (test)",
        classes=(), settings={}, steps=1000, seconds=1.5, notes=("a note",), versions={},
    )  # fmt: skip


def lens() -> ad.Lens:
    rng, depths, tokens = np.random.default_rng(0), 13, 20
    top = tuple(tuple(f" word{rng.integers(99)}" for _ in range(tokens)) for _ in range(depths))
    ids, shares = np.zeros((depths, tokens), np.int64), rng.random((depths, tokens))
    return ad.Lens(
        tokens=tuple(f" t{place}" for place in range(tokens)), targets=(None,) * tokens, top=top, top_id=ids,
        probability=shares, entropy=shares, target_id=ids[0], target_probability=shares, target_rank=ids,
        next_token=True, notes=("a note",), provenance={"model": {"name": "gpt2"}},
    )  # fmt: skip


def theory() -> ad.Theory:
    rng = np.random.default_rng(0)
    paths = geometry(ArrayStates(dict(zip("abc", np.cumsum(rng.normal(size=(3, 40, 8)), axis=0), strict=True))))
    return ad.Theory(
        geometry={"measured": paths}, closeness={}, collapse={}, updates={}, notes=("a note",), provenance={}
    )


RESULTS: dict[str, Callable[[], Result]] = {
    "trace": traced,
    "trace of arrays": lambda: ad.trace_states([np.eye(4), 2 * np.eye(4)]),
    "trace, a hostile name": lambda: traced(HOSTILE, samples=9),
    "trace, a long name": lambda: traced("a/very/long/path/" * 20, samples=9),
    "comparison": compared,
    "compare": lambda: CompareResult(folder=FOLDER, comparisons=(compared(),)),
    "demo": lambda: DemoResult(
        folder=FOLDER, traces={name: traced(name, samples=1347, depth=8) for name in ("standard", "aligned")}
    ),
    "training": trained,
    "training of a language model": lambda: trained("perplexity"),
    "exits": calibrated,
    "calibrated": lambda: CalibrateResult(
        **vars(calibrated()), exits=ad.EarlyExit(tiny_models.build("vit")[0], Confidence(0.8))
    ),
    "exits of a language model": language_model,
    "exit curve": lambda: calibrated().curve,
    "lens": lens,
    "theory": theory,
    "predictions": lambda: PredictResult(
        folder=FOLDER, model="bert", data="reviews", policy="Confidence(0.8)", promise="certified", undecided=1,
        leaving=(100, 12_345, 7), blocks=25_000, readouts=10, notes=("a note",),
    ),
    "truncated": lambda: TruncateResult(
        folder=FOLDER, model="bert", depth=3, last=12, notes=(), parameters=(109_483_778, 45_690_626),
        bytes=(437_935_112, 182_762_504), accuracy=((0.91, 0.88, 0.93), (0.9, 0.87, 0.92)), time=0.27,
        timed="median of 5 rounds",
        minimal=MinimalDepth(depth=3, last=12, certificate=CERTIFICATE),
    ),
    "exported": lambda: ExportResult(
        folder=FOLDER, model="bert", policy="Confidence(0.8)", exits=(2, 4), last=4, bytes=(123_456, 7_890_123),
        files=("segment-1.onnx", "segment-2.onnx"), apart=1.2e-7, batches=((2, 16), (1, 16)),
    ),
    "generated": lambda: GenerateResult(
        model="gpt2", way="all blocks", prompts=("a",), texts=("b",), tokens=120, seconds=1.5, advice=None, notes=(),
        spent=GenerationStats(tokens=120, blocks=700, readouts=100, drafted=100, accepted=80, rounds=20, depths=(1, 2)),
    ),
}  # fmt: skip
of_each = pytest.mark.parametrize("name", RESULTS)


def test_every_kind_of_result_is_here() -> None:
    for module in pkgutil.walk_packages(ad.__path__, "anydepth."):
        if module.name.rpartition(".")[0] != "anydepth.assets" and "__main__" not in module.name:
            import_module(module.name)
    kinds, queue = set[type](), [Result]
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        kinds.add(kind)
    own = {kind for kind in kinds - {Result} if kind.__module__.startswith("anydepth.")}
    assert own == {type(make()) for make in RESULTS.values()}


@of_each
def test_one_line(name: str) -> None:
    line = repr(RESULTS[name]())
    assert len(line) <= 200
    assert "\n" not in line
    assert "\x1b" not in line
    assert " at 0x" not in line


@of_each
@pytest.mark.parametrize("width", [120, 80, 40])
def test_a_summary_fits_its_width_and_cuts_no_number(name: str, width: int) -> None:
    result = RESULTS[name]()
    text = result.summary(width)
    tables = [table for table in result.tables()]
    for table in tables:
        drawn = table.text(width)
        assert drawn in text
        assert max(map(len, drawn.splitlines())) <= width
        for column in (column for column in table.columns if not column.rank):
            for cell in filter(None, column.cells):
                assert re.search(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", drawn), cell
    without_words = [line for line in text.splitlines() if len(line) > width]
    assert not [line for line in without_words if " " in line.strip()]
    assert "…" not in text
    assert all(note.split()[0] in text for note in getattr(result, "notes", ()))


def test_at_80_columns_the_first_table_that_anyone_sees_has_all_but_one_measure() -> None:
    text = RESULTS["demo"]().summary(80)
    for word in ("depth", "standard", "aligned", "accuracy", "saturate here"):
        assert word in text
    assert len(re.findall(r"0\.\d{3}–0\.\d{3}", text)) == 2 * 9


@of_each
def test_html(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = RESULTS[name]()
    if name not in ("trace", "trace, a hostile name"):  # a picture takes two seconds
        monkeypatch.setattr("anydepth.report.charts.files.picture", lambda chart, about: f"<img alt={len(about)}>")
    html = result._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert len(html) <= 200_000
    assert html.count("<table>") == len(result.tables())
    assert html.count("<img") == isinstance(result, ad.Trace)


@of_each
def test_results_of_the_same_content_are_equal(name: str) -> None:
    first, second = RESULTS[name](), RESULTS[name]()
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert first != object()
    fields = vars(first)
    other: Any = {"notes": ("another",)} if "notes" in fields else {"folder": Path("other")}
    if not other.keys() <= fields.keys():
        other = {"batch": 77}
    assert replace(first, **other) != first  # type: ignore[type-var]


def test_when_a_result_was_made_is_not_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for day in ("2026-01-01", "2026-01-02"):
        monkeypatch.setattr("anydepth.tracing.run.now", lambda day=day: day)
        made.append(ad.trace_states([np.eye(4), 2 * np.eye(4)]))
    assert made[0].provenance["created"] != made[1].provenance["created"]
    assert made[0] == made[1]
    assert replace(made[0], provenance={**made[0].provenance, "samples": 5}) != made[0]


def test_a_trace_with_one_other_number_is_another() -> None:
    trace, other = traced(samples=9), traced(samples=9)
    assert other.rows is not None
    other.rows.prediction[0, 0] += 1
    assert trace != other
    blank = replace(trace, similarity={"cka": np.full((13, 13), np.nan)})
    assert blank == replace(blank, similarity={"cka": np.full((13, 13), np.nan)})


def test_models_and_policies_say_what_they_are() -> None:
    model, batch = tiny_models.build("bert")
    stack = ad.Stack(model)
    assert repr(stack) == "Stack(BertForSequenceClassification: bert.encoder.layer (4 x BertLayer))"
    exits = ad.EarlyExit(stack, ad.Confidence(0.5))
    assert repr(exits) == f"EarlyExit(BertForSequenceClassification, {ad.Confidence(0.5)!r}, not calibrated)"
    towers = CLIPConfig(text_config=tiny_models._USUAL, vision_config=tiny_models._IMAGE, projection_dim=16)
    assert repr(ad.Stack(CLIPModel(towers))) == "Stack(CLIPModel: blocks are learnt from the first batch)"
    for thing in (stack, exits, ad.AlignedLoss(), ad.Confidence(0.5)):
        assert len(repr(thing)) <= 200
    assert len(batch) == 2


def test_a_saved_trace_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    trace = traced(samples=40)
    trace.save(tmp_path / "trace", report=False)
    assert ad.Trace.load(tmp_path / "trace") == trace


@pytest.mark.parametrize("name", ["trace", "trace, a hostile name"])
def test_a_browser_draws_what_a_notebook_shows(name: str, chromium: str, tmp_path: Path) -> None:
    result = RESULTS[name]()
    page = tmp_path / "cell.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{result._repr_html_()}", encoding="utf-8")
    with Browser(chromium) as browser:
        browser.open(page)
        assert browser.evaluate("document.querySelectorAll('tbody tr').length") == 13
        title = browser.evaluate("document.querySelector('caption').textContent")
        assert title.startswith("bert on" if name == "trace" else "<script>")
        width, height = browser.evaluate("(e => [e.naturalWidth, e.naturalHeight])(document.querySelector('img'))")
        assert min(width, height) > 600
        assert browser.complaints() == []
        assert [request for request in browser.requests() if not request.startswith("data:")] == [page.as_uri()]
