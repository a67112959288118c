"""What 0.1.0 wrote is read today: traces, calibrated models, exported graphs, trained models, comparisons."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cli import Command, in_folder

from anydepth import Comparison, EarlyExit, Stack, Trace, compare
from anydepth.exits.saving import ExitFile as ExitFile
from anydepth.models.loading import load
from anydepth.onnx.router import Router
from anydepth.theory.findings import Theory

HERE = Path(__file__).parent / "written_by_0_1_0"
TOKENS = [[2, 4, 6, 8, 3], [2, 9, 10, 11, 3], [2, 5, 5, 13, 3]]


def facts(name: str) -> Any:
    """What is read in a folder, as JSON; `expected.json` holds what 0.1.0 itself read there."""
    folder = HERE / name
    batch = {"input_ids": np.array(TOKENS), "attention_mask": np.ones((3, 5), np.int64)}
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    match name:
        case "exits":
            model = EarlyExit.load(folder)
            assert model.calibration is not None
            return _plain(**vars(model(tensors)), certificate=str(model.calibration.certificate))
        case "exits-gpt2":
            written = ExitFile.read(folder)
            return {
                "policy": str(written.policy),
                "model": written.model["fingerprint"],
                "about": sorted(written.about),
            }
        case "onnx":
            return _plain(**vars(Router(folder)(batch)))
        case "aligned":
            stack = Stack(load(str(folder)).model)
            with torch.no_grad():
                states = stack.states(tensors)
                return _plain(**{f"at depth {d}": stack.readout(h, tensors, depth=d) for d, h in enumerate(states)})
    trace = Trace.load(folder)
    return _plain(
        **{measure: matrix for measure, matrix in trace.similarity.items()},
        **{statistic: getattr(trace, statistic) for statistic in trace.statistics},
        saturation=trace.saturation,
        ids=np.array([str(one) for one in trace.ids]),
        mergeable=trace.moments is not None,
        notes=trace.notes,
    )


def _plain(**values: Any) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items()}


@pytest.mark.parametrize("name", json.loads((HERE / "expected.json").read_text()))
def test_it_reads_as_it_did(name: str) -> None:
    expected = json.loads((HERE / "expected.json").read_text())[name]
    read = json.loads(json.dumps(facts(name)))
    require_equal(read, expected)


def require_equal(read: Any, expected: Any, where: str = "") -> None:
    """The same JSON, numbers to rounding."""
    match expected:
        case dict():
            assert list(read) == list(expected), where
            for key, value in expected.items():
                require_equal(read[key], value, f"{where}/{key}")
        case list():
            assert len(read) == len(expected), where
            for place, (one, other) in enumerate(zip(read, expected, strict=True)):
                require_equal(one, other, f"{where}/{place}")
        case float():
            assert read == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), where
        case _:
            assert read == expected, where


def test_traces_compare_as_they_did() -> None:
    written = json.loads((HERE / "comparison" / "compare.json").read_text())["comparisons"][0]
    names = ("trace", "trace-mean")
    traces = [Trace.load(HERE / name) for name in names]
    compared = compare(traces[0], traces[1], despite=["tokens"], names=names)
    compared_now = json.loads(json.dumps(compared.as_plain()))
    for difference in written["differences"]:
        difference["verdict"] = difference["verdict"].replace("no difference shown", "not significant")
    was = {"notes": [], "provenance": {}}  # sentences may change, and there was no provenance
    require_equal(compared_now | was, written | was)
    loaded = Comparison.load(HERE / "comparison")
    assert (loaded.names, loaded.provenance) == (names, {})
    require_equal(json.loads(json.dumps(loaded.as_plain())) | was, written | was)


def test_theory() -> None:
    theory = Theory.load(HERE / "trace")
    assert theory.depth == 3
    assert set(theory.geometry) >= {"measured", "shuffled"}
    assert theory.notes


def test_kept_states() -> None:
    states = Trace.load(HERE / "trace").states
    assert states is not None
    assert [chunk.shape for chunk in states.chunks(25)] == [(25, 4 * 8), (15, 4 * 8)]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return in_folder(HERE, tmp_path / "here", monkeypatch, capsys)


COMMANDS = {
    "compare": ("compare", "~trace", "~trace-mean", "--despite", "tokens"),
    "predict": ("predict", "~exits", "--data", "~reviews.csv", "--limit", "5"),
    "generate": ("generate", "~exits-gpt2", "--prompt", "the film was", "--max-new-tokens", "2"),
    "trace what was trained": ("trace", "~aligned", "--data", "~reviews.csv", "--limit", "5"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("undrawn")
def test_commands_take_it(name: str, command: Command) -> None:
    done = command(*COMMANDS[name])
    assert (done.status, "Traceback" in done.err) == (0, False), done.err
