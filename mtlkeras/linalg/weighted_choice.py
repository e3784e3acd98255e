import numpy as np
from keras import ops

from mtlkeras.linalg.counter_hash import WORD, random_integers


def weighted_choice(probabilities, seed, counter):
    """Draws an index for each value of a counter, with given probabilities.

    A function of its arguments alone, with the same result in eager mode, in
    a graph and under XLA; see `counter_hash`.

    Args:
        probabilities: Sequence of non-negative numbers, of any sum.
        seed: Python integer.
        counter: Integer or integer tensor of any shape.

    Returns:
        An int64 tensor of the shape of `counter`.
    """
    limits = choice_limits(probabilities)
    counter = ops.expand_dims(ops.cast(counter, "int64"), -1)
    drawn = random_integers(seed, counter, 1)  # [..., 1]
    return ops.sum(ops.cast(drawn >= limits[:-1], "int64"), axis=-1)


def choice_among(allowed, preferred, probabilities, seed, counter):
    """The preferred index if it is allowed, or else a draw of one that is.

    The draw is independent of that of `weighted_choice` for the same seed and
    counter, so with what that gives as the preferred index the result has the
    given probabilities, restricted to the allowed indices.

    Args:
        allowed: Boolean tensor of shape `[choices]`.
        preferred: Scalar int64 tensor.
        probabilities: Sequence of non-negative numbers, of any sum.
        seed: Python integer.
        counter: Integer or scalar integer tensor.

    Returns:
        A scalar int64 tensor; the preferred index if no allowed one has a
        positive probability.
    """
    widths = np.diff(choice_limits(probabilities), prepend=0)
    widths = ops.where(allowed, widths, np.zeros_like(widths))
    limits = ops.cumsum(widths)  # [choices]
    # 30 of the 32 bits, so that the product fits into an int64.
    drawn = ops.bitwise_right_shift(
        random_integers(seed, counter, 2)[1], np.asarray(2, "int64")
    )
    drawn = ops.bitwise_right_shift(drawn * limits[-1], np.asarray(30, "int64"))
    drawn = ops.sum(ops.cast(drawn >= limits[:-1], "int64"))
    keep = ops.logical_or(ops.take(allowed, preferred), limits[-1] == 0)
    return ops.where(keep, preferred, drawn)


def choice_limits(probabilities):
    """Where the words of each index end: a comparison of integers.

    No compiler can round it.
    """
    cumulative = np.cumsum(probabilities)
    return np.rint(cumulative / cumulative[-1] * WORD).astype("int64")
