"""Captioned pictures of coloured shapes: the data on which the shipped models are trained and evaluated.

A `Scene` describes a picture, `caption` puts it into words and `render` draws it. One scene has one caption and many
pictures: exact position, size, shade and texture phase are drawn from the generator passed to `render`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64  # pixels, height and width
HELD_OUT_SEED = 17  # of the list of held-out scenes

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (35, 70, 205),
    "yellow": (245, 215, 40),
    "purple": (130, 45, 165),
    "orange": (245, 130, 25),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
BACKGROUNDS = {  # muted, so that a shape stands out even where its colour has the same name
    "gray": (150, 150, 150),
    "green": (125, 180, 135),
    "blue": (130, 165, 215),
    "pink": (235, 175, 190),
    "brown": (150, 112, 85),
    "beige": (222, 205, 170),
}
TEXTURES = ("plain", "striped", "checkered")
RADII = {"small": (8.0, 9.5), "large": (13.0, 14.5)}  # pixels
RELATIONS = {  # unit vector from the second thing to the first, in (x, y) with y downwards
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
}
PLACES = {"at the top": (0, -1), "at the bottom": (0, 1), "on the left": (-1, 0), "on the right": (1, 0)}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; each field is a key of the tables above."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        article = "an" if self.size[0] in "aeiou" else "a"
        return f"{article} {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two things on a background. `where` is a relation if there are two things, else a place."""

    things: tuple[Thing, ...]
    where: str
    background: str
    texture: str = "plain"

    @property
    def caption(self) -> str:
        what = f" {self.where} ".join(str(thing) for thing in self.things)
        if len(self.things) == 1:
            what = f"{what} {self.where}"
        texture = "" if self.texture == "plain" else f"{self.texture} "
        return f"{what} on a {texture}{self.background} background"


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's caption is held out of all training, as one in sixteen is."""
    return zlib.crc32(scene.caption.encode()) % 16 == 0


def random_scene(rng: np.random.Generator, held_out: bool = False, things: int | None = None) -> Scene:
    """A scene drawn at random from the training captions, or from the held-out ones.

    `things` is 1 or 2, by default two in four of five scenes. A thing never has the background's colour, and the two
    things of a scene differ in colour and in shape, so that swapping either gives another scene (see
    `hard_negatives`).
    """
    while is_held_out(scene := _any_scene(rng, things)) != held_out:
        pass
    return scene


def held_out_scene(index: int) -> Scene:
    """Scene `index` of a fixed list of scenes of two things, whose captions were held out of all training."""
    return random_scene(np.random.default_rng((HELD_OUT_SEED, index)), held_out=True, things=2)


def _any_scene(rng: np.random.Generator, things: int | None) -> Scene:
    count = things or (2 if rng.random() < 0.8 else 1)
    background = str(rng.choice(list(BACKGROUNDS)))
    colours = rng.choice([c for c in COLOURS if c != background], count, replace=False)
    shapes = rng.choice(SHAPES, count, replace=False)
    sizes = rng.choice(list(RADII), count)
    drawn = tuple(Thing(str(s), str(c), str(k)) for s, c, k in zip(sizes, colours, shapes, strict=True))
    where = str(rng.choice(list(RELATIONS if count == 2 else PLACES)))
    return Scene(drawn, where, background, str(rng.choice(TEXTURES)))


def hard_negatives(scene: Scene) -> dict[str, Scene]:
    """Scenes with the same words and another meaning, by what was swapped. For scenes of two things."""
    first, second = scene.things
    return {
        "colours swapped": replace(
            scene, things=(replace(first, colour=second.colour), replace(second, colour=first.colour))
        ),
        "shapes swapped": replace(
            scene, things=(replace(first, shape=second.shape), replace(second, shape=first.shape))
        ),
        "relation reversed": replace(scene, where=OPPOSITE[scene.where]),
    }


def alternatives(scene: Scene) -> dict[str, list[Scene]]:
    """All scenes that differ in one attribute, by attribute ("relation" is the position of a single thing).

    A picture has its shapes right if no other shape of either thing fits it better than the caption's; likewise for
    colours and the relation.
    """

    def with_thing(k: int, thing: Thing) -> Scene:
        return replace(scene, things=tuple(thing if i == k else t for i, t in enumerate(scene.things)))

    pairs = list(enumerate(scene.things))
    wheres = RELATIONS if len(scene.things) == 2 else PLACES
    return {
        "shape": [with_thing(k, replace(t, shape=s)) for k, t in pairs for s in SHAPES if s != t.shape],
        "colour": [with_thing(k, replace(t, colour=c)) for k, t in pairs for c in COLOURS if c != t.colour],
        "relation": [replace(scene, where=w) for w in wheres if w != scene.where],
        "size": [with_thing(k, replace(t, size=s)) for k, t in pairs for s in RADII if s != t.size],
        "background": [replace(scene, background=b) for b in BACKGROUNDS if b != scene.background],
        "texture": [replace(scene, texture=t) for t in TEXTURES if t != scene.texture],
    }


SIDES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # top, bottom, left, right, as (x, y)
KINDS = (list(COLOURS), list(SHAPES), list(RADII))  # the attributes of a thing


def attributes(scene: Scene) -> np.ndarray:
    """What is on each side of the picture: int64 (4, 3), colour, shape and size as positions in `KINDS`.

    An empty side has each attribute's count instead. Two things are on opposite sides, one thing is on one.
    """
    table = np.tile([len(kind) for kind in KINDS], (4, 1))
    x, y = (RELATIONS if len(scene.things) == 2 else PLACES)[scene.where]
    for thing, side in zip(scene.things, ((x, y), (-x, -y)), strict=False):
        values = (thing.colour, thing.shape, thing.size)
        table[SIDES.index(side)] = [kind.index(value) for kind, value in zip(KINDS, values, strict=True)]
    return table


def words() -> list[str]:
    """Every word that can occur in a caption."""
    text = [*SHAPES, *COLOURS, *BACKGROUNDS, *TEXTURES[1:], *RADII, *RELATIONS, *PLACES, "a on background"]
    return sorted({word for phrase in text for word in phrase.split()})


def render(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scene.

    Returns:
        The picture, uint8 (64, 64, 3), and the share of each pixel that shapes cover, float32 (64, 64).
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5  # (64, 64) each
    picture = _background(scene, x, y, rng)
    covered = np.zeros((SIZE, SIZE), np.float32)
    radii = [rng.uniform(*RADII[thing.size]) for thing in scene.things]
    for thing, radius, (cx, cy) in zip(scene.things, radii, _centres(scene, radii, rng), strict=True):
        inside = np.clip(0.5 - _distance(thing.shape, x - cx, y - cy, radius), 0, 1)  # one pixel of antialiasing
        colour = np.clip(np.array(COLOURS[thing.colour]) + rng.uniform(-8, 8, 3), 0, 255)
        picture += inside[..., None] * (colour - picture)
        covered = np.maximum(covered, inside)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), covered


def _background(scene: Scene, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat colour, a faint slope of light, and the texture. Float (64, 64, 3)."""
    colour = np.array(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-6, 6, 3)
    slope = rng.uniform(-10, 10, 2) / SIZE
    light = slope[0] * (x - SIZE / 2) + slope[1] * (y - SIZE / 2)
    phase = rng.uniform(0, 16, 2)
    if scene.texture == "striped":
        light = light + 22 * np.clip(4 * np.sin(2 * np.pi * (y + phase[1]) / 16), -1, 1)
    elif scene.texture == "checkered":
        squares = np.sin(2 * np.pi * (x + phase[0]) / 16) * np.sin(2 * np.pi * (y + phase[1]) / 16)
        light = light + 22 * np.clip(5 * squares, -1, 1)
    return colour + light[..., None]


def _centres(scene: Scene, radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of the things, (x, y) in pixels: separated along the relation's axis, roughly aligned across it."""
    edge = 1.5
    if len(radii) == 1:
        r = radii[0]
        dx, dy = PLACES[scene.where]
        along = edge + r + rng.uniform(0, 3)  # from the named side
        across = SIZE / 2 + rng.uniform(-5, 5)
        return [(_from_side(dx, along) if dx else across, _from_side(dy, along) if dy else across)]
    dx, dy = RELATIONS[scene.where]
    slack = max(0.0, SIZE - 2 * edge - 2 * sum(radii) - 2)  # what is left of the axis when they just don't touch
    near, gap = np.sort(rng.uniform(0, slack, 2))
    first = edge + radii[0] + near
    second = first + radii[0] + 2 + (gap - near) + radii[1]
    middle = SIZE / 2 + rng.uniform(-7, 7)
    centres = []
    for r, along in zip(radii, (first, second), strict=True):
        across = np.clip(middle + rng.uniform(-5, 5), edge + r, SIZE - edge - r)
        centres.append((_from_side(dx, along) if dx else across, _from_side(dy, along) if dy else across))
    return centres


def _from_side(direction: int, distance: float) -> float:
    """A coordinate at `distance` from the side that `direction` (−1 or 1) points to."""
    return distance if direction < 0 else SIZE - distance


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels from the outline of a shape of radius r about the origin, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "ring":
        width = 0.24 * r
        return np.abs(np.hypot(x, y) - (r - width)) - width
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * r
    if shape == "cross":
        arm = 0.3 * r
        return np.minimum(np.maximum(np.abs(x) - arm, np.abs(y) - r), np.maximum(np.abs(x) - r, np.abs(y) - arm))
    if shape == "triangle":  # equilateral, point upwards, its box centred on the origin
        height = 0.95 * r
        slanted = (2 * np.abs(x) - (y + height)) / np.sqrt(5)
        return np.maximum(slanted, y - height)
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
