import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.preference import (
    check_preference,
    preference_weights,
)
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.nonnegative_qp import nonnegative_qp
from mtlkeras.linalg.positive_definite import matvec


@keras.saving.register_keras_serializable("mtlkeras")
class DualProj(GramianAggregator):
    """The mean gradient made harmless to all tasks.

    ```
    d = argmin ||x - sum_i p_i g_i||  over  <g_j, x> >= 0 for all j
    ```

    The direction nearest to the mean along which no loss increases to first
    order. One small problem per step where `UPGrad` has one per task; in
    exchange a task that the mean hurts gets only what keeps it from harm
    (`<g_j, d> = 0`), while `UPGrad` lets it gain.

    Args:
        preference: Sequence of non-negative floats `p_i`, one per task, with a
            positive sum. Defaults to `None`, `1 / T` each.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(DualProj()(jacobian)).round(4)
    array([0.5556, 1.1111, 1.1111])

    Departures: solved exactly and without a ridge, so that short gradients are
    protected as long ones are.

    References:
        - [Lopez-Paz and Ranzato, 2017: Gradient Episodic
          Memory](https://arxiv.org/abs/1706.08840)
        - [Quinton and Rey, 2024](https://arxiv.org/abs/2406.16232)
    """

    per_task_arguments = ("preference",)

    def __init__(self, preference=None, **kwargs):
        super().__init__(**kwargs)
        self.preference = check_preference(preference)

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        preference = preference_weights(self.preference, num_tasks, live)
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        weights = harmless_mean(
            cosines,
            norms,
            nonzero,
            preference,
            resolution(gramian.dtype, num_tasks),
        )
        return ops.where(nonzero, weights, 0.0)

    def get_config(self):
        return {**super().get_config(), "preference": self.preference}


def harmless_mean(cosines, norms, nonzero, preference, ridge):
    """Weights of the projection of a mean gradient on the dual cone."""
    # The longest gradient sets the unit.
    longest = ops.max(ops.where(nonzero, norms, 0.0))
    norms = norms / ops.where(longest > 0, longest, 1.0)
    mean = ops.where(nonzero, preference * norms, 0.0)
    images = matvec(cosines, mean)
    length = ops.sqrt(ops.maximum(ops.sum(mean * images), 0.0))
    safe = ops.where(length > 0, length, 1.0)
    linear = ops.where(nonzero, ops.clip(images / safe, -1.0, 1.0), 1.0)
    added = length * nonnegative_qp(cosines, linear, ridge)
    return (mean + ops.where(nonzero, added, 0.0)) / norms
