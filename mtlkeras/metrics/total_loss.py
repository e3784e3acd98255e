import keras
from keras import ops


class TotalLoss(keras.metrics.Metric):
    """The history key `loss` of a multi-task model.

    Where every task was labelled in every batch of a joint step or of an
    evaluation, it is what Keras reports: the mean of the total over batches.
    Otherwise that mean would count an unlabelled task as 0, so it is the
    weighted sum of the tasks' means plus the mean of the extra losses
    (regularizers, `add_loss`); a task that never ran is left out.

    Args:
        task_means: Function that returns a list of `(weight, TaskLossMean)`.
    """

    def __init__(self, task_means, name="loss"):
        super().__init__(name=name)
        self.total = keras.metrics.Mean(name="total")
        self.extra = keras.metrics.Mean(name="extra")
        self.partial = self.add_weight(name="partial", initializer="zeros")
        # Inside a tuple the function is no attribute for Keras to track.
        self._task_means = (task_means,)

    def update_state(self, total, extra, partial, sample_weight=None):
        """Adds a batch.

        Args:
            total: Scalar, the batch's total loss.
            extra: Scalar, its part that belongs to no task.
            partial: Whether a task did not run on all of the batch; `False`
                or a boolean tensor.
            sample_weight: Scalar, the size of the batch.
        """
        self.total.update_state(total, sample_weight=sample_weight)
        self.extra.update_state(extra, sample_weight=sample_weight)
        if partial is not False:
            self.partial.assign(
                ops.maximum(self.partial, ops.cast(partial, self.dtype))
            )

    def result(self):
        means = self._task_means[0]()
        if not means:
            return self.total.result()
        # A task that never ran has a mean of 0 here, and so adds nothing.
        weighted = sum(mean.mean() * weight for weight, mean in means)
        return ops.where(
            ops.greater(self.partial, 0),
            weighted + self.extra.result(),
            self.total.result(),
        )
