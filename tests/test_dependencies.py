"""What anydepth relies on in other libraries: it is there, all of it is listed, and a change is named."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anydepth
from anydepth import dependencies
from anydepth.dependencies import PROTOCOLS, TESTED, Protocol, cache_name, require
from anydepth.errors import DependencyError

ROOT = Path(__file__).parents[1]
SOURCE = Path(anydepth.__file__).parent
COVERED = {name for protocol in PROTOCOLS for name in protocol.names}


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing that was checked before counts, and nothing of this test later."""
    kept = (dependencies._broken, dependencies.cache_name)
    for one in kept:
        one.cache_clear()
    yield
    for one in kept:
        one.cache_clear()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: f"{protocol.library} {protocol.does}")
def test_the_installed_library_still_does_it(protocol: Protocol) -> None:
    assert protocol.holds()


def test_looking_draws_no_random_numbers(forgotten: None) -> None:
    """A training that is the first to ask would differ from the next one with its seed."""
    before = torch.get_rng_state()
    for library in ("torch", "transformers", "accelerate", "peft"):
        require(library)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_they_hold_whoever_asks(mode: Any, forgotten: None) -> None:
    with mode():
        for library in ("torch", "transformers", "accelerate", "peft"):
            require(library)


def test_a_compiled_model_keeps_the_plain_one() -> None:
    """The check of it is of use only where the compiler is loaded."""
    inner = nn.Linear(1, 1)
    assert torch.compile(inner)._orig_mod is inner
    assert dependencies._wraps_what_it_compiles()


# --- a change is named ------------------------------------------------------------------------------------------------


def _broken_check() -> bool:
    return False


def _missing_check() -> bool:
    return bool(nn.Module._no_such_thing)


@pytest.mark.parametrize("check", [_broken_check, _missing_check])
def test_a_protocol_that_changed_is_named(check: Any, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    other = (*PROTOCOLS, Protocol(library="transformers", does="counts its blocks", holds=check))
    monkeypatch.setattr(dependencies, "PROTOCOLS", other)
    message = (
        f"transformers {version('transformers')} counts its blocks differently; anydepth was tested up to 5.24: "
        "pip install 'transformers<5.25', or a newer anydepth"
    )
    with pytest.raises(DependencyError, match=f"^{re.escape(message)}$"):
        require("transformers")
    require("torch")


def test_a_cache_under_a_third_name_is_named(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    """The fault that was: the name changed, and the message blamed whoever called."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.generation import GenerationMixin

    from anydepth.generation import at_depth, dynamic_exit, self_speculative
    from anydepth.generation.modes import LoopArguments

    model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()

    def prepare(self: Any, input_ids: Any, next_sequence_length: Any = None, memory: Any = None, **more: Any) -> Any:
        """As a later release might have it."""

    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", prepare)
    nothing = {"processors": None, "stops": None, "config": None, "streamer": None, "model_inputs": {}}
    arguments = LoopArguments(model=model, input_ids=torch.tensor([[3, 1, 4]]), **nothing)
    for mode in (at_depth(2), self_speculative(2), dynamic_exit(anydepth.Confidence(0.9, depths=(1,)))):
        with pytest.raises(DependencyError, match="hands on the keys and values of a generation differently"):
            mode._stack_of(arguments)


def test_the_name_of_the_cache_is_the_one_that_generate_hands_on() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
    given: list[set[str]] = []

    def loop(model: Any, input_ids: Any, *args: Any, **more: Any) -> Any:
        given.append(set(more))
        return input_ids

    model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=2, custom_generate=loop)
    assert cache_name() in given[0]


def test_a_library_that_is_not_installed_has_nothing_to_differ(
    monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    other = Protocol(library="no-such-library", does="anything", holds=_broken_check)
    monkeypatch.setattr(dependencies, "PROTOCOLS", (other,))
    require("no-such-library")


# --- nothing is relied on that is not listed --------------------------------------------------------------------------


def _own_names() -> set[str]:
    """Private names that anydepth itself defines: functions, classes, attributes, fields."""
    names = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


_DOCUMENTED = ("_fields", "_asdict", "_replace", "_exit")  # of named tuples, and of os


def _is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in _DOCUMENTED


def _foreign_uses(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private names in a file that are not anydepth's: read off something, asked for by name, or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            of_parent = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if of_parent or node.attr not in own:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if _is_private(name) and name not in own:
                yield str(name)
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("anydepth"):
            yield from (alias.name for alias in node.names if _is_private(alias.name))
            yield from (part for part in str(node.module).split(".") if _is_private(part))


def test_every_private_name_of_another_library_is_listed() -> None:
    own = _own_names()
    unlisted = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        if path.name != "dependencies.py"
        for name in _foreign_uses(ast.parse(path.read_text(encoding="utf-8")), own)
        if name not in COVERED
    }
    assert unlisted == set()


def test_every_private_method_that_is_overridden_is_listed() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages([str(SOURCE)], "anydepth.")
        if not found.name.endswith("__main__")
    ]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("anydepth")
    }
    unlisted = {
        f"{kind.__qualname__}.{name}"
        for kind in classes
        for base in kind.__mro__[1:]
        if not base.__module__.startswith(("anydepth", "typing", "enum"))
        for name in vars(kind)
        if _is_private(name) and inspect.isfunction(vars(kind)[name]) and name in vars(base) and name not in COVERED
    }
    assert unlisted == set()


def test_no_name_is_listed_that_nothing_uses() -> None:
    sources = [path for path in SOURCE.rglob("*.py") if path.name != "dependencies.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert {name for name in COVERED if not re.search(rf"\b{name}\b", text)} == set()


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_metadata_allow_what_was_tested_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for more in project["optional-dependencies"].values() for line in more)]
    bounds = {re.split(r"[<>=\[]", line)[0]: set(re.findall(r"<([\d.]+)", line)) for line in lines}
    assert {library: bounds[library] for library in TESTED} == {
        library: {dependencies._above(release)} for library, release in TESTED.items()
    }
