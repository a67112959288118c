"""Ranges and effects of options are held against the command line that people have."""

from __future__ import annotations

import re

import pytest

from anydepth.cli.app import COMMANDS, run
from anydepth.cli.option_checks import EFFECTS, check_effects, with_flags
from anydepth.errors import OptionError


def test_every_rule_is_about_options_that_there_are() -> None:
    assert set(EFFECTS) <= set(COMMANDS)
    for name, effects in EFFECTS.items():
        defaults = {setting.name: setting.default for setting in COMMANDS[name].settings}
        for effect in effects:
            assert set(effect.options) <= set(defaults)
            assert isinstance(effect.when(defaults), bool), "a rule reads names that the command has"


REFUSED: dict[str, tuple[list[str], str]] = {
    "a negative seed": (
        ["trace", "m", "--data", "d", "--seed", "-1"],
        "--seed is -1, expected a number from 0 to 4294967295",
    ),
    "a seed of 2^32": (["align", "m", "--data", "d", "--seed", "4294967296"], "--seed is 4294967296, expected"),
    "a rate without end": (
        ["align", "m", "--data", "d", "--learning-rate", "inf"],
        "--learning-rate is inf, expected a f",
    ),
    "no number": (["exit", "m", "--data", "d", "--tolerance", "nan"], "--tolerance is nan, expected a finite number"),
    "a temperature of 0": (
        ["generate", "m", "--prompt", "a", "--sample", "--temperature", "0"],
        "--temperature is 0.0, expected a number above 0",
    ),
    "a share above 1": (["exit", "m", "--data", "d", "--share", "2"], "--share is 2.0, expected a number from 0 to 1"),
    "a limit beyond all": (
        ["trace", "m", "--data", "d", "--limit", "9" * 25],
        "--limit is 999.*, expected at most 2,147",
    ),
    "sampling without it": (
        ["generate", "m", "--prompt", "a", "--top-k", "3"],
        "--top-k has no effect here: leave it out, or give --sample too",
    ),
    "labels left out": (
        ["trace", "m", "--data", "d", "--no-labels", "--label-column", "x"],
        "--label-column has no effect here: leave it out, or leave out --no-labels",
    ),
    "a tolerance of a given depth": (
        ["truncate", "m", "--depth", "1", "--data", "d", "--tolerance", "0.2"],
        "--tolerance has no effect here: leave it out, or give --depth auto",
    ),
    "a split of no data": (
        ["truncate", "m", "--depth", "1", "--split", "x"],
        "--split has no effect here: .*--data too",
    ),
    "epochs beside steps": (
        ["align", "m", "--data", "d", "--max-steps", "3", "--num-train-epochs", "2"],
        "--num-train-epochs has no effect here",
    ),
    "a list that is scaled": (["reproduce", "--list", "--scale", "full"], "--scale has no effect here"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_option_that_can_do_nothing_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = REFUSED[kind]
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert re.match(f"anydepth: {says}", err), err
    assert err.count("\n") == 1


def test_a_value_that_is_the_default_is_not_asked_for() -> None:
    command, given = COMMANDS["truncate"], {"model": "m", "depth": "1"}
    as_default = command.read({**given, "tolerance": "0.01", "against": "model"})
    assert as_default is not None
    check_effects(command, *as_default)
    other = command.read({**given, "tolerance": "0.01", "against": "labels"})
    assert other is not None
    with pytest.raises(OptionError, match="--against has no effect here"):
        check_effects(command, *other)


# --- arguments of the library, in messages of the command line --------------------------------------------------------

NAMED = {
    "a name with an underscore": ("trace", "raise states_limit, or less", "raise --states-limit, or less"),
    "in brackets": ("trace", "give another folder (out)", "give another folder (--out)"),
    "several in brackets": ("trace", "windows (stride, pack) overlap", "windows (--stride, --pack) overlap"),
    "a switch": ("trace", "trace with keep_states=True", "trace with --keep-states"),
    "a switch that is on": ("trace", "give labels=False", "give --no-labels"),
    "a value": ("trace", "trace both with tokens='mean'", "trace both with --tokens mean"),
    "none": ("trace", "its similarity alone (readout=None)", "its similarity alone (--readout none)"),
    "an argument of another name": ("trace", "name one (label)", "name one (--label-column)"),
    "a switch of another name": ("trace", "start over with resume=False", "start over with --restart"),
    "an option of another name": ("generate", "ask for fewer (new_tokens)", "ask for fewer (--max-new-tokens)"),
    "of transformers": ("align", "per_device_train_batch_size is 0", "--per-device-train-batch-size is 0"),
    "the option beside it": (
        "trace",
        "a limit (states_limit, --states-limit)",
        "a limit (states_limit, --states-limit)",
    ),
    "ordinary words": ("trace", "the data, the model and its tokens", "the data, the model and its tokens"),
    "names of the user's": (
        "trace",
        "column 'label_column', a/states_limit.csv",
        "column 'label_column', a/states_limit.csv",
    ),
    "what is no option": ("trace", "use trust_me=True and my_file (file)", "use trust_me=True and my_file (file)"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_message_names_options_in_the_place_of_arguments(kind: str) -> None:
    command, message, expected = NAMED[kind]
    assert with_flags(message, COMMANDS[command]) == expected
