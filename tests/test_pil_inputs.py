"""PIL pictures of every mode given to the forks in Python are pictures, never latents or grey numbers of a palette."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.pictures import masks, rgb
from tests.families import FAMILIES, SIDE, image, mask

TAKE_PICTURES = {
    name: family
    for name, family in FAMILIES.items()
    if any(isinstance(value, Image.Image | list) and name != "controlnets" for value in family.arguments.values())
}
DEEP = Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE))
DEEP_8 = Image.fromarray(np.rint(np.asarray(DEEP) / 257).astype(np.uint8))


def half_transparent():
    picture = image().convert("RGBA")
    picture.paste((200, 0, 0, 0), (0, 0, SIDE, SIDE // 2))
    return picture


def on_white():
    picture = image()
    picture.paste("white", (0, 0, SIDE, SIDE // 2))
    return picture


GREY = image(mode="L")
PALETTE = image().quantize(16)
PICTURES = {  # what is given, and the picture that it is
    "RGBA": (image().convert("RGBA"), image()),
    "RGBA, transparent": (half_transparent(), on_white()),
    "LA": (GREY.convert("LA"), GREY.convert("RGB")),
    "L": (GREY, GREY.convert("RGB")),
    "1": (GREY.convert("1"), GREY.convert("1").convert("RGB")),
    "P": (PALETTE, PALETTE.convert("RGB")),
    "CMYK": (image().convert("CMYK"), image().convert("CMYK").convert("RGB")),
    "I;16": (DEEP, DEEP_8.convert("RGB")),
}


def layer(colour):
    """A mask as editors keep it: painted in a colour, transparent elsewhere."""
    painted = Image.new("RGBA", (SIDE, SIDE), (*colour, 0))
    painted.paste((*colour, 255), mask=mask())
    return painted


MASKS = {
    "RGBA, white paint": layer((255, 255, 255)),
    "RGBA, black paint": layer((0, 0, 0)),
    "LA": layer((9, 9, 9)).convert("LA"),
    "P, transparent": layer((9, 9, 9)).quantize(2),
    "RGBA, opaque": mask().convert("RGBA"),
    "P": mask().convert("P"),
    "1": mask().convert("1"),
    "I;16": Image.fromarray(np.asarray(mask()).astype(np.uint16) * 257),
}


@pytest.fixture(scope="module")
def forks():
    """By family, built once."""
    built = {}

    def get(name):
        if name not in built:
            torch.manual_seed(0)
            built[name] = TAKE_PICTURES[name].pair()[1]
        return built[name]

    return get


def made(name, pipe, **given):
    return TAKE_PICTURES[name].run(pipe, steps=2, **given)


def test_the_families_that_take_pictures_are_found():
    names = {"sd-img2img", "sd-inpaint", "xl-img2img", "xl-inpaint-4", "xl-inpaint-9", "svd", "controlnet"}
    assert names <= TAKE_PICTURES.keys()


@pytest.mark.parametrize("name", TAKE_PICTURES)
def test_pictures_of_every_mode_are_the_same_picture_in_rgb(forks, name):
    pipe = forks(name)
    for what, (given, picture) in PICTURES.items():
        assert np.array_equal(made(name, pipe, image=given), made(name, pipe, image=picture)), what
    given, picture = PICTURES["RGBA"]
    assert np.array_equal(made(name, pipe, image=[given]), made(name, pipe, image=[picture]))


@pytest.mark.parametrize("name", [name for name in TAKE_PICTURES if "inpaint" in name])
def test_masks_of_every_mode_are_the_same_mask(forks, name):
    pipe = forks(name)
    expected = made(name, pipe)
    for what, given in MASKS.items():
        assert np.array_equal(made(name, pipe, mask_image=given), expected), what


def test_several_controlnets_get_pictures_each():
    first, second = rgb([image().convert("RGBA"), [image(1).convert("LA"), image(2)]])
    assert first.mode == "RGB" and [picture.mode for picture in second] == ["RGB", "RGB"]


@pytest.mark.parametrize("name", TAKE_PICTURES)
def test_values_of_no_known_range_are_one_line_before_anything_is_made(forks, name):
    pipe = forks(name)
    for given in ({"image": GREY.convert("F")}, {"image": [GREY.convert("I")]}):
        with pytest.raises(
            ValueError, match=r"^the image holds .* whose white level is unknown; save it with 8 or 16 bits$"
        ):
            made(name, pipe, **given)
    if "inpaint" in name:
        with pytest.raises(ValueError, match=r"^the mask holds floating-point numbers"):
            made(name, pipe, mask_image=GREY.convert("F"))


def test_what_is_no_pil_picture_of_another_mode_stays_as_it_is():
    for given in (image(), torch.zeros(1, 4, 8, 8), np.zeros((8, 8, 4)), None):
        assert rgb(given) is given and masks(given) is given
    several = [image(), image(1)]
    assert all(a is b for a, b in zip(rgb(several), several, strict=True))
