"""The picture of one image while ``t`` moves: drawn once, then only what changes is drawn again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from diawork.base.errors import UsageError
from diawork.figures.pictures import (
    INK,
    SOFT,
    STEP_LABEL,
    Picture,
    change_limit,
    channels_last,
    grey,
    show_change,
    show_image,
    styled,
    word,
)
from diawork.figures.spectra import energy_removed, radial_power

LINES = ({"color": "#0072B2", "ls": "-"}, {"color": "#C1440E", "ls": (0, (4, 1.6))})  # told apart without colour, too
TICKS = (0, 25, 100, 200, 400, 1000)
FLOOR = 1e-3  # share of the variance; less is drawn here
_LAYOUTS = {  # the input, then dissolved image, change and chart of each occupant
    1: ([["x", "y0", "d0", "energy", "power"]], {"width_ratios": [1, 1, 1.17, 1.12, 1.12]}, (11.6, 2.75)),
    2: ([["x", "y0", "d0", "energy"], ["x", "y1", "d1", "power"]], {"width_ratios": [1, 1, 1.17, 1.3]}, (9.6, 4.9)),
}


class DissolveFrames:
    """One image in the hands of one or two occupants of the slot, at every step.

    ``x`` ([C,] H, W) in [0, 1]; ``stacks`` name → (T, [C,] H, W). Colours and axes mean the same at every step.
    """

    def __init__(self, x: np.ndarray, stacks: Mapping[str, np.ndarray], ts: Sequence[int], *, dpi: int = 100) -> None:
        self.x, self.ts, self.dpi = np.asarray(x, np.float32), [int(t) for t in ts], dpi
        self.stacks = {name: np.asarray(stack, np.float32) for name, stack in stacks.items()}
        if len(self.stacks) not in _LAYOUTS:
            raise UsageError(f"{len(self.stacks)} occupants of the slot; one picture shows 1 or 2.")
        for name, stack in self.stacks.items():
            if stack.shape != (len(self.ts), *self.x.shape) or not stack.size:
                raise UsageError(f"{name!r} holds {stack.shape}, wanted {len(self.ts)} steps of {self.x.shape}.")
        # beyond the steps that the paper shows, nearly everything changes, and its scale would hide the rest
        shown = np.array([t <= 400 for t in self.ts])
        self._shown = shown if shown.any() else ~shown
        self._pngs: dict[int, bytes] = {}
        self._drawn: tuple[_Drawn, FigureCanvasAgg, Any] | None = None

    @styled
    def figure(self, at: int = -1) -> Figure:
        """Return the picture at step ``ts[at]``."""
        drawn = _Drawn(self)
        drawn.update(at)
        return drawn.figure

    def has(self, at: int) -> bool:
        """Say whether the PNG of step ``ts[at]`` is there already."""
        return at in self._pngs

    def png(self, at: int) -> bytes:
        """Return the same picture as PNG bytes; a second request is a look-up."""
        if at not in self._pngs:
            self._pngs[at] = self._draw(at)
        return self._pngs[at]

    @styled
    def _draw(self, at: int) -> bytes:
        if self._drawn is None:
            drawn = _Drawn(self)
            drawn.figure.set_dpi(self.dpi)
            canvas = FigureCanvasAgg(drawn.figure)
            for artist in drawn.moving:
                artist.set_animated(True)
            canvas.draw()
            self._drawn = drawn, canvas, canvas.copy_from_bbox(drawn.figure.bbox)
        drawn, canvas, ground = self._drawn
        canvas.restore_region(ground)
        drawn.update(at)
        for artist in drawn.moving:
            drawn.figure.draw_artist(artist)
        buffer = io.BytesIO()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        imsave(buffer, pixels, format="png", pil_kwargs={"compress_level": 1})  # several times as fast as the default
        return buffer.getvalue()


class _Drawn:
    """The figure of a ``DissolveFrames``, and those of its artists that move."""

    def __init__(self, of: DissolveFrames) -> None:
        self.of = of
        rows, widths, size = _LAYOUTS[len(of.stacks)]
        self.figure = Picture(figsize=size, layout="constrained")
        axes = self.figure.subplot_mosaic(rows, **widths)
        self.title = self.figure.suptitle(f"{STEP_LABEL} = {of.ts[-1]}", fontweight="bold", fontsize=11)
        self.moving: list[Any] = [self.title]
        show_image(axes["x"], of.x)
        axes["x"].set_title("input")
        self._images(axes)
        self._energies(axes["energy"])
        self._powers(axes["power"])

    def _images(self, axes: Mapping[str, Any]) -> None:
        of, self.after, self.change = self.of, [], []
        limit = change_limit(np.concatenate([(stack - of.x)[of._shown] for stack in of.stacks.values()]))
        for i, name in enumerate(of.stacks):
            self.after.append(show_image(axes[f"y{i}"], of.x))
            self.change.append(show_change(axes[f"d{i}"], of.x * 0, limit))
            axes[f"y{i}"].set_title(word(name), color=LINES[i]["color"], fontweight="bold")
            axes[f"d{i}"].set_title("change: red added, blue removed" if not i else "", fontsize=8.5)
            bar = self.figure.colorbar(self.change[i], ax=axes[f"d{i}"], shrink=0.82, aspect=16, pad=0.03)
            bar.outline.set_visible(False)
        self.moving += [*self.after, *self.change]

    def _energies(self, ax: Any) -> None:
        """Draw how much of the image's variance is changed at every step; a dot moves along."""
        of, self.dots = self.of, []
        self.energies = [np.maximum(energy_removed(of.x, stack), FLOOR) * 100 for stack in of.stacks.values()]
        for energy, line in zip(self.energies, LINES, strict=False):
            ax.plot(of.ts, energy, lw=1.4, **line)
            self.dots += ax.plot([of.ts[-1]], [energy[-1]], "o", color=line["color"], mec="white", ms=8)
        top = max(float(np.max(self.energies)), 100)
        ax.set_xscale("function", functions=(lambda t: np.sqrt(np.maximum(t, 0)), np.square))  # room for small steps
        ticks = [t for t in TICKS if t <= max(of.ts) + 1]
        ax.set(yscale="log", ylim=(100 * FLOOR / 1.3, 1.5 * top), xlim=(0, max(of.ts) * 1.02 + 1), xlabel=STEP_LABEL)
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        ax.set_title("energy of the change, % of variance", fontsize=8.5)
        self._quiet(ax)
        self.moving += self.dots

    def _powers(self, ax: Any) -> None:
        """Draw the radial power spectrum of the input and of what is left."""
        of = self.of
        frequency, before = radial_power(grey(of.x))
        self.powers = [radial_power(np.stack([grey(y) for y in stack]))[1] for stack in of.stacks.values()]
        ax.plot(frequency, before, color=INK, lw=1, alpha=0.55, label="input")
        self.spectra = [
            ax.plot(frequency, before, lw=1.6, **line)[0] for line, _ in zip(LINES, of.stacks, strict=False)
        ]
        low = min(float(before.min()), *(float(np.quantile(power[of._shown], 0.05)) for power in self.powers))
        ax.set(yscale="log", ylim=(max(low, 1e-7) / 2, max(float(before.max()), 1e-6) * 3), xlim=(0, 0.5))
        ax.set(xlabel="spatial frequency, cycles per px")
        ax.set_title("radial power (grey: input)", fontsize=8.5)
        self._quiet(ax)
        self.moving += self.spectra

    @staticmethod
    def _quiet(ax: Any) -> None:
        ax.minorticks_off()
        ax.tick_params(length=2.5, labelsize=8)
        ax.xaxis.label.set_size(8.5)
        ax.grid(color=SOFT, alpha=0.15, lw=0.6)

    def update(self, at: int) -> None:
        """Show step ``ts[at]``."""
        of = self.of
        self.title.set_text(f"{STEP_LABEL} = {of.ts[at]}")
        for i, stack in enumerate(of.stacks.values()):
            self.after[i].set_data(np.clip(channels_last(stack[at]), 0, 1))
            self.change[i].set_data(grey(stack[at] - of.x))
            self.dots[i].set_data([of.ts[at]], [self.energies[i][at]])
            self.spectra[i].set_ydata(self.powers[i][at])
