"""The places that the cameras of the rendered pedestrians watch, and what stands in front of people.

``places.json`` has the cameras, and the rows of like things that most layers of a place are: where the first stands,
how far apart they are, how far off their place (jitter), how far to the front (shift), and of which kinds they are. A
kind is a list of shapes: its name in Pillow, coordinates, colour, width of a line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from timam_lab.pedestrians.attributes import COLOURS, Colour

WIDTH, HEIGHT = SIZE = (900, 520)  # pixels of a camera's place
HORIZON = 218  # row where its wall meets its ground
Pen = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Camera:
    """A place and the look of its pictures."""

    folder: str
    wall: Colour
    ground: Colour
    layers: tuple[str, ...]  # what is drawn, in this order
    pitch: float  # radians downwards
    light: float  # where the light comes from, -1 left to 1 right
    cast: tuple[float, float, float]  # gain of red, green, blue
    shadow: float  # strength of the cast shadow, 0 to 1
    blur: float  # mean radius in pixels at a height of 192
    noise: float  # grey levels


_PLACES: dict[str, Any] = json.loads((resources.files("timam_lab.pedestrians") / "places.json").read_text("utf-8"))
CAMERAS = tuple(
    Camera(**{name: tuple(value) if isinstance(value, list) else value for name, value in camera.items()})  # type: ignore[arg-type]
    for camera in _PLACES["cameras"]
)


def dim(colour: Colour, factor: float) -> Colour:
    """A darker (or lighter) colour."""
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


def _disc(pen: Pen, x: float, y: float, radius: float, colour: Colour) -> None:
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _any_colour(rng: np.random.Generator) -> Colour:
    return list(COLOURS.values())[int(rng.integers(len(COLOURS)))]


@lru_cache(maxsize=len(CAMERAS))
def place(camera: Camera, seed: int) -> Image.Image:
    """The camera's place without people, RGB, the same in all pictures of one seed."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 5, CAMERAS.index(camera)])))
    image = Image.new("RGB", SIZE, camera.wall)
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, HORIZON, *SIZE], fill=camera.ground)
    for layer in camera.layers:
        if layer in _PLACES["rows"]:
            _draw_row(pen, rng, camera, _PLACES["rows"][layer])
        else:
            LAYERS[layer](pen, rng, camera)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    for scales, strength in (((120, 40, 12), 4), ((2, 4), 5 if "path" in camera.layers else 3.5)):
        for scale in scales:  # patches of several sizes
            coarse = rng.normal(size=(HEIGHT // scale + 2, WIDTH // scale + 2)).astype(np.float32) * strength
            pixels += np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))[..., None]
    rows = np.linspace(-14, 14, HEIGHT)[:, None, None]
    fall = np.linspace(-12, 12, WIDTH)[None, :, None] * math.copysign(1, camera.light)
    return Image.fromarray(np.clip(pixels + rows + fall, 0, 255).astype(np.uint8))


def _draw_row(pen: Pen, rng: np.random.Generator, camera: Camera, row: dict[str, Any]) -> None:
    step, jitter = rng.uniform(*row["step"]), row.get("jitter", 0)
    for x in np.arange(rng.uniform(*row["start"]), WIDTH, step):
        place = [x + rng.uniform(-jitter, jitter), rng.uniform(*row.get("shift", (0, 0)))]
        tone = int(rng.integers(-25, 60))
        colours = {
            "wall": camera.wall,
            "ground": camera.ground,
            "any": _any_colour(rng),
            "glass": (70 + tone, 84 + tone, 100 + tone),
        }
        for name, coordinates, colour, *width in row["kinds"][int(rng.integers(len(row["kinds"])))]:
            if isinstance(colour[0], str):  # goods: each of its own colour
                of_row = _any_colour(rng) if colour[0] == "goods" else colours[colour[0]]
                colour = dim(of_row, colour[1])
            points = np.add(np.reshape(coordinates, (-1, 2)), place).ravel().tolist()
            getattr(pen, name)(points, fill=tuple(colour), **({"width": width[0]} if width else {}))


def _bricks(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    joints = dim(camera.wall, 0.88)
    for row in range(0, HORIZON, 12):
        pen.line([0, row, WIDTH, row], fill=joints, width=2)
        for x in range((row // 12 % 2) * 15, WIDTH, 30):
            pen.line([x, row, x, row + 12], fill=joints, width=2)


def _trees(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    for _ in range(12):
        x, y, trunk = rng.uniform(0, WIDTH), HORIZON + rng.uniform(-20, 12), rng.uniform(7, 14)
        pen.rectangle([x - trunk / 2, 40, x + trunk / 2, y], fill=(84, 66, 50))
        for _ in range(24):
            cx, cy, r = x + rng.normal() * 36, 70 + rng.normal() * 38, rng.uniform(10, 30)
            shade = int(rng.integers(-26, 26))
            pen.ellipse([cx - r, cy - r * 0.8, cx + r, cy + r * 0.8], fill=(66 + shade, 104 + shade, 52 + shade))


def _tiles(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    """Joints of a paved floor in perspective."""
    spread, colour = int(rng.integers(40, 110)), dim(camera.ground, 0.84)
    for k in range(1, 16):
        y = HORIZON + (HEIGHT - HORIZON) * (k / 15) ** 1.7
        pen.line([0, y, WIDTH, y], fill=colour, width=1 + k // 6)
    for k in range(-40, 41):
        far, near = WIDTH / 2 + k * spread * 0.45, WIDTH / 2 + k * spread * 1.5
        pen.line([far, HORIZON, near, HEIGHT], fill=colour, width=2)


def _stairs(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    for k, y in enumerate(range(HORIZON, HEIGHT, 26)):
        pen.rectangle([0, y, WIDTH, y + 15 + k // 3], fill=dim(camera.ground, 1.12))
        pen.line([0, y + 15 + k // 3, WIDTH, y + 15 + k // 3], fill=dim(camera.ground, 0.62), width=4)


def _zebra(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    for k in range(8):
        y = HORIZON + 16 + 26 * k * (1 + 0.05 * k)
        pen.polygon([0, y + 14, WIDTH, y - 10, WIDTH, y + 4 + k, 0, y + 28 + k], fill=(206, 206, 200))


def _cars(pen: Pen, rng: np.random.Generator, camera: Camera) -> None:
    for x in np.arange(-40, WIDTH, 210.0):
        draw_car(pen, (x + float(rng.uniform(-20, 20)), HORIZON - 62.0), 105.0, 1, _any_colour(rng))


LAYERS = {"bricks": _bricks, "trees": _trees, "tiles": _tiles, "stairs": _stairs, "zebra": _zebra, "cars": _cars}


def draw_car(pen: Pen, nose: tuple[float, float], unit: float, side: int, paint: Colour) -> None:
    """A car from its nose and roof to the right (side 1) or left (-1); ``unit`` is the height of a person in pixels."""
    scale = np.array([side * unit, unit])
    for shape, colour in (
        ([[0, 0.5], [0, 0.2], [0.34, 0.16], [0.56, 0], [1.4, 0], [1.75, 0.18], [1.9, 0.22], [1.9, 0.5]], paint),
        ([[0.46, 0.16], [0.6, 0.03], [0.96, 0.03], [0.96, 0.16]], (46, 54, 64)),
        ([[1.02, 0.16], [1.02, 0.03], [1.36, 0.03], [1.6, 0.16]], (46, 54, 64)),
        ([[0, 0.36], [1.9, 0.36], [1.9, 0.5], [0, 0.5]], dim(paint, 0.7)),
    ):
        pen.polygon((np.array(shape) * scale + nose).ravel().tolist(), fill=colour)
    for wheel in (0.36, 1.5):
        for radius, colour in ((0.11 * unit, (24, 24, 26)), (0.055 * unit, (120, 122, 124))):
            _disc(pen, nose[0] + wheel * side * unit, nose[1] + 0.5 * unit, radius, colour)


def draw_obstacle(
    rng: np.random.Generator, size: tuple[int, int], feet: tuple[float, float], unit: float, camera: Camera
) -> tuple[str, Image.Image]:
    """Something in front of a person of ``unit`` pixels whose feet are there: its name, and an RGBA image."""
    (width, height), (x, ground), image = size, feet, Image.new("RGBA", size)
    pen, side = ImageDraw.Draw(image), 1 if rng.random() < 0.5 else -1
    kind = ("pillar", "bush", "car", "railing", "sign")[int(rng.integers(5))]
    top = min(ground - rng.uniform(0.16, 0.42) * unit, 0.85 * height)
    middle = x + side * rng.uniform(0.06, 0.2) * unit
    if kind == "pillar":
        for k in range(8):
            left, shade = (
                middle + (k - 4) * 0.02 * unit,
                dim(camera.wall, 0.6 + 0.07 * (k if camera.light > 0 else 7 - k)),
            )
            pen.rectangle([left, 0, left + 0.02 * unit, height], fill=shade)
    elif kind == "bush":
        for cx, cy, r in rng.uniform((0, top, 0.02 * unit), (width, height, 0.05 * unit), (90, 3)).tolist():
            leaf = int(rng.integers(-30, 30))
            _disc(pen, cx, cy, r, (58 + leaf, 96 + leaf, 46 + leaf))
    elif kind == "car":
        draw_car(pen, (x - side * rng.uniform(0.0, 0.3) * unit, top), unit, side, _any_colour(rng))
    elif kind == "sign":
        pen.rectangle([middle - 0.012 * unit, top, middle + 0.012 * unit, height], fill=(110, 112, 116))
        box, line = [middle - 0.1 * unit, top - 0.24 * unit, middle + 0.1 * unit, top], max(1, int(0.012 * unit))
        pen.rectangle(box, fill=dim(_any_colour(rng), 0.9), outline=(230, 230, 226), width=line)
    else:
        for y in np.linspace(top, height, 5):
            pen.line([0, y, width, y], fill=(150, 154, 158), width=max(1, int(0.016 * unit)))
        for left in np.arange(rng.uniform(0, 0.1) * width, width, 0.16 * width):
            pen.line([left, top, left, height], fill=(136, 140, 146), width=max(1, int(0.012 * unit)))
    return kind, image
