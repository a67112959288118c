"""The options of every command: those that typer had, and the settings that hold them, in files and in messages."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anydepth.cli.app import COMMANDS, parser, run
from anydepth.cli.command import flag_of, flags_of, written
from anydepth.cli.help import overview, page
from anydepth.errors import OptionError
from anydepth.jobs.options import FORMAT, Range, Setting
from anydepth.jobs.settings import AlignSettings, CompareSettings, GenerateSettings, TraceSettings, TruncateSettings

BEFORE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "options_of_typer.json").read_text())
"""Commands of 0.1.0, and their options with further flags, whether they are required, and defaults."""
SINCE = {("trace", "--sums"): False}
"""Defaults that were changed since."""
OTHERWISE = {"--out": {None}, "--depth": {None}, "name": {""}}
"""Defaults that are written in another way: `reproduce` has no NAME."""


def default_of(setting: Setting) -> Any:
    """A default as typer had it: as text, where the option is text."""
    default = setting.default
    if default is MISSING or default == ():
        return None
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default) if isinstance(default, Path) else default


def key_of(command: str, setting: Setting) -> str:
    if setting.option.positional:
        return "name" if command == "reproduce" else setting.name
    return flag_of(setting)


@pytest.mark.parametrize("command", BEFORE)
def test_every_option_of_typer_is_there_with_its_default(command: str) -> None:
    now = {key_of(command, setting): setting for setting in COMMANDS[command].settings}
    assert set(BEFORE[command]) <= set(now)
    for name, before in BEFORE[command].items():
        setting = now[name]
        assert {name, *before["flags"]} - {"model", "name", "traces"} <= set(flags_of(setting)) | {setting.name}, name
        assert (setting.default is MISSING) == before["required"], name
        default = SINCE.get((command, name), before["default"])
        assert (default_of(setting) or None) == (default or None), name


@pytest.mark.parametrize("command", BEFORE)
def test_a_command_line_with_every_option_of_typer_is_read(command: str) -> None:
    words, names = [command], set()
    for setting in COMMANDS[command].settings:
        key = key_of(command, setting)
        if key in BEFORE[command] and setting.option.positional:
            words.append("given")
        elif key in BEFORE[command]:
            value = {"readout": "raw", "scale": "full"}.get(setting.name, "given")  # these are a choice
            words += [key] if setting.hint is bool else [key, value]
            names.add(setting.name)
    _, bound, _ = parser().parse_args(words, exit_on_error=False, print_error=False)
    assert set(bound.kwargs) == names
    assert {value for value in bound.kwargs.values() if value is not True} <= {"given", ("given",), "raw", "full"}


def test_the_commands_are_those_of_typer() -> None:
    assert list(COMMANDS) == list(BEFORE)
    added = {name: {key_of(name, one) for one in COMMANDS[name].settings} - set(BEFORE[name]) for name in BEFORE}
    later = {"align": {"--eval-limit"}, "trace": {"--labels-as-texts", "--list-measures"}}
    later["exit"] = {"--labels-as-texts"}
    assert added == {name: {"--config"} | later.get(name, set()) for name in BEFORE}


def test_no_option_is_written_twice() -> None:
    for command in COMMANDS.values():
        flags = [flag for setting in command.settings for flag in flags_of(setting)]
        assert len(flags) == len(set(flags)), command.name


GIVEN = {
    "a flag": (["trace", "m", "--data", "d", "--pack"], {"pack": True}),
    "a flag that is off": (["trace", "m", "--data", "d", "--no-labels"], {"labels": False}),
    "the last of two": (["trace", "m", "--data", "d", "--seed", "1", "--seed", "2"], {"seed": 2}),
    "several texts": (["trace", "m", "--data", "d", "--lens", "a b", "--lens=-c"], {"lens": ("a b", "-c")}),
    "a text that looks like a flag": (["trace", "m", "--data", "--pack"], {"data": "--pack", "pack": False}),
    "names": (["trace", "m", "--data", "d", "--measures", "cka, rsa"], {"measures": ("cka", "rsa")}),
    "depths": (["exit", "m", "--data", "d", "--depths", "2,4"], {"depths": (2, 4)}),
    "a name that means nothing else": (
        ["trace", "m", "--data", "none", "--split", "None"],
        {"data": "none", "split": "None"},
    ),
    "weights": (["align", "m", "--data", "d", "--weights", "1,2.5"], {"weights": (1.0, 2.5)}),
    "a whole number for a number": (["align", "m", "--data", "d", "--warmup-steps", "10"], {"warmup_steps": 10.0}),
    "a depth or auto": (["truncate", "m", "--depth", "auto", "--data", "d"], {"depth": "auto"}),
    "a negative depth": (["truncate", "m", "--depth", "-1"], {"depth": -1}),
    "arguments after options": (["compare", "--seed", "1", "a", "b", "c"], {"traces": ("a", "b", "c"), "seed": 1}),
    "no measures": (["compare", "a", "b", "--measures", "none"], {"measures": ()}),
}


def parsed(arguments: list[str]) -> Any:
    """The settings that a command line gives."""
    command = COMMANDS[arguments[0]]
    _, bound, _ = parser().parse_args(arguments, exit_on_error=False, print_error=False)
    read = command.read(dict(zip(command.positional, bound.args, strict=False)) | bound.kwargs)
    assert read is not None
    return read[0]


@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_given_is_what_the_settings_hold(kind: str) -> None:
    arguments, expected = GIVEN[kind]
    settings = parsed(arguments)
    assert {name: getattr(settings, name) for name in expected} == expected


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_names_every_option(command: str, width: int) -> None:
    lines = page(COMMANDS[command], width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(f"Usage: anydepth {command} ")
    for setting in COMMANDS[command].settings:
        names = ", ".join([written(setting), *flags_of(setting)[1:]])
        (place,) = (at for at, line in enumerate(lines) if re.match(rf"  {re.escape(names)}(  |$)", line))
        # the description stands beside its option, where 30 characters are left, and else below it
        start = re.match(r"  \S.*?  +(?=\S)", lines[place]) or re.match(r" +", lines[place + 1])
        assert start is not None
        assert width - start.end() >= 30, lines[place]
        shown = " ".join(" ".join(lines[place:]).split())
        assert f"{names} {setting.help}" in shown


def test_titles_of_the_help_are_the_jobs_own_first_and_the_runs_last() -> None:
    titles = [re.findall(r"^(\w.*):$", page(command, 80), re.MULTILINE) for command in COMMANDS.values()]
    assert titles[0] == ["Arguments", "Trace", "Model", "Data", "Run"]
    assert all(each[-1] == "Run" for each in titles)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_is_a_command_on_one_line(command: str) -> None:
    (line,) = re.findall(r"^Example: anydepth (.*)$", page(COMMANDS[command], 80), re.MULTILINE)
    name, *arguments = shlex.split(line)
    assert name == command
    assert arguments
    assert parsed([name, *arguments])


@pytest.mark.parametrize("width", [40, 80])
def test_the_help_of_all_has_every_command(width: int) -> None:
    text = overview(COMMANDS, width)
    assert max(map(len, text.splitlines())) <= width
    assert [name for name in re.findall(r"^  (\w+)(?:  |$)", text, re.MULTILINE) if name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["trace", "--help"], ["trace", "m", "--data", "d", "-h"]])
def test_help_is_asked_for_anywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: anydepth ")


UNKNOWN = {
    "a command": (["trice"], 'Unknown command "trice". Did you mean "trace"?'),
    "a command whose help is asked for": (["trice", "--help"], 'Unknown command "trice". Did you mean "trace"?'),
    "an option": (["trace", "m", "--data", "d", "--limt", "3"], "Unknown option: --limt. Did you mean --limit?"),
    "a measure": (["trace", "m", "--data", "d", "--measures", "ckaa"], "unknown measure 'ckaa', .*: did you mean cka?"),
    "a policy": (["exit", "m", "--data", "d", "--policy", "margn"], "unknown policy 'margn', .*: did you mean margin?"),
    "an objective": (["align", "m", "--data", "d", "--objective", "aligne"], ".* 'aligne', .*: did you mean aligned?"),
    "a weighting": (["align", "m", "--data", "d", "--weights", "linea"], ".* 'linea', .*: did you mean linear?"),
    "a recipe": (["reproduce", "gleu"], ".* 'gleu', .*: did you mean glue?"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_name_suggests_the_nearest(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, says = UNKNOWN[kind]
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(f"anydepth: {says.replace('?', '[?]')}.*\n", err), err


@pytest.mark.parametrize("arguments", [["--help"], ["trace", "--help"], ["--version"]])
def test_help_imports_no_large_library(arguments: list[str]) -> None:
    code = f"import sys; from anydepth.cli.app import run; run({arguments!r}); print(*sys.modules)"
    source = str(Path(__file__).parents[2] / "src")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": source}, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    large = {"torch", "transformers", "numpy", "datasets", "pandas", "scipy", "yaml"}
    assert not loaded & (large if arguments == ["--version"] else large | {"cyclopts", "rich"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_every_option(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "ZSH_CUSTOM"):
        monkeypatch.setenv(name, str(tmp_path))
    assert run(["--install-completion", shell]) == 0
    (path,) = re.findall(r"^Completion: (.*); a new shell has it$", capsys.readouterr().out, re.MULTILINE)
    assert Path(path).is_relative_to(tmp_path)
    script = Path(path).read_text()
    for command in COMMANDS.values():
        for flag in (flag for setting in command.settings for flag in flags_of(setting) if flag.startswith("--")):
            assert re.search(rf"\b{re.escape(flag.removeprefix('--'))}\b", script), flag


def test_completion_is_for_shells_that_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--install-completion", "csh"]) == 2
    assert capsys.readouterr().err.startswith('anydepth: Invalid value "csh" for SHELL')


# --- settings, from Python and from files -----------------------------------------------------------------------------


WRONG = {
    "no number": ({"limit": "many"}, "limit is 'many', expected a whole number"),
    "half a sample": ({"limit": 2.5}, "limit is 2.5, expected a whole number"),
    "a flag for a number": ({"limit": True}, "limit is True, expected a whole number"),
    "a number for a flag": ({"pack": 1}, "pack is 1, expected true or false"),
    "nothing": ({"data": None}, "data is None, expected text"),
    "a list": ({"split": ["a"]}, "split is ['a'], expected text"),
    "no list": ({"lens": "a"}, "lens is 'a', expected a list: text each"),
    "no choice": ({"readout": "rw"}, "readout is 'rw', expected tail or raw or none"),
    "too small": ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    "too large": ({"seed": 2**32}, "seed is 4294967296, expected a number from 0 to 4294967295"),
    "beyond all": ({"stride": 10**25}, "stride is 10000000000000000000000000, expected at most 2,147,483,647"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_settings_are_checked_wherever_they_come_from(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, says = WRONG[kind]
    values: dict[str, Any] = {"model": "m", "data": "d"} | wrong
    with pytest.raises(OptionError, match=f"^{re.escape(says)}$"):
        TraceSettings(**values)
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    assert run(["trace", "--config", str(file)]) == 2
    name, _, rest = says.partition(" ")
    assert capsys.readouterr().err == f"anydepth: --{name.replace('_', '-')} {rest}\n"


def test_numbers_of_numpy_and_paths_are_numbers_and_text(tmp_path: Path) -> None:
    settings = AlignSettings(model=tmp_path, data="d", seed=np.int64(3), learning_rate=np.float32(0.5), save_steps=4)
    assert settings == AlignSettings(model=str(tmp_path), data="d", seed=3, learning_rate=0.5, save_steps=4.0)
    assert [type(value) for value in (settings.model, settings.seed, settings.learning_rate)] == [str, int, float]


def test_ranges_say_what_they_allow() -> None:
    ranges = (Range(), Range(least=1), Range(least=0, above=True), Range(least=0, above=True, most=1), Range(most=9.5))
    for number in (float("nan"), float("inf"), -float("inf")):
        for allowed in ranges:
            with pytest.raises(OptionError, match=f"x is {number}, expected a finite number"):
                allowed.require("x", number)
    for allowed in ranges:
        allowed.require("x", 1)


SAVED = [
    TraceSettings(model="m", data="d", limit=5, lens=("a: b", "# c", "\u2028ü\x07"), labels=False, readout="none"),
    AlignSettings(model="m", data="d", weights=(1.0, 3.0), exits=(1, 2), learning_rate=1e-5, split="no"),
    AlignSettings(model="m", data="d", weights="uniform", exits="sampled", seed=2**32 - 1),
    TruncateSettings(model="0123", depth="auto", data="d"),
    TruncateSettings(model="1e3", depth=3),
    CompareSettings(traces=("a", "b"), measures=(), despite=("data",)),
    CompareSettings(traces=("a", "b"), measures=None),
    GenerateSettings(model="m", prompt=("a\nb", ""), draft_depth="auto", top_p=0.5, sample=True),
]


@pytest.mark.parametrize("number", range(len(SAVED)))
def test_settings_come_back_from_their_file(number: int, tmp_path: Path) -> None:
    settings = SAVED[number]
    settings.save(tmp_path)
    assert type(settings)(**type(settings).read(tmp_path / "settings.yaml")) == settings
    text = (tmp_path / "settings.yaml").read_text()
    assert text.startswith(f"# anydepth {settings.job} --config settings.yaml\njob: {settings.job}\nformat: {FORMAT}\n")


def test_what_is_given_goes_before_the_file(tmp_path: Path) -> None:
    TraceSettings(model="m", data="d", limit=5, pack=True, seed=3).save(tmp_path)
    settings = parsed(["trace", "--config", str(tmp_path / "settings.yaml"), "--limit", "7", "--data", "e"])
    assert settings == TraceSettings(model="m", data="e", limit=7, pack=True, seed=3)


# --- settings, from the environment -----------------------------------------------------------------------------------


def test_the_command_line_goes_before_variables_and_these_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TraceSettings(model="m", data="d", limit=5, seed=3, pack=True, labels=False).save(tmp_path)
    for name, value in {"LIMIT": "6", "SEED": "4", "LABELS": "true", "DATA": "e", "STRIDE": ""}.items():
        monkeypatch.setenv(f"ANYDEPTH_TRACE_{name}", value)
    monkeypatch.setenv("ANYDEPTH_ALIGN_PACK", "none of this command's")
    settings = parsed(["trace", "--config", str(tmp_path / "settings.yaml"), "--limit", "7"])
    assert settings == TraceSettings(model="m", data="e", limit=7, seed=4, pack=True, labels=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_variable(command: str) -> None:
    known = COMMANDS[command]
    texts = {"json": "yes", "seed": "2", "seeds": "2", "config": "a.yaml", "device": "cpu", "blocks": "encoder"}
    given = {setting.name: texts[setting.name] for setting in known.settings if setting.name in texts}
    variables = {f"ANYDEPTH_{command.upper()}_{name.upper()}": text for name, text in given.items()}
    values = known.from_environment({**variables, "PATH": "x", "ANYDEPTH_DEBUG": "1"})
    assert values == {**given, "json": True, **{name: 2 for name in ("seed", "seeds") if name in given}}
    assert {known.variable(setting.name) for setting in known.settings} >= set(variables)


def test_a_variable_of_what_may_be_given_again_has_a_value_in_each_line() -> None:
    values = COMMANDS["generate"].from_environment({"ANYDEPTH_GENERATE_PROMPT": "Once upon\na time, long"})
    assert values == {"prompt": ("Once upon", "a time, long")}


BAD_VARIABLES = {
    "no number": ("LIMIT", "many", "ANYDEPTH_TRACE_LIMIT is 'many', expected a whole number"),
    "out of range": ("LIMIT", "0", "ANYDEPTH_TRACE_LIMIT is 0, expected at least 1"),
    "no flag": ("PACK", "maybe", "ANYDEPTH_TRACE_PACK is 'maybe', expected true or false"),
    "no choice": ("READOUT", "rw", "ANYDEPTH_TRACE_READOUT is 'rw', expected tail or raw or none"),
    "no template": ("LABELS_AS_TEXTS", "a photo", "ANYDEPTH_TRACE_LABELS_AS_TEXTS: .*'a photo'.*"),
    "no option": (
        "LIMT",
        "3",
        "ANYDEPTH_TRACE_LIMT is no option of .* trace: did you mean ANYDEPTH_TRACE_LIMIT[?]",
    ),
}


@pytest.mark.parametrize("kind", BAD_VARIABLES)
def test_a_bad_variable_is_one_line_that_names_it(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value, says = BAD_VARIABLES[kind]
    monkeypatch.setenv(f"ANYDEPTH_TRACE_{name}", value)
    assert run(["trace", "m", "--data", "d"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"anydepth: {says}\n", err), err


# --- settings files that are none -------------------------------------------------------------------------------------


BAD_FILES = {
    "an unknown setting": ("model: m\nlimt: 3\n", "has an unknown setting 'limt': did you mean limit?"),
    "of another job": ("job: align\nmodel: m\n", "has settings of anydepth align, expected those of anydepth trace"),
    "of a newer version": ("format: 2\nmodel: m\n", "has format 2, expected at most 1: use a newer anydepth"),
    "a format that is none": ("format: new\n", "has format 'new', expected at most 1"),
    "no mapping": ("- a\n- b\n", "holds list, expected settings by name"),
    "nothing": ("", "holds NoneType, expected settings by name"),
    "no YAML": ("a: [1,\nb: }\n", r"is no settings file, expected YAML \(line \d\)"),
    "code": ("model: !!python/object/apply:os.getcwd []\n", "is no settings file, expected YAML"),
    "no text": (b"\xff\xfe\x00", "is no settings file, expected YAML|a file holds something else"),
    "too deep": ("[" * 9999, "is no settings file, expected YAML"),
    "too little": ("model: m\n", "--data is missing: give it, or a settings file that has it"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_settings_file_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, says = BAD_FILES[kind]
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(["trace", "--config", str(file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.match(f"anydepth: .*({says})", err), err


def test_a_settings_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert re.fullmatch(r"anydepth: '.*nowhere.yaml': No such file or directory.*\n", capsys.readouterr().err)


def test_fields_are_settings_with_a_line_of_help() -> None:
    for command in COMMANDS.values():
        for setting in command.settings:
            assert re.fullmatch(r"[^\n]+[.]", setting.help), setting.name
