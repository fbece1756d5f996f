"""The digest of the scoring code: what changes it and what does not."""

import re
import time

import pytest

from eval.metrics.version import code_version, digest

SOURCE = '''"""What it is for."""

K = 3  # neighbours
"""What K is."""


def f(x: int) -> int:
    """What f does."""
    return x + K
'''


def test_it_is_a_digest_that_stays():
    assert re.fullmatch("[0-9a-f]{16}", code_version())
    started = time.perf_counter()
    assert code_version() == code_version()
    assert time.perf_counter() - started < 1e-3


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# neighbours", "# of them", True),
        ("What it is for", "Why it is", True),
        ("What K is", "Neighbours", True),
        ("What f does", "A sum", True),
        ("x + K", "(x +  K)", True),
        ('    """What f does."""\n', "", True),
        ("K = 3", "K = 4", False),
        ("x + K", "x - K", False),
        ("x + K", "'What f does.'", False),
        ("def f", "def g", False),
    ],
)
def test_code_alone_changes_it(old, new, same):
    assert old in SOURCE
    versions = ["torch 2.14.1"]
    changed = digest([("a.py", SOURCE.replace(old, new))], versions)
    assert (changed == digest([("a.py", SOURCE)], versions)) == same


def test_files_and_versions_change_it():
    one = digest([("a.py", SOURCE)], ["torch 2.14.1"])
    assert digest([("b.py", SOURCE)], ["torch 2.14.1"]) != one
    assert digest([("a.py", SOURCE), ("b.py", "")], ["torch 2.14.1"]) != one
    assert digest([("a.py", SOURCE)], ["torch 2.15.0"]) != one
