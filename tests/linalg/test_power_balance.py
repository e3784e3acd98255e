import numpy as np
import pytest
import tensorflow as tf
from jacobians import draw
from scipy.optimize import root

from mtlkeras.linalg.power_balance import power_balance

RIDGE = 40 * 2.0**-52


def mode(power, xla):
    def call(matrix, weights):
        return power_balance(matrix, weights, power, RIDGE)

    return tf.function(call, autograph=False, jit_compile=xla)


def cosines(kind, size, seed=0):
    unit = draw(kind, size, 60, seed)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    matrix = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("xla", [False, True])
def test_solves_the_equations(power, xla):
    solve = mode(power, xla)
    for size in [1, 2, 3, 8, 40] if power == 1.0 and not xla else [3]:
        rng = np.random.default_rng(size)
        for kind in ("normal", "conflict", "aligned", "duprow", "parallel"):
            for weights in (np.ones(size), rng.uniform(0.1, 10.0, size)):
                matrix = cosines(kind, size)
                v = solve(tf.constant(matrix), tf.constant(weights)).numpy()
                assert np.all(v > 0)
                right = weights * v**-power
                np.testing.assert_allclose(matrix @ v, right, rtol=1e-9)


def test_equals_a_general_solver():
    matrix, weights = cosines("conflict", 5), np.linspace(0.5, 2.0, 5)
    for power in (0.5, 1.0):
        found = power_balance(
            tf.constant(matrix), tf.constant(weights), power, RIDGE
        ).numpy()
        wanted = root(
            lambda logs, power=power: (
                matrix @ np.exp(logs) - weights * np.exp(-power * logs)
            ),
            np.zeros(5),
            tol=1e-13,
        )
        assert wanted.success
        np.testing.assert_allclose(found, np.exp(wanted.x), rtol=1e-8)


@pytest.mark.parametrize("xla", [False, True])
def test_rows_of_very_unlike_scale(xla):
    scale = np.logspace(-3, 3, 3)
    matrix = cosines("normal", 3) * scale * scale[:, None]
    v = mode(0.5, xla)(tf.constant(matrix), tf.ones(3, "float64")).numpy()
    np.testing.assert_allclose(matrix @ v, v**-0.5, rtol=1e-7)


def test_ends_without_a_solution():
    # `B v = 1 / v` needs positive B v: opposite gradients have none.
    matrix = np.array([[1.0, -1.0], [-1.0, 1.0]])
    v = mode(1.0, False)(
        tf.constant(matrix + RIDGE * np.eye(2)), tf.ones(2, "float64")
    ).numpy()
    assert np.all(np.isfinite(v))
    assert np.linalg.norm(matrix @ v) <= 1e-6
