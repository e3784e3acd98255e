import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import (
    every_replica,
    exchanges,
    sum_over_replicas,
)


class LossWeights:
    """What the losses of one batch are multiplied by before they are trained.

    That is `loss_weights`, times the weights of the balancer if there is one.

    Args:
        batch: The `Batch`.
    """

    def __init__(self, batch):
        self.batch = batch
        self.names = batch.tasks.names
        self.balancer = batch.model._multi_task.update.balancer
        # Whether they are more than constants that Keras's own step knows.
        self.vary = self.balancer is not None or batch.freezes
        self.latest = {}  # task -> the weight it was given last
        if self.balancer is None:
            return
        self.measure = self.balancer.measure
        # Traced once for all sub-steps. Replicas cannot exchange in there, and
        # XLA loses the order of a function with state and other updates.
        if not (
            exchanges() or batch.model.jit_compile or tf.executing_eagerly()
        ):
            self.measure = tf.function(self.measure, autograph=False)

    def weigh(self, losses, counted=None):
        """Each task's loss as it is to be trained.

        Args:
            losses: Dict from task to its loss, just measured.
            counted: Dict from task to whether its loss counts, boolean
                tensors. Defaults to `None` (all do).
        """
        constant = self.by_constants(losses)
        if self.balancer is None:
            return constant
        self.latest.update(self.weights_after(constant, counted))
        return self.by_latest(constant)

    def by_constants(self, losses):
        """Losses times `loss_weights`; those of frozen tasks are 0."""
        tasks = self.batch.tasks
        weighted = {n: tasks.weighted(n, loss) for n, loss in losses.items()}
        if not self.batch.freezes:
            return weighted
        return {
            name: tf.where(self.batch.labelled[name], loss, 0.0)
            for name, loss in weighted.items()
        }

    def by_latest(self, losses):
        """Losses times the balancer's weights, if there is one."""
        if self.balancer is None:
            return losses
        return {
            name: loss * tf.cast(self.latest[name], loss.dtype)
            for name, loss in losses.items()
        }

    def look_up(self):
        """Takes the weights as they are, where nothing can be measured yet.

        A branch of the graph cannot: its losses are known after it.
        """
        if self.balancer is not None:
            weights = tf.unstack(self.balancer.weights_now())
            self.latest = dict(zip(self.names, weights, strict=True))

    def note(self, losses, counted):
        """Lets the balancer take note of losses already weighed.

        Returns:
            List of tensors that are not finite where a loss must not be as it
            is.
        """
        if self.balancer is None:
            return []
        weights = self.weights_after(self.by_constants(losses), counted)
        return [tf.stack(list(weights.values()))]

    def weights_after(self, weighted, counted=None):
        """The balancer's weights, after these losses have been measured."""
        values = tf.stack(list(weighted.values()))
        measured = every_replica(tf.math.is_finite(values))
        for flags in (self.batch.labelled, counted):
            if flags is not None:
                measured &= tf.stack(
                    [tf.constant(True) & flags[n] for n in weighted]
                )
        indices = [[self.names.index(name)] for name in weighted]
        count = [len(self.names)]
        weights = self.measure(
            tf.scatter_nd(indices, sum_over_replicas(values), count),
            tf.scatter_nd(indices, measured, count),
        )
        weights = tf.unstack(weights)
        return {name: weights[self.names.index(name)] for name in weighted}

    def finish_batch(self):
        """Lets the balancer move on, after the updates of the batch."""
        if self.balancer is None:
            return
        batch = self.batch
        trained = tf.stack(
            [tf.constant(True) & batch.ran[name] for name in self.names]
        )
        if batch.gradient_norms is not None:
            batch.gradient_norms.finish_batch()
        if self.balancer.update_after_step:
            self.balancer.update_after(self.losses_now(), trained)
        self.balancer.finish_batch(trained)

    def losses_now(self):
        """Losses of the batch at the weights as they are, `[num_tasks]`."""
        batch = self.batch
        # Nothing of this pass stays but the losses.
        with keras.StatelessScope():
            predictions = batch.model._forward(self.names, batch.x)
        losses = [
            batch.tasks.weighted(n, batch.labels.loss(n, predictions[n]))
            for n in self.names
        ]
        return sum_over_replicas(tf.stack(losses))
