"""The page: what its fields ask for, what it shows, that a run stops, and that nothing leaves or can be taken."""

import asyncio
import base64
import importlib.util
import io
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import app
from benchmarks.points import text_runs
from tests.layout import ROOT
from unets.cache.config import CacheConfig
from webui import curve, handlers, options, private
from webui.engine import Engine
from webui.watch import Stopped

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIELDS = {"prompt": "a large red circle", "seed": 3, "steps": 6, "guidance_scale": 2.5, "cache_interval": 3}


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", options.PRESETS.values(), ids=options.PRESETS)
def test_fields_say_what_a_preset_is(cache):
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


def test_what_is_painted_over_is_redrawn_and_the_rest_stays(buttons):
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
def test_a_picture_that_cannot_be_used_is_one_line(buttons, editor, said):
    with pytest.raises(ValueError, match=said):
        buttons.image(editor, handlers.INPAINT_CHOICE, FIELDS, "a", silent)


def test_a_mask_outside_of_what_is_kept_is_refused(buttons):
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
        ({"forecast": 1}, "videos have the paper's cache alone"),
        ({"schedule": options.LISTED, "cache_steps": "0, 4"}, "in each of the three loops"),
    ],
)
def test_a_video_that_cannot_be_made_is_one_line(buttons, wrong, said):
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
def test_what_the_model_refuses_is_one_line(buttons, wrong, said):
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


def test_a_table_that_cannot_be_read_is_one_line(tmp_path):
    file = tmp_path / "text.csv"
    with pytest.raises(ValueError, match=r"python -m benchmarks\.pareto"):
        curve.read_measured(file)
    file.write_text("name,kind\nx,y\n")
    with pytest.raises(ValueError, match="no column psnr"):
        curve.read_measured(file)


def test_the_committed_table_has_points():
    assert [point for point in curve.read_measured() if point.run is not None]


# --- the page itself -------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere():
    document = (
        b'<head><link rel="preconnect" href="https://fonts.example"/><link rel="icon" href="./x.png">'
        b'<script src="https://cdn.example/x.js" async></script><script src="./own.js"></script></head>'
    )
    sent = []

    async def inner(scope, receive, send):
        length = (b"content-length", str(len(document)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": document[:50], "more_body": True})
        await send({"type": "http.response.body", "body": document[50:]})

    async def send(message):
        sent.append(message)

    asyncio.run(private.KeepToSelf(inner)({"type": "http", "path": "/"}, None, send))
    start, body = sent
    assert body["body"] == b'<head><link rel="icon" href="./x.png"><script src="./own.js"></script></head>'
    headers = dict(start["headers"])
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]


def test_without_gradio_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert app.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gradio is not installed" in line
    assert "make app" in line


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page is served, by the environment that `make app` makes beside this one."""
    python = Path(f"{sys.prefix}-app") / "bin" / "python"
    if not python.exists():
        pytest.skip("Gradio is not installed; make app does it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([python, "app.py", "--port", str(port)], cwd=ROOT, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + 180
        while "The page is at" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def status(url):
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_no_file_of_the_machine_is_served(address, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    up = "../" * 12
    for path in (
        "/etc/passwd",
        str(secret),
        str(ROOT / "README.md"),
        "README.md",
        f"{up}etc/passwd",
        "file:///etc/passwd",
    ):
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
            for written in (path, path.replace("/", "%2f"), path.replace("..", "%2e%2e"), path.replace("/", "%5c")):
                assert status(f"{address}{route}{written}") in (400, 403, 404), f"{route}{written}"
    assert status(f"{address}/gradio_api/proxy=https://example.org/x") != 200
    assert status(f"{address}/gradio_api/monitoring") != 200
    assert status(f"{address}/") == 200


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_it_makes_pictures_stops_and_keeps_to_itself(address):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        requested, errors = [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        run = page.locator("button:visible", has_text="Run both")
        steps = page.locator("input[aria-label=Steps]:visible")
        result = page.locator(".dc-result:visible")
        toast = page.locator(".toast-body")

        # 1. A value that is wrong is refused in one line.
        steps.fill("0")
        run.click()
        expect(toast).to_contain_text("--steps is 0; it must be a whole number from 1 to 10,000")
        toast.locator("button").click()

        # 2. A long run is stopped, and leaves the device to the next.
        steps.fill("900")
        run.click()
        expect(page.locator(".block.dc-shown:visible")).to_contain_text(re.compile(r"Baseline: step \d+ of 901"))
        page.locator("button:visible", has_text="Stop").click()
        expect(page.locator(".block.dc-shown:visible")).to_contain_text("Stopped.")

        # 3. A preset, and both pictures.
        page.get_by_label("Cache settings").first.click()
        page.get_by_role("option", name="safe (recommended)").click()
        expect(page.get_by_label("Refresh every").first).to_have_value("3")
        steps.fill("7")
        for _ in range(12):  # a click is ignored while the stopped run is still ending, or one is under way
            run.click()
            with suppress(AssertionError):
                expect(result).to_be_visible(timeout=10_000)
                break
        expect(result).to_be_visible()
        assert result.locator(".dc-strip .dc-cell").count() == 8

        # 4. The slider, as a finger or the keyboard would move it.
        slider = result.locator("input[type=range]")
        slider.focus()
        slider.press("Home")
        over = result.locator(".dc-over")
        assert "100%" in over.evaluate("element => getComputedStyle(element).clipPath")
        box = slider.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
        at = float(slider.input_value())
        assert 70 < at < 80
        assert f"{100 - at:g}%" in over.evaluate("element => getComputedStyle(element).clipPath")

        # 5. A point of the curve sets the fields.
        page.get_by_role("tab", name="What did it cost?").click()
        page.get_by_label("Point").click()
        page.get_by_role("option", name=re.compile("^plain N=5, m=0")).click()
        page.get_by_role("button", name="Try it").click()
        expect(page.get_by_label("Interval N").first).to_have_value("5")
        expect(steps).to_have_value("50")

        # 6. A phone.
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    outside = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert requested
    assert not outside
    assert not errors
