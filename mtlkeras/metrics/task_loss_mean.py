import keras
from keras import ops


class TaskLossMean(keras.metrics.Metric):
    """Mean of a task's loss over the batches in which the task ran.

    Where a task was wholly labelled in every batch of a joint step or of an
    evaluation, it is what Keras reports. Keras gives batches equal weights
    when their size is not static, which is no mean over entries once batches
    are labelled in part; then, and for sub-steps, it is the mean over labelled
    entries. A task that never ran has NaN: 0 would look like a perfect task.
    """

    def __init__(self, name, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.by_batch = keras.metrics.Mean(name="by_batch", dtype=dtype)
        self.by_entry = keras.metrics.Mean(name="by_entry", dtype=dtype)
        self.partial = self.add_weight(name="partial", initializer="zeros")

    def update_state(self, value, sample_weight=None, entries=1, partial=False):
        """Adds a batch.

        Args:
            value: The task's loss on the batch.
            sample_weight: The weight of the batch that Keras uses.
            entries: How many entries were labelled, 0 if the task did not run.
            partial: Whether that was not the whole batch; `False`, `True` or a
                boolean tensor.
        """
        if partial is False:
            self.by_batch.update_state(value, sample_weight=sample_weight)
            self.by_entry.update_state(value, sample_weight=entries)
            return
        ran = ops.cast(ops.greater(entries, 0), self.dtype)
        weight = ran if sample_weight is None else sample_weight * ran
        self.by_batch.update_state(value, sample_weight=weight)
        self.by_entry.update_state(value, sample_weight=entries)
        partial = ops.cast(partial, self.dtype)
        self.partial.assign(ops.maximum(self.partial, partial))

    def has_run(self):
        return ops.greater(self.by_entry.count, 0)

    def mean(self):
        """The mean, 0 if the task never ran."""
        return ops.where(
            ops.greater(self.partial, 0),
            self.by_entry.result(),
            self.by_batch.result(),
        )

    def result(self):
        nan = ops.cast(float("nan"), self.dtype)
        return ops.where(self.has_run(), self.mean(), nan)
