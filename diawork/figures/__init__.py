"""Figures: arrays in, a ``Figure`` or frames out; the only door to matplotlib and seaborn."""

from matplotlib.figure import Figure

from diawork.figures.charts import (
    EXCLUDED,
    NEGATIVE,
    POSITIVE,
    ablation_bars,
    auroc_curves,
    cost_bars,
    loss_curve,
    roc,
    score_histogram,
    similarity_matrix,
)
from diawork.figures.images import (
    FIGURE_STEPS,
    STEP_LABEL,
    colours,
    dissolve_strip,
    image_grid,
    nearest_neighbours,
    overlay,
    pixels_png,
    png_bytes,
    thumbnail,
    views_grid,
)
from diawork.figures.panels import (
    BRANCHES,
    Pairs,
    Reasons,
    compare_maps,
    map_limits,
    maps_grid,
    pair_figure,
    score_figure,
    table_map,
)
from diawork.figures.slider import DissolveFrames, dissolve_frames, player_html
from diawork.figures.styles import Named, Styles, styles_of

__all__ = [
    "BRANCHES", "EXCLUDED", "FIGURE_STEPS", "NEGATIVE", "POSITIVE", "STEP_LABEL", "DissolveFrames", "Figure", "Named",
    "Pairs", "Reasons", "Styles", "ablation_bars", "auroc_curves", "colours", "compare_maps", "cost_bars",
    "dissolve_frames", "dissolve_strip", "image_grid", "loss_curve", "map_limits", "maps_grid",
    "nearest_neighbours", "overlay", "pair_figure", "pixels_png", "player_html", "png_bytes", "roc", "score_figure",
    "score_histogram", "similarity_matrix", "styles_of", "table_map", "thumbnail", "views_grid",
]  # fmt: skip
