"""Forty attributes of made-up data, as unevenly frequent as CelebA's.

A random teacher network maps 64 inputs to one logit per attribute; attribute t
is present in a share of the rows that goes from 2 % to 50 %.
"""

import keras
import numpy as np

from benchmarks.quality.problems.trained import TrainedProblem

INPUTS, HIDDEN = 64, 128


class Attributes(TrainedProblem):
    """One less the F1 of each attribute.

    Args:
        attributes: Number of tasks.
        rows: Rows to train on.
        held_out: Rows to validate and rows to test on.
    """

    def __init__(
        self,
        attributes=40,
        rows=5000,
        held_out=2000,
        epochs=12,
        batch_size=100,
        patience=5,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience)
        names = [f"attribute_{t:02}" for t in range(attributes)]
        self.losses = dict.fromkeys(names, "binary_crossentropy")
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in names
        }
        generator = np.random.default_rng(seed)
        first = generator.normal(size=(INPUTS, HIDDEN)) * 2 / INPUTS**0.5
        second = generator.normal(size=(HIDDEN, attributes))
        shares = np.geomspace(0.02, 0.5, attributes)
        x = generator.normal(size=(rows + 2 * held_out, INPUTS))
        logits = np.tanh(x @ first) @ second
        bounds = [
            np.quantile(z, 1 - p) for z, p in zip(logits.T, shares, strict=True)
        ]
        found = (logits > bounds).astype("float32")
        ends = np.cumsum([rows, held_out])
        self.data = [
            (
                part.astype("float32"),
                {name: y[:, t, None] for t, name in enumerate(names)},
            )
            for part, y in zip(
                np.split(x, ends), np.split(found, ends), strict=True
            )
        ]

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = x = keras.Input((INPUTS,))
        for _ in range(2):
            x = layers.Dense(128, activation="relu")(x)
        x = layers.Dropout(setting.get("dropout", 0.0))(x)
        return inputs, {
            task: layers.Dense(1, "sigmoid", name=task)(x) for task in tasks
        }

    def measure(self, task, labels, outputs):
        found, true = outputs > 0.5, labels > 0.5
        both = 2 * np.sum(found & true)
        return {f"{task}_error": 1 - both / max(found.sum() + true.sum(), 1)}

    def constant(self, task, train_labels, labels):
        return np.zeros(labels.shape)
