"""The page without a browser: what its fields ask for, what it shows, that a run stops, the measured curve."""

import base64
import io
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.points import text_runs
from unets.cache.config import CacheConfig
from webui import curve, handlers, options
from webui.engine import Engine
from webui.watch import Stopped

FIELDS = {"prompt": "a large red circle", "seed": 3, "steps": 6, "guidance_scale": 2.5, "cache_interval": 3}


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", options.PRESETS.values(), ids=options.PRESETS)
def test_fields_match_the_preset(cache):
    fields = options.fields_of(cache)
    assert options.read_options(fields).cache == cache
    assert options.PRESETS[options.preset_of(fields)] == cache
    assert options.preset_of({**fields, "cache_interval": 49}) == options.CUSTOM


def test_fields_say_every_measured_setting():
    for run in text_runs():
        assert options.can_be_shown(run.cache), run.name
    assert not options.can_be_shown(CacheConfig(2, forecast=[[0.5, 1.0]] * 4))  # of each channel


def test_the_command_is_that_of_the_script():
    fields = {**FIELDS, "prompt": "-a 'ring'", "steps": 50.0, "schedule": options.NON_UNIFORM, "center": 15, "pow": 1.4}
    command = options.read_options(fields, "python stable_diffusion.py").command
    assert command == (
        "python stable_diffusion.py '--prompt=-a '\"'\"'ring'\"'\"'' --seed=3 --steps=50 --guidance-scale=2.5 "
        "--non-uniform --cache-interval=3 --center=15 --pow=1.4"
    )
    lists = {"schedule": options.LISTED, "cache_steps": "0, 3", "refresh_steps": "2", "refresh_branch_id": 5}
    read = options.read_options({**FIELDS, **lists}, "python stable_diffusion.py")
    assert (read.cache.cache_steps, read.cache.refresh_steps, read.command) == ((0, 3), (2,), None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "--steps is 0; it must be a whole number from 1"),
        ({"steps": 2.5}, "--steps is 2.5"),
        ({"seed": -1}, "--seed is -1"),
        ({"guidance_scale": float("nan")}, "--guidance-scale is nan"),
        ({"cache_interval": 0}, "--cache-interval is 0"),
        ({"schedule": "x"}, "the schedule is 'x'"),
        ({"schedule": options.LISTED}, "the list of full steps is empty"),
        ({"schedule": options.LISTED, "cache_steps": "3"}, "must begin with 0"),
        ({"schedule": options.LISTED, "cache_steps": "0, a"}, "--cache-steps is"),
        ({"schedule": options.NON_UNIFORM, "center": 15, "pow": 1}, "--pow is 1.0"),
        ({"forecast": "1, x"}, "--forecast has a number that is"),
        ({"refresh_interval": 3}, "--refresh-interval and --refresh-branch-id belong together"),
        ({"skip_order": 9}, "--skip-order is 9"),
    ],
)
def test_a_wrong_field_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        options.read_options({**FIELDS, **wrong})
    assert "\n" not in str(error.value)
    assert "--help" not in str(error.value)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def buttons():
    return handlers.Handlers(Engine(None, torch.device("cpu"), torch.float32), None)


def silent(share, text):
    assert 0 <= share <= 1
    assert text


def kinds(page):
    """The kind of each step of the strip."""
    return re.findall(r'title="step \d+: (\w+)', page)


def test_both_pictures_and_every_step_are_shown(buttons):
    fields = {**FIELDS, "refresh_interval": 2, "refresh_branch_id": 4, "cache_interval": 4}
    page = buttons.text(fields, "a", silent)
    assert kinds(page) == ["full", "retrieve", "refresh", "retrieve", "full", "retrieve", "refresh"]  # PLMS has 7 calls
    assert "step 2: refresh at branch 4" in page
    after, before = (Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page))
    assert before.size == after.size == (64, 64)
    assert before.tobytes() != after.tobytes()
    assert page.count("×</strong>") == 2
    assert "one run of each, after a warm-up" in page
    assert " dB</strong>" in page
    assert "python stable_diffusion.py" in page


def test_without_a_cache_there_is_no_difference(buttons):
    page = buttons.text({**FIELDS, "cache_interval": 1}, "a", silent)
    assert set(kinds(page)) == {"full"}
    assert "no difference" in page


def test_skipped_steps_are_seen(buttons):
    page = buttons.text({**FIELDS, "scheduler": "ddim", "skip_interval": 3}, "a", silent)
    assert kinds(page) == ["full", "full", "skip", "full", "skip", "skip"]


def test_text_of_a_visitor_is_no_html(buttons):
    page = buttons.text({**FIELDS, "steps": 2, "prompt": "<img src=x onerror=alert(1)>"}, "a", silent)
    assert "<img src=x" not in page


def test_a_run_stops_at_its_next_step_and_the_next_one_runs(buttons):
    told = []

    def progress(share, text):
        told.append(text)
        if "step 2 of" in text:
            assert buttons.stop("a")
            assert not buttons.stop("b")

    with pytest.raises(Stopped):
        buttons.text({**FIELDS, "steps": 900}, "a", progress)
    assert told[-1].startswith("Baseline: step 2 of")
    assert not buttons.stop("a")
    assert kinds(buttons.text({**FIELDS, "steps": 3}, "a", silent))


def test_a_run_that_waits_for_the_device_can_be_stopped_and_asked_for_again(buttons):
    assert not buttons.stop("a")
    buttons.announce("a")
    buttons.announce("a")  # the button was pressed twice
    assert buttons.stop("a")
    with pytest.raises(Stopped):
        buttons.text({**FIELDS, "steps": 3}, "a", silent)
    buttons.announce("a")
    assert buttons.stop("a")
    buttons.announce("a")  # asked for again before its turn came
    assert kinds(buttons.text({**FIELDS, "steps": 3}, "a", silent))
    assert not buttons.stop("a")


def test_two_visitors_wait_for_each_other(buttons):
    pages = {}

    def make(name):
        pages[name] = buttons.text({**FIELDS, "steps": 3}, name, silent)

    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    a, b = (re.findall(r"base64,([^\"]+)", pages[name]) for name in "ab")
    assert a == b


def painted(box):
    layer = Image.new("RGBA", (128, 128))
    layer.paste((255, 0, 255, 255), box)
    return {"background": Image.new("RGBA", (128, 128), "green"), "layers": [layer], "composite": None}


def test_painted_areas_are_redrawn_and_the_rest_stays(buttons):
    fields = {**FIELDS, "strength": 1}
    page = buttons.image(painted((0, 0, 64, 128)), handlers.INPAINT_CHOICE, fields, "a", silent)
    made = Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0])))
    far = np.abs(np.asarray(made.convert("RGB"), dtype=int) - (0, 128, 0)).mean((0, 2))  # of each column
    assert far[:24].mean() > 2 * far[40:].mean()
    assert kinds(buttons.image(painted((0, 0, 1, 1)), handlers.IMAGE_CHOICE, fields, "a", silent))


@pytest.mark.parametrize(
    ("editor", "said"),
    [
        (None, "there is no picture"),
        ({"background": None, "layers": [], "composite": None}, "there is no picture"),
        (painted((0, 0, 0, 0)), "nothing is painted"),
        ({**painted((0, 0, 8, 8)), "background": Image.new("RGB", (8, 8)).convert("F")}, "save it"),
    ],
)
def test_an_unusable_picture_is_a_one_line_error(buttons, editor, said):
    with pytest.raises(ValueError, match=said):
        buttons.image(editor, handlers.INPAINT_CHOICE, FIELDS, "a", silent)


def test_a_mask_outside_the_crop_is_refused(buttons):
    wide = Image.new("RGBA", (400, 100), "green")
    layer = Image.new("RGBA", wide.size)
    layer.paste((255, 0, 255, 255), (0, 0, 20, 100))
    editor = {"background": wide, "layers": [layer], "composite": None}
    with pytest.raises(ValueError, match="in the square around the picture's centre"):
        buttons.image(editor, handlers.INPAINT_CHOICE, FIELDS, "a", silent)


def test_a_video_is_one_animation(buttons):
    fields = {**FIELDS, "frames": 3, "motion": 64, "fps": 4}
    page = buttons.video(fields, "a", silent)
    animation = Image.open(io.BytesIO(base64.b64decode(re.findall(r"webp;base64,([^\"]+)", page)[0])))
    assert getattr(animation, "n_frames", 1) == 3
    assert kinds(page) == ["full"] * 3 + ["retrieve"] * 2 + ["full"] + ["retrieve"] * 2  # loops of 1, 1 and 6 calls
    assert "in three loops" in page
    assert "python text2video_zero.py" in page


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 1}, "frames is 1; it must be a whole number from 2 to 64"),
        ({"frames": 1e9}, "frames is 1e\\+09"),
        ({"motion": float("inf")}, "motion is inf"),
        ({"fps": None}, "frames per second is ''"),
        ({"forecast": 1}, "videos support only the paper's cache"),
        ({"schedule": options.LISTED, "cache_steps": "0, 4"}, "to each of the three loops"),
    ],
)
def test_an_impossible_video_is_a_one_line_error(buttons, wrong, said):
    with pytest.raises(ValueError, match=said):
        buttons.video({**FIELDS, "frames": 2, "motion": 12, "fps": 4, **wrong}, "a", silent)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cache_branch_id": 12}, "cache_branch_id"),
        ({"steps": 1000}, "--steps is 1000"),
        ({"scheduler": "magic"}, "unknown scheduler 'magic'"),
        ({"scheduler": "euler-a", "skip_interval": 2}, "skip_interval and skip_steps need one of"),
    ],
)
def test_options_that_the_model_refuses_are_a_one_line_error(buttons, wrong, said):
    with pytest.raises(ValueError, match=said):
        buttons.text({**FIELDS, **wrong}, "a", silent)


# --- the curve -------------------------------------------------------------------------------------------------------

TABLE = (
    "new,psnr,name,kind,speed_up\n"
    ',,"PLMS, 50 steps",baseline,1\n'
    '7,36.3,"plain N=5, m=1",plain,2.4\n'
    "7,nan,broken,plain,2\n"
    "7,30.5,a method of somebody,a kind that is new,3.5\n"
)


def test_points_of_the_curve_set_the_fields(tmp_path):
    file = tmp_path / "text.csv"
    file.write_text(TABLE)
    plain, foreign = curve.read_measured(file)
    fields = handlers.point_fields(plain)
    assert options.read_options({**FIELDS, **fields}).cache == CacheConfig(5, 1)
    assert (fields["steps"], fields["scheduler"], fields["preset"]) == (50, "plms", options.PAPER)
    with pytest.raises(ValueError, match="choose a filled point"):
        handlers.point_fields(foreign)

    drawn = curve.draw([plain, foreign])
    for point, (x, y) in zip(drawn.points, drawn.pixels, strict=True):
        assert drawn.nearest(x + 3, y - 3) is point
        assert 0 < x < drawn.picture.width
        assert 0 < y < drawn.picture.height
    assert drawn.nearest(2, 2) is None
    assert drawn.picture.getpixel(tuple(map(round, drawn.pixels[0]))) != (255, 255, 255)
    assert curve.draw([]).nearest(2, 2) is None


def test_an_unreadable_table_is_a_one_line_error(tmp_path):
    file = tmp_path / "text.csv"
    with pytest.raises(ValueError, match=r"python -m benchmarks\.pareto"):
        curve.read_measured(file)
    file.write_text("name,kind\nx,y\n")
    with pytest.raises(ValueError, match="no column psnr"):
        curve.read_measured(file)


def test_the_committed_table_has_points():
    assert [point for point in curve.read_measured() if point.run is not None]
