import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import all_flags


class BatchMonitor:
    """Measures gradients and motion of the tasks, where that is due.

    Nothing that trains reads what is measured, and the forward pass leaves
    nothing behind: weights, seeds, statistics and slots are those of a training
    without it.

    Args:
        batch: The `Batch`.
    """

    def __init__(self, batch):
        self.batch = batch
        self.model = batch.model
        self.measured = batch.model._multi_task.measurements
        self.shared = batch.model._multi_task.structure.shared_variables()
        wait = tf.convert_to_tensor(self.measured.wait)
        self.due = tf.equal(wait, 0)
        begin = tf.constant(self.measured.every, tf.int64)
        self.measured.wait.assign(tf.where(self.due, begin, wait) - 1)

    def measure(self):
        """Gradients at the weights before the batch's first update."""
        tf.cond(
            self.due,
            lambda: self.measured.gramian.assign(self._gramian()),
            lambda: self.measured.gramian,
        )

    def _gramian(self):
        """Inner products of the gradients of the shared variables.

        Of each task's loss times its loss weight, as aggregators see them,
        `[num_tasks, num_tasks]`; NaN for tasks that have no labels or a
        gradient that is not finite.
        """
        batch = self.batch
        names = batch.tasks.names
        with tf.GradientTape(persistent=True) as tape:
            # The seeds, too, are as they were: dropout masks are those of the
            # training step's first forward pass.
            with keras.StatelessScope():
                predictions = self.model._forward(names, batch.x)
                losses = {
                    name: batch.labels.loss(name, predictions[name])
                    for name in names
                }
            losses = batch.loss_weights.by_constants(losses)
            scaled = {name: self._scale(losses[name]) for name in names}
        gradients = [tape.gradient(scaled[name], self.shared) for name in names]
        del tape
        gramian = tf.zeros([len(names), len(names)], tf.float64)
        for variable, found in zip(
            self.shared, zip(*gradients, strict=True), strict=True
        ):
            rows = [flat_in_64(variable, gradient) for gradient in found]
            rows = tf.stack(rows)  # [num_tasks, size]
            gramian += tf.matmul(rows, rows, transpose_b=True)
        scale = tf.cast(self._scale(tf.ones([])), tf.float64)
        gramian = gramian / scale**2
        known = tf.math.is_finite(tf.linalg.diag_part(gramian))
        labelled = all_flags([batch.labelled[name] for name in names])
        if labelled is not True:
            known &= labelled
        known = known[:, None] & known[None, :]
        return tf.where(known, gramian, tf.constant(float("nan"), tf.float64))

    def _scale(self, loss):
        """The loss as float16 needs it, by the scale of the first slot."""
        optimizer = self.model.optimizer
        if hasattr(optimizer, "optimizers"):
            slot = self.model._multi_task.plan.group_slots[0]
            return optimizer.scale_loss(loss, slot)
        return optimizer.scale_loss(loss)

    def watch(self, index, update):
        """Runs a group's update; notes how far it moved shared variables.

        Args:
            index: The group's index.
            update: Function without arguments.
        """
        if len(self.measured.groups) == 1:
            update()
            return
        plan = self.model._multi_task.plan
        group = {id(v) for v in plan.group_variables(index)}
        shared = [v for v in self.shared if id(v) in group]

        def watched():
            before = [tf.identity(v.value) for v in shared]
            update()
            squares = [
                tf.reduce_sum(tf.cast(v.value - value, tf.float64) ** 2)
                for v, value in zip(shared, before, strict=True)
            ]
            hit = tf.one_hot(index, len(plan.groups), dtype=tf.float64)
            self.measured.motion.assign_add(
                hit * tf.add_n([tf.zeros([], tf.float64), *squares])
            )

        if self.measured.every_motion:
            watched()
        else:
            tf.cond(self.due, watched, update)


def flat_in_64(variable, gradient):
    """A gradient as float64 vector, in which no square of it overflows."""
    size = tf.TensorShape(variable.shape).num_elements()
    if gradient is None:
        return tf.zeros([size], tf.float64)
    flat = tf.reshape(tf.convert_to_tensor(gradient), [size])
    return tf.cast(flat, tf.float64)
