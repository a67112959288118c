"""What generating in other ways than the plain one saves, beside what measured costs predict and beside transformers.

    python benchmarks/generation.py [--models DIR ...] [--prompts 20] [--new-tokens 64]

Batch 1, greedy, one thread. All ways write on from the same prompts (the first 32 tokens of held-out documents of the
Brown corpus) in turn, in an order drawn anew for each prompt; CPU seconds, and medians over prompts of the plain way's
time over each way's on the same prompt. Predicted: from the costs of forward, block and head, measured before, and the
acceptance, or the depths, seen in the same run. Results go to benchmarks/results/generation.md and .json.

The models are small and trained on Brown by

    python benchmarks/objectives --full --tasks gpt && python benchmarks/generation.py --save runs
    anydepth align runs/llama-config --from-scratch --data ~/.cache/anydepth/assets/brown --objective aligned \
      --max-steps 3000 --per-device-train-batch-size 8 --learning-rate 2e-3 --warmup-steps 0.05 \
      --lr-scheduler-type cosine --max-length 128 --use-cpu --out runs/llama-aligned
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import processor
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from anydepth import Confidence
from anydepth.assets.registry import path
from anydepth.generation import Spent, at_depth, dynamic_exit, self_speculative
from anydepth.generation.costs import Advice, advise, tokens_per_round
from anydepth.generation.modes import GenerationMethod
from anydepth.generation.speculative import best_length

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
MODELS = ("runs/gpt-aligned", "runs/gpt-standard", "runs/llama-aligned")
PROMPT = 32
WITHIN = 0.9
"""Of what is predicted, the share that self-speculation must reach."""
DRAFTS = (1, 2, 4)
DYNAMIC = (0.5, 0.9)
"""Thresholds of confidence at two depths."""


@dataclass
class Way:
    """A way to generate, and what it came to.

    Attributes:
        title: in the table.
        options: for `generate`.
        mode: which of ours it is; None for transformers' own.
        predict: the speed-up that measured costs predict, from what one generation took.
        seconds: of each prompt, CPU.
        same: prompts on which the text is the plain one's.
        spent: over all prompts.
        failed: why it does not run here.
    """

    title: str
    options: dict[str, Any] = field(default_factory=dict)
    mode: GenerationMethod | None = None
    predict: Callable[[Spent], float] | None = None
    seconds: list[float] = field(default_factory=list)
    same: int = 0
    spent: Spent = field(default_factory=Spent)
    failed: str = ""


def ways_of(advice: Advice, last: int) -> dict[str, Way]:
    costs = advice.costs
    ways = {"plain": Way("plain `generate`")}
    for depth in DRAFTS:
        length = best_length(advice.acceptance[depth - 1], *costs.draft(depth))
        ways[f"draft {depth}"] = Way(
            f"self-speculation, {length} drafts at depth {depth}",
            mode=self_speculative(depth, draft_length=length),
            predict=lambda spent, k=depth, g=length: costs.speculative(k, g, chance_of(spent, g)),
        )
    for depth in DRAFTS:
        ways[f"early {depth}"] = Way(
            f"transformers, `assistant_early_exit={depth}`", options={"assistant_early_exit": depth}
        )
    for depth in DRAFTS:
        ways[f"depth {depth}"] = Way(
            f"static depth {depth} (another text)", mode=at_depth(depth), predict=lambda _, k=depth: costs.at_depth(k)
        )
    tested = (last // 3, 2 * last // 3)
    for threshold in DYNAMIC:
        ways[f"dynamic {threshold}"] = Way(
            f"exits at {tested[0]} and {tested[1]}, confidence {threshold} (another text)",
            mode=dynamic_exit(Confidence(threshold, depths=tested)),
            predict=lambda spent: costs.dynamic(spent.depths, tested),
        )
    return ways


def chance_of(spent: Spent, length: int) -> float:
    """The chance of a draft to be accepted that would give the tokens per round that were seen."""
    seen = 1 + spent.accepted / spent.rounds
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_round(middle, length) < seen else (low, middle)
    return low


def measure(name: str, prompts: int, new_tokens: int) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(ROOT / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / name)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    texts = held_out(tokenizer, prompts + 4)
    advice = advise(model, texts[prompts:], new_tokens=new_tokens)
    print(f"{name}: {advice}", flush=True)
    ways = ways_of(advice, advice.costs.last)
    # where transformers' early exit fails, it leaves the config of the model it was given at the shallow depth
    models = {one: copy.deepcopy(model) if way.options else model for one, way in ways.items()}
    draw = random.Random(0)
    for place, prompt in enumerate([texts[0], *texts[:prompts]]):  # the first is for warming up
        plain, order = None, list(ways)
        draw.shuffle(order)
        answers = {}
        for one in order:
            answers[one] = run(ways[one], models[one], prompt, new_tokens, counts=place > 0)
        plain = answers["plain"]
        for one, way in ways.items():
            way.same += bool(place and answers[one] is not None and torch.equal(answers[one], plain))
    return {
        "model": name,
        "advice": {**asdict(advice), "says": str(advice)},
        "ways": [row(way, ways["plain"], prompts) for way in ways.values()],
    }


def run(way: Way, model: Any, prompt: Tensor, new_tokens: int, *, counts: bool) -> Tensor | None:
    if way.failed:
        return None
    mode = {} if way.mode is None else {"custom_generate": way.mode}
    start = time.process_time()
    try:
        text = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            **way.options,
            **mode,
        )
    except Exception as error:  # whatever transformers makes of a model it does not support
        way.failed = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        return None
    if counts:
        way.seconds.append(time.process_time() - start)
        way.spent = way.spent + (way.mode.spent if way.mode is not None else Spent())
    return text


def row(way: Way, plain: Way, prompts: int) -> dict[str, Any]:
    if way.failed:
        return {"way": way.title, "failed": way.failed}
    ratios = [one / other for one, other in zip(plain.seconds, way.seconds, strict=True)]
    spent = way.spent
    return {
        "way": way.title,
        "ms": 1000 * statistics.median(way.seconds),
        "speedup": statistics.median(ratios),
        "predicted": None if way.predict is None else way.predict(spent),
        "acceptance": spent.accepted / spent.drafted if spent.drafted else None,
        "depth": statistics.mean(spent.depths) if spent.depths else None,
        "same": way.same,
        "prompts": prompts,
    }


def held_out(tokenizer: Any, count: int) -> list[Tensor]:
    """The first tokens of held-out documents, and of later parts of them where those are not enough."""
    rows = (path("brown") / "test.jsonl").read_text().splitlines()
    documents = [tokenizer(json.loads(one)["text"], return_tensors="pt")["input_ids"] for one in rows]
    parts = [document[:, start : start + PROMPT] for start in range(0, 2000, 400) for document in documents]
    return [part for part in parts if part.shape[1] == PROMPT][:count]


def page(results: list[dict[str, Any]], new_tokens: int) -> str:
    lines = []
    for result in results:
        lines += [f"**{result['model']}**: {result['advice']['says']}.", ""]
        lines += ["| | speed-up | predicted | accepted | mean depth | same text |", "|---|--:|--:|--:|--:|--:|"]
        for one in result["ways"]:
            if "failed" in one:
                lines.append(f"| {one['way']} | does not run: {one['failed']} | | | | |")
                continue
            cells = (
                f"{one['speedup']:.2f} ×",
                "" if one["predicted"] is None else f"{one['predicted']:.2f} ×",
                "" if one["acceptance"] is None else f"{one['acceptance']:.0%}",
                "" if one["depth"] is None else f"{one['depth']:.2f}",
                f"{one['same']} of {one['prompts']}",
            )
            lines.append(f"| {one['way']} | {' | '.join(cells)} |")
        lines.append("")
    held = [one for result in results for one in result["ways"] if "self-spec" in one["way"]]
    worst = min(one["speedup"] / one["predicted"] for one in held)
    lines.append(
        f"Self-speculation reaches at least {worst:.2f} of what is predicted (asked: {WITHIN}); its text was another "
        f"in {sum(one['prompts'] - one['same'] for one in held)} of {sum(one['prompts'] for one in held)} generations."
    )
    lines += [
        "",
        f"{new_tokens} new tokens; {processor()}, one thread; torch {version('torch')}, transformers "
        f"{version('transformers')}.",
    ]
    return "\n".join(lines) + "\n"


def save(folder: Path) -> None:
    """Save the language models of benchmarks/objectives as folders that transformers loads, with their tokenizer."""
    sys.path.insert(0, str(Path(__file__).parent / "objectives"))
    from tasks import _tokenizer  # type: ignore[import-not-found]
    from training import Run, Training  # type: ignore[import-not-found]
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer()._tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    for objective in ("standard", "aligned"):
        model = Training(Run("full", "gpt", objective, 0), ROOT / "runs" / "objectives").stack.model
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        model.save_pretrained(folder / f"gpt-{objective}")
        tokenizer.save_pretrained(folder / f"gpt-{objective}")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.05,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder / "llama-config")
    tokenizer.save_pretrained(folder / "llama-config")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--save", type=Path, help="only save the models of benchmarks/objectives to this folder")
    chosen = parser.parse_args()
    if chosen.save:
        save(chosen.save)
        return
    torch.set_num_threads(1)
    results = [measure(name, chosen.prompts, chosen.new_tokens) for name in chosen.models]
    text = page(results, chosen.new_tokens)
    print(text)
    (RESULTS / "generation.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "generation.md").write_text(text)


if __name__ == "__main__":
    main()
