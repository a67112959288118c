"""One model in several threads: what one changes for a while, no other sees, in whatever order they come and go.

Threads meet where it hurts: one is stopped inside a module of the model while another does something, so that what went
wrong by luck goes wrong each time.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.model_io import call_model, model_output
from anydepth.core.overrides import Override
from anydepth.core.patching import forward_as
from anydepth.core.stack import Stack
from anydepth.dependencies import cache_name
from anydepth.errors import UnknownArchitecture
from anydepth.exits.policies import AtDepth, Patience
from anydepth.generation import at_depth, dynamic_exit, self_speculative
from anydepth.measures.engine.precision import full_precision

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
LONG = 120  # seconds after which a thread counts as hung


class Halt:
    """Stops one thread, the first time that it calls a module, until it is let go on."""

    def __init__(self, module: nn.Module) -> None:
        self._reached, self._go, self._result, self._module = Event(), Event(), [], module

    def start(self, work: Callable[[], Any]) -> None:
        """Begin some work in another thread; returns once that is inside the module."""

        def stop(*_: Any) -> None:
            if current_thread() is self._thread and not self._reached.is_set():
                self._reached.set()
                assert self._go.wait(LONG)

        def run() -> None:
            try:
                self._result.append(work())
            except BaseException as problem:
                self._result.append(problem)
                self._reached.set()

        self._thread = Thread(target=run)
        handle = self._module.register_forward_pre_hook(stop)
        self._thread.start()
        assert self._reached.wait(LONG)
        handle.remove()

    def finish(self) -> Any:
        """Let the work go on to its end; returns what came of it."""
        self._go.set()
        self._thread.join(LONG)
        assert self._result, "it hung"
        if isinstance(self._result[0], BaseException):
            raise self._result[0]
        return self._result[0]


@contextmanager
def halted(module: nn.Module, work: Callable[[], Any], expected: Any) -> Iterator[None]:
    """Inside, another thread is in the middle of some work; afterwards the work comes to what is expected."""
    halt = Halt(module)
    halt.start(work)
    yield
    same(halt.finish(), expected)


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(LONG)


def looks(model: nn.Module) -> Any:
    """All that is to be as it was: classes, members, modes, replaced forwards, hooks, configs and weights."""
    return [
        (
            name,
            type(module),
            list(module._modules),
            module.training,
            sorted(vars(module)),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            type(config := getattr(module, "config", None)),
            None if config is None else (getattr(config, "use_cache", None), config.output_hidden_states),
        )
        for name, module in model.named_modules()
    ], list(model.state_dict())


def plain(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return model_output(call_model(model, batch))[1]


def works(model: nn.Module, batch: Any) -> dict[str, Callable[[], Any]]:
    """What a thread may be doing with a model, each on a `Stack` of its own but `exits`, which all share."""
    stack, readable = Stack(model), Stack(model)
    exits = ad.EarlyExit(stack, Patience(2, depths=(1, 2, 3)))
    with torch.no_grad():
        states = readable.states(batch)

    def no_grad(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: torch.no_grad()(work)()

    def cut() -> Tensor:
        with stack.cut(2, batch):
            return plain(model, batch)

    return {
        "exits": lambda: (exits(batch).logits, exits(batch).depth),
        "states": no_grad(lambda: stack.states(batch)),
        "readout": no_grad(lambda: readable.readout(states[1], batch)),
        "cut": cut,
        "replay": no_grad(lambda: stack.replay(batch).step(states[0], 1)),
        "law": lambda: Stack(model).verify(batch).tolerance,
    }


WORKS = ("exits", "states", "readout", "cut", "replay", "law")


@pytest.fixture(scope="module", params=["bert", "vit", "gpt2 classifier", "nn.TransformerEncoder"])
def case(request: Any) -> tiny_models.Case:
    model, batch = tiny_models.build(request.param)
    return model.eval(), batch


def classifier(model: nn.Module, batch: Any) -> nn.Module:
    with torch.no_grad():
        return Stack(model).classifier(batch)


@pytest.mark.parametrize("name", WORKS)
def test_nobody_sees_what_another_thread_is_doing(case: tiny_models.Case, name: str) -> None:
    model, batch = case
    jobs = works(model, batch)
    expected, before, answer = {one: job() for one, job in jobs.items()}, looks(model), plain(model, batch)
    with halted(classifier(model, batch), jobs[name], expected[name]):
        assert list(model.state_dict()) == before[1], "all weights would be saved"
        same(plain(model, batch), answer)
        for one, job in jobs.items():
            same(job(), expected[one])
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert looks(other) == before, "a copy is of the model as it is"
            same(plain(other, batch), answer)
    assert looks(model) == before
    same(plain(model, batch), answer)


@pytest.mark.parametrize("last", ["the first leaves first", "the first leaves last"])
def test_threads_leave_in_any_order(case: tiny_models.Case, last: str) -> None:
    model, batch = case
    jobs, where = works(model, batch), classifier(model, batch)
    expected, before = {name: job() for name, job in jobs.items()}, looks(model)
    for one, other in (("exits", "exits"), ("exits", "cut"), ("states", "readout"), ("law", "replay")):
        first, second = Halt(where), Halt(where)
        first.start(jobs[one])
        second.start(jobs[other])
        ends = [(first, one), (second, other)]
        for halt, name in ends if last == "the first leaves first" else ends[::-1]:
            same(halt.finish(), expected[name])
        assert looks(model) == before


def test_switches_of_a_config_are_off_for_one_thread_only() -> None:
    model, batch = tiny_models.build("llama")
    model.eval().config.output_hidden_states = True
    stack = Stack(model)
    with torch.no_grad():
        model(**batch)  # transformers hooks what it is to hand out when it is first asked
        states, before = stack.states(batch), looks(model)
        with halted(model.model.layers[1], torch.no_grad()(lambda: stack.states(batch)), states):
            out = model(**batch)
            assert len(out.hidden_states) == stack.depth + 1
            assert len(out[cache_name()].layers) == stack.depth
            assert model.config.use_cache is True
            assert pickle.loads(pickle.dumps(model.config)).to_dict() == model.config.to_dict()
    assert looks(model) == before


def test_a_config_that_is_no_class_of_its_own_is_put_back() -> None:
    model, batch = tiny_models.build("vit")
    model.side = nn.Identity()
    model.side.config = types.SimpleNamespace(use_cache=True)
    seen = []
    model.classifier.register_forward_hook(lambda *_: seen.append(model.side.config.use_cache))
    with torch.no_grad():
        Stack(model.eval()).states(batch)
    assert seen[0] is True, "the untouched model's forward, which the others are held against"
    assert set(seen[1:]) == {False}
    assert vars(model.side.config) == {"use_cache": True}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_is_put_back() -> None:
    scripted = torch.jit.script(nn.LayerNorm(3))
    rows, before = torch.rand(2, 3), set(vars(scripted))
    expected = scripted(rows)
    with forward_as(scripted, lambda rows: rows + 1), forward_as(scripted, lambda rows: rows):
        assert scripted(rows) is rows
    assert set(vars(scripted)) == before
    same(scripted(rows), expected)


def test_eval_mode_lasts_until_the_last_thread_has_left() -> None:
    model, batch = tiny_models.build("bert")
    exits = ad.EarlyExit(model.eval(), AtDepth(3))
    expected = exits(batch).logits
    model.train()
    model.bert.encoder.layer[2].eval()
    before = looks(model)
    first, second = Halt(model.classifier), Halt(model.bert.encoder.layer[0])
    first.start(lambda: exits(batch).logits)
    second.start(lambda: exits(batch).logits)
    same(first.finish(), expected)
    assert not any(module.training for module in model.modules()), "the second is still at it"
    same(second.finish(), expected)
    assert looks(model) == before


def test_what_ran_before_the_blocks_is_kept_for_each_thread() -> None:
    model, batch = tiny_models.build("bert")
    other, calls = {**batch, "input_ids": batch["input_ids"].flip(0)}, []
    stack = Stack(model.eval())
    with torch.no_grad():
        states = stack.states(batch)
        expected = stack.readout(states[1], batch)
        own = model.bert.embeddings.forward
        with forward_as(model.bert.embeddings, lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))[1]):
            stack.states(batch)
            in_thread(torch.no_grad()(lambda: stack.states(other)))
            same(stack.readout(states[1], batch), expected)
        assert len(calls) == 1, "not run again for the readout"


def test_a_hook_on_what_runs_before_the_blocks_counts_once() -> None:
    model, batch = tiny_models.build("bert")
    model.eval().bert.embeddings.register_forward_hook(lambda module, args, output: 2 * output)
    stack = Stack(model)
    with torch.no_grad():
        kept = stack.replay(batch).state
        same(stack.replay(batch).state, kept)  # the second time from what was kept
        same(stack.replay(batch).state, 2 * model.bert.embeddings.forward(batch["input_ids"]))


def test_what_is_being_learnt_of_a_model_is_not_used_yet() -> None:
    model, batch = tiny_models.build("gpt2")
    stack = Stack(model.eval())
    with torch.no_grad():
        with halted(model.lm_head, lambda: stack.verify(batch).tolerance, 1e-5):
            states = stack.states(batch)
            assert stack.features(states[1], batch) is not None
        assert stack.features(states[1], batch) is not None


class Fickle(nn.Module):
    """Runs its blocks, until it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head, self.runs = nn.Linear(4, 3), 4

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: self.runs]:
            x = block(x)
        return self.head(x)


def test_a_model_that_is_being_cut_answers_with_all_blocks() -> None:
    model, batch, seen = Fickle().eval(), torch.rand(3, 4), []
    expected = plain(model, batch)

    class Copied:
        def __deepcopy__(self, memo: Any) -> Any:
            seen.append(in_thread(lambda: plain(model, batch)))
            return self

    model.extra = Copied()
    cut = ad.truncate(model, 2)
    assert (len(cut.blocks), type(cut.blocks), len(model.blocks)) == (2, nn.ModuleList, 4)
    same(seen[0], expected)


@pytest.mark.parametrize("runs", [0, 1])
def test_a_leg_that_gains_no_depth_raises(runs: int) -> None:
    model, batch = Fickle().eval(), torch.rand(3, 4)
    exits = ad.EarlyExit(model, Patience(5, depths=(2, 3)))
    exits(batch)
    model.runs = runs
    with pytest.raises(UnknownArchitecture, match=f"from depth 0 ran {runs} of 4 blocks, expected .* skips blocks"):
        exits(batch)
    model.runs = 4
    assert exits(batch).depth.tolist() == [4] * 3


def test_blocks_that_run_in_a_thread_of_the_model_are_refused() -> None:
    class Delegating(Fickle):
        def forward(self, x: Tensor) -> Tensor:
            return in_thread(lambda: super(Delegating, self).forward(x))

    with pytest.raises(UnknownArchitecture, match="0 of 4 ran"):
        ad.EarlyExit(Delegating().eval(), AtDepth(2))(torch.rand(3, 4))


def test_tasks_of_an_event_loop_do_not_see_each_other(case: tiny_models.Case) -> None:
    model, batch = case
    stack, expected = Stack(model), plain(model, batch)
    with stack.cut(1, batch):
        cut = plain(model, batch)

    async def cutting(inside: asyncio.Event, done: asyncio.Event) -> None:
        with stack.cut(1, batch):
            inside.set()
            await done.wait()
            same(plain(model, batch), cut)
            same(await asyncio.to_thread(plain, model, batch), cut)  # called from here: so it is meant

    async def both() -> None:
        inside, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(cutting(inside, done))
        await inside.wait()
        same(plain(model, batch), expected)
        done.set()
        await task

    before = looks(model)
    asyncio.run(both())
    assert looks(model) == before


def test_a_generator_may_end_in_another_thread() -> None:
    model, batch = tiny_models.build("vit")
    stack, expected = Stack(model.eval()), plain(model, batch)

    def held() -> Iterator[Tensor]:
        with stack.cut(1, batch):
            yield plain(model, batch)

    before, generator = looks(model), held()
    cut = in_thread(lambda: next(generator))
    assert not torch.equal(cut, expected)
    same(plain(model, batch), expected)
    generator.close()
    assert looks(model) == before
    same(plain(model, batch), expected)


def test_what_others_write_stays_and_nested_ones_end_in_turn() -> None:
    module = nn.ReLU()
    with Override(module, "inplace", "outer"):
        with Override(module, "inplace", "inner"):
            assert module.inplace == "inner"
            in_thread(lambda: setattr(module, "inplace", True))
            assert in_thread(lambda: module.inplace) is True
        assert module.inplace == "outer"
        module.forward = len
        del module.forward
    assert (module.inplace, type(module)) == (True, nn.ReLU)


def test_a_class_may_be_given_back_while_an_attribute_is_read() -> None:
    module = nn.ReLU()
    override = Override(module, "forward", len)
    override.__enter__()
    kind = type(module)
    lookup, reduce = vars(kind)["forward"], vars(kind)["__reduce_ex__"]
    override.__exit__()
    assert lookup.__get__(module, kind) == module.forward, "of another thread that had just found the property"
    assert reduce(module, 4)[1][0] is nn.ReLU


def test_threads_share_the_precision_of_products() -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    go, inside = Event(), Event()

    def hold() -> str:
        with full_precision(torch.device("cpu")):
            inside.set()
            assert go.wait(LONG)
            return setting.fp32_precision

    with ThreadPoolExecutor(1) as pool:
        with full_precision(torch.device("cpu")):
            other = pool.submit(hold)
            assert inside.wait(LONG)
        go.set()
        assert other.result(LONG) == "ieee", "the first has left, the second is still at it"
    assert setting.fp32_precision == before


@pytest.fixture(scope="module")
def writer() -> Any:
    model, _ = tiny_models.build("gpt2")
    model.generation_config.pad_token_id = 0
    return model.eval()


@pytest.mark.parametrize("way", [at_depth(2), self_speculative(2), dynamic_exit(ad.Confidence(0.02, depths=(1, 2)))])
def test_generation_is_seen_by_nobody_else(writer: Any, way: Any) -> None:
    prompt = torch.tensor([[5, 9, 7]])

    def write(mode: Any = None, length: int = 8) -> Tensor:
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": length, "do_sample": False}
        return writer.generate(prompt, **asked, custom_generate=mode)

    expected, own, before = write(), write(way), looks(writer)
    spent = way.spent
    with halted(writer.lm_head, lambda: write(way), own):
        same(write(), expected)
        same(write(way, 4), own[:, :7])
        assert way.spent.tokens == 4
    assert way.spent.tokens == 4, "this thread's own"
    assert in_thread(lambda: (write(way), way.spent)[1]) == spent
    assert looks(writer) == before


def test_a_copy_of_an_engine_is_an_engine(case: tiny_models.Case) -> None:
    model, batch = case
    exits = ad.EarlyExit(model, Patience(2, depths=(1, 2, 3)))
    expected = exits(batch)
    for other in (copy.deepcopy(exits), pickle.loads(pickle.dumps(exits))):
        same(other(batch).logits, expected.logits)
        assert other.stack.model is not model


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_many_threads_answer_as_one(name: str) -> None:
    model, batch = tiny_models.build(name)
    model.eval()
    jobs = works(model, batch) | {"plain": lambda: plain(model, batch)}
    more = ad.EarlyExit(model, Patience(2, depths=(1, 2, 3)))
    jobs["another engine"] = lambda: (more(batch).logits, more(batch).depth)
    expected, before = {one: job() for one, job in jobs.items()}, looks(model)

    def go(first: int) -> None:
        names = list(jobs)
        for turn in range(2 * len(names)):
            one = names[(first + turn) % len(names)]
            same(jobs[one](), expected[one])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(go, first) for first in range(4)]:
            done.result(LONG)
    assert looks(model) == before


def test_traces_and_training_run_in_worker_threads(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    from anydepth.training.trainer import AlignedTrainer

    model, batch = tiny_models.build("vit")
    data = [{**batch, "labels": torch.tensor([0, 1, 2])} for _ in range(2)]
    expected = ad.trace(model, data)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ad.trace, model, data) for _ in range(2)]
    for found in both:
        same(found.result().similarity["cka"], expected.similarity["cka"])
        same(found.result().accuracy, expected.accuracy)
    rows = [{"pixel_values": batch["pixel_values"][0], "labels": 1}] * 4
    arguments = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = AlignedTrainer(model, arguments, train_dataset=rows)
    assert in_thread(lambda: trainer.train().global_step) == 1
