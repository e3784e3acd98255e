import functools

import keras
from keras import ops

from mtlkeras.layers.shapes import are_equal, list_of_shapes


@keras.saving.register_keras_serializable("mtlkeras")
class ConversionProduct(keras.layers.Layer):
    """The probability of a whole chain of events, from conditional ones.

    ```
    P(click and conversion) = P(click) * P(conversion | click)
    ```

    Events that follow one another (impression, click, conversion) are known
    for unlike sets of examples: whether a click converts, for clicked ones
    only. A head for `P(conversion | click)` trained on those alone is biased
    everywhere else. Train the click and this product instead, both of which
    are known for every impression; the conditional head is learned by way of
    the product (ESMM). The chain may have more than two events, with a product
    up to each; none is ever larger than that of a shorter chain.

    With `from_logits=True` inputs and output are logits, computed without the
    probabilities in between, for a loss with `from_logits=True`:

    ```
    logit(P(a) P(b)) = -log(exp(-a) + exp(-b) + exp(-a - b))
    ```

    Prefer it: a product of rare events keeps its precision and its gradient.

    Args:
        from_logits: Boolean. Defaults to `False`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        A list of two or more tensors of one shape, `(batch_size, ...)`.

    Output shape:
        The same. Where inputs have masks, all of them have to hold.

    Raises:
        ValueError: If there are fewer than two inputs or their shapes differ.

    Example:

    >>> inputs = keras.Input((8,))
    >>> click = keras.layers.Dense(1, name="click")(inputs)
    >>> conversion = keras.layers.Dense(1, name="conversion")(inputs)
    >>> bought = ConversionProduct(from_logits=True)([click, conversion])
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs, {"click": click, "bought": bought}
    ... )
    >>> loss = keras.losses.BinaryCrossentropy(from_logits=True)
    >>> model.compile("adam", loss={"click": loss, "bought": loss})
    >>> [v.path for v in model.task_variables("bought")]
    ['conversion/kernel', 'conversion/bias']

    Departures: the constraint on chains is what TAFE states in its abstract
    (each task depends on the one before); its equations were not compared, and
    its feature extraction is not here.

    References:
        - [Ma et al., 2018](https://arxiv.org/abs/1804.07931)
        - Chains: [Tao et al., 2023](https://doi.org/10.1145/3604915.3608772)
    """

    def __init__(self, from_logits=False, **kwargs):
        super().__init__(**kwargs)
        self.from_logits = from_logits
        self.supports_masking = True

    def build(self, input_shape):
        shapes = list_of_shapes(input_shape)
        if len(shapes) < 2 or not are_equal(shapes):
            raise ValueError(
                "ConversionProduct needs a list of two or more tensors of one "
                f"shape. Received inputs of shapes {input_shape}"
            )

    def call(self, inputs):
        combine = logit_of_product if self.from_logits else ops.multiply
        return functools.reduce(combine, inputs)

    def compute_mask(self, inputs, previous_mask):
        masks = [mask for mask in previous_mask or () if mask is not None]
        return functools.reduce(ops.logical_and, masks) if masks else None

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


def logit_of_product(a, b):
    terms = ops.stack([-a, -b, -a - b], axis=0)
    return -ops.logsumexp(terms, axis=0)
