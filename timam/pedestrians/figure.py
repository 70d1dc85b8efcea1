"""Draw one of our rendered pedestrians: a jointed body in three dimensions, dressed and projected to the picture.

Lengths are in units of the person's height. Body axes: x to the person's own left, y up, z ahead; the origin is on the
ground between the feet. ``yaw`` turns the person: 0 faces the camera, pi shows the back, pi/2 faces the right of the
image. So a bag at x > 0 (the person's left) is on the right of the image from the front and on its left from the back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from timam.pedestrians.attributes import COLOURS, DENIM_COLOURS, HAIR_COLOURS, NONE, SKINS, Identity
from timam.pedestrians.canvas import NEUTRAL, Canvas, Colour, Tube, View, dim

Point = tuple[float, float, float]

# Cross-sections of the body from top to bottom: y, half-width, half-depth.
TORSO = {
    "man": [(0.848, 0.034, 0.036), (0.833, 0.056, 0.042), (0.818, 0.084, 0.05), (0.80, 0.100, 0.056),
            (0.77, 0.107, 0.064),
            (0.725, 0.107, 0.072), (0.66, 0.099, 0.069), (0.60, 0.094, 0.067), (0.55, 0.097, 0.072),
            (0.49, 0.100, 0.074)],
    "woman": [(0.848, 0.029, 0.031), (0.833, 0.047, 0.038), (0.818, 0.071, 0.045), (0.80, 0.084, 0.052),
              (0.77, 0.092, 0.062),
              (0.725, 0.094, 0.077), (0.66, 0.081, 0.066), (0.61, 0.078, 0.060), (0.55, 0.096, 0.072),
              (0.49, 0.105, 0.078)],
}  # fmt: skip
FACE = [(1.0, 0.016, 0.018), (0.99, 0.034, 0.038), (0.97, 0.046, 0.054), (0.94, 0.050, 0.058), (0.91, 0.047, 0.054),
        (0.885, 0.038, 0.046), (0.868, 0.020, 0.030)]  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """How a garment is cut: sleeve and leg as shares of the limb, hem as a height, width added around the body."""

    hem: float
    sleeve: float = 0.0
    loose: float = 0.0
    flare: float = 0.0  # width added at the hem of a skirt or coat
    collar: str = ""


UPPER_CUTS = {
    "t-shirt": Cut(0.475, 0.40, 0.006), "shirt": Cut(0.465, 1.0, 0.006, collar="shirt"),
    "blouse": Cut(0.475, 0.62, 0.005, 0.01),
    "tank top": Cut(0.485, 0.0, 0.002), "sweater": Cut(0.465, 1.0, 0.009),
    "hoodie": Cut(0.460, 1.0, 0.010, collar="hood"),
    "jacket": Cut(0.465, 1.0, 0.010, collar="stand"), "coat": Cut(0.30, 1.0, 0.011, 0.022, collar="stand"),
    "dress": Cut(0.30, 0.30, 0.004, 0.055),
}  # fmt: skip
LEG_CUTS = {
    "trousers": (1.0, 0.007, 0.012), "jeans": (1.0, 0.004, 0.004), "shorts": (0.50, 0.012, 0.014),
    "leggings": (0.97, 0.0, 0.0),
}  # share of the leg, width added at the thigh, at the ankle  # fmt: skip
SKIRT_CUTS = {"skirt": Cut(0.315, flare=0.035), "long skirt": Cut(0.11, flare=0.06)}


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians, left then right; ahead is positive."""

    name: str
    hip: Sequence[float]
    knee: Sequence[float]
    shoulder: Sequence[float]
    elbow: Sequence[float]
    spread: Sequence[float]  # arms away from the body


def draw_pose(rng: np.random.Generator, identity: Identity) -> Pose:
    """A phase of walking or a way of standing; a hand that holds something hangs."""
    walking = rng.random() < 0.7
    swing, phase = (rng.uniform(0.22, 0.46), rng.uniform(0, 2 * math.pi)) if walking else (0.06, rng.uniform(0, 6))
    stride, lift = math.sin(phase), math.cos(phase)
    knee = [0.06 + (0.75 * swing / 0.4 * max(0.0, lift * side) if walking else 0.0) for side in (1, -1)]
    shoulder = [-0.85 * swing * stride * side for side in (1, -1)]
    elbow = [float(rng.uniform(0.12, 0.6)) for _ in range(2)]
    spread = [float(rng.uniform(0.06, 0.17)) for _ in range(2)]
    busy = identity.bag_side if identity.bag in ("handbag", "plastic bag", "suitcase") else NONE
    for index, side in enumerate(("left", "right")):
        gesture = rng.random()
        if side == busy:
            shoulder[index], elbow[index] = (
                (-0.35, 0.1) if identity.bag == "suitcase" else (0.3 * shoulder[index], 0.12)
            )
        elif gesture < 0.10:  # telephone, or a hand on a strap
            shoulder[index], elbow[index] = 0.35, 1.9
        elif gesture < 0.18:  # hand in the pocket
            shoulder[index], elbow[index], spread[index] = -0.18, 0.75, 0.2
    hips = (swing * stride, -swing * stride)
    return Pose("walking" if walking else "standing", hips, knee, shoulder, elbow, spread)


def _jitter(rng: np.random.Generator, rgb: Colour, spread: int = 12) -> Colour:
    """The person's own shade of a colour."""
    shift = rng.integers(-spread, spread + 1) + rng.integers(-spread // 2, spread // 2 + 1, 3)
    red, green, blue = np.clip(np.array(rgb) + shift, 14, 246).tolist()
    return red, green, blue


class Figure:
    """A dressed person in a pose; ``draw`` puts it on a canvas, ``boxes`` says where each attribute then is."""

    def __init__(self, rng: np.random.Generator, identity: Identity, pose: Pose, view: View) -> None:
        """``rng`` is the identity's own: it fixes the shades of the colours, the same in all of the person's images."""
        self.identity, self.pose, self.view = identity, pose, view
        names = ("upper", "upper_second", "inner", "lower", "headwear", "shoes", "bag")
        values = [getattr(identity, name if name == "upper_second" else f"{name}_colour") for name in names]
        self.colours = {n: _jitter(rng, COLOURS.get(v, (120, 120, 120))) for n, v in zip(names, values, strict=True)}
        if identity.lower == "jeans":
            self.colours["lower"] = _jitter(rng, DENIM_COLOURS[identity.lower_colour], 6)
        self.colours["skin"] = _jitter(rng, SKINS[identity.skin], 6)
        self.colours["hair"] = _jitter(rng, HAIR_COLOURS.get(identity.hair_colour, (60, 50, 45)), 6)
        self.pattern_pitch = float(rng.uniform(0.85, 1.2))
        self.cut = UPPER_CUTS[identity.upper]
        self.facing = math.cos(view.yaw)
        self.boxes: dict[str, tuple[float, float, float, float]] = {}
        self._stand()

    def _stand(self) -> None:
        """Joints of both legs and arms; the lower foot touches the ground."""
        pose, woman = self.pose, self.identity.gender == "woman"
        self.legs, self.arms = [], []
        for index, side in enumerate((1, -1)):
            hip = np.array([side * 0.052, 0.505, 0.0])
            a, b = pose.hip[index], pose.hip[index] - pose.knee[index]
            knee = hip + 0.232 * np.array([0.0, -math.cos(a), math.sin(a)])
            ankle = knee + 0.232 * np.array([-0.02 * side, -math.cos(b), math.sin(b)])
            self.legs.append(np.stack([hip, knee, ankle]))
            a, b, c = pose.shoulder[index], pose.shoulder[index] + pose.elbow[index], pose.spread[index]
            joint = np.array([side * (0.082 if woman else 0.093), 0.79, 0.0])
            elbow = joint + 0.168 * np.array([side * math.sin(c), -math.cos(a) * math.cos(c), math.sin(a)])
            inward = 0.1 if pose.elbow[index] < 1 else 0.7
            wrist = elbow + 0.142 * np.array([-side * inward, -math.cos(b), math.sin(b)])
            self.arms.append(np.stack([joint, elbow, wrist, wrist + (wrist - elbow) * 0.36]))
        drop = min(leg[2, 1] for leg in self.legs) - 0.042
        self.lift = -drop  # added to every height of the upper body
        for limb in (*self.legs, *self.arms):
            limb[:, 1] -= drop

    # -- places ---------------------------------------------------------------------------------------------------

    def _px(self, *point: float) -> np.ndarray:
        return self.view.project(np.array([point[0], point[1] + self.lift, point[2]]))

    def _upright(self, sections: Sequence[Point], add: float = 0.0, ahead: float = 0.0) -> Tube:
        """Tube of elliptic cross-sections (y, half-width, half-depth), top to bottom, shifted ahead."""
        table = np.array(sections)
        middle = np.stack([np.zeros(len(table)), table[:, 0] + self.lift, np.full(len(table), ahead)], axis=-1)
        return Tube(self.view.project(middle), self.view.half_width(table[:, 1] + add, table[:, 2] + add), 0.16)

    def _limb(
        self, joints: np.ndarray, radii: Sequence[float] | np.ndarray, share: float = 1.0, domed: bool = False
    ) -> Tube:
        """Tube along joints (N, 3), rounded at the joints; ``share`` of its length, counted from the top."""
        t = np.linspace(0, (len(joints) - 1) * share, 8)
        line = np.stack([np.interp(t, np.arange(len(joints)), joints[:, axis]) for axis in range(3)], axis=-1)
        line[1:-1] = 0.25 * line[:-2] + 0.5 * line[1:-1] + 0.25 * line[2:]
        widths = np.interp(t, np.linspace(0, len(joints) - 1, len(radii)), radii)
        centres = self.view.project(line)
        if domed:  # a round shoulder
            rise = (
                (centres[0] - centres[1])
                / max(float(np.hypot(*(centres[0] - centres[1]))), 1e-6)
                * widths[0]
                * self.view.scale
            )
            centres = np.concatenate([centres[0] + rise * np.array([[0.85], [0.72], [0.4]]), centres])
            widths = np.concatenate([widths[0] * np.array([0.3, 0.65, 0.92]), widths])
        return Tube(centres, widths * self.view.scale * (0.5 + 0.5 * self.view.breadth))

    def _around(self, azimuth: float) -> tuple[float, bool]:
        """Where on a tube (s) a direction (0 ahead, positive to the person's left) is, and whether it can be seen."""
        return math.sin(azimuth + self.view.yaw), math.cos(azimuth + self.view.yaw) > 0.05

    def _see(self, name: str, points: np.ndarray, margin: float) -> None:
        """Extend the box of a part by pixels (..., 2) and a margin in heights around them."""
        points, margin = points.reshape(-1, 2), margin * self.view.scale
        (left, top), (right, bottom) = (points.min(0) - margin).tolist(), (points.max(0) + margin).tolist()
        old = self.boxes.get(name, (left, top, right, bottom))
        self.boxes[name] = (min(left, old[0]), min(top, old[1]), max(right, old[2]), max(bottom, old[3]))

    def _pen_width(self, heights: float) -> int:
        return max(1, round(heights * self.view.scale))

    # -- drawing --------------------------------------------------------------------------------------------------

    def draw(self, canvas: Canvas) -> None:
        """Draw the person, what is farther away first."""
        depths = [float(self.view.depth(arm).mean()) for arm in self.arms]
        back_bag = self._bag_depth() < -0.02
        if back_bag:
            self._draw_bag(canvas)
        far_arms = [i for i in (0, 1) if depths[i] < -0.025]
        for index in far_arms:
            self._draw_arm(canvas, index)
        if self.facing > 0:
            self._draw_hair_behind(canvas)
        for index in sorted((0, 1), key=lambda i: float(self.view.depth(self.legs[i]).mean())):
            self._draw_leg(canvas, index)
        self._draw_skirt(canvas)
        self._draw_neck(canvas)
        self._draw_torso(canvas)
        self._draw_head(canvas)
        for index in (0, 1):
            if index not in far_arms:
                self._draw_arm(canvas, index)
        if not back_bag:
            self._draw_bag(canvas)
        self._draw_straps(canvas)

    def _draw_leg(self, canvas: Canvas, index: int) -> None:
        joints, identity = self.legs[index], self.identity
        slim = -0.004 if identity.gender == "woman" else 0.0
        radii = np.array([0.050, 0.057, 0.042, 0.041, 0.027]) + slim
        self._draw_shoe(canvas, joints)
        if identity.lower not in ("trousers", "jeans"):
            canvas.solid(self._limb(joints, radii), self.colours["skin"])
        if identity.shoes == "boots":
            canvas.solid(self._limb(joints, radii + 0.007), self.colours["shoes"], 0.72, 1.0)
        if identity.lower in LEG_CUTS:
            share, thigh, ankle = LEG_CUTS[identity.lower]
            cloth = self._limb(joints, radii + np.linspace(thigh, ankle, len(radii)), share, domed=True)
            end = 0.83 if identity.shoes == "boots" and share > 0.9 else 1.0
            canvas.solid(cloth, self.colours["lower"], 0.0, end)
            self._see("lower", cloth.centres, 0.05)
            for t, lean in ((0.46, 0.06), (0.54, -0.05), (0.9, 0.05)):
                canvas.crease(cloth, t, -0.7, t + lean, 0.3, self._pen_width(0.006))
            if identity.lower == "jeans":
                canvas.light_pen.polygon(cloth.patch(0.15, 0.5, -0.3, 0.35), fill=NEUTRAL + 30)

    def _draw_shoe(self, canvas: Canvas, joints: np.ndarray) -> None:
        ankle, shoes = joints[2], self.identity.shoes
        tilt = float(np.clip((joints[1, 2] - joints[2, 2]) * 1.2, -0.2, 0.35))  # the heel leaves the ground behind
        heel = ankle + np.array([0, -0.022 + 0.012 * tilt, -0.024])
        toe = ankle + np.array([0, -0.03 - 0.05 * tilt, 0.082])
        middle = (heel + toe) / 2 + np.array([0, 0.008, 0])
        line = self.view.project(np.stack([heel, middle, toe]))
        scale, colour = self.view.scale, self.colours["shoes"]
        if shoes in ("sneakers", "high heels"):
            sole = (235, 235, 232) if shoes == "sneakers" else dim(colour, 0.6)
            canvas.line(line + np.array([0, 0.012 * scale]), sole, 0.026 * scale)
        widths = np.array([0.019, 0.02, 0.014]) * scale
        base = self.colours["skin"] if shoes == "sandals" else colour
        for point, width in zip(line, widths, strict=True):
            canvas.ball(point, width, base, NEUTRAL - 25, 0.85)
        canvas.line(line, base, 0.033 * scale)
        if shoes == "sandals":
            canvas.line(line + np.array([0, 0.012 * scale]), colour, 0.012 * scale)
            canvas.line(line[1:2] + np.array([[-0.02, 0], [0.02, 0]]) * scale, colour, 0.01 * scale)
        self._see("shoes", line, 0.02)

    def _draw_skirt(self, canvas: Canvas) -> None:
        identity = self.identity
        cut = SKIRT_CUTS.get(identity.lower)
        if cut is None:
            if identity.lower != NONE:  # the seat of trousers
                canvas.solid(
                    self._upright([(0.56, 0.096, 0.07), (0.50, 0.105, 0.078), (0.45, 0.10, 0.074)]),
                    self.colours["lower"],
                )
            return
        stride = abs(self.pose.hip[0]) * 0.11
        tube = self._upright([(0.60, 0.086, 0.064), (0.53, 0.105, 0.078), (0.47, 0.113, 0.086 + 0.3 * stride),
                              (cut.hem, 0.105 + cut.flare, 0.082 + cut.flare + stride)])  # fmt: skip
        canvas.solid(tube, self.colours["lower"])
        self._pleat(canvas, tube)
        self._see("lower", tube.centres, 0.1)

    def _pleat(self, canvas: Canvas, tube: Tube) -> None:
        for s in (-0.66, -0.3, 0.1, 0.45, 0.75):
            canvas.crease(tube, 0.55, s * 0.9, 1.0, s, self._pen_width(0.006), NEUTRAL - 45)

    def _draw_neck(self, canvas: Canvas) -> None:
        canvas.solid(
            self._upright([(0.90, 0.028, 0.03), (0.85, 0.029, 0.032), (0.80, 0.05, 0.04)]), self.colours["skin"]
        )

    def _torso_tube(self) -> Tube:
        sections = [s for s in TORSO[self.identity.gender] if s[0] > self.cut.hem + 0.01]
        last = sections[-1]
        if self.cut.hem < 0.44:
            spare = abs(self.pose.hip[0]) * 0.09
            sections.append((0.44, 0.107 + self.cut.flare * 0.4, 0.08 + self.cut.flare * 0.4 + 0.4 * spare))
            sections.append((self.cut.hem, 0.1 + self.cut.flare, 0.076 + self.cut.flare + spare))
        else:
            sections.append((self.cut.hem, last[1] + self.cut.flare, last[2] + self.cut.flare))
        return self._upright(sections, self.cut.loose)

    def _draw_torso(self, canvas: Canvas) -> None:
        identity, colours = self.identity, self.colours
        torso = self._torso_tube()
        canvas.solid(torso, colours["upper"])
        self._draw_pattern(canvas, torso, float(np.diff(torso.centres[[0, -1], 1])[0]), 0.5)
        self._draw_logo(canvas, torso)
        if identity.inner_colour != NONE:
            self._draw_open_front(canvas, torso)
        self._draw_neckline(canvas, torso)
        for t, s, lean in ((0.45, -0.75, 0.10), (0.62, 0.15, 0.08), (0.72, -0.55, -0.06), (0.3, 0.5, 0.12)):
            canvas.crease(torso, t, s, t + lean, s + 0.45, self._pen_width(0.007), NEUTRAL - 42)
        if self.cut.hem < 0.44:
            self._pleat(canvas, torso)
        self._see("upper", torso.centres, 0.09)

    def _draw_open_front(self, canvas: Canvas, torso: Tube) -> None:
        edges = [math.sin(a + self.view.yaw) for a in (-0.38, 0.38)]
        if math.cos(self.view.yaw) > 0.1:
            canvas.colour_pen.polygon(torso.patch(0.06, 0.98, *edges), fill=self.colours["inner"])
            for edge in edges:
                canvas.crease(torso, 0.06, edge, 1.0, edge, self._pen_width(0.008), NEUTRAL - 70)

    def _draw_neckline(self, canvas: Canvas, torso: Tube) -> None:
        collar, scale = self.cut.collar, self.view.scale
        middle = self._around(0.0)[0]
        if collar == "hood":
            roll = self._upright([(0.868, 0.045, 0.05), (0.845, 0.064, 0.06), (0.825, 0.066, 0.06)], ahead=-0.02)
            canvas.solid(roll, self.colours["upper"], depth=1.2)
        elif collar == "stand":
            ring = self._upright([(0.872, 0.036, 0.04), (0.835, 0.046, 0.048)])
            canvas.solid(ring, self.colours["upper"], depth=1.3)
        if self.facing > 0.15:
            opening = 0.045 if self.identity.upper in ("tank top", "dress", "blouse") else 0.028
            fill = self.colours["inner"] if self.identity.inner_colour != NONE else self.colours["skin"]
            throat, width = self._px(0, 0.852, 0.035), 0.034 * scale * self.facing
            canvas.polygon([throat[0] - width, throat[1], throat[0] + width, throat[1],
                            throat[0] + middle * 3, throat[1] + opening * 1.6 * scale], fill, NEUTRAL - 20)  # fmt: skip
            if collar in ("shirt", "stand") and self.identity.inner_colour == NONE:  # buttons or zip
                canvas.crease(torso, 0.12, middle, 0.97, middle * 0.9, self._pen_width(0.006), NEUTRAL - 65)

    def _draw_pattern(self, canvas: Canvas, tube: Tube, length: float, spacing: float) -> None:
        """The pattern of the upper garment on a tube ``length`` pixels long; ``spacing`` in radians around it."""
        pattern, pen, second = self.identity.upper_pattern, canvas.colour_pen, self.colours["upper_second"]
        step = 0.05 * self.pattern_pitch * self.view.scale / max(length, 1.0)
        rows = np.arange(step * 0.6, 1 - 0.2 * step, step)
        if pattern == "colour block":
            pen.polygon(tube.patch(0.5, 1.0), fill=second)
        elif pattern in ("striped", "checked"):
            for t in rows:
                pen.polygon(tube.patch(t, min(1.0, t + step * (0.48 if pattern == "striped" else 0.3))), fill=second)
        if pattern == "checked":
            for s in self._seen_around(spacing, 0.0):
                half = 0.06 * math.sqrt(1 - s * s) + 0.01
                pen.polygon(tube.patch(0, 1, max(-1, s - half), min(1, s + half)), fill=second)
        elif pattern == "dotted":
            for row, t in enumerate(rows):
                for s in self._seen_around(spacing, 0.5 * spacing * (row % 2)):
                    (x, y), r = tube.at(float(t), s), 0.011 * self.view.scale
                    pen.ellipse([x - r, y - r, x + r, y + r], fill=second)

    def _seen_around(self, spacing: float, start: float) -> list[float]:
        """Places across a tube (s) of directions ``spacing`` apart, those that face the camera."""
        places = [self._around(start + k * spacing) for k in range(int((2 * math.pi - start) / spacing + 0.99))]
        return [s for s, visible in places if visible and abs(s) < 0.93]

    def _draw_logo(self, canvas: Canvas, torso: Tube) -> None:
        s = self._around(0.0)[0]
        if self.identity.upper_pattern == "logo" and self.facing > 0.2:
            half = 0.5 * self.facing
            canvas.colour_pen.polygon(torso.patch(0.28, 0.5, s - half, s + half), fill=self.colours["upper_second"])
            canvas.colour_pen.polygon(
                torso.patch(0.36, 0.40, s - 0.6 * half, s + 0.6 * half), fill=self.colours["upper"]
            )

    def _draw_arm(self, canvas: Canvas, index: int) -> None:
        joints = self.arms[index]
        slim = -0.004 if self.identity.gender == "woman" else 0.0
        radii = np.array([0.033, 0.033, 0.031, 0.027, 0.026, 0.020]) + slim
        canvas.solid(self._limb(joints[2:], [0.017, 0.022, 0.014]), self.colours["skin"])  # the hand
        if self.cut.sleeve < 1:
            canvas.solid(self._limb(joints[:3], radii, domed=True), self.colours["skin"])
        if self.cut.sleeve == 0:
            return
        cuff = 0.003 if self.cut.sleeve == 1 else 0.010
        loose = np.linspace(self.cut.loose, self.cut.loose * 0.6 + cuff, len(radii))
        sleeve = self._limb(joints[:3], radii + loose, self.cut.sleeve, domed=True)
        canvas.solid(sleeve, self.colours["upper"])
        if self.identity.upper_pattern in ("striped", "checked", "dotted"):
            self._draw_pattern(canvas, sleeve, 0.31 * self.cut.sleeve * self.view.scale, 1.5)
        elif self.identity.upper_pattern == "colour block" and self.cut.sleeve == 1:
            canvas.colour_pen.polygon(sleeve.patch(0.55, 1.0), fill=self.colours["upper_second"])
        if self.cut.sleeve == 1:
            for t, lean in ((0.45, 0.05), (0.55, -0.04)):
                canvas.crease(sleeve, t, -0.8, t + lean, 0.3, self._pen_width(0.006))

    # -- head -----------------------------------------------------------------------------------------------------

    def _draw_hair_behind(self, canvas: Canvas) -> None:
        """Loose hair that hangs down, drawn below the head (from the front) or over the back."""
        ends = {"long": 0.70, "shoulder length": 0.805}
        end = ends.get(self.identity.hair_style)
        if end is not None:
            fall = self._upright([(0.985, 0.040, 0.045), (0.95, 0.058, 0.06), (0.89, 0.060, 0.055),
                                  (0.83, 0.062, 0.045),
                                  (end + 0.03, 0.052, 0.036), (end + 0.008, 0.040, 0.03), (end, 0.026, 0.02)],
                                  ahead=-0.024)  # fmt: skip
            canvas.solid(fall, self.colours["hair"])
            for s in (-0.5, 0.0, 0.5):
                canvas.crease(fall, 0.4, s, 0.95, s * 0.9, self._pen_width(0.006), NEUTRAL - 30)

    def _draw_head(self, canvas: Canvas) -> None:
        identity, colours, view = self.identity, self.colours, self.view
        head = self._upright(FACE)
        canvas.solid(head, colours["skin"], depth=0.8)
        if identity.hair_style != "bald":
            end = 0.927 if identity.hair_style in ("short", "ponytail", "bun") else 0.885
            cap = self._upright([(1.014, 0.012, 0.014), (1.008, 0.030, 0.034), (0.992, 0.046, 0.051),
                                 (0.97, 0.054, 0.060),
                                 (0.945, 0.056, 0.063), (end, 0.054, 0.060)], ahead=-0.006)  # fmt: skip
            if self.facing < 0.5:  # the back of the head, down to the nape
                back = self._upright([(0.95, 0.050, 0.034), (0.915, 0.046, 0.026), (0.893, 0.034, 0.016)], ahead=-0.03)
                canvas.solid(back, colours["hair"])
            canvas.solid(cap, colours["hair"])
            self._draw_face(canvas, 0.968)
            if self.facing <= 0:
                self._draw_hair_behind(canvas)
            self._draw_tied_hair(canvas)
        else:
            self._draw_face(canvas, 0.985)
        for azimuth in (-math.pi / 2, math.pi / 2):
            s = self._around(azimuth)[0]
            if math.cos(azimuth + view.yaw) > -0.1 and identity.hair_style in ("short", "bald", "ponytail", "bun"):
                canvas.ball(head.at(0.56, s * 0.98), 0.009 * view.scale, colours["skin"], NEUTRAL - 35, 1.6)
        self._draw_headwear(canvas)
        self._see("head", head.centres, 0.05)

    def _draw_tied_hair(self, canvas: Canvas) -> None:
        style, colour = self.identity.hair_style, self.colours["hair"]
        if style == "bun":
            canvas.ball(self._px(0, 1.0, -0.05), 0.028 * self.view.scale, colour, NEUTRAL - 10)
        elif style == "ponytail" and (self.facing < 0.35):
            points = np.array([[0, 0.965, -0.05], [0, 0.945, -0.085], [0, 0.88, -0.09], [0, 0.80, -0.08]])
            points[:, 1] += self.lift
            canvas.solid(self._limb(points, [0.016, 0.027, 0.026, 0.008]), colour)

    def _draw_face(self, canvas: Canvas, hairline: float) -> None:
        if self.facing < -0.45:
            return
        view, turned = self.view, abs(math.sin(self.view.yaw))
        top, chin = self._px(0, hairline, 0.0)[1], self._px(0, 0.866, 0.0)[1]
        centre = self._px(0, 0.0, 0.022 * turned + 0.004)[0]
        half = view.scale * (0.041 * max(self.facing, 0) + 0.036 * turned)
        face = Tube(np.array([[centre, top + (chin - top) * k] for k in np.linspace(0, 1, 6)]),
                    half * np.array([0.62, 0.95, 1.0, 0.95, 0.78, 0.4]))  # fmt: skip
        canvas.solid(face, self.colours["skin"], depth=0.55)
        dark = dim(self.colours["skin"], 0.35)
        red, green, blue = self.colours["skin"]
        lip = (int(red * 0.72), int(green * 0.48), int(blue * 0.48))
        unit = view.scale
        for azimuth in (-0.42, 0.42):
            if math.cos(azimuth + view.yaw) > 0.15:
                eye = self._on_face(azimuth, 0.937)
                canvas.ball(eye, 0.0062 * unit, dark, squash=0.7)
                brow = eye - [0, 0.013 * unit]
                canvas.line(brow + np.array([[-0.010, 0], [0.010, 0]]) * unit, self._hair_or(dark), 0.005 * unit)
        if math.cos(view.yaw) > -0.2:
            nose = self._on_face(0.0, 0.915, 0.008)
            canvas.ball(nose, 0.007 * unit, self.colours["skin"], NEUTRAL - 45 if turned < 0.5 else NEUTRAL - 15)
            mouth = self._on_face(0.0, 0.893)
            width = 0.013 * max(self.facing, 0.4)
            canvas.line(mouth + np.array([[-width, 0], [width, 0]]) * unit, lip, 0.006 * unit)
        self._draw_glasses(canvas)

    def _hair_or(self, other: Colour) -> Colour:
        return other if self.identity.hair_style == "bald" else dim(self.colours["hair"], 0.7)

    def _on_face(self, azimuth: float, y: float, out: float = 0.0) -> np.ndarray:
        return self._px(math.sin(azimuth) * (0.047 + out), y, math.cos(azimuth) * (0.055 + out))

    def _draw_glasses(self, canvas: Canvas) -> None:
        kind, unit = self.identity.glasses, self.view.scale
        if kind == NONE or self.facing < -0.1:
            return
        eyes = [self._on_face(a, 0.936, 0.004) for a in (-0.42, 0.42) if math.cos(a + self.view.yaw) > 0.1]
        for eye in eyes:
            if kind == "sunglasses":
                canvas.ball(eye, 0.016 * unit, (22, 22, 26), squash=0.8)
            else:
                box = [*(eye - 0.014 * unit), *(eye + np.array([0.014, 0.012]) * unit)]
                canvas.colour_pen.ellipse(box, outline=(30, 28, 30), width=self._pen_width(0.0055))
        temple = self._on_face(math.copysign(1.5, -math.sin(self.view.yaw)), 0.938)
        canvas.line(np.array([eyes[0], eyes[-1]]), (30, 28, 30), 0.005 * unit)
        if abs(math.sin(self.view.yaw)) > 0.3:
            near = min(eyes, key=lambda eye: abs(float(eye[0] - temple[0])))
            canvas.line(np.array([near, temple]), (30, 28, 30), 0.005 * unit)

    def _draw_headwear(self, canvas: Canvas) -> None:
        kind, colour, unit = self.identity.headwear, self.colours["headwear"], self.view.scale
        if kind == NONE:
            return
        low = {"cap": 0.965, "hat": 0.968, "beanie": 0.955}[kind]
        top = {"cap": 1.018, "hat": 1.04, "beanie": 1.03}[kind]
        dome = self._upright(
            [(top, 0.022, 0.026), (top - 0.008, 0.042, 0.047), (low + 0.022, 0.057, 0.064), (low, 0.059, 0.067)]
        )
        brim = dim(colour, 0.82)
        if kind == "hat":
            canvas.ball(self._px(0, low, 0), 0.098 * unit, brim, NEUTRAL - 25, 0.24)
        canvas.solid(dome, colour)
        if kind == "hat":
            canvas.polygon(dome.patch(0.8, 1.0), brim, NEUTRAL - 45)
        elif kind == "beanie":
            canvas.solid(dome, brim, 0.72, 1.0)
        elif self.facing > -0.35:
            rim = np.stack([self._px(math.sin(a) * 0.055, low - 0.004, math.cos(a) * 0.06 + 0.05 * math.cos(a) ** 2)
                            for a in np.linspace(-1.35, 1.35, 9)])  # fmt: skip
            back = np.stack([self._px(math.sin(a) * 0.055, low + 0.01, math.cos(a) * 0.06) for a in (1.35, 0.0, -1.35)])
            canvas.polygon(np.concatenate([rim, back]).ravel().tolist(), brim, NEUTRAL - 50)

    # -- bags -----------------------------------------------------------------------------------------------------

    def _side(self) -> int:
        return 1 if self.identity.bag_side == "left" else -1

    def _hand(self) -> np.ndarray:
        """Of the arm on the bag's side, with the lift taken out so that ``_px`` can put it back."""
        return self.arms[0 if self._side() == 1 else 1][3] - np.array([0, self.lift, 0])

    def _bag_centre(self) -> np.ndarray:
        bag = self.identity.bag
        if bag == "backpack":
            return np.array([0.0, 0.715, -0.115])
        if bag == "shoulder bag":
            return np.array([self._side() * 0.135, 0.52, 0.01])
        hand = self._hand()
        if bag == "suitcase":
            return np.array([self._side() * 0.17, 0.15 - self.lift, min(hand[2] - 0.07, -0.08)])
        return hand + np.array([0, -0.10, 0])

    def _bag_depth(self) -> float:
        return float(self.view.depth(self._bag_centre())) if self.identity.bag != NONE else -1.0

    def hides_bag(self) -> bool:
        """Whether the body stands between the camera and a bag at its side."""
        if self.identity.bag in (NONE, "backpack") or self._bag_depth() > -0.02:
            return False
        return abs(float(self._px(*self._bag_centre())[0]) - self.view.x) < 0.07 * self.view.scale

    def _draw_bag(self, canvas: Canvas) -> None:
        bag, colour, unit = self.identity.bag, self.colours["bag"], self.view.scale
        if bag == NONE:
            return
        x, y, z = self._bag_centre()
        half_width, half_depth, half_height, waist = {
            "backpack": (0.098, 0.06, 0.125, 0.9), "shoulder bag": (0.035, 0.085, 0.06, 1.0),
            "handbag": (0.038, 0.085, 0.055, 0.8),
            "plastic bag": (0.045, 0.07, 0.085, 0.62), "suitcase": (0.05, 0.075, 0.135, 1.0),
        }[bag]  # fmt: skip
        rows = np.array([1.0, 0.9, 0.3, -0.4, -0.9, -1.0])
        spans = np.array([0.72 * waist, 0.9 * waist, (1 + waist) / 2, 1.0, 0.97, 0.8])
        centres = np.stack([self._px(x, y + half_height * row, z) for row in rows])
        body = Tube(centres, self.view.half_width(half_width, half_depth) * spans, 0.12)
        if bag == "suitcase":
            rod = np.stack([self._px(*self._hand()), self._px(x, y + half_height, z)])
            canvas.line(rod, (90, 90, 95), 0.014 * unit)
        elif bag in ("handbag", "plastic bag"):
            for edge in (-0.55, 0.55):
                canvas.line(np.stack([self._px(*self._hand()), body.at(0.05, edge)]), colour, 0.010 * unit)
        canvas.solid(body, colour, depth=1.15)
        dark = dim(colour, 0.7)
        if bag in ("backpack", "suitcase") and (bag == "suitcase" or self.facing < 0.3):
            canvas.crease(body, 0.52, -0.8, 0.52, 0.8, self._pen_width(0.008), NEUTRAL - 80)
        if bag == "shoulder bag":
            canvas.polygon(body.patch(0.1, 0.5), dark, NEUTRAL - 10)
        self._see("bag", np.array(body.patch()).reshape(-1, 2), 0.0)

    def _strap(self, canvas: Canvas, heights: Sequence[float], azimuths: Sequence[float], width: float) -> None:
        """A strap laid around the upper body through places (height, azimuth), drawn where it can be seen."""
        table, t = np.array(TORSO[self.identity.gender])[::-1], np.linspace(0, 1, 9)
        y, azimuth = (np.interp(t, np.linspace(0, 1, len(values)), values) for values in (heights, azimuths))
        across, ahead = (np.interp(y, table[:, 0], table[:, k]) + self.cut.loose + 0.003 for k in (1, 2))
        points = np.stack([across * np.sin(azimuth), y + self.lift, ahead * np.cos(azimuth)], axis=-1)
        seen = np.cos(azimuth + self.view.yaw) > -0.12
        colour = dim(self.colours["bag"], 0.85)
        if seen.sum() > 1:
            canvas.line(self.view.project(points[seen]), colour, width * self.view.scale)

    def _draw_straps(self, canvas: Canvas) -> None:
        if self.identity.bag == "backpack":
            for side in (-1, 1):
                self._strap(canvas, (0.835, 0.80, 0.66, 0.62), (side * 1.5, side * 0.7, side * 0.95, side * 1.6), 0.02)
        elif self.identity.bag == "shoulder bag":
            side, half = self._side(), math.pi / 2
            for middle in (0.0, math.pi):  # across the chest, and across the back
                ends = (
                    (-side * (middle + half) + (2 * middle) * side, side * half)
                    if middle
                    else (-side * half, side * half)
                )
                self._strap(canvas, (0.84, 0.56), (ends[0] * 0.999, ends[1]), 0.014)
