"""Every command that writes, killed at random moments: the same command again gives the same bytes.

KILLS=20 kills each command as many times; without it, a few times.
"""

import json
import os
import random

import pytest

from common.shipped import SHAPES_LDM
from tests.killed import contents, run

KILLS = int(os.environ.get("KILLS", "2"))
QUIET = ["--quiet", "--device", "cpu"]
SET = ["--num-images", "3", "--batch-size", "1", *QUIET, "--png"]
COMMANDS = {  # the module, its arguments, and what --out is
    "ddpm.sample": (["--steps", "3", *SET], "out"),
    "ldm.sample": (["--steps", "4", *SET], "out"),
    "eval.generate": (["--steps", "3", *SET], "out"),
    "ldm.convert": ([str(SHAPES_LDM), "--quiet"], "out"),
    "stable_diffusion": (["--steps", "3", "--repeats", "1", "--warm-up", "0", *QUIET], "out"),
    "eval.calibrate": (["--script", "ddpm.sample", "--steps", "4", "--budget", "1.3", *QUIET], "out.json"),
    "eval.tables": (["table5", "--rows", "1,2", "--num-images", "2", "--no-speed", "--work", "work", *QUIET], "out"),
}  # fmt: skip
TIMED = ("out/result.json",)  # holds seconds, so it differs from run to run
DATED = "/measured/"  # and the minute


def same(found, expected):
    """Whether two folders have the same files, and the same bytes in them but for times."""
    compared = [name for name in expected if name not in TIMED and DATED not in name]
    return found.keys() == expected.keys() and all(found[name] == expected[name] for name in compared)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(command, tmp_path):
    options, out = COMMANDS[command]
    arguments = [*options, "--out", out]
    whole = tmp_path / "whole"
    whole.mkdir()
    status, seconds = run(command, arguments, whole)
    assert status == 0
    expected, chance = contents(whole), random.Random(command)
    for kill in range(KILLS):
        # From nothing; every other kill comes upon what the one before it left.
        folder = tmp_path / str(kill // 2)
        folder.mkdir(exist_ok=True)
        run(command, arguments, folder, kill_after=chance.uniform(0, seconds))
        if kill % 2 or kill == KILLS - 1:
            status, _ = run(command, arguments, folder)
            assert status == 0 or (command == "ldm.convert" and status == 2)  # which refuses an existing result
            assert same(contents(folder), expected), (kill, sorted(contents(folder)), sorted(expected))

        # From an existing result, none of which may be lost.
        run(command, arguments, whole, kill_after=chance.uniform(0.5, 1) * seconds)
        found = contents(whole)
        assert found.keys() >= expected.keys()
        assert same({name: found[name] for name in expected}, expected)
        assert all("made_from" in json.loads(found[name]) for name in TIMED if name in found)
