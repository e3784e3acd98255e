import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from jacobians import KINDS, draw

from mtlkeras.linalg.eigen import (
    in_next_order,
    pseudo_inverse_apply,
    symmetric_eigen,
)

MODES = {
    "plain": tf.function(symmetric_eigen, autograph=False),
    "xla": tf.function(symmetric_eigen, autograph=False, jit_compile=True),
}


def check(values, vectors, matrix, tolerance=1e-13):
    size = np.max(np.abs(matrix)) or 1.0
    count = len(matrix)
    found = vectors * values @ vectors.T
    assert np.max(np.abs(found - matrix)) <= tolerance * count * size
    product = vectors.T @ vectors
    assert np.max(np.abs(product - np.eye(count))) <= tolerance * count
    wanted = scipy.linalg.eigh(matrix, eigvals_only=True)
    error = np.max(np.abs(np.sort(values) - wanted))
    assert error <= tolerance * count * size


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", MODES)
def test_gramians(size, mode):
    for kind in KINDS:
        jacobian = draw(kind, size, 60)
        matrix = jacobian @ jacobian.T
        largest = np.max(np.abs(matrix)) or 1.0
        values, vectors = MODES[mode](tf.constant(matrix / largest))
        check(values.numpy(), vectors.numpy(), matrix / largest)


@pytest.mark.parametrize("mode", MODES)
def test_small_eigenvalues_to_rounding(mode):
    # Graded matrices keep their relative accuracy; `eigh` does not.
    scale = np.logspace(0, -6, 8)
    unit = draw("normal", 8, 60)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    matrix = unit @ unit.T * scale * scale[:, None]
    values = np.sort(MODES[mode](tf.constant(matrix))[0].numpy())
    wanted = np.sort(
        scipy.linalg.svd(unit * scale[:, None], compute_uv=False) ** 2
    )
    np.testing.assert_allclose(values, wanted, rtol=1e-8)


def test_indefinite_matrices():
    for size in (2, 3, 8):
        rng = np.random.default_rng(size)
        matrix = rng.normal(size=(size, size))
        matrix = matrix + matrix.T
        values, vectors = MODES["plain"](tf.constant(matrix))
        check(values.numpy(), vectors.numpy(), matrix)


@pytest.mark.parametrize("size", [2, 4, 8, 40])
def test_every_pair_meets_once(size):
    half = size // 2
    order, met = np.arange(size)[None], set()
    for _ in range(size - 1):
        pairs = zip(order[0, :half], order[0, half:], strict=True)
        met |= {frozenset(map(int, pair)) for pair in pairs}
        order = np.array(in_next_order(order[:, :half], order[:, half:]))
    assert len(met) == size * (size - 1) // 2
    np.testing.assert_array_equal(order[0], np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_pseudo_inverse_equals_scipy(size):
    for kind in ("normal", "conflict", "duprow", "lowrank", "zerorow"):
        jacobian = draw(kind, size, 60)
        matrix = jacobian @ jacobian.T
        vector = matrix @ np.linspace(1, 2, size) + 0.1
        found = pseudo_inverse_apply(
            tf.constant(matrix), tf.constant(vector), 1e-12
        )
        wanted = scipy.linalg.pinvh(matrix, rtol=1e-12) @ vector
        size_of = np.linalg.norm(wanted)
        assert np.linalg.norm(found - wanted) <= 1e-9 * size_of, kind
