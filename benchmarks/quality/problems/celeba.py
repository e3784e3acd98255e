"""CelebA's forty attributes, from prepared files of TensorFlow Datasets."""

import importlib.util
from pathlib import Path

import keras
import numpy as np

from benchmarks.quality.problems.trained import TrainedProblem

DIRECTORY = "~/tensorflow_datasets"
SPLITS = ("train", "validation", "test")


class Celeba(TrainedProblem):
    """One less F1 of each attribute, on the official splits.

    The pictures are held in memory: 2 GB at 64x64.

    Args:
        directory: The `data_dir` of TensorFlow Datasets, with `celeb_a` in it.
        size: Height and width.
        filters: List with the number of filters of each stage.
    """

    def __init__(
        self,
        directory=DIRECTORY,
        size=64,
        filters=(64, 128, 256, 512),
        epochs=15,
        batch_size=256,
        patience=15,
    ):
        super().__init__(epochs, batch_size, patience)
        self.filters = tuple(filters)
        self.data = [load(split, directory, size) for split in SPLITS]
        names = list(self.data[0][1])
        self.losses = dict.fromkeys(names, "binary_crossentropy")
        self.metrics = {
            f"{task}_1_less_f1": {"task": task, "higher_is_better": False}
            for task in names
        }

    @staticmethod
    def missing_data(directory=DIRECTORY, **arguments):
        if importlib.util.find_spec("tensorflow_datasets") is None:
            return "No TensorFlow Datasets: `pip install mtlkeras[tfds]`."
        if not (Path(directory).expanduser() / "celeb_a").is_dir():
            return (
                f"No prepared CelebA in {directory}: `python "
                "examples/celeba.py --download`, or set `directory`."
            )
        return None

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = keras.Input(self.data[0][0].shape[1:])
        x = layers.Rescaling(1 / 255)(inputs)
        for filters in self.filters:
            for _ in range(2):
                x = layers.Conv2D(filters, 3, padding="same")(x)
                x = layers.ReLU()(layers.BatchNormalization()(x))
            x = layers.MaxPooling2D()(x)
        x = layers.Dropout(setting.get("dropout", 0.0))(
            layers.GlobalAveragePooling2D()(x)
        )
        return inputs, {
            task: layers.Dense(1, "sigmoid", name=task)(x) for task in tasks
        }

    def measure(self, task, labels, outputs):
        found, true = outputs > 0.5, labels > 0.5
        both = 2 * np.sum(found & true)
        return {
            f"{task}_1_less_f1": 1 - both / max(found.sum() + true.sum(), 1)
        }

    def constant(self, task, train_labels, labels):
        return np.zeros(labels.shape)


def load(split, directory, size):
    """All pictures of a split, uint8, and a dict of labels `[n, 1]`."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def small(row):
        image = tf.image.resize(row["image"], (size, size), antialias=True)
        labels = {k: v[None] for k, v in row["attributes"].items()}
        return tf.cast(tf.round(image), "uint8"), labels

    dataset = tfds.load(
        "celeb_a",
        split=split,
        data_dir=str(Path(directory).expanduser()),
        download=False,
    )
    dataset = dataset.map(small, tf.data.AUTOTUNE).batch(1024)
    batches = list(tfds.as_numpy(dataset))
    labels = {
        name: np.concatenate([y[name] for _, y in batches]).astype("float32")
        for name in batches[0][1]
    }
    return np.concatenate([x for x, _ in batches]), labels
