"""Against SciPy's active set method and the conditions of optimality."""

import numpy as np
import pytest
import tensorflow as tf
from jacobians import KINDS, draw
from scipy.optimize import nnls

from mtlkeras.linalg.nonnegative_qp import nonnegative_qp

MODES = {
    "plain": tf.function(nonnegative_qp, autograph=False),
    "xla": tf.function(nonnegative_qp, autograph=False, jit_compile=True),
}
RIDGE = 40 * 2.0**-52


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
        yield kind, matrix, unit, targets


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", MODES)
def test_projects_on_the_dual_cone(size, mode):
    for kind, matrix, unit, targets in problems(size):
        linear = targets @ unit.T
        # A gradient of 0 is kept out, as the rules do.
        linear[:, ~unit.any(axis=1)] = 1.0
        y = MODES[mode](tf.constant(matrix), tf.constant(linear), RIDGE).numpy()
        assert np.all(y >= 0)
        found = targets + y @ unit
        wanted = np.array([t + unit.T @ nnls(unit.T, -t)[0] for t in targets])
        error = np.max(np.linalg.norm(found - wanted, axis=1))
        # Half the digits where multiplier and slack are both 0.
        tolerance = 2e-9 if size == 40 else 2e-11
        assert error <= (5e-5 if kind == "opposite" else tolerance), kind
        # Optimality: no negative slope, and none where y is positive.
        slopes = y @ matrix + linear
        tolerance = 5e-5 if kind == "opposite" else 1e-9
        assert np.min(slopes) >= -tolerance, kind
        assert np.max(np.minimum(y, slopes)) <= max(tolerance, 1e-7), kind


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_as_one_by_one(mode):
    _, matrix, unit, targets = next(problems(8))
    linear = targets @ unit.T
    whole = MODES[mode](tf.constant(matrix), tf.constant(linear), RIDGE)
    for row, b in zip(whole.numpy(), linear, strict=True):
        alone = MODES[mode](tf.constant(matrix), tf.constant(b[None]), RIDGE)
        np.testing.assert_allclose(row, alone[0], atol=1e-8)


def test_separable_problem_is_exact():
    linear = np.array([[-0.5, 0.25, -1.0, 1.0]])
    y = nonnegative_qp(tf.eye(4, dtype="float64"), tf.constant(linear), RIDGE)
    np.testing.assert_allclose(y, np.maximum(-linear, 0), atol=1e-9)
