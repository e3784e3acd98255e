"""Tunes the plain sum of the losses: the baseline that any method has to beat.

Kurin et al. (2022) found that the sum of the task losses, given the usual
regularization of single-task learning and tuned like its rivals, matches or
beats many specialized multi-task optimizers. So before a comparison says
anything, the sum must have had the same care. This script gives it:

- a random search over learning rate, weight decay and dropout, for every
  method with the same number of trials, each with early stopping by the mean
  validation accuracy;
- the best setting of every method, chosen on validation, trained once more
  with several seeds; the test set is looked at only then.

Two overlapping digits on one canvas, four tasks (`datasets.multi_digits`).
Run it with

    python examples/unitary_scalarization.py            # about 15 minutes
    python examples/unitary_scalarization.py --quick    # about a minute

`pip install "mtlkeras[tensorflow,datasets,plot]"` is all it needs.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

import mtlkeras

TASKS = {"left": 10, "right": 10, "sum_parity": 2, "larger": 3}

# What is compared: arguments of `fit`. The first is the baseline.
METHODS = {
    "sum": {},
    "alternating": {"strategy": "alternating"},
    "uncertainty weighting": {"balancer": "uncertainty_weighting"},
    "UPGrad at features": {
        "aggregator": mtlkeras.aggregators.UPGrad(gradients_at="features")
    },
}


def build_model(dropout):
    layers = keras.layers
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(dropout)(layers.Dense(50, activation="relu")(x))
    heads = {}
    for task, classes in TASKS.items():
        hidden = layers.Dense(50, activation="relu")(x)
        heads[task] = layers.Dense(classes, activation="softmax")(hidden)
    return mtlkeras.MultiTaskModel(inputs, heads)


class MeanAccuracy(keras.callbacks.Callback):
    """Puts the mean validation accuracy of the tasks into the logs."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_mean_accuracy"] = float(
            np.mean([logs[f"val_{task}_accuracy"] for task in TASKS])
        )


def draw_setting(generator):
    """One trial of the random search, in the ranges of the paper's scripts."""
    return {
        "learning_rate": float(10 ** generator.uniform(-3.3, -2)),
        "weight_decay": float(10 ** generator.uniform(-5, -2)),
        "dropout": float(generator.choice([0.0, 0.25, 0.5])),
    }


def train(method, setting, data, seed, epochs):
    """Best mean validation accuracy, and the model at that epoch."""
    keras.utils.set_random_seed(seed)
    model = build_model(setting["dropout"])
    model.compile(
        keras.optimizers.AdamW(
            setting["learning_rate"], weight_decay=setting["weight_decay"]
        ),
        dict.fromkeys(TASKS, "sparse_categorical_crossentropy"),
        metrics=dict.fromkeys(TASKS, "accuracy"),
    )
    stopping = keras.callbacks.EarlyStopping(
        "val_mean_accuracy",
        mode="max",
        patience=5,
        restore_best_weights=True,
    )
    history = model.fit(
        *data[0],
        validation_data=data[1],
        batch_size=128,
        epochs=epochs,
        verbose=0,
        callbacks=[MeanAccuracy(), stopping],
        **METHODS[method],
    )
    return max(history.history["val_mean_accuracy"]), model


def compare(options):
    """List with a dict of results for every method."""
    data = mtlkeras.datasets.multi_digits(
        num_train=options.rows, tasks=tuple(TASKS)
    )
    # The same settings for all: no method is lucky in what it gets to try.
    generator = np.random.default_rng(options.seed)
    settings = [draw_setting(generator) for _ in range(options.trials)]
    results = []
    for method in METHODS:
        started = time.perf_counter()
        scores = [
            train(method, setting, data, options.seed, options.epochs)[0]
            for setting in settings
        ]
        seconds = time.perf_counter() - started
        best = settings[int(np.argmax(scores))]
        tests = []
        for seed in range(options.seeds):
            _, model = train(method, best, data, seed + 1, options.epochs)
            found = model.evaluate(*data[2], verbose=0, return_dict=True)
            tests.append([found[f"{task}_accuracy"] for task in TASKS])
        results.append(
            {
                "method": method,
                "trials": scores,
                "setting": best,
                "test": np.array(tests),
                "seconds": seconds / options.trials,
            }
        )
        print_row(results[-1])
    return results


def print_row(result):
    setting = result["setting"]
    means = result["test"].mean(1)
    print(
        f"{result['method']:>22}  {means.mean():.4f} +- {spread(means):.4f}   "
        + "  ".join(f"{value:.3f}" for value in result["test"].mean(0))
        + f"   lr {setting['learning_rate']:.4f}, decay "
        f"{setting['weight_decay']:.5f}, dropout {setting['dropout']:.2f}   "
        f"{result['seconds']:.1f} s a trial",
        flush=True,
    )


def spread(values):
    """Standard deviation over seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def plot(results, path):
    """Trials on validation, and the chosen settings on test."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 3), sharey=True, layout="constrained"
    )
    names = [result["method"] for result in results]
    for row, result in enumerate(results):
        color = "#7f7f7f" if row == 0 else "#00798c"
        trials, tests = result["trials"], result["test"].mean(1)
        axes[0].plot(trials, [row] * len(trials), "o", color=color, alpha=0.5)
        axes[0].plot(max(trials), row, "|", color="black", markersize=14)
        axes[1].plot(tests, [row] * len(tests), "o", color=color, alpha=0.7)
        axes[1].plot(tests.mean(), row, "|", color="black", markersize=14)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_title("random search: every trial, and the best", fontsize=11)
    axes[0].set_xlabel("mean validation accuracy of the tasks")
    axes[1].set_title("the best setting: every seed, and the mean", fontsize=11)
    axes[1].set_xlabel("mean test accuracy of the tasks")
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        axis.locator_params(axis="x", nbins=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two trials, few epochs")
    add("--trials", type=int, default=8)
    add("--seeds", type=int, default=5)
    add("--epochs", type=int, default=40, help="at most")
    add("--rows", type=int, default=6000, help="pairs to train on")
    add("--seed", type=int, default=0, help="of the random search")
    add("--output", type=Path, default=Path("unitary_scalarization.png"))
    options = parser.parse_args(arguments)
    if options.quick:
        options.trials, options.seeds, options.epochs = 2, 2, 3
        options.rows = 1000
    return options


def main(arguments=None):
    options = parse(arguments)
    print(
        f"{options.trials} trials and {options.seeds} seeds per method; mean "
        f"test accuracy +- its standard deviation over seeds, then "
        f"{', '.join(TASKS)}"
    )
    results = compare(options)
    baseline = results[0]["test"].mean()
    ahead = [r["method"] for r in results[1:] if r["test"].mean() > baseline]
    print(
        "Ahead of the tuned sum on the mean of the seeds: "
        f"{', '.join(ahead) or 'none'}. Differences below twice the standard "
        "deviation are no evidence."
    )
    plot(results, options.output)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
