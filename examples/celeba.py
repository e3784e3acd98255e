"""Forty attributes of faces as forty tasks, on CelebA.

The setting of Pascal et al. (https://arxiv.org/abs/2109.11678): images of
64x64, batches of 256, 15 epochs, Adam; tasks update jointly, in random groups
or each by itself, with optimizer state of their own. The learning rates are
those that the authors published for their network; ours is a small residual
network in its place, so tune them before you compare. Real numbers need a GPU
and several seeds.

    pip install "mtlkeras[gpu,tfds,plot]"
    python examples/celeba.py --download            # 1.5 GB, once
    python examples/celeba.py --strategy joint
    python examples/celeba.py --strategy random_groups --num_groups 4
    python examples/celeba.py --strategy alternating

Without the data, `--drawn` runs the same code in less than a minute on a CPU:
ten attributes of faces that `drawn_faces.py` draws from formulas, with a small
network. Such results say nothing about faces or about CelebA. It needs
`pip install "mtlkeras[tensorflow,plot]"` only.

    python examples/celeba.py --drawn               # no download

The host of CelebA limits downloads; with files that you got elsewhere, see the
documentation of `celeb_a` in TensorFlow Datasets, and pass `--data_dir`. A run
that was killed goes on where it was when started again. Writes a table of all
attributes, `results.json`, `curves.png` and the model into `--output`, and with
`--drawn` also `faces.png`.
"""

import argparse
import json
from pathlib import Path

import drawn_faces
import keras
import numpy as np

import mtlkeras

# Published for 40 tasks at once, 4 groups, and 40 tasks in turn.
LEARNING_RATES = {"joint": 1e-3, "random_groups": 5e-4, "alternating": 1e-4}
DEFAULTS = {"epochs": 15, "batch_size": 256, "image_size": 64, "width": 64}
# A small network and few updates: one larger rate for all, hardly tuned.
DRAWN_DEFAULTS = {
    "epochs": 10,
    "batch_size": 64,
    "image_size": 48,
    "width": 12,
    "rows": 2500,
    "learning_rate": 2e-3,
    "output": Path("celeba_drawn"),
}
DRAWN = "Drawn by formulas: this says nothing about faces or about CelebA."


def load(split, options, shuffle_buffer=0):
    if options.drawn:
        return drawn_faces.load(split, options, shuffle_buffer)
    return mtlkeras.datasets.from_tfds(
        "celeb_a",
        tasks=options.attributes,
        split=split,
        image_size=(options.image_size, options.image_size),
        batch_size=options.batch_size,
        shuffle_buffer=shuffle_buffer,
        seed=options.seed,
        download=options.download,
        data_dir=options.data_dir,
    )


def residual_block(x, filters, strides):
    layers = keras.layers
    shortcut = x
    for stride in (strides, 1):
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.Conv2D(
            filters, 3, strides=stride, padding="same", use_bias=False
        )(x)
    if shortcut.shape != x.shape:
        shortcut = layers.Conv2D(filters, 1, strides=strides)(shortcut)
    return layers.Add()([x, shortcut])


def build_model(image_size, attributes, width):
    """A residual network of eight convolutions; a unit per attribute."""
    layers = keras.layers
    inputs = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    for filters in (width, 2 * width, 4 * width):
        x = residual_block(x, filters, strides=2)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(8 * width, activation="relu")(x)
    outputs = {name: layers.Dense(1)(x) for name in attributes}
    return mtlkeras.MultiTaskModel(inputs, outputs)


def strategy_of(options):
    if options.strategy == "random_groups":
        return mtlkeras.strategies.RandomGroups(
            options.num_groups, seed=options.seed
        )
    return options.strategy


def scores_of(model, data):
    """Accuracy and F1 of every attribute, as arrays `[num_attributes]`."""
    labels = [y for _, y in data.as_numpy_iterator()]
    predicted = model.predict(data, verbose=0)
    names = list(model.task_names)
    true = np.concatenate(
        [np.stack([y[n][:, 0] for n in names], 1) for y in labels]
    )
    found = np.concatenate([predicted[n] for n in names], 1) > 0  # logits
    true = true > 0.5
    hits = (true & found).sum(0)
    return (true == found).mean(0), 2 * hits / np.maximum(
        true.sum(0) + found.sum(0), 1
    )


def print_table(names, accuracy, f1):
    print(f"\n{'attribute':22}{'accuracy':>10}{'F1':>8}")
    for row in zip([*names, "mean"], accuracy, f1, strict=True):
        print("{:22}{:10.3f}{:8.3f}".format(*row))


def constant_accuracy(data):
    """Mean accuracy of giving each task its more frequent answer: chance."""
    labels = [list(y.values()) for _, y in data.as_numpy_iterator()]
    shares = np.concatenate(labels, 1)[..., 0].mean(1)
    return np.maximum(shares, 1 - shares).mean()


def plot_faces(model, data, path, number=12):
    """The first faces with their attributes, and what the network got wrong."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = next(data.unbatch().batch(number).as_numpy_iterator())
    found = model.predict(x, verbose=0)
    # Below each of two rows of pictures there is room for seven lines.
    figure, axes = plt.subplots(2, number // 2, figsize=(9.4, 5.3))
    figure.subplots_adjust(0.01, 0.2, 0.99, 0.935, wspace=0.1, hspace=0.73)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (axis, picture) in enumerate(zip(axes.flat, x, strict=False)):
        axis.imshow(picture.astype("uint8"), interpolation="nearest")
        row = 0
        for name in model.task_names:
            true, seen = y[name][i, 0] > 0.5, found[name][i, 0] > 0
            if not (true or seen):
                continue
            sign = "" if true and seen else "\N{MINUS SIGN} " if true else "+ "
            axis.annotate(
                sign + name.replace("_", " "),
                (0, 0),
                xycoords="axes fraction",
                xytext=(0, -11 * row - 4),
                textcoords="offset points",
                verticalalignment="top",
                fontsize=8,
                color="#c1121f" if sign else "black",
                fontweight="bold" if sign else "normal",
            )
            row += 1
    figure.suptitle(
        f"DRAWN faces, not CelebA: the first {number} of the test set and "
        "their attributes. Red: \N{MINUS SIGN} missed, + seen but not there",
        fontsize=9,
    )
    figure.savefig(path, dpi=100, bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--strategy", choices=list(LEARNING_RATES), default="random_groups")
    add("--num_groups", type=int, default=4)
    add("--learning_rate", type=float)
    for name, value in DEFAULTS.items():
        add(
            f"--{name}",
            type=int,
            help=f"default: {value}, of --drawn: {DRAWN_DEFAULTS[name]}",
        )
    add("--attributes", nargs="+", help="default: all")
    add("--seed", type=int, default=0)
    add("--data_dir")
    add("--download", action="store_true")
    add("--drawn", action="store_true", help="drawn faces, no CelebA")
    add(
        "--rows",
        type=int,
        help=f"drawn faces to train with, default: {DRAWN_DEFAULTS['rows']}",
    )
    add("--output", type=Path, help="default: celeba or celeba_drawn")
    options = parser.parse_args(arguments)
    if options.drawn:
        unknown = set(options.attributes or ()) - set(drawn_faces.ATTRIBUTES)
        if unknown:
            parser.error(
                f"drawn faces have the attributes {drawn_faces.ATTRIBUTES}. "
                f"Received: {sorted(unknown)}"
            )
        defaults = DRAWN_DEFAULTS
    else:
        rate = LEARNING_RATES[options.strategy]
        defaults = {
            **DEFAULTS,
            "learning_rate": rate,
            "output": Path("celeba"),
        }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(arguments=None):
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)

    # 2,000 images before they are resized: 230 MB.
    train = load("train", options, shuffle_buffer=2000)
    names = list(train.element_spec[1])
    model = build_model(options.image_size, names, options.width)
    model.compile(
        keras.optimizers.Adam(options.learning_rate),
        loss={n: keras.losses.BinaryCrossentropy(True) for n in names},
        strategy=strategy_of(options),
    )
    print(
        f"{len(names)} tasks in {len(model.update_strategy.groups)} groups, "
        f"{model.count_params():,} weights"
    )
    history = model.fit(
        train,
        validation_data=load("validation", options),
        epochs=options.epochs,
        shuffle=False,  # `train` shuffles itself
        verbose=2,
        callbacks=[
            mtlkeras.callbacks.BackupAndResume(options.output / "backup")
        ],
    )
    test = load("test", options)
    accuracy, f1 = scores_of(model, test)
    print_table(names, [*accuracy, accuracy.mean()], [*f1, f1.mean()])
    results = {
        "options": {k: str(v) for k, v in vars(options).items()},
        "accuracy": dict(zip(names, accuracy.tolist(), strict=True)),
        "f1": dict(zip(names, f1.tolist(), strict=True)),
        "history": history.history,
    }
    file = options.output / "results.json"
    file.write_text(json.dumps(results, indent=1))
    figure = mtlkeras.plot.task_curves(history)
    if options.drawn:
        figure.axes[0].set_title(DRAWN, fontsize=9)
    figure.savefig(options.output / "curves.png", dpi=120)
    model.save(options.output / "model.keras")
    print(f"\nWrote {file}, curves.png and model.keras")
    if options.drawn:
        plot_faces(model, test, options.output / "faces.png")
        print(
            f"Wrote faces.png. The best constant answers have a mean accuracy "
            f"of {constant_accuracy(test):.3f}.\n{DRAWN}"
        )


if __name__ == "__main__":
    main()
