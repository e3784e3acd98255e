import keras
import tensorflow as tf


def with_class_weights(class_weights, targets, weights):
    """Sample weights times the weight of each entry's class.

    The class is the index of the largest value where the last axis of the
    target holds several (one-hot targets of rank 2 and more), else the rounded
    value itself, as in Keras. Classes without a weight have 1.

    Args:
        class_weights: Dict from task to a dict from class to weight.
        targets: Dict from output to its target.
        weights: Dict from output to its sample weights or `None`.

    Returns:
        A new dict of sample weights.
    """
    weights = dict(weights)
    for name, by_class in class_weights.items():
        found = weights_of_classes(by_class, targets[name])
        given = weights[name]
        if given is not None:
            given = tf.cast(given, found.dtype)
            for _ in range(len(found.shape) - len(given.shape)):
                given = tf.expand_dims(given, -1)
            if len(given.shape) > len(found.shape):
                given = tf.squeeze(given, -1)
            found = found * given
        weights[name] = found
    return weights


def weights_of_classes(by_class, target):
    target = tf.convert_to_tensor(target)
    if len(target.shape) > 1 and (target.shape[-1] or 2) > 1:
        classes = tf.argmax(target, -1)
    else:
        if len(target.shape) > 1:
            target = tf.squeeze(target, -1)
        classes = target
        if target.dtype.is_floating:
            classes = tf.round(target)
    dtype = keras.backend.floatx()
    weights = tf.ones(tf.shape(classes), dtype)
    # NaN, for a missing label, is of no class.
    for index, weight in by_class.items():
        is_class = tf.equal(classes, tf.cast(index, classes.dtype))
        weights = tf.where(is_class, tf.cast(weight, dtype), weights)
    return weights
