from keras import ops


def mean_over_positions(x, mask):
    """`[batch, ..., features]` -> `[batch, features]`, without masked ones."""
    rank = len(x.shape)
    if rank == 2:
        return x
    if mask is None:
        return ops.mean(x, axis=tuple(range(1, rank - 1)))
    rank_of_mask = len(mask.shape)
    if rank_of_mask < rank - 1:
        x = ops.mean(x, axis=tuple(range(rank_of_mask, rank - 1)))
    axes = tuple(range(1, rank_of_mask))
    mask = ops.expand_dims(mask, -1)
    # Not times 0: what is masked may be NaN.
    x = ops.where(mask, x, ops.zeros_like(x))
    kept = ops.mean(ops.cast(mask, x.dtype), axis=axes)
    kept = ops.where(kept > 0, kept, ops.ones_like(kept))
    return ops.mean(x, axis=axes) / kept
