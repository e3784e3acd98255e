from keras import ops


def simplex_projection(point, live, mass):
    """The nearest point with non-negative elements of a given sum.

    Args:
        point: Float64 tensor of shape `[size]`.
        live: Boolean tensor of shape `[size]`; the other elements become 0.
        mass: Scalar, the sum.

    Returns:
        A tensor of shape `[size]`.
    """
    low = ops.min(point) - mass - 1.0
    ordered = ops.flip(ops.sort(ops.where(live, point, low)))
    rank = ops.cast(ops.arange(1, point.shape[0] + 1), "float64")
    # The largest elements stay positive after an equal amount is taken off.
    taken = (ops.cumsum(ordered) - mass) / rank
    positive = ordered - taken > 0
    last = ops.maximum(ops.sum(ops.cast(positive, "int32")) - 1, 0)
    found = ops.maximum(point - ops.take(taken, last), 0.0)
    return ops.where(live, found, 0.0)
