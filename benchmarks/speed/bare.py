"""What every rule has to compute, in bare TensorFlow and nothing beside it.

No check of what is finite, no tasks without labels, no state, no trackers: the
floor that a training step can be held against.
"""

import keras
import tensorflow as tf


def backward_passes(model):
    """A function that computes all tasks' gradients and does nothing more."""
    variables = [v.value for v in model.trainable_variables]

    @tf.function(autograph=False)
    def function(batches):
        x, y = next(batches)
        with tf.GradientTape(persistent=True) as tape:
            losses = losses_of(model(x, training=True), y)
        # What is returned is not pruned.
        return [
            gradient
            for loss in losses
            for gradient in tape.gradient(loss, variables)
            if gradient is not None
        ]

    return function


def weighted_step(model, trunk_output, at_features):
    """A training step of a rule that needs inner products, without the rule.

    One matrix of gradients per variable (or of the features), its product with
    itself, the sum of its rows by given weights, and an update.

    Args:
        model: Compiled stock `keras.Model`, a dict of heads on one trunk.
        trunk_output: `KerasTensor` that the heads start from.
        at_features: Whether the gradients are those of the trunk's output.
    """
    trunk = keras.Model(model.inputs, trunk_output)
    heads = {name: model.get_layer(name) for name in model.output_names}
    shared = trunk.trainable_variables
    own = {name: head.trainable_variables for name, head in heads.items()}
    every = [*shared, *(v for name in heads for v in own[name])]
    model.optimizer.build(every)
    weights = tf.constant([1.0 / len(heads)] * len(heads))

    @tf.function(autograph=False)
    def function(batches):
        x, y = next(batches)
        with tf.GradientTape(persistent=True) as tape:
            features = trunk(x, training=True)
            with tf.GradientTape(persistent=True) as past:
                past.watch(features)
                losses = losses_of({n: heads[n](features) for n in y}, y)
        rows, updates = [], {}
        for name, loss in zip(y, losses, strict=True):
            sources = [v.value for v in own[name]]
            if at_features:
                first, *rest = past.gradient(loss, [features, *sources])
                rows.append([first])
            else:
                taken = tape.gradient(loss, [v.value for v in shared] + sources)
                rows.append(taken[: len(shared)])
                rest = taken[len(shared) :]
            updates.update(zip(map(id, own[name]), rest, strict=True))
        gramian, parts = tf.zeros([len(y), len(y)]), []
        for gradients in zip(*rows, strict=True):
            matrix = tf.stack([tf.reshape(g, [-1]) for g in gradients])
            # As a batch of one: that kernel is twice as fast.
            product = tf.matmul(matrix[None], matrix[None], transpose_b=True)
            gramian += product[0]
            part = tf.linalg.matvec(matrix, weights, transpose_a=True)
            parts.append(tf.reshape(part, tf.shape(gradients[0])))
        if at_features:
            parts = tape.gradient(
                features, [v.value for v in shared], output_gradients=parts[0]
            )
        updates.update(zip(map(id, shared), parts, strict=True))
        model.optimizer.apply([updates[id(v)] for v in every], every)
        return gramian

    return function


def losses_of(outputs, y):
    return [tf.reduce_mean(tf.square(outputs[name] - y[name])) for name in y]
