import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.preference import (
    check_preference,
    preference_weights,
)
from mtlkeras.linalg.cosines import resolution
from mtlkeras.linalg.eigen import symmetric_eigen


@keras.saving.register_keras_serializable("mtlkeras")
class AlignedMTL(GramianAggregator):
    """The gradients made orthogonal and of equal length, then their mean.

    With the eigenvalues `s_k` and eigenvectors `V` of the Gramian, of rank `R`,

    ```
    d = sum_i w_i g_i,   w = sqrt(scale) V diag(1 / sqrt(s)) V' p
    ```

    The matrix of gradients is replaced by the nearest one whose singular
    values are all equal. Choose it when both conflicts and unlike lengths are
    to go, with a preference `p` that keeps its meaning: it converges to a
    stationary point of the weighted sum of losses.

    Args:
        scale: The common singular value, squared: the `"min"`, the `"median"`
            or the mean (`"rmse"`) of the eigenvalues that are not 0. Defaults
            to `"min"` (the paper), which is cautious; with it one short
            gradient shortens every step.
        preference: Sequence of non-negative floats `p_i`, one per task, with a
            positive sum. Defaults to `None`, `1 / T` each.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(AlignedMTL()(jacobian)).round(4)
    array([0.2133, 0.9673, 0.9673])

    The result jumps where the numerical rank changes: an eigenvalue up to
    `T eps` times the largest counts as 0, `eps` being that of the dtype of the
    gradients. In float32 a gradient 1e-4 times as long as the longest is lost.

    References:
        - [Senushkin et al., 2023](https://arxiv.org/abs/2305.19000)
    """

    per_task_arguments = ("preference",)

    def __init__(self, scale="min", preference=None, **kwargs):
        super().__init__(**kwargs)
        if scale not in ("min", "median", "rmse"):
            raise ValueError(
                "Argument `scale` must be 'min', 'median' or 'rmse'. "
                f"Received: scale={scale!r}"
            )
        self.scale = scale
        self.preference = check_preference(preference)

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        tolerance = resolution(gramian.dtype, num_tasks)
        preference = preference_weights(self.preference, num_tasks, live)
        gramian = ops.cast(gramian, "float64")
        gramian = (gramian + ops.transpose(gramian)) / 2.0
        largest = ops.max(ops.abs(gramian))
        values, vectors = symmetric_eigen(
            gramian / ops.where(largest > 0, largest, 1.0)
        )
        kept = values > ops.maximum(tolerance * ops.max(values), 0.0)
        safe = ops.where(kept, values, 1.0)
        inner = ops.matmul(preference[None, :], vectors)[0]
        inner = ops.where(kept, inner / ops.sqrt(safe), 0.0)
        weights = ops.matmul(vectors, inner[:, None])[:, 0]
        # The factor of the scaling cancels but for none.
        return weights * ops.sqrt(self._common(values, kept))

    def _common(self, values, kept):
        count = ops.sum(ops.cast(kept, "int32"))
        ordered = ops.flip(ops.sort(ops.where(kept, values, 0.0)))  # falling
        if self.scale == "rmse":
            total = ops.sum(ordered)
            return total / ops.maximum(ops.cast(count, "float64"), 1.0)
        last = ops.maximum(count - 1, 0)
        index = last if self.scale == "min" else count // 2
        return ops.take(ordered, index)

    def get_config(self):
        return {
            **super().get_config(),
            "scale": self.scale,
            "preference": self.preference,
        }
