"""What is saved comes back, and training goes on with the same bits."""

import json

import keras
import numpy as np
import pytest
from keras.optimizers import schedules
from nets import (
    TASKS,
    Subclassed,
    assert_same_bits,
    losses,
    mlp,
    regression_data,
    values,
)

from mtlkeras import MultiTaskModel
from mtlkeras.strategies import (
    AffinityGroups,
    Alternating,
    Grouped,
    Joint,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)

STRATEGIES = {
    "joint": Joint,
    "alternating": lambda: Alternating(task_learning_rates={"left": 0.5}),
    "common_slot": lambda: Alternating(task_slots=False),
    "shuffled": lambda: Alternating(shuffle=True, seed=1),
    "grouped": lambda: Grouped([["right", "left"], ["middle"]]),
    "random_groups": lambda: RandomGroups(2, seed=1),
    "per_epoch": lambda: RandomGroups(2, "epoch", seed=1),
    "per_step": lambda: RandomGroups(2, "step", seed=1),
    "round_robin": RoundRobin,
    "sampled": lambda: Sampled(
        {"left": 0.4, "middle": 0.3, "right": 0.3}, seed=2
    ),
    "multi_adaptive": lambda: MultiAdaptive("mean"),
    "affinity_groups": lambda: AffinityGroups(0.5, 0, 1, "median", seed=1),
}


def data():
    return regression_data(rows=8)


def compiled(model=None, strategy="alternating", optimizer=None, **arguments):
    model = model or mlp(batch_norm=True)
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        losses(),
        strategy=strategy,
        run_eagerly=True,
        **arguments,
    )
    return model


def fit(model, epochs=1, **arguments):
    """Epochs of one batch."""
    x, y = data()
    # Where strategies draw their own numbers, this seed must not matter.
    keras.utils.set_random_seed(epochs)
    return model.fit(
        x,
        y,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **arguments,
    ).history


def state(model):
    strategy = getattr(model, "update_strategy", None)  # stock Keras has none
    measured = getattr(getattr(strategy, "state", None), "variables", [])
    return values([*model.variables, *model.optimizer.variables, *measured])


def slots(model):
    """All variables of a model's optimizer, with their paths."""
    return [v.path.partition("/")[2] for v in model.optimizer.variables]


def assert_same_logs(history, expected):
    """A task that was never drawn has a loss of NaN."""
    assert list(history) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(history[key], value, err_msg=key)


def as_json(config):
    """Keras reads tuples back as lists."""
    return json.dumps(config, sort_keys=True)


# -- files ---------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_keras_file(strategy, tmp_path):
    model = compiled(strategy=STRATEGIES[strategy](), metrics={"left": ["mae"]})
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert_same_bits(state(loaded), state(model))
    assert slots(loaded) == slots(model)
    assert loaded.update_strategy == model.update_strategy
    assert loaded.update_strategy.groups == model.update_strategy.groups
    assert as_json(loaded.get_config()) == as_json(model.get_config())
    assert loaded.get_compile_config() == model.get_compile_config()
    assert int(loaded.optimizer.iterations) == 1
    assert_same_logs(fit(loaded), fit(model))
    assert_same_bits(state(loaded), state(model))
    assert int(loaded.optimizer.iterations) == 2
    x, _ = data()
    assert_same_bits(
        list(loaded.predict(x, verbose=0).values()),
        list(model.predict(x, verbose=0).values()),
    )


def test_everything_else_that_compile_took(tmp_path):
    """Loss weights, metrics, the loss's own arguments, the way to run."""
    model = mlp()
    model.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=1.0),
        loss={
            "left": keras.losses.MeanSquaredError(reduction="sum"),
            "middle": "mse",
            "right": "mae",
        },
        loss_weights={"left": 1.0, "middle": 1.0, "right": 1.0},
        metrics={"right": [keras.metrics.MeanSquaredError(name="square")]},
        weighted_metrics={"left": ["mae"]},
        run_eagerly=True,
        strategy="alternating",
        on_nonfinite="raise",
    )
    expected = fit(model)
    assert "right_square" in expected
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_compile_config() == model.get_compile_config()
    assert loaded.run_eagerly
    assert_same_logs(fit(loaded), fit(model))
    assert_same_bits(state(loaded), state(model))
    x, y = data()
    y["left"][:] = np.inf
    with pytest.raises(FloatingPointError, match="left"):
        loaded.train_on_batch(x, y)


def test_uncompiled(tmp_path):
    model = mlp()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.task_names == TASKS
    assert not loaded.compiled
    assert_same_bits(values(loaded.weights), values(model.weights))
    trained = compiled()
    fit(trained)
    trained.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras", compile=False)
    assert not loaded.compiled
    assert_same_bits(values(loaded.weights), values(trained.weights))


@pytest.mark.parametrize("structure", ["list", "single"])
def test_other_structures(structure, tmp_path):
    x, y = data()
    target = list(y.values()) if structure == "list" else y["left"]
    model = mlp(structure=structure)
    model.compile(
        "adam",
        ["mse"] * 3 if structure == "list" else "mse",
        strategy="alternating",
        run_eagerly=True,
    )
    model.train_on_batch(x, target)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.task_names == model.task_names
    assert_same_bits(state(loaded), state(model))
    for each in (model, loaded):
        each.train_on_batch(x, target)
    assert_same_bits(state(loaded), state(model))


@pytest.mark.parametrize(
    "strategy", ["alternating", "per_epoch", "sampled", "affinity_groups"]
)
def test_weights_file(strategy, tmp_path):
    """Into a model that was compiled with the same strategy."""
    model = compiled(strategy=STRATEGIES[strategy]())
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(mlp(seed=7, batch_norm=True), STRATEGIES[strategy]())
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_bits(state(other), state(model))
    assert_same_logs(fit(other), fit(model))
    assert_same_bits(state(other), state(model))


def test_weights_file_of_another_strategy(tmp_path):
    """The weights come; the optimizer state does not, and one is told."""
    model = compiled(strategy="joint")
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(mlp(seed=7, batch_norm=True))
    with pytest.warns(UserWarning, match="another strategy|optimizer"):
        other.load_weights(tmp_path / "model.weights.h5")
    assert_same_bits(values(other.variables), values(model.variables))
    assert int(other.optimizer.iterations) == 0
    fit(other)
    assert int(other.optimizer.iterations) == 1


@pytest.mark.parametrize("is_compiled", [False, True])
def test_weights_file_of_stock_keras(is_compiled, tmp_path):
    x, y = data()
    stock = mlp(keras.Model, batch_norm=True)
    stock.compile("adam", losses())
    stock.train_on_batch(x, y)
    stock.save_weights(tmp_path / "stock.weights.h5")
    model = mlp(seed=7, batch_norm=True)
    if is_compiled:
        compiled(model, "joint", "adam")
    model.load_weights(tmp_path / "stock.weights.h5")
    assert_same_bits(values(model.variables), values(stock.variables))
    if is_compiled:
        assert_same_bits(state(model), state(stock))
    # And the other way round.
    model.save_weights(tmp_path / "mine.weights.h5")
    fresh = mlp(keras.Model, seed=8, batch_norm=True)
    fresh.load_weights(tmp_path / "mine.weights.h5")
    assert_same_bits(values(fresh.variables), values(stock.variables))


@keras.saving.register_keras_serializable("tests")
class Configured(Subclassed):
    """A subclass with `call` and a config of its own."""

    def __init__(self, tasks=TASKS, scale=1.0, **kwargs):
        super().__init__(tasks, **kwargs)
        self.scale = scale

    def call(self, inputs, training=False):
        return super().call(self.scale * inputs, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "tasks": list(self.tasks),
            "scale": self.scale,
        }


@pytest.mark.parametrize("strategy", ["joint", "alternating", "round_robin"])
def test_subclass(strategy, tmp_path):
    model = compiled(Configured(scale=0.5), strategy)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, Configured)
    assert loaded.scale == 0.5
    assert loaded.update_strategy == model.update_strategy
    # Equal before training goes on, not only after the first batch.
    assert_same_bits(values(loaded.variables), values(model.variables))
    assert_same_bits(
        values(loaded.optimizer.variables), values(model.optimizer.variables)
    )
    assert_same_logs(fit(loaded), fit(model))
    assert loaded.task_names == TASKS
    assert_same_bits(state(loaded), state(model))


@keras.saving.register_keras_serializable("tests")
class FunctionalStyle(MultiTaskModel):
    def __init__(self, width=8, **kwargs):
        inputs = keras.Input((6,))
        x = keras.layers.Dense(width, activation="tanh")(inputs)
        super().__init__(
            inputs,
            {name: keras.layers.Dense(1)(x) for name in TASKS},
            **kwargs,
        )
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_functional_style_subclass(tmp_path):
    model = compiled(FunctionalStyle(width=5))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, FunctionalStyle)
    assert loaded.width == 5
    assert_same_bits(state(loaded), state(model))
    assert_same_logs(fit(loaded), fit(model))
    assert_same_bits(state(loaded), state(model))


@pytest.mark.parametrize("is_compiled", [False, True])
def test_clone_model(is_compiled):
    model = compiled() if is_compiled else mlp(batch_norm=True)
    clone = keras.models.clone_model(model)
    assert isinstance(clone, MultiTaskModel)
    assert clone.task_names == TASKS
    assert clone.get_layer("trunk_1") is not model.get_layer("trunk_1")
    before = values(model.variables)
    if is_compiled:
        # As in Keras: compiled alike, with fresh slots.
        assert clone.update_strategy == model.update_strategy
        assert clone.optimizer is not model.optimizer
        assert len(clone.optimizer.optimizers) == 3
        fit(clone)
    else:
        assert not clone.compiled
        fit(compiled(clone))
    assert_same_bits(values(model.variables), before)


def test_after_a_change_of_strategy(tmp_path):
    """What `fit` changed is saved, and not what `compile` said."""
    model = compiled(strategy="alternating")
    fit(model)
    for strategy in ("joint", "grouped"):
        fit(model, strategy=STRATEGIES[strategy]())
        model.save(tmp_path / f"{strategy}.keras")
        loaded = keras.models.load_model(tmp_path / f"{strategy}.keras")
        assert loaded.update_strategy == STRATEGIES[strategy]()
        assert_same_bits(state(loaded), state(model))
        x, y = data()
        for each in (model, loaded):
            each.train_on_batch(x, y)
        assert_same_bits(state(loaded), state(model))


# -- callbacks -----------------------------------------------------------------


class Interrupt(keras.callbacks.Callback):
    """Raises when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "strategy",
    [
        "joint",
        "alternating",
        "per_epoch",
        "per_step",
        "sampled",
        "affinity_groups",
    ],
)
def test_backup_and_restore(strategy, tmp_path):
    def build():
        return compiled(strategy=STRATEGIES[strategy]())

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path)

    whole, killed, resumed = build(), build(), build()
    expected = fit(whole, 3)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, 3, callbacks=[backup(), Interrupt(2)])
    history = fit(resumed, 3, callbacks=[backup()])
    assert resumed.history.epoch == [2]
    assert_same_bits(state(resumed), state(whole))
    for key, value in expected.items():
        np.testing.assert_array_equal(history[key], value[2:], err_msg=key)


def test_early_stopping():
    x, y = data()
    model = compiled(optimizer=keras.optimizers.SGD(0.01))
    # A loss never gets better by 1000, so the first epoch stays the best.
    stopping = keras.callbacks.EarlyStopping(
        "val_left_loss",
        min_delta=1000.0,
        patience=2,
        mode="min",
        restore_best_weights=True,
    )
    history = fit(model, 6, callbacks=[stopping], validation_data=(x, y))
    assert len(history["loss"]) == 3
    other = compiled(optimizer=keras.optimizers.SGD(0.01))
    fit(other, 1)
    assert_same_bits(values(model.weights), values(other.weights))


@pytest.mark.parametrize("cls", [keras.Model, MultiTaskModel])
def test_early_stopping_knows_the_direction_of_a_metric(cls):
    """Without `mode`, by what the metric says, as in Keras."""
    x, y = data()
    model = mlp(cls, structure="single")
    model.compile("adam", "mse", metrics=["mae", "accuracy"], run_eagerly=True)
    callbacks = [
        keras.callbacks.EarlyStopping(name, patience=9)
        for name in ("val_loss", "val_mae", "val_accuracy")
    ]
    model.fit(
        x,
        y["left"],
        callbacks=callbacks,
        validation_data=(x, y["left"]),
        verbose=0,
    )
    directions = [callback.monitor_op.__name__ for callback in callbacks]
    assert directions == ["less", "less", "greater"]


def rates(model):
    optimizers = getattr(model.optimizer, "optimizers", [])
    return [float(o.learning_rate) for o in [model.optimizer, *optimizers]]


def test_reduce_on_plateau():
    model = compiled(optimizer=keras.optimizers.SGD(0.08))
    callback = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1000.0
    )
    history = fit(model, 3, callbacks=[callback])
    logged = [v for k, v in history.items() if k.startswith("learning_rate")]
    assert len(logged) in (1, 3)  # one for all before Keras 3.15
    for found in logged:
        np.testing.assert_allclose(found, [0.08, 0.08, 0.04], rtol=1e-6)
    np.testing.assert_allclose(rates(model), [0.02] * 4, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["alternating", "per_step", "sampled"])
def test_learning_rate_scheduler(strategy):
    """It reaches every clone: as if compiled with the rate that it sets."""
    optimizers = [keras.optimizers.SGD(rate) for rate in (0.5, 0.01)]
    scheduled, other = (
        compiled(strategy=STRATEGIES[strategy](), optimizer=optimizer)
        for optimizer in optimizers
    )
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01)
    history = fit(scheduled, callbacks=[callback])
    fit(other)
    logged = [v for k, v in history.items() if k.startswith("learning_rate")]
    # One for all before Keras 3.15.
    assert len(logged) in (1, len(rates(scheduled)) - 1)
    assert logged == [[pytest.approx(0.01)]] * len(logged)
    assert rates(scheduled) == rates(other)
    assert len(rates(scheduled)) > 3
    assert_same_bits(values(scheduled.weights), values(other.weights))


def test_set_rate_keeps_the_tasks_factors():
    """SGD moves a head by the rate times its factor, exactly."""
    x, y = data()
    factors = {"left": 0.5, "right": 2.0}
    moved = {}
    for given in (None, factors):
        model = compiled(
            strategy=MultiAdaptive(task_learning_rates=given),
            optimizer=keras.optimizers.SGD(1.0),
        )
        model.optimizer.learning_rate = 0.125
        before = {name: values(model.task_variables(name)) for name in TASKS}
        model.train_on_batch(x, y)
        moved[given is None] = {
            name: [
                a - b
                for a, b in zip(
                    values(model.task_variables(name)),
                    before[name],
                    strict=True,
                )
            ]
            for name in TASKS
        }
    for name in TASKS:
        for mine, plain in zip(
            moved[False][name], moved[True][name], strict=True
        ):
            assert (plain != 0).any()
            np.testing.assert_allclose(
                mine, factors.get(name, 1.0) * plain, rtol=1e-4, atol=1e-7
            )


@pytest.mark.parametrize(
    "strategy", ["joint", "alternating", "round_robin", "per_step", "grouped"]
)
def test_schedules_read_the_batch_counter(strategy):
    """Not the count of a clone's own updates."""
    x, y = data()
    schedule = schedules.PiecewiseConstantDecay([0, 1], [0.25, 0.125, 0.0625])
    model = compiled(
        strategy=STRATEGIES[strategy](),
        optimizer=keras.optimizers.SGD(schedule),
    )
    other = compiled(
        strategy=STRATEGIES[strategy](), optimizer=keras.optimizers.SGD(1.0)
    )
    for batch, rate in enumerate([0.25, 0.125, 0.0625]):
        assert int(model.optimizer.iterations) == batch
        assert float(model.optimizer.learning_rate) == rate
        other.optimizer.learning_rate = rate
        for each in (model, other):
            each.train_on_batch(x, y)
        assert_same_bits(values(model.weights), values(other.weights))


def test_schedule_comes_back(tmp_path):
    model = compiled(
        optimizer=keras.optimizers.Adam(
            schedules.ExponentialDecay(0.1, 1, 0.5, staircase=True)
        )
    )
    fit(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert rates(loaded) == rates(model)
    for each in (model, loaded):
        fit(each)
    assert_same_bits(state(loaded), state(model))
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.025)


def test_rate_set_by_hand_comes_back(tmp_path):
    model = compiled()
    model.optimizer.learning_rate = 0.25
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert rates(loaded) == [0.25] * 4
