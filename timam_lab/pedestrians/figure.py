"""Draw one of our rendered pedestrians: a jointed body in three dimensions, dressed and projected to the picture.

Lengths are in units of the person's height. Body axes: x to the person's own left, y up, z ahead; the origin is on the
ground between the feet. ``yaw`` turns the person: 0 faces the camera, pi shows the back, pi/2 faces the right of the
image. So a bag at x > 0 (the person's left) is on the right of the image from the front and on its left from the back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from timam_lab.pedestrians.attributes import COLOURS, DENIM_COLOURS, HAIR_COLOURS, NONE, SKIN_COLOURS, TABLES, Identity
from timam_lab.pedestrians.canvas import NEUTRAL, Canvas, Colour, Tube, View, dim


@dataclass(frozen=True)
class Cut:
    """How a garment is cut: sleeve as a share of the arm, hem as a height, width added around the body."""

    hem: float
    sleeve: float = 0.0
    loose: float = 0.0
    flare: float = 0.0  # width added at the hem of a skirt or coat
    collar: str = ""


SHAPES: dict[str, list[list[float]]] = TABLES["shapes"]  # cross-sections, top to bottom: y, half-width, half-depth
UPPER_CUTS = {name: Cut(**cut) for name, cut in TABLES["upper_cuts"].items()}
SKIRT_CUTS = {name: Cut(**cut) for name, cut in TABLES["skirt_cuts"].items()}
LEG_CUTS: dict[str, list[float]] = TABLES["leg_cuts"]  # share of the leg, width added at the thigh, at the ankle
BAGS: dict[str, list[float]] = TABLES["bags"]  # half-width, half-depth, half-height, width at the top
DARK = (30, 28, 30)  # frames of glasses


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
    elbow = rng.uniform(0.12, 0.6, 2).tolist()
    spread = rng.uniform(0.06, 0.17, 2).tolist()
    for index, side in enumerate(("left", "right")):
        gesture = rng.random()
        if side == identity.bag_side and identity.bag == "suitcase":
            shoulder[index], elbow[index] = -0.35, 0.1
        elif side == identity.bag_side and identity.bag in ("handbag", "plastic bag"):
            shoulder[index], elbow[index] = 0.3 * shoulder[index], 0.12
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
        self.colours["skin"] = _jitter(rng, SKIN_COLOURS[identity.skin], 6)
        self.colours["hair"] = _jitter(rng, HAIR_COLOURS.get(identity.hair_colour, (60, 50, 45)), 6)
        self.pattern_pitch = float(rng.uniform(0.85, 1.2))
        self.cut = UPPER_CUTS[identity.upper]
        self.unit, self.facing = view.scale, math.cos(view.yaw)  # pixels per height; 1 front, 0 side, -1 back
        self.slim = -0.004 if identity.gender == "woman" else 0.0  # added to the radii of the limbs
        self.bag_side = 1 if identity.bag_side == "left" else -1
        self.boxes: dict[str, tuple[float, float, float, float]] = {}
        self._stand()

    def _stand(self) -> None:
        """Joints of both legs and arms; the lower foot touches the ground."""
        pose, shoulder_x = self.pose, 0.082 if self.identity.gender == "woman" else 0.093
        self.legs, self.arms = [], []
        for index, side in enumerate((1, -1)):
            hip = np.array([side * 0.052, 0.505, 0.0])
            a, b = pose.hip[index], pose.hip[index] - pose.knee[index]
            knee = hip + 0.232 * np.array([0.0, -math.cos(a), math.sin(a)])
            ankle = knee + 0.232 * np.array([-0.02 * side, -math.cos(b), math.sin(b)])
            self.legs.append(np.stack([hip, knee, ankle]))
            a, b, c = pose.shoulder[index], pose.shoulder[index] + pose.elbow[index], pose.spread[index]
            joint = np.array([side * shoulder_x, 0.79, 0.0])
            elbow = joint + 0.168 * np.array([side * math.sin(c), -math.cos(a) * math.cos(c), math.sin(a)])
            inward = 0.1 if pose.elbow[index] < 1 else 0.7
            wrist = elbow + 0.142 * np.array([-side * inward, -math.cos(b), math.sin(b)])
            self.arms.append(np.stack([joint, elbow, wrist, wrist + (wrist - elbow) * 0.36]))
        drop = min(leg[2, 1] for leg in self.legs) - 0.042
        self.lift = -drop  # added to every height of the upper body
        for limb in (*self.legs, *self.arms):
            limb[:, 1] -= drop
        # The hand on the bag's side, with the lift taken out so that ``_px`` can put it back.
        self.hand = self.arms[0 if self.bag_side == 1 else 1][3] - np.array([0, self.lift, 0])

    # -- places ---------------------------------------------------------------------------------------------------

    def _px(self, *point: float) -> np.ndarray:
        """Pixel of a body point (x, y, z)."""
        return self.view.project(np.array([point[0], point[1] + self.lift, point[2]]))

    def _upright(self, sections: Sequence[Sequence[float]], add: float = 0.0, ahead: float = 0.0) -> Tube:
        """Tube of elliptic cross-sections (y, half-width, half-depth), top to bottom, shifted ahead."""
        table = np.array(sections)
        middle = np.stack([np.zeros(len(table)), table[:, 0] + self.lift, np.full(len(table), ahead)], axis=-1)
        return Tube(self.view.project(middle), self.view.half_width(table[:, 1] + add, table[:, 2] + add), 0.16)

    def _limb(self, joints: np.ndarray, radii: Sequence[float] | np.ndarray, share: float = 1.0,
              domed: bool = False) -> Tube:  # fmt: skip
        """Tube along joints (N, 3), rounded at the joints; ``share`` of its length, counted from the top."""
        t = np.linspace(0, (len(joints) - 1) * share, 8)
        line = np.stack([np.interp(t, np.arange(len(joints)), joints[:, axis]) for axis in range(3)], axis=-1)
        line[1:-1] = 0.25 * line[:-2] + 0.5 * line[1:-1] + 0.25 * line[2:]
        widths = np.interp(t, np.linspace(0, len(joints) - 1, len(radii)), radii)
        centres = self.view.project(line)
        if domed:  # a round shoulder
            upwards = centres[0] - centres[1]
            rise = upwards / max(float(np.hypot(*upwards)), 1e-6) * widths[0] * self.unit
            centres = np.concatenate([centres[0] + rise * np.array([[0.85], [0.72], [0.4]]), centres])
            widths = np.concatenate([widths[0] * np.array([0.3, 0.65, 0.92]), widths])
        return Tube(centres, widths * self.unit * (0.5 + 0.5 * self.view.breadth))

    def _around(self, azimuth: float) -> tuple[float, float]:
        """A direction (0 ahead, positive to the person's left): where on a tube it is (s), how far it faces us."""
        return math.sin(azimuth + self.view.yaw), math.cos(azimuth + self.view.yaw)

    def _see(self, name: str, points: np.ndarray, margin: float) -> None:
        """Extend the box of a part by pixels (N, 2) and a margin in heights around them."""
        margin *= self.unit
        (left, top), (right, bottom) = (points.min(0) - margin).tolist(), (points.max(0) + margin).tolist()
        old = self.boxes.get(name, (left, top, right, bottom))
        self.boxes[name] = (min(left, old[0]), min(top, old[1]), max(right, old[2]), max(bottom, old[3]))

    # -- drawing --------------------------------------------------------------------------------------------------

    def draw(self, canvas: Canvas) -> None:
        """Draw the person, what is farther away first."""
        bag_behind = self._bag_depth() < -0.02
        far = [float(self.view.depth(arm).mean()) < -0.025 for arm in self.arms]
        if bag_behind:
            self._draw_bag(canvas)
        for arm in compress(self.arms, far):
            self._draw_arm(canvas, arm)
        if self.facing > 0:
            self._draw_loose_hair(canvas)
        for leg in sorted(self.legs, key=lambda leg: float(self.view.depth(leg).mean())):
            self._draw_leg(canvas, leg)
        self._draw_skirt(canvas)
        self._solid(canvas, "neck", "skin")
        self._draw_torso(canvas)
        self._draw_head(canvas)
        for arm in compress(self.arms, np.invert(far)):
            self._draw_arm(canvas, arm)
        if not bag_behind:
            self._draw_bag(canvas)
        self._draw_straps(canvas)

    def _solid(self, canvas: Canvas, shape: str, part: str, ahead: float = 0.0, depth: float = 1.0) -> Tube:
        """Draw an upright piece of one of the SHAPES in the colour of ``part``."""
        tube = self._upright(SHAPES[shape], ahead=ahead)
        canvas.solid(tube, self.colours[part], depth=depth)
        return tube

    def _draw_leg(self, canvas: Canvas, joints: np.ndarray) -> None:
        identity, radii = self.identity, np.array([0.050, 0.057, 0.042, 0.041, 0.027]) + self.slim
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
                canvas.crease(cloth, t, -0.7, t + lean, 0.3, 0.006 * self.unit)
            if identity.lower == "jeans":
                canvas.light_pen.polygon(cloth.patch(0.15, 0.5, -0.3, 0.35), fill=NEUTRAL + 30)

    def _draw_shoe(self, canvas: Canvas, joints: np.ndarray) -> None:
        ankle, shoes, unit, colour = joints[2], self.identity.shoes, self.unit, self.colours["shoes"]
        tilt = float(np.clip((joints[1, 2] - joints[2, 2]) * 1.2, -0.2, 0.35))  # the heel leaves the ground behind
        heel = ankle + np.array([0, -0.022 + 0.012 * tilt, -0.024])
        toe = ankle + np.array([0, -0.03 - 0.05 * tilt, 0.082])
        line = self.view.project(np.stack([heel, (heel + toe) / 2 + np.array([0, 0.008, 0]), toe]))
        sole = line + np.array([0, 0.012 * unit])
        if shoes in ("sneakers", "high heels"):
            canvas.line(sole, (235, 235, 232) if shoes == "sneakers" else dim(colour, 0.6), 0.026 * unit)
        base = self.colours["skin"] if shoes == "sandals" else colour
        for point, width in zip(line, np.array([0.019, 0.02, 0.014]) * unit, strict=True):
            canvas.ball(point, width, base, NEUTRAL - 25, 0.85)
        canvas.line(line, base, 0.033 * unit)
        if shoes == "sandals":
            canvas.line(sole, colour, 0.012 * unit)
            canvas.line(line[1:2] + np.array([[-0.02, 0], [0.02, 0]]) * unit, colour, 0.01 * unit)
        self._see("shoes", line, 0.02)

    def _draw_skirt(self, canvas: Canvas) -> None:
        """A skirt, or the seat of trousers."""
        cut = SKIRT_CUTS.get(self.identity.lower)
        if cut is not None:
            stride = abs(self.pose.hip[0]) * 0.11
            tube = self._upright([(0.60, 0.086, 0.064), (0.53, 0.105, 0.078), (0.47, 0.113, 0.086 + 0.3 * stride),
                                  (cut.hem, 0.105 + cut.flare, 0.082 + cut.flare + stride)])  # fmt: skip
            canvas.solid(tube, self.colours["lower"])
            self._pleat(canvas, tube)
            self._see("lower", tube.centres, 0.1)
        elif self.identity.lower != NONE:
            self._solid(canvas, "seat", "lower")

    def _pleat(self, canvas: Canvas, tube: Tube) -> None:
        for s in (-0.66, -0.3, 0.1, 0.45, 0.75):
            canvas.crease(tube, 0.55, s * 0.9, 1.0, s, 0.006 * self.unit, NEUTRAL - 45)

    def _torso_tube(self) -> Tube:
        """The upper garment without its sleeves, down to its hem."""
        hem, flare = self.cut.hem, self.cut.flare
        sections = [s for s in SHAPES[self.identity.gender] if s[0] > hem + 0.01]
        if hem < 0.44:  # a coat or a dress
            spare = abs(self.pose.hip[0]) * 0.09
            sections.append([0.44, 0.107 + flare * 0.4, 0.08 + flare * 0.4 + 0.4 * spare])
            sections.append([hem, 0.1 + flare, 0.076 + flare + spare])
        else:
            sections.append([hem, sections[-1][1] + flare, sections[-1][2] + flare])
        return self._upright(sections, self.cut.loose)

    def _draw_torso(self, canvas: Canvas) -> None:
        torso = self._torso_tube()
        canvas.solid(torso, self.colours["upper"])
        self._draw_pattern(canvas, torso, float(np.diff(torso.centres[[0, -1], 1])[0]), 0.5)
        if self.identity.upper_pattern == "logo" and self.facing > 0.2:
            s, half = self._around(0.0)[0], 0.5 * self.facing
            canvas.colour_pen.polygon(torso.patch(0.28, 0.5, s - half, s + half), fill=self.colours["upper_second"])
            bar = torso.patch(0.36, 0.40, s - 0.6 * half, s + 0.6 * half)
            canvas.colour_pen.polygon(bar, fill=self.colours["upper"])
        if self.identity.inner_colour != NONE and self.facing > 0.1:  # worn open
            edges = [self._around(azimuth)[0] for azimuth in (-0.38, 0.38)]
            canvas.colour_pen.polygon(torso.patch(0.06, 0.98, *edges), fill=self.colours["inner"])
            for edge in edges:
                canvas.crease(torso, 0.06, edge, 1.0, edge, 0.008 * self.unit, NEUTRAL - 70)
        self._draw_neckline(canvas, torso)
        for t, s, lean in ((0.45, -0.75, 0.10), (0.62, 0.15, 0.08), (0.72, -0.55, -0.06), (0.3, 0.5, 0.12)):
            canvas.crease(torso, t, s, t + lean, s + 0.45, 0.007 * self.unit, NEUTRAL - 42)
        if self.cut.hem < 0.44:
            self._pleat(canvas, torso)
        self._see("upper", torso.centres, 0.09)

    def _draw_neckline(self, canvas: Canvas, torso: Tube) -> None:
        collar, unit, middle = self.cut.collar, self.unit, self._around(0.0)[0]
        closed = self.identity.inner_colour == NONE
        if collar == "hood":
            self._solid(canvas, "hood", "upper", ahead=-0.02, depth=1.2)
        elif collar == "stand":
            self._solid(canvas, "stand", "upper", depth=1.3)
        if self.facing > 0.15:
            opening = 0.045 if self.identity.upper in ("tank top", "dress", "blouse") else 0.028
            (x, y), width = self._px(0, 0.852, 0.035), 0.034 * unit * self.facing
            throat = [x - width, y, x + width, y, x + middle * 3, y + opening * 1.6 * unit]
            canvas.polygon(throat, self.colours["skin" if closed else "inner"], NEUTRAL - 20)
            if collar in ("shirt", "stand") and closed:  # buttons or zip
                canvas.crease(torso, 0.12, middle, 0.97, middle * 0.9, 0.006 * unit, NEUTRAL - 65)

    def _draw_pattern(self, canvas: Canvas, tube: Tube, length: float, spacing: float) -> None:
        """The pattern of the upper garment on a tube ``length`` pixels long; ``spacing`` in radians around it."""
        pattern, pen, second = self.identity.upper_pattern, canvas.colour_pen, self.colours["upper_second"]
        step = 0.05 * self.pattern_pitch * self.unit / max(length, 1.0)
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
                    (x, y), r = tube.at(float(t), s), 0.011 * self.unit
                    pen.ellipse([x - r, y - r, x + r, y + r], fill=second)

    def _seen_around(self, spacing: float, start: float) -> list[float]:
        """Places across a tube (s) of directions ``spacing`` apart, those that face the camera."""
        places = [self._around(start + k * spacing) for k in range(int((2 * math.pi - start) / spacing + 0.99))]
        return [s for s, towards in places if towards > 0.05 and abs(s) < 0.93]

    def _draw_arm(self, canvas: Canvas, joints: np.ndarray) -> None:
        radii = np.array([0.033, 0.033, 0.031, 0.027, 0.026, 0.020]) + self.slim
        share, loose, pattern = self.cut.sleeve, self.cut.loose, self.identity.upper_pattern
        canvas.solid(self._limb(joints[2:], [0.017, 0.022, 0.014]), self.colours["skin"])  # the hand
        if share < 1:
            canvas.solid(self._limb(joints[:3], radii, domed=True), self.colours["skin"])
        if share == 0:
            return
        wider = np.linspace(loose, loose * 0.6 + (0.003 if share == 1 else 0.010), len(radii))
        sleeve = self._limb(joints[:3], radii + wider, share, domed=True)
        canvas.solid(sleeve, self.colours["upper"])
        if pattern in ("striped", "checked", "dotted"):
            self._draw_pattern(canvas, sleeve, 0.31 * share * self.unit, 1.5)
        elif pattern == "colour block" and share == 1:
            canvas.colour_pen.polygon(sleeve.patch(0.55, 1.0), fill=self.colours["upper_second"])
        if share == 1:
            for t, lean in ((0.45, 0.05), (0.55, -0.04)):
                canvas.crease(sleeve, t, -0.8, t + lean, 0.3, 0.006 * self.unit)

    # -- head -----------------------------------------------------------------------------------------------------

    def _draw_loose_hair(self, canvas: Canvas) -> None:
        """Hair that hangs down, drawn below the head (from the front) or over the back."""
        end = {"long": 0.70, "shoulder length": 0.805}.get(self.identity.hair_style)
        if end is not None:
            ends = [(end + 0.03, 0.052, 0.036), (end + 0.008, 0.040, 0.03), (end, 0.026, 0.02)]
            fall = self._upright([*SHAPES["hair behind"], *ends], ahead=-0.024)
            canvas.solid(fall, self.colours["hair"])
            for s in (-0.5, 0.0, 0.5):
                canvas.crease(fall, 0.4, s, 0.95, s * 0.9, 0.006 * self.unit, NEUTRAL - 30)

    def _draw_head(self, canvas: Canvas) -> None:
        loose, bald = self.identity.hair_style in ("long", "shoulder length"), self.identity.hair_style == "bald"
        head = self._solid(canvas, "face", "skin", depth=0.8)
        if not bald:
            if self.facing < 0.5:  # the back of the head, down to the nape
                self._solid(canvas, "nape", "hair", ahead=-0.03)
            self._solid(canvas, "loose hair" if loose else "cropped hair", "hair", ahead=-0.006)
        self._draw_face(canvas, 0.985 if bald else 0.968)
        if self.facing <= 0:
            self._draw_loose_hair(canvas)
        self._draw_tied_hair(canvas)
        for s, towards in map(self._around, (-math.pi / 2, math.pi / 2)):  # the ears
            if towards > -0.1 and not loose:
                canvas.ball(head.at(0.56, s * 0.98), 0.009 * self.unit, self.colours["skin"], NEUTRAL - 35, 1.6)
        self._draw_headwear(canvas)
        self._see("head", head.centres, 0.05)

    def _draw_tied_hair(self, canvas: Canvas) -> None:
        style, colour = self.identity.hair_style, self.colours["hair"]
        if style == "bun":
            canvas.ball(self._px(0, 1.0, -0.05), 0.028 * self.unit, colour, NEUTRAL - 10)
        elif style == "ponytail" and self.facing < 0.35:
            points = np.array([[0, 0.965, -0.05], [0, 0.945, -0.085], [0, 0.88, -0.09], [0, 0.80, -0.08]])
            points[:, 1] += self.lift
            canvas.solid(self._limb(points, [0.016, 0.027, 0.026, 0.008]), colour)

    def _on_face(self, azimuth: float, y: float, out: float = 0.0) -> np.ndarray:
        return self._px(math.sin(azimuth) * (0.047 + out), y, math.cos(azimuth) * (0.055 + out))

    def _draw_face(self, canvas: Canvas, hairline: float) -> None:
        if self.facing < -0.45:
            return
        unit, skin, turned = self.unit, self.colours["skin"], abs(math.sin(self.view.yaw))
        top, chin = self._px(0, hairline, 0.0)[1], self._px(0, 0.866, 0.0)[1]
        centre = self._px(0, 0.0, 0.022 * turned + 0.004)[0]
        half = unit * (0.041 * max(self.facing, 0) + 0.036 * turned)
        middle = np.array([[centre, top + (chin - top) * k] for k in np.linspace(0, 1, 6)])
        canvas.solid(Tube(middle, half * np.array([0.62, 0.95, 1.0, 0.95, 0.78, 0.4])), skin, depth=0.55)
        dark = dim(skin, 0.35)
        brow_colour = dark if self.identity.hair_style == "bald" else dim(self.colours["hair"], 0.7)
        for azimuth in (-0.42, 0.42):
            if self._around(azimuth)[1] > 0.15:
                eye = self._on_face(azimuth, 0.937)
                canvas.ball(eye, 0.0062 * unit, dark, squash=0.7)
                brow = eye - [0, 0.013 * unit]
                canvas.line(brow + np.array([[-0.010, 0], [0.010, 0]]) * unit, brow_colour, 0.005 * unit)
        if self.facing > -0.2:
            nose, mouth = self._on_face(0.0, 0.915, 0.008), self._on_face(0.0, 0.893)
            canvas.ball(nose, 0.007 * unit, skin, NEUTRAL - 45 if turned < 0.5 else NEUTRAL - 15)
            lip = (int(skin[0] * 0.72), int(skin[1] * 0.48), int(skin[2] * 0.48))
            width = 0.013 * max(self.facing, 0.4)
            canvas.line(mouth + np.array([[-width, 0], [width, 0]]) * unit, lip, 0.006 * unit)
        if self.identity.glasses != NONE and self.facing >= -0.1:
            self._draw_glasses(canvas)

    def _draw_glasses(self, canvas: Canvas) -> None:
        unit, sideways = self.unit, math.sin(self.view.yaw)
        eyes = [self._on_face(a, 0.936, 0.004) for a in (-0.42, 0.42) if self._around(a)[1] > 0.1]
        for eye in eyes:
            if self.identity.glasses == "sunglasses":
                canvas.ball(eye, 0.016 * unit, (22, 22, 26), squash=0.8)
            else:
                box = [*(eye - 0.014 * unit), *(eye + np.array([0.014, 0.012]) * unit)]
                canvas.colour_pen.ellipse(box, outline=DARK, width=max(1, round(0.0055 * unit)))
        canvas.line(np.array([eyes[0], eyes[-1]]), DARK, 0.005 * unit)
        if abs(sideways) > 0.3:
            temple = self._on_face(math.copysign(1.5, -sideways), 0.938)
            near = min(eyes, key=lambda eye: abs(float(eye[0] - temple[0])))
            canvas.line(np.array([near, temple]), DARK, 0.005 * unit)

    def _draw_headwear(self, canvas: Canvas) -> None:
        kind, brim = self.identity.headwear, dim(self.colours["headwear"], 0.82)
        if kind == NONE:
            return
        low = SHAPES[kind][-1][0]
        if kind == "hat":
            canvas.ball(self._px(0, low, 0), 0.098 * self.unit, brim, NEUTRAL - 25, 0.24)
        dome = self._solid(canvas, kind, "headwear")
        if kind == "hat":
            canvas.polygon(dome.patch(0.8, 1.0), brim, NEUTRAL - 45)
        elif kind == "beanie":
            canvas.solid(dome, brim, 0.72, 1.0)
        elif self.facing > -0.35:
            rim = [self._px(math.sin(a) * 0.055, low - 0.004, math.cos(a) * 0.06 + 0.05 * math.cos(a) ** 2)
                   for a in np.linspace(-1.35, 1.35, 9)]  # fmt: skip
            back = [self._px(math.sin(a) * 0.055, low + 0.01, math.cos(a) * 0.06) for a in (1.35, 0.0, -1.35)]
            canvas.polygon(np.concatenate([*rim, *back]).tolist(), brim, NEUTRAL - 50)

    # -- bags -----------------------------------------------------------------------------------------------------

    def _bag_centre(self) -> np.ndarray:
        bag, side = self.identity.bag, self.bag_side
        if bag == "backpack":
            return np.array([0.0, 0.715, -0.115])
        if bag == "shoulder bag":
            return np.array([side * 0.135, 0.52, 0.01])
        if bag == "suitcase":
            return np.array([side * 0.17, 0.15 - self.lift, min(self.hand[2] - 0.07, -0.08)])
        return self.hand + np.array([0, -0.10, 0])

    def _bag_depth(self) -> float:
        return float(self.view.depth(self._bag_centre()))

    def hides_bag(self) -> bool:
        """Whether the body stands between the camera and a bag at its side."""
        if self.identity.bag in (NONE, "backpack") or self._bag_depth() > -0.02:
            return False
        return abs(float(self._px(*self._bag_centre())[0]) - self.view.x) < 0.07 * self.unit

    def _draw_bag(self, canvas: Canvas) -> None:
        bag, colour, unit = self.identity.bag, self.colours["bag"], self.unit
        if bag == NONE:
            return
        x, y, z = self._bag_centre()
        half_width, half_depth, half_height, waist = BAGS[bag]
        spans = np.array([0.72 * waist, 0.9 * waist, (1 + waist) / 2, 1.0, 0.97, 0.8])
        centres = np.stack([self._px(x, y + half_height * row, z) for row in (1.0, 0.9, 0.3, -0.4, -0.9, -1.0)])
        body, hand = Tube(centres, self.view.half_width(half_width, half_depth) * spans, 0.12), self._px(*self.hand)
        if bag == "suitcase":
            canvas.line(np.stack([hand, self._px(x, y + half_height, z)]), (90, 90, 95), 0.014 * unit)
        elif bag in ("handbag", "plastic bag"):
            for edge in (-0.55, 0.55):
                canvas.line(np.stack([hand, body.at(0.05, edge)]), colour, 0.010 * unit)
        canvas.solid(body, colour, depth=1.15)
        if bag == "suitcase" or (bag == "backpack" and self.facing < 0.3):
            canvas.crease(body, 0.52, -0.8, 0.52, 0.8, 0.008 * unit, NEUTRAL - 80)
        if bag == "shoulder bag":
            canvas.polygon(body.patch(0.1, 0.5), dim(colour, 0.7), NEUTRAL - 10)
        self._see("bag", np.array(body.patch()).reshape(-1, 2), 0.0)

    def _strap(self, canvas: Canvas, heights: Sequence[float], azimuths: Sequence[float], width: float) -> None:
        """A strap laid around the upper body through places (height, azimuth), drawn where it can be seen."""
        table, t = np.array(SHAPES[self.identity.gender])[::-1], np.linspace(0, 1, 9)
        y, azimuth = (np.interp(t, np.linspace(0, 1, len(values)), values) for values in (heights, azimuths))
        across, ahead = (np.interp(y, table[:, 0], table[:, k]) + self.cut.loose + 0.003 for k in (1, 2))
        points = np.stack([across * np.sin(azimuth), y + self.lift, ahead * np.cos(azimuth)], axis=-1)
        seen = np.cos(azimuth + self.view.yaw) > -0.12
        if seen.sum() > 1:
            canvas.line(self.view.project(points[seen]), dim(self.colours["bag"], 0.85), width * self.unit)

    def _draw_straps(self, canvas: Canvas) -> None:
        if self.identity.bag == "backpack":
            for side in (-1, 1):
                self._strap(canvas, (0.835, 0.80, 0.66, 0.62), (side * 1.5, side * 0.7, side * 0.95, side * 1.6), 0.02)
        elif self.identity.bag == "shoulder bag":
            end = self.bag_side * math.pi / 2
            for start in (-end, end):  # across the chest, and down the bag's side
                self._strap(canvas, (0.84, 0.56), (start * 0.999, end), 0.014)
