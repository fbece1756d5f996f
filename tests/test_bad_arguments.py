"""Every option of every command, found by walking the parsers: what can't be right is one line, 2, and nothing written.

A new option is covered by itself.
"""

import argparse
import importlib
from pathlib import Path

import pytest

from common import numbers
from common.shipped import SHAPES_SD
from tests.layout import COMMANDS

NEVER = ("nan", "inf", "-inf", "1e300", str(2**65), "x", "", "1,nan")  # of any option that takes numbers
BELOW_0 = {"--forecast", "--motion-x", "--motion-y"}  # options that take numbers below 0
MINIMAL = {  # what a command needs besides its options
    "main": ["--model_type", "sd1.5", "--tiny"],
    "stable_diffusion_xl": ["--tiny"],
    "stable_video_diffusion": ["--tiny"],
    "dit.compare": ["--intervals", "2"],
    "eval.tables": ["table5"],
    "eval.clip_score": [str(SHAPES_SD)],
    "eval.fid": [str(SHAPES_SD), str(SHAPES_SD)],
    "eval.reference": [str(SHAPES_SD), "--out", "reference.npz"],
}


def options_of(command):
    """The flag and the action of each option of a command."""
    parser = importlib.import_module(command).parser()
    return [(action.option_strings[0], action) for action in parser._actions if action.option_strings]


ALL = [(command, flag, action) for command in COMMANDS for flag, action in options_of(command)]
NUMERIC = [(command, flag) for command, flag, action in ALL if action.type not in (None, Path)]
CHOICES = [(command, flag) for command, flag, action in ALL if action.choices]


def refused(command, arguments, capsys):
    """The one line in which a command refuses its arguments."""
    assert importlib.import_module(command).main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("error: ") and printed.out == ""
    return line


def test_the_walk_finds_the_options():
    found = {f"{command} {flag}" for command, flag in NUMERIC}
    assert {"stable_diffusion --guidance-scale", "eval.tables --rows", "benchmarks.loop --steps"} <= found
    assert len(NUMERIC) > 150 and len(CHOICES) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_takes_any_number(command):
    for flag, action in options_of(command):
        assert action.type not in (int, float), f"{flag} of {command} has no bounds; take a type of common.numbers"


@pytest.mark.parametrize("command", sorted({command for command, _ in NUMERIC}))
def test_invalid_numbers_are_refused(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag in [flag for one, flag in NUMERIC if one == command]:
        for text in NEVER if flag in BELOW_0 else (*NEVER, "-1"):
            line = refused(command, [*MINIMAL.get(command, ()), f"{flag}={text}"], capsys)
            assert flag in line, (flag, text, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted({command for command, _ in CHOICES}))
def test_unknown_choices_are_answered_with_the_valid_ones(command, capsys):
    for flag in [flag for one, flag in CHOICES if one == command]:
        line = refused(command, [*MINIMAL.get(command, ()), f"{flag}=nonsense"], capsys)
        assert flag in line and "choose from" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_options_that_are_none_are_named(command, capsys):
    line = refused(command, [*MINIMAL.get(command, ()), "--nonsense=1"], capsys)
    assert "--nonsense" in line or "required" in line


@pytest.mark.parametrize("command", sorted({command for command, flag, _ in ALL if flag == "--device"}))
def test_devices_that_are_none_are_named(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(command, [*MINIMAL.get(command, ()), "--device", "abacus"], capsys)
    assert "--device" in line and "abacus" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (numbers.whole(1, 3), {"1": 1, "3": 3, "+2": 2}, ("0", "4", "1.0", "1e0", "one", "-1")),
        (numbers.real(0, 1), {"0": 0.0, "1": 1.0, "0.5": 0.5, "5e-1": 0.5}, ("-0.1", "1.1", "nan", "-nan", "infinity")),
        (numbers.wholes(0, 5), {"0": [0], "0,3,5": [0, 3, 5]}, ("", "0,", ",", "0,6", "0 3", ",".join(["1"] * 1001))),
        (numbers.pixels, {"8": 8, "512": 512}, ("0", "4", "12", "16400", "-8", "64.0")),
    ],
)
def test_types_of_numbers(parse, good, bad):
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
