"""FAMO beyond its golden vectors: claims of the paper, tasks without labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from balancing import Balancing, compiled, losses_of
from cases import BALANCER
from landscape import SCALE, STARTS, distances, losses

from mtlkeras.balancers import FAMO


def bound(num_tasks=3, **arguments):
    balancer = FAMO(**arguments)
    balancer.bind([f"task_{k}" for k in range(num_tasks)])
    return balancer


def logits_of(balancer):
    return keras.ops.convert_to_numpy(balancer.logits).copy()


@pytest.mark.parametrize("id", ["famo", "famo_same_batch", "famo_offset"])
def test_weights_sum_to_1(id):
    balancing = compiled(BALANCER[id]).start()
    for batch in losses_of(3, count=10):
        balancing.batch(*batch)
        total = balancing.balancer.last_task_weights.sum()
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@pytest.mark.parametrize("same_batch", [False, True])
def test_equal_decreases_leave_the_logits(same_batch):
    """The softmax's Jacobian times a constant is 0."""
    balancer = bound(decay=0.0, same_batch=same_batch)
    balancer.logits.assign([0.3, -1.0, 0.5])
    balancing = Balancing(balancer)
    start = np.array([0.1, 2.0, 30.0])
    for step in range(5):
        # Exact quotients: of any rounding error Adam makes a small step.
        now = start * 0.5**step
        balancing.batch(now, after=0.5 * now)
        np.testing.assert_array_equal(logits_of(balancer), [0.3, -1.0, 0.5])


def test_the_task_that_falls_fastest_loses_weight():
    balancer = bound(decay=0.0)
    balancing = Balancing(balancer)
    balancing.batch([1.0, 1.0, 1.0])
    # Before the weights of the second batch are computed.
    weights = balancing.batch([0.5, 0.9, 1.0])
    assert np.all(np.diff(logits_of(balancer)) > 0)
    shares = np.exp(logits_of(balancer))
    wanted = shares / [0.5, 0.9, 1.0]
    np.testing.assert_allclose(weights, wanted / wanted.sum(), rtol=1e-12)


def test_decay_pulls_to_equal_logits():
    balancer = bound(decay=0.5)
    balancer.logits.assign([1.0, -1.0, 0.0])
    balancing = Balancing(balancer, jit_compile=False)
    for _ in range(60):
        balancing.batch([1.0, 2.0, 3.0])
    assert np.abs(logits_of(balancer)).max() < 0.1


def test_next_batch_form_waits_until_all_were_measured_once_more():
    balancer = bound()
    balancing = Balancing(balancer)
    balancing.batch([1.0, 1.0, 1.0])
    balancing.batch([0.5, 0.9, 1.0], np.array([True, True, False]))
    balancing.batch([0.4, 0.9, 1.0], np.array([True, False, False]))
    np.testing.assert_array_equal(logits_of(balancer), 0.0)
    balancing.batch([9.9, 9.9, 0.8], np.array([False, False, True]))
    # As in one batch with the last loss of each.
    other = bound()
    Balancing(other).run([([1.0, 1.0, 1.0],), ([0.4, 0.9, 0.8],)])
    np.testing.assert_allclose(
        logits_of(balancer), logits_of(other), rtol=1e-12
    )
    assert np.any(logits_of(balancer))


def test_same_batch_form_is_that_of_the_tasks_that_trained():
    whole, part = bound(3, same_batch=True), bound(2, same_batch=True)
    for balancer in (whole, part):
        start = [0.5, -0.5] if balancer is part else [0.5, 7.0, -0.5]
        balancer.logits.assign(start)
    alive = np.array([True, False, True])
    first, second = Balancing(whole), Balancing(part)
    for step in range(3):
        before = np.array([2.0, 5.0, 0.3]) * 0.9**step
        after = before * [0.8, 0.1, 0.95]
        first.batch(before, alive, after=np.where(alive, after, np.nan))
        second.batch(before[alive], after=after[alive])
    found = logits_of(whole)
    np.testing.assert_allclose(found[alive], logits_of(part), rtol=1e-12)
    assert found[1] == 7.0


def test_same_batch_form_tells_of_losses_that_get_negative():
    balancer = bound(2, same_batch=True)
    Balancing(balancer).batch([1.0, 1.0], after=np.array([0.5, -0.5]))
    with pytest.raises(ValueError, match=r"\['task_1'\] were not"):
        balancer.raise_if_negative()
    # One task is left, whose softmax is constant.
    np.testing.assert_array_equal(logits_of(balancer), 0.0)


@pytest.mark.parametrize(
    ("decay", "solved"),
    [(0.0, [True] * 5), (1e-3, [False, True, False, True, True])],
)
def test_landscape(decay, solved):
    """The paper's toy problem: all starts without decay, three of five with."""
    point = keras.Variable([0.0, 0.0], dtype="float64")
    optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-8)
    optimizer.build([point])
    balancer = bound(2, decay=decay, offset=[21 * SCALE, 21.0])
    every = tf.ones([2], "bool")

    def one_step(number):
        with tf.GradientTape() as tape:
            first, second = losses(point.value)
            both = tf.stack([SCALE * first, second])
            total = tf.reduce_sum(balancer.measure(both, every) * both)
        optimizer.apply([tape.gradient(total, point.value)], [point])
        return number + 1

    @tf.function(jit_compile=True, autograph=False)
    def train():
        steps = 50_000
        tf.while_loop(lambda number: number < steps, one_step, [tf.constant(0)])

    ends = []
    for start in STARTS:
        balancer.reset_state()
        for variable in optimizer.variables[2:]:  # the moments
            variable.assign(tf.zeros_like(variable))
        optimizer.iterations.assign(0)
        point.assign(start)
        train()
        ends.append(keras.ops.convert_to_numpy(point).copy())
    gaps = distances(np.array(ends))
    np.testing.assert_array_equal(gaps < 0.05, solved)
