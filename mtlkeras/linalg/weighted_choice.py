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


def choice_limits(probabilities):
    """Where the words of each index end: a comparison of integers.

    No compiler can round it.
    """
    cumulative = np.cumsum(probabilities)
    return np.rint(cumulative / cumulative[-1] * WORD).astype("int64")
