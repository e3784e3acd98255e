import keras
from keras import ops

from mtlkeras.aggregators.aggregator import Aggregator


@keras.saving.register_keras_serializable("mtlkeras")
class DBMTL(Aggregator):
    """Dual balancing: logarithms of the losses, gradients of one length.

    The gradient of `log L_i` is tracked, and all estimates are given the length
    of the longest:

    ```
    b_i <- beta_k b_i + (1 - beta_k) g_i / L_i,   beta_k = beta / k^sigma
    d   = max_j ||b_j|| sum_i b_i / ||b_i||
    ```

    The scale of a loss has no influence at all. Choose it where losses are
    positive and of very unlike scale. It keeps `num_tasks` copies of the shared
    parameters.

    Args:
        beta: Float in `[0, 1)`: momentum of the estimates. Defaults to `0.9`
            (LibMTL, by the authors).
        sigma: Float, how fast the momentum decays with the step
            `k = 1, 2, ...`. Defaults to `0.0`: not at all.
        **kwargs: As for `Aggregator`, without features: the estimates belong
            to parameters.

    Needs `task_losses`. A task whose loss is not positive has no logarithm and
    is left out; a loss below 1e-8 counts as 1e-8.

    Example:

    >>> rule = DBMTL(beta=0.0)
    >>> jacobian = np.array([[2.0, 0.0], [0.0, 500.0]])
    >>> losses = np.array([1.0, 100.0])
    >>> keras.ops.convert_to_numpy(rule(jacobian, losses)).round(6)
    array([5., 5.])

    Departures: heads follow the gradient of their loss and not of its
    logarithm. The estimate of a task without labels rests, and it is left out
    of the direction.

    References:
        - [Lin et al., 2023](https://arxiv.org/abs/2308.12029)
    """

    requires_losses = True
    requires_positive_losses = True
    allows_features = False

    def __init__(self, beta=0.9, sigma=0.0, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= beta < 1:
            raise ValueError(
                "Argument `beta` must be 0 or larger and less than 1. "
                f"Received: beta={beta!r}"
            )
        self.beta, self.sigma = float(beta), float(sigma)

    def build_state(self, num_tasks, num_params):
        self.steps = self.add_state("steps", (), dtype="int64")
        self.estimates = self.add_state(
            "estimates", (num_tasks, num_params), dtype=self._state_dtype
        )
        self.task_weights = self.add_state("task_weights", (num_tasks,))

    def aggregate(self, jacobian, task_losses, live):
        self.steps.assign_add(1)
        momentum = self.beta * ops.cast(self.steps, "float64") ** -self.sigma
        estimates = ops.copy(self.estimates)
        momentum = ops.cast(momentum, estimates.dtype)
        inverse = 1.0 / ops.maximum(task_losses, 1e-8)
        rows = jacobian * ops.cast(inverse, jacobian.dtype)[:, None]
        rows = ops.cast(rows, estimates.dtype)
        moved = momentum * estimates + (1.0 - momentum) * rows
        estimates = ops.where(live[:, None], moved, estimates)
        self.estimates.assign(estimates)
        lengths = ops.sqrt(ops.sum(ops.cast(estimates, "float64") ** 2, 1))
        counts = ops.logical_and(live, lengths > 0)
        longest = ops.max(ops.where(counts, lengths, 0.0))
        weights = longest / ops.where(counts, lengths, 1.0)
        weights = ops.where(counts, weights, 0.0)
        self.task_weights.assign(weights)
        used = ops.cast(weights, estimates.dtype)
        estimates = ops.where(counts[:, None], estimates, 0.0)
        return ops.matmul(used[None, :], estimates)[0]

    def _own_task_weights(self):
        if not self.built or not int(self.steps):
            return None
        return ops.convert_to_numpy(ops.cast(self.task_weights, "float32"))

    def get_config(self):
        return {
            **super().get_config(),
            "beta": self.beta,
            "sigma": self.sigma,
        }
