"""Arrays that are damaged, or made to harm: always one line that names the file, never a crash or other images."""

import os
import pickle
import struct
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.arrays import NpzFile
from eval.metrics import fid
from image_sets.reading import count_images, image_batches

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
EXTRACTOR: Any = SimpleNamespace(variant="adm", weights="0", sizes=(3, 2))  # what is looked at before any measuring


def header(shape, kind="'|u1'", order="False"):
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def member(text, contents=b"", version=(1, 0)):
    """An .npy with this header, whatever is behind it."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode("latin1") + contents


def archive(path, content, name="arr_0.npy", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


class Code:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


WHOLE = IMAGES.tobytes()
HOSTILE = {
    "9000 brackets": member("[" * 9000),
    "9000 parentheses": member("(" * 9000 + ")" * 9000),
    "9000 signs": member("-" * 9000 + "1"),
    "a header longer than numpy takes": member("{" + " " * 20_000 + "}"),
    "a trillion images": member(header("(1000000000000, 64, 64, 3)"), b"abc"),
    "numbers of 4000 digits": member(header(f"({'9' * 4000}, {'9' * 4000}, 3, 3)"), b"abc"),
    "numbers of 5000 digits": member(header(f"({'9' * 5000}, 8, 8, 3)"), b"abc"),
    "a negative number": member(header("(-2, 8, 8, 3)"), WHOLE),
    "two negative numbers": member(header("(-2, -8, 8, 3)"), WHOLE),
    "a fraction": member(header("(2.0, 8, 8, 3)"), WHOLE),
    "contents longer than the header says": member(header("(1, 8, 8, 3)"), WHOLE),
    "a byte too many": member(header("(2, 8, 8, 3)"), WHOLE + b"\0"),
    "a byte too few": member(header("(2, 8, 8, 3)"), WHOLE[:-1]),
    "objects": member(header("(1,)", "'|O'"), pickle.dumps(np.array([Code()], object))),
    "an unknown type": member(header("(2, 8, 8, 3)", "'|zz'"), WHOLE),
    "a type within types": member(header("(2, 8, 8, 3)", "[('a', ('b', ('c',)))]"), WHOLE),
    "another version": member(header("(2, 8, 8, 3)"), WHOLE, (9, 0)),
    "no header": b"",
    "half a header": member(header("(2, 8, 8, 3)"))[:30],
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_hostile_npz_is_one_line(tmp_path, what, method):
    path = archive(tmp_path / "a.npz", HOSTILE[what], method=method)
    statistics = archive(tmp_path / "s.npz", HOSTILE[what], "mu.npy", method)
    for call in (
        lambda: count_images(path),
        lambda: list(image_batches(path, 1)),
        lambda: fid.load_reference(statistics, EXTRACTOR),
    ):
        with pytest.raises(ValueError, match=r"[as]\.npz[: ]") as raised:
            call()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert not os.path.exists("run-by-a-pickle")


def test_a_zip_that_says_more_than_it_holds_is_one_line(tmp_path):
    """Where header and directory agree on too much, reading finds the end, and no memory is asked for before."""
    number = 300_000
    content = member(header(f"({number}, 64, 64, 3)"), WHOLE)
    path = archive(tmp_path / "a.npz", content, method=zipfile.ZIP_DEFLATED)
    changed = bytearray(path.read_bytes())
    at = changed.rfind(b"PK\x01\x02") + 24  # the size in the directory
    changed[at : at + 4] = struct.pack("<I", len(content) - len(WHOLE) + number * 64 * 64 * 3)
    path.write_bytes(changed)
    assert count_images(path) == number
    with pytest.raises(ValueError, match=r"a\.npz.*is the file whole\?"):
        list(image_batches(path, 10))


@pytest.mark.parametrize("change", [("flags", 8, 1), ("method", 10, 77)])
def test_encrypted_and_unknown_compression_are_one_line(tmp_path, change):
    _, offset, value = change
    path = archive(tmp_path / "a.npz", member(header("(2, 8, 8, 3)"), WHOLE))
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + offset] = value
    content[offset - 2] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read arr_0 of .*a\.npz: .*; is the file whole\?"):
        count_images(path)


def damage(path, data):
    """Changes up to three bytes of a file, and cuts it off or not."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 40]))])


def assert_images_or_one_line(path):
    try:
        assert sum(len(batch) for batch in image_batches(path, 1)) > 0
    except ValueError as error:
        assert path.name in str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), compressed=st.booleans())
def test_bytes_changed_anywhere_give_the_images_or_one_line(tmp_path_factory, data, compressed):
    path = tmp_path_factory.mktemp("changed") / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, IMAGES, np.arange(2))
    damage(path, data)
    assert_images_or_one_line(path)


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    arrays: dict[str, Any] = {
        "mu": np.arange(5.0),
        "sigma": np.asfortranarray(np.random.default_rng(1).random((5, 5))),
        "count": np.array(12),
        "variant": np.array("adm"),
        "none": np.zeros((0, 3), np.float32),
        "big_endian": np.arange(3, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        with NpzFile(tmp_path / "a.npz") as file, np.load(tmp_path / "a.npz") as stock:
            assert file.names() == stock.files
            for name in arrays:
                ours, theirs = file.read(name), stock[name]
                assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype and ours.strides == theirs.strides
            with pytest.raises(ValueError, match=r"a\.npz holds mu, sigma, count, .*, not nu"):
                file.read("nu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.array(["a", "b", "c"])}, r"mu of .* holds values that are not finite numbers; make the reference"),
        ({"mu": np.ones(3, complex)}, "mu of .* not finite numbers"),
        ({"sigma": np.full((3, 3), np.nan)}, "sigma of .* not finite numbers"),
        ({"features": np.ones((4, 2))}, r"features of .* are \(4, 2\), not 3 of each image"),
        ({"features": np.full((4, 3), np.inf)}, "features of .* not finite numbers"),
        ({"count": np.arange(2)}, r"count of .* is \(2,\), not one number"),
        ({"count": np.array("many")}, "count of .* not finite numbers"),
    ],
)
def test_statistics_that_are_none_are_one_line(tmp_path, changed, message):
    whole: dict[str, Any] = {"mu": np.ones(3), "sigma": np.eye(3), "features": np.ones((4, 3)), "count": np.array(4)}
    np.savez(tmp_path / "s.npz", **whole)
    assert fid.load_reference(tmp_path / "s.npz", EXTRACTOR).count == 4
    np.savez(tmp_path / "s.npz", **(whole | changed))
    with pytest.raises(ValueError, match=message):
        fid.load_reference(tmp_path / "s.npz", EXTRACTOR)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, dtype=torch.uint8).expand(10**6, 3, 4, 4), "have fewer values than their shape says"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8).to_sparse(), "a tensor of an unusual kind"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta"), "a tensor of an unusual kind"),
        (torch.nested.nested_tensor([torch.zeros(3, 4, 4)] * 2), "a tensor of an unusual kind"),
        (np.zeros((2, 3, 4, 4), np.uint8), "cannot read .*: it holds something else"),
        (Code(), "cannot read .*: it holds something else"),
    ],
    ids=["expanded", "sparse", "meta", "nested", "numpy", "code"],
)
def test_a_hostile_pt_is_one_line(tmp_path, tensor, message):
    torch.save({"images": tensor}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as raised:
        count_images(tmp_path / "a.pt")
    assert "a.pt" in str(raised.value) and "\n" not in str(raised.value)
    assert not os.path.exists("run-by-a-pickle")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_of_a_pt_changed_anywhere_give_images_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "a.pt"
    torch.save({"images": torch.from_numpy(IMAGES).permute(0, 3, 1, 2)}, path)
    damage(path, data)
    assert_images_or_one_line(path)
