"""One fused kernel in place of Keras's elementwise Adam and SGD updates.

Keras writes an update as about ten elementwise operations per variable, each a
pass over the memory. TensorFlow has kernels that do the same formula in one
pass. They differ from Keras in rounding only.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import exchanges


def fused_update(optimizer, unfused, scale_of=lambda variable: 1.0):
    """A fused `update(gradients, variables, learning_rate)`.

    Only the elementwise step is replaced, at the hook that Keras has for
    backends: clipping, accumulation, constraints and counters stay Keras's.

    Args:
        optimizer: The optimizer whose state is to be used.
        unfused: Its update as it is, returned for optimizers without a kernel
            and used for sparse gradients.
        scale_of: Function from a variable to a factor on its learning rate,
            which `unfused` heeds by itself. Defaults to 1 for all.
    """
    kind = type(optimizer)
    if kind in (keras.optimizers.Adam, keras.optimizers.AdamW):
        if optimizer.amsgrad:
            return unfused
        step = _adam_step
    elif kind is keras.optimizers.SGD:
        step = _sgd_step
    else:
        return unfused

    def update(gradients, variables, learning_rate):
        if any(isinstance(g, tf.IndexedSlices) for g in gradients):
            return unfused(gradients, variables, learning_rate)
        by_scale = {}
        for pair in zip(gradients, variables, strict=True):
            by_scale.setdefault(scale_of(pair[1]), []).append(pair)
        for scale, pairs in by_scale.items():
            rate = learning_rate if scale == 1.0 else learning_rate * scale
            step(optimizer, *zip(*pairs, strict=True), rate)

    return update


@contextlib.contextmanager
def fused_updates(optimizer):
    """In this scope an optimizer, without loss scaling, updates fused.

    With many tasks, Keras's operations one by one for every head take longer
    than the heads. Replicas have a way of their own.
    """
    if exchanges():
        yield
        return
    unfused = optimizer._backend_update_step
    optimizer._backend_update_step = fused_update(optimizer, unfused)
    try:
        yield
    finally:
        del optimizer._backend_update_step


def _adam_step(optimizer, gradients, variables, learning_rate):
    scalars = functools.cache(
        lambda dtype: _adam_scalars(optimizer, learning_rate, dtype)
    )
    for gradient, variable in zip(gradients, variables, strict=True):
        index = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            grad=tf.cast(gradient, variable.dtype),
            **scalars(variable.dtype),
        )


def _adam_scalars(optimizer, learning_rate, dtype):
    beta_1_power, beta_2_power = _adam_powers(optimizer, dtype)
    return {
        "beta1_power": beta_1_power,
        "beta2_power": beta_2_power,
        "lr": tf.cast(learning_rate, dtype),
        "beta1": tf.constant(optimizer.beta_1, dtype),
        "beta2": tf.constant(optimizer.beta_2, dtype),
        "epsilon": tf.constant(optimizer.epsilon, dtype),
    }


def _adam_powers(optimizer, dtype):
    step = tf.cast(tf.convert_to_tensor(optimizer.iterations) + 1, dtype)
    return (
        tf.pow(tf.cast(optimizer.beta_1, dtype), step),
        tf.pow(tf.cast(optimizer.beta_2, dtype), step),
    )


def _sgd_step(optimizer, gradients, variables, learning_rate):
    for gradient, variable in zip(gradients, variables, strict=True):
        index = optimizer._get_variable_index(variable)
        dtype = variable.dtype
        rate = tf.cast(learning_rate, dtype)
        gradient = tf.cast(gradient, dtype)
        if optimizer.momentum != 0:
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.value.handle,
                accum=optimizer.momentums[index].value.handle,
                lr=rate,
                grad=gradient,
                momentum=tf.cast(optimizer.momentum, dtype),
                use_nesterov=optimizer.nesterov,
            )
        else:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.value.handle, alpha=rate, delta=gradient
            )
