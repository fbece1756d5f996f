"""The scripts for SDXL, the videos and the plug-in as a user runs them: what they write, and how they fail."""

import json

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

import main
import stable_diffusion_xl
import stable_video_diffusion
import text2video_zero
from pipelines import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, tiny
from unets.helper import DeepCacheSDHelper

FEW = ["--repeats", "1", "--warm-up", "0", "--quiet", "--device", "cpu"]
XL = (stable_diffusion_xl, ["--tiny", "--steps", "10"])
SVD = (stable_video_diffusion, ["--tiny", "--steps", "3", "--num-frames", "3"])
T2V = (text2video_zero, ["--steps", "8", "--t0", "2", "--t1", "4", "--video-length", "3"])


def run(script, tmp_path, *options):
    """The exit status, the folder and what is written in it."""
    module, usual = script
    out = tmp_path / "out"
    status = module.main([*usual, *FEW, "--out", str(out), *options])
    result = json.loads((out / "result.json").read_text()) if status == 0 else {}
    return status, out, result


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 72, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.png"
    white = Image.new("L", (72, 64))
    white.paste(255, (16, 16, 48, 48))
    white.save(path)
    return str(path)


def test_sdxl_reports_each_stage(tmp_path, capsys):
    texts = ["--prompt", "a ring", "--prompt", "a cross", "--negative-prompt", "a circle"]
    status, _, result = run(XL, tmp_path, "--refine", "--num-images", "2", *texts, "--cache-interval", "3")
    assert status == 0
    counts = {
        stage: (its["seconds"]["deepcache"]["full_steps"], its["seconds"]["deepcache"]["retrieve_steps"])
        for stage, its in result["stages"].items()
    }
    assert counts == {"base": (3, 5), "refiner": (1, 1)}
    assert len(result["distance"]["psnr"]) == 4
    assert {"base", "refiner"} <= set(capsys.readouterr().out.split())
    assert "vae" not in result["stages"]["base"]["seconds"]["baseline"]  # latents go from one to the other


@pytest.mark.slow
def test_sdxl_refines_each_picture_with_its_own_prompt(tmp_path):
    """Pictures of several prompts are those that are made one by one."""
    few = ["--refine", "--steps", "5"]
    _, out, _ = run(XL, tmp_path, *few, "--num-images", "2", "--prompt", "a ring", "--prompt", "a large cross")
    together = [np.asarray(Image.open(out / f"baseline_{k:03d}.png"), float) for k in range(4)]
    for k, prompt in ((1, "a ring"), (2, "a large cross")):
        _, alone, _ = run(XL, tmp_path / str(k), *few, "--prompt", prompt, "--seed", str(42 + k))
        # Sums over another batch are rounded otherwise; a wrong prompt or noise moves pixels by tens.
        assert np.abs(np.asarray(Image.open(alone / "baseline_000.png"), float) - together[k]).max() <= 2


@pytest.mark.parametrize("kind", ["text", "image", "mask"])
def test_sdxl_makes_all_kinds_of_pictures(tmp_path, kind, picture, mask):
    options = {"text": ["--width", "48"], "image": ["--image", picture, "--strength", "0.5"]}
    options["mask"] = ["--image", picture, "--mask", mask]
    status, out, result = run(XL, tmp_path, *options[kind], "--scheduler", "ddim")
    assert status == 0
    assert Image.open(out / "deepcache_000.png").size == ((48, 64) if kind == "text" else (72, 64))
    assert result["resolved"]["scheduler"] == "DDIMScheduler"
    steps = result["stages"]["base"]["seconds"]["deepcache"]
    assert steps["full_steps"] + steps["retrieve_steps"] == (5 if kind == "image" else 10)


@pytest.mark.parametrize("script", [SVD, T2V], ids=["svd", "t2v"])
def test_videos_are_written_side_by_side(tmp_path, script, capsys):
    status, out, result = run(script, tmp_path, "--fps", "5")
    assert status == 0
    assert ("noise" in capsys.readouterr().out) == (script is SVD)  # whose weights are random
    assert result["resolved"]["model"] == ("random weights" if script is SVD else "shapes-sd, the shipped model")
    assert len(list(out.glob("baseline_*.png"))) == 3
    sides: tuple[int, int] = (2 * 192 + 12, 192 + 8)  # small frames are shown larger, with gaps around them
    video = imageio.imread(out / "output.mp4")
    assert video.shape == (3, *sides[::-1], 3)
    assert imageio.immeta(out / "output.mp4")["fps"] == 5
    assert imageio.imread(out / "output.gif", index=None).shape == (3, *sides[::-1], 3)
    # Left the baseline, right DeepCache: what the codec loses is far less than what frames differ from another's place.
    for k, name in enumerate(("baseline", "deepcache")):
        frame = Image.open(out / f"{name}_000.png").resize((192, 192), Image.Resampling.NEAREST)
        shown = video[0, 4:196, 4 + k * 196 : 196 + k * 196].astype(float)
        assert np.abs(shown - np.asarray(frame, float)).mean() < 16
    assert result["resolved"]["dtype"] == "torch.float32"


def test_a_video_model_runs_in_bfloat16_and_channels_last(tmp_path):
    status, _, result = run(SVD, tmp_path, "--dtype", "bfloat16", "--channels-last", "--decode-chunk-size", "1")
    assert status == 0
    assert result["resolved"]["dtype"] == "torch.bfloat16"


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_text_to_video_zero_has_moments_for_few_steps(tmp_path, steps):
    assert run((text2video_zero, ["--video-length", "2"]), tmp_path, "--steps", str(steps))[0] == 0


@pytest.mark.slow
def test_interval_1_gives_equal_videos(tmp_path, capsys):
    for k, script in enumerate((SVD, T2V)):
        status, _, result = run(script, tmp_path / str(k), "--cache-interval", "1")
        assert status == 0
        assert result["distance"]["median_psnr"] is None


@pytest.mark.parametrize("kind", main.KINDS)
def test_the_script_over_all_runs_every_type_on_small_models(tmp_path, kind):
    few = ["--steps", "4"] if kind == "svd" else []  # not the default 10: the steps of a video are the slowest
    status, out, result = run((main, ["--model_type", kind, "--tiny"]), tmp_path, "--cache_interval", "2", *few)
    assert status == 0
    assert (out / "output.png").is_file()
    assert (out / "output.mp4").is_file() == (kind in main.VIDEOS)
    for stage in result["stages"].values():
        assert stage["seconds"]["baseline"]["retrieve_steps"] == 0
        assert stage["seconds"]["deepcache"]["retrieve_steps"] > 0
    assert result["distance"]["equal_images"] < len(result["distance"]["psnr"])
    if kind == "controlnet":
        assert "controlnet" in result["stages"]["pipeline"]["seconds"]["baseline"]


def test_the_script_over_all_makes_the_pictures_of_the_forks(tmp_path):
    """The plug-in and the forked pipelines, through both scripts."""
    shared = ["--prompt", "a large red ring", "--cache-interval", "3", "--cache-branch-id", "2", "--steps", "7"]
    _, forks, _ = run(XL, tmp_path / "forks", *shared)
    _, plugin, _ = run((main, ["--model_type", "sdxl", "--tiny"]), tmp_path / "plugin", *shared)
    for name in ("baseline", "deepcache"):
        assert (forks / f"{name}_000.png").read_bytes() == (plugin / f"{name}_000.png").read_bytes()


@pytest.mark.parametrize("script", [XL, SVD, T2V], ids=["xl", "svd", "t2v"])
def test_a_model_that_is_not_there_ends_in_2(tmp_path, capsys, script):
    module, usual = script
    usual = [option for option in usual if option != "--tiny"]
    for model, said in ((str(tmp_path / "nowhere"), "no directory"), ("nobody/nothing", "hub")):
        status, out, _ = run((module, usual), tmp_path, "--model", model)
        assert status == 2
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_a_video_is_not_a_still_image(tmp_path, capsys):
    gif, mp4 = tmp_path / "moving.gif", tmp_path / "moving.mp4"
    Image.new("RGB", (8, 8)).save(gif, save_all=True, append_images=[Image.new("RGB", (8, 8), "white")])
    imageio.imwrite(mp4, np.zeros((3, 32, 32, 3), np.uint8), fps=5, codec="libx264", macro_block_size=2)
    for path in (gif, mp4):
        status, other, _ = run(SVD, tmp_path / "other", "--image", str(path))
        assert status == 2
        assert "give a still image" in capsys.readouterr().err
        assert not other.exists()


WRONG = [
    (SVD, ["--num-frames", "0"], "--num-frames is 0"),
    (SVD, ["--fps", "0"], "--fps"),
    (SVD, ["--decode-chunk-size", "0"], "--decode-chunk-size"),
    (SVD, ["--width", "60"], "--width is 60"),
    (SVD, ["--cache-branch-id", "12"], "cache_branch_id is 12"),
    (SVD, ["--cache-steps", "0,9"], "cache_steps"),
    (T2V, ["--video-length", "0"], "--video-length is 0"),
    (T2V, ["--t0", "4"], "--t0"),
    (T2V, ["--t1", "8"], "--t1"),
    (T2V, ["--steps", "1000"], "below the 1000 steps"),
    (T2V, ["--cache-steps", "0,3"], "three loops"),
    (T2V, ["--scheduler", "euler"], "EulerDiscreteScheduler does not fit"),
    ((text2video_zero, ["--steps", "1"]), [], "--steps is 1"),
    (XL, ["--cache-interval", "0"], "--cache-interval is 0"),
    (XL, ["--mask", "mask.png"], "need --image"),
    (XL, ["--refine", "--image", "x.png"], "--refine"),
    (XL, ["--refine", "--steps", "1"], "too few steps to split between base and refiner"),
    (XL, ["--pow", "2"], "--pow"),
    ((main, ["--model_type", "sd1.5", "--tiny"]), ["--cache_branch_id", "12"], "cache_branch_id is 12"),
    ((main, ["--model_type", "sd1.5", "--tiny"]), ["--cache_interval", "0"], "--cache-interval is 0"),
    ((main, ["--model_type", "t2v-zero", "--tiny"]), ["--cache-steps", "0,1"], "cache_steps"),
    ((main, ["--model_type", "svd", "--tiny"]), ["--dtype", "bfloat16"], "bfloat16"),
    ((main, ["--model_type", "svd", "--tiny"]), ["--image", "nowhere.png"], "no image"),
    ((main, ["--model_type", "controlnet"]), ["--controlnet-model", "nobody/nothing"], "--controlnet-model"),
]


@pytest.mark.parametrize(
    ("script", "options", "said"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_a_wrong_call_ends_in_2_with_one_line_and_nothing_written(tmp_path, capsys, script, options, said):
    status, out, _ = run(script, tmp_path, *options)
    error = capsys.readouterr().err
    assert status == 2
    assert said in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("error: ")
    assert not out.exists()


@pytest.mark.slow
def test_a_refiner_must_be_one(tmp_path, capsys):
    StableDiffusionXLPipeline(**tiny.xl_parts()).save_pretrained(tmp_path / "base")
    StableDiffusionXLImg2ImgPipeline(**tiny.xl_refiner_parts()).save_pretrained(tmp_path / "refiner")
    xl = (stable_diffusion_xl, ["--model", str(tmp_path / "base"), "--refine", "--steps", "5"])
    status, out, _ = run(xl, tmp_path, "--refine-model", str(tmp_path / "base"))
    assert status == 2
    assert "is not a refiner" in capsys.readouterr().err
    assert not out.exists()
    status, out, _ = run(xl, tmp_path, "--refine-model", str(tmp_path / "refiner"))
    assert status == 0


def test_an_unknown_type_is_answered_with_those_there_are(capsys):
    assert main.main(["--model_type", "sd9"]) == 2
    assert "sdxl-refine" in capsys.readouterr().err


def test_the_defaults_of_the_script_over_all_are_the_originals():
    args = main.parser().parse_args(["--model_type", "sd1.5"])
    assert (args.cache_interval, args.cache_branch_id) == (3, 0)
    assert (DeepCacheSDHelper.set_params.__defaults__ or ())[:3] == (1, 0, "uniform")
