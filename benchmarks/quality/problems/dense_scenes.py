"""Four dense tasks on generated pictures, with NYUv2's metrics.

Segmentation, depth, surface normals and edges of `datasets.scenes`. The losses
differ in kind and scale, depth's gradients being twenty times those of the
smallest; the sum of the losses neglects edges and normals.
"""

import keras
import numpy as np
from keras import ops

import mtlkeras
from benchmarks.quality.problems.trained import TrainedProblem

CLASSES = 7


def normal_loss(y_true, y_pred):
    """One less the cosine of the angle between unit normals."""
    return 1 - ops.sum(y_true * y_pred, axis=-1)


HEADS = {
    "segmentation": (CLASSES, "sparse_categorical_crossentropy"),
    "depth": (1, "mean_absolute_error"),
    "normals": (3, normal_loss),
    "edges": (1, "binary_crossentropy"),
}
METRICS = {
    "segmentation": ("1_less_miou", "pixel_error"),
    "depth": ("depth_error", "relative_depth_error"),
    "normals": (
        "mean_angle",
        "median_angle",
        "beyond_11",
        "beyond_22",
        "beyond_30",
    ),
    "edges": ("1_less_edge_f1",),
}


class DenseScenes(TrainedProblem):
    """Nine metrics as on NYUv2, with one for edges; in all less is better.

    Args:
        size: Height and width of the pictures.
        rows: Pictures to train on.
        held_out: Pictures to validate and pictures to test on.
    """

    predict_size = 50

    def __init__(
        self,
        size=32,
        rows=400,
        held_out=150,
        epochs=15,
        batch_size=16,
        patience=6,
    ):
        super().__init__(epochs, batch_size, patience)
        self.size = size
        self.losses = {task: loss for task, (_, loss) in HEADS.items()}
        self.metrics = {
            metric: {"task": task, "higher_is_better": False}
            for task, metrics in METRICS.items()
            for metric in metrics
        }
        self.data = mtlkeras.datasets.scenes(
            rows, held_out, held_out, size=size
        )

    def build(self, setting, tasks):
        layers = keras.layers

        def convolve(x, filters, strides=1):
            return layers.Conv2D(
                filters, 3, strides, padding="same", activation="relu"
            )(x)

        inputs = keras.Input((self.size, self.size, 3))
        high = convolve(inputs, 16)
        middle = convolve(high, 24, 2)
        low = convolve(convolve(middle, 32, 2), 32)
        low = layers.SpatialDropout2D(setting.get("dropout", 0.0))(low)
        x = layers.Concatenate()([layers.UpSampling2D()(low), middle])
        x = layers.Concatenate()([layers.UpSampling2D()(convolve(x, 24)), high])
        x = convolve(x, 16)
        outputs = {}
        for task in tasks:
            y = layers.Conv2D(HEADS[task][0], 3, padding="same")(
                convolve(x, 12)
            )
            outputs[task] = ending(task)(y)
        return inputs, outputs

    def measure(self, task, labels, outputs):
        return dict(
            zip(METRICS[task], SCORES[task](labels, outputs), strict=True)
        )

    def constant(self, task, train_labels, labels):
        if task == "segmentation":
            commonest = np.bincount(train_labels.ravel()).argmax()
            return np.broadcast_to(
                np.eye(CLASSES)[commonest], (*labels.shape, CLASSES)
            )
        if task == "edges":
            # All of them, which has a higher F1 than none.
            return np.ones(labels.shape)
        if task == "depth":
            return np.full(labels.shape, np.median(train_labels))
        mean = train_labels.mean((0, 1, 2))
        return np.broadcast_to(mean / np.linalg.norm(mean), labels.shape)


def ending(task):
    if task == "segmentation":
        return keras.layers.Softmax(name=task)
    if task == "normals":
        return keras.layers.UnitNormalization(name=task)
    kind = "sigmoid" if task == "edges" else "linear"
    return keras.layers.Activation(kind, name=task)


# -- metrics, in NumPy --------------------------------------------------------


def segmentation(labels, outputs):
    found = outputs.argmax(-1)
    shared = [
        np.sum((found == k) & (labels == k))
        / np.sum((found == k) | (labels == k))
        for k in np.unique(labels)
    ]
    return 1 - np.mean(shared), np.mean(found != labels)


def depth(labels, outputs):
    error = np.abs(labels - outputs)
    return np.mean(error), np.mean(error / labels)


def normals(labels, outputs):
    cosine = np.clip(np.sum(labels * outputs, -1), -1, 1)
    angle = np.degrees(np.arccos(cosine))
    beyond = [np.mean(angle > bound) for bound in (11.25, 22.5, 30)]
    return np.mean(angle), np.median(angle), *beyond


def edges(labels, outputs):
    found, true = outputs > 0.5, labels > 0.5
    return (1 - 2 * np.sum(found & true) / max(found.sum() + true.sum(), 1),)


SCORES = {
    "segmentation": segmentation,
    "depth": depth,
    "normals": normals,
    "edges": edges,
}
