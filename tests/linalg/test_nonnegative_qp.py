"""Against SciPy's active set method and the conditions of optimality."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from jacobians import KINDS, draw
from scipy.optimize import nnls

from mtlkeras.linalg.active_set import active_set
from mtlkeras.linalg.nonnegative_qp import interior_point, nonnegative_qp

RIDGE = 40 * 2.0**-52


def only_interior_point(matrix, linear, ridge):
    done = tf.zeros(linear.shape[:-1], "bool")
    return interior_point(matrix, linear, ridge, done)


@functools.cache
def compiled(method, jit_compile):
    return tf.function(method, autograph=False, jit_compile=jit_compile)


def solve(method, matrix, linear, jit_compile=False, ridge=RIDGE):
    return compiled(method, jit_compile)(
        tf.constant(matrix), tf.constant(linear), ridge
    )


def problems(size, num_params=60):
    """Unit rows, and vectors of length 1 to project on their dual cone."""
    rng = np.random.default_rng(size)
    for kind in KINDS:
        if kind == "zero":
            continue
        unit = draw(kind, size, num_params)
        length = np.linalg.norm(unit, axis=1, keepdims=True)
        unit = unit / np.where(length > 0, length, 1.0)
        if not unit.any():
            continue
        matrix = np.clip(unit @ unit.T, -1, 1)
        np.fill_diagonal(matrix, 1.0)
        target = rng.normal(size=num_params)
        targets = np.vstack([unit, target / np.linalg.norm(target)])
        targets = targets[targets.any(axis=1)][-9:]
        linear = targets @ unit.T
        # A gradient of 0 is kept out, as the rules do.
        linear[:, ~unit.any(axis=1)] = 1.0
        yield kind, matrix, unit, targets, linear


def projections(unit, targets):
    return np.array([t + unit.T @ nnls(unit.T, -t)[0] for t in targets])


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_projects_on_the_dual_cone(size, jit_compile):
    for kind, matrix, unit, targets, linear in problems(size):
        y = solve(nonnegative_qp, matrix, linear, jit_compile).numpy()
        assert np.all(y >= 0)
        error = targets + y @ unit - projections(unit, targets)
        assert np.max(np.linalg.norm(error, axis=1)) <= 1e-12, kind
        # Optimality: no negative slope, and none where y is positive.
        slopes = y @ matrix + linear
        assert np.min(slopes) >= -1e-12, kind
        assert np.max(np.minimum(y, slopes)) <= 1e-12, kind


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_interior_point_alone(size, jit_compile):
    for kind, matrix, unit, targets, linear in problems(size):
        y = solve(only_interior_point, matrix, linear, jit_compile).numpy()
        assert np.all(y >= 0)
        error = targets + y @ unit - projections(unit, targets)
        # Half the digits where multiplier and slack are both 0.
        tolerance = 2e-9 if size == 40 else 2e-11
        tolerance = 5e-5 if kind == "opposite" else tolerance
        assert np.max(np.linalg.norm(error, axis=1)) <= tolerance, kind
        slopes = y @ matrix + linear
        tolerance = 5e-5 if kind == "opposite" else 1e-9
        assert np.min(slopes) >= -tolerance, kind
        assert np.max(np.minimum(y, slopes)) <= max(tolerance, 1e-7), kind


def test_cosines_of_float32():
    """Rounding makes some indefinite: the interior point method steps in."""
    left = set()
    for size in (2, 8, 40):
        for kind, matrix, *_, linear in problems(size):
            matrix = np.float32(matrix).astype("float64")
            linear = np.float32(linear).astype("float64")
            ridge = size * 2.0**-23
            y, solved = solve(active_set, matrix, linear, ridge=ridge)
            if not np.all(solved):
                left.add((kind, size))
                y = solve(nonnegative_qp, matrix, linear, ridge=ridge)
            slopes = y @ matrix + linear
            assert np.min(slopes) >= -ridge, (kind, size)
            assert np.max(np.minimum(y, slopes)) <= ridge, (kind, size)
    assert len(left) <= 2  # found here: stationary, 8 rows


def test_interior_point_takes_up_what_is_left():
    _, matrix, _, _, linear = next(problems(8))
    done = np.arange(len(linear)) % 2 == 0
    y = interior_point(
        tf.constant(matrix), tf.constant(linear), RIDGE, tf.constant(done)
    )
    wanted = solve(only_interior_point, matrix, linear)
    np.testing.assert_allclose(y[~done], wanted[~done], atol=1e-12)
    np.testing.assert_array_equal(y[done], 1.0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_batch_is_as_one_by_one(jit_compile):
    _, matrix, _, _, linear = next(problems(8))
    whole = solve(nonnegative_qp, matrix, linear, jit_compile)
    for row, b in zip(whole.numpy(), linear, strict=True):
        alone = solve(nonnegative_qp, matrix, b[None], jit_compile)
        np.testing.assert_allclose(row, alone[0], atol=1e-14)


def test_separable_problem_is_exact():
    linear = np.array([[-0.5, 0.25, -1.0, 1.0]])
    y = nonnegative_qp(tf.eye(4, dtype="float64"), tf.constant(linear), RIDGE)
    np.testing.assert_array_equal(y, np.maximum(-linear, 0))
