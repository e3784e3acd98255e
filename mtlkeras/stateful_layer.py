import keras


class StatefulLayer(keras.layers.Layer):
    """A layer whose variables remember past steps: a rule or a balancer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._state = []  # (variable, initializer)

    def add_state(self, name, shape, initializer="zeros", dtype="float64"):
        """A variable that is saved with the model, restored and reset.

        Read it with `ops.copy`: `ops.convert_to_tensor` returns the variable
        itself, which shows what is assigned later.
        """
        initializer = keras.initializers.get(initializer)
        variable = self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            name=name,
        )
        self._state.append((variable, initializer))
        return variable

    def reset_state(self):
        """Sets everything back to where it was before the first step."""
        for variable, initializer in self._state:
            variable.assign(initializer(variable.shape, dtype=variable.dtype))
