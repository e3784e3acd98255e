import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms


@keras.saving.register_keras_serializable("mtlkeras")
class Normalized(GramianAggregator):
    """The sum of the unit gradients, with signs.

    ```
    d = sum_i s_i g_i / ||g_i||
    ```

    With the signs `(1, -1)` it is the normalized gradient difference, for two
    tasks of which one is to be retained and one to be forgotten (unlearning).
    With all signs 1 it is the simplest rule that is blind to the scale of a
    loss.

    Args:
        signs: Sequence of 1 and -1, one per task. Defaults to `None`, all 1.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[3.0, 4.0], [0.0, 2.0]])
    >>> keras.ops.convert_to_numpy(Normalized(signs=(1, -1))(jacobian))
    array([ 0.6, -0.2])

    Departures: the paper's automatic learning rate, found by probing the loss,
    is no part of it. A gradient of 0 is left out. With one live task the
    direction is its gradient itself, times its sign.

    References:
        - [Jin et al., 2024](https://arxiv.org/abs/2410.22086)
    """

    per_task_arguments = ("signs",)

    def __init__(self, signs=None, **kwargs):
        super().__init__(**kwargs)
        if signs is not None:
            signs = [float(sign) for sign in signs]
            if not signs or any(sign not in (1.0, -1.0) for sign in signs):
                raise ValueError(
                    "Argument `signs` must hold 1 or -1 for each task. "
                    f"Received: signs={signs}"
                )
        self.signs = signs

    def compute_weights(self, gramian, task_losses=None, live=None):
        _, norms, nonzero = cosines_and_norms(gramian, live)
        return ops.where(nonzero, self._signs(norms.shape[0]) / norms, 0.0)

    def weights_of_single(self, num_tasks):
        return self._signs(num_tasks)

    def _signs(self, num_tasks):
        signs = self.signs or [1.0] * num_tasks
        if len(signs) != num_tasks:
            raise ValueError(
                "Argument `signs` must hold one number for each of the "
                f"{num_tasks} tasks. Received: signs={signs}"
            )
        return ops.convert_to_tensor(signs, "float64")

    def get_config(self):
        return {**super().get_config(), "signs": self.signs}
