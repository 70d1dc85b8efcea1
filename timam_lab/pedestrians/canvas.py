"""What our rendered pedestrians and their places are drawn with: a view, tubes, and a canvas of colour and light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
NEUTRAL = 200  # value of the light layer that leaves a colour as it is
_ARC = np.linspace(0, 1, 7)


def dim(colour: Colour, factor: float) -> Colour:
    """A darker (or lighter) colour."""
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


@dataclass(frozen=True)
class View:
    """Where the person stands in the picture: pixels of the drawing, angles in radians."""

    yaw: float
    pitch: float  # the camera looks down
    x: float  # of the feet
    ground: float  # y of the feet
    scale: float  # pixels per height of the person
    breadth: float  # 1 is an average build

    def project(self, points: np.ndarray) -> np.ndarray:
        """Body points (..., 3) to pixels (..., 2)."""
        x, y, z = points[..., 0] * self.breadth, points[..., 1], points[..., 2]
        across = x * math.cos(self.yaw) + z * math.sin(self.yaw)
        up = y * math.cos(self.pitch) - self.depth(points) * math.sin(self.pitch)
        return np.stack([self.x + self.scale * across, self.ground - self.scale * up], axis=-1)

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How far body points (..., 3) are towards the camera, (...)."""
        return points[..., 2] * math.cos(self.yaw) - points[..., 0] * self.breadth * math.sin(self.yaw)

    def half_width(self, across: np.ndarray | float, ahead: np.ndarray | float) -> np.ndarray:
        """Half-width in pixels of an upright elliptic cross-section with these half-axes."""
        side = np.asarray(across) * self.breadth * math.cos(self.yaw)
        depth = np.asarray(ahead) * (0.4 + 0.6 * self.breadth) * math.sin(self.yaw)
        return self.scale * np.hypot(side, depth)


class Tube:
    """A shape around a centre line from top to bottom; a place on it is (t along in [0, 1], s across in [-1, 1])."""

    def __init__(self, centres: np.ndarray, radii: np.ndarray, sag: float = 0.0) -> None:
        self.centres, self.sag = centres, sag  # (N, 2) pixels; sag bends cross-lines as a view from above does
        along = np.gradient(centres, axis=0)
        along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)[:, None]
        normals = np.stack([along[:, 1], -along[:, 0]], axis=-1)
        spokes = normals * np.asarray(radii)[:, None]  # (N, 2), centre to right edge
        self.columns = (*centres.T, *spokes.T)
        self.t = np.linspace(0, 1, len(centres))

    def at(self, t: np.ndarray | float, s: np.ndarray | float) -> np.ndarray:
        """Pixels (..., 2) of places ``t`` with ``s``, two numbers or two arrays of one shape."""
        rows = np.stack([np.interp(np.atleast_1d(t), self.t, column) for column in self.columns], axis=-1)
        return self._place(rows, np.atleast_1d(s)).reshape(*np.shape(t), 2)

    def patches(self, spans: Sequence[tuple[float, float]], t0: float = 0, t1: float = 1) -> list[list[float]]:
        """Outlines of the pieces between ``t0`` and ``t1`` with s in each of ``spans``: flat lists x, y, x, y, ..."""
        ts = np.concatenate([[t0], self.t[(self.t > t0) & (self.t < t1)], [t1]])
        rows = np.stack([np.interp(ts, self.t, column) for column in self.columns], axis=-1)  # (M, 4)
        s = np.array(spans, float)  # (K, 2)
        arcs = s[:, :1] + (s[:, 1:] - s[:, :1]) * (_ARC if self.sag else _ARC[::6])  # (K, A)
        left, right = (self._place(rows, s[:, k : k + 1]) for k in (0, 1))  # (K, M, 2)
        bottom, top = self._place(rows[-1:], arcs), self._place(rows[:1], arcs)  # (K, A, 2)
        outlines = np.concatenate([left, bottom, right[:, ::-1], top[:, ::-1]], axis=1)
        return outlines.reshape(len(s), -1).tolist()

    def _place(self, rows: np.ndarray, s: np.ndarray) -> np.ndarray:
        bend = self.sag * np.hypot(rows[:, 2], rows[:, 3]) * np.sqrt(np.maximum(0, 1 - s * s))
        return np.stack([rows[:, 0] + s * rows[:, 2], rows[:, 1] + s * rows[:, 3] + bend], axis=-1)

    def patch(self, t0: float = 0, t1: float = 1, s0: float = -1, s1: float = 1) -> list[float]:
        """Outline of one piece, as in ``patches``."""
        return self.patches([(s0, s1)], t0, t1)[0]


class Canvas:
    """One picture as two layers, colour without light and light without colour, multiplied at the very end."""

    def __init__(self, background: Image.Image, light: float) -> None:
        self.colours, self.lights = background, Image.new("L", background.size, NEUTRAL)
        self.light = light  # where on a round body it is brightest: -1 left edge, 1 right edge
        self.colour_pen, self.light_pen = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.lights)

    def polygon(self, points: list[float], colour: Colour, light: int = NEUTRAL) -> None:
        """A flat piece."""
        self.colour_pen.polygon(points, fill=colour)
        self.light_pen.polygon(points, fill=light)

    def solid(self, tube: Tube, colour: Colour, t0: float = 0, t1: float = 1, depth: float = 1.0) -> None:
        """A round piece: dark towards the edges, brightest where the light falls."""
        steps = (0.0, 0.12, 0.3, 0.5, 0.72)
        bands = tube.patches([(-1 + (1 + self.light) * k, 1 - (1 - self.light) * k) for k in steps], t0, t1)
        self.colour_pen.polygon(bands[0], fill=colour)
        for step, band in zip(steps, bands, strict=True):
            self.light_pen.polygon(band, fill=NEUTRAL + int((-62 + 100 * step) * depth))

    def ball(self, centre: np.ndarray, radius: float, colour: Colour, light: int = NEUTRAL - 20,
             squash: float = 1.0) -> None:  # fmt: skip
        """An ellipse of half-width ``radius`` and half-height ``radius * squash``, in pixels."""
        x, y = float(centre[0]), float(centre[1])
        box = [x - radius, y - radius * squash, x + radius, y + radius * squash]
        self.colour_pen.ellipse(box, fill=colour)
        self.light_pen.ellipse(box, fill=light)

    def crease(self, tube: Tube, t0: float, s0: float, t1: float, s1: float, width: float,
               light: int = NEUTRAL - 60) -> None:  # fmt: skip
        """A fold of the cloth from (t0, s0) to (t1, s1), in the light layer only."""
        ends = tube.at(np.array([t0, (t0 + t1) / 2, t1]), np.array([s0, (s0 + s1) / 2 + 0.05, s1]))
        self.light_pen.line(ends.ravel().tolist(), fill=light, width=max(1, round(width)))

    def line(self, points: np.ndarray, colour: Colour, width: float, light: int = NEUTRAL - 15) -> None:
        """A strap or a rod through pixels (N, 2)."""
        for pen, fill in ((self.colour_pen, colour), (self.light_pen, light)):
            pen.line(points.ravel().tolist(), fill=fill, width=max(1, round(width)), joint="curve")

    def soften(self, radius: float) -> None:
        """Blur the light layer, so that bands of shading run into each other."""
        self.lights = self.lights.filter(ImageFilter.BoxBlur(radius))
        self.light_pen = ImageDraw.Draw(self.lights)
