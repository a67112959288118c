"""One model in many threads: is every answer that of one thread alone, and the model afterwards as it was?

Each thread calls, in an order of its own: two engines on one model, states, readouts, replays, the law, cuts, traces,
plain forwards, and the same for a language model with its ways to generate. Counts answers that differ.

    OMP_NUM_THREADS=1 python benchmarks/reliability/threads.py [--threads 8] [--calls 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

import anydepth as ad
from anydepth.exits.policies import Patience
from anydepth.generation import at_depth, dynamic_exit, self_speculative

RESULTS = Path(__file__).parent / "results" / "threads.json"
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Jobs = dict[str, Callable[[], Any]]


def classifier() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        initializer_range=0.2,
    )
    ids = torch.randint(3, 60, (6, 10))
    return transformers.BertForSequenceClassification(config).eval(), {"input_ids": ids}


def writer() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=64, **SPECIAL)
    return transformers.GPT2LMHeadModel(config).eval()


def reading(model: nn.Module, batch: dict[str, torch.Tensor]) -> Jobs:
    stack = ad.Stack(model)
    one, other = (ad.EarlyExit(on, Patience(2, depths=(1, 2, 3))) for on in (stack, model))
    early = ad.EarlyExit(model, ad.Confidence(0.6))
    with torch.no_grad():
        states = stack.states(batch)

    def cut() -> Any:
        with stack.cut(2, batch):
            return model(**batch).logits

    def trace() -> Any:
        found = ad.trace(model, [{**batch, "labels": torch.arange(6) % 3}] * 2)
        return torch.from_numpy(np.nan_to_num(found.similarity["cka"])), torch.from_numpy(found.accuracy)

    jobs: Jobs = {
        "exits": lambda: (one(batch).logits, one(batch).depth),
        "another engine": lambda: (other(batch).logits, other(batch).depth),
        "a third": lambda: (early(batch).logits, early(batch).depth),
        "states": lambda: stack.states(batch),
        "readout": lambda: stack.readout(states[2], batch),
        "replay": lambda: stack.replay(batch).step(states[1], 2),
        "law": lambda: ad.Stack(model).verify(batch).depth,
        "cut": cut,
        "plain": lambda: model(**batch).logits,
        "trace": trace,
    }
    return jobs


def writing(model: Any) -> Jobs:
    prompt = torch.tensor([[5, 9, 7]])

    def write(mode: Any = None) -> Any:
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False}
        return model.generate(prompt, **asked, custom_generate=mode)

    ways = {
        "static": at_depth(2),
        "speculative": self_speculative(2),
        "dynamic": dynamic_exit(ad.Confidence(0.05, depths=(1, 2))),
    }
    return {"plain generation": write} | {name: (lambda way=way: write(way)) for name, way in ways.items()}


def looks(model: nn.Module) -> Any:
    modules = [
        (name, type(one), list(one._modules), one.training, sorted(vars(one))) for name, one in model.named_modules()
    ]
    return modules, type(model.config), model.config.use_cache if hasattr(model.config, "use_cache") else None


def alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple | list):
        return all(alike(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, torch.Tensor):
        return found.shape == expected.shape and torch.allclose(found.double(), expected.double(), atol=1e-6)
    return bool(found == expected)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--threads", type=int, default=8)
    asked.add_argument("--calls", type=int, default=200, help="of each thread")
    asked.add_argument("--seed", type=int, default=0)
    args = asked.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    (model, batch), author = classifier(), writer()
    jobs = reading(model, batch) | writing(author)
    with torch.no_grad():
        expected, before = {name: job() for name, job in jobs.items()}, (looks(model), looks(author))

    def go(thread: int) -> tuple[Counter[str], Counter[str]]:
        rng, done, wrong = np.random.default_rng((args.seed, thread)), Counter[str](), Counter[str]()
        names = [name for name in jobs if name != "trace"]
        for call in range(args.calls):
            name = "trace" if call % 40 == 7 else str(rng.choice(names))  # a trace takes as long as many others
            done[name] += 1
            with torch.no_grad():
                try:
                    wrong[name] += not alike(jobs[name](), expected[name])
                except Exception as problem:
                    wrong[f"{name}: {type(problem).__name__}: {problem}"[:120]] += 1
        return done, wrong

    start = time.perf_counter()
    with ThreadPoolExecutor(args.threads) as pool:
        results = list(pool.map(go, range(args.threads)))
    done = sum((one for one, _ in results), Counter[str]())
    wrong = +sum((one for _, one in results), Counter[str]())
    intact = (looks(model), looks(author)) == before
    print(f"{'call':18} {'made':>6} {'wrong':>6}")
    for name in jobs:
        failed = sum(count for key, count in wrong.items() if key.split(":")[0] == name)
        print(f"{name:18} {done[name]:6,} {failed:6,}")
    print(f"{sum(done.values()):,} calls in {args.threads} threads, {time.perf_counter() - start:.0f} s, "
          f"{wrong.total()} wrong; models {'as they were' if intact else 'CHANGED'}")  # fmt: skip
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    content = {"threads": args.threads, "calls": dict(done), "wrong": dict(wrong), "intact": intact, "seed": args.seed}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if wrong or not intact:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
