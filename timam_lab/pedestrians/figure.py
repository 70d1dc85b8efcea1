"""Draw one rendered pedestrian: a jointed body in three dimensions, dressed, and painted where it can be seen.

Lengths are in units of the person's height. Body axes: x to the person's own left, y up, z ahead; the origin is on the
ground between the feet. ``yaw`` turns the person: 0 faces the camera, pi shows the back, pi/2 faces the right of the
image. So a bag at x > 0 (the person's left) is on the right of the image from the front and on its left from the back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from timam_lab.pedestrians import attributes
from timam_lab.pedestrians.attributes import COLOURS, NONE, TABLES, Colour, Identity, Rng
from timam_lab.pedestrians.canvas import Array, Canvas, View

SHAPES = {name: np.array(rows) for name, rows in TABLES["shapes"].items()}  # top to bottom: y, half-width, half-depth
LEG_CUTS: dict[str, list[float]] = TABLES["leg_cuts"]  # share of the leg, width added at the thigh, at the ankle
SKIRT_CUTS: dict[str, list[float]] = TABLES["skirt_cuts"]  # height of the hem, width added there
BAGS: dict[str, list[float]] = TABLES["bags"]  # half-width, half-depth, half-height, width at the top
# A solid has a surface, and each surface a material unless something else is painted there. Both go by number.
SURFACES: dict[str, str] = TABLES["surfaces"]  # surface to material
MATERIALS: list[str] = TABLES["materials"]
SURFACE = {name: number for number, name in enumerate(SURFACES)}
MATERIAL = {name: number for number, name in enumerate(MATERIALS)}
_OF_HEAD = ("head", "face", "hair", "tail", "headwear")
_CHIN, _HIP = 0.868, 0.505  # heights


class Cut(NamedTuple):
    """How an upper garment is cut: lengths, but the sleeve is a share of the arm."""

    hem: float  # height
    sleeve: float
    loose: float  # width added all around
    flare: float  # and at the hem
    collar: str


@dataclass(frozen=True)
class Build:
    """A person's own body, gait and shades, the same in all pictures: factors around 1, and colours by material."""

    shoulders: float
    hips: float
    stride: float
    arms: float
    stoop: float  # radians
    pitch: float  # of a pattern
    hairline: float  # height
    colours: dict[str, Colour]


def draw_build(rng: Rng, identity: Identity) -> Build:
    """What is a person's own beside the attributes; ``rng`` is the person's."""
    old, unused = identity.age == "elderly", (120, 120, 120)
    names = ("upper", "inner", "lower", "headwear", "scarf", "shoes", "bag")
    colours = {name: COLOURS.get(getattr(identity, f"{name}_colour"), unused) for name in names}
    colours["second"] = COLOURS.get(identity.upper_second, unused)
    if identity.lower == "jeans":
        colours["lower"] = attributes.DENIM_COLOURS[identity.lower_colour]
    colours["hair"] = attributes.HAIR_COLOURS.get(identity.hair_colour, unused)
    colours["skin"] = attributes.SKIN_COLOURS[identity.skin]
    colours = {name: _own_shade(rng, colour, 6 if name in ("hair", "skin") else 10) for name, colour in colours.items()}
    for name, gains in (("dark", (0.3, 0.28, 0.28)), ("lip", (0.76, 0.52, 0.52))):
        red, green, blue = (int(part * gain) for part, gain in zip(colours["skin"], gains, strict=True))
        colours[name] = (red, green, blue)
    shoulders, hips, stride, arms = rng.normal(1, (0.04, 0.04, 0.12, 0.2)) * (1, 1, 0.6 if old else 1, 1)
    stoop = rng.uniform(0.12, 0.3) if old else rng.normal(0.02, 0.02)
    colours |= {"glasses": (24, 23, 26), "white": (232, 232, 228)}
    return Build(shoulders, hips, stride, arms, stoop, rng.uniform(0.85, 1.25), rng.uniform(0.955, 0.972), colours)


def _own_shade(rng: Rng, rgb: Colour, spread: int) -> Colour:
    shift = rng.integers(-spread, spread + 1) + rng.integers(-spread // 2, spread // 2 + 1, 3)
    red, green, blue = np.clip(np.array(rgb) + shift, 12, 248).tolist()
    return red, green, blue


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians, left then right; ahead is positive."""

    name: str
    hip: Sequence[float]
    knee: Sequence[float]
    shoulder: Sequence[float]
    elbow: Sequence[float]
    spread: Sequence[float]  # arms away from the body
    inward: Sequence[float] = (0.1, 0.1)  # hands towards the middle
    lean: float = 0.0  # of the upper body


def draw_pose(rng: Rng, identity: Identity, build: Build) -> Pose:
    """A phase of a gait or a way of standing; a hand that holds something hangs."""
    calm = identity.age == "elderly" or identity.bag == "suitcase"
    poses: dict[str, dict[str, Any]] = TABLES["poses"]
    name = attributes.pick(rng, {n: p["weight"] for n, p in poses.items()}, ("running",) if calm else ())
    pose, phase = poses[name], rng.uniform(0, 2 * math.pi)
    moving = "swing" in pose or rng.random() < 0.4  # some walk with their arms crossed
    swing = rng.uniform(*pose.get("swing", (0.16, 0.34))) * build.stride if moving else 0.05
    stride, lift = math.sin(phase), math.cos(phase)
    knee = [0.06 + (1.9 * swing * max(0.0, lift * side) if moving else 0.0) for side in (1, -1)]
    shoulder = [pose.get("shoulder", -0.85 * swing * stride * side * build.arms) for side in (1, -1)]
    elbow = [pose.get("elbow", bend) for bend in rng.uniform(0.12, 0.6, 2)]
    spread = [pose.get("spread", away) for away in rng.uniform(0.06, 0.17, 2)]
    inward, busy = [pose.get("inward", 0.1)] * 2, int(rng.integers(5))
    for index, side in enumerate(("left", "right")):
        if side == identity.bag_side and identity.bag != "shoulder bag":
            shoulder[index] = -0.35 if identity.bag == "suitcase" else 0.25 * swing * stride
            elbow[index], spread[index], inward[index] = 0.1, 0.12, 0.0
        elif index == busy and name in ("walking", "standing", "strolling"):
            shoulder[index], elbow[index], inward[index] = 0.35, 2.0, 0.3  # a telephone, or a hand on a strap
    hips = (swing * stride, -swing * stride)
    return Pose(name, hips, knee, shoulder, elbow, spread, inward, pose.get("lean", 0.0) + build.stoop)


class Figure:
    """A dressed person in a pose: `draw` puts the solids on a canvas, `paint` colours what can be seen of them."""

    def __init__(self, identity: Identity, build: Build, pose: Pose, view: View) -> None:
        self.identity, self.build, self.pose, self.view = identity, build, pose, view
        self.cut, self.first = Cut(*TABLES["upper_cuts"][identity.upper]), 0
        self.unit = view.scale  # pixels per height of the person
        stature = {"short": 1.09, "average": 1.0, "tall": 0.93}[identity.height]
        self.head = 1.5 if identity.age == "child" else stature  # size of the head
        self.body = (1 - (1 - _CHIN) * self.head) / _CHIN  # and of all below it
        self.breadth = {"slim": 0.84, "average": 1.0, "heavy": 1.22}[identity.build] * (0.5 + 0.5 * stature)
        self.limbs = 0.35 + 0.65 * self.breadth  # thickness
        self.slim = -0.004 if identity.gender == "woman" else 0.0  # added to the radii of the limbs
        self.side = 1 if identity.bag_side == "left" else -1
        self.area: dict[str, float] = dict.fromkeys(SURFACES, 0.0)  # pixels of each if nothing hid it, once drawn
        self._stand()

    def _stand(self) -> None:
        """Joints of both legs and arms; the lower foot touches the ground."""
        pose, broad = self.pose, 0.4 + 0.6 * self.breadth
        shoulder_x = (0.08 if self.identity.gender == "woman" else 0.092) * self.build.shoulders * broad
        self.legs, self.arms = [], []
        for index, side in enumerate((1, -1)):
            hip = np.array([side * 0.05 * broad, _HIP, 0.0])
            a, b = pose.hip[index], pose.hip[index] - pose.knee[index]
            knee = hip + 0.232 * np.array([0.02 * side, -math.cos(a), math.sin(a)])
            self.legs.append(np.stack([hip, knee, knee + 0.232 * np.array([-0.04 * side, -math.cos(b), math.sin(b)])]))
            a, b, c = pose.shoulder[index], pose.shoulder[index] + pose.elbow[index], pose.spread[index]
            joint = np.array([side * shoulder_x, 0.79, 0.0])
            elbow = joint + 0.168 * np.array([side * math.sin(c), -math.cos(a) * math.cos(c), math.sin(a)])
            forearm = np.array([-side * pose.inward[index], -math.cos(b), math.sin(b)])
            forearm *= 0.145 / np.sqrt((forearm**2).sum())
            self.arms.append(np.stack([joint, elbow, elbow + forearm, elbow + forearm * 1.34]))
        self.lift = 0.042 - min(leg[2, 1] for leg in self.legs)  # added to all heights
        self.hand = self.arms[0 if self.side == 1 else 1][3]  # on the bag's side

    def _pixels(self, points: Array) -> Array:
        """Body points (..., 3) to pixels and depth: proportions, the lean of the upper body, the view."""
        x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
        y = np.minimum(y, _CHIN) * self.body + np.maximum(y - _CHIN, 0) * self.head
        above = np.maximum(y - _HIP * self.body, 0)
        y = y - above * (1 - math.cos(self.pose.lean)) + self.lift * self.body
        return self.view.project(np.stack([x, y, z + above * math.sin(self.pose.lean)], axis=-1))

    def _trunk(self, surface: str, rows: Any, at: Sequence[float] = (0, 0), front: float = 0.0) -> None:
        """An upright piece of cross-sections (N, 3), y, half-width and half-depth, shifted by ``at`` in x and z."""
        y, across, deep = np.asarray(rows, float).T
        size = self.head if surface in _OF_HEAD else 1.0
        centres = self._pixels(np.stack([np.full(len(y), at[0]), y, np.full(len(y), at[1] * size)], axis=-1))
        centres[:, 1] = np.maximum.accumulate(centres[:, 1] + np.arange(len(y)) * 1e-3)
        axes = self.view.half_axes(across * size, deep * size)
        self.area[surface] += float(((axes[0][1:] + axes[0][:-1]) * np.diff(centres[:, 1])).sum())
        self.canvas.trunk(centres, axes, y, self.first + SURFACE[surface], self.view, front)

    def _limb(self, surface: str, points: Any, radii: Any, flat: bool = False) -> None:
        """A rounded piece along body points (N, 3); ``radii`` are spread evenly along it."""
        size = self.head if surface in _OF_HEAD else 1.0
        places = np.linspace(0, len(points) - 1, max(len(points), len(radii)))
        line = np.stack([np.interp(places, np.arange(len(points)), c) for c in np.asarray(points).T], axis=-1)
        radii = np.interp(places, np.linspace(0, len(points) - 1, len(radii)), radii) * size * self.unit
        pixels = self._pixels(line * [size, 1, size])
        steps = np.hypot(*np.diff(pixels[:, :2], axis=0).T)
        self.area[surface] += float((steps * (radii[1:] + radii[:-1])).sum())
        yaw = self.view.yaw if surface in ("sleeve", "leg") else None  # nothing else is painted around a limb
        self.canvas.limb(pixels, radii, self.first + SURFACE[surface], yaw, flat)

    def draw(self, canvas: Canvas, first: int = 0) -> None:
        """Draw all solids; their surfaces are numbered from ``first``."""
        self.canvas, self.first = canvas, first
        for leg in self.legs:
            self._draw_leg(leg)
            self._draw_shoe(leg)
        self._draw_torso()
        for arm in self.arms:
            self._draw_arm(arm)
        self._draw_head()
        if self.identity.headwear != NONE:
            self._draw_headwear(self.identity.headwear)
        if self.identity.scarf != NONE:
            self._trunk("scarf", SHAPES["scarf"] * [1, 1.05, 1.1])
            ends = SHAPES["end of a scarf"]
            self._limb("scarf", np.add(ends[:, :3], [0, 0, self.cut.loose]), ends[:, 3], flat=True)
        if self.identity.bag != NONE:
            self._draw_bag()

    def _draw_leg(self, joints: Array) -> None:
        identity, radii = self.identity, (np.array([0.044, 0.057, 0.043, 0.041, 0.027]) + self.slim) * self.limbs
        if identity.lower not in ("trousers", "jeans", "sweatpants", "leggings"):
            self._limb("skin", joints, radii)
        if identity.shoes == "boots":
            self._limb("shoes", joints[2] + (joints[1] - joints[2]) * [[0.62], [0.3], [0]], radii[2:] + 0.017)
        if identity.lower in LEG_CUTS:
            share, thigh, ankle = LEG_CUTS[identity.lower]
            share = min(share, 0.75) if identity.shoes == "boots" else share  # tucked in
            self._cloth("leg", joints, radii + np.linspace(thigh, ankle, len(radii)), share)

    def _cloth(self, surface: str, joints: Array, radii: Array, share: float) -> None:
        """A sleeve or trouser leg along a ``share`` of a limb."""
        places = np.linspace(0, 2 * share, 5)
        line = np.stack([np.interp(places, [0, 1, 2], column) for column in joints[:3].T], axis=-1)
        self._limb(surface, line, np.interp(places, np.linspace(0, 2, len(radii)), radii), flat=True)

    def _draw_shoe(self, joints: Array) -> None:
        ankle, low = joints[2], [0, -0.013, 0]
        tilt = float(np.clip((joints[1, 2] - ankle[2]) * 1.2, -0.2, 0.35))  # the heel leaves the ground behind
        heel = np.add(ankle, [0, -0.02 + 0.012 * tilt, -0.022])
        toe = np.add(ankle, [0.015 * np.sign(joints[0, 0]), -0.027 - 0.05 * tilt, 0.088])
        self._limb("shoes", [ankle, heel, (heel + toe) / 2, toe], [0.027, 0.024, 0.023, 0.016])
        if self.identity.shoes == "sneakers":
            self._limb("sole", [heel + low, toe + low], [0.017, 0.013])
        elif self.identity.shoes == "high heels":
            self._limb("shoes", [heel, np.add(heel, [0, -0.024, -0.004])], [0.009, 0.005])

    def _body(self) -> Array:
        """Cross-sections of the upper body with its own breadth, top to bottom."""
        rows = SHAPES[self.identity.gender].copy()
        below = rows[:, 0] < 0.835  # the neck
        own = np.interp(rows[below, 0], [0.55, 0.75], [self.build.hips, self.build.shoulders])
        rows[below, 1] *= own * self.breadth
        rows[below, 2] *= 0.4 + 0.6 * self.breadth
        belly = np.maximum(0, 1 - ((rows[:, 0] - 0.6) / 0.13) ** 2)
        return rows + belly[:, None] * [0, 0.1, 0.26] * max(0.0, self.breadth - 1.1)

    def _draw_torso(self) -> None:
        """The upper garment without its sleeves, the skirt or the seat of the trousers, the neck."""
        cut, body, stride = self.cut, self._body(), abs(self.pose.hip[0]) * 0.1
        _, wide, deep = body[-1]
        if self.identity.lower in SKIRT_CUTS:
            hem, flare = SKIRT_CUTS[self.identity.lower]
            waist = [0.44, wide + flare * 0.4, deep + 0.004 + 0.3 * stride]
            end = [hem, wide + flare, deep + flare * 0.8 + stride]
            self._trunk("skirt", [*body[-3:] * [1, 1, 1.02], waist, end])
        elif self.identity.lower != NONE:
            seat = np.array([*body[-3:], [0.45, wide * 0.96, deep * 0.95], [0.42, wide * 0.6, deep * 0.7]])
            self._trunk("leg", np.add(seat, [0, 0.004, 0.004]))
        rows = list(body[body[:, 0] > cut.hem + 0.01])
        if cut.hem < 0.44:
            rows.append(np.array([0.44, wide + cut.flare * 0.4, deep + cut.flare * 0.4 + 0.4 * stride]))
            rows.append(np.array([cut.hem, wide + cut.flare * 1.4, deep + cut.flare * 1.4 + 1.4 * stride]))
        else:
            rows.append(np.array([cut.hem, rows[-1][1] + cut.flare, rows[-1][2] + cut.flare]))
        self._trunk("torso", np.add(rows, [0, cut.loose, cut.loose]))
        self._limb("skin", [[0, 0.9, 0.0], [0, 0.85, 0.0], [0, 0.82, 0]], [0.03 * self.head, 0.032, 0.04])
        if cut.collar:
            self._trunk("torso", SHAPES[cut.collar], (0, -0.02 if cut.collar == "hood" else 0.0))

    def _draw_arm(self, joints: Array) -> None:
        radii = (np.array([0.034, 0.033, 0.028, 0.026, 0.020]) + self.slim) * self.limbs
        share, loose = self.cut.sleeve, self.cut.loose * 0.8
        self._limb("skin", joints[2:], np.array([0.017, 0.023, 0.015]) * (0.6 + 0.4 * self.head))
        if share < 1:
            self._limb("skin", joints[:3], radii)
        if share > 0:
            self._cloth("sleeve", joints, radii + loose + (0.002 if share == 1 else 0.01), share)

    def _draw_head(self) -> None:
        identity, rows = self.identity, SHAPES["curly" if self.identity.hair_style == "curly" else "hair"]
        style = NONE if identity.headwear == "headscarf" else identity.hair_style
        self._trunk("head", SHAPES["head"])
        self._limb("face", [[0, 0.925, 0.052], [0, 0.914, 0.062]], [0.006, 0.009])
        for side in (-1, 1) if style in ("short", "bald", "bun", "ponytail") else ():
            self._limb("face", [[side * 0.05, 0.938, -0.004], [side * 0.049, 0.917, 0.0]], [0.011, 0.008])
        if style in (NONE, "bald"):
            return
        bare = identity.headwear == NONE
        line = self.build.hairline if bare else 0.962
        middle = [np.interp(-line, -rows[:, 0], column) for column in rows.T]
        if bare:
            self._trunk("hair", [*rows[rows[:, 0] > line], middle], (0, -0.004))
        loose = style in ("long", "shoulder length", "curly")
        self._trunk("hair", [middle, *rows[rows[:, 0] < line]], (0, -0.004), 1.0 if loose else 1.3)
        if style in ("long", "shoulder length"):
            self._trunk("tail" if style == "long" else "hair", SHAPES[f"{style} hair"], (0, -0.026), 1.25)
        elif style in ("bun", "ponytail"):
            self._limb("tail", SHAPES[style][:, :3], SHAPES[style][:, 3])

    def _draw_headwear(self, kind: str) -> None:
        self._trunk("headwear", SHAPES[kind], front=1.0 if kind == "headscarf" else 0.0)
        if kind == "headscarf":  # over the forehead and below the chin
            self._trunk("headwear", SHAPES[kind][:4])
            self._trunk("headwear", SHAPES[kind][-2:])
        elif kind == "hat":
            self._trunk("headwear", SHAPES["hat brim"])
        elif kind == "cap":
            angles = np.linspace(-0.75, 0.75, 7)
            for out, low in ((0.075, 0.966), (0.09, 0.962), (0.106, 0.957)):
                rim = np.stack([np.sin(angles) * 0.062, np.full(7, low), np.cos(angles) * out], axis=-1)
                self._limb("headwear", rim, [0.008, 0.011, 0.008])

    def _draw_bag(self) -> None:
        bag, side = self.identity.bag, self.side
        wide, deep, tall, waist = BAGS[bag]
        x, y, z = {
            "backpack": (0.0, 0.705, -0.075 - deep - self.cut.loose),
            "shoulder bag": (side * 0.15 * (0.3 + 0.7 * self.breadth), 0.5, 0.01),
            "suitcase": (side * 0.18, 0.15 - self.lift, min(self.hand[2] - 0.07, -0.08)),
        }.get(bag, (self.hand[0], self.hand[1] - tall - 0.045, self.hand[2]))
        spans = np.array([0.5 * waist, 0.86 * waist, 0.97 * waist, (1 + waist) / 2, 1.0, 0.98, 0.8])
        heights = y + tall * np.array([1.04, 1.0, 0.92, 0.3, -0.4, -0.9, -1.0])
        self._trunk("bag", np.stack([heights, wide * spans, deep * spans], axis=-1), (x, z))
        top = np.array([x, y + tall * 0.95, z])
        if bag == "suitcase":
            self._limb("rod", [self.hand, top], [0.008, 0.008])
        elif bag == "shoulder bag":
            self._limb("bag", [[side * 0.1, 0.66, 0.0], top], [0.01, 0.01])
        elif bag != "backpack":
            for edge in (-0.5 * deep, 0.5 * deep):
                self._limb("bag", [self.hand, np.add(top, [0, 0, edge])], [0.007, 0.007])

    def paint(self, canvas: Canvas, sun: Array, ambient: float) -> tuple[Array, Array, Array, Array]:
        """The colours of what can be seen.

        Args:
            sun: direction of the light, x to the right, y down, z towards the camera, of length 1.
            ambient: share of light that comes from everywhere.

        Returns:
            Indices (P,) of pixels in the flat canvas, their RGB (P, 3) float32, surfaces (P,) and materials (P,).
        """
        pixels = np.flatnonzero((canvas.surface > self.first) & (canvas.surface < self.first + len(SURFACES)))
        surface = canvas.surface.ravel()[pixels] - self.first
        u, v, nx, ny = (buffer.ravel()[pixels] for buffer in (canvas.u, canvas.v, canvas.nx, canvas.ny))
        material = np.array([MATERIAL.get(name, 0) for name in SURFACES.values()])[surface]
        relief = np.ones(len(pixels), np.float32)
        by = {"torso": self._paint_torso, "sleeve": self._paint_sleeve, "leg": self._paint_leg}
        by["head"] = self._paint_head
        for name in SURFACES:
            some = np.flatnonzero(surface == SURFACE[name])
            along = v[some] / (self.unit if name in ("sleeve", "leg", "shoes") else 1)
            painted, light = material[some], relief[some]
            if len(some):
                by.get(name, partial(self._paint_other, name))(u[some], along, painted, light)
            material[some], relief[some] = painted, light
        nz = np.sqrt(np.maximum(0, 1 - nx * nx - ny * ny))
        light = ambient + (1 - ambient) * 1.25 * np.maximum(0, nx * sun[0] + ny * sun[1] + nz * sun[2])
        # Less light where something near by stands in front.
        depth = np.maximum(canvas.depth, -0.3 * self.unit - self.view.distance)
        hollow = (ndimage.uniform_filter(depth, max(3, int(0.06 * self.unit))) - depth).ravel()[pixels] / self.unit
        light = light * relief * (1 - 0.4 * np.clip(20 * hollow, 0, 1))
        table = np.array([self.build.colours[name] for name in MATERIALS], np.float32)
        return pixels, table[material] * light[:, None], surface, material

    # The painters change material and relief (a factor of the light), at angles u and heights or lengths v.

    def _paint_torso(self, u: Array, v: Array, material: Array, relief: Array) -> None:
        identity, cut, front = self.identity, self.cut, np.abs(u)
        self._paint_pattern(u, v, material)
        if identity.upper_pattern == "colour block":
            material[v < 0.5 * (cut.hem + 0.84)] = MATERIAL["second"]
        elif identity.upper_pattern == "logo":
            badge = (front < 0.62) & (v > 0.655) & (v < 0.765)
            material[badge & ~((front < 0.4) & (np.abs(v - 0.71) < 0.014))] = MATERIAL["second"]
        relief += 0.14 * folds(u * 16 + v * 60, v * 130 + 40) + 0.08 * folds(u * 50 - v * 90, v * 260 + 9)
        throat = 0.845 - {"tank top": 0.05, "dress": 0.045, "blouse": 0.04}.get(identity.upper, 0.02)
        material[front < np.maximum(0, v - throat) * (16 if cut.collar == "" else 9)] = MATERIAL["skin"]
        if identity.inner_colour != NONE:
            blazer = identity.upper == "blazer"
            opening = np.maximum(0.05, (v - 0.6) * 2.6) if blazer else np.full(len(u), 0.36)
            material[(front < opening) & (v < 0.85) & ((v > 0.6) | (not blazer))] = MATERIAL["inner"]
            relief[(front > opening) & (front < opening + 0.09)] *= 0.8
        elif cut.collar:
            relief[(front < 0.045) & (v < 0.84)] *= 0.66  # buttons or a zip
        if identity.upper == "puffer jacket":
            relief *= quilting(v)
        if cut.hem < 0.44:  # a coat or a dress, with a belt
            relief *= np.where(np.abs(v - 0.6) < 0.009, 0.75, np.where(v < 0.58, pleats(u), 1))
        if identity.bag == "backpack":
            material[(np.abs(front - 0.72 + np.maximum(0, 0.7 - v) * 3) < 0.13) & (v > 0.63)] = MATERIAL["bag"]
        elif identity.bag == "shoulder bag":
            a = u * self.side
            a = np.where(np.abs(a) > math.pi / 2, np.sign(a) * math.pi - a, a)  # across the back as across the chest
            material[(np.abs(a + 0.9 - (0.84 - v) * 8.5) < 0.16) & (v > 0.55)] = MATERIAL["bag"]

    def _paint_pattern(self, u: Array, v: Array, material: Array) -> None:
        """The pattern of the upper garment at angles u and heights v."""
        kind, pitch = self.identity.upper_pattern, 0.05 * self.build.pitch
        across, down = u * 0.11 / pitch, v / pitch
        column, row = across % 1, down % 1
        x, y = (across + np.floor(down) % 2 * 0.5) % 1 - 0.5, row - 0.5
        second: Array | bool = False
        if kind == "striped":
            second = row < 0.46
        elif kind == "vertically striped":
            second = across * 1.4 % 1 < 0.32
        elif kind == "checked":
            second = (row < 0.28) | (column < 0.28)
        elif kind == "dotted":
            second = x * x + y * y < 0.075
        elif kind == "floral":
            second = np.minimum((np.abs(x) - 0.19) ** 2 + y * y, x * x + (np.abs(y) - 0.19) ** 2) < 0.03
            second &= x * x + y * y > 0.012
        elif kind == "camouflage":
            second = folds(across * 14, down * 14) + 0.4 * folds(across * 40 + 50, down * 40) > 0.12
        material[second] = MATERIAL["second"]

    def _paint_sleeve(self, u: Array, v: Array, material: Array, relief: Array) -> None:
        relief += 0.18 * folds(u * 12 + v * 150, v * 240 + 7)
        self._paint_pattern(u * 0.4, v + 0.02, material)
        if self.identity.upper_pattern == "colour block" and self.cut.sleeve == 1:
            material[v > 0.16] = MATERIAL["second"]
        if self.identity.upper == "puffer jacket":
            relief *= quilting(v)
        elif self.identity.upper == "vest":
            material[:] = MATERIAL["inner"]

    def _paint_leg(self, u: Array, v: Array, material: Array, relief: Array) -> None:
        relief += 0.15 * folds(u * 13 + v * 90, v * 160 + 70)
        if self.identity.lower == "jeans":  # worn at the thigh
            relief += 0.22 * np.maximum(0, 1 - np.abs(u) * 1.1) * np.maximum(0, 1 - np.abs(v - 0.14) * 6)
        elif self.identity.lower == "sweatpants":
            material[(np.abs(np.abs(u) - math.pi / 2) < 0.22) & (v < 0.5) & (v > 0.02)] = MATERIAL["white"]
        elif self.identity.lower == "trousers":
            relief[np.abs(u) < 0.09] *= 1.12  # the crease

    def _paint_head(self, u: Array, v: Array, material: Array, relief: Array) -> None:
        front, aside = np.abs(u), np.abs(np.abs(u) - 0.43)
        material[(aside < 0.13) & (np.abs(v - 0.9365) < 0.0048)] = MATERIAL["dark"]  # eyes
        relief[(aside < 0.19) & (np.abs(v - 0.951) < 0.003)] = 0.55  # brows
        material[(front < 0.24) & (np.abs(v - 0.894) < 0.004)] = MATERIAL["lip"]
        if self.identity.age == "elderly":  # wrinkles
            relief[(np.abs(front - 0.34 - (0.91 - v) * 8) < 0.05) & (v > 0.885) & (v < 0.91)] = 0.8
        if self.identity.glasses != NONE:
            off = ((aside - 0.02) / 0.34) ** 2 + ((v - 0.935) / 0.0155) ** 2
            lens = off < 1 if self.identity.glasses == "sunglasses" else (off < 1.15) & (off > 0.5)
            bar = (np.abs(v - 0.939) < 0.003) & ((front < 0.2) | (front > 0.7)) & (front < 1.5)
            material[lens | bar] = MATERIAL["glasses"]

    def _paint_other(self, surface: str, u: Array, v: Array, material: Array, relief: Array) -> None:
        identity = self.identity
        if surface == "skirt":
            relief *= pleats(u) * (1 + 0.12 * folds(u * 24, v * 100))
        elif surface == "scarf":
            relief += 0.3 * folds(u * 20, np.where(v < 1, v * 500, v))
        elif surface in ("hair", "tail"):
            curly = identity.hair_style == "curly"
            relief += 0.5 * folds(u * 70, v * 900) if curly else 0.28 * folds(u * 90, v * 40)
        elif surface == "headwear" and identity.headwear == "beanie":  # knitted, with a cuff
            relief *= np.where(np.abs(v - 0.982) < 0.002, 0.6, pleats(u * 2.5))
        elif surface == "headwear" and identity.headwear == "hat":
            relief[(v > 0.972) & (v < 0.99)] = 0.5
        elif surface == "headwear" and identity.headwear == "headscarf":
            relief += 0.3 * folds(u * 16, v * 400)
        elif surface == "shoes" and identity.shoes == "sandals":
            material[(np.abs(v - 0.06) > 0.01) & (np.abs(v - 0.105) > 0.013)] = MATERIAL["skin"]
        elif surface == "bag" and identity.bag == "plastic bag":
            relief += 0.35 * folds(u * 24, v * 300)
        elif surface == "bag":  # a rib, or the edge of a flap
            tall = BAGS[identity.bag][2]
            edge = v.max(initial=0.0) - tall * (0.9 if identity.bag in ("backpack", "suitcase") else 0.7)
            relief[np.abs(v - edge) < 0.04 * tall] = 0.6


def _noise() -> Array:
    """A smooth noise that repeats after 256 in both directions, in [-1, 1] for the most part."""
    noise = np.random.Generator(np.random.PCG64(11)).normal(size=(32, 32)).repeat(8, 0).repeat(8, 1)
    for _ in range(2):
        for axis in (0, 1):
            noise = np.mean([np.roll(noise, shift, axis) for shift in range(-4, 4)], axis=0)
    return (noise / noise.std() * 0.5).astype(np.float32)


_NOISE = _noise()


def folds(across: Array, down: Array) -> Array:
    """Noise at places of the cloth; a feature is some 12 units wide."""
    return _NOISE[down.astype(int) % 256, across.astype(int) % 256]


def pleats(u: Array) -> Array:
    """Light on vertical folds at these angles."""
    return 0.84 + 0.51 * np.abs(u * 2.6 - np.round(u * 2.6))


def quilting(v: Array) -> Array:
    """Light on the bulges of a padded jacket at these heights."""
    return 0.7 + 0.4 * np.sqrt(np.minimum(1, 4 * np.abs(v / 0.048 - np.round(v / 0.048))))
