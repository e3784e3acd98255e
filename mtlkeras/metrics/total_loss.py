import contextlib

import keras
from keras import ops


class TotalLoss(keras.metrics.Metric):
    """The history keys `loss` and `<task>_loss` of a multi-task model.

    Where every task was wholly labelled in every batch of a joint step or of
    an evaluation, they are what Keras reports. Keras counts batches alike when
    their size is not static, which is no mean over entries once batches are
    labelled in part; then, and for sub-steps, a task's loss is the mean over
    its labelled entries, and `loss` is the weighted sum of the tasks' means
    plus the mean of the extra losses (regularizers, `add_loss`). A task that
    never ran is left out of the sum and has NaN: 0 would look like a perfect
    task.

    The sums of all tasks are kept in vectors: with many tasks, one tracker
    each costs more than the losses themselves.
    """

    def __init__(self, name="loss"):
        super().__init__(name=name)
        self.total = keras.metrics.Mean(name="total")
        self.extra = keras.metrics.Mean(name="extra")
        self.names = ()
        self._task_results = None

    def bind(self, names, weights):
        """Fixes the tasks.

        Args:
            names: Tuple of task names.
            weights: Dict from task to its loss weight or `None`.
        """
        self.names = tuple(names)
        self._task_weights = [
            1.0 if weights[name] is None else weights[name] for name in names
        ]

        def add(name):
            return self.add_weight(
                shape=(len(names),), initializer="zeros", name=name
            )

        self.batch_totals, self.batch_counts = add("totals"), add("counts")
        self.entry_totals = add("entry_totals")
        self.entry_counts = add("entry_counts")
        self.partial = add("partial")

    def update_state(
        self, losses, total, extra, weight, entries, partial, sample_weight
    ):
        """Adds a batch.

        Args:
            losses: Tensor of shape `[num_tasks]`, 0 for a task that did not
                run.
            total: Scalar, the batch's total loss.
            extra: Scalar, its part that belongs to no task.
            weight: The weight by which Keras counts the batch of a task.
            entries: Tensor of shape `[num_tasks]`: how many labelled entries
                each task ran on.
            partial: Which tasks did not run on all of the batch: `False`, or
                a boolean tensor of shape `[num_tasks]`.
            sample_weight: Scalar, the weight of the batch in `total`.
        """
        self.total.update_state(total, sample_weight=sample_weight)
        self.extra.update_state(extra, sample_weight=sample_weight)
        weight = ops.cast(weight, self.dtype)
        entries = ops.cast(entries, self.dtype)
        self.entry_totals.assign_add(losses * entries)
        self.entry_counts.assign_add(entries)
        if partial is False:
            self.batch_totals.assign_add(losses * weight)
            self.batch_counts.assign_add(
                weight * ops.ones((len(self.names),), self.dtype)
            )
            return
        ran = ops.cast(ops.greater(entries, 0), self.dtype)
        self.batch_totals.assign_add(losses * weight * ran)
        self.batch_counts.assign_add(weight * ran)
        self.partial.assign_add(
            ops.ones_like(ran) * ops.cast(partial, self.dtype)
        )

    def task_means(self):
        """Mean loss of every task, `[num_tasks]`; 0 if it never ran."""
        return ops.where(
            ops.greater(self.partial, 0),
            ops.divide_no_nan(self.entry_totals, self.entry_counts),
            ops.divide_no_nan(self.batch_totals, self.batch_counts),
        )

    def task_result(self, index):
        """What `<task>_loss` reports for a task; NaN if it never ran."""
        if self._task_results is not None:
            return self._task_results[index]
        return self._report()[index]

    @contextlib.contextmanager
    def computed_once(self):
        """Within it the trackers of all tasks share one computation."""
        self._task_results = ops.unstack(self._report())
        try:
            yield
        finally:
            self._task_results = None

    def _report(self):
        nan = ops.cast(float("nan"), self.dtype)
        has_run = ops.greater(self.entry_counts, 0)
        return ops.where(has_run, self.task_means(), nan)

    def result(self):
        weights = ops.convert_to_tensor(self._task_weights, self.dtype)
        weighted = ops.sum(self.task_means() * weights)
        return ops.where(
            ops.any(ops.greater(self.partial, 0)),
            weighted + self.extra.result(),
            self.total.result(),
        )
