import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.imtl_g import equal_projections
from mtlkeras.aggregators.preference import (
    check_preference,
    preference_weights,
)
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.positive_definite import matvec


@keras.saving.register_keras_serializable("mtlkeras")
class ConFIG(GramianAggregator):
    """A direction with equal, positive cosines to all task gradients.

    ```
    u = normalize(pinv([g_1 / ||g_1||, ..., g_T / ||g_T||]) p),
    d = (sum_i <g_i, u>) u
    ```

    Free of conflict wherever that is possible, blind to the scale of a loss in
    its direction, and as long as the gradients agree: it shrinks where they
    cancel. Made for physics-informed networks, whose losses conflict strongly.

    Args:
        preference: Sequence of non-negative floats `p_i`, one per task, with a
            positive sum: the ratios of the cosines. Defaults to `None`, all
            equal.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(ConFIG()(jacobian)).round(4)
    array([0.1588, 2.0706, 2.0706])

    Departures: computed from the `T x T` cosines, where published code takes
    the pseudo-inverse of the `T x P` matrix. A gradient of 0 is left out.

    References:
        - [Liu et al., 2024](https://arxiv.org/abs/2408.11104)
    """

    per_task_arguments = ("preference",)

    def __init__(self, preference=None, **kwargs):
        super().__init__(**kwargs)
        self.preference = check_preference(preference)

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        preference = preference_weights(self.preference, num_tasks, live)
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        tolerance = resolution(gramian.dtype, num_tasks)
        parts, _ = equal_projections(
            cosines,
            ops.where(nonzero, preference * num_tasks, 0.0),
            nonzero,
            tolerance,
        )
        images = ops.where(nonzero, matvec(cosines, parts), 0.0)
        square = ops.sum(parts * images)
        # Gradients that cancel leave nothing but rounding.
        exists = square > max(1e-28, (4 * tolerance) ** 2)
        square = ops.where(exists, square, 1.0)
        length = ops.sum(ops.where(nonzero, norms * images, 0.0)) / square
        return ops.where(exists, length * parts / norms, 0.0)

    def get_config(self):
        return {**super().get_config(), "preference": self.preference}
