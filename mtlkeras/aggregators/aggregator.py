import keras
from keras import ops


class Aggregator(keras.layers.Layer):
    """Several task gradients become one direction: the base class.

    An aggregator acts on the gradients of the variables that tasks share; the
    direction takes the place of the gradient in the optimizer's update. Every
    head keeps following the plain gradient of its own loss. It works by itself
    on arrays and tensors of any float dtype, too:

    >>> jacobian = np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> direction = mtlkeras.aggregators.Sum()(jacobian)
    >>> keras.ops.convert_to_numpy(direction)
    array([4., 4.])

    Tasks that have no label in a batch or whose gradient is not finite are
    taken out by `live`. With one live task the direction is that task's
    gradient itself, under every rule.

    Write your own by implementing `aggregate`, or `compute_weights` of a
    `GramianAggregator`; random or running state belongs into variables made
    in `__init__` with `add_weight`, so that it is saved.

    Attributes that a subclass sets (default in brackets):
        requires_losses: Whether `task_losses` must be given (`False`).

    Args:
        name: String. Defaults to the class's name.
    """

    requires_losses = False

    def __init__(self, name=None):
        # Rules stay in the precision of what they get, whatever the policy.
        super().__init__(name=name, dtype="float32", autocast=False)
        self.last_task_weights = None

    def aggregate(self, jacobian, task_losses, live):
        """The direction of the live rows.

        Args:
            jacobian: Tensor of shape `[num_tasks, num_params]`; row `i` is the
                gradient of task `i`. Rows that are not live are 0.
            task_losses: Tensor of shape `[num_tasks]`, or `None`.
            live: Boolean tensor of shape `[num_tasks]`.

        Returns:
            A tensor of shape `[num_params]`.
        """
        raise NotImplementedError

    def call(self, jacobian, task_losses=None, live=None):
        jacobian, task_losses, live = self._standardize(
            jacobian, task_losses, live
        )
        direction = self.aggregate(jacobian, task_losses, live)
        return ops.where(_is_single(live), ops.sum(jacobian, 0), direction)

    def _standardize(self, jacobian, task_losses, live):
        jacobian = ops.convert_to_tensor(jacobian)
        check_matrix("jacobian", jacobian, "[num_tasks, num_params]")
        num_tasks = jacobian.shape[0]
        if live is None:
            live = ops.ones((num_tasks,), "bool")
        live = ops.cast(live, "bool")
        jacobian = ops.where(live[:, None], jacobian, 0.0)
        return jacobian, self._cast_losses(task_losses, jacobian.dtype), live

    def _cast_losses(self, task_losses, dtype):
        if task_losses is None:
            if self.requires_losses:
                raise ValueError(
                    f"{type(self).__name__} needs `task_losses`, a tensor of "
                    "shape `[num_tasks]`. Received: task_losses=None"
                )
            return None
        return ops.cast(task_losses, dtype)


class GramianAggregator(Aggregator):
    """An aggregator that only needs the inner products of the gradients.

    The direction is a weighted sum of the task gradients, and the weights
    depend on the Gramian alone, `gramian[i, j] = <g_i, g_j>`. In training the
    Gramian is summed variable by variable, so the matrix of all gradients is
    never put together.
    """

    def compute_weights(self, gramian, task_losses=None, live=None):
        """Weights of the rows.

        Args:
            gramian: Tensor of shape `[num_tasks, num_tasks]`. Rows and columns
                of tasks that are not live are 0.
            task_losses: Tensor of shape `[num_tasks]`, or `None`.
            live: Boolean tensor of shape `[num_tasks]`, or `None` (all).

        Returns:
            `task_weights`, a tensor of shape `[num_tasks]`.
        """
        raise NotImplementedError

    def weigh(self, gramian, task_losses=None, live=None):
        """`compute_weights` with dead tasks at 0 and a single one at 1."""
        gramian = ops.convert_to_tensor(gramian)
        check_matrix("gramian", gramian, "[num_tasks, num_tasks]")
        if live is None:
            live = ops.ones((gramian.shape[0],), "bool")
        live = ops.cast(live, "bool")
        pairs = ops.logical_and(live[:, None], live[None, :])
        gramian = ops.where(pairs, gramian, 0.0)
        task_losses = self._cast_losses(task_losses, gramian.dtype)
        weights = self.compute_weights(gramian, task_losses, live)
        weights = ops.where(_is_single(live), 1.0, weights)
        weights = ops.where(live, weights, 0.0)
        self.last_task_weights = weights
        return ops.cast(weights, gramian.dtype)

    def aggregate(self, jacobian, task_losses, live):
        gramian = ops.matmul(jacobian, ops.transpose(jacobian))
        weights = self.weigh(gramian, task_losses, live)
        return ops.matmul(weights[None, :], jacobian)[0]


def _is_single(live):
    return ops.equal(ops.sum(ops.cast(live, "int32")), 1)


def check_matrix(name, matrix, shape):
    dtype = keras.backend.standardize_dtype(matrix.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Argument `{name}` must be of a float dtype. Received: "
            f"{name} of dtype {dtype}"
        )
    if len(matrix.shape) != 2:
        raise ValueError(
            f"Argument `{name}` must have the shape `{shape}`. Received: "
            f"{name} of shape {tuple(matrix.shape)}"
        )
