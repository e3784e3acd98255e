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

The host of CelebA limits downloads; with files that you got elsewhere, see the
documentation of `celeb_a` in TensorFlow Datasets, and pass `--data_dir`. A run
that was killed goes on where it was when started again. Writes a table of all
attributes, `results.json`, `curves.png` and the model into `--output`.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np

import mtlkeras

# Published for 40 tasks at once, 4 groups, and 40 tasks in turn.
LEARNING_RATES = {"joint": 1e-3, "random_groups": 5e-4, "alternating": 1e-4}


def load(split, options, shuffle_buffer=0):
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


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--strategy", choices=list(LEARNING_RATES), default="random_groups"
    )
    parser.add_argument("--num_groups", type=int, default=4)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--attributes", nargs="+", help="default: all 40")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("celeba"))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)

    # 2,000 images before they are resized: 230 MB.
    train = load("train", options, shuffle_buffer=2000)
    names = list(train.element_spec[1])
    model = build_model(options.image_size, names, options.width)
    rate = options.learning_rate or LEARNING_RATES[options.strategy]
    model.compile(
        keras.optimizers.Adam(rate),
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
    accuracy, f1 = scores_of(model, load("test", options))
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
    figure.savefig(options.output / "curves.png", dpi=120)
    model.save(options.output / "model.keras")
    print(f"\nWrote {file}, curves.png and model.keras")


if __name__ == "__main__":
    main()
