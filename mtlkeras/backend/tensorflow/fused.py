"""One fused kernel in place of Keras's elementwise Adam and SGD updates.

Keras writes an update as about ten elementwise operations per variable, each a
pass over the memory. TensorFlow has kernels that do the same formula in one
pass. They differ from Keras in rounding only.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import exchanges, update_if
from mtlkeras.optimizers.variable_state import put_back


def fused_update(optimizer, unfused, scale_of=lambda variable: 1.0):
    """A fused `update(gradients, variables, learning_rate)`.

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
        return FusedUpdate(optimizer, unfused, scale_of, _adam_step)
    if kind is keras.optimizers.SGD:
        return FusedUpdate(optimizer, unfused, scale_of, _sgd_step)
    return unfused


class FusedUpdate:
    """Only the elementwise step is replaced, at Keras's hook for backends.

    Clipping, accumulation, constraints and counters stay Keras's.
    """

    def __init__(self, optimizer, unfused, scale_of, step):
        self.optimizer = optimizer
        self.unfused = unfused
        self.scale_of = scale_of
        self.step = step
        self.resting = []

    def __call__(self, gradients, variables, learning_rate):
        if any(isinstance(g, tf.IndexedSlices) for g in gradients):
            with put_back(self.optimizer, self.resting, update_if):
                self.unfused(gradients, variables, learning_rate)
            return
        rests = {id(v): k for k, (_, vs) in enumerate(self.resting) for v in vs}
        by_scale = {}
        for pair in zip(gradients, variables, strict=True):
            by_scale.setdefault(self.scale_of(pair[1]), []).append(pair)
        flags = [flag for flag, _ in self.resting]
        for scale, pairs in by_scale.items():
            rate = learning_rate if scale == 1.0 else learning_rate * scale
            positions = [rests.get(id(v)) for _, v in pairs]
            self.step(self.optimizer, pairs, rate, positions, flags)

    @contextlib.contextmanager
    def holding(self, resting):
        """In this scope variables rest, at the price of a few scalars.

        The kernel leaves a variable and its state as they are where the
        learning rate is 0 and the factors of decay are 1. To copy them and to
        put them back takes ten operations for each.

        Args:
            resting: List of `(rests, variables)`.

        Yields:
            Those that the kernel cannot hold, in the same form.
        """
        held, left = [], []
        for rests, variables in resting:
            for by, members in (
                (held, [v for v in variables if self._holds(v)]),
                (left, [v for v in variables if not self._holds(v)]),
            ):
                if members:
                    by.append((tf.convert_to_tensor(rests), members))
        self.resting = held
        try:
            yield left
        finally:
            self.resting = []

    def _holds(self, variable):
        """Whether nothing but the kernel would change it or its state."""
        optimizer = self.optimizer
        return (
            getattr(optimizer, "momentum", 0) == 0
            and optimizer.weight_decay is None
            and not optimizer.use_ema
            and not optimizer.gradient_accumulation_steps
            and variable.constraint is None
        )


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


def _adam_step(optimizer, pairs, learning_rate, positions, flags):
    @functools.cache
    def scalars(dtype):
        return _adam_scalars(optimizer, learning_rate, dtype)

    @functools.cache
    def where_resting(dtype):
        found = scalars(dtype)
        still = {"lr": 0.0, "beta1": 1.0, "beta2": 1.0}
        return [found | own for own in _selected(flags, still, found)]

    for (gradient, variable), position in zip(pairs, positions, strict=True):
        index = optimizer._get_variable_index(variable)
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            grad=tf.cast(gradient, dtype),
            **(
                scalars(dtype)
                if position is None
                else where_resting(dtype)[position]
            ),
        )


def _selected(flags, still, moving):
    """For each flag the scalars of an update that changes nothing, or not."""
    flags = tf.stack(flags)
    columns = [
        tf.unstack(
            tf.where(flags, tf.cast(value, moving[key].dtype), moving[key])
        )
        for key, value in still.items()
    ]
    return [
        dict(zip(still, row, strict=True)) for row in zip(*columns, strict=True)
    ]


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


def _sgd_step(optimizer, pairs, learning_rate, positions, flags):
    @functools.cache
    def where_resting(dtype):
        rate = {"lr": tf.cast(learning_rate, dtype)}
        return _selected(flags, {"lr": 0.0}, rate)

    for (gradient, variable), position in zip(pairs, positions, strict=True):
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
            continue
        if position is not None:
            rate = where_resting(dtype)[position]["lr"]
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.value.handle, alpha=rate, delta=gradient
        )
