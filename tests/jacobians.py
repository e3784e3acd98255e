"""Matrices of task gradients: drawn by kind, and golden vectors for some."""

import functools
import pathlib

import numpy as np

GOLDEN_FILE = pathlib.Path(__file__).parent / "data" / "aggregators.npz"

# What rules may find difficult; `draw` tells what each of them is.
KINDS = ["normal", "badscale", "midscale", "conflict", "aligned", "lowrank"]
KINDS += ["zerorow", "duprow", "stationary", "parallel", "opposite", "zero"]

# Kinds where every rule has one well-conditioned answer.
WELL_POSED = ["normal", "conflict", "aligned"]


def draw(kind, num_tasks, num_params, seed=0):
    """A matrix `[num_tasks, num_params]` of float64."""
    rng = np.random.default_rng(
        [seed, KINDS.index(kind), num_tasks, num_params]
    )
    rows = rng.normal(size=(num_tasks, num_params))
    last = num_tasks - 1
    if kind == "badscale":
        lengths = np.logspace(-6, 6, num_tasks) if last else [1e-6]
        rows *= rng.permutation(lengths)[:, None]
    elif kind == "midscale":
        rows *= rng.permutation(np.logspace(-2, 2, num_tasks))[:, None]
    elif kind == "conflict":
        signs = (-1.0) ** np.arange(num_tasks)
        rows = signs[:, None] * rng.normal(size=num_params) + 0.3 * rows
    elif kind == "aligned":
        rows = np.abs(rows)
    elif kind == "lowrank":
        rank = max(1, num_tasks // 2)
        rows = rng.normal(size=(num_tasks, rank)) @ rows[:rank]
    elif kind == "zerorow":
        rows[last] = 0.0
    elif kind == "duprow":
        rows[last] = rows[0]
    elif kind == "stationary" and last:
        rows[last] = -rng.uniform(0.5, 1.5, last) @ rows[:last]
    elif kind == "parallel":
        rows = rng.uniform(0.5, 2, (num_tasks, 1)) * rows[0] + 1e-7 * rows
    elif kind == "opposite" and last:
        rows[last] = -rows[0]
    elif kind == "zero":
        rows[:] = 0.0
    return rows


def drawn(num_tasks, num_params, kinds=KINDS):
    """Dict from kind to matrix."""
    return {kind: draw(kind, num_tasks, num_params) for kind in kinds}


@functools.cache
def golden():
    """Dict from name to array; `data/README.md` says what they are."""
    with np.load(GOLDEN_FILE) as file:
        return dict(file)


def golden_kinds():
    return [str(kind) for kind in golden()["kinds"]]


def relative_error(found, wanted, jacobian):
    """Length of a difference, relative to the size of the matrix."""
    size = np.linalg.norm(jacobian)
    return np.linalg.norm(np.asarray(found, "float64") - wanted) / (size or 1.0)
