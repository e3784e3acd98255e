"""Against SLSQP, the conditions of optimality and enumerated faces."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from jacobians import KINDS, draw
from scipy.optimize import minimize

from mtlkeras.linalg.simplex_qp import simplex_qp

RIDGE = 40 * 2.0**-52


def weights(matrix, linear, scales):
    return simplex_qp(matrix, linear, scales, RIDGE)[0]


MODES = {
    "plain": tf.function(weights, autograph=False),
    "xla": tf.function(weights, autograph=False, jit_compile=True),
}


def cosines(kind, size, seed=0):
    unit = draw(kind, size, 60, seed)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / np.where(length > 0, length, 1.0)
    matrix = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def call(mode, *arguments):
    return MODES[mode](*(tf.constant(a, "float64") for a in arguments)).numpy()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", MODES)
def test_is_optimal(size, mode):
    rng = np.random.default_rng(size)
    for kind in KINDS:
        matrix = cosines(kind, size)
        for scales, linear in (
            (np.ones(size), np.zeros(size)),
            (rng.permutation(np.logspace(-6, 0, size)), np.zeros(size)),
            (np.ones(size), rng.uniform(-1, 1, size)),
        ):
            y = call(mode, matrix, linear, scales)
            assert np.all(y >= 0)
            assert abs(scales @ y - 1) <= 1e-9
            # The duality gap: `slopes - nu scales` may not be negative.
            slopes = matrix @ y + linear
            value = y @ matrix @ y + linear @ y
            least = np.min(slopes / scales)
            size_of = max(1.0, abs(linear @ y), y @ matrix @ y)
            # Measured: 1e-10, for scales that differ by a million.
            assert value - least <= 1e-9 * size_of, kind


@pytest.mark.parametrize("mode", MODES)
def test_equals_enumerated_faces(mode):
    for kind in ("normal", "conflict", "aligned", "badscale"):
        matrix = cosines(kind, 3, seed=2)
        best, wanted = np.inf, None
        for count in (1, 2, 3):
            for face in itertools.combinations(range(3), count):
                face = list(face)
                part = np.linalg.solve(
                    matrix[np.ix_(face, face)], np.ones(count)
                )
                part /= part.sum()
                y = np.zeros(3)
                y[face] = part
                if np.all(part >= 0) and y @ matrix @ y < best:
                    best, wanted = y @ matrix @ y, y
        found = call(mode, matrix, np.zeros(3), np.ones(3))
        np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_equals_a_general_solver():
    rng = np.random.default_rng(0)
    matrix, linear = cosines("normal", 5), rng.uniform(-1, 1, 5)
    scales = rng.uniform(0.2, 1.0, 5)
    found = call("plain", matrix, linear, scales)
    wanted = minimize(
        lambda y: y @ matrix @ y / 2 + linear @ y,
        np.ones(5) / scales.sum(),
        jac=lambda y: matrix @ y + linear,
        method="SLSQP",
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda y: scales @ y - 1},
        options={"ftol": 1e-15, "maxiter": 200},
    ).x
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_equal_rows_share_alike(mode):
    matrix = cosines("normal", 3)[np.ix_([0, 1, 0, 2, 0], [0, 1, 0, 2, 0])]
    y = call(mode, matrix, np.zeros(5), np.ones(5))
    np.testing.assert_allclose(y[[0, 2]], y[4], rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_variables_that_are_left_out(mode):
    matrix = cosines("normal", 4)
    matrix[3, :3] = matrix[:3, 3] = 0.0
    out = np.array([0.0, 0.0, 0.0, 1.0])
    y = call(mode, matrix, out, 1 - out)
    alone = call(mode, matrix[:3, :3], np.zeros(3), np.ones(3))
    np.testing.assert_allclose(y[:3], alone, atol=1e-9)
    assert y[3] <= 1e-9


def test_returns_the_last_newton_system():
    matrix = tf.constant(cosines("normal", 4))
    ones = tf.ones(4, "float64")
    y, solve = simplex_qp(matrix, 0 * ones, ones, RIDGE)
    # The tangent of the path `a' y = lambda`: here y scales with lambda.
    tangent = solve(ones).numpy()
    np.testing.assert_allclose(tangent / tangent.sum(), y, atol=1e-6)
