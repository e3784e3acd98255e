"""NYUv2 and Cityscapes as the MTAN authors prepared them: folders of arrays.

`train/` and `val/` hold `image/0.npy`, `label/0.npy`, `depth/0.npy` and, for
NYUv2, `normal/0.npy`, channels last. What they call `val` is what the
literature tests on; validation pictures are taken out of `train`, which the
literature doesn't do. Labels below 0, depths of 0 and normals of length 0 are
not known and count nowhere.
"""

from pathlib import Path

import keras
import numpy as np
from keras import ops

from benchmarks.quality.problems.dense_scenes import METRICS, ending
from benchmarks.quality.problems.trained import TrainedProblem

TASKS = ("segmentation", "depth", "normals")
FILES = {"segmentation": "label", "depth": "depth", "normals": "normal"}


class MtanScenes(TrainedProblem):
    """The metrics of the literature, with a net of the size of SegNet.

    The pictures are held in memory: 6 GB for NYUv2.

    Args:
        directory: Folder with `train` and `val`.
        tasks: Names out of segmentation, depth and normals.
        classes: Number of classes.
        filters: List with the number of filters of each stage.
        validation_share: Of the training pictures.
    """

    predict_size = 8

    def __init__(
        self,
        directory,
        tasks=TASKS,
        classes=13,
        filters=(64, 128, 256, 512, 512),
        validation_share=0.2,
        epochs=200,
        batch_size=2,
        patience=200,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience)
        self.classes = classes
        self.filters = tuple(filters)
        known = {
            "segmentation": segmentation_loss,
            "depth": depth_loss,
            "normals": normal_loss,
        }
        self.losses = {task: known[task] for task in tasks}
        self.metrics = {
            metric: {"task": task, "higher_is_better": False}
            for task in tasks
            for metric in METRICS[task]
        }
        directory = Path(directory).expanduser()
        x, y = read(directory / "train", tasks)
        order = np.random.default_rng(seed).permutation(len(x))
        parts = np.split(order, [round((1 - validation_share) * len(x))])
        self.data = [
            (x[part], {task: labels[part] for task, labels in y.items()})
            for part in parts
        ]
        self.data.append(read(directory / "val", tasks))

    @staticmethod
    def missing_data(directory, **arguments):
        if not (Path(directory).expanduser() / "train" / "image").is_dir():
            return (
                f"No pictures in {directory}. The authors of MTAN "
                "(https://github.com/lorenmt/mtan) publish NYUv2 and "
                "Cityscapes as arrays; unpack them there, or set `directory`."
            )
        return None

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = x = keras.Input(self.data[0][0].shape[1:])
        sides = []
        for filters in self.filters:
            x = convolve(convolve(x, filters), filters)
            sides.append(x)
            x = layers.MaxPooling2D(padding="same")(x)
        for filters, side in zip(
            reversed(self.filters), reversed(sides), strict=True
        ):
            x = layers.UpSampling2D()(x)
            # Sides that are odd came out of the pooling rounded up.
            x = x[:, : side.shape[1], : side.shape[2]]
            x = convolve(layers.Concatenate()([x, side]), filters)
        x = layers.SpatialDropout2D(setting.get("dropout", 0.0))(x)
        outputs = {}
        for task in tasks:
            channels = {"segmentation": self.classes, "depth": 1}.get(task, 3)
            y = convolve(x, self.filters[0])
            outputs[task] = ending(task)(layers.Conv2D(channels, 1)(y))
        return inputs, outputs

    def measure(self, task, labels, outputs):
        return dict(
            zip(METRICS[task], SCORES[task](labels, outputs), strict=True)
        )

    def constant(self, task, train_labels, labels):
        if task == "segmentation":
            known = train_labels[train_labels >= 0]
            guess = np.eye(self.classes)[np.bincount(known).argmax()]
            return np.broadcast_to(guess, (*labels.shape, self.classes))
        if task == "depth":
            known = train_labels[train_labels > 0]
            return np.full(labels.shape, np.median(known))
        mean = train_labels.mean((0, 1, 2))
        return np.broadcast_to(mean / np.linalg.norm(mean), labels.shape)


def convolve(x, filters):
    layers = keras.layers
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def read(folder, tasks):
    """Pictures and a dict of labels."""
    count = len(list((folder / "image").glob("*.npy")))

    def stack(name, dtype):
        arrays = [np.load(folder / name / f"{k}.npy") for k in range(count)]
        return np.stack(arrays).astype(dtype)

    labels = {
        task: stack(
            FILES[task], "int32" if task == "segmentation" else "float32"
        )
        for task in tasks
    }
    return stack("image", "float32"), labels


# -- losses and metrics over what is known ------------------------------------


def mean_where(known, values):
    known = ops.cast(known, values.dtype)
    return ops.sum(known * values) / ops.maximum(ops.sum(known), 1.0)


def segmentation_loss(y_true, y_pred):
    labels = ops.cast(y_true, "int32")
    each = keras.losses.sparse_categorical_crossentropy(
        ops.maximum(labels, 0), y_pred
    )
    return mean_where(labels >= 0, each)


def depth_loss(y_true, y_pred):
    return mean_where(y_true > 0, ops.abs(y_true - y_pred))


def normal_loss(y_true, y_pred):
    cosine = ops.sum(y_true * y_pred, -1)
    return mean_where(ops.sum(ops.abs(y_true), -1) > 0, 1 - cosine)


def segmentation(labels, outputs):
    known = labels >= 0
    found, true = outputs.argmax(-1)[known], labels[known]
    shared = [
        np.sum((found == k) & (true == k)) / np.sum((found == k) | (true == k))
        for k in np.unique(true)
    ]
    return 1 - np.mean(shared), np.mean(found != true)


def depth(labels, outputs):
    known = labels > 0
    error = np.abs(labels - outputs)[known]
    return np.mean(error), np.mean(error / labels[known])


def normals(labels, outputs):
    length = np.linalg.norm(labels, axis=-1)
    cosine = np.sum(labels * outputs, -1)[length > 0] / length[length > 0]
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    beyond = [np.mean(angle > bound) for bound in (11.25, 22.5, 30)]
    return np.mean(angle), np.median(angle), *beyond


SCORES = {"segmentation": segmentation, "depth": depth, "normals": normals}
