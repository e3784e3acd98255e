"""Metrics of multi-task models, and of comparisons between them."""

from mtlkeras.metrics.delta_m import delta_m
from mtlkeras.metrics.hypervolume import hypervolume
from mtlkeras.metrics.mean_rank import mean_rank

__all__ = ["delta_m", "hypervolume", "mean_rank"]
