"""A finished run applied to new images."""

from diawork.runs.predict.predictor import Prediction, Predictor, Scored, load_detector
from diawork.runs.predict.table import score_files

__all__ = ["Prediction", "Predictor", "Scored", "load_detector", "score_files"]
