"""Synthetic "anatomy" with and without fine lesions: the set on which fineness can be dialled.

Image i comes from a generator keyed by (seed, i): it is the same however many are asked for, and its
lesioned twin has its anatomy and noise to the last digit. Pose, exposure, sharpness and noise vary far
more than a lesion changes the image as a whole, so that no global statistic gives it away.
"""

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from diawork.base.errors import UsageError, did_you_mean

FINEST = {  # size (px) and contrast of each lesion at which no label-free control sees it (AUROC ≤ 0.70) in any anatomy
    "spot": (6.0, 0.3), "ring": (6.0, 0.2), "twist": (12.0, 1.0),
}  # fmt: skip
LESIONS = tuple(FINEST)
_VISIBLE = 0.03  # of the grey range: smaller changes are not counted into the mask
_ATTEMPTS = 6  # places tried until a quarter of the lesion's disc is visible; the last one stands

Grid = np.ndarray  # (S, S) float32


@dataclass(frozen=True)
class PhantomSpec:
    """What is drawn; no label-free control sees (AUROC < 0.7) the defaults, nor spots of 6 px and contrast 0.3."""

    kind: str = "oct"
    size: int = 32  # px
    lesion: str = "twist"  # turns the anatomy about a point; or spot, a nodule; or ring, one in an opposite halo
    lesion_size: float = 12.0  # px across
    lesion_contrast: float = 1.0  # of the grey range [-1, 1] before exposure; for a twist, of half a turn

    def __post_init__(self) -> None:
        for field, allowed in (("kind", KINDS), ("lesion", LESIONS)):
            value = getattr(self, field)
            if value not in allowed:
                raise UsageError(f"{value!r} is not a {field}.", hint=did_you_mean(value, allowed), field=field)
        if not 16 <= self.size <= 256:
            raise UsageError(f"size={self.size} px outside [16, 256].")
        if not 1 <= self.lesion_size <= self.size / 2:
            raise UsageError(f"lesion_size={self.lesion_size} px outside [1, {self.size / 2:g}] (half the image).")
        if not -1 <= self.lesion_contrast <= 1:
            raise UsageError(f"lesion_contrast={self.lesion_contrast} outside [-1, 1].")


def make_phantom(
    spec: PhantomSpec, n: int, *, anomalous: bool | np.ndarray = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (n, H, W), lesioned where ``anomalous``, and masks bool (n, H, W) of the visible change."""
    if n < 0 or seed < 0:
        raise UsageError(f"n={n} and seed={seed} must not be negative.")
    wanted = np.asarray(anomalous, bool)
    if wanted.shape not in ((), (n,)):
        raise UsageError(f"anomalous has shape {wanted.shape}; it must be one bool or ({n},).")
    images = np.zeros((n, spec.size, spec.size), np.uint8)
    masks = np.zeros(images.shape, bool)
    for i, lesion in enumerate(np.broadcast_to(wanted, n)):
        images[i], masks[i] = _image(spec, seed, i, lesion=bool(lesion))
    return images, masks


def _image(spec: PhantomSpec, seed: int, i: int, *, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return image i (H, W) of a seed and the mask of its lesion."""
    rng = np.random.default_rng([seed, i])
    fine = 4 if spec.size <= 32 else 2
    signal, room = KINDS[spec.kind](_View(spec.size * fine, rng), rng)
    expose = _exposure(spec.size, fine, rng)
    image = healthy = expose(signal)
    rng = np.random.default_rng([seed, i, 1])
    for _ in range(_ATTEMPTS if lesion else 0):  # a twist of nothing would be a lesion in name only
        image = expose(_add_lesion(signal, room, spec, rng))
        visible = np.abs(image - healthy) > _VISIBLE
        if visible.sum() >= 0.25 * math.pi * (spec.lesion_size / 2) ** 2:
            break
    return np.rint(image * 255).astype(np.uint8), np.abs(image - healthy) > _VISIBLE


class _View:
    """Anatomical coordinates u (right), v (down) of an image's fine pixels, turned and moved at random; u + iv."""

    def __init__(self, fine: int, rng: np.random.Generator) -> None:
        self.turn = cmath.rect(rng.uniform(0.9, 1.12), rng.uniform(-0.25, 0.25))
        self.shift = complex(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2))
        self.side = 1 if rng.random() < 0.5 else -1
        self.axis = ((np.arange(fine) + 0.5) * (2 / fine) - 1).astype(np.float32)
        x, y = self.axis - self.shift.real, self.axis[:, None] - self.shift.imag
        self.u = self.side * (self.turn.real * x - self.turn.imag * y)
        self.v = self.turn.imag * x + self.turn.real * y

    def stroke(self, canvas: Grid, start: complex, end: complex, *, width: float, strength: float = 1) -> None:
        """Draw a soft line into ``canvas``, looking only at the pixels around it."""
        a, b = (complex(self.side * p.real, p.imag) / self.turn + self.shift for p in (start, end))
        width, d = width / abs(self.turn), b - a
        rows, columns = self._around(a.imag, b.imag, 2 * width), self._around(a.real, b.real, 2 * width)
        x, y = self.axis[columns] - a.real, self.axis[rows, None] - a.imag
        along = np.clip((x * d.real + y * d.imag) / abs(d) ** 2, 0, 1)
        distance2 = np.square(x - along * d.real) + np.square(y - along * d.imag)
        part = canvas[rows, columns]
        np.maximum(part, strength * np.exp(distance2 * (-1 / width**2)), out=part)

    def _around(self, a: float, b: float, margin: float) -> slice:
        """Return the pixels of one axis from a to b and ``margin`` beyond."""
        low, high = ((at + 1) / 2 * len(self.axis) for at in (min(a, b) - margin, max(a, b) + margin))
        return slice(max(0, int(low)), max(0, int(high) + 1))


def _exposure(size: int, fine: int, rng: np.random.Generator) -> Callable[[Grid], np.ndarray]:
    """Return the camera of one image: light from one side, gamma, gain, offset, blur, noise; (S, S) → (H, W)."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    light = 1 + slope * (np.cos(turn) * axis[None] + np.sin(turn) * axis[:, None])
    gamma, gain, offset = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(0.7, 0.95), rng.uniform(0, 1)
    blur, grain = rng.uniform(0.0, 0.6), np.exp(rng.uniform(np.log(0.005), np.log(0.03)))
    noise = rng.normal(0, grain, (size, size))

    def expose(signal: Grid) -> np.ndarray:
        small = signal.reshape(size, fine, size, fine).mean((1, 3))
        toned = np.clip(small * light, 0, 1) ** gamma
        return np.clip(gaussian_filter(toned * gain + offset * (1 - gain), blur) + noise, 0, 1)

    return expose


def _step(distance: Grid, width: float) -> Grid:
    """Return a soft edge: 0 far below zero, 1 far above."""
    return np.clip(distance * (0.5 / width) + 0.5, 0, 1)


def _bump(distance: Grid, width: float) -> Grid:
    return np.exp(-np.square(distance * (1 / width)))


def _ahead(point: complex, angle: float, length: float) -> complex:
    return point + cmath.rect(length, angle)


def _lung(view: _View, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Chest radiograph: dark lung fields, ribs with a sharp upper edge, heart to one side, vessels from the hila."""
    u, v, across = view.u, view.v, np.abs(view.u)
    width, top, base = rng.uniform(0.34, 0.42), rng.uniform(-1.0, -0.85), rng.uniform(0.55, 0.78)
    lateral = (across - 0.5) * (1 / width)
    bowed = np.square(lateral)
    narrow = 0.6 + 0.4 * np.sqrt(np.clip((v - top) * (1 / (base - top)), 0, 1))
    field = _step(narrow - np.abs(lateral), 0.2) * _step(v - top - 0.25 * bowed, 0.12)
    field *= _step(base - v - rng.uniform(0.12, 0.22) * bowed + 0.1 * lateral, 0.08)
    size, at = rng.uniform(0.26, 0.38), rng.uniform(0.1, 0.2)
    heart = _step(1 - np.square((u - at) * (1 / size)) - np.square((v - 0.4) * (1 / size)), 0.4)
    vessels = _lung_vessels(view, rng)
    saw = (rng.uniform(3.5, 6) * (v - rng.uniform(0.3, 0.7) * across) + rng.uniform(0, 1)) % 1
    rib = np.minimum(saw * 8, np.clip(1.3 - 2 * saw, 0, 1)) * (0.3 + 0.7 * field)
    air, bone = rng.uniform(0.1, 0.28), rng.uniform(0.08, 0.22) * _step(across - 0.2, 0.15)
    chest = (0.62 + 0.06 * v) * (1 - field) + air * field + bone * rib + rng.uniform(0.15, 0.3) * vessels * field
    chest += rng.uniform(0.1, 0.2) * _bump(u, 0.14)
    chest = np.maximum(chest, 0.7 * heart)
    chest *= 1 - 0.85 * _step(across - rng.uniform(0.95, 1.05) - 0.1 * v, 0.1)
    return np.clip(chest, 0, 1), (field > 0.9) & (heart < 0.1)


def _lung_vessels(view: _View, rng: np.random.Generator) -> Grid:
    """Return vessels that leave both hila and fork once on their way out."""
    canvas = np.zeros_like(view.u)
    for side in (-1, 1):
        for angle in np.array([-0.9, 0, 0.7]) + rng.uniform(-0.3, 0.3, 3):
            start = complex(side * 0.2, 0)
            heading = angle if side > 0 else math.pi - angle
            fork = _ahead(start, heading, rng.uniform(0.2, 0.3))
            view.stroke(canvas, start, fork, width=0.05)
            for turn in (-0.4, 0.4):
                view.stroke(canvas, fork, _ahead(fork, heading + turn, 0.25), width=0.03, strength=0.7)
    return canvas


def _fundus(view: _View, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Eye ground: bright disc to one side, arcades arching over a dark macula that lies lower than the disc."""
    u, v = view.u, view.v
    disc_u, disc_v = rng.uniform(0.34, 0.58), rng.uniform(-0.26, -0.06)
    macula_u, macula_v = disc_u - rng.uniform(0.62, 0.75), disc_v + rng.uniform(0.22, 0.32)
    r2, to_disc = np.square(u) + np.square(v), np.hypot(u - disc_u, v - disc_v)
    macula = np.square(u - macula_u) + np.square(v - macula_v)
    ground = rng.uniform(0.4, 0.55) - rng.uniform(0.05, 0.2) * r2 - 0.08 * v
    ground -= rng.uniform(0.12, 0.24) * np.exp(-macula / rng.uniform(0.04, 0.08))
    disc = _step(rng.uniform(0.14, 0.19) - to_disc, 0.06)
    ground += rng.uniform(0.25, 0.4) * disc
    vessels, start = np.zeros_like(u), complex(disc_u, disc_v)
    for up in (-1, 1):
        _arcade(view, vessels, start, math.pi - up * rng.uniform(0.8, 1.2), rng, bend=up * 0.28, length=0.4)
        _arcade(view, vessels, start, up * rng.uniform(0.6, 0.9), rng, bend=-up * 0.1, length=0.25)
    ground -= rng.uniform(0.18, 0.32) * vessels * (1 - 0.6 * disc)
    rim = rng.uniform(0.8, 1.1)
    return np.clip(ground * _step(rim - r2, 0.1) + 0.02, 0, 1), (r2 < 0.6) & (to_disc > 0.32)


def _arcade(
    view: _View, canvas: Grid, start: complex, angle: float, rng: np.random.Generator, *, bend: float, length: float
) -> None:
    """Draw one main vessel that bends as it goes and sends a twig outwards at each joint."""
    width = rng.uniform(0.03, 0.05)
    for _ in range(4):
        end = _ahead(start, angle, length)
        view.stroke(canvas, start, end, width=width)
        twig = angle - math.copysign(rng.uniform(0.5, 0.9), bend)
        view.stroke(canvas, end, _ahead(end, twig, rng.uniform(0.2, 0.4)), width=0.7 * width, strength=0.75)
        start, angle, width, length = end, angle + bend * rng.uniform(0.8, 1.3), 0.85 * width, 0.85 * length


# thickness and brightness of the retina's layers, from the vitreous inwards; the last is the epithelium
_LAYERS = np.array([(0.13, 0.80), (0.14, 0.50), (0.10, 0.25), (0.10, 0.60), (0.17, 0.15), (0.12, 0.95)])


def _oct(view: _View, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Retina in cross-section: dark vitreous, layers with a pit, bright epithelium, choroid that fades with depth."""
    u, v = view.u, view.v
    wave = 0.03 * np.sin(rng.uniform(2, 5) * u + rng.uniform(0, 6))
    depth = v - rng.uniform(-0.15, 0.15) - rng.uniform(-0.05, 0.22) * np.square(u) - wave + 0.5
    pit = rng.uniform(0, 0.24) * _bump(u - rng.uniform(-0.6, 0.6), rng.uniform(0.2, 0.4))
    depth -= pit * np.clip(1 - depth * 1.7, 0, 1)  # the upper layers thin out in the pit
    thickness, bright = _LAYERS.T * rng.uniform(0.8, 1.25, (2, 6)) ** np.array([[1], [0.4]])
    edges = np.cumsum([0, *thickness * rng.uniform(1.0, 1.15)])
    below = depth - edges[-1]
    table = np.arange(-0.5, 2, 0.005)
    profile = np.interp(
        table,
        np.repeat(edges, 2) + np.tile([-0.02, 0.02], 7),
        [rng.uniform(0.03, 0.15), *np.repeat(bright, 2), rng.uniform(0.35, 0.55)],
    )
    fade = np.exp(-np.clip(table - edges[-1], 0, None) / rng.uniform(0.3, 1.0))
    profile = np.where(table > edges[-1] + 0.02, profile * fade, profile).astype(np.float32)
    signal = profile[np.clip((depth + 0.5) * 200, 0, len(table) - 1).astype(np.int16)]
    signal *= _shadows(u, rng)  # vessels in the upper layers
    return signal, (depth > 0.15) & (below < -0.1) & (np.abs(u) < 0.65)


def _shadows(u: Grid, rng: np.random.Generator) -> Grid:
    """Return the light (S, S) that vessels above let through, 1 between them."""
    light = np.ones_like(u)
    strong = rng.uniform(0, 0.7)
    for at in rng.uniform(-1.1, 1.1, rng.integers(0, 8)):
        light *= 1 - strong * rng.uniform(0.3, 1) * _bump(u - at, rng.uniform(0.03, 0.1))
    return light


KINDS = {"lung": _lung, "fundus": _fundus, "oct": _oct}  # a view → signal in [0, 1] and where a lesion may lie


def _add_lesion(signal: Grid, room: Grid, spec: PhantomSpec, rng: np.random.Generator) -> Grid:
    """Return the signal with one lesion of the spec somewhere in ``room``."""
    fine = len(signal)
    radius = spec.lesion_size / 2 * fine / spec.size
    places = np.flatnonzero(room) if room.any() else np.array([fine * fine // 2 + fine // 2])
    row, column = np.divmod(rng.choice(places), fine)
    box = tuple(slice(max(0, at - int(2 * radius) - 1), at + int(2 * radius) + 2) for at in (row, column))
    dy, dx = np.arange(fine, dtype=np.float32)[box[0], None] - row, np.arange(fine, dtype=np.float32)[box[1]] - column
    r = np.hypot(dy, dx) * (1 / radius)  # 1 at the rim
    lesioned = signal.copy()
    patch = lesioned[box]
    if spec.lesion == "twist":
        c, s = math.cos(math.pi * spec.lesion_contrast), math.sin(math.pi * spec.lesion_contrast)
        turned = map_coordinates(signal, [row + c * dy - s * dx, column + s * dy + c * dx], order=1, mode="nearest")
        patch += _step(1 - r, 0.2) * (turned - patch)
    else:
        halo = _step(1.5 - r, 0.15) * _step(r - 1, 0.15) if spec.lesion == "ring" else 0
        patch += spec.lesion_contrast * (_step(1 - r, 0.15) - halo)
    return lesioned
