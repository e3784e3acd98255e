import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.class_weights import with_class_weights
from mtlkeras.backend.tensorflow.gradient_norms import GradientNorms
from mtlkeras.backend.tensorflow.labels import Labels
from mtlkeras.backend.tensorflow.loss_weights import LossWeights
from mtlkeras.backend.tensorflow.replicas import (
    num_replicas,
    sum_over_replicas,
)


class Batch:
    """One training or evaluation batch on its way through the sub-steps.

    Holds targets and sample weights per task, what of them is labelled, and
    collects what the sub-steps made of each task: loss, prediction and whether
    it ran. At the end it updates the trackers and the metrics from those, so
    no prediction is computed twice.
    """

    def __init__(self, model, x, y, sample_weight, training=False):
        self.model = model
        self.x = x
        self.tasks = model._multi_task.tasks
        self.targets = self.tasks.split_targets(y)
        self.weights = self.tasks.split(sample_weight, "sample_weight")
        outputs = model._multi_task.structure.outputs
        ranks = {name: len(outputs[name].shape) for name in self.tasks.names}
        state = model._multi_task
        if training:
            self.weights = with_class_weights(
                state.class_weights, self.targets, self.weights, ranks
            )
        self.labels = Labels(self.tasks, self.targets, self.weights, ranks)
        self.labelled = dict(self.labels.labelled)
        self.freezes = training and state.freezes
        if self.freezes:
            # From here on a frozen task is as one without labels.
            frozen = tf.unstack(state.frozen.flags)
            for name, flag in zip(self.tasks.names, frozen, strict=True):
                self.labelled[name] = both(self.labelled[name], ~flag)
        self.loss_weights = LossWeights(self)
        balancer, self.gradient_norms = self.loss_weights.balancer, None
        if balancer is not None and balancer.requires_gradient_norms:
            self.gradient_norms = GradientNorms(self)
        self.monitor = None  # a `BatchMonitor`
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

    def watched(self, index, update):
        """Runs a group's update, under the eyes of the monitor if any."""
        if self.monitor is None:
            update()
        else:
            self.monitor.watch(index, update)

    def any_labelled(self, names):
        return any_of([self.labelled[name] for name in names])

    def group_loss(self, losses):
        """Sum of losses by `loss_weights`, as it is reported."""
        return self.total(
            {name: self.tasks.weighted(name, losses[name]) for name in losses}
        )

    def total(self, terms):
        """Sum of a dict over tasks, added up in Keras's order."""
        return sum(terms[n] for n in self.tasks.sum_order if n in terms)

    def size(self):
        return tf.shape(
            next(i for i in keras.tree.flatten(self.x) if i is not None)
        )[0]

    def blank_predictions(self):
        """Dict from task to zeros in the shape of its output."""
        structure = self.model._multi_task.structure
        shapes = structure.output_shapes(self.model, self.x)
        rows = self.size()
        return {
            name: tf.zeros([rows, *shapes[name][0][1:]], shapes[name][1])
            for name in self.tasks.names
        }

    # -- the end of the batch -------------------------------------------------

    def compute_total(self, y_pred, training):
        """The model's `compute_loss`, with what is known of the labels."""
        self.tasks.values = {}
        self.tasks.labels = self.labels
        try:
            return self.model._compute_loss(
                x=self.x,
                y=self.y(),
                y_pred=y_pred,
                sample_weight=self.sample_weight(),
                training=training,
            )
        finally:
            self.tasks.labels = None

    def track(self, total=None, finite=True):
        """Updates `loss` and the `<task>_loss` trackers.

        Args:
            total: The batch's total loss where it was computed as one; `None`
                where sub-steps were at different weights.
            finite: Whether the batch as a whole counts.
        """
        names = self.tasks.sum_order
        rows = self.size()
        losses = tf.stack([self.losses[name] for name in names])
        fractions = [self.labels.fractions[name] for name in names]
        entries = tf.ones_like(losses)
        # Sub-steps are at different weights: no total of the batch exists.
        partial = total is None
        if any(fraction is not None for fraction in fractions):
            entries = [1.0 if f is None else f for f in fractions]
            entries = tf.stack(entries)
            partial = partial or entries < 1.0
        labelled = all_flags([self.labelled[name] for name in names])
        if labelled is not True:
            partial = ~labelled if partial is False else partial | ~labelled
        ran = labelled
        if total is None:
            ran = all_flags([self.ran[name] for name in names])
        elif finite is not True:
            ran = finite if labelled is True else labelled & finite
        if ran is not True:
            losses = tf.where(ran, losses, tf.zeros_like(losses))
            entries = tf.where(ran, entries, tf.zeros_like(entries))
        sizes = tf.cast(rows, losses.dtype)
        if num_replicas() > 1:
            # Fractions are of the batch, a loss without one is of the replica.
            average = sum_over_replicas(sizes) / num_replicas()
            sizes = [sizes if f is None else average for f in fractions]
            sizes = tf.stack(sizes)
        entries = entries * sizes
        extra = tf.add_n(self.extra) if self.extra else tf.zeros([])
        extra = tf.cast(extra, losses.dtype)
        if total is None:
            total = tf.zeros([], losses.dtype)
            finite = True if ran is True else tf.reduce_any(ran)
        if finite is not True:
            total = tf.where(finite, total, tf.zeros_like(total))
            extra = tf.where(finite, extra, tf.zeros_like(extra))
            rows = tf.where(finite, rows, 0)
        # Each replica's loss is its part of the batch's.
        replicas = num_replicas()
        if replicas > 1:
            losses, total = losses * replicas, total * replicas
            extra = extra * replicas
        self.model._loss_tracker.update_state(
            losses,
            total,
            extra,
            # As Keras weighs a task's batch: by its size where it is static.
            weight=self.predictions[names[0]].shape[0] or 1,
            entries=entries,
            partial=partial,
            sample_weight=rows,
        )

    def compute_metrics(self):
        """`model.compute_metrics` on what the sub-steps predicted."""
        flags = self.model._multi_task.flags
        self._predict_other_outputs()
        for name in self.tasks.names:
            ran = self.ran[name]
            flags[id(self.predictions[name])] = (
                self.labels.targets[name],
                self.labels.entries[name],
                None if ran is True else ran,
            )
        try:
            with self.model._loss_tracker.computed_once():
                return self.model.compute_metrics(
                    self.x,
                    self.y(),
                    self.tasks.pack(self.predictions),
                    sample_weight=self.sample_weight(),
                )
        finally:
            flags.clear()

    def _predict_other_outputs(self):
        """Outputs that are no task, for their metrics if they have targets."""
        others = tuple(
            name
            for name in self.tasks.output_names
            if name not in self.predictions
        )
        labelled = tuple(n for n in others if self.targets[n] is not None)
        self.predictions.update(dict.fromkeys(others))
        if labelled:
            # Nothing of this pass stays but the predictions.
            with keras.StatelessScope():
                found = self.model._forward(labelled, self.x)
            self.predictions.update(found)

    def count(self):
        """Counts per task the batches with labels and the skipped ones."""
        counters = self.model._multi_task.counters
        names = self.tasks.names
        found = self.labels.labelled
        counters.watched = [n for n in names if found[n] is not True]
        if counters.watched:
            labelled = [found[name] for name in names]
            counters.labelled.assign_add(as_counts(labelled))
        if self.finite:
            finite = tf.stack([self.finite[name] for name in names])
            self.count_skipped(~finite)

    def count_skipped(self, bad):
        """Counts the labelled ones of the tasks that are not finite."""
        counters = self.model._multi_task.counters
        labelled = all_flags([self.labelled[n] for n in self.tasks.names])
        bad = bad if labelled is True else bad & labelled
        counters.skipped.assign_add(tf.cast(bad, tf.int32))


def all_flags(flags):
    """Booleans as one tensor, `[len(flags)]`; `True` if all are that."""
    if all(flag is True for flag in flags):
        return True
    return tf.stack([tf.convert_to_tensor(flag) for flag in flags])


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
    return tf.cast(tf.stack([tf.convert_to_tensor(f) for f in flags]), tf.int32)
