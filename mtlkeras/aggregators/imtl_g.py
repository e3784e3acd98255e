import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.eigen import pseudo_inverse_apply
from mtlkeras.linalg.positive_definite import matvec


@keras.saving.register_keras_serializable("mtlkeras")
class IMTLG(GramianAggregator):
    """The weighted mean with equal projections on all task gradients.

    ```
    d = sum_i w_i g_i,   <g_i, d> / ||g_i|| equal for all i,   sum_i w_i = 1
    ```

    Impartial: in the direction of every task's gradient the step is equally
    long, so the scale of a loss has no influence on the direction. Weights may
    be negative. Choose it as the closed-form rule that is blind to scales;
    beware of gradients that nearly cancel, where it becomes very long, and
    of three or more gradients of which a short one lies between the others:
    the sum of the weights then changes its sign, and the step increases every
    loss.

    Args:
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(IMTLG()(jacobian)).round(4)
    array([0.0767, 1.    , 1.    ])

    Departures: the pseudo-inverse of the cosines in place of a system of
    `T - 1` equations, so that equal gradients get equal shares. Where equal
    projections do not exist (dependent gradients, a stationary point) the
    direction is 0 instead of large and meaningless. A gradient of 0 is left
    out. The paper's loss balancer IMTL-L is no part of it.

    References:
        - [Liu et al., 2021: Towards Impartial Multi-task
          Learning](https://openreview.net/forum?id=IMPnRXEWpvr)
    """

    def compute_weights(self, gramian, task_losses=None, live=None):
        num_tasks = gramian.shape[0]
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        parts, exists = equal_projections(
            cosines,
            ops.cast(nonzero, "float64"),
            nonzero,
            resolution(gramian.dtype, num_tasks),
        )
        weights = parts / norms
        total = ops.sum(weights)
        exists = ops.logical_and(
            exists, ops.abs(total) > 1e-12 * ops.sum(ops.abs(weights))
        )
        return ops.where(exists, weights / ops.where(exists, total, 1.0), 0.0)


def equal_projections(cosines, wanted, nonzero, tolerance):
    """Coefficients whose sum of unit gradients has the wanted projections.

    Returns:
        Tuple of the coefficients, `[num_tasks]`, 0 where a gradient is 0, and
        whether such a direction exists.
    """
    pairs = ops.logical_and(nonzero[:, None], nonzero[None, :])
    parts = pseudo_inverse_apply(
        ops.where(pairs, cosines, 0.0), wanted, 4 * max(tolerance, 1e-14)
    )
    parts = ops.where(nonzero, parts, 0.0)
    reached = ops.where(nonzero, matvec(cosines, parts), wanted)
    exists = ops.max(ops.abs(reached - wanted)) <= 1e-3 * ops.max(wanted)
    return parts, ops.logical_and(exists, ops.any(nonzero))
