"""What `pip install .` would change: nothing, wherever the plug-in is tested."""

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_what_the_package_requires_is_installed_already():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    for requirement in requirements:
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), requirement
    assert {"diffusers", "torch"} <= {requirement.name for requirement in requirements}
    assert "huggingface-hub" not in {requirement.name.replace("_", "-") for requirement in requirements}


def test_the_releases_that_it_allows_lie_between_those_that_it_is_tested_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = next(Requirement(line) for line in project["dependencies"] if line.startswith("diffusers")).specifier
    files = (*Path(__file__).parent.glob("diffusers-*.txt"), ROOT / "requirements.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("diffusers==")]
    tested = sorted(Version(line.removeprefix("diffusers==")) for line in lines)
    assert all(allowed.contains(version) for version in tested)
    newer = f"{tested[-1].major}.{tested[-1].minor + 1}.0"
    assert not allowed.contains("0.23.1") and not allowed.contains(newer)
