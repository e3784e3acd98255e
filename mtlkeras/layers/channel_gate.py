import keras
import numpy as np
from keras import ops

from mtlkeras.layers.shapes import are_equal, list_of_shapes


@keras.saving.register_keras_serializable("mtlkeras")
class ChannelGate(keras.layers.Layer):
    """Chooses per channel between a task's own features and shared ones.

    ```
    output = G * task_features + (1 - G) * shared_features
    G = 1 where sigmoid(logit) > 0.5, else 0
    ```

    The gates are hard, in training and afterwards; their gradient is that of
    `sigmoid(logit)` (straight-through). Choose it when the finished network
    has to be small: the channels that a gate does not take need not be
    computed, see `task_channels` and `merge`. Training costs a branch per task
    beside the shared one.

    With a `budget` the layer adds to the loss

    ```
    budget_weight * max(0, mean(sigmoid(logits)) - budget)
    ```

    Args:
        budget: Float between 0 and 1, the fraction of channels that may be
            the task's own for free. Defaults to `None`, no such loss.
        budget_weight: Float. Defaults to `1.0`.
        gate_initializer: Initializer of the logits. Defaults to
            `"random_normal"`, close to undecided; our choice.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        A list `[task_features, shared_features]` of tensors of one shape
        `(batch_size, ..., channels)`.

    Output shape:
        The same. It keeps the mask of the task's features or, where these
        have none, of the shared ones.

    Raises:
        ValueError: If the inputs are not two tensors of one shape.

    Example:

    >>> own, shared = np.array([[1.0, 2.0, 3.0]]), np.array([[7.0, 8.0, 9.0]])
    >>> layer = ChannelGate()
    >>> layer.build([own.shape, shared.shape])
    >>> layer.set_weights([np.array([1.0, -1.0, 1.0])])
    >>> keras.ops.convert_to_numpy(layer([own, shared]))
    array([[1., 8., 3.]], dtype=float32)
    >>> layer.task_channels
    array([0, 2])
    >>> part = layer.merge(own[:, [0, 2]], shared[:, [1]])
    >>> keras.ops.convert_to_numpy(part)
    array([[1., 8., 3.]])

    Departures: written from the paper's abstract and second-hand notes, so
    fidelity in detail is unverified. The hinge is one per layer; a budget for
    a whole network is met if every layer meets it. What the shared branch of
    the next layer gets, in the paper a learned mix of the tasks' features, is
    left to the model.

    References:
        - [Bejnordi et al., 2024](https://arxiv.org/abs/2402.16848)
    """

    def __init__(
        self,
        budget=None,
        budget_weight=1.0,
        gate_initializer="random_normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if budget is not None and not 0.0 <= budget <= 1.0:
            raise ValueError(
                "Argument `budget` must be a fraction of the channels between "
                f"0 and 1, or None. Received: budget={budget!r}"
            )
        self.budget = budget
        self.budget_weight = float(budget_weight)
        self.gate_initializer = keras.initializers.get(gate_initializer)
        self.supports_masking = True

    def build(self, input_shape):
        shapes = list_of_shapes(input_shape)
        if len(shapes) != 2 or not are_equal(shapes):
            raise ValueError(
                "ChannelGate needs the list [task_features, shared_features], "
                "two tensors of one shape. Received inputs of shapes "
                f"{input_shape}"
            )
        self.logits = self.add_weight(
            shape=(shapes[0][-1],),
            initializer=self.gate_initializer,
            name="logits",
            # Rounded to half precision, one near 0 could change sides.
            autocast=False,
        )

    def call(self, inputs):
        task_features, shared_features = inputs
        probabilities = ops.sigmoid(self.logits)
        if self.budget is not None:
            excess = ops.mean(probabilities) - self.budget
            self.add_loss(self.budget_weight * ops.relu(excess))
        hard = ops.cast(self.logits > 0, probabilities.dtype)
        # In this order it is exactly 0 or 1.
        gates = hard + (probabilities - ops.stop_gradient(probabilities))
        gates = ops.cast(gates, self.compute_dtype)
        return gates * task_features + (1.0 - gates) * shared_features

    # -- pruning --------------------------------------------------------------

    @property
    def task_channels(self):
        """Indices of the channels from the task's features, an array."""
        return np.flatnonzero(ops.convert_to_numpy(self.logits) > 0)

    @property
    def shared_channels(self):
        """Indices of the channels from the shared features, an array."""
        return np.flatnonzero(ops.convert_to_numpy(self.logits) <= 0)

    @property
    def task_fraction(self):
        """The fraction of channels that are the task's own."""
        return len(self.task_channels) / self.logits.shape[0]

    def merge(self, task_part, shared_part):
        """The output from those channels only that it takes.

        It stands in for the layer in a pruned network, whose branches compute
        no more than these channels.

        Args:
            task_part: Tensor `(batch_size, ..., len(task_channels))`.
            shared_part: Tensor `(batch_size, ..., len(shared_channels))`.

        Returns:
            Tensor `(batch_size, ..., channels)`.
        """
        sources = np.concatenate([self.task_channels, self.shared_channels])
        joined = ops.concatenate([task_part, shared_part], axis=-1)
        return ops.take(joined, np.argsort(sources), axis=-1)

    # -- Keras ----------------------------------------------------------------

    def compute_mask(self, inputs, previous_mask):
        if previous_mask is None:
            return None
        task_mask, shared_mask = previous_mask
        return shared_mask if task_mask is None else task_mask

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):
        return {
            **super().get_config(),
            "budget": self.budget,
            "budget_weight": self.budget_weight,
            "gate_initializer": keras.initializers.serialize(
                self.gate_initializer
            ),
        }
