import keras
from keras import ops

from mtlkeras.layers.shapes import list_of_shapes


@keras.saving.register_keras_serializable("mtlkeras")
class TaskAttention(keras.layers.Layer):
    """A task's soft attention on features that all tasks share (MTAN).

    ```
    output = sigmoid(h(relu(g(context)))) * features
    ```

    `g` and `h` are dense along the channels (a 1 x 1 convolution, for images),
    each with batch normalization. Each task has one such layer for each block
    of the shared network and so picks from the same features what it needs.
    Choose it for dense predictions with a large shared network: a task adds
    only these small layers.

    In the paper the features are the end of a block of the shared network and
    the context is the middle of this block, joined with the task's output for
    the block before. That first goes through a convolution, one for all tasks,
    and pooling, which bring it to the size of this block: stock Keras layers.

    Args:
        units: Integer, the number of outputs of `g`. Defaults to `None`, the
            number of channels of the features, as in the authors' code.
        activation: Activation of `g`. Defaults to `"relu"`.
        batch_norm: Boolean. Whether `g` and `h` are batch normalized. Defaults
            to `True`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        A list `[features, *context]` of tensors `(batch_size, ..., channels)`
        that differ in the number of channels at most, or `features` alone,
        which are then their own context.

    Output shape:
        That of `features`, with their mask.

    Raises:
        ValueError: If the inputs differ in more than their channels.

    Example:

    >>> image = keras.Input((8, 8, 3))
    >>> u = keras.layers.Conv2D(6, 3, padding="same")(image)
    >>> p = keras.layers.Conv2D(6, 3, padding="same")(u)
    >>> depth_1 = TaskAttention()([p, u])
    >>> shared = keras.layers.Conv2D(6, 3, padding="same")
    >>> v = keras.layers.Conv2D(6, 3, padding="same")(p)
    >>> q = keras.layers.Conv2D(6, 3, padding="same")(v)
    >>> depth_2 = TaskAttention()([q, v, shared(depth_1)])
    >>> tuple(depth_2.shape)
    (None, 8, 8, 6)

    References:
        - [Liu et al., 2019](https://arxiv.org/abs/1803.10704)
    """

    def __init__(
        self, units=None, activation="relu", batch_norm=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.batch_norm = batch_norm
        self.supports_masking = True

    def build(self, input_shape):
        features, context = split_shapes(input_shape)
        if any(shape[1:-1] != features[1:-1] for shape in context):
            raise ValueError(
                "The inputs of TaskAttention must have equal shapes but for "
                f"the channels. Received inputs of shapes {input_shape}"
            )
        channels = sum(shape[-1] for shape in context)
        sizes = [channels, self.units or features[-1], features[-1]]
        self.dense, self.norms = [], []
        for name, before, after in zip("gh", sizes, sizes[1:], strict=False):
            layer = keras.layers.Dense(
                after, name=name, dtype=self.dtype_policy
            )
            layer.build((*features[:-1], before))
            self.dense.append(layer)
            if self.batch_norm:
                layer = keras.layers.BatchNormalization(
                    name=f"norm_{name}", dtype=self.dtype_policy
                )
                layer.build((*features[:-1], after))
                self.norms.append(layer)

    def call(self, inputs, mask=None):
        features, context = split(inputs)
        mask = split(mask)[0] if isinstance(inputs, (list, tuple)) else mask
        return features * self.attention(context, mask)

    def attention(self, context, mask=None):
        """The weights in (0, 1) that the features are multiplied by.

        Args:
            context: List of tensors.
            mask: Tensor of the unmasked positions, which alone count in the
                statistics of a batch. Defaults to `None`, all.
        """
        x = context[0]
        if len(context) > 1:
            x = ops.concatenate(context, axis=-1)
        activations = (self.activation, ops.sigmoid)
        for k, activation in enumerate(activations):
            x = self.dense[k](x)
            if self.batch_norm:
                x = self.norms[k](x, mask=mask)
            x = activation(x)
        return x

    def compute_mask(self, inputs, previous_mask):
        if isinstance(previous_mask, (list, tuple)):
            return previous_mask[0]
        return previous_mask

    def compute_output_shape(self, input_shape):
        return split_shapes(input_shape)[0]

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "batch_norm": self.batch_norm,
        }


def split(inputs):
    """`(features, context)` of the inputs."""
    if not isinstance(inputs, (list, tuple)):
        return inputs, [inputs]
    return inputs[0], list(inputs[1:]) or [inputs[0]]


def split_shapes(input_shape):
    """`(shape of the features, shapes of the context)`."""
    return split(list_of_shapes(input_shape))
