"""FID and its relatives against scipy, numpy, pytorch-fid, closed forms and loops."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import pytorch_fid.inception
import torch
import torchvision
from torchvision.transforms.functional import to_tensor

from common.command_line import RunError
from common.digests import file_digest
from common.download import Download
from eval import fid, reference
from eval.metrics import published
from eval.metrics.distributions import RunningInceptionScore, frechet_distance, precision_recall
from eval.metrics.features import open_extractor
from eval.metrics.fid import load_reference, measure
from eval.metrics.inception import Features, InceptionFeatures, resize_tf1
from eval.metrics.kid import kid
from shapes.scenes import COLOURS, SHAPES, random_scene, render
from tests.statistics_of import gaussian, normal


def test_tf1_resize_by_hand():
    """Sizes 2 → 4: sources 0, ½, 1, 1½, the last held at the edge; 4 → 2: every other pixel."""
    image = torch.tensor([[[[0.0, 10.0], [20.0, 40.0]]]])
    expected = [[0, 5, 10, 10], [10, 17.5, 25, 25], [20, 30, 40, 40], [20, 30, 40, 40]]
    assert resize_tf1(image, 4).tolist() == [[expected]]
    wide = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_tf1(wide, 2).tolist() == [[[[0, 2], [8, 10]]]]
    assert torch.equal(resize_tf1(wide, 4), wide)
    three = resize_tf1(torch.tensor([0.0, 4.0]).expand(1, 1, 2, 2), 3)  # sources 0, 2/3, 4/3
    torch.testing.assert_close(three, torch.tensor([0, 8 / 3, 4]).expand(1, 1, 3, 3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the Inception network in a file, which keep the size of the activations."""
    with (
        mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torchvision.models.Inception3, "load_state_dict"),
    ):
        network = pytorch_fid.inception.fid_inception_v3()
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def oracle(weights):
    """pytorch-fid's own network with these weights, and its class layer."""
    state = torch.load(weights, weights_only=True)
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state):
        return pytorch_fid.inception.InceptionV3([2, 3]).eval(), state["fc.weight"]


def run_oracle(oracle, x):
    network, classes = oracle
    spatial = []
    hook = network.blocks[2][6].branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    pooled = network(x)[1][:, :, 0, 0]
    hook.remove()
    flat = spatial[0].numpy()[:, :7].transpose(0, 2, 3, 1).reshape(len(x), -1)
    return Features(pooled.numpy(), flat, torch.softmax((pooled @ classes.T).double(), 1).numpy())


def test_features_are_pytorch_fids_bit_for_bit(weights, oracle, capsys):
    extract = InceptionFeatures("pytorch-fid", weights, quiet=True)
    assert "is not the published" in capsys.readouterr().err
    assert extract.weights == file_digest(weights)
    expected = run_oracle(oracle, torch.stack([to_tensor(image) for image in IMAGES]))
    for own, theirs, size in zip(extract(IMAGES), expected, (2048, 2023, 1008), strict=True):
        assert own.shape == (3, size)
        assert np.array_equal(own, theirs)
        assert np.ptp(own, axis=0).max() > 0

    # The other preparation: the same network behind TensorFlow's.
    extract.variant = "adm"
    network, _ = oracle
    network.resize_input = network.normalize_input = False
    prepared = (resize_tf1(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous().float(), 299) - 128) / 128
    for own, theirs in zip(extract(IMAGES), run_oracle(oracle, prepared), strict=True):
        assert np.array_equal(own, theirs)
    network.resize_input = network.normalize_input = True


def test_unavailable_weights(tmp_path, monkeypatch, weights):
    with pytest.raises(ValueError, match="there is no file of weights"):
        InceptionFeatures("adm", tmp_path / "nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights"):
            InceptionFeatures("adm", tmp_path / name)
    with pytest.raises(ValueError, match="unknown variant 'tf'"):
        open_extractor("tf")
    with pytest.raises(ValueError, match="leave --weights out"):
        open_extractor("shapes", weights)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("common.download.WAIT", 0)
    monkeypatch.setattr(published, "INCEPTION", Download("http://127.0.0.1:9/nothing-listens-here.pth"))
    with pytest.raises(RunError, match=r"cannot download http.*or pass --weights FILE"):
        InceptionFeatures("adm", quiet=True)
    cached = published.inception_path()
    assert cached.is_relative_to(tmp_path)
    assert [path.suffix for path in cached.parent.iterdir()] == [".lock"]  # nothing half-written
    cached.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"is damaged \(its SHA-256 is .*delete it"):
        InceptionFeatures("adm", quiet=True)


@pytest.fixture(scope="module")
def shapes():
    return open_extractor("shapes")


@pytest.fixture(scope="module")
def drawn():
    """90 pictures of one thing each, and which of the 40 pairs of colour and shape it is."""
    rng = np.random.default_rng(7)
    scenes = [random_scene(rng, held_out=True, things=1) for _ in range(90)]
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    labels = [pairs.index((scene.things[0].colour, scene.things[0].shape)) for scene in scenes]
    return np.stack([render(scene, rng)[0] for scene in scenes]), np.array(labels)


def test_shapes_are_distinguished(shapes, drawn):
    images, labels = drawn
    features = shapes(images)
    assert [part.shape for part in features] == [(90, 128), (90, 112), (90, 40)]
    np.testing.assert_allclose(features.probabilities.sum(1), 1, rtol=1e-12)
    assert (features.probabilities.argmax(1) == labels).mean() > 0.9


# --- the whole ----------------------------------------------------------------------------------------------------


def test_result_is_that_of_the_parts(shapes, drawn, capsys):
    images, base = drawn[0][:40], drawn[0][40:]
    result = fid.compute(images, base, variant="shapes", extractor=shapes, batch_size=40, quiet=True)
    a, b = shapes(images), shapes(np.concatenate([base]))
    score = RunningInceptionScore()
    score.update(a.probabilities)
    precision, recall = precision_recall(a.pooled, b.pooled)
    expected = {
        "fid": frechet_distance(gaussian(a.pooled), gaussian(b.pooled)),
        "sfid": frechet_distance(gaussian(a.spatial), gaussian(b.spatial)),
        "is": score.value(),
        "precision": precision,
        "recall": recall,
    }
    # The network rounds differently with the batch size, and covariances of so few images are singular.
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (result["variant"], result["num_samples"], result["num_reference"]) == ("shapes", 40, 50)
    assert result["kid"] == pytest.approx(kid(a.pooled, b.pooled).value, rel=1e-4)
    assert result["unreliable"] == {
        name: f"40 images of the samples and 50 images of the reference for {size} features: singular covariance"
        for name, size in (("fid", 128), ("sfid", 112))
    }
    assert result["warnings"] == [f"{name}: {reason}" for name, reason in result["unreliable"].items()]
    assert result["unavailable"] == {}
    assert capsys.readouterr().err == ""


def test_intervals_of_the_whole(shapes, drawn):
    """Standard errors of shares in closed form, of the others by the replicates; pairing by the number of images."""

    def compute(images, **arguments):
        return fid.compute(images, drawn[0][40:], variant="shapes", extractor=shapes, quiet=True, **arguments)

    one, other = compute(drawn[0][:40], num_replicates=400), compute(drawn[0][:40], num_replicates=3)
    for name, number in (("precision", 40), ("recall", 50)):
        share = one[name]
        assert one["standard_errors"][name] == pytest.approx((share * (1 - share) / (number - 1)) ** 0.5)
    for name in ("fid", "sfid", "is", "precision", "recall", "kid"):
        assert np.mean(one["replicates"][name]) == pytest.approx(one[name], abs=0.2 * one["standard_errors"][name])
        assert np.std(one["replicates"][name]) == pytest.approx(one["standard_errors"][name], rel=0.15)
        assert other["replicates"][name] == one["replicates"][name][:3]
    bare = compute(drawn[0][:40], num_replicates=0, distances="float16")
    assert set(bare["standard_errors"].values()) == {None}
    assert bare["replicates"] == {}
    assert {name: bare[name] for name in ("fid", "sfid", "is", "kid")} == {
        name: one[name] for name in ("fid", "sfid", "is", "kid")
    }
    assert (one["distances"], bare["distances"]) == ("float64", "float16")

    few = compute(drawn[0][:3])
    assert (few["precision"], few["recall"]) == (None, None)
    assert few["standard_errors"]["recall"] is None
    assert few["unreliable"]["recall"] == "3 images; more than 3 are needed"
    assert few["unreliable"]["is"] == "a split of 3 images for 40 classes"
    with pytest.raises(ValueError, match="num_replicates is -1; it must be 0 or more"):
        compute(drawn[0][:3], num_replicates=-1)
    with pytest.raises(ValueError, match="unknown distances 'float32'"):
        compute(drawn[0][:3], distances="float32")


def test_images_are_at_distance_zero_from_themselves(shapes, drawn):
    result = fid.compute(drawn[0], drawn[0], variant="shapes", extractor=shapes, quiet=True)
    scale = np.trace(gaussian(shapes(drawn[0]).pooled).covariance)
    assert abs(result["fid"]) < 1e-10 * scale
    assert (result["precision"], result["recall"]) == (1, 1)


def test_scripts_with_a_stored_reference(tmp_path, drawn, shapes, capsys, monkeypatch):
    monkeypatch.setattr(fid, "open_extractor", lambda *args: shapes)
    np.savez(tmp_path / "a.npz", drawn[0][:50])
    np.savez_compressed(tmp_path / "b.npz", drawn[0][50:])
    common = ["--variant", "shapes", "--device", "cpu", "--batch-size", "16", "--quiet"]
    made = tmp_path / "made.npz"
    assert reference.main([str(tmp_path / "b.npz"), "--out", str(made), *common]) == 0
    results = []
    for base in (tmp_path / "b.npz", made):
        argv = [str(tmp_path / "a.npz"), str(base), "--limit", "30", "--out", str(tmp_path / "result.json"), *common]
        assert fid.main(argv) == 0
        results.append(json.loads((tmp_path / "result.json").read_text()))
        assert results[-1].pop("reference") == str(base)
    assert results[0] == results[1]
    assert results[0]["num_samples"] == 30
    captured = capsys.readouterr()
    assert "made.npz: statistics of 40 images, variant shapes" in captured.out
    assert f"precision {results[0]['precision']:.4f}" in captured.out
    assert captured.err.count("warning: ") == 6  # of fid, sfid and is
    errors = results[0]["standard_errors"]
    assert f"recall    {results[0]['recall']:.4f} ± {1.96 * errors['recall']:.4f} (95 %)" in captured.out
    assert f"kid × 1e3 {1000 * results[0]['kid']:.4f} ± {1960 * errors['kid']:.4f} (95 %)" in captured.out
    assert fid.main([str(tmp_path / "a.npz"), str(made), *common, "--replicates", "0", "--distances", "float16"]) == 0
    assert "±" not in capsys.readouterr().out

    # Other sources of statistics: just mean and covariance, those with images, and refused ones.
    with np.load(made) as file:
        stored = dict(file)

    def run(**changed):
        np.savez(made, **{name: value for name, value in (stored | changed).items() if value is not None})
        return fid.compute(drawn[0][:30], made, variant="shapes", extractor=shapes, batch_size=16, quiet=True)

    bare = run(mu_s=None, sigma_s=None, features=None)
    assert (bare["sfid"], bare["precision"], bare["recall"], bare["kid"]) == (None, None, None, None)
    assert bare["unavailable"].keys() == {"sfid", "precision", "recall", "kid"}
    assert fid.main([str(tmp_path / "a.npz"), str(made), *common]) == 0
    assert "kid × 1e3 not available: the reference has neither features nor images" in capsys.readouterr().out
    assert bare["fid"] == results[0]["fid"]
    assert run(features=None, arr_0=drawn[0][50:])["recall"] == results[0]["recall"]
    wrong: dict[str, dict] = {
        "of the variant adm, not of shapes; pass --variant adm": {"variant": np.array("adm")},
        "of the variant adm or pytorch-fid, not": {"variant": None, "mu_s": None, "sigma_s": None},
        "made with other weights": {"weights": np.array("0" * 64)},
        "not of 128 features": {"mu": np.zeros(2048)},
        "not of 112 features": {"sigma_s": None},
        "not finite": {"mu": stored["mu"] * np.nan},
    }
    for message, changed in wrong.items():
        with pytest.raises(ValueError, match=message):
            run(**changed)
    made.write_bytes(made.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot read"):
        fid.compute(drawn[0], made, variant="shapes", extractor=shapes, quiet=True)


def test_openais_reference_is_of_variant_adm(tmp_path):
    """By its spatial statistics; pytorch-fid's has none, and either preparation may use it."""
    pooled, spatial = (gaussian(normal(k, 9, size)) for k, size in enumerate((5, 3)))
    both = {"mu": pooled.mean, "sigma": pooled.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "both.npz", **both)
    np.savez(tmp_path / "bare.npz", mu=pooled.mean, sigma=pooled.covariance)
    named = {name: SimpleNamespace(variant=name, weights="", sizes=(5, 3)) for name in ("adm", "pytorch-fid")}
    for name, file in (("adm", "both"), ("adm", "bare"), ("pytorch-fid", "bare")):
        loaded = load_reference(tmp_path / f"{file}.npz", named[name], quiet=True)
        assert np.array_equal(loaded.pooled.covariance, pooled.covariance)
        assert (loaded.spatial is None) == (file == "bare")
    with pytest.raises(ValueError, match="of the variant adm, not of pytorch-fid"):
        load_reference(tmp_path / "both.npz", named["pytorch-fid"], quiet=True)


def test_wrong_calls(tmp_path, shapes, drawn, capsys):
    images = drawn[0][:8]
    with pytest.raises(ValueError, match="has 1 image; a covariance needs at least 2"):
        fid.compute(images[:1], images, variant="shapes", extractor=shapes, quiet=True)
    with pytest.raises(ValueError, match="of the variant shapes, not adm"):
        fid.compute(images, images, extractor=shapes, quiet=True)

    class Broken:
        variant, weights, sizes = "shapes", "", (128, 112)

        def __call__(self, batch):
            features = shapes(batch)
            features.pooled[batch.sum((1, 2, 3)) == images[5].sum(dtype=np.int64)] = np.nan
            return features

    with pytest.raises(ValueError, match="features of image 5 of the array are not finite"):
        measure(images, Broken(), batch_size=3, quiet=True)

    np.savez(tmp_path / "a.npz", images)
    a = str(tmp_path / "a.npz")
    assert fid.main([a, str(tmp_path / "nowhere"), "--variant", "shapes"]) == 2
    assert fid.main([a, a, "--variant", "shapes", "--batch-size", "0"]) == 2
    assert fid.main([a, a, "--variant", "shapes", "--replicates", "-1"]) == 2
    assert reference.main([a, "--variant", "shapes", "--device", "cpu", "--out", str(tmp_path / "a.txt")]) == 2
    assert reference.main([a, "--variant", "shapes", "--device", "cpu", "--size", "0", "--out", a]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 5
    assert "there is no" in lines[0]
    assert "--batch-size is 0" in lines[1]
    assert "must end in .npz" in lines[3]
    assert "--size is 0" in lines[4]


def test_a_batch_more_or_less_is_no_matter(tmp_path, shapes, drawn):
    """The saved features are those of the first images, whatever the batches."""
    all_of_them = shapes(drawn[0]).pooled
    for batch_size in (7, 32):
        made = measure(drawn[0], shapes, batch_size=batch_size, keep=20, quiet=True)
        assert made.features is not None
        np.testing.assert_allclose(made.features, all_of_them[:20], rtol=1e-3, atol=1e-3)  # float32 of about 6
        assert made.count == 90
    assert measure(drawn[0], shapes, keep=0, limit=20, quiet=True).features is None
