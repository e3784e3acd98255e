from keras import ops

from mtlkeras.linalg.nonnegative_qp import (
    FLOOR,
    MAX_STEPS,
    largest_step,
    shortened,
    with_diagonal,
)
from mtlkeras.linalg.positive_definite import matvec, solver


def simplex_qp(matrix, linear, scales, ridge):
    """Minimises `y' C y / 2 + b' y` over `a' y = 1`, `y >= 0`.

    With `a = 1` that is the simplex. As `nonnegative_qp` with one multiplier
    more; equal rows get equal shares.

    Args:
        matrix: `C`, float64 tensor of shape `[size, size]`, positive
            semidefinite with a diagonal of 1.
        linear: `b`, float64 tensor of shape `[size]`.
        scales: `a`, float64 tensor of shape `[size]`, non-negative with a
            positive sum. A variable that is to be 0 has `a_i = 0, b_i = 1`.
        ridge: Float, relative size of what is added to a Newton matrix.

    Returns:
        Tuple `(y, solve)`: the minimum, a tensor of shape `[size]`, and the
        function that solves systems with the last Newton matrix.
    """
    # On the constraint this product is constant; off it, it keeps the Newton
    # matrix regular on the null space of `C`.
    regular = matrix + scales[:, None] * scales[None, :]

    def newton(y, s):
        return solver(with_diagonal(regular, s / y), ridge)

    def go_on(y, s, nu, done):
        return ops.logical_not(done)

    def step(y, s, nu, done):
        residual = matvec(matrix, y) + linear - nu * scales - s
        missing = 1.0 - ops.sum(scales * y)
        gap = ops.mean(y * s)
        solve = newton(y, s)
        of_scales = solve(scales)
        weight = ops.sum(scales * of_scales)

        def direction(target):
            first = solve(target / y - residual + scales * missing)
            dnu = (missing - ops.sum(scales * first)) / weight
            dy = first + dnu * of_scales
            return dy, matvec(matrix, dy) - dnu * scales + residual, dnu

        dy, ds, _ = direction(-y * s)
        t = largest_step((y, dy), (s, ds))
        after = ops.mean((y + t * dy) * (s + t * ds))
        center = (after / gap) ** 3 * gap
        dy, ds, dnu = direction(center - y * s - dy * ds)
        t = shortened(largest_step((y, dy), (s, ds)))
        curvature = ops.sum(y * matvec(matrix, y))
        size = ops.maximum(
            ops.maximum(ops.abs(ops.sum(linear * y)), curvature), 1.0
        )
        done = gap < 1e-16 * size
        return (
            ops.where(done, y, ops.maximum(y + t * dy, FLOOR)),
            ops.where(done, s, ops.maximum(s + t * ds, FLOOR)),
            ops.where(done, nu, nu + t[0] * dnu),
            done,
        )

    ones = ops.ones_like(linear)
    y, s, _, _ = ops.while_loop(
        go_on,
        step,
        (
            ones / ops.sum(scales),
            ones,
            ops.zeros((), "float64"),
            ops.zeros((), "bool"),
        ),
        maximum_iterations=MAX_STEPS,
    )
    return y, newton(y, s)
