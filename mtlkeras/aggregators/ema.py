import keras
from keras import ops

from mtlkeras.aggregators.aggregator import all_live, is_single
from mtlkeras.aggregators.gramian_aggregator import GramianAggregator


@keras.saving.register_keras_serializable("mtlkeras")
class EMA(GramianAggregator):
    """Another rule with weights that change slowly.

    ```
    w <- momentum w + (1 - momentum) w_rule
    ```

    from the rule's own weights in the first step. The weights of a rule jump
    from batch to batch, with the noise of the gradients, which biases the
    direction; an exponential moving average takes the noise out and makes the
    stochastic rule converge. Choose it with small batches.

    Args:
        aggregator: The rule: an id, a config or a `GramianAggregator`.
        momentum: Float in `[0, 1)`. Defaults to `0.9` (TorchJD; the paper
            raises it towards 1).
        **kwargs: As for `Aggregator`.

    Example:

    >>> rule = EMA("mgda", momentum=0.5)
    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> direction = rule(jacobian)  # weights (0.6, 0.4)
    >>> direction = rule(np.eye(2, 3))  # (0.5, 0.5) by itself
    >>> rule.last_task_weights
    array([0.55, 0.45], dtype=float32)

    The average of a task without labels rests, and the task has weight 0; that
    of a task without a past starts with its first weight.

    References:
        - [Zhou et al., 2022: On the Convergence of Stochastic Multi-Objective
          Gradient Manipulation and
          Beyond](https://openreview.net/forum?id=ScwfQ7hdwyP)
    """

    def __init__(self, aggregator, momentum=0.9, **kwargs):
        # The door for strings is this folder's `get`.
        from mtlkeras import aggregators

        aggregator = aggregators.get(aggregator)
        for name in ("gradients_at", "feature_layers", "memory"):
            if aggregator is not None:
                kwargs.setdefault(name, getattr(aggregator, name))
        super().__init__(**kwargs)
        if not isinstance(aggregator, GramianAggregator):
            raise ValueError(
                "Argument `aggregator` must be a rule whose direction is a "
                "weighted sum of the task gradients, a `GramianAggregator`. "
                f"Received: aggregator={aggregator!r}"
            )
        if not 0 <= momentum < 1:
            raise ValueError(
                "Argument `momentum` must be 0 or larger and less than 1. "
                f"Received: momentum={momentum!r}"
            )
        self.aggregator = aggregator
        self.momentum = float(momentum)
        self.requires_losses = aggregator.requires_losses
        self.requires_positive_losses = aggregator.requires_positive_losses

    def build_state(self, num_tasks, num_params):
        self.average = self.add_state("average", (num_tasks,))
        self.known = self.add_state("known", (num_tasks,), dtype="int32")
        if not self.aggregator.built:
            self.aggregator.build((num_tasks, num_params))

    def compute_weights(self, gramian, task_losses=None, live=None):
        self.ensure_built(gramian.shape[0])
        weights = self.aggregator.weigh(gramian, task_losses, live)
        if live is None:
            live = all_live(gramian.shape[0])
        # Alone a task has its gradient, which says nothing of the rule.
        live = ops.logical_and(live, ops.logical_not(is_single(live)))
        average = ops.copy(self.average)
        known = ops.copy(self.known)
        moved = self.momentum * average + (1.0 - self.momentum) * weights
        moved = ops.where(known > 0, moved, weights)
        moved = ops.where(live, moved, average)
        self.average.assign(moved)
        self.known.assign(ops.maximum(known, ops.cast(live, "int32")))
        return moved

    def config_for(self, indices, num_tasks):
        inner = self.aggregator.config_for(indices, num_tasks)
        inner = type(self.aggregator).from_config(inner)
        config = super().config_for(indices, num_tasks)
        config["aggregator"] = keras.saving.serialize_keras_object(inner)
        return config

    def weights_of_single(self, num_tasks):
        return self.aggregator.weights_of_single(num_tasks)

    def compile_solver(self, wrap):
        if self.supports_jit:
            self.aggregator.compile_solver(wrap)

    def get_config(self):
        return {
            **super().get_config(),
            "aggregator": keras.saving.serialize_keras_object(self.aggregator),
            "momentum": self.momentum,
        }
