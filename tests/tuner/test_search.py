"""Searches with the tuners of Keras Tuner, from the first trial to the last."""

import json
import math
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pytest
from tuning import DATA, FIT, TASKS, build

from mtlkeras.tuner import MultiTaskHyperModel, single_task_baselines

BASELINES = {"left_mae": 0.5, "right_mae": 0.4}
TUNERS = {
    "RandomSearch": {"max_trials": 2},
    "BayesianOptimization": {"max_trials": 3, "num_initial_points": 2},
    "GridSearch": {"max_trials": 2},
    "Hyperband": {"max_epochs": 2, "factor": 2},
}
# Keras Tuner's own, and scikit-learn's, of too few points.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner"),
    pytest.mark.filterwarnings("ignore:The optimal value found:UserWarning"),
]


def make_hypermodel(build=build, **arguments):
    arguments = {
        "strategies": ["joint", "alternating"],
        "aggregators": [None, "cagrad"],
        "learning_rate": (1e-3, 1e-1),
        "baselines": BASELINES,
        **arguments,
    }
    return MultiTaskHyperModel(build, **arguments)


def make_tuner(folder, hypermodel, kind="RandomSearch", **arguments):
    if "objective" not in arguments:
        arguments["objective"] = hypermodel.objective
    return getattr(keras_tuner, kind)(
        hypermodel,
        directory=folder,
        project_name="search",
        **{**TUNERS[kind], **arguments},
    )


def trials_of(tuner):
    trials = sorted(tuner.oracle.trials.values(), key=lambda t: t.trial_id)
    assert all(trial.status == "COMPLETED" for trial in trials), [
        trial.message for trial in trials
    ]
    return trials


def best_of(trial, name):
    (observation,) = trial.metrics.get_history(name)
    return observation.mean()


def gain(values, baselines):
    """`delta_m` of errors, as its formula has it."""
    gains = [values[key] / baselines[key] - 1 for key in baselines]
    return 100 * float(np.mean(gains))


@pytest.mark.parametrize("kind", TUNERS)
def test_a_search(kind, tmp_path):
    hypermodel = make_hypermodel()
    tuner = make_tuner(tmp_path, hypermodel, kind, seed=2)
    tuner.search(*DATA, **FIT)
    trials = trials_of(tuner)
    assert len(trials) >= 2
    for trial in trials:
        values = {key: best_of(trial, f"val_{key}") for key in BASELINES}
        assert trial.score == pytest.approx(gain(values, BASELINES), rel=1e-4)
    tried = {json.dumps(trial.hyperparameters.values) for trial in trials}
    assert len(tried) == len(trials)
    (best,) = tuner.oracle.get_best_trials()
    assert best.score == min(trial.score for trial in trials)
    # The weights of its best epoch, under the strategy of the trial.
    (model,) = tuner.get_best_models()
    chosen = best.hyperparameters.values
    name = type(model.update_strategy).__name__.lower()
    assert name == chosen["strategy"]
    assert (model.aggregator is None) == (
        chosen.get("aggregator", "none") == "none"
    )
    found = model.evaluate(*DATA, batch_size=16, verbose=0, return_dict=True)
    assert gain(found, BASELINES) == pytest.approx(best.score, rel=1e-3)


@pytest.mark.parametrize(
    ("strategy", "rules"),
    [
        ("joint", {}),
        ("joint", {"aggregators": ["moco"], "balancers": ["gradnorm"]}),
        ("alternating", {}),
        ("random_groups", {}),
    ],
)
def test_a_checkpoint_brings_slots_and_state_along(strategy, rules, tmp_path):
    """What Hyperband goes on from: nothing starts anew."""
    rules = {"aggregators": [None], **rules}
    hypermodel = make_hypermodel(strategies=[strategy], **rules)
    hp = keras_tuner.HyperParameters()
    trained, loaded = hypermodel.build(hp), hypermodel.build(hp)
    for _ in range(2):
        trained.train_on_batch(*DATA)
    trained.save_weights(tmp_path / "a.weights.h5")
    loaded.load_weights(tmp_path / "a.weights.h5")
    assert int(loaded.optimizer.iterations) == 2
    for model in (trained, loaded):
        model.train_on_batch(*DATA)
    for first, second in zip(
        [*trained.variables, *trained.optimizer.variables],
        [*loaded.variables, *loaded.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


def test_a_search_goes_on_later(tmp_path, monkeypatch):
    arguments = {"baselines": "train", "strategies": ["alternating"]}
    hypermodel = make_hypermodel(aggregators=[None], **arguments)
    tuner = make_tuner(tmp_path, hypermodel, max_trials=1, seed=0)
    tuner.search(*DATA, **FIT)
    (first,) = trials_of(tuner)
    file = Path(tuner.project_dir, "single_task_baselines.json")
    written = file.read_text()
    keras.backend.clear_session()

    hypermodel = make_hypermodel(aggregators=[None], **arguments)
    monkeypatch.setattr(hypermodel.baselines, "_train", None)
    tuner = make_tuner(tmp_path, hypermodel, max_trials=2, seed=0)
    assert tuner.remaining_trials == 1
    tuner.search(*DATA, **FIT)
    trials = trials_of(tuner)
    assert len(trials) == 2
    assert trials[0].trial_id == first.trial_id
    assert trials[0].score == first.score
    assert file.read_text() == written
    values = {key: best_of(trials[1], f"val_{key}") for key in BASELINES}
    expected = gain(values, json.loads(written))
    assert trials[1].score == pytest.approx(expected, rel=1e-4)


def test_baselines_are_those_of_stock_single_task_networks(tmp_path):
    """Against Keras alone, trained on one output from the same weights."""
    seeds = iter(range(100))
    built = []

    def remembered(hp):
        keras.utils.set_random_seed(next(seeds))
        built.append(build(hp))
        start = [v.numpy() for v in built[-1].weights]
        built[-1].start = start
        return built[-1]

    hypermodel = make_hypermodel(remembered, baselines="train")
    tuner = make_tuner(tmp_path, hypermodel, max_trials=1)
    del built[:]
    tuner.search(*DATA, shuffle=False, **FIT)
    file = Path(tuner.project_dir, "single_task_baselines.json")
    found = json.loads(file.read_text())
    assert list(found) == ["left_mae", "right_mae"]
    x, y = DATA
    # The trial's own, one to learn the names of the tasks, one per task.
    for model, task in zip(built[2:], TASKS, strict=True):
        model.set_weights(model.start)
        stock = keras.Model(model.input, model.output[task])
        stock.compile(
            keras.optimizers.Adam(0.01),
            "mse",
            metrics=["mae"],
            run_eagerly=True,
        )
        history = stock.fit(
            x,
            y[task],
            validation_data=(x, y[task]),
            batch_size=16,
            epochs=2,
            shuffle=False,
            verbose=0,
        )
        best = min(history.history["val_mae"])
        assert found[f"{task}_mae"] == pytest.approx(best, rel=1e-5)


def test_what_is_trained_for(tmp_path):
    """Metrics named by the session, losses, epochs, and direction."""
    trained = []

    def with_auc(hp):
        model = build(hp, metrics=None)
        model.compile(
            "adam",
            loss={"left": "binary_crossentropy", "right": "mse"},
            metrics={"left": [keras.metrics.AUC()]},
            run_eagerly=True,
        )
        fit = model.fit

        def record(*args, **kwargs):
            trained.append((kwargs["epochs"], kwargs.get("initial_epoch", 0)))
            return fit(*args, **kwargs)

        model.fit = record
        return model

    x, y = DATA
    y = {**y, "left": (y["left"] > 0).astype("float32")}
    hypermodel = make_hypermodel(with_auc, baselines="train")
    tuner = make_tuner(tmp_path, hypermodel, "Hyperband", max_epochs=2)
    trial = tuner.oracle.create_trial("tuner0")
    tuner.run_trial(trial, x, y, **{**FIT, "validation_data": (x, y)})
    assert trained[:2] == [(2, 0), (2, 0)]
    assert trained[2] == (1, 0)
    values = next(iter(hypermodel.baselines.trained.values()))
    assert list(values) == ["left_auc", "right_loss"]
    _, directions, _ = hypermodel.baselines.settings(values)
    assert directions == {"left_auc": True, "right_loss": False}


def test_a_tuner_that_compiles_anew(tmp_path):
    """`Tuner(loss=...)` forgets the strategy; `fit` puts it in force."""
    hypermodel = make_hypermodel(strategies=["alternating"], aggregators=[None])
    tuner = make_tuner(
        tmp_path,
        hypermodel,
        max_trials=1,
        loss=dict.fromkeys(TASKS, "mae"),
        metrics=dict.fromkeys(TASKS, "mae"),
    )
    in_force = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            in_force.append(type(self.model.update_strategy).__name__)

    hp = keras_tuner.HyperParameters()
    model = tuner._build_hypermodel(hp)
    assert type(model.update_strategy).__name__ == "Joint"
    hypermodel.fit(hp, model, *DATA, callbacks=[Look()], **FIT)
    assert in_force == ["Alternating"]
    rate = hp.values["learning_rate"]
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)


def test_several_workers_agree_on_the_baselines(tmp_path):
    file = tmp_path / "single_task_baselines.json"
    first = single_task_baselines.store({"left_mae": 0.25}, file)
    second = single_task_baselines.store({"left_mae": 0.5}, file)
    assert first == second == {"left_mae": 0.25}
    assert list(tmp_path.iterdir()) == [file]


def search(folder, fit=FIT, **arguments):
    given = {}
    if "objective" in arguments:
        given["objective"] = arguments.pop("objective")
    hypermodel = make_hypermodel(**arguments)
    tuner = make_tuner(folder, hypermodel, **given)
    tuner.search(*DATA, **fit)
    return tuner


def maximum(name):
    return keras_tuner.Objective(name, "max")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": maximum("val_lfet_mae")}, r"The tasks are \['left', 'r"),
        ({"objective": maximum("val_left_iou")}, r"Received: \['val_left_iou'"),
        (
            {"objective": [maximum("val_left_mae"), maximum("val_up_mae")]},
            r"Received: \['val_up_mae'\]",
        ),
        ({"objective": None}, "The tuner has no objective"),
        (
            {"objective": maximum("val_delta_m"), "baselines": None},
            "compares with single-task baselines",
        ),
        ({"baselines": {"left_mse": 0.5}}, r"Received: \['val_left_mse'\]"),
        (
            {
                "baselines": "train",
                "higher_is_better": {"left_mae": False, "right_rmse": False},
            },
            r"Received: \['right_rmse'\], while",
        ),
        ({"fit": {"verbose": 0}}, "Pass `validation_data`"),
    ],
)
def test_an_objective_that_is_not_there_ends_the_search(
    arguments, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **arguments)


def test_logs_of_the_users_callbacks_count(tmp_path):
    class Worst(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_worst"] = max(logs[f"val_{task}_mae"] for task in TASKS)
            assert not math.isnan(logs["val_delta_m"])

    objective = keras_tuner.Objective("val_worst", "min")
    hypermodel = make_hypermodel()
    tuner = make_tuner(tmp_path, hypermodel, objective=objective, max_trials=1)
    tuner.search(*DATA, callbacks=[Worst()], **FIT)
    (trial,) = trials_of(tuner)
    assert trial.score == best_of(trial, "val_worst")


def test_baselines_of_another_search_are_refused(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    values = json.dumps({"left_loss": 0.5})
    (folder / "single_task_baselines.json").write_text(values)
    directions = {"left_mae": False}
    with pytest.raises(ValueError, match="or `overwrite=True` to begin anew"):
        search(tmp_path, baselines="train", higher_is_better=directions)
