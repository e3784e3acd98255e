import math

import keras

MOST_TASKS = 5
WORST_TASKS = 3


class TaskProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, readable with many tasks.

    `fit` and `evaluate` add it by themselves.

    For more than five tasks it shows the total and, of the tasks, the three
    with the largest loss (in validation, where there is one) with their
    metrics. Keys with a slash, such as `cosine/<a>/<b>`, are for plots and not
    shown. The logs, and so `History` and other callbacks, have all keys.
    """

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, self._shown(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, self._shown(logs))

    def on_test_batch_end(self, batch, logs=None):
        super().on_test_batch_end(batch, self._shown(logs))

    def on_test_end(self, logs=None):
        super().on_test_end(self._shown(logs))

    def _shown(self, logs):
        """The part of the logs that is shown, in this order."""
        logs = {k: v for k, v in (logs or {}).items() if "/" not in k}
        names = self.model.task_names
        if len(names) <= MOST_TASKS:
            return logs
        # Which are the worst changes, while a bar keeps every key it has seen.
        if self.progbar is not None:
            self.progbar._values, self.progbar._values_order = {}, []
        by_task = {name: {} for name in names}
        shown = {}
        for key, value in logs.items():
            name = task_of(key.removeprefix("val_"), names)
            by_task.get(name, shown)[key] = value
        for name in worst(by_task):
            shown.update(by_task[name])
        return shown


def task_of(key, names):
    """The task whose key it is: the longest name that it begins with."""
    found = [name for name in names if key.startswith(f"{name}_")]
    return max(found, key=len, default=None)


def worst(by_task):
    """The tasks with the largest loss, in descending order.

    A task that did not run has a loss of NaN, and is none of them.
    """
    losses = {}
    for name, logs in by_task.items():
        loss = logs.get(f"val_{name}_loss", logs.get(f"{name}_loss"))
        if loss is not None and not math.isnan(loss):
            losses[name] = loss
    return sorted(losses, key=losses.get, reverse=True)[:WORST_TASKS]
