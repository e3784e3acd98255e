import numpy as np
from keras import ops

from mtlkeras.linalg.nonnegative_qp import largest_step, with_diagonal
from mtlkeras.linalg.positive_definite import matvec, solver

MAX_STEPS = 60
TRIALS = 0.6 ** np.arange(12.0)


def power_balance(matrix, weights, power, ridge):
    """The positive solution of `B v = W v^(-p)`, element by element.

    It is the minimum of the convex function

    ```
    v' B v / 2 - sum_i W_i phi(v_i),   phi' = v^(-p)
    ```

    found by Newton's method with a line search over twelve fixed steps.

    Args:
        matrix: `B`, float64 tensor of shape `[size, size]`, symmetric and
            positive definite.
        weights: `W`, float64 tensor of shape `[size]`, positive.
        power: `p`, a positive float.
        ridge: Float, relative size of what is added to a Newton matrix.

    Returns:
        `v`, a tensor of shape `[size]`.
    """
    trials = ops.convert_to_tensor(TRIALS, "float64")

    def value(v):
        quadratic = ops.sum(v * matvec(matrix, v), -1) / 2.0
        if power == 1.0:
            barrier = ops.log(v)
        else:
            barrier = v ** (1.0 - power) / (1.0 - power)
        return quadratic - ops.sum(weights * barrier, -1)

    def go_on(v, done):
        return ops.logical_not(done)

    def step(v, done):
        falling = weights * v ** (-power)
        gradient = matvec(matrix, v) - falling
        solve = solver(with_diagonal(matrix, power * falling / v), ridge)
        dv = -solve(gradient)
        change = ops.max(ops.abs(dv / v))
        # Nine tenths of the way to the boundary, or a full step.
        longest = largest_step((v, dv / 0.9))
        tried = v[None, :] + (longest * trials)[:, None] * dv[None, :]
        best = ops.take(tried, ops.argmin(value(tried)), axis=0)
        # Close to the solution the objective is flat to rounding.
        new = ops.where(change < 0.01, v + dv, best)
        return new, change < 1e-13

    total = ops.sum(weights)
    start = total / ops.maximum(ops.sum(matrix), 1e-3 * total)
    start = ops.clip(start ** (1.0 / (1.0 + power)), 1e-3, 1e3)
    return ops.while_loop(
        go_on,
        step,
        (start * ops.ones_like(weights), ops.zeros((), "bool")),
        maximum_iterations=MAX_STEPS,
    )[0]
