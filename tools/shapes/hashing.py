"""Random numbers without state: an integer hash of (class, seed, slot), and smooth noise built on it."""

from __future__ import annotations

from tools.shapes.arrays import Array, Backend


def mix(x: Array) -> Array:
    """A bijective mixer of int32 (xor-shift-multiply; the constants are C. Wellons' lowbias32)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def uniform(bits: Array, b: Backend) -> Array:
    """float32 in [0, 1) of the low 24 bits of `bits`, exact in both libraries."""
    return b.to_float(bits & 0xFFFFFF) * (1.0 / (1 << 24))


def normal(bits: Array, b: Backend) -> Array:
    """About a standard normal: the sum of the four bytes of `bits`, centred and scaled."""
    total = (bits & 0xFF) + ((bits >> 8) & 0xFF) + ((bits >> 16) & 0xFF) + ((bits >> 24) & 0xFF)
    return (b.to_float(total) - 510.0) * (1.0 / 147.8)


def smooth_noise(x: Array, y: Array, key: Array, b: Backend) -> Array:
    """Value noise in [0, 1): hashed values at the integer lattice, cubic in between.

    x, y: float32 (B, H, W); key: int32 (B, 1, 1).
    """
    fx, fy = b.xp.floor(x), b.xp.floor(y)
    ix, iy = b.to_int(fx), b.to_int(fy)
    tx, ty = x - fx, y - fy
    sx, sy = tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty)

    def corner(dx: int, dy: int) -> Array:
        return uniform(mix((ix + dx) * 0x1B873593 + (iy + dy) * 0x2C1B3C6D + key), b)

    top = corner(0, 0) * (1.0 - sx) + corner(1, 0) * sx
    bottom = corner(0, 1) * (1.0 - sx) + corner(1, 1) * sx
    return top * (1.0 - sy) + bottom * sy
