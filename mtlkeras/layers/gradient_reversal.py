import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("mtlkeras")
class GradientReversal(keras.layers.Layer):
    """Passes its input on, and the gradient back times `-factor`.

    ```
    output = x,   dL/dx = -factor * dL/doutput
    ```

    Put it before the head of an adversary: the head learns to solve its task
    while what comes before learns to make it impossible, for features that do
    not tell domains, or a protected attribute, apart. With factor 0 the head
    only watches.

    `factor` may be changed while the model trains, from a callback:
    `layer.factor = 0.5`. It is a weight that is not trained, so nothing is
    traced anew, and it is saved with the model.

    Args:
        factor: Float, not negative. Defaults to `1.0`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        Any.

    Output shape:
        The same, with the same mask.

    Raises:
        ValueError: If the factor is negative or not finite.

    Example:

    >>> inputs = keras.Input((8,))
    >>> features = keras.layers.Dense(16, activation="relu")(inputs)
    >>> reversal = GradientReversal(factor=0.0)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {
    ...         "label": keras.layers.Dense(3)(features),
    ...         "domain": keras.layers.Dense(1)(reversal(features)),
    ...     },
    ... )
    >>> def ramp_up(epoch, logs=None):
    ...     reversal.factor = 2.0 / (1.0 + np.exp(-10.0 * epoch / 20)) - 1.0
    >>> callback = keras.callbacks.LambdaCallback(on_epoch_begin=ramp_up)
    >>> ramp_up(10)
    >>> round(reversal.factor, 3)
    0.987

    References:
        - [Ganin and Lempitsky, 2015](https://arxiv.org/abs/1409.7495)
    """

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        factor = check_factor(factor)
        self._factor = self.add_weight(
            shape=(),
            # `Constant` would round a float64 to a float32.
            initializer=lambda _, dtype: ops.convert_to_tensor(factor, dtype),
            trainable=False,
            name="factor",
        )
        self.supports_masking = True
        self.built = True

    @property
    def factor(self):
        """What the gradient is multiplied by, beside the sign."""
        # By way of the digits that tell a float32: 0.1 shall be 0.1.
        return float(str(ops.convert_to_numpy(self._factor)))

    @factor.setter
    def factor(self, value):
        self._factor.assign(check_factor(value))

    def call(self, inputs):
        # Exactly the input: what the factor multiplies is 0.
        constant = ops.stop_gradient(inputs)
        return constant - self._factor * (inputs - constant)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def check_factor(factor):
    factor = float(factor)
    if not math.isfinite(factor) or factor < 0:
        raise ValueError(
            "Argument `factor` must be a finite number that is not negative. "
            f"Received: factor={factor}"
        )
    return factor
