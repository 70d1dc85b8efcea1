"""Cameras of our rendered pedestrians: the place each one watches, its light and lens, and what gets in the way.

A camera has one fixed, textured place per seed, drawn once per process; an image looks at a window of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from timam_lab.pedestrians.attributes import COLOURS, NONE, THINGS, Identity, draw_identity
from timam_lab.pedestrians.canvas import NEUTRAL, Canvas, Colour, Tube, View, dim
from timam_lab.pedestrians.figure import Figure, draw_pose

SUPERSAMPLE = 2
_WIDTH, _HEIGHT = _PLACE = (900, 520)  # pixels of a camera's place
_HORIZON = 218  # row where its wall meets its ground
_VIEWS = {"front": 40, "three-quarter front": 75, "side": 112, "three-quarter back": 145, "back": 180}  # up to, degrees
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Camera:
    """A place and the look of its pictures."""

    folder: str
    place: str
    wall: Colour
    ground: Colour
    pitch: float  # radians downwards
    light: float  # brightest side of a body, -1 left to 1 right
    cast: tuple[float, float, float]  # gain of red, green, blue
    shadow: float  # strength of the cast shadow, 0 to 1
    blur: float  # mean radius in pixels at a height of 192
    noise: float  # grey levels


CAMERAS = (
    Camera("cam_a", "street", (150, 138, 128), (122, 122, 124), 0.16, -0.5, (1.04, 1.0, 0.95), 0.8, 0.35, 3.0),
    Camera("cam_b", "mall", (190, 184, 176), (168, 160, 148), 0.22, 0.2, (1.05, 1.0, 0.90), 0.25, 0.3, 2.5),
    Camera("cam_c", "grass", (92, 128, 78), (112, 142, 76), 0.13, 0.55, (0.99, 1.04, 0.95), 0.7, 0.45, 4.0),
    Camera("cam_d", "corridor", (186, 192, 198), (150, 156, 164), 0.26, -0.1, (0.94, 1.0, 1.07), 0.2, 0.5, 5.0),
    Camera("cam_e", "crossing", (128, 134, 142), (98, 100, 104), 0.19, 0.4, (0.97, 1.0, 1.04), 0.6, 0.4, 3.5),
    Camera("cam_f", "square", (172, 116, 92), (176, 156, 136), 0.15, -0.35, (1.06, 1.0, 0.93), 0.6, 0.3, 3.0),
)


# -- places ---------------------------------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator, scales: tuple[int, ...], strength: float) -> np.ndarray:
    """Noise with patches of several sizes, (height, width, 1), in grey levels around 0."""
    total = np.zeros((_HEIGHT, _WIDTH), np.float32)
    for scale in scales:
        coarse = rng.normal(size=(_HEIGHT // scale + 2, _WIDTH // scale + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize(_PLACE, Image.Resampling.BICUBIC))
    return total[..., None] * strength


def _windows(pen: ImageDraw.ImageDraw, rng: np.random.Generator, wall: Colour, step: int) -> None:
    bottom, width = _HORIZON - 36, int(step * 0.62)
    for x in range(int(rng.integers(10, 40)), _WIDTH, step):
        top, tone = int(rng.integers(20, 40)), int(rng.integers(-25, 60))
        glass = (70 + tone, 84 + tone, 100 + tone)
        glare = (100 + tone, 114 + tone, 130 + tone)
        pen.rectangle([x - 4, top - 4, x + width + 4, bottom + 6], fill=dim(wall, 0.75))
        pen.rectangle([x, top, x + width, bottom], fill=glass)
        pen.polygon([x, top, x + width * 0.5, top, x + width * 0.15, bottom, x, bottom], fill=glare)
        pen.line([x + width // 2, top, x + width // 2, bottom], fill=dim(wall, 0.6), width=4)


def _tiles(pen: ImageDraw.ImageDraw, colour: Colour, spread: int) -> None:
    """Joints of a paved floor in perspective."""
    for k in range(1, 16):
        y = _HORIZON + (_HEIGHT - _HORIZON) * (k / 15) ** 1.7
        pen.line([0, y, _WIDTH, y], fill=colour, width=1 + k // 6)
    for k in range(-40, 41):
        far, near = _WIDTH / 2 + k * spread * 0.45, _WIDTH / 2 + k * spread * 1.5
        pen.line([far, _HORIZON, near, _HEIGHT], fill=colour, width=2)


def _trees(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for _ in range(12):
        x, y, trunk = rng.uniform(0, _WIDTH), _HORIZON + rng.uniform(-20, 12), rng.uniform(7, 14)
        pen.rectangle([x - trunk / 2, 40, x + trunk / 2, y], fill=(84, 66, 50))
        for _ in range(24):
            cx, cy, r = x + rng.normal() * 36, 70 + rng.normal() * 38, rng.uniform(10, 30)
            shade = int(rng.integers(-26, 26))
            pen.ellipse([cx - r, cy - r * 0.8, cx + r, cy + r * 0.8], fill=(66 + shade, 104 + shade, 52 + shade))


def _draw_place(pen: ImageDraw.ImageDraw, rng: np.random.Generator, camera: Camera) -> None:
    width, horizon, place = _WIDTH, _HORIZON, camera.place
    joints, shade = dim(camera.ground, 0.82), dim(camera.wall, 0.88)
    if place == "street":
        _windows(pen, rng, camera.wall, 130)
        pen.rectangle([0, horizon, width, horizon + 70], fill=(164, 160, 152))
        _tiles(pen, (140, 136, 130), 40)
        pen.rectangle([0, horizon + 74, width, _HEIGHT], fill=camera.ground)
        pen.rectangle([0, horizon + 70, width, horizon + 78], fill=(196, 194, 188))
        pen.line([0, horizon + 190, width, horizon + 210], fill=(214, 210, 200), width=9)
    elif place == "mall":
        _windows(pen, rng, camera.wall, 210)
        _tiles(pen, joints, 70)
    elif place == "grass":
        _trees(pen, rng)
        pen.polygon([0, horizon + 60, width, horizon + 20, width, horizon + 120, 0, _HEIGHT], fill=(168, 160, 146))
    elif place == "corridor":
        for x in range(30, width, 180):
            pen.rectangle([x, 30, x + 80, horizon], fill=dim(camera.wall, 0.8))
            pen.rectangle([x + 8, 60, x + 72, horizon - 70], fill=(196, 210, 222))
        pen.rectangle([0, horizon - 14, width, horizon], fill=(96, 100, 108))
        _tiles(pen, joints, 110)
    elif place == "crossing":
        _windows(pen, rng, camera.wall, 95)
        for k in range(8):
            y = horizon + 16 + 26 * k * (1 + 0.05 * k)
            pen.polygon([0, y + 14, width, y - 10, width, y + 4 + k, 0, y + 28 + k], fill=(206, 206, 200))
    else:  # a square with a wall of bricks
        for row in range(0, horizon, 12):
            pen.line([0, row, width, row], fill=shade, width=2)
            for x in range((row // 12 % 2) * 15, width, 30):
                pen.line([x, row, x, row + 12], fill=shade, width=2)
        _windows(pen, rng, camera.wall, 260)
        _tiles(pen, joints, 45)


def _furnish(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Lamp posts, planters and benches at the back of the place."""
    for x in np.arange(40, _WIDTH, 170.0):
        x, y = x + float(rng.uniform(-50, 50)), _HORIZON + float(rng.uniform(8, 50))
        kind = int(rng.integers(3))
        if kind == 0:
            pen.rectangle([x - 4, 0, x + 4, y], fill=(70, 74, 78))
        elif kind == 1:
            pen.rectangle([x - 30, y - 34, x + 30, y], fill=(116, 96, 82))
            for dx, dy, r in rng.uniform((-30, -62, 10), (30, -34, 20), (14, 3)):
                pen.ellipse([x + dx - r, y + dy - r, x + dx + r, y + dy + r], fill=(62, 98 + int(dx), 56))
        else:
            for low, high in ((-44, -36), (-24, -17)):
                pen.rectangle([x - 50, y + low, x + 50, y + high], fill=(104, 76, 54))
            for leg in (-42, 36):
                pen.rectangle([x + leg, y - 44, x + leg + 6, y], fill=(60, 60, 64))


@lru_cache(maxsize=16)
def _place(camera: Camera, seed: int) -> Image.Image:
    """The camera's place without people, RGB."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 5, CAMERAS.index(camera)])))
    image = Image.new("RGB", _PLACE, camera.wall)
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, _HORIZON, *_PLACE], fill=camera.ground)
    _draw_place(pen, rng, camera)
    if camera.place != "corridor":
        _furnish(pen, rng)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), np.float32) + _clouds(rng, (120, 40, 12), 4)
    pixels = pixels + _clouds(rng, (2, 4), 7 if camera.place == "grass" else 3.5)
    rows = np.linspace(-14, 14, _HEIGHT)[:, None, None]
    fall = np.linspace(-12, 12, _WIDTH)[None, :, None] * math.copysign(1, camera.light)
    return Image.fromarray(np.clip(pixels + rows + fall, 0, 255).astype(np.uint8))


def _window(rng: np.random.Generator, camera: Camera, size: tuple[int, int], seed: int) -> Image.Image:
    """A random window of the place, stretched to ``size``."""
    height = rng.uniform(0.72, 1.0) * _HEIGHT
    width = height * size[0] / size[1]
    left, top = rng.uniform(0, _WIDTH - width), rng.uniform(0, _HEIGHT - height)
    box, coarse = (left, top, left + width, top + height), (size[0] // SUPERSAMPLE, size[1] // SUPERSAMPLE)
    return _place(camera, seed).resize(coarse, Image.Resampling.BILINEAR, box).resize(size, Image.Resampling.NEAREST)


# -- what gets in the way ---------------------------------------------------------------------------------------------


def _occlude(rng: np.random.Generator, canvas: Canvas, view: View, camera: Camera) -> tuple[str, Box]:
    """Draw something in front of the person; returns its name and its box in pixels of the canvas."""
    (width, height), unit = canvas.colours.size, view.scale
    kind = ("pillar", "bush", "passer-by", "car", "railing")[int(rng.integers(5))]
    side = 1 if rng.random() < 0.5 else -1
    if kind == "pillar":
        middle, half = view.x + side * rng.uniform(0.10, 0.2) * unit, rng.uniform(0.06, 0.1) * unit
        post = Tube(np.array([[middle, -5.0], [middle, height * 0.5], [middle, height + 5.0]]), np.full(3, half))
        canvas.solid(post, dim(camera.wall, 0.8))
        return kind, (middle - half, 0, middle + half, height)
    if kind == "passer-by":
        other = draw_identity(rng)
        near = replace(view, x=view.x + side * rng.uniform(0.26, 0.34) * unit, yaw=rng.uniform(0, 2 * math.pi),
                       scale=unit * rng.uniform(1.0, 1.12), ground=view.ground + 0.05 * unit)  # fmt: skip
        Figure(rng, other, draw_pose(rng, other), near).draw(canvas)
        half = 0.12 * near.scale
        return kind, (near.x - half, near.ground - near.scale, near.x + half, height)
    top = view.ground - rng.uniform(0.16, 0.42) * unit
    if kind == "bush":
        for _ in range(70):
            x, y = rng.uniform(0, width), rng.uniform(top, height)
            shade, r = int(rng.integers(-30, 30)), rng.uniform(0.02, 0.05) * unit
            canvas.ball(np.array([x, y]), r, (58 + shade, 96 + shade, 46 + shade), NEUTRAL - 10)
        return kind, (0, top, width, height)
    if kind == "car":
        return kind, _draw_car(rng, canvas, view, top, side)
    for y in np.linspace(top, height, 5):
        canvas.line(np.array([[0, y], [width, y]]), (150, 154, 158), 0.016 * unit)
    for x in np.arange(rng.uniform(0, 0.1) * width, width, 0.16 * width):
        canvas.line(np.array([[x, top], [x, height]]), (136, 140, 146), 0.012 * unit)
    return kind, (0, height, 0, height)  # a railing hides nothing entirely


def _draw_car(rng: np.random.Generator, canvas: Canvas, view: View, top: float, side: int) -> Box:
    """A parked car that reaches out of the picture on one side; returns its box."""
    paint, unit = list(COLOURS.values())[int(rng.integers(len(COLOURS)))], view.scale
    nose = view.x - side * rng.uniform(0.0, 0.12) * unit

    def outline(*points: tuple[float, float]) -> list[float]:  # lengths from the nose and the roof, in heights
        return (np.array(points) * [side * unit, unit] + [nose, top]).ravel().tolist()

    body = outline((0, 0.5), (0, 0.16), (0.03, 0.13), (0.2, 0.10), (0.34, 0.0), (2, 0.0), (2, 0.5))
    canvas.polygon(body, paint)
    canvas.polygon(outline((0.25, 0.11), (0.36, 0.02), (2, 0.02), (2, 0.11)), (46, 54, 64), NEUTRAL + 20)
    for low, light in ((0.17, NEUTRAL - 30), (0.25, NEUTRAL - 70)):
        canvas.light_pen.polygon(outline((0, low), (2, low), (2, 0.5), (0, 0.5)), fill=light)
    canvas.ball(np.array([nose + side * 0.2 * unit, top + 0.31 * unit]), 0.085 * unit, (24, 24, 26))
    end = nose + side * 2 * unit
    return min(nose, end), top + 0.06 * unit, max(nose, end), canvas.colours.size[1]


def _covered(box: Box, cover: Box) -> float:
    """Share of ``box`` inside ``cover``."""
    across = max(0.0, min(box[2], cover[2]) - max(box[0], cover[0]))
    down = max(0.0, min(box[3], cover[3]) - max(box[1], cover[1]))
    return across * down / max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)


def _hidden(figure: Figure, cover: Box | None, size: tuple[int, int]) -> list[str]:
    """Attributes of the person that this picture does not show."""
    identity, facing = figure.identity, figure.facing
    parts = {**THINGS, "head": THINGS["hair"] + THINGS["headwear"] + THINGS["glasses"]}
    hidden: set[str] = set()
    for part, box in figure.boxes.items():
        outside = 1 - _covered(box, (0, 0, *size))
        if outside + (_covered(box, cover) if cover else 0.0) > 0.6:
            hidden.update(parts[part])
    if facing < 0.1:
        hidden.update(("glasses", "inner_colour"))
    if facing < 0.25 and identity.upper_pattern == "logo":
        hidden.update(("upper_pattern", "upper_second"))
    if figure.hides_bag():
        hidden.update(parts["bag"])
    if identity.headwear != NONE and identity.hair_style in ("short", "bald", "bun"):
        hidden.update(parts["hair"])
    if identity.hair_style == "ponytail" and facing > 0.3:
        hidden.add("hair_style")
    return sorted(hidden)


# -- one picture ------------------------------------------------------------------------------------------------------


def _draw_view(rng: np.random.Generator, identity: Identity, camera: Camera, size: tuple[int, int]) -> View:
    """Where the person stands, how large, and which way they face, on a canvas of ``size``."""
    yaw = math.radians(rng.choice([0, 0, 0, 180, 180, 45, -45, 135, -135, 90, -90]) + rng.normal() * 14)
    tall = {"short": 0.94, "average": 1.0, "tall": 1.055}[identity.height]
    breadth = {"slim": 0.88, "average": 1.0, "heavy": 1.22}[identity.build]
    scale = min(size[1] * rng.uniform(0.84, 0.93), size[0] * 2.05) * tall
    ground = size[1] * rng.uniform(0.955, 1.0)
    return View(yaw, camera.pitch * rng.uniform(0.7, 1.2), size[0] * rng.uniform(0.44, 0.56), ground, scale, breadth)


def _cast_shadow(rng: np.random.Generator, canvas: Canvas, view: View, camera: Camera) -> None:
    unit, x, y = view.scale, view.x, view.ground - 0.03 * view.scale
    long, lean = rng.uniform(0.25, 0.5) * unit, -math.copysign(rng.uniform(0.3, 0.6), camera.light) * unit
    shadow = [x - 0.09 * unit, y, x + 0.09 * unit, y,
              x + lean + 0.05 * unit, y - 0.25 * long, x + lean - 0.06 * unit, y - 0.3 * long]  # fmt: skip
    canvas.light_pen.polygon(shadow, fill=NEUTRAL - int(70 * camera.shadow))
    for radius, value in ((0.17, 40), (0.13, 75), (0.09, 105)):
        box = [x - radius * unit, y - 0.2 * radius * unit, x + radius * unit, y + 0.22 * radius * unit]
        canvas.light_pen.ellipse(box, fill=NEUTRAL - value)
    canvas.soften(0.012 * unit)


def _develop(rng: np.random.Generator, canvas: Canvas, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """Multiply the layers, then what a camera adds: exposure, colour cast, noise, blur."""
    colours = np.asarray(canvas.colours.reduce(SUPERSAMPLE), np.float32)
    lights = np.asarray(canvas.lights.reduce(SUPERSAMPLE), np.float32)
    gains = np.array(camera.cast, np.float32) * rng.normal(1, 0.02, 3).astype(np.float32)
    gains = gains * np.float32(rng.uniform(0.82, 1.14))
    contrast = np.float32(rng.uniform(0.86, 1.08))
    pixels = (colours * (lights / NEUTRAL)[..., None] * gains - 118) * contrast + 118 + np.float32(rng.normal(2, 5))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    radius = abs(rng.normal(camera.blur - 0.1, 0.3)) * size[1] / 192
    if radius > 0.2:
        image = image.filter(ImageFilter.BoxBlur(min(radius, 1.4)))
    noise = rng.standard_normal((size[1], size[0], 1), np.float32) * camera.noise * np.float32(rng.uniform(0.2, 0.9))
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))


def view_name(yaw: float) -> str:
    """The name of a viewpoint; ``yaw`` in radians, 0 is front."""
    degrees = abs(math.degrees(math.atan2(math.sin(yaw), math.cos(yaw))))
    return next(name for name, up_to in _VIEWS.items() if degrees <= up_to + 1e-9)


def render_image(rng: np.random.Generator, identity: Identity, shades: int, camera: Camera, size: tuple[int, int],
                 occlusion: float, seed: int) -> tuple[Image.Image, dict[str, Any]]:  # fmt: skip
    """Render one picture of a person.

    Args:
        rng: of this image: pose, view, window, lens.
        identity: who.
        shades: number of the person; with ``seed`` it fixes the shades of their colours.
        camera: whose picture it is.
        size: width and height in pixels.
        occlusion: probability that something hides part of the person.
        seed: of the benchmark.

    Returns:
        The RGB image, and its ground truth: camera, view, yaw (degrees), pose, occlusion, hidden, jpeg_quality.
    """
    canvas_size = (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE)
    canvas = Canvas(_window(rng, camera, canvas_size, seed), camera.light)
    view = _draw_view(rng, identity, camera, canvas_size)
    pose = draw_pose(rng, identity)
    _cast_shadow(rng, canvas, view, camera)
    own = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 6, shades])))
    figure = Figure(own, identity, pose, view)
    figure.draw(canvas)
    occluder, cover = _occlude(rng, canvas, view, camera) if rng.random() < occlusion else (None, None)
    canvas.soften(0.006 * view.scale)
    truth = {"camera": camera.folder, "view": view_name(view.yaw), "yaw": round(math.degrees(view.yaw)) % 360,
             "pose": pose.name, "occlusion": occluder, "hidden": _hidden(figure, cover, canvas_size),
             "jpeg_quality": int(rng.integers(62, 93))}  # fmt: skip
    return _develop(rng, canvas, camera, size), truth
