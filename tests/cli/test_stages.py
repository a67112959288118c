"""A model in two stages on the command line: trained, cut, calibrated, asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from run_cli import in_folder

from anydepth.exits.saving import ExitFile


@pytest.mark.usefixtures("undrawn")
def test_every_command_knows_where_the_last_stage_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    torch.manual_seed(0)
    checkpoints.swin(tmp_path / "swin", num_labels=10)
    command = in_folder(tmp_path, tmp_path / "here", monkeypatch, capsys)
    data = ("--data", "digits")
    done = command("align", "~swin", *data, "--limit", "40", "--max-steps", "2", "--out", "aligned", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)["values"]
    assert values[0] is None, "depth 1 is of the first stage"
    assert all(0 <= value <= 1 for value in values[1:])
    assert "| 1 | – | – |" in Path("aligned/README.md").read_text("utf-8")
    assert command("truncate", "aligned", "--depth", "2", *data, "--out", "cut").status == 0
    cut = transformers.AutoModelForImageClassification.from_pretrained("cut")
    assert cut.config.depths == [1, 1]
    refused = command("truncate", "aligned", "--depth", "1", *data, "--out", "shorter")
    assert refused.status == 2
    assert "depth is 1, expected 2..3 for SwinForImageClassification, after a block of its last stage" in refused.err
    done = command("exit", "aligned", *data, "--tolerance", "0.5", "--depths", "2", "--out", "exits")
    assert done.status == 0, done.err
    assert ExitFile.read(Path("exits")).policy.tested(3, 2) in ((2,), ())
    assert command("predict", "exits", *data, "--limit", "5", "--out", "predictions").status == 0
    for arguments in (
        ("export", "exits", "--out", "onnx"),
        ("trace", "~swin", *data, "--limit", "10", "--theory", "--out", "theory"),
        ("align", "~swin", *data, "--limit", "40", "--objective", "heads", "--out", "heads"),
    ):
        refused = command(*arguments)
        assert refused.status == 2
        assert "SwinForImageClassification runs in stages and has a readout from depth 2 on" in refused.err
