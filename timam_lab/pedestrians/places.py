"""The places that the cameras of the rendered pedestrians watch, and what stands in front of people.

``places.json`` has the cameras, and the rows of like things that most layers of a place are: where the first stands,
how far apart they are, how far off their place (jitter), how far to the front (shift), and of which kinds they are. A
kind is a list of shapes, as an obstacle: the name in Pillow, coordinates, colour, width of a line.
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

from timam_lab.pedestrians.attributes import COLOURS, Colour, Rng

WIDTH, HEIGHT = SIZE = (900, 520)  # pixels of a camera's place
HORIZON = 218  # row where its wall meets its ground
Pen = ImageDraw.ImageDraw
Pair = tuple[float, float]


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


def _any_colour(rng: Rng) -> Colour:
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
            {"bricks": _bricks, "trees": _trees, "tiles": _tiles}[layer](pen, rng, camera)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    for scales, strength in (((120, 40, 12), 4), ((2, 4), 5 if "path" in camera.layers else 3.5)):
        for scale in scales:  # patches of several sizes
            coarse = rng.normal(size=(HEIGHT // scale + 2, WIDTH // scale + 2)).astype(np.float32) * strength
            pixels += np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))[..., None]
    rows = np.linspace(-14, 14, HEIGHT)[:, None, None]
    fall = np.linspace(-12, 12, WIDTH)[None, :, None] * math.copysign(1, camera.light)
    return Image.fromarray(np.clip(pixels + rows + fall, 0, 255).astype(np.uint8))


def _draw_row(pen: Pen, rng: Rng, camera: Camera, row: dict[str, Any]) -> None:
    jitter, scale = row.get("jitter", 0), row.get("scale", 1)
    step, first = rng.uniform(*row["step"]), rng.uniform(*row["start"])
    for x in np.arange(first, WIDTH, step):
        at = (x + rng.uniform(-jitter, jitter), rng.uniform(*row.get("shift", (0, 0))))
        tone = int(rng.integers(-25, 60))
        colours = {name: _any_colour(rng) for name in ("any", "other", "third")}
        colours |= {"wall": camera.wall, "ground": camera.ground, "glass": (70 + tone, 84 + tone, 100 + tone)}
        _draw_shapes(pen, row["kinds"][int(rng.integers(len(row["kinds"])))], colours, at, (scale, scale))


def _draw_shapes(pen: Pen, shapes: list[list], colours: dict[str, Colour], at: Pair, scale: Pair) -> None:
    """Shapes whose coordinates are in ``scale`` pixels, from ``at``; their colours by value, or by name and factor."""
    for name, coordinates, colour, *width in shapes:
        fill = dim(colours[colour[0]], colour[1]) if isinstance(colour[0], str) else tuple(colour)
        points = np.reshape(coordinates, (-1, 2)) * scale + at
        points = np.sort(points, axis=0) if name in ("rectangle", "ellipse") else points  # where they are mirrored
        getattr(pen, name)(points.ravel().tolist(), fill=fill, **({"width": width[0]} if width else {}))


def _bricks(pen: Pen, rng: Rng, camera: Camera) -> None:
    joints = dim(camera.wall, 0.88)
    for row in range(0, HORIZON, 12):
        pen.line([0, row, WIDTH, row], fill=joints, width=2)
        for x in range((row // 12 % 2) * 15, WIDTH, 30):
            pen.line([x, row, x, row + 12], fill=joints, width=2)


def _trees(pen: Pen, rng: Rng, camera: Camera) -> None:
    for _ in range(12):
        x, y, trunk = rng.uniform(0, WIDTH), HORIZON + rng.uniform(-20, 12), rng.uniform(7, 14)
        pen.rectangle([x - trunk / 2, 40, x + trunk / 2, y], fill=(84, 66, 50))
        for _ in range(24):
            cx, cy, r = x + rng.normal() * 36, 70 + rng.normal() * 38, rng.uniform(10, 30)
            shade = int(rng.integers(-26, 26))
            pen.ellipse([cx - r, cy - r * 0.8, cx + r, cy + r * 0.8], fill=(66 + shade, 104 + shade, 52 + shade))


def _tiles(pen: Pen, rng: Rng, camera: Camera) -> None:
    """Joints of a paved floor in perspective."""
    spread, colour = int(rng.integers(40, 110)), dim(camera.ground, 0.84)
    for k in range(1, 16):
        y = HORIZON + (HEIGHT - HORIZON) * (k / 15) ** 1.7
        pen.line([0, y, WIDTH, y], fill=colour, width=1 + k // 6)
    for k in range(-40, 41):
        far, near = WIDTH / 2 + k * spread * 0.45, WIDTH / 2 + k * spread * 1.5
        pen.line([far, HORIZON, near, HEIGHT], fill=colour, width=2)


def draw_obstacle(rng: Rng, size: tuple[int, int], feet: Pair, unit: float, camera: Camera) -> tuple[str, Image.Image]:
    """Something in front of a person of ``unit`` pixels whose feet are there: its name, and an RGBA image."""
    (width, height), (x, ground), image = size, feet, Image.new("RGBA", size)
    pen, side = ImageDraw.Draw(image), 1 if rng.random() < 0.5 else -1
    kind = ("pillar", "bush", "car", "railing", "sign")[int(rng.integers(5))]
    top = min(ground - rng.uniform(0.16, 0.42) * unit, 0.85 * height)
    middle = x + side * rng.uniform(0.06, 0.2) * unit
    if kind == "bush":
        for cx, cy, r in rng.uniform((0, top, 0.02 * unit), (width, height, 0.05 * unit), (90, 3)).tolist():
            leaf = int(rng.integers(-30, 30))
            pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=(58 + leaf, 96 + leaf, 46 + leaf))
    elif kind == "railing":
        for y in np.linspace(top, height, 5):
            pen.line([0, y, width, y], fill=(150, 154, 158), width=max(1, int(0.016 * unit)))
        for left in np.arange(rng.uniform(0, 0.1) * width, width, 0.16 * width):
            pen.line([left, top, left, height], fill=(136, 140, 146), width=max(1, int(0.012 * unit)))
    else:
        nose = x - side * rng.uniform(0.0, 0.3) * unit if kind == "car" else middle
        colours = {"wall": camera.wall} | ({} if kind == "pillar" else {"any": _any_colour(rng)})
        facing = -side if kind == "pillar" and camera.light * side < 0 else side
        _draw_shapes(pen, _PLACES["obstacles"][kind], colours, (nose, top), (facing * unit, unit))
    return kind, image
