import keras

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.preference import (
    check_preference,
    preference_weights,
)


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
        **kwargs: As for `Aggregator`.

    Raises:
        ValueError: If the preference is negative, all zero or of another
            length than the number of tasks.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(Mean()(jacobian))
    array([1., 1., 1.])
    """

    per_task_arguments = ("preference",)

    def __init__(self, preference=None, **kwargs):
        super().__init__(**kwargs)
        self.preference = check_preference(preference)

    def compute_weights(self, gramian, task_losses=None, live=None):
        return preference_weights(self.preference, gramian.shape[0], live)

    def get_config(self):
        return {**super().get_config(), "preference": self.preference}
