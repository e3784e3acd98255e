import math
import warnings

import keras
import numpy as np

RISING = ("acc", "auc", "precision", "recall", "f1", "iou", "r2", "dice")
FALLING = ("loss", "error", "perplexity", "entropy")


class TaskEarlyStopping(keras.callbacks.Callback):
    """Freezes a task when its validation metric stops improving.

    Tasks of one network learn at different speeds: by the time that the last
    one has converged the first may overfit. A frozen task is treated as one
    without labels: its head and its optimizer state rest, it has no share in
    the updates of the shared variables, and its training loss reads NaN. The
    other tasks go on; when all are frozen training stops.

    Choose it in place of `keras.callbacks.EarlyStopping` where tasks overfit
    at different times. Its state (who is frozen, best values, patience, best
    heads) is the model's: it is saved with it, and a resumed run goes on with
    it. `reset` lets all tasks train again.

    Since the trunk goes on changing, a frozen task's metric may still drift,
    for better or worse; `restore_best_head` undoes changes of the head only.

    Args:
        metric: String, what to watch of every task: `"loss"` or the name of
            one of its metrics; or a dict from task to such a name, which also
            says which tasks are watched. Read from the validation of `fit`.
            Defaults to `"loss"`.
        min_delta: Float, the least change that counts as an improvement.
            Defaults to `0.0`.
        patience: Integer, the number of validations without an improvement
            after which a task is frozen. Defaults to `0`.
        mode: `"min"`, `"max"` or `"auto"` (from the metric's name). Defaults
            to `"auto"`.
        restore_best_head: Boolean. Whether a task that is frozen gets back its
            own variables as they were at its best value. Defaults to `False`.
        start_from_epoch: Integer, how many epochs to wait before watching.
            Defaults to `0`.

    Raises:
        ValueError: In `fit`, without validation data or for a metric that does
            not exist.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {name: keras.layers.Dense(1)(trunk) for name in ("left", "right")},
    ... )
    >>> model.compile("sgd", {"left": "mse", "right": "mse"})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> y = {"left": y, "right": y}
    >>> stopping = mtlkeras.callbacks.TaskEarlyStopping(
    ...     min_delta=1e6, patience=1)  # no change is enough
    >>> history = model.fit(
    ...     x, y, validation_data=(x, y), epochs=9, verbose=0,
    ...     callbacks=[stopping])
    >>> len(history.epoch), stopping.frozen_tasks
    (2, ('left', 'right'))
    """

    def __init__(
        self,
        metric="loss",
        min_delta=0.0,
        patience=0,
        mode="auto",
        restore_best_head=False,
        start_from_epoch=0,
    ):
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(
                "Argument `mode` must be 'auto', 'min' or 'max'. Received: "
                f"mode={mode!r}"
            )
        if patience < 0:
            raise ValueError(
                "Argument `patience` must not be negative. Received: "
                f"patience={patience!r}"
            )
        self.metric = metric
        self.min_delta = abs(min_delta)
        self.patience = patience
        self.mode = mode
        self.restore_best_head = restore_best_head
        self.start_from_epoch = start_from_epoch
        self._epoch = 0
        self._training = False

    @property
    def frozen_tasks(self):
        """Tuple of the tasks that are frozen."""
        flags = np.array(self._state.flags)
        names = self.model.task_names
        return tuple(n for n, flag in zip(names, flags, strict=True) if flag)

    def reset(self):
        """Lets all tasks train again and forgets their best values."""
        self._state.reset()

    @property
    def _state(self):
        return self.model._multi_task.frozen

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "_multi_task"):
            raise ValueError(
                "`TaskEarlyStopping` needs a `mtlkeras.MultiTaskModel`. "
                f"Received: model={self.model!r}"
            )
        if self.model._multi_task.structure is None:
            raise ValueError(
                "`TaskEarlyStopping` needs to know the tasks when training "
                "begins. Received: a subclassed model that has not seen data. "
                "Call it on a batch first, e.g. `model.evaluate(x, y)`."
            )
        self._metrics = self._metric_of_tasks()
        self._training, self._validated = True, False
        self.model._freeze_tasks(True)

    def on_train_end(self, logs=None):
        self._training = False
        self.model._freeze_tasks(False)
        if not self._validated:
            warnings.warn(
                "`TaskEarlyStopping` had nothing to watch: it reads the "
                "metrics of validation, and `fit` ran none. Pass "
                "`validation_data` or `validation_split`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    # Before `on_epoch_end` of any callback, so that a backup holds the outcome
    # whatever the order of the callbacks.
    def on_test_end(self, logs=None):
        if not self._training:
            return
        self._validated = True
        if self._epoch < self.start_from_epoch:
            return
        for name, metric in self._metrics.items():
            self._watch(name, metric, logs or {})
        if len(self.frozen_tasks) == len(self.model.task_names):
            self.model.stop_training = True

    def _metric_of_tasks(self):
        names = self.model.task_names
        if not isinstance(self.metric, dict):
            return dict.fromkeys(names, self.metric)
        unknown = [key for key in self.metric if key not in names]
        if unknown:
            raise ValueError(
                "The keys of `metric` must be tasks of the model, which has "
                f"the tasks {list(names)}. Received unknown keys: {unknown}"
            )
        return dict(self.metric)

    def _watch(self, name, metric, logs):
        """Compares a task's metric with its best one so far."""
        state = self._state
        index = self.model.task_names.index(name)
        if np.array(state.flags)[index]:
            return
        key = f"{name}_{metric}"
        if len(self.model.task_names) == 1:
            key = metric
        if key not in logs:
            raise ValueError(
                f"`TaskEarlyStopping` watches the metric {metric!r} of the "
                f"task {name!r}, but validation has no {key!r}. Received: "
                f"metrics {sorted(logs)}"
            )
        value = float(logs[key])
        best, wait = np.array(state.best), np.array(state.wait)
        sign = 1.0 if self._rises(metric) else -1.0
        if math.isnan(best[index]) or (
            sign * (value - best[index]) > self.min_delta
        ):
            if not math.isnan(value):
                best[index], wait[index] = value, 0
                if self.restore_best_head:
                    state.keep_head(name, self._own_variables(name))
        else:
            wait[index] += 1
        state.best.assign(best)
        state.wait.assign(wait)
        if wait[index] >= max(self.patience, 1) and not math.isnan(best[index]):
            self._freeze(name, index)

    def _freeze(self, name, index):
        flags = np.array(self._state.flags)
        flags[index] = True
        self._state.flags.assign(flags)
        if self.restore_best_head:
            self._state.restore_head(name, self._own_variables(name))

    def _own_variables(self, name):
        return self.model._multi_task.structure.own_variables(name)

    def _rises(self, metric):
        if self.mode != "auto":
            return self.mode == "max"
        name = metric.lower()
        if any(part in name for part in FALLING):
            return False
        if any(part in name for part in RISING):
            return True
        raise ValueError(
            f"Whether the metric {metric!r} is better when it is larger is not "
            "clear from its name. Pass `mode='min'` or `mode='max'`. Received: "
            "mode='auto'"
        )
