"""Multi-task learning for Keras.

`MultiTaskModel` is a `keras.Model` whose `fit` trains its outputs as tasks:
jointly, alternating with optimizer state per task, in groups, and so on.
"""

from mtlkeras import (
    backend,  # first: it explains a missing TensorFlow
    callbacks,
    datasets,
    losses,
    metrics,
    models,
    optimizers,
    strategies,
)
from mtlkeras.models import MultiTaskModel
from mtlkeras.version import __version__

__all__ = [
    "MultiTaskModel",
    "__version__",
    "callbacks",
    "datasets",
    "losses",
    "metrics",
    "optimizers",
    "strategies",
]
