import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize

from mtlkeras.linalg.simplex_projection import simplex_projection

MODES = {
    "plain": tf.function(simplex_projection, autograph=False),
    "xla": tf.function(simplex_projection, autograph=False, jit_compile=True),
}


def by_bisection(point, mass):
    """What is taken off all elements, found by halving."""
    low, high = point.min() - mass, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(point - middle, 0).sum() > mass:
            low = middle
        else:
            high = middle
    return np.maximum(point - high, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", MODES)
def test_equals_bisection(size, mode):
    rng = np.random.default_rng(size)
    for scale in (1e-6, 1.0, 1e6):
        for mass in (0.3, 1.0):
            live = rng.uniform(size=size) < 0.7
            live[0] = True
            point = scale * rng.normal(size=size)
            found = MODES[mode](
                tf.constant(point),
                tf.constant(live),
                tf.constant(mass, "float64"),
            ).numpy()
            assert not found[~live].any()
            wanted = by_bisection(point[live], mass)
            tolerance = 1e-12 * max(scale, 1.0)
            np.testing.assert_allclose(found[live], wanted, atol=tolerance)


def test_equals_a_general_solver():
    point = np.array([0.9, -0.2, 0.4, 0.35])
    wanted = minimize(
        lambda x: np.sum((x - point) ** 2),
        np.full(4, 0.25),
        method="SLSQP",
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        options={"ftol": 1e-15},
    ).x
    found = simplex_projection(tf.constant(point), tf.ones(4, "bool"), 1.0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_points_of_the_simplex_stay():
    point = tf.constant([0.2, 0.0, 0.8], "float64")
    found = simplex_projection(point, tf.ones(3, "bool"), 1.0)
    np.testing.assert_allclose(found, point, atol=1e-15)


def test_equal_elements_share_alike():
    point = tf.constant([5.0, 5.0, 5.0, -100.0], "float64")
    found = simplex_projection(point, tf.ones(4, "bool"), 1.0)
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, 1 / 3, 0])


def test_nothing_live_is_nothing():
    found = simplex_projection(
        tf.constant([1.0, -2.0], "float64"), tf.zeros(2, "bool"), 1.0
    )
    np.testing.assert_array_equal(found, [0, 0])
