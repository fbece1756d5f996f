"""What `pip install .` installs, and the same import in a checkout."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import DeepCache
import unets
from tests.layout import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made of a clean copy: what an earlier build left in the checkout would get into the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in listed:
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    built = subprocess.run([*pip, str(out)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.iterdir()
    return path


def test_the_wheel_holds_the_package_alone(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    metadata = {name for name in {file.split("/")[0] for file in files} if name.endswith(".dist-info")}
    assert len(metadata) == 1
    assert {file.split("/")[0] for file in files} == {"DeepCache", *metadata}
    package = {file.removeprefix("DeepCache/") for file in files if file.startswith("DeepCache/")}
    assert package == {path.relative_to(ROOT / "unets").as_posix() for path in (ROOT / "unets").rglob("*.py")}
    assert {"LICENSE", "NOTICE"} <= {Path(file).name for file in files}


@pytest.mark.slow
def test_the_quick_start_runs_from_the_wheel_alone(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    script = shutil.copy(ROOT / "tests" / "quick_start.py", elsewhere)
    run = subprocess.run(
        [sys.executable, script], cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"DeepCache {site / 'DeepCache'} " in run.stdout


def test_in_a_checkout_the_import_is_the_same():
    assert Path(DeepCache.__file__) == ROOT / "DeepCache.py"
    assert DeepCache.__all__ == unets.__all__
    assert all(getattr(DeepCache, name) is getattr(unets, name) for name in unets.__all__)


def test_in_a_checkout_its_modules_are_the_same_ones():
    assert importlib.import_module("DeepCache.cache.config") is importlib.import_module("unets.cache.config")
    assert importlib.import_module("DeepCache.ldm").CachedForward is unets.ldm.CachedForward
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("DeepCache.nothing")


def test_all_that_the_package_names_is_listed():
    assert {*unets.__all__} <= {*dir(unets)} & {*dir(DeepCache)}
    names: dict[str, object] = {}
    exec("from unets import *", names)
    assert {*unets.__all__} <= {*names}
    for module in (unets, DeepCache):
        with pytest.raises(AttributeError, match="nothing"):
            _ = module.nothing


WITHOUT_DIFFUSERS = """
import sys

class Missing:
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("accelerate", "diffusers", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from DeepCache import CacheConfig
from DeepCache.ldm import CachedForward
print(CacheConfig(3).cache_interval)
try:
    from DeepCache import DeepCacheSDHelper
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_without_diffusers_the_method_is_there_and_the_plug_in_says_what_it_needs(request, tmp_path, installed):
    site = ROOT
    if installed:
        site = tmp_path
        zipfile.ZipFile(request.getfixturevalue("wheel")).extractall(site)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_DIFFUSERS], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == "3"
    assert re.fullmatch(r"DeepCacheSDHelper needs (\w+), which is not installed; run: pip install \1", second)


def test_the_package_has_not_the_name_of_the_authors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"].lower() != "deepcache"
    assert "can't share an environment" in project["description"]
