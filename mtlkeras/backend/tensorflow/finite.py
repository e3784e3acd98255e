import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import every_replica


def all_finite(tensors):
    """Whether every element of the tensors is finite, on every replica.

    A sum of squares is one fused pass over the memory, where testing each
    element takes three. It overflows on gradients that are huge but finite, so
    only its "no" is looked into.
    """
    tensors = [
        tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor
        for tensor in tensors
    ]
    return every_replica(_all_finite(tensors))


@tf.function(autograph=False)
def _all_finite(tensors):
    squares = tf.add_n(
        [tf.cast(tf.nn.l2_loss(tensor), tf.float32) for tensor in tensors]
    )

    def check_each():
        checks = [tf.reduce_all(tf.math.is_finite(t)) for t in tensors]
        return tf.reduce_all(tf.stack(checks))

    return tf.cond(
        tf.math.is_finite(squares), lambda: tf.constant(True), check_each
    )
