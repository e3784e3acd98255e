"""The length that is asked for, and what the definition says at it.

`tests/aggregators/test_claims.py` compares whole directions with bisection.
"""

import numpy as np
import pytest
import tensorflow as tf
from jacobians import draw

from mtlkeras.linalg.conflict_averse import conflict_averse_shift

RIDGE = 40 * 2.0**-52


def shift(matrix, mean, scales, radius):
    return conflict_averse_shift(matrix, mean, scales, radius, RIDGE, 1e-7)


def modes(radius):
    def call(*arguments):
        return shift(*arguments, radius)

    return [
        tf.function(call, autograph=False, jit_compile=xla)
        for xla in (False, True)
    ]


def problem(kind, size):
    """Unit rows, cosines with the mean gradient, inverse lengths."""
    jacobian = draw(kind, size, 60)
    length = np.linalg.norm(jacobian, axis=1)
    unit = jacobian / length[:, None]
    matrix = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(matrix, 1.0)
    mean = jacobian.mean(0)
    cosines = unit @ mean / np.linalg.norm(mean)
    return jacobian, unit, matrix, cosines, length.min() / length


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
def test_shift_has_the_length_and_no_duality_gap(size):
    radius = 0.5
    for solve in modes(radius)[: 2 if size in (3, 40) else 1]:
        for kind in ("normal", "badscale", "conflict", "duprow", "parallel"):
            jacobian, unit, matrix, cosines, scales = problem(kind, size)
            z, found = solve(*map(tf.constant, (matrix, cosines, scales)))
            z = z.numpy()
            assert found, kind
            assert np.all(z >= 0)
            step = unit.T @ z
            assert abs(np.linalg.norm(step) - radius) <= 1e-8, kind
            # min_i <g_i, d> in units of the mean's length.
            mean = jacobian.mean(0)
            direction = mean / np.linalg.norm(mean) + step
            gain = np.min(jacobian @ direction)
            weights = z / np.linalg.norm(jacobian, axis=1)
            combined = weights / weights.sum() @ jacobian
            bound = combined @ mean / np.linalg.norm(mean)
            bound += radius * np.linalg.norm(combined)
            assert bound - gain <= 1e-8 * np.linalg.norm(jacobian), kind


def test_tells_where_no_direction_gains():
    for radius, solve in [(2.0, modes(2.0)[0]), (2.0, modes(2.0)[1])]:
        _, _, matrix, cosines, scales = problem("stationary", 3)
        _, found = solve(*map(tf.constant, (matrix, cosines, scales)))
        assert not found, radius
