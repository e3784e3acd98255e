"""Callbacks that set the weights of the balancer `TaskWeights`."""

import keras
import nets
import numpy as np
import pytest
from nets import TASKS

from mtlkeras.callbacks import DynamicWeightAverage, TaskWeightScheduler

SGD = keras.optimizers.SGD


def new_model(balancer="task_weights", **kwargs):
    model = nets.mlp()
    model.compile(SGD(0.05), nets.losses(), balancer=balancer, **kwargs)
    return model


def train(model, callback, epochs, initial_epoch=0):
    """`task_losses`, `weights`: of every epoch."""
    x, y = nets.regression_data()
    weights = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(
            model.balancer.last_task_weights
        )
    )
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[callback, look],
    ).history
    losses = np.stack([history[f"{n}_loss"] for n in TASKS], axis=1)
    return losses, np.array(weights)


def by_definition(losses, temperature):
    """Dynamic weights of every epoch, from the losses of all."""
    weights = np.ones_like(losses)
    for t in range(2, len(losses)):
        powers = np.exp(losses[t - 1] / losses[t - 2] / temperature)
        weights[t] = losses.shape[1] * powers / powers.sum()
    return weights


@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_dynamic_weights_are_those_of_the_definition(temperature):
    losses, weights = train(new_model(), DynamicWeightAverage(temperature), 5)
    np.testing.assert_allclose(
        weights, by_definition(losses, temperature), rtol=1e-6
    )
    np.testing.assert_allclose(weights.sum(1), 3, rtol=1e-12)
    assert np.ptp(weights[2:]) > 1e-3


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_dynamic_weights_equal_the_recorded_ones(num_tasks, golden):
    losses = golden[f"L/T{num_tasks}"]
    expected = golden[f"w/jd.DWA_T2_epoch3/T{num_tasks}"]
    means = losses.reshape(4, 3, num_tasks).mean(1)  # an epoch has 3 steps
    callback = DynamicWeightAverage()
    for epoch in range(2, 4):
        weights = callback.compute_weights(means[epoch - 1], means[epoch - 2])
        for step in range(3):
            np.testing.assert_allclose(
                weights, expected[3 * epoch + step], rtol=1e-12
            )


@pytest.fixture(scope="module")
def golden():
    from pathlib import Path

    data = Path(__file__).parents[1] / "data" / "balancers.npz"
    with np.load(data) as file:
        return dict(file)


def test_dynamic_weights_stay_finite_when_a_loss_explodes():
    weights = DynamicWeightAverage(0.01).compute_weights(
        np.array([1e12, 1.0]), np.array([1.0, 1.0])
    )
    np.testing.assert_allclose(weights, [2.0, 0.0])


def test_a_task_that_did_not_train_keeps_its_losses():
    model = new_model()
    balancer = model.balancer
    balancer.finish_epoch([1.0, 2.0, 3.0])
    balancer.finish_epoch([0.5, float("nan"), 2.0])
    before, last = np.array(balancer.epoch_losses)
    np.testing.assert_array_equal(before, [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(last, [0.5, 2.0, 2.0])


def test_dynamic_weights_go_on_after_loading(tmp_path):
    callback = DynamicWeightAverage(0.1)
    whole, resumed = new_model(), new_model()
    _, expected = train(whole, callback, 5)
    train(resumed, callback, 3)
    resumed.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    _, weights = train(resumed, callback, 5, initial_epoch=3)
    np.testing.assert_array_equal(weights, expected[3:])
    nets.assert_same_bits(
        nets.values(whole.weights), nets.values(resumed.weights)
    )


def test_the_scheduler_gives_epoch_and_losses_and_sets_weights():
    seen = []

    def halve_left(epoch, task_losses):
        seen.append((epoch, task_losses))
        return None if epoch == 1 else {"left": 0.5**epoch}

    losses, weights = train(new_model(), TaskWeightScheduler(halve_left), 3)
    np.testing.assert_array_equal(weights, [[1, 1, 1], [1, 1, 1], [0.25, 1, 1]])
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert all(np.isnan(value) for value in seen[0][1].values())
    for row, (_, found) in zip(losses, seen[1:], strict=False):
        np.testing.assert_allclose(list(found.values()), row, rtol=1e-6)


@pytest.mark.parametrize(
    "callback", [DynamicWeightAverage(), TaskWeightScheduler(lambda *a: None)]
)
@pytest.mark.parametrize("balancer", [None, "uncertainty_weighting"])
def test_another_balancer_has_no_weights_to_set(callback, balancer):
    with pytest.raises(ValueError, match="balancer='task_weights'"):
        train(new_model(balancer), callback, 1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="temperature=0"):
        DynamicWeightAverage(0)
    with pytest.raises(ValueError, match="function=3"):
        TaskWeightScheduler(3)
    with pytest.raises(ValueError, match="must return a dict"):
        train(new_model(), TaskWeightScheduler(lambda *a: [1, 2, 3]), 1)
