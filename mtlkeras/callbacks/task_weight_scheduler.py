import keras
from keras import ops

from mtlkeras.callbacks.dynamic_weight_average import check_task_weights


class TaskWeightScheduler(keras.callbacks.Callback):
    """Sets the weights of the tasks by a function, once per epoch.

    Choose it for a schedule that you know (an auxiliary task that fades out)
    or for a rule of your own on the losses of the last epoch. It sets the
    weights of the balancer `TaskWeights`; they hold until the next change and
    are saved with the model.

    Args:
        function: Function `(epoch, task_losses) -> weights`, called before
            every epoch with its index (from 0) and a dict from task to its
            mean training loss in the last epoch in which it trained (NaN
            before the first). It returns a dict from task to weight; tasks not
            in it keep theirs. `None` changes nothing.

    Raises:
        ValueError: In `fit`, if the balancer in force is no `TaskWeights`, or
            if the function returns anything else.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {name: keras.layers.Dense(1)(trunk) for name in ("main", "extra")},
    ... )
    >>> model.compile(
    ...     "sgd", {"main": "mse", "extra": "mse"}, balancer="task_weights")
    >>> fade_out = mtlkeras.callbacks.TaskWeightScheduler(
    ...     lambda epoch, task_losses: {"extra": 0.5 ** epoch})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> history = model.fit(
    ...     x, {"main": y, "extra": y}, epochs=3, verbose=0,
    ...     callbacks=[fade_out])
    >>> model.balancer.last_task_weights.tolist()
    [1.0, 0.25]
    """

    def __init__(self, function):
        super().__init__()
        if not callable(function):
            raise ValueError(
                "Argument `function` must be a function `(epoch, task_losses) "
                f"-> dict`. Received: function={function!r}"
            )
        self.function = function

    def on_train_begin(self, logs=None):
        check_task_weights(self)

    def on_epoch_begin(self, epoch, logs=None):
        balancer = self.model.balancer
        last = ops.convert_to_numpy(balancer.epoch_losses)[1].tolist()
        losses = dict(zip(self.model.task_names, last, strict=True))
        weights = self.function(epoch, losses)
        if weights is None:
            return
        if not isinstance(weights, dict):
            raise ValueError(
                "The function of `TaskWeightScheduler` must return a dict from "
                f"task names to weights. Received: {weights!r}"
            )
        balancer.assign(weights)
