"""What people import: the names, what they cost, and what they say of themselves."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import anydepth
from anydepth import errors
from anydepth.errors import AnydepthError

SOURCE = Path(anydepth.__file__).parent
NAMES = [
    "AlignedLoss",
    "AlignedTrainer",
    "AnydepthError",
    "AtDepth",
    "Comparison",
    "Confidence",
    "Convergence",
    "EarlyExit",
    "Entropy",
    "ExitCurve",
    "Lens",
    "Margin",
    "Patience",
    "Stack",
    "Theory",
    "Trace",
    "TraceCallback",
    "align",
    "calibrate",
    "compare",
    "exit_curve",
    "export",
    "generate",
    "plot",
    "predict",
    "trace",
    "trace_states",
    "truncate",
    "zero_shot",
]
MODULES = sorted(found.name for found in pkgutil.walk_packages([str(SOURCE)], "anydepth."))
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AnydepthError)]


def test_the_public_names() -> None:
    assert sorted(anydepth.__all__) == NAMES
    assert dir(anydepth) == sorted([*NAMES, "generation"])
    assert set(anydepth._HOMES) == {*NAMES, "generation"}
    for name in NAMES:
        value = getattr(anydepth, name)
        assert value.__name__ == name
        assert value.__module__ == anydepth._HOMES[name]


# What 0.1.0 documented, by where it is to be imported from: these places stay.
PLACES = {
    "anydepth": NAMES,
    "anydepth.assets": ["cache_root", "get", "path"],
    "anydepth.data": ["Batches", "Columns", "LoadedData", "batches", "load"],
    "anydepth.exits.costs": ["measure_costs"],
    "anydepth.generation": ["Spent", "advise", "at_depth", "calibrate", "dynamic_exit", "self_speculative"],
    "anydepth.measures": [
        *("CKA", "MEASURES", "ArrayStates", "Cosine", "Measure", "Moments", "Similarity", "States", "merge"),
        "similarities",
    ],
    "anydepth.measures.readout": ["readout_rows", "saturation_depth"],
    "anydepth.onnx": ["Router", "export"],
    "anydepth.report.charts": ["plot", "save"],
    "anydepth.results.positions": ["by_frequency", "by_position"],
    "anydepth.theory.examine": ["examine"],
    "anydepth.training": ["OBJECTIVES", "AlignedLoss", "AlignedTrainer", "Loss", "Objective", "TraceCallback"],
}


@pytest.mark.parametrize("place", PLACES)
def test_what_was_documented_is_where_it_was(place: str) -> None:
    module = importlib.import_module(place)
    for name in PLACES[place]:
        assert callable(getattr(module, name)) or name in ("MEASURES", "OBJECTIVES"), name


def test_packages_name_what_is_loaded_late() -> None:
    """Their `__all__`, the table of what is loaded late and the imports for type checkers are the same."""
    for place in ("anydepth.training", "anydepth.onnx"):
        assert sorted(importlib.import_module(place).__all__) == dir(importlib.import_module(place))


def test_a_star_imports_them() -> None:
    into: dict[str, Any] = {}
    exec("from anydepth import *", into)
    assert sorted(set(into) - {"__builtins__"}) == NAMES


def test_the_names_for_type_checkers_are_the_same() -> None:
    """The lazy table and the imports under TYPE_CHECKING must not drift apart."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: str(node.module)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported | {"generation": "anydepth.generation"} == anydepth._HOMES


def test_the_ways_to_generate_are_at_hand() -> None:
    """Without an import of their module, and without one at the import of the package."""
    code = "import sys, anydepth; assert 'torch' not in sys.modules; print(anydepth.generation.at_depth.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "at_depth"


@pytest.mark.parametrize("name", ["contrast", "tracing_", "__wrapped__"])
def test_what_is_not_there_names_what_is(name: str) -> None:
    says = f"module 'anydepth' has no attribute '{name}'; it has {', '.join(sorted([*NAMES, 'generation']))}"
    with pytest.raises(AttributeError, match=says):
        getattr(anydepth, name)
    assert not hasattr(anydepth, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from anydepth import {name}")


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    tell = "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {code}{tell}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "datasets",
    "pandas",
    "scipy",
    "altair",
    "vl_convert",
    "torchmetrics",
    "timm",
}
HEAVY |= {"cyclopts", "rich", "jinja2", "sklearn", "PIL", "safetensors", "jaxtyping", "psutil"}


def test_importing_costs_next_to_nothing() -> None:
    assert loaded_by("import anydepth") & HEAVY == set()
    assert loaded_by("import anydepth; anydepth.AnydepthError") & HEAVY == set()
    # scikit-learn comes with transformers, where it is installed
    beyond = {
        "transformers",
        "datasets",
        "pandas",
        "altair",
        "vl_convert",
        "timm",
        "cyclopts",
        "rich",
        "jinja2",
        "sklearn",
    }
    assert loaded_by("import anydepth; anydepth.Stack, anydepth.trace, anydepth.Trace") & beyond == set()


def test_the_version_needs_no_torch() -> None:
    assert loaded_by("import contextlib, io, anydepth.cli.app; anydepth.cli.app.run(['--version'])") & HEAVY <= {
        "cyclopts",
        "rich",
    }


def test_it_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_by_itself_and_says_what_it_is(name: str) -> None:
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_one_documented_tree(error: type[AnydepthError]) -> None:
    assert error.__module__ == "anydepth.errors"
    assert (error.__doc__ or "").strip().endswith(".")
    assert error.__doc__ not in [base.__doc__ for base in error.__mro__[1:]]


def test_every_error_is_defined_in_one_place_and_raised_somewhere() -> None:
    texts = {path: path.read_text() for path in SOURCE.rglob("*.py")}
    everywhere = "\n".join(text for path, text in texts.items() if path.name != "errors.py")
    for error in ERRORS[1:]:
        raised = re.search(rf"\b{error.__name__}\(|translated\({error.__name__}\b", everywhere)
        assert raised, f"nothing raises {error.__name__}"
    pattern = r"class (\w+)\((?:AnydepthError|\w*Error|Exception)\):"
    others = {name for path, text in texts.items() if path.name != "errors.py" for name in re.findall(pattern, text)}
    assert others == set()


# --- docstrings ------------------------------------------------------------------------------------------------------


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, classes and their methods that a module defines for others."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for inner, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{inner}", function


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_everything_for_others_says_what_it_does(name: str) -> None:
    missing = [path for path, value in public(importlib.import_module(name)) if not (value.__doc__ or "").strip()]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "AnydepthError"])
def test_public_names_show_an_example(name: str) -> None:
    """That they run is seen by `--doctest-modules`."""
    value = getattr(anydepth, name)
    assert doctest.DocTestParser().get_examples(inspect.getdoc(value) or ""), f"{name} shows no example"


@pytest.mark.parametrize("name", ["trace", "trace_states", "Stack"])
def test_every_argument_is_explained(name: str) -> None:
    value = getattr(anydepth, name)
    text = inspect.getdoc(value) or ""
    for parameter in inspect.signature(value).parameters.values():
        assert re.search(rf"^ +{parameter.name}: ", text, re.MULTILINE), f"{name} does not explain {parameter.name!r}"
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


TEMPLATES = {"anydepth.report.html.page", "anydepth.report.html.render"}  # pass names on to a template


def overrides(module: ModuleType, path: str) -> bool:
    """Whether a method's parameters are those of a class of a library below: `Trainer`'s, its callbacks', torch's."""
    owner, _, method = path.rpartition(".")
    bases = inspect.getmro(getattr(module, owner))[1:] if owner else ()
    return any(method in vars(base) for base in bases if not base.__module__.startswith("anydepth"))


def test_no_public_function_takes_just_anything() -> None:
    for name in MODULES:
        if name.endswith("__main__"):
            continue
        for path, value in public(importlib.import_module(name)):
            if inspect.isfunction(value) and not overrides(importlib.import_module(name), path):
                kinds = {parameter.kind for parameter in inspect.signature(value).parameters.values()}
                takes_anything = inspect.Parameter.VAR_KEYWORD in kinds and f"{name}.{path}" not in TEMPLATES
                assert not takes_anything, f"{name}.{path} takes **kwargs"


def test_the_docstring_of_the_package_shows_what_works() -> None:
    """The names of its example exist."""
    text = anydepth.__doc__ or ""
    assert set(re.findall(r"ad\.(\w+)", text)) == {"trace", "calibrate", "predict", "AlignedLoss", "Stack"} < set(NAMES)
    for attribute in re.findall(r"found\.(\w+)", text):
        assert hasattr(anydepth.Trace, attribute) or attribute in anydepth.Trace.__dataclass_fields__
