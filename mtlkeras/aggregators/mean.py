import keras
import numpy as np
from keras import ops

from mtlkeras.aggregators.aggregator import GramianAggregator


@keras.saving.register_keras_serializable("mtlkeras")
class Mean(GramianAggregator):
    """The mean of the task gradients, or a fixed preference among them.

    ```
    d = sum_i p_i g_i,   p_i = 1 / T unless a preference is given
    ```

    Tasks without a label in a batch are left out and the weights of the others
    are scaled up to the same sum.

    Args:
        preference: Sequence of non-negative floats, one per task, with a
            positive sum; it is used as given. Defaults to `None`, `1 / T` for
            each of `T` tasks.
        name: String. Defaults to `None` (the class's name).

    Raises:
        ValueError: If the preference is negative, all zero or of another
            length than the number of tasks.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(Mean()(jacobian))
    array([1., 1., 1.])
    """

    def __init__(self, preference=None, name=None):
        super().__init__(name=name)
        self.preference = check_preference(preference)

    def compute_weights(self, gramian, task_losses=None, live=None):
        weights = preference_weights(self.preference, gramian)
        if live is None:
            return weights
        kept = ops.where(live, weights, 0.0)
        scale = ops.divide_no_nan(ops.sum(weights), ops.sum(kept))
        return kept * scale

    def get_config(self):
        return {"preference": self.preference, "name": self.name}


def check_preference(preference):
    """A list of floats, or `None`."""
    if preference is None:
        return None
    values = np.asarray(preference, dtype="float64")
    if values.ndim != 1 or (values < 0).any() or not values.sum() > 0:
        raise ValueError(
            "Argument `preference` must hold one non-negative number per task, "
            f"with a positive sum. Received: preference={preference!r}"
        )
    return values.tolist()


def preference_weights(preference, gramian):
    """The preference as a tensor, `[num_tasks]`; uniform for `None`."""
    num_tasks = gramian.shape[0]
    if preference is None:
        preference = [1.0 / num_tasks] * num_tasks
    if len(preference) != num_tasks:
        raise ValueError(
            "Argument `preference` must hold one number for each of the "
            f"{num_tasks} tasks. Received: preference={preference!r}"
        )
    return ops.cast(ops.convert_to_tensor(preference), gramian.dtype)
