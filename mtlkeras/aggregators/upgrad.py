import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.preference import (
    check_preference,
    preference_weights,
)
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.nonnegative_qp import nonnegative_qp


@keras.saving.register_keras_serializable("mtlkeras")
class UPGrad(GramianAggregator):
    """Every gradient made harmless to all tasks, then their mean.

    Each `g_i` is projected on the dual cone, the directions along which no
    loss increases to first order, and the projections are averaged:

    ```
    d = sum_i p_i projection(g_i),
    projection(g) = argmin ||x - g||  over  <g_j, x> >= 0 for all j
    ```

    No task gets worse, and unlike with `MGDA` a task with a large gradient
    keeps its influence: the rule is linear in the scale of every task. Where
    there is no conflict it is the mean. Choose it as a conflict-free drop-in
    for the sum of losses.

    Solved exactly, for all tasks at once, by an active set method.

    Args:
        preference: Sequence of non-negative floats `p_i`, one per task, with a
            positive sum. Defaults to `None`, `1 / T` each.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(UPGrad()(jacobian)).round(4)
    array([0.2924, 1.9006, 1.9006])

    Departures: the paper's code adds a ridge of 1e-4 of the sum of squared
    lengths, so tasks with a gradient a hundred times shorter than the longest
    may get worse, and returns the mean where all gradients are short. Neither
    is needed here.

    References:
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
        # Projecting unit gradient i on the cone adds multiples of the others.
        linear = ops.where(nonzero[None, :], cosines, 1.0)
        added = nonnegative_qp(
            cosines, linear, resolution(gramian.dtype, num_tasks)
        )
        added = ops.where(nonzero[None, :], added, 0.0)
        rows = ops.eye(num_tasks, dtype="float64") + added
        lengths = ops.where(nonzero, preference * norms, 0.0)
        weights = ops.matmul(lengths[None, :], rows)[0] / norms
        # A gradient of 0 keeps its share; it changes nothing.
        return ops.where(nonzero, weights, 0.0)

    def get_config(self):
        return {**super().get_config(), "preference": self.preference}
