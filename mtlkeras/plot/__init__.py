"""Figures of multi-task training, with matplotlib."""

from mtlkeras.plot.conflicts import conflicts
from mtlkeras.plot.grouping import grouping
from mtlkeras.plot.pareto import pareto
from mtlkeras.plot.task_curves import task_curves
from mtlkeras.plot.task_graph import task_graph
from mtlkeras.plot.task_weights import task_weights

__all__ = [
    "conflicts",
    "grouping",
    "pareto",
    "task_curves",
    "task_graph",
    "task_weights",
]
