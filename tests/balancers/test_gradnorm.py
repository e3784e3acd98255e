"""GradNorm against its definition in NumPy."""

import keras
import numpy as np
import pytest
from balancing import Balancing

from mtlkeras.balancers import GradNorm


def bound(num_tasks, *arguments, **options):
    balancer = GradNorm(*arguments, **options)
    balancer.bind([f"task_{k}" for k in range(num_tasks)])
    return balancer


def weights_of(balancer):
    return keras.ops.convert_to_numpy(balancer.learned_weights).copy()


def numerical_gradient(function, point):
    steps = 1e-6 * np.eye(len(point))
    return np.array(
        [(function(point + s) - function(point - s)) / 2e-6 for s in steps]
    )


def definition(weights, norms, losses, first, alpha, rate):
    """Weights after one step of gradient descent, renormalized."""
    ratios = losses / first
    rates = ratios / ratios.mean()
    targets = np.mean(weights * norms) * rates**alpha  # held constant
    gradient = numerical_gradient(
        lambda w: np.sum(np.abs(w * norms - targets)), weights
    )
    # It is the length of the gradient, with a sign.
    np.testing.assert_allclose(
        gradient, np.sign(weights * norms - targets) * norms, rtol=1e-5
    )
    moved = weights - rate * gradient
    return len(weights) * moved / moved.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_steps_are_those_of_the_definition(alpha):
    rng = np.random.default_rng(2)
    balancer = bound(4, alpha, learning_rate=0.01, optimizer="sgd")
    balancing = Balancing(balancer)
    levels = np.array([0.3, 1.0, 2.0, 5.0])
    weights, first = np.ones(4), None
    for _ in range(8):
        losses = levels * rng.uniform(0.3, 1.2, 4)
        first = losses if first is None else first
        norms = rng.uniform(0.5, 3, 4)
        used = balancing.batch(losses, norms=norms)
        np.testing.assert_allclose(used, weights, rtol=1e-6)
        weights = definition(weights, norms, losses, first, alpha, 0.01)
        np.testing.assert_allclose(weights_of(balancer), weights, rtol=1e-6)
        np.testing.assert_allclose(weights_of(balancer).sum(), 4, rtol=1e-12)


def test_without_alpha_weighted_gradients_get_equally_long():
    balancer = bound(3, alpha=0.0)
    balancing = Balancing(balancer, jit_compile=False)
    norms = np.array([0.5, 1.0, 4.0])
    for number in range(150):
        if number == 100:  # finer, for the last digits
            balancer.optimizer.learning_rate = 0.002
        balancing.batch(np.ones(3), norms=norms)
    lengths = weights_of(balancer) * norms
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.05)
    wanted = 3 / norms / np.sum(1 / norms)
    np.testing.assert_allclose(weights_of(balancer), wanted, rtol=0.05)


def test_the_task_that_learns_slowly_gets_more():
    balancer = bound(2)
    balancing = Balancing(balancer)
    for step in range(20):
        balancing.batch([1.0, 0.9**step], norms=np.ones(2))
    weights = weights_of(balancer)
    assert weights[0] > 1.2
    assert weights[1] < 0.8


def test_weights_stay_positive():
    balancer = bound(3, learning_rate=10.0, optimizer="sgd")
    balancing = Balancing(balancer)
    rng = np.random.default_rng(0)
    for _ in range(20):
        used = balancing.batch(
            rng.uniform(0.1, 9, 3), norms=rng.uniform(0, 9, 3)
        )
        assert np.all(used > 0)
        np.testing.assert_allclose(used.sum(), 3)


def test_first_losses_are_those_of_the_first_labels():
    balancer = bound(3)
    balancing = Balancing(balancer)
    balancing.batch([1.0, 2.0, 3.0], np.array([True, False, True]))
    balancing.batch([4.0, 5.0, 6.0], np.array([False, True, True]))
    balancing.batch([7.0, 8.0, 9.0])
    np.testing.assert_array_equal(balancer.first_losses, [1, 5, 3])


def test_tasks_without_labels_rest_and_the_others_share_what_is_left():
    whole, part = (bound(n, 0.5, learning_rate=0.05) for n in (3, 2))
    whole.learned_weights.assign([0.4, 2.0, 0.6])
    part.learned_weights.assign([0.4, 0.6])
    alive = np.array([True, False, True])
    first, second = Balancing(whole), Balancing(part)
    for step in range(4):
        losses = np.array([1.0 - 0.1 * step, 3.0, 1.0 + 0.2 * step])
        norms = np.array([2.0, np.nan, 0.7 + step])
        first.batch(losses, alive, norms=norms)
        second.batch(losses[alive], norms=norms[alive])
        found = weights_of(whole)
        assert found[1] == 2.0
        np.testing.assert_allclose(found[alive].sum(), 1.0, rtol=1e-12)
        np.testing.assert_allclose(found[alive], weights_of(part), rtol=1e-12)


def test_norms_may_come_one_after_the_other():
    both, single = bound(2), bound(2)
    losses, norms = np.array([1.0, 2.0]), np.array([0.5, 3.0])
    every = np.array([True, True])
    for _ in range(3):
        both.measure(losses, every)
        both.note_gradient_norms(norms, every)
        both.finish_batch(every)
        for k in range(2):
            single.measure(losses, np.arange(2) == k)
            known = np.arange(2) == k
            single.note_gradient_norms(np.where(known, norms, 9.9), known)
        single.finish_batch(every)
    np.testing.assert_array_equal(weights_of(single), weights_of(both))
    assert np.any(weights_of(both) != 1)


def test_norms_that_are_unknown_or_not_finite_move_nothing():
    balancer = bound(2)
    every = np.array([True, True])
    for norms in (None, [np.inf, np.nan]):
        balancer.measure(np.array([1.0, 2.0]), every)
        if norms is not None:
            balancer.note_gradient_norms(np.array(norms), every)
        balancer.finish_batch(every)
        np.testing.assert_array_equal(weights_of(balancer), 1.0)
