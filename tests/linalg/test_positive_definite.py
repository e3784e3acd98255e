import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from jacobians import draw

from mtlkeras.linalg.positive_definite import matvec, solver


def solve(matrix, right, ridge):
    # One function each: `solver` closes over its matrix.
    return solver(matrix, ridge)(right)


MODES = {
    "plain": tf.function(solve, autograph=False, reduce_retracing=False),
    "xla": tf.function(solve, autograph=False, jit_compile=True),
}


def spread(size, condition, batch=()):
    """Symmetric matrices with the given ratio of eigenvalues."""
    rng = np.random.default_rng(size)
    found = []
    for _ in range(int(np.prod(batch))):
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        values = np.logspace(0, -np.log10(condition), size)
        found.append(basis * values @ basis.T)
    return np.reshape(found, (*batch, size, size))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", MODES)
def test_equals_scipy(size, mode):
    rng = np.random.default_rng(0)
    for condition in (1.0, 1e3, 1e6):
        matrix = spread(size, condition, (3,))
        right = rng.normal(size=(3, size))
        found = MODES[mode](matrix, right, 0.0).numpy()
        for a, b, x in zip(matrix, right, found, strict=True):
            wanted = scipy.linalg.solve(a, b, assume_a="pos")
            error = np.linalg.norm(x - wanted) / np.linalg.norm(wanted)
            assert error <= 1e-13 * condition


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_any_scale(mode):
    matrix = spread(8, 10.0, (1,))
    scale = np.logspace(-6, 6, 8)
    right = np.ones((1, 8))
    found = MODES[mode](matrix * scale * scale[:, None], right * scale, 0.0)
    wanted = np.linalg.solve(matrix[0], right[0]) / scale
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


def test_ridge_is_relative_to_the_diagonal():
    matrix = 1e6 * spread(5, 100.0)
    matrix = matrix.reshape(5, 5)
    right = np.ones(5)
    ridged = matrix + 1e-3 * np.diag(np.diagonal(matrix))
    found = solver(keras.ops.convert_to_tensor(matrix), 1e-3)(right)
    np.testing.assert_allclose(found, np.linalg.solve(ridged, right), rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_singular_matrices_give_numbers(mode):
    for kind in ("duprow", "lowrank", "opposite", "stationary"):
        unit = draw(kind, 8, 20)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        right = (unit @ unit.T @ np.ones(8))[None]
        found = MODES[mode]((unit @ unit.T)[None], right, 8 * 2.2e-16).numpy()
        assert np.all(np.isfinite(found))
        residual = unit @ unit.T @ found[0] - right[0]
        # Rough, and good enough for a direction of Newton's method.
        assert np.linalg.norm(residual) <= 2e-2 * np.linalg.norm(right)


def test_matvec():
    rng = np.random.default_rng(0)
    matrix, vector = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3))
    wanted = np.einsum("bij,bj->bi", matrix, vector)
    np.testing.assert_allclose(matvec(matrix, vector), wanted, rtol=1e-13)
