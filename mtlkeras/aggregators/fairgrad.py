import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.power_balance import power_balance


@keras.saving.register_keras_serializable("mtlkeras")
class FairGrad(GramianAggregator):
    """Alpha-fair gains of the tasks, as in the sharing of bandwidth.

    ```
    d = sum_i w_i g_i,   G w = w^(-1 / alpha) (element by element),  w > 0
    ```

    `alpha = 1` is proportional fairness (`NashMTL` without its `max_norm`),
    `alpha = 2` minimises potential delay, and for `alpha` to infinity all
    tasks gain alike, where that is possible. With `alpha > 1` the direction
    gets longer as the gradients get shorter. Choose it to say with one
    number how much the gain of the worst task counts against the sum of gains.

    Solved exactly by a damped Newton method on the cosines.

    Args:
        alpha: Positive float. Defaults to `1.0` (LibMTL; the authors tune it
            per data set, 2 being common).
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> weights = FairGrad(alpha=1.0).compute_weights(jacobian @ jacobian.T)
    >>> keras.ops.convert_to_numpy(weights).round(6)
    array([1. , 0.5])

    Departures: published code uses a least-squares solver from a random start,
    which fails for lengths that differ much; this is the solution. At a
    Pareto-stationary point none exists: the direction goes to 0. A task with a
    gradient of 0 is left out.

    References:
        - [Ban and Ji, 2024](https://arxiv.org/abs/2402.15638)
    """

    def __init__(self, alpha=1.0, **kwargs):
        super().__init__(**kwargs)
        if not alpha > 0:
            raise ValueError(
                "Argument `alpha` must be positive; for 0 use "
                f"`aggregator='sum'`. Received: alpha={alpha!r}"
            )
        self.alpha = float(alpha)

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        ridge = resolution(gramian.dtype, num_tasks)
        matrix = cosines + ridge * ops.eye(num_tasks, dtype="float64")
        power = 1.0 / self.alpha
        # Lengths relative to their geometric mean, then a change of variables
        # that leaves the powers of the lengths beside the cosines.
        count = ops.maximum(ops.sum(ops.cast(nonzero, "float64")), 1.0)
        logs = ops.where(nonzero, ops.log(norms), 0.0)
        typical = ops.exp(ops.sum(logs) / count)
        lengths = ops.where(nonzero, norms / typical, 1.0)
        stretch = lengths ** ((power - 1.0) / (1.0 + power))
        parts = power_balance(
            stretch[:, None] * matrix * stretch[None, :],
            stretch * stretch,
            power,
            ridge,
        )
        weights = stretch * parts / lengths
        weights = weights * typical ** (-2.0 / (1.0 + power))
        return ops.where(nonzero, weights, 0.0)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}
