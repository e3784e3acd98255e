import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.regrouped_step import (
    RegroupedStep,
    as_tensor,
    pass_gradient_if,
    update_head,
)
from mtlkeras.backend.tensorflow.replicas import (
    exchanges,
    sum_over_replicas,
    update_if,
)
from mtlkeras.backend.tensorflow.state import ForwardScope, is_loss_scaled


def affinity_step(batch):
    """The groups in force in turn; notes what every group's step did.

    The groups are a variable, and one loop in the graph goes through as many
    as there are. A group's forward pass gives the losses of all tasks: those
    after the step of the group before it. One more forward pass at the end
    gives those after the last group's step.
    """
    loop = AffinityLoop(batch)
    results = loop.empty()
    if exchanges():
        # No loop in the graph can hold the exchange between replicas. What
        # lies behind the last group has no members and changes nothing.
        for position in range(len(loop.names)):
            results = loop.run(position, results)
    else:
        _, results = tf.while_loop(
            lambda position, _: position < loop.count,
            lambda position, results: (
                position + 1,
                loop.run(position, results),
            ),
            (tf.constant(0), results),
        )
    loop.finish(results)


class AffinityLoop:
    """Sub-steps of one batch, with what is carried from one to the next.

    Within a sub-step the `Batch` holds what the ones before have made of it,
    as where sub-steps are not in a loop of the graph.

    Args:
        batch: The `Batch`.
    """

    def __init__(self, batch):
        self.batch = batch
        self.model = batch.model
        self.plan = batch.model._multi_task.plan
        self.names = batch.tasks.names
        strategy = batch.model._multi_task.strategy
        self.state = strategy.state
        self.assigned = strategy.assign_groups(None)
        self.order = strategy.order_groups(self.model.optimizer.iterations)
        self.count = tf.cast(tf.reduce_max(self.assigned), tf.int32) + 1
        self.labelled = as_tensor(batch.labelled, self.names)

    def empty(self):
        count = len(self.names)
        return {
            "losses": tf.zeros([count], keras.backend.floatx()),
            "predictions": self.batch.blank_predictions(),
            "extra": tf.zeros([], tf.float32),
            "squares": tf.zeros([count], tf.float64),
            "ran": tf.zeros([count], tf.bool),
            "finite": tf.ones([count], tf.bool),
            # Losses of all tasks before the last step, and who made it.
            "before": tf.zeros([count], keras.backend.floatx()),
            "stepped": tf.zeros([count], tf.bool),
        }

    def run(self, position, results):
        """One sub-step; returns the results with its own."""
        batch, head_gradients = self.batch, {}
        self._unpack(results)
        step = AffinityStep(batch, self.order[position], self.assigned)
        live = step.run(head_gradients)
        stepped = step.members & self.labelled & live
        for name, slot in self.plan.head_slots.items():
            ran = stepped[self.names.index(name)]
            update_head(batch, name, slot, head_gradients, ran)
        losses = self._credit(step.unweighted, results)
        return self._pack(losses, stepped)

    def finish(self, results):
        """Measures the last group's step and hands over to the batch."""
        batch = self.batch
        self._unpack(results)
        # Of this pass nothing stays but the seeds: it draws its own masks.
        with ForwardScope(self.plan.structure.layer_tasks):
            predictions = self.model._forward(self.names, batch.x)
            losses = {
                name: batch.labels.loss(name, predictions[name])
                for name in self.names
            }
        self._credit(losses, results)
        self.model.optimizer.finish_batch()
        batch.track()

    def _credit(self, losses, results):
        """Credits the last step with the losses measured after it."""
        after = tf.stack([losses[name] for name in self.names])
        after = sum_over_replicas(after)
        self.state.credit(
            results["before"], after, results["stepped"], self.labelled
        )
        return after

    def _unpack(self, results):
        batch = self.batch

        def by_task(key):
            return dict(zip(self.names, tf.unstack(results[key]), strict=True))

        batch.losses, batch.ran = by_task("losses"), by_task("ran")
        batch.finite = by_task("finite")
        batch.predictions = dict(results["predictions"])
        batch.extra = [results["extra"]]
        if batch.gradient_norms is not None:
            batch.gradient_norms.squares = by_task("squares")

    def _pack(self, before, stepped):
        batch, norms = self.batch, self.batch.gradient_norms

        def stack(values):
            return tf.stack([values[name] for name in self.names])

        return {
            "losses": stack(batch.losses),
            "predictions": {n: batch.predictions[n] for n in self.names},
            "extra": tf.add_n(batch.extra),
            "squares": tf.zeros([len(self.names)], tf.float64)
            if norms is None
            else stack(norms.squares),
            "ran": stack(batch.ran),
            "finite": stack(batch.finite),
            "before": before,
            "stepped": stepped,
        }


class AffinityStep(RegroupedStep):
    """A group of the partition in force, with the true losses of all tasks."""

    def __init__(self, batch, index, assigned):
        super().__init__(batch, index, assigned)
        self.slots = sorted(set(self.plan.group_slots))
        # With slots per task, a group has those of its first task.
        first = tf.argmax(tf.cast(self.members, tf.int32))
        self.slot_in_use = first if len(self.slots) > 1 else self.slot

    def loss(self, name, prediction):
        # All losses are measured, so a foreign task's bad label is kept from
        # the group's gradient at the prediction.
        prediction = pass_gradient_if(self.member[name], prediction)
        return self.batch.labels.loss(name, prediction)

    def scale(self, loss):
        optimizer = self.model.optimizer
        if len(self.slots) == 1 or not is_loss_scaled(optimizer):
            return super().scale(loss)
        one = tf.ones([], loss.dtype)
        scales = [optimizer.scale_loss(one, slot) for slot in self.slots]
        return loss * tf.stack(scales)[self.slot_in_use]

    def update_shared(self, pairs, live, ran_before):
        if len(self.slots) == 1:
            super().update_shared(pairs, live, ran_before)
            return
        variables = [v for _, v in pairs] + self.model.optimizer.variables
        for slot in self.slots:
            update_if(
                live & tf.equal(self.slot_in_use, slot),
                lambda slot=slot: self.apply_slot(slot, pairs),
                variables,
            )
        update_if(
            live,
            lambda: self.scope.commit(
                lambda tasks: self.is_first(tasks, ran_before)
            ),
            self.scope.variables,
        )
