"""What the rendered pedestrians are drawn with: a view, and a canvas that keeps the nearest surface of every pixel.

Bodies are made of two solids: a limb (a chain of spheres with everything between them) and a trunk (a stack of elliptic
cross-sections). Shading, patterns and faces are painted afterwards, on the pixels that can be seen. The pixel loops use
basic operations and square roots only, which give the same bits on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class View:
    """Where a person stands in the picture: pixels of the canvas, angles in radians."""

    yaw: float  # 0 faces the camera
    pitch: float  # the camera looks down
    x: float  # of the feet
    ground: float  # y of the feet
    scale: float  # pixels per height of the person
    squash: float = 1.0  # width of a pixel's picture
    distance: float = 0.0  # pixels behind the person described; negative in front

    def project(self, points: Array) -> Array:
        """Body points (..., 3) to pixels x, y and depth towards the camera, (..., 3)."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        across = x * math.cos(self.yaw) + z * math.sin(self.yaw)
        ahead = z * math.cos(self.yaw) - x * math.sin(self.yaw)
        up = y * math.cos(self.pitch) - ahead * math.sin(self.pitch)
        near = ahead * math.cos(self.pitch) + y * math.sin(self.pitch)
        column, row = self.x + self.scale * self.squash * across, self.ground - self.scale * up
        return np.stack([column, row, self.scale * near - self.distance], axis=-1)

    def half_axes(self, across: Array, ahead: Array) -> tuple[Array, Array]:
        """Half-width in pixels, and extent towards the camera, of an elliptic cross-section with these half-axes."""
        side, front = math.cos(self.yaw), math.sin(self.yaw)
        width = self.scale * self.squash * np.hypot(across * side, ahead * front)
        return width, self.scale * np.hypot(across * front, ahead * side)


class Canvas:
    """The nearest surface of every pixel.

    Attributes:
        surface: (H, W) number of the surface, 0 where there is none.
        depth: (H, W) towards the camera.
        u: (H, W) angle around the solid in radians: 0 is the person's front, positive to the person's left.
        v: (H, W) place along the solid: height of a trunk, distance from the start of a limb.
        nx, ny: (H, W) its normal; the third component is what is lacking to length 1.
    """

    def __init__(self, width: int, height: int) -> None:
        self.surface = np.zeros((height, width), np.int16)
        self.depth = np.full((height, width), -1e9, np.float32)
        self.u, self.v, self.nx, self.ny = (np.zeros((height, width), np.float32) for _ in range(4))
        self._x, self._y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]

    def _window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        """Rows and columns of a box, None where nothing of it is in the picture."""
        height, width = self.surface.shape
        rows = slice(max(0, int(top)), min(height, int(bottom) + 2))
        columns = slice(max(0, int(left)), min(width, int(right) + 2))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None

    def _put(self, window: tuple[slice, slice], inside: Array, surface: int, values: tuple) -> None:
        """Replace what is farther away: ``values`` are depth, u, v, nx, ny."""
        inside &= values[0] > self.depth[window]
        for buffer, value in zip((self.depth, self.u, self.v, self.nx, self.ny), values, strict=True):
            np.copyto(buffer[window], value, where=inside)
        np.copyto(self.surface[window], surface, where=inside)

    def limb(self, points: Array, radii: Array, surface: int, yaw: float | None, flat: bool) -> None:
        """Spheres along pixels (N, 3) with these radii (N,), and all between them.

        Without a ``yaw`` there is no angle u; ``flat`` cuts off the last dome.
        """
        steps = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
        rows = np.column_stack([points, radii, np.concatenate([[0], np.cumsum(steps)])]).tolist()
        for k, (start, end) in enumerate(pairwise(rows)):
            self._cone(start, end, surface, yaw, flat and k == len(rows) - 2)

    def _cone(self, start: list[float], end: list[float], surface: int, yaw: float | None, flat: bool) -> None:
        """One piece of a limb; its ends are x, y, depth, radius, v."""
        (ax, ay, az, ar, av), (bx, by, bz, br, bv) = start, end
        left, top = min(ax - ar, bx - br), min(ay - ar, by - br)
        window = self._window(left, top, max(ax + ar, bx + br), max(ay + ar, by + br))
        if window is None:
            return
        x, y = self._x[:, window[1]] - ax, self._y[window[0]] - ay
        dx, dy = bx - ax, by - ay
        length = max(math.hypot(dx, dy), 1e-3)
        along = (x * dx + y * dy) / length**2
        t = np.clip(along, 0, 1)
        radius = ar + t * (br - ar)
        nx, ny = (x - t * dx) / radius, (y - t * dy) / radius
        off = nx * nx + ny * ny
        dome = (along - t) / radius * 0.7  # domes are lit as if flatter, or joints would show
        nx, ny = nx - dome * dx, ny - dome * dy
        inside = off < 1
        if flat:
            inside &= along <= 1
        depth = az + t * (bz - az) + radius * np.sqrt(np.maximum(1 - off, 0))
        u = np.float32(0) if yaw is None else angle_around((x * dy - y * dx) / (length * radius), yaw)
        self._put(window, inside, surface, (depth, u, av + t * (bv - av), nx, ny))

    def trunk(self, centres: Array, half_axes: tuple, v: Array, surface: int, view: View, front: float = 0.0) -> None:
        """A stack of upright elliptic cross-sections, from top to bottom.

        Args:
            centres: (N, 3) pixels, y increasing.
            half_axes: half-width and extent towards the camera, (N,) each, in pixels.
            v: (N,) the height of each cross-section.
            front: width in radians of an opening to either side of the person's front.
        """
        width, deep = half_axes
        sag = math.sin(view.pitch)  # the near side of a cross-section lies lower in the picture
        bottom = centres[-1, 1] + sag * deep[-1]
        window = self._window((centres[:, 0] - width).min(), centres[0, 1], (centres[:, 0] + width).max(), bottom)
        if window is None:
            return
        x, y = self._x[:, window[1]], self._y[window[0]]
        ys = y[:, 0].astype(float)
        middle, half, near, depth0, height = (
            np.interp(ys, centres[:, 1], column).astype(np.float32)[:, None]
            for column in (centres[:, 0], np.maximum(width, 0.3), deep, centres[:, 2], v)
        )
        slope = float((v[-1] - v[0]) / (centres[-1, 1] - centres[0, 1]))  # of v over y
        height = height + slope * np.maximum(0, y - float(centres[-1, 1]))
        s = (x - middle) / half
        across = np.sqrt(np.maximum(1 - s * s, 0))
        place = height - slope * sag * near * across
        inside = (s > -1) & (s < 1) & (place >= float(v[-1]))
        u = angle_around(s, view.yaw)
        if front:
            inside &= np.abs(u) > front
        up = -np.gradient(half[:, 0])[:, None] if len(half) > 1 else np.zeros_like(half)
        norm = np.sqrt(1 + up * up)
        self._put(window, inside, surface, (depth0 + near * across, u, place, s / norm, up / norm + 0 * s))


def angle_around(s: Array, yaw: float) -> Array:
    """arcsin(s) - yaw in [-pi, pi], to within 1e-4 (Abramowitz and Stegun 4.4.45)."""
    a = np.minimum(np.abs(s), 1)
    angle = math.pi / 2 - np.sqrt(1 - a) * (1.5707288 + a * (-0.2121144 + a * (0.0742610 - 0.0187293 * a)))
    angle = np.where(s < 0, -angle, angle) - yaw
    return angle - 2 * math.pi * np.round(angle / (2 * math.pi))
