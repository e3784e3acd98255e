"""Lets Keras Tuner choose how four tasks are trained together.

A search over strategy, aggregator, balancer, their own hyperparameters and the
learning rate, for the two overlapping digits of `datasets.multi_digits`. The
objective is `val_delta_m`: the mean relative gain in validation error over one
network per task, which are trained first, with the epochs of one trial each.

Prints a table of the trials, best first, draws them as parallel coordinates and
measures the best model on the test set, which nothing was chosen by. Run it
with

    python examples/tune.py            # 20 trials of 8 epochs
    python examples/tune.py --quick    # 12 short ones: about a minute

`pip install "mtlkeras[tensorflow,datasets,plot,tuner]"` is all it needs. A
search that was interrupted goes on where it was when it is run again.
"""

import argparse
from pathlib import Path

import keras
import keras_tuner
import numpy as np

import mtlkeras

TASKS = {"left": 10, "right": 10, "sum_parity": 2, "larger": 3}
TUNERS = {
    "random": (keras_tuner.RandomSearch, "max_trials"),
    "bayesian": (keras_tuner.BayesianOptimization, "max_trials"),
    "hyperband": (keras_tuner.Hyperband, None),
}
AXES = ["strategy", "aggregator", "balancer", "learning_rate", "units"]


def error(y_true, y_pred):
    """Share of wrong answers; its gain over a baseline means something where
    accuracies are all near 1."""
    found = keras.ops.argmax(y_pred, -1)
    wrong = keras.ops.not_equal(keras.ops.cast(y_true, found.dtype), found)
    return keras.ops.cast(wrong, "float32")


def build(hp):
    """A convolutional trunk, whose width is searched, too, and four heads."""
    layers = keras.layers
    units = hp.Choice("units", [32, 64, 128])
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(units, activation="relu")(x)
    heads = {
        task: layers.Dense(classes, activation="softmax")(x)
        for task, classes in TASKS.items()
    }
    model = mtlkeras.MultiTaskModel(inputs, heads)
    model.compile(
        "adam",
        dict.fromkeys(TASKS, "sparse_categorical_crossentropy"),
        metrics={task: [error] for task in TASKS},
    )
    return model


def make_tuner(options):
    hypermodel = mtlkeras.tuner.MultiTaskHyperModel(
        build,
        strategies=("joint", "alternating", "random_groups"),
        aggregators=(None, "cagrad", "upgrad"),
        balancers=(None, "uncertainty_weighting"),
        learning_rate=(3e-4, 1e-2),
        baselines="train",
        higher_is_better={f"{task}_error": False for task in TASKS},
        baseline_epochs=options.epochs,
    )
    tuner, limit = TUNERS[options.tuner]
    amount = (
        {limit: options.trials} if limit else {"max_epochs": options.epochs}
    )
    return tuner(
        hypermodel,
        hypermodel.objective,
        directory=options.folder,
        project_name=options.tuner,
        seed=options.seed,
        **amount,
    )


def completed_trials(tuner):
    """Those with a score, best first."""
    trials = tuner.oracle.get_best_trials(len(tuner.oracle.trials))
    return [trial for trial in trials if trial.score is not None]


def print_trials(trials):
    """One row per trial: its score, what was chosen, its errors."""
    names = [name for name in AXES if name != "learning_rate"]
    header = ["val_delta_m", "rate", *names, *TASKS]
    rows = []
    for trial in trials:
        chosen = trial.hyperparameters.values
        rows.append(
            [
                f"{trial.score:+.1f}",
                f"{chosen['learning_rate']:.4f}",
                *(str(chosen.get(name, "-")) for name in names),
                *(
                    f"{trial.metrics.get_last_value(f'val_{task}_error'):.3f}"
                    for task in TASKS
                ),
            ]
        )
    widths = [
        max(map(len, column)) for column in zip(header, *rows, strict=True)
    ]
    for row in [header, *rows]:
        print(
            "  ".join(
                cell.rjust(w) for cell, w in zip(row, widths, strict=True)
            )
        )


def plot_trials(trials, path):
    """A line per trial through what was chosen, coloured by its score."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [trial.hyperparameters.values for trial in trials]
    scores = np.array([trial.score for trial in trials])
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    # A trial far off would leave one colour to all others.
    norm = plt.Normalize(scores.min(), np.percentile(scores, 80))
    colors = plt.get_cmap("viridis")(norm(scores))
    generator = np.random.default_rng(0)
    positions = np.empty((len(trials), len(AXES) + 1))
    for column, name in enumerate(AXES):
        positions[:, column] = draw_axis(
            axis, column, [values.get(name, "-") for values in chosen]
        )
    # The best is on top.
    positions[:, -1] = (scores.max() - scores) / max(np.ptp(scores), 1e-9)
    last = len(AXES)
    for share in (0, 0.5, 1):
        value = scores.max() - share * np.ptp(scores)
        axis.text(last + 0.04, share, f"{value:+.0f} %", va="center")
    # Lines through the same choices lie beside one another.
    positions[:, :-1] += generator.uniform(-0.02, 0.02, positions[:, :-1].shape)
    for row in np.argsort(-scores):
        best = row == scores.argmin()
        axis.plot(
            positions[row],
            color=colors[row],
            linewidth=3.5 if best else 1.4,
            alpha=1.0 if best else 0.75,
        )
    for column in range(last + 1):
        axis.axvline(column, color="#555555", linewidth=0.8, zorder=0)
    titles = [*AXES, "val_delta_m"]
    axis.set_xticks(range(last + 1), titles)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.set_xlim(-0.3, last + 0.55)
    axis.set_ylim(-0.08, 1.08)
    axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_axis(axis, column, values):
    """Labels of an axis; returns where the values are on it, from 0 to 1."""
    if any(isinstance(value, float) for value in values):
        scaled = np.log10(values)
        low, high = scaled.min(), scaled.max()
        found = (scaled - low) / max(high - low, 1e-9)
        labels = {f"{10**low:.4f}": 0.0, f"{10**high:.4f}": 1.0}
    else:
        kinds = sorted(set(values), key=lambda v: (isinstance(v, str), v))
        places = np.linspace(0, 1, len(kinds)) if len(kinds) > 1 else [0.5]
        by_kind = dict(zip(kinds, places, strict=True))
        found = [by_kind[value] for value in values]
        labels = {str(kind): place for kind, place in by_kind.items()}
    for label, place in labels.items():
        axis.text(
            column + 0.04,
            place,
            label,
            fontsize="small",
            bbox={
                "facecolor": "white",
                "alpha": 0.75,
                "linewidth": 0,
                "pad": 1,
            },
            va="center",
        )
    return found


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="twelve short trials")
    add("--tuner", choices=TUNERS, default="random")
    add("--trials", type=int, default=20, help="not with hyperband")
    add("--epochs", type=int, default=8)
    add("--rows", type=int, default=6000, help="pairs to train on")
    add("--seed", type=int, default=0, help="of the search")
    add("--folder", type=Path, default=Path("tune"), help="of the trials")
    add("--output", type=Path, default=Path("tune.png"))
    options = parser.parse_args(arguments)
    if options.quick:
        options.trials, options.epochs, options.rows = 12, 2, 1000
    return options


def main(arguments=None):
    options = parse(arguments)
    keras.utils.set_random_seed(options.seed)
    data = mtlkeras.datasets.multi_digits(
        num_train=options.rows, tasks=tuple(TASKS)
    )
    tuner = make_tuner(options)
    tuner.search(
        *data[0],
        validation_data=data[1],
        epochs=options.epochs,
        batch_size=128,
        verbose=0,
    )
    trials = completed_trials(tuner)
    print_trials(trials)
    plot_trials(trials, options.output)
    print(f"Wrote {options.output}")

    (values,) = tuner.hypermodel.baselines.trained.values() or [None]
    (model,) = tuner.get_best_models()
    found = model.evaluate(*data[2], verbose=0, return_dict=True)
    print(f"The best of {len(trials)} trials: {model.update_strategy}")
    for task in TASKS:
        print(f"{task:>12}: test error {found[f'{task}_error']:.3f}")
    if values is not None:
        print("Validation errors of the single-task networks:", values)


if __name__ == "__main__":
    main()
