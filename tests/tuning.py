"""A small problem for searches; eager, since most models train for a second."""

import keras
from nets import losses, mlp, regression_data

TASKS = ("left", "right")
DATA = regression_data(TASKS, rows=32)
FIT = {"validation_data": DATA, "batch_size": 16, "epochs": 2, "verbose": 0}


def build(hp, metrics="mae", tasks=TASKS, **arguments):
    """A compiled model with a hyperparameter of the user's own."""
    model = mlp(tasks=tasks, features=6)
    rate = 0.01 if hp.Boolean("fast", default=True) else 0.001
    model.compile(
        keras.optimizers.Adam(rate),
        loss=losses(tasks),
        metrics=dict.fromkeys(tasks, metrics),
        run_eagerly=True,
        **arguments,
    )
    return model
