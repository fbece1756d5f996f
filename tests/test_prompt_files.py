"""Files of prompts as editors write them, and files that are none: one line that names the file and the remedy."""

import json
from pathlib import Path

import pytest
import torch

from eval import clip_score, generate
from eval.generation.prompts import open_prompts
from image_sets.reading import pt_prompts, read_prompts

MARK = b"\xef\xbb\xbf"
TEXTS = ["a red ring", "a blue square"]
FILES = {
    "a.txt": "a red ring\na blue square\n",
    "b.txt": "a red ring\r\na blue square\r\n",
    "a.json": json.dumps(TEXTS),
    "a.JSON": json.dumps(TEXTS),
    "a.tsv": "Prompt\tCategory\na red ring\tx\na blue square\ty\n",
    "coco.json": json.dumps(
        {
            "images": [{"id": 1}, {"id": 2}],
            "annotations": [{"image_id": k, "caption": text} for k, text in zip((1, 2), TEXTS, strict=True)],
        }
    ),
}
REMEDY = "give text in UTF-8 with one prompt a line, or a JSON list of texts"


def readers(path):
    """Those that take a file of that kind."""
    yield lambda: open_prompts(str(path)).first(1)
    if path.suffix != ".tsv" and path.stem != "coco":
        yield lambda: read_prompts(path)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path, name):
    digests = set()
    for mark in (b"", MARK):
        (tmp_path / name).write_bytes(mark + FILES[name].encode())
        found = open_prompts(str(tmp_path / name))
        assert found.first(2) == TEXTS
        digests.add(found.digest)
    assert len(digests) == 1
    if name not in ("a.tsv", "coco.json"):
        assert read_prompts(tmp_path / name) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\0b\n", "prompt 0 of .* holds NUL"),
        ("a.txt", "a red ring\n".encode("utf-16"), r"is not text in UTF-8 \(byte 0\)"),
        ("a.txt", "a red ring\n".encode("utf-16-le"), "prompt 0 of .* holds NUL"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", r"is not text in UTF-8 \(byte 0\)"),
        ("a.json", b"[" * 100_000, "is nested too deeply"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
        ("a.json", b'["a", "a\\u0000b"]', "prompt 1 of .* holds NUL"),
        ("a.json", b'["a\\ud800b"]', "prompt 0 of .* holds NUL or half a character"),
        ("a.json", b"[1" + b"0" * 5000 + b"]", "is not JSON"),
        ("a.json", b'["a", 1]', "is not a list of strings: prompt 1 is 1"),
        ("a.tsv", b"Prompt\n" + b"x" * 200_000 + b"\n", "field larger than field limit .* close each quotation mark"),
        ("a.tsv", b'Prompt\n"' + b"x\n" * 100_000, "field larger than field limit"),
        ("a.tsv", b"Prompt\na\0b\n", "prompt 0 of .* holds NUL"),
        ("coco.json", b'{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "\\u0000"}]}', "holds NUL"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for read in readers(path):
        with pytest.raises(ValueError, match=message) as raised:
            read()
        line = str(raised.value)
        assert str(path) in line and "\n" not in line and line.endswith(REMEDY)


def test_captions_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "coco.json"
    for content in ('{"images": [{"id": [1]}], "annotations": []}', '{"images": 5, "annotations": {}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"coco\.json does not hold captions as COCO's files do"):
            open_prompts(str(path))


def test_prompts_of_a_pt_are_texts(tmp_path):
    for prompts, message in ((["a", 1], "a list of strings: prompt 1 is 1"), (["\0"], "prompt 0 of .* holds NUL")):
        torch.save({"prompts": prompts}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=message):
            pt_prompts(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b.txt", ""])
def test_names_that_no_file_can_have_are_one_line(name):
    with pytest.raises(ValueError, match="there is no file of prompts "):
        open_prompts(name)


def test_commands_end_in_that_line(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\0\n")
    (tmp_path / "pictures").mkdir()
    calls = [
        (clip_score, [str(tmp_path / "pictures"), "--prompts", str(path), "--model", "shapes", "--device", "cpu"]),
        (generate, ["--prompts", str(path), "--device", "cpu", "--out", str(tmp_path / "set")]),
    ]
    for command, argv in calls:
        assert command.main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.endswith(f"{REMEDY}\n") and Path(path).name in error
