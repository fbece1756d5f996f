"""Inputs of the tables: the list, downloads that break off or bring something else, files under other names."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import pytorch_fid.inception
import torch

from common import download as downloads
from common.download import Download
from common.shipped import SHAPES_SD
from eval import fetch
from eval.generation import published
from eval.metrics import clip_score
from eval.metrics.published import INCEPTION, inception_path
from eval.paper import inputs
from eval.paper.cifar10 import BATCHES, write_images
from eval.paper.data import SCALES, load_scale
from eval.paper.inputs import FILE, Missing, Present, fetch_missing, load_inputs, locate, parse_inputs, remedy, state
from pipelines import StableDiffusionPipeline
from pipelines.loading import load_pipeline
from tests.layout import ROOT
from tests.local_hub import CONTENT, LocalHub, Served, names_in


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(downloads, "WAIT", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inputs.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


# --- the list -------------------------------------------------------------------------------------------------------


def test_every_model_of_the_tables_names_its_inputs(tmp_path):
    for scale in SCALES:
        for name, model in load_scale(scale).models.items():
            assert (scale == "paper") == bool(model.inputs), name
            mine = [inputs.find(one) for one in model.inputs]
            assert {one.use for one in mine} <= {"images", "scores"}
            # What settings and scores name is put where they name it.
            text = json.dumps([vars(model.settings), vars(model.score)], default=str)
            named = {f"{{inputs}}/{part.split(chr(34))[0]}" for part in text.split("{inputs}/")[1:]}
            assert named == {one.place for one in mine if one.place and one.place.startswith("{inputs}")}
            hubs = {one.hub for one in mine if one.kind == "pipeline"}
            assert hubs == ({getattr(model.settings, "model", None)} if hubs else set())
    used = {name for model in load_scale("paper").models.values() for name in model.inputs}
    assert used == {one.name for one in load_inputs().values() if one.use != "references"}


def test_every_input_has_an_address_a_licence_and_a_place(tmp_path):
    for name, one in load_inputs().items():
        assert one.origin or one.by_hand
        assert one.licence and one.about
        assert locate(name, tmp_path / "in").is_relative_to(tmp_path)
        found = state(name, tmp_path / "in")
        assert isinstance(found, Missing)
        assert remedy(name, tmp_path / "in") in found.text and "\n" not in found.text
        assert "{" not in found.text
    assert remedy("sd15") == "python -m eval.fetch sd15"
    assert remedy("sd15", Path("in")) == "python -m eval.fetch sd15 --inputs in"


def test_addresses_are_those_of_the_libraries():
    assert INCEPTION.url == pytorch_fid.inception.FID_WEIGHTS_URL
    config = open_clip.get_pretrained_cfg(clip_score.MODEL, clip_score.PRETRAINED)
    assert config["hf_hub"].rstrip("/") == inputs.find("vit-g-14").hub
    assert locate("inception", Path()) == inception_path()
    assert locate("parti", Path()).name == published.PARTI_FILE and locate("coco", Path()).name == published.COCO_FILE


@pytest.mark.parametrize(
    ("change", "says"),
    [({"colour": 1}, "sd15: .*'colour'"), ({"kind": "gift"}, "sd15: kind is one of"), ({"use": "fun"}, "use one of"),
     ({"place": "x"}, "no address or no place"), ({"hub": None}, "no address or no place")],
)  # fmt: skip
def test_an_unknown_key_or_value_is_refused(change, says):
    content = json.loads(FILE.read_text())
    content["sd15"] |= change
    with pytest.raises(ValueError, match=says):
        parse_inputs(content)
    del content["sd15"]["licence"]
    with pytest.raises(ValueError, match="sd15"):
        parse_inputs(content)


def test_the_list_is_quick_and_needs_no_network(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    start = time.process_time() + sum(os.times()[2:4])
    code = "import sys; from eval.fetch import main; main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.process_time() + sum(os.times()[2:4]) - start < 4
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["name", "state", "size", "licence", "from"]
    assert [line.split()[0] for line in lines[1 : 1 + len(load_inputs())]] == list(load_inputs())
    assert "1.83 GB" in done.stdout and "95.6 MB" in done.stdout and "eval.reference" in done.stdout


# --- the command ----------------------------------------------------------------------------------------------------


class Upstream(LocalHub):
    """Where inputs come from instead of their own addresses."""

    def serve(self, name: str, content: bytes) -> None:
        one = inputs.find(name)
        assert one.source is not None
        file = one.source.url.rsplit("/", 1)[1] if one.kind == "archive" else name
        self.files[file] = Served(content)
        source = Download(self.url_of(file), f"md5:{hashlib.md5(content).hexdigest()}")
        load_inputs()[name] = replace(one, source=source)


@pytest.fixture
def served():
    before = dict(load_inputs())
    with Upstream() as hub:
        yield hub
    load_inputs().update(before)


def call(folder: Path, *names: str) -> int:
    return fetch.main([*names, "--inputs", str(folder), "--quiet"])


def test_inputs_are_downloaded_by_name(tmp_path, served, capsys):
    served.serve("ema-cifar10", CONTENT)
    served.serve("parti", b"Prompt\na ring\n")
    assert call(tmp_path, "ema-cifar10", "parti") == 0
    assert (tmp_path / "ema_cifar10.ckpt").read_bytes() == CONTENT
    assert (tmp_path / "torch/hub/prompts/PartiPrompts.tsv").read_bytes() == b"Prompt\na ring\n"
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"ema-cifar10: downloaded to {tmp_path}/ema_cifar10.ckpt" and err == ""
    assert state("ema-cifar10", tmp_path) == Present(tmp_path / "ema_cifar10.ckpt")
    assert call(tmp_path, "ema-cifar10") == 0
    assert "there already" in capsys.readouterr().out
    (tmp_path / "ema_cifar10.ckpt").write_bytes(b"something")
    assert call(tmp_path, "ema-cifar10") == 1
    assert "is damaged or another file: its md5 is 437b930d" in capsys.readouterr().err


def test_one_failure_does_not_stop_the_others(tmp_path, served, capsys):
    served.serve("ema-cifar10", CONTENT)
    served.serve("ema-lsun-church", CONTENT)
    del served.files["ema-cifar10"]
    assert call(tmp_path, "ema-cifar10", "cifar10-reference", "ema-lsun-church") == 1
    out, err = capsys.readouterr()
    assert "ema-lsun-church: downloaded" in out
    first, second, last = err.splitlines()
    assert first.startswith("ema-cifar10: cannot download http") and "404" in first
    assert first.endswith(f"put the file at {tmp_path}/ema_cifar10.ckpt")
    assert second.startswith("cifar10-reference: statistics of CIFAR-10: not downloaded; the authors' own")
    assert last == "error: 2 of 3 could not be downloaded: ema-cifar10, cifar10-reference"

    assert fetch_missing(["ema-lsun-church", "ema-cifar10", "ema-cifar10"], tmp_path, True) == ["ema-cifar10"]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ema-cifar10: cannot download") and err.count("\n") == 1


def test_all_means_everything_that_can_be_downloaded(tmp_path, monkeypatch):
    asked = []

    def note(name: str, *_: object) -> str:
        asked.append(name)
        return name

    monkeypatch.setattr(fetch, "fetch", note)
    assert call(tmp_path, "all") == 0
    assert asked == [one.name for one in load_inputs().values() if one.kind != "by hand"]


def test_an_unknown_name_is_a_wrong_call(tmp_path, capsys):
    assert call(tmp_path, "sd15", "sd99") == 2
    assert capsys.readouterr().err.startswith("error: there is no input sd99; there are sd15, bk-sdm-base, ")


def test_captions_are_taken_out_of_their_archive(tmp_path, served, capsys):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("annotations/captions_val2017.json", "{}")
    served.serve("coco", buffer.getvalue())
    assert call(tmp_path / "a", "coco") == 0
    assert (tmp_path / "a/captions_val2017.json").read_text() == "{}" and len(names_in(tmp_path / "a")) == 1
    # An existing archive is used and kept; a damaged one is named.
    mine = tmp_path / "b" / "annotations_trainval2017.zip"
    mine.parent.mkdir()
    mine.write_bytes(buffer.getvalue())
    served.files.clear()
    assert call(tmp_path / "b", "coco") == 0
    assert names_in(tmp_path / "b") == {mine.name, "captions_val2017.json"}
    (tmp_path / "b/captions_val2017.json").unlink()
    mine.write_bytes(b"PK")
    capsys.readouterr()
    assert call(tmp_path / "b", "coco") == 1
    assert "annotations_trainval2017.zip is damaged or not the expected archive (its md5 is" in capsys.readouterr().err


def cifar10(path: Path, data: list[object]) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, batch in zip(BATCHES, data, strict=True):
            content = pickle.dumps({"data": batch}, protocol=2)
            (member := tarfile.TarInfo(name)).size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def test_cifar10_becomes_a_set_of_images(tmp_path, served):
    images = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(5, 3, 3072)
    served.serve("cifar10-train", cifar10(tmp_path / "all.tar.gz", list(rows)))
    assert call(tmp_path, "cifar10-train") == 0
    assert np.array_equal(np.load(tmp_path / "cifar10-train.npz")["arr_0"], images)
    cifar10(tmp_path / "bad.tar.gz", [os.getcwd] * 5)
    with pytest.raises(ValueError, match=r"it asks to run code, namely posix\.getcwd"):
        write_images(tmp_path / "bad.tar.gz", tmp_path / "x.npz")


# --- files under another name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model-790000.ckpt", "ema_diffusion_cifar10_model/model-790000.ckpt",
                                  "ema_cifar10 (1).ckpt", "model-790000 (2).ckpt"])  # fmt: skip
def test_another_usual_name_is_recognised(tmp_path, served, capsys, name):
    served.serve("ema-cifar10", CONTENT)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(CONTENT)
    assert call(tmp_path, "ema-cifar10") == 0
    assert f"linked {tmp_path / name} to {tmp_path}/ema_cifar10.ckpt" in capsys.readouterr().out
    assert (tmp_path / name).samefile(tmp_path / "ema_cifar10.ckpt") and not served.requests


def test_a_file_is_copied_where_it_cannot_be_linked(tmp_path, served, monkeypatch):
    served.serve("inception", CONTENT)

    def fail(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    (tmp_path / inception_path().name).write_bytes(CONTENT)
    assert call(tmp_path, "inception") == 0
    assert inception_path().read_bytes() == CONTENT and not served.requests


def test_weights_other_than_the_ema_ones_are_distinguished(tmp_path, served, capsys):
    served.serve("ema-cifar10", CONTENT)
    (tmp_path / "model-790000.ckpt").write_bytes(b"not averaged")
    assert call(tmp_path, "ema-cifar10") == 0
    said = capsys.readouterr().out
    assert "ema_cifar10.ckpt; " in said
    assert "model-790000.ckpt is not the EMA weights of DDPM on CIFAR-10: its md5 is " in said
    assert (tmp_path / "model-790000.ckpt").read_bytes() == b"not averaged"


def test_a_file_without_a_digest_is_recognised_by_its_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        load_inputs(), "cin256-v2",
        replace(inputs.find("cin256-v2"), source=Download("http://127.0.0.1:9/model.ckpt", size=1000)),
    )  # fmt: skip
    (tmp_path / "model.ckpt").write_bytes(bytes(999))
    assert call(tmp_path, "cin256-v2") == 1
    assert (
        "model.ckpt is not LDM-4-G of ImageNet 256 × 256: it has 999 bytes instead of 1,000" in capsys.readouterr().err
    )
    (tmp_path / "model.ckpt").write_bytes(bytes(1000))
    assert call(tmp_path, "cin256-v2") == 0
    assert state("cin256-v2", tmp_path) == Present(tmp_path / "cin256-v2.ckpt")
    (tmp_path / "cin256-v2.ckpt").unlink()
    (tmp_path / "cin256-v2.ckpt").write_bytes(bytes(10))
    found = state("cin256-v2", tmp_path)
    assert isinstance(found, Missing) and "has 10 bytes instead of 1,000; move it away, and python -m" in found.text
    assert call(tmp_path, "cin256-v2") == 1


@pytest.mark.parametrize(
    ("name", "file", "place"),
    [("adm-reference", "VIRTUAL_imagenet256_labeled (1).npz", "VIRTUAL_imagenet256_labeled.npz"),
     ("cifar10-reference", "npz/cifar10_fid.npz", "cifar10-reference.npz")],
)  # fmt: skip
def test_an_undecidable_candidate_must_be_renamed_by_hand(tmp_path, capsys, name, file, place):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    assert call(tmp_path, name) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / file} may be " in error and f"rename it to {tmp_path / place}, else move it away" in error
    assert not (tmp_path / place).exists()


# --- the hub --------------------------------------------------------------------------------------------------------


def fetch_from(hub: LocalHub, home: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """`eval.fetch` in a separate process, with caches under `home`; the hub's library reads its address once."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "eval.fetch", *names, "--inputs", str(home), "--quiet"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_pipeline_comes_from_the_hub_and_no_more_than_it_needs(tmp_path, monkeypatch):
    with LocalHub({"stable-diffusion-v1-5/stable-diffusion-v1-5": SHAPES_SD}) as hub:
        done = fetch_from(hub, tmp_path, "sd15", "bk-sdm-base")
        assert done.returncode == 1
        assert done.stdout.startswith("sd15: downloaded to ") and done.stdout.count("\n") == 1
        first, last = done.stderr.splitlines()
        assert first == "bk-sdm-base: the hub has no nota-ai/bk-sdm-base-2m, or requires huggingface-cli login for it"
        assert last == "error: 1 of 2 could not be downloaded: bk-sdm-base"
    monkeypatch.setattr(inputs.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = state("sd15", tmp_path)
    assert isinstance(found, Present)
    (snapshot,) = (found.path / "snapshots").iterdir()
    files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    assert set(files) == {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert all(path.read_bytes() == (SHAPES_SD / name).read_bytes() for name, path in files.items())
    pipe = load_pipeline(
        StableDiffusionPipeline, "stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float32, quiet=True,
        safety_checker=None, requires_safety_checker=False, cache_dir=tmp_path / "hub",
    )  # fmt: skip
    assert pipe.unet.config.in_channels == 4
    files["unet/diffusion_pytorch_model.safetensors"].unlink()
    assert isinstance(state("sd15", tmp_path), Missing)


def test_weights_of_the_other_format_and_a_hub_without_any(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/open_clip_pytorch_model.bin").write_bytes(CONTENT)
    (tmp_path / "clip/README.md").write_text("clip")
    (tmp_path / "empty").mkdir()
    repos = {"laion/CLIP-ViT-g-14-laion2B-s34B-b88K": tmp_path / "clip", "nota-ai/bk-sdm-tiny-2m": tmp_path / "empty"}
    with LocalHub(repos) as hub:
        done = fetch_from(hub, tmp_path / "home", "vit-g-14", "bk-sdm-tiny")
        assert "vit-g-14: downloaded to" in done.stdout
        assert "bk-sdm-tiny-2m has none of the weights that are needed" in done.stderr
        assert not hub.downloads("README.md")


def test_a_model_without_a_network(tmp_path, capsys):
    assert call(tmp_path, "sd15") == 1
    assert capsys.readouterr().err == (
        "error: sd15: cannot download https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5: "
        "HF_HUB_OFFLINE is set; unset it, or copy the hub's cache\n"
    )
