"""Random integers that are a function of a seed and a counter.

A training step must draw the same random choice in eager mode, in a graph and
under XLA, and again after a restart. Floats and most generators do not promise
that; integer arithmetic does. So every choice of a strategy is a hash of
(seed, batch counter): there is no generator state to save, and nothing to go
out of step.
"""

import numpy as np
from keras import ops

WORD = 2**32  # the integers are uniform on [0, WORD)


def _constant(value):
    return np.asarray(value, dtype="int64")


def _mix(x):
    """One round of a 32-bit avalanche hash (multiply, xor, shift)."""
    # int64 products wrap around; their low 32 bits are right all the same.
    mask = _constant(WORD - 1)
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(16)))
    x = ops.bitwise_and(ops.multiply(x, _constant(0x7FEB352D)), mask)
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(15)))
    x = ops.bitwise_and(ops.multiply(x, _constant(0x846CA68B)), mask)
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(16)))


def random_integers(seed, counter, size):
    """Independent uniform integers on `[0, 2**32)`.

    Args:
        seed: Python integer.
        counter: Integer or scalar integer tensor, e.g. the batch counter.
        size: Integer or scalar integer tensor, how many to draw.

    Returns:
        An int64 tensor of shape `[size]`.
    """
    mask = _constant(WORD - 1)
    counter = ops.cast(counter, "int64")
    state = _mix(ops.convert_to_tensor(_constant(seed % WORD)))
    state = _mix(ops.bitwise_xor(state, ops.bitwise_and(counter, mask)))
    high = ops.bitwise_and(
        ops.bitwise_right_shift(counter, _constant(32)), mask
    )
    state = _mix(ops.bitwise_xor(state, high))
    # A counter that walks in steps of an odd constant visits distinct words.
    if isinstance(size, int):
        index = _constant((np.arange(1, size + 1) * 0x9E3779B1) % WORD)
    else:
        index = ops.arange(1, ops.cast(size, "int64") + 1, dtype="int64")
        index = ops.bitwise_and(index * _constant(0x9E3779B1), mask)
    return _mix(ops.bitwise_xor(state, index))  # [size]


def random_permutation(seed, counter, size):
    """A uniformly random permutation of `0 .. size - 1`.

    Returns:
        An int64 tensor of shape `[size]`.
    """
    keys = random_integers(seed, counter, size)
    # Equal words are broken by index, so the sort has one answer everywhere.
    keys = ops.multiply(keys, _constant(size)) + _constant(np.arange(size))
    return ops.cast(ops.argsort(keys), "int64")
