"""The page as it is served: in a browser, with nothing from elsewhere, and no file of the machine through it."""

import asyncio
import importlib.util
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import app
from tests.browser import CHROMIUM
from tests.layout import ROOT
from webui import private


def test_the_page_loads_nothing_from_other_hosts():
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
            for written in {path, path.replace("/", "%2f"), path.replace("..", "%2e%2e"), path.replace("/", "%5c")}:
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
