"""What ONNX segments cost beside one graph, and whether they do what torch does on real data.

    python benchmarks/onnx_cost.py [--part cost|same] [--rounds N] [--text MODEL] [--images MODEL]

Cost: BERT-base (12 × 768, random weights) on 128 tokens, batches of 1 and 8, one thread. Three ways, in turn and in one
process: the model as `torch.onnx.export` writes it, our one graph (`AtDepth(12)`), and four segments with a policy that
nobody satisfies. CPU seconds of a call: the median over rounds, and of the ratio within each round.

Same: MiniLM on movie reviews and DINOv2-S on Fashion-MNIST, their test data, three policies each, thresholds at which
half of the samples would leave at the last tested depth. Router and torch (`EarlyExit`) get the same batches. A sample
whose score is within 1e-4 of the threshold at a depth where it was tested may fall either way: it is counted apart.
`Patience` counts depths, so that none of its scores is near without being equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor

from anydepth.assets.registry import path
from anydepth.errors import AssetError

RESULTS = Path(__file__).parent / "results"
TOKENS, BATCHES, CUTS = 128, (1, 8), (3, 6, 9)
WAYS = {
    "plain": "the model, by torch.onnx.export",
    "one": "one graph, `AtDepth(12)`",
    "segments": "four segments, nobody leaves",
}
NEAR = 1e-4
CASES = {
    "text": ("MiniLM on movie reviews", "mr", (3, 5)),
    "images": ("DINOv2-S on Fashion-MNIST", "fashion-mnist", (3, 6, 9)),
}


# --- Cost ------------------------------------------------------------------------------------------------------------


def cost(rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of a call, for each size of batch and each way, one number a round."""
    import onnxruntime
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import anydepth as ad
    from anydepth.onnx.exporter import export
    from anydepth.onnx.router import Router

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    sample = inputs_of(2)
    tensors = {name: torch.from_numpy(values) for name, values in sample.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.onnx.export(
            model,
            (),
            root / "plain.onnx",
            kwargs=tensors,
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in tensors},
            opset_version=20,
            verbose=False,
        )
        export(model, ad.AtDepth(12), tensors, root / "one")
        export(model, ad.Confidence(1.0, depths=CUTS), tensors, root / "segments")
        plain = onnxruntime.InferenceSession(root / "plain.onnx", options, providers=["CPUExecutionProvider"])
        one, segments = (Router(root / name, options=options) for name in ("one", "segments"))
    ways: dict[str, Callable[[Any], Any]] = {
        "plain": lambda given: plain.run(None, given),
        "one": one,
        "segments": segments,
    }
    found: dict[str, dict[str, list[float]]] = {}
    for size in BATCHES:
        given = inputs_of(size)
        out = segments(given)
        assert (out.depth == 12).all()
        np.testing.assert_allclose(out.logits, plain.run(None, given)[0], atol=1e-5)
        found[str(size)] = {way: [] for way in WAYS}
        for number in range(rounds + 2):  # the first two warm up
            for way in list(WAYS)[:: 1 if number % 2 else -1]:  # to and fro, so that nobody is always after the same
                seconds = timed(ways[way], given, max(1, 8 // size))
                if number >= 2:
                    found[str(size)][way].append(seconds)
        print(
            f"batch {size}: " + ", ".join(f"{w} {statistics.median(s):.4f}" for w, s in found[str(size)].items()),
            flush=True,
        )
    return found


def inputs_of(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    ids = rng.integers(1000, 30_000, size=(size, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def timed(way: Callable[[Any], Any], given: Any, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        way(given)
    return (time.process_time() - start) / calls


# --- The same on real data -------------------------------------------------------------------------------------------


def same(kind: str, folder: str) -> dict[str, Any]:
    """For each policy, how many samples the router treats as torch does."""
    import torch

    import anydepth as ad
    from anydepth import data
    from anydepth.core.stack import Stack
    from anydepth.models import loading as models

    torch.set_num_threads(1)
    _, asset, depths = CASES[kind]
    loaded = models.load(folder, device="cpu")
    rows = data.load(str(path(asset)), limit=2000 if kind == "images" else None, split="test")
    batches = [
        {name: value for name, value in batch.items() if name not in ("id", "labels")}
        for batch in data.batches(rows, loaded, batch_size=32, labels=False)
    ]
    stack, found = Stack(loaded.model), {}
    for policy in (ad.Confidence(0.5, depths), ad.Patience(2, depths), ad.Convergence(0.5, depths)):
        found[type(policy).__name__] = counts = compared(stack, policy, batches)
        print(f"{kind}, {type(policy).__name__}: {counts}", flush=True)
    return found


def compared(stack: Any, policy: Any, batches: list[Any]) -> dict[str, Any]:
    import anydepth as ad
    from anydepth.onnx.exporter import export
    from anydepth.onnx.router import Router

    scores = ad.EarlyExit(stack, policy).look(batches).under(policy).scores
    if not isinstance(policy, ad.Patience):
        policy = policy.at_level(float(np.median(scores[:, -1])))
    exits = ad.EarlyExit(stack, policy)
    with tempfile.TemporaryDirectory() as folder:
        export(stack, policy, batches[0], Path(folder) / "out")
        router = Router(Path(folder) / "out")
    ours, theirs = [], []
    for batch in batches:
        ours.append(router({name: value.numpy() for name, value in batch.items()}))
        theirs.append(exits(batch))
    depth, logits = (np.concatenate([getattr(out, name) for out in ours]) for name in ("depth", "logits"))
    torchs_depth, torchs = (
        np.concatenate([getattr(out, name).numpy() for out in theirs]) for name in ("depth", "logits")
    )
    tested = np.array(exits.tested)[None, :] <= np.maximum(depth, torchs_depth)[:, None]
    near = np.zeros(len(depth), dtype=bool)
    if not isinstance(policy, ad.Patience):
        near = ((np.abs(scores - policy.level) <= NEAR) & tested).any(axis=1)
    elsewhere, agree = depth != torchs_depth, depth == torchs_depth
    return {
        "threshold": policy.threshold,
        "samples": len(depth),
        "by_depth": {str(d): int((depth == d).sum()) for d in router.exits},
        "near": int(near.sum()),
        "near_elsewhere": int((elsewhere & near).sum()),
        "elsewhere": int((elsewhere & ~near).sum()),
        "other_answer": int((agree & (logits.argmax(1) != torchs.argmax(1))).sum()),
        "logits_apart": float(np.abs(logits - torchs)[agree].max()),
    }


# --- The results -----------------------------------------------------------------------------------------------------


def cost_page(found: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| CPU s a call | " + " | ".join(WAYS.values()) + " | segments / one graph | one graph / the model |"]
    lines.append("|---|" + "---|" * (len(WAYS) + 2))
    checks = []
    for size, runs in found.items():
        over, ours = (ratio(runs[a], runs[b]) for a, b in (("segments", "one"), ("one", "plain")))
        cells = [f"{statistics.median(runs[way]):.4f}" for way in WAYS]
        lines.append(f"| batch {size} | " + " | ".join(cells) + f" | {over:.3f} × | {ours:.3f} × |")
        checks.append(f"- batch {size}: segments at most 1.03 × one graph: {yes(over <= 1.03)} ({over:.3f})")
    return [
        f"BERT-base on {TOKENS} tokens, one thread, medians of {len(runs['one'])} rounds:",
        "",
        *lines,
        "",
        *checks,
        "",
    ]


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def same_page(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| | policy | samples by depth | within 1e-4 of the threshold (of them elsewhere) | elsewhere | other answer | "
        "logits apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, policies in found.items():
        for name, one in policies.items():
            spread = ", ".join(f"{depth}: {count:,}" for depth, count in one["by_depth"].items())
            near = f"{one['near']} ({one['near_elsewhere']})"
            lines.append(
                f"| {CASES[kind][0]} | `{name}({one['threshold']:.4g})` | {spread} | {near} | {one['elsewhere']} | "
                f"{one['other_answer']} | {one['logits_apart']:.1e} |"
            )
    every = [one for policies in found.values() for one in policies.values()]
    held = all(one["elsewhere"] == one["other_answer"] == 0 for one in every)
    check = f"- the same depth and the same answer for every sample that is not near: {yes(held)}"
    return ["Router against torch, sample by sample:", "", *lines, "", check, ""]


def yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def in_a_process(part: str, what: str, rounds: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--once", part, what, str(answer), "--rounds", str(rounds)]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{part} failed")
        return json.loads(answer.read_text())


def measure_same(folders: dict[str, str], rounds: int) -> dict[str, Any]:
    found = {}
    for kind, folder in folders.items():
        try:
            path(CASES[kind][1])
        except AssetError as missing:
            print(f"{kind} skipped: {missing}")
            continue
        if not (Path(folder) / "config.json").exists():
            print(f"{kind} skipped: no model in {folder}; docs/assets.md says how it is trained")
            continue
        found[kind] = in_a_process("same-" + kind, folder, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "same"), help="(default: both)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--text", default="runs/minilm-mr", help="MiniLM with a head")
    parser.add_argument("--images", default="runs/dinov2s-fashion", help="DINOv2-S with a head")
    parser.add_argument("--once", nargs=3, metavar=("PART", "WHAT", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        part, what, file = chosen.once
        answer = cost(chosen.rounds) if part == "cost" else same(part.removeprefix("same-"), what)
        Path(file).write_text(json.dumps(answer))
        return
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "onnx_cost.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}  # the other part, measured before
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "onnxruntime"))
    record["machine"] = f"{processor()}, one thread; {packages}"
    if chosen.part != "same":
        record["cost"] = in_a_process("cost", "-", chosen.rounds)
    if chosen.part != "cost":
        record["same"] = measure_same({"text": chosen.text, "images": chosen.images}, chosen.rounds)
    file.write_text(json.dumps(record, indent=1) + "\n")
    page = cost_page(record["cost"]) if "cost" in record else []
    page += same_page(record["same"]) if record.get("same") else []
    page.append(f"{record['machine']}.")
    (RESULTS / "onnx_cost.md").write_text("\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
