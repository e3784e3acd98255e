"""Small nets and data that several test files use."""

import keras
import numpy as np

import mtlkeras

TASKS = ("left", "middle", "right")


def mlp(
    cls=mtlkeras.MultiTaskModel,
    tasks=TASKS,
    features=6,
    seed=0,
    batch_norm=False,
    dropout=0.0,
    regularizer=None,
    structure="dict",
):
    """Shared dense trunk and one linear head per task, equal for equal seeds.

    `structure` is "dict", "list" or "single".
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((features,), name="features")
    x = keras.layers.Dense(8, activation="tanh", name="trunk_1")(inputs)
    if batch_norm:
        x = keras.layers.BatchNormalization(name="trunk_norm")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=3, name="trunk_dropout")(x)
    x = keras.layers.Dense(
        5, activation="tanh", kernel_regularizer=regularizer, name="trunk_2"
    )(x)
    # Layers named otherwise than the tasks: the names must come from the dict.
    heads = {
        task: keras.layers.Dense(
            1,
            kernel_regularizer=regularizer,
            name=task if structure == "list" else f"head_{task}",
        )(x)
        for task in tasks
    }
    outputs = {
        "dict": heads,
        "list": list(heads.values()),
        "single": heads[tasks[0]],
    }[structure]
    return cls(inputs, outputs)


class Subclassed(mtlkeras.MultiTaskModel):
    """The same trunk and heads as a subclass with `call`."""

    def __init__(self, tasks=TASKS, **kwargs):
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)
        self.trunk_1 = keras.layers.Dense(8, activation="tanh")
        self.trunk_2 = keras.layers.Dense(5, activation="tanh")
        self.heads = {task: keras.layers.Dense(1) for task in tasks}

    def call(self, inputs, training=False):
        x = self.trunk_2(self.trunk_1(inputs))
        return {task: head(x) for task, head in self.heads.items()}


class Opaque(mtlkeras.MultiTaskModel):
    """The layers of a model behind a `call`, so that no graph is known."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=False):
        return self.inner(x, training=training)


def regression_data(tasks=TASKS, rows=48, features=6, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(dtype)
    weights = rng.normal(size=(features, len(tasks)))
    targets = np.tanh(x @ weights) + 0.1 * rng.normal(size=(rows, len(tasks)))
    y = {task: targets[:, [i]].astype(dtype) for i, task in enumerate(tasks)}
    return x, y


def losses(tasks=TASKS, loss="mse"):
    return dict.fromkeys(tasks, loss)


def values(variables):
    """Copies of variables as NumPy arrays."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def assert_same_bits(first, second):
    """Arrays of equal number, shape and bits."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
