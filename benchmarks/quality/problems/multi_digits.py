"""Two overlapping handwritten digits, with two to four tasks."""

import keras

import mtlkeras
from benchmarks.quality.problems.classification import (
    error_rate,
    most_frequent,
)
from benchmarks.quality.problems.trained import TrainedProblem

CLASSES = {"left": 10, "right": 10, "sum_parity": 2, "larger": 3}


class MultiDigits(TrainedProblem):
    """Error rates of small convolutional networks.

    Args:
        tasks: Names out of those of `datasets.multi_digits`.
        rows: Pairs to train on.
        held_out: Pairs to validate and pairs to test on.
    """

    def __init__(
        self,
        tasks=("left", "right"),
        rows=4000,
        held_out=2000,
        epochs=15,
        batch_size=100,
        patience=5,
    ):
        super().__init__(epochs, batch_size, patience)
        self.losses = dict.fromkeys(tasks, "sparse_categorical_crossentropy")
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in tasks
        }
        self.data = mtlkeras.datasets.multi_digits(
            rows, held_out, held_out, tasks=tuple(tasks)
        )

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = keras.Input((12, 12, 1))
        x = layers.Conv2D(16, 3, activation="relu")(inputs)
        x = layers.MaxPooling2D()(x)
        x = layers.Conv2D(16, 3, activation="relu")(x)
        x = layers.Dense(50, activation="relu")(layers.Flatten()(x))
        x = layers.Dropout(setting["dropout"])(x)
        outputs = {}
        for task in tasks:
            hidden = layers.Dense(30, activation="relu")(x)
            outputs[task] = layers.Dense(
                CLASSES[task], activation="softmax", name=task
            )(hidden)
        return inputs, outputs

    def measure(self, task, labels, outputs):
        return {f"{task}_error": error_rate(labels, outputs)}

    def constant(self, task, train_labels, labels):
        return most_frequent(train_labels, labels, CLASSES[task])
