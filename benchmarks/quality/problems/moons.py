"""Two moons with three tasks that can be learned and one that cannot.

`moon` is the class, `angle` where on its arc a point lies, `turned` which arc
would be nearer if both were turned by 90 degrees, and `noise` a random label.
The question is what a task with a large loss and nothing to learn does to the
others.
"""

import keras
import numpy as np

from benchmarks.quality.problems.classification import (
    error_rate,
    most_frequent,
)
from benchmarks.quality.problems.trained import TrainedProblem

CENTRE = np.array([0.5, 0.25])


class Moons(TrainedProblem):
    """Error rates, and the mean error of the angle in half turns.

    Args:
        rows: Points to train on.
        held_out: Points to validate and points to test on.
        noise_factor: What the loss of the task `noise` is multiplied by.
    """

    def __init__(
        self,
        rows=2000,
        held_out=2000,
        noise_factor=100.0,
        epochs=20,
        batch_size=100,
        patience=8,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience)
        self.losses = {
            "moon": "binary_crossentropy",
            "angle": "mse",
            "turned": "binary_crossentropy",
            "noise": times(noise_factor, keras.losses.binary_crossentropy),
        }
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in self.losses
        }
        generator = np.random.default_rng(seed)
        self.data = [
            draw(generator, count) for count in (rows, held_out, held_out)
        ]

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = x = keras.Input((2,))
        for _ in range(2):
            x = layers.Dense(32, activation="relu")(x)
        x = layers.Dropout(setting.get("dropout", 0.0))(x)
        outputs = {
            task: layers.Dense(
                1, None if task == "angle" else "sigmoid", name=task
            )(x)
            for task in tasks
        }
        return inputs, outputs

    def measure(self, task, labels, outputs):
        if task == "angle":
            error = np.mean(np.abs(labels - outputs))
        else:
            classes = np.concatenate([1 - outputs, outputs], -1)
            error = error_rate(labels[:, 0], classes)
        return {f"{task}_error": error}

    def constant(self, task, train_labels, labels):
        if task == "angle":
            return np.full(labels.shape, np.median(train_labels))
        return most_frequent(train_labels.astype(int), labels, 2)[:, 1:]


def times(factor, function):
    def loss(y_true, y_pred):
        return factor * function(y_true, y_pred)

    return loss


def arc(moon, angle):
    """Points of the two arcs, by class 0 or 1 and angle in half turns."""
    turned = np.pi * angle
    upper = np.stack([np.cos(turned), np.sin(turned)], -1)
    lower = np.stack([1 - np.cos(turned), 0.5 - np.sin(turned)], -1)
    return np.where(moon[..., None] == 0, upper, lower)


def draw(generator, count):
    moon = generator.integers(2, size=count)
    angle = generator.uniform(size=count)
    points = arc(moon, angle) + 0.1 * generator.normal(size=(count, 2))
    # Turning the points back is turning the arcs.
    back = (points - CENTRE) @ np.array([[0.0, -1.0], [1.0, 0.0]]) + CENTRE
    along = np.linspace(0, 1, 200)
    distances = [
        np.linalg.norm(
            back[:, None] - arc(np.full(200, k), along), axis=-1
        ).min(-1)
        for k in (0, 1)
    ]
    labels = {
        "moon": moon,
        "angle": angle,
        "turned": distances[1] < distances[0],
        "noise": generator.integers(2, size=count),
    }
    return points.astype("float32"), {
        task: values.astype("float32")[:, None]
        for task, values in labels.items()
    }
