import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator


@keras.saving.register_keras_serializable("mtlkeras")
class Sum(GramianAggregator):
    """The sum of the task gradients: what a summed loss does.

    ```
    d = sum_i g_i
    ```

    The baseline among aggregators. It trains as no aggregator at all, at the
    price of a backward pass per task, except that a task whose gradient is not
    finite is left out instead of the whole update.

    Args:
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(Sum()(jacobian))
    array([2., 2., 2.])
    """

    def compute_weights(self, gramian, task_losses=None, live=None):
        return ops.ones((gramian.shape[0],), "float64")
