import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.power_balance import power_balance


@keras.saving.register_keras_serializable("mtlkeras")
class NashMTL(GramianAggregator):
    """The Nash bargaining solution among the tasks.

    The direction of unit length that maximises the product of the gains:

    ```
    d = sum_i a_i g_i,   G a = 1 / a (element by element),  a > 0
    ```

    so that `a_i <g_i, d> = 1` for every task and `||d||^2 = T`. The scale of a
    loss has no influence on the direction. Choose it to treat tasks of unlike
    scale alike, with an adaptive or decayed learning rate: the length of `d`
    tells nothing about how far the optimum is.

    Solved exactly by a damped Newton method on the cosines.

    Args:
        max_norm: Positive float or `None`. A longer direction is shortened to
            this length. Defaults to `1.0` (the authors' code); `None` leaves
            it at `sqrt(T)`.
        update_every: Integer. The weights are computed anew in every
            `update_every`-th step, and when a task comes (back) that has none;
            in between they are kept. Gradients are needed in all steps for the
            direction. Defaults to `1`.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(NashMTL()(jacobian)).round(4)
    array([0.0542, 0.7061, 0.7061])

    Departures: published code solves the equations by a sequence of convex
    programmes that stops early, up to sixty times off where lengths differ by
    1e4; this is the solution. At a Pareto-stationary point none exists: the
    direction goes to 0. A task with a gradient of 0 is left out. Between
    updates a task that has no label has weight 0, and one that comes back
    without a weight makes an update due.

    References:
        - [Navon et al., 2022](https://arxiv.org/abs/2202.01017)
    """

    def __init__(self, max_norm=1.0, update_every=1, **kwargs):
        super().__init__(**kwargs)
        if max_norm is not None and not max_norm > 0:
            raise ValueError(
                "Argument `max_norm` must be positive or None. Received: "
                f"max_norm={max_norm!r}"
            )
        if int(update_every) != update_every or update_every < 1:
            raise ValueError(
                "Argument `update_every` must be a positive integer. "
                f"Received: update_every={update_every!r}"
            )
        self.max_norm = max_norm
        self.update_every = int(update_every)

    def build_state(self, num_tasks, num_params):
        if self.update_every > 1:
            self.kept_weights = self.add_state("kept_weights", (num_tasks,))

    def compute_weights(self, gramian, task_losses=None, live=None):
        self.ensure_built(gramian.shape[0])
        if self.update_every == 1:
            weights = bargain(gramian, live)
        else:
            kept = ops.copy(self.kept_weights)
            nonzero = cosines_and_norms(gramian, live)[2]
            # A task that was out when the weights were computed has none.
            without = ops.any(ops.logical_and(nonzero, kept <= 0))
            due = ops.equal(ops.mod(self.steps, self.update_every), 0)
            weights = ops.cond(
                ops.logical_or(due, without),
                lambda: ops.where(nonzero, bargain(gramian, live), kept),
                lambda: kept,
            )
            self.kept_weights.assign(weights)
            weights = ops.where(nonzero, weights, 0.0)
        if self.max_norm is None:
            return weights
        # By way of the lengths: weights of short gradients are large.
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        parts = ops.where(nonzero, weights * norms, 0.0)
        square = ops.sum(parts[:, None] * cosines * parts[None, :])
        length = ops.sqrt(ops.maximum(square, 0.0))
        too_long = length > self.max_norm
        safe = ops.where(too_long, length, 1.0)
        return ops.where(too_long, weights * (self.max_norm / safe), weights)

    def get_config(self):
        return {
            **super().get_config(),
            "max_norm": self.max_norm,
            "update_every": self.update_every,
        }


def bargain(gramian, live):
    """The positive solution `a` of `G a = 1 / a`; 0 for gradients of 0."""
    num_tasks = gramian.shape[0]
    cosines, norms, nonzero = cosines_and_norms(gramian, live)
    ridge = resolution(gramian.dtype, num_tasks)
    matrix = cosines + ridge * ops.eye(num_tasks, dtype="float64")
    parts = power_balance(matrix, ops.ones_like(norms), 1.0, ridge)
    return ops.where(nonzero, parts / norms, 0.0)
