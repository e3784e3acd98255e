import keras
import tensorflow as tf


class Batch:
    """One training or evaluation batch on its way through the sub-steps.

    Holds targets and sample weights per task, what of them is labelled, and
    collects what the sub-steps made of each task: loss, prediction and whether
    it ran. At the end it updates the trackers and the metrics from those, so
    no prediction is computed twice.
    """

    def __init__(self, model, x, y, sample_weight):
        self.model = model
        self.x = x
        self.tasks = model._multi_task.tasks
        self.targets = self.tasks.split_targets(y)
        self.weights = self.tasks.split(sample_weight, "sample_weight")
        self.masks, self.labelled, self.fractions = {}, {}, {}
        for name in self.tasks.names:
            labels = self.tasks.labels(
                name, self.targets[name], self.weights[name]
            )
            self.masks[name], self.labelled[name] = labels[:2]
            self.fractions[name] = labels[2]
        self.losses = {}
        self.predictions = {}
        self.ran = dict(self.labelled)
        self.finite = {}  # task -> whether loss and gradient were finite
        self.extra = []

    def y(self):
        return self.tasks.pack(self.targets)

    def sample_weight(self):
        if all(weight is None for weight in self.weights.values()):
            return None
        return self.tasks.pack(self.weights)

    def any_labelled(self, names):
        return any_of([self.labelled[name] for name in names])

    def group_loss(self, losses):
        """Weighted sum of losses, added up in Keras's order."""
        return sum(
            self.tasks.weighted(name, losses[name])
            for name in self.tasks.sum_order
            if name in losses
        )

    # -- the end of the batch -------------------------------------------------

    def size(self):
        return tf.shape(
            next(i for i in keras.tree.flatten(self.x) if i is not None)
        )[0]

    def track(self, total=None, finite=True):
        """Updates `loss` and the `<task>_loss` trackers.

        Args:
            total: The batch's total loss where it was computed as one; `None`
                where sub-steps were at different weights.
            finite: Whether the batch as a whole counts.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        unscale = (lambda v: v) if replicas == 1 else (lambda v: v * replicas)
        size = self.size()
        # Sub-steps are at different weights: no total of the batch exists.
        partial = total is None
        for name in self.tasks.sum_order:
            labelled, fraction = self.labelled[name], self.fractions[name]
            in_part = total is None
            if fraction is not None:
                in_part = any_of([in_part, fraction < 1.0])
            if labelled is not True:
                in_part = any_of([in_part, negated(labelled)])
            partial = any_of([partial, in_part])
            if name in self.tasks.trackers:
                self._track_task(
                    name, unscale(self.losses[name]), size, in_part
                )
        extra = tf.add_n(self.extra) if self.extra else tf.constant(0.0)
        extra = unscale(tf.cast(extra, tf.float32))
        if total is None:
            total = tf.constant(0.0)
            ran = any_of([self.ran[name] for name in self.tasks.names])
            finite = tf.math.is_finite(extra) if ran is True else ran
        total = unscale(total)
        if finite is not True:
            total = tf.where(finite, total, tf.zeros_like(total))
            extra = tf.where(finite, extra, tf.zeros_like(extra))
            size = tf.where(finite, size, 0)
        self.model._loss_tracker.update_state(
            total, extra, partial, sample_weight=size
        )

    def _track_task(self, name, value, size, in_part):
        ran, fraction = self.ran[name], self.fractions[name]
        entries = tf.cast(size, tf.float32)
        if fraction is not None:
            entries = entries * fraction
        if ran is not True:
            value = tf.where(ran, value, tf.zeros_like(value))
            entries = tf.where(ran, entries, 0.0)
            in_part = any_of([in_part, negated(ran)])
        self.tasks.trackers[name].update_state(
            value,
            # As Keras weighs it: by the batch size where that is static.
            sample_weight=self.predictions[name].shape[0],
            entries=entries,
            partial=in_part,
        )

    def compute_metrics(self):
        """`model.compute_metrics` on what the sub-steps predicted."""
        flags = self.model._multi_task.flags
        for name in self.tasks.names:
            ran = self.ran[name]
            flags[id(self.predictions[name])] = (
                self.masks[name],
                None if ran is True else ran,
            )
        try:
            return self.model.compute_metrics(
                self.x,
                self.y(),
                self.tasks.pack(self.predictions),
                sample_weight=self.sample_weight(),
            )
        finally:
            flags.clear()

    def count(self):
        """Counts per task the batches with labels and the skipped ones."""
        counters = self.model._multi_task.counters
        labelled = [self.labelled[name] for name in self.tasks.names]
        skipped = [
            both(self.labelled[name], negated(self.finite[name]))
            for name in self.tasks.names
        ]
        counters.labelled.assign_add(as_counts(labelled))
        counters.skipped.assign_add(as_counts(skipped))


def any_of(flags):
    """`or` over Python booleans and boolean tensors; static where it can."""
    if any(flag is True for flag in flags):
        return True
    flags = [flag for flag in flags if flag is not False]
    if not flags:
        return False
    return flags[0] if len(flags) == 1 else tf.reduce_any(tf.stack(flags))


def both(first, second):
    """`and` of Python booleans or boolean tensors; static where it can."""
    if first is False or second is False:
        return False
    if first is True:
        return second
    return first if second is True else tf.logical_and(first, second)


def negated(flag):
    return not flag if isinstance(flag, bool) else tf.logical_not(flag)


def as_counts(flags):
    return tf.stack([tf.cast(flag, tf.int32) for flag in flags])
