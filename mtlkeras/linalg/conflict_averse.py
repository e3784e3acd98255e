import numpy as np
from keras import ops

from mtlkeras.linalg.positive_definite import matvec
from mtlkeras.linalg.simplex_qp import simplex_qp

MAX_STEPS = 30


def conflict_averse_shift(cosines, mean, scales, radius, ridge, finest):
    """The step from the mean gradient that helps the worst-off task most.

    All vectors are given by their coefficients on the unit gradients. Of all
    `d` within `radius |g_0|` around the mean `g_0`, the one with the largest
    `min_i <g_i, d>` is `g_0 + |g_0| J' z` with

    ```
    z = argmin_z b' z + z' C z / 2   over a' z = lambda, z >= 0
    ```

    and the one `lambda` for which `z' C z = radius^2`; `b` are the cosines
    with `g_0` and `a` the inverse lengths. The root is found by Newton's
    method, whose tangent the last linear system of the inner problem gives,
    inside a bracket.

    Args:
        cosines: Float64 tensor of shape `[num_tasks, num_tasks]`.
        mean: `b`, tensor of shape `[num_tasks]`; 1 for a task to leave out.
        scales: `a`, tensor of shape `[num_tasks]`; at most 1, and 0 for a
            task to leave out.
        radius: Positive float.
        ridge: Float, relative size of what is added to a Newton matrix.
        finest: The shortest mean of unit gradients that counts as not 0.

    Returns:
        Tuple `(z, found)`. `found` is false where no direction gains on all
        tasks (a Pareto-stationary point, to the accuracy of `cosines`).
    """
    smallest = ops.min(ops.where(scales > 0, scales, 1.0))
    low = ops.log(radius * smallest) - 3.0
    high = ops.convert_to_tensor(np.log(radius / finest), "float64")

    def length(z):
        return ops.sqrt(ops.maximum(ops.sum(z * matvec(cosines, z)), 0.0))

    def solve_for(log):
        level = ops.exp(log)
        unit = ops.maximum(level, 1.0)
        y, solve = simplex_qp(
            cosines, mean / unit, scales * (unit / level), ridge
        )
        z = unit * y
        tangent = solve(scales)
        tangent = level * tangent / ops.sum(scales * tangent)
        return z, tangent

    def go_on(log, low, high, z, is_end, found, done):
        return ops.logical_not(done)

    def step(log, low, high, z, is_end, found, done):
        z, tangent = solve_for(log)
        reached = length(z)
        found = ops.abs(reached - radius) < 1e-12 * radius
        short = reached < radius
        low, high = ops.where(short, log, low), ops.where(short, high, log)
        # The upper end is tried once before it is believed.
        is_end = ops.logical_or(is_end, ops.logical_not(short))
        square = ops.maximum(
            ops.sum(tangent * matvec(cosines, tangent)), 1e-300
        )
        mixed = ops.sum(z * matvec(cosines, tangent))
        rest = reached * reached - radius * radius
        root = ops.sqrt(ops.maximum(mixed * mixed - square * rest, 0.0))
        gain = ops.maximum((root - mixed) / square, -1.0 + 1e-12)
        proposal = log + ops.log1p(gain)
        inside = ops.logical_and(proposal > low, proposal < high)
        to_end = ops.logical_and(proposal >= high, ops.logical_not(is_end))
        middle = (low + high) / 2.0
        new = ops.where(inside, proposal, ops.where(to_end, high, middle))
        stuck = ops.logical_and(short, log >= high)
        tight = ops.abs(new - log) < 1e-15 * ops.maximum(ops.abs(log), 1.0)
        done = ops.logical_or(found, ops.logical_or(stuck, tight))
        found = ops.logical_or(
            found, ops.logical_and(tight, ops.logical_not(stuck))
        )
        return new, low, high, z, is_end, found, done

    uniform = ops.cast(scales > 0, "float64") / ops.sum(scales)
    start = ops.log(radius / ops.maximum(length(uniform), finest))
    no = ops.zeros((), "bool")
    state = ops.while_loop(
        go_on,
        step,
        (ops.clip(start, low, high), low, high, uniform, no, no, no),
        maximum_iterations=MAX_STEPS,
    )
    z = state[3]
    found = ops.logical_or(
        state[5], ops.abs(length(z) - radius) < 1e-6 * radius
    )
    return z, found
