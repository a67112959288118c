"""What training at every depth costs beside ordinary training: time of a step, and for a vocabulary also memory.

    python benchmarks/align_cost.py [--part classification|vocabulary] [--rounds N]

Classification: `AlignedTrainer` (objectives `aligned` and `heads`) and plain `Trainer` on the same batches, in turn and
in one process for each shape; CPU seconds from the end of one optimizer step to the end of the next.

Vocabulary: the shape of GPT-2 small on 4 x 256 tokens, a fresh process for each measurement. Time is CPU seconds of one
step's forward and backward, and of AdamW's update. Memory is the highest resident set (VmHWM, reset through
/proc/self/clear_refs) during one whole step that finds AdamW's moments in place, above what the process held before it
built the model. The floor is what nobody can do without: the blocks forward and backward, and L times one head (norm,
classifier, cross-entropy) forward and backward, each timed alone.
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

from machine import processor

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "minilm": "MiniLM, 6 × 384, 32 sentences of 64 tokens",
    "vit-s": "ViT-S, 12 × 384, 16 images of 50 tokens",
    "tiny": "a tiny ViT, 8 × 64, 64 images of 17 tokens",
}
TRAINERS = {"standard": "plain Trainer", "aligned": "AlignedTrainer, aligned", "heads": "AlignedTrainer, heads"}
STEPS = {"minilm": 4, "vit-s": 4, "tiny": 40}  # a round: the first is not counted
WAYS = {
    "standard": "ordinary training",
    "aligned": "every depth (anydepth)",
    "sampled": "depth L and a sampled one (anydepth)",
    "linear_cross_entropy": "every depth, torch's linear_cross_entropy for each, chunks of 512",
    "logits": "every depth, all logits kept",
    "floor": "the floor",
}
PEERS = ("linear_cross_entropy", "logits")  # one round is enough to see where they stand
SEQUENCES, TOKENS = 4, 256


# ---------------------------------------------------------------------------------------------------- classification


def model_of(shape: str) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    if shape == "minilm":
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
    if shape == "vit-s":
        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
        return ViTForImageClassification(ViTConfig(**sizes, image_size=98, patch_size=14, num_labels=10))
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 256}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=28, patch_size=7, num_channels=1, num_labels=10))


def data_of(shape: str) -> tuple[list[dict[str, Any]], int]:
    """Two batches' worth of samples, and the size of a batch."""
    import torch

    if shape == "minilm":
        ids, mask = torch.randint(1000, 30_000, (64, 64)), torch.ones(64, 64, dtype=torch.long)
        rows = zip(ids, mask, strict=True)
        return [{"input_ids": i, "attention_mask": m, "labels": n % 2} for n, (i, m) in enumerate(rows)], 32
    images, batch = (torch.rand(32, 3, 98, 98), 16) if shape == "vit-s" else (torch.rand(128, 1, 28, 28), 64)
    return [{"pixel_values": image, "labels": n % 10} for n, image in enumerate(images)], batch


def classification(shape: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step: for each trainer the median of each round. In this process."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from anydepth.training.trainer import AlignedTrainer

    torch.set_num_threads(1)
    rows, batch = data_of(shape)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append(time.process_time())

    def trainer_of(way: str, folder: str) -> Any:
        torch.manual_seed(0)
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS[shape],
            per_device_train_batch_size=batch,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        common = {"model": model_of(shape), "args": arguments, "train_dataset": rows}
        return Trainer(**common) if way == "standard" else AlignedTrainer(**common, objective=way)

    found: dict[str, list[float]] = {way: [] for way in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: trainer_of(way, folder) for way in TRAINERS}
        for _ in range(rounds):
            for way, trainer in trainers.items():  # in turn, so that a machine that slows down slows all of them
                clock = Clock()
                trainer.add_callback(clock)
                trainer.train()
                trainer.remove_callback(clock)
                steps = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
                found[way].append(statistics.median(steps))
    return found


# -------------------------------------------------------------------------------------------------------- vocabulary


def vocabulary(way: str) -> dict[str, float]:
    """Time and memory of one step, in this process."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = status("VmRSS")
    model = GPT2LMHeadModel(GPT2Config()).train()
    ids = torch.randint(0, model.config.vocab_size, (SEQUENCES, TOKENS))
    if way == "floor":
        return floor(model, ids)
    loss = loss_of(way, model, ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(input_ids=ids, labels=ids).loss.backward()  # once, for AdamW's moments to be there
    optimizer.step()
    optimizer.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    loss().backward()
    middle = time.process_time()
    optimizer.step()
    optimizer.zero_grad()
    end = time.process_time()
    return {"pass": middle - start, "update": end - middle, "megabytes": (status("VmHWM") - before) / 1000}


def loss_of(way: str, model: Any, ids: Any) -> Callable[[], Any]:
    """What is backpropagated in a step. All ways but the standard one and the sampled one agree on its value."""
    import torch
    from torch.nn import functional

    import anydepth as ad
    from anydepth.training.objectives import OBJECTIVES

    if way == "standard":
        return lambda: model(input_ids=ids, labels=ids).loss
    batch = {"input_ids": ids}
    stack = ad.Stack(model)
    stack.verify(batch)  # a check of the first batch: not a part of a step
    if way in ("aligned", "sampled"):
        return lambda: OBJECTIVES[way].loss(stack, {**batch, "labels": ids}).loss
    targets = functional.pad(ids, (0, 1), value=-100)[:, 1:].reshape(-1)
    weights = OBJECTIVES["aligned"].loss.plan(0, depth=stack.depth)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)

    def at(state: Any) -> Any:
        if way == "logits":
            return functional.cross_entropy(stack.readout(state, batch).flatten(0, 1), targets)
        features = model.transformer.ln_f(state).flatten(0, 1)
        return functional.linear_cross_entropy(features, model.lm_head.weight, targets, options=options)

    def naive() -> Any:
        states = stack.states(batch)
        return sum(weight * at(states[depth]) for depth, weight in weights.items())

    return naive


def floor(model: Any, ids: Any, repeats: int = 3) -> dict[str, float]:
    """The blocks forward and backward, and L heads forward and backward, each timed alone."""
    import torch
    from torch.nn import functional

    body, depth = model.transformer, model.config.n_layer
    targets = functional.pad(ids, (0, 1), value=-100)[:, 1:].reshape(-1)
    state = torch.randn(*ids.shape, model.config.n_embd)

    def blocks() -> None:
        answer = body(input_ids=ids, use_cache=False).last_hidden_state
        answer.backward(torch.ones_like(answer))

    def head() -> None:
        leaf = state.clone().requires_grad_()
        logits = model.lm_head(body.ln_f(leaf)).flatten(0, 1)
        functional.cross_entropy(logits, targets).backward()

    found = {}
    for name, work in (("blocks", blocks), ("head", head)):
        seconds = []
        for _ in range(repeats + 1):  # the first is not counted
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        found[name] = statistics.median(seconds[1:])
    return {**found, "pass": found["blocks"] + depth * found["head"]}


def status(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# ------------------------------------------------------------------------------------------------------- the results


def in_a_process(part: str, what: str, rounds: int) -> Any:
    command = [sys.executable, __file__, "--once", part, what, "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{part}, {what}: {(done.stderr.strip().splitlines() or [f'exit status {done.returncode}'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_classification(rounds: int) -> dict[str, Any]:
    found = {}
    for shape in SHAPES:
        found[shape] = in_a_process("classification", shape, rounds)
        medians = {way: statistics.median(seconds) for way, seconds in found[shape].items()}
        print(f"{shape}: " + ", ".join(f"{way} {seconds:.4f} CPU s" for way, seconds in medians.items()), flush=True)
    return found


def measure_vocabulary(rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            if number and way in PEERS:
                continue
            found[way].append(in_a_process("vocabulary", way, 1))
            print(f"{way}: " + ", ".join(f"{name} {value:.2f}" for name, value in found[way][-1].items()), flush=True)
    return found


def classification_table(found: dict[str, dict[str, list[float]]]) -> tuple[list[str], list[str]]:
    lines = ["| | " + " | ".join(TRAINERS.values()) + " |", "|---|" + "---|" * len(TRAINERS)]
    checks = []
    for shape, runs in found.items():
        medians = {way: statistics.median(seconds) for way, seconds in runs.items()}
        ratios = {way: seconds / medians["standard"] for way, seconds in medians.items()}
        cells = [f"{medians[way]:.3f}" + ("" if way == "standard" else f" ({ratios[way]:.2f} ×)") for way in TRAINERS]
        lines.append(f"| {SHAPES[shape]} | " + " | ".join(cells) + " |")
        if shape != "tiny":  # a step of 60 ms is mostly the calls themselves: reported, and no line is drawn for it
            for way in ("aligned", "heads"):
                verdict = f"{yes(ratios[way] <= 1.10)} ({ratios[way]:.2f})"
                checks.append(f"- {shape}, {way}: a step at most 1.10 × plain Trainer's: {verdict}")
    return lines, checks


def vocabulary_table(found: dict[str, list[dict[str, float]]]) -> tuple[list[str], list[str]]:
    def median(way: str, name: str) -> float:
        return statistics.median(one[name] for one in found[way])

    steps = {way: median(way, "pass") + median(way, "update") for way in WAYS if way != "floor"}
    lines = [
        "| | forward and backward, CPU s | update | step beside ordinary | peak, MB | beside ordinary |",
        "|---|---|---|---|---|---|",
    ]
    base = median("standard", "megabytes")
    for way, step in steps.items():
        times = f"{median(way, 'pass'):.1f} | {median(way, 'update'):.2f} | {step / steps['standard']:.2f} ×"
        peak = median(way, "megabytes")
        lines.append(f"| {WAYS[way]} | {times} | {peak:.0f} | {peak / base:.2f} × |")
    blocks, head, least = (median("floor", name) for name in ("blocks", "head", "pass"))
    lines.append(f"| the floor: blocks {blocks:.1f}, and 12 heads of {head:.2f} | {least:.1f} | | | | |")
    memory, time_, one = median("aligned", "megabytes") / base, median("aligned", "pass") / least, steps["sampled"]
    one /= steps["standard"]
    return lines, [
        f"- every depth: peak at most 1.25 × ordinary training's: {yes(memory <= 1.25)} ({memory:.2f})",
        f"- every depth: forward and backward at most 1.15 × the floor: {yes(time_ <= 1.15)} ({time_:.2f})",
        f"- one sampled depth: a step at most 1.5 × the ordinary one: {yes(one <= 1.5)} ({one:.2f})",
    ]


def yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("classification", "vocabulary"), help="(default: both)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=2, metavar=("PART", "WHAT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        part, what = chosen.once
        print(json.dumps(classification(what, chosen.rounds) if part == "classification" else vocabulary(what)))
        return
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "align_cost.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}  # the other part, measured before
    record["machine"] = f"{processor()}, one thread; torch {version('torch')}, transformers {version('transformers')}"
    if chosen.part != "vocabulary":
        record["classification"] = measure_classification(chosen.rounds)
    if chosen.part != "classification":
        record["vocabulary"] = measure_vocabulary(chosen.rounds)
    file.write_text(json.dumps(record, indent=1) + "\n")
    page = []
    if "classification" in record:
        lines, checks = classification_table(record["classification"])
        page += ["CPU seconds of an optimizer step, medians of rounds in turn:", "", *lines, "", *checks, ""]
    if "vocabulary" in record:
        lines, checks = vocabulary_table(record["vocabulary"])
        page += ["GPT-2 small (12 × 768, 50,257 tokens) on 4 × 256 tokens:", "", *lines, "", *checks, ""]
    page.append(f"{record['machine']}.")
    (RESULTS / "align_cost.md").write_text("\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
