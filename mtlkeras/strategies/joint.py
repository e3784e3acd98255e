import keras

from mtlkeras.strategies.update_strategy import UpdateStrategy


@keras.saving.register_keras_serializable("mtlkeras")
class Joint(UpdateStrategy):
    """All tasks in one update: plain Keras training.

    One forward pass and one update of the weighted sum of the task losses with
    the user's own optimizer,

    ```
    theta <- theta - optimizer(sum_t loss_weight_t * gradient of L_t)
    ```

    bit for bit what `keras.Model.fit` does, except that an update that is not
    finite is left out. That check looks at the gradients, so TensorFlow's graph
    optimizer no longer moves a factor from a gradient into the learning rate
    (it does for SGD with momentum on a normalization's scale): such a product
    may be rounded otherwise, in its last bit.

    It is the baseline that every
    other way has to beat, the cheapest step, and with tuned loss weights,
    learning rate and regularization often as good as anything else (Kurin et
    al., 2022): tune it first.

    Example:

    >>> Joint().task_groups(("left", "right"))
    (('left', 'right'),)

    References:
        - [Kurin et al., 2022: In Defense of the Unitary Scalarization for Deep
          Multi-Task Learning](https://arxiv.org/abs/2201.04122)
    """

    updates_jointly = True

    def __init__(self):
        super().__init__(task_slots=False)

    def task_groups(self, task_names):
        return (tuple(task_names),)

    def get_config(self):
        return {}
