"""Glaucoma from pictures of the back of the eye, with three more tasks.

The method of Pascal et al., 2022 (https://doi.org/10.1038/s41598-022-16262-8):
one U-Net tells glaucoma from its bottleneck (focal loss), segments optic disc
and optic cup (binary cross-entropy) and finds the fovea (heat map, mean
absolute error). The tasks take turns within each batch, each with an Adam of
its own: `strategy="alternating"`. From the predicted masks the vertical
cup-to-disc ratio is measured, and a logistic regression on it gives a second
opinion on glaucoma; as in the paper's code the mean of both is scored, too. Run
it with

    python examples/glaucoma.py

The pictures are SYNTHETIC (see `fundus.py`): the results say nothing about
medicine. With `--refuge FOLDER` they are those of the REFUGE challenge, which
cannot be shipped here; see `refuge.py` for the files. `--quick` takes less than
a minute. Needs `pip install "mtlkeras[tensorflow,datasets,plot]"`, and openpyxl
for the tables of REFUGE. A demonstration of software, not a medical device.
"""

import argparse
from pathlib import Path

import fundus
import keras
import numpy as np
import refuge
from keras import layers
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import mtlkeras

LOSSES = {
    # alpha = 1 in the paper's code: no balancing of the classes.
    "glaucoma": keras.losses.BinaryFocalCrossentropy(gamma=2.0),
    "disc": keras.losses.BinaryCrossentropy(),
    "cup": keras.losses.BinaryCrossentropy(),
    "fovea": keras.losses.MeanAbsoluteError(),
}


def build_model(size, filters):
    """A U-Net; glaucoma leaves it at the bottleneck, the maps at its end."""

    def convolve(x, channels):
        for _ in range(2):
            x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
            # The same in training and in use, whatever else is in the batch.
            x = layers.GroupNormalization(groups=max(1, filters // 2))(x)
            x = layers.ReLU()(x)
        return x

    inputs = x = keras.Input((size, size, 3))
    skips = []
    for factor in (1, 2, 4, 8):
        x = convolve(x, factor * filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolve(x, 8 * filters)
    # The largest values, too: the disc is a small part of the picture.
    pooled = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    )
    hidden = layers.Dense(32, activation="relu")(pooled)
    outputs = {"glaucoma": layers.Dense(1, activation="sigmoid")(hidden)}
    for factor in (8, 4, 2, 1):
        x = layers.UpSampling2D()(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = convolve(x, factor * filters)
    for task in ("disc", "cup", "fovea"):
        outputs[task] = layers.Conv2D(
            1,
            1,
            activation="sigmoid",
            # Nearly all pixels are background. From an even start, an absolute
            # error spends its first epochs on that.
            bias_initializer=keras.initializers.Constant(-4.0),
        )(x)
    return mtlkeras.MultiTaskModel(inputs, outputs)


# -- what is measured on the maps ---------------------------------------------


def largest_part(mask):
    """The largest connected part of a mask `[size, size]`."""
    parts, number = ndimage.label(mask)
    if number == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def vertical_ratio(disc, cup):
    """Vertical cup-to-disc ratios of masks or probabilities `[n, s, s, 1]`.

    NaN where one of them is unlabelled.
    """
    heights = []
    for maps in (cup, disc):
        masks = [largest_part(values[..., 0] > 0.5) for values in maps]
        heights.append([mask.any(1).sum() for mask in masks])
    cup_height, disc_height = np.array(heights, "float32")
    # Without a disc there is no ratio; 0 then calls the eye healthy.
    ratio = cup_height / np.maximum(disc_height, 1)
    return np.where(np.isnan(disc + cup).any((1, 2, 3)), np.nan, ratio)


def dice(y, prediction):
    """Mean over pictures of the overlap of masks, 1 if they are equal."""
    true, found = (values[..., 0] > 0.5 for values in (y, prediction))
    both = 2 * (true & found).sum((1, 2))
    either = true.sum((1, 2)) + found.sum((1, 2))
    known = ~np.isnan(y).any((1, 2, 3))
    return float((both / np.maximum(either, 1))[known].mean())


def fovea_error(y, prediction):
    """Mean distance of the heat maps' maxima, in percent of the width."""
    size = y.shape[1]
    known = ~np.isnan(y).any((1, 2, 3))
    positions = [
        np.stack(np.divmod(maps[known].reshape(-1, size**2).argmax(1), size))
        for maps in (y, prediction)
    ]
    distance = np.linalg.norm(positions[0] - positions[1], axis=0)
    return float(100 * distance.mean() / size)


def auc(label, values):
    known = ~np.isnan(label + values)
    return roc_auc_score(label[known], values[known])


# -- training and report ------------------------------------------------------


def load(options, seed):
    """A dict from split to `x, y, ratio`."""
    if options.refuge:
        return refuge.load_refuge(options.refuge, options.size)
    first, splits = 0, {}
    for split, share in (("train", 1.0), ("val", 0.25), ("test", 0.5)):
        number = max(16, round(share * options.pictures))
        splits[split] = fundus.fundus_pictures(
            number, options.size, seed, first
        )
        first += number
    return splits


def run(options, seed, say):
    """Trains and reports.

    Returns:
        Test pictures, their targets, predictions and measured ratios.
    """
    splits = load(options, seed)
    (x, y, _), (x_val, y_val, _), (x_test, y_test, true_ratio) = splits.values()
    keras.utils.set_random_seed(seed)
    model = build_model(options.size, options.filters)
    model.compile(
        keras.optimizers.Adam(options.learning_rate),
        loss=LOSSES,
        metrics={"glaucoma": keras.metrics.AUC(name="auc")},
    )
    model.fit(
        x,
        y,
        validation_data=(x_val, y_val),
        strategy=options.strategy,
        epochs=options.epochs,
        batch_size=options.batch_size,
        verbose=2 if options.verbose else 0,
    )

    def predict(pictures):
        found = model.predict(pictures, batch_size=16, verbose=0)
        return found, vertical_ratio(found["disc"], found["cup"])

    found, ratio = predict(x_test)
    # The regression learns from ratios as the network measures them.
    chosen = ~np.isnan(y["glaucoma"][:, 0])
    regression = LogisticRegression().fit(
        predict(x[chosen])[1][:, None], y["glaucoma"][chosen, 0]
    )
    opinion = regression.predict_proba(ratio[:, None])[:, 1]

    measured = vertical_ratio(y_test["disc"], y_test["cup"])
    if true_ratio is None:
        true_ratio, whose = measured, "that of the experts' masks"
    else:
        whose = "the true one, which the noise of the labels bounds"
    label = y_test["glaucoma"][:, 0]
    say(
        f"seed {seed}, strategy {options.strategy}: {len(x)} training and "
        f"{len(x_test)} test pictures, {np.nanmean(label):.0%} with glaucoma"
    )
    for name, values in (
        ("network", found["glaucoma"][:, 0]),
        ("logistic regression on the measured ratio", opinion),
        ("mean of both", (found["glaucoma"][:, 0] + opinion) / 2),
        (f"ratio alone: {whose}", true_ratio),
    ):
        say(f"  AUC {auc(label, values):.3f}  {name}")
    ratio_error = np.nanmean(np.abs(ratio - measured))
    say(
        f"  Dice disc {dice(y_test['disc'], found['disc']):.3f}, cup "
        f"{dice(y_test['cup'], found['cup']):.3f}"
    )
    say(f"  error of the ratio {ratio_error:.3f}")
    distance = fovea_error(y_test["fovea"], found["fovea"])
    say(f"  error of the fovea {distance:.1f} % of the picture's width")
    return x_test, y_test, found, ratio


def plot(pictures, y, found, ratio, kind, path):
    """Predictions, as lines, over some pictures; targets are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # As many with as without glaucoma, in the order of the test set.
    label = y["glaucoma"][:, 0]
    shown = [*np.flatnonzero(label == 0)[:3], *np.flatnonzero(label == 1)[:3]]
    figure, axes = plt.subplots(2, 3, figsize=(8, 6), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, i in zip(axes.flat, shown, strict=False):
        axis.imshow(pictures[i], interpolation="nearest")
        for task, color in (("disc", "#00e5ff"), ("cup", "#ffffff")):
            for values, style in ((y, "dotted"), (found, "solid")):
                mask = values[task][i, ..., 0]
                if np.nanmin(mask) < 0.5 < np.nanmax(mask):
                    axis.contour(
                        mask,
                        [0.5],
                        colors=color,
                        linestyles=style,
                        linewidths=1.1,
                    )
        heat = found["fovea"][i, ..., 0]
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        axis.plot(column, row, "+", color="#ffe600", markersize=9)
        axis.set_title(
            f"glaucoma: {'yes' if label[i] else 'no'}, network "
            f"{found['glaucoma'][i, 0]:.2f}\ncup to disc {ratio[i]:.2f}",
            fontsize=8,
        )
    figure.suptitle(
        f"{kind} pictures. Predicted disc, cup (solid; targets dotted) and "
        "fovea (+)",
        fontsize=10,
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--refuge", type=Path, metavar="FOLDER")
    parser.add_argument("--strategy", default="alternating")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--size", type=int, help="of the pictures, a multiple of 16"
    )
    parser.add_argument("--filters", type=int, help="of the first convolution")
    parser.add_argument(
        "--pictures", type=int, help="synthetic ones to train with"
    )
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    kind = "REFUGE" if options.refuge else "SYNTHETIC"
    # The paper's 256 pixels, 300 epochs and 1e-4 suit photographs and a GPU.
    defaults = {
        "REFUGE": {"size": 256, "filters": 32, "epochs": 300, "rate": 1e-4},
        "SYNTHETIC": {"size": 96, "filters": 8, "epochs": 12, "rate": 1e-3},
    }[kind]
    if options.quick:
        defaults = {"size": 64, "filters": 8, "epochs": 5, "rate": 2e-3}
    options.size = options.size or defaults["size"]
    options.filters = options.filters or defaults["filters"]
    options.epochs = options.epochs or defaults["epochs"]
    options.learning_rate = options.learning_rate or defaults["rate"]
    options.pictures = options.pictures or (160 if options.quick else 400)
    options.output.mkdir(parents=True, exist_ok=True)

    def say(text):
        print(f"[{kind}] {text}", flush=True)

    for seed in options.seeds:
        result = run(options, seed, say)
        if seed == options.seeds[0]:
            picture = options.output / f"glaucoma_{kind.lower()}.png"
            plot(*result, kind, picture)
            say(f"Wrote {picture}")
    if kind == "SYNTHETIC":
        say("Drawn by formulas: these numbers say nothing about medicine.")


if __name__ == "__main__":
    main()
