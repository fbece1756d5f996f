"""The page: its blocks, that nothing in it can run, and how it looks to a browser."""

import base64
import html
import json
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comparison.saving import save_comparison
from eval.pages.curve import Point, curve_of
from eval.pages.markdown import to_html
from eval.pages.rendering import page
from eval.pages.sections import sections
from eval.report import main
from tests.browser import CHROMIUM

HOSTILE = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"


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
    wide = " | ".join(f"column number {k}" for k in range(20))
    rule = "|---" * 20 + "|"
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


def body_of(folder, title):
    (found,) = [section.body for section in sections(folder) if section.title == title]
    return found


def lines(markup):
    return [line for line in str(markup).splitlines() if line]


def test_markdown_becomes_html():
    text = "# Title #\nwords\nmore\n\n|a|b|\n|:--|--:|\n|1|x \\| y|\n| 2 | |\n\nafter\n- i\n- j\n"
    text += "```\n| no | table |\n```\n## Sub"
    title, found = to_html(text)
    assert title == "Title"
    assert lines(found) == [
        "<h2>Title</h2>",
        *("<p>words", "more</p>"),
        '<div class="wide" role="region" aria-label="Table" tabindex="0"><table><thead>',
        *("<tr>", "<th>a</th>", '<th class="number">b</th>', "</tr>", "</thead>", "<tbody>"),
        *("<tr>", "<td>1</td>", '<td class="number">x | y</td>', "</tr>"),
        *("<tr>", "<td>2</td>", '<td class="number"></td>', "</tr>"),
        *("</tbody>", "</table></div><p>after</p>"),
        *("<ul>", "<li>i</li>", "<li>j</li>", "</ul>"),
        *("<pre><code>| no | table |", "</code></pre>"),
        "<h3>Sub</h3>",
    ]


def test_inline_marks():
    assert lines(to_html("**b** *i* `a*b*c` 2 * 3 * 4 a_b_c")[1]) == [
        "<p><strong>b</strong> <em>i</em> <code>a*b*c</code> 2 * 3 * 4 a_b_c</p>"
    ]
    assert lines(to_html("[x](https://a.org/?q=1&r=2)")[1]) == ['<p><a href="https://a.org/?q=1&amp;r=2">x</a></p>']
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc",
        "//a.org",
        "<javascript:alert(1)>",
        "x.md",
    ):
        assert "href" not in to_html(f"[x]({address}) <{address.strip('<>')}>")[1]


def test_links_to_what_is_on_the_page_lead_there(results):
    (results / "table2.md").write_text("# Two\n\n[ten](table10.md) [figure](deep/figure<4>.png) [none](measured)\n")
    addresses = [a["href"] for a in Elements(body_of(results, "Two")).of("a")]
    order = [section.title for section in sections(results)]
    assert addresses[0] == f"#s{order.index(f'Ten {HOSTILE}')}" and "#s" not in "".join(addresses[1:])


@given(st.text(alphabet="<>&\"'`*[]()|#-:! \nahttps/=", max_size=60))
def test_no_text_becomes_an_element_that_can_run(text):
    allowed = {
        "h2", "h3", "h4", "h5", "h6", "p", "ul", "ol", "li", "strong", "em", "code", "pre", "a", "span", "blockquote",
        "hr", "br", "div", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    for tag, attributes in Elements(str(to_html(text)[1])).tags:
        assert tag in allowed
        assert set(attributes) <= {"href", "class", "role", "aria-label", "tabindex", "start", "title"}
        assert attributes.get("href", "http").startswith("http")


@given(st.text(alphabet="<>\"'abz é漢1 ", max_size=40))
def test_words_without_marks_come_through_unchanged(text):
    content = str(to_html(f"x{text}")[1]).strip().removeprefix("<p>").removesuffix("</p>")
    assert html.unescape(content).split() == f"x{text}".split()


def test_the_page_has_everything_in_itself_and_in_order(results):
    found = sections(results)
    names = [section.title for section in found]
    assert names == ["alone", "Two", f"Ten {HOSTILE}", "run", "deep/figure<4>"]  # tables before figures
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
    content = str(body_of(results, "run"))
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
    content = str(body_of(results, "run"))
    assert ">0, 7, 20</td>" in content
    assert "cache interval N" not in content


def test_a_run_is_shown_with_its_whole_cache_and_its_model(results):
    file = results / "run" / "result.json"
    assert ">the shipped model</td>" in str(body_of(results, "run"))
    result = json.loads(file.read_text())
    result["cache"] |= {"forecast": 1.0, "refresh_steps": [4, 9], "reuse_attention": True, "yet_unknown": "x"}
    result["cache"] |= {"uniform": True, "pow": None, "center": None, "cache_steps": None}
    result["resolved"]["model"] = "someone/a-model"
    file.write_text(json.dumps(result))
    content = str(body_of(results, "run"))
    for cell in ("someone/a-model", "5", "1.0", "4, 9", "yes", "x"):
        assert f">{cell}</td>" in content
    assert "gathered" not in content


def test_several_runs_are_a_curve_of_speed_against_distance(results):
    assert "Speed against distance" not in [section.title for section in sections(results)]
    for k, speed_up in enumerate((1.5, 4.0)):
        pictures = [Image.new("RGB", (8, 8))]
        result = {
            "speed_up": {"median": speed_up},
            "distance": {"median_psnr": 40.0 - k},
            "arguments": {"model": "<m>"},
        }
        save_comparison(results / f"n{k}", {"baseline": pictures, "deepcache": pictures}, result)
    found = sections(results)
    order = [section.title for section in found]
    assert order[3:7] == ["Speed against distance", "n0", "n1", "run"]
    body = str(found[3].body)
    assert body.count("<circle") == 2 and body.count("<polyline") == 1 and "<m>" not in body
    links = [a["href"] for a in Elements(body).of("a")]
    assert links == ["#s4", "#s5"] and "1.50×" in body and "39.0" in body


def test_a_curve_has_a_line_for_each_model_within_its_ticks():
    points = [Point("b", "m", 3.0, 30.0, "#b"), Point("a", "m", 1.5, 45.0, "#a"), Point("c", "other", 2.0, 30.0, "#c")]
    curve = curve_of(points)
    assert [point.name for point in curve.points] == ["a", "b", "c"]
    assert [[mark.text for mark in line.marks] for line in curve.lines] == [["1", "2"], ["3"]]
    assert (curve.across[0].text, curve.across[-1].text) == ("1.5×", "3×")
    marks = [mark for line in curve.lines for mark in line.marks]
    assert marks[0].x == curve.across[0].x and marks[1].x == curve.across[-1].x  # at the ends of the axis
    assert marks[0].y < marks[1].y == marks[2].y  # nearer is further up
    assert curve_of(points[:1]).points == points[:1]


def test_a_result_that_says_nothing_is_shown_all_the_same(results):
    (results / "run" / "result.json").write_text('{"speed_up": 3, "resolved": [], "arguments": {"prompt": "a ring"}}')
    content = str(body_of(results, "run"))
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
@pytest.mark.parametrize("width", [360, 390, 1440])
def test_in_a_browser_the_page_fits_a_phone_and_only_tables_scroll(results, tmp_path, width):
    for k in range(60):  # more than a screen of contents would hold
        (results / f"table{100 + k}.md").write_text(f"# Table {100 + k} of many, with a title that is long: and more\n")
    assert main([str(results)]) == 0
    content = html.escape((results / "index.html").read_text())
    frame = tmp_path / "frame.html"  # a window has a least width that is above a phone's
    frame.write_text(
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{content}"></iframe><script>'
        "const frame = document.querySelector('iframe'); frame.onload = () => {"
        "const page = frame.contentDocument, wide = [...page.querySelectorAll('.wide')];"
        "const hidden = Math.max(...wide.map(w => w.scrollWidth - w.clientWidth));"
        "const left = e => e.getBoundingClientRect().left;"
        "const moved = wide.filter(w => !w.matches('.facts')).map(w => { w.scrollLeft = 300;"
        "return Math.max(...[...w.querySelectorAll('th:first-child, td:first-child')].map(c => left(c) - left(w))) });"
        "document.body.dataset.seen = [frame.contentWindow.innerWidth, page.documentElement.scrollWidth, hidden,"
        "Math.round(Math.max(...moved)), Math.round(page.querySelector('nav').clientHeight)].join() };</script>"
    )
    dom, console = browse(frame.as_uri(), "--window-size=1600,900")
    assert console == []
    inner, content_width, hidden, moved, contents = map(int, Elements(dom).of("body")[0]["data-seen"].split(","))
    assert inner == width
    assert content_width <= width
    assert hidden > 0  # the table of twenty columns scrolls within its own frame
    assert moved == 0  # and its first column stays
    assert contents < 800  # no longer than a screen
