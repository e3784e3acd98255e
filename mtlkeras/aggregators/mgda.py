import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.simplex_qp import simplex_qp


@keras.saving.register_keras_serializable("mtlkeras")
class MGDA(GramianAggregator):
    """The shortest vector in the convex hull of the task gradients.

    ```
    d = sum_i w_i g_i,   w = argmin ||sum_i w_i g_i||,  w >= 0, sum_i w_i = 1
    ```

    A step along `-d` decreases every loss, all at the same rate where
    `w_i > 0`, and `d = 0` only where no direction does (a Pareto-stationary
    point). Choose it when no task may get worse in any step. It follows the
    task with the smallest gradient, so with losses of unlike scale it attends
    to one task only: `normalization="l2"` takes that away.

    Solved exactly, by an interior point method on the cosines of the
    gradients, so lengths that differ by 1e12 do no harm.

    Args:
        normalization: What the gradients are divided by before: `None`,
            `"l2"` (their length), `"loss"` (the task's loss) or `"loss+"`
            (loss times length). Defaults to `None`. The last two need
            `task_losses`; a task whose loss is not positive is left out.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> weights = MGDA().compute_weights(jacobian @ jacobian.T)
    >>> keras.ops.convert_to_numpy(weights).round(12)
    array([0.6, 0.4])

    Departures: a normalized direction is the shortest vector in the hull of
    the *normalized* gradients, which decreases every loss; the code of Sener
    and Koltun puts the weights found there on the gradients as they are. A
    gradient that is exactly 0 makes the direction 0, as the definition says;
    its task has all the weight.

    References:
        - [Desideri, 2012](https://doi.org/10.1016/j.crma.2012.03.014)
        - [Sener and Koltun, 2018](https://arxiv.org/abs/1810.04650)
    """

    def __init__(self, normalization=None, **kwargs):
        super().__init__(**kwargs)
        if normalization not in (None, "l2", "loss", "loss+"):
            raise ValueError(
                "Argument `normalization` must be None, 'l2', 'loss' or "
                f"'loss+'. Received: normalization={normalization!r}"
            )
        self.normalization = normalization
        self.requires_losses = normalization in ("loss", "loss+")
        self.requires_positive_losses = self.requires_losses

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        divisors = self._divisors(norms, task_losses)
        lengths = norms / divisors
        shortest = ops.min(ops.where(nonzero, lengths, lengths + float("inf")))
        scales = ops.where(nonzero, shortest / lengths, 0.0)
        # Without any gradient the problem is posed for all of them.
        nothing = ops.logical_not(ops.any(nonzero))
        scales = ops.where(nothing, 1.0, scales)
        left_out = 1.0 - ops.cast(scales > 0, "float64")
        ridge = resolution(gramian.dtype, num_tasks)
        y, _ = simplex_qp(cosines, left_out, scales, ridge)
        weights = scales * y
        weights = weights / ops.sum(weights)
        # A gradient of 0 is itself the shortest vector.
        zero = ops.logical_not(nonzero)
        if live is not None:
            zero = ops.logical_and(zero, live)
        count = ops.sum(ops.cast(zero, "float64"))
        share = ops.cast(zero, "float64") / ops.maximum(count, 1.0)
        return ops.where(count > 0, share, weights / divisors)

    def _divisors(self, norms, task_losses):
        if self.normalization is None:
            return ops.ones_like(norms)
        if self.normalization == "l2":
            return norms
        losses = ops.cast(task_losses, "float64")
        losses = ops.maximum(losses, 1e-12)
        return losses if self.normalization == "loss" else losses * norms

    def get_config(self):
        return {**super().get_config(), "normalization": self.normalization}
