"""From (class, seed) to an image: the scene's parameters, and the painter's layers, back to front."""

from __future__ import annotations

import math
from typing import Any

from tools.shapes.arrays import NUMPY, Array, Backend
from tools.shapes.forms import distance, texture
from tools.shapes.hashing import mix, normal, smooth_noise, uniform
from tools.shapes.names import split_class

CROP_EXTENT = 224 / 256
"""Half the side of what a 224 centre crop of an image of short side 256 shows, the short side being 2."""


def _paint(below: list[Array], colour: list[Array], cover: Array) -> list[Array]:
    return [a + (c - a) * cover for a, c in zip(below, colour, strict=True)]


def _hsv(h: Array, s: Array, v: Array, b: Backend) -> list[Array]:
    """Red, green and blue of a hue in turns, a saturation and a value."""
    channels = []
    for offset in (0.0, 4.0, 2.0):
        turn = 6.0 * (h - b.xp.floor(h)) + offset
        turn = turn - 6.0 * b.xp.floor(turn / 6.0)
        channels.append(v * (1.0 - s + s * b.xp.clip(b.xp.abs(turn - 3.0) - 1.0, 0.0, 1.0)))
    return channels


class _Scene:
    """One batch of images: pixel coordinates, and draws from its hash, one slot after the other."""

    def __init__(self, labels: Array, seeds: Array, size: tuple[int, int], extent: float, b: Backend) -> None:
        height, width = size
        self.b = b
        self.labels = b.to_int(labels).reshape(-1, 1, 1)
        self.key = mix(mix(self.labels + 0x3C6EF372) + b.to_int(seeds).reshape(-1, 1, 1))
        self.pixel = 2.0 * extent / min(height, width)
        half_h, half_w = 0.5 * (height - 1), 0.5 * (width - 1)
        self.y = (b.to_float(b.arange(height)).reshape(1, -1, 1) - half_h) * self.pixel
        self.x = (b.to_float(b.arange(width)).reshape(1, 1, -1) - half_w) * self.pixel
        self.index = b.arange(height).reshape(1, -1, 1) * width + b.arange(width).reshape(1, 1, -1)
        self._slot = 0

    def bits(self) -> Array:
        """A fresh int32 (B, 1, 1) a call: the order of the calls is part of the data set."""
        self._slot += 1
        return mix(self.key + self._slot * 0x5851F42D % 0x7FFFFFFF)

    def draw(self, low: float, high: float) -> Array:
        return low + (high - low) * uniform(self.bits(), self.b)

    def pick(self, count: int) -> Array:
        """An int32 in 0..count-1."""
        return ((self.bits() >> 8) & 0xFFFF) % count

    def chance(self, probability: float) -> Array:
        """1.0 with `probability`, else 0.0."""
        return self.b.to_float(uniform(self.bits(), self.b) < probability)


def _background(s: _Scene) -> list[Array]:
    """Two muted colours blended by smooth noise and by a slope, as an out-of-focus room gives."""
    b, xp = s.b, s.b.xp
    first = _hsv(s.draw(0.0, 1.0), s.draw(0.05, 0.5), s.draw(0.25, 0.85), b)
    second = _hsv(s.draw(0.0, 1.0), s.draw(0.05, 0.5), s.draw(0.2, 0.8), b)
    scale, turn, key = s.draw(0.8, 3.5), s.draw(0.0, 2 * math.pi), s.bits()
    slope = s.x * xp.cos(turn) + s.y * xp.sin(turn)
    value_noise = b.leaf(smooth_noise)
    noise = value_noise(scale * s.x + 20.0, scale * s.y + 20.0, key)
    noise = 0.7 * noise + 0.3 * value_noise(3.1 * scale * s.x + 70.0, 3.1 * scale * s.y + 70.0, key)
    return _paint(first, second, xp.clip(0.3 * slope + 1.6 * noise - 0.3, 0.0, 1.0))


def _clutter(s: _Scene, image: list[Array], object_x: Array, object_y: Array) -> list[Array]:
    """Small shapes of any colour, one in each of three directions away from the object."""
    b, xp = s.b, s.b.xp
    start = s.draw(0.0, 2 * math.pi)
    for i in range(3):
        way = start + s.draw(-0.7, 0.7) + i * (2 * math.pi / 3)
        far, radius = s.draw(0.62, 1.05), s.draw(0.08, 0.2)
        turn, soft = s.draw(0.0, 2 * math.pi), s.draw(1.5, 6.0) * s.pixel
        dx = s.x - object_x - far * xp.cos(way)
        dy = s.y - object_y - far * xp.sin(way)
        u = (dx * xp.cos(turn) + dy * xp.sin(turn)) / radius
        v = (dy * xp.cos(turn) - dx * xp.sin(turn)) / radius
        cover = xp.clip(0.5 - radius * b.leaf(distance)(s.pick(10), u, v) / soft, 0.0, 1.0)
        colour = _hsv(s.draw(0.0, 1.0), s.draw(0.2, 0.8), s.draw(0.25, 0.9), b)
        image = _paint(image, colour, cover * s.chance(0.7) * s.draw(0.7, 1.0))
    return image


def _object(s: _Scene, image: list[Array], object_x: Array, object_y: Array) -> list[Array]:
    """The shape that gives the class, with its shadow: tilted, turned, textured, bevelled."""
    b, xp = s.b, s.b.xp
    shape, kind, hue = split_class(s.labels)
    radius, turn = s.draw(0.3, 0.68), s.draw(0.0, 2 * math.pi)
    tilt, tilt_way, depth = s.draw(0.74, 1.0), s.draw(0.0, 2 * math.pi), s.draw(0.0, 0.22)

    def to_object(dx: Array, dy: Array) -> tuple[Array, Array]:
        """Undo the view: a squash by `tilt` along `tilt_way` with some perspective, then the turn."""
        along = (dx * xp.cos(tilt_way) + dy * xp.sin(tilt_way)) / radius
        across = (dy * xp.cos(tilt_way) - dx * xp.sin(tilt_way)) / radius
        near = 1.0 / xp.clip(1.0 + depth * along, 0.4, 2.5)
        along, across = along * near / tilt, across * near
        return (
            along * xp.cos(turn) + across * xp.sin(turn),
            across * xp.cos(turn) - along * xp.sin(turn),
        )

    shadow_x, shadow_y, shadow_soft = s.draw(-0.12, 0.12), s.draw(0.02, 0.14), s.draw(0.05, 0.2)
    u, v = to_object(s.x - object_x - shadow_x, s.y - object_y - shadow_y)
    shade = xp.clip(0.5 - radius * b.leaf(distance)(shape, u, v) / shadow_soft, 0.0, 1.0) * s.draw(0.1, 0.55)
    image = [channel * (1.0 - shade) for channel in image]

    u, v = to_object(s.x - object_x, s.y - object_y)
    d = b.leaf(distance)(shape, u, v)
    blur = s.draw(1.0, 2.6)
    cover = xp.clip(0.5 - radius * d / (blur * s.pixel), 0.0, 1.0)

    period, slant = s.draw(0.34, 0.5), s.draw(0.0, 2 * math.pi)
    tu = (u * xp.cos(slant) + v * xp.sin(slant)) / period + s.draw(-0.4, 0.4)
    tv = (v * xp.cos(slant) - u * xp.sin(slant)) / period + s.draw(-0.4, 0.4)
    soft = xp.clip(2.0 * blur * s.pixel / (radius * period), 0.08, 0.9)
    mask = b.leaf(texture)(kind, tu, tv, soft, s.bits())

    tone = (b.to_float(hue) + s.draw(-0.42, 0.42)) / 10.0
    saturation, value = s.draw(0.4, 0.95), s.draw(0.6, 0.98)
    base = _hsv(tone, saturation, value, b)
    # The second colour is a darker or a paler one of the same hue, so that the hue stays one.
    paler, amount = s.chance(0.5), s.draw(0.5, 0.75)
    second = _hsv(
        tone,
        saturation * (1.0 - paler * amount),
        paler * (value + (1.0 - value) * amount) + (1.0 - paler) * value * (1.0 - amount),
        b,
    )
    colour = _paint(base, second, mask)

    bevel, light = s.draw(0.0, 0.5), s.draw(0.0, 2 * math.pi)
    rim = xp.exp(xp.clip(d, -1.0, 0.0) * 6.0)
    facing = (u * xp.cos(light) + v * xp.sin(light)) / xp.sqrt(u * u + v * v + 0.05)
    relief = 1.0 + bevel * rim * facing + s.draw(0.0, 0.2) * facing
    return _paint(image, [channel * relief for channel in colour], cover)


def _occluder(s: _Scene, image: list[Array], object_x: Array, object_y: Array) -> list[Array]:
    """Three times in four, a bar or a disc of a muted colour across a part of the object."""
    b, xp = s.b, s.b.xp
    way, aside = s.draw(0.0, 2 * math.pi), s.draw(0.15, 0.55)
    dx, dy = s.x - object_x, s.y - object_y
    along = dx * xp.cos(way) + dy * xp.sin(way)
    across = dy * xp.cos(way) - dx * xp.sin(way)
    bar = xp.abs(along - aside) - s.draw(0.05, 0.13)
    disc = xp.sqrt((along - aside) ** 2 + (across - s.draw(-0.3, 0.3)) ** 2) - s.draw(0.12, 0.27)
    d = b.choose(s.pick(2), (lambda: bar, lambda: disc))
    cover = xp.clip(0.5 - d / (2.0 * s.pixel), 0.0, 1.0) * s.chance(0.75)
    colour = _hsv(s.draw(0.0, 1.0), s.draw(0.0, 0.4), s.draw(0.2, 0.8), b)
    fine = s.draw(6.0, 12.0)
    grain = 0.85 + 0.3 * b.leaf(smooth_noise)(fine * s.x + 90.0, fine * s.y + 90.0, s.bits())
    return _paint(image, [channel * grain for channel in colour], cover)


def _develop(
    channel: Array,
    light: Array,
    gain: Array,
    contrast: Array,
    noise: Array,
    index: Array,
    key: Array,
    b: Backend,
) -> Array:
    """One colour channel as the sensor gives it: lit, contrasted about the middle, grainy, clipped."""
    grain = normal(mix(index + key), b)
    return b.xp.clip(0.5 + contrast * (channel * light * gain - 0.5) + noise * grain, 0.0, 1.0)


def _camera(s: _Scene, image: list[Array]) -> list[Array]:
    """Coloured light from one side, vignetting, exposure, contrast and sensor noise."""
    xp = s.b.xp
    way, slope, vignette = s.draw(0.0, 2 * math.pi), s.draw(0.0, 0.25), s.draw(0.0, 0.18)
    away = xp.clip(s.x * s.x + s.y * s.y, 0.0, 1.5)
    light = 1.0 + slope * (s.x * xp.cos(way) + s.y * xp.sin(way)) - vignette * away
    exposure, contrast, noise = s.draw(0.82, 1.12), s.draw(0.8, 1.1), s.draw(0.0, 0.1)
    develop = s.b.leaf(_develop)
    return [
        develop(channel, light, exposure * s.draw(0.86, 1.14), contrast, noise, s.index, s.bits()) for channel in image
    ]


def render(
    labels: Array,
    seeds: Array,
    height: int,
    width: int,
    *,
    extent: float = 1.0,
    backend: Backend = NUMPY,
) -> Any:
    """Render one image per (label, seed).

    Args:
        labels: integers (B,), 0..999.
        seeds: integers (B,), 0..2**31-1: another seed is another image of the class.
        height, width: pixels.
        extent: half the side of what is seen, where the short side of a whole image is 2; `CROP_EXTENT`
            renders what a centre crop keeps.
        backend: `NUMPY`, or `torch_backend(device)`.

    Returns:
        float32 (B, 3, height, width), RGB in [0, 1], an array of the backend.
    """
    scene = _Scene(labels, seeds, (height, width), extent, backend)
    object_x, object_y = scene.draw(-0.2, 0.2), scene.draw(-0.2, 0.2)
    image = _background(scene)
    image = _clutter(scene, image, object_x, object_y)
    image = _object(scene, image, object_x, object_y)
    image = _occluder(scene, image, object_x, object_y)
    return backend.xp.stack(_camera(scene, image), 1)
