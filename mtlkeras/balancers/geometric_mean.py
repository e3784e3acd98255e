import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class GeometricMean(LossBalancer):
    """The geometric mean of the losses.

    ```
    total = (prod_i L_i)^(1 / T) = exp(mean_i log L_i)
    w_i   = total / (T L_i)
    ```

    A relative change of any loss counts the same, so the unit of a loss does
    not matter; that of one task changes the length of the step and not its
    direction. Choose it for positive losses of unlike scale, without anything
    to learn or to tune. The step shrinks as the losses do, other than under
    `LogLoss`, which has the same direction.

    Args:
        offset: Number, list or dict by task name, added to the losses, for
            losses that may be negative. Defaults to `0.0`.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = GeometricMean()
    >>> float(balancer(np.array([1.0, 4.0])))
    2.0
    >>> keras.ops.convert_to_numpy(
    ...     balancer.compute_weights(np.array([1.0, 4.0])))
    array([1.  , 0.25])

    Departures: computed by logarithms. The product itself, as in published
    code, is 0 for 40 losses of 0.05 in float32, and its gradient NaN.

    References:
        - [Chennupati et al., 2019](https://arxiv.org/abs/1904.08492)
    """

    requires_positive_losses = True

    def __init__(self, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.offset = check_per_task("offset", offset)

    def call(self, task_losses):
        return ops.exp(ops.mean(ops.log(self.shifted(task_losses))))

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
