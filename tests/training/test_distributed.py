"""Several processes, and processes that are killed: the same training as one that had neither."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_worker
import transformers
from safetensors.torch import load_file
from torch import Tensor

from anydepth.core.stack import Stack
from anydepth.signals import Stopped, stopping
from anydepth.tracing.trace import Trace
from anydepth.training import callbacks as telling
from anydepth.training.checkpoints import last_checkpoint
from anydepth.training.objectives import OBJECTIVES, AlignedLoss

WORKER, BLOCKS = Path(train_worker.__file__), train_worker.BLOCKS


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with train_worker.quick_collections():
        yield


def started(jobs: list[dict[str, Any]], *launcher: str) -> None:
    """Do jobs in a process of their own, or in those that a launcher starts."""
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(WORKER), json.dumps(jobs)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


# --- killed -----------------------------------------------------------------------------------------------------------

KILLED = ("standard", "aligned", "sampled", "alternating")
# an epoch has 8 steps: killed in the middle of the second, and the checkpoint before that lies in its middle, too
SCHEDULE = {"max_steps": 14, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four trainings left that were killed at step 13."""
    folder = tmp_path_factory.mktemp("killed")
    job = {"kind": "vit", "arguments": SCHEDULE, "kill_at": 13}
    started([{**job, "objective": name, "out": str(folder / name)} for name in KILLED])
    return folder


@pytest.mark.filterwarnings("ignore:.*checkpoint-15 is damaged .*, and left out")
@pytest.mark.parametrize("objective", KILLED)
def test_a_killed_training_resumes_to_the_weights_of_one_never_killed(
    objective: str, killed: Path, tmp_path: Path
) -> None:
    job = {"kind": "vit", "objective": objective, "arguments": SCHEDULE}
    train_worker.train({**job, "out": str(tmp_path)})
    assert not (killed / objective / "weights.safetensors").exists()
    assert last_checkpoint(killed / objective) == killed / objective / "checkpoint-12"
    half_written(killed / objective / "checkpoint-12", killed / objective / "checkpoint-15")
    train_worker.train({**job, "out": str(killed / objective), "resume": True})
    ours, theirs = weights(killed / objective), weights(tmp_path)
    assert {name: torch.equal(ours[name], theirs[name]) for name in theirs} == dict.fromkeys(ours, True)
    assert read(killed / objective, "looked-0") == read(tmp_path, "looked-0")[12:]


def half_written(whole: Path, folder: Path) -> None:
    """What a kill in the middle of writing leaves: the weights cut off, and of the last file only the start."""
    shutil.copytree(whole, folder)
    for name in ("model.safetensors", "trainer_state.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])


# --- two processes ----------------------------------------------------------------------------------------------------

ALONE = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 8}
SHARED = ALONE | {"per_device_train_batch_size": 4}
CASES = {
    "vit": {"kind": "vit", "objective": "aligned", "evaluated": 13},
    "bert": {"kind": "bert", "objective": "alternating", "evaluated": 7},
    "gpt2": {"kind": "gpt2", "objective": "sampled", "evaluated": 13},
    "heads": {"kind": "vit", "objective": "heads", "evaluated": 9},
    "accumulating": {"kind": "gpt2", "objective": "aligned", "arguments": {"gradient_accumulation_steps": 2}},
}


def case(name: str, out: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    job = {"dropout": 0.0, "out": str(out / name), **CASES[name]}
    return job | {"arguments": arguments | job.get("arguments", {})}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case trained by two processes; the sampled one also resumed by two from the middle of a like training."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [case(name, folder, SHARED) for name in CASES]
    jobs[0]["trace_to"] = str(folder / "traces")
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = {**case("gpt2", folder, SHARED | saving), "dropout": 0.1, "out": str(folder / "whole")}
    resumed = whole | {"out": str(folder / "resumed"), "resume": str(folder / "whole" / "checkpoint-2")}
    sharded = [{"kind": "gpt2", "fsdp": version, "out": str(folder / f"fsdp-{version}")} for version in (1, 2)]
    stopped = {"kind": "vit", "stop_at": 3, "out": str(folder / "stopped")}
    started(
        [*jobs, whole, resumed, *sharded, stopped],
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    )
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, two: Path, tmp_path: Path) -> None:
    train_worker.train(case(name, tmp_path, ALONE))
    ours, theirs = weights(two / name), weights(tmp_path / name)
    assert max((ours[one] - theirs[one]).abs().max().item() for one in theirs) < 1e-5
    curves = [
        [(line["step"], key, line[key]) for line in read(folder / name, "log") for key in line if "loss" in key]
        for folder in (two, tmp_path)
    ]
    assert [point[:2] for point in curves[0]] == [point[:2] for point in curves[1]]
    for (step, key, value), (*_, expected) in zip(*curves, strict=True):
        if CASES[name]["kind"] != "gpt2" or "depth" not in key:  # those are means over batches, of differing length
            assert value == pytest.approx(expected, abs=1e-5), f"{key} at step {step}"
    found = [
        {key: value for key, value in read(folder / name, "metrics").items() if "accuracy" in key or "perpl" in key}
        for folder in (two, tmp_path)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert bool(found[0]) == ("evaluated" in CASES[name])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_both_processes_look_at_the_same_depths(name: str, two: Path) -> None:
    first, second = (read(two / name, f"looked-{rank}") for rank in (0, 1))
    plans = [OBJECTIVES[CASES[name]["objective"]].loss.plan(step, BLOCKS) for step in range(4)]
    expected = [[bool(plan.get(depth)) for depth in range(1, BLOCKS + 1)] for plan in plans]
    assert first == second == expected
    assert len({tuple(looked) for looked in expected}) > 1


def test_two_processes_resume_to_the_same_weights(two: Path) -> None:
    ours, theirs = weights(two / "resumed"), weights(two / "whole")
    assert {name: torch.equal(ours[name], theirs[name]) for name in theirs} == dict.fromkeys(ours, True)
    assert read(two / "resumed", "looked-1") == read(two / "whole", "looked-1")[2:]
    assert {path.name for path in (two / "whole" / "checkpoint-2").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


def test_all_processes_stop_where_one_is_asked_to(two: Path) -> None:
    """What a scheduler may do; both leave after the same step, and the checkpoint of that step is whole."""
    assert [read(two / "stopped", f"stopped-{rank}") for rank in (0, 1)] == [[3, signal.SIGTERM]] * 2
    assert last_checkpoint(two / "stopped") == two / "stopped" / "checkpoint-3"


def test_ones_own_signal_is_not_the_second_after_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher sends it to all processes, one by one: the checkpoint of the first is not to be cut off."""
    monkeypatch.setattr(telling, "largest", lambda number, device: signal.SIGTERM)
    interrupt, control, saved = telling.InterruptCallback(print), transformers.TrainerControl(), []

    def step() -> None:
        with stopping(), interrupt.awaited():
            interrupt.on_step_end(None, None, control)
            signal.raise_signal(signal.SIGTERM)
            saved.append(control.should_save)

    with pytest.raises(Stopped):
        step()
    assert saved == [True]


@pytest.mark.parametrize("version", [1, 2])
def test_the_loss_runs_inside_the_forward_of_fsdp(version: int, two: Path) -> None:
    """On the CPU Trainer wraps models in DDP whatever it is told, so this is FSDP without Trainer."""
    whole = train_worker.model("gpt2", 0.0).train()
    for rank in (0, 1):
        batch = transformers.default_data_collator(train_worker.data("gpt2", 4, seed=rank))
        (AlignedLoss()(Stack(whole), batch).loss / 2).backward()
    found = load_file(two / f"fsdp-{version}")
    assert found.keys() == dict(whole.named_parameters()).keys()
    for name, parameter in whole.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_two_processes_trace_together(two: Path, tmp_path: Path) -> None:
    train_worker.train(case("vit", tmp_path, ALONE) | {"trace_to": str(tmp_path / "traces")})
    ours, theirs = (Trace.load(folder / "traces" / "step-000004") for folder in (two, tmp_path))
    assert ours.accuracy == pytest.approx(theirs.accuracy, nan_ok=True)
    assert ours.similarity["cka"] == pytest.approx(theirs.similarity["cka"], abs=1e-4, nan_ok=True)
    assert (two / "traces" / "report.html").exists()
