import types

from keras import ops

from mtlkeras.aggregators.aggregator import (
    Aggregator,
    check_matrix,
    check_one_per_task,
    is_single,
)


class GramianAggregator(Aggregator):
    """An aggregator that only needs the inner products of the gradients.

    The direction is a weighted sum of the task gradients, and the weights
    depend on the Gramian alone, `gramian[i, j] = <g_i, g_j>`. In training the
    Gramian is summed variable by variable, so the matrix of all gradients is
    never put together. Subclasses implement `compute_weights`; they compute in
    float64, whatever the dtype of the Gramian.

    Args:
        **kwargs: As for `Aggregator`.
    """

    needs_rows = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Not tracked as a layer's attribute: a function of the trainer's.
        self._solver = types.SimpleNamespace(compiled=None)

    def build(self, jacobian_shape):
        self._last_weights = self.add_state(
            "last_task_weights", (jacobian_shape[0],), dtype="float32"
        )
        self.steps = self.add_state("steps", (), dtype="int64")
        super().build(jacobian_shape)

    def compute_weights(self, gramian, task_losses=None, live=None):
        """Weights of the rows.

        Args:
            gramian: Tensor of shape `[num_tasks, num_tasks]`.
            task_losses: Tensor of shape `[num_tasks]`, or `None`.
            live: Boolean tensor of shape `[num_tasks]`, or `None` (all). Rows
                and columns of the other tasks must be 0.

        Returns:
            `task_weights`, a tensor of shape `[num_tasks]` and dtype float64.
        """
        raise NotImplementedError

    def weigh(self, gramian, task_losses=None, live=None):
        """`compute_weights` as the trainer uses it.

        Dead tasks have weight 0, a single live one has 1, and what was
        computed is kept as `last_task_weights`.
        """
        gramian = ops.convert_to_tensor(gramian)
        check_matrix("gramian", gramian, "[num_tasks, num_tasks]")
        if gramian.shape[0] != gramian.shape[1]:
            raise ValueError(
                "Argument `gramian` must have the shape `[num_tasks, "
                "num_tasks]`. Received: gramian of shape "
                f"{tuple(gramian.shape)}"
            )
        if task_losses is not None:
            task_losses = ops.convert_to_tensor(task_losses)
        self.ensure_built(gramian.shape[0])
        if live is None:
            live = ops.isfinite(ops.diagonal(gramian))
        live = ops.convert_to_tensor(live, "bool")
        check_one_per_task(gramian.shape[0], task_losses, live)
        live = self.with_valid_losses(live, task_losses)
        pairs = ops.logical_and(live[:, None], live[None, :])
        gramian = ops.where(pairs, gramian, 0.0)
        task_losses = self._cast_losses(task_losses, live)
        compute = self._solver.compiled or self.compute_weights
        weights = compute(gramian, task_losses, live)
        single = self.weights_of_single(gramian.shape[0])
        weights = ops.where(is_single(live), single, weights)
        weights = ops.where(live, weights, 0.0)
        self._last_weights.assign(ops.cast(weights, "float32"))
        self.steps.assign_add(1)
        return weights

    def compile_solver(self, wrap):
        """Lets a backend compile `compute_weights`, if `supports_jit`.

        Args:
            wrap: Function from a function of tensors to a compiled one.
        """
        if self.supports_jit and self._solver.compiled is None:
            self._solver.compiled = wrap(self.compute_weights)

    def aggregate(self, jacobian, task_losses, live):
        gramian = ops.matmul(jacobian, ops.transpose(jacobian))
        weights = self.weigh(gramian, task_losses, live)
        weights = ops.cast(weights, jacobian.dtype)
        return ops.matmul(weights[None, :], jacobian)[0]

    def _own_task_weights(self):
        if not self.built or not int(self.steps):
            return None
        return ops.convert_to_numpy(self._last_weights)
