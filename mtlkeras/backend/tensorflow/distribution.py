"""What `tf.distribute` needs around the training step of a model."""

import contextlib

import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import MIRRORED, every_replica


class DistributedTrainer:
    """Trains a `keras.Model` on several devices or machines.

    Keras does so by itself on the devices of one machine. Under a
    `MultiWorkerMirroredStrategy` of several workers its `fit` fails
    (keras-team/keras#20585): it takes the replicas of a batch for one tensor,
    and it averages logs over an axis that they do not have. What is done here
    in that case, and in no other, goes around both.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # The one private method of Keras's trainer that is replaced.
        strategy = self._distribute_strategy
        if iterator is not None and is_multi_worker(strategy):
            # Each replica's part of a batch shows structure and shapes.
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def _step_logs(self, logs):
        """The logs of a step in a form that Keras averages over replicas."""
        if not is_multi_worker(self._distribute_strategy):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _distribution_scope(self):
        """Where variables are made, outside of a step."""
        if self._distribute_strategy is None:
            return contextlib.nullcontext()
        return self._distribute_strategy.scope()

    def _heed_every_replica(self, optimizers):
        """Makes loss scales heed the overflow of any replica.

        Keras asks the first replica alone, before gradients are added up: what
        had overflown on another one would get into the weights.
        """
        if self._distribute_strategy is None:
            return
        for optimizer in optimizers:
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                check = type(optimizer).check_finite.__get__(optimizer)
                optimizer.check_finite = lambda gradients, check=check: (
                    every_replica(check(gradients))
                )

    def _check_distribution(self, optimizer, jit_compile, steps_per_execution):
        """Refuses what would not run, or train each replica by itself.

        Args:
            optimizer: The Keras optimizer, without loss scaling.
            jit_compile: As in `compile`.
            steps_per_execution: As in `compile`.

        Raises:
            ValueError: If anything of it is not supported.
        """
        strategy = tf.distribute.get_strategy()
        in_scope = strategy if tf.distribute.has_strategy() else None
        way_out = (
            "Build the model, make the optimizer and call `compile` under one "
            "`with strategy.scope():`; `fit` may be outside of it."
        )
        if self._distribute_strategy is not in_scope:
            raise ValueError(
                "A model must be built and compiled in the scope of the same "
                "`tf.distribute` strategy. Received: a model built in "
                f"{scope_name(self._distribute_strategy)}, and `compile` "
                f"called in {scope_name(in_scope)}. {way_out}"
            )
        made_in = getattr(optimizer, "_distribution_strategy", strategy)
        if made_in is not strategy:
            raise ValueError(
                "An optimizer must be made in the scope of the `tf.distribute` "
                f"strategy of its model. Received: {optimizer.name} made in "
                f"{scope_name(made_in)}, and a model built in "
                f"{scope_name(in_scope)}. {way_out}"
            )
        if not isinstance(strategy, MIRRORED):
            return
        refused = {
            "gradient_accumulation_steps": (
                optimizer.gradient_accumulation_steps
            ),
            "ema_overwrite_frequency": (
                optimizer.use_ema and optimizer.ema_overwrite_frequency
            ),
            "jit_compile": jit_compile is True,
            "steps_per_execution": (
                steps_per_execution > 1 and steps_per_execution
            ),
        }
        for name, value in refused.items():
            if value:
                raise ValueError(
                    f"`{name}` must be left out in {scope_name(strategy)}. "
                    "With it a step of stock Keras fails, too: gradients "
                    "cannot be exchanged inside of a branch, a loop or XLA. "
                    f"Received: {name}={value}. Leave it out, or train on one "
                    "device without a scope."
                )


def is_multi_worker(strategy):
    """Whether Keras reduces logs and predictions over several workers."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def writes_files(model):
    """Whether this process is the one of a model's workers that writes."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is None or strategy.extended.should_checkpoint


def scope_name(strategy):
    if strategy is None or type(strategy).__name__.startswith("_Default"):
        return "no scope"
    return f"the scope of a {type(strategy).__name__}"
