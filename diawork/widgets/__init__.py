"""Explorers for JupyterLab, a room each: thin ipywidgets over tested figures, every one with a still twin."""

from diawork.widgets.dissolving import DissolveExplorer
from diawork.widgets.scores import ScoreExplorer
from diawork.widgets.views import ViewsExplorer

__all__ = ["DissolveExplorer", "ScoreExplorer", "ViewsExplorer"]
