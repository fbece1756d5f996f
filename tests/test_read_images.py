"""Sets of images on disk: the same pictures out of every kind of source, and one clear line for each broken one."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_sets.reading import count_images, image_batches, pt_prompts

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 12, 3), dtype=np.uint8)


def read(source, batch_size=3, **arguments):
    return list(image_batches(source, batch_size, **arguments))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    for k, image in enumerate(IMAGES):
        file = path / f"{k // 4}" / f"{k:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (path / "notes.txt").write_text("not an image")
    (path / ".hidden.png").write_text("nor this")
    return path


def test_every_source_gives_the_same_batches(tmp_path, folder):
    np.savez(tmp_path / "stored.npz", IMAGES, np.arange(7))  # arr_0 and the labels, arr_1
    np.savez_compressed(tmp_path / "compressed.npz", IMAGES)
    torch.save({"images": torch.from_numpy(IMAGES).permute(0, 3, 1, 2), "prompts": list("abcdefg")}, tmp_path / "a.pt")
    for source in (IMAGES, tmp_path / "stored.npz", str(tmp_path / "compressed.npz"), tmp_path / "a.pt", folder):
        batches = read(source)
        assert count_images(source) == 7
        assert [batch.shape for batch in batches] == [(3, 8, 12, 3), (3, 8, 12, 3), (1, 8, 12, 3)]
        assert all(batch.dtype == np.uint8 for batch in batches)
        assert np.array_equal(np.concatenate(batches), IMAGES)
    assert pt_prompts(tmp_path / "a.pt") == list("abcdefg")


@given(batch_size=st.integers(1, 9), limit=st.none() | st.integers(1, 9))
def test_batch_size_and_limit(batch_size, limit):
    file = io.BytesIO()
    np.savez_compressed(file, IMAGES)
    batches = read(IMAGES, batch_size, limit=limit)
    assert np.array_equal(np.concatenate(batches), IMAGES[:limit])
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_limit_of_files(tmp_path, folder, save):
    save(tmp_path / "a.npz", IMAGES)
    for source in (tmp_path / "a.npz", folder):
        assert np.array_equal(np.concatenate(read(source, 2, limit=3)), IMAGES[:3])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_streamed(tmp_path, save):
    many = np.zeros((2000, 32, 32, 3), np.uint8)  # 6 MB
    save(tmp_path / "many.npz", many)
    tracemalloc.start()
    assert sum(len(batch) for batch in image_batches(tmp_path / "many.npz", 10)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < many.nbytes / 4


def test_size_cuts_out_the_centre(tmp_path):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200  # the centre square
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image[:, 4:12].repeat(2, 0).repeat(2, 1)).save(tmp_path / "b.png")  # another size
    assert np.array_equal(read(tmp_path, size=8)[0], np.full((2, 8, 8, 3), 200))
    assert np.array_equal(read(image[None], size=8)[0], np.full((1, 8, 8, 3), 200))


def test_gray_palette_and_alpha_become_rgb(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (7, 7, 7)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    Image.new("RGBA", (4, 4), (7, 7, 7, 0)).save(tmp_path / "c.webp", lossless=True, exact=True)
    assert np.array_equal(read(tmp_path)[0], np.full((3, 4, 4, 3), 7))


def test_broken_folders(tmp_path, folder):
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        count_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there are no images .*empty"):
        count_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"notes\.txt is no set of images"):
        count_images(folder / "notes.txt")

    whole = (folder / "1" / "005.png").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no picture", whole[:60] + b"\0\0\0" + whole[63:]):
        (folder / "1" / "005.png").write_bytes(data)
        with pytest.raises(ValueError, match=r"cannot read the image .*005\.png"):
            read(folder)
    Image.new("I;16", (12, 8)).save(folder / "1" / "005.png")
    with pytest.raises(ValueError, match=r"005\.png has more than 8 bits"):
        read(folder)
    Image.new("RGB", (5, 6)).save(folder / "1" / "005.png")
    with pytest.raises(ValueError, match=r"several sizes: .*000\.png is 12 × 8, .*005\.png is 5 × 6"):
        read(folder)


def test_broken_npz(tmp_path):
    path = tmp_path / "a.npz"
    wrong = {
        "float64": IMAGES / 255,
        r"uint8 \(8, 12, 3\)": IMAGES[0],
        r"\(7, 3, 8, 12\)": IMAGES.transpose(0, 3, 1, 2).copy(),
        "has no images: its shape": IMAGES[:0],
        "Fortran": np.asfortranarray(IMAGES),
    }
    for message, array in wrong.items():
        np.savez(path, array)
        with pytest.raises(ValueError, match=message):
            count_images(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ValueError, match="holds mu, not arr_0"):
        count_images(path)
    for save in (np.savez, np.savez_compressed):
        save(path, IMAGES)
        data = path.read_bytes()
        path.write_bytes(data[:500])
        with pytest.raises(ValueError, match=r"cannot read .*a\.npz"):
            count_images(path)
        path.write_bytes(data[:900] + bytes([data[900] ^ 255]) + data[901:])  # one wrong byte
        with pytest.raises(ValueError, match=r"cannot read .* of .*a\.npz: (Bad CRC-32|Error -3)"):
            read(path)


def test_broken_pt(tmp_path):
    path = tmp_path / "a.pt"
    wrong = {
        "has no tensor of images": {"prompts": ["a"]},
        "float32": {"images": torch.zeros(1, 3, 4, 4)},
        "has no images": {"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)},
        "holds a list": [1],
    }
    for message, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            count_images(path)
    with pytest.raises(ValueError, match="holds a list"):
        pt_prompts(path)
    torch.save({"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match="no list of prompts"):
        pt_prompts(path)
    torch.save({"images": tmp_path}, path)  # an object, which could run code when it is read
    with pytest.raises(ValueError, match=r"cannot read .*a\.pt"):
        count_images(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot read .*a\.pt"):
        count_images(path)
