"""The page: its blocks, that nothing in it can run, and how it looks to a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comparison.saving import save_comparison
from eval.report import Heading, Table, Text, inline, main, markdown_blocks, page, sections

HOSTILE = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Elements(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    wide = " | ".join(f"column number {k}" for k in range(12))
    rule = "|---" * 12 + "|"
    (folder / "table10.md").write_text(f"# Ten {HOSTILE}\n\nWords *of* `code`.\n\n| {wide} |\n{rule}\n| {wide} |\n")
    (folder / "table2.md").write_text("# Two\n\n| a | b |\n|---|--:|\n| x\\|y | 1.5 |\n\n- one\n- two\n")
    (folder / "table2.csv").write_text(f'a,b\n"{HOSTILE.replace(chr(34), chr(39))}",2\n')
    (folder / "alone.csv").write_text("n,fid\n1,2.5\n")
    Image.new("RGB", (900, 300), "red").save(folder / "table2.png")
    (folder / "deep").mkdir()
    Image.new("RGB", (40, 30), "blue").save(folder / "deep" / "figure<4>.png")
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "white", "black", "gray")]
    result = {
        "arguments": {"steps": 50, "model": None},
        "cache": {"cache_interval": 5, "cache_branch_id": 1},
        "resolved": {"prompt": [HOSTILE, "a ring", "a cross"], "scheduler": "DDIMScheduler"},
        "speed_up": {"median": 2.345, "min": 2, "max": 3},
        "stages": {"pipeline": {"speed_up": {"median": 2.5}, "operations": {"bound": 1.9}}},
    }
    save_comparison(folder / "run", {"baseline": pictures, "deepcache": pictures}, result)
    return folder


def test_markdown_becomes_blocks():
    text = "# Title #\nwords\nmore\n\n|a|b|\n|:--|--:|\n|1|x \\| y|\n| 2 | |\nafter\n- i\n* j\n"
    text += "```\n| no | table |\n```\n## Sub"
    assert markdown_blocks(text) == [
        Heading("Title", 1),
        Text("p", ["words more"]),
        Table(["a", "b"], [["1", "x | y"], ["2", ""]]),
        Text("p", ["after"]),
        Text("li", ["i", "j"]),
        Text("pre", ["| no | table |"]),
        Heading("Sub", 2),
    ]


def test_inline_marks():
    assert inline("**b** *i* `a*b*c` 2*3*4 a_b_c") == ("<strong>b</strong> <em>i</em> <code>a*b*c</code> 2*3*4 a_b_c")
    assert inline("[x](https://a.org/?q=1&r=2)") == '<a href="https://a.org/?q=1&amp;r=2">x</a>'
    assert "href" not in inline("[x](javascript:alert(1))")


@given(st.text(alphabet="<>&\"'`*[]()|#-: \nahttps/=", max_size=60))
def test_no_text_becomes_an_element_that_can_run(text):
    allowed = {"strong", "em", "code", "a"}
    for tag, attributes in Elements(inline(text)).tags:
        assert tag in allowed
        assert set(attributes) <= {"href"}
        assert attributes.get("href", "http").startswith("http")
    markdown_blocks(text)  # and nothing makes it fail


@given(st.text(max_size=40))
def test_words_without_marks_come_through_unchanged(text):
    plain = re.sub(r"[*`\[]", "", text)
    assert html.unescape(inline(plain)) == plain


def test_the_page_has_everything_in_itself_and_in_order(results):
    found = sections(results)
    names = [name for name, _ in found]
    assert names == ["alone", "deep/figure<4>", "run", "Two", f"Ten {HOSTILE}"]
    text = page(found, HOSTILE)
    elements = Elements(text)
    for image in elements.of("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert image["alt"]
    assert len(elements.of("script")) == 1  # its own
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert not elements.of("iframe")
    assert [tag for tag in elements.of("link")] == [{"rel": "icon", "href": "data:,"}]
    assert "width=device-width" in elements.of("meta")[1]["content"]
    assert len(elements.of("h1")) == 1
    assert len(elements.of("section")) == len(names)
    assert [link["href"] for link in elements.of("a")[: len(names)]] == [f"#s{k}" for k in range(len(names))]
    (saved,) = [a for a in elements.of("a") if a.get("download") == "table2.csv"]
    assert base64.b64decode(saved["href"].split(",")[1]) == (results / "table2.csv").read_bytes()


def test_a_run_is_shown_with_its_figures_and_both_pictures_of_each_pair(results):
    content = dict(sections(results))["run"]
    elements = Elements(content)
    alts = [image["alt"] for image in elements.of("img")]
    prompts = [HOSTILE] * 2 + ["a ring"] * 2 + ["a cross"] * 2  # two pictures of each prompt
    assert alts == [f"{side}: {prompt}" for prompt in prompts for side in ("Baseline", "DeepCache")]
    sliders = elements.of("input")
    assert len(sliders) == 6
    assert all(slider["type"] == "range" and slider["aria-label"] for slider in sliders)
    assert len(elements.of("details")) == 1
    for cell in ("DDIMScheduler", "5", "1", "2.35×", "2.50×", "1.90×"):
        assert f">{cell}</td>" in content
    assert "cache interval N" in content and "full steps" not in content
    first = (results / "run" / "deepcache_000.png").read_bytes()
    assert base64.b64decode(elements.of("img")[1]["src"].split(",")[1]) == first


def test_a_run_with_a_schedule_of_its_own_names_its_full_steps(results):
    file = results / "run" / "result.json"
    result = json.loads(file.read_text())
    result["cache"] |= {"cache_steps": [0, 7, 20]}
    file.write_text(json.dumps(result))
    content = dict(sections(results))["run"]
    assert ">0, 7, 20</td>" in content
    assert "cache interval N" not in content


def test_a_result_that_says_nothing_is_shown_all_the_same(results):
    (results / "run" / "result.json").write_text('{"speed_up": 3, "resolved": [], "arguments": {"prompt": "a ring"}}')
    content = dict(sections(results))["run"]
    assert len(Elements(content).of("img")) == 12


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run/result.json", b"{", "is not JSON"),
        ("run/result.json", b"[]", "is not an object"),
        ("table2.md", b"\xff\xfe", "UTF-8"),
        ("table2.csv", b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(results, capsys, file, content, said):
    (results / file).write_bytes(content)
    assert main([str(results)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert file.rsplit("/")[-1] in error
    assert not (results / "index.html").exists()


def test_no_folder_and_an_empty_one_end_in_2(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "there is no folder" in error
    assert "holds no tables" in error


def test_the_script_writes_the_page_and_can_do_it_again(results, tmp_path):
    out = tmp_path / "page" / "report.html"
    assert main([str(results), "--out", str(out), "--title", "A & B"]) == 0
    first = out.read_text()
    assert "<title>A &amp; B</title>" in first
    assert main([str(results), "--out", str(out), "--title", "A & B"]) == 0
    assert out.read_text() == first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def browse(address, *options):
    """What Chromium made of the page, and what it wrote on the console."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=3000", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_the_sliders_work_and_nothing_hostile_runs(results):
    assert main([str(results), "--title", HOSTILE]) == 0
    text = (results / "index.html").read_text()
    # As a keyboard or a finger would: the slider of the first pair to a quarter.
    drive = """<script>
    const slider = document.querySelector(".pair input");
    slider.value = 25;
    slider.dispatchEvent(new Event("input"));
    const at = getComputedStyle(document.querySelector(".pair .over")).clipPath;
    document.body.dataset.seen = JSON.stringify([at, slider.hidden, document.title]);
    </script>"""
    driven = results / "driven.html"
    driven.write_text(text.replace("</body>", drive + "</body>"))
    dom, console = browse(driven.as_uri())
    assert console == []
    assert dom.count('class="pair live"') == 6
    (body,) = Elements(dom).of("body")
    assert json.loads(body["data-seen"]) == ["inset(0px 0px 0px 25%)", False, HOSTILE]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser_the_page_fits_a_phone_and_only_tables_scroll(results, tmp_path, width):
    assert main([str(results)]) == 0
    content = html.escape((results / "index.html").read_text())
    frame = tmp_path / "frame.html"  # a window has a least width that is above a phone's
    frame.write_text(
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{content}"></iframe><script>'
        "const frame = document.querySelector('iframe'); frame.onload = () => {"
        "const page = frame.contentDocument, wide = [...page.querySelectorAll('.wide')];"
        "document.body.dataset.seen = [frame.contentWindow.innerWidth, page.documentElement.scrollWidth,"
        "Math.max(...wide.map(w => w.scrollWidth - w.clientWidth))].join() };</script>"
    )
    dom, console = browse(frame.as_uri(), "--window-size=1400,900")
    assert console == []
    inner, content_width, hidden = map(int, Elements(dom).of("body")[0]["data-seen"].split(","))
    assert inner == width
    assert content_width <= width
    assert hidden > 0  # the table of twelve columns scrolls within its own frame
