"""Derivatives of small pure functions, which `keras.ops` does not have."""

import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import num_replicas


def derivative(function, point):
    """The gradient of a scalar function at a point, 0 where it has none.

    Args:
        function: Function from a tensor to a scalar.
        point: Float tensor.
    """
    point = tf.convert_to_tensor(point)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(point)
        value = function(point)
    gradient = tape.gradient(value, point)
    return tf.zeros_like(point) if gradient is None else gradient


def variable_gradients(function, variables):
    """Gradients of a scalar function without arguments, by variables.

    For an optimizer: with several replicas, which all compute the same, each
    gets its part of the gradients, since the optimizer adds them up.

    Args:
        function: Function without arguments that reads the variables.
        variables: List of Keras variables.
    """
    sources = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        value = function()
    gradients = tape.gradient(
        value, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return [gradient / num_replicas() for gradient in gradients]
