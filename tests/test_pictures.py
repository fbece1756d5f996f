"""Everyday pictures: upright, of any depth, transparent, with several frames; or a one-line error."""

import os
from argparse import Namespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import main
import stable_video_diffusion
from common.images import fitted, read_image, to_mask, to_rgb
from comparison.arguments import fit_to_model, read_images
from image_sets.reading import image_batches
from tests.broken_pictures import broken, chunk, png, saved

BROKEN = broken()
ORIENTATION = 274
RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
RAMP_8 = np.rint(RAMP / 257).astype(np.uint8)


def write(path, picture, **options):
    picture.save(path, **options)
    return path


# --- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_picture_is_one_line_wherever_it_is_read(tmp_path, what):
    path = tmp_path / "x.png"
    path.write_bytes(BROKEN[what])
    for mode in ("RGB", "L"):
        with pytest.raises(ValueError, match=r"^cannot read the image .*x\.png: .*([Gg]ive|make) ") as raised:
            read_image(path, mode)
        assert "\n" not in str(raised.value)
    if what != "EXIF that is none":  # which sets of images are read without
        with pytest.raises(ValueError, match=r"^cannot read the image .*x\.png: .*([Gg]ive|make) "):
            list(image_batches(tmp_path, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "DDS", "BMP", "PPM"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_changed_anywhere_give_a_picture_or_one_line(tmp_path_factory, kind, data):
    content = bytearray(saved(kind=kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "x.png"
    path.write_bytes(content)
    try:
        assert read_image(path).mode == "RGB"
        assert read_image(path, "L").mode == "L"
        assert next(image_batches(path.parent, 1)).shape[0] == 1
    except ValueError as error:
        assert str(path) in str(error)


def test_no_memory_for_a_picture_is_one_line(tmp_path, monkeypatch):
    def without_memory(*_):
        raise MemoryError

    path = write(tmp_path / "x.png", Image.new("RGB", (8, 8)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", without_memory)
    with pytest.raises(ValueError, match=r"x\.png: there is not enough memory for it; make it smaller"):
        read_image(path)


def test_paths_that_are_no_file(tmp_path):
    for name, message in {
        "nowhere.png": "there is no image .*nowhere.png; check the path",
        "": "cannot read the image .*: it is a folder; give",
        "a\0b.png": "cannot read the image .*: embedded null byte; check the path",
        "n" * 5000: "cannot read the image .*: File name too long; check the path",
        "x.png/y.png": "cannot read the image .*: Not a directory; check the path",
    }.items():
        (tmp_path / "x.png").touch()
        with pytest.raises(ValueError, match=message):
            read_image(f"{tmp_path}/{name}")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: it is not a file; give"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "x.png", Image.new("RGB", (8, 8)))
    path.chmod(0)
    with pytest.raises(ValueError, match=r"cannot read the image .*x\.png: Permission denied; is"):
        read_image(path)


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright(tmp_path, kind, orientation):
    upright = Image.new("L", (16, 32))
    upright.paste(255, (0, 0, 16, 8))  # white at the top
    upright.paste(128, (0, 8, 8, 16))  # and grey on the left below it
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for mode in ("RGB", "L"):
        options = {"quality": 100, "lossless": True} if kind in ("JPEG", "WEBP") else {}
        path = write(tmp_path / "x", stored.convert("RGB"), format=kind, exif=exif, **options)
        read = read_image(path, mode)
        assert read.size == (16, 32)
        assert np.abs(np.asarray(read.convert("L"), int) - np.asarray(upright, int)).max() < 8


# --- depth -----------------------------------------------------------------------------------------------------------


def test_16_bits_are_scaled_to_8(tmp_path):
    big_endian = RAMP.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n8 8\n65535\n" + big_endian)
    write(tmp_path / "a.png", Image.fromarray(RAMP))
    write(tmp_path / "a.tif", Image.fromarray(RAMP))
    write(tmp_path / "b.tif", Image.frombytes("I;16B", (8, 8), big_endian))
    for name in ("a.pgm", "a.png", "a.tif", "b.tif"):
        read = read_image(tmp_path / name)
        assert np.array_equal(np.asarray(read), np.repeat(RAMP_8[..., None], 3, -1))
        assert np.array_equal(np.asarray(read_image(tmp_path / name, "L")), RAMP_8)


def test_16_bits_a_colour_are_scaled_to_8(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in RAMP)
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, 2, rows))
    assert np.abs(np.asarray(read_image(tmp_path / "a.png"), int) - RAMP_8[..., None]).max() <= 1


def test_values_of_no_known_range_are_refused(tmp_path):
    for array, what in ((RAMP.astype(np.float32), "floating-point numbers"), (RAMP.astype(np.int32), "of 32 bits")):
        path = write(tmp_path / "x.tif", Image.fromarray(array))
        for mode in ("RGB", "L"):
            with pytest.raises(ValueError, match=rf"the image .*x\.tif holds .*{what}, .*; save it with 8 or 16 bits"):
                read_image(path, mode)


# --- transparency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    picture = Image.new("RGBA", (3, 1), (40, 40, 40, 0))
    picture.putpixel((1, 0), (40, 40, 40, 255))
    if mode == "P":
        picture = picture.quantize(4)
    else:
        picture.putpixel((2, 0), (40, 40, 40, 51))
        picture = picture.convert(mode)
    read = np.asarray(read_image(write(tmp_path / "x.png", picture)))
    half = 255 if mode == "P" else 255 - round((255 - 40) * 0.2)
    assert read[0].tolist() == [[255] * 3, [40] * 3, [half] * 3]


def test_a_colour_that_stands_for_transparency_is_white(tmp_path):
    (tmp_path / "grey.png").write_bytes(png(2, 1, 8, 0, b"\0\x28\x29", chunk(b"tRNS", b"\0\x28")))
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 0, b"\0\x28\x28\x29\x29", chunk(b"tRNS", b"\x28\x28")))
    (tmp_path / "rgb.png").write_bytes(
        png(2, 1, 8, 2, b"\0" + b"\x28" * 3 + b"\x29" * 3, chunk(b"tRNS", b"\0\x28" * 3))
    )
    for name in ("grey.png", "deep.png", "rgb.png"):
        assert np.asarray(read_image(tmp_path / name))[0].tolist() == [[255] * 3, [0x29] * 3]
        assert np.asarray(read_image(tmp_path / name, "L"))[0].tolist() == [0, 255]


@pytest.mark.parametrize("colour", [0, 90, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_mask_is_what_is_opaque(tmp_path, mode, colour):
    layer = Image.new("RGBA", (8, 8), (colour, colour, colour, 0))
    layer.paste((colour, colour, colour, 255), (2, 2, 4, 4))
    layer = layer.quantize(4) if mode == "P" else layer.convert(mode)
    mask = read_image(write(tmp_path / "x.png", layer), "L")
    assert mask.mode == "L"
    assert np.asarray(mask).sum() == 4 * 255 and mask.getpixel((2, 2)) == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "1"])
def test_an_opaque_mask_is_its_luminance(tmp_path, mode):
    drawn = Image.new("L", (8, 8))
    drawn.paste(255, (2, 2, 4, 4))
    mask = read_image(write(tmp_path / "x.png", drawn.convert(mode)), "L")
    assert np.array_equal(np.asarray(mask), np.asarray(drawn))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pictures_without_transparency_are_what_pillow_makes_of_them(mode):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
    picture = Image.new(mode, (8, 8)) if mode == "LAB" else picture.convert(mode)
    assert to_rgb(picture).tobytes() == picture.convert("RGB").tobytes()
    if mode != "LAB":
        assert to_mask(picture).tobytes() == picture.convert("L").tobytes()
    else:
        with pytest.raises(ValueError, match=r"the mask can't be used: .*LAB.*; save it as RGB"):
            to_mask(picture)


# --- several pictures in one file ------------------------------------------------------------------------------------


def test_a_jpeg_of_several_pictures_is_the_first(tmp_path):
    first, second = (Image.new("RGB", (8, 8), (value,) * 3) for value in (200, 20))
    path = write(tmp_path / "phone.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert np.abs(np.asarray(read_image(path), int) - 200).max() < 3


@pytest.mark.parametrize(
    ("kind", "several"),
    [("TIFF", "of 3 pages"), *((kind, "an animation of 3 frames") for kind in ("GIF", "WEBP", "PNG"))],
)
def test_pages_and_animations_are_called_so(tmp_path, kind, several):
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 100, 200)]
    path = write(tmp_path / "x.png", frames[0], format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"the image .*x\.png is {several}; give a still image"):
        read_image(path)
    with pytest.raises(ValueError, match=rf"the image .*x\.png is {several}; give a still image"):
        list(image_batches(tmp_path, 1))


# --- shape -----------------------------------------------------------------------------------------------------------


def rings(width, height):
    """A picture with a disc in its centre."""
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 < (min(width, height) / 4) ** 2
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


def is_round(picture):
    """Whether the disc is as wide as it is high."""
    white = np.asarray(picture.convert("L")) > 127
    width, height = white.any(0).sum(), white.any(1).sum()
    return width > 0 and abs(int(width) - int(height)) <= 2


def test_another_shape_is_cropped_around_the_centre_and_not_stretched():
    picture = rings(200, 80)
    assert is_round(fitted(picture, (64, 64))) and is_round(fitted(picture, (128, 16 * 5)))
    assert fitted(picture, (100, 40)).tobytes() == picture.resize((100, 40), Image.Resampling.LANCZOS).tobytes()


def test_image_and_mask_are_cropped_alike_with_a_note(tmp_path, capsys):
    path = write(tmp_path / "x.png", rings(200, 80))
    args = Namespace(image=str(path), mask=str(path), strength=None, width=64, height=64)
    (image,), (mask,) = (read_images(args, 1)[name] for name in ("image", "mask_image"))
    assert image.size == mask.size == (64, 64) and is_round(image) and is_round(mask)
    assert np.abs(np.asarray(image.convert("L"), int) - np.asarray(mask, int)).mean() < 10
    assert "--image is 200 × 80: cropped around its centre to the shape of 64 × 64" in capsys.readouterr().out
    args.width, args.height = 400, 160
    read_images(args, 1)
    assert capsys.readouterr().out == ""


def test_a_picture_far_larger_than_the_models_own_is_resized_unless_a_size_is_given(tmp_path, capsys):
    path = write(tmp_path / "x.png", rings(1024, 576))
    pipe = Namespace(unet=Namespace(config=Namespace(sample_size=8)), vae_scale_factor=8)

    def sizes(width=None, height=None, mask=None):
        args = Namespace(image=str(path), mask=mask, strength=None, width=width, height=height)
        found = fit_to_model(read_images(args, 2), args, pipe)
        return {image.size for name in ("image", "mask_image") for image in found.get(name, [])}, found

    assert sizes()[0] == {(80, 48)}
    assert "--image is 1024 × 576, the model's native resolution 64 × 64" in capsys.readouterr().out
    masked, found = sizes(mask=str(path))
    assert masked == {(80, 48)} and (found["width"], found["height"]) == (80, 48)
    assert sizes(width=128, height=72)[0] == {(128, 72)} and sizes(height=64)[0] == {(1024, 64)}
    write(path, rings(90, 70))
    assert sizes()[0] == {(88, 64)}  # a little larger stays, in whole blocks of 8
    assert fit_to_model({"height": None}, Namespace(width=None, height=None), pipe) == {"height": None}


@pytest.mark.parametrize("kind", ["svd", "sd-img2img", "sd-inpaint"])
def test_the_scripts_of_all_types_crop_what_they_are_given(tmp_path, kind, capsys):
    path = write(tmp_path / "x.png", rings(200, 80))
    args = Namespace(model_type=kind, image=str(path), tiny=False, decode_chunk_size=None)
    assert is_round(main.image_arguments(args, main.KINDS[kind])["image"])
    assert "--image is 200 × 80: cropped" in capsys.readouterr().out


def test_a_video_starts_from_the_cropped_picture(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "x.png", rings(200, 80))
    seen: dict[str, Image.Image] = {}

    def without_a_model(*_, **__):
        raise ValueError("no model here")

    def fit_image(image, size, fit=stable_video_diffusion.fit_image):
        return seen.setdefault("image", fit(image, size))

    monkeypatch.setattr(stable_video_diffusion, "fit_image", fit_image)
    monkeypatch.setattr(stable_video_diffusion, "open_pipeline", without_a_model)
    assert stable_video_diffusion.main(["--image", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert seen["image"].size == (1024, 576) and is_round(seen["image"])


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    path = tmp_path / "program.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch ran) (w) file\nshowpage\n")
    with pytest.raises(ValueError, match="of no known kind"):
        read_image(path)
