import keras
from keras import ops

from mtlkeras.aggregators.dual_proj import harmless_mean
from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.conflict_averse import conflict_averse_shift
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.positive_definite import matvec


@keras.saving.register_keras_serializable("mtlkeras")
class CAGrad(GramianAggregator):
    """The best direction for the worst-off task, near the mean gradient.

    ```
    d = argmax min_i <g_i, d>   over   ||d - g_0|| <= c ||g_0||,
    g_0 = (1 / T) sum_i g_i
    ```

    With `c = 0` it is the mean gradient, with `c >= 1` no loss increases, and
    for large `c` it goes towards `MGDA`. Choose it to trade the mean against
    the worst task with one number; for `c < 1` it converges to a stationary
    point of the mean loss.

    Solved exactly: a root search over minimum problems on the simplex. Where
    directions in that ball lose on no task but none gains on all (at a
    Pareto-stationary point), it is the one of them that is nearest to the mean,
    that of `DualProj`.

    Args:
        c: Float, not negative. Radius of the ball relative to the mean
            gradient. Defaults to `0.5` (LibMTL; the authors' experiments use
            0.4 for NYUv2).
        rescale: What the direction is divided by, to keep the length of a
            step: 0 nothing, 1 `1 + c^2`, 2 `1 + c`. Defaults to `0`, the
            definition; published code divides by `1 + c^2`.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(CAGrad(c=0.5)(jacobian)).round(4)
    array([0.1835, 1.2041, 1.2041])

    References:
        - [Liu et al., 2021](https://arxiv.org/abs/2110.14048)
    """

    def __init__(self, c=0.5, rescale=0, **kwargs):
        super().__init__(**kwargs)
        if not c >= 0:
            raise ValueError(
                f"Argument `c` must be 0 or larger. Received: c={c!r}"
            )
        if rescale not in (0, 1, 2):
            raise ValueError(
                "Argument `rescale` must be 0 (not at all), 1 (by 1 + c^2) or "
                f"2 (by 1 + c). Received: rescale={rescale!r}"
            )
        self.c = float(c)
        self.rescale = int(rescale)

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        if live is None:
            live = ops.ones((num_tasks,), "bool")
        count = ops.sum(ops.cast(live, "float64"))
        uniform = ops.cast(live, "float64") / ops.maximum(count, 1.0)
        if self.c == 0:
            return uniform
        ridge = resolution(gramian.dtype, num_tasks)
        longest = ops.max(ops.where(nonzero, norms, 0.0))
        lengths = norms / ops.where(longest > 0, longest, 1.0)
        shortest = ops.min(ops.where(nonzero, lengths, lengths + float("inf")))
        scales = ops.where(nonzero, shortest / lengths, 0.0)
        mean = ops.where(nonzero, uniform * lengths, 0.0)
        images = matvec(cosines, mean)
        length = ops.sqrt(ops.maximum(ops.sum(mean * images), 0.0))
        # No gradient, or gradients that cancel: the mean of 0 is 0.
        posed = ops.logical_and(ops.any(nonzero), length > 0)
        safe = ops.where(posed, length, 1.0)
        linear = ops.clip(images / safe, -1.0, 1.0)
        linear = ops.where(scales > 0, linear, 1.0)
        shift, found = conflict_averse_shift(
            cosines,
            linear,
            ops.where(posed, scales, 1.0),
            self.c,
            ridge,
            max(1e-7, 3 * ridge**0.5),
        )
        shift = ops.where(nonzero, length * shift, 0.0)
        weights = ops.where(nonzero, (mean + shift) / lengths, 0.0)
        # Without a gain for all tasks: none is to lose.
        harmless = harmless_mean(cosines, norms, nonzero, uniform, ridge)
        weights = ops.where(found, weights, harmless)
        weights = ops.where(posed, weights, uniform)
        factor = (1.0, 1.0 + self.c**2, 1.0 + self.c)[self.rescale]
        return ops.where(live, weights / factor, 0.0)

    def get_config(self):
        return {**super().get_config(), "c": self.c, "rescale": self.rescale}
