from keras import ops

from mtlkeras.linalg.positive_definite import matvec

HIGHEST = 0.999  # cosine that a target may ask for


def project_conflicts(cosines, nonzero, order):
    """Takes out of every gradient, one after the other, what conflicts.

    Row `i` starts as unit gradient `i` and meets the others in the order
    `order[i]`: where its inner product with unit gradient `j` is negative, the
    part along `j` is removed. All rows go at once, so `num_tasks` passes do.

    Args:
        cosines: Float64 tensor of shape `[num_tasks, num_tasks]`.
        nonzero: Boolean tensor of shape `[num_tasks]`; the others are left
            out.
        order: Integer tensor of shape `[num_tasks, num_tasks]`; every row a
            permutation.

    Returns:
        Coefficients on the unit gradients, `[num_tasks, num_tasks]`, one row
        per task.
    """

    def meet(position, rows):
        other, direction, takes_part = met(position, cosines, nonzero, order)
        inner = ops.sum(rows * ops.take(cosines, other, axis=0), -1)
        conflict = ops.logical_and(takes_part, inner < 0)
        removed = ops.where(conflict, inner, 0.0)
        return rows - removed[:, None] * direction

    identity = ops.eye(cosines.shape[0], dtype="float64")
    return ops.fori_loop(0, cosines.shape[0], meet, identity)


def raise_cosines(cosines, nonzero, order, targets, rate):
    """As `project_conflicts`, up to target cosines instead of up to 0.

    Args:
        targets: Float64 tensor of shape `[num_tasks, num_tasks]`: the cosine
            that the row of task `i` is to have with gradient `j`.
        rate: Float, how fast a target follows the cosines that are met.

    Returns:
        Tuple `(rows, targets)` with the new targets.
    """

    def meet(position, state):
        rows, targets = state
        other, direction, takes_part = met(position, cosines, nonzero, order)
        images = matvec(cosines, rows)
        length = ops.sqrt(ops.maximum(ops.sum(rows * images, -1), 0.0))
        takes_part = ops.logical_and(takes_part, length > 1e-14)
        length = ops.where(takes_part, length, 1.0)
        cosine = ops.clip(ops.sum(images * direction, -1) / length, -1.0, 1.0)
        target = ops.sum(targets * direction, -1)
        moved = ops.where(takes_part, rate * (cosine - target), 0.0)
        target = ops.clip(target, -HIGHEST, HIGHEST)
        below = ops.logical_and(takes_part, cosine < target)
        rest = ops.sqrt(1.0 - target * target)
        sine = ops.sqrt(1.0 - cosine * cosine)
        added = length * (target * sine - cosine * rest) / rest
        rows = rows + ops.where(below, added, 0.0)[:, None] * direction
        return rows, targets + moved[:, None] * direction

    identity = ops.eye(cosines.shape[0], dtype="float64")
    return ops.fori_loop(0, cosines.shape[0], meet, (identity, targets))


def met(position, cosines, nonzero, order):
    """Which gradient every row meets at a position of its order.

    Returns:
        Tuple of the indices, their unit vectors `[num_tasks, num_tasks]` and
        whether the meeting takes place.
    """
    size = cosines.shape[0]
    other = ops.cast(ops.take(order, position, axis=1), "int32")
    itself = ops.equal(other, ops.arange(size))
    takes_part = ops.logical_and(nonzero, ops.take(nonzero, other))
    takes_part = ops.logical_and(takes_part, ops.logical_not(itself))
    return other, ops.one_hot(other, size, dtype="float64"), takes_part
