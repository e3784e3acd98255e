import functools

from keras import ops

from mtlkeras.linalg.active_set import active_set
from mtlkeras.linalg.positive_definite import matvec, solver

MAX_STEPS = 20
FLOOR = 1e-40


def nonnegative_qp(matrix, linear, ridge):
    """Minimises `y' C y / 2 + b' y` over `y >= 0`, for many `b` at once.

    An active set method, and where that finds no answer within the accuracy
    of `C` a primal-dual interior point method (Mehrotra's predictor and
    corrector). Where the minimum is not unique (rank-deficient `C`) every
    answer has the same `C y`.

    Args:
        matrix: `C`, float64 tensor of shape `[size, size]`, positive
            semidefinite with a diagonal of 1.
        linear: `b`, float64 tensor of shape `[..., size]`, elements within
            -1 and 1.
        ridge: Float, the relative accuracy of `C`. As much is added to a
            Newton matrix.

    Returns:
        `y`, a tensor of shape `[..., size]`.
    """
    y, solved = active_set(matrix, linear, ridge)
    other = interior_point(matrix, linear, ridge, solved)
    return ops.where(solved[..., None], y, other)


def interior_point(matrix, linear, ridge, done):
    """As `nonnegative_qp`, but problems that are `done` are left alone."""

    def go_on(y, s, done):
        return ops.logical_not(ops.all(done))

    def step(y, s, done):
        residual = matvec(matrix, y) + linear - s
        gap = ops.mean(y * s, -1, keepdims=True)
        solve = solver(with_diagonal(matrix, s / y), ridge)
        # Predictor: straight to a gap of 0; it tells how far that may go.
        dy = solve(-residual - s)
        ds = matvec(matrix, dy) + residual
        t = largest_step((y, dy), (s, ds))
        after = ops.mean((y + t * dy) * (s + t * ds), -1, keepdims=True)
        center = (after / gap) ** 3 * gap
        # Corrector.
        target = center - y * s - dy * ds
        dy = solve(target / y - residual)
        ds = matvec(matrix, dy) + residual
        t = shortened(largest_step((y, dy), (s, ds)))
        new_y = ops.maximum(y + t * dy, FLOOR)
        new_s = ops.maximum(s + t * ds, FLOOR)
        error = ops.max(ops.abs(residual), -1)
        met = ops.logical_and(gap[..., 0] < 1e-15, error < 1e-14)
        done = ops.logical_or(done, met)
        keep = done[..., None]
        return ops.where(keep, y, new_y), ops.where(keep, s, new_s), done

    ones = ops.ones_like(linear)
    return ops.while_loop(
        go_on, step, (ones, ones, done), maximum_iterations=MAX_STEPS
    )[0]


def with_diagonal(matrix, diagonal):
    """`matrix` plus a diagonal matrix, `[..., size, size]`."""
    identity = ops.eye(matrix.shape[-1], dtype="float64")
    return matrix + identity * diagonal[..., None, :]


def largest_step(*pairs):
    """Largest step up to 1 that keeps `x + t dx >= 0` for every pair."""
    limits = []
    for x, dx in pairs:
        falls = dx < 0
        limit = ops.where(falls, -x / ops.where(falls, dx, -1.0), 1.0)
        limits.append(ops.min(limit, -1, keepdims=True))
    return ops.minimum(functools.reduce(ops.minimum, limits), 1.0)


def shortened(step):
    """A full step stays; another stops short of the boundary."""
    return ops.where(step < 1.0, 0.995 * step, step)
