"""Render one picture of a pedestrian: the person, others, obstacles, light and lens, and what of it can be seen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from timam_lab.pedestrians import places
from timam_lab.pedestrians.attributes import NONE, THINGS, Identity, Rng, draw_identity
from timam_lab.pedestrians.canvas import Canvas, View
from timam_lab.pedestrians.figure import MATERIAL, SURFACE, SURFACES, Figure, draw_build, draw_pose
from timam_lab.pedestrians.spec import TALLEST, PedestrianSpec

SUPERSAMPLE = 2
_VIEWS = {"front": 40, "three-quarter front": 75, "side": 112, "three-quarter back": 145, "back": 180}  # up to, degrees
_CUTS = ("legs", "legs", "head", "side", "side")


def render_image(
    rng: Rng, identity: Identity, number: int, camera: places.Camera, spec: PedestrianSpec
) -> tuple[Image.Image, dict[str, Any]]:
    """Render one picture of a person.

    Args:
        rng: of this picture: pose, view, window, lens.
        identity: who.
        number: of the person; with the seed it fixes their body, gait and shades.
        camera: whose picture it is.

    Returns:
        The RGB image, and its ground truth: camera, view, yaw (degrees), pose, original_height (pixels), cut_off (what
        the picture's edge cuts, or null), occlusion (what stands in front, or null), others (number of other people),
        hidden (attributes that it does not show), jpeg_quality.
    """
    size = (spec.width * SUPERSAMPLE, spec.height * SUPERSAMPLE)
    own = np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, 6, number])))
    cut = _CUTS[int(rng.integers(5))] if rng.random() < spec.cut_off else None
    view, build = _draw_view(rng, camera, size, cut), draw_build(own, identity)
    figures = [Figure(identity, build, draw_pose(rng, identity, build), view), *_company(rng, view, size, spec)]
    canvas, unit = Canvas(*size), view.scale
    for k, figure in enumerate(figures):
        figure.draw(canvas, k * len(SURFACES))
    pixels = np.asarray(_background(rng, camera, spec, figures), np.float32)
    pixels = pixels.repeat(SUPERSAMPLE, 0).repeat(SUPERSAMPLE, 1).reshape(-1, 3)
    ambient, sun = rng.uniform(0.42, 0.6), np.array([camera.light + rng.normal() * 0.2, -0.65, 0.6])
    painted = [figure.paint(canvas, sun / np.sqrt((sun**2).sum()), ambient) for figure in figures]
    for where, colours, *_ in painted:
        pixels[where] = colours
    kind, clear = None, np.ones(len(pixels), bool)
    if rng.random() < spec.occlusion:
        kind, obstacle = places.draw_obstacle(rng, size, (view.x, view.ground), unit, camera)
        cover = np.asarray(obstacle).reshape(-1, 4)
        clear = cover[:, 3] == 0
        pixels[~clear] = cover[~clear, :3]
    where, _, surface, material = painted[0]
    low, high = math.log(spec.smallest), math.log(TALLEST)
    original = round(math.exp(low + (high - low) * rng.random() ** 0.6))  # small ones are frequent, as in the street
    seen = clear[where]
    degrees = abs(math.degrees(math.atan2(math.sin(view.yaw), math.cos(view.yaw))))
    view_name = next(name for name, up_to in _VIEWS.items() if degrees <= up_to + 1e-9)
    hidden = hidden_attributes(figures[0], surface[seen], material[seen], original / size[1])
    truth = {"camera": camera.folder, "view": view_name, "yaw": round(math.degrees(view.yaw)) % 360,
             "pose": figures[0].pose.name, "original_height": original, "cut_off": cut, "occlusion": kind,
             "others": len(figures) - 1, "hidden": hidden, "jpeg_quality": int(rng.integers(62, 93))}  # fmt: skip
    return _develop(rng, pixels.reshape(size[1], size[0], 3), camera, spec, original), truth


def _draw_view(rng: Rng, camera: places.Camera, size: tuple[int, int], cut: str | None) -> View:
    """Where the person stands, how large, and which way they face, on a canvas of ``size``."""
    yaw = math.radians(rng.choice([0, 0, 0, 180, 180, 45, -45, 135, -135, 90, -90]) + rng.normal() * 14)
    scale = min(size[1] * rng.uniform(0.76, 0.93), size[0] * 2.05)
    x, ground = size[0] * rng.uniform(0.43, 0.57), size[1] * rng.uniform(0.94, 0.995)
    if cut == "legs":
        scale *= rng.uniform(1.1, 1.4)
        ground = size[1] + scale * rng.uniform(0.15, 0.26)
    elif cut == "head":
        ground = scale * rng.uniform(0.84, 0.92)
    elif cut == "side":
        x += rng.choice([-1, 1]) * scale * rng.uniform(0.17, 0.24)
    return View(yaw, camera.pitch * rng.uniform(0.7, 1.2), x, ground, scale, rng.uniform(0.92, 1.08))


def _company(rng: Rng, view: View, size: tuple[int, int], spec: PedestrianSpec) -> list[Figure]:
    """Other people: most of them farther away, some beside the person, partly behind or in front."""
    others: list[Figure] = []
    while len(others) < 3 and rng.random() < spec.company:
        identity, far, side = draw_identity(rng), rng.random() < 0.7, rng.choice([-1, 1])
        build, share = draw_build(rng, identity), rng.uniform(0.45, 0.85) if far else rng.uniform(0.95, 1.1)
        x = rng.uniform(0, size[0]) if far else view.x + side * rng.uniform(0.27, 0.4) * view.scale
        there = replace(view, yaw=rng.uniform(-math.pi, math.pi), x=x, scale=view.scale * share,
                        ground=view.ground - (1 - share) * 0.32 * view.scale,
                        distance=(1 - share) * 2 * view.scale)  # fmt: skip
        others.append(Figure(identity, build, draw_pose(rng, identity, build), there))
    return others


def _background(rng: Rng, camera: places.Camera, spec: PedestrianSpec, figures: list[Figure]) -> Image.Image:
    """A random window of the place, with the shadows of the people in it, at the size of the picture."""
    size, height = (spec.width, spec.height), rng.uniform(0.6, 1.0) * places.HEIGHT
    width = min(height * size[0] / size[1], places.WIDTH)
    left, top = rng.uniform(0, places.WIDTH - width), rng.uniform(0, places.HEIGHT - height)
    box = (left, top, left + width, top + height)
    window = places.place(camera, spec.seed).resize(size, Image.Resampling.BILINEAR, box)
    pen = ImageDraw.Draw(shadow := Image.new("L", size))
    for figure in figures:
        unit, x, y = (value / SUPERSAMPLE for value in (figure.unit, figure.view.x, figure.view.ground))
        y -= 0.03 * unit
        lean, long = -math.copysign(rng.uniform(0.3, 0.6), camera.light) * unit, rng.uniform(0.25, 0.5) * unit
        pen.polygon([x - 0.09 * unit, y, x + 0.09 * unit, y, x + lean + 0.05 * unit, y - 0.25 * long,
                     x + lean - 0.06 * unit, y - 0.3 * long], fill=int(110 * camera.shadow))  # fmt: skip
        pen.ellipse([x - 0.15 * unit, y - 0.035 * unit, x + 0.15 * unit, y + 0.04 * unit], fill=120)
    shadow = shadow.filter(ImageFilter.BoxBlur(0.01 * spec.height))
    return Image.composite(Image.new("RGB", size, (12, 12, 16)), window, shadow)


def _develop(rng: Rng, pixels: np.ndarray, camera: places.Camera, spec: PedestrianSpec, original: int) -> Image.Image:
    """What a camera adds: exposure, colour cast, contrast, saturation, blur, noise, a low resolution."""
    height, width, step = spec.height, spec.width, range(SUPERSAMPLE)
    pixels = np.sum([pixels[i::SUPERSAMPLE, j::SUPERSAMPLE] for i in step for j in step], axis=0) / SUPERSAMPLE**2
    gains = np.array(camera.cast) * rng.normal(1, 0.035, 3) * rng.uniform(0.76, 1.16)
    contrast, saturation = rng.uniform(0.82, 1.1), rng.uniform(0.75, 1.1)
    pixels = (pixels * gains.astype(np.float32) - 118) * np.float32(contrast) + np.float32(118 + rng.normal(2, 7))
    grey = pixels.mean(axis=2, keepdims=True)
    image = _image(grey + (pixels - grey) * np.float32(saturation))
    radius = abs(rng.normal(camera.blur - 0.1, 0.3)) * min(height, original) / 192
    if radius > 0.2:
        image = image.filter(ImageFilter.BoxBlur(min(radius, 1.4)))
    if original < height:
        image = image.resize((max(8, round(width * original / height)), original), Image.Resampling.BOX)
    noise = rng.standard_normal((image.height, image.width, 1), np.float32)
    noise *= np.float32(camera.noise * rng.uniform(0.2, 0.9))
    return _image(np.asarray(image, np.float32) + noise).resize((width, height), Image.Resampling.BICUBIC)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def hidden_attributes(figure: Figure, surface: np.ndarray, material: np.ndarray, zoom: float) -> list[str]:
    """Attributes of the person that a picture does not show, sorted.

    Args:
        figure: the person, drawn.
        surface, material: of the pixels of the canvas where the person can be seen.
        zoom: size of a canvas pixel in original pixels.
    """
    identity, facing, unit = figure.identity, math.cos(figure.view.yaw), figure.unit * zoom
    counts = np.bincount(surface, minlength=len(SURFACES)).tolist()
    share = {name: counts[k] / max(figure.area[name], 1.0) for name, k in SURFACE.items()}  # of a surface
    pixels = {name: counts[k] * zoom**2 for name, k in SURFACE.items()}
    paint = dict(zip(MATERIAL, np.bincount(material, minlength=len(MATERIAL)) * zoom**2, strict=True))
    head = sum(pixels[name] for name in ("head", "hair", "tail", "headwear")) > 0.6 * figure.area["head"] * zoom**2
    torso, bare = share["torso"] > 0.3, identity.headwear == NONE
    lower = share["torso" if identity.lower == NONE else "skirt" if "skirt" in identity.lower else "leg"]
    hair = bare or (identity.hair_style in ("shoulder length", "long", "ponytail") and identity.headwear != "headscarf")
    tail = identity.hair_style not in ("ponytail", "bun", "long") or pixels["tail"] > 8

    def enough(name: str, least: float) -> bool:  # of a thing that is not there, nothing need be seen
        return getattr(identity, name) == NONE or paint[name] >= least

    glasses = head and facing > 0.15 and unit > 60 and enough("glasses", 2.5)
    things = {"person": head or torso, "hair": head and hair and tail, "headwear": head and enough("headwear", 14),
              "glasses": glasses, "scarf": torso and enough("scarf", 10), "upper": torso, "lower": lower > 0.1,
              "shoes": share["shoes"] > 0.3 and pixels["shoes"] > 14, "bag": torso and enough("bag", 14)}  # fmt: skip
    coarse = {"logo": 0, "colour block": 0, "camouflage": 50}.get(identity.upper_pattern, 70)  # is the height needed
    single = {
        "age": head,
        "height": head and torso and lower > 0.25,
        "build": head and torso and lower > 0.25,
        "lower": lower > 0.25,
        "hair_colour": identity.hair_colour == NONE or paint["hair"] >= 10,
        "inner_colour": identity.inner_colour == NONE or paint["inner"] >= 12,
        "upper_pattern": identity.upper_second == NONE or (paint["second"] >= 14 and unit >= coarse),
        "upper_second": identity.upper_second == NONE or (paint["second"] >= 14 and unit >= coarse),
    }
    hidden = {name for thing, names in THINGS.items() if not things[thing] for name in names}
    return sorted(hidden | {name for name, shown in single.items() if not shown})
