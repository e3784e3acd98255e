import keras


class TaskLoss(keras.metrics.Metric):
    """The history key `<task>_loss`: one entry of a `TotalLoss`.

    It has no variables; `TotalLoss` keeps, updates and resets them.

    Args:
        total_loss: The `TotalLoss`.
        task: Name of the task.
    """

    def __init__(self, total_loss, task):
        super().__init__(name=f"{task}_loss")
        self.task = task
        # In a tuple it is not tracked as a metric inside of this one, too.
        self._total_loss = (lambda: total_loss,)

    def update_state(self, *args, **kwargs):
        raise NotImplementedError("`TotalLoss` is updated in its place.")

    def result(self):
        total_loss = self._total_loss[0]()
        return total_loss.task_result(total_loss.names.index(self.task))
