"""Against loops over whole gradients, one operation after the other."""

import math

import numpy as np
import pytest
import tensorflow as tf
from jacobians import draw

from mtlkeras.linalg.sequential_projection import (
    project_conflicts,
    raise_cosines,
)

KINDS = ["normal", "conflict", "lowrank", "zerorow", "duprow", "stationary"]


def unit_rows(kind, size):
    rows = draw(kind, size, 60)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def arguments(unit, seed=0):
    size = len(unit)
    rng = np.random.default_rng(seed)
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, 1.0)
    order = np.array([rng.permutation(size) for _ in range(size)])
    return matrix, unit.any(axis=1), order


def projected(unit, order):
    found = []
    for i, row in enumerate(unit):
        p = row.copy()
        for j in order[i]:
            inner = p @ unit[j]
            if j != i and inner < 0:
                p = p - inner * unit[j]
        found.append(p)
    return np.array(found)


def raised(unit, order, targets, rate):
    targets, found = targets.copy(), []
    for i, row in enumerate(unit):
        p = row.copy()
        for j in order[i]:
            if j == i or not unit[i].any() or not unit[j].any():
                continue
            length = np.linalg.norm(p)
            cosine = np.clip(p @ unit[j] / length, -1, 1)
            phi = targets[i, j]
            if cosine < phi:
                root = math.sqrt(1 - phi**2)
                lift = phi * math.sqrt(1 - cosine**2) - cosine * root
                p = p + length * lift / root * unit[j]
            targets[i, j] += rate * (cosine - phi)
        found.append(p)
    return np.array(found), targets


def modes(function):
    return [
        tf.function(function, autograph=False, jit_compile=xla)
        for xla in (False, True)
    ]


PROJECT, RAISE = modes(project_conflicts), modes(raise_cosines)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("mode", [0, 1], ids=["plain", "xla"])
def test_project_conflicts_equals_loops(size, mode):
    for kind in KINDS:
        unit = unit_rows(kind, size)
        matrix, nonzero, order = arguments(unit)
        rows = PROJECT[mode](
            *map(tf.constant, (matrix, nonzero, order))
        ).numpy()
        found = rows * nonzero @ unit
        np.testing.assert_allclose(found, projected(unit, order), atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 8, 40])
@pytest.mark.parametrize("mode", [0, 1], ids=["plain", "xla"])
def test_raise_cosines_equals_loops(size, mode):
    rng = np.random.default_rng(size)
    for kind in ("normal", "conflict", "zerorow"):
        unit = unit_rows(kind, size)
        matrix, nonzero, order = arguments(unit)
        targets = rng.uniform(-0.3, 0.3, (size, size))
        rows, moved = RAISE[mode](
            *map(tf.constant, (matrix, nonzero, order, targets)), 0.3
        )
        wanted, targets = raised(unit, order, targets, 0.3)
        found = rows.numpy() * nonzero @ unit
        size_of = np.max(np.linalg.norm(wanted, axis=1))
        np.testing.assert_allclose(found, wanted, atol=1e-9 * size_of)
        np.testing.assert_allclose(moved, targets, atol=1e-9)


def test_targets_of_one_do_not_divide_by_zero():
    unit = unit_rows("duprow", 3)
    matrix, nonzero, order = arguments(unit)
    rows, targets = raise_cosines(
        *map(tf.constant, (matrix, nonzero, order)),
        tf.ones((3, 3), "float64"),
        0.5,
    )
    assert np.all(np.isfinite(rows))
    assert np.all(np.isfinite(targets))
