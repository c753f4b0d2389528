"""Figures and the cost table of the paper that need no training of a detector: drawn from a config, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import torch
from torch import nn
from torchvision.models import resnet18

from diawork import figures
from diawork.base.compute import count_macs, layer_macs
from diawork.base.config import DissolveConfig, ExperimentConfig
from diawork.base.errors import UsageError, pick
from diawork.base.files import digest, write_bytes, write_json
from diawork.data.datasets import load
from diawork.method.ddpm import build_ddpm
from diawork.method.loss import pair_roles
from diawork.method.operators import OPERATORS, build_operator, mean_squared_change, operator_class, preview
from diawork.runs.artifacts import ddpm_in, run_dissolver
from diawork.runs.context import Context, Surroundings
from diawork.runs.evidence import dissolving_strip, strip_rows
from diawork.runs.resolve import resolve


@dataclass
class Drawing:
    """One figure with the numbers it stands on."""

    figure: Any
    rows: list[dict[str, Any]]
    caption: str
    path: Path | None = None  # of the picture; the numbers lie beside it

    @property
    def table(self) -> pd.DataFrame:
        """Return the numbers as a frame."""
        return pd.DataFrame(self.rows)


def draw_figure(
    name: str, cfg: ExperimentConfig, *, folder: Path | str = "", **surroundings: Unpack[Surroundings]
) -> Drawing:
    """Draw ``f1``, ``f3``, ``f5`` or ``t4`` from a config and save picture and numbers.

    They go to ``folder`` or, where it is empty, below the folder for runs. ``surroundings``: out, data_root, compute,
    progress.
    """
    context = Context.of(**surroundings)
    drawing = pick(FIGURES, name, "figure")(cfg, context)
    default = context.out / "figures" / f"{name}-{digest([name, cfg.model_dump(mode='json')])}"
    folder = Path(folder) if folder else default
    drawing.path = folder / "figure.png"
    write_bytes(drawing.path, figures.png_bytes(drawing.figure, 110))
    numbers = {"caption": drawing.caption, "columns": list(drawing.table), "rows": drawing.rows}
    write_json(folder / "figure.json", numbers)
    return drawing


def _strips(cfg: ExperimentConfig, context: Context) -> Drawing:
    """Fig. 1: test images through Eq. 4 at several steps, and how much of them each step changes."""
    splits = load(cfg, context.data_root)
    cfg = resolve(cfg, splits)
    ddpm = ddpm_in(context, cfg, splits)
    ts = figures.FIGURE_STEPS
    strip = dissolving_strip(run_dissolver(cfg, ddpm, compute=context.compute), splits.test, ts)
    names = splits.test.class_names[strip_rows(splits.test)]
    change = ((strip[:, 1:] - strip[:, :1]) ** 2).mean((0, 2, 3))
    rows = [{"t": t, "mean squared change": float(value)} for t, value in zip(ts, change, strict=True)]
    learnt = f"{ddpm.data['images']:,} healthy images of {ddpm.data['name']}, {ddpm.config.steps:,} steps"
    caption = f"Test images through the {cfg.dissolve.weights} weights of a DDPM ({learnt}); Eq. 4."
    return Drawing(figures.dissolve_strip(strip, ts, names), rows, caption)


def _target_matrix(cfg: ExperimentConfig, context: Context) -> Drawing:
    """Fig. 3: which pairs are positive, negative or left out, for two images and two shifts."""
    branch, shift, image = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).T
    roles = pair_roles(image, shift, branch, mask=cfg.loss.mask)
    places = zip(branch.tolist(), shift.tolist(), image.tolist(), strict=True)
    labels = [f"{('O', 'O′', 'A')[b]}{s} image {i + 1}" for b, s, i in places]
    counts = {word: int((roles == code).sum()) for code, word in enumerate(("excluded", "positive", "negative"))}
    caption = f"Mask {cfg.loss.mask}: two images, two shifts; O and O′ are the ordinary views, A the dissolved ones."
    return Drawing(figures.similarity_matrix(roles.numpy(), labels, block=4), [counts], caption)


def _strengths(cfg: ExperimentConfig, context: Context) -> Drawing:
    """Fig. 5: what an alternative does at several strengths, and how much of healthy images it changes."""
    operator, splits = cfg.dissolve.operator, load(cfg, context.data_root)
    shown = operator_class(cfg.dissolve).figure
    if shown is None:
        hint = f"Set dissolve.operator to one of {', '.join(name for name, kind in OPERATORS.items() if kind.figure)}."
        raise UsageError(f"figure f5 shows the alternatives; operator={operator!r} is none.", hint=hint)
    dial, values = shown
    chosen = [DissolveConfig(operator=operator, **{dial: value}) for value in values]
    x, healthy = splits.test.images[strip_rows(splits.test)], splits.train.normal().images[:256]
    grid = torch.stack([x, *(preview(build_operator(one), x) for one in chosen)], 1).flatten(0, 1)
    titles = ["input", *(f"{dial.replace('_', ' ')} {value}" for value in values)]
    rows = [
        {dial: value, "mean squared change": mean_squared_change(build_operator(one), healthy)}
        for value, one in zip(values, chosen, strict=True)
    ]
    figure = figures.image_grid(grid, titles + [""] * (len(grid) - len(titles)), columns=len(titles))
    return Drawing(figure, rows, f"{operator.replace('_', ' ').capitalize()}, weak to strong, on test images.")


def _cost(cfg: ExperimentConfig, context: Context) -> Drawing:
    """Table 4: parameters and multiply-adds of one image, counted in full and as the printed ones were."""
    size, channels = cfg.diffusion.image_size, cfg.diffusion.channels
    with torch.device("meta"):
        image, t = torch.empty(1, channels, size, size), torch.empty(1, dtype=torch.long)
        unet = _counted("UNet", build_ddpm(cfg.diffusion).model, image, t)
        encoder = _counted("ResNet18 at 224 px", resnet18(), torch.empty(1, 3, 224, 224))
    rows = [unet, encoder, {"part": "both"} | {key: unet[key] + encoder[key] for key in unet if key != "part"}]
    kinds = {"true": "gmacs", "without weight-standardised convolutions": "gmacs_as_printed"}
    bars = [{"count": f"{row['part']}, {k}", "GMACs": row[v]} for row in rows for k, v in kinds.items()]
    caption = (
        f"One image, dissolved at {size} px by a UNet of width {cfg.diffusion.dim}; 10⁹ multiply-adds. The library's "
        "UNet has changed a little since the paper's version, so the counts differ by some percent."
    )
    return Drawing(figures.cost_bars(bars, value="GMACs", label="count"), rows, caption)


def _counted(name: str, module: nn.Module, *inputs: torch.Tensor) -> dict[str, Any]:
    module.eval()
    standardised = {block.proj for block in module.modules() if type(block).__name__ == "Block"}
    layers = layer_macs(module, *inputs)
    return {
        "part": name,
        "parameters_millions": sum(p.numel() for p in module.parameters()) / 1e6,
        "gmacs": sum(layers.values()) / 1e9,
        "gmacs_with_attention": count_macs(module, *inputs) / 1e9,
        "gmacs_as_printed": sum(macs for layer, macs in layers.items() if layer not in standardised) / 1e9,
    }


FIGURES: dict[str, Callable[[ExperimentConfig, Context], Drawing]] = {
    "f1": _strips, "f3": _target_matrix, "f5": _strengths, "t4": _cost,
}  # fmt: skip
