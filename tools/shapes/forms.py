"""The ten shapes as signed distances, and the ten textures as masks, over object coordinates.

A shape has a radius of about 1; a distance is negative inside. A texture gives 0 for the base colour,
1 for the second colour; `soft` is the width, in texture units, over which one turns into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tools.shapes.arrays import Array, Backend
from tools.shapes.hashing import smooth_noise


def distance(shape: Array, x: Array, y: Array, b: Backend) -> Array:
    """Signed distance of (x, y), float32 (B, H, W), to the outline of shape number `shape` (B, 1, 1)."""
    xp = b.xp
    r = xp.sqrt(x * x + y * y + 1e-12)
    angle = xp.arctan2(y, x)

    def folded(n: int) -> Array:
        """The angle from the axis of the nearest of n equal sectors: -pi/n .. pi/n."""
        sector = 2.0 * math.pi / n
        return angle - sector * xp.floor(angle / sector + 0.5)

    def polygon(n: int, inradius: float) -> Array:
        return r * xp.cos(folded(n)) - inradius

    def star() -> Array:
        """Distance to the edge from a tip (1.08, 0) to the notch at half a sector."""
        a = xp.abs(folded(5))
        notch_x, notch_y = 0.5 * math.cos(math.pi / 5), 0.5 * math.sin(math.pi / 5)
        edge_x, edge_y = notch_x - 1.08, notch_y
        length = math.hypot(edge_x, edge_y)
        return ((r * xp.cos(a) - 1.08) * edge_y - r * xp.sin(a) * edge_x) / length

    def cross() -> Array:
        ax, ay = xp.abs(x), xp.abs(y)
        return xp.maximum(xp.minimum(ax, ay) - 0.34, xp.maximum(ax, ay) - 0.95)

    def heart() -> Array:
        """A square standing on its corner, with a disc on each of its upper sides."""
        ax, up, half = xp.abs(x), 0.18 - y, 0.47
        square = (ax + xp.abs(up) - 2.0 * half) * math.sqrt(0.5)
        disc = xp.sqrt((ax - half) ** 2 + (up - half) ** 2) - half * math.sqrt(2.0)
        return xp.minimum(square, disc)

    def crescent() -> Array:
        return xp.maximum(r - 1.0, 0.82 - xp.sqrt((x - 0.5) ** 2 + y * y))

    branches: tuple[Callable[[], Array], ...] = (
        lambda: r - 0.9,
        lambda: xp.abs(r - 0.7) - 0.26,
        lambda: polygon(3, 0.58),
        lambda: polygon(4, 0.74),
        lambda: polygon(5, 0.8),
        star,
        cross,
        heart,
        crescent,
        lambda: r - 0.82 - 0.15 * xp.clip(2.5 * xp.cos(8.0 * angle), -1.0, 1.0),
    )
    return b.choose(shape, branches)


def texture(kind: Array, u: Array, v: Array, soft: Array, key: Array, b: Backend) -> Array:
    """Mask in [0, 1] of texture number `kind` (B, 1, 1) at (u, v), float32 (B, H, W); one period is 1."""
    xp = b.xp

    def tri(t: Array) -> Array:
        """Triangle wave: 1 at the integers, 0 halfway between."""
        return xp.abs(t - xp.floor(t) - 0.5) * 2.0

    def edge(f: Array) -> Array:
        return xp.clip(0.5 + f / soft, 0.0, 1.0)

    def dots() -> Array:
        row = xp.floor(v)
        shifted = u + 0.5 * (row - 2.0 * xp.floor(0.5 * row))
        dx, dy = shifted - xp.floor(shifted) - 0.5, v - row - 0.5
        return edge(0.7 - 2.0 * xp.sqrt(dx * dx + dy * dy))

    def bricks() -> Array:
        tall = 1.6 * v
        row = xp.floor(tall)
        shifted = 0.8 * u + 0.5 * (row - 2.0 * xp.floor(0.5 * row))
        return edge(xp.maximum(tri(tall) - 0.72, tri(shifted) - 0.84) * 1.5)

    def marble() -> Array:
        bent = smooth_noise(1.3 * u + 40.0, 1.3 * v + 40.0, key, b)
        fine = smooth_noise(2.9 * u + 90.0, 2.9 * v + 90.0, key, b)
        return edge(2.2 * (0.7 * bent + 0.3 * fine - 0.5))

    branches: tuple[Callable[[], Array], ...] = (
        lambda: 0.0 * u,
        lambda: edge(tri(u) - 0.5),
        lambda: edge(xp.maximum(tri(u), tri(v)) - 0.72),
        lambda: edge((tri(u) - 0.5) * (tri(v) - 0.5) * 4.0),
        dots,
        lambda: edge(tri(xp.sqrt(u * u + v * v + 1e-12)) - 0.5),
        lambda: edge(tri(u + 0.3 * xp.sin(4.5 * v)) - 0.5),
        lambda: edge(tri(u + 0.75 * tri(0.7 * v)) - 0.5),
        bricks,
        marble,
    )
    return b.choose(kind, branches)
