import keras
from keras import ops


class TaskLossMean(keras.metrics.Metric):
    """Mean of a task's loss over the sub-steps in which the task ran.

    As Keras's own tracker of a loss, but NaN and not 0 when the task never
    ran: a 0 would look like a perfect task.
    """

    def __init__(self, name, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.mean = keras.metrics.Mean(name="mean", dtype=dtype)

    def update_state(self, value, sample_weight=None):
        self.mean.update_state(value, sample_weight=sample_weight)

    def result(self):
        return ops.where(
            ops.greater(self.mean.count, 0),
            self.mean.result(),
            ops.cast(float("nan"), self.dtype),
        )
