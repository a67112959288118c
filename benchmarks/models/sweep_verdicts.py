"""The verdict on one model: what category it falls into, and whether the reason of a refusal is the true one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import slow_reference as slow
from categories import CRASH, EXACT, NAMED, NOT_BUILT, REFUSED, USELESS, WRONG
from model_checks import NEEDED, Checks, Finding, OutOfTime, Step, time_limit
from sweep_cases import Built, Case, NotBuilt, in_words

SECONDS = 40.0


@dataclass(frozen=True)
class Facts:
    """What is known of a model without anydepth, to judge a refusal by."""

    stages: bool
    shared: bool
    lists: int
    aggregates: bool
    answer_axes: int
    classifies: bool
    own_cache: bool
    """Whether it keeps something else than the usual keys and values while it generates."""
    kind: str
    between: bool = False
    """Whether the forward changes a state between two blocks."""
    nested: bool = False
    """Whether members of a list are lists."""
    rebuilt: bool = False
    """Whether its class, told to have half of the blocks, builds one of them otherwise."""
    looks_ahead: bool = False
    """Whether a token changes the answers before it."""
    lists_of_states: bool = False
    """Whether blocks are given lists of states."""
    single: bool = False
    """Whether it scores a single class."""
    beside: bool = False
    """Whether it answers at other positions than those of its tokens."""
    uncuttable: bool = False
    """Whether its forward fails with half of its blocks."""
    uncuttable_batch: bool = False
    """Whether a tensor of its batch has not one entry for each sample in front: several images, or patches."""
    joins: bool = False
    """Whether blocks are given states with several entries of every sample in one axis."""
    unasked: bool = False
    """Whether its config turns caches off."""
    few_layers: bool = False
    """Whether its cache has another number of layers than it has blocks."""
    drops: bool = False
    """Whether a text read with its own cache gets another answer than as a whole."""
    recurrent: bool = False
    """Whether no block of its first half attends."""
    cached: bool = False
    """Whether its answer to a whole batch is another without its caches."""

    def as_json(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Reason:
    """A refusal that is right: its message says what the facts say."""

    title: str
    message: str
    """Pattern within anydepth's line."""
    holds: Callable[[Facts], bool]


# Refusals for reasons that are true. Whatever a line says that none of these covers is a wrong or useless reason:
# "name one with blocks=" where nothing named works is one, and so is a law broken by what the blocks hand on.
REASONS = (
    Reason(
        "stages of differing shape",
        r"differ in shape|changes the shape of states|in stages",
        lambda facts: facts.stages,
    ),
    Reason(
        "towers that do not feed each other",
        r"several stacks that do not feed|answer does not depend on the states",
        lambda facts: facts.kind == "CLIP-like",
    ),
    Reason("depths share a block", r"share", lambda facts: facts.shared),
    Reason("the answer is made of several depths", r"law is broken|several depths", lambda facts: facts.aggregates),
    Reason(
        "a state is changed between blocks, or is not all that they hand on",
        r"between or around its blocks|more of a block than its state",
        lambda facts: facts.between,
    ),
    Reason(
        "it answers otherwise without its caches",
        r"plain law is broken.*without its caches",
        lambda facts: facts.cached,
    ),
    Reason("blocks are lists", r"members are lists", lambda facts: facts.nested),
    Reason(
        "a cut keeps no block that its cache needs", r"get_seq_length", lambda facts: facts.own_cache or facts.recurrent
    ),
    Reason(
        "its class builds some block otherwise",
        r"built with \d+ of its blocks, its .* of block",
        lambda facts: facts.rebuilt,
    ),
    Reason("its cache and its forward disagree", r"attends beyond the window", lambda facts: facts.drops),
    Reason("its config says no such depth", r"its config cannot say so|has no config for|own config cannot", bool),
    Reason(
        "it generates otherwise",
        r"expected input_ids|look at those behind them",
        lambda facts: facts.kind != "causal LM" or facts.looks_ahead,
    ),
    Reason(
        "it keeps no usual cache",
        r"cache of its own kind|no cache|DynamicCache|keeps 0 of",
        lambda facts: facts.own_cache,
    ),
    Reason(
        "its cache has fewer layers",
        r"cannot be taken back; expected|keeps keys and values in \d+ layers",
        lambda facts: facts.few_layers,
    ),
    Reason("blocks are given lists", r"is given list first", lambda facts: facts.lists_of_states),
    Reason("its config does not tell all", r"its config does not tell all", lambda facts: facts.rebuilt),
    Reason("it scores a single class", r"scores a single class", lambda facts: facts.single),
    Reason("answers are beside the tokens", r"which of its positions are theirs", lambda facts: facts.beside),
    Reason("its forward needs all blocks", r"does not run .*cut it after another", lambda facts: facts.uncuttable),
    Reason("it reads several blocks", r"needs more of a block than its state", lambda facts: facts.aggregates),
    Reason("it answers for every pixel", r"answers for every pixel", lambda facts: facts.answer_axes > 3),
    Reason("a part of a batch is none", r"does not go on with some of a batch", lambda facts: facts.uncuttable_batch),
    Reason("samples are joined", r"join all samples", lambda facts: facts.joins),
    Reason("its config turns caches off", r"nothing to keep keys and values in", lambda facts: facts.unasked),
    Reason("no list of blocks runs", r"no list of modules|no list of blocks", lambda facts: facts.lists == 0),
    Reason(
        "no classifier, or one answer for each position",
        r"no logits|expected a classifier|answers for every position|for each position",
        lambda facts: not facts.classifies or facts.answer_axes != 2,
    ),
)


def judge(case: Case, *, seconds: float = SECONDS) -> Finding:
    """Build a model, check all that anydepth offers, and say what came of it; never raises for a model's sake."""
    started = time.process_time()
    finding = Finding(name=case.name, library=case.library, kind=case.kind, category=NOT_BUILT)
    try:
        with time_limit(seconds):
            _judge(case, finding)
    except (NotBuilt, slow.UnseenBlocks) as problem:
        finding.reason = str(problem)
    except OutOfTime as problem:
        finding.category, finding.reason = NOT_BUILT, f"not run: it takes {problem}"
    finding.seconds = round(time.process_time() - started, 2)
    return finding


def _judge(case: Case, finding: Finding) -> None:
    built = case.build()
    finding.kind = built.kind
    checks = Checks(built)
    again = slow.answer_of(slow.run(built.model, built.batches[0]))
    if slow.distance(again, checks.plain[0]) > 0:
        raise NotBuilt("its plain forward gives another answer when it is called again")
    if not checks.plain[0].isfinite().any():
        raise NotBuilt("its answers are NaN")
    finding.steps = checks.run()
    seen = slow.watch(built.model, built.batches[0])
    finding.facts = {"lists": [f"{entry.path} ({entry.length})" for entry in seen.lists]}
    _describe(checks, finding)
    first = finding.steps["states"]
    facts = _facts(built, checks, seen, first.detail)
    finding.facts |= facts.as_json()
    if first.result == "refused" and true_reason(first.detail, facts) is None:
        named = _named(built, seen, finding.facts.setdefault("named", {}))
        if named is not None:
            finding.steps, finding.blocks = named.steps, named.path
            finding.reason, finding.error = first.detail, first.error
            _describe(named.checks, finding)
    _settle(finding, facts)


def _describe(checks: Checks, finding: Finding) -> None:
    if checks.stack is not None and checks.stack.is_known:
        finding.path, finding.depth = str(checks.stack.path), checks.stack.depth


@dataclass(frozen=True)
class NamedTrial:
    """What comes of following the advice to name a list: the result is "exact", or the worst that happens silently."""

    path: str
    checks: Checks
    steps: dict[str, Step]


def _named(built: Built, seen: slow.ForwardStructure, attempts: dict[str, str]) -> NamedTrial | None:
    """The first list, from the last that ran back to the first, with which the model is exact when it is named.

    Where there is none, the first that gives a wrong number, or else the first that crashes.
    """
    outermost = [entry for entry in seen.lists if not any(entry.path.startswith(f"{o.path}.") for o in seen.lists)]
    faults: dict[str, NamedTrial] = {}
    for entry in sorted(outermost, key=lambda entry: (-entry.last_call, len(entry.path)))[:4]:
        checks = Checks(built, entry.path)
        steps = checks.run(stop_early=True)
        bad = next((f"{name}: {step.detail}" for name, step in steps.items() if step.result not in ("ok", "n/a")), "")
        attempts[entry.path] = bad or "ok"
        if all(name in steps and steps[name].result == "ok" for name in NEEDED):
            return NamedTrial(entry.path, checks, steps)
        for fault in ("wrong", "crash"):
            if any(step.result == fault for step in steps.values()):
                faults.setdefault(fault, NamedTrial(entry.path, checks, steps))
    return faults.get("wrong", faults.get("crash"))


def _facts(built: Built, checks: Checks, seen: slow.ForwardStructure, refusal: str) -> Facts:
    return Facts(
        stages=seen.stages or slow.changes_shape(built.model, built.batches[0]),
        shared=seen.shared,
        lists=len(seen.lists),
        aggregates=_aggregates(built, checks, seen),
        answer_axes=checks.plain[0].ndim,
        classifies=built.classifies,
        own_cache=slow.has_own_cache(built.model, built.batches[0]),
        between=_changes_between(built, checks, refusal),
        nested=slow.has_lists_of_lists(built.model),
        rebuilt=_is_rebuilt_otherwise(built, checks),
        few_layers=checks.stack is not None
        and checks.stack.is_known
        and slow.cache_layers(built.model) not in (None, 0, checks.stack.depth),
        looks_ahead=_looks_ahead(built),
        lists_of_states=slow.gives_lists(built.model, built.batches[0]),
        single=checks.plain[0].shape[-1] == 1,
        beside=_answers_beside(built, checks),
        uncuttable=_is_uncuttable(built, checks),
        uncuttable_batch=slow.has_tensors_of_other_lengths(built.batches[0], built.samples[0]),
        joins=slow.joins_samples(built.model, built.batches[0], built.samples[0]),
        unasked=getattr(getattr(built.model, "config", None), "use_cache", True) is False,
        drops=slow.cache_disagrees(built.model, built.batches[0]),
        recurrent=_is_recurrent(built.model),
        cached=slow.answers_otherwise_uncached(built.model, built.batches[0]),
        kind=built.kind,
    )


def _changes_between(built: Built, checks: Checks, refusal: str) -> bool:
    """By the blocks that anydepth has, or that its refusal names."""
    named = re.search(r"law is broken at '([^']+)'", refusal)
    try:
        if named:
            blocks = [block for path in named[1].split(", ") for block in built.model.get_submodule(path).children()]
        elif checks.stack is not None and checks.stack.is_known:
            blocks = list(checks.stack.blocks)
        else:
            return False
        return slow.changes_between(built.model, blocks, built.batches[0])
    except Exception:  # the model's own code
        return False


def _is_rebuilt_otherwise(built: Built, checks: Checks) -> bool:
    if checks.stack is None or not checks.stack.is_known or not hasattr(built.model, "config"):
        return False
    try:
        return slow.differs_when_built(built.model, checks.stack.path, max(1, checks.stack.depth // 2))
    except Exception:  # its class cannot be built so
        return False


def _answers_beside(built: Built, checks: Checks) -> bool:
    tokens = built.batches[0].get("input_ids") if isinstance(built.batches[0], dict) else None
    return tokens is not None and checks.plain[0].ndim == 3 and checks.plain[0].shape[1] != tokens.shape[1]


def _is_uncuttable(built: Built, checks: Checks) -> bool:
    if checks.stack is None or not checks.stack.is_known:
        return False
    depth, before = max(1, checks.stack.depth // 2), checks.stack.depth
    # where the model and its config count their blocks
    counting = [owner for owner in (getattr(built.model, "config", None), *built.model.modules()) if owner is not None]
    counting = [owner for owner in counting if vars(owner).get("num_hidden_layers") == before]
    try:
        for owner in counting:
            owner.num_hidden_layers = depth
        slow.cut_answer(built.model, checks.stack.path, depth, built.batches[0])
    except Exception:  # the model's own code
        return True
    finally:
        for owner in counting:
            owner.num_hidden_layers = before
    return False


def _looks_ahead(built: Built) -> bool:
    try:
        return slow.looks_ahead(built.model, built.batches[0])
    except Exception:  # it takes more than tokens
        return False


def _is_recurrent(model: Any) -> bool:
    config = getattr(model, "config", None)
    kinds = getattr(config.get_text_config(), "layer_types", None) if config is not None else None
    return bool(kinds) and all(kind == "linear_attention" for kind in kinds[: len(kinds) // 2])


def _aggregates(built: Built, checks: Checks, seen: slow.ForwardStructure) -> bool:
    paths = [checks.stack.path] if checks.stack is not None and checks.stack.is_known else []
    paths += [entry.path for entry in seen.lists if entry.path not in paths][:3]
    for path in paths[: 1 if checks.stack is not None and checks.stack.is_known else 3]:
        try:
            members = list(built.model.get_submodule(path))
            if slow.aggregates(built.model, members, built.batches[0]):
                return True
        except Exception:  # the model's own code on a state that is not its own
            continue
    return False


def _settle(finding: Finding, facts: Facts) -> None:
    """The category of a model, by the worst that any step gave."""
    results = {step.result for step in finding.steps.values()}
    for result, category in (("wrong", WRONG), ("crash", CRASH)):
        if result in results:
            name, step = next((name, step) for name, step in finding.steps.items() if step.result == result)
            advised = "" if finding.blocks is None else f"with blocks={finding.blocks!r}, as the refusal advises: "
            finding.category, finding.reason = category, f"{advised}{name}: {step.detail}"
            return
    if finding.blocks is not None:
        finding.category = NAMED
        return
    refusals = [step for step in finding.steps.values() if step.result == "refused"]
    untrue = [step for step in refusals if true_reason(step.detail, facts) is None]
    if not refusals:
        finding.category = EXACT
        return
    worst = (untrue or refusals)[0]
    finding.reason, finding.error, finding.reason_true = worst.detail, worst.error, not untrue
    served = finding.steps["states"].result == "ok" and finding.steps.get("trace", Step("")).result == "ok"
    finding.category = USELESS if untrue else EXACT if served else REFUSED


def true_reason(line: str, facts: Facts) -> str | None:
    """The title of the true reason that a refusal gives; None where it gives none."""
    return next((reason.title for reason in REASONS if re.search(reason.message, line) and reason.holds(facts)), None)


def crashed(case: Case, line: str) -> Finding:
    """The finding on a model that took its process with it."""
    return Finding(name=case.name, library=case.library, kind=case.kind, category=CRASH, reason=line)


def problem_of(case: Case, error: BaseException) -> Finding:
    """The finding on a model where what is around the checks failed: it says nothing of anydepth."""
    finding = crashed(case, f"not run: {in_words(error)}")
    finding.category = NOT_BUILT
    return finding
