"""Multi-task learning for Keras.

`MultiTaskModel` is a `keras.Model` whose `fit` trains its outputs as tasks:
jointly, alternating with optimizer state per task, in groups, and so on.
"""

# First, since it explains a missing TensorFlow.
from mtlkeras import backend as backend  # isort: skip
from mtlkeras import (
    aggregators,
    balancers,
    callbacks,
    datasets,
    layers,
    losses,
    metrics,
    optimizers,
    plot,
    strategies,
    tuner,
)
from mtlkeras.models import MultiTaskModel
from mtlkeras.version import __version__

__all__ = [
    "MultiTaskModel",
    "__version__",
    "aggregators",
    "balancers",
    "callbacks",
    "datasets",
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "plot",
    "strategies",
    "tuner",
]
