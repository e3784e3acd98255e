import keras
from keras import ops

from mtlkeras.layers.running_task import task_of_call


@keras.saving.register_keras_serializable("mtlkeras")
class TaskBatchNormalization(keras.layers.Layer):
    """Batch normalization with moving statistics of its own for every task.

    ```
    training:   y = gamma (x - mean(x)) / sqrt(var(x) + epsilon) + beta
    inference:  the same with the moving statistics of the task
    ```

    Scale `gamma` and offset `beta` are shared. Choose it in trunks whose
    activations differ between tasks, as those behind a `RoamingMask` do; with
    moving statistics in common inference would use a mixture that no task
    has. With one task it is `keras.layers.BatchNormalization`.

    Args:
        num_tasks: Integer, the number of tasks (of outputs of the model).
        axis: Integer, the axis of the features. Defaults to `-1`.
        momentum: Float, of the moving statistics. Defaults to `0.99`.
        epsilon: Float, added to the variance. Defaults to `1e-3`.
        center: Whether to add `beta`. Defaults to `True`.
        scale: Whether to multiply by `gamma`. Defaults to `True`.
        batch_statistics: Whether to use the statistics of the batch in
            inference, too, as the authors of Maximum Roaming do; predictions
            then depend on what else is in the batch. Defaults to `False`.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor.
        training: Whether to use the batch's statistics and update the moving
            ones.
        mask: Boolean tensor of the leading axes: entries that do not count in
            the statistics of the batch are `False`. Defaults to `None`.
        task: Index of the task. Defaults to `None`: the one that the model
            runs.

    Example:

    >>> layer = TaskBatchNormalization(num_tasks=2, momentum=0.0)
    >>> for task, size in ((0, 1.0), (1, 10.0)):
    ...     y = layer(np.array([[-size], [size]]), training=True, task=task)
    >>> keras.ops.convert_to_numpy(layer.moving_variance)[:, 0]
    array([  1., 100.], dtype=float32)

    References:
        - [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167)
    """

    depends_on_task = True

    def __init__(
        self,
        num_tasks,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        batch_statistics=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_tasks = num_tasks
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.batch_statistics = batch_statistics
        self.supports_masking = True

    def build(self, input_shape):
        size = input_shape[self.axis]
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={self.axis: size}
        )

        def add(name, shape, initializer, trainable):
            return self.add_weight(
                shape=shape,
                initializer=initializer,
                trainable=trainable,
                # Statistics need more precision than half floats have.
                autocast=False,
                name=name,
            )

        self.gamma = self.beta = None
        if self.scale:
            self.gamma = add("gamma", (size,), "ones", True)
        if self.center:
            self.beta = add("beta", (size,), "zeros", True)
        shape = (self.num_tasks, size)
        self.moving_mean = add("moving_mean", shape, "zeros", False)
        self.moving_variance = add("moving_variance", shape, "ones", False)

    def call(self, inputs, training=None, mask=None, task=None):
        if isinstance(inputs, keras.KerasTensor):
            return inputs
        task = task_of_call(self, task, self.num_tasks)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, dtype)
        axis = self.axis % len(inputs.shape)
        others = [i for i in range(len(inputs.shape)) if i != axis]
        if training or self.batch_statistics:
            mean, variance = moments(x, others, mask)
        else:
            mean = self.moving_mean[task]
            variance = self.moving_variance[task]
        if training:
            self._move(self.moving_mean, task, mean)
            self._move(self.moving_variance, task, variance)
        shape = [1] * len(inputs.shape)
        shape[axis] = inputs.shape[axis]
        outputs = ops.batch_normalization(
            x,
            ops.cast(mean, dtype),
            ops.cast(variance, dtype),
            axis,
            None if self.beta is None else ops.cast(self.beta, dtype),
            None if self.gamma is None else ops.cast(self.gamma, dtype),
            self.epsilon,
        )
        return ops.cast(outputs, self.compute_dtype)

    def _move(self, variable, task, value):
        """Moves the task's row of a moving statistic."""
        rows = ops.arange(self.num_tasks)[:, None] == ops.cast(task, "int32")
        new = variable * self.momentum + ops.cast(
            ops.stop_gradient(value), variable.dtype
        ) * (1.0 - self.momentum)
        variable.assign(ops.where(rows, new, variable))

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs, training=None, mask=None, task=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "batch_statistics": self.batch_statistics,
        }


def moments(x, axes, mask):
    """Mean and variance over some axes, of the entries that count."""
    if mask is None:
        return ops.moments(x, axes)
    weights = ops.cast(mask, x.dtype)
    for _ in range(len(x.shape) - len(weights.shape)):
        weights = ops.expand_dims(weights, -1)
    weights = ops.broadcast_to(weights, ops.shape(x))
    total = ops.maximum(ops.sum(weights, axes), keras.config.epsilon())
    mean = ops.sum(x * weights, axes) / total
    square = ops.sum(ops.square(x) * weights, axes) / total
    return mean, ops.maximum(square - ops.square(mean), 0.0)
