from keras import ops

from mtlkeras.linalg.positive_definite import matvec

# Slopes and errors that count as 0; those of exact arithmetic are within 1.
SLOPE = 1e-13
ERROR = 1e-12


def active_set(matrix, linear, smallest_pivot):
    """Minimises `y' C y / 2 + b' y` over `y >= 0`, for many `b` at once.

    Lawson and Hanson's method: the coordinate with the steepest descent
    becomes free, one that would turn negative is fixed at 0 again. Every such
    change is one pivot in a table of all products that the next one needs, a
    rank-one update, so all problems advance together.

    Exact up to rounding, and each answer is checked; where free coordinates
    are nearly dependent there may be none.

    Args:
        matrix: `C`, float64 tensor of shape `[size, size]`, positive
            semidefinite with a diagonal of 1.
        linear: `b`, float64 tensor of shape `[..., size]`, elements within
            -1 and 1.
        smallest_pivot: Float; a coordinate whose square is less than this off
            the span of the free ones does not become free.

    Returns:
        `y`, a tensor of shape `[..., size]`, and whether it meets the
        conditions of optimality, a tensor of shape `[...]`.
    """
    size = matrix.shape[-1]
    indices = ops.arange(size)

    def go_on(table, y, free, done):
        return ops.logical_not(ops.all(done))

    def pivot(table, y, free, done):
        # The last column: minus the free minimum, and the slopes at it.
        wanted = ops.where(free, -table[..., size], 0.0)
        slopes = ops.where(free, 0.0, table[..., size])
        falls = ops.logical_and(free, wanted <= 0)
        length = ops.where(falls, y / ops.maximum(y - wanted, 1e-300), 1.0)
        leaves = ops.any(falls, -1)
        regular = ops.diagonal(table, axis1=-2, axis2=-1) > smallest_pivot
        may_enter = ops.logical_and(ops.logical_not(free), regular)
        slopes = ops.where(may_enter, slopes, 0.0)
        k = ops.where(leaves, ops.argmin(length, -1), ops.argmin(slopes, -1))
        chosen = indices == k[..., None]
        done = ops.logical_and(
            ops.logical_not(leaves), ops.all(slopes >= -SLOPE, -1)
        )
        moved = y + ops.min(length, -1, keepdims=True) * (wanted - y)
        moved = ops.where(
            ops.logical_and(leaves[..., None], chosen), 0.0, moved
        )
        y = ops.where(done[..., None], wanted, moved)
        flips = ops.logical_and(chosen, ops.logical_not(done)[..., None])
        free = ops.logical_xor(free, flips)
        return exchange(table, k, chosen, leaves, done), y, free, done

    def exchange(table, k, chosen, leaves, done):
        row = ops.take_along_axis(table, k[..., None, None], -2)[..., 0, :]
        unit = ops.cast(chosen, "float64")
        sign = ops.cast(ops.where(leaves, -1, 1), "float64")[..., None]
        d = ops.sum(row[..., :size] * unit, -1, keepdims=True)
        left = row[..., :size] - sign * unit
        padded = ops.concatenate([unit, ops.zeros_like(d)], -1)
        right = row - sign * padded
        left = left / ops.where(done[..., None], 1.0, d)
        change = left[..., :, None] * right[..., None, :]
        change = change + (2 * sign * unit)[..., :, None] * padded[..., None, :]
        return ops.where(done[..., None, None], table, table - change)

    start = ops.broadcast_to(matrix, (*linear.shape, size))
    table = ops.concatenate([start, linear[..., None]], -1)
    y = ops.zeros_like(linear)
    free = ops.zeros(linear.shape, "bool")
    done = ops.zeros(linear.shape[:-1], "bool")
    table, y, free, done = ops.while_loop(
        go_on, pivot, (table, y, free, done), maximum_iterations=3 * size
    )
    # The table holds minus the inverse for the free coordinates.
    for _ in range(2):
        slopes = ops.where(free, matvec(matrix, y) + linear, 0.0)
        y = y + ops.where(free, matvec(table[..., :size], slopes), 0.0)
    slopes = matvec(matrix, y) + linear
    error = ops.maximum(
        -ops.minimum(y, slopes), ops.where(free, ops.abs(slopes), 0.0)
    )
    solved = ops.logical_and(
        done, ops.max(error, -1) <= max(ERROR, smallest_pivot)
    )
    return ops.maximum(y, 0.0), solved
