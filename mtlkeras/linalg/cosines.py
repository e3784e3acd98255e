import keras
import numpy as np
from keras import ops


def cosines_and_norms(gramian, live=None):
    """Splits a Gramian into cosines and lengths of the gradients.

    Problems that are solved on the cosines do not feel the scale of a task:
    lengths from 1e-6 to 1e6 in one matrix do no harm.

    Args:
        gramian: Tensor of shape `[num_tasks, num_tasks]`, of any float dtype.
        live: Boolean tensor of shape `[num_tasks]`, or `None` (all).

    Returns:
        Tuple `(cosines, norms, nonzero)`. `cosines` is float64 with a diagonal
        of 1 and zeros between a gradient that is 0 or not live and the others;
        `norms` is float64, 1 for those; `nonzero` is a boolean tensor that
        tells the other gradients.
    """
    gramian = ops.cast(gramian, "float64")
    squares = ops.diagonal(gramian)
    nonzero = ops.greater(squares, 0.0)
    if live is not None:
        nonzero = ops.logical_and(nonzero, live)
    norms = ops.where(nonzero, ops.sqrt(ops.maximum(squares, 0.0)), 1.0)
    pairs = ops.logical_and(nonzero[:, None], nonzero[None, :])
    # One after the other: the product of two lengths may underflow.
    cosines = gramian / norms[:, None] / norms[None, :]
    cosines = ops.where(pairs, cosines, 0.0)
    cosines = ops.clip((cosines + ops.transpose(cosines)) / 2.0, -1.0, 1.0)
    identity = ops.eye(gramian.shape[0], dtype="float64")
    return ops.where(identity > 0, 1.0, cosines), norms, nonzero


def resolution(dtype, num_tasks):
    """What rounding of a Gramian of this dtype leaves undecided."""
    dtype = keras.backend.standardize_dtype(dtype)
    # NumPy knows no bfloat16; such Gramians are summed in float32.
    dtype = dtype if dtype in ("float16", "float64") else "float32"
    return num_tasks * float(np.finfo(dtype).eps)
