"""The picture that moves with the step t: drawn once, then only what changes; a slider over it without a kernel."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from diawork.base.errors import DataError, UsageError
from diawork.figures import images as im

LINES: tuple = ({"color": "#0072B2", "ls": "-"}, {"color": "#C1440E", "ls": (0, (4, 1.6))})  # also without colour
TICKS = (0, 25, 100, 200, 400, 1000)
FLOOR = 1e-3  # share of the variance; less is drawn here
MAX_FRAMES = 60
_LAYOUTS: dict = {  # the input, then dissolved image, change and chart of each operator
    1: ([["x", "y0", "d0", "energy", "power"]], {"width_ratios": [1, 1, 1.17, 1.12, 1.12]}, (11.6, 2.75)),
    2: ([["x", "y0", "d0", "energy"], ["x", "y1", "d1", "power"]], {"width_ratios": [1, 1, 1.17, 1.3]}, (9.6, 4.9)),
}
Move = tuple[Any, Callable[[int], None]]  # an artist, and what puts it at step ``ts[at]``


class Frames:
    """A figure that moves with the step: ``inputs`` n × ([C,] H, W) in [0, 1], ``stacks`` n × (T, [C,] H, W).

    A layout draws it in ``_lay_out``; colours and axes mean the same at every step.
    """

    compression = 6  # of the PNGs
    _lay_out: Callable[[], tuple[Figure, list[Move]]]

    def __init__(self, inputs: Iterable, stacks: Iterable, ts: Sequence[int], *, dpi: int = 100) -> None:
        self.inputs = [np.asarray(x, np.float32) for x in inputs]
        self.stacks = [np.asarray(stack, np.float32) for stack in stacks]
        self.ts, self.dpi = [int(t) for t in ts], dpi
        shapes, wanted = [stack.shape for stack in self.stacks], [(len(self.ts), *x.shape) for x in self.inputs]
        if shapes != wanted or not sum(stack.size for stack in self.stacks):
            raise UsageError(f"stacks {shapes} do not hold {len(self.ts)} steps of each input, wanted {wanted}.")
        # beyond the steps that the paper shows, nearly everything changes, and its scale would hide the rest
        scaled = np.array(self.ts) <= max(im.FIGURE_STEPS)
        self._scaled = scaled if scaled.any() else ~scaled
        changes = [stack[self._scaled] - x for x, stack in zip(self.inputs, self.stacks, strict=True)]
        self._limit = im.change_limit(np.stack(changes))
        self._pngs: dict[int, bytes] = {}
        self._canvas: Any = None

    @im.styled
    def figure(self, at: int = -1) -> Figure:
        """Return the picture at step ``ts[at]``."""
        figure, moving = self._lay_out()
        for _, move in moving:
            move(at)
        return figure

    def has(self, at: int) -> bool:
        """Say whether the PNG of step ``ts[at]`` is there already."""
        return at in self._pngs

    def png(self, at: int) -> bytes:
        """Return the same picture as PNG bytes; a second request is a look-up."""
        if at not in self._pngs:
            self._pngs[at] = self._draw(at)
        return self._pngs[at]

    @im.styled
    def _draw(self, at: int) -> bytes:
        if self._canvas is None:
            self._draw_ground()
        self._canvas.restore_region(self._ground)
        for artist, move in self._moving:
            move(at)
            self._canvas.figure.draw_artist(artist)
        buffer = io.BytesIO()
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3]
        imsave(buffer, pixels, format="png", pil_kwargs={"compress_level": self.compression})
        return buffer.getvalue()

    def _draw_ground(self) -> None:
        figure, self._moving = self._lay_out()
        figure.set_dpi(self.dpi)
        self._canvas = FigureCanvasAgg(figure)
        for artist, _ in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._ground = self._canvas.copy_from_bbox(figure.bbox)

    def _title(self, figure: Figure) -> Move:
        title = figure.suptitle(f"{im.STEP_LABEL} = {self.ts[-1]}", fontweight="bold", fontsize=11)
        return title, lambda at: title.set_text(f"{im.STEP_LABEL} = {self.ts[at]}")

    def _dissolved(self, i: int, left: Any, right: Any) -> list[Move]:
        """Draw the i-th image dissolved and, beside it, its change; red is added, blue removed."""
        x, stack = self.inputs[i], self.stacks[i]
        after = im.show_image(left, x)
        change = im.show_change(right, x * 0, self._limit)
        return [
            (after, lambda at: after.set_data(np.clip(im.channels_last(stack[at]), 0, 1))),
            (change, lambda at: change.set_data(im.grey(stack[at] - x))),
        ]


class GridFrames(Frames):
    """A column an image: the input, the dissolved image, the signed difference."""

    def _lay_out(self) -> tuple[Figure, list[Move]]:
        n = len(self.inputs)
        figure, axes = im.new_figure(1.35 * n + 1.2, 4.5, 3, n)
        moving = [self._title(figure)]
        for i, (top, middle, bottom) in enumerate(axes.T):
            im.show_image(top, self.inputs[i])
            moving += self._dissolved(i, middle, bottom)
        figure.colorbar(moving[-1][0], ax=list(axes.flat), shrink=0.3, anchor=(0, 0), aspect=12)
        for ax, name in zip(axes[:, 0], ("input", "dissolved", "dissolved − input"), strict=True):
            ax.set_ylabel(name)
        return figure, moving


def dissolve_frames(inputs: np.ndarray, stacks: np.ndarray, ts: Sequence[int], *, dpi: int = 100) -> list[bytes]:
    """Return input, dissolved image and signed difference of ``inputs`` (n, H, W) at every step as PNG bytes.

    ``stacks`` (n, T, H, W) holds every step, so that a colour means the same at each.
    """
    return list(map(GridFrames(inputs, stacks, ts, dpi=dpi).png, range(len(ts))))


class DissolveFrames(Frames):
    """One image ``x`` ([C,] H, W) in the hands of one or two operators, name → (T, [C,] H, W)."""

    compression = 1  # several times as fast as the default

    def __init__(self, x: np.ndarray, stacks: Mapping[str, np.ndarray], ts: Sequence[int], *, dpi: int = 100) -> None:
        if len(stacks) not in _LAYOUTS:
            raise UsageError(f"{len(stacks)} operators; one picture shows 1 or 2.")
        self.names = list(stacks)
        super().__init__([x] * len(stacks), list(stacks.values()), ts, dpi=dpi)

    def _lay_out(self) -> tuple[Figure, list[Move]]:
        places, widths, size = _LAYOUTS[len(self.names)]
        figure = im.Picture(figsize=size, layout="constrained")
        axes = figure.subplot_mosaic(places, **widths)
        im.show_image(axes["x"], self.inputs[0])
        axes["x"].set_title("input")
        moving = [self._title(figure)]
        for i, name in enumerate(self.names):
            moving += self._dissolved(i, axes[f"y{i}"], axes[f"d{i}"])
            axes[f"y{i}"].set_title(im.word(name), color=LINES[i]["color"], fontweight="bold")
            bar = figure.colorbar(moving[-1][0], ax=axes[f"d{i}"], shrink=0.82, aspect=16, pad=0.03)
            bar.outline.set_visible(False)
        axes["d0"].set_title("change: red added, blue removed", fontsize=8.5)
        return figure, [*moving, *self._energies(axes["energy"]), *self._powers(axes["power"])]

    def _energies(self, ax: Any) -> list[Move]:
        """Draw how much of the image's variance is changed at every step; a dot moves along."""
        moving: list = []
        top = 100.0
        for x, stack, line in zip(self.inputs, self.stacks, LINES, strict=False):
            energy = np.maximum(energy_removed(x, stack), FLOOR) * 100
            top = max(top, float(energy.max()))
            ax.plot(self.ts, energy, lw=1.4, **line)
            (dot,) = ax.plot([], [], "o", color=line["color"], mec="white", ms=8)
            moving.append((dot, lambda at, dot=dot, energy=energy: dot.set_data([self.ts[at]], [energy[at]])))
        ax.set_xscale("function", functions=(lambda t: np.sqrt(np.maximum(t, 0)), np.square))  # room for small steps
        last = max(self.ts)
        ticks = [t for t in TICKS if t <= last + 1]
        ax.set(yscale="log", ylim=(100 * FLOOR / 1.3, 1.5 * top), xlim=(0, last * 1.02 + 1), xlabel=im.STEP_LABEL)
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        _quiet(ax, "energy of the change, % of variance")
        return moving

    def _powers(self, ax: Any) -> list[Move]:
        """Draw the radial power spectrum of the input and of what is left."""
        frequency, before = radial_power(im.grey(self.inputs[0]))
        ax.plot(frequency, before, color=im.INK, lw=1, alpha=0.55, label="input")
        moving: list = []
        low = float(before.min())
        for stack, line in zip(self.stacks, LINES, strict=False):
            power = radial_power(np.stack([im.grey(y) for y in stack]))[1]
            low = min(low, float(np.quantile(power[self._scaled], 0.05)))
            (curve,) = ax.plot(frequency, before, lw=1.6, **line)
            moving.append((curve, lambda at, curve=curve, power=power: curve.set_ydata(power[at])))
        ax.set(yscale="log", ylim=(max(low, 1e-7) / 2, max(float(before.max()), 1e-6) * 3), xlim=(0, 0.5))
        ax.set(xlabel="spatial frequency, cycles per px")
        _quiet(ax, "radial power (grey: input)")
        return moving


def _quiet(ax: Any, title: str) -> None:
    ax.set_title(title, fontsize=8.5)
    ax.minorticks_off()
    ax.tick_params(length=2.5, labelsize=8)
    ax.xaxis.label.set_size(8.5)
    ax.grid(color=im.SOFT, alpha=0.15, lw=0.6)


def energy_removed(x: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Return (T,): mean squared change of ``x`` ([C,] H, W) in ``stack`` (T, [C,] H, W), over its variance."""
    change = np.square(stack - x).reshape(len(stack), -1).mean(1)
    return change / max(float(np.var(x)), 1e-8)


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies (R,) in cycles per px up to 0.5, and the mean power (…, R) of images (…, H, W) at each.

    A ring gathers all directions at one distance from the constant part, which is left out.
    """
    images = np.asarray(images, np.float64)
    height, width = images.shape[-2:]
    side = min(height, width)
    if side < 4:
        raise DataError(f"an image of {height}×{width} px has no spectrum to speak of; wanted 4 px or more.")
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) * side
    ring = np.rint(distance).astype(int).ravel()
    power = np.square(np.abs(np.fft.fft2(images))).reshape(-1, ring.size) / ring.size
    members = np.arange(1, side // 2 + 1)[:, None] == ring
    mean = power @ members.T / members.sum(1)
    return np.arange(1, side // 2 + 1) / side, mean.reshape(*images.shape[:-2], -1)


# --- a slider without a kernel --------------------------------------------------------------------------

# Radio buttons are the slider: arrow keys move it, a screen reader reads it, and the page needs no script.
_LOOK = Markup("""
.player{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));row-gap:.15rem;margin:0}
.player .frames{grid-column:1/-1;grid-row:1}
.player .frames img{display:none;width:100%;height:auto}
.player input{grid-row:2;appearance:none;margin:0;height:1.5rem;width:100%;position:relative;cursor:pointer;
background:linear-gradient(var(--track,#b9c0c8) 0 0) center/100% 3px no-repeat}
.player input::before{content:"";position:absolute;left:50%;top:50%;width:9px;height:9px;border-radius:50%;
transform:translate(-50%,-50%);background:var(--track,#b9c0c8)}
.player input:hover::before{width:13px;height:13px}
.player input:checked::before{width:19px;height:19px;background:var(--accent,#0072b2)}
.player input:focus-visible{outline:2px solid var(--accent,#0072b2);outline-offset:2px;border-radius:4px}
.player label{grid-row:3;text-align:center;font-size:.8rem;font-variant-numeric:tabular-nums;cursor:pointer}
""")


def player_html(frames: Sequence[bytes], labels: Sequence[object], caption: str, *, start: int = 0) -> Markup:
    """Return HTML that shows one of ``frames`` (PNG bytes), chosen on a slider whose stops are ``labels``.

    The fragment is self-contained (images as ``data:`` URLs, its own style) and escapes what it is given.
    """
    if not 0 < len(frames) == len(labels) <= MAX_FRAMES:
        counts = f"{len(frames)} and {len(labels)}"
        raise UsageError(f"a player needs 1 to {MAX_FRAMES} frames and as many labels, not {counts}.")
    name = "p" + hashlib.sha256(b"".join(frames) + caption.encode()).hexdigest()[:10]
    rules = [f"#{name}-{i}:checked~.frames img:nth-child({i + 1}){{display:block}}" for i in range(len(frames))]
    stops, texts, images = Markup(), Markup(), Markup()
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        checked = Markup(" checked") if i == start else ""
        stop = Markup('<input type="radio" name="{0}" id="{0}-{1}" aria-label="{2}"{3}>')
        stops += stop.format(name, i, label, checked)
        texts += Markup('<label for="{}-{}">{}</label>').format(name, i, label)
        source = base64.b64encode(frame).decode("ascii")
        images += Markup('<img alt="{}: {}" src="data:image/png;base64,{}">').format(caption, label, source)
    whole = Markup(
        '<style>{}{}</style><div class="player" role="radiogroup" aria-label="{}" style="--n:{}">{}{}'
        '<div class="frames">{}</div></div>'
    )
    return whole.format(_LOOK, Markup("\n".join(rules)), caption, len(frames), stops, texts, images)
