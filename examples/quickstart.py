"""Trains one network on real data with three update strategies.

Two handwritten digits overlap on one small canvas. The tasks: which digit is on
the left, which is on the right, is their sum even, which is the larger one.

Prints test accuracy and time per epoch, draws the validation curves and checks
that a saved model predicts the same after loading. Run it with

    python examples/quickstart.py

or copy it anywhere: it needs nothing but the installed package, with
`pip install "mtlkeras[tensorflow,datasets,plot]"`.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

import mtlkeras

# task -> number of classes
TWO_TASKS = {"left": 10, "right": 10}
FOUR_TASKS = {**TWO_TASKS, "sum_parity": 2, "larger": 3}

RUNS = [
    ("joint", TWO_TASKS),
    ("alternating", TWO_TASKS),
    ("random_groups", FOUR_TASKS),
]


def build_model(num_classes):
    """A small convolutional trunk and, for each task, two dense layers."""
    layers = keras.layers
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(50, activation="relu")(x)
    outputs = {}
    for task, classes in num_classes.items():
        hidden = layers.Dense(50, activation="relu")(x)
        head = layers.Dense(classes, activation="softmax", name=task)
        outputs[task] = head(hidden)
    return mtlkeras.MultiTaskModel(inputs, outputs)


class EpochTimer(keras.callbacks.Callback):
    """Seconds that each epoch of training takes, without validation."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self.start)

    def result(self):
        # The first epoch also traces the graph.
        return float(np.median(self.seconds[1:] or self.seconds))


def train(strategy, num_classes, epochs, seed):
    keras.utils.set_random_seed(seed)
    train_data, val_data, test_data = mtlkeras.datasets.multi_digits(
        tasks=tuple(num_classes)
    )
    model = build_model(num_classes)
    model.compile(
        optimizer="adam",
        loss={task: "sparse_categorical_crossentropy" for task in num_classes},
        metrics={task: "accuracy" for task in num_classes},
    )
    timer = EpochTimer()
    history = model.fit(
        *train_data,
        validation_data=val_data,
        strategy=strategy,
        epochs=epochs,
        batch_size=64,
        verbose=0,
        callbacks=[timer],
    )
    scores = model.evaluate(*test_data, verbose=0, return_dict=True)
    return {
        "strategy": strategy,
        "model": model,
        "x_test": test_data[0],
        "curves": {
            task: history.history[f"val_{task}_accuracy"]
            for task in num_classes
        },
        "accuracy": {task: scores[f"{task}_accuracy"] for task in num_classes},
        "seconds": timer.result(),
    }


def print_table(results):
    header = ["strategy", "tasks", *FOUR_TASKS, "s/epoch"]
    print("\nTest accuracy, and training time per epoch")
    print("".join(f"{name:>14}" for name in header))
    for result in results:
        accuracy = [
            f"{result['accuracy'][task]:.3f}"
            if task in result["accuracy"]
            else "-"
            for task in FOUR_TASKS
        ]
        row = [
            result["strategy"],
            len(result["accuracy"]),
            *accuracy,
            f"{result['seconds']:.2f}",
        ]
        print("".join(f"{cell:>14}" for cell in row))


def plot_curves(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "left": "left: which digit?",
        "right": "right: which digit?",
        "sum_parity": "sum_parity: even or odd?",
        "larger": "larger: which side?",
    }
    colors = {
        "joint": "#7f7f7f",
        "alternating": "#d1495b",
        "random_groups": "#00798c",
    }
    figure, axes = plt.subplots(
        1, 4, figsize=(12, 3.4), sharey=True, layout="constrained"
    )
    for axis, task in zip(axes, FOUR_TASKS, strict=True):
        for result in results:
            if task in result["curves"]:
                curve = result["curves"][task]
                axis.plot(
                    range(1, len(curve) + 1),
                    curve,
                    color=colors[result["strategy"]],
                    linewidth=2,
                    marker="o",
                    markersize=3,
                )
        axis.set_title(titles[task], fontsize=11)
        axis.set_xlabel("epoch")
        axis.grid(color="#e5e5e5")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("validation accuracy")
    figure.legend(
        handles=[
            plt.Line2D(
                [],
                [],
                color=colors[result["strategy"]],
                linewidth=2,
                label=f"{result['strategy']}, {len(result['curves'])} tasks",
            )
            for result in results
        ],
        loc="outside lower center",
        ncols=len(results),
        frameon=False,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check_saved(result, path):
    """Saves the model, loads it back and compares the predictions."""
    result["model"].save(path)
    loaded = keras.saving.load_model(path)
    expected = result["model"].predict(result["x_test"], verbose=0)
    found = loaded.predict(result["x_test"], verbose=0)
    for task in expected:
        np.testing.assert_array_equal(found[task], expected[task])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    results = []
    for strategy, num_classes in RUNS:
        print(f"Training {', '.join(num_classes)} with {strategy} ...")
        results.append(
            train(strategy, num_classes, options.epochs, options.seed)
        )
    print_table(results)
    print("One seed, one learning rate: a demonstration, not a comparison.")

    picture = options.output / "quickstart.png"
    plot_curves(results, picture)
    print(f"\nWrote {picture}")

    saved = options.output / "quickstart.keras"
    check_saved(results[-1], saved)
    print(f"Wrote {saved}; loaded back, it predicts the same")


if __name__ == "__main__":
    main()
