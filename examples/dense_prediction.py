"""Trains one U-Net on dense tasks with several ways of joining the tasks.

The pictures are the generated scenes of `mtlkeras.datasets.scenes`; the tasks
are segmentation, depth, surface normals and edges. Every method starts from the
same weights and sees the same batches, as many as the others. Printed are the
test scores of all of them; the pictures show some predictions. Run it with

    python examples/dense_prediction.py --seeds 0 1

`--quick` takes less than a minute. `--stereo` takes disparity and its jumps on
a real stereo pair in place of the scenes; it needs `pip install scikit-image`.

`--methods` takes ids of strategies and of aggregators, an aggregator also as
`nash_mtl@features`, and two baselines: `single`, a network per task, and
`weighted`, `joint` with a loss weight set by hand.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
import stereo_patches
from keras import layers, ops

import mtlkeras

METHODS = [
    "single",
    "joint",
    "weighted",
    "alternating",
    "multi_adaptive",
    "random_groups",
    "imtl_g",
    "nash_mtl",
    "nash_mtl@features",
    "upgrad",
    "db_mtl",
    "aligned_mtl",
    "normalized",
]
QUICK_METHODS = ["joint", "alternating", "nash_mtl"]

# What `weighted` multiplies the losses of large scale with.
LOSS_WEIGHTS = {"depth": 0.1, "disparity": 0.1}


def normal_loss(y_true, y_pred):
    """One less the cosine of the angle between unit normals."""
    return 1 - ops.sum(y_true * y_pred, axis=-1)


# task -> channels, the layer behind them, and the loss
HEADS = {
    "segmentation": (7, layers.Softmax, "sparse_categorical_crossentropy"),
    "depth": (1, None, "mean_absolute_error"),
    "disparity": (1, None, "mean_absolute_error"),
    "normals": (3, layers.UnitNormalization, normal_loss),
    "edges": (1, lambda: layers.Activation("sigmoid"), "binary_crossentropy"),
    "jumps": (1, lambda: layers.Activation("sigmoid"), "binary_crossentropy"),
}


# -- scores, in NumPy ---------------------------------------------------------


def mean_iou(y, prediction):
    """Mean over classes of intersection over union."""
    found = prediction.argmax(-1)
    values = []
    for label in np.unique(y):
        both = (found == label) & (y == label)
        either = (found == label) | (y == label)
        values.append(both.sum() / either.sum())
    return float(np.mean(values))


def absolute_error(y, prediction):
    return float(np.nanmean(np.abs(y - prediction)))


def pixel_error(y, prediction):
    return stereo_patches.UNIT * absolute_error(y, prediction)


def normal_angle(y, prediction):
    cosine = np.clip((y * prediction).sum(-1), -1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def edge_f1(y, prediction):
    """F1 of the pixels with a probability above 1/2; 0 if there are none."""
    found, true = prediction > 0.5, y > 0.5
    return float(2 * (found & true).sum() / max(found.sum() + true.sum(), 1))


def average_precision(y, prediction):
    """Mean precision at the true pixels, by descending probability."""
    known = ~np.isnan(y)
    order = np.argsort(-prediction[known], kind="stable")
    true = y[known][order] > 0.5
    precision = np.cumsum(true) / np.arange(1, len(true) + 1)
    return float(precision[true].mean())


# task -> name of the score, function, digits, best direction
SCORES = {
    "segmentation": ("mIoU", mean_iou, 3, "higher"),
    "depth": ("depth m", absolute_error, 2, "lower"),
    "disparity": ("disparity px", pixel_error, 2, "lower"),
    "normals": ("normals deg", normal_angle, 1, "lower"),
    "edges": ("edge F1", edge_f1, 3, "higher"),
    "jumps": ("jumps AP", average_precision, 3, "higher"),
}


# -- model and training -------------------------------------------------------


def build_model(tasks, input_shape):
    """A U-Net; the tasks share all of it but two convolutions each."""

    def convolve(x, filters, times):
        for _ in range(times):
            conv = layers.Conv2D(filters, 3, padding="same", activation="relu")
            x = conv(x)
        return x

    inputs = x = keras.Input(input_shape)
    skips = []
    for filters in (16, 32, 64):
        x = convolve(x, filters, 2)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolve(x, 64, 1)
    for filters, times in ((64, 1), (32, 2), (16, 2)):
        x = layers.UpSampling2D()(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = convolve(x, filters, times)
    outputs = {}
    for task in tasks:
        channels, activation, _ = HEADS[task]
        output = layers.Conv2D(channels, 1)(convolve(x, 16, 1))
        if task == "disparity":
            # What block matching found needs to be mended only.
            output = layers.Add()([output, inputs[..., 3:4]])
        outputs[task] = activation()(output) if activation else output
    return mtlkeras.MultiTaskModel(inputs, outputs)


def update_of(method, seed):
    """The arguments of `fit` that a name in `--methods` stands for."""
    if method == "random_groups":
        return {"strategy": mtlkeras.strategies.RandomGroups(2, seed=seed)}
    if method in mtlkeras.strategies.ids():
        return {"strategy": method}
    if method in ("single", "weighted"):
        return {"strategy": "joint"}
    aggregator, _, place = method.partition("@")
    aggregator = mtlkeras.aggregators.get(aggregator)
    if place:
        aggregator = type(aggregator)(gradients_at=place)
    return {"strategy": "joint", "aggregator": aggregator}


def train(method, data, test_x, options, seed):
    """Trains with one method.

    Returns:
        Predictions for `test_x`, and the seconds that `fit` took.
    """
    x, y = data
    if method == "single":
        predictions, seconds = {}, 0.0
        for task in y:
            found, took = train(
                "joint", (x, {task: y[task]}), test_x, options, seed
            )
            predictions.update(found)
            seconds += took
        return predictions, seconds
    keras.utils.set_random_seed(seed)
    model = build_model(tuple(y), x.shape[1:])
    weights = None
    if method == "weighted":
        weights = {task: LOSS_WEIGHTS.get(task, 1.0) for task in y}
    model.compile(
        keras.optimizers.Adam(options.learning_rate),
        loss={task: HEADS[task][2] for task in y},
        loss_weights=weights,
    )
    start = time.perf_counter()
    # In epochs of whole batches, as many as make the steps.
    batches = min(options.steps, len(x) // options.batch_size)
    used = batches * options.batch_size
    model.fit(
        x[:used],
        {task: targets[:used] for task, targets in y.items()},
        batch_size=options.batch_size,
        epochs=round(options.steps / batches),
        verbose=0,
        **update_of(method, seed),
    )
    seconds = time.perf_counter() - start
    return model.predict(test_x, batch_size=16, verbose=0), seconds


def score(y, predictions):
    return {
        task: SCORES[task][1](y[task], values)
        for task, values in predictions.items()
    }


# -- what is shown ------------------------------------------------------------


def print_table(results, tasks):
    """Means over seeds, with half the range where there are several."""
    header = [SCORES[task][0] for task in tasks]
    print(
        f"\n{'method':20}"
        + "".join(f"{name:>18}" for name in [*header, "seconds"])
    )
    for method, runs in results.items():
        line = f"{method:20}"
        for task in tasks:
            digits = SCORES[task][2]
            values = [scores[task] for scores, _ in runs if task in scores]
            line += f"{spread(values, digits):>18}"
        seconds = [seconds for _, seconds in runs]
        print(line + f"{spread(seconds, 0):>18}")
    directions = {name: best for name, _, _, best in SCORES.values()}
    better = [f"{name} {directions[name]}" for name in header]
    print("better is: " + ", ".join(better), flush=True)


def spread(values, digits):
    if not values:
        return "-"
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {(max(values) - min(values)) / 2:.{digits}f}"
    return text


def as_picture(task, values):
    """A target or a prediction of one picture, and how to show it."""
    if task == "segmentation":
        labels = values.argmax(-1) if values.ndim == 3 else values
        return labels, {"cmap": "tab10", "vmin": 0, "vmax": 9}
    if task == "normals":
        return 0.5 + values * [0.5, 0.5, -0.5], {}
    if task in ("edges", "jumps"):
        return values[..., 0], {"cmap": "gray_r", "vmin": 0, "vmax": 1}
    largest = 10 if task == "depth" else 6
    return values[..., 0], {"cmap": "viridis", "vmin": 0, "vmax": largest}


def plot(picture, target, predictions, path):
    """A row for the target and for each method, a column for each task.

    Args:
        picture: The input.
        target: Dict from task to target.
        predictions: Dict from method to a dict from task to prediction.
        path: Where to write the figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {"target": target, **predictions}
    height, width = picture.shape[:2]
    panel = 1.5 * (width / height) ** 0.65
    figure, axes = plt.subplots(
        len(rows),
        1 + len(target),
        figsize=(panel * (1 + len(target)), panel * height / width * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0, 0].imshow(picture)
    axes[0, 0].set_title("input", fontsize=9)
    for row, (name, shown) in enumerate(rows.items()):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for axis, task in zip(axes[row, 1:], target, strict=True):
            pixels, options = as_picture(task, shown[task])
            axis.imshow(pixels, interpolation="nearest", **options)
            if row == 0:
                axis.set_title(task, fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    print(f"\nWrote {path}")


# -- the two problems ---------------------------------------------------------


def compare(load, options):
    """Trains with every method and seed; prints scores as they come.

    Args:
        load: Function of a seed that returns training and test data.
        options: The arguments of the command line.

    Returns:
        A dict from methods to a list of scores and seconds, one per seed, and
        a dict from methods in `options.show` to predictions of the first seed.
    """
    results, predicted = {}, {}
    for seed in options.seeds:
        train_data, (x, y) = load(seed)
        for method in options.methods:
            predictions, seconds = train(method, train_data, x, options, seed)
            scores = score(y, predictions)
            results.setdefault(method, []).append((scores, seconds))
            text = [f"{SCORES[t][0]} {v:.3f}" for t, v in scores.items()]
            print(f"seed {seed}, {method}: {', '.join(text)}", flush=True)
            if method in options.show:
                predicted.setdefault(method, predictions)
    return results, predicted


def run_scenes(options):
    def load(seed):
        train_data, _, test_data = mtlkeras.datasets.scenes(
            num_train=options.steps * options.batch_size,
            num_val=1,
            num_test=options.num_test,
            size=options.size,
            seed=seed,
        )
        return train_data, test_data

    results, predicted = compare(load, options)
    x, y = load(options.seeds[0])[1]
    print_table(results, tuple(y))
    plot(
        x[0],
        {task: targets[0] for task, targets in y.items()},
        {
            method: {task: values[0] for task, values in predictions.items()}
            for method, predictions in predicted.items()
        },
        options.output / "dense_prediction.png",
    )


def run_stereo(options):
    pair = stereo_patches.load_pair()
    train_data, (x, y) = stereo_patches.stereo_patches(*pair)
    known = np.isfinite(y["disparity"]).mean()
    print(
        f"{len(train_data[0])} training patches, {len(x)} test patches; "
        f"{known:.1%} of the test pixels are labelled"
    )
    matched = x[..., 3:4]
    median = np.nanmedian(train_data[1]["disparity"])
    results = {
        "median (no learning)": [
            (score(y, {"disparity": np.full_like(matched, median)}), 0.0)
        ],
        "block matching": [(score(y, {"disparity": matched}), 0.0)],
    }
    found, predicted = compare(lambda seed: (train_data, (x, y)), options)
    print_table({**results, **found}, tuple(y))
    print("One scene: a check on real pixels, not a score.")
    strip = stereo_patches.as_strip
    plot(
        strip(x)[..., :3],
        {task: strip(targets) for task, targets in y.items()},
        {
            method: {
                task: strip(values) for task, values in predictions.items()
            }
            for method, predictions in predicted.items()
        },
        options.output / "stereo.png",
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--steps",
        type=int,
        help="batches for each method (default: 220, 500 with --stereo)",
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--size", type=int, help="of the scenes, in pixels")
    parser.add_argument("--num-test", type=int, default=100)
    parser.add_argument(
        "--show",
        nargs="+",
        metavar="METHOD",
        default=["single", "joint", "alternating", "nash_mtl"],
        help="methods whose predictions are drawn",
    )
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--stereo", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    options.methods = options.methods or (
        QUICK_METHODS if options.quick else METHODS
    )
    options.steps = options.steps or (
        60 if options.quick else 500 if options.stereo else 220
    )
    options.size = options.size or (32 if options.quick else 64)
    options.output.mkdir(parents=True, exist_ok=True)
    print(
        f"{options.steps} steps with {options.batch_size} pictures each, Adam "
        f"with learning rate {options.learning_rate:g}, seeds {options.seeds}"
    )
    (run_stereo if options.stereo else run_scenes)(options)


if __name__ == "__main__":
    main()
