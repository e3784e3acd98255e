"""STCH: its bounds, fronts that no weighted sum reaches, the log form."""

import numpy as np
import pytest
import tensorflow as tf
from balancing import Balancing

from mtlkeras.balancers import STCH, TaskWeights

LOSSES = np.array([0.3, 2.0, 1.9])


def bound(num_tasks=3, **arguments):
    balancer = STCH(**arguments)
    balancer.bind([f"task_{k}" for k in range(num_tasks)])
    return balancer


@pytest.mark.parametrize("mu", [10.0, 1.0, 0.1, 1e-3, 1e-6])
def test_bounds_of_the_smooth_maximum(mu):
    preference, ideal = [1.0, 0.5, 2.0], [0.1, -0.3, 0.0]
    balancer = bound(mu=mu, preference=preference, ideal=ideal)
    largest = np.max(np.multiply(preference, LOSSES - ideal))
    total = float(balancer(LOSSES))
    assert largest <= total * (1 + 1e-12)
    assert total <= largest + mu * np.log(3) + 1e-12
    weights = np.asarray(balancer.compute_weights(LOSSES))
    # A convex combination of the preferences.
    np.testing.assert_allclose(np.sum(weights / preference), 1.0, rtol=1e-12)
    if mu <= 1e-3:
        np.testing.assert_allclose(weights, [0, 0, 2.0], atol=1e-12)


def test_large_mu_gives_equal_weights():
    weights = np.asarray(bound(mu=1e6).compute_weights(LOSSES))
    np.testing.assert_allclose(weights, 1 / 9, rtol=1e-5)


def fonseca_fleming(x):
    """Two losses of one number, with a concave front for x within -1 and 1."""
    return tf.stack([1 - tf.exp(-((x - 1) ** 2)), 1 - tf.exp(-((x + 1) ** 2))])


def minimum(balancer, count=401):
    """Where a total is least, among points of the front."""
    balancer.bind(["first", "second"])
    grid = np.linspace(-1, 1, count)

    @tf.function
    def totals():
        return tf.map_fn(
            lambda x: balancer(fonseca_fleming(x)), tf.constant(grid)
        )

    return grid[np.argmin(totals())]


def test_reaches_points_of_a_concave_front_that_no_weighted_sum_does():
    for share in (0.1, 0.3, 0.45, 0.55, 0.7, 0.9):
        assert abs(minimum(TaskWeights([share, 1 - share]))) > 0.9
    found = []
    for share in (0.3, 0.4, 0.5, 0.6, 0.7):
        balancer = STCH(mu=0.01, preference=[share, 1 - share])
        found.append(minimum(balancer))
        first, second = fonseca_fleming(found[-1]).numpy()
        # There both weighted losses are equal, up to mu and the grid.
        np.testing.assert_allclose(
            share * first, (1 - share) * second, atol=0.02
        )
    assert np.all(np.diff(found) > 0.05)
    assert np.all(np.abs(found) < 0.9)


def test_equal_weights_have_the_known_ends():
    """The instrument: minimisers of the sum, from the literature."""
    x = minimum(TaskWeights(), 2001)
    np.testing.assert_allclose(abs(x), 0.957504, atol=1e-3)
    losses = np.sort(fonseca_fleming(x).numpy())
    np.testing.assert_allclose(losses, [0.001804, 0.978330], atol=2e-3)


# -- the log form -------------------------------------------------------------


def log_form(losses, nadir, mu):
    """Total and weights by the definition."""
    powers = np.exp(np.log(losses / nadir) / mu)
    total = len(losses) * mu * np.log(np.sum(powers))
    return total, len(losses) * powers / np.sum(powers) / losses


@pytest.mark.parametrize("mu", [1.0, 0.2])
def test_log_form_with_a_nadir(mu):
    nadir = np.array([1.0, 3.0, 0.5])
    balancer = bound(form="log", nadir=nadir, mu=mu, ideal=[0.1, 0.0, -0.2])
    total, weights = log_form(LOSSES - [0.1, 0.0, -0.2], nadir, mu)
    np.testing.assert_allclose(float(balancer(LOSSES)), total, rtol=1e-12)
    found = balancer.compute_weights(LOSSES)
    np.testing.assert_allclose(found, weights, rtol=1e-12)


def test_log_form_warms_up():
    balancer = bound(form="log", warmup=5, mu=0.5)
    balancing = Balancing(balancer, jit_compile=False)
    rng = np.random.default_rng(0)
    batches = rng.uniform(0.5, 2, (9, 3))
    used = balancing.run([(row,) for row in batches])
    # Logarithms first; the nadir is the mean of batches 2, 3 and 4.
    np.testing.assert_allclose(used[:4], 1 / batches[:4], rtol=1e-12)
    nadir = batches[2:5].mean(0)
    for losses, weights in zip(batches[4:], used[4:], strict=True):
        wanted = log_form(losses, nadir, 0.5)[1]
        np.testing.assert_allclose(weights, wanted, rtol=1e-12)


def test_log_form_waits_for_all_tasks():
    balancer = bound(2, form="log", warmup=2)
    balancing = Balancing(balancer)
    first = np.array([True, False])
    balancing.batch([2.0, 4.0])
    for _ in range(5):
        used = balancing.batch([2.0, 4.0], first)
        assert used[0] == 0.5
    used = balancing.batch([2.0, 8.0])
    # Means of the second measured loss: 2 and 8.
    wanted = log_form(np.array([2.0, 8.0]), np.array([2.0, 8.0]), 1.0)[1]
    np.testing.assert_allclose(used, wanted, rtol=1e-12)
