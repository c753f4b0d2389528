"""Detectors behind one face: ``fit``, ``anomaly_scores`` (higher = more anomalous), ``save``, ``load``."""

from diawork.detectors.controls import OracleStatistic, PixelKNN, StatsKNN, StatsMahalanobis
from diawork.detectors.dia import CSI, DIA

DETECTORS = {
    "dia": DIA,
    "csi": CSI,
    "stats_knn": StatsKNN,
    "stats_mahalanobis": StatsMahalanobis,
    "pixel_knn": PixelKNN,
    "oracle_statistic": OracleStatistic,
}
