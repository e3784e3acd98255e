"""`TaskEarlyStopping`: a frozen task rests, the others go on."""

import keras
import nets
import numpy as np
import pytest
from cases import STRATEGIES
from nets import TASKS

from mtlkeras.callbacks import TaskEarlyStopping

KINDS = [
    case
    for case in STRATEGIES
    if case.id
    in (
        "joint",
        "alternating",
        "alternating_shuffled",
        "grouped",
        "random_groups_step",
        "multi_adaptive",
    )
]


def new_model(strategy="joint", **kwargs):
    model = nets.mlp()
    model.compile(
        keras.optimizers.Adam(0.01),
        nets.losses(),
        strategy=strategy,
        **kwargs,
    )
    return model


class Freeze(TaskEarlyStopping):
    """Freezes a task after the first epoch, whatever its metric."""

    def __init__(self, task, **kwargs):
        super().__init__(min_delta=1e9, patience=1, **kwargs)
        self.task = task

    def _watch(self, name, metric, logs):
        if name == self.task:
            super()._watch(name, metric, logs)


def train(model, callbacks, epochs, initial_epoch=0, **kwargs):
    x, y = nets.regression_data(rows=32)
    return model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        validation_data=nets.regression_data(rows=16, seed=1),
        callbacks=callbacks,
        **kwargs,
    ).history


@pytest.mark.parametrize("case", KINDS, ids=repr)
def test_a_frozen_task_rests_as_one_without_labels(case):
    frozen = new_model(case.strategy())
    stopping = Freeze("middle")
    history = train(frozen, [stopping], 3)
    assert stopping.frozen_tasks == ("middle",)
    # The first value is the best one, the second is not better.
    assert np.isfinite(history["middle_loss"][:2]).all()
    assert np.isnan(history["middle_loss"][2])
    assert np.isfinite(history["val_middle_loss"]).all()
    # The same bits as with NaN for its labels from there on.
    other = new_model(case.strategy())
    train(other, [], 2)
    x, y = nets.regression_data(rows=32)
    y["middle"] = np.full_like(y["middle"], np.nan)
    if case.id == "joint":
        # Without aggregator `joint` lets moments go on; frozen ones rest.
        head = nets.values(frozen.task_variables("middle"))
        again = new_model(case.strategy())
        train(again, [], 2)
        rested = nets.values(again.task_variables("middle"))
        for a, b in zip(head, rested, strict=True):
            # The updates of other strategies are fused.
            np.testing.assert_allclose(a, b, rtol=1e-5)
        return
    with pytest.warns(UserWarning, match="no batch held a label"):
        other.fit(
            x,
            y,
            batch_size=16,
            epochs=3,
            initial_epoch=2,
            shuffle=False,
            verbose=0,
        )
    for a, b in zip(
        nets.values(frozen.weights), nets.values(other.weights), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_no_warning_of_missing_labels_for_a_frozen_task(recwarn):
    train(new_model("alternating"), [Freeze("left")], 4)
    assert not [w for w in recwarn if "label" in str(w.message)]


def test_patience_and_best_values_follow_the_validation_metric():
    model = new_model()
    stopping = TaskEarlyStopping(min_delta=0.05, patience=2)
    history = train(model, [stopping], 30)
    epochs = len(history["loss"])
    assert epochs < 30  # all of them are frozen
    assert set(stopping.frozen_tasks) == set(TASKS)
    for name in TASKS:
        best, wait, last = np.inf, 0, None
        for epoch, value in enumerate(history[f"val_{name}_loss"]):
            if best - value > 0.05:
                best, wait = value, 0
            else:
                wait += 1
            if wait == 2:
                last = epoch
                break
        trained = np.isfinite(history[f"{name}_loss"])
        assert trained.tolist() == [e <= last for e in range(epochs)]


def test_the_best_head_is_restored():
    model = new_model("alternating")
    kept = {}

    def keep(epoch, logs):
        kept[epoch] = nets.values(model.task_variables("right"))

    look = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    train(model, [look, Freeze("right", restore_best_head=True)], 3)
    nets.assert_same_bits(nets.values(model.task_variables("right")), kept[0])
    trunk = nets.values(model.shared_variables)
    train(new := new_model("alternating"), [], 3)
    assert not np.array_equal(trunk[0], nets.values(new.shared_variables)[0])


def test_the_state_is_the_models(tmp_path):
    def stopping():
        return Freeze("left", restore_best_head=True)

    whole, first = new_model("alternating"), new_model("alternating")
    train(whole, [stopping()], 4)
    for epochs in (1, 3):  # before and after it is frozen
        first = new_model("alternating")
        train(first, [stopping()], epochs)
        first.save(tmp_path / "model.keras")
        second = keras.models.load_model(tmp_path / "model.keras")
        callback = stopping()
        train(second, [callback], 4, initial_epoch=epochs)
        assert callback.frozen_tasks == ("left",)
        nets.assert_same_bits(
            nets.values(whole.weights), nets.values(second.weights)
        )


def test_without_the_callback_all_tasks_train_and_reset_forgets():
    model = new_model("alternating")
    stopping = Freeze("left")
    train(model, [stopping], 3)
    assert np.isfinite(train(model, [], 1)["left_loss"]).all()
    assert np.isnan(train(model, [stopping], 1)["left_loss"]).all()
    stopping.reset()
    assert stopping.frozen_tasks == ()
    assert np.isfinite(train(model, [stopping], 1)["left_loss"]).all()


def test_a_metric_that_is_better_when_larger():
    model = new_model(metrics=dict.fromkeys(TASKS, "r2_score"))
    stopping = TaskEarlyStopping({"left": "r2_score"}, min_delta=10.0)
    train(model, [stopping], 3)
    assert stopping.frozen_tasks == ("left",)
    assert float(np.array(model._multi_task.frozen.best)[0]) < 1


def test_bad_use():
    with pytest.raises(ValueError, match="mode='up'"):
        TaskEarlyStopping(mode="up")
    with pytest.raises(ValueError, match="patience=-1"):
        TaskEarlyStopping(patience=-1)
    with pytest.raises(ValueError, match="no 'left_f1'"):
        train(new_model(), [TaskEarlyStopping("f1")], 1)
    with pytest.raises(ValueError, match=r"unknown keys: \['lft'\]"):
        train(new_model(), [TaskEarlyStopping({"lft": "loss"})], 1)
    with pytest.raises(ValueError, match="mode='min'` or"):
        TaskEarlyStopping()._rises("mystery")
    x, y = nets.regression_data(rows=16)
    with pytest.warns(UserWarning, match="validation_data"):
        new_model().fit(x, y, verbose=0, callbacks=[TaskEarlyStopping()])
    stock = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    stock.compile("sgd", "mse")
    with pytest.raises(ValueError, match="MultiTaskModel"):
        stock.fit(
            np.ones((2, 2)),
            np.ones((2, 1)),
            verbose=0,
            callbacks=[TaskEarlyStopping()],
        )
