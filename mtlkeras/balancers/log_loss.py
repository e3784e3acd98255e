import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class LogLoss(LossBalancer):
    """The sum of the logarithms of the losses, known as SI (scale-invariant).

    ```
    total = sum_i log L_i,    w_i = 1 / L_i
    ```

    The unit of a loss drops out altogether: a loss that is multiplied by a
    constant has the same weighted gradient. Choose it for positive losses of
    unlike scale, as the simplest rule there is. The weight of a task grows
    without bound as its loss goes to 0, so a task that can be learned perfectly
    ends up with all of the weight, and in need of an `offset`.

    Args:
        offset: Number, list or dict by task name, added to the losses: for
            losses that may be negative, or as a bound `1 / offset` for the
            weights. Defaults to `0.0`.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = LogLoss()
    >>> keras.ops.convert_to_numpy(
    ...     balancer.compute_weights(np.array([0.5, 4.0])))
    array([2.  , 0.25])

    References:
        - [Navon et al., 2022](https://arxiv.org/abs/2202.01017), a baseline of
          theirs
    """

    requires_all_losses = False
    requires_positive_losses = True

    def __init__(self, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.offset = check_per_task("offset", offset)

    def call(self, task_losses):
        return ops.sum(ops.log(self.shifted(task_losses)))

    def weights_now(self):
        # No other task's loss matters, so none is waited for.
        return ops.where(self.known, super().weights_now(), 1.0)

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
