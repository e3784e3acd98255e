import keras
import numpy as np
from keras import ops

from mtlkeras.balancers.task_weights import TaskWeights


class DynamicWeightAverage(keras.callbacks.Callback):
    """Weighs tasks by how fast their losses fall, once per epoch.

    With `L_i(t)` the mean training loss of task `i` in epoch `t`,

    ```
    r_i = L_i(t - 1) / L_i(t - 2)
    w_i = T exp(r_i / temperature) / sum_k exp(r_k / temperature)
    ```

    A task whose loss falls slower gets more weight; the weights sum to the
    number of tasks `T`. In the first two epochs they are 1.

    Choose it as a cheap baseline for losses that fall at different speeds. It
    knows nothing of their scale: a task with a loss 100 times larger keeps
    dominating. It sets the weights of the balancer `TaskWeights`, where it also
    keeps the losses of the last two epochs, so that they are saved with the
    model and a resumed run goes on with them. A task that did not train in an
    epoch keeps the losses of the last two in which it did.

    Args:
        temperature: Positive float; the larger, the more even the weights.
            Defaults to `2.0` (the paper).

    Raises:
        ValueError: In `fit`, if the balancer in force is no `TaskWeights`.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {name: keras.layers.Dense(1)(trunk) for name in ("left", "right")},
    ... )
    >>> model.compile(
    ...     "sgd", {"left": "mse", "right": "mse"}, balancer="task_weights")
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> history = model.fit(
    ...     x, {"left": y, "right": y}, epochs=3, verbose=0,
    ...     callbacks=[mtlkeras.callbacks.DynamicWeightAverage()])
    >>> print(round(sum(model.balancer.last_task_weights.tolist()), 6))
    2.0

    References:
        - [Liu et al., 2019](https://arxiv.org/abs/1803.10704)
    """

    def __init__(self, temperature=2.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                "Argument `temperature` must be positive. Received: "
                f"temperature={temperature!r}"
            )
        self.temperature = temperature

    def on_train_begin(self, logs=None):
        check_task_weights(self)

    # From the losses that the model keeps, at the beginning of an epoch: so
    # nothing is lost when a run is killed between two epochs.
    def on_epoch_begin(self, epoch, logs=None):
        balancer = self.model.balancer
        before, last = ops.convert_to_numpy(balancer.epoch_losses)
        balancer.assign(self.compute_weights(last, before))

    def compute_weights(self, last, before):
        """The weights after two epochs.

        Args:
            last: Array of mean losses in the last epoch, `[num_tasks]`; NaN
                where it is not known.
            before: The same of the epoch before.

        Returns:
            A NumPy array of shape `[num_tasks]`.
        """
        last, before = np.asarray(last, "float64"), np.asarray(before)
        known = np.isfinite(last) & np.isfinite(before) & (before != 0)
        if not np.all(known):
            return np.ones(len(last))
        # Shifted by the largest one: losses may rise a thousandfold.
        ratios = last / before / self.temperature
        powers = np.exp(ratios - np.max(ratios))
        return len(last) * powers / np.sum(powers)


def check_task_weights(callback):
    """Refuses to set weights where no balancer has any to be set."""
    balancer = getattr(callback.model, "balancer", None)
    if not isinstance(balancer, TaskWeights):
        raise ValueError(
            f"`{type(callback).__name__}` sets the weights of the balancer "
            f"`TaskWeights`. Received: balancer={balancer!r}. Pass "
            "`balancer='task_weights'` to `compile` or `fit`."
        )
