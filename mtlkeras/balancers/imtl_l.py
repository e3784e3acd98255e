import keras
from keras import ops

from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer


@keras.saving.register_keras_serializable("mtlkeras")
class IMTLL(LearnedLossBalancer):
    """Losses scaled by learned factors until they are equal.

    ```
    total = sum_i exp(s_i) L_i - s_i
    ```

    with learned `s_i`. For constant losses it settles at `exp(s_i) = 1 / L_i`,
    where every scaled loss is 1. It is `UncertaintyWeighting` without the
    Gaussian reading, and without its factor 1/2. Choose it for losses of unlike
    scale; the paper joins it with the aggregator `IMTLG`, which balances the
    gradients of the shared variables.

    Args:
        learning_rate: Float, of the `s_i`. Defaults to `1e-3`, that of Keras's
            Adam: the paper leaves the `s_i` to the model's optimizer.
        optimizer: Id of a Keras optimizer for the `s_i`. Defaults to `"adam"`.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = IMTLL(learning_rate=0.1)
    >>> keras.ops.convert_to_numpy(  # s = 0
    ...     balancer.compute_weights(np.array([0.5, 4.0])))
    array([1., 1.])

    Departures: the `s_i` have a learning rate of their own and no weight decay.

    References:
        - Liu et al., 2021: [Towards Impartial Multi-task Learning](
          https://openreview.net/forum?id=IMPnRXEWpvr)
    """

    requires_all_losses = False

    def __init__(self, learning_rate=1e-3, optimizer="adam", **kwargs):
        super().__init__(learning_rate, optimizer, **kwargs)

    def build_state(self, num_tasks):
        self.log_scales = self.add_learned("log_scales", (num_tasks,))

    def call(self, task_losses):
        s = self.log_scales
        return ops.sum(ops.exp(s) * task_losses - s)
