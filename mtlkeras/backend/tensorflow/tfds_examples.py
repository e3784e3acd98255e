import tensorflow as tf


def as_pairs(examples, inputs, targets, image_size):
    """`(x, y)` from the examples of a TensorFlow Dataset.

    Args:
        examples: `tf.data.Dataset` of nested dicts of features.
        inputs: Path of a feature, function from an example to a tensor, or a
            dict of these.
        targets: Dict from task to path or function.
        image_size: `(height, width)` or `None`.
    """

    def pair(example):
        x = tf.nest.map_structure(
            lambda given: as_input(take(example, given), image_size), inputs
        )
        y = {
            task: as_target(take(example, given), image_size)
            for task, given in targets.items()
        }
        return x, y

    return examples.map(pair, num_parallel_calls=tf.data.AUTOTUNE)


def join(first, second, key, feature):
    """Adds a feature of other examples, which must come in the same order."""
    sizes = [int(examples.cardinality()) for examples in (first, second)]
    if sizes[0] != sizes[1] and min(sizes) >= 0:
        raise ValueError(
            "Two configs can be joined only if they hold the same examples. "
            f"Received: {sizes[0]} and {sizes[1]} examples. Prepare both from "
            "the same files."
        )

    def joined(example, other):
        same = tf.debugging.assert_equal(
            example[key],
            other[key],
            f"Two configs must hold the same examples: their '{key}' differ. "
            "Prepare both from the same files.",
        )
        with tf.control_dependencies([same]):
            return {**example, feature: tf.identity(other[feature])}

    return tf.data.Dataset.zip((first, second)).map(joined)


def take(example, given):
    if callable(given):
        return given(example)
    for name in given.split("/"):
        example = example[name]
    return example


def as_input(value, image_size):
    value = tf.convert_to_tensor(value)
    if value.dtype == tf.uint8 or value.dtype.is_floating:
        value = tf.cast(value, tf.float32)
    if image_size is not None and value.shape.rank == 3:
        value = tf.image.resize(value, image_size)
    return value


def as_target(value, image_size):
    value = tf.convert_to_tensor(value)
    is_number = value.dtype.is_bool or value.dtype.is_floating
    if is_number:
        value = tf.cast(value, tf.float32)
    elif value.dtype.is_integer:
        value = tf.cast(value, tf.int32)
    if image_size is not None and value.shape.rank == 3:
        # No mean of two classes, and no NaN beside its pixel.
        value = tf.image.resize(value, image_size, "nearest")
    if is_number and value.shape.rank == 0:
        value = value[None]  # as a head of one unit predicts it
    return value


def batched(pairs, batch_size):
    """Batches of rows, which must have known shapes."""
    x, y = pairs.element_spec
    named = {"inputs": x} if not isinstance(x, dict) else x
    unknown = {
        name: spec.shape
        for name, spec in [*named.items(), *y.items()]
        if not spec.shape.is_fully_defined()
    }
    if unknown:
        raise ValueError(
            "Rows must have one shape to be batched. Received: "
            f"{unknown}, where None differs from row to row. Pass "
            "`image_size=(height, width)` for images, a function that returns "
            "a known shape for others, or `batch_size=None`."
        )
    return pairs.batch(batch_size).prefetch(tf.data.AUTOTUNE)
