import keras
import tensorflow as tf


def with_class_weights(class_weights, targets, weights, ranks):
    """Sample weights times the weight of each entry's class.

    The class is the index of the largest value where the target is one-hot (as
    many axes as the prediction, several values in the last), else the rounded
    value itself, as in Keras. Classes without a weight have 1.

    Args:
        class_weights: Dict from task to a dict from class to weight.
        targets: Dict from output to its target.
        weights: Dict from output to its sample weights or `None`.
        ranks: Dict from task to the rank of its prediction.

    Returns:
        A new dict of sample weights.
    """
    weights = dict(weights)
    for name, by_class in class_weights.items():
        found = weights_of_classes(by_class, targets[name], ranks[name])
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


def weights_of_classes(by_class, target, rank):
    target = tf.convert_to_tensor(target)
    same_rank = len(target.shape) == rank
    if same_rank and rank > 1 and (target.shape[-1] or 2) > 1:
        classes = tf.argmax(target, -1)
    else:
        if same_rank and rank > 1:
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
