import keras
import numpy as np
from keras import ops

from mtlkeras.layers.shapes import are_equal, list_of_shapes


@keras.saving.register_keras_serializable("mtlkeras")
class CrossStitch(keras.layers.Layer):
    """Mixes the activations of the tasks' networks by a learned matrix.

    Every task has a network of its own; between their layers, each gets a
    linear mix of what all have computed:

    ```
    output_i = sum_j A[i, j] input_j
    ```

    Choose it when tasks may need networks of their own and how much to share,
    layer by layer, is to be learned: `A` the identity shares nothing, equal
    rows share all. It costs one network per task, so T is small.

    With `num_subspaces=S` each input is cut along its channels into S parts
    and `A` mixes all `T * S` parts (the sluice network's matrix).

    Args:
        self_weight: Float. Initial `A[i, i]`; the others in a row share
            `1 - self_weight` evenly. Defaults to `0.9`, as in the code of the
            sluice networks.
        per_channel: Boolean. Whether every channel has a matrix of its own,
            else one for all. Defaults to `False`.
        num_subspaces: Integer that divides the number of channels. Defaults
            to `1`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        A list of `T >= 2` tensors of one shape `(batch_size, ..., channels)`,
        or a dict of them. The matrix has a dict's tensors in the alphabetical
        order of the keys.

    Output shape:
        The same structure and shapes. Each output keeps the mask of the input
        in its place.

    Raises:
        ValueError: If there are fewer than two inputs, their shapes differ,
            or `num_subspaces` does not divide the number of channels.

    Example:

    >>> layer = CrossStitch(self_weight=0.75)
    >>> left, right = layer([np.array([[4.0, 8.0]]), np.array([[0.0, 4.0]])])
    >>> keras.ops.convert_to_numpy(left)
    array([[3., 7.]], dtype=float32)
    >>> keras.ops.convert_to_numpy(right)
    array([[1., 5.]], dtype=float32)

    Departures: the paper gives the mixing weights a larger learning rate than
    the networks; here they have the same, unless the optimizer says otherwise.
    Sluice networks also penalize overlapping subspaces and start them
    otherwise; this layer has their matrix only.

    References:
        - [Misra et al., 2016](https://arxiv.org/abs/1604.03539)
        - Subspaces: [Ruder et al., 2019](https://arxiv.org/abs/1705.08142)
    """

    def __init__(
        self, self_weight=0.9, per_channel=False, num_subspaces=1, **kwargs
    ):
        super().__init__(**kwargs)
        if not isinstance(num_subspaces, int) or num_subspaces < 1:
            raise ValueError(
                "Argument `num_subspaces` must be a positive integer. "
                f"Received: num_subspaces={num_subspaces!r}"
            )
        self.self_weight = float(self_weight)
        self.per_channel = per_channel
        self.num_subspaces = num_subspaces
        self.supports_masking = True

    def build(self, input_shape):
        shapes = list_of_shapes(input_shape)
        if len(shapes) < 2 or not are_equal(shapes):
            raise ValueError(
                "CrossStitch needs a list or dict of at least two inputs that "
                f"have one shape. Received inputs of shapes {input_shape}"
            )
        channels, subspaces = shapes[0][-1], self.num_subspaces
        if channels % subspaces:
            raise ValueError(
                "Argument `num_subspaces` must divide the number of channels, "
                f"{channels}. Received: num_subspaces={subspaces}"
            )
        count = len(shapes) * subspaces
        start = np.full((count, count), (1.0 - self.self_weight) / (count - 1))
        np.fill_diagonal(start, self.self_weight)
        shape = start.shape
        if self.per_channel:
            start, shape = start[:, :, None], (*shape, channels // subspaces)
        # [parts, parts], or [parts, parts, channels of a part]
        self.mixing = self.add_weight(
            shape=shape,
            initializer=lambda shape, dtype: ops.cast(
                np.broadcast_to(start, shape), dtype
            ),
            name="mixing",
        )

    def call(self, inputs):
        streams = keras.tree.flatten(inputs)
        count, subspaces = len(streams), self.num_subspaces
        channels = streams[0].shape[-1]
        parts = ops.stack(
            [ops.reshape(x, (-1, channels)) for x in streams], axis=1
        )
        # [rows, parts, channels of a part]
        parts = ops.reshape(
            parts, (-1, count * subspaces, channels // subspaces)
        )
        equation = "ijc,njc->nic" if self.per_channel else "ij,njc->nic"
        mixed = ops.einsum(equation, self.mixing, parts)
        mixed = ops.reshape(mixed, (-1, count, channels))
        outputs = [
            ops.reshape(mixed[:, i], ops.shape(x))
            for i, x in enumerate(streams)
        ]
        return keras.tree.pack_sequence_as(inputs, outputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "self_weight": self.self_weight,
            "per_channel": self.per_channel,
            "num_subspaces": self.num_subspaces,
        }
